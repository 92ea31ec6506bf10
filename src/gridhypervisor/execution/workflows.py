"""Runs workflows: sees how the parts of nodes ended, and begins what `planning.dagsteps` says is next.

Where each node is stands in the store; a node's job is born in the same commit that says that it began. What this keeps
in memory is found anew after a restart: jobs by the names that they have in the workflow, and scripts are run again.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from gridhypervisor.execution.cases import Cases
from gridhypervisor.execution.ports import Store
from gridhypervisor.execution.scripts import Scripts
from gridhypervisor.execution.storing import StoreThread
from gridhypervisor.model.commit import Birth
from gridhypervisor.model.records import Group, Job, JobState, Wish
from gridhypervisor.model.replacing import replace
from gridhypervisor.model.rescue import next_rescue, write_rescue
from gridhypervisor.model.views import ServiceError
from gridhypervisor.model.workflow import Dag, Node, NodeRun, NodeState, Progress, Request, Script, dag
from gridhypervisor.planning.dagsteps import Described, Step, birth, code_of, conclusion, member, step
from gridhypervisor.planning.workflow import Standing, job_variables, script_command

Describe = Callable[[Request, Node, Mapping[str, str]], Awaitable[Described]]
"""The job of a node, from its file. Raises ServiceError: it describes none that can be run."""


@dataclass
class Running:
    """A workflow that runs."""

    request: Request
    dag: Dag
    runs: dict[str, NodeRun]
    ready: frozenset[str] = frozenset()
    active: set[str] = field(default_factory=set)
    jobs: dict[str, str] = field(default_factory=dict)  # node -> its job, of the attempt that is active
    ends: list[tuple[str, int]] = field(default_factory=list)  # scripts that ended, and how
    failed: int = 0
    note: str = ""  # what went wrong last, for the user

    def folder(self, node: Node) -> str:
        """Where a node's files are."""
        return os.path.normpath(os.path.join(os.path.dirname(self.request.file), node.folder))


@dataclass(frozen=True)
class Next:
    """What to commit of a workflow."""

    group: Group
    births: Mapping[str, Birth] = field(default_factory=dict)  # by node
    nodes: Mapping[str, str] = field(default_factory=dict)
    message: str = ""
    step: Step | None = None
    taken: int = 0  # of the ends that were waiting, how many are in it


