"""This node's folder: whose it is, the verified copies of layers in it, the folder of one run, and sweeping.

Layers come from the account's cache, which may be a network file system that other nodes write; a copy in our own 0700
folder was verified while it was made. A stamp beside it says of which inode, size and times that holds; while they are
the same the bytes are believed, else they are verified again. Pilots race freely: every file appears by rename.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from gridhypervisor.agent.ending import Ending
from gridhypervisor.model.wire import Layer, Reason

MARGIN = 64 << 20
"""Bytes that must stay free on the node beside what is about to be copied."""

ABANDONED = 3600.0
"""Seconds after which what somebody began to write, and writes no more, is nobody's."""

_TRIES = 3  # for a layer that another pilot drops as soon as it is here
_THREADS = 4  # hashing and reading leave the interpreter's lock; more than this no disk of a node repays
_DIGEST = 32


class Node:
    """SCRATCH/ghv-UID, see docs/architecture.md."""

    def __init__(self, scratch: Path) -> None:
        """Make what is missing.

        Raises:
            Ending: scratch cannot be written, or the folder is not ours alone.
        """
        self.root = scratch / f"ghv-{os.getuid()}"
        self.cache = self.root / "cache"
        self.runs = self.root / "run"
        self._held: list[int] = []  # descriptors of the copies in use, locked as long as this process lives
        try:
            _make(self.root)
            found = self.root.lstat()
            if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
                raise Ending(
                    Reason.NODE_DISK,
                    f"use {self.root}: it is not a folder of mode 0700 of our own, so somebody else may have made it",
                    "remove it on the node, or configure another scratch for the site",
                )
            _make(self.cache)
            _make(self.runs)
        except OSError as error:
            raise _disk(f"make {self.root}", error) from error

    def enter(self, name: str) -> tuple[Path, int]:
        """Make the folder of one run and lock it; return it with the lock's descriptor, to be held until the end.

        Raises:
            Ending: it cannot be made.
        """
        folder = self.runs / name
        try:
            with self._locked():
                self._clear(folder)
                folder.mkdir(mode=0o700)
                lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise _disk(f"make {folder}", error) from error
        return folder, lock

    def sweep(self) -> list[str]:
        """Remove the folders of runs that are over though nobody cleaned up (the node was cut off); name them. And
        what a pilot that was killed had begun to copy."""
        for private in self.cache.glob(".*"):
            with contextlib.suppress(OSError):
                if time.time() - private.stat().st_mtime > ABANDONED:
                    private.unlink()
        swept = []
        with contextlib.suppress(OSError), self._locked():
            for folder in list(self.runs.iterdir()):
                if folder.is_dir() and self._clear(folder):
                    swept.append(folder.name)
        return swept

    def _clear(self, folder: Path) -> bool:
        """Remove the folder of a run unless somebody holds its lock."""
        try:
            lock = os.open(folder / "lock", os.O_RDWR)
        except FileNotFoundError:
            remove(folder)
            return True
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            remove(folder)
            return True
        except BlockingIOError:
            return False
        finally:
            os.close(lock)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        descriptor = os.open(self.root / "run.lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def has(self, layer: Layer) -> Path | None:
        """The layer's bytes on this node, if they are there and believed. While this process lives they stay."""
        path, stamp = self.cache / layer.digest, self._stamp(layer)
        try:
            if json.loads(stamp.read_bytes()) == _identity(path.stat()) and self._hold(path):
                os.utime(stamp)  # by which `make_room` knows what was used when
                return path
        except (OSError, ValueError):
            pass
        return None

    def make_room(self, needed: int) -> None:
        """Drop copies of layers that no pilot uses, first what was used longest ago, until `needed` bytes are free or
        nothing is left to drop. The account's cache has them still."""

        def used(path: Path) -> float:
            with contextlib.suppress(OSError):
                return path.with_name(f"{path.name}.stamp").stat().st_mtime
            return 0.0

        if self._free() >= needed:
            return
        copies = [path for path in self.cache.iterdir() if path.suffix == "" and path.name[0] != "."]
        for path in sorted(copies, key=used):
            if self._free() >= needed:
                return
            self._drop(path)

    def _free(self) -> int:
        space = os.statvfs(self.cache)
        return space.f_bavail * space.f_frsize

    def _hold(self, path: Path) -> bool:
        """Keep a copy from being dropped; False where it is just being."""
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                self._held.append(descriptor)
                return True
        except (BlockingIOError, FileNotFoundError):
            pass
        os.close(descriptor)
        return False

    def _drop(self, path: Path) -> None:
        """Remove a copy unless a pilot holds it, or it has another name, so that nothing would be won."""
        with contextlib.suppress(OSError), path.open("rb") as file:
            fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(file.fileno()).st_nlink == 1:
                path.unlink()
                path.with_name(f"{path.name}.stamp").unlink(missing_ok=True)

    def fetch(self, layer: Layer, source: Path, stop: Callable[[], bool], *, take: bool = False) -> Path:
        """Bring the layer from the account's cache `source`, verified chunk by chunk; its path on this node.

        On one file system it is linked and verified by reading, else verified while it is copied; with `take` it is
        moved there, from the same file system. `stop` is asked after each chunk.

        Raises:
            Ending: the bytes are absent or not those of the digest (image), the node is full (node-disk).
        """
        for _ in range(_TRIES):
            if path := self.has(layer):
                return path
            path = self._bring(layer, source, stop, take)
            with contextlib.suppress(FileNotFoundError):
                if self._hold(path):
                    return path
        raise _disk(f"keep layer {layer.digest[:12]}", OSError(errno.ENOSPC, "others drop it to have room"))

    def _bring(self, layer: Layer, source: Path, stop: Callable[[], bool], take: bool) -> Path:
        chunks = _chunks(layer, source)
        path = self.cache / layer.digest
        data = source / layer.digest
        with contextlib.suppress(OSError, Ending), path.open("rb") as file:  # the stamp is stale: are the bytes?
            _verify(layer, chunks, file.fileno(), None, stop)
            self._believe(layer, file.fileno())
            return path
        private = self.cache / f".{layer.digest}.{os.urandom(8).hex()}"
        try:
            if take:
                os.rename(data, private)
            linked = take or _link(data, private)
            with (private if linked else data).open("rb") as file:
                if linked:
                    _verify(layer, chunks, file.fileno(), None, stop)
                    os.rename(private, path)
                    # Renaming one name of a file over another name of the same does nothing at all.
                    private.unlink(missing_ok=True)
                    self._believe(layer, file.fileno())
                    return path
                self.make_room(layer.size + MARGIN)
                if (free := self._free()) < layer.size + MARGIN:
                    raise OSError(errno.ENOSPC, f"{free >> 20} MiB are free")
                with open(os.open(private, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600), "r+b") as copy:
                    _verify(layer, chunks, file.fileno(), copy.fileno(), stop)
                    os.rename(private, path)
                    self._believe(layer, copy.fileno())
            return path
        except FileNotFoundError as error:
            raise _absent(layer, data) from error
        except OSError as error:
            raise _disk(f"copy layer {layer.digest[:12]} ({layer.size >> 20} MiB) to {self.cache}", error) from error
        finally:
            private.unlink(missing_ok=True)

    def _stamp(self, layer: Layer) -> Path:
        return self.cache / f"{layer.digest}.stamp"

    def _believe(self, layer: Layer, descriptor: int) -> None:
        private = self.cache / f".{layer.digest}.{os.urandom(8).hex()}"
        private.write_text(json.dumps(_identity(os.fstat(descriptor))))
        private.rename(self._stamp(layer))


def remove(folder: Path) -> None:
    """Remove a folder with all that is in it; what cannot be removed stays. As shutil does, which would bring three
    compressors along: more CPU time than all that a pilot writes."""
    for place, folders, files in os.walk(folder, topdown=False):
        for name in files + folders:
            path = os.path.join(place, name)
            with contextlib.suppress(OSError):
                os.rmdir(path) if name in folders and not os.path.islink(path) else os.unlink(path)
    with contextlib.suppress(OSError):
        folder.rmdir()


def _make(folder: Path) -> None:
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)


