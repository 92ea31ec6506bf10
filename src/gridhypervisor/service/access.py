"""Who may ask the backend for what: the one place that decides it, for every route.

Handlers have no other way to the backend. Each method here says which scope it needs, whether what is named is the
caller's own, and what of the answer is his to see. What is somebody else's is answered as what is not there. Who calls
is known from the request (`guard.py`), by a context variable: where none is set, nothing is answered.

Paths on the service's machine, and all that runs its user's programs or uses his keys (workflows with their scripts,
recipes, sites' settings) are for those who come over the Unix socket, whatever scope a token has.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextvars import ContextVar
from typing import TypeVar

import msgspec

from gridhypervisor.execution.ports import Backend
from gridhypervisor.model.access import Caller, Result, Scope, TokenRequest, TokenView, Upload
from gridhypervisor.model.accounts import Accounts, By, History
from gridhypervisor.model.infraviews import (
    ExecRequest,
    ExecView,
    InfrastructurePlan,
    InfrastructureRequest,
    InfrastructureView,
)
from gridhypervisor.model.measures import Measures
from gridhypervisor.model.policy import PolicyView, SchedulingPolicy
from gridhypervisor.model.spec import JobSpec
from gridhypervisor.model.views import (
    CheckpointView,
    EventView,
    Explanation,
    FollowItem,
    GroupView,
    ImageBuildRequest,
    ImageImportRequest,
    ImageView,
    JobDetail,
    JobRequest,
    JobView,
    MatchView,
    NodeView,
    Operation,
    OperationItem,
    PlannedView,
    Problem,
    ReplayView,
    ServiceError,
    ServiceView,
    SiteChange,
    SiteLogin,
    SiteRemoval,
    SiteRequest,
    SiteUsage,
    SiteView,
    WarmRequest,
)
from gridhypervisor.model.workflow import Progress, Request

T = TypeVar("T")

calling: ContextVar[Caller] = ContextVar("calling")
"""Who asks, while a request is answered."""


class Access:
    """The backend, as far as who asks may use it. Raises ServiceError."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    # -- jobs -----------------------------------------------------------------------------------------------------

    async def submit(self, request: JobRequest, idempotency_key: str) -> JobView:
        return await self._backend.submit(request, idempotency_key, await self._submitter(request))

    async def submit_group(self, request: JobRequest, idempotency_key: str) -> GroupView:
        return await self._backend.submit_group(request, idempotency_key, await self._submitter(request))

    async def submit_workflow(self, request: Request, idempotency_key: str) -> GroupView:
        self._here("submit a workflow", "its job files and scripts are read and run there")
        return await self._backend.submit_workflow(request, idempotency_key)

    async def _submitter(self, request: JobRequest) -> Caller:
        caller = self._may(Scope.WRITE)
        if request.folder or request.destination:
            self._here("submit a job with paths", "leave out `folder` and `destination`: upload inputs, fetch results")
        if request.spec.network == "outbound" and not caller.outbound:
            why = "network: its guest would reach whatever the site's account can reach, and the token is not for that"
            hint = "ask for `none`; or have a token made with --outbound"
            raise ServiceError(Problem("submit a job", 403, "refused", why, hint))
        for name in request.spec.after:
            await self._own(name)
        return caller

    async def jobs(self, *, states: Sequence[str], before: str, group: str | None, limit: int) -> list[JobView]:
        sees = self._may(Scope.READ).sees
        return await self._backend.jobs(states=states, before=before, group=group, owner=sees, limit=limit)

    async def job(self, job: str) -> JobDetail:
        await self._own(job)
        return await self._backend.job(job)

    async def cancel(self, job: str) -> JobView:
        await self._own(job, Scope.WRITE)
        return await self._backend.cancel(job)

    async def delete(self, job: str) -> None:
        await self._own(job, Scope.WRITE)
        await self._backend.delete(job)

    async def recover(self, job: str) -> JobView:
        await self._own(job, Scope.WRITE)
        return await self._backend.recover(job)

    async def move(self, job: str, to: str) -> JobView:
        await self._own(job, Scope.WRITE)
        return await self._backend.move(job, to)

    async def suspend(self, job: str) -> JobView:
        await self._own(job, Scope.WRITE)
        return await self._backend.suspend(job)

    async def resume(self, job: str, to: str = "") -> JobView:
        await self._own(job, Scope.WRITE)
        return await self._backend.resume(job, to)

    async def save(self, job: str) -> JobView:
        await self._own(job, Scope.WRITE)
        return await self._backend.save(job)

    async def pause(self, job: str, *, undo: bool) -> JobView:
        await self._own(job, Scope.WRITE)
        return await self._backend.pause(job, undo=undo)

    async def checkpoints(self, job: str) -> list[CheckpointView]:
        """Without a job: of all that the caller sees."""
        if job:
            await self._own(job)
            return await self._backend.checkpoints(job)
        sees = self._may(Scope.READ).sees
        found = await self._backend.checkpoints("")
        return [each for each in found if sees in ("", await self._backend.owner_of(each.job))]

    async def delete_checkpoint(self, checkpoint: str) -> None:
        await self._own(checkpoint, Scope.WRITE)
        await self._backend.delete_checkpoint(checkpoint)

    async def copy_checkpoint(self, checkpoint: str) -> CheckpointView:
        await self._own(checkpoint, Scope.WRITE)
        return await self._backend.copy_checkpoint(checkpoint)

    async def restore(self, checkpoint: str) -> JobView:
        await self._own(checkpoint, Scope.WRITE)
        return await self._backend.restore(checkpoint)

    async def explain(self, job: str) -> Explanation:
        await self._own(job)
        return await self._backend.explain(job)

    async def replay(self, job: str) -> ReplayView:
        self._may(Scope.ADMIN)  # it tells of all jobs that were given sites together
        return await self._backend.replay(job)

    async def history(self, job: str) -> History:
        await self._own(job)
        return await self._backend.history(job)

    async def accounting(self, by: Sequence[By], *, since: float, until: float | None) -> Accounts:
        sees = self._may(Scope.READ).sees
        return await self._backend.accounting(by, since=since, until=until, owner=sees)

    def follow(self, job: str, *, output: bool) -> AsyncIterator[FollowItem]:
        return self._followed(job, self._backend.follow(job, output=output))

    async def log(self, job: str, stream: str, offset: int, limit: int) -> bytes:
        await self._own(job)
        return await self._backend.log(job, stream, offset, limit)

    async def results(self, job: str) -> list[Result]:
        await self._own(job)
        return await self._backend.results(job)

    async def result(self, job: str, path: str, offset: int, limit: int) -> bytes:
        await self._own(job)
        return await self._backend.result(job, path, offset, limit)

    async def upload(self, sha256: str) -> Upload:
        return await self._backend.upload(self._may(Scope.READ).owner, sha256)

    async def add_upload(self, sha256: str, offset: int, size: int, data: bytes) -> Upload:
        return await self._backend.add_upload(self._may(Scope.WRITE).owner, sha256, offset, size, data)

    # -- groups ---------------------------------------------------------------------------------------------------

    async def workflow(self, group: str) -> Progress:
        await self._own(group)
        return await self._backend.workflow(group)

    async def groups(self, *, before: str, limit: int) -> list[GroupView]:
        return await self._backend.groups(before=before, owner=self._may(Scope.READ).sees, limit=limit)

    async def group(self, group: str) -> GroupView:
        await self._own(group)
        return await self._backend.group(group)

    async def member(self, group: str, name: str) -> JobView:
        await self._own(group)
        return await self._backend.member(group, name)

    async def cancel_group(self, group: str) -> GroupView:
        await self._own(group, Scope.WRITE)
        return await self._backend.cancel_group(group)

    async def recover_group(self, group: str) -> GroupView:
        await self._own(group, Scope.WRITE)
        return await self._backend.recover_group(group)

    async def delete_group(self, group: str) -> None:
        await self._own(group, Scope.WRITE)
        await self._backend.delete_group(group)

    def follow_group(self, group: str) -> AsyncIterator[GroupView]:
        return self._followed(group, self._backend.follow_group(group))

    # -- infrastructures: of the service's own user as yet --------------------------------------------------------

    async def apply(self, request: InfrastructureRequest, idempotency_key: str) -> InfrastructureView:
        self._here("apply an infrastructure", "its inputs are read there")
        self._may(Scope.WRITE)
        return await self._backend.apply(request, idempotency_key)

    async def plan_infrastructure(self, request: InfrastructureRequest) -> InfrastructurePlan:
        self._here("plan an infrastructure", "its inputs are read there")
        return await self._backend.plan_infrastructure(request)

    async def infrastructures(self, *, before: str, limit: int) -> list[InfrastructureView]:
        sees = self._may(Scope.READ).sees
        found = await self._backend.infrastructures(before=before, limit=limit)
        return [each for each in found if sees in ("", each.owner)]

    async def infrastructure(self, name: str) -> InfrastructureView:
        await self._own(name)
        return await self._backend.infrastructure(name)

    def follow_infrastructure(self, name: str) -> AsyncIterator[InfrastructureView]:
        return self._followed(name, self._backend.follow_infrastructure(name))

    async def scale(self, name: str, counts: dict[str, int]) -> InfrastructureView:
        await self._own(name, Scope.WRITE)
        return await self._backend.scale(name, counts)

    async def cancel_infrastructure(self, name: str) -> InfrastructureView:
        await self._own(name, Scope.WRITE)
        return await self._backend.cancel_infrastructure(name)

    async def delete_infrastructure(self, name: str) -> None:
        await self._own(name, Scope.WRITE)
        await self._backend.delete_infrastructure(name)

    async def execute(self, job: str, request: ExecRequest) -> ExecView:
        await self._own(job, Scope.WRITE)
        return await self._backend.execute(job, request)

    # -- events ---------------------------------------------------------------------------------------------------

    async def events(self, *, after: int, job: str, limit: int) -> list[EventView]:
        sees = self._may(Scope.READ).sees
        return await self._backend.events(after=after, job=job, owner=sees, limit=limit)

    def watch_events(self, *, after: int, job: str) -> AsyncIterator[EventView]:
        return self._backend.watch_events(after=after, job=job, owner=self._may(Scope.READ).sees)

    # -- images: all users share them -----------------------------------------------------------------------------

    async def images(self) -> list[ImageView]:
        self._may(Scope.READ)
        return await self._backend.images()

    async def image(self, reference: str) -> ImageView:
        self._may(Scope.READ)
        return await self._backend.image(reference)

    async def build_image(self, request: ImageBuildRequest) -> Operation:
        self._here("build an image", "its recipe and files are read there")
        return await self._backend.build_image(request)

    async def import_image(self, request: ImageImportRequest) -> Operation:
        self._here("import an image", "the disk is read there")
        return await self._backend.import_image(request)

    async def verify_image(self, reference: str) -> Operation:
        self._may(Scope.ADMIN)
        return await self._backend.verify_image(reference)

    async def warm_image(self, request: WarmRequest) -> Operation:
        """Its snapshots are the caller's: no user's guest begins with what another's left."""
        return await self._backend.warm_image(request, self._may(Scope.ADMIN).owner)

    async def delete_image(self, reference: str) -> None:
        self._may(Scope.ADMIN)
        await self._backend.delete_image(reference)

    # -- sites: all users share them, and the accounts there ------------------------------------------------------

    async def sites(self) -> list[SiteView]:
        caller = self._may(Scope.READ)
        return [_shown(each, caller) for each in await self._backend.sites()]

    async def site(self, name: str) -> SiteView:
        caller = self._may(Scope.READ)
        return _shown(await self._backend.site(name), caller)

    async def add_site(self, request: SiteRequest) -> SiteView:
        self._here("add a site", "its settings name keys and files there")
        return await self._backend.add_site(request)

    async def edit_site(self, name: str, change: SiteChange, version: int | None) -> SiteView:
        self._here("change a site", "its settings name keys and files there")
        return await self._backend.edit_site(name, change, version)

    async def drain_site(self, name: str, *, undo: bool) -> SiteView:
        caller = self._may(Scope.ADMIN)
        return _shown(await self._backend.drain_site(name, undo=undo), caller)

    async def login_site(self, name: str) -> SiteLogin:
        self._here("log in to a site", "it takes a terminal there")
        return await self._backend.login_site(name)

    async def remove_site(self, name: str, *, abandon: bool) -> SiteRemoval:
        self._here("remove a site", "it takes its settings along")
        return await self._backend.remove_site(name, abandon=abandon)

    async def check_site(self, name: str, *, patience: int) -> Operation:
        self._may(Scope.ADMIN)
        return await self._backend.check_site(name, patience=patience)

    async def site_usage(self, name: str) -> SiteUsage:
        self._may(Scope.ADMIN)  # it names all who share the account
        return await self._backend.site_usage(name)

    # -- scheduling -----------------------------------------------------------------------------------------------

    async def match(self, spec: JobSpec) -> MatchView:
        return await self._backend.match(spec, self._may(Scope.READ))

    async def nodes(self, site: str) -> list[NodeView]:
        self._may(Scope.READ)
        return await self._backend.nodes(site)

    async def plan_ahead(self, limit: int) -> list[PlannedView]:
        sees = self._may(Scope.READ).sees
        return [each for each in await self._backend.plan_ahead(limit) if sees in ("", each.owner)]

    async def policy(self) -> PolicyView:
        self._may(Scope.ADMIN)  # it names users
        return await self._backend.policy()

    async def set_policy(self, policy: SchedulingPolicy, version: int | None) -> PolicyView:
        return await self._backend.set_policy(policy, version, self._may(Scope.ADMIN))

    # -- the service ----------------------------------------------------------------------------------------------

    async def operations(self) -> list[Operation]:
        self._may(Scope.ADMIN)  # who may not begin one has none
        return await self._backend.all_operations()

    def follow_operation(self, operation: str) -> AsyncIterator[OperationItem]:
        self._may(Scope.ADMIN)
        return self._backend.follow_operation(operation)

    async def stop_operation(self, operation: str) -> None:
        self._may(Scope.ADMIN)
        await self._backend.stop_operation(operation)

    async def status(self) -> ServiceView:
        self._may(Scope.ADMIN)
        return await self._backend.status()

    async def stop(self) -> None:
        self._here("stop the service", "nobody could start it again from elsewhere")
        await self._backend.stop()

    async def measures(self) -> Measures:
        self._may(Scope.READ)
        return await self._backend.measures()

    async def who(self) -> Caller:
        return self._may(Scope.READ)

    async def tokens(self) -> list[TokenView]:
        self._may(Scope.ADMIN)
        return await self._backend.tokens()

    async def create_token(self, request: TokenRequest) -> TokenView:
        return await self._backend.create_token(request, self._may(Scope.ADMIN))

    async def revoke_token(self, token: str) -> TokenView:
        """Everybody may revoke the token that he comes with."""
        caller = self._may(Scope.READ)
        if token != caller.token:
            self._may(Scope.ADMIN)
        return await self._backend.revoke_token(token)

    # -- deciding -------------------------------------------------------------------------------------------------

    def _may(self, scope: Scope) -> Caller:
        """Who asks. Raises ServiceError: his token is not for that."""
        caller = calling.get()
        if not caller.scope.includes(scope):
            why = f"the token is for {caller.scope}, and this takes {scope}"
            hint = f"ask whoever runs the service for another one: ghv token create --scope {scope}"
            raise ServiceError(Problem(f"use token {caller.token}", 403, "refused", why, hint))
        return caller

    def _here(self, what: str, why: str) -> None:
        """Raises ServiceError: he does not come over the Unix socket."""
        if not self._may(Scope.READ).local:
            hint = "ask whoever runs the service"
            raise ServiceError(Problem(what, 403, "refused", f"only on the service's own machine: {why}", hint))

    async def _own(self, name: str, scope: Scope = Scope.READ) -> None:
        """See that a job, a group or a checkpoint is the caller's, or that he sees all."""
        sees = self._may(scope).sees
        if sees and await self._backend.owner_of(name) != sees:
            hint = "`ghv list` shows what is yours"
            raise ServiceError(Problem(f"find {name}", 404, "not-found", "you have nothing of this name", hint))

    async def _followed(self, name: str, items: AsyncIterator[T]) -> AsyncGenerator[T]:
        try:
            await self._own(name)
            async for item in items:
                yield item
        finally:
            if isinstance(items, AsyncGenerator):
                await items.aclose()


def _shown(site: SiteView, caller: Caller) -> SiteView:
    """Without what concerns the service's user alone: the login, keys, files and folders of his account."""
    if caller.scope is Scope.ADMIN:
        return site
    return msgspec.structs.replace(site, address="", health_why="", workdir="", settings=None)
