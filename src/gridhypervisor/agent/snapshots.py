"""An account's snapshots at a site, as files: found, verified into sealed memory, made by one pilot at a time, dropped.

    WORKDIR/snapshots/KEY/          snapshot.json · memory · state; appears whole, by rename, and is never changed
    WORKDIR/snapshots/KEY.claim     a folder: some pilot is about to make it; it binds for CLAIM seconds
    WORKDIR/snapshots/.KEY.RANDOM/  being made, or being removed

Other nodes and other pilots of the account write here, so no byte is believed: it is hashed on its way into memory that
nobody can write any more (a sealed memfd), and the hypervisor is given that. Whatever is wrong with a file, or with
where it lies, means a cold boot, never the end of a job.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from gridhypervisor.agent.node import ABANDONED, MARGIN, remove
from gridhypervisor.agent.snapshot import LARGEST, Kept, Piece, Snapshot, superfluous
from gridhypervisor.model.wire import WireError, canonical, from_plain

CLAIM = 900.0
"""Seconds after which somebody who said that he makes a snapshot, and has not, is not waited for any more."""

_RECORD, _MEMORY, _STATE = "snapshot.json", "memory", "state"
_PIECE = 1 << 20  # bytes: small enough to stay in a processor's cache between reading, hashing and writing
_GRAIN = 1 << 16  # bytes of zeros that are worth leaving out
_THREADS = 4  # reading, hashing and writing leave the interpreter's lock
_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


class Damaged(Exception):
    """A snapshot is not what its record says, or cannot be read; the message says where."""


class Snapshots:
    """The folder with an account's snapshots."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def find(self, key: str) -> Snapshot | None:
        """What there is under that key; it may yet be damaged.

        Raises:
            Damaged: there is one, whose record is wrong.
            OSError: it cannot be read.
        """
        path = self.folder / key / _RECORD
        try:
            found = from_plain(Snapshot, json.loads(path.read_bytes()))
            os.utime(path)  # by which it is known what was used when
        except FileNotFoundError as error:
            if path.parent.exists():
                raise Damaged("its record is not there") from error
            return None
        except (ValueError, WireError) as error:
            raise Damaged(f"read {path}: {error}") from error
        if found.key != key:
            raise Damaged(f"read {path}: it is the record of another, {found.key[:12]}")
        return found

    def load(self, snapshot: Snapshot, memory: int, state: int, stop: Callable[[], bool]) -> None:
        """Bring both into the files of these descriptors, every byte verified, and seal those: nobody, not even we, can
        write them any more.

        Raises:
            Damaged: a byte is wrong or missing.
            OSError: it cannot be read, there is no memory for it, or it was stopped.
        """
        folder = self.folder / snapshot.key
        parts = ((_MEMORY, memory, snapshot.pieces), (_STATE, state, (snapshot.state,)))
        for name, target, pieces in parts:
            try:
                with (folder / name).open("rb") as file:
                    _bring(name, file.fileno(), target, pieces, stop)
            except FileNotFoundError as error:
                raise Damaged(f"its {name} is not there") from error
            fcntl.fcntl(target, fcntl.F_ADD_SEALS, _SEALS)

    def claim(self, key: str) -> bool:
        """Whether this pilot is to make it: no other is doing so just now. A claim ends with `keep` or `release`."""
        claim = self.folder / f"{key}.claim"
        with contextlib.suppress(OSError):
            self.folder.mkdir(mode=0o700, exist_ok=True)
            with contextlib.suppress(FileNotFoundError):
                if time.time() - claim.stat().st_mtime > CLAIM:
                    claim.rmdir()
            claim.mkdir(mode=0o700)
            return True
        return False

    def release(self, key: str) -> None:
        with contextlib.suppress(OSError):
            (self.folder / f"{key}.claim").rmdir()

    def keep(self, key: str, memory: int, state: int, stop: Callable[[], bool]) -> Snapshot | None:
        """Make a snapshot of what two descriptors hold, and end the claim; None if stopped, or one is there.

        Raises:
            OSError: it cannot be written, or there is no room.
        """
        private, kept = self._private(key), None
        try:
            private.mkdir(mode=0o700)
            size = os.fstat(memory).st_size
            needed = sum(length for _, length in extents(memory, size)) + MARGIN
            space = os.statvfs(private)
            if space.f_bavail * space.f_frsize < needed:
                raise OSError(
                    errno.ENOSPC, f"{space.f_bavail * space.f_frsize >> 20} MiB are free, {needed >> 20} MiB needed"
                )
            with (private / _MEMORY).open("xb") as file:
                pieces = tuple(_pack(memory, size, file.fileno(), stop))
            if (length := sum(piece.length for piece in pieces)) > LARGEST:
                raise OSError(errno.EFBIG, f"it has {length >> 20} MiB, and {LARGEST >> 20} MiB at most are kept")
            data = os.pread(state, os.fstat(state).st_size, 0)
            (private / _STATE).write_bytes(data)
            snapshot = Snapshot(key, size, pieces, Piece(0, len(data), hashlib.sha256(data).hexdigest()))
            (private / _RECORD).write_bytes(canonical(snapshot))
            if not stop():
                private.rename(self.folder / key)
                kept = snapshot
        except OSError:
            if not (self.folder / key).exists():
                raise  # and the claim binds on: not every guest shall stand still in vain
        finally:
            remove(private)
        self.release(key)
        return kept

    def drop(self, key: str) -> None:
        """Remove a snapshot: first out of sight, at once. Who has it open goes on reading."""
        private = self._private(key)
        with contextlib.suppress(OSError):
            (self.folder / key).rename(private)
        remove(private)

    def sweep(self) -> list[str]:
        """Drop what is superfluous, and what somebody began and left; the keys."""
        with contextlib.suppress(OSError):
            for private in self.folder.glob(".*"):
                if time.time() - private.stat().st_mtime > ABANDONED:
                    remove(private)
        dropped = superfluous(self._kept(), time.time())
        for key in dropped:
            self.drop(key)
        return dropped

    def _kept(self) -> Iterator[Kept]:
        with contextlib.suppress(OSError):
            for folder in list(self.folder.iterdir()):
                if folder.name[0] == "." or folder.suffix:
                    continue
                with contextlib.suppress(OSError):
                    sizes = [(folder / name).stat().st_size for name in (_MEMORY, _STATE)]
                    yield Kept(folder.name, sum(sizes), (folder / _RECORD).stat().st_mtime)

    def _private(self, key: str) -> Path:
        return self.folder / f".{key}.{os.urandom(8).hex()}"


