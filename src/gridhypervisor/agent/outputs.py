"""Reading the outputs from the guest's tar stream, trusting nothing in it.

Root in the guest may have written anything on the `out` disk, so this reads only what `tar` in the guest writes (ustar
with GNU's long names), makes only files, folders, and links that stay inside, and only where the job's patterns lead,
never follows a link, and never allocates what a header claims. A member that may not be is passed over and the first
such remembered: the others are still somebody's results. `tarfile` accepts far more, and costs more to import than all
this takes.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import posixpath
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from gridhypervisor.agent import spool
from gridhypervisor.agent.ending import Ending
from gridhypervisor.model import wire
from gridhypervisor.model.wire import OutputFile, Reason

MAX_MEMBERS = 100_000
"""Files, folders and links that one job may bring out: somebody's home is to hold them."""

MAX_NAMES = 8 << 20
"""Bytes of all their paths and links together: `exit.json`, where each byte may take six, lists them all."""

_BLOCK = 512
_PIECE = 1 << 20
_MAX_NAME = 4096
_OF_THE_MEMBER = frozenset(
    {errno.EEXIST, errno.EISDIR, errno.ENOTDIR, errno.ENOTEMPTY, errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ,
     errno.ELOOP, errno.EMLINK, errno.EPERM}
)  # fmt: skip
"""Errors that say something of one member's name; all others say something of the spool."""


@dataclass(frozen=True)
class _Member:
    """One header of the stream."""

    kind: bytes  # of ustar: 0 file, 1 hard link, 2 symbolic link, 5 folder
    path: str  # normalised, relative
    target: str
    size: int  # bytes of data that follow in the stream
    mode: int


class Outputs:
    """The outputs of one run: what came out so far, by path, and the first thing that was wrong with any of them."""

    def __init__(self, out: Path, patterns: Sequence[str], stop: Callable[[], None] = lambda: None) -> None:
        """`out`: the folder to fill, there and empty. `stop` is asked after each piece and may raise."""
        self.files: dict[str, OutputFile] = {}
        self.complaint: Ending | None = None
        self._out = out
        self._patterns = patterns
        self._stop = stop
        # Beside `out`, so that whatever is in it is whole, also when nobody lives to say what is.
        self._private = out.with_name(f".{out.name}.part")
        self._links: set[str] = set()
        self._room = 0
        self._folders = {out}

    def unpack(self, disk: Path) -> None:
        """Bring the stream's members into the folder, durably.

        Raises:
            Ending: the stream is damaged or without bounds (output); the members before are there.
            OSError: the spool is full or gone.
        """
        names = 0
        size = disk.stat().st_size
        self._room = size
        with disk.open("rb") as stream:
            for number, member in enumerate(_members(stream, size)):
                names += len(member.path) + len(member.target)
                if number >= MAX_MEMBERS or names > MAX_NAMES:
                    raise _refuse(member.path, f"more than {number} files, or longer names than can be listed")
                try:
                    self._check(member)
                    self._make(member, stream)
                except _Unfit as unfit:
                    self.complaint = self.complaint or _refuse(member.path, str(unfit))
                except OSError as error:
                    if error.errno not in _OF_THE_MEMBER:
                        raise
                    self.complaint = self.complaint or _refuse(member.path, str(error.strerror))
                finally:
                    with contextlib.suppress(FileNotFoundError):
                        self._private.unlink()
        for folder in self._folders:
            spool.sync_folder(folder)

    def _check(self, member: _Member) -> None:
        """Raises: _Unfit: it may not be made."""
        for name in (member.path, member.target):
            if not wire.is_text(name):
                raise _Unfit("its name is not UTF-8")
        if member.path.startswith("/") or ".." in member.path.split("/"):
            raise _Unfit("it leads out of the job's folder")
        if member.path != "." and not wire.declared(member.path, self._patterns):
            raise _Unfit("no output that the job declares")
        if member.kind not in (b"0", b"1", b"2", b"5"):
            raise _Unfit("it is no file, folder or link")
        if any(parent in self._links for parent in _parents(member.path)):
            raise _Unfit("it lies below a symbolic link")
        if member.kind == b"2" and not wire.leads_inside(member.path, member.target):
            raise _Unfit(f"it is a link to {member.target[:200]!r}, outside the outputs or in a roundabout way")

    def _make(self, member: _Member, stream: BinaryIO) -> None:
        if member.path == ".":
            return
        for parent in _parents(member.path):
            (self._out / parent).mkdir(mode=0o700, exist_ok=True)
            self._folders.add(self._out / parent)
        path = self._out / member.path
        if member.kind == b"5":
            if member.path in self._links:
                raise _Unfit("it is a symbolic link and a folder")
            path.mkdir(mode=0o700, exist_ok=True)
            self._folders.add(path)
            return
        # Two patterns may give the same file; what came last stands.
        before = self.files.get(member.path)
        room = self._room + (before.size if before else 0)
        match member.kind:
            case b"2":
                self._private.symlink_to(member.target)
                file = OutputFile(member.path, 0, 0o777, "", link=member.target)
            case b"1":
                file = self._link(member, room)
            case _:
                file = self._copy(member, stream)
        os.rename(self._private, path)  # what is a link is replaced, never followed
        self._links.discard(member.path)
        if file.link:
            self._links.add(member.path)
        self._room = room - file.size
        self.files[member.path] = file

    def _link(self, member: _Member, room: int) -> OutputFile:
        source = self.files.get(posixpath.normpath(member.target))
        if source is None or source.link:
            raise _Unfit(f"it is a hard link to {member.target[:200]!r}, which is no file before it")
        if source.path == member.path:
            raise _Unfit("it is a hard link to itself")
        if source.size > room:  # each name is brought home as a file of its own
            raise _Unfit("with its hard links the outputs are larger than the disk that they were packed on")
        self._private.hardlink_to(self._out / source.path)
        return replace(source, path=member.path)

    def _copy(self, member: _Member, stream: BinaryIO) -> OutputFile:
        digest = hashlib.sha256()
        with open(os.open(self._private, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600), "wb") as file:
            left = member.size
            while left:
                self._stop()
                data = stream.read(min(left, _PIECE))
                if not data:
                    raise _refuse(member.path, "the stream ends in the middle of it")
                digest.update(data)
                file.write(data)
                left -= len(data)
            os.fchmod(file.fileno(), member.mode & 0o777 | 0o600)
            file.flush()
            os.fsync(file.fileno())
        return OutputFile(member.path, member.size, member.mode & 0o777, digest.hexdigest())