class Workflows:
    """`touch` has a workflow looked at."""

    def __init__(
        self,
        store: Store,
        in_store: StoreThread,
        cases: Cases,
        clock: Callable[[], float],
        touch: Callable[[str], None],
    ) -> None:
        self._store, self._in_store, self._cases, self._clock = store, in_store, cases, clock
        self._touch = touch
        self._running: dict[str, Running] = {}
        self._scripts = Scripts(self._script_ended)
        self.describe: Describe | None = None

    async def close(self) -> None:
        await self._scripts.close()

    def drop(self, group: str) -> None:
        """It has ended, or is to be deleted: nothing more begins."""
        running = self._running.pop(group, None)
        for name in running.active if running is not None else ():
            self._scripts.end((group, name))

    async def runs(self, group: Group) -> Progress:
        """Where its nodes are."""
        running = self._running.get(group.id)
        if running is not None:
            return Progress(running.request.workflow, dict(running.runs))
        workflow = msgspec.json.decode(group.workflow, type=Request).workflow
        stored = await self._in_store(self._store.nodes, group.id)
        return Progress(workflow, {name: msgspec.json.decode(run, type=NodeRun) for name, run in stored.items()})

    async def next(self, group: Group) -> Next | None:
        """What is to be committed now; None: nothing."""
        running = self._running.get(group.id) or await self._take_up(group)
        for name in running.active:
            if _ending(group, running.dag.nodes[name]):
                self._scripts.end((group.id, name))
        taken = len(running.ends)
        ends = [*running.ends[:taken], *await self._ended_jobs(group, running)]
        ends = [end for end in ends if running.runs[end[0]].state.active]
        cancelled = group.wish is not Wish.RUN
        done = step(
            running.dag, running.runs, running.ready, running.active, ends, aborted=group.aborted, cancelled=cancelled
        )
        if done.runs or done.again:
            born = await self._births(group, running, done)
            nodes = {name: msgspec.json.encode(run).decode() for name, run in done.runs.items()}
            changed = replace(group, aborted=done.aborted, message=running.note or group.message)
            return Next(changed, born, nodes, "", done, taken)
        if running.active:
            return None
        how = conclusion(running.dag, running.runs, group.aborted, group.wish)
        return await self._end(group, running, *how) if how is not None else None

    def committed(self, what: Next) -> None:
        """It stands: begin what it says. Before that nothing has had an effect."""
        group, done = what.group, what.step
        running = self._running.get(group.id)
        if running is None or done is None:
            return
        del running.ends[: what.taken]
        running.failed += sum(run.state is NodeState.FAILED for run in done.runs.values())
        running.runs |= done.runs
        running.ready = done.ready
        for name, run in done.runs.items():
            (running.active.add if run.state.active else running.active.discard)(name)
            if run.state is not NodeState.JOB and run.state is not NodeState.POST:
                running.jobs.pop(name, None)
        running.jobs |= {name: birth.job.id for name, birth in what.births.items()}
        for name in done.scripts:
            self._begin(group, running, name, 0)
        for name, seconds in done.again.items():
            self._begin(group, running, name, seconds)
        self._touch(group.id)

    def to_cancel(self, group: Group) -> list[str]:
        """Jobs that are to be cancelled, since a node ended the workflow."""
        running = self._running.get(group.id)
        if running is None or group.aborted is None:
            return []
        return [job for name, job in running.jobs.items() if name != running.dag.last]

    # -- taking it up ----------------------------------------------------------------------------------------------

    async def _take_up(self, group: Group) -> Running:
        request = msgspec.json.decode(group.workflow, type=Request)
        stored = await self._in_store(self._store.nodes, group.id)
        runs = {node.name: msgspec.json.decode(stored[node.name], type=NodeRun) for node in request.workflow.nodes}
        running = Running(request, dag(request.workflow), runs)
        running.ready = frozenset(name for name, run in runs.items() if run.state is NodeState.READY)
        running.active = {name for name, run in runs.items() if run.state.active}
        running.failed = sum(run.state is NodeState.FAILED for run in runs.values())
        self._running[group.id] = running
        for name in running.active:
            run = runs[name]
            records = await self._in_store(self._store.member, group.id, member(name, run))
            if records is not None:
                running.jobs[name] = records.job.id
            if run.state is NodeState.JOB:
                continue
            if _ending(group, running.dag.nodes[name]):
                running.ends.append((name, -signal.SIGTERM))
            else:
                self._begin(group, running, name, 0)
        return running

    # -- what ended, and what begins -------------------------------------------------------------------------------

    async def _ended_jobs(self, group: Group, running: Running) -> list[tuple[str, int]]:
        found = []
        for name in running.active:
            if running.runs[name].state is NodeState.JOB:
                code = code_of(await self._job(running.jobs.get(name, "")))
                if code is not None:
                    found.append((name, code))
        return found

    async def _job(self, job: str) -> Job | None:
        if job in self._cases:
            return self._cases[job].job
        records = await self._in_store(self._store.job, job) if job else None
        return records.job if records is not None else None

    async def _births(self, group: Group, running: Running, done: Step) -> dict[str, Birth]:
        """The jobs that begin. A node whose file describes none begins without, which is how its job ends."""
        described: dict[str, Described] = {}
        standing = self._standing(group, running)
        for name in done.jobs:
            node = running.dag.nodes[name]
            try:
                assert self.describe is not None, "wired at the start"
                variables = job_variables(node, done.runs[name], standing)
                described[name] = await self.describe(running.request, node, variables)
            except ServiceError as error:
                running.note = f"{name}: {error}"
        if not described:
            return {}
        number = await self._in_store(self._store.reserve, len(described))
        now = self._clock()
        return {
            name: birth(group, name, done.runs[name], what, number + place, now)
            for place, (name, what) in enumerate(described.items())
        }

    def _begin(self, group: Group, running: Running, name: str, seconds: int) -> None:
        node, run = running.dag.nodes[name], running.runs[name]
        script = node.pre if run.state is NodeState.PRE else node.post
        assert isinstance(script, Script)
        command = script_command(node, run, script, self._standing(group, running), running.jobs.get(name, ""))
        self._scripts.begin((group.id, name), script, command, running.folder(node), seconds)

    def _standing(self, group: Group, running: Running) -> Standing:
        return Standing(running.failed, group.aborted is not None, group.wish is not Wish.RUN)

    def _script_ended(self, key: tuple[str, str], code: int, why: str) -> None:
        group, name = key
        running = self._running.get(group)
        if running is None:
            return
        if why:
            running.note = f"{name}: {why}"
        running.ends.append((name, code))
        self._touch(group)

    # -- its end ---------------------------------------------------------------------------------------------------

    async def _end(self, group: Group, running: Running, state: JobState, code: int) -> Next:
        """First which rescue file there will be, then the file, then the end."""
        file = Path(running.request.file)
        message = group.message
        if state is not JobState.DONE:
            if not group.rescue:
                try:
                    beside = os.listdir(file.parent)
                except OSError:
                    beside = []
                return Next(replace(group, rescue=str(file.with_name(next_rescue(file.name, beside)))))
            text = write_rescue(running.dag, running.runs, file.name, datetime.fromtimestamp(self._clock(), UTC))
            try:
                _write(Path(group.rescue), text)
            except OSError as error:
                message = f"write {group.rescue}: {error.strerror}; `ghv show {group.id}` still says what was done"
        ended = replace(group, state=state, exit_code=code, ended=self._clock(), message=message)
        return Next(ended, message=f"exit code {code}")


def _ending(group: Group, node: Node) -> bool:
    """Whether what runs of a node is to be ended: the last one runs to its end, but for a cancel."""
    return group.wish is not Wish.RUN or (group.aborted is not None and not node.last)


def _write(path: Path, text: str) -> None:
    new = path.with_name(f".{path.name}.new")
    new.write_text(text)
    new.replace(path)
