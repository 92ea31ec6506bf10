"""A newc cpio archive in memory: what the kernel unpacks as its first root. Nothing of it depends on the machine."""

from __future__ import annotations

import stat
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from gridhypervisor.agent import renewal


def guest_archive(folder: Path) -> bytes:
    """Every file of `folder` as `/ghv/NAME` without its suffix, executable, `/ghv/renew`, and `/init` pointing at
    `/ghv/init`.

    The same files give the same bytes: inodes are counted, times and owners are 0.

    Raises:
        FileNotFoundError: there is no `init.sh` in `folder`.
    """
    if not (folder / "init.sh").is_file():
        raise FileNotFoundError(f"pack the guest's agent: no {folder / 'init.sh'}; the installation is incomplete")
    out = bytearray(_member(1, "ghv", stat.S_IFDIR | 0o755))
    paths = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    files = {path.stem: path.read_bytes() for path in paths} | {"renew": renewal.program()}
    for inode, (name, data) in enumerate(files.items(), 2):
        out += _member(inode, f"ghv/{name}", stat.S_IFREG | 0o755, data)
    return _close(out + _member(len(files) + 2, "init", stat.S_IFLNK | 0o777, b"ghv/init"))


def archive(files: Mapping[str, bytes], mode: int = 0o644) -> bytes:
    """These files, by their paths without a leading slash, and the folders that they are in. `mode`: of the files."""
    folders = {str(parent) for name in files for parent in PurePosixPath(name).parents} - {"."}
    out = bytearray()
    for inode, name in enumerate((*sorted(folders), *files), 1):
        kind = stat.S_IFREG | mode if name in files else stat.S_IFDIR | 0o755
        out += _member(inode, name, kind, files.get(name, b""))
    return _close(out)


def _close(out: bytearray) -> bytes:
    out += _member(0, "TRAILER!!!", 0)
    return bytes(out) + bytes(-len(out) % 512)  # the kernel wants the next archive on a multiple of 4


def _member(inode: int, name: str, mode: int, data: bytes = b"") -> bytes:
    links = 2 if stat.S_ISDIR(mode) else 1
    numbers = (inode, mode, 0, 0, links, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0)
    head = b"070701" + b"".join(b"%08x" % number for number in numbers) + name.encode() + b"\0"
    head += bytes(-len(head) % 4)
    return head + data + bytes(-len(data) % 4)
