"""Makes the Litestar application: the routes, the health check, the OpenAPI document, and the errors' one shape."""

from __future__ import annotations

import asyncio
import http
import logging
from typing import Any

from litestar import Litestar, MediaType, Request, Response, get
from litestar.exceptions import HTTPException
from litestar.openapi import OpenAPIConfig
from litestar.openapi.plugins import JsonRenderPlugin

from gridhypervisor import __version__
from gridhypervisor.execution.ports import Backend
from gridhypervisor.model.commit import StoreError
from gridhypervisor.model.views import Problem, ServiceError
from gridhypervisor.service.routes import PROBLEM_JSON, make_router

_log = logging.getLogger(__name__)


def make_app(backend: Backend) -> Litestar:
    """The application that serves `backend`. Its `state.closing` is an event: once set, open streams end."""
    closing = asyncio.Event()
    app = Litestar(
        [make_router(backend, closing), healthz],
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
        ),
        logging_config=None,
    )
    app.state.closing = closing
    return app


@get("/healthz", media_type=MediaType.TEXT, summary="Whether the service answers", tags=["service"])
async def healthz() -> str:
    return "ok\n"


def _answer(problem: Problem) -> Response[Problem]:
    return Response(problem, status_code=problem.status, media_type=PROBLEM_JSON)


def _refuse(_: Request[Any, Any, Any], error: ServiceError) -> Response[Problem]:
    return _answer(error.problem)


def _refuse_store(_: Request[Any, Any, Any], error: StoreError) -> Response[Problem]:
    return _answer(Problem(f"{error.operation} in {error.path}", 503, "unavailable", error.why, error.hint))


def _refuse_http(request: Request[Any, Any, Any], error: HTTPException) -> Response[Problem]:
    """An error of HTTP's own: no such route, a bad parameter, a body too large."""
    status = error.status_code
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
