"""The gate: where the relay hears couriers, by TCP, for sites whose nodes do not see the account's workdir.

It is opened by a request of the controller and closes with the relay. A courier proves by its certificate, which this
installation's authority made for one entry, which entry that is; the relay proves itself to it likewise. On the same
port anybody may fetch the bundle by plain HTTP: it is no secret, and whoever fetches it verifies it by its digest.

It decides nothing: what a courier may do with its entry is in `carried`. What anybody may open, keep open or have
written to the log is bounded: everybody on the site's network may come here.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import resource
import socket
import ssl
import sys
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from gridhypervisor.agent.carried import Carried
from gridhypervisor.agent.relayfiles import Files, Refused
from gridhypervisor.agent.tls import entry_of, gate_context
from gridhypervisor.model import wire
from gridhypervisor.model.wire import NOTES, Carry

PATIENCE = 30.0
"""Seconds for a peer to say who it is."""

SILENCE = 180.0
"""Seconds without a word after which a courier's connection is taken for lost; it comes again if it lives."""

STALLED = 60.0
"""Seconds for a peer that fetches to take a piece."""

STRANGERS, WAITING, FETCHING = 128, 256, 16
"""Peers at once that have not yet said who they are, that wait for their turn to fetch the bundle, that fetch it."""

OF_ONE_ENTRY = 4
"""Connections at once of one entry's couriers: the oldest ends, for it is one that was lost and does not know."""

VERIFYING, LARGE = 4, 64 << 20
"""Files of couriers of so many bytes that are verified at once, in threads of their own: the controller's requests need
the others."""

OPEN_FILES = 65536
"""That the relay may have open, where the system lets it: each courier is one."""

_HANDSHAKE = b"\x16"  # the first byte of TLS
_REQUEST = re.compile(rb"GET /([0-9a-f]{64})/((?:zstd/)?[A-Za-z0-9_.-]+) HTTP/1\.[01]\r?\n")

