"""What holds of the scheduling policies whatever the jobs, the resources, the weights and the past."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from gridhypervisor.model.policy import (
    URGENT,
    DeadlineSetting,
    FixedJobs,
    JobPolicies,
    Limits,
    SchedulingPolicy,
    ShareSetting,
    WaitingSetting,
)
from gridhypervisor.planning.policies.cycle import assign
from gridhypervisor.planning.policies.jobs import OVERDUE, Request, deadline_part, prioritise
from gridhypervisor.planning.policies.resources import Candidates, failure_part, fixed_part, rank_part, usage_part
from gridhypervisor.planning.policies.room import NOWHERE
from gridhypervisor.planning.policies.usage import Ban, Record, Usage, Windows, banned, charge, remembered
from gridhypervisor.planning.policies.verdicts import explain

DAY = 86400.0
NOW = 1000 * DAY
USERS, PROJECTS = ("alice", "bob", "carol"), ("p", "q")
WEIGHTS = st.sampled_from([0.0, 0.5, 1.0, 10.0])


@st.composite
def requests(draw: st.DrawFn, groups: int = 1) -> list[Request]:
    one = st.builds(
        Request,
        id=st.just(""),
        user=st.sampled_from(USERS),
        project=st.sampled_from(PROJECTS),
        submitted=st.floats(NOW - 20 * DAY, NOW + 10),
        cores=st.sampled_from([1.0, 2.0, 8.0]),
        memory=st.sampled_from([0.0, 1.0, 4.0]),
        seconds=st.sampled_from([60.0, 3600.0]),
        group=st.integers(0, groups - 1),
        fixed=st.none() | st.integers(0, URGENT),
        deadline=st.none() | st.floats(NOW - DAY, NOW + 30 * DAY),
        avoid=st.frozensets(st.sampled_from(["s0", "n1"]), max_size=1),
        tried=st.frozensets(st.sampled_from(["s1", "n0"]), max_size=1),
        moving=st.booleans(),
    )
    return [job._replace(id=f"j{i}") for i, job in enumerate(draw(st.lists(one, max_size=25)))]


@st.composite
def policies(draw: st.DrawFn) -> SchedulingPolicy:
    limit = st.integers(0, 4)
    return SchedulingPolicy(
        jobs=JobPolicies(
            FixedJobs(draw(WEIGHTS), users={"alice": 7}),
            ShareSetting(draw(WEIGHTS), users={"bob": 1.0}, project_weight=draw(st.floats(0, 1))),
            WaitingSetting(draw(WEIGHTS)),
            DeadlineSetting(draw(WEIGHTS)),
        ),
        limits=Limits(draw(st.integers(0, 9)), draw(limit), draw(limit), draw(limit)),
    )


@st.composite
def usages(draw: st.DrawFn) -> Usage:
    names = st.sampled_from(["n0", "n1", "n2", "s0", "s1"])
    seconds = st.none() | st.floats(0, 1e6)
    records = st.builds(Record, st.integers(0, 9), st.integers(0, 9), seconds, seconds)
    bans = st.builds(Ban, st.just(NOW), st.floats(NOW - 10, NOW + 10))
    use = st.dictionaries(st.sampled_from(USERS), st.builds(Windows, st.just(1000), st.tuples(st.floats(0, 1e9))))
    return Usage(
        users=draw(use),
        records=draw(st.dictionaries(st.sampled_from(USERS), st.dictionaries(names, records))),
        bans=draw(st.dictionaries(st.sampled_from(USERS), st.dictionaries(names, bans))),
        running_users=draw(st.dictionaries(st.sampled_from(USERS), st.integers(0, 3))),
    )


@st.composite
def resources(draw: st.DrawFn, groups: int) -> Candidates:
    n = draw(st.integers(0, 6))
    sites = [f"s{draw(st.integers(0, 2))}" for _ in range(n)]

    def column(*values: float) -> Any:
        return np.array(draw(st.lists(st.sampled_from(values), min_size=n, max_size=n)), dtype=float)

    total_cores, total_memory = column(2, 8, np.inf), column(1, 4, np.inf)
    rank = st.floats(-1e6, 1e6) | st.sampled_from([np.nan, np.inf, 0.0])
    total = {site: draw(st.integers(1, 5)) for site in sites}
    return Candidates(
        [f"n{i}" for i in range(n)],
        sites,
        np.minimum(total_cores, column(0, 1, 4, 8, np.inf)),
        total_cores,
        np.minimum(total_memory, column(0, 4, np.inf)),
        total_memory,
        {site: draw(st.integers(0, most)) for site, most in total.items()},
        total,
        np.array(draw(st.lists(st.lists(st.booleans(), min_size=n, max_size=n), min_size=groups, max_size=groups)),
                 dtype=bool).reshape(groups, n),
        np.array(draw(st.lists(st.lists(rank, min_size=n, max_size=n), min_size=groups, max_size=groups)),
                 dtype=float).reshape(groups, n),
    )  # fmt: skip


@given(requests(), policies(), usages())
def test_contributions_are_between_0_and_1_and_all_jobs_are_ordered(
    jobs: list[Request], policy: SchedulingPolicy, usage: Usage
) -> None:
    found = prioritise(jobs, policy, usage, NOW)
    for part in (found.fixed, found.share, found.waiting, found.deadline):
        assert ((part >= 0) & (part <= 1)).all()
    assert sorted(found.order.tolist()) == list(range(len(jobs)))
    rows = [(-found.precedence[i], -found.total[i] if found.precedence[i] < OVERDUE else 0.0, jobs[i].submitted, i)
            for i in found.order.tolist()]  # fmt: skip
    assert rows == sorted(rows), "by precedence, then priority, then arrival"


@settings(max_examples=50)
@given(requests(), policies(), usages(), st.data())
def test_more_of_what_counts_never_puts_a_job_further_back(
    jobs: list[Request], policy: SchedulingPolicy, usage: Usage, data: st.DataObject
) -> None:
    """Of two jobs otherwise alike, the one that has more goes first; shares apart, which make them take turns."""
    policy = SchedulingPolicy(jobs=JobPolicies(policy.jobs.fixed, ShareSetting(0.0), policy.jobs.waiting,
                                               policy.jobs.deadline))  # fmt: skip
    twin = Request("low", "alice", "p", NOW - 5, fixed=3, deadline=NOW + 5 * DAY)
    ahead = data.draw(st.sampled_from([
        twin._replace(id="high", fixed=4),
        twin._replace(id="high", submitted=NOW - 6),
        twin._replace(id="high", deadline=NOW + 4 * DAY),
    ]))  # fmt: skip
    all_jobs = data.draw(st.permutations([*jobs, ahead, twin]))
    found = prioritise(all_jobs, policy, usage, NOW)
    of = {job.id: float(found.total[i]) for i, job in enumerate(all_jobs)}
    assert of["high"] >= of["low"]


@given(st.floats(0, 1e9), st.floats(0, 1e9), st.floats(1, 1e7))
def test_a_nearer_deadline_never_counts_less(near: float, far: float, half: float) -> None:
    part = deadline_part(np.array(sorted((near, far))), half)
    assert 1 >= part[0] >= part[1] >= 0


@given(st.lists(st.tuples(st.floats(0, 50 * DAY), st.floats(0, 1e6)), max_size=20), st.floats(0, 60 * DAY),
       st.integers(1, 10))  # fmt: skip
def test_use_is_never_forgotten_too_little_nor_counted_twice(
    charges: list[tuple[float, float]], later: float, depth: int
) -> None:
    windows = Windows()
    for at, seconds in charges:
        windows = charge(windows, at, seconds, DAY, depth)
    now = max((at for at, _ in charges), default=0.0)
    fresh = remembered(windows, now, DAY, depth)
    assert fresh <= sum(seconds for _, seconds in charges) * (1 + 1e-9)
    assert remembered(windows, now + later, DAY, depth) <= fresh
    assert remembered(windows, now + depth * DAY, DAY, depth) == 0
    forwards = Windows()
    for at, seconds in sorted(charges):
        forwards = charge(forwards, at, seconds, DAY, depth)
    assert abs(remembered(forwards, now, DAY, depth) - fresh) <= 1e-6 * (1 + fresh), "in whatever order it is told"


@given(st.lists(st.floats(0, 1e5), min_size=1, max_size=8), st.floats(0, 1e5), st.floats(1, 1e5))
def test_bans_grow_and_have_an_end(failures: list[float], longest: float, growth: float) -> None:
    ban, now = None, NOW
    for wait in failures:
        now += wait
        before = ban.until if ban is not None else NOW
        ban = banned(ban, now, longest, growth)
        assert before <= ban.until <= max(before, now + longest)


columns = st.integers(1, 8).flatmap(
    lambda n: st.tuples(
        st.lists(st.floats(-1e9, 1e9), min_size=n, max_size=n), st.lists(st.booleans(), min_size=n, max_size=n)
    )
)


@given(columns)
def test_resources_contributions_are_between_0_and_1_and_keep_the_order(given: tuple[list[float], list[bool]]) -> None:
    values, usable = np.array(given[0]), np.array(given[1])
    rank, lost = rank_part(values, usable)
    assert not lost
    for part, of in (
        (rank, values),
        (fixed_part(np.abs(values), usable), np.abs(values)),
        (usage_part(np.abs(values), usable), -np.maximum(np.abs(values), 1.0)),
        (failure_part(np.abs(values), usable), np.abs(values)),
    ):
        mine, order = part[usable], np.argsort(of[usable])
        assert ((mine >= 0) & (mine <= 1)).all()
        assert (np.diff(mine[order]) >= -1e-12).all()


@settings(max_examples=100)
@given(st.data(), requests(groups=2), resources(groups=2), policies(), usages())
def test_a_cycle_gives_nothing_that_is_not_there_and_explains_itself(
    data: st.DataObject, jobs: list[Request], where: Candidates, policy: SchedulingPolicy, usage: Usage
) -> None:
    found = assign(jobs, where, policy, usage, NOW)
    assert sorted(d.job for d in found.decisions) == sorted(job.id for job in jobs)
    assert all((d.row == NOWHERE) == bool(d.why) for d in found.decisions), "who gets nothing is told why"
    by_id = {job.id: job for job in jobs}
    rows = {d.job: d.row for d in found.decisions if d.row != NOWHERE}
    for row, name in enumerate(where.names):
        mine = [by_id[job] for job, at in rows.items() if at == row]
        assert sum(job.cores for job in mine) <= where.free_cores[row]
        assert sum(job.memory for job in mine) <= where.free_memory[row]
        for job in mine:
            assert where.eligible[job.group][row] and not {name, where.sites[row]} & job.avoid
    limits = policy.limits
    for site in set(where.sites):
        count = sum(where.sites[row] == site for row in rows.values())
        assert count <= where.free_places[site] and count <= limits.of_site(site)
    for user in USERS:
        count = sum(by_id[job].user == user for job in rows)
        assert count == 0 or count + usage.running_users.get(user, 0) <= limits.of_user(user)
    assert len(rows) <= (limits.cycle or len(jobs))
    again = assign(jobs, where, policy, usage, NOW)
    assert again.decisions == found.decisions, "a decision is replayed from what went in"
    if jobs:
        asked = data.draw(st.sampled_from(jobs)).id
        told = explain(found, asked)
        assert len(told.candidates) == len(where.names) and all(c.verdict for c in told.candidates)
        chosen = [c.site for c in told.candidates if c.chosen]
        assert chosen == [name for name in [found.placed.get(asked)] if name is not None]
        best = max((c.rank for c in told.candidates if c.chosen and c.rank is not None), default=None)
        for c in told.candidates:
            if best is not None and c.rank is not None and c.rank > best:
                assert not c.verdict.startswith("suits"), "what suits better was out for want of room"


@settings(max_examples=40)
@given(
    st.lists(
        st.lists(st.tuples(st.sampled_from(USERS[1:]), st.integers(0, 19), st.sampled_from([1.0, 3.0])), max_size=5),
        min_size=1,
        max_size=8,
    ),
    policies(),
    st.integers(1, 3),
)
def test_no_job_starves(arrivals: list[list[tuple[str, int, float]]], policy: SchedulingPolicy, length: int) -> None:
    """Whatever keeps coming, of whatever priority and size: the least job is placed, though it needs all of a node."""
    policy = SchedulingPolicy(jobs=JobPolicies(policy.jobs.fixed, policy.jobs.share, WaitingSetting(0.5, "3h"),
                                               policy.jobs.deadline))  # fmt: skip
    hour, victim = 3600.0, Request("victim", "alice", "p", NOW, cores=4.0, seconds=3600.0, fixed=0)
    waiting, running = [victim], list[tuple[int, Request]]()
    for tick in range(1, 60):
        now = NOW + tick * hour
        running = [(until, job) for until, job in running if until > tick]
        for i, (user, fixed, cores) in enumerate(arrivals[tick % len(arrivals)]):
            waiting.append(Request(f"{tick}.{i}", user, "q", now, cores=cores, seconds=3600.0, fixed=fixed))
        free = 4.0 - sum(job.cores for _, job in running)
        inf, one = np.array([np.inf]), np.ones((1, 1))
        where = Candidates(["n"], ["n"], np.array([free]), np.array([4.0]), inf, inf, {"n": 9}, {"n": 9}, one > 0, one)
        placed = assign(waiting, where, policy, Usage(), now).placed
        if "victim" in placed:
            return
        running += [(tick + length, job) for job in waiting if job.id in placed]
        waiting = [job for job in waiting if job.id not in placed]
    raise AssertionError("59 hours, and it has not been placed")
