"""The scheduling policies alone: one planning cycle over 10,000 jobs and 1,000 resources, and one explanation of it.

No matching, no store, no site: what the requirements allow is drawn beforehand, seven resources of ten for each kind
of job. Once as it mostly is: fifty kinds of jobs, a hundred users. Once at its worst: every job has requirements of its
own, every user failures and times at a tenth of the resources, so that nothing is worked out for two jobs at once.
"""

from __future__ import annotations

import time

import numpy as np

from benchmarks.report import Report, figure
from gridhypervisor.model.policy import SchedulingPolicy
from gridhypervisor.planning.policies.cycle import assign
from gridhypervisor.planning.policies.jobs import Request
from gridhypervisor.planning.policies.resources import Candidates
from gridhypervisor.planning.policies.usage import Record, Usage
from gridhypervisor.planning.policies.verdicts import explain

JOBS, RESOURCES, USERS, RUNS = 10_000, 1_000, 100, 15
A_SITE = 50
"""Nodes of a site."""
CORES = {"room for all": 64.0, "room for a third": 8.0}
"""Free cores of a node; a job wants one to four."""
NOW = 1e6


def grid(kinds: int, cores: float) -> tuple[list[Request], Candidates]:
    draw = np.random.default_rng(1)
    jobs = [
        Request(f"j{i}", f"u{user}", "default", NOW - ago, cores=float(wants), seconds=3600.0, group=group)
        for i, (user, ago, wants, group) in enumerate(
            zip(
                draw.integers(USERS, size=JOBS).tolist(),
                draw.integers(1000, size=JOBS).tolist(),
                draw.integers(1, 5, size=JOBS).tolist(),
                draw.integers(kinds, size=JOBS).tolist(),
                strict=True,
            )
        )
    ]
    names, sites = [f"n{i}" for i in range(RESOURCES)], [f"s{i // A_SITE}" for i in range(RESOURCES)]
    each, plenty = np.full(RESOURCES, cores), np.full(RESOURCES, np.inf)
    places = dict.fromkeys(sites, JOBS)
    eligible = draw.random((kinds, RESOURCES)) < 0.7
    return jobs, Candidates(
        names, sites, each, each, plenty, plenty, places, places, eligible, draw.random((kinds, RESOURCES))
    )


def measure(runs: int | None = None) -> Report:
    past = {f"u{i}": {f"n{j}": Record(3, 1, 100.0, 50.0 + j) for j in range(0, RESOURCES, 10)} for i in range(USERS)}
    figures = []
    for words, kinds, usage in (
        ("50 kinds of jobs", 50, Usage()),
        ("every job its own kind, every user a past", JOBS, Usage(records=past)),
    ):
        for room, cores in CORES.items():
            jobs, candidates = grid(kinds, cores)
            cycles, asks = [], []
            for _ in range(runs or RUNS):
                begun = time.perf_counter()
                found = assign(jobs, candidates, SchedulingPolicy(), usage, NOW)
                planned = time.perf_counter()
                explain(found, found.decisions[-1].job)
                cycles.append(planned - begun)
                asks.append(time.perf_counter() - planned)
            figures.append(figure(f"a cycle: {words}, {room}", "s", cycles, "well under a second"))
            figures.append(figure(f"explaining its last job: {words}, {room}", "s", asks))
    return Report(f"Policies: {JOBS:,} jobs, {RESOURCES:,} resources", tuple(figures))
