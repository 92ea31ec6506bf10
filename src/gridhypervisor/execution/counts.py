"""What is counted of the loop's work, for who watches the service. Only sums: they cost nothing, and tell of nobody."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter

from gridhypervisor.model.measures import BOUNDS, Times


class Durations:
    """How long something took, sorted by the bounds of `model.measures`."""

    def __init__(self) -> None:
        self._counts = [0] * (len(BOUNDS) + 1)
        self._sum = 0.0

    def add(self, seconds: float) -> None:
        self._counts[bisect_left(BOUNDS, seconds)] += 1
        self._sum += seconds

    def taken(self) -> Times:
        return Times(tuple(self._counts), self._sum)


class Counts:
    def __init__(self) -> None:
        self.actions: Counter[tuple[str, str]] = Counter()  # by kind and result
        self.beats: Counter[str] = Counter()  # by site
        self.calls: Counter[str] = Counter()  # calls of the store, by what was called
        self.store = Durations()
        self.passes = Durations()
        self.lag = Durations()
