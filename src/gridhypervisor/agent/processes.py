"""The processes below this one: found by /proc, kept in the tree by a subreaper, ended like a batch job's."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
from pathlib import Path

from gridhypervisor.agent.ending import now

_PDEATHSIG, _CHILD_SUBREAPER = 1, 36


def die_with_parent() -> None:
    """Be killed when the thread that started this process ends."""
    _prctl(_PDEATHSIG, signal.SIGKILL)


def be_subreaper() -> None:
    """Inherit, from now on, every process below this one whose parent has ended."""
    _prctl(_CHILD_SUBREAPER, 1)


def end_descendants(grace: float) -> None:
    """End every process below this one: TERM, and after `grace` seconds KILL. Needs SIGCHLD blocked, a subreaper."""
    reap(0)
    if grace and _descendants():
        signal_descendants(signal.SIGTERM)
    kill_at = now() + grace
    while _descendants():
        if now() >= kill_at:
            signal_descendants(signal.SIGKILL)
        signal.sigtimedwait({signal.SIGCHLD}, min(max(kill_at - now(), 0.05), 1.0))
        reap(0)


def reap(wanted: int) -> int | None:
    """Collect every ended child; give the exit code of the wanted one if it was among them."""
    code = None
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return code
            if pid == wanted:
                ended = os.waitstatus_to_exitcode(status)
                code = ended if ended >= 0 else 128 - ended
    return code


def signal_descendants(number: signal.Signals) -> None:
    """Signal every process of the job, whatever its session or group, as batch systems do."""
    for pid in _descendants():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def _descendants() -> set[int]:
    """All processes below this one, by /proc: the subreaper keeps orphans in the tree."""
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdecimal():
            with contextlib.suppress(OSError):
                # `pid (comm) state ppid …`, where comm may hold anything
                parent = int(Path("/proc", name, "stat").read_text(errors="replace").rpartition(")")[2].split()[1])
                children.setdefault(parent, []).append(int(name))
    found, frontier = set[int](), [os.getpid()]
    while frontier:
        below = children.get(frontier.pop(), [])
        found.update(below)
        frontier += below
    return found


def _prctl(option: int, value: int) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0):
        raise OSError(ctypes.get_errno(), f"prctl({option}, {value})")
