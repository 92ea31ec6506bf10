"""The relay's part: it passes records from pilot to pilot of its site that do not reach each other, and to and from the
controller, which joins the sites.

A pilot joins by its entry's certificate at the gate; or, where front-end and node are one machine, at a Unix socket in
the workdir. What it may send, and to whom, says the table that the controller left in its entry's `control/`: frames
are not looked at here. Whoever does not take what is for him loses it, and holds up nobody.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import struct
import sys
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path

from gridhypervisor.agent import spool
from gridhypervisor.agent.network.links import short
from gridhypervisor.agent.network.records import MOST, QUEUE, Decoder, Greeting, Record, greeting, record
from gridhypervisor.model import wire
from gridhypervisor.model.wire import NetworkTable, WireError

SILENT = 30.0
"""Seconds without even an empty record after which a pilot's connection is taken for lost."""

PATIENCE = 10.0
"""Seconds for whoever comes to the socket to say who it is."""

_UCRED = struct.Struct("3i")

Outward = Callable[[dict[str, object], bytes], Awaitable[None]]
"""Say something to the controller, with a payload; returns when the pipe has taken it."""


class Exchange:
    """Of one relay, in its event loop. `outward`: to the controller."""

    def __init__(self, spool_folder: Path, outward: Outward) -> None:
        self._spool, self._outward = spool_folder, outward
        self._here: dict[str, asyncio.StreamWriter] = {}  # by entry: who has joined
        self._members: dict[str, dict[tuple[int, int], str]] = {}  # of each: by network and number, the entry
        self._waiting: deque[tuple[dict[str, object], bytes]] = deque()  # for the controller
        self._size = 0  # bytes of these
        self._woken = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self._spawn(self._pump())
        self.dropped = 0  # records

    def open(self, path: Path) -> None:
        """Hear pilots of this machine at a socket of that name. Raises OSError: none can be there."""
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            path.unlink(missing_ok=True)
            with short(path) as name:
                listening.bind(name)
            listening.setblocking(False)
        except OSError:
            listening.close()
            raise
        self._spawn(self._serve(listening))

    def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        if self._server is not None:
            self._server.close()

    async def learn(self, entry: str) -> None:
        """There is a newer table in the entry, or none any more."""
        found = await asyncio.to_thread(spool.newest_table, self._spool / entry / wire.CONTROL)
        try:
            table = wire.from_plain(NetworkTable, json.loads(found[1])) if found is not None else NetworkTable(0)
        except ValueError as error:
            sys.stderr.write(f"relay: the network table of {entry}: {error}\n")
            return
        self._members[entry] = {
            (lan.network, each.number): each.entry for lan in table.lans for each in lan.members if each.entry
        }

    def forget(self, entry: str) -> None:
        """It was removed."""
        self._members.pop(entry, None)
        if (writer := self._here.pop(entry, None)) is not None:
            writer.transport.abort()

    async def attend(self, entry: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Pass on what a pilot sends that has joined, until it leaves or is lost.

        Raises:
            WireError: it sends what is no record.
            TimeoutError: it has been silent for too long.
        """
        await self.learn(entry)
        if (before := self._here.get(entry)) is not None:
            before.transport.abort()  # it was lost, and does not know
        self._here[entry] = writer
        decoder = Decoder()
        try:
            while True:
                async with asyncio.timeout(SILENT):
                    data = await reader.read(1 << 16)
                if not data:
                    return
                decoder.room()[: len(data)] = data
                for each in decoder.took(len(data)):
                    self._route(entry, each)
        finally:
            if self._here.get(entry) is writer:
                del self._here[entry]

    def bring(self, entry: str, network: int, destination: int, source: int, frames: bytes) -> bool:
        """Frames from another site, of which the controller says from whom they are; False: they are dropped."""
        members = self._members.get(entry, {})
        there = members.get((network, destination)) == entry and members.get((network, source)) not in (None, entry)
        if len(frames) > MOST or not there or not self._give(entry, record(network, destination, source, frames)):
            self.dropped += 1
            return False
        return True

    def _route(self, entry: str, came: Record) -> None:
        members = self._members.get(entry, {})
        to = members.get((came.network, came.destination))
        if members.get((came.network, came.source)) != entry or to is None or to == entry:
            self.dropped += 1
            return
        if to in self._here:
            if not self._give(to, record(came.network, came.destination, came.source, came.frames)):
                self.dropped += 1
            return
        if self._size and self._size + len(came.frames) > QUEUE:
            self.dropped += 1
            return
        note: dict[str, object] = {
            "note": wire.Note.FRAMES, "entry": to, "from": entry, "network": came.network,
            "destination": came.destination, "source": came.source,
        }  # fmt: skip
        self._waiting.append((note, bytes(came.frames)))
        self._size += len(came.frames)
        self._woken.set()

    def _give(self, entry: str, data: bytes) -> bool:
        writer = self._here.get(entry)
        if writer is None or writer.transport.get_write_buffer_size() > QUEUE:
            return False
        writer.write(data)
        return True

    async def _pump(self) -> None:
        """To the controller, one at a time: between them there is room for what is more urgent."""
        while True:
            await self._woken.wait()
            self._woken.clear()
            while self._waiting:
                note, frames = self._waiting.popleft()
                self._size -= len(frames)
                await self._outward(note, frames)

    async def _serve(self, listening: socket.socket) -> None:
        self._server = await asyncio.start_unix_server(self._meet, sock=listening)

    async def _meet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Somebody comes to the socket; of our own account, in whose folder it is."""
        try:
            plain: socket.socket = writer.get_extra_info("socket")
            _, uid, _ = _UCRED.unpack(plain.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
            heard, said = Greeting(), None
            async with asyncio.timeout(PATIENCE):
                while said is None:
                    if not (data := await reader.read(1024)):
                        return
                    said = heard.feed(data)
            entry = str(said.get("from", ""))
            if uid != os.getuid() or not entry or entry[0] == "." or "/" in entry or not (self._spool / entry).is_dir():
                raise WireError(f"{entry!r} of user {uid} is no entry of ours")
            writer.write(greeting({"ok": {}}))
            await self.attend(entry, reader, writer)
        except (OSError, ValueError) as error:  # TimeoutError and WireError among them
            sys.stderr.write(f"relay: a pilot at the network's socket: {type(error).__name__}: {error}\n")
        finally:
            writer.transport.abort()

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
