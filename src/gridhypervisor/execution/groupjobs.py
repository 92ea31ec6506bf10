"""What a user can ask of jobs that were submitted as one: the part of the API's backend that is about groups."""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TypeVar

import msgspec

from gridhypervisor.execution.controller import Controller
from gridhypervisor.execution.jobs import name_of
from gridhypervisor.execution.present import case_of, group_view
from gridhypervisor.execution.suspending import SuspendableJobs
from gridhypervisor.model.access import Caller
from gridhypervisor.model.commit import StoreError
from gridhypervisor.model.nodejob import node_job
from gridhypervisor.model.records import Event, Group, JobState, Wish
from gridhypervisor.model.views import GroupView, JobRequest, JobView, Problem, ServiceError
from gridhypervisor.model.wire import ImageManifest
from gridhypervisor.model.workflow import Node, NodeRun, NodeState, Progress, Request, dag, with_variables
from gridhypervisor.model.yamlspec import SpecError
from gridhypervisor.planning.dagsteps import Described
from gridhypervisor.planning.workflow import Standing, begin, job_variables

V = TypeVar("V")

PACE = 0.2
"""Seconds between two views of a group for who follows it: its tasks may change much faster than anybody reads."""


SHARE = 10
"""Times as long as a view takes passes between two: of an array of a million, the tasks are many to count."""


