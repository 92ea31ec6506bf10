"""Serves the application on a Unix socket that this user alone can use, until it is told to stop.

Whoever can open the socket may do all that the user can. So it is made 0600 in a 0700 folder, before anything can
connect; and each peer's user id, as the kernel tells it, must be ours or root's.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import uvicorn
from litestar import Litestar
from uvicorn.protocols.http.h11_impl import H11Protocol

from gridhypervisor.model.views import Problem, ServiceError

GRACE = 5
"""Seconds that requests under way have to end once the service stops."""

BACKLOG = 1024


async def serve(app: Litestar, socket_path: Path, on_ready: Callable[[], None], stopping: asyncio.Event) -> None:
    """Serve until `stopping` is set, then let requests end. `on_ready` is called once connections are accepted.

    Signals are the caller's. The socket is taken away first thing at the stop: a client that finds it missing knows
    that the service was stopped, one that finds it dead knows that it crashed.

    Raises:
        ServiceError: the socket cannot be made, or another service has it.
    """
    config = uvicorn.Config(
        app,
        http=_Protocol,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        date_header=False,
        server_header=False,
        timeout_graceful_shutdown=GRACE,
        backlog=BACKLOG,
    )
    with _listening(socket_path) as sock:
        await _Server(config, socket_path, on_ready, stopping, app.state.closing).serve(sockets=[sock])


class _Server(uvicorn.Server):
    """uvicorn, woken by an event instead of looking ten times a second whether it is to stop."""

    def __init__(
        self,
        config: uvicorn.Config,
        path: Path,
        on_ready: Callable[[], None],
        stopping: asyncio.Event,
        closing: asyncio.Event,
    ) -> None:
        super().__init__(config)
        self._path, self._on_ready, self._stopping, self._closing = path, on_ready, stopping, closing

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def main_loop(self) -> None:
        self._on_ready()
        await self._stopping.wait()
        self._path.unlink(missing_ok=True)
        self._closing.set()


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
