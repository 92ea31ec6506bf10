"""The routes under /v1: one handler for each thing that the `Backend` can be asked for."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Annotated, Any, Literal

import litestar
from litestar import MediaType, Request, Response, Router
from litestar.handlers import HTTPRouteHandler
from litestar.openapi import ResponseSpec
from litestar.params import FromPath, FromQuery, HeaderParameter, JSONBody, QueryParameter
from litestar.response import Stream

from gridhypervisor.execution.ports import Backend
from gridhypervisor.model.records import JobState
from gridhypervisor.model.views import (
    PATIENCE,
    EventView,
    Explanation,
    ImageBuildRequest,
    ImageImportRequest,
    ImageView,
    JobDetail,
    JobRequest,
    JobView,
    Operation,
    Problem,
    ServiceView,
    SiteChange,
    SiteLogin,
    SiteRequest,
    SiteUsage,
    SiteView,
)
from gridhypervisor.service import streams
from gridhypervisor.service.body import Body

PROBLEM_JSON = "application/problem+json"

_REFUSALS = {
    status: ResponseSpec(Problem, generate_examples=False, description=text, media_type=PROBLEM_JSON)
    for status, text in {
        400: "A parameter means nothing",
        404: "There is no such thing",
        409: "Its state does not allow it",
        422: "A field of the body is wrong",
        503: "It cannot be done now",
    }.items()
}
get, post = partial(litestar.get, responses=_REFUSALS), partial(litestar.post, responses=_REFUSALS)
delete, patch = partial(litestar.delete, responses=_REFUSALS), partial(litestar.patch, responses=_REFUSALS)

LOG_LIMIT = 16 << 20
"""Most bytes of a log in one answer."""

Limit = Annotated[int, QueryParameter(ge=1, le=1000, description="at most so many")]
Offset = Annotated[int, QueryParameter(ge=0, description="the byte to start at")]
After = Annotated[int, QueryParameter(ge=0, description="only events with a higher sequence")]
LogName = Annotated[Literal["stdout", "stderr", "console", "pilot", "batch"], QueryParameter()]


def make_router(backend: Backend, closing: asyncio.Event) -> Router:
    """All routes under /v1. `closing`: set when streams are to end."""
    handlers = [*_jobs(backend, closing), *_images(backend), *_sites(backend), *_service(backend, closing)]
    return Router("/v1", route_handlers=handlers)


def _jobs(backend: Backend, closing: asyncio.Event) -> list[HTTPRouteHandler]:
    @post("/jobs", status_code=202, dto=Body[JobRequest], return_dto=None, summary="Accept a job", tags=["jobs"])
    async def submit_job(
        data: JSONBody[JobRequest], idempotency_key: Annotated[str, HeaderParameter(name="Idempotency-Key")] = ""
    ) -> Response[JobView]:
        """The same Idempotency-Key again returns the job of the first time."""
        job = await backend.submit(data, idempotency_key)
        return Response(job, headers={"Location": f"/v1/jobs/{job.id}"})

    @get("/jobs", summary="Jobs, newest first", tags=["jobs"])
    async def list_jobs(
        states: Annotated[list[JobState] | None, QueryParameter(name="state")] = None,
        before: FromQuery[str] = "",
        limit: Limit = 100,
    ) -> list[JobView]:
        """The next page is asked for with `before`: the id of this page's last job."""
        return await backend.jobs(states=[str(state) for state in states or ()], before=before, limit=limit)

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

    @get("/jobs/{job:str}/explain", summary="Why a job is where it is", tags=["jobs"])
    async def explain_job(job: FromPath[str]) -> Explanation:
        return await backend.explain(job)

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

    return [submit_job, list_jobs, get_job, delete_job, cancel_job, recover_job, explain_job, follow_job, read_log]


def _images(backend: Backend) -> list[HTTPRouteHandler]:
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
    async def build_image(data: JSONBody[ImageBuildRequest]) -> Operation:
        """Build an image from a recipe on this machine."""
        return await backend.build_image(data)

    @post("/images/import", status_code=202, dto=Body[ImageImportRequest], return_dto=None, tags=["images"])
    async def import_image(data: JSONBody[ImageImportRequest]) -> Operation:
        """Take in a disk image on this machine."""
        return await backend.import_image(data)

    @post("/images/{reference:str}/verify", status_code=202, summary="Check all of an image's bytes", tags=["images"])
    async def verify_image(reference: FromPath[str]) -> Operation:
        return await backend.verify_image(reference)

    return [list_images, get_image, delete_image, build_image, import_image, verify_image]


def _sites(backend: Backend) -> list[HTTPRouteHandler]:
    @get("/sites", summary="Sites", tags=["sites"])
    async def list_sites() -> list[SiteView]:
        return await backend.sites()

    @post("/sites", dto=Body[SiteRequest], return_dto=None, summary="Add a site", tags=["sites"])
    async def add_site(data: JSONBody[SiteRequest]) -> SiteView:
        return await backend.add_site(data)

    @get("/sites/{name:str}", summary="A site", tags=["sites"])
    async def get_site(name: FromPath[str]) -> SiteView:
        return await backend.site(name)

    @patch("/sites/{name:str}", dto=Body[SiteChange], return_dto=None, summary="Change a site", tags=["sites"])
    async def edit_site(name: FromPath[str], data: JSONBody[SiteChange]) -> SiteView:
        """A JSON merge patch. Refused for what says where its jobs are, while there are any."""
        return await backend.edit_site(name, data)

    @post("/sites/{name:str}/drain", status_code=200, summary="Give it no new work, or work again", tags=["sites"])
    async def drain_site(name: FromPath[str], undo: FromQuery[bool] = False) -> SiteView:
        return await backend.drain_site(name, undo=undo)

    @post("/sites/{name:str}/login", status_code=200, summary="How a person lets the service in", tags=["sites"])
    async def login_site(name: FromPath[str]) -> SiteLogin:
        return await backend.login_site(name)

    @delete("/sites/{name:str}", summary="Forget a site", tags=["sites"])
    async def remove_site(name: FromPath[str], abandon: FromQuery[bool] = False) -> None:
        await backend.remove_site(name, abandon=abandon)

    @post("/sites/{name:str}/check", status_code=202, summary="Prove what a site can do", tags=["sites"])
    async def check_site(
        name: FromPath[str],
        patience: Annotated[int, QueryParameter(ge=0, description="seconds for a probe job; 0: none")] = PATIENCE,
    ) -> Operation:
        """Ask it, and run a small job on one of its nodes, which reports what a guest would find there."""
        return await backend.check_site(name, patience=patience)

    @get("/sites/{name:str}/usage", summary="Who uses how much of a site", tags=["sites"])
    async def site_usage(name: FromPath[str]) -> SiteUsage:
        """Of all installations that share the account, and what its lender allows."""
        return await backend.site_usage(name)

    return [list_sites, add_site, get_site, edit_site, drain_site, login_site, remove_site, check_site, site_usage]


def _service(backend: Backend, closing: asyncio.Event) -> list[HTTPRouteHandler]:
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
        return Response(events, media_type=MediaType.JSON)

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

    return [list_events, follow_operation, stop_operation, get_status, stop_service]
