"""Whom free places are offered to, where the policy limits how many jobs somebody has."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import cast

from gridhypervisor.execution.cases import Cases
from gridhypervisor.execution.places import SPARE, Places
from gridhypervisor.execution.ports import Session
from gridhypervisor.execution.scheduling import Scheduling
from gridhypervisor.model.policy import Limits, PolicyRecord, SchedulingPolicy
from gridhypervisor.model.records import Allocation, Job, Times, Vm
from gridhypervisor.model.spec import JobSpec
from gridhypervisor.model.wire import ImageManifest
from gridhypervisor.planning.world import Case, SiteFacts

SITES, MANY = 4, 300


@dataclass
class Site:
    """Of a session what places are offered by."""

    facts: SiteFacts
    observed: dict[str, object] = field(default_factory=dict)


def waiting(job: str, *allocations: Allocation) -> Case:
    records = Job(job, "ada", "default", "test", JobSpec("image", ("true",)), "/r", "/f", ImageManifest(()), "0" * 64,
                  1.0, version=1)  # fmt: skip
    return Case(records, Vm(job, "ada", "default", job), allocations, {}, {})


def test_a_place_that_is_freed_wakes_few_and_nobody_who_may_have_no_more() -> None:
    cases, woken = Cases({}), list[str]()
    sites = {f"s{n}": Site(SiteFacts(f"s{n}", up=True, max_jobs=MANY)) for n in range(SITES)}
    scheduling = Scheduling(cases)
    scheduling.record = PolicyRecord(SchedulingPolicy(limits=Limits(user=1)), 1)
    places = Places(cast(dict[str, Session], sites), cases, scheduling, woken.append, lambda: 1.0)
    for number in range(MANY):
        cases.put(waiting(f"j{number}"))
        places.wait(f"j{number}", "")
    places.freed("s0")
    assert set(woken) == {f"j{number}" for number in range(SPARE + 1)}, "one place is given away, wherever that is"
    woken.clear()
    cases.put(waiting("j0", Allocation("j0.1", "ada", "default", "j0", "j0", 1, "pilot", "s1", Times(1.0, 1.0))))
    places.leave("j0")
    places.freed("s0")
    assert not woken, "the user has all that the policy allows"