def copy_memory(source: int, target: int) -> None:
    """Copy what is not a hole, in the kernel.

    Raises:
        OSError: it cannot be written.
    """
    size = os.fstat(source).st_size
    os.ftruncate(target, size)
    for offset, length in extents(source, size):
        os.lseek(target, offset, os.SEEK_SET)
        while length:
            sent = os.sendfile(target, source, offset, length)
            offset, length = offset + sent, length - sent


def _bring(name: str, source: int, target: int, pieces: tuple[Piece, ...], stop: Callable[[], bool]) -> None:
    """Copy the pieces to where they belong, verified; as `load`."""
    places = _places(name, pieces, os.fstat(source).st_size, os.fstat(target).st_size)

    def take(number: int) -> None:
        piece = pieces[number]
        if stop():
            raise TimeoutError(errno.ETIMEDOUT, "it took too long")
        data = os.pread(source, piece.length, places[number])
        if hashlib.sha256(data).hexdigest() != piece.sha256:
            raise Damaged(f"its {name} is damaged in the {piece.length} bytes at {places[number]}")
        if os.pwrite(target, data, piece.offset) != len(data):
            raise OSError(errno.ENOSPC, "no room in this node's memory")

    _at_once(take, len(pieces))


def _places(name: str, pieces: tuple[Piece, ...], there: int, size: int) -> list[int]:
    """Where each piece begins in a file of `there` bytes, of what has `size`.

    Raises:
        Damaged: the record does not fit the file.
    """
    places, place = [], 0
    for piece in pieces:
        places.append(place)
        place += piece.length
        if not (0 <= piece.offset <= size - piece.length and piece.length > 0):
            raise Damaged(f"the record of its {name} is wrong")
    if place != there:
        raise Damaged(f"its {name} has {there} bytes instead of {place}")
    return places


def _at_once(work: Callable[[int], None], count: int) -> None:
    """Do work(0) to work(count - 1), several at a time; what one of them raises."""
    import threading  # only here: it is needed while snapshots are read

    problems: list[BaseException] = []
    todo = iter(range(count))
    turn = threading.Lock()

    def run() -> None:
        try:
            while not problems:
                with turn:
                    number = next(todo, None)
                if number is None:
                    return
                work(number)
        except BaseException as error:
            problems.append(error)

    workers = [threading.Thread(target=run) for _ in range(min(_THREADS, count) - 1)]
    for worker in workers:
        worker.start()
    run()
    for worker in workers:
        worker.join()
    if problems:
        raise problems[0]


def extents(descriptor: int, size: int) -> Iterator[tuple[int, int]]:
    """(offset, length) of what is not a hole."""
    end = 0
    while end < size:
        try:
            start = os.lseek(descriptor, end, os.SEEK_DATA)
        except OSError:
            return  # nothing but a hole is left
        end = os.lseek(descriptor, start, os.SEEK_HOLE)
        yield start, end - start


def _pack(source: int, size: int, target: int, stop: Callable[[], bool]) -> Iterator[Piece]:
    """Write the stretches of `source` that are not zero to `target`, one after another."""
    zeros = bytes(_GRAIN)
    for start, length in extents(source, size):
        for offset in range(start, start + length, _PIECE):
            if stop():
                return
            data = os.pread(source, min(_PIECE, start + length - offset), offset)
            begin = 0
            while begin < len(data):
                end = begin
                while end < len(data) and data[end : end + _GRAIN] != zeros[: len(data) - end]:
                    end += _GRAIN
                if run := data[begin:end]:
                    _write(target, run)
                    yield Piece(offset + begin, len(run), hashlib.sha256(run).hexdigest())
                begin = max(end, begin + _GRAIN)


def _write(target: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(target, view) :]
