"""The routes of virtual infrastructures, and of the guests of their VMs."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from litestar import Request, Response
from litestar.handlers import HTTPRouteHandler
from litestar.params import FromPath, FromQuery, HeaderParameter, JSONBody
from litestar.response import Stream

from gridhypervisor.model.infraviews import (
    ExecRequest,
    ExecView,
    InfrastructurePlan,
    InfrastructureRequest,
    InfrastructureView,
    ScaleRequest,
)
from gridhypervisor.service import streams
from gridhypervisor.service.access import Access
from gridhypervisor.service.body import Body
from gridhypervisor.service.parts import Limit, delete, get, page, post

_TAGS = ["infrastructures"]


def infrastructures(backend: Access, closing: asyncio.Event) -> list[HTTPRouteHandler]:
    """Wherever one is named, its id will do, and its name: that means the newest of this name."""

    @post(
        "/infrastructures",
        status_code=202,
        dto=Body[InfrastructureRequest],
        return_dto=None,
        summary="Have an infrastructure that is so",
        tags=_TAGS,
    )
    async def apply_infrastructure(
        data: JSONBody[InfrastructureRequest],
        idempotency_key: Annotated[str, HeaderParameter(name="Idempotency-Key")] = "",
    ) -> Response[InfrastructureView]:
        """A new one, or the one of this name is changed. Asked for again, nothing more happens."""
        found = await backend.apply(data, idempotency_key)
        return Response(found, headers={"Location": f"/v1/infrastructures/{found.id}"})

    @post(
        "/infrastructures/plan",
        status_code=200,
        dto=Body[InfrastructureRequest],
        return_dto=None,
        summary="What applying an infrastructure would do",
        tags=_TAGS,
    )
    async def plan_infrastructure(data: JSONBody[InfrastructureRequest]) -> InfrastructurePlan:
        """Nothing changes by it."""
        return await backend.plan_infrastructure(data)

    @get("/infrastructures", summary="Infrastructures, newest first", tags=_TAGS)
    async def list_infrastructures(
        request: Request[Any, Any, Any], before: FromQuery[str] = "", limit: Limit = 100
    ) -> Response[list[InfrastructureView]]:
        """The next page is asked for with `before`: this page's last one; `Link` names it."""
        found = await backend.infrastructures(before=before, limit=limit)
        return page(request, found, limit, before=found[-1].id if found else "")

    @get("/infrastructures/{name:str}", summary="An infrastructure with its VMs", tags=_TAGS)
    async def get_infrastructure(name: FromPath[str]) -> InfrastructureView:
        return await backend.infrastructure(name)

    @get(
        "/infrastructures/{name:str}/follow",
        media_type=streams.NDJSON,
        summary="An infrastructure as it changes",
        tags=_TAGS,
    )
    async def follow_infrastructure(name: FromPath[str]) -> Stream:
        """Lines of InfrastructureView until it has ended."""
        return await streams.respond(backend.follow_infrastructure(name), closing, prime=True)

    @post(
        "/infrastructures/{name:str}/scale",
        status_code=202,
        dto=Body[ScaleRequest],
        return_dto=None,
        summary="Have more or fewer VMs of a role",
        tags=_TAGS,
    )
    async def scale_infrastructure(name: FromPath[str], data: JSONBody[ScaleRequest]) -> InfrastructureView:
        return await backend.scale(name, data.counts)

    @post("/infrastructures/{name:str}/cancel", status_code=202, summary="End an infrastructure", tags=_TAGS)
    async def cancel_infrastructure(name: FromPath[str]) -> InfrastructureView:
        """What is known of it stays."""
        return await backend.cancel_infrastructure(name)

    @delete("/infrastructures/{name:str}", summary="End an infrastructure and forget it", tags=_TAGS)
    async def delete_infrastructure(name: FromPath[str]) -> None:
        """It is gone when the sites have confirmed that nothing of it is left."""
        await backend.delete_infrastructure(name)

    @post(
        "/jobs/{job:str}/exec",
        status_code=200,
        dto=Body[ExecRequest],
        return_dto=None,
        summary="Run a command in a VM",
        tags=_TAGS,
    )
    async def execute(job: FromPath[str], data: JSONBody[ExecRequest]) -> ExecView:
        """Beside its program, as the same user; answered when it has ended. Asked for twice, it runs twice."""
        return await backend.execute(job, data)

    return [
        apply_infrastructure, plan_infrastructure, list_infrastructures, get_infrastructure, follow_infrastructure,
        scale_infrastructure, cancel_infrastructure, delete_infrastructure, execute,
    ]  # fmt: skip
