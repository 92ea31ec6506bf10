"""What goes over a link between pilots: records of frames for one member, without the link. Sans-I/O.

A record is a header (`>IIHH`: bytes that follow, network, destination's number, source's number) and frames, each
behind its length (`>I`). One without frames keeps the link alive. The link begins with a line of JSON each way:
`{"join": ENTRY, "from": ENTRY}` of who dials, and `{"ok": {}}`; how either proves who it is, is the link's matter.
"""

from __future__ import annotations

import json
import struct
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from gridhypervisor.model.wire import WireError

HEADER = struct.Struct(">IIHH")
LENGTH = struct.Struct(">I")

MOST = 256 << 10
"""Bytes of frames in one record."""

QUEUE = 512 << 10
"""Bytes that wait for one link: more would be seconds of delay for whoever comes next."""

TOGETHER = 16 << 10
"""Bytes: records that are shorter are sent with those that follow."""

ALIVE = HEADER.pack(0, 0, 0, 0)

_LINE = 1024  # bytes of the longest greeting


@dataclass(frozen=True)
class Record:
    """Frames of one member for another, still behind their lengths."""

    network: int
    destination: int
    source: int
    frames: memoryview  # good until the next call of its decoder

    def split(self) -> Iterator[memoryview]:
        """The frames. Raises WireError: their lengths do not add up."""
        view, at = self.frames, 0
        while at < len(view):
            if at + LENGTH.size > len(view):
                raise WireError("a record that ends within a frame's length")
            [size] = LENGTH.unpack_from(view, at)
            at += LENGTH.size
            if size > len(view) - at:
                raise WireError(f"a frame of {size} bytes in a record that has {len(view) - at} left")
            yield view[at : at + size]
            at += size


def record(network: int, destination: int, source: int, frames: bytes | memoryview) -> bytes:
    """In one piece; `frames` are behind their lengths."""
    return b"".join((HEADER.pack(len(frames), network, destination, source), frames))


class Decoder:
    """Bytes in, records out. The bytes are read into `room()`, and taken in by `took()`."""

    def __init__(self) -> None:
        self._buffer = bytearray(2 * (MOST + HEADER.size))
        self._view = memoryview(self._buffer)
        self._begin = self._end = 0

    def room(self) -> memoryview:
        """Where the next bytes belong; never empty."""
        if len(self._buffer) - self._end < MOST // 2 and self._begin:
            left = self._end - self._begin
            self._buffer[:left] = self._buffer[self._begin : self._end]
            self._begin, self._end = 0, left
        return self._view[self._end :]

    def took(self, size: int) -> Iterator[Record]:
        """So many bytes came; the records that they complete.

        Raises:
            WireError: a record is too long; nothing that follows can be understood.
        """
        self._end += size
        while self._end - self._begin >= HEADER.size:
            length, network, destination, source = HEADER.unpack_from(self._buffer, self._begin)
            if length > MOST:
                raise WireError(f"a record of {length} bytes: the limit is {MOST}")
            after = self._begin + HEADER.size
            if self._end < after + length:
                return
            self._begin = after + length
            if length:
                yield Record(network, destination, source, self._view[after : self._begin])


class Outbox:
    """Records that wait until a link takes them: whole ones are dropped when there are too many."""

    def __init__(self, most: int = QUEUE) -> None:
        self._most = most
        self._waiting: deque[bytes | memoryview] = deque()
        self._begun = False  # the first one, so that it must be finished
        self.size = 0  # bytes

    def put(self, data: bytes) -> bool:
        """False: there is no room, and it is dropped."""
        if self.size and self.size + len(data) > self._most:
            return False
        self._waiting.append(data)
        self.size += len(data)
        return True

    def first(self) -> bytes | memoryview | None:
        """What is to be sent next, small records together. Asked again before any of it went, it begins with the same,
        as TLS wants it."""
        if len(self._waiting) < 2 or len(self._waiting[0]) >= TOGETHER:
            return self._waiting[0] if self._waiting else None
        parts, size = [], 0
        for each in self._waiting:
            parts.append(each)
            size += len(each)
            if size >= TOGETHER:
                break
        return b"".join(parts)

    def sent(self, size: int) -> None:
        """So many bytes of it went."""
        self.size -= size
        while size:
            first = self._waiting[0]
            if size < len(first):
                self._waiting[0], self._begun = memoryview(first)[size:], True
                return
            size -= len(self._waiting.popleft())
            self._begun = False

    def rewind(self) -> None:
        """The link was lost: what was begun cannot be finished on another. The rest waits for that."""
        if self._begun:
            self.size -= len(self._waiting.popleft())
            self._begun = False


def greeting(words: dict[str, object]) -> bytes:
    return json.dumps(words).encode() + b"\n"


class Greeting:
    """The line with which a link begins: bytes in, one object out."""

    def __init__(self) -> None:
        self._line = b""

    def feed(self, data: bytes) -> dict[str, object] | None:
        """None: it is not whole yet. Who greets waits for the answer, so nothing may follow.

        Raises:
            WireError: it is none.
        """
        self._line += data
        line, end, rest = self._line.partition(b"\n")
        if not end and len(self._line) <= _LINE:
            return None
        try:
            said = json.loads(line) if end and not rest else None
        except (ValueError, RecursionError):
            said = None
        if not isinstance(said, dict):
            raise WireError(f"no greeting: {line[:80]!r}")
        return said
