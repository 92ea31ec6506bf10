"""What handlers share: how they are declared, the parameters that several take, and the headers of their answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, TypeVar
from urllib.parse import parse_qsl, urlencode

import litestar
from litestar import MediaType, Request, Response
from litestar.openapi import ResponseSpec
from litestar.openapi.spec import OpenAPIFormat, OpenAPIMediaType, OpenAPIType, Parameter, RequestBody
from litestar.openapi.spec import Operation as OpenAPIOperation
from litestar.openapi.spec import Schema as OpenAPISchema
from litestar.params import HeaderParameter, QueryParameter

from gridhypervisor.model.policy import PolicyView
from gridhypervisor.model.views import Operation, Problem, SiteView
from gridhypervisor.service.guard import PROBLEM_JSON

_REFUSALS = {
    status: ResponseSpec(Problem, generate_examples=False, description=text, media_type=PROBLEM_JSON)
    for status, text in {
        400: "A parameter means nothing",
        401: "It takes a token that is good",
        403: "Who asks may not",
        404: "There is no such thing, or it is somebody else's",
        409: "Its state does not allow it",
        412: "It was changed meanwhile",
        413: "The body is too large",
        422: "A field of the body is wrong",
        429: "Too many requests without a good token",
        503: "It cannot be done now",
    }.items()
}
T = TypeVar("T")
V = TypeVar("V", SiteView, PolicyView)


@dataclass
class BytesOperation(OpenAPIOperation):
    """Of a handler that reads its body itself."""

    def __post_init__(self) -> None:
        binary = OpenAPIMediaType(OpenAPISchema(type=OpenAPIType.STRING, format=OpenAPIFormat.BINARY))
        self.request_body = RequestBody(content={"application/octet-stream": binary}, required=True)


@dataclass
class KeyedOperation(OpenAPIOperation):
    """Of a handler whose requests may be repeated under an Idempotency-Key (`once.py`)."""

    def __post_init__(self) -> None:
        said = [each.name for each in self.parameters or () if isinstance(each, Parameter)]
        if KEY.name not in said:
            self.parameters = [*(self.parameters or ()), KEY]


KEY = Parameter(
    name="Idempotency-Key",
    param_in="header",
    description="Repeated with the same key, for a day, the request is answered as it was first.",
    schema=OpenAPISchema(type=OpenAPIType.STRING, max_length=200),
)


get = partial(litestar.get, responses=_REFUSALS)
post = partial(litestar.post, responses=_REFUSALS, operation_class=KeyedOperation)
delete, patch = partial(litestar.delete, responses=_REFUSALS), partial(litestar.patch, responses=_REFUSALS)
put = partial(litestar.put, responses=_REFUSALS)

LOG_LIMIT = 16 << 20
"""Most bytes of a log in one answer."""

Limit = Annotated[int, QueryParameter(ge=1, le=1000, description="at most so many")]
Offset = Annotated[int, QueryParameter(ge=0, description="the byte to start at")]
After = Annotated[int, QueryParameter(ge=0, description="only events with a higher sequence")]
IfMatch = Annotated[str, HeaderParameter(name="If-Match", description="an ETag: only if it is of this version")]


def begun(operation: Operation) -> Response[Operation]:
    return Response(operation, headers={"Location": f"/v1/operations/{operation.id}"})


def versioned(found: V) -> Response[V]:
    return Response(found, headers={"ETag": f'"{found.version}"'})


def version_of(if_match: str) -> int | None:
    """The version that an If-Match asks for; None: any; -1: one that nothing has."""
    if if_match in ("", "*"):
        return None
    number = if_match.strip('"')
    return int(number) if number.isascii() and number.isdecimal() and len(number) < 19 else -1


def page(request: Request[Any, Any, Any], found: list[T], limit: int, **cursor: str | int) -> Response[list[T]]:
    """A page of a list, with a Link to the next one, if there may be more."""
    following = f"{request.url.path}?{urlencode([*_others(request, cursor), *cursor.items()])}"
    link = {"Link": f'<{following}>; rel="next"'} if len(found) == limit else {}
    return Response(found, media_type=MediaType.JSON, headers=link)


def _others(request: Request[Any, Any, Any], cursor: Mapping[str, object]) -> list[tuple[str, str]]:
    return [pair for pair in parse_qsl(request.url.query, keep_blank_values=True) if pair[0] not in cursor]
