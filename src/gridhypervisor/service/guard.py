"""What stands between the network and the application: who asks, limits, and answers to requests that are repeated.

A request over the Unix socket is the service's own user's. Any other needs a token, but for what says nothing of
anybody: whether the service answers, and the document of its routes. A token that stops being good ends its streams.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from functools import partial
from typing import Any

import msgspec

from gridhypervisor.execution.ports import Backend
from gridhypervisor.model.access import Caller
from gridhypervisor.model.views import Problem, ServiceError
from gridhypervisor.service.access import calling

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Asgi = Callable[[Scope, Receive, Send], Awaitable[None]]

LOCAL = "gridhypervisor.local"
"""In the scope of a request that came over the Unix socket. Whoever listens sets it: no request can."""

OPEN = frozenset({"/healthz", "/openapi.json"})

PROBLEM_JSON = "application/problem+json"

PATIENCE = 60.0
"""Seconds that a client may let pass between two parts of a request."""

LOOK = 5.0
"""Seconds between two looks at whether the token of an open stream is still good."""

TOO_SLOW = 408
"""The status of an answer to such a client, after which the connection is closed: the rest may still come."""

FAILURES, PERIOD = 20, 60.0
"""Tokens that are not good, from one address, in so many seconds; then it is told to wait, and no longer logged.
One that is good is let in all the same: others may share the address, and no number of tries finds a secret."""

ADDRESSES = 4096
"""Addresses that are remembered for that."""

_log = logging.getLogger(__name__)


class Revoked(Exception):
    """The token of a stream is not good any more."""


class Guard:
    """Finds out who calls, and lets him in."""

    def __init__(self, app: Asgi, backend: Backend, clock: Callable[[], float] = time.monotonic) -> None:
        self._app, self._backend, self._clock = app, backend, clock
        self._failures: OrderedDict[str, tuple[float, int]] = OrderedDict()  # address -> since when, how many

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
        elif scope.get(LOCAL):
            await self._as(self._backend.myself, scope, receive, send)
        elif scope["path"] in OPEN:
            await self._app(scope, _patient(receive, lambda: True), send)
        else:
            token = _token(scope)
            caller = self._backend.caller(token) if token else None
            if caller is None:
                await self._turn_away(scope, send, token)
            else:
                good = partial(self._good, token)
                await self._as(caller, scope, _patient(receive, good), _while(good, send))

    async def _as(self, caller: Caller, scope: Scope, receive: Receive, send: Send) -> None:
        before = calling.set(caller)
        try:
            await self._app(scope, receive, send)
        except ServiceError as error:  # of what came before the routes
            await refuse(send, error.problem, [(b"connection", b"close")] if error.problem.status == TOO_SLOW else ())
        finally:
            calling.reset(before)

    def _good(self, token: str) -> bool:
        return self._backend.caller(token) is not None

    async def _turn_away(self, scope: Scope, send: Send, token: str) -> None:
        address, now = str((scope.get("client") or ("",))[0]), self._clock()
        since, count = self._failures.pop(address, (now, 0))
        if now - since > PERIOD:
            since, count = now, 0
        self._failures[address] = since, count + 1
        while len(self._failures) > ADDRESSES:
            self._failures.popitem(last=False)
        title = f"{scope['method']} {scope['path']}"
        if count >= FAILURES:
            wait = int(PERIOD - (now - since)) + 1
            why = f"{count} requests without a good token came from {address} in {PERIOD:.0f} s"
            problem = Problem(title, 429, "refused", why, f"try again in {wait} s, with a token that is good")
            await refuse(send, problem, [(b"retry-after", str(wait).encode())])
            return
        why = "the token is not known, or it has expired or was revoked" if token else "it takes a token"
        _log.warning("%s from %s: %s", title, address, why)
        hint = "put one that is good into the file that GHV_TOKEN_FILE names: ghv token create, at the service"
        problem = Problem(title, 401, "refused", why, hint)
        await refuse(send, problem, [(b"www-authenticate", b'Bearer realm="gridhypervisor"')])


async def refuse(send: Send, problem: Problem, headers: Iterable[tuple[bytes, bytes]] = ()) -> None:
    """Answer with a problem."""
    body = msgspec.json.encode(problem)
    await respond(send, problem.status, [(b"content-type", PROBLEM_JSON.encode()), *headers], body)


async def respond(send: Send, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
    headers = [*headers, (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def header(scope: Scope, name: bytes) -> str:
    return next((value.decode("latin-1") for key, value in scope.get("headers", ()) if key == name), "")


def _token(scope: Scope) -> str:
    kind, _, token = header(scope, b"authorization").partition(" ")
    return token.strip() if kind.lower() == "bearer" else ""


def _while(good: Callable[[], bool], send: Send) -> Send:
    """Lets nothing more of a stream out once the token is not good any more."""

    async def checked(message: Message) -> None:
        if message.get("more_body") and not good():
            raise Revoked
        await send(message)

    return checked


def _patient(receive: Receive, good: Callable[[], bool]) -> Receive:
    """Gives up on a client that lets a request hang in the middle. What comes after the request may take for ever, as
    long as the token is good."""
    whole = False

    async def timed() -> Message:
        nonlocal whole
        while whole:
            try:
                return await asyncio.wait_for(receive(), LOOK)
            except TimeoutError:
                if not good():
                    return {"type": "http.disconnect"}
        try:
            message = await asyncio.wait_for(receive(), PATIENCE)
        except TimeoutError:
            why = f"nothing of it came for {PATIENCE:.0f} s"
            raise ServiceError(Problem("read the request", TOO_SLOW, "invalid", why, "send it again")) from None
        whole = not message.get("more_body", False)
        return message

    return timed
