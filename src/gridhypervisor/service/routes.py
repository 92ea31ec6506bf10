"""The routes under /v1: one handler for each thing that the backend can be asked for, as far as `Access` lets one."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, Literal

from litestar import Request, Response, Router
from litestar.handlers import HTTPRouteHandler
from litestar.params import FromPath, FromQuery, HeaderParameter, JSONBody, QueryParameter
from litestar.response import Stream

from gridhypervisor.model.accounts import Accounts, By, History
from gridhypervisor.model.policy import PolicyView, SchedulingPolicy
from gridhypervisor.model.records import JobState
from gridhypervisor.model.spec import JobSpec
from gridhypervisor.model.views import (
    PATIENCE,
    CheckpointView,
    EventView,
    Explanation,
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
    PlannedView,
    ReplayView,
    ServiceView,
    SiteChange,
    SiteLogin,
    SiteRemoval,
    SiteRequest,
    SiteUsage,
    SiteView,
    WarmRequest,
)
from gridhypervisor.model.workflow import Progress
from gridhypervisor.model.workflow import Request as WorkflowRequest
from gridhypervisor.service import streams
from gridhypervisor.service.access import Access
from gridhypervisor.service.body import Body
from gridhypervisor.service.infraroutes import infrastructures
from gridhypervisor.service.parts import (
    LOG_LIMIT,
    After,
    IfMatch,
    Limit,
    Offset,
    begun,
    delete,
    get,
    page,
    patch,
    post,
    put,
    version_of,
    versioned,
)
from gridhypervisor.service.userroutes import file_routes, token_routes

LogName = Annotated[Literal["stdout", "stderr", "console", "pilot", "batch"], QueryParameter()]


def make_router(backend: Access, closing: asyncio.Event) -> Router:
    """All routes under /v1. `closing`: set when streams are to end."""
    handlers = [
        *_jobs(backend, closing),
        *_checkpoints(backend),
        *_groups(backend, closing),
        *infrastructures(backend, closing),
        *_images(backend),
        *_sites(backend),
        *_scheduling(backend),
        *_service(backend, closing),
        *file_routes(backend),
        *token_routes(backend),
    ]
    return Router("/v1", route_handlers=handlers)


def _jobs(backend: Access, closing: asyncio.Event) -> list[HTTPRouteHandler]:
    @post("/jobs", status_code=202, dto=Body[JobRequest], return_dto=None, summary="Accept a job", tags=["jobs"])
    async def submit_job(
        data: JSONBody[JobRequest], idempotency_key: Annotated[str, HeaderParameter(name="Idempotency-Key")] = ""
    ) -> Response[JobView]:
        """The same Idempotency-Key again returns the job of the first time."""
        job = await backend.submit(data, idempotency_key)
        return Response(job, headers={"Location": f"/v1/jobs/{job.id}"})

    @get("/jobs", summary="Jobs, newest first", tags=["jobs"])
    async def list_jobs(
        request: Request[Any, Any, Any],
        states: Annotated[list[JobState] | None, QueryParameter(name="state")] = None,
        before: FromQuery[str] = "",
        group: FromQuery[str | None] = None,
        limit: Limit = 100,
    ) -> Response[list[JobView]]:
        """The next page is asked for with `before`: this page's last job; `Link` names it. `group`: of this one, or
        ("") of none."""
        named = [str(state) for state in states or ()]
        found = await backend.jobs(states=named, before=before, group=group, limit=limit)
        return page(request, found, limit, before=found[-1].id if found else "")

    @get("/jobs/{job:str}", summary="A job with its attempts and ledger", tags=["jobs"])
    async def get_job(job: FromPath[str]) -> JobDetail:
        return await backend.job(job)

    @delete("/jobs/{job:str}", summary="End a job and forget it", tags=["jobs"])
    async def delete_job(job: FromPath[str]) -> None:
        await backend.delete(job)

    @post("/jobs/{job:str}/cancel", status_code=202, summary="End a job", tags=["jobs"])
    async def cancel_job(job: FromPath[str]) -> JobView:
        return await backend.cancel(job)

    @post("/jobs/{job:str}/recover", status_code=202, summary="Try again what is stuck", tags=["jobs"])
    async def recover_job(job: FromPath[str]) -> JobView:
        return await backend.recover(job)

    @post("/jobs/{job:str}/move", status_code=202, summary="Have a job leave its site for another", tags=["jobs"])
    async def move_job(job: FromPath[str], to: FromQuery[str] = "") -> JobView:
        """`to`: from now on it asks for this site, and a guest that runs, and can be saved, goes on there; else it
        begins anew."""
        return await backend.move(job, to)

    @get("/jobs/{job:str}/explain", summary="Why a job is where it is", tags=["jobs"])
    async def explain_job(job: FromPath[str]) -> Explanation:
        return await backend.explain(job)

    @get("/jobs/{job:str}/replay", summary="Choose a job's site again, from the record", tags=["jobs"])
    async def replay_job(job: FromPath[str]) -> ReplayView:
        """Nothing changes by it."""
        return await backend.replay(job)

    @get("/jobs/{job:str}/history", summary="A job's attempts, phase by phase", tags=["jobs"])
    async def job_history(job: FromPath[str]) -> History:
        return await backend.history(job)

    @get("/accounting", summary="Who used how much, and where", tags=["jobs"])
    async def accounting(
        by: Annotated[list[By] | None, QueryParameter(description="what to keep apart; may be repeated")] = None,
        since: Annotated[float, QueryParameter(ge=0, description="seconds since the epoch")] = 0.0,
        until: Annotated[float | None, QueryParameter(ge=0, description="the same; now, if it is not named")] = None,
    ) -> Accounts:
        """Of the attempts that ended in that time, the greatest first; deleted jobs count."""
        return await backend.accounting(tuple(dict.fromkeys(by or ("user",))), since=since, until=until)

    @get("/jobs/{job:str}/follow", media_type=streams.NDJSON, summary="A job's changes and output", tags=["jobs"])
    async def follow_job(
        job: FromPath[str], output: FromQuery[bool] = True, stdout: Offset = 0, stderr: Offset = 0
    ) -> Stream:
        """Lines of FollowItem until the job has ended; output from the given offsets on, `data` in base64."""
        items = streams.from_offsets(backend.follow(job, output=output), stdout, stderr)
        return await streams.respond(items, closing, prime=True)

    @get("/jobs/{job:str}/logs", media_type="application/octet-stream", summary="Bytes of a log", tags=["jobs"])
    async def read_log(
        job: FromPath[str],
        stream: LogName = "stdout",
        offset: Offset = 0,
        limit: Annotated[int, QueryParameter(ge=1, le=LOG_LIMIT)] = 1 << 20,
    ) -> bytes:
        return await backend.log(job, stream, offset, limit)

    changing = [submit_job, delete_job, cancel_job, recover_job, move_job]
    asking = [list_jobs, get_job, explain_job, replay_job, job_history, accounting, follow_job, read_log]
    return [*changing, *asking]


def _checkpoints(backend: Access) -> list[HTTPRouteHandler]:
    @post(
        "/jobs/{job:str}/suspend", status_code=202, summary="Save a job's guest, and give its place free", tags=["jobs"]
    )
    async def suspend_job(job: FromPath[str]) -> JobView:
        return await backend.suspend(job)

    @post("/jobs/{job:str}/resume", status_code=202, summary="Have a suspended job go on", tags=["jobs"])
    async def resume_job(job: FromPath[str], to: FromQuery[str] = "") -> JobView:
        """`to`: from now on it asks for this site, where a copy of its checkpoint is brought."""
        return await backend.resume(job, to)

    @post("/jobs/{job:str}/checkpoint", status_code=202, summary="Save a job's guest, which goes on", tags=["jobs"])
    async def save_job(job: FromPath[str]) -> JobView:
        return await backend.save(job)

    @post(
        "/jobs/{job:str}/pause", status_code=202, summary="Have a job's guest stand still in its place", tags=["jobs"]
    )
    async def pause_job(job: FromPath[str], undo: FromQuery[bool] = False) -> JobView:
        """`undo`: have it go on."""
        return await backend.pause(job, undo=undo)

    @get("/checkpoints", summary="Checkpoints, newest first", tags=["jobs"])
    async def list_checkpoints(job: FromQuery[str] = "") -> list[CheckpointView]:
        """`job`: of this one alone."""
        return await backend.checkpoints(job)

    @delete("/checkpoints/{checkpoint:str}", summary="Remove a checkpoint from its site", tags=["jobs"])
    async def delete_checkpoint(checkpoint: FromPath[str]) -> None:
        await backend.delete_checkpoint(checkpoint)

    @post("/checkpoints/{checkpoint:str}/copy", status_code=202, summary="Copy a checkpoint here", tags=["jobs"])
    async def copy_checkpoint(checkpoint: FromPath[str]) -> CheckpointView:
        """To the service's machine, sealed before it leaves its site; its `copy` says how far that is."""
        return await backend.copy_checkpoint(checkpoint)

    @post("/checkpoints/{checkpoint:str}/restore", status_code=202, summary="Go on from a checkpoint", tags=["jobs"])
    async def restore_checkpoint(checkpoint: FromPath[str]) -> JobView:
        """Its job goes on from there, and not from a newer one; a suspended one is resumed by it."""
        return await backend.restore(checkpoint)

    asked = [suspend_job, resume_job, save_job, pause_job]
    return [*asked, list_checkpoints, delete_checkpoint, copy_checkpoint, restore_checkpoint]


