"""Streams: newline-delimited JSON, and server-sent events, out of the backend's asynchronous iterators.

A stream ends when its iterator ends, when the client goes, or when the service closes: then in the middle, but after a
whole line, and the client asks again where it stopped. A fault in the middle is the stream's last line, a problem.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from typing import Any, TypeVar

import anyio
import msgspec
from litestar.response import Stream

from gridhypervisor.model.views import EventView, FollowItem, FollowKind, ServiceError

T = TypeVar("T")

NDJSON, SSE = "application/x-ndjson", "text/event-stream"

Encode = Callable[[Any], bytes]
"""One item as it is written. A problem comes as {"problem": …}."""


def as_line(item: Any) -> bytes:
    return msgspec.json.encode(item) + b"\n"


def as_event(item: Any) -> bytes:
    """One server-sent event; its id is the event's sequence, so that a browser's reconnect names where it stopped."""
    head = f"id: {item.sequence}\nevent: {item.kind}\n" if isinstance(item, EventView) else "event: problem\n"
    return head.encode() + b"data: " + msgspec.json.encode(item) + b"\n\n"


async def respond(items: AsyncIterator[T], closing: asyncio.Event, *, prime: bool, encode: Encode = as_line) -> Stream:
    """The response that streams `items`.

    `prime`: wait for the first item before answering, so that a fault before it has an HTTP status of its own. Only
    for iterators that say something at once.
    """
    first = [await anext(items)] if prime else []
    media = NDJSON if encode is as_line else SSE
    return Stream(_write(first, items, closing, encode), media_type=media, headers={"Cache-Control": "no-store"})


async def _write(
    first: list[T], items: AsyncIterator[T], closing: asyncio.Event, encode: Encode
) -> AsyncGenerator[bytes]:
    for item in first:
        yield encode(item)
    try:
        async with aclosing(_until(items, closing)) as rest:
            async for item in rest:
                yield encode(item)
    except ServiceError as error:
        yield encode({"problem": error.problem})


async def _until(items: AsyncIterator[T], closing: asyncio.Event) -> AsyncGenerator[T]:
    """The items until there are no more, or the service closes."""
    closed = asyncio.ensure_future(closing.wait())
    following: asyncio.Future[T] | None = None
    try:
        while True:
            following = asyncio.ensure_future(anext(items))
            await asyncio.wait((following, closed), return_when=asyncio.FIRST_COMPLETED)
            if not following.done():
                return
            try:
                item = following.result()
            except StopAsyncIteration:
                return
            yield item
    finally:
        closed.cancel()
        with anyio.CancelScope(shield=True):  # when the client went, each further await here would be cancelled too
            if following is not None:
                following.cancel()
                await asyncio.wait((following,))
                if not following.cancelled():
                    following.exception()  # which nobody will hear of any more
            if isinstance(items, AsyncGenerator):
                await items.aclose()


async def from_offsets(items: AsyncIterator[FollowItem], stdout: int, stderr: int) -> AsyncGenerator[FollowItem]:
    """A job's follow stream without the output that the client already has."""
    have = {"stdout": stdout, "stderr": stderr}
    try:
        async for item in items:
            if item.kind is not FollowKind.OUTPUT or item.offset >= have[item.stream]:
                yield item
            elif fresh := item.data[have[item.stream] - item.offset :]:
                yield msgspec.structs.replace(item, offset=have[item.stream], data=fresh)
    finally:
        if isinstance(items, AsyncGenerator):
            await items.aclose()
