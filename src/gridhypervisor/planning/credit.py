"""How far a site is believed that says cores are free: learnt from jobs of ours that waited there all the same.

A site's own word is a claim. Cores may be kept for others, or for jobs of another size, or the listing is wrong; for us
they are not there. What was learnt is forgotten after a day. Nothing is decided here: `published` and `placement` count
what a site says is free by the `Credit` that it has.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from gridhypervisor.model.capacity import Capacity

PROMPT = 300.0
"""Seconds within which a job begins where there is room for it: schedulers look at their queues every minute or so."""

DAY = 86_400.0

LATEST = 20
"""Experiences with a site that count."""


@dataclass(frozen=True)
class Waiting:
    """A job of ours that the batch system has said is pending, without a break `since` then."""

    entry: str
    cpus: int
    since: float  # seconds on the controller's clock


def offers(capacity: Capacity, cpus: int) -> bool:
    """Whether the site says that one of its nodes has so many cores free."""
    return any(row.free_cpus is not None and row.free_cpus >= cpus for row in capacity.rows)


def denied(waiting: Iterable[Waiting], before: Capacity | None, now: Capacity) -> list[str]:
    """Entries of the jobs for which the site says it has room, as it did when it was asked `before`, and which have
    waited there all the time, and too long. One answer proves nothing: a core may have come free just then."""
    if before is None:
        return []
    said: dict[int, bool] = {}
    found = []
    for job in waiting:
        if now.as_of - job.since >= PROMPT and job.since <= before.as_of < now.as_of:
            if job.cpus not in said:
                said[job.cpus] = offers(before, job.cpus) and offers(now, job.cpus)
            if said[job.cpus]:
                found.append(job.entry)
    return found


@dataclass
class Experience:
    """What one site has been like. Changes as it is met with."""

    met: deque[tuple[float, bool]] = field(
        default_factory=lambda: deque(maxlen=LATEST)
    )  # when; whether it kept its word
    said: Capacity | None = None  # when it was asked last
    _told: dict[str, float] = field(default_factory=dict)  # entries that waited in vain, and when that was counted last

    def began(self, at: float, waited: float) -> None:
        """A job of ours began there after so many seconds in its queue."""
        if waited <= PROMPT:
            self.met.append((at, True))

    def surveyed(self, waiting: Sequence[Waiting], now: Capacity) -> int:
        """The site has said what is free, while these wait. One that goes on waiting counts again and again. How many
        were denied it just now."""
        known = {job.entry for job in waiting}
        self._told = {entry: at for entry, at in self._told.items() if entry in known}
        new = 0
        for entry in denied(waiting, self.said, now):
            if now.as_of - self._told.get(entry, -PROMPT) >= PROMPT:
                self._told[entry] = now.as_of
                new += 1
        self.said = now
        self.denied(now.as_of, new)
        return new

    def denied(self, at: float, jobs: int) -> None:
        """So many jobs were."""
        self.met.extend([(at, False)] * jobs)

    def credit(self, now: float) -> float:
        """1: it has not disappointed anybody in the past day. Else (1 + kept) / (1 + kept + broken)."""
        kept, broken = (sum(at > now - DAY and was is well for at, was in self.met) for well in (True, False))
        return (1 + kept) / (1 + kept + broken)
