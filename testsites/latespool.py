"""A folder as a network file system shows it to one of its clients: what others did there is seen late.

`python -m testsites.latespool FOLDER SECONDS HOLD` mounts over the folder, in its own mount name space, a view of the
folder itself. Each change that others make is seen some time after it was made, drawn anew for each between a part of
SECONDS and all of it: so names appear, change and vanish late, and in another order than they were made in. A name that
others gave to another file goes on showing the old one; a file that others write on keeps its size and times, and is
read no further. No change stays unseen for longer, but while there is a file HOLD all do (those in paths with the text
that it holds); and nothing tells of any.

What is done through the view is done to the folder at once: `link`, `rename` and `mkdir` are as atomic as there, and
when one of them meets a name that was not seen yet, the name is seen from then on, as NFS has it. Each name that showed
late is printed: how many seconds after its file last changed, and the path.
"""

from __future__ import annotations

import errno
import os
import random
import stat
import sys
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

from testsites import fuse
from testsites.fuse import Op, Request

LEAST = 0.4
"""The part of SECONDS that each change stays unseen for at least: so that tests meet it."""

_MODE, _UID, _GID, _SIZE, _ATIME, _MTIME, _ATIME_NOW, _MTIME_NOW = 1, 2, 4, 8, 16, 32, 128, 256
_NOT_AGAIN = os.O_CREAT | os.O_EXCL | os.O_TRUNC | os.O_NOFOLLOW

T = TypeVar("T")


class Late(Generic[T]):
    """Something that others change, as it is seen from here. Times are in seconds since the epoch."""

    def __init__(self, value: T) -> None:
        self.value = value
        self._due: float | None = None  # when the change that is being kept back shows

    def see(self, truth: T, changed: float, most: float) -> T:
        """What is seen of it now: the truth, which came to be at `changed`, or still what was seen before."""
        now = time.time()
        if truth == self.value:
            self._due = None
        elif self._due is None:
            self._due = changed + most * random.uniform(LEAST, 1.0)
        if self._due is not None and now >= self._due:
            self.value, self._due = truth, None
        return self.value


class Node:
    """A real file or folder that somebody has seen, held open whatever becomes of its names."""

    def __init__(self, descriptor: int, path: str) -> None:
        self.descriptor, self.path = descriptor, path
        self.number = 0  # the kernel's name for it; 0: it has none yet
        self.lookups = 0  # how often the kernel was told of it and has not forgotten it
        self.status = Late(os.fstat(descriptor))
        self.names: dict[str, Late[Node | None]] = {}
        self.listed = False  # whether somebody has looked at the whole folder

    @property
    def way(self) -> str:
        """A path that leads to it."""
        return f"/proc/self/fd/{self.descriptor}"

    def know(self) -> None:
        """We changed it ourselves."""
        self.status = Late(os.fstat(self.descriptor))

    def __del__(self) -> None:
        os.close(self.descriptor)


