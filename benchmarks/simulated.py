"""Figure 5: 1,000 jobs through the simulated site on 100 nodes, and 10,000 on 1,000, with the store on a disk.

Time is virtual at the site and real in the controller: what is measured is the controller's own work, from the first
submission until the last result is home and its entry removed. Each run is a process of its own. The simulated site
runs in the same process; its share of the CPU time is in the figures, so that they are upper bounds. Where the time
goes is asked in runs apart, for asking costs; and what the disk could do at most, in the same folder.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from pathlib import Path

from benchmarks.report import Report, figure
from benchmarks.shares import Shares
from gridhypervisor.execution.controller import Controller
from gridhypervisor.execution.copies import Copies
from gridhypervisor.execution.decisions import Decisions
from gridhypervisor.execution.garbage import spare_records
from gridhypervisor.execution.logs import Logs
from gridhypervisor.execution.ports import StagedInput
from gridhypervisor.execution.results import keep
from gridhypervisor.execution.session import Session
from gridhypervisor.model.commit import Birth
from gridhypervisor.model.records import Event, Job, JobState, Site, SiteKind, Vm
from gridhypervisor.model.spec import JobSpec, ResourcesSpec
from gridhypervisor.model.wire import ImageManifest, Layer
from gridhypervisor.simulation.loop import VirtualLoop
from gridhypervisor.simulation.site import SimulatedSite
from gridhypervisor.store import open_store

JOBS, NODES, RUNS = 1000, 100, 15
LARGE, LARGE_RUNS = 10, 5
"""How many times as many jobs and nodes the larger figure has, and how often it is taken: it takes long."""
ASKED = 3
"""Runs that are asked where their time goes."""
TRIES = 300
"""Files and folders that are made to see what the disk can do."""
EPOCH = 1_000_000.0


class NothingToStage:
    """The image has no layers and the jobs no inputs: bytes are another figure's."""

    def paths(self, layer: Layer) -> tuple[Path, Path]:
        raise KeyError(layer.digest)

    async def plan(self, job: Job, progress: Callable[[str], None]) -> Sequence[StagedInput]:
        return ()


@contextlib.asynccontextmanager
async def open_grid(
    folder: Path,
    site: SimulatedSite,
    clock: Callable[[], float],
    kind: type[Session] = Session,
    max_jobs: int = 0,
) -> AsyncIterator[Controller]:
    """A controller at work over this site, with its store and logs in the folder; 0 jobs at most: as many as usual."""
    store = open_store(folder / "store.sqlite")
    logs = Logs(folder / "logs")
    decisions = Decisions(folder / "decisions.jsonl")
    copies = Copies(folder / "checkpoints", os.urandom)
    controller = Controller(store, {}, logs, copies, clock=clock, cpu=time.process_time, decisions=decisions)
    nothing = NothingToStage()
    session = kind(
        Site("grid", "me", "default", SiteKind.FORK, max_jobs=max_jobs),
        lambda workdir, bundle: site.driver,
        site.transport,
        controller.observer,
        installation=store.installation,
        layers=nothing,
        inputs=nothing,
        logs=logs,
        copies=copies,
        clock=clock,
        jitter=lambda: 1.0,
    )
    await controller.load()
    controller.add_session("grid", session)
    tasks = [asyncio.create_task(controller.run()), asyncio.create_task(session.run())]
    try:
        yield controller
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await controller.close()
        store.close()


async def create(controller: Controller, folder: Path, numbers: Iterable[int], seconds: float) -> None:
    """Make jobs that last so long, asked for by as many users at once."""
    spec = JobSpec("image", ("sleep", str(seconds)), outputs=("result",), resources=ResourcesSpec(walltime="1d"))
    births = []
    for number in numbers:
        job = Job("", "me", "default", "bench", spec, str(folder / "results" / str(number)), str(folder),
                  ImageManifest(()), "0" * 64, controller.clock(), version=1)  # fmt: skip
        event = Event(controller.clock(), "me", "default", "", "job", "", "", JobState.PENDING)
        births.append(controller.create(Birth(job, Vm("", "me", "default", ""), event)))
    await asyncio.gather(*births)


