"""The routes of users and their files: tokens, uploads, and results that are kept with a job."""

from __future__ import annotations

from typing import Annotated, Any

from litestar import Request, Response
from litestar.handlers import HTTPRouteHandler
from litestar.params import FromPath, JSONBody, QueryParameter

from gridhypervisor.model.access import Caller, Result, TokenRequest, TokenView, Upload
from gridhypervisor.service.access import Access
from gridhypervisor.service.body import Body
from gridhypervisor.service.parts import LOG_LIMIT, BytesOperation, Offset, delete, get, post, put

PIECE = 8 << 20
"""Most bytes of an upload in one request."""


def file_routes(backend: Access) -> list[HTTPRouteHandler]:
    @get("/uploads/{sha256:str}", summary="How much of a file has come", tags=["files"])
    async def get_upload(sha256: FromPath[str]) -> Upload:
        return await backend.upload(sha256)

    @put(
        "/uploads/{sha256:str}",
        summary="Send a piece of a file",
        tags=["files"],
        request_max_body_size=PIECE,
        operation_class=BytesOperation,
    )
    async def put_upload(
        request: Request[Any, Any, Any],
        sha256: FromPath[str],
        size: Annotated[int, QueryParameter(ge=0, le=1 << 50, description="bytes of the whole file")],
        offset: Offset = 0,
    ) -> Upload:
        """The file of this SHA-256, at most 8 MiB at a time. Once it is complete, a job may name it as an input: by the
        path SHA256. What broke off goes on at the size that GET tells."""
        return await backend.add_upload(sha256, offset, size, await request.body())

    @get("/jobs/{job:str}/results", summary="Results that are kept with a job", tags=["files"])
    async def list_results(job: FromPath[str]) -> list[Result]:
        """Of a job without a destination, once it has ended and they are home."""
        return await backend.results(job)

    @get(
        "/jobs/{job:str}/results/{path:path}", media_type="application/octet-stream", summary="A result", tags=["files"]
    )
    async def read_result(
        job: FromPath[str],
        path: FromPath[str],
        offset: Offset = 0,
        limit: Annotated[int, QueryParameter(ge=1, le=LOG_LIMIT)] = LOG_LIMIT,
    ) -> bytes:
        """At most so many bytes of it, from the offset on; none: there are no more."""
        return await backend.result(job, path.removeprefix("/"), offset, limit)

    return [get_upload, put_upload, list_results, read_result]


def token_routes(backend: Access) -> list[HTTPRouteHandler]:
    @get("/caller", summary="Who asks, and what he may", tags=["tokens"])
    async def get_caller() -> Caller:
        return await backend.who()

    @get("/tokens", summary="Tokens, oldest first", tags=["tokens"])
    async def list_tokens() -> list[TokenView]:
        return await backend.tokens()

    @post("/tokens", dto=Body[TokenRequest], return_dto=None, summary="Make a token", tags=["tokens"])
    async def create_token(data: JSONBody[TokenRequest]) -> Response[TokenView]:
        """Its secret is in the answer, and nowhere else."""
        return Response(await backend.create_token(data), status_code=201, headers={"Cache-Control": "no-store"})

    @delete("/tokens/{token:str}", status_code=200, summary="Revoke a token", tags=["tokens"])
    async def revoke_token(token: FromPath[str]) -> TokenView:
        """It is good for nothing from now on, and its streams end."""
        return await backend.revoke_token(token)

    return [get_caller, list_tokens, create_token, revoke_token]