Explain = Callable[[dict[str, Any], Exception], dict[str, str]]
Join = Callable[[str, asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Gate:
    """`paced` waits until so many bytes may go; `explain` makes an error reply of what went wrong; `join` passes on
    what a connection carries that is for private networks."""

    def __init__(self, files: Files, paced: Callable[[int], Awaitable[None]], explain: Explain, join: Join) -> None:
        self._files, self._paced, self._explain, self._join = files, paced, explain, join
        self._socket: socket.socket | None = None
        self._context: ssl.SSLContext | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._strangers: dict[asyncio.Task[None], None] = {}  # the oldest first
        self._fetching, self._waiting = asyncio.Semaphore(FETCHING), 0
        self._couriers: dict[str, list[_Courier]] = {}  # by entry, the oldest first
        self._verifying = ThreadPoolExecutor(VERIFYING, "verify")
        self._complaints = _Complaints()

    def open(self, host: str, first: int, last: int, certificate: str, key: str, authority: str) -> int:
        """Listen at the first free port; its number. Asked again, it goes on listening where it does, with the new
        certificate.

        Raises:
            Refused: the host is no address of this machine, or every port is taken; or the certificates are none.
        """
        try:
            context = gate_context(certificate, key, authority)
        except (ssl.SSLError, ValueError) as error:
            raise Refused("request", f"listen at {host}: the certificates cannot be used: {error}") from error
        self._context = context
        if self._socket is None:
            _allow_open_files()
            self._socket = _listen(host, first, last)
            self._spawn(self._serve(self._socket))
        return int(self._socket.getsockname()[1])

    def tell(self, entry: str) -> None:
        """Something was left in the entry's `control/`."""
        for courier in self._couriers.get(entry, ()):
            self._spawn(courier.tell())

    def close(self) -> None:
        """Hear nobody any more."""
        for task in self._tasks:
            task.cancel()
        self._verifying.shutdown(wait=False, cancel_futures=True)
        if self._socket is not None:
            self._socket.close()

    def _spawn(self, work: Any) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _serve(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                peer, _ = await loop.sock_accept(listening)
            except OSError as error:  # too many open files, for one: those that are open go on
                self._complaints.say(f"accept a connection: {error}")
                await asyncio.sleep(1.0)
                continue
            peer.setblocking(False)
            task = self._spawn(self._meet(peer))
            self._strangers[task] = None
            task.add_done_callback(lambda done: self._strangers.pop(done, None))
            if len(self._strangers) > STRANGERS:  # whoever has said nothing for longest makes room
                oldest = next(iter(self._strangers))
                del self._strangers[oldest]
                oldest.cancel()
            await asyncio.sleep(0)  # so that each has begun before it may have to go

    async def _meet(self, peer: socket.socket) -> None:
        """Find out who it is that came, and hear what it wants."""
        me = asyncio.current_task()
        assert me is not None
        writer: asyncio.StreamWriter | None = None
        try:
            async with asyncio.timeout(PATIENCE):
                secure = await _first_byte(peer) == _HANDSHAKE
                reader, writer = await _streams(peer, self._context if secure else None)
                request = b"" if secure else await _request(reader)
            self._strangers.pop(me, None)
            if secure:
                await self._attend(entry_of(writer.get_extra_info("peercert")), reader, writer)
            else:
                await self._let_fetch(request, writer)
                await _farewell(writer)
        except (OSError, ValueError, EOFError) as error:  # ssl.SSLError, TimeoutError and WireError among them
            self._complaints.say(f"a peer at the gate: {type(error).__name__}: {error}")
        finally:
            if writer is not None:
                writer.transport.abort()  # not `close`, which waits for a peer that does not read
            else:
                peer.close()

    async def _let_fetch(self, request: bytes, writer: asyncio.StreamWriter) -> None:
        """Give what is asked for, when it is its turn. Who is turned away comes again."""
        if self._waiting >= WAITING:
            raise ConnectionError(f"{WAITING} peers wait to fetch the bundle")
        self._waiting += 1
        try:
            async with asyncio.timeout(PATIENCE):
                await self._fetching.acquire()
        finally:
            self._waiting -= 1
        try:
            await self._give(request, writer)
        finally:
            self._fetching.release()

    async def _attend(self, entry: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one courier's requests, one after another."""
        courier = _Courier(Carried(self._files, entry), writer)
        known = self._couriers.setdefault(entry, [])
        known.append(courier)  # before it asks: then it misses no wish
        if len(known) > OF_ONE_ENTRY:
            known.pop(0).leave()
        decoder = wire.Decoder()
        try:
            while True:
                async with asyncio.timeout(SILENCE):
                    data = await reader.read(wire.PIECE)
                if not data:
                    return
                for message, payload in decoder.feed(data):
                    if message.get("op") == Carry.JOIN:
                        known.remove(courier)  # nothing else is said on it
                        await courier.send({"id": message.get("id"), "ok": {}})
                        return await self._join(entry, reader, writer)
                    await self._paced(len(payload))
                    await self._answer(courier, message, payload)
        except TimeoutError:
            self._complaints.say(f"the courier of {entry} has been silent for {SILENCE:.0f} s")
        finally:
            if courier in known:
                known.remove(courier)
            if not known:
                self._couriers.pop(entry, None)

    async def _answer(self, courier: _Courier, message: dict[str, Any], payload: bytes) -> None:
        reply: dict[str, Any] = {"id": message.get("id")}
        data = b""
        try:
            pool = self._verifying if _takes_long(message) else None
            work = asyncio.get_running_loop().run_in_executor(pool, courier.carried.answer, message, payload)
            reply["ok"], data = await work
            await self._paced(len(data))
        except Exception as error:
            reply["error"] = self._explain(message, error)
        await courier.send(reply, data)

    async def _give(self, line: bytes, writer: asyncio.StreamWriter) -> None:
        """One file of a bundle, by HTTP."""
        found = _REQUEST.fullmatch(line)
        try:
            if found is None:
                raise Refused("path", "only files of bundles are here")
            name = f"{wire.BUNDLES}/{found[1].decode()}/{found[2].decode()}"
            path = await asyncio.to_thread(self._files.existing, name)
        except Refused:
            writer.write(b"HTTP/1.0 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            await writer.drain()
            return
        with await asyncio.to_thread(path.open, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            writer.write(b"HTTP/1.0 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % size)
            while data := await asyncio.to_thread(file.read, wire.PIECE):
                await self._paced(len(data))
                async with asyncio.timeout(STALLED):
                    writer.write(data)
                    await writer.drain()


class _Courier:
    """One connection of a courier."""

    def __init__(self, carried: Carried, writer: asyncio.StreamWriter) -> None:
        self.carried, self._writer = carried, writer
        self._writing = asyncio.Lock()

    async def send(self, message: dict[str, Any], payload: bytes = b"") -> None:
        data = wire.encode(message, payload)
        async with self._writing, asyncio.timeout(SILENCE):
            self._writer.write(data)
            await self._writer.drain()

    def leave(self) -> None:
        """Drop the connection; who attends to it sees that it ended."""
        self._writer.transport.abort()

    async def tell(self) -> None:
        """Pass on what was left. What is lost with its connection is told at the next CLAIM."""
        left = await asyncio.to_thread(self.carried.words)
        with contextlib.suppress(OSError):
            for note, word in NOTES.items():
                if left[note] is not None:
                    await self.send({"note": note, word: left[note]})


def _takes_long(message: dict[str, Any]) -> bool:
    size = message.get("size")
    return message.get("op") == Carry.PUT and bool(message.get("last")) and isinstance(size, int) and size >= LARGE


class _Complaints:
    """Lines in the relay's log about peers: one a second at most, however many peers there are."""

    def __init__(self) -> None:
        self._next, self._unsaid = 0.0, 0

    def say(self, words: str) -> None:
        now = asyncio.get_running_loop().time()
        if now < self._next:
            self._unsaid += 1
            return
        more = f" (and {self._unsaid} like it before)" if self._unsaid else ""
        sys.stderr.write(f"relay: {words}{more}\n")
        self._next, self._unsaid = now + 1.0, 0


def _allow_open_files() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


async def _farewell(writer: asyncio.StreamWriter) -> None:
    """Until the peer has all that it was sent.

    Raises:
        OSError: it does not take it.
    """
    writer.close()
    async with asyncio.timeout(PATIENCE):
        await writer.wait_closed()


async def _request(reader: asyncio.StreamReader) -> bytes:
    """The first line of an HTTP request, once all of its head has come: what is not read would break the answer off."""
    first = line = await reader.readline()
    while line.strip():
        line = await reader.readline()
    return first


def _listen(host: str, first: int, last: int) -> socket.socket:
    ways = "give the site's option `listen` as HOST[:PORT[-PORT]], an address of the front-end that its nodes reach"
    try:
        [family, kind, protocol, _, address], *_ = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError as error:
        raise Refused("address", f"listen at {host}: no such address: {error}", ways) from error
    why: OSError | None = None
    for port in range(first, last + 1):
        listening = socket.socket(family, kind, protocol)
        try:
            # Couriers come back to the port at once when a relay is started anew.
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind((address[0], port))
            listening.listen(512)
            listening.setblocking(False)
            return listening
        except OSError as error:
            listening.close()
            why = error
    raise Refused("address", f"listen at {host}, ports {first} to {last}: {why}", ways)


async def _first_byte(peer: socket.socket) -> bytes:
    """What the peer says first, which is left to be read. Empty: it went away."""
    loop = asyncio.get_running_loop()
    came = asyncio.Event()
    loop.add_reader(peer, came.set)
    try:
        await came.wait()
    finally:
        loop.remove_reader(peer)
    return peer.recv(1, socket.MSG_PEEK)


async def _streams(
    peer: socket.socket, context: ssl.SSLContext | None
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    protocol = asyncio.StreamReaderProtocol(reader)
    transport, _ = await loop.connect_accepted_socket(lambda: protocol, peer, ssl=context)
    return reader, asyncio.StreamWriter(transport, protocol, reader, loop)
