"""Checkpoints as files: written by one pilot, whole or not at all; verified before anything of one is used.

    WORKDIR/checkpoints/ID/             see model/wire/checkpoints.py
    WORKDIR/checkpoints/.ID.RANDOM/     being written; what nobody writes any more is swept

What is large goes through the bundle's zstd, and is hashed where it lies, when its guest may go on already. Of a disk
go only the stretches that are no holes, each behind its place and length. Other nodes and the account itself can write
here: what is read is copied to the node's own disk and compared on the way, and nothing else is ever looked at.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import struct
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

from gridhypervisor.agent import spool
from gridhypervisor.agent.node import ABANDONED, MARGIN, remove
from gridhypervisor.agent.processes import Child
from gridhypervisor.agent.snapshots import extents
from gridhypervisor.agent.world import World
from gridhypervisor.model import wire
from gridhypervisor.model.wire import Checkpoint, Part, WireError, bound_to, canonical, frames_of, from_plain

RECORD, MEMORY, HEARD, PACKED = "checkpoint.json", "memory", "pilot.json", ".zst"

_PIECE = 1 << 20  # bytes
_PLACE = struct.Struct("<QQ")  # of a stretch of a disk: where it begins, and its bytes
_PACKED = 4  # what is saved is taken to become so many times smaller, at best: see `obstacle`


class Damaged(Exception):
    """A checkpoint is not what its record says, or cannot be read; the message says where."""


class Abandoned(OSError):
    """It is no longer wanted, or would take too long."""


def obstacle(folder: Path, guest: int) -> str:
    """Why no checkpoint of so many bytes of memory and disks can be written there, or empty. How far it can be packed
    nobody knows beforehand: a quarter of it must fit, and what fits in spite of that, or does not, the writing tells.

    Raises:
        OSError: the folder cannot be made.
    """
    folder.mkdir(mode=0o700, exist_ok=True)
    space = os.statvfs(folder)
    free, needed = space.f_bavail * space.f_frsize, guest // _PACKED + MARGIN
    return "" if free >= needed else f"{free >> 20} MiB are free in {folder}, and {needed >> 20} MiB may be needed"


def sweep(folder: Path) -> list[str]:
    """Remove what somebody began to write and left; the names."""
    swept = []
    with contextlib.suppress(OSError):
        for private in folder.glob(".*"):
            if time.time() - private.stat().st_mtime > ABANDONED:
                remove(private)
                swept.append(private.name)
    return swept


def wide_pipe() -> tuple[int, int]:
    """As os.pipe, for much that goes through it: who writes waits the less often for who reads."""
    ends = os.pipe()
    with contextlib.suppress(OSError):  # the account has too many of them
        fcntl.fcntl(ends[1], fcntl.F_SETPIPE_SZ, _PIECE)
    return ends


class Writer:
    """Writes one checkpoint. `stop`: whether to give up."""

    def __init__(self, folder: Path, name: str, world: World, threads: int, stop: Callable[[], bool]) -> None:
        """Raises: OSError: its folder cannot be made."""
        self.name, self.kept = name, False
        self._final, self._private = folder / name, folder / f".{name}.{os.urandom(8).hex()}"
        self._words, self._stop = [*world.argv("zstd"), "-q", "-1", f"-T{threads}", "-c"], stop
        self._private.mkdir(mode=0o700)
        self._packings: list[Packing] = []
        self._plain: dict[str, int] = {}  # bytes of the parts that are as they were

    def packing(self, name: str, length: int) -> Packing:
        """Begin a part that comes through a pipe; `length`: its bytes unpacked. It is waited for by `parts`."""
        packing = Packing(self._words, self._private / (name + PACKED), length)
        self._packings.append(packing)
        return packing

    def abandon(self) -> None:
        """Nothing of it is wanted any more."""
        for packing in self._packings:
            packing.abandon()
        self._packings.clear()

    def disk(self, name: str, path: Path) -> None:
        """Write what is in the file of a disk that nobody writes to.

        Raises:
            OSError: it cannot be, or was given up.
        """
        packing = self.packing(name, path.stat().st_size)
        with contextlib.suppress(BrokenPipeError), path.open("rb") as file:  # why is said by who reads
            for start, length in extents(file.fileno(), packing.length):
                os.write(packing.into, _PLACE.pack(start, length))
                while length:
                    if self._stop():
                        raise Abandoned(errno.EINTR, "it is no longer wanted")
                    sent = os.sendfile(packing.into, file.fileno(), start, min(length, _PIECE))
                    if not sent:
                        raise OSError(errno.EIO, f"{path} became shorter")
                    start, length = start + sent, length - sent
        packing.close()

    def plain(self, name: str, source: BinaryIO, length: int) -> None:
        """Write a part as it is: the next `length` bytes of the source.

        Raises:
            OSError: it cannot be, or there are not as many.
        """
        left = length
        with (self._private / name).open("xb") as file:
            while left:
                data = source.read(min(left, _PIECE))
                if not data:
                    raise OSError(errno.EIO, f"{name} has {left} bytes less than were printed")
                file.write(data)
                left -= len(data)
        self._plain[name] = length

    def parts(self) -> tuple[Part, ...]:
        """What was written, once all of it is on the disk.

        Raises:
            OSError: it could not be.
        """
        lengths = dict(self._plain)
        while self._packings:
            packing = self._packings.pop()
            packing.finish()
            lengths[packing.path.name] = packing.length
        return tuple(self._part(name, length) for name, length in sorted(lengths.items()))

    def _part(self, name: str, length: int) -> Part:
        with (self._private / name).open("rb") as file:
            os.fsync(file.fileno())
            return Part(name, os.fstat(file.fileno()).st_size, hashlib.file_digest(file, "sha256").hexdigest(), length)

    def keep(self, checkpoint: Checkpoint) -> None:
        """Put its record on the disk too, and let all of it be seen.

        Raises:
            OSError: it cannot be, or was given up.
        """
        spool.write_durable(self._private / RECORD, canonical(checkpoint))
        spool.sync_folder(self._private)
        if self._stop():
            raise Abandoned(errno.EINTR, "it is no longer wanted")
        os.rename(self._private, self._final)
        self.kept = True
        spool.sync_folder(self._final.parent)

    def discard(self) -> None:
        """Leave nothing of what was not kept."""
        self.abandon()
        remove(self._private)


class Packing:
    """One part on its way from a pipe through zstd to its file."""

    def __init__(self, words: list[str], path: Path, length: int) -> None:
        self.path, self.length = path, length
        taken, self.into = wide_pipe()
        try:
            with path.open("xb") as file:
                self._child = Child(words, {"PATH": "/usr/bin:/bin"}, stdin=taken, stdout=file.fileno())
        except OSError:
            os.close(self.into)
            raise
        finally:
            os.close(taken)

    def close(self) -> None:
        """Nothing comes of us any more."""
        if self.into >= 0:
            os.close(self.into)
            self.into = -1

    def finish(self) -> None:
        """Wait until all is written that comes. Raises: OSError: it could not be."""
        self.close()
        code, said = self._child.wait()
        if code != 0:
            raise OSError(errno.EIO, f"write {self.path.name}: {said or f'zstd ended with status {code}'}")

    def abandon(self) -> None:
        """It is not wanted any more; a file server that does not answer is not waited for."""
        self.close()
        self._child.leave()


class Reader:
    """A checkpoint on its way to this node. `place`: a folder of our own; `stop`: whether to give up."""

    def __init__(
        self, folder: Path, checkpoint: Checkpoint, place: Path, world: World, stop: Callable[[], bool]
    ) -> None:  # fmt: skip
        self._folder, self._checkpoint, self._place = folder / checkpoint.id, checkpoint, place
        self._words, self._stop = [*world.argv("zstd"), "-q", "-d", "-c"], stop
        place.mkdir(mode=0o700)

    def bring(self) -> None:
        """Copy every part and compare it; but for the memory, which is `fetch`ed while a hypervisor starts.

        Raises:
            Damaged: one is not what the record says.
            OSError: there is no room for it, or it was stopped.
        """
        self._compare()
        for part in self._checkpoint.parts:
            if part.name != MEMORY + PACKED:
                self._copy(part)

    def _compare(self) -> None:
        """That it is the one that is meant. Raises: Damaged."""
        try:
            record = from_plain(Checkpoint, json.loads((self._folder / RECORD).read_bytes()))
        except FileNotFoundError as error:
            raise Damaged(f"it is not there, or without {RECORD}") from error
        except (ValueError, WireError) as error:
            raise Damaged(f"its {RECORD} cannot be read: {error}") from error
        if record != self._checkpoint:
            raise Damaged(f"its {RECORD} is that of another, or was changed")

    def fetch(self) -> None:
        """Copy the memory and compare it. Raises: Damaged, OSError: as `bring`."""
        [part] = (part for part in self._checkpoint.parts if part.name == MEMORY + PACKED)
        self._copy(part)

    def _copy(self, part: Part) -> None:
        if "/" in part.name or part.name in (".", ".."):
            raise Damaged(f"a part of it is called {part.name!r}")
        digest, size = hashlib.sha256(), 0
        with (self._place / part.name).open("xb") as copy:
            for data in self._pieces(part):
                if self._stop():
                    raise Abandoned(errno.EINTR, "stopped")
                digest.update(data)
                size += len(data)
                copy.write(data)
        if size != part.size:
            raise Damaged(f"its {part.name} has {size} bytes instead of {part.size}")
        if digest.hexdigest() != part.sha256:
            raise Damaged(f"its {part.name} is damaged: the SHA-256 is not {part.sha256[:12]}…")

    def _pieces(self, part: Part) -> Iterator[bytes]:
        """What there is of a part. Raises: Damaged: there is none."""
        with self._source(part) as source:
            while data := source.read(_PIECE):
                yield data

    def _source(self, part: Part) -> BinaryIO:
        try:
            return (self._folder / part.name).open("rb")
        except FileNotFoundError as error:
            raise Damaged(f"its {part.name} is not there") from error

    def unpack(self, disks: Mapping[str, Path]) -> None:
        """Make the files of these disks anew, by their serials.

        Raises:
            Damaged, OSError: as `bring`.
        """
        for serial, path in disks.items():
            self._unpack(serial, path, self._checkpoint.disks[serial])

    def _unpack(self, serial: str, path: Path, size: int) -> None:
        source, out = wide_pipe()
        try:
            child = self.feed(serial, out)
        finally:
            os.close(out)
        with os.fdopen(source, "rb") as file, path.open("wb") as disk:
            disk.truncate(size)
            while head := file.read(_PLACE.size):
                if len(head) < _PLACE.size:
                    raise Damaged(f"its disk {serial} ends too early")
                start, length = _PLACE.unpack(head)
                if start + length > size:
                    raise Damaged(f"its disk {serial} has bytes behind its end")
                disk.seek(start)
                while length:
                    if self._stop():
                        raise Abandoned(errno.EINTR, "stopped")
                    data = file.read(min(length, _PIECE))
                    if not data:
                        raise Damaged(f"its disk {serial} ends too early")
                    disk.write(data)
                    length -= len(data)
        code, said = child.wait()
        if code != 0:
            raise Damaged(f"its disk {serial} cannot be unpacked: {said}")

    def feed(self, name: str, into: int) -> Child:
        """Start what writes a part, unpacked, to a descriptor. Raises: OSError: it cannot be started."""
        return Child([*self._words, str(self._place / (name + PACKED))], {"PATH": "/usr/bin:/bin"}, stdout=into)

    def text(self, name: str) -> bytes:
        """A small part."""
        return (self._place / name).read_bytes()

    def lay(self, entry: Path) -> None:
        """Begin the entry's streams with what was printed so far. Raises: OSError: there is no room."""
        for name in (wire.STDOUT, wire.STDERR, wire.CONSOLE):
            if (self._place / name).exists():
                with (self._place / name).open("rb") as source, (entry / name).open("wb") as file:
                    os.fchmod(file.fileno(), 0o600)
                    while data := source.read(_PIECE):
                        file.write(data)


class SealedReader(Reader):
    """The same of a copy that came from elsewhere: `folder` holds its sealed parts, and nothing else. That it is the
    checkpoint that is meant, its key says."""

    def __init__(
        self, folder: Path, key: bytes, checkpoint: Checkpoint, place: Path, world: World, stop: Callable[[], bool]
    ) -> None:  # fmt: skip
        super().__init__(folder.parent, checkpoint, place, world, stop)
        self._folder, self._key = folder, key

    def _compare(self) -> None:
        """Each frame is compared when it is opened."""

    def _pieces(self, part: Part) -> Iterator[bytes]:
        from gridhypervisor.agent.cipher import Forged, unseal  # most guests that are taken up have not travelled

        with self._source(part) as source:
            for number in range(frames_of(part.size)):
                bound = bound_to(self._checkpoint.id, part.name, part.size, number)
                try:
                    yield unseal(self._key, source.read(wire.FRAME + wire.SEAL), bound)
                except Forged as error:
                    raise Damaged(f"the copy of its {part.name} cannot be opened at frame {number}: {error}") from error
