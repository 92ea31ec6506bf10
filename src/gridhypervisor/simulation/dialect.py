"""How to talk to the simulated batch system: the fork queue's words. See `execution.ports.Driver`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from gridhypervisor.model.batch import BatchJob, BatchState, Limits, Listing, Rates, Submission, Submitted
from gridhypervisor.model.capacity import Capacity, NodeRow, NodeState, capacity, state_of
from gridhypervisor.model.records import Site
from gridhypervisor.model.wire import Command, CommandResult

_QUEUE = ("sh", "start", "forkq", "--dir", "forkq")

BUSY = 11
"""Its exit code for a submission that it may take later."""

_STATES = {
    "PENDING": BatchState.PENDING,
    "RUNNING": BatchState.RUNNING,
    "ENDED": BatchState.ENDED,
    "NODE_LOST": BatchState.NODE_LOST,
}


@lru_cache(1 << 14)
def _job(line: str) -> BatchJob:
    """One line of a listing; remembered, for most lines come again and again."""
    said = json.loads(line)
    state = _STATES.get(said["state"], BatchState.UNKNOWN)
    return BatchJob(said["id"], said["name"], state, said["reason"], said["node"], said["code"], said["restarts"])


@dataclass(frozen=True)
class Dialect:
    """Lags and interval in seconds."""

    listing_lag: float = 0.0
    spool_lag: float = 0.0
    listing_interval: float = 2.0
    rates: Rates = field(default_factory=Rates)
    max_cpus: int | None = None  # of one node; None: no limit known
    idle: float = 0.0  # seconds that a pilot waits for another job; 0: it serves its own alone

    def max_jobs(self, site: Site) -> int:
        return site.max_jobs or 1000

    def probe(self) -> list[Command]:
        return []

    def limits(self, results: Sequence[CommandResult]) -> Limits:
        return Limits(version="simulated", max_cpus=self.max_cpus)

    def submit(self, jobs: Sequence[Submission], site: Site) -> list[Command]:
        return [
            Command(
                (
                    *_QUEUE,
                    "submit",
                    "--name",
                    j.name,
                    "--cpus",
                    str(j.cpus),
                    "--walltime",
                    str(j.walltime),
                    *(("--pool", j.warm.pool, "--idle", str(j.warm.idle)) if j.warm is not None else ()),
                ),
                stdin=f"exec sh {j.start} pilot --scratch {j.scratch} --entry {j.entry}\n",
            )
            for j in jobs
        ]

    def submitted(self, jobs: Sequence[Submission], results: Sequence[CommandResult]) -> dict[str, Submitted]:
        return {
            job.name: Submitted(True, result.stdout.strip())
            if result.code == 0
            else Submitted(None if result.code is None else False, message=result.stderr, busy=result.code == BUSY)
            for job, result in zip(jobs, results, strict=True)
        }

    def query(self, installation: str) -> list[Command]:
        return [Command((*_QUEUE, "list"))]

    def listing(self, results: Sequence[CommandResult], as_of: float) -> tuple[Listing | None, str]:
        [result] = results
        if result.code != 0:
            return None, result.stderr
        jobs = (_job(line) for line in result.stdout.splitlines())
        return Listing(as_of, {job.name: job for job in jobs}), ""

    def cancel(self, jobs: Sequence[tuple[str, str]]) -> list[Command]:
        return [Command((*_QUEUE, "cancel", *(batch_id or name for name, batch_id in jobs)))]

    def survey(self) -> list[Command]:
        return [Command((*_QUEUE, "nodes"))]

    def capacity(self, results: Sequence[CommandResult]) -> Capacity | None:
        [result] = results
        if result.code != 0:
            return None
        said = json.loads(result.stdout)
        rows = [
            NodeRow(name, NodeState.DOWN, cpus, 0) if lost else NodeRow(name, state_of(cpus, free), cpus, free)
            for name, cpus, free, lost in said["nodes"]
        ]
        return capacity(rows, said["waiting"])
