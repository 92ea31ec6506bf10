"""The relay's files: uploads that can be taken up again, downloads, what is kept and what is thrown away.

All functions block and belong in a thread. Every path is relative to the workdir and stays in it. What arrives is
believed only after its digest was taken of the bytes on this file system.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import itertools
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from gridhypervisor.agent import spool
from gridhypervisor.model import wire
from gridhypervisor.model.wire import ExitRecord, WireError

PAGE = 5000
"""Files in one LIST_OUT reply: their lines stay well below wire.MAX_LINE."""

FEW = 100
"""Outputs that come with a FETCH, at most."""

REMOVAL_CUT_SHORT = 600.0
"""Seconds after which the removal of an entry is taken to have been cut short."""

UPLOAD_GIVEN_UP = 7 * 86400.0
"""Seconds after which nobody will go on with an upload."""

_BLOCK = 1 << 20


class Refused(Exception):
    """A request that is answered by an error: `kind` for programs, message and hint for people."""

    def __init__(self, kind: str, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.kind, self.message, self.hint = kind, message, hint


class Files:
    """File operations below `workdir` (resolved, absolute)."""

    def __init__(self, workdir: Path) -> None:
        self.workdir = workdir

    def place(self, relative: str) -> Path:
        """The absolute path of one below the workdir. Its folder is resolved, the last name is not.

        Raises:
            Refused: it is not relative, or leads out of the workdir.
        """
        pure = PurePosixPath(relative)
        if not pure.parts or pure.is_absolute() or ".." in pure.parts or "\0" in relative:
            raise Refused("path", f"path {relative!r}: must be relative to the workdir and without '..'")
        folder = (self.workdir / pure).parent.resolve()
        if not folder.is_relative_to(self.workdir):
            raise Refused("path", f"path {relative!r}: a symbolic link leads out of {self.workdir}")
        return folder / pure.name

    def existing(self, relative: str) -> Path:
        """Like `place`, for reading: the last name is followed too, and a plain file must be there."""
        path = self.place(relative).resolve()
        if not path.is_relative_to(self.workdir):
            raise Refused("path", f"path {relative!r}: a symbolic link leads out of {self.workdir}")
        if not path.is_file():
            raise Refused("missing", f"no file {relative} in {self.workdir}", "removed, or not made yet?")
        return path

    def have(self, paths: list[str]) -> dict[str, int | None]:
        """Sizes in bytes of the paths and of what was uploaded of them so far (`.part`); None where absent."""
        return {name: _size(self.place(name)) for path in paths for name in (path, f"{path}.part")}

    def put(self, request: dict[str, Any], payload: bytes) -> int:
        """Write one piece of a file; with `last`, verify the whole and give it its name. Returns the size so far."""
        path, offset, size = self.place(request["path"]), int(request["offset"]), int(request["size"])
        part = path.with_name(path.name + ".part")
        if offset and not part.exists() and _size(path) == size:
            if request.get("last"):
                self._verify(path, request)
            return size  # sent again: the answer was lost, not the file
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _locked(part) as descriptor:
            have = os.fstat(descriptor).st_size
            if offset > have:
                raise Refused("offset", f"put {request['path']}: piece at {offset}, but only {have} bytes are here",
                              "ask `have` and go on from there")  # fmt: skip
            if offset == 0:
                os.ftruncate(descriptor, 0)
            _write_all(descriptor, payload, offset)
            if not request.get("last"):
                return offset + len(payload)
            os.ftruncate(descriptor, min(size, offset + len(payload)))
            if offset + len(payload) != size:
                raise Refused("offset", f"put {request['path']}: {offset + len(payload)} bytes came, {size} announced")
            self._finish(descriptor, part, path, request)
        return size

    def link_in(self, request: dict[str, Any]) -> int:
        """Take a file of this machine: by hard link where nobody will write on it (ours, read-only), else copied."""
        source, path = Path(request["source"]), self.place(request["path"])
        if not source.is_absolute():
            raise Refused("path", f"link in {source}: must be an absolute path")
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        part = path.with_name(path.name + ".part")
        try:
            with source.open("rb") as file:
                status = os.fstat(file.fileno())
                if not stat.S_ISREG(status.st_mode):
                    raise Refused("path", f"link in {source}: not a plain file")
                if status.st_uid == os.geteuid() and not status.st_mode & 0o222:
                    with contextlib.suppress(OSError):  # another file system: copied below
                        part.unlink(missing_ok=True)
                        os.link(source, part)
                        self._verify(part, request)
                        os.rename(part, path)
                        part.unlink(missing_ok=True)  # rename does nothing where both are links to one file
                        return status.st_size
                with _locked(part) as descriptor:
                    os.ftruncate(descriptor, 0)
                    _copy(file.fileno(), descriptor, status.st_size)
                    self._finish(descriptor, part, path, request)
                    return status.st_size
        except FileNotFoundError as error:
            raise Refused("missing", f"link in {source}: no such file", "was it moved or deleted?") from error

    def get(self, relative: str, offset: int, length: int) -> tuple[int, bytes]:
        """The file's size now and up to `length` bytes from `offset`."""
        with self.existing(relative).open("rb") as file:
            file.seek(offset)
            data = file.read(max(0, min(length, wire.MAX_PAYLOAD)))
            return os.fstat(file.fileno()).st_size, data

    def seal(self, checkpoint: str, part: str, number: int, key: bytes) -> tuple[int, bytes]:
        """A part's size now, and one frame of it as it may leave the site."""
        from gridhypervisor.agent.cipher import seal  # few relays do

        name = f"{wire.CHECKPOINTS}/{checkpoint}/{part}"
        with self.existing(name).open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if not 0 <= number < wire.frames_of(size):
                raise Refused("offset", f"seal {name}: it has no frame {number}, with {size} bytes")
            data = os.pread(file.fileno(), wire.FRAME, number * wire.FRAME)
        return size, seal(key, os.urandom(wire.NONCE), data, wire.bound_to(checkpoint, part, size, number))

    def fetch(self, entry: Path, names: list[str], most: int, outputs: bool) -> dict[str, bytes | None]:
        """Files of the entry, and (`outputs`) those that its sentinel lists, by name; None where there is none.

        As many as come to `most` bytes: what does not fit is left out, and what comes behind it may still fit.
        """
        found: dict[str, bytes | None] = {}
        left = min(most, wire.MAX_PAYLOAD)

        def take(name: str) -> None:
            nonlocal left
            try:
                with self.existing(f"{wire.SPOOL}/{entry.name}/{name}").open("rb") as file:
                    data = file.read(left + 1)
            except Refused as error:
                if error.kind == "missing":
                    found[name] = None
                return
            if len(data) <= left:
                found[name] = data
                left -= len(data)

        for name in names:
            take(name)
        for name in _listed(entry) if outputs else ():
            take(name)
        return found

    def list_out(self, entry: Path, after: str) -> tuple[list[dict[str, Any]], bool]:
        """A page of the entry's outputs that sort behind `after`, and whether there are more."""
        out = entry / wire.OUTPUTS
        try:
            record = spool.read_json(entry / wire.EXIT, ExitRecord)
        except WireError:
            record = None
        digests = {file.path: file.sha256 for file in record.outputs} if record else {}
        files: list[dict[str, Any]] = []
        for relative, path in sorted(_plain_files(out)):
            if relative <= after or not wire.is_text(relative):
                continue
            if len(files) == PAGE:
                return files, True
            status = path.stat()
            digest = {"sha256": digests[relative]} if relative in digests else {}
            files.append({"path": relative, "size": status.st_size, "mode": stat.S_IMODE(status.st_mode), **digest})
        return files, False

    def evict(self, paths: list[str]) -> int:
        """Remove cached files, bundles or checkpoints; give the bytes freed. Absent is removed already."""
        freed = 0
        for relative in paths:
            path = self.place(relative)
            parts = path.relative_to(self.workdir).parts
            if len(parts) < 2 or parts[0] not in (wire.CACHE, wire.BUNDLES, wire.CHECKPOINTS):
                below = f"{wire.CACHE}/, {wire.BUNDLES}/ and {wire.CHECKPOINTS}/"
                raise Refused("path", f"evict {relative}: only below {below}")
            freed += remove(path)
        return freed

    def _finish(self, descriptor: int, part: Path, path: Path, request: dict[str, Any]) -> None:
        self._verify(part, request)
        os.fchmod(descriptor, int(request.get("mode", 0o600)) & 0o777)
        os.fsync(descriptor)
        os.rename(part, path)
        spool.sync_folder(path.parent)

    def _verify(self, path: Path, request: dict[str, Any]) -> None:
        """Compare the bytes with the request's digest; what is wrong is cut off, so that it can be sent again."""
        name = request["path"]
        again = "it was damaged on the way, or is not the file that was announced: send it again"
        if expected := request.get("sha256"):
            with path.open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
            if found != expected:
                path.unlink()
                raise Refused("digest", f"verify {name}: its SHA-256 is {found}, expected {expected}", again)
        if chunks := request.get("chunks"):
            listed = self.existing(chunks).read_bytes()
            length = int(request.get("chunk_size", _BLOCK))
            with path.open("rb") as file:
                for number in range(len(listed) // 32 + 1):
                    data = file.read(length)
                    expected = listed[32 * number : 32 * number + 32]
                    if (hashlib.sha256(data).digest() if data else b"") != expected:
                        with contextlib.suppress(OSError):
                            path.unlink() if path.stat().st_nlink > 1 else os.truncate(path, number * length)
                        raise Refused("digest", f"verify {name}: chunk {number} is not that of {chunks}", again)


def remove(path: Path) -> int:
    """Remove a file or a tree, whatever its modes; give the bytes that this freed. Absent is 0."""
    if not path.is_dir() or path.is_symlink():
        size = _size(path)
        path.unlink(missing_ok=True)
        return size or 0
    freed = 0
    os.chmod(path, 0o700)
    for folder, folders, names in os.walk(path):
        for name in folders:  # a program may have left folders that even we cannot enter
            inner = os.path.join(folder, name)
            if not os.path.islink(inner):
                os.chmod(inner, 0o700)
        for name in names:
            status = os.lstat(os.path.join(folder, name))
            freed += status.st_size if status.st_nlink == 1 else 0
    shutil.rmtree(path)
    return freed


def sweep_abandoned(workdir: Path, installation: str, now: float) -> None:
    """Remove what somebody who was killed left half done: entries of this installation whose removal was cut short,
    and uploads to the cache that nobody has gone on with for a week. `now`: on the files' own clock."""
    for path in (workdir / wire.SPOOL).glob(f".removed.{installation}-*"):
        with contextlib.suppress(OSError):
            if now - path.stat().st_ctime > REMOVAL_CUT_SHORT:  # since its renaming: another relay may be at it
                remove(path)
    for path in (workdir / wire.CACHE).glob("*.part"):
        with contextlib.suppress(OSError):
            if now - path.stat().st_mtime > UPLOAD_GIVEN_UP:
                path.unlink()


def _listed(entry: Path) -> list[str]:
    """The first outputs that the entry's sentinel lists, as names in the entry; links are not among them."""
    try:
        record = spool.read_json(entry / wire.EXIT, ExitRecord)
    except WireError:
        return []
    files = (file.path for file in record.outputs if not file.link) if record is not None else ()
    return [f"{wire.OUTPUTS}/{path}" for path in itertools.islice(files, FEW)]


def _size(path: Path) -> int | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_size if stat.S_ISREG(status.st_mode) else None


def _plain_files(out: Path) -> Iterator[tuple[str, Path]]:
    """Plain files below `out`, and links to plain files in it: what can be carried home."""
    top = out.resolve()
    for folder, _, names in os.walk(out):
        for name in names:
            path = Path(folder, name)
            real = path.resolve()
            if real.is_file() and real.is_relative_to(top):
                yield path.relative_to(out).as_posix(), path


@contextlib.contextmanager
def _locked(part: Path) -> Iterator[int]:
    """Open an upload for this relay alone: another controller of the account may be sending the same file."""
    while True:
        descriptor = os.open(part, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            with contextlib.suppress(OSError):  # no locks on this file system: the digest still decides
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            try:
                current = os.stat(part)
            except FileNotFoundError:
                continue  # finished by the other one while we waited
            if current.st_ino == os.fstat(descriptor).st_ino:
                yield descriptor
                return
        finally:
            os.close(descriptor)


def _write_all(descriptor: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written


def _copy(source: int, target: int, size: int) -> None:
    """Copy by the kernel, which shares blocks where the file system can."""
    done = 0
    while done < size:
        try:
            count = os.copy_file_range(source, target, min(size - done, 1 << 30), done, done)
        except OSError:
            count = 0
        if not count:  # not between these file systems, or the source became shorter: verified afterwards
            data = os.pread(source, _BLOCK, done)
            if not data:
                return
            _write_all(target, data, done)
            count = len(data)
        done += count
