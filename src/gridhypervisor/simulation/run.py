"""Runs a workload through the whole controller over simulated sites, in virtual time: planner, loop, wire.

What is not the product's own here: the sites (see this package), the time, and where the jobs come from. There are no
images and no inputs. It decides nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from random import Random

from gridhypervisor.execution.controller import Controller
from gridhypervisor.execution.copies import Copies
from gridhypervisor.execution.logs import Logs
from gridhypervisor.execution.ports import StagedInput, Store
from gridhypervisor.execution.session import Session
from gridhypervisor.model.commit import Birth, JobRecords
from gridhypervisor.model.policy import SchedulingPolicy
from gridhypervisor.model.records import Event, Job, JobState, Site, SiteKind, Vm
from gridhypervisor.model.simulation import SimulationReport, SimulationSpec
from gridhypervisor.model.spec import JobSpec, ResourcesSpec, RetrySpec, parse_duration
from gridhypervisor.model.wire import ImageManifest, Layer
from gridhypervisor.simulation.chances import make_site
from gridhypervisor.simulation.figures import SiteAccount, report
from gridhypervisor.simulation.site import Census, SimulatedSite
from gridhypervisor.simulation.workload import Task, Work, together

EPOCH = 1_000_000.0
"""The controller's clock when the loop's is 0."""

LOOK = 3600.0
"""Seconds of virtual time between two looks at how far it is."""

IMAGE = "0" * 64

Tell = Callable[[float, int], None]
"""(seconds of virtual time, jobs that have ended) while it runs."""


class Bare:
    """There is nothing to stage: the image has no layers and the jobs no inputs."""

    def paths(self, layer: Layer) -> tuple[Path, Path]:
        raise KeyError(layer.digest)

    async def plan(self, job: Job, progress: Callable[[str], None]) -> Sequence[StagedInput]:
        return ()


async def simulate(
    spec: SimulationSpec, work: Work, policy: SchedulingPolicy, store: Store, folder: Path, tell: Tell
) -> SimulationReport:
    """All of it. `store`: a new one, and `folder` an empty one, both to be thrown away. Run it on a `SteadyLoop`."""
    loop = asyncio.get_running_loop()
    census = Census()
    sites = {name: make_site(name, each, spec.seed, loop, census) for name, each in spec.sites.items()}

    def clock() -> float:
        return EPOCH + loop.time()

    logs = Logs(folder / "logs")
    random = Random(f"{spec.seed} jitter")
    copies = Copies(folder / "checkpoints", random.randbytes)
    controller = Controller(store, {}, logs, copies, clock=clock, cpu=float)
    await controller.load()
    await controller.policies.set(policy, "simulation", "default")
    tasks = [asyncio.create_task(controller.run(), name="controller")]
    for name, site in sites.items():
        session = _session(name, site, spec, controller, partial(random.uniform, 0.75, 1.25), logs, copies, clock)
        controller.add_session(name, session)
        tasks.append(asyncio.create_task(session.run(), name=name))
    try:
        ids = await _go_through(spec, work, controller, folder, tasks[0], tell)
    finally:
        for task in tasks:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        await controller.close()
    for result in results:
        if isinstance(result, Exception):
            raise result
    if harm := [*census.harm, *(words for site in sites.values() for words in site.spool.harm)]:
        raise RuntimeError(f"what must never happen has happened: {harm[0]}; report this as a bug, with the file")
    accounts = {name: _account(site, spec.sites[name].cores) for name, site in sites.items()}
    by_id = {records.job.id: records for records in store.jobs(limit=len(ids) + 1)}
    done = [(by_id[job], task.run) for job, task in zip(ids, work.tasks, strict=True)]
    return report(spec, work, done, accounts, _last_end(list(by_id.values()), loop.time()))


def _session(
    name: str,
    site: SimulatedSite,
    spec: SimulationSpec,
    controller: Controller,
    jitter: Callable[[], float],
    logs: Logs,
    copies: Copies,
    clock: Callable[[], float],
) -> Session:
    mine = spec.sites[name]
    bare = Bare()
    return Session(
        Site(name, "simulation", "default", SiteKind.FORK, max_jobs=mine.max_jobs or mine.nodes * mine.cores),
        lambda workdir, bundle: site.driver,
        site.transport,
        controller.observer,
        installation=controller.store.installation,
        layers=bare,
        inputs=bare,
        logs=logs,
        copies=copies,
        clock=clock,
        jitter=jitter,
    )


async def _go_through(
    spec: SimulationSpec, work: Work, controller: Controller, folder: Path, looping: asyncio.Task[None], tell: Tell
) -> list[str]:
    """Hand in every job in its time, and wait for the ends as long as the spec says. Their ids."""
    loop = asyncio.get_running_loop()
    ids: list[str] = []
    until = (work.tasks[-1].at if work.tasks else 0.0) + parse_duration(spec.grace)
    handing = asyncio.create_task(_hand_in(work, spec.retries, controller, folder, ids), name="workload")
    while not looping.done() and loop.time() < until and not (handing.done() and not controller.cases):
        await asyncio.sleep(LOOK)
        tell(loop.time(), len(ids) - len(controller.cases))
    if looping.done():
        handing.cancel()
        looping.result()
    await handing
    return ids


async def _hand_in(work: Work, retries: int, controller: Controller, folder: Path, ids: list[str]) -> None:
    loop = asyncio.get_running_loop()
    for at, tasks in together(work.tasks):
        await asyncio.sleep(at - loop.time())
        births = (_birth(task, retries, folder, controller.clock()) for task in tasks)
        ids += [records.job.id for records in await asyncio.gather(*map(controller.create, births))]


def _birth(task: Task, retries: int, folder: Path, now: float) -> Birth:
    spec = JobSpec(
        "simulated",
        ("sleep", repr(task.run)),
        resources=ResourcesSpec(cpus=task.cpus, walltime=f"{task.walltime}s"),
        retry=RetrySpec(retries),
    )
    job = Job("", task.user, task.project, "simulated", spec, str(folder), str(folder), ImageManifest(()), IMAGE, now,
              version=1)  # fmt: skip
    event = Event(now, task.user, task.project, "", "job", "", "", JobState.PENDING)
    return Birth(job, Vm("", task.user, task.project, ""), event)


def _account(site: SimulatedSite, cores: int) -> SiteAccount:
    left = site.batch.unfinished_stays()
    ours = [*site.batch.stays, *(stay for stay in left if stay.name)]
    others = [*site.batch.others, *(stay for stay in left if not stay.name)]
    return SiteAccount(len(site.batch.nodes) * cores, ours, others)


def _last_end(records: Sequence[JobRecords], now: float) -> float:
    """When the last job ended; now, if one has not."""
    ends = [each.job.ended - EPOCH if each.job.ended is not None else now for each in records]
    return max(ends, default=0.0)
