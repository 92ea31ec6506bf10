"""The planner alone: 2,000 VMs that want places on 5,000 nodes of 20 sites, with plain requirements.

Once for all of them, over a catalogue of the nodes that is there, as it always is: it is kept up as things happen. And
again after one event, a place that has come free, for those whom it wakes: one for the place, and as many more as are
asked in case that some cannot use it.
"""

from __future__ import annotations

import time
from dataclasses import replace

from benchmarks.placing import NOW, sites, waiting
from benchmarks.report import Report, figure
from gridhypervisor.execution.places import SPARE
from gridhypervisor.model.policy import SchedulingPolicy
from gridhypervisor.model.wire import HypervisorKind
from gridhypervisor.planning.past import SitePast
from gridhypervisor.planning.placement import place_all
from gridhypervisor.planning.policies.usage import Usage
from gridhypervisor.planning.published import Published
from gridhypervisor.planning.suiting import Grid, Seeker

JOBS, NODES, RUNS = 2_000, 250, 15
KINDS = 4
"""Different requirements among the jobs."""


def measure(runs: int | None = None) -> Report:
    jobs = waiting(True, JOBS, KINDS)
    learnt, plans, events = [], [], []
    for _ in range(runs or RUNS):
        facts, published = sites(), Published()
        past = {
            name: SitePast(nodes={f"{name}n{node}": frozenset({HypervisorKind.UML}) for node in range(NODES)})
            for name in facts
        }

        def choose(some: list[Seeker]) -> float:
            begun = time.perf_counter()
            catalogue = published.update(facts, past, NOW)  # noqa: B023 (called within this very round)
            found = place_all(some, Grid(facts, SchedulingPolicy(), Usage(), NOW, catalogue, past))  # noqa: B023
            took = time.perf_counter() - begun
            assert sum(choice.site is not None for choice in found.values()) == min(len(some), room())
            return 1000 * took

        def room() -> int:
            return sum(each.max_jobs - each.alive for each in facts.values())  # noqa: B023

        begun = time.perf_counter()
        published.update(facts, past, NOW)
        learnt.append(1000 * (time.perf_counter() - begun))
        plans.append(choose(jobs))
        facts = {name: replace(each, alive=each.max_jobs) for name, each in facts.items()}
        choose(jobs[:1])
        facts["s7"] = replace(facts["s7"], alive=facts["s7"].max_jobs - 1)
        events.append(choose(jobs[: 1 + SPARE]))
    return Report(
        f"The planner alone: {JOBS:,} VMs, {len(facts) * NODES:,} nodes",
        (
            figure("a plan for all", "ms", plans, "under 100"),
            figure(f"a plan after one event, for the {1 + SPARE} whom it wakes", "ms", events, "under 5"),
            figure("learning all nodes at once, once", "ms", learnt),
        ),
    )