def _groups(backend: Access, closing: asyncio.Event) -> list[HTTPRouteHandler]:
    @post("/groups", status_code=202, dto=Body[JobRequest], return_dto=None, summary="Accept an array", tags=["groups"])
    async def submit_group(
        data: JSONBody[JobRequest], idempotency_key: Annotated[str, HeaderParameter(name="Idempotency-Key")] = ""
    ) -> Response[GroupView]:
        """The same Idempotency-Key again returns the array of the first time."""
        group = await backend.submit_group(data, idempotency_key)
        return Response(group, headers={"Location": f"/v1/groups/{group.id}"})

    @post(
        "/workflows",
        status_code=202,
        dto=Body[WorkflowRequest],
        return_dto=None,
        summary="Accept a workflow",
        tags=["groups"],
    )
    async def submit_workflow(
        data: JSONBody[WorkflowRequest], idempotency_key: Annotated[str, HeaderParameter(name="Idempotency-Key")] = ""
    ) -> Response[GroupView]:
        """The same Idempotency-Key again returns the workflow of the first time."""
        group = await backend.submit_workflow(data, idempotency_key)
        return Response(group, headers={"Location": f"/v1/groups/{group.id}"})

    @get("/groups/{group:str}/nodes", summary="A workflow, and where its nodes are", tags=["groups"])
    async def get_workflow(group: FromPath[str]) -> Progress:
        return await backend.workflow(group)

    @get("/groups", summary="Arrays, newest first", tags=["groups"])
    async def list_groups(
        request: Request[Any, Any, Any], before: FromQuery[str] = "", limit: Limit = 100
    ) -> Response[list[GroupView]]:
        """Paged as jobs are."""
        found = await backend.groups(before=before, limit=limit)
        return page(request, found, limit, before=found[-1].id if found else "")

    @get("/groups/{group:str}", summary="An array as one", tags=["groups"])
    async def get_group(group: FromPath[str]) -> GroupView:
        return await backend.group(group)

    @get("/groups/{group:str}/members/{name:str}", summary="A task of an array", tags=["groups"])
    async def get_member(group: FromPath[str], name: FromPath[str]) -> JobView:
        return await backend.member(group, name)

    @delete("/groups/{group:str}", summary="End an array and forget it", tags=["groups"])
    async def delete_group(group: FromPath[str]) -> None:
        await backend.delete_group(group)

    @post("/groups/{group:str}/cancel", status_code=202, summary="End an array", tags=["groups"])
    async def cancel_group(group: FromPath[str]) -> GroupView:
        return await backend.cancel_group(group)

    @post("/groups/{group:str}/recover", status_code=202, summary="Try again what is stuck of it", tags=["groups"])
    async def recover_group(group: FromPath[str]) -> GroupView:
        return await backend.recover_group(group)

    @get("/groups/{group:str}/follow", media_type=streams.NDJSON, summary="An array as it changes", tags=["groups"])
    async def follow_group(group: FromPath[str]) -> Stream:
        """Lines of GroupView until it has ended."""
        return await streams.respond(backend.follow_group(group), closing, prime=True)

    return [
        submit_group, submit_workflow, get_workflow, list_groups, get_group, get_member, delete_group, cancel_group,
        recover_group, follow_group,
    ]  # fmt: skip