class _Unfit(Exception):
    """This member may not be made."""


def _members(stream: BinaryIO, size: int) -> Iterator[_Member]:
    """The headers, one by one; the stream stands at a member's data when it is yielded, and may stand anywhere when
    the next is asked for. Empty where nothing was ever written.

    Raises:
        Ending: this is no tar stream, or not any more (output).
    """
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
        if kind in (b"1", b"2", b"5"):
            length = 0
        if length > size:
            raise _refuse(name, f"its header claims {length} bytes")
        after = stream.tell() + length + -length % _BLOCK
        yield _Member(kind, posixpath.normpath(name), target, length, _number(head[100:108]))
        stream.seek(after)


def _text(prefix: bytes, name: bytes) -> str:
    parts = [part.split(b"\0")[0] for part in (prefix, name)]
    return os.fsdecode(b"/".join(part for part in parts if part))


def _number(field: bytes) -> int:
    """Octal, or GNU's binary form for what does not fit."""
    if field[0] & 0x80:
        return int.from_bytes(bytes([field[0] & 0x7F]) + field[1:], "big")
    digits = field.strip(b" \0") or b"0"
    if not digits.isdigit() or b"8" in digits or b"9" in digits:
        raise _refuse("a header", f"{field!r} is no number")
    return int(digits, 8)


def _check_sum(head: bytes) -> None:
    if sum(head[:148]) + 8 * 32 + sum(head[156:]) != _number(head[148:156]):
        raise _refuse("a header", "its checksum is wrong")


def _parents(path: str) -> list[str]:
    parts = path.split("/")[:-1]
    return ["/".join(parts[: i + 1]) for i in range(len(parts))]


def _refuse(name: str, why: str) -> Ending:
    shown = name[:200].encode(errors="backslashreplace").decode()
    return Ending(
        Reason.OUTPUT,
        f"unpack output {shown!r}: {why}",
        "let the program write plain files, or pack them itself into one archive that it declares as output",
    )
