"""Sites chosen for 10,000 waiting jobs over 20 sites with 1,000 nodes, and for one job after something has changed.

The planner's own part, without store and sites: what the sites publish, requirements and rank over it, the policy, and
who gets what. Once with jobs that ask for nothing in particular, once with fifty different requirements among them.
"""

from __future__ import annotations

import time
from dataclasses import replace

from benchmarks.report import Report, figure
from gridhypervisor.model.policy import SchedulingPolicy
from gridhypervisor.model.records import Job, Site, SiteKind
from gridhypervisor.model.spec import JobSpec, ResourcesSpec
from gridhypervisor.model.wire import HypervisorKind, ImageManifest
from gridhypervisor.planning.past import SitePast
from gridhypervisor.planning.placement import place_all
from gridhypervisor.planning.policies.usage import Usage
from gridhypervisor.planning.published import Published
from gridhypervisor.planning.suiting import Grid, Seeker
from gridhypervisor.planning.world import SiteFacts

JOBS, SITES, NODES, PLACES, USERS, RUNS = 10_000, 20, 50, 100, 100, 15
NOW = 1e6


def waiting(asking: bool, count: int = JOBS, kinds: int = 50) -> list[Seeker]:
    made = []
    for number in range(count):
        requirements, rank = (f"Memory >= {1024 + number % kinds}", "-Jobs") if asking else ("", "")
        resources = ResourcesSpec(walltime="1h")
        spec = JobSpec("image", ("true",), resources=resources, requirements=requirements, rank=rank)
        who = f"u{number % USERS}", "default"
        made.append(Seeker(Job(f"j{number}", *who, "", spec, "/", "/", ImageManifest(()), "", NOW - number % 1000)))
    return made


def sites() -> dict[str, SiteFacts]:
    return {
        name: SiteFacts(name, up=True, max_jobs=PLACES, max_cpus=16, max_memory=64 << 30,
                        site=Site(name, "me", "default", SiteKind.SLURM, host=name))
        for name in (f"s{number}" for number in range(SITES))
    }  # fmt: skip


def measure(runs: int | None = None) -> Report:
    figures = []
    for words, asking in (("jobs that ask for nothing", False), ("fifty different requirements", True)):
        jobs = waiting(asking)
        cycles, events = [], []
        for _ in range(runs or RUNS):
            facts, published = sites(), Published()
            past = {
                name: SitePast(nodes={f"{name}n{node}": frozenset({HypervisorKind.UML}) for node in range(NODES)})
                for name in facts
            }

            def choose(some: list[Seeker]) -> float:
                begun = time.perf_counter()
                catalogue = published.update(facts, past, NOW)  # noqa: B023 (called within this very round)
                place_all(some, Grid(facts, SchedulingPolicy(), Usage(), NOW, catalogue, past))  # noqa: B023
                return time.perf_counter() - begun

            cycles.append(choose(jobs))
            facts["s7"] = replace(facts["s7"], alive=1)
            events.append(choose(jobs[:1]) * 1000)
        figures.append(figure(f"a cycle over all: {words}", "s", cycles, "well under a second"))
        figures.append(figure(f"one job, after a change at a site: {words}", "ms", events, "milliseconds"))
    return Report(f"Placing: {JOBS:,} jobs, {SITES} sites, {SITES * NODES:,} nodes", tuple(figures))
