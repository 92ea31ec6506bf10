"""The real planner, controller, session and store over simulated sites: a world that can be hurt, and then judged."""

from __future__ import annotations

import asyncio
import itertools
import shutil
import tempfile
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from math import inf
from pathlib import Path
from random import Random
from typing import Any, TypeVar

import msgspec

from gridhypervisor.execution.controller import Controller
from gridhypervisor.execution.copies import Copies
from gridhypervisor.execution.decisions import Decisions
from gridhypervisor.execution.infrajobs import InfrastructureJobs
from gridhypervisor.execution.logs import Logs
from gridhypervisor.execution.ports import StagedInput
from gridhypervisor.execution.session import Session
from gridhypervisor.execution.suspending import SuspendableJobs
from gridhypervisor.model.commit import Birth, JobRecords
from gridhypervisor.model.dagman import parse
from gridhypervisor.model.infrastructure import InfrastructureSpec
from gridhypervisor.model.infraviews import InfrastructureRequest
from gridhypervisor.model.policy import SchedulingPolicy
from gridhypervisor.model.records import Event, Group, Job, JobState, Site, SiteKind, Vm, Wish
from gridhypervisor.model.spec import GangSpec, JobSpec, ResourcesSpec, RetrySpec
from gridhypervisor.model.views import Explanation, Problem, ServiceError
from gridhypervisor.model.wire import ImageManifest, Layer, Outcome
from gridhypervisor.model.workflow import Node, Request, dag
from gridhypervisor.planning.dagsteps import Described
from gridhypervisor.planning.explain import explain
from gridhypervisor.planning.workflow import begin
from gridhypervisor.simulation.loop import VirtualLoop
from gridhypervisor.simulation.site import Census, SimulatedSite
from gridhypervisor.store import open_store

T = TypeVar("T")

EPOCH = 1_000_000.0
"""The controller's clock when the loop's is 0."""

WALLTIME = 120
"""Seconds of every job's walltime."""


SILENCE = 30
"""Seconds that may pass without a word of a job that is replaced then."""

FINAL = {str(state) for state in JobState if state.final}

TOLD = 1000
"""Events at most, the newest, of which a story tells; where there are more, of those of the jobs that are left."""


class Crash(BaseException):
    """The controller dies here. No Exception: nobody may handle it."""


