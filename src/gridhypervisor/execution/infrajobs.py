"""What a user can ask of virtual infrastructures, and of the guests of their VMs: a part of the API's backend."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Callable
from functools import partial

import msgspec

from gridhypervisor.execution.controller import Controller
from gridhypervisor.execution.groupjobs import GroupJobs
from gridhypervisor.execution.ports import Session
from gridhypervisor.model.commit import StoreError
from gridhypervisor.model.errors import LinkError, LinkLost
from gridhypervisor.model.infrastructure import InfrastructureSpec, problems, vm_job
from gridhypervisor.model.infraviews import (
    ExecRequest,
    ExecView,
    InfrastructurePlan,
    InfrastructureRequest,
    InfrastructureView,
    PlannedVm,
    RolePlan,
    RoleView,
    VmView,
)
from gridhypervisor.model.records import (
    AllocationState,
    Blueprint,
    Event,
    Group,
    InfrastructureState,
    JobState,
    RoleImage,
    Wish,
)
from gridhypervisor.model.replacing import replace
from gridhypervisor.model.views import GroupView, Problem, ServiceError
from gridhypervisor.model.wire import EXECUTIONS, MOST_PRINTED, Execute, Executed, ImageManifest, from_plain
from gridhypervisor.planning.infrastructures import begun, births, changed, differences, scaled, wanted
from gridhypervisor.planning.placement import place_all, weigh
from gridhypervisor.planning.suiting import Seeker
from gridhypervisor.planning.world import Case

PAGE = 200
"""Groups that are looked through at once for one of a name."""

PATIENCE = 20.0
"""Seconds beyond a command's limit until its result must have come."""

CONNECTING = 15.0
"""Seconds for which a site is waited for that does not answer: the service may have started just now."""

SOON, SELDOM = 0.05, 1.0
"""Seconds between two looks for a command's result, at first and at last."""


