"""As much of HTTP/1.1 as the service speaks, one request a connection. No retries, no meaning.

Not the standard library's: importing that takes longer than all that `ghv` asks for, and each start would pay for it.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from gridhypervisor.client.remote import Remote

NO_CONTENT = 204
_PIECE = 1 << 16
_LONGEST_LINE = 1 << 16
"""Bytes of a line of the head."""


class Absent(ConnectionError):
    """Nothing listens: the request was not sent."""


class Cut(ConnectionError):
    """What came is no whole answer: the service died, or it is none."""


def _connected(address: str | Remote) -> socket.socket:
    try:
        if not isinstance(address, str):
            return address.connect()
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.connect(address)
        except BaseException:
            sock.close()
            raise
        return sock
    except OSError as error:
        raise Absent(str(error)) from error


def _authorized(address: Remote) -> dict[str, str]:
    return {"Authorization": f"Bearer {address.token}"}


class Exchange:
    """A request, sent, and its answer, whose head has come. Used in `with`."""

    def __init__(
        self, address: str | Remote, method: str, target: str, headers: Mapping[str, str], body: bytes = b""
    ) -> None:
        """`address`: the path of a Unix socket, or a service elsewhere. Raises: Absent; Cut; OSError: the connection
        broke."""
        host, theirs = ("localhost", {}) if isinstance(address, str) else (address.netloc, _authorized(address))
        self._socket = _connected(address)
        try:
            given = {"Host": host, "Connection": "close", "Content-Length": str(len(body)), **theirs, **headers}
            head = [f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in given.items()), "", ""]
            self._socket.sendall("\r\n".join(head).encode() + body)
            self._file = self._socket.makefile("rb")
            self.status = self._head()
        except BaseException:
            self._socket.close()
            raise

    def read(self) -> bytes:
        """The whole body. Raises: Cut; OSError."""
        return b"".join(self._pieces())

    def lines(self) -> Iterator[bytes]:
        """The body line by line, each as soon as it has come. Raises: Cut; OSError."""
        rest = b""
        for piece in self._pieces():
            *lines, rest = (rest + piece).split(b"\n")
            yield from lines
        if rest:
            raise Cut("the answer ends in the middle of a line")

    def _head(self) -> int:
        """Take in the head; the status. Without a length nobody can tell a whole body from one that was cut off."""
        words = self._line().split()
        fields = {}
        while line := self._line():
            name, _, value = line.partition(":")
            fields[name.lower()] = value.strip()
        self._chunked = fields.get("transfer-encoding", "").lower() == "chunked"
        try:
            status = int(words[1])
            self._length = 0 if self._chunked or status == NO_CONTENT else int(fields["content-length"])
        except (LookupError, ValueError):
            raise Cut("what answers is not the service") from None
        return status

    def _line(self) -> str:
        line = self._file.readline(_LONGEST_LINE)
        if not line.endswith(b"\n"):
            raise Cut("the answer was cut off")
        return line.decode("latin-1").rstrip("\r\n")

    def _pieces(self) -> Iterator[bytes]:
        if not self._chunked:
            yield from self._exactly(self._length)
            return
        while size := self._size():
            yield from self._exactly(size)
            self._line()

    def _size(self) -> int:
        try:
            return int(self._line(), 16)
        except ValueError:
            raise Cut("a piece of the answer has no length") from None

    def _exactly(self, count: int) -> Iterator[bytes]:
        while count:
            data = self._file.read1(min(count, _PIECE))
            if not data:
                raise Cut("the answer was cut off")
            count -= len(data)
            yield data

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        self._socket.close()
