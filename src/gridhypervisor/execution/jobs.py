"""What a user can ask of jobs: the part of the API's backend that is about the loop and the store."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from functools import partial

import msgspec

from gridhypervisor.execution.controller import Controller
from gridhypervisor.execution.logs import OUTPUT, STREAMS
from gridhypervisor.execution.present import case_of, event_view, job_detail, job_view, member_view, planned_view
from gridhypervisor.model.access import Caller
from gridhypervisor.model.accounts import MOST, Accounts, By, History
from gridhypervisor.model.arrays import Values, task
from gridhypervisor.model.commit import Birth, StoreError
from gridhypervisor.model.policy import URGENT, PolicyRecord, PolicyView, SchedulingPolicy
from gridhypervisor.model.records import AllocationState, Event, Job, JobState, Vm, Wish
from gridhypervisor.model.replacing import replace
from gridhypervisor.model.spec import JobSpec, unsuited
from gridhypervisor.model.views import (
    EventView,
    Explanation,
    FollowItem,
    FollowKind,
    JobDetail,
    JobRequest,
    JobView,
    MatchView,
    MemberView,
    NodeView,
    PlannedView,
    Problem,
    ReplayView,
    ServiceError,
)
from gridhypervisor.model.wire import ImageManifest, declared
from gridhypervisor.planning.accounts import history
from gridhypervisor.planning.checkpoints import at_home
from gridhypervisor.planning.explain import explain
from gridhypervisor.planning.forecast import forecast
from gridhypervisor.planning.gangs import size
from gridhypervisor.planning.matching import Place
from gridhypervisor.planning.moves import immovable
from gridhypervisor.planning.placement import matching_nodes, weigh
from gridhypervisor.planning.replay import replay
from gridhypervisor.planning.suiting import Expressions, Seeker, hopeless
from gridhypervisor.planning.world import Case

CHUNK = 256 << 10
"""Bytes of output in one item of a follow stream."""

MOST_REMEMBERED = 5_000
"""Jobs that have ended of which it is remembered how they are: what lists show again and again."""

MOST_MEMBERS = 256
"""Of a gang: more than these no gang has."""


def name_of(spec: JobSpec) -> str:
    """What a job is called for people."""
    return spec.name or spec.command[0].rpartition("/")[2][:63]


def job_of(checkpoint: str) -> str:
    """The job whose checkpoint has this id, INSTALLATION-JOB-EPOCH-N; empty: it is no checkpoint's id."""
    parts = checkpoint.split("-")
    return parts[1] if len(parts) == 4 and parts[3].isdecimal() else ""


