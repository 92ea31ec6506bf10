"""Serves the application on a Unix socket that this user alone can use, and to the network, until it is told to stop.

Whoever can open the socket may do all that the user can. So it is made 0600 in a 0700 folder, before anything can
connect; and each peer's user id, as the kernel tells it, must be ours or root's. The network is served where that is
asked for (`listener.py`): over TLS, or on loopback; and there every request needs a token.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

from gridhypervisor.model.views import Problem, ServiceError
from gridhypervisor.service.api import Api
from gridhypervisor.service.guard import LOCAL, Asgi, Receive, Scope, Send
from gridhypervisor.service.listener import Listener

GRACE = 5
"""Seconds that requests under way have to end once the service stops."""

BACKLOG = 1024

HEAD = 20.0
"""Seconds that a client on the network has to get a request's head across."""

CONNECTIONS = 512
"""From the network at once; more are answered that it is too busy."""


async def serve(
    app: Api, socket_path: Path, on_ready: Callable[[], None], stopping: asyncio.Event, listener: Listener | None = None
) -> None:
    """Serve until `stopping` is set, then let requests end. `on_ready` is called once connections are accepted.

    Signals are the caller's. The socket is taken away first thing at the stop: a client that finds it missing knows
    that the service was stopped, one that finds it dead knows that it crashed. `listener`: serve the network too.

    Raises:
        ServiceError: the socket cannot be made, or another service has it.
    """
    to_come = 1 if listener is None else 2

    def started() -> None:
        nonlocal to_come
        to_come -= 1
        if not to_come:
            on_ready()

    def stop() -> None:
        socket_path.unlink(missing_ok=True)
        app.closing.set()

    with _listening(socket_path) as sock:
        config = _config(_as_local(app), _Protocol, lifespan="on")
        serving = [_Server(config, started, stopping, stop).serve(sockets=[sock])]
        if listener is not None:
            tls = {"ssl_certfile": listener.cert, "ssl_keyfile": listener.key} if listener.cert else {}
            config = _config(app, _Remote, lifespan="off", limit_concurrency=CONNECTIONS, **tls)
            serving.append(_Server(config, started, stopping, stop).serve(sockets=[listener.socket]))
        await asyncio.gather(*serving)


def _as_local(app: Asgi) -> Asgi:
    async def local(scope: Scope, receive: Receive, send: Send) -> None:
        scope[LOCAL] = True
        await app(scope, receive, send)

    return local


def _config(app: Asgi, http: type[H11Protocol], **settings: Any) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=http,
        ws="none",
        log_config=None,
        access_log=False,
        date_header=False,
        server_header=False,
        proxy_headers=False,  # who calls is who connects, whatever a header says
        timeout_graceful_shutdown=GRACE,
        backlog=BACKLOG,
        **settings,
    )


class _Server(uvicorn.Server):
    """uvicorn, woken by an event instead of looking ten times a second whether it is to stop."""

    def __init__(
        self,
        config: uvicorn.Config,
        on_ready: Callable[[], None],
        stopping: asyncio.Event,
        stop: Callable[[], None],
    ) -> None:
        super().__init__(config)
        self._on_ready, self._stopping, self._stop = on_ready, stopping, stop

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def main_loop(self) -> None:
        self._on_ready()
        await self._stopping.wait()
        self._stop()


class _Protocol(H11Protocol):
    """HTTP for peers that are this user, or root."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        if peer_user(transport.get_extra_info("socket")) in (os.getuid(), 0):
            super().connection_made(transport)
        else:
            transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        if hasattr(self, "transport") and self.transport is not None:
            super().connection_lost(exc)


class _Remote(H11Protocol):
    """HTTP for the network. Who does not get a request's head across in time is cut off: he would keep a connection."""

    _waiting: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._hurry()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._hurry()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
        super().connection_lost(exc)

    def _hurry(self) -> None:
        cycle: RequestResponseCycle | None = self.cycle  # none before the first request, whatever its type says
        answering = cycle is not None and not cycle.response_complete
        if answering and self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None
        elif not answering and self._waiting is None:
            self._waiting = self.loop.call_later(HEAD, self.transport.abort)


def peer_user(sock: socket.socket) -> int:
    """The user id of the process that connected, from the kernel."""
    credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return int(struct.unpack("3i", credentials)[1])


@contextmanager
def _listening(path: Path) -> Iterator[socket.socket]:
    """A listening socket at `path`, replacing a dead one."""
    title = f"listen at {path}"
    if _answers(path):
        hint = "Use the running service, or stop it: ghv service stop"
        raise ServiceError(Problem(title, 409, "conflict", "another service listens there", hint))
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        os.fchmod(sock.fileno(), 0o600)  # the file gets the socket's own mode: nobody else can connect at any moment
        path.unlink(missing_ok=True)
        sock.bind(str(path))
    except OSError as error:
        sock.close()
        hint = "Set GHV_RUNTIME to a folder of your own."
        raise ServiceError(Problem(title, 500, "refused", error.strerror or str(error), hint)) from error
    inode = path.stat().st_ino
    try:
        sock.listen(BACKLOG)
        yield sock
    finally:
        sock.close()
        with suppress(FileNotFoundError):
            if path.stat().st_ino == inode:
                path.unlink()


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
        return True
