"""What a guest had of its node's processors, and what it wanted, by looking at its threads now and then; and how much
is in its memory.

How long a thread has run every kernel says; how long it was ready to run and was not let, not all do. But a thread that
is ready is shown as running (`R`) whether it has a processor or waits for one: so, at each look, one that is `R` wanted
the processor for the time since the look before. Over a few hundred looks that is what it wanted, to a few per cent.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from gridhypervisor.agent.ending import now
from gridhypervisor.model.wire import Effort

LOOK = 3.0
"""Seconds between two looks: two hundred in ten minutes, which cost less than a tenth of a second of CPU."""

LONGEST = 12.0
"""Seconds since the look before that count at most: this process may have been stopped meanwhile, as its guest."""


SAMPLES = 1024
"""Pages of a guest's memory that are looked at: some milliseconds, and a few per cent of what there is."""

_PAGE = 4096


class Meter:
    """Counts from when it is made; `look` is to be called every `LOOK` seconds. All processes below `root` count."""

    def __init__(self, root: int) -> None:
        self._root = root
        self._ticks = os.sysconf("SC_CLK_TCK")
        self._had = self._wanted = 0.0
        self._at = now()
        self._last = {thread: ran for thread, ran, _ in _threads(root)}

    def look(self) -> None:
        """Take in what its threads do now. Of one that has ended, what it did since the last look is lost."""
        moment, found = now(), dict[int, int]()
        passed, self._at = min(moment - self._at, LONGEST), moment
        for thread, ran, ready in _threads(self._root):
            found[thread] = ran
            self._had += max(0, ran - self._last.get(thread, 0)) / self._ticks  # its number may be a new thread's
            self._wanted += passed * ready
        self._last = found

    def read(self) -> Effort:
        """The sums so far."""
        return Effort(self._had, max(0.0, self._wanted - self._had))


def filled(root: int, memory: int) -> int:
    """Bytes of a guest's memory that are not zero, about: of the `memory` bytes in one stretch that a process below
    this one has mapped. How much of it is resident says less: such a page may be all zero, and one that is not may come
    of a file. So some pages are looked at. All of it, where none can be: then nobody knows better."""
    processes = _children(root)
    for process in processes:  # which grows meanwhile
        processes += _children(process)
        with contextlib.suppress(OSError, ValueError), open(f"/proc/{process}/maps", errors="replace") as file:
            for line in file:
                start, end = (int(place, 16) for place in line.split(None, 1)[0].split("-"))
                if end - start == memory:
                    return _not_zero(process, start, memory)
    return memory


def _not_zero(process: int, start: int, memory: int) -> int:
    """Raises: OSError: it cannot be read."""
    step, zeros = max(1, memory // SAMPLES // _PAGE) * _PAGE, bytes(_PAGE)
    descriptor = os.open(f"/proc/{process}/mem", os.O_RDONLY | os.O_CLOEXEC)
    try:
        found = [os.pread(descriptor, _PAGE, start + place) != zeros for place in range(0, memory, step)]
    finally:
        os.close(descriptor)
    return memory * sum(found) // len(found)


def _threads(root: int) -> Iterator[tuple[int, int, bool]]:
    """Of each thread of the processes below this one: its number, how many ticks it ran, and whether it is ready to."""
    processes = _children(root)
    for process in processes:  # which grows meanwhile
        processes += _children(process)
        for thread in _tasks(process):
            with contextlib.suppress(OSError, ValueError, IndexError):
                with open(f"/proc/{process}/task/{thread}/stat", errors="replace") as file:
                    # `pid (comm) state ppid …`, where comm may hold anything
                    fields = file.read().rpartition(")")[2].split()
                yield int(thread), int(fields[11]) + int(fields[12]), fields[0] == "R"


def _children(process: int) -> list[int]:
    """Of all its threads; none where the kernel does not list them: then nothing is measured."""
    found: list[int] = []
    for thread in _tasks(process):
        with contextlib.suppress(OSError, ValueError), open(f"/proc/{process}/task/{thread}/children") as file:
            found += map(int, file.read().split())
    return found


def _tasks(process: int) -> list[str]:
    with contextlib.suppress(OSError):
        return os.listdir(f"/proc/{process}/task")
    return []
