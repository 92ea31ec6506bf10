"""How fast a site's batch system may be asked, and when again after it was too busy. Pure: time is the caller's."""

from __future__ import annotations

from math import inf

FIRST, MOST = 5.0, 120.0
"""Seconds that a batch system is left alone after it was too busy: at first, at most. Before jitter."""


class Throttle:
    """So many a minute. What goes together goes at once, and is paid for by the wait of those after it."""

    def __init__(self, rate: float = inf) -> None:
        self.rate = rate
        self._free_at = -inf

    def delay(self, now: float) -> float:
        """Seconds until more may go; 0: now. `now`: on any clock that does not jump."""
        return max(0.0, self._free_at - now)

    def take(self, count: int, now: float) -> None:
        """So many go now."""
        self._free_at = max(self._free_at, now) + count * 60.0 / self.rate


def patience(before: float) -> float:
    """Seconds to leave it alone, after it was left alone so long before, or not at all (0)."""
    return min(2 * before, MOST) if before else FIRST
