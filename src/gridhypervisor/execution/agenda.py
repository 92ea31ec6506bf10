"""When to look at which job again: what changed, timers, and the queue of those that wait for a place.

It keeps order and forgets what no longer holds. It knows nothing of why a job waits or what a site can do.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable, Iterable, Iterator
from itertools import islice

SLACK = 64
"""Timers that no longer hold, beyond as many as hold, before they are swept."""


class Timers:
    """At most one time for each job."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, str]] = []
        self._due: dict[str, float] = {}

    @property
    def next(self) -> float | None:
        """When to call `expired` again; perhaps in vain."""
        return self._heap[0][0] if self._heap else None

    def set(self, job: str, at: float) -> None:
        """At that time, and at no other."""
        if self._due.get(job) == at:
            return
        self._due[job] = at
        heapq.heappush(self._heap, (at, job))
        if len(self._heap) > 2 * len(self._due) + SLACK:
            self._heap = [(at, job) for job, at in self._due.items()]
            heapq.heapify(self._heap)

    def drop(self, job: str) -> None:
        self._due.pop(job, None)

    def expired(self, now: float) -> Iterator[str]:
        """The jobs whose time has come; each once."""
        while self._heap and self._heap[0][0] <= now:
            at, job = heapq.heappop(self._heap)
            if self._due.get(job) == at:
                del self._due[job]
                yield job


class Agenda:
    """Jobs to be planned: at once, or at a time of theirs. `clock` is that of the times."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._dirty: dict[str, None] = {}
        self._wake = asyncio.Event()
        self._timers = Timers()

    def add(self, job: str) -> None:
        """Plan it with the next that are planned."""
        self._dirty[job] = None
        self._wake.set()

    def remind(self, job: str, at: float | None) -> None:
        """Plan it at that time, if nothing changes before; None: only when something changes."""
        if at is not None:
            self._timers.set(job, at)
        else:
            self._timers.drop(job)

    def drop(self, job: str) -> None:
        self._dirty.pop(job, None)
        self._timers.drop(job)

    async def due(self) -> list[str]:
        """Wait until there are jobs to plan: all that came together meanwhile, each once."""
        while True:
            self._wake.clear()
            self._dirty |= dict.fromkeys(self._timers.expired(self._clock()))
            if self._dirty:
                due, self._dirty = list(self._dirty), {}
                return due
            timer: asyncio.TimerHandle | None = None
            if self._timers.next is not None:
                delay = max(0.0, self._timers.next - self._clock())
                timer = asyncio.get_running_loop().call_later(delay, self._wake.set)
            await self._wake.wait()
            if timer is not None:
                timer.cancel()


class Waiting:
    """Jobs without a place, in the order in which they came or were put, by the site that they ask for ("": any).

    A job that did not take a place although the site had one free cannot use that site as it is: it is not offered one
    again until the site has changed, so that it does not stand in the way of those behind it.
    """

    def __init__(self) -> None:
        self._jobs: dict[str, dict[str, None]] = {}  # by the site asked for
        self._site_of: dict[str, str] = {}
        self._unfit: dict[str, set[str]] = {}  # by site

    def add(self, job: str, site: str) -> None:
        if (before := self._site_of.get(job, site)) != site:
            del self._jobs[before][job]
        self._site_of[job] = site
        self._jobs.setdefault(site, {})[job] = None

    def remove(self, job: str) -> None:
        site = self._site_of.pop(job, None)
        if site is not None:
            del self._jobs[site][job]
        for unfit in self._unfit.values():
            unfit.discard(job)

    def put_in_order(self, jobs: Iterable[str]) -> None:
        """Those that wait are to be offered places in this order; others after them."""
        ordered = {job: self._site_of[job] for job in jobs if job in self._site_of}
        self._site_of = ordered | self._site_of
        self._jobs = {}
        for job, site in self._site_of.items():
            self._jobs.setdefault(site, {})[job] = None

    def unfit(self, site: str, job: str) -> bool:
        """Take down that it did not take a free place of the site. Whether it asked for one there, or anywhere."""
        asked = self._site_of.get(job) in (site, "")
        if asked:
            self._unfit.setdefault(site, set()).add(job)
        return asked

    def changed(self, site: str) -> None:
        """The site may serve jobs now that it could not serve before."""
        self._unfit.pop(site, None)

    def may_fit(self, job: str, site: str) -> None:
        """The site may serve this one."""
        self._unfit.get(site, set()).discard(job)

    def all_changed(self) -> None:
        """So may all."""
        self._unfit.clear()

    def candidates(self, site: str, count: int, may: Callable[[str], bool] | None = None) -> list[str]:
        """Those who are next to be offered a place at the site: at most `count` that ask for it, and `count` others.

        `may`: whether a job can be given any place at all.
        """
        unfit = self._unfit.get(site, ())
        queues = (self._jobs.get(asked, {}) for asked in (site, ""))
        fit = ((j for j in queue if j not in unfit and (may is None or may(j))) for queue in queues)
        return [job for queue in fit for job in islice(queue, count)]
