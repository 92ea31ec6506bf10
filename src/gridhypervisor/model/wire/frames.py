"""Messages on a pipe, without the pipe.

One message is one line of JSON (UTF-8, no newline inside). A message whose `payload` field is N > 0 is followed by
exactly N raw bytes. Requests carry `id` and `op`; the reply repeats `id` and holds either `ok` (an object) or `error`
(`kind`, `message`, `hint`). Messages without `id` are notes from the relay.
"""

from __future__ import annotations

import json
from typing import Any

from gridhypervisor.model.wire.plain import WireError, one_line

MAX_LINE = 8 << 20
"""Longest accepted message line, in bytes: a peer that sends more is broken or hostile."""

MAX_PAYLOAD = 16 << 20
"""Longest accepted payload, in bytes."""


def encode(message: dict[str, Any], payload: bytes | memoryview = b"") -> bytes:
    """One message ready for the pipe."""
    if payload:
        message = {**message, "payload": len(payload)}
    line = one_line(message) + b"\n"
    if len(line) > MAX_LINE:
        raise WireError(f"message of {len(line)} bytes: the limit is {MAX_LINE}")
    return line + bytes(payload) if payload else line


class Decoder:
    """Bytes in, messages out, across any cut of the stream. Sans-I/O.

    >>> d = Decoder(); list(d.feed(b'{"id":1}\\n{"payload":2}\\nhi'))
    [({'id': 1}, b''), ({'payload': 2}, b'hi')]
    """

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._message: dict[str, Any] | None = None
        self._need = 0

    def feed(self, data: bytes) -> list[tuple[dict[str, Any], bytes]]:
        """Take in bytes; return the messages that they complete.

        Raises:
            WireError: a line is no JSON object or too long, or a payload too large.
        """
        self._buffer += data
        out: list[tuple[dict[str, Any], bytes]] = []
        while True:
            if self._message is None:
                end = self._buffer.find(b"\n")
                if end < 0:
                    if len(self._buffer) > MAX_LINE:
                        raise WireError(f"a line of more than {MAX_LINE} bytes")
                    return out
                line = bytes(self._buffer[:end])
                del self._buffer[: end + 1]
                try:
                    message = json.loads(line)
                except (ValueError, RecursionError) as error:
                    raise WireError(f"not JSON: {line[:120]!r}") from error
                if not isinstance(message, dict):
                    raise WireError(f"not an object: {line[:120]!r}")
                need = message.get("payload", 0)
                if not isinstance(need, int) or not 0 <= need <= MAX_PAYLOAD:
                    raise WireError(f"payload of {need!r} bytes: the limit is {MAX_PAYLOAD}")
                self._message, self._need = message, need
            if len(self._buffer) < self._need:
                return out
            payload = bytes(self._buffer[: self._need])
            del self._buffer[: self._need]
            out.append((self._message, payload))
            self._message = None
