"""inotify through ctypes: a hint that a folder changed on this machine.

Only a hint, and only for writers on this machine: network file systems report nothing of others' writes, and the
queue may overflow. Whoever uses it looks again by itself, now and then.
"""

from __future__ import annotations

import ctypes
import os
import struct
from pathlib import Path

MODIFY, CLOSE_WRITE, MOVED_TO, CREATE, DELETE = 0x2, 0x8, 0x80, 0x100, 0x200
_NONBLOCK, _CLOEXEC, _ONLYDIR = os.O_NONBLOCK, os.O_CLOEXEC, 0x01000000
_HEAD = struct.Struct("iIII")


class Inotify:
    """One inotify instance; `fileno` becomes readable when something happened."""

    def __init__(self) -> None:
        """Raises: OSError: the machine gives no instance (`GHV_NO_INOTIFY` is set, or a limit is reached)."""
        if os.environ.get("GHV_NO_INOTIFY"):
            raise OSError("inotify is turned off by GHV_NO_INOTIFY")
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._descriptor = self._checked(self._libc.inotify_init1(_NONBLOCK | _CLOEXEC))

    def fileno(self) -> int:
        return self._descriptor

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def add(self, folder: Path, mask: int) -> int:
        """Watch a folder, or change what is watched for in it; give the watch's number.

        Raises:
            OSError: there is no such folder, or no watch is left.
        """
        return self._checked(self._libc.inotify_add_watch(self._descriptor, os.fsencode(folder), mask | _ONLYDIR))

    def remove(self, watch: int) -> None:
        """End a watch; one that has ended with its folder is no error."""
        self._libc.inotify_rm_watch(self._descriptor, watch)

    def read(self) -> list[tuple[int, int, str]]:
        """What has happened since: (watch, mask, name). Empty where nothing has."""
        try:
            data = os.read(self._descriptor, 1 << 16)
        except BlockingIOError:
            return []
        out: list[tuple[int, int, str]] = []
        place = 0
        while place < len(data):
            watch, mask, _, length = _HEAD.unpack_from(data, place)
            place += _HEAD.size
            out.append((watch, mask, os.fsdecode(data[place : place + length].rstrip(b"\0"))))
            place += length
        return out

    @staticmethod
    def _checked(result: int) -> int:
        if result < 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))
        return result


LOCAL = frozenset(
    ["ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "tmpfs", "overlay", "f2fs", "bcachefs", "reiserfs", "jfs", "ramfs"]
)
"""File systems that only this machine writes on."""


def is_local(folder: Path) -> bool:
    """Whether the folder is on a file system of this machine alone, by its device number; unknown is not local."""
    device = os.stat(folder).st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    try:
        lines = Path("/proc/self/mountinfo").read_text().splitlines()
    except OSError:
        return False
    for line in lines:
        fields = line.split()
        if fields[2] == number:
            return fields[fields.index("-") + 1] in LOCAL
    return False