class GroupJobs(SuspendableJobs):
    def __init__(
        self, controller: Controller, resolve: Callable[[str], tuple[str, ImageManifest]], owner: str, project: str
    ) -> None:
        super().__init__(controller, resolve, owner, project)
        controller.groups.workflows.describe = self.describe

    async def submit_group(self, request: JobRequest, idempotency_key: str, caller: Caller) -> GroupView:
        """Take an array or a gang in, whole: one record, however many tasks it has."""
        spec, now = request.spec, self.controller.clock()
        title = "submit gang" if spec.gang is not None else "submit array"
        if not spec.array and spec.gang is None:
            why = "array: it does not say of which tasks, and it is no gang either"
            raise ServiceError(Problem(title, 422, "invalid", why, "POST a job that is neither to /v1/jobs"))
        digest, manifest = self.image_for(spec, caller.owner)
        await self.require(spec.after)
        group = Group(
            id="",
            owner=caller.owner,
            project=caller.project,
            name=name_of(spec),
            spec=spec,
            destination=request.destination,
            folder=request.folder,
            image=manifest,
            image_digest=digest,
            created=now,
            version=1,
        )
        event = Event(now, group.owner, group.project, "", "group", "", "", JobState.PENDING)
        try:
            made = await self.controller.groups.create(group, event, idempotency_key)
        except StoreError as error:
            raise ServiceError(Problem(title, 507, "unavailable", str(error), error.hint)) from error
        return msgspec.structs.replace(await self.group(made.id), warning=self.warning(spec, digest, manifest, caller))

    async def submit_workflow(self, request: Request, idempotency_key: str) -> GroupView:
        """Take a workflow in, once all of its job files that are there already have been read."""
        try:
            graph = dag(request.workflow)
        except ValueError as error:
            hint = "mend the file that describes it"
            raise ServiceError(Problem("submit workflow", 422, "invalid", str(error), hint)) from error
        found = [
            {"field": name, "problem": "a dot cannot stand in a node's name"} for name in graph.nodes if "." in name
        ]
        codes: set[tuple[int, str]] = set()
        for node in graph.nodes.values():
            if node.pre is None and not node.noop and not node.done:  # a PRE script may make or change its job file
                try:
                    await self.describe(request, node, job_variables(node, NodeRun(NodeState.READY), Standing()))
                except ServiceError as error:
                    found.append({"field": node.name, "problem": str(error)})
                    codes.add((error.problem.status, error.problem.code))
        if found:
            why = "\n".join(f"{each['field']}: {each['problem']}" for each in found)
            hint = "nothing was run: mend these files, then run it again"
            status, code = (404, "not-found") if codes == {(404, "not-found")} else (422, "invalid")
            raise ServiceError(Problem(f"submit workflow {request.file}", status, code, why, hint, tuple(found)))
        now = self.controller.clock()
        group = Group(
            id="",
            owner=self.owner,
            project=self.project,
            name=request.workflow.name[:63],
            destination="",
            folder=os.path.dirname(request.file),
            created=now,
            workflow=msgspec.json.encode(request).decode(),
            version=1,
        )
        nodes = {name: msgspec.json.encode(run).decode() for name, run in begin(graph).items()}
        event = Event(now, self.owner, self.project, "", "group", "", "", JobState.PENDING)
        try:
            made = await self.controller.groups.create(group, event, idempotency_key, nodes)
        except StoreError as error:
            raise ServiceError(Problem("submit workflow", 507, "unavailable", str(error), error.hint)) from error
        return await self.group(made.id)

    async def workflow(self, group: str) -> Progress:
        """A workflow, and where each of its nodes is."""
        found = await self._group(group)
        if not found.workflow:
            raise ServiceError(Problem(f"show the nodes of {group}", 422, "invalid", "it is no workflow", ""))
        return await self.controller.groups.workflows.runs(found)

    async def describe(self, request: Request, node: Node, variables: Mapping[str, str]) -> Described:
        """The job that a node's file describes now.

        Raises:
            ServiceError: none that can be run here.
        """
        folder = os.path.normpath(os.path.join(os.path.dirname(request.file), node.folder))
        path = os.path.join(folder, node.job)
        title = f"read the job of node {node.name}"
        try:
            text = await asyncio.to_thread(Path(path).read_text, errors="replace")
            spec = node_job(path, with_variables(text, variables), request.image)
        except OSError as error:
            why = f"{path}: {error.strerror}"
            raise ServiceError(
                Problem(title, 404, "not-found", why, "paths are read from the workflow's folder")
            ) from error
        except SpecError as error:
            raise ServiceError(Problem(title, 422, "invalid", str(error), "mend the lines named")) from error
        digest, image = self.image_for(spec, self.owner)
        beside = os.path.dirname(path)
        return Described(spec, beside, digest, image)

    async def groups(self, *, before: str, owner: str = "", limit: int) -> list[GroupView]:
        try:
            list_groups = partial(self.store.groups, before=before, owner=owner, limit=limit)
            found = await self.controller.in_store(list_groups)
        except ValueError as error:
            hint = "give the id of the last one of the page before, e.g. a12"
            raise ServiceError(Problem("list groups", 422, "invalid", f"before: {error}", hint)) from error
        return [await self._group_view(group) for group in found]

    async def group(self, group: str) -> GroupView:
        return await self._group_view(await self._group(group))

    async def member(self, group: str, name: str) -> JobView:
        """A job of it, by its name there."""
        await self._group(group)
        records = await self.controller.in_store(self.store.member, group, name)
        if records is None:
            raise ServiceError(
                Problem(
                    f"find {name} of {group}",
                    404,
                    "not-found",
                    "it has no job of that name, or not yet, or it was deleted",
                    f"`ghv show {group}` says what it consists of, `ghv list {group}` which jobs there are",
                )
            )
        return self._present(self.controller.cases.get(records.job.id) or case_of(records))

    async def cancel_group(self, group: str) -> GroupView:
        await self._group(group)
        await self.controller.groups.wish(group, Wish.CANCEL)
        return await self.group(group)

    async def recover_group(self, group: str) -> GroupView:
        """Each of its jobs that is alive."""
        await self._group(group)
        for job in self.controller.groups.members(group):
            await self.controller.recover(job)
        return await self.group(group)

    async def delete_group(self, group: str) -> None:
        """One that is deleted already may be deleted again: a client repeats what it got no answer to."""
        if not await self.controller.in_store(self.store.was_deleted, group):
            await self._group(group)
            await self.controller.groups.wish(group, Wish.DELETE)

    async def follow_group(self, group: str) -> AsyncIterator[GroupView]:
        """The group as it changes, until it has ended."""
        gone = JobState.CANCELLED
        async for view in self._follow(
            group,
            lambda: self.group(group),
            lambda view: view.state.final,
            lambda view: msgspec.structs.replace(view, state=gone, note="it was deleted"),
        ):
            yield view

    async def _follow(
        self, group: str, look: Callable[[], Awaitable[V]], over: Callable[[V], bool], deleted: Callable[[V], V]
    ) -> AsyncIterator[V]:
        """What `look` sees of a group as it changes, until it is `over`."""
        changed, clock, took = asyncio.Event(), asyncio.get_running_loop().time, 0.0
        self.controller.followers.follow(group, changed)
        try:
            yield (view := await look())
            while not over(view):
                await changed.wait()
                await asyncio.sleep(max(PACE, SHARE * took))
                changed.clear()  # before the look: what comes after it is told of again
                before, began = view, clock()
                try:
                    view = await look()
                except ServiceError:  # deleted under the follower
                    view = deleted(before)
                took = clock() - began
                if view != before:
                    yield view
        finally:
            self.controller.followers.unfollow(group, changed)

    async def _group(self, name: str) -> Group:
        group = await self.controller.groups.find(name)
        if group is None:
            hint = "`ghv list` shows what there is"
            why = "there is no such array, gang or workflow"
            raise ServiceError(Problem(f"find {name}", 404, "not-found", why, hint))
        return group

    async def _group_view(self, group: Group) -> GroupView:
        tally = await self.controller.in_store(self.store.tally, group.id)
        bad = (
            await self._view(tally.first_bad)
            if tally.first_bad and not group.workflow and group.blueprint is None
            else None
        )
        runs = (await self.workflow(group.id)).runs.values() if group.workflow else ()
        nodes = Counter(str(run.state) for run in runs)
        view = group_view(group, tally, bad, self.controller.groups.trouble.get(group.id, ""), dict(nodes))
        if group.blueprint is None:
            return view
        members = await self.controller.groups.infrastructures.members(group)
        return msgspec.structs.replace(view, well=sum(m.ready is True for _, m in members))
