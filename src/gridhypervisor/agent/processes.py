"""The processes below this one: found by /proc, kept in the tree by a subreaper, ended like a batch job's."""

from __future__ import annotations

import contextlib
import ctypes  # here: a pilot has it before it forks its watchdog, which needs it too
import os
import signal
from collections.abc import Mapping
from pathlib import Path

from gridhypervisor.agent.ending import now

_PDEATHSIG, _CHILD_SUBREAPER = 1, 36


def die_with_parent() -> None:
    """Be killed when the thread that started this process ends."""
    _prctl(_PDEATHSIG, signal.SIGKILL)


def be_subreaper() -> None:
    """Inherit, from now on, every process below this one whose parent has ended."""
    _prctl(_CHILD_SUBREAPER, 1)


class Child:
    """A program that runs meanwhile. Not subprocess, which takes longer to import than a short program takes to run."""

    def __init__(
        self, argv: list[str], environment: Mapping[str, str], *, stdin: int | None = None, stdout: int | None = None
    ) -> None:  # fmt: skip
        """Start it; descriptors that it is given stay the caller's to close. Raises: OSError: it cannot be."""
        self._said, theirs = os.pipe()
        actions: list[tuple[int, ...] | tuple[int, int, str, int, int]] = [
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0) if stdin is None else (os.POSIX_SPAWN_DUP2, stdin, 0),
            (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)
            if stdout is None
            else (os.POSIX_SPAWN_DUP2, stdout, 1),
            (os.POSIX_SPAWN_DUP2, theirs, 2),
        ]
        try:
            self._pid = os.posix_spawn(argv[0], argv, environment, file_actions=actions)
        except OSError:
            os.close(self._said)
            raise
        finally:
            os.close(theirs)

    def leave(self) -> None:
        """It ends by itself, and nobody wants to know how."""
        os.close(self._said)

    def wait(self) -> tuple[int, str]:
        """Its exit code (negative: the signal that ended it), and the end of what it said on stderr."""
        with open(self._said, "rb") as said:
            words = said.read().decode(errors="replace").strip()[-300:]
        _, status = os.waitpid(self._pid, 0)
        return os.waitstatus_to_exitcode(status), words


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


def cpu_seconds_of(pid: int) -> float:
    """User and system, of a process and of its children that it waited for; 0 of one that is gone."""
    try:
        # `pid (comm) state ppid …`, where comm may hold anything
        fields = Path("/proc", str(pid), "stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return 0.0
    return sum(int(ticks) for ticks in fields[11:15]) / os.sysconf("SC_CLK_TCK")


def _descendants() -> list[int]:
    """All processes below this one, by /proc: the subreaper keeps orphans in the tree.

    Parents come before their children: who is to be killed must not go on, and end as it likes, because its child was.
    """
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdecimal():
            with contextlib.suppress(OSError):
                # `pid (comm) state ppid …`, where comm may hold anything
                parent = int(Path("/proc", name, "stat").read_text(errors="replace").rpartition(")")[2].split()[1])
                children.setdefault(parent, []).append(int(name))
    found = [os.getpid()]
    for pid in found:  # which grows meanwhile
        found += children.get(pid, [])
    return found[1:]


def _prctl(option: int, value: int) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0):
        raise OSError(ctypes.get_errno(), f"prctl({option}, {value})")