class LateSpool:
    """The view of a folder. `most`: seconds that a change may stay unseen; for `hold` see above."""

    def __init__(self, folder: Path, most: float, hold: Path) -> None:
        self._most, self._hold = most, hold
        self._known: weakref.WeakValueDictionary[tuple[int, int], Node] = weakref.WeakValueDictionary()
        root = self._node(os.open(folder, os.O_PATH | os.O_DIRECTORY), "")
        root.number, root.lookups = fuse.ROOT, 1
        self._nodes = {fuse.ROOT: root}
        self._numbers = fuse.ROOT
        self._listings: dict[int, list[tuple[int, os.stat_result, str]]] = {}
        self.handlers: dict[Op, fuse.Handler] = {
            Op.LOOKUP: self.lookup, Op.FORGET: self.forget, Op.BATCH_FORGET: self.forget_many,
            Op.GETATTR: self.getattr, Op.SETATTR: self.setattr, Op.READLINK: self.readlink, Op.SYMLINK: self.symlink,
            Op.MKDIR: self.mkdir, Op.UNLINK: self.unlink, Op.RMDIR: self.rmdir, Op.RENAME: self.rename,
            Op.LINK: self.link, Op.CREATE: self.create, Op.OPEN: self.open, Op.READ: self.read, Op.WRITE: self.write,
            Op.FSYNC: self.fsync, Op.RELEASE: self.release, Op.OPENDIR: self.opendir, Op.READDIR: self.readdir,
            Op.RELEASEDIR: self.releasedir, Op.STATFS: self.statfs,
        }  # fmt: skip

    # What is seen

    def see(self, folder: Node, name: str) -> Node | None:
        """What the name stands for, as seen from here."""
        truth = self._look(folder, name)
        known = folder.names.get(name)
        if known is None:
            if not folder.listed:
                return self._know(folder, name)
            known = folder.names[name] = Late(None)  # it was not there then
        if self._held(f"{folder.path}/{name}"):
            return known.value
        before, changed = known.value, time.time() if truth is None else os.fstat(truth.descriptor).st_ctime
        node = known.see(truth, changed, self._most)
        if node is not before and node is not None:
            print(f"{time.time() - changed:.2f} {node.path}", flush=True)
        return node

    def sees(self, node: Node) -> os.stat_result:
        """Its size, times and links, as seen from here."""
        if self._held(node.path):
            return node.status.value
        truth = os.fstat(node.descriptor)
        return node.status.see(truth, truth.st_ctime, self._most)

    def _held(self, path: str) -> bool:
        """Whether nothing new is to be seen there."""
        try:
            return any(part in path for part in self._hold.read_text().split("\n"))
        except FileNotFoundError:
            return False

    def _look(self, folder: Node, name: str) -> Node | None:
        """What the name really stands for."""
        try:
            descriptor = os.open(name, os.O_PATH | os.O_NOFOLLOW, dir_fd=folder.descriptor)
        except FileNotFoundError:
            return None
        return self._node(descriptor, f"{folder.path}/{name}".lstrip("/"))

    def _know(self, folder: Node, name: str) -> Node | None:
        """We did something to the name ourselves, or had it refused: what it stands for is known."""
        node = self._look(folder, name)
        folder.names[name] = Late(node)
        if node is not None:
            node.know()
        return node

    def _node(self, descriptor: int, path: str) -> Node:
        node = Node(descriptor, path)
        return self._known.setdefault((node.status.value.st_dev, node.status.value.st_ino), node)

    def _tell(self, node: Node) -> bytes:
        """Give the kernel a name, which gets the node a number."""
        if not node.number:
            self._numbers += 1
            node.number = self._numbers
        node.lookups += 1
        self._nodes[node.number] = node
        return fuse.entry(node.number, self.sees(node))

    def _made(self, request: Request, folder: Node, name: str, make: Callable[[], None], *, own: bool = True) -> bytes:
        """Do what makes a name, and know from then on what it stands for, whether it was made or there already."""
        try:
            make()
        finally:
            node = self._know(folder, name)
        if node is None:  # somebody removed it at once
            raise FileNotFoundError(errno.ENOENT, name)
        if own:
            os.chown(name, request.uid, request.gid, dir_fd=folder.descriptor, follow_symlinks=False)
            node.know()
        return self._tell(node)

    # Names

    def lookup(self, request: Request) -> bytes:
        [name] = request.names()
        node = self.see(self._nodes[request.node], name)
        if node is None:
            raise FileNotFoundError(errno.ENOENT, name)
        return self._tell(node)

    def forget(self, request: Request) -> bytes:
        [lookups] = request.numbers("Q")
        self._forget(request.node, lookups)
        return b""

    def forget_many(self, request: Request) -> bytes:
        count, _, *rest = request.numbers(f"II{(len(request.body) - 8) // 8}Q")
        for number, lookups in zip(rest[: 2 * count : 2], rest[1 : 2 * count : 2], strict=True):
            self._forget(number, lookups)
        return b""

    def _forget(self, number: int, lookups: int) -> None:
        node = self._nodes[number]
        node.lookups -= lookups
        if node.lookups <= 0:
            node.number = 0
            del self._nodes[number]

    def mkdir(self, request: Request) -> bytes:
        mode, _ = request.numbers("II")
        folder, [name] = self._nodes[request.node], request.names("II")
        answer = self._made(request, folder, name, lambda: os.mkdir(name, mode, dir_fd=folder.descriptor))
        made = folder.names[name].value
        assert made is not None
        made.listed = True  # it is known to be empty
        return answer

    def symlink(self, request: Request) -> bytes:
        folder, [name, target] = self._nodes[request.node], request.names()
        return self._made(request, folder, name, lambda: os.symlink(target, name, dir_fd=folder.descriptor))

    def link(self, request: Request) -> bytes:
        [number] = request.numbers("Q")
        source, folder, [name] = self._nodes[number], self._nodes[request.node], request.names("Q")
        make = lambda: os.link(source.way, name, dst_dir_fd=folder.descriptor)  # noqa: E731
        return self._made(request, folder, name, make, own=False)

    def unlink(self, request: Request) -> bytes:
        return self._removed(request, lambda name, folder: os.unlink(name, dir_fd=folder))

    def rmdir(self, request: Request) -> bytes:
        return self._removed(request, lambda name, folder: os.rmdir(name, dir_fd=folder))

    def _removed(self, request: Request, remove: Callable[[str, int], None]) -> bytes:
        folder, [name] = self._nodes[request.node], request.names()
        before = self._look(folder, name)
        try:
            remove(name, folder.descriptor)
        finally:
            self._know(folder, name)
        if before is not None:
            before.know()  # it has a link less
        return b""

    def rename(self, request: Request) -> bytes:
        [number] = request.numbers("Q")
        folder, target, [old, new] = self._nodes[request.node], self._nodes[number], request.names("Q")
        try:
            os.rename(old, new, src_dir_fd=folder.descriptor, dst_dir_fd=target.descriptor)
        finally:
            self._know(folder, old)
            moved = self._know(target, new)
            if moved is not None:
                moved.path = f"{target.path}/{new}".lstrip("/")
        return b""

    # Files

    def getattr(self, request: Request) -> bytes:
        return fuse.attributes(self.sees(self._nodes[request.node]))

    def setattr(self, request: Request) -> bytes:
        node = self._nodes[request.node]
        valid, _, _, size, _, atime, mtime, _, atime_ns, mtime_ns, _, mode, _, uid, gid, _ = request.numbers("II6Q8I")
        if valid & (_UID | _GID):
            os.chown(node.way, uid if valid & _UID else -1, gid if valid & _GID else -1)
        if valid & _MODE:
            os.chmod(node.way, stat.S_IMODE(mode))
        if valid & _SIZE:
            os.truncate(node.way, size)
        if valid & (_ATIME | _MTIME):
            now, before = time.time_ns(), os.fstat(node.descriptor)
            times = [
                now if valid & at_once else seconds * 10**9 + rest if valid & given else old
                for given, at_once, seconds, rest, old in (
                    (_ATIME, _ATIME_NOW, atime, atime_ns, before.st_atime_ns),
                    (_MTIME, _MTIME_NOW, mtime, mtime_ns, before.st_mtime_ns),
                )
            ]
            os.utime(node.way, ns=(times[0], times[1]))
        node.know()
        return fuse.attributes(self.sees(node))

    def readlink(self, request: Request) -> bytes:
        return os.fsencode(os.readlink("", dir_fd=self._nodes[request.node].descriptor))

    def create(self, request: Request) -> bytes:
        flags, mode, _, _ = request.numbers("4I")
        folder, [name] = self._nodes[request.node], request.names("4I")
        there = self._look(folder, name) is not None
        handle = os.open(name, flags | os.O_CREAT | os.O_CLOEXEC, mode, dir_fd=folder.descriptor)
        return self._made(request, folder, name, lambda: None, own=not there) + fuse.opened(handle)

    def open(self, request: Request) -> bytes:
        flags, _ = request.numbers("II")
        return fuse.opened(os.open(self._nodes[request.node].way, flags & ~_NOT_AGAIN | os.O_CLOEXEC))

    def read(self, request: Request) -> bytes:
        handle, offset, size = request.numbers("QQI")
        known = self.sees(self._nodes[request.node]).st_size
        return os.pread(handle, max(0, min(size, known - offset)), offset)

    def write(self, request: Request) -> bytes:
        handle, offset, size = request.numbers("QQI")
        written = os.pwrite(handle, request.body[40 : 40 + size], offset)
        self._nodes[request.node].know()
        return written.to_bytes(8, sys.byteorder)

    def fsync(self, request: Request) -> bytes:
        [handle] = request.numbers("Q")
        os.fsync(handle)
        return b""

    def release(self, request: Request) -> bytes:
        [handle] = request.numbers("Q")
        os.close(handle)
        return b""

    # Folders

    def opendir(self, request: Request) -> bytes:
        folder = self._nodes[request.node]
        found = {name: self.see(folder, name) for name in (*os.listdir(folder.way), *folder.names)}
        folder.listed = True
        there = [(self.sees(node), name) for name, node in found.items() if node is not None]
        handle = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)  # a number that nobody else has
        self._listings[handle] = [(offset, status, name) for offset, (status, name) in enumerate(there, 1)]
        return fuse.opened(handle)

    def readdir(self, request: Request) -> bytes:
        handle, offset, size = request.numbers("QQI")
        return fuse.directory(self._listings[handle][offset:], size)

    def releasedir(self, request: Request) -> bytes:
        [handle] = request.numbers("Q")
        del self._listings[handle]
        return self.release(request)

    def statfs(self, request: Request) -> bytes:
        return fuse.capacity(os.statvfs(self._nodes[request.node].way))


def main(folder: Path, seconds: float, hold: Path) -> None:
    os.umask(0)  # the kernel has applied the caller's
    spool = LateSpool(folder, seconds, hold)
    descriptor = fuse.mount(folder, "latespool")
    print("mounted", flush=True)
    fuse.serve(descriptor, spool.handlers)


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]), Path(sys.argv[3]))