async def serve(folder: Path, jobs: int, nodes: int, shares: Shares | None) -> dict[str, float]:
    """Bring the jobs through; what it took."""
    loop = asyncio.get_running_loop()
    site = SimulatedSite("grid", loop, nodes=nodes)
    async with open_grid(folder, site, lambda: EPOCH + loop.time()) as controller:
        with shares.taken() if shares is not None else contextlib.nullcontext():
            before, began = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
            await create(controller, folder, range(jobs), 60)
            while controller.cases:
                await asyncio.sleep(1.0)
            wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF)
        done = len(controller.store.jobs(states=["done"], limit=jobs + 1))
    assert done == jobs and site.batch.submitted == jobs, f"{done} of {jobs} jobs done"
    cpu = (after.ru_utime + after.ru_stime) - (before.ru_utime + before.ru_stime)
    return {"wall": wall, "cpu": cpu, "rss": after.ru_maxrss / 1024, "virtual": loop.time()}


def once(jobs: int, nodes: int = NODES, shares: Shares | None = None) -> dict[str, float]:
    # Beside the figures: a real disk, where a temporary folder may be memory.
    Path("build").mkdir(exist_ok=True)
    spare_records()  # as the service does
    with tempfile.TemporaryDirectory(dir="build") as folder, asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(serve(Path(folder), jobs, nodes, shares))


def disk() -> dict[str, float]:
    """Milliseconds that the disk takes for what every job asks of it, one after another."""

    def each(what: Callable[[Path], object]) -> float:
        begun = time.perf_counter()
        for number in range(TRIES):
            what(Path(folder, str(number)))
        return 1000 * (time.perf_counter() - begun) / TRIES

    def sure(path: Path) -> None:
        keep({path / "sure": b"x"})

    with tempfile.TemporaryDirectory(dir="build") as folder:
        return {
            "a folder made": each(Path.mkdir),
            "a file made": each(lambda path: (path / "file").write_bytes(b"x")),
            "a file made, and surely on the disk": each(sure),
        }


def child(*words: object) -> dict[str, float]:
    """A run in a process of its own: so many jobs and nodes, and whether it is asked where the time goes."""
    command = [sys.executable, "-m", "benchmarks.simulated", *map(str, words)]
    answer: dict[str, float] = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
    return answer


def measure(runs: int | None) -> Report:
    results = [child(JOBS, NODES) for _ in range(runs or RUNS)]
    large = [child(LARGE * JOBS, LARGE * NODES) for _ in range(min(runs or RUNS, LARGE_RUNS))]
    asked, limits = [child(JOBS, NODES, "asked") for _ in range(ASKED)], [disk() for _ in range(ASKED)]
    walls, larger = ([1000 * r["wall"] / n for r in found] for found, n in ((results, JOBS), (large, LARGE * JOBS)))
    parts = sorted(asked[0], key=lambda part: -asked[0][part])
    return Report(
        f"{JOBS} jobs through the simulated site on {NODES} nodes, and ten times as many, store on disk",
        (
            figure("throughput", "jobs/s", [1000 / wall for wall in walls], "1000; GridWay 103, OpenNebula 55"),
            figure("time", "ms a job", walls),
            figure("CPU", "ms a job", [1000 * r["cpu"] / JOBS for r in results], "at most 20"),
            figure("resident memory, highest", "MiB", [r["rss"] for r in results]),
            figure("ten times as many: time", "ms a job", larger),
            figure("ten times as many: ratio", "", [wall / statistics.median(walls) for wall in larger], "at most 1.3"),
            *(figure(f"of the time: {p}", "%", [100 * a.get(p, 0.0) for a in asked]) for p in parts),
            *(figure(f"the disk: {what}", "ms", [limit[what] for limit in limits]) for what in limits[0]),
        ),
        notes=("CPU and memory hold controller, store and the simulated site together.",),
        enough=ASKED,
    )


def main() -> None:
    jobs, nodes, *asked = sys.argv[1:]
    shares = Shares() if asked else None
    found = once(int(jobs), int(nodes), shares)
    if shares is not None:
        found = {part: count / shares.of.total() for part, count in shares.of.items()}
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
