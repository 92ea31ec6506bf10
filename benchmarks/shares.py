"""Where the wall time of the simulated jobs goes, by parts: what the interpreter is at is looked at every 2 ms.

A look goes to the part that the innermost frame of our own code belongs to, but for `model/`, which works for whoever
called it. While the loop has nothing to do, it goes to what the loop waits for: the store's thread, or files.
"""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import gridhypervisor

EVERY = 0.002
"""Seconds between looks."""

ROOT = str(Path(gridhypervisor.__file__).parent) + "/"

PARTS = {
    "simulation/link.py": "wire: encode, decode",
    "simulation/": "the simulated site itself",
    "planning/": "plan",
    "store/": "store",
    "execution/storing.py": "store",
    "execution/births.py": "submission",
    "execution/observer.py": "observe",
    "execution/session.py": "observe",
    "execution/connection.py": "observe",
    "execution/cases.py": "observe",
    "execution/grants.py": "observe",
    "execution/actions.py": "act",
    "execution/errands.py": "act",
    "execution/prolog.py": "act",
    "execution/submissions.py": "act",
    "execution/collect.py": "collect",
    "execution/results.py": "collect",
    "execution/logs.py": "collect",
    "execution/": "the pass itself",
}
"""By the beginning of a module's path, the first that fits."""

REST = "the event loop"


class Shares:
    """`of`: looks, by part."""

    def __init__(self) -> None:
        self.of: Counter[str] = Counter()

    @contextlib.contextmanager
    def taken(self) -> Iterator[None]:
        """Look from now on, until the end. In the main thread alone."""
        before = signal.signal(signal.SIGALRM, self._look)
        signal.setitimer(signal.ITIMER_REAL, EVERY, EVERY)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)

    def _look(self, _: int, frame: FrameType | None) -> None:
        if frame is not None and frame.f_code.co_name == "select":
            self.of[self._awaited()] += 1
        else:
            self.of[_part(frame) or REST] += 1

    @staticmethod
    def _awaited() -> str:
        main = threading.main_thread().ident
        parts = {_part(frame) for thread, frame in sys._current_frames().items() if thread != main}
        return next((f"waiting: {part}" for part in ("store", "collect") if part in parts), REST)


def _part(frame: FrameType | None) -> str:
    while frame is not None:
        path = frame.f_code.co_filename
        if path.startswith(ROOT) and not path.startswith(f"{ROOT}model/"):
            return next((part for start, part in PARTS.items() if path.startswith(ROOT + start)), "")
        frame = frame.f_back
    return ""
