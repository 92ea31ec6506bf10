"""A file tree put together from tar archives and single files, and written out as one tar, always in the same bytes.

Nothing is unpacked on the way, so that owners and modes of files need no privilege. Contents stay in their archives,
which must be kept until the tree is written.
"""

from __future__ import annotations

import copy
import io
import posixpath
import re
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import IO

EPOCH = 1686355200
"""The latest time that a file may bear, in seconds since 1970: what is built today is what was built yesterday."""

_Content = Callable[[], IO[bytes]]


class Tree:
    """Paths are relative, without a leading `./`. The root itself is not among them: who packs it gives its mode."""

    def __init__(self) -> None:
        self._entries: dict[str, tuple[tarfile.TarInfo, _Content | None]] = {}

    def __contains__(self, path: str) -> bool:
        return path in self._entries

    def add_tar(self, archive: Path, *, below: str = "", keep: Callable[[str], bool] = lambda path: True) -> None:
        """Add the members of an uncompressed tar file for which `keep` holds. Later ones replace earlier ones."""
        with tarfile.open(archive, "r:") as tar:
            for member in tar:
                path = member.name.removeprefix(".").strip("/")
                if not path or not keep(path):
                    continue
                content = _part_of(archive, member.offset_data, member.size) if member.isreg() else None
                info = copy.copy(member)
                if info.islnk():
                    info.linkname = "./" + posixpath.join(below, info.linkname.removeprefix("./"))
                self._put(posixpath.join(below, path), info, content)

    def add_file(self, path: str, data: bytes, *, mode: int = 0o644) -> None:
        """Add a file of root's."""
        info = tarfile.TarInfo()
        info.size, info.mode = len(data), mode
        self._put(path, info, lambda: io.BytesIO(data))

    def add_folder(self, path: str, *, mode: int = 0o755) -> None:
        """Add a folder of root's."""
        info = tarfile.TarInfo()
        info.type, info.mode = tarfile.DIRTYPE, mode
        self._put(path, info, None)

    def add_link(self, path: str, target: str) -> None:
        """Add a symbolic link."""
        info = tarfile.TarInfo()
        info.type, info.linkname, info.mode = tarfile.SYMTYPE, target, 0o777
        self._put(path, info, None)

    def read(self, path: str) -> bytes:
        """A file's content; nothing where there is no such file."""
        _, content = self._entries.get(path, (None, None))
        if content is None:
            return b""
        with content() as data:
            return data.read()

    def remove(self, pattern: str) -> None:
        """Remove every path that the regular expression matches whole, and all below it."""
        matches = re.compile(f"(?:{pattern})(?:/.*)?").fullmatch
        self._entries = {path: entry for path, entry in self._entries.items() if not matches(path)}

    def strip_privileges(self) -> list[str]:
        """Take set-user-ID and set-group-ID from everything; returns the paths that had them."""
        found = [path for path, (info, _) in self._entries.items() if info.mode & 0o6000]
        for path in found:
            self._entries[path][0].mode &= ~0o6000
        return found

    def write(self, out: IO[bytes]) -> None:
        """Write everything as a tar stream: sorted, no names of owners, no time later than `EPOCH`."""
        with tarfile.open(fileobj=out, mode="w|", format=tarfile.PAX_FORMAT) as tar:
            # Hard links last, for they must follow what they link to.
            for path in sorted(self._entries, key=lambda path: (self._entries[path][0].islnk(), path.split("/"))):
                info, content = self._entries[path]
                if content is None:
                    tar.addfile(info)
                else:
                    with content() as data:
                        tar.addfile(info, data)

    def _put(self, path: str, info: tarfile.TarInfo, content: _Content | None) -> None:
        path = self._real(path)
        if info.isdir() and path in self._entries and self._entries[path][0].issym():
            return  # a folder of an archive where a link was put: its files go where the link leads
        parent = posixpath.dirname(path)
        if parent and parent not in self._entries:
            self.add_folder(parent)
        info.name = f"./{path}"
        info.uname = info.gname = ""
        info.mtime = min(int(info.mtime) or EPOCH, EPOCH)
        info.pax_headers = {}
        self._entries[path] = (info, content)

    def _real(self, path: str) -> str:
        """The path without links among its folders: `bin/x` is `usr/bin/x` where /bin is a link."""
        head, slash, rest = path.partition("/")
        while slash:
            info, _ = self._entries.get(head, (None, None))
            if info is not None and info.issym():
                target = posixpath.normpath(posixpath.join("/", posixpath.dirname(head), info.linkname))
                return self._real(f"{target.lstrip('/')}/{rest}")
            name, slash, rest = rest.partition("/")
            head = f"{head}/{name}"
        return path


def _part_of(archive: Path, offset: int, size: int) -> _Content:
    def content() -> IO[bytes]:
        with archive.open("rb") as data:
            data.seek(offset)
            return io.BytesIO(data.read(size))

    return content