def _images(backend: Access) -> list[HTTPRouteHandler]:
    @get("/images", summary="Images", tags=["images"])
    async def list_images() -> list[ImageView]:
        return await backend.images()

    @get("/images/{reference:str}", summary="An image", tags=["images"])
    async def get_image(reference: FromPath[str]) -> ImageView:
        return await backend.image(reference)

    @delete("/images/{reference:str}", summary="Remove an image", tags=["images"])
    async def delete_image(reference: FromPath[str]) -> None:
        await backend.delete_image(reference)

    @post("/images/build", status_code=202, dto=Body[ImageBuildRequest], return_dto=None, tags=["images"])
    async def build_image(data: JSONBody[ImageBuildRequest]) -> Response[Operation]:
        """Build an image from a recipe on this machine."""
        return begun(await backend.build_image(data))

    @post("/images/import", status_code=202, dto=Body[ImageImportRequest], return_dto=None, tags=["images"])
    async def import_image(data: JSONBody[ImageImportRequest]) -> Response[Operation]:
        """Take in a disk image on this machine."""
        return begun(await backend.import_image(data))

    @post("/images/{reference:str}/verify", status_code=202, summary="Check all of an image's bytes", tags=["images"])
    async def verify_image(reference: FromPath[str]) -> Response[Operation]:
        return begun(await backend.verify_image(reference))

    @post("/images/warm", status_code=202, dto=Body[WarmRequest], return_dto=None, tags=["images"])
    async def warm_image(data: JSONBody[WarmRequest]) -> Response[Operation]:
        """Have sites make a snapshot ahead of use: one small job at each."""
        return begun(await backend.warm_image(data))

    return [list_images, get_image, delete_image, build_image, import_image, verify_image, warm_image]


