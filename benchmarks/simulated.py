"""Figure 5: 1,000 jobs through the simulated site on 100 nodes, with the store on a disk.

Time is virtual at the site and real in the controller: what is measured is the controller's own work. Each run is a
process of its own. The simulated site runs in the same process; its share of the CPU time is in the figures, so that
they are upper bounds.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from pathlib import Path

from benchmarks.report import Report, figure
from gridhypervisor.execution.controller import Controller
from gridhypervisor.execution.garbage import spare_records
from gridhypervisor.execution.logs import Logs
from gridhypervisor.execution.ports import StagedInput
from gridhypervisor.execution.session import Session
from gridhypervisor.model.commit import Birth
from gridhypervisor.model.records import Event, Job, JobState, Site, SiteKind, Vm
from gridhypervisor.model.spec import JobSpec, ResourcesSpec
from gridhypervisor.model.wire import ImageManifest, Layer
from gridhypervisor.simulation.loop import VirtualLoop
from gridhypervisor.simulation.site import SimulatedSite
from gridhypervisor.store import open_store

JOBS, NODES, RUNS = 1000, 100, 15
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
    controller = Controller(store, {}, logs, clock=clock, cpu=time.process_time)
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


async def serve(folder: Path, jobs: int) -> dict[str, float]:
    """Bring the jobs through; what it took."""
    loop = asyncio.get_running_loop()
    site = SimulatedSite("grid", loop, nodes=NODES)
    async with open_grid(folder, site, lambda: EPOCH + loop.time()) as controller:
        before, began = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
        await create(controller, folder, range(jobs), 60)
        while controller.cases:
            await asyncio.sleep(1.0)
        wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF)
        done = len(controller.store.jobs(states=["done"], limit=jobs + 1))
    assert done == jobs and site.batch.submitted == jobs, f"{done} of {jobs} jobs done"
    cpu = (after.ru_utime + after.ru_stime) - (before.ru_utime + before.ru_stime)
    return {"wall": wall, "cpu": cpu, "rss": after.ru_maxrss / 1024, "virtual": loop.time()}


def once(jobs: int) -> dict[str, float]:
    # Beside the figures: a real disk, where a temporary folder may be memory.
    Path("build").mkdir(exist_ok=True)
    spare_records()  # as the service does
    with tempfile.TemporaryDirectory(dir="build") as folder, asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(serve(Path(folder), jobs))


def measure(runs: int | None) -> Report:
    results = []
    for _ in range(runs or RUNS):
        child = subprocess.run([sys.executable, "-m", "benchmarks.simulated"], stdout=subprocess.PIPE, check=True)
        results.append(json.loads(child.stdout))
    return Report(
        f"{JOBS} jobs through the simulated site on {NODES} nodes, store on disk",
        (
            figure("throughput", "jobs/s", [JOBS / r["wall"] for r in results], "GridWay 103, OpenNebula 55"),
            figure("CPU", "ms a job", [1000 * r["cpu"] / JOBS for r in results], "at most 20"),
            figure("resident memory, highest", "MiB", [r["rss"] for r in results]),
        ),
        notes=("CPU and memory hold controller, store and the simulated site together.",),
    )


if __name__ == "__main__":
    json.dump(once(JOBS), sys.stdout)
