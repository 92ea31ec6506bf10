"""What a simulation comes to: waits, slowdowns, utilisation, fairness. Pure, over records and the sites' own accounts.

A job's slowdown is bounded as D. G. Feitelson and L. Rudolph have it ("Metrics and Benchmarking for Parallel Job
Scheduling", JSSPP 1998, LNCS 1459): max(1, (wait + run) / max(run, 10 s)), so that very short jobs do not decide it.
Fairness is the index of R. Jain, D. Chiu and W. Hawe (DEC Research Report TR-301, 1984) over n users' mean slowdowns:
(Σx)² / (n·Σx²), 1 where all are equal, 1/n where one has everything.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from gridhypervisor.model.commit import JobRecords
from gridhypervisor.model.records import JobState
from gridhypervisor.model.simulation import SimulationReport, SimulationSpec, SiteFigures, Spread, UserFigures
from gridhypervisor.model.wire import Phase
from gridhypervisor.planning.past import SETTLED, tenure
from gridhypervisor.simulation.batch import Stay
from gridhypervisor.simulation.workload import Work

BOUND = 10.0
"""Seconds: shorter programs count as if they ran so long, in slowdowns."""

STEPS = 200
"""Steps into which the time is divided, at most, for what changes over it."""

LENGTHS = (60, 300, 600, 900, 1800, 3600, 7200, 14400, 21600, 43200, 86400, 7 * 86400)
"""Seconds that such a step may have."""


@dataclass(frozen=True)
class SiteAccount:
    """What a site's batch system gave to whom."""

    cores: int
    ours: Sequence[Stay]
    others: Sequence[Stay]


class Course(NamedTuple):
    """How a job that is done went. In seconds."""

    site: str
    user: str
    wait: float
    run: float

    @property
    def slowdown(self) -> float:
        return slowdown(self.wait, self.run)


def slowdown(wait: float, run: float) -> float:
    """The bounded slowdown of a job."""
    return max(1.0, (wait + run) / max(run, BOUND))


def jain(values: Collection[float]) -> float:
    """Jain's fairness index; 1 where there is nobody."""
    squares = math.fsum(value * value for value in values)
    return math.fsum(values) ** 2 / (len(values) * squares) if squares else 1.0


def spread(values: Sequence[float]) -> Spread:
    if not values:
        return Spread()
    curve = np.percentile(np.array(values), np.arange(101))
    points = tuple(round(float(point), 3) for point in curve)
    return Spread(round(math.fsum(values) / len(values), 3), points[50], points[90], points[100], points)


def over_time(stays: Sequence[Stay], step: float, steps: int) -> list[float]:
    """Cores in use, on the mean of each step; what comes after the last step is left out."""
    sums = [0.0] * steps
    for stay in stays:
        last = min(steps - 1, int(stay.end // step))
        for number in range(max(0, int(stay.begin // step)), last + 1):
            sums[number] += stay.cores * max(0.0, min(stay.end, (number + 1) * step) - max(stay.begin, number * step))
    return [round(each / step, 4) for each in sums]


def core_seconds(stays: Sequence[Stay], end: float) -> float:
    """Until `end`."""
    return math.fsum(stay.cores * max(0.0, min(stay.end, end) - stay.begin) for stay in stays)


def course(records: JobRecords, run: float) -> Course | None:
    """Of a job that is done. `run`: seconds that its program takes."""
    job = records.job
    last = records.allocations[-1] if records.allocations else None
    if job.state is not JobState.DONE or last is None or last.times.ended is None or last.exit is None:
        return None
    ran = next((p.end - p.start for p in last.exit.phases if p.phase is Phase.EXECUTE and p.end is not None), run)
    return Course(last.site, job.owner, max(0.0, last.times.ended - job.created - ran), ran)


def failed(records: JobRecords) -> list[str]:
    """The sites of attempts that site or node failed."""
    return [a.site for a in records.allocations if a.state in SETTLED and tenure(records.job, a).well is False]


def report(
    spec: SimulationSpec,
    work: Work,
    records: Sequence[tuple[JobRecords, float]],
    accounts: Mapping[str, SiteAccount],
    end: float,
) -> SimulationReport:
    """The whole. `records`: each job, with the seconds that its program takes. `end`: when the last job ended."""
    end = max(end, 1.0)
    step = float(next((each for each in LENGTHS if end / each <= STEPS), LENGTHS[-1]))
    steps = math.ceil(end / step)
    courses = [each for job, run in records if (each := course(job, run)) is not None]
    failures = Counter(site for job, _ in records for site in failed(job))
    given = Counter(a.site for job, _ in records for a in job.allocations)
    owners = {a.pilot_job: job.job.owner for job, _ in records for a in job.allocations}
    users = _users(records, courses, _hours_by_user(owners, accounts, end))
    ours = {name: core_seconds(account.ours, end) for name, account in accounts.items()}
    sites = []
    for name, account in accounts.items():
        here = [each for each in courses if each.site == name]
        room = account.cores * end
        sites.append(
            SiteFigures(
                name,
                account.cores,
                len(here),
                given[name],
                failures[name],
                round(ours[name] / 3600, 3),
                round(ours[name] / room, 5),
                round(core_seconds(account.others, end) / room, 5),
                spread([each.wait for each in here]),
                tuple(over_time(account.ours, step, steps)),
                tuple(over_time(account.others, step, steps)),
            )
        )
    cores = sum(account.cores for account in accounts.values())
    ends = [job.job for job, _ in records if job.job.state.final and job.job.state is not JobState.DONE]
    return SimulationReport(
        seed=spec.seed,
        workload=work.words,
        policy=spec.policy,
        jobs=len(records),
        left_out=dict(work.left_out),
        states=_counted(str(job.job.state) for job, _ in records),
        reasons=_counted(str(job.reason or "unknown") for job in ends),
        seconds=round(end, 3),
        attempts=given.total(),
        core_hours=round(math.fsum(ours.values()) / 3600, 3),
        utilisation=round(math.fsum(ours.values()) / (cores * end), 5),
        waits=spread([each.wait for each in courses]),
        slowdowns=spread([each.slowdown for each in courses]),
        fairness=round(jain([user.slowdown for user in users if user.done]), 5),
        step=step,
        sites=tuple(sites),
        users=users,
    )


def _hours_by_user(owners: Mapping[str, str], accounts: Mapping[str, SiteAccount], end: float) -> dict[str, float]:
    stays: dict[str, list[Stay]] = defaultdict(list)
    for account in accounts.values():
        for stay in account.ours:
            if stay.name in owners:
                stays[owners[stay.name]].append(stay)
    return {user: core_seconds(each, end) / 3600 for user, each in stays.items()}


def _users(
    records: Sequence[tuple[JobRecords, float]], courses: Sequence[Course], hours: Mapping[str, float]
) -> tuple[UserFigures, ...]:
    """Those with the most jobs first."""
    jobs = Counter(job.job.owner for job, _ in records)
    of: dict[str, list[Course]] = defaultdict(list)
    for each in courses:
        of[each.user].append(each)
    return tuple(
        UserFigures(
            user,
            count,
            len(of[user]),
            round(hours.get(user, 0.0), 3),
            round(_mean([each.wait for each in of[user]]), 3),
            round(_mean([each.slowdown for each in of[user]]), 3),
        )
        for user, count in sorted(jobs.items(), key=lambda item: (-item[1], item[0]))
    )


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else 0.0


def _counted(words: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(words).items()))
