"""Serves a `FakeBackend` for real: in a thread of the test, or as a process that the launcher starts."""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import sys
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Self

from gridhypervisor.service.api import Api
from gridhypervisor.service.listener import Listener
from gridhypervisor.service.server import serve
from tests.unit.fake_backend import FakeBackend

Listen = Callable[[], Listener]

WAIT = 60.0
"""Seconds after which a test gives up waiting for what must happen."""


class Service(AbstractContextManager["Service"]):
    """A service in a thread. May be stopped and started again, with the same backend."""

    def __init__(self, socket: Path, backend: FakeBackend | None = None, *, listen: Listen | None = None) -> None:
        """`listen`: makes the listener, at each start."""
        self.socket = socket
        self.url = ""
        self._listen = listen
        self.backend = backend or FakeBackend()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._stopping: asyncio.Event | None = None
        self._served: asyncio.Task[None] | None = None
        self._trouble: list[str] = []  # what the event loop complains of
        self._loop.set_exception_handler(lambda _, context: self._trouble.append(str(context)))

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        self._end()
        assert error is not None or not self._trouble, self._trouble

    def start(self) -> None:
        try:
            asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(WAIT)
        except BaseException:
            self._end()
            raise

    def stop(self) -> None:
        """As the service stops when it is told to: streams end, the socket goes."""
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result(WAIT)

    def do(self, action: Callable[[], object]) -> None:
        """Call something of the backend's, in its event loop."""

        async def call() -> None:
            action()

        asyncio.run_coroutine_threadsafe(call(), self._loop).result(WAIT)

    async def _start(self) -> None:
        ready = asyncio.Event()
        self._stopping = asyncio.Event()
        listener = self._listen() if self._listen is not None else None
        self.url = listener.url if listener is not None else ""
        serving = serve(Api(self.backend), self.socket, ready.set, self._stopping, listener)
        self._served = asyncio.create_task(serving)
        waiting = asyncio.create_task(ready.wait())
        await asyncio.wait((waiting, self._served), return_when=asyncio.FIRST_COMPLETED, timeout=WAIT)
        if self._served.done():
            await self._served

    async def _stop(self) -> None:
        assert self._stopping is not None and self._served is not None
        self._stopping.set()
        await self._served

    def _end(self) -> None:
        """Leave nothing behind: a task that nobody ends would say so in the middle of another test."""
        gc.collect()
        asyncio.run_coroutine_threadsafe(self._cancel_rest(), self._loop).result(WAIT)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(WAIT)
        self._loop.close()

    @staticmethod
    async def _cancel_rest() -> None:
        rest = asyncio.all_tasks() - {asyncio.current_task()}
        for task in rest:
            task.cancel()
        if rest:
            await asyncio.wait(rest, timeout=WAIT)
        await asyncio.get_running_loop().shutdown_asyncgens()


async def _main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("--data", "--socket"):
        parser.add_argument(name, type=Path, required=True)
    parser.add_argument("--ready-fd", type=int, required=True)
    given = parser.parse_args()
    if (given.data / "broken").exists():
        sys.exit("cannot open the store: it is broken")
    with (given.data / "starts").open("a") as starts:
        starts.write("started\n")
    stopping = asyncio.Event()

    def ready() -> None:
        os.write(given.ready_fd, b"ready\n")
        os.close(given.ready_fd)

    await serve(Api(FakeBackend(stop=stopping.set, pid=os.getpid())), given.socket, ready, stopping)


if __name__ == "__main__":
    asyncio.run(_main())