def _sites(backend: Access) -> list[HTTPRouteHandler]:
    @get("/sites", summary="Sites", tags=["sites"])
    async def list_sites() -> list[SiteView]:
        return await backend.sites()

    @post("/sites", dto=Body[SiteRequest], return_dto=None, summary="Add a site", tags=["sites"])
    async def add_site(data: JSONBody[SiteRequest]) -> SiteView:
        return await backend.add_site(data)

    @get("/sites/{name:str}", summary="A site", tags=["sites"])
    async def get_site(name: FromPath[str]) -> Response[SiteView]:
        return versioned(await backend.site(name))

    @patch("/sites/{name:str}", dto=Body[SiteChange], return_dto=None, summary="Change a site", tags=["sites"])
    async def edit_site(name: FromPath[str], data: JSONBody[SiteChange], if_match: IfMatch = "") -> Response[SiteView]:
        """A JSON merge patch. Refused for what says where its jobs are, while there are any; and, with If-Match, if it
        was changed since."""
        return versioned(await backend.edit_site(name, data, version_of(if_match)))

    @post("/sites/{name:str}/drain", status_code=200, summary="Give it no new work, or work again", tags=["sites"])
    async def drain_site(name: FromPath[str], undo: FromQuery[bool] = False) -> SiteView:
        return await backend.drain_site(name, undo=undo)

    @post("/sites/{name:str}/login", status_code=200, summary="How a person lets the service in", tags=["sites"])
    async def login_site(name: FromPath[str]) -> SiteLogin:
        return await backend.login_site(name)

    @delete("/sites/{name:str}", status_code=200, summary="Forget a site", tags=["sites"])
    async def remove_site(name: FromPath[str], abandon: FromQuery[bool] = False) -> SiteRemoval:
        """Refused while something of jobs is there, unless it is abandoned."""
        return await backend.remove_site(name, abandon=abandon)

    @post("/sites/{name:str}/check", status_code=202, summary="Prove what a site can do", tags=["sites"])
    async def check_site(
        name: FromPath[str],
        patience: Annotated[int, QueryParameter(ge=0, description="seconds for a probe job; 0: none")] = PATIENCE,
    ) -> Response[Operation]:
        """Ask it, and run a small job on one of its nodes, which reports what a guest would find there."""
        return begun(await backend.check_site(name, patience=patience))

    @get("/sites/{name:str}/usage", summary="Who uses how much of a site", tags=["sites"])
    async def site_usage(name: FromPath[str]) -> SiteUsage:
        """Of all installations that share the account, and what its lender allows."""
        return await backend.site_usage(name)

    return [list_sites, add_site, get_site, edit_site, drain_site, login_site, remove_site, check_site, site_usage]


