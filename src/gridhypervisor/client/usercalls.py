"""What can be asked about users and their files: as `calls`, for what most of `ghv` never asks."""

from __future__ import annotations

import msgspec

from gridhypervisor.client.calls import Call, once, path_of
from gridhypervisor.model.access import Caller, Result, TokenRequest, TokenView, Upload


def caller() -> Call[Caller]:
    return Call("GET", path_of("caller"), Caller)


def tokens() -> Call[tuple[TokenView, ...]]:
    return Call("GET", path_of("tokens"), tuple[TokenView, ...])


def create_token(request: TokenRequest) -> Call[TokenView]:
    return Call("POST", path_of("tokens"), TokenView, msgspec.json.encode(request), once(), repeatable=False)


def revoke_token(token: str) -> Call[TokenView]:
    return Call("DELETE", path_of("tokens", token), TokenView)


def upload(sha256: str) -> Call[Upload]:
    return Call("GET", path_of("uploads", sha256), Upload)


def add_upload(sha256: str, offset: int, size: int, data: bytes) -> Call[Upload]:
    path = path_of("uploads", sha256, offset=offset, size=size)
    return Call("PUT", path, Upload, data, (("Content-Type", "application/octet-stream"),))


def results(job: str) -> Call[tuple[Result, ...]]:
    return Call("GET", path_of("jobs", job, "results"), tuple[Result, ...])


def result(job: str, path: str, offset: int, limit: int) -> Call[bytes]:
    return Call("GET", path_of("jobs", job, "results", *path.split("/"), offset=offset, limit=limit), bytes)
