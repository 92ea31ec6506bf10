"""The way to a simulated relay: two byte pipes in memory with a latency, which can be cut or hang in the middle.

Bytes that were under way when the connection is cut may have arrived or not: `Way.cut` delivers what the relay has got
by then and loses the answers.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from gridhypervisor.model.errors import LinkError, LinkLost, LoginNeeded
from gridhypervisor.model.wire import Command, CommandResult, Decoder, Op, encode, from_plain, to_plain
from gridhypervisor.simulation.relay import Account, Relay

PIECE = 1 << 20
"""Bytes of a file in one message."""

Message = tuple[dict[str, Any], bytes]


class Pipe:
    """One direction: what goes in comes out after `latency` seconds, in order; or never, once it is broken."""

    def __init__(self, loop: asyncio.AbstractEventLoop, latency: float, out: Callable[[bytes], None]) -> None:
        self._loop, self._latency, self._out = loop, latency, out
        self._queue: deque[tuple[float, bytes]] = deque()  # when it comes out, and what
        self._moving = False
        self.broken = False
        self.held = False

    def write(self, data: bytes) -> None:
        if not self.broken:
            self._queue.append((self._loop.time() + self._latency, data))
            self._move()

    def release(self) -> None:
        self.held = False
        self._move()

    def _move(self) -> None:
        if self._queue and not self._moving and not self.held:
            self._moving = True
            self._loop.call_at(self._queue[0][0], self._deliver)

    def _deliver(self) -> None:
        self._moving = False
        if self.held or self.broken:
            return
        due = self._queue[0][0]
        arrived: list[bytes] = []
        while self._queue and self._queue[0][0] <= due:
            arrived.append(self._queue.popleft()[1])
        self._out(b"".join(arrived))
        self._move()


class MemoryLink:
    """The client's end of a connection. See `execution.ports.Link`."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, account: Account, latency: float,
        on_note: Callable[[dict[str, Any], bytes], None],
    ) -> None:  # fmt: skip
        self._on_note = on_note
        self._decoder = Decoder()
        self._calls: dict[int, asyncio.Future[Message]] = {}
        self._count = 0
        self._end: asyncio.Future[None] = loop.create_future()
        self.down = Pipe(loop, latency, self._receive)
        self.relay = Relay(account, self.down.write)
        self.up = Pipe(loop, latency, self.relay.receive)

    async def call(
        self, op: Op, args: Mapping[str, object], payload: bytes = b"", *, timeout: float
    ) -> tuple[dict[str, Any], bytes]:
        if self._end.done():
            raise LinkLost(f"{op}: the connection is closed")
        self._count += 1
        number = self._count
        future: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        self._calls[number] = future
        self.up.write(encode({"id": number, "op": op, **args}, payload))
        try:
            async with asyncio.timeout(timeout):
                reply, data = await future
        except TimeoutError:
            raise LinkLost(f"{op}: no answer within {timeout:g} s") from None
        finally:
            self._calls.pop(number, None)
        if error := reply.get("error"):
            raise LinkError(error["message"], error["kind"], error["hint"])
        return reply["ok"], data

    async def commands(self, commands: Sequence[Command]) -> list[CommandResult]:
        timeout = 30.0 + sum(c.timeout for c in commands)
        reply, _ = await self.call(Op.EXEC, {"commands": to_plain(commands)}, timeout=timeout)
        return [from_plain(CommandResult, item) for item in reply["results"]]

    async def upload(
        self, local: Path, path: str, proof: Mapping[str, object], *, mode: int = 0o600, timeout: float
    ) -> None:
        data = local.read_bytes()
        for offset in range(0, max(1, len(data)), PIECE):
            piece = data[offset : offset + PIECE]
            last = offset + PIECE >= len(data)
            args = {"path": path, "offset": offset, "last": last, "size": len(data), "mode": mode, **proof}
            await self.call(Op.PUT, args, piece, timeout=timeout)

    async def download(
        self,
        path: str,
        local: Path,
        *,
        sha256: str = "",
        mode: int = 0o600,
        optional: bool = False,
        timeout: float,
    ) -> None:
        data, end = bytearray(), False
        while not end:
            args = {"path": path, "offset": len(data), "length": PIECE}
            try:
                reply, piece = await self.call(Op.GET, args, timeout=timeout)
            except LinkError as error:
                if optional and error.kind == "missing":
                    return
                raise
            data += piece
            end = bool(reply["eof"])
        if sha256 and hashlib.sha256(data).hexdigest() != sha256:
            raise LinkError(f"get {path}: not the file that was announced", "digest")
        part = local.with_name(f".ghv-{secrets.token_hex(8)}.part")
        part.write_bytes(data)
        part.chmod(mode)
        try:
            part.replace(local)  # not through a link of that name
        except OSError:
            part.unlink()
            raise

    async def lost(self) -> None:
        await asyncio.shield(self._end)

    def close(self, why: str) -> None:
        """End the connection, from either side."""
        self.up.broken = self.down.broken = True
        self.relay.close()
        if not self._end.done():
            self._end.set_exception(LinkLost(why))
            self._end.exception()  # nobody need be waiting for it
        for future in self._calls.values():
            if not future.done():
                future.set_exception(LinkLost(why))

    def _receive(self, data: bytes) -> None:
        for message, payload in self._decoder.feed(data):
            number = message.get("id")
            if number is None:
                self._on_note(message, payload)
            elif (future := self._calls.get(number)) is not None and not future.done():
                future.set_result((message, payload))


class Way:
    """All connections to one account; the place where the network fails. See `execution.ports.Transport`."""

    bundle = "0" * 64

    def __init__(self, loop: asyncio.AbstractEventLoop, account: Account, latency: float = 0.01) -> None:
        self._loop, self._account = loop, account
        self.latency = latency  # in seconds; of the next connection
        self._links: set[MemoryLink] = set()
        self._silent_until = self._mute_until = 0.0
        self.knocks = 0  # how often anybody tried to connect
        self.asks = False  # for more than a program can give
        self.passing = False  # and has not always done so
        self.entered = False  # a person has let us in

    @asynccontextmanager
    async def connect(self, on_note: Callable[[dict[str, Any], bytes], None]) -> AsyncIterator[MemoryLink]:
        self.knocks += 1
        await asyncio.sleep(5 * self.latency)
        if self.asks and not self.entered:
            raise LoginNeeded("connect: it wants a code", "log in", came=lambda: self.entered, passing=self.passing)
        if self._loop.time() < self._silent_until:
            raise LinkLost("connect: the site does not answer")
        link = MemoryLink(self._loop, self._account, self.latency, on_note)
        self._links.add(link)
        if self._loop.time() < self._mute_until:
            self._hold(link)
        try:
            yield link
        finally:
            self._links.discard(link)
            link.close("the connection was closed")

    def cut(self, seconds: float) -> None:
        """Every connection breaks now, and none can be made for a while."""
        self._silent_until = self._loop.time() + seconds
        for link in list(self._links):
            link.close("the connection was cut")

    def hang(self, seconds: float) -> None:
        """What the relays answer does not arrive for a while, on new connections neither: requests take effect, and
        nobody knows."""
        self._mute_until = self._loop.time() + seconds
        for link in self._links:
            self._hold(link)

    def _hold(self, link: MemoryLink) -> None:
        link.down.held = True
        self._loop.call_at(self._mute_until, link.down.release)
