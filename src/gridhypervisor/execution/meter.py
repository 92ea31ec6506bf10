"""Shares a process's CPU time fairly among the jobs that were alive while it was spent."""

from __future__ import annotations


class Meter:
    """A job's share between two readings of `value` is their difference, in CPU seconds."""

    def __init__(self) -> None:
        self.value = 0.0
        self._total = 0.0

    def restart(self) -> None:
        """The process was replaced: its count begins at zero again."""
        self._total = 0.0

    def advance(self, total: float, alive: int) -> None:
        """`total`: what the process has used so far, in seconds; `alive`: among how many the new part is shared."""
        if alive:
            self.value += max(0.0, total - self._total) / alive
        self._total = total
