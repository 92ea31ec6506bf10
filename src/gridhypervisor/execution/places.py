"""Whom to offer the free places of a site: jobs that wait for one are planned again when there is one they might take.

It keeps the queue moving and wakes few. Which site a job takes, and in which order jobs are served, the planner
decides; that order is asked for when places are to be offered, and where very many wait not at each of them.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from math import inf

from gridhypervisor.execution.agenda import Waiting
from gridhypervisor.execution.cases import Cases
from gridhypervisor.execution.ports import Session
from gridhypervisor.execution.scheduling import Scheduling
from gridhypervisor.model.records import Job

SPARE = 64
"""Waiting jobs that are offered a site's free places beyond their number, in case some cannot use them."""


FEW = 100
"""Waiting jobs whose order is made anew whenever a place is to be offered."""

STALE = 1.0
"""Seconds for which the order of more of them is good enough."""

PAUSE = 1.0
"""Seconds after which places are offered again that jobs could not take because of a limit of the policy."""

NOBODY: frozenset[str] = frozenset()

Kind = tuple[str, str, int | None, bool]
"""All by which a job may go before one that came first: owner, project, priority, and whether it has a deadline."""


class Places:
    """`wake` has a job planned soon."""

    def __init__(
        self,
        sessions: Mapping[str, Session],
        cases: Cases,
        scheduling: Scheduling,
        wake: Callable[[str], None],
        clock: Callable[[], float],
    ) -> None:
        self._sessions, self._cases, self._scheduling = sessions, cases, scheduling
        self._wake, self._clock = wake, clock
        self._waiting = Waiting()
        self._kinds: dict[str, Kind] = {}  # of the jobs that wait
        self._several: Counter[Kind] = Counter()
        self._ordered = -inf  # when their order was made
        self._asking: dict[str, None] = {}  # those of them that wait for what sites publish
        self._spurned: dict[str, None] = {}  # sites with a place that was offered since the last look at the rest
        self._later: asyncio.TimerHandle | None = None

    def wait(self, job: str, site: str, spurned: Iterable[str] = ()) -> None:
        """It waits for a place, at this site or ("") at any; not at the `spurned`, which had one when it looked."""
        self._waiting.add(job, site)
        if job not in self._kinds:
            kind = self._kinds[job] = _kind(self._cases[job].job)
            self._several[kind] += 1
            if self._cases[job].job.spec.requirements:
                self._asking[job] = None
        self._spurned |= dict.fromkeys(name for name in spurned if self._waiting.unfit(name, job))

    def leave(self, job: str) -> None:
        """It waits for none."""
        self._waiting.remove(job)
        if kind := self._kinds.pop(job, None):
            self._several[kind] -= 1
            if not self._several[kind]:
                del self._several[kind]
            self._asking.pop(job, None)

    @property
    def waiting(self) -> list[str]:
        """The jobs that wait."""
        return list(self._kinds)

    def all_changed(self) -> None:
        """Any site may serve jobs now that it could not serve before, and in another order."""
        self._waiting.all_changed()
        self._ordered = -inf
        for site in self._sessions:
            self.offer(site)

    def changed(self, site: str) -> None:
        """The site may serve jobs now that it could not serve before."""
        self._waiting.changed(site)
        self.offer(site)

    def offer(self, site: str, most: int | None = None) -> None:
        """Wake as many waiting jobs as the site has places, or `most`, and a few more in case some cannot use it."""
        free = self._free(site)
        if free <= 0:
            return
        users, projects = self._scheduling.full() if self._scheduling.limited else (NOBODY, NOBODY)

        def may(kind: Kind) -> bool:  # have one more job at a site
            return kind[0] not in users and kind[1] not in projects

        everybody = not users and not projects
        if everybody or any(map(may, self._several)):
            self._put_in_order()
            count = (free if most is None else min(free, most)) + SPARE
            for job in self._waiting.candidates(site, count, None if everybody else lambda job: may(self._kinds[job])):
                self._wake(job)

    def offer_later(self) -> None:
        """Go on giving places away in a moment: a limit kept somebody from them, and perhaps not the next."""
        if self._later is None:
            self._later = asyncio.get_running_loop().call_later(PAUSE, self._go_on)

    def _go_on(self) -> None:
        self._later = None
        for site in self._sessions:
            self.offer(site)

    def close(self) -> None:
        if self._later is not None:
            self._later.cancel()

    def freed(self, site: str) -> None:
        """An allocation there has given up its place, and what it had of the account besides."""
        session = self._sessions.get(site)
        if session is not None and session.facts.lending is not None:
            self._waiting.changed(site)  # who needed more than there was may fit in now
        self.published(site)
        if not self._scheduling.limited:
            self.offer(site)
            return
        for each in self._sessions:  # whoever has given this one up may have another anywhere
            self.offer(each, 1)

    def offer_the_rest(self) -> None:
        """Where jobs could not use a site's free place, others get their turn."""
        spurned, self._spurned = self._spurned, {}
        for site in spurned:
            self.offer(site)

    def published(self, site: str) -> None:
        """What the site says of itself may be another: jobs that wait for that look. Many look now and then anyway."""
        if 0 < len(self._asking) <= SPARE:
            for job in self._asking:
                self._waiting.may_fit(job, site)
                self._wake(job)

    def _put_in_order(self) -> None:
        """Unless it is that in which they came: all are alike."""
        if len(self._several) < 2 and not any(deadline for *_, deadline in self._several):
            return
        now = self._clock()
        if len(self._kinds) <= FEW or now >= self._ordered + STALE:
            self._ordered = now
            self._waiting.put_in_order(self._scheduling.in_order(self.waiting, now))

    def _free(self, site: str) -> int:
        session = self._sessions.get(site)
        facts = session.facts if session is not None else None
        if facts is None or not facts.open:
            return 0
        most = min(facts.max_jobs, self._scheduling.policy.limits.of_site(site))
        return int(most) - self._cases.places(site)


def _kind(job: Job) -> Kind:
    return job.owner, job.project, job.spec.priority, job.spec.deadline is not None
