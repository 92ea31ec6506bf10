"""The gate: where the relay hears couriers, by TCP, for sites whose nodes do not see the account's workdir.

It is opened by a request of the controller and closes with the relay. A courier proves by its certificate, which this
installation's authority made for one entry, which entry that is; the relay proves itself to it likewise. On the same
port anybody may fetch the bundle by plain HTTP: it is no secret, and whoever fetches it verifies it by its digest.

It decides nothing: what a courier may do with its entry is in `carried`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import socket
import ssl
import sys
from collections.abc import Awaitable, Callable
from typing import Any

from gridhypervisor.agent.carried import Carried
from gridhypervisor.agent.relayfiles import Files, Refused
from gridhypervisor.agent.tls import gate_context
from gridhypervisor.model import wire
from gridhypervisor.model.wire import CANCEL_NOTE, GRANT_NOTE

PATIENCE = 30.0
"""Seconds for a peer to say who it is."""

SILENCE = 180.0
"""Seconds without a word after which a courier's connection is taken for lost; it comes again if it lives."""

STRANGERS, FETCHING = 128, 16
"""Peers at once that have not yet said who they are, and those that fetch the bundle."""

_HANDSHAKE = b"\x16"  # the first byte of TLS
_REQUEST = re.compile(rb"GET /([0-9a-f]{64})/((?:zstd/)?[A-Za-z0-9_.-]+) HTTP/1\.[01]\r?\n")

Explain = Callable[[dict[str, Any], Exception], dict[str, str]]


class Gate:
    """`paced` waits until so many bytes may go; `explain` makes an error reply of what went wrong."""

    def __init__(self, files: Files, paced: Callable[[int], Awaitable[None]], explain: Explain) -> None:
        self._files, self._paced, self._explain = files, paced, explain
        self._socket: socket.socket | None = None
        self._context: ssl.SSLContext | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._strangers, self._fetching = asyncio.Semaphore(STRANGERS), asyncio.Semaphore(FETCHING)
        self._couriers: dict[str, set[_Courier]] = {}  # by entry: two, where one connection is lost and does not know

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
        if self._socket is not None:
            self._socket.close()

    def _spawn(self, work: Any) -> None:
        task: asyncio.Task[None] = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._strangers.acquire()
            try:
                peer, _ = await loop.sock_accept(listening)
            except OSError as error:  # too many open files, for one: those that are open go on
                self._strangers.release()
                sys.stderr.write(f"relay: accept a connection: {error}\n")
                await asyncio.sleep(1.0)
                continue
            peer.setblocking(False)
            self._spawn(self._meet(peer))

    async def _meet(self, peer: socket.socket) -> None:
        """Find out who it is that came, and hear what it wants."""
        stranger = contextlib.ExitStack()
        stranger.callback(self._strangers.release)
        writer: asyncio.StreamWriter | None = None
        try:
            async with asyncio.timeout(PATIENCE):
                secure = await _first_byte(peer) == _HANDSHAKE
                reader, writer = await _streams(peer, self._context if secure else None)
                request = b"" if secure else await _request(reader)
            stranger.close()
            if secure:
                await self._attend(_entry_of(writer), reader, writer)
            else:
                async with self._fetching:
                    await self._give(request, writer)
        except (OSError, ValueError, EOFError) as error:  # ssl.SSLError and WireError among them
            sys.stderr.write(f"relay: a peer at the gate: {type(error).__name__}: {error}\n")
        finally:
            stranger.close()
            if writer is not None:
                writer.close()
            else:
                peer.close()

    async def _attend(self, entry: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one courier's requests, one after another."""
        courier = _Courier(Carried(self._files, entry), writer)
        self._couriers.setdefault(entry, set()).add(courier)  # before it asks: then it misses no wish
        decoder = wire.Decoder()
        try:
            while True:
                async with asyncio.timeout(SILENCE):
                    data = await reader.read(wire.PIECE)
                if not data:
                    return
                for message, payload in decoder.feed(data):
                    await self._paced(len(payload))
                    await self._answer(courier, message, payload)
        except TimeoutError:
            sys.stderr.write(f"relay: the courier of {entry} has been silent for {SILENCE:.0f} s\n")
        finally:
            self._couriers[entry].discard(courier)
            if not self._couriers[entry]:
                del self._couriers[entry]

    async def _answer(self, courier: _Courier, message: dict[str, Any], payload: bytes) -> None:
        reply: dict[str, Any] = {"id": message.get("id")}
        data = b""
        try:
            reply["ok"], data = await asyncio.to_thread(courier.carried.answer, message, payload)
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
            path = self._files.existing(f"{wire.BUNDLES}/{found[1].decode()}/{found[2].decode()}")
        except Refused:
            writer.write(b"HTTP/1.0 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            await writer.drain()
            return
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            writer.write(b"HTTP/1.0 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % size)
            while data := await asyncio.to_thread(file.read, wire.PIECE):
                await self._paced(len(data))
                async with asyncio.timeout(SILENCE):
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

    async def tell(self) -> None:
        """Pass on what was left. What is lost with its connection is told at the next CLAIM."""
        why, beat = await asyncio.to_thread(lambda: (self.carried.wish(), self.carried.granted()))
        with contextlib.suppress(OSError):
            if why is not None:
                await self.send({"note": CANCEL_NOTE, "why": why})
            if beat is not None:
                await self.send({"note": GRANT_NOTE, "beat": beat})


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


def _entry_of(writer: asyncio.StreamWriter) -> str:
    """Of which entry the peer is the courier: its certificate's name.

    Raises:
        ValueError: the certificate is not that of an entry.
    """
    subject = dict(pair for group in writer.get_extra_info("peercert")["subject"] for pair in group)
    name = str(subject.get("commonName", ""))
    if not name or name[0] == "." or set(name) & set("/\0\n"):
        raise ValueError(f"a certificate for {name!r}, which is no entry")
    return name