def _identity(found: os.stat_result) -> list[int]:
    return [found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns]


def _link(data: Path, private: Path) -> bool:
    try:
        os.link(data, private)
    except FileNotFoundError:
        raise
    except OSError:  # another file system, or one without links
        return False
    return True


def _chunks(layer: Layer, source: Path) -> bytes:
    """The layer's chunk list, verified against its digest."""
    path = source / f"{layer.digest}.chunks"
    try:
        chunks = path.read_bytes()
    except OSError as error:
        raise _absent(layer, path) from error
    if _sha256(chunks).hex() != layer.digest or len(chunks) != _count(layer) * _DIGEST:
        raise Ending(
            Reason.IMAGE,
            f"verify layer {layer.digest[:12]} ({layer.role}): its chunk list {path} is not that of its digest",
            "it is uploaded again at the next try; if this comes back, run `ghv image verify`",
        )
    return chunks


def _sha256(data: bytes) -> bytes:
    import hashlib  # only here: it loads OpenSSL, which a pilot that finds its layers verified need not wait for

    return hashlib.sha256(data).digest()


def _count(layer: Layer) -> int:
    return -(-layer.size // layer.chunk_size)


def _verify(layer: Layer, chunks: bytes, source: int, copy: int | None, stop: Callable[[], bool]) -> None:
    """Hash every chunk of `source`, several at a time, and write it to `copy` where one is given."""
    import threading  # only here, as hashlib

    size = os.fstat(source).st_size
    if size != layer.size:
        raise Ending(
            Reason.IMAGE,
            f"verify layer {layer.digest[:12]} ({layer.role}): it has {size} bytes instead of {layer.size}",
            "it is uploaded again at the next try; if this comes back, run `ghv image verify`",
        )
    problems: list[Exception] = []
    todo = iter(range(_count(layer)))
    turn = threading.Lock()

    def work() -> None:
        try:
            while not problems:
                with turn:
                    index = next(todo, None)
                if index is None:
                    return
                if stop():
                    raise Ending(Reason.CANCELLED, "stopped while verifying")
                start = index * layer.chunk_size
                data = os.pread(source, min(layer.chunk_size, layer.size - start), start)
                if _sha256(data) != chunks[index * _DIGEST : (index + 1) * _DIGEST]:
                    raise Ending(
                        Reason.IMAGE,
                        f"verify layer {layer.digest[:12]} ({layer.role}): chunk {index} (bytes {start} to "
                        f"{start + len(data)}) is damaged",
                        "it is uploaded again at the next try; if this comes back, run `ghv image verify`",
                    )
                if copy is not None and os.pwrite(copy, data, start) != len(data):
                    raise OSError(errno.ENOSPC, "short write")
        except Exception as error:
            problems.append(error)

    workers = [threading.Thread(target=work) for _ in range(min(_THREADS, _count(layer)) - 1)]
    for worker in workers:
        worker.start()
    work()
    for worker in workers:
        worker.join()
    if problems:
        raise problems[0]


def _absent(layer: Layer, path: Path) -> Ending:
    return Ending(
        Reason.IMAGE,
        f"read layer {layer.digest[:12]} ({layer.role}): no {path} at the site",
        "it is uploaded again at the next try; check that nobody cleans the account's workdir",
    )


def _disk(what: str, error: OSError) -> Ending:
    return Ending(
        Reason.NODE_DISK,
        f"{what}: {error.strerror or error}",
        "free space on the node's scratch, or configure another scratch for the site",
    )
