"""A list of a store with 20,000 jobs, asked of the service itself: real HTTP, real store, 30 requests a second.

Each request is for a page of 100 jobs, as `ghv list` asks for it, behind a job chosen at random; its latency counts
from when it was due, so that one that waits for another is as slow as its user finds it. Once in each run all 20,000
are read too, page by page, 1,000 at a time.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from benchmarks.lab import open_lab
from benchmarks.report import Report, figure
from gridhypervisor.client.launcher import connect, find_paths
from gridhypervisor.client.sync import Client
from gridhypervisor.model.commit import Birth, Commit, JobRecords
from gridhypervisor.model.records import Allocation, AllocationState, Event, Job, JobState, PilotJob, Times, Vm
from gridhypervisor.model.spec import JobSpec
from gridhypervisor.model.wire import ImageManifest
from gridhypervisor.store import open_store

JOBS, RATE, SECONDS, RUNS = 20_000, 30, 10.0, 15
PAGE, MOST = 100, 1000
OWNER = "me", "default"


def fill(path: Path, jobs: int = JOBS) -> None:
    """So many jobs that were run and are over."""
    store = open_store(path)
    spec = JobSpec("image", ("program", "--with", "arguments"), outputs=("result",))
    for start in range(0, jobs, MOST):
        births = [
            Birth(Job("", *OWNER, f"job-{start + n}", spec, "/home/me/results", "/home/me", ImageManifest(()), "0" * 64,
                      1e9 + start + n), Vm("", *OWNER, ""), Event(1e9, *OWNER, "", "job", "", "", JobState.PENDING))
            for n in range(MOST)
        ]  # fmt: skip
        accepted = store.commit([over(records) for records in store.create_jobs(births)])
        assert all(accepted)
    store.close()


def over(records: JobRecords) -> Commit:
    job, vm = records.job, records.vm
    pilot = PilotJob(f"g-{job.id}-1", *OWNER, "grid", batch_id=job.id, version=1)
    times = Times(job.created, cleaned=job.created + 60, since=job.created + 60)
    a = Allocation(
        f"{vm.id}.1", *OWNER, job.id, vm.id, 1, pilot.name, "grid", times, AllocationState.CLEANED, version=1
    )
    done = replace(job, state=JobState.DONE, ended=job.created + 60, exit_code=0, attempts=1, version=2)
    return Commit((done, replace(vm, epoch=1, version=2), pilot, a))


def latencies(client: Client) -> list[float]:
    """Of the requests of one run, in seconds from when each was due."""
    choose, begun = random.Random(0), time.perf_counter() + 0.1

    def ask(number: int, before: str) -> float:
        due = begun + number / RATE
        time.sleep(max(0.0, due - time.perf_counter()))
        assert len(client.jobs(before=before, limit=PAGE)) == PAGE
        return time.perf_counter() - due

    pages = [f"j{choose.randint(PAGE + 1, JOBS)}" for _ in range(int(RATE * SECONDS))]
    with ThreadPoolExecutor(RATE) as threads:
        return sorted(threads.map(ask, range(len(pages)), pages))


def all_pages(client: Client) -> Iterator[int]:
    """How many jobs each page has."""
    before = ""
    while page := client.jobs(before=before, limit=MOST):
        yield len(page)
        before = page[-1].id


def measure(runs: int | None = None) -> Report:
    worst, usual, walks = [], [], []
    with open_lab() as lab:
        fill(lab.data / "store.sqlite")
        lab.ghv("site", "check", "local")  # the service is up, and has made what it makes when it is new
        client = connect(find_paths(lab.environment))
        for _ in range(runs or RUNS):
            found = latencies(client)
            worst.append(found[int(0.99 * len(found))])
            usual.append(found[len(found) // 2])
            begun = time.perf_counter()
            assert sum(all_pages(client)) == JOBS
            walks.append(time.perf_counter() - begun)
    return Report(
        f"A list of {JOBS:,} jobs, {RATE} requests a second",
        (
            figure(f"a page of {PAGE}, the slowest of 100", "s", worst, "p99 under 0.2"),
            figure(f"a page of {PAGE}, the median", "s", usual),
            figure(f"all {JOBS:,}, {MOST:,} a page", "s", walks),
        ),
        notes=("From when a request was due to its jobs in the client; service, clients and store on one machine.",),
    )