class Jobs:
    def __init__(
        self, controller: Controller, resolve: Callable[[str], tuple[str, ImageManifest]], owner: str, project: str
    ) -> None:
        self.controller, self.store, self.logs = controller, controller.store, controller.logs
        self._resolve, self.owner, self.project = resolve, owner, project
        self.myself = Caller(owner, project, local=True)
        self._ended: dict[str, tuple[int, JobView]] = {}  # jobs that were looked at: their version, and how they are
        self.progress: dict[str, str] = {}  # entry -> what its prolog or epilog is doing

    def note(self, entry: str, words: str) -> None:
        """A session tells how far it is."""
        if words:
            self.progress[entry] = words
        else:
            self.progress.pop(entry, None)
        job = entry.split("-")[1]
        self.controller.followers.announce(job)

    async def submit(self, request: JobRequest, idempotency_key: str, caller: Caller) -> JobView:
        """Take a job in. What its fields alone can say of it was checked where the request was read."""
        spec = request.spec
        if spec.array or spec.gang is not None:
            why = f"it is an array, of the tasks {spec.array}" if spec.array else "it is a gang"
            raise ServiceError(Problem("submit job", 422, "invalid", why, "POST it to /v1/groups"))
        digest, manifest = self.image_for(spec, caller.owner)
        await self.require(spec.after)
        reserved = ""
        if request.substitute:
            reserved = f"j{await self.controller.in_store(self.store.reserve, 1)}"
            spec = task(spec, Values(reserved, arch=manifest.arch))
        job = Job(
            id=reserved,
            owner=caller.owner,
            project=caller.project,
            name=name_of(spec),
            spec=spec,
            destination=request.destination,
            folder=request.folder,
            image=manifest,
            image_digest=digest,
            created=self.controller.clock(),
            version=1,
        )
        vm = Vm(id="", owner=job.owner, project=job.project, job="", version=1)
        event = Event(job.created, job.owner, job.project, "", "job", "", "", JobState.PENDING)
        try:
            records = await self.controller.create(Birth(job, vm, event, idempotency_key))
        except StoreError as error:
            raise ServiceError(Problem("submit job", 507, "unavailable", str(error), error.hint)) from error
        view = await self._view(records.job.id)
        warning = self.warning(spec, digest, manifest, caller)
        return msgspec.structs.replace(view, warning=warning) if warning else view

    def warning(self, spec: JobSpec, digest: str, image: ImageManifest, caller: Caller) -> str:
        """What its user should know of such a job at once: that no site can take it, or that its rank says nothing."""
        controller = self.controller
        if words := hopeless(spec, (session.facts for session in controller.sessions.values())):
            return f"no site can take it as it is: {words}"
        if not spec.rank:
            return ""
        job = self._such(spec, digest, image, caller)
        return Expressions(job, controller.scheduling.grid(controller.facts(), (job,), job.created)).warning

    def _such(self, spec: JobSpec, digest: str, image: ImageManifest, caller: Caller) -> Job:
        """A job that does not exist, for what is asked of all that are like it."""
        now = self.controller.clock()
        return Job("", caller.owner, caller.project, spec.name or "", spec, "/", "/", image, digest, now, version=1)

    async def require(self, names: Sequence[str]) -> None:
        """Raises ServiceError: a job that is to be waited for does not exist."""
        for name in names:
            if not await self.controller.after.exists(name):
                hint = "`ghv list` shows the jobs there are"
                raise ServiceError(Problem("submit job", 404, "not-found", f"after: there is no {name}", hint))

    def image_for(self, spec: JobSpec, owner: str) -> tuple[str, ImageManifest]:
        """The image that a job asks for, by digest. Raises ServiceError: here the job can never run, or not so."""
        if spec.priority == URGENT and owner not in self.controller.scheduling.policy.jobs.fixed.urgent:
            why = f"priority: {URGENT} is urgent, which the policy lets only some users be, and {owner} is none"
            hint = f"ask for 0 to {URGENT - 1}, or have `jobs.fixed.urgent` of the policy name {owner}"
            raise ServiceError(Problem("submit job", 403, "refused", why, hint))
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
        return digest, manifest

    async def jobs(
        self, *, states: Sequence[str], before: str, group: str | None = None, owner: str = "", limit: int
    ) -> list[JobView]:
        which = partial(self.store.job_versions, states=states, before=before, group=group, owner=owner, limit=limit)
        try:
            found = await self.controller.in_store(which)
        except ValueError as error:
            hint = "give the id of the last job of the page before, e.g. j12"
            raise ServiceError(
                Problem("list jobs", 422, "invalid", f"before: {before!r} is no job's id", hint)
            ) from error
        ended: dict[str, JobView | None] = {}  # None: it was deleted meanwhile
        while unknown := [each for each in found if each[0] not in self.controller.cases and each[0] not in ended]:
            ended |= await self._looked_up(unknown)
        cases = self.controller.cases
        views = (self._present(cases[job]) if job in cases else ended[job] for job, _ in found)
        return [view for view in views if view is not None]

    async def _looked_up(self, jobs: Sequence[tuple[str, int]]) -> dict[str, JobView | None]:
        """How jobs of these versions are that are not alive: nothing of them is left to do, so that they stay so."""
        views: dict[str, JobView | None] = {}
        for job, version in jobs:
            known, view = self._ended.get(job, (0, None))
            views[job] = view if known == version else None
        if missing := [job for job, view in views.items() if view is None]:
            for records in await self.controller.in_store(self.store.these_jobs, missing):
                view = views[records.job.id] = self._present(case_of(records))
                self._ended[records.job.id] = records.job.version, view
        while len(self._ended) > MOST_REMEMBERED:
            del self._ended[next(iter(self._ended))]
        return views

    async def job(self, job: str) -> JobDetail:
        case = await self._case(job)
        ledger = await self.controller.in_store(self.store.ledger, job)
        entry = case.current.pilot_job if case.current is not None else ""
        outputs = await asyncio.to_thread(self.logs.outputs, job)
        if case.job.spec.restart_files:  # which an evicted attempt leaves beside its results
            outputs = tuple(path for path in outputs if declared(path, case.job.spec.outputs))
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

    async def move(self, job: str, to: str) -> JobView:
        """Asked for again while it leaves, it leaves once."""
        case = await self._movable(job, to)
        await self._leave(case, to, f"the user asked to move it{f' to {to}' if to else ''}")
        return await self._view(job)

    async def _leave(self, case: Case, to: str, why: str) -> None:
        await self.controller.move(case.job.id, why, to)

    async def _movable(self, job: str, to: str) -> Case:
        """The job, which can be moved to that site, or ("") to any other."""
        case = await self._case(job)
        what = f"move job {job}" + (f" to {to}" if to else "")
        self._known_site(what, to)
        now = self.controller.clock()
        facts, asked = self.controller.facts(), replace(case.job, spec=msgspec.structs.replace(case.job.spec, site=to))
        grid = self.controller.scheduling.grid(facts, (asked,), now)
        if (refusal := immovable(case, to, grid)) is not None:
            raise ServiceError(Problem(what, 409, "conflict", *refusal))
        return case

    def _known_site(self, what: str, site: str) -> None:
        if site and site not in self.controller.sessions:
            raise _no_site(what, site, self.controller.sessions)

    async def explain(self, job: str) -> Explanation:
        case = await self._case(job)
        controller, now = self.controller, self.controller.clock()
        grid = controller.scheduling.grid(controller.facts(), (case.job,), now)
        lead = controller.cases.gang(case.job.group)[:1] if case.job.spec.gang is not None else ()
        turn = controller.scheduling.turn(lead[0].job if lead else case.job, controller.seeking, now)
        told = explain(case, grid, controller.waiting.get(job, ""), turn)
        return msgspec.structs.replace(told, members=await self._members(told.group)) if told.group else told

    async def _members(self, gang: str) -> tuple[MemberView, ...]:
        """Where all members of a gang are, in their order."""
        known = {case.job.id: case for case in self.controller.cases.gang(gang)}
        if not known or len(known) < size(next(iter(known.values()))):
            for records in await self.controller.in_store(partial(self.store.jobs, group=gang, limit=MOST_MEMBERS)):
                known.setdefault(records.job.id, case_of(records))
        return tuple(map(member_view, sorted(known.values(), key=lambda case: int(case.job.member))))

    async def replay(self, job: str) -> ReplayView:
        """Make the choice of the job's site again, with all that were made together with it."""
        title, controller = f"replay the choice of a site for job {job}", self.controller
        await self._case(job)
        decisions = controller.decisions
        known = await asyncio.to_thread(decisions.last, job) if decisions is not None else None
        if known is None:
            why, hint = "there is no record of it", "it was given no site yet, or so long ago that the record is gone"
            raise ServiceError(Problem(title, 404, "not-found", why, hint))
        recorded, snapshot = known
        found = []
        for asked in recorded.asked:
            records = await controller.in_store(self.store.job, asked.job)
            if records is None:
                hint = "what it asked for is not known any more, and it counted"
                raise ServiceError(Problem(title, 409, "conflict", f"{asked.job}, a part of it, was deleted", hint))
            found.append(records.job)
        policy = await controller.in_store(self.store.policy, recorded.version)
        again = replay(recorded, snapshot.nodes, found, policy.policy)
        differences = [
            f"{name} was given {recorded.chosen.get(name, 'no site')}, and is given {again.get(name, 'none')}"
            for name in (asked.job for asked in recorded.asked)
            if recorded.chosen.get(name) != again.get(name)
        ]
        site, count = recorded.chosen[job], len(recorded.asked)
        return ReplayView(job, recorded.at, recorded.version, count, site, again.get(job, ""), tuple(differences))

    async def history(self, job: str) -> History:
        return history(await self._case(job), self.controller.clock())

    async def accounting(self, by: Sequence[By], *, since: float, until: float | None, owner: str = "") -> Accounts:
        """What was used in that time, until now if no end is named. Not by the loop's own thread: it may take long."""
        end = until if until is not None else self.controller.clock()
        return await asyncio.to_thread(self.store.accounts, by, since=since, until=end, owner=owner, limit=MOST)

    async def match(self, spec: JobSpec, caller: Caller) -> MatchView:
        """Where such a job could go now."""
        if spec.image:
            digest, image = self._resolve(spec.image)
        else:  # of whatever image; without one it were a probe
            digest, image, spec = "", ImageManifest(()), msgspec.structs.replace(spec, image="any")
        job = self._such(spec, digest, image, caller)
        scheduling, facts, now = self.controller.scheduling, self.controller.facts(), job.created
        grid = replace(scheduling.grid(facts, (job,), now), catalogue=scheduling.catalogue(facts, now))
        choice = weigh(Seeker(job), grid)
        best_first = sorted(choice.candidates, key=lambda c: (not c.chosen, c.rank is None, -(c.rank or 0.0), c.site))
        return MatchView(choice.summary, tuple(best_first), matching_nodes(job, grid), choice.warning)

    async def nodes(self, site: str) -> list[NodeView]:
        """What sites publish, each as a whole and of the nodes that are known; of all, where none is named."""
        controller = self.controller
        if site and site not in controller.sessions:
            raise _no_site(f"list nodes of site {site}", site, controller.sessions)
        catalogue = controller.scheduling.catalogue(controller.facts(), controller.clock())
        found = [NodeView(place.site, place.node, dict(catalogue.values(place))) for place in catalogue]
        for name, node in controller.cases.nodes():
            if Place(name, node) not in catalogue:  # of which nothing else is known until the job there has ended
                found.append(NodeView(name, node, {"Site": name, "Node": node}))
        return sorted((view for view in found if site in ("", view.site)), key=lambda view: (view.site, view.node))

    async def plan_ahead(self, limit: int) -> list[PlannedView]:
        """Where jobs that wait for a site would go, first to last."""
        controller, now = self.controller, self.controller.clock()
        cases = controller.cases
        jobs = [at_home(cases[job], controller.sessions) for job in controller.seeking]
        grid = controller.scheduling.grid(controller.facts(), jobs, now)
        return [planned_view(cases[each.job].job, each) for each in forecast(jobs, cases.held_places(now), grid, limit)]

    async def policy(self) -> PolicyView:
        return _policy_view(self.controller.scheduling.record)

    async def set_policy(self, policy: SchedulingPolicy, version: int | None, caller: Caller) -> PolicyView:
        """`version`: that the one before must have; None: any."""
        record = await self.controller.policies.set(policy, caller.owner, caller.project, version)
        if record is None:
            why = f"it has another version than {version}: somebody else has set it meanwhile"
            raise ServiceError(Problem("set the policy", 412, "conflict", why, "look at it, and set it again"))
        return _policy_view(record)

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
        current = case.current if case is not None else None
        if data or current is None or current.state is not AllocationState.RUNNING:
            return data
        # Nobody follows it, so what it has said so far is still at its site.
        session = self.controller.sessions.get(current.site)
        before = begins = 0
        if stream in OUTPUT:
            before = await asyncio.to_thread(self.logs.before, job, current.epoch, stream)
            begins = await asyncio.to_thread(self.logs.begins, job, current.epoch, stream)
        if session is None or offset < before:
            return b""
        return await session.peek(current.pilot_job, STREAMS[stream], begins + offset - before, limit)

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

    async def events(self, *, after: int, job: str, owner: str = "", limit: int) -> list[EventView]:
        found = await self.controller.in_store(self.store.events, after=after, job=job, owner=owner, limit=limit)
        return [event_view(e) for e in found]

    async def watch_events(self, *, after: int, job: str, owner: str = "") -> AsyncIterator[EventView]:
        changed = asyncio.Event()
        self.controller.followers.watch_events(changed)
        try:
            while True:
                changed.clear()
                while found := await self.events(after=after, job=job, owner=owner, limit=1000):
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
        entry = case.current.pilot_job if case.current is not None else ""
        return job_view(case, self.controller.waiting.get(case.job.id, ""), self.progress.get(entry, ""))


def _no_site(title: str, site: str, known: Iterable[str]) -> ServiceError:
    hint = f"known sites: {', '.join(sorted(known)) or 'none'}; add one with `ghv site add`"
    return ServiceError(Problem(title, 404, "not-found", f"site: there is no site {site!r}", hint))


def _policy_view(record: PolicyRecord) -> PolicyView:
    return PolicyView(record.policy, record.version, record.at, record.by)
