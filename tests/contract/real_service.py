"""The real application, with its real store, behind its real server on a Unix socket and on loopback.

Only what is outside is missing: its sites cannot be reached, and its images have no bytes. Nothing is decided about
jobs, so they stay as they were submitted.
"""

from __future__ import annotations

import asyncio
import ssl
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AbstractContextManager, asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx

from gridhypervisor.app import App
from gridhypervisor.client.remote import Remote
from gridhypervisor.execution.ports import Link
from gridhypervisor.execution.steps import no_steps
from gridhypervisor.model.access import Caller, Scope, TokenRequest
from gridhypervisor.model.errors import LinkError
from gridhypervisor.model.records import Site
from gridhypervisor.model.wire import ImageManifest
from gridhypervisor.service.api import Api
from gridhypervisor.service.listener import listen
from gridhypervisor.service.server import serve
from gridhypervisor.store import open_store

T = TypeVar("T")

WAIT = 60.0


class NoWay:
    """A transport to nowhere."""

    doing = ""
    bundle = ""

    @asynccontextmanager
    async def connect(self, on_note: Callable[[dict[str, Any], bytes], None]) -> AsyncIterator[Link]:
        raise LinkError("there is no way to a site here", "none is needed")
        yield


class Outsideless(App):
    def way(self, site: Site) -> NoWay:  # type: ignore[override]
        return NoWay()

    def resolve_image(self, reference: str) -> tuple[str, ImageManifest]:
        return "ab" * 32, ImageManifest(())


class RealService(AbstractContextManager["RealService"]):
    """`cert`, `key`: served over TLS with these."""

    def __init__(self, folder: Path, *, cert: str = "", key: str = "") -> None:
        self._folder, self._cert, self._key = folder, cert, key
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        self.call(self._start())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.call(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(WAIT)
        self._loop.close()

    def call(self, work: Coroutine[Any, Any, T]) -> T:
        """Do something in the service's event loop."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(WAIT)

    def token(self, owner: str, scope: Scope = Scope.WRITE, expires: str = "1h") -> str:
        made = self.call(self.app.create_token(TokenRequest(scope, owner, "physics", "", expires), self.app.myself))
        return made.secret

    def caller(self, token: str) -> Caller | None:
        return self.app.caller(token)

    def remote(self, token: str) -> Remote:
        return Remote(self.url, token, self._cert)

    def http(self, token: str = "") -> httpx.Client:
        """Over the network, with a token or without."""
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        verify = ssl.create_default_context(cafile=self._cert) if self._cert else True
        return httpx.Client(base_url=self.url, headers=headers, timeout=WAIT, verify=verify)

    def local(self) -> httpx.Client:
        """Over the Unix socket."""
        transport = httpx.HTTPTransport(uds=str(self.socket))
        return httpx.Client(transport=transport, base_url="http://ghv", timeout=WAIT)

    async def _start(self) -> None:
        self.socket = self._folder / "s.sock"
        self.app = Outsideless(self._folder / "data", self._folder, open_store(self._folder / "data" / "s"), no_steps)
        await self.app.controller.load()
        await self.app.load_tokens()
        listener = listen("127.0.0.1:0", self._cert, self._key)
        self.url = listener.url
        self._stopping, ready = asyncio.Event(), asyncio.Event()
        serving = serve(Api(self.app), self.socket, ready.set, self._stopping, listener)
        self._served = asyncio.create_task(serving)
        await asyncio.wait_for(ready.wait(), WAIT)

    async def _stop(self) -> None:
        self._stopping.set()
        await self._served
        await self.app.operations.close()
        await self.app.accounts.close()
        await self.app.controller.close()
        self.app.store.close()
