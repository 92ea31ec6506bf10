"""The kernel's FUSE protocol, as much of it as a file system for tests needs: mounts, takes requests, gives answers.

It decides nothing about files: `serve` hands each request to its handler. The kernel is told to keep nothing of what it
hears (all time-outs are 0, no page cache), so what processes see at any moment is what the handlers say then. The
structures are those of <linux/fuse.h> at version 7.31. Needs root and nothing but the standard library.
"""

from __future__ import annotations

import enum
import errno
import os
import struct
import subprocess
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

VERSION = (7, 31)
ROOT = 1
"""The node at the mount point; handlers number all others."""

PIECE = 1 << 20
"""Bytes in one READ or WRITE at most."""

_BIG_WRITES, _MAX_PAGES = 1 << 5, 1 << 22
_DIRECT_IO = 1
_HEAD = struct.Struct("=IIQQIII4x")
_ANSWER = struct.Struct("=IiQ")
_ATTRIBUTES = struct.Struct("=6Q10I")
_DIRENT = struct.Struct("=QQII")


class Op(enum.IntEnum):
    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    SETATTR = 4
    READLINK = 5
    SYMLINK = 6
    MKDIR = 9
    UNLINK = 10
    RMDIR = 11
    RENAME = 12
    LINK = 13
    OPEN = 14
    READ = 15
    WRITE = 16
    STATFS = 17
    RELEASE = 18
    FSYNC = 20
    INIT = 26
    OPENDIR = 27
    READDIR = 28
    RELEASEDIR = 29
    CREATE = 35
    INTERRUPT = 36
    BATCH_FORGET = 42


SILENT = (Op.FORGET, Op.BATCH_FORGET, Op.INTERRUPT)
"""What the kernel wants no answer to."""


class Request(NamedTuple):
    node: int
    uid: int
    gid: int
    body: bytes

    def numbers(self, form: str) -> tuple[int, ...]:
        """The integers that the body begins with."""
        return struct.unpack_from(f"={form}", self.body)

    def names(self, form: str = "") -> list[str]:
        """The strings behind them."""
        return [os.fsdecode(word) for word in self.body[struct.calcsize(f"={form}") :].split(b"\0")[:-1]]


Handler = Callable[[Request], bytes]


def mount(folder: Path, name: str) -> int:
    """Mount on the folder, in this process's mount name space; the descriptor to `serve`. Its closing unmounts."""
    descriptor = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    options = f"fd={descriptor},rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions"
    subprocess.run(["mount", "-i", "-t", "fuse", "-o", options, name, folder], pass_fds=[descriptor], check=True)
    return descriptor


def serve(descriptor: int, handlers: Mapping[Op, Handler]) -> None:
    """Answer one request after the other until the file system is unmounted. A handler fails with OSError; what has
    no handler is not implemented, which the kernel mostly knows how to do without."""
    while True:
        try:
            data = os.read(descriptor, PIECE + 65536)
        except OSError as error:
            if error.errno in (errno.EINTR, errno.ENOENT):  # the request was taken back
                continue
            if error.errno == errno.ENODEV:
                return
            raise
        _, opcode, unique, node, uid, gid, _ = _HEAD.unpack_from(data)
        code, answer = 0, b""
        try:
            if opcode == Op.INIT:
                answer = _init()
            else:
                answer = handlers[Op(opcode)](Request(node, uid, gid, data[_HEAD.size :]))
        except OSError as error:
            code = error.errno or errno.EIO
        except (KeyError, ValueError):
            code = errno.ENOSYS
        if opcode not in SILENT:
            if code:
                answer = b""
            try:
                os.write(descriptor, _ANSWER.pack(_ANSWER.size + len(answer), -code, unique) + answer)
            except FileNotFoundError:
                pass  # whoever asked was killed


def attributes(status: os.stat_result) -> bytes:
    """The answer to GETATTR and SETATTR."""
    return struct.pack("=QII", 0, 0, 0) + _packed(status)


def entry(node: int, status: os.stat_result) -> bytes:
    """The answer to LOOKUP and to whatever makes a name."""
    return struct.pack("=QQQQII", node, 0, 0, 0, 0, 0) + _packed(status)


def opened(handle: int) -> bytes:
    """The answer to OPEN and OPENDIR, and the end of that to CREATE."""
    return struct.pack("=QII", handle, _DIRECT_IO, 0)


def directory(items: Iterable[tuple[int, os.stat_result, str]], room: int) -> bytes:
    """As many items of a folder as there is room for: the offset behind each, what it is, and its name."""
    out = b""
    for offset, status, name in items:
        word = os.fsencode(name)
        item = _DIRENT.pack(status.st_ino, offset, len(word), status.st_mode >> 12) + word
        item += b"\0" * (-len(item) % 8)
        if len(out) + len(item) > room:
            break
        out += item
    return out


def capacity(found: os.statvfs_result) -> bytes:
    """The answer to STATFS."""
    return struct.pack("=5Q4I24x", found.f_blocks, found.f_bfree, found.f_bavail, found.f_files, found.f_ffree,
                       found.f_bsize, found.f_namemax, found.f_frsize, 0)  # fmt: skip


def _init() -> bytes:
    pages = PIECE // os.sysconf("SC_PAGE_SIZE")
    return struct.pack("=4I2H2I2H32x", *VERSION, PIECE, _BIG_WRITES | _MAX_PAGES, 16, 12, PIECE, 1, pages, 0)


def _packed(status: os.stat_result) -> bytes:
    seconds = [divmod(t, 10**9) for t in (status.st_atime_ns, status.st_mtime_ns, status.st_ctime_ns)]
    return _ATTRIBUTES.pack(
        status.st_ino, status.st_size, status.st_blocks, *(s for s, _ in seconds), *(ns for _, ns in seconds),
        status.st_mode, status.st_nlink, status.st_uid, status.st_gid, status.st_rdev, status.st_blksize, 0,
    )  # fmt: skip