class World:
    """Sites that outlive the controller, and the controller of the moment."""

    def __init__(self, folder: Path, *, sites: int = 2, seed: int = 0, listing_lag: float = 0.0, spool_lag: float = 0.0,
                 nodes: int = 2, places: int = 0, idle: float = 0.0) -> None:  # fmt: skip
        self.places = places  # of ours at each site at once; 0: more than any test needs
        self.folder, self.loop = folder, asyncio.get_running_loop()
        self.loop.set_exception_handler(_complain)
        self.random = Random(seed)
        self.census = Census()
        self.sites = {
            name: SimulatedSite(name, self.loop, nodes=nodes, census=self.census, random=self.random,
                                listing_lag=listing_lag, spool_lag=spool_lag, idle=idle)
            for name in (f"site{i}" for i in range(sites))
        }  # fmt: skip
        self.deadly: set[str] = set()  # the steps at which the controller is yet to die, once at each
        self.reached: set[str] = set()
        self.crashed = asyncio.Event()
        self.crashes = 0
        self.draining: set[str] = set()
        self.drained: list[tuple[str, float, float]] = []  # site, from when, until when
        self.jobs: list[str] = []
        self.deleted: set[str] = set()
        self._requests = itertools.count()
        self._tasks: list[asyncio.Task[None]] = []

    def clock(self) -> float:
        return EPOCH + self.loop.time()

    # -- the controller's lives ------------------------------------------------------------------------------------

    async def start(self) -> None:
        self.crashed.clear()
        self.store = open_store(self.folder / "store.sqlite")
        logs = Logs(self.folder / "logs")
        copies = Copies(self.folder / "checkpoints", self.random.randbytes)
        self.controller = Controller(self.store, {}, logs, copies, clock=self.clock, cpu=lambda: 0.0, steps=self._step,
                                     decisions=Decisions(self.folder / "decisions.jsonl"))  # fmt: skip
        self.controller.groups.workflows.describe = self.describe
        await self.controller.load()
        self._tasks = [asyncio.create_task(self.controller.run())]
        for name, site in self.sites.items():
            session = Session(
                Site(name, "me", "default", SiteKind.FORK, max_jobs=self.places, draining=name in self.draining),
                lambda workdir, bundle, site=site: site.driver,  # type: ignore[misc]
                site.transport,
                self.controller.observer,
                installation=self.store.installation,
                layers=self,
                inputs=self,
                logs=logs,
                copies=copies,
                clock=self.clock,
                jitter=lambda: self.random.uniform(0.75, 1.25),
            )
            self.controller.add_session(name, session)
            self._tasks.append(asyncio.create_task(session.run()))

    async def stop(self) -> None:
        """As abrupt as a kill can be within one process: nothing more is committed, no connection says good-bye."""
        for site in self.sites.values():
            site.way.cut(0.0)
        for task in self._tasks:
            task.cancel()
        results = await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.controller.close()
        self.store.close()
        for result in results:
            if isinstance(result, Exception):
                raise result

    async def restart(self) -> None:
        self.crashes += 1
        await self.stop()
        await self.start()

    def _step(self, step: str) -> None:
        if self.crashed.is_set():
            raise Crash(step)  # dead is dead, until the restart
        self.reached.add(step)
        if step in self.deadly:
            self.deadly.remove(step)
            self.crashed.set()
            for task in self._tasks:
                task.cancel()
            raise Crash(step)

    # -- what its ports need ---------------------------------------------------------------------------------------

    def paths(self, layer: Layer) -> tuple[Path, Path]:
        return self.folder / layer.digest, self.folder / f"{layer.digest}.chunks"

    async def plan(self, job: Job, progress: Callable[[str], None]) -> Sequence[StagedInput]:
        return ()

    # -- the user --------------------------------------------------------------------------------------------------

    async def submit(
        self,
        seconds: float = 5.0,
        code: int = 0,
        *,
        retry: int = 2,
        site: str = "",
        cpus: int = 1,
        replace: bool = False,
        owner: str = "me",
        walltime: int = WALLTIME,
        segment: str | None = None,
        **more: Any,
    ) -> str:
        """`segment`: of one batch job at most; `more`: of the job's spec."""
        size = {"memory": "64Mi", "scratch": "64Mi"} if segment is not None else {}
        spec = JobSpec(
            "image",
            ("sleep", str(seconds), str(code)),
            outputs=("products/*",),
            resources=ResourcesSpec(cpus=cpus, walltime=f"{walltime}s", segment=segment, **size),
            retry=RetrySpec(retry),
            site=site,
            on_silence="replace" if replace else "keep",
            silence=f"{SILENCE}s",
            **more,
        )
        folder = str(self.folder)
        job = Job("", owner, "default", "test", spec, f"{folder}/results/{len(self.jobs)}", folder, ImageManifest(()),
                  "0" * 64, self.clock(), version=1)  # fmt: skip
        event = Event(self.clock(), owner, "default", "", "job", "", "", JobState.PENDING)
        birth = Birth(job, Vm("", owner, "default", ""), event, f"request {next(self._requests)}")
        records = await self._ask(lambda: self.controller.create(birth))
        self.jobs.append(records.job.id)
        return records.job.id

    async def submit_array(self, tasks: str, seconds: float = 5.0, code: str = "0") -> str:
        """Tasks like the jobs of `submit`; `code` may be a substitution."""
        spec = JobSpec(
            "image",
            ("sleep", str(seconds), code),
            name="many",
            outputs=("products/*",),
            resources=ResourcesSpec(walltime=f"{WALLTIME}s"),
            retry=RetrySpec(2),
            array=tasks,
        )
        return await self._submit_group(spec)

    async def submit_gang(
        self,
        count: int,
        seconds: float = 5.0,
        code: str = "0",
        *,
        retry: int = 2,
        spread: bool = False,
        patience: str = "60s",
    ) -> str:
        """Members like the jobs of `submit`; `code` may be a substitution."""
        spec = JobSpec(
            "image",
            ("sleep", str(seconds), code),
            name="gang",
            outputs=("products/*",),
            resources=ResourcesSpec(walltime=f"{WALLTIME}s"),
            retry=RetrySpec(retry),
            gang=GangSpec(count, spread, patience),
        )
        return await self._submit_group(spec)

    async def _submit_group(self, spec: JobSpec) -> str:
        folder = str(self.folder)
        group = Group("", "me", "default", str(spec.name), f"{folder}/results/{spec.name}", folder, self.clock(), spec,
                      ImageManifest(()), "0" * 64, version=1)  # fmt: skip
        event = Event(self.clock(), "me", "default", "", "group", "", "", JobState.PENDING)
        key = f"request {next(self._requests)}"
        made = await self._ask(lambda: self.controller.groups.create(group, event, key))
        return made.id

    async def submit_workflow(self, text: str, name: str = "flow.dag") -> str:
        """A DAGMan file, whose jobs' files are called SECONDS-CODE: they hold nothing else."""
        workflow = parse(name, text).workflow
        request = Request(workflow, str(self.folder / name))
        nodes = {node: msgspec.json.encode(run).decode() for node, run in begin(dag(workflow)).items()}
        group = Group("", "me", "default", name, "", str(self.folder), self.clock(),
                      workflow=msgspec.json.encode(request).decode(), version=1)  # fmt: skip
        event = Event(self.clock(), "me", "default", "", "group", "", "", JobState.PENDING)
        key = f"request {next(self._requests)}"
        made = await self._ask(lambda: self.controller.groups.create(group, event, key, nodes))
        return made.id

    async def describe(self, request: Request, node: Node, variables: Mapping[str, str]) -> Described:
        if node.job == "missing":
            raise ServiceError(Problem(f"read the job of node {node.name}", 404, "not-found", "no such file"))
        seconds, _, code = node.job.partition("-")
        spec = JobSpec(
            "image",
            ("sleep", seconds, code),
            outputs=("products/*",),
            resources=ResourcesSpec(walltime=f"{10 * WALLTIME}s"),
            retry=RetrySpec(2),
        )
        folder = f"{self.folder}/results/{request.workflow.name}/{node.name}.{variables['RETRY']}"
        return Described(spec, folder, "0" * 64, ImageManifest(()))

    async def nodes(self, group: str) -> dict[str, str]:
        """Where each node of a workflow is."""
        found = self.group(group)
        assert found is not None
        runs = (await self.controller.groups.workflows.runs(found)).runs
        return {name: str(run.state) for name, run in runs.items()}

    async def apply(self, spec: InfrastructureSpec) -> str:
        """Have an infrastructure that is so. Its id."""
        key, request = f"request {next(self._requests)}", InfrastructureRequest(spec, str(self.folder))
        return (await self._ask(lambda: self.infrastructures.apply(request, key))).id

    async def scale(self, name: str, **counts: int) -> None:
        await self._ask(lambda: self._if_able(self.infrastructures.scale(name, counts)))

    @property
    def infrastructures(self) -> InfrastructureJobs:
        """What users ask of infrastructures, of the controller of the moment."""
        backend = InfrastructureJobs(self.controller, lambda image: ("0" * 64, ImageManifest(())), "me", "default")
        self.controller.groups.workflows.describe = self.describe  # ours, not the backend's
        return backend

    async def wish_group(self, group: str, wish: Wish) -> None:
        await self._ask(lambda: self.controller.groups.wish(group, wish))

    def tasks(self, group: str) -> list[Job]:
        """The jobs that have been made of an array, in their order."""
        return [records.job for records in reversed(self.store.jobs(group=group, limit=1 << 20))]

    def group(self, group: str) -> Group | None:
        found = self.store.groups(ids=[group])
        return found[0] if found else None

    async def cancel(self, job: str) -> None:
        await self._ask(lambda: self.controller.wish(job, Wish.CANCEL))

    async def delete(self, job: str) -> None:
        self.deleted.add(job)
        await self._ask(lambda: self.controller.wish(job, Wish.DELETE))

    async def recover(self, job: str) -> None:
        await self._ask(lambda: self.controller.recover(job))

    async def move(self, job: str, to: str = "") -> None:
        await self._ask(lambda: self.controller.move(job, "the user asked to move it", to))

    async def suspend(self, job: str) -> None:
        await self._ask(lambda: self._if_able(self.backend.suspend(job)))

    async def resume(self, job: str, to: str = "") -> None:
        await self._ask(lambda: self._if_able(self.backend.resume(job, to)))

    async def send(self, job: str, to: str) -> None:
        """As `ghv move JOB --to SITE`: a guest that can be saved goes along."""
        await self._ask(lambda: self._if_able(self.backend.move(job, to)))

    async def copy(self, checkpoint: str) -> None:
        await self._ask(lambda: self._if_able(self.backend.copy_checkpoint(checkpoint)))

    def spoil(self, checkpoint: str = "") -> None:
        """A bit of the copy of a checkpoint flips, or ("") of all."""
        for path in self.copies():
            if path.parent.name != "keys" and checkpoint in ("", path.parent.name):
                data = bytearray(path.read_bytes())
                data[len(data) // 2] ^= 1
                path.write_bytes(data)

    def copies(self) -> list[Path]:
        """The parts of all copies, and their keys, as they lie on the service's machine."""
        return sorted(path for path in (self.folder / "checkpoints").rglob("*") if path.is_file())

    async def resume_all(self) -> None:
        """Whatever is suspended, or about to be."""
        for job in sorted({*self.jobs, *self.controller.cases}):  # the tasks of arrays, too
            await self.resume(job)
        still = [job for job, case in self.controller.cases.items() if case.job.wish is Wish.SUSPEND]
        assert not still, f"nobody resumed {still}, which will never end\n{self.story()}"

    async def checkpoint(self, job: str) -> None:
        await self._ask(lambda: self._if_able(self.backend.save(job)))

    async def restore(self, checkpoint: str) -> None:
        await self._ask(lambda: self.backend.restore(checkpoint))

    async def discard(self, checkpoint: str) -> None:
        await self._ask(lambda: self.backend.delete_checkpoint(checkpoint))

    @property
    def backend(self) -> SuspendableJobs:
        """What users ask, of the controller of the moment."""
        return SuspendableJobs(self.controller, lambda image: ("0" * 64, ImageManifest(())), "me", "default")

    async def _if_able(self, request: Awaitable[object]) -> None:
        """As a user who has tried what cannot be just now, or not any more, and is told so."""
        with suppress(ServiceError):
            await request

    def drain(self, name: str, *, undo: bool = False) -> None:
        if undo is (name not in self.draining):
            return
        if undo:
            self.draining.discard(name)
            [since] = [since for site, since, until in self.drained if site == name and until == inf]
            self.drained = [each for each in self.drained if each != (name, since, inf)]
            self.drained.append((name, since, self.clock()))
        else:
            self.draining.add(name)
            self.drained.append((name, self.clock(), inf))
        session = self.controller.sessions[name]
        assert isinstance(session, Session)
        session.take(replace(session.site, draining=not undo))

    async def _ask(self, request: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """As a client does: where a controller dies before it has answered, the next one is asked."""
        while True:
            if self.crashed.is_set():
                await self.restart()
            asked, dead = asyncio.create_task(request()), asyncio.create_task(self.crashed.wait())
            await asyncio.wait({asked, dead}, return_when=asyncio.FIRST_COMPLETED)
            dead.cancel()
            if not self.crashed.is_set():
                return asked.result()
            asked.cancel()
            await asyncio.gather(asked, return_exceptions=True)

    async def set_policy(self, policy: SchedulingPolicy) -> None:
        await self._ask(lambda: self.controller.policies.set(policy, "me", "default"))

    def explain(self, job: str) -> Explanation:
        """As `ghv explain` is told."""
        controller, case = self.controller, self.controller.cases[job]
        grid = controller.scheduling.grid(controller.facts(), (case.job,), self.clock())
        return explain(case, grid, controller.waiting.get(job, ""))

    # -- watching --------------------------------------------------------------------------------------------------

    async def until(self, holds: Callable[[], bool], bound: float, what: str) -> None:
        """Go on until it holds, restarting a controller that died meanwhile; at most `bound` virtual seconds."""
        end = self.loop.time() + bound
        while not holds():
            assert self.loop.time() < end, f"not within {bound:g} s: {what}\n{self.story()}"
            assert not self._tasks[0].done() or self.crashed.is_set(), self._tasks[0].exception()
            if self.crashed.is_set():
                await self.restart()
            await asyncio.sleep(0.25)

    async def settled(self, bound: float = 3000.0) -> None:
        """Until nothing is left to do; two patient retries, a walltime and its fence fit well into the bound."""
        await self.until(self._idle, bound, "every job ends and every site is clean")
        await self.emptied()

    async def emptied(self) -> None:
        """Until pilots that have said their last word are over, which takes a moment; who stays, `judge` tells."""
        end = self.loop.time() + 10.0
        while any(site.unfinished for site in self.sites.values()) and self.loop.time() < end:
            await asyncio.sleep(0.25)

    def _idle(self) -> bool:
        return not self.controller.cases and not self.controller.groups.alive()

    def records(self, job: str) -> JobRecords:
        found = self.store.job(job)
        assert found is not None
        return found

    def state(self, job: str) -> str:
        """Of its newest allocation; of the job, where it has none."""
        case = self.controller.cases.get(job)
        records = (case.allocations, case.job) if case is not None else None
        if records is None:
            found = self.store.job(job)
            return "deleted" if found is None else "cleaned"
        return str(records[0][-1].state if records[0] else records[1].state)

    def story(self) -> str:
        """What is left, which a log that is cut short shows first; and what happened."""
        left = self.controller.cases
        lines = [f"{self.loop.time():8.2f} now; {len(left)} jobs are left"]
        for job, case in left.items():
            attempt = f"attempt {a.epoch} {a.state}" if (a := case.current) is not None else "no attempt yet"
            words = self.controller.waiting.get(job, "")
            lines.append(f"{job} is {case.job.state}, {attempt}, its user's wish {case.job.wish}: {words}")
        lines += [
            f"{group.id} is {group.state}, its user's wish {group.wish}" for group in self.controller.groups.alive()
        ]
        events = self.store.events(limit=1 << 20)
        if len(events) > TOLD:
            events = ([e for e in events if e.job in left] or events)[-TOLD:]
        lines += [
            f"{e.at - EPOCH:8.2f} {e.subject:8} {e.before:>10} > {e.after:10} {e.reason} {e.message}" for e in events
        ]
        return "\n".join(lines)

    # -- judging ---------------------------------------------------------------------------------------------------

    def judge(self) -> None:
        """What must hold when everything has settled."""
        self.judge_always()
        for job in self.jobs:
            changes = [e for e in self.store.events(job=job) if e.kind == "job" and e.before != e.after]
            ends = [e for e in changes if e.after in FINAL]
            assert len(ends) == 1, f"{job} ended {len(ends)} times\n{self.story()}"
            found = self.store.job(job)
            if found is None:
                assert job in self.deleted
                continue
            if found.job.state is JobState.DONE:
                result = Path(found.job.destination) / "products/result"
                words = result.read_text().split()
                assert words[0] == job, f"{job} is done without its results\n{self.story()}"
            self._judge_drains(found)
            ledger = self.store.ledger(job)
            assert ledger is not None
            assert abs(sum(row.seconds for row in ledger.rows) - ledger.wall) < 1e-3, ledger
            assert all(row.seconds >= -1e-6 for row in ledger.rows), ledger
        planned = sum(e.kind == "allocation" and e.after == "planned" for e in self.store.events(limit=1 << 20))
        charged = self.store.accounts((), since=0.0, until=inf, limit=1).total.attempts
        assert charged == planned, f"{charged} of {planned} attempts are in the accounts\n{self.story()}"
        for site in self.sites.values():
            assert not site.spool.entries, f"left at {site.name}: {list(site.spool.entries)}\n{self.story()}"
            assert not site.unfinished, f"{site.name} still has {site.unfinished}\n{self.story()}"
            assert not site.spool.kept, f"kept at {site.name}: {list(site.spool.kept)}\n{self.story()}"
        assert not self.copies(), f"left of copies: {self.copies()}\n{self.story()}"
        assert not +self.census.guests, self.census.guests

    def _judge_drains(self, found: JobRecords) -> None:
        """A site that is drained is given nothing: no allocation is planned there, and none submitted."""
        sites = {a.id: a.site for a in found.allocations}
        for event in self.store.events(job=found.job.id):
            if event.kind == "allocation" and event.after in ("planned", "submitting"):
                for name, since, until in self.drained:
                    drained = sites[event.subject] == name and since < event.at < until
                    assert not drained, f"{event.subject} is {event.after} at {name}, which is drained\n{self.story()}"

    def judge_always(self) -> None:
        assert not self.census.harm, f"{self.census.harm}\n{self.story()}"
        for site in self.sites.values():
            assert not site.spool.harm, f"{site.spool.harm}\n{self.story()}"
            for entry in site.account.removed:
                assert entry.manifest is None or entry.manifest.job in self.deleted or not (
                    entry.exit is not None and entry.exit.outcome is Outcome.COMPLETED and entry.uncollected
                ), f"the results of {entry.name} were removed before they were home\n{self.story()}"  # fmt: skip


def _complain(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    if not isinstance(context.get("exception"), Crash):
        loop.default_exception_handler(context)


def in_world(story: Callable[[World], Awaitable[None]], **options: float) -> World:
    """Tell a story in a world of its own, in virtual time."""
    memory = Path("/dev/shm")  # the store's fsyncs cost nothing there; what they are worth is tested elsewhere
    folder = Path(tempfile.mkdtemp(prefix="ghv-world-", dir=memory if memory.is_dir() else None))

    async def tell() -> World:
        world = World(folder, **options)  # type: ignore[arg-type]
        await world.start()
        try:
            await story(world)
        finally:
            await world.stop()
        return world

    try:
        with asyncio.Runner(loop_factory=VirtualLoop) as runner:
            return runner.run(tell())
    finally:
        shutil.rmtree(folder)
