"""The application: the guard, and behind it the routes, the health check, the OpenAPI document, one shape of errors."""

from __future__ import annotations

import asyncio
import http
import logging
from collections import Counter
from typing import Any

from litestar import Litestar, MediaType, Request, Response, get
from litestar.exceptions import HTTPException
from litestar.openapi import OpenAPIConfig
from litestar.openapi.plugins import JsonRenderPlugin
from litestar.openapi.spec import Components, SecurityScheme

from gridhypervisor import __version__
from gridhypervisor.execution.ports import Backend
from gridhypervisor.model.commit import StoreError
from gridhypervisor.model.views import Problem, ServiceError
from gridhypervisor.service.access import Access
from gridhypervisor.service.guard import PROBLEM_JSON, TOO_SLOW, Asgi, Guard, Message, Receive, Scope, Send
from gridhypervisor.service.once import Once
from gridhypervisor.service.routes import make_router

GONE = "client disconnected"
"""What Litestar says of a request that broke off; to it that is a fault of the server's."""

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")

_log = logging.getLogger(__name__)


class Api:
    """The application that serves a backend, to whom it may concern. `closing`: once set, open streams end."""

    def __init__(self, backend: Backend) -> None:
        self.closing = asyncio.Event()
        self.requests: Counter[tuple[str, str]] = Counter()  # that were answered, by method and class of status
        self.routes = make_routes(backend, self.closing, self.requests)
        self._app: Asgi = Guard(Once(self.routes, backend), backend)  # type: ignore[arg-type]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                method = scope["method"] if scope["method"] in METHODS else "other"
                self.requests[method, f"{message['status'] // 100}xx"] += 1
            await send(message)

        await self._app(scope, receive, counted)


def make_routes(backend: Backend, closing: asyncio.Event, requests: Counter[tuple[str, str]]) -> Litestar:
    """All routes, for requests of which it is known whose they are (`guard.py`)."""
    access = Access(backend)

    @get(
        "/metrics",
        media_type=MediaType.TEXT,
        summary="What is measured of the service, for Prometheus",
        tags=["service"],
    )
    async def metrics() -> Response[bytes]:
        """Sums over all users. It takes a token, which may be to read alone."""
        from gridhypervisor.service.metrics import CONTENT_TYPE, exposition  # which most services are never asked for

        return Response(exposition(await access.measures(), requests), media_type=CONTENT_TYPE)

    return Litestar(
        [make_router(access, closing), healthz, metrics],
        exception_handlers={
            ServiceError: _refuse,
            StoreError: _refuse_store,
            HTTPException: _refuse_http,
            Exception: _fail,
        },
        openapi_config=OpenAPIConfig(
            title="GridHypervisor",
            version=__version__,
            path="/",
            render_plugins=[JsonRenderPlugin(path="/openapi.json")],
            components=Components(security_schemes={"token": SecurityScheme(type="http", scheme="bearer")}),
            security=[{"token": []}],
        ),
        logging_config=None,
    )


@get("/healthz", media_type=MediaType.TEXT, summary="Whether the service answers", tags=["service"])
async def healthz() -> str:
    return "ok\n"


def _answer(problem: Problem) -> Response[Problem]:
    headers = {"Connection": "close"} if problem.status == TOO_SLOW else None
    return Response(problem, status_code=problem.status, media_type=PROBLEM_JSON, headers=headers)


def _refuse(_: Request[Any, Any, Any], error: ServiceError) -> Response[Problem]:
    return _answer(error.problem)


def _refuse_store(_: Request[Any, Any, Any], error: StoreError) -> Response[Problem]:
    return _answer(Problem(f"{error.operation} in {error.path}", 503, "unavailable", error.why, error.hint))


def _refuse_http(request: Request[Any, Any, Any], error: HTTPException) -> Response[Problem]:
    """An error of HTTP's own: no such route, a bad parameter, a body too large."""
    status = error.status_code
    if GONE in error.detail:
        return _answer(
            Problem(f"{request.method} {request.url.path}", 400, "invalid", "it was cut off", "send it again")
        )
    if status >= 500:
        return _fail(request, error)
    errors = tuple(
        {"field": item.get("key", ""), "problem": item.get("message", "")}
        for item in (error.extra if isinstance(error.extra, list) else ())
        if isinstance(item, dict)
    )
    code = "not-found" if status == 404 else "invalid"
    hint = "GET /openapi.json lists the routes and what they take."
    detail = "; ".join(f"{e['field']}: {e['problem']}" for e in errors) or http.HTTPStatus(status).phrase
    return _answer(Problem(f"{request.method} {request.url.path}", status, code, detail, hint, errors))


def _fail(request: Request[Any, Any, Any], error: Exception) -> Response[Problem]:
    """A fault of ours: the log has its traceback, the answer does not."""
    title = f"{request.method} {request.url.path}"
    _log.error("%s failed", title, exc_info=error)
    hint = "The service's log has the details; ghv service status says where it is."
    return _answer(Problem(title, 500, "internal", f"{type(error).__name__}: {error}", hint))
