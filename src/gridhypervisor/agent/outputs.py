"""Reading the outputs from the guest's tar stream, trusting nothing in it.

Root in the guest may have written anything on the `out` disk, so this reads only what `tar` in the guest writes (ustar
with GNU's long names), makes only files, folders, and links that stay inside, never follows a link, and never allocates
what a header claims. `tarfile` accepts far more, and costs more to import than all this takes.
"""

from __future__ import annotations

import hashlib
import os
import posixpath
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from gridhypervisor.agent.ending import Ending
from gridhypervisor.model.wire import OutputFile, Reason

_BLOCK = 512
_PIECE = 1 << 20
_MAX_NAME = 4096


@dataclass(frozen=True)
class _Member:
    kind: bytes  # of ustar: 0 file, 1 hard link, 2 symbolic link, 5 folder
    path: str  # normalised, relative
    target: str
    size: int
    mode: int


def unpack(disk: Path, out: Path) -> Iterator[OutputFile]:
    """Bring every member of the stream into the folder `out`, durably; yield each file and link as it is complete.

    Raises:
        Ending: a member is damaged or may not be made (output); those before it are there.
        OSError: the spool is full or gone.
    """
    links: set[str] = set()
    with disk.open("rb") as stream:
        for member in _members(stream, disk.stat().st_size):
            if member.path == ".":
                continue
            for parent in _parents(member.path):
                if parent in links:
                    raise _refuse(member.path, "it lies below a symbolic link")
                (out / parent).mkdir(mode=0o700, exist_ok=True)
            path = out / member.path
            if member.kind == b"5":
                path.mkdir(mode=0o700, exist_ok=True)
                continue
            # Two patterns may give the same file; what came last stands.
            path.unlink(missing_ok=True)
            links.discard(member.path)
            if member.kind == b"2":
                _check_target(member)
                path.symlink_to(member.target)
                links.add(member.path)
                yield OutputFile(member.path, 0, 0o777, "", link=member.target)
                continue
            if member.kind == b"1":
                yield _hard_link(member, path, out, links)
                continue
            digest = hashlib.sha256()
            with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600), "wb") as file:
                left = member.size
                while left:
                    data = stream.read(min(left, _PIECE))
                    if not data:
                        raise _refuse(member.path, "the stream ends in the middle of it")
                    digest.update(data)
                    file.write(data)
                    left -= len(data)
                os.fchmod(file.fileno(), member.mode & 0o777 | 0o600)
                file.flush()
                os.fsync(file.fileno())
            stream.seek(-member.size % _BLOCK, os.SEEK_CUR)
            yield OutputFile(member.path, member.size, member.mode & 0o777, digest.hexdigest())


def _hard_link(member: _Member, path: Path, out: Path, links: set[str]) -> OutputFile:
    target = _normal(member.target)
    source = out / target
    if target in links or any(parent in links for parent in _parents(target)) or not source.is_file():
        raise _refuse(member.path, f"it is a hard link to {member.target!r}, which is no file before it")
    path.hardlink_to(source)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
        found = os.fstat(file.fileno())
    return OutputFile(member.path, found.st_size, found.st_mode & 0o777, digest.hexdigest())


def _members(stream: BinaryIO, size: int) -> Iterator[_Member]:
    """The headers, one by one; the stream stands at a member's data when it is yielded, and must stand after them
    when the next is asked for. Empty where nothing was ever written."""
    long = {b"L": "", b"K": ""}  # GNU's name and link target for the member that follows
    while True:
        head = stream.read(_BLOCK)
        if len(head) < _BLOCK or not head.strip(b"\0"):
            return
        _check_sum(head)
        kind = head[156:157].replace(b"\0", b"0").replace(b"7", b"0")
        length = _number(head[124:136])
        if kind in long:
            if length > _MAX_NAME:
                raise _refuse("a long name", f"it has {length} bytes")
            data = stream.read(length + -length % _BLOCK)
            long[kind] = os.fsdecode(data[:length].split(b"\0")[0])
            continue
        name = long[b"L"] or _text(head[345:500], head[0:100])
        target = long[b"K"] or os.fsdecode(head[157:257].split(b"\0")[0])
        long = {b"L": "", b"K": ""}
        if kind not in (b"0", b"1", b"2", b"5"):
            raise _refuse(name, "it is no file, folder or link")
        if kind == b"0" and length > size:
            raise _refuse(name, f"its header claims {length} bytes")
        yield _Member(kind, _normal(name), target, length if kind == b"0" else 0, _number(head[100:108]))


def _text(prefix: bytes, name: bytes) -> str:
    parts = [part.split(b"\0")[0] for part in (prefix, name)]
    return os.fsdecode(b"/".join(part for part in parts if part))


def _number(field: bytes) -> int:
    """Octal, or GNU's binary form for what does not fit."""
    if field[0] & 0x80:
        return int.from_bytes(bytes([field[0] & 0x7F]) + field[1:], "big")
    try:
        return int(field.strip(b" \0") or b"0", 8)
    except ValueError:
        raise _refuse("a header", f"{field!r} is no number") from None


def _check_sum(head: bytes) -> None:
    if sum(head[:148]) + 8 * 32 + sum(head[156:]) != _number(head[148:156]):
        raise _refuse("a header", "its checksum is wrong")


def _normal(name: str) -> str:
    """The path without `.` and doubled slashes.

    Raises:
        Ending: it is absolute or leads upwards.
    """
    if name.startswith("/") or ".." in name.split("/"):
        raise _refuse(name, "it leads out of the job's folder")
    return posixpath.normpath(name)


def _check_target(member: _Member) -> None:
    joined = posixpath.normpath(posixpath.join(posixpath.dirname(member.path), member.target))
    if member.target.startswith("/") or not member.target or joined == ".." or joined.startswith("../"):
        raise _refuse(member.path, f"it is a link to {member.target!r}, outside the outputs")


def _parents(path: str) -> list[str]:
    parts = path.split("/")[:-1]
    return ["/".join(parts[: i + 1]) for i in range(len(parts))]


def _refuse(name: str, why: str) -> Ending:
    return Ending(
        Reason.OUTPUT,
        f"unpack output {name[:200]!r}: {why}",
        "let the program write plain files, or pack them itself into one archive that it declares as output",
    )