def _scheduling(backend: Access) -> list[HTTPRouteHandler]:
    @post("/match", status_code=200, dto=Body[JobSpec], return_dto=None, summary="Where a job could go", tags=["jobs"])
    async def match(data: JSONBody[JobSpec]) -> MatchView:
        """Asks only: no job is made. The image may be empty, then nothing is known of it."""
        return await backend.match(data)

    @get("/nodes", summary="What sites and nodes publish", tags=["sites"])
    async def list_nodes(site: FromQuery[str] = "") -> list[NodeView]:
        """Of each site itself, and of its nodes that are known."""
        return await backend.nodes(site)

    @get("/plan", summary="Where waiting jobs would go, and when", tags=["jobs"])
    async def plan_ahead(limit: Limit = 1000) -> list[PlannedView]:
        """First to last, by what runs and its walltimes; nothing is promised."""
        return await backend.plan_ahead(limit)

    @get("/policy", summary="The scheduling policy", tags=["policy"])
    async def get_policy() -> Response[PolicyView]:
        return versioned(await backend.policy())

    @put("/policy", dto=Body[SchedulingPolicy], return_dto=None, summary="Set the policy", tags=["policy"])
    async def set_policy(data: JSONBody[SchedulingPolicy], if_match: IfMatch = "") -> Response[PolicyView]:
        """It holds from the next choice of a site on. What it does not name has its default. Refused, with If-Match, if
        another was set since."""
        return versioned(await backend.set_policy(data, version_of(if_match)))

    return [match, list_nodes, plan_ahead, get_policy, set_policy]


def _service(backend: Access, closing: asyncio.Event) -> list[HTTPRouteHandler]:
    @get("/events", summary="Events, past or as they happen", tags=["events"])
    async def list_events(
        request: Request[Any, Any, Any],
        watch: FromQuery[bool] = False,
        after: After = 0,
        job: FromQuery[str] = "",
        limit: Limit = 1000,
        last_event_id: Annotated[int, HeaderParameter(name="Last-Event-ID", ge=0)] = 0,
    ) -> Response[Any]:
        """A list; with `watch` lines of EventView without end; with `Accept: text/event-stream` server-sent events."""
        if streams.SSE in request.headers.get("accept", ""):
            items = backend.watch_events(after=max(after, last_event_id), job=job)
            return await streams.respond(items, closing, prime=False, encode=streams.as_event)
        if watch:
            return await streams.respond(backend.watch_events(after=after, job=job), closing, prime=False)
        events: list[EventView] = await backend.events(after=after, job=job, limit=limit)
        return page(request, events, limit, after=events[-1].sequence if events else 0)

    @get("/operations", summary="Operations, oldest first", tags=["operations"])
    async def list_operations() -> list[Operation]:
        """Those under way, and the last that have ended. A restart of the service ends and forgets all."""
        return await backend.operations()

    @get("/operations/{operation:str}", media_type=streams.NDJSON, summary="Follow an operation", tags=["operations"])
    async def follow_operation(operation: FromPath[str]) -> Stream:
        """Lines of OperationItem until it is done or has failed."""
        return await streams.respond(backend.follow_operation(operation), closing, prime=True)

    @delete("/operations/{operation:str}", summary="End an operation before its time", tags=["operations"])
    async def stop_operation(operation: FromPath[str]) -> None:
        """What it has begun at a site is withdrawn."""
        await backend.stop_operation(operation)

    @get("/service", summary="The service itself", tags=["service"])
    async def get_status() -> ServiceView:
        return await backend.status()

    @post("/service/stop", status_code=202, summary="Stop the service; jobs go on", tags=["service"])
    async def stop_service() -> None:
        """Answers once the stop is under way. The service has stopped when its process has ended."""
        await backend.stop()

    return [list_events, list_operations, follow_operation, stop_operation, get_status, stop_service]