class InfrastructureJobs(GroupJobs):
    def __init__(
        self, controller: Controller, resolve: Callable[[str], tuple[str, ImageManifest]], owner: str, project: str
    ) -> None:
        super().__init__(controller, resolve, owner, project)
        self._applying = asyncio.Lock()  # of two that apply the same name, one finds what the other has made
        self._commands = 0  # the number of the last command in a guest

    # -- infrastructures -------------------------------------------------------------------------------------------

    async def apply(self, request: InfrastructureRequest, idempotency_key: str) -> InfrastructureView:
        """Have an infrastructure that is so: a new one, or the one of this name changed."""
        spec, title = request.spec, f"apply {request.spec.name}"
        async with self._applying:
            standing = self._named(spec.name)
            blueprint = self._blueprint(spec, title, standing)
            if standing is None:
                return await self._create(request, blueprint, idempotency_key)
            assert standing.blueprint is not None, "what is named so is an infrastructure"
            _, refused = differences(standing.blueprint.spec, spec)
            if refused:
                hint = (
                    f"`ghv delete {spec.name}`, wait for its end, and apply it again; or leave these fields as they are"
                )
                why = f"it is there, and cannot be changed in {', '.join(refused)}"
                raise ServiceError(Problem(title, 409, "conflict", why, hint))
            return await self._change(standing.id, title, lambda _: blueprint)

    async def scale(self, name: str, counts: dict[str, int]) -> InfrastructureView:
        """Have so many VMs of these roles from now on."""
        title = f"scale {name}"
        group = await self._infrastructure(name)

        def change(standing: Blueprint) -> Blueprint:
            spec = standing.spec
            for role, count in counts.items():
                try:
                    spec = scaled(spec, role, count)
                except ValueError as error:
                    problem, _, hint = str(error).partition("; ")
                    raise ServiceError(Problem(title, 422, "invalid", problem, hint)) from error
            if found := problems(spec):
                why = "\n".join(f"{field}: {what}" for field, what in found)
                raise ServiceError(Problem(title, 422, "invalid", why, "ask for fewer"))
            return replace(standing, spec=spec)

        return await self._change(group.id, title, change)

    async def plan_infrastructure(self, request: InfrastructureRequest) -> InfrastructurePlan:
        """What applying it would do now."""
        spec, title = request.spec, f"plan {request.spec.name}"
        standing = self._named(spec.name)
        blueprint = self._blueprint(spec, title, standing)
        names, changes, refused = wanted(spec), list[str](), list[str]()
        if standing is not None and standing.blueprint is not None:
            changes, refused = differences(standing.blueprint.spec, spec)
            there = {case.job.member for case in await self.controller.groups.infrastructures.cases(standing)}
            names = [name for name in names if name not in there]
        now, scheduling, facts = self.controller.clock(), self.controller.scheduling, self.controller.facts()
        draft = Group("i0", self.owner, self.project, spec.name, "", request.folder, now, blueprint=blueprint,
                      standing=begun(blueprint, now))  # fmt: skip
        jobs = [birth.job for birth in births(draft, names, 1 << 40, now)]  # after all that there are
        grid = scheduling.grid(facts, jobs, now)
        choices = place_all([Seeker(job) for job in jobs], grid)
        weighed = {job.member.rpartition("-")[0]: job for job in reversed(jobs)}
        roles = []
        for role in (role for role in spec.roles if role in weighed):
            choice = weigh(Seeker(weighed[role]), grid)
            roles.append(RolePlan(role, choice.candidates, choice.warning))
        planned = tuple(PlannedVm(job.member, choices[job.id].site or "", choices[job.id].summary) for job in jobs)
        found = standing.id if standing is not None else ""
        return InfrastructurePlan(spec.name, found, tuple(changes), tuple(refused), planned, tuple(roles))

    async def infrastructures(self, *, before: str, limit: int) -> list[InfrastructureView]:
        """Newest first, below the id `before`."""
        found: list[Group] = []
        try:
            while len(found) < limit:
                page = await self.controller.in_store(partial(self.store.groups, before=before, limit=PAGE))
                found += filter(self._ours, page)
                if len(page) < PAGE:
                    break
                before = page[-1].id
        except ValueError as error:
            hint = "give the id of the last one of the page before, e.g. i12"
            raise ServiceError(Problem("list infrastructures", 422, "invalid", f"before: {error}", hint)) from error
        return [await self._infrastructure_view(group) for group in found[:limit]]

    async def infrastructure(self, name: str) -> InfrastructureView:
        """By its id, or its name: then the newest of that name."""
        return await self._infrastructure_view(await self._infrastructure(name))

    async def follow_infrastructure(self, name: str) -> AsyncIterator[InfrastructureView]:
        """The infrastructure as it changes, until it has ended."""
        group = (await self._infrastructure(name)).id
        gone = InfrastructureState.CANCELLED
        async for view in self._follow(
            group,
            lambda: self.infrastructure(group),
            lambda view: view.state.final,
            lambda view: msgspec.structs.replace(view, state=gone, wish=Wish.DELETE, vms=(), why="it was deleted"),
        ):
            yield view

    async def cancel_infrastructure(self, name: str) -> InfrastructureView:
        group = await self._infrastructure(name)
        await self.controller.groups.wish(group.id, Wish.CANCEL)
        return await self.infrastructure(group.id)

    async def delete_infrastructure(self, name: str) -> None:
        """End it and forget it: it is gone when all sites have confirmed that. One that is deleted already may be
        deleted again."""
        if not await self.controller.in_store(self.store.was_deleted, name):
            group = await self._infrastructure(name)
            await self.controller.groups.wish(group.id, Wish.DELETE)

    async def recover_group(self, group: str) -> GroupView:
        """Of an infrastructure, VMs that have failed make room for others too."""
        found = await self._group(group)
        if found.blueprint is not None and not found.state.final:
            for _, m in await self.controller.groups.infrastructures.members(found):
                if m.failed:
                    await self.controller.wish(m.job, Wish.DELETE)
        return await super().recover_group(group)

    def _blueprint(self, spec: InfrastructureSpec, title: str, standing: Group | None) -> Blueprint:
        """With the images of all roles: those that a role had stay, so that its VMs stay alike.

        Raises:
            ServiceError: an image or a site is not there, or it can never run so; says of which role.
        """
        had = standing.blueprint if standing is not None else None
        images: dict[str, RoleImage] = {}
        for name, role in spec.roles.items():
            if had is not None and name in had.images and had.spec.roles[name].image == role.image:
                images[name] = had.images[name]
                continue
            try:
                images[name] = RoleImage(*self.image_for(vm_job(role, name, 3600), self.owner))
            except ServiceError as error:
                p = error.problem
                why = f"roles.{name}: {p.detail or p.title}"
                raise ServiceError(msgspec.structs.replace(p, title=title, detail=why)) from error
        return Blueprint(spec, images)

    async def _create(self, request: InfrastructureRequest, blueprint: Blueprint, key: str) -> InfrastructureView:
        now = self.controller.clock()
        group = Group(
            id="",
            owner=self.owner,
            project=self.project,
            name=request.spec.name,
            destination="",
            folder=request.folder,
            created=now,
            blueprint=blueprint,
            standing=begun(blueprint, now),
            version=1,
        )
        event = Event(now, self.owner, self.project, "", "group", "", "", InfrastructureState.CREATING)
        try:
            made = await self.controller.groups.create(group, event, key)
        except StoreError as error:
            raise ServiceError(
                Problem(f"apply {request.spec.name}", 507, "unavailable", str(error), error.hint)
            ) from error
        return await self._infrastructure_view(made)

    async def _change(self, group: str, title: str, change: Callable[[Blueprint], Blueprint]) -> InfrastructureView:
        """Commit what `change` makes of its blueprint, if that is anything new."""

        def whole(before: Group) -> Group:
            assert before.blueprint is not None
            state = before.standing.state
            if before.wish is not Wish.RUN or state in (InfrastructureState.UNDOING, InfrastructureState.ENDING):
                why = f"it is {state if state.transient else 'about to be ended'}"
                hint = f"wait for its end (`ghv wait {before.name}`), and apply it again"
                raise ServiceError(Problem(title, 409, "conflict", why, hint))
            if state.final:
                raise ServiceError(Problem(title, 409, "conflict", f"it has {_ended(state)}", "apply it again"))
            blueprint = change(before.blueprint)
            return before if blueprint == before.blueprint else changed(before, blueprint, self.controller.clock())

        after = await self.controller.groups.change(group, whole, "its user changed it")
        if after is None:
            raise ServiceError(Problem(title, 404, "not-found", "it was deleted meanwhile", "apply it again"))
        return await self._infrastructure_view(after)

    def _named(self, name: str) -> Group | None:
        """The infrastructure of this name that has not ended."""
        alive = (group for group in self.controller.groups.alive() if self._ours(group) and not group.state.final)
        return next((group for group in alive if group.name == name), None)

    def _ours(self, group: Group) -> bool:
        """Whether it is an infrastructure of this user's."""
        return group.blueprint is not None and (group.owner, group.project) == (self.owner, self.project)

    async def _infrastructure(self, name: str) -> Group:
        if (found := self._named(name)) is not None:
            return found
        group = await self.controller.groups.find(name)
        if group is not None and self._ours(group):
            return group
        before = ""
        while page := await self.controller.in_store(partial(self.store.groups, before=before, limit=PAGE)):
            for each in page:
                if self._ours(each) and each.name == name:
                    return each
            before = page[-1].id
        why, hint = "there is no such infrastructure", "`ghv list` shows what there is"
        raise ServiceError(Problem(f"find {name}", 404, "not-found", why, hint))

    async def _infrastructure_view(self, group: Group) -> InfrastructureView:
        assert group.blueprint is not None
        spec, s = group.blueprint.spec, group.standing
        members = await self.controller.groups.infrastructures.members(group)
        vms = sorted(
            (
                VmView(
                    m.name,
                    m.role,
                    m.job,
                    m.state,
                    m.wish,
                    m.ready,
                    a.site if (a := case.current) is not None else "",
                    _node(case),
                    case.hypervisor(a) if a is not None else "",
                    self.controller.waiting.get(m.job, "") or ("" if m.ready else m.words),
                )
                for case, m in members
            ),
            key=lambda vm: (list(spec.roles).index(vm.role) if vm.role in spec.roles else len(spec.roles), vm.name),
        )
        roles = tuple(
            RoleView(
                name,
                role.wanted,
                sum(vm.role == name and vm.ready is True for vm in vms),
                role.bounds.min,
                role.bounds.max,
            )
            for name, role in spec.roles.items()
        )
        return InfrastructureView(
            id=group.id,
            name=group.name,
            owner=group.owner,
            project=group.project,
            state=s.state,
            wish=group.wish,
            created=group.created,
            since=s.since,
            expires=s.expires,
            roles=roles,
            vms=tuple(vms),
            spec=spec,
            why=s.why,
            note=self.controller.groups.trouble.get(group.id, ""),
            ended=group.ended,
            version=group.version,
        )

    # -- guests ----------------------------------------------------------------------------------------------------

    async def execute(self, job: str, request: ExecRequest) -> ExecView:
        """Run a command in a VM beside its program, and wait for its end. That it was asked for is written down
        nowhere: who gets no answer does not know whether it ran."""
        title = f"run a command in {job}"
        case = await self._case(job)
        a = case.current
        if case.job.service is None:
            hint = "of a job, `ghv logs` shows what it prints"
            raise ServiceError(Problem(title, 409, "conflict", "it is no VM of an infrastructure", hint))
        session = self.controller.sessions.get(a.site) if a is not None else None
        if (
            a is None
            or session is None
            or a.state is not AllocationState.RUNNING
            or case.job.state is not JobState.RUNNING
        ):
            hint = f"wait until it runs: `ghv show {case.job.group}`"
            raise ServiceError(Problem(title, 409, "conflict", f"it does not run: it is {case.job.state}", hint))
        clock = asyncio.get_running_loop().time
        # By the clock: it has to be above those of the services before this one.
        number = self._commands = max(self._commands + 1, int(self.controller.clock() * 1000))
        command = Execute(request.command, request.limit, base64.b64encode(request.stdin).decode())
        patience, pause = clock() + CONNECTING, SOON
        while True:
            try:
                await session.execute(a.pilot_job, number, command)
                break
            except (LinkLost, LinkError) as error:
                if isinstance(error, LinkError) or clock() >= patience:
                    hint = f"`ghv site show {a.site}` says how the site is"
                    raise ServiceError(Problem(title, 503, "unavailable", str(error), hint)) from error
            await asyncio.sleep(SELDOM)  # asked again it has the effect of once
        deadline = clock() + request.limit + PATIENCE
        while True:
            data = await session.peek(a.pilot_job, f"{EXECUTIONS}/{number}.json", 0, 1 << 16)
            if data:
                return await _result(title, session, a.pilot_job, number, data)
            standing = self.controller.cases.get(job)
            present = standing.current if standing is not None else None
            if present is None or present.id != a.id or present.state is not AllocationState.RUNNING:
                raise ServiceError(Problem(title, 409, "conflict", "it ended meanwhile", f"ghv show {job}"))
            if clock() >= deadline:
                why = f"its guest has not answered for {request.limit + PATIENCE:.0f} s"
                raise ServiceError(Problem(title, 503, "unavailable", why, f"ghv show {case.job.group}"))
            await asyncio.sleep(pause)
            pause = min(SELDOM, pause * 1.3)


async def _result(title: str, session: Session, entry: str, number: int, data: bytes) -> ExecView:
    """What came of a command that has ended. `data`: its pilot's word on that."""
    try:
        how = from_plain(Executed, json.loads(data))
    except ValueError as error:  # WireError is one too
        raise ServiceError(Problem(title, 502, "internal", f"its pilot's answer: {error}", "try again")) from error
    if how.code is None:
        raise ServiceError(Problem(title, 422, "invalid", how.why, "give another command, or more time"))
    out, err = [await session.peek(entry, f"{EXECUTIONS}/{number}.{end}", 0, MOST_PRINTED) for end in ("out", "err")]
    return ExecView(how.code, out, err)


def _node(case: Case) -> str:
    a = case.current
    if a is None:
        return ""
    view = case.sight(a).view
    if a.exit is not None:
        return a.exit.node
    return view.owner.node if view is not None and view.owner is not None else ""


def _ended(state: InfrastructureState) -> str:
    return {InfrastructureState.CANCELLED: "been cancelled"}.get(state, str(state))
