"""The asynchronous client, on httpx: the same calls as the synchronous one, for programs with an event loop."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from types import TracebackType
from typing import Self, TypeVar

import httpx

from gridhypervisor.client import calls
from gridhypervisor.client.calls import Call, Feed
from gridhypervisor.client.sync import PAUSE
from gridhypervisor.model.views import (
    PATIENCE,
    EventView,
    Explanation,
    FollowItem,
    ImageBuildRequest,
    ImageImportRequest,
    ImageView,
    JobDetail,
    JobRequest,
    JobView,
    Operation,
    OperationItem,
    ServiceView,
    SiteChange,
    SiteLogin,
    SiteRequest,
    SiteUsage,
    SiteView,
)

T = TypeVar("T")


class AsyncClient:
    """As `Client`, with coroutines and asynchronous iterators. To be closed, or used in `async with`."""

    def __init__(
        self, socket_path: str, *, revive: Callable[[], Awaitable[None]] | None = None, patience: float = 60.0
    ) -> None:
        self._socket, self._revive, self._patience = socket_path, revive, patience
        self._met = False
        transport = httpx.AsyncHTTPTransport(uds=socket_path)
        self._http = httpx.AsyncClient(
            transport=transport, base_url="http://localhost", headers=calls.LAST, timeout=None
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        await self._http.aclose()

    async def submit(self, request: JobRequest, key: str = "") -> JobView:
        return await self._ask(calls.submit(request, key))

    async def jobs(self, *, states: Sequence[str] = (), before: str = "", limit: int = 100) -> tuple[JobView, ...]:
        """Newest first, below the id `before`."""
        return await self._ask(calls.jobs(states, before, limit))

    async def job(self, job: str) -> JobDetail:
        return await self._ask(calls.job(job))

    async def cancel(self, job: str) -> JobView:
        return await self._ask(calls.cancel(job))

    async def recover(self, job: str) -> JobView:
        return await self._ask(calls.recover(job))

    async def delete(self, job: str) -> None:
        await self._ask(calls.delete(job))

    async def explain(self, job: str) -> Explanation:
        return await self._ask(calls.explain(job))

    def follow(self, job: str, *, output: bool = True, stdout: int = 0, stderr: int = 0) -> AsyncIterator[FollowItem]:
        """The job's changes, and what it prints from those offsets on; ends with the item of kind END."""
        return self._stream(calls.JobFeed(job, output, stdout, stderr))

    async def log(self, job: str, stream: str, *, offset: int = 0, limit: int = 1 << 20) -> bytes:
        """Bytes of stdout, stderr, console or pilot; empty at the present end."""
        return await self._ask(calls.log(job, stream, offset, limit))

    async def events(self, *, after: int = 0, job: str = "", limit: int = 1000) -> tuple[EventView, ...]:
        return await self._ask(calls.events(after, job, limit))

    def watch_events(self, *, after: int = 0, job: str = "") -> AsyncIterator[EventView]:
        """Events with a sequence above `after`, past and coming; has no end."""
        return self._stream(calls.EventFeed(after, job))

    async def images(self) -> tuple[ImageView, ...]:
        return await self._ask(calls.images())

    async def image(self, reference: str) -> ImageView:
        return await self._ask(calls.image(reference))

    async def build_image(self, request: ImageBuildRequest) -> Operation:
        return await self._ask(calls.build_image(request))

    async def import_image(self, request: ImageImportRequest) -> Operation:
        return await self._ask(calls.import_image(request))

    async def verify_image(self, reference: str) -> Operation:
        return await self._ask(calls.verify_image(reference))

    async def delete_image(self, reference: str) -> None:
        await self._ask(calls.delete_image(reference))

    async def sites(self) -> tuple[SiteView, ...]:
        return await self._ask(calls.sites())

    async def site(self, name: str) -> SiteView:
        return await self._ask(calls.site(name))

    async def add_site(self, request: SiteRequest) -> SiteView:
        return await self._ask(calls.add_site(request))

    async def edit_site(self, name: str, change: SiteChange) -> SiteView:
        return await self._ask(calls.edit_site(name, change))

    async def drain_site(self, name: str, *, undo: bool = False) -> SiteView:
        """Give the site no new work; `undo`: give it work again."""
        return await self._ask(calls.drain_site(name, undo=undo))

    async def login_site(self, name: str) -> SiteLogin:
        """The command that a person runs in a terminal to let the service in."""
        return await self._ask(calls.login_site(name))

    async def remove_site(self, name: str, *, abandon: bool = False) -> None:
        await self._ask(calls.remove_site(name, abandon=abandon))

    async def check_site(self, name: str, *, patience: int = PATIENCE) -> Operation:
        """Ask it, and prove what its nodes can do by a small job, which has `patience` seconds; 0: no job."""
        return await self._ask(calls.check_site(name, patience))

    async def site_usage(self, name: str) -> SiteUsage:
        return await self._ask(calls.site_usage(name))

    def follow_operation(self, operation: Operation) -> AsyncIterator[OperationItem]:
        """Its progress; ends with the item of kind `done`, or raises the operation's error."""
        return self._stream(calls.OperationFeed(operation))

    async def stop_operation(self, operation: Operation) -> None:
        """End it before its time: what it has begun at a site is withdrawn."""
        await self._ask(calls.stop_operation(operation))

    async def status(self) -> ServiceView:
        return await self._ask(calls.status())

    async def stop(self) -> None:
        """Ask the service to stop. It has stopped when its process has ended."""
        await self._ask(calls.stop())

    async def _ask(self, call: Call[T]) -> T:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._patience
        while True:
            try:
                response = await self._http.request(
                    call.method, call.path, content=call.body or None, headers=call.all_headers
                )
                self._met = True
                return call.read(response.status_code, response.content)
            except httpx.TransportError as error:
                if not call.repeatable and not isinstance(error, httpx.ConnectError):
                    hint = "It may have been carried out or not: look before asking again."
                    raise calls.gone(self._socket, f"it went away before it answered ({error})", hint) from error
                await self._await_service(error, deadline)

    async def _stream(self, feed: Feed[T]) -> AsyncIterator[T]:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._patience
        while True:
            broken: Exception = ConnectionError("the stream ended early")
            try:
                async with self._http.stream("GET", feed.path) as response:
                    self._met = True
                    if response.status_code >= 400:
                        raise calls.refusal(f"GET {feed.path}", response.status_code, await response.aread())
                    async for line in _lines(response):
                        item = feed.take(line)
                        deadline = loop.time() + self._patience
                        if item is not None:
                            yield item
                        if feed.ended:
                            return
            except httpx.TransportError as error:
                broken = error
            if not feed.resumable and not isinstance(broken, httpx.ConnectError):
                hint = "Start the operation again."
                raise calls.gone(self._socket, "it went away in the middle of the operation", hint) from broken
            await self._await_service(broken, deadline)

    async def _await_service(self, error: Exception, deadline: float) -> None:
        """Return when it is worth trying again; see `Client`."""
        absent = isinstance(error, httpx.ConnectError)
        if absent and not self._met and not self._revive:
            raise calls.gone(self._socket, str(error), calls.START) from error
        if asyncio.get_running_loop().time() > deadline:
            raise calls.lost(self._socket, self._patience, error) from error
        if absent and self._revive and (not self._met or os.path.exists(self._socket)):
            await self._revive()
        else:
            await asyncio.sleep(PAUSE)


async def _lines(response: httpx.Response) -> AsyncIterator[bytes]:
    """Whole lines; httpx's own iterator would also cut at the line separators of Unicode, which JSON may hold."""
    rest = b""
    async for chunk in response.aiter_raw():
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            yield line
