"""Walls around a process: namespaces of its own, in which it sees the files that it was given and nothing else.

User-Mode Linux is a family of ordinary processes, and whoever is root in its guest can become one of them. So they live
as nobody, without capabilities, network, other processes, or any file but their disks; and their first process is the
first of its PID namespace: when it ends, however it ends, the kernel ends all the others before anybody is told. No
privilege is needed, but a node whose kernel lets its users make namespaces; `enter` fails where it does not.

It decides nothing: what is shown is the hypervisor's to say (`Walls`).
"""

from __future__ import annotations

import ctypes
import os
import resource
import select
import signal
from dataclasses import dataclass
from typing import Any, NoReturn

from gridhypervisor.agent import processes

_NEWNS, _NEWIPC, _NEWUSER, _NEWPID, _NEWNET = 0x20000, 0x8000000, 0x10000000, 0x20000000, 0x40000000
_RDONLY, _NOSUID, _NODEV, _NOEXEC, _REMOUNT, _BIND, _REC, _PRIVATE = 1, 2, 4, 8, 32, 4096, 16384, 1 << 18
_DETACH = 2
_PIVOT_ROOT = 155  # its number on x86_64: libc has no function for it
_NO_NEW_PRIVS = 38
_NOBODY = 65534


@dataclass(frozen=True)
class Shown:
    """A file or folder of the node, and where it is seen behind the walls."""

    path: str
    where: str  # absolute
    writable: bool = False


@dataclass(frozen=True)
class Walls:
    """What is behind them."""

    root: str  # an empty folder of the node, where the root is put together; it stays empty for everybody else
    shown: tuple[Shown, ...]
    size: int  # bytes of the root's memory file system, with /tmp in it: the guest's memory

    @classmethod
    def of(cls, plain: dict[str, Any]) -> Walls:
        """From `dataclasses.asdict`."""
        return cls(plain["root"], tuple(Shown(**item) for item in plain["shown"]), plain["size"])


def enter(walls: Walls) -> None:
    """Go behind the walls, as a new process, the first there; the caller waits for it and ends as it does.

    Raises:
        OSError: a step was refused; its text names the step.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    parent, uid, gid = os.getppid(), os.getuid(), os.getgid()
    spaces = _NEWUSER | _NEWNS | _NEWIPC | _NEWPID | _NEWNET
    _must(libc.unshare(spaces), "make namespaces (are users of this node allowed to?)")
    for name, text in (("setgroups", "deny"), ("uid_map", f"{_NOBODY} {uid} 1"), ("gid_map", f"{_NOBODY} {gid} 1")):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)
    processes.die_with_parent()  # again: new credentials may have forgotten it
    if os.getppid() != parent:
        os._exit(127)
    life, lives = os.pipe()
    inner = os.fork()
    if inner:
        _wait(inner, lives)
    processes.die_with_parent()
    os.close(lives)
    if select.select([life], [], [], 0)[0]:  # its parent died before that; no process id of ours is known here
        os._exit(127)
    _build(libc, walls)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _must(libc.prctl(_NO_NEW_PRIVS, 1, 0, 0, 0), "give up new privileges")


def _wait(inner: int, lives: int) -> NoReturn:
    """End as the process behind the walls ends; when this one is killed, that one dies with it. Of its files it keeps
    the end of the pipe that says that it lives."""
    os.closerange(0, lives)
    os.closerange(lives + 1, 1 << 16)
    _, status = os.waitpid(inner, 0)
    if os.WIFSIGNALED(status):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {os.WTERMSIG(status)})
        os.kill(os.getpid(), os.WTERMSIG(status))
    os._exit(os.waitstatus_to_exitcode(status) & 0xFF)


def _build(libc: ctypes.CDLL, walls: Walls) -> None:
    """Put the root together and move into it."""

    def mount(source: str, target: str, kind: str, flags: int, data: str = "") -> None:
        words = [os.fsencode(word) for word in (source, target, kind)]
        _must(libc.mount(*words, ctypes.c_ulong(flags), data.encode()), f"mount {source} at {target}")

    root = walls.root
    mount("none", "/", "", _REC | _PRIVATE)
    mount("tmpfs", root, "tmpfs", _NOSUID | _NODEV, f"size={walls.size},mode=700")
    for item in walls.shown:
        target = root + item.where
        os.makedirs(os.path.dirname(target), exist_ok=True)
        if os.path.isdir(item.path):
            os.mkdir(target)
        else:
            os.close(os.open(target, os.O_CREAT | os.O_WRONLY, 0o600))
        mount(item.path, target, "", _BIND)
        if not item.writable:
            # Flags that the mount beneath has may not be taken away from here, and would be by not naming them.
            kept = os.statvfs(target).f_flag & (_NOSUID | _NODEV | _NOEXEC)
            mount("none", target, "", _REMOUNT | _BIND | _RDONLY | kept)
    os.mkdir(f"{root}/tmp")
    os.mkdir(f"{root}/node")
    _must(libc.syscall(_PIVOT_ROOT, os.fsencode(root), os.fsencode(f"{root}/node")), "change the root")
    os.chdir("/")
    _must(libc.umount2(b"/node", _DETACH), "leave the node's root")
    os.rmdir("/node")


def _must(result: int, what: str) -> None:
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")
