"""The synchronous client, on the standard library's HTTP: its import takes a quarter of httpx's time."""

from __future__ import annotations

import http.client
import os
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from gridhypervisor.client import calls
from gridhypervisor.client.calls import Call, Feed
from gridhypervisor.model.views import (
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
    ServiceError,
    ServiceView,
    SiteRequest,
    SiteView,
)

T = TypeVar("T")

PAUSE = 0.1
"""Seconds between two looks for a service that is away."""


class _Absent(ConnectionError):
    """Nothing listens: the request was not sent."""


class _Connection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost")
        self._path = path

    def connect(self) -> None:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.connect(self._path)
        except OSError as error:
            sock.close()
            raise _Absent(str(error)) from error
        self.sock = sock

    def answer(self) -> http.client.HTTPResponse:
        """The response, once its head is whole: the library takes one that was cut off for a short one."""
        response = self.getresponse()
        if response.length is None and not response.chunked:
            raise http.client.IncompleteRead(b"")
        return response


class Client:
    """Speaks to the service behind `socket_path`. Every method raises ServiceError. May be used from several threads.

    When the service cannot be reached, `revive` (if given) is called to start it: at the first call, and later when it
    has crashed, which it has where its socket lies there and nobody listens. A service that was stopped on purpose
    took its socket away: then the client waits, up to `patience` seconds, for whoever stopped it to start it again.
    """

    def __init__(self, socket_path: str, *, revive: Callable[[], None] | None = None, patience: float = 60.0) -> None:
        self._socket, self._revive, self._patience = socket_path, revive, patience
        self._met = False

    def submit(self, request: JobRequest, key: str = "") -> JobView:
        return self._ask(calls.submit(request, key))

    def jobs(self, *, states: Sequence[str] = (), before: str = "", limit: int = 100) -> tuple[JobView, ...]:
        """Newest first, below the id `before`."""
        return self._ask(calls.jobs(states, before, limit))

    def job(self, job: str) -> JobDetail:
        return self._ask(calls.job(job))

    def cancel(self, job: str) -> JobView:
        return self._ask(calls.cancel(job))

    def recover(self, job: str) -> JobView:
        return self._ask(calls.recover(job))

    def delete(self, job: str) -> None:
        self._ask(calls.delete(job))

    def explain(self, job: str) -> Explanation:
        return self._ask(calls.explain(job))

    def follow(self, job: str, *, output: bool = True, stdout: int = 0, stderr: int = 0) -> Iterator[FollowItem]:
        """The job's changes, and what it prints from those offsets on; ends with the item of kind END."""
        return self._stream(calls.JobFeed(job, output, stdout, stderr))

    def log(self, job: str, stream: str, *, offset: int = 0, limit: int = 1 << 20) -> bytes:
        """Bytes of stdout, stderr, console or pilot; empty at the present end."""
        return self._ask(calls.log(job, stream, offset, limit))

    def events(self, *, after: int = 0, job: str = "", limit: int = 1000) -> tuple[EventView, ...]:
        return self._ask(calls.events(after, job, limit))

    def watch_events(self, *, after: int = 0, job: str = "") -> Iterator[EventView]:
        """Events with a sequence above `after`, past and coming; has no end."""
        return self._stream(calls.EventFeed(after, job))

    def images(self) -> tuple[ImageView, ...]:
        return self._ask(calls.images())

    def image(self, reference: str) -> ImageView:
        return self._ask(calls.image(reference))

    def build_image(self, request: ImageBuildRequest) -> Operation:
        return self._ask(calls.build_image(request))

    def import_image(self, request: ImageImportRequest) -> Operation:
        return self._ask(calls.import_image(request))

    def verify_image(self, reference: str) -> Operation:
        return self._ask(calls.verify_image(reference))

    def delete_image(self, reference: str) -> None:
        self._ask(calls.delete_image(reference))

    def sites(self) -> tuple[SiteView, ...]:
        return self._ask(calls.sites())

    def site(self, name: str) -> SiteView:
        return self._ask(calls.site(name))

    def add_site(self, request: SiteRequest) -> SiteView:
        return self._ask(calls.add_site(request))

    def remove_site(self, name: str) -> None:
        self._ask(calls.remove_site(name))

    def check_site(self, name: str) -> Operation:
        return self._ask(calls.check_site(name))

    def follow_operation(self, operation: Operation) -> Iterator[OperationItem]:
        """Its progress; ends with the item of kind `done`, or raises the operation's error."""
        return self._stream(calls.OperationFeed(operation))

    def status(self) -> ServiceView:
        return self._ask(calls.status())

    def stop(self) -> None:
        """Ask the service to stop. It has stopped when its process has ended."""
        self._ask(calls.stop())

    def _ask(self, call: Call[T]) -> T:
        deadline = time.monotonic() + self._patience
        while True:
            connection = _Connection(self._socket)
            try:
                connection.request(call.method, call.path, call.body or None, call.all_headers | calls.LAST)
                self._met = True
                response = connection.answer()
                return call.read(response.status, response.read())
            except (OSError, http.client.HTTPException) as error:
                if not call.repeatable and not isinstance(error, _Absent):
                    hint = "It may have been carried out or not: look before asking again."
                    raise calls.gone(self._socket, f"it went away before it answered ({error})", hint) from error
                self._await_service(error, deadline)
            finally:
                connection.close()

    def _stream(self, feed: Feed[T]) -> Iterator[T]:
        deadline = time.monotonic() + self._patience
        while True:
            connection = _Connection(self._socket)
            broken: Exception = ConnectionError("the stream ended early")
            try:
                connection.request("GET", feed.path, headers=calls.LAST)
                self._met = True
                response = connection.answer()
                if response.status >= 400:
                    raise calls.refusal(f"GET {feed.path}", response.status, response.read())
                for line in response:
                    if not line.endswith(b"\n"):
                        break
                    item = feed.take(line)
                    deadline = time.monotonic() + self._patience
                    if item is not None:
                        yield item
                    if feed.ended:
                        return
            except (OSError, http.client.HTTPException) as error:
                broken = error
            finally:
                connection.close()
            if not feed.resumable and not isinstance(broken, _Absent):
                hint = "Start the operation again."
                raise calls.gone(self._socket, "it went away in the middle of the operation", hint) from broken
            self._await_service(broken, deadline)

    def _await_service(self, error: Exception, deadline: float) -> None:
        """Return when it is worth trying again."""
        absent = isinstance(error, _Absent)
        if absent and not self._met and not self._revive:
            raise calls.gone(self._socket, str(error), calls.START) from error
        if time.monotonic() > deadline:
            raise calls.lost(self._socket, self._patience, error) from error
        if absent and self._revive and (not self._met or os.path.exists(self._socket)):
            self._revive()
        else:
            time.sleep(PAUSE)


__all__ = ["Client", "ServiceError"]
