"""A courier's line to the relay: found again at one of its ports when it was lost, one request at a time.

It tries nothing twice: when the relay is away is said by `Away`, and what to do then is the courier's.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from gridhypervisor.agent.tls import courier_context
from gridhypervisor.model import wire
from gridhypervisor.model.wire import NOTES, RELAY_NAME, Carry, WireError

CONNECT, ANSWER = 20.0, 1800.0
"""Seconds that a connection and an answer may take: a relay verifies a large output before it answers."""

ALIVE = {
    socket.TCP_KEEPIDLE: 30, socket.TCP_KEEPINTVL: 10, socket.TCP_KEEPCNT: 6, socket.TCP_USER_TIMEOUT: 90_000,
}  # fmt: skip
"""A front-end that has vanished is noticed in one and a half minutes, whether something was said to it or not; a relay
that was killed at once."""


class Away(Exception):
    """The relay cannot be reached now."""


class Declined(Exception):
    """The relay answered by an error; `kind` as in `wire.Carry`."""

    def __init__(self, kind: str, message: str, hint: str) -> None:
        super().__init__(message)
        self.kind, self.hint = kind, hint


@dataclass(frozen=True)
class Gate:
    """Where the relay may be found."""

    host: str
    first: int  # port
    last: int

    @classmethod
    def parse(cls, text: str) -> Gate:
        """`HOST:FIRST-LAST`. Raises ValueError."""
        host, _, ports = text.rpartition(":")
        first, _, last = ports.partition("-")
        return cls(host.strip("[]"), int(first), int(last or first))

    def __str__(self) -> str:
        return f"{self.host}:{self.first}-{self.last}"


class Line:
    """`noted` is told what the relay says unasked; an answer has `answer` seconds."""

    def __init__(
        self, gate: Gate, ticket: str, noted: Callable[[dict[str, Any]], None], *, answer: float = ANSWER
    ) -> None:
        """Raises ValueError, ssl.SSLError: the ticket cannot be used."""
        self._gate, self._noted, self._answer = gate, noted, answer
        self._context = courier_context(ticket)
        self._socket: ssl.SSLSocket | None = None
        self._decoder = wire.Decoder()
        self._port = gate.first  # at which it answered last
        self._number = 0

    @property
    def connected(self) -> bool:
        return self._socket is not None

    @property
    def at(self) -> str:
        """Where the relay answered last."""
        return f"{self._gate.host} port {self._port}"

    def fileno(self) -> int:
        """Of a line that is connected."""
        assert self._socket is not None
        return self._socket.fileno()

    def connect(self) -> None:
        """Find the relay. Others may listen at some of its ports: it is known by its certificate.

        Raises:
            Away: it is at none of them.
        """
        self.close()
        gate, why, mute = self._gate, "", 0
        for port in sorted(range(gate.first, gate.last + 1), key=lambda port: port != self._port):
            try:
                plain = socket.create_connection((gate.host, port), CONNECT)
            except OSError as error:
                why = why or f"{gate.host} port {port}: {error}"
                mute += isinstance(error, TimeoutError)
                if mute > 1:  # not a port that is closed: the host is not there
                    break
                continue
            plain.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for option, value in ALIVE.items():
                plain.setsockopt(socket.IPPROTO_TCP, option, value)
            try:
                self._socket = self._context.wrap_socket(plain, server_hostname=RELAY_NAME)
            except (OSError, ValueError) as error:
                plain.close()
                why = f"{gate.host} port {port}: {error}"
                continue
            self._socket.settimeout(self._answer)
            self._port, self._decoder = port, wire.Decoder()
            return
        raise Away(f"reach the relay at {gate.host}, ports {gate.first} to {gate.last}: {why}")

    def call(self, op: Carry, payload: bytes = b"", **request: Any) -> tuple[dict[str, Any], bytes]:
        """One request and its reply.

        Raises:
            Away: it did not answer; whether it did what was asked is unknown.
            Declined: it answered by an error.
        """
        if self._socket is None:
            raise Away("not connected")
        self._number += 1
        try:
            self._socket.sendall(wire.encode({"id": self._number, "op": op, **request}, payload))
            reply: tuple[dict[str, Any], bytes] | None = None
            while reply is None:
                for message, data in self._receive(self._socket):
                    if message.get("id") == self._number:
                        reply = message, data
                    else:
                        self._noted(message)
            if error := reply[0].get("error"):
                raise Declined(str(error["kind"]), str(error["message"]), str(error.get("hint", "")))
            answer = dict(reply[0]["ok"])
            # The note of it may have gone by another relay.
            for note, word in NOTES.items():
                if answer.get(note) is not None:
                    self._noted({"note": note, word: answer[note]})
            return answer, reply[1]
        except (OSError, EOFError, WireError, KeyError) as problem:
            self.close()
            raise Away(f"{op}: {str(problem) or type(problem).__name__}") from problem

    def hear(self) -> None:
        """Take in what came unasked, if anything did.

        Raises:
            Away: the line was lost.
        """
        if self._socket is None:
            return
        try:
            self._socket.settimeout(0)
            with contextlib.suppress(ssl.SSLWantReadError):  # something of TLS's own
                while True:
                    for message, _ in self._receive(self._socket):
                        self._noted(message)
            self._socket.settimeout(self._answer)
        except (OSError, EOFError, WireError) as error:
            self.close()
            raise Away(str(error) or type(error).__name__) from error

    def close(self) -> None:
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.close()
            self._socket = None

    def _receive(self, source: ssl.SSLSocket) -> list[tuple[dict[str, Any], bytes]]:
        data = source.recv(1 << 18)
        if not data:
            raise EOFError("the relay closed the line")
        return self._decoder.feed(data)
