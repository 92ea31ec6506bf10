"""The other pilots that come here to send: who they are, and what they bring.

On this node they come to a Unix socket in the folder of the run, which is the account's alone; from other nodes of the
site by mutual TLS, where the pilot may listen. Either way a visitor is of one entry, which is in the table or has no
business here, and what it brings must come from the members of that entry.
"""

from __future__ import annotations

import contextlib
import functools
import os
import socket
import ssl
import struct
from collections.abc import Callable
from pathlib import Path

from gridhypervisor.agent.loop import Loop
from gridhypervisor.agent.network.links import LIVELY, PATIENCE, SOCKET, shake, short
from gridhypervisor.agent.network.records import MOST, Decoder, Greeting, Record, greeting
from gridhypervisor.agent.tls import entry_of
from gridhypervisor.model.wire import WireError

STRANGERS = 32
"""Visitors at once that have not yet said who they are: the oldest makes room."""

SILENT = 15.0
"""Seconds without even an empty record after which a visitor's path is taken for lost."""

OF_ONE_ENTRY = 2
"""Links at once of one entry: the oldest ends, for it is one that was lost and does not know."""

_UCRED = struct.Struct("3i")


class Visitors:
    """All of one pilot. `welcome`: whether an entry has business here; `deliver` takes what one of it brings."""

    def __init__(
        self, loop: Loop, entry: str, welcome: Callable[[str], bool], deliver: Callable[[str, Record], None],
        clock: Callable[[], float], say: Callable[[str], None],
    ) -> None:  # fmt: skip
        self.entry, self.welcome, self.deliver = entry, welcome, deliver
        self.loop, self.clock, self._say = loop, clock, say
        self._here: list[Visitor] = []  # the oldest first

    def near(self, run: Path) -> None:
        """Hear those of this node. Raises OSError."""
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        path = run / SOCKET
        path.unlink(missing_ok=True)  # of the process that was here before
        with short(path) as name:
            listening.bind(name)
        listening.listen(64)
        self.loop.read(listening, functools.partial(self._accept, listening, None))

    def far(self, host: str, first: int, last: int, context: ssl.SSLContext) -> str:
        """Hear those of other nodes, at the first free port; which it is, as HOST:PORT. Raises OSError."""
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        why: OSError | None = None
        for port in range(first, last + 1):
            listening = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
            try:
                listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                listening.bind((host, port))
                listening.listen(64)
            except OSError as error:
                listening.close()
                why = error
                continue
            self.loop.read(listening, functools.partial(self._accept, listening, context))
            return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        raise why or OSError(f"no port from {first} to {last}")

    def tick(self, now: float) -> None:
        """Time has passed: who says nothing any more is gone, and who is no longer welcome goes."""
        for visitor in list(self._here):
            if now >= visitor.until:
                visitor.leave("it is silent")
            elif visitor.known and not self.welcome(visitor.peer):
                visitor.leave("it is in no network of ours any more")

    def met(self, visitor: Visitor) -> None:
        """It has said who it is."""
        same = [each for each in self._here if each.known and each.peer == visitor.peer]
        for each in same[:-OF_ONE_ENTRY]:
            each.leave("it came again")

    def gone(self, visitor: Visitor, why: str) -> None:
        if visitor in self._here:
            self._here.remove(visitor)
            if not visitor.known:
                self._say(f"network: a visitor {visitor.peer}: {why}")

    def _accept(self, listening: socket.socket, context: ssl.SSLContext | None) -> None:
        try:
            peer, _ = listening.accept()
        except OSError:  # it is gone already; or too many files are open, and those that are here go on
            return
        peer.setblocking(False)
        visitor = Visitor(self, peer)
        self._here.append(visitor)
        strangers = [each for each in self._here if not each.known]
        if len(strangers) > STRANGERS:
            strangers[0].leave("others came, and it had not said who it is")
        visitor.begin(context)


class Visitor:
    """One link of another pilot's to this one."""

    def __init__(self, visitors: Visitors, peer: socket.socket) -> None:
        self._visitors, self._socket = visitors, peer
        self.peer = ""  # of which entry it is, once that is proven, or what it said
        self.known = False
        self.until = visitors.clock() + PATIENCE
        self._greeting, self._decoder = Greeting(), Decoder()
        self._proven = ""  # by a certificate

    def begin(self, context: ssl.SSLContext | None) -> None:
        try:
            if context is None:
                _, uid, _ = _UCRED.unpack(self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
                if uid != os.getuid():
                    raise WireError(f"it is of user {uid}")
                self._visitors.loop.read(self._socket, self._read)
                return
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for option, value in LIVELY.items():
                self._socket.setsockopt(socket.IPPROTO_TCP, option, value)
            self._socket = context.wrap_socket(self._socket, server_side=True, do_handshake_on_connect=False)
        except (OSError, ValueError) as error:
            self.leave(str(error))
            return
        self._shake()

    def leave(self, why: str) -> None:
        """Drop it. If it lives it comes again."""
        self._visitors.loop.forget(self._socket)
        with contextlib.suppress(OSError):
            self._socket.close()
        self._visitors.gone(self, why)

    def _shake(self) -> None:
        assert isinstance(self._socket, ssl.SSLSocket)
        try:
            if not shake(self._visitors.loop, self._socket, self._shake):
                return
            self._proven = entry_of(self._socket.getpeercert())
        except (OSError, ValueError) as error:
            self.leave(str(error))
            return
        self._visitors.loop.read(self._socket, self._read)
        self._read()

    def _read(self) -> None:
        """All that has come, but not for ever: others have their turn."""
        try:
            if not self.known:
                self._meet()
                return
            taken = 0
            # What TLS has unpacked, no poll tells of.
            while taken < MOST or (isinstance(self._socket, ssl.SSLSocket) and self._socket.pending()):
                size = self._socket.recv_into(self._decoder.room())
                if not size:
                    raise EOFError("it has ended")
                taken += size
                for record in self._decoder.took(size):
                    self._visitors.deliver(self.peer, record)
                self.until = self._visitors.clock() + SILENT
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return
        except (OSError, EOFError, ValueError) as error:
            self.leave(str(error))

    def _meet(self) -> None:
        data = self._socket.recv(1024)
        if not data:
            raise EOFError("it said nothing")
        said = self._greeting.feed(data)
        if said is None:
            return
        self.peer = str(said.get("from", ""))[:200]
        if said.get("join") != self._visitors.entry or (self._proven and self._proven != self.peer):
            raise WireError(f"it says that it is {self.peer!r}, and wants {said.get('join')!r:.200}")
        if not self._visitors.welcome(self.peer):
            raise WireError("it is in no network of ours")
        self.known = True
        self.until = self._visitors.clock() + SILENT
        self._socket.send(greeting({"ok": {}}))
        self._visitors.met(self)
