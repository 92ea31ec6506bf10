"""Answers a POST that is repeated under its Idempotency-Key as it was answered first: nothing is made twice."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import Callable

import msgspec

from gridhypervisor.execution.ports import Backend
from gridhypervisor.model.access import Answer, Caller
from gridhypervisor.model.commit import StoreError
from gridhypervisor.model.views import Problem
from gridhypervisor.service.access import calling
from gridhypervisor.service.guard import PROBLEM_JSON, Asgi, Message, Receive, Scope, Send, header, refuse, respond

MOST_BODY = 8 << 20
"""Bytes of a request that may be repeated: such are small."""

LONGEST_KEY = 200

_log = logging.getLogger(__name__)


class Once:
    """Answers a POST that is repeated under its Idempotency-Key as it was answered first. Inside of `guard.Guard`.

    What failed had no effect, and is tried again. Requests of one key that come at once take turns.
    """

    def __init__(self, app: Asgi, backend: Backend, clock: Callable[[], float] = time.time) -> None:
        self._app, self._backend, self._clock = app, backend, clock
        self._turns: dict[tuple[str, str, str], tuple[asyncio.Lock, int]] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        caller, key = calling.get(None), header(scope, b"idempotency-key")
        if scope["type"] != "http" or scope["method"] != "POST" or caller is None or not key:
            await self._app(scope, receive, send)
            return
        title = f"POST {scope['path']}"
        if len(key) > LONGEST_KEY:
            why = f"the Idempotency-Key has more than {LONGEST_KEY} characters"
            await refuse(send, Problem(title, 400, "invalid", why, "use a random one, as uuid4() makes it"))
            return
        body = await _whole(receive)
        if body is None:
            why = f"the request is longer than {MOST_BODY >> 20} MiB, or it was cut off"
            await refuse(send, Problem(title, 413, "invalid", why, "send files as uploads"))
            return
        ident = caller.owner, caller.project, key
        lock, users = self._turns.get(ident, (asyncio.Lock(), 0))
        self._turns[ident] = lock, users + 1
        try:
            async with lock:
                await self._answer(caller, key, body, scope, receive, send)
        finally:
            lock, users = self._turns.pop(ident)
            if users > 1:
                self._turns[ident] = lock, users - 1

    async def _answer(self, caller: Caller, key: str, body: bytes, scope: Scope, receive: Receive, send: Send) -> None:
        asked = b"\0".join((scope["path"].encode(), scope.get("query_string", b""), body))
        fingerprint, title = hashlib.sha256(asked).hexdigest(), f"POST {scope['path']}"
        known = await self._backend.answer(caller, key)
        if known is not None:
            if known.fingerprint != fingerprint:
                why = f"the Idempotency-Key {key} was used for another request"
                await refuse(send, Problem(title, 422, "invalid", why, "use a new key for each thing that you want"))
            else:
                headers = [(b"content-type", known.content_type.encode()), (b"location", known.location.encode())]
                await respond(send, known.status, [each for each in headers if each[1]], known.body.encode())
            return
        given = False

        async def again() -> Message:
            nonlocal given
            if given:
                return await receive()
            given = True
            return {"type": "http.request", "body": body, "more_body": False}

        sent: list[Message] = []

        async def hold(message: Message) -> None:
            sent.append(message)

        await self._app(scope, again, hold)
        if sent and 200 <= sent[0]["status"] < 300:
            answer = _kept(caller, key, fingerprint, self._clock(), title, sent)
            try:
                await self._backend.keep_answer(answer)
            except StoreError as error:  # it was done, and is to be said so; a repetition may do it again
                _log.error("keep the answer to %s: %s", title, error)
        for message in sent:
            await send(message)


def _kept(caller: Caller, key: str, fingerprint: str, at: float, title: str, sent: list[Message]) -> Answer:
    """What a repetition is to be answered."""
    headers = {name.lower(): value.decode("latin-1") for name, value in sent[0].get("headers", ())}
    status, kind, location = sent[0]["status"], headers.get(b"content-type", ""), headers.get(b"location", "")
    body = b"".join(message.get("body", b"") for message in sent[1:]).decode()
    if "no-store" in headers.get(b"cache-control", ""):
        why = "it was done, and answered with a secret, which is told once and kept nowhere"
        hint = "if you did not get it: revoke what was made, and make another"
        problem = Problem(title, 409, "conflict", why, hint)
        status, kind, body = 409, PROBLEM_JSON, msgspec.json.encode(problem).decode()
    return Answer(caller.owner, caller.project, key, fingerprint, at, status, kind, location, body)


async def _whole(receive: Receive) -> bytes | None:
    """The body of a request; None: it is too long, or the client has gone."""
    parts, size, more = [], 0, True
    while more:
        message = await receive()
        if message["type"] != "http.request":
            return None
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > MOST_BODY:
            return None
        more = message.get("more_body", False)
    return b"".join(parts)
