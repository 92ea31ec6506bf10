"""Which processor runs which processes, so that two things can be measured at the same time without sharing one.

What disturbs a machine disturbs both alike then, which it does not where one runs after the other.
"""

from __future__ import annotations

import contextlib
import os
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path


def find(*words: str) -> int:
    """The process whose command line has all these words, the oldest if there are several.

    Raises:
        LookupError: there is none.
    """
    for process in sorted(_processes()):
        with contextlib.suppress(OSError):
            line = Path(f"/proc/{process}/cmdline").read_bytes().decode(errors="replace").split("\0")
            if all(any(word in part for part in line) for word in words):
                return process
    raise LookupError(f"no process has {' and '.join(words)} in its command line")


def family(root: int) -> set[int]:
    """A process and all that descends from it, wherever in name spaces that may be."""
    children = defaultdict(list)
    for process in _processes():
        with contextlib.suppress(OSError):
            # Behind the name, which may hold anything: state, parent.
            children[int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])].append(process)
    found = [root]
    for process in found:  # which grows meanwhile
        found += children[process]
    return set(found)


def bind(processes: Iterable[int], cores: Iterable[int]) -> None:
    """Have these processes, all their threads, and what they start from now on run on these cores only."""
    wanted = set(cores)
    for process in processes:
        with contextlib.suppress(OSError):
            for thread in os.listdir(f"/proc/{process}/task"):
                with contextlib.suppress(OSError):
                    os.sched_setaffinity(int(thread), wanted)


def _processes() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdecimal()]
