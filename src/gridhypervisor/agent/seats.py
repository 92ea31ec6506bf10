"""A processor to keep to, for a hypervisor whose work hops between processes of which only one ever runs.

User-Mode Linux stops a program at each system call and wakes another process for it. An idle machine wakes that one on
another processor, which in a virtual machine costs more than the call: the science case took two to three times as long
as on one. A lock per processor keeps this account's guests on a node off each other's; who finds none free is left to
the node's kernel.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Seat:
    """One processor, kept until it is left or this process ends."""

    cpu: int
    lock: int  # a descriptor

    def leave(self) -> None:
        os.close(self.lock)


def take(folder: Path) -> Seat | None:
    """A processor of those that this process may use and that nobody holds in `folder`; None: there is none."""
    usable = list(os.sched_getaffinity(0))
    first = os.urandom(1)[0] % len(usable)  # other accounts' guests are not seen from here
    with contextlib.suppress(OSError):  # it is a matter of speed only
        folder.mkdir(mode=0o700, exist_ok=True)
        for cpu in usable[first:] + usable[:first]:
            lock = os.open(folder / str(cpu), os.O_RDWR | os.O_CREAT, 0o600)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                os.close(lock)
            else:
                return Seat(cpu, lock)
    return None
