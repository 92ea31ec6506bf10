"""What choices of sites rest on, kept up as things happen: the policy, what is remembered, what sites publish.

It keeps and hands over. Who goes where is decided in `planning.placement`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain

from gridhypervisor.execution.cases import Cases
from gridhypervisor.model.batch import BatchState
from gridhypervisor.model.capacity import Capacity
from gridhypervisor.model.commit import JobRecords
from gridhypervisor.model.policy import Limits, PolicyRecord, SchedulingPolicy
from gridhypervisor.model.records import Allocation, Denial, Job
from gridhypervisor.model.wire import LEAST_RATE
from gridhypervisor.planning.credit import Experience, Waiting
from gridhypervisor.planning.matching import Catalogue
from gridhypervisor.planning.past import Past, SitePast, Tenure, tenure, tenures
from gridhypervisor.planning.placement import in_order
from gridhypervisor.planning.published import Published
from gridhypervisor.planning.segments import save_rate
from gridhypervisor.planning.suiting import Grid
from gridhypervisor.planning.world import Seen, SiteFacts

NO_LIMITS = Limits()

LATEST = 1_000
"""Attempts that are over, the newest, that are known besides what is read of the store."""


class Scheduling:
    def __init__(self, cases: Cases) -> None:
        self._cases = cases
        self.published = Published()
        self.record = PolicyRecord(SchedulingPolicy())
        self._past = Past(self.record.policy)
        self._latest: deque[tuple[str, Tenure]] = deque(maxlen=LATEST)  # with their jobs
        self._experience: dict[str, Experience] = {}  # by site

    @property
    def policy(self) -> SchedulingPolicy:
        return self.record.policy

    @property
    def limited(self) -> bool:
        """Whether the policy bounds how many jobs somebody has at sites."""
        return self.policy.limits != NO_LIMITS

    def full(self) -> tuple[set[str], set[str]]:
        """Users, and projects, that have as many jobs at sites as the policy allows."""
        limits = self.policy.limits
        users, projects, _ = self._cases.counts()
        return (
            {name for name, count in users.items() if count >= limits.of_user(name)},
            {name for name, count in projects.items() if count >= limits.of_project(name)},
        )

    def adopt(self, record: PolicyRecord, ended: Iterable[JobRecords]) -> None:
        """From now on this policy holds. `ended`: the jobs that ended within its memory, as they were read a moment
        ago; those that have ended since are known, and those alive."""
        self.record, self._past = record, Past(record.policy)
        for each in self._over(ended):
            self._past.add(each)

    def _over(self, ended: Iterable[JobRecords]) -> list[Tenure]:
        """The attempts that are over: of jobs that ended, and of those alive."""
        alive = (JobRecords(case.job, case.vm, case.allocations) for case in self._cases.values())
        others = [records for records in ended if records.job.id not in self._cases]
        known = self._cases.keys() | {records.job.id for records in others}
        late = (over for job, over in self._latest if job not in known)
        return sorted([*tenures(chain(others, alive)), *late], key=lambda t: t.ended)

    def recall(self, ended: Iterable[JobRecords], denied: Iterable[Denial]) -> None:
        """How far sites are to be believed: by the jobs of the past day that began in time, and those that did not."""
        self._experience.clear()
        met: list[tuple[float, Tenure | Denial]] = [(t.ended, t) for t in self._over(ended)]
        met += [(denial.at, denial) for denial in denied]
        for at, each in sorted(met, key=lambda pair: pair[0]):
            known = self._experience.setdefault(each.site, Experience())
            if isinstance(each, Denial):
                known.denied(at, each.jobs)
            elif each.waited is not None:
                known.began(at, each.waited)

    def forget(self, site: str) -> None:
        """It is not ours any more: of another by its name nothing has been learnt."""
        self._experience.pop(site, None)

    def settled(self, job: Job, a: Allocation) -> bool:
        """An attempt of the job is over: it is remembered. Whether the owner's jobs may go to its site again by it."""
        over = tenure(job, a)
        if over.waited is not None:
            self._experience.setdefault(a.site, Experience()).began(over.ended, over.waited)
        if job.probe:
            return False
        self._latest.append((job.id, over))
        return self._past.add(over)

    def surveyed(self, site: str, capacity: Capacity) -> int:
        """The site has said what it has free; jobs of ours that wait there all the same say how far that is so. How
        many of them it has denied that just now."""
        waiting = []
        for entry, job, sight in self._cases.attended(site):
            batch = sight.batch
            if isinstance(batch, Seen) and batch.job.state is BatchState.PENDING:
                waiting.append(Waiting(entry, self._cases[job].job.spec.resources.cpus, batch.since))
        return self._experience.setdefault(site, Experience()).surveyed(waiting, capacity)

    def past_of(self, site: str) -> SitePast:
        """What is remembered of it."""
        return self._past.sites.get(site, SitePast())

    def save_rate(self, site: str) -> float:
        """Bytes a second at which guests are surely saved there."""
        known = self._past.sites.get(site)
        return save_rate(known.saves) if known is not None else LEAST_RATE

    def credit(self, site: str, now: float) -> float:
        """How far the site is believed, 0 to 1."""
        known = self._experience.get(site)
        return known.credit(now) if known is not None else 1.0

    def grid(self, sites: Mapping[str, SiteFacts], jobs: Iterable[Job], now: float) -> Grid:
        """What the choices of these jobs rest on. Good until something happens."""
        asked = any(job.spec.requirements or job.spec.rank for job in jobs)
        counts = self._cases.counts() if self.limited else ({}, {}, {})
        return Grid(
            sites=sites,
            policy=self.policy,
            usage=self._past.usage(now, *counts),
            now=now,
            catalogue=self.catalogue(sites, now) if asked else NOTHING,
            past=self._past.sites,
            predictions=self._past.predictions,
        )

    def catalogue(self, sites: Mapping[str, SiteFacts], now: float) -> Catalogue:
        """What sites and nodes publish. Good until something happens."""
        return self.published.update(sites, self._past.sites, now)

    def in_order(self, jobs: Sequence[str], now: float) -> list[str]:
        """Jobs that wait, in the order in which they are to be served."""
        known = [self._cases[job].job for job in jobs if job in self._cases]
        return in_order(known, self.policy, self._past.usage(now), now)

    def turn(self, job: Job, waiting: Sequence[str], now: float) -> str:
        """Where in that order a job is, in words; empty, if it does not wait."""
        if job.id not in waiting:
            return ""
        order = self.in_order(waiting, now)
        return f"{order.index(job.id) + 1} of {len(order)} jobs that wait"


NOTHING = Catalogue()
"""For jobs that ask for nothing that sites publish."""
