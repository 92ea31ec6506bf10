"""What a user can ask of jobs: the part of the API's backend that is about the loop and the store."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence

from gridhypervisor.execution.controller import Controller
from gridhypervisor.execution.logs import OUTPUT, STREAMS
from gridhypervisor.execution.present import case_of, event_view, job_detail, job_view
from gridhypervisor.model.commit import Birth, StoreError
from gridhypervisor.model.records import AllocationState, Event, Job, JobState, Vm, Wish
from gridhypervisor.model.spec import unsuited
from gridhypervisor.model.views import (
    EventView,
    Explanation,
    FollowItem,
    FollowKind,
    JobDetail,
    JobRequest,
    JobView,
    Problem,
    ServiceError,
)
from gridhypervisor.model.wire import ImageManifest
from gridhypervisor.planning.explain import explain
from gridhypervisor.planning.world import Case

CHUNK = 256 << 10
"""Bytes of output in one item of a follow stream."""


class Jobs:
    def __init__(
        self, controller: Controller, resolve: Callable[[str], tuple[str, ImageManifest]], owner: str, project: str
    ) -> None:
        self.controller, self.store, self.logs = controller, controller.store, controller.logs
        self._resolve, self.owner, self.project = resolve, owner, project
        self.progress: dict[str, str] = {}  # entry -> what its prolog or epilog is doing

    def note(self, entry: str, words: str) -> None:
        """A session tells how far it is."""
        if words:
            self.progress[entry] = words
        else:
            self.progress.pop(entry, None)
        job = entry.split("-")[1]
        self.controller.followers.announce(job)

    async def submit(self, request: JobRequest, idempotency_key: str) -> JobView:
        """Take a job in. What its fields alone can say of it was checked where the request was read."""
        spec = request.spec
        if spec.site and spec.site not in self.controller.sessions:
            known = ", ".join(sorted(self.controller.sessions)) or "none"
            raise ServiceError(
                Problem(
                    "submit job",
                    404,
                    "not-found",
                    f"site: there is no site {spec.site!r}",
                    f"known sites: {known}; add one with `ghv site add`",
                )
            )
        digest, manifest = self._resolve(spec.image)
        if refusal := unsuited(spec, manifest.layers):
            why, hint = refusal
            raise ServiceError(Problem("submit job", 422, "invalid", f"hypervisor: {why}", hint))
        job = Job(
            id="",
            owner=self.owner,
            project=self.project,
            name=spec.name or spec.command[0].rpartition("/")[2][:63],
            spec=spec,
            destination=request.destination,
            folder=request.folder,
            image=manifest,
            image_digest=digest,
            created=self.controller.clock(),
            version=1,
        )
        vm = Vm(id="", owner=self.owner, project=self.project, job="", version=1)
        event = Event(job.created, self.owner, self.project, "", "job", "", "", JobState.PENDING)
        try:
            records = await self.controller.create(Birth(job, vm, event, idempotency_key))
        except StoreError as error:
            raise ServiceError(Problem("submit job", 507, "unavailable", str(error), error.hint)) from error
        return await self._view(records.job.id)

    async def jobs(self, *, states: Sequence[str], before: str, limit: int) -> list[JobView]:
        try:
            found = await self.controller.in_store(self.store.jobs, states=states, before=before, limit=limit)
        except ValueError as error:
            raise ServiceError(
                Problem(
                    "list jobs",
                    422,
                    "invalid",
                    f"before: {before!r} is no job's id",
                    "give the id of the last job of the page before, e.g. j12",
                )
            ) from error
        return [self._present(self.controller.cases.get(r.job.id) or case_of(r)) for r in found]

    async def job(self, job: str) -> JobDetail:
        case = await self._case(job)
        ledger = await self.controller.in_store(self.store.ledger, job)
        entry = case.allocations[-1].pilot_job if case.allocations else ""
        outputs = await asyncio.to_thread(self.logs.outputs, job)
        waiting, progress = self.controller.waiting.get(job, ""), self.progress.get(entry, "")
        return job_detail(case, ledger, outputs, self.controller.clock(), waiting, progress)

    async def cancel(self, job: str) -> JobView:
        case = await self._case(job)
        if not case.job.state.final:
            await self.controller.wish(job, Wish.CANCEL)
        return await self._view(job)

    async def delete(self, job: str) -> None:
        """One that is deleted already may be deleted again: a client repeats what it got no answer to."""
        if not await self.controller.in_store(self.store.was_deleted, job):
            await self._case(job)
            await self.controller.wish(job, Wish.DELETE)

    async def recover(self, job: str) -> JobView:
        case = await self._case(job)
        if case.job.state.final and job not in self.controller.cases:
            if case.job.recover or case.job.state is JobState.DONE:
                return await self._view(job)  # what was to be done is done: an answer was lost, or we were faster
            raise ServiceError(
                Problem(f"recover job {job}", 409, "conflict", f"it has ended: {case.job.state}", "submit it again")
            )
        await self.controller.recover(job)
        return await self._view(job)

    async def explain(self, job: str) -> Explanation:
        case = await self._case(job)
        return explain(case, self.controller.facts(), self.controller.waiting.get(job, ""))

    async def log(self, job: str, stream: str, offset: int, limit: int) -> bytes:
        await self._case(job)
        if stream not in STREAMS:
            raise ServiceError(
                Problem(
                    f"read log of job {job}",
                    422,
                    "invalid",
                    f"there is no stream {stream!r}",
                    f"streams: {', '.join(STREAMS)}",
                )
            )
        data = await asyncio.to_thread(self.logs.read, job, stream, offset, limit)
        case = self.controller.cases.get(job)
        if data or case is None or case.allocations[-1:] == () or case.allocations[-1].state != AllocationState.RUNNING:
            return data
        # Nobody follows it, so what it has said so far is still at its site.
        current = case.allocations[-1]
        session = self.controller.sessions.get(current.site)
        before = sum(self.logs.size(job, a.epoch, stream) for a in case.allocations[:-1]) if stream in OUTPUT else 0
        if session is None or offset < before:
            return b""
        return await session.peek(current.pilot_job, STREAMS[stream], offset - before, limit)

    async def follow(self, job: str, *, output: bool) -> AsyncIterator[FollowItem]:
        """The job as it changes, its output as it comes, and an end once both are complete."""
        await self._case(job)
        changed = asyncio.Event()
        self.controller.followers.follow(job, changed)
        if output:
            self.controller.output.watch(job)
        offsets = {"stdout": 0, "stderr": 0}
        shown: JobView | None = None
        try:
            while True:
                changed.clear()
                try:
                    view = await self._view(job)
                except ServiceError:
                    assert shown is not None
                    yield FollowItem(FollowKind.END, shown)  # deleted under the follower
                    return
                # The view was taken before the output is read: a final one means that the output is complete.
                if view != shown and not view.state.final:
                    yield FollowItem(FollowKind.JOB, view)
                shown = view
                if output:
                    for stream in offsets:
                        while data := await asyncio.to_thread(self.logs.read, job, stream, offsets[stream], CHUNK):
                            yield FollowItem(FollowKind.OUTPUT, stream=stream, offset=offsets[stream], data=data)
                            offsets[stream] += len(data)
                if view.state.final:
                    yield FollowItem(FollowKind.END, view)
                    return
                await changed.wait()
        finally:
            self.controller.followers.unfollow(job, changed)
            if output:
                self.controller.output.unwatch(job)

    async def events(self, *, after: int, job: str, limit: int) -> list[EventView]:
        found = await self.controller.in_store(self.store.events, after=after, job=job, limit=limit)
        return [event_view(e) for e in found]

    async def watch_events(self, *, after: int, job: str) -> AsyncIterator[EventView]:
        changed = asyncio.Event()
        self.controller.followers.watch_events(changed)
        try:
            while True:
                changed.clear()
                while found := await self.events(after=after, job=job, limit=1000):
                    for event in found:
                        yield event
                        after = event.sequence
                await changed.wait()
        finally:
            self.controller.followers.unwatch_events(changed)

    async def _case(self, job: str) -> Case:
        case = self.controller.cases.get(job)
        if case is not None:
            return case
        records = await self.controller.in_store(self.store.job, job)
        if records is None:
            raise ServiceError(
                Problem(
                    f"find job {job}", 404, "not-found", "there is no such job", "`ghv list` shows the jobs there are"
                )
            )
        return case_of(records)

    async def _view(self, job: str) -> JobView:
        return self._present(await self._case(job))

    def _present(self, case: Case) -> JobView:
        entry = case.allocations[-1].pilot_job if case.allocations else ""
        return job_view(case, self.controller.waiting.get(case.job.id, ""), self.progress.get(entry, ""))
