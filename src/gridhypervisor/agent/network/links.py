"""Links to other pilots, and one to the relay: dialled when there is something to send, and again when they are lost.

A pilot sends over links of its own; what other pilots send comes by `visitors`. One on the same node is found by the
socket in the folder of its run; one at the same site, where it listens, by mutual TLS. For all others there is the
relay: at its gate by mutual TLS, or at a socket in the workdir, where the node is the front-end; that link brings what
others send, too. Nothing here blocks: a peer that does not answer, does not read, or is away costs its own frames
alone, of which so many wait as `Outbox` allows.

    IDLE ─something to send─▶ DIALLING ─▶ SHAKING (TLS) ─▶ GREETING ─ok─▶ UP
      ▲                          └───────────┴───────────────┴────────────┘ lost, refused, too late: another way
      └────────────────────────────────────────┘
"""

from __future__ import annotations

import contextlib
import enum
import os
import random
import socket
import ssl
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from gridhypervisor.agent.line import Gate
from gridhypervisor.agent.loop import Loop
from gridhypervisor.agent.network.records import ALIVE, Decoder, Greeting, Outbox, Record, greeting
from gridhypervisor.agent.network.records import MOST as RECORD
from gridhypervisor.agent.tls import entry_of
from gridhypervisor.model.wire import RELAY_NAME, Carry, WireError

SOCKET = "network"
"""In the folder of a run: where pilots of the same node come."""

PATIENCE = 3.0
"""Seconds from dialling to the peer's word."""

FIRST, MOST = 0.1, 2.0
"""Seconds before a peer is tried again, at first and at most: half of it is chance. Short, for guests wait longer with
each try of theirs: a cut of 20 s is over for them when it is for us."""

QUIET = 3.0
"""Seconds without a record after which an empty one is sent."""

UNUSED = 300.0
"""Seconds without frames after which a link is closed."""

LIVELY = {
    socket.TCP_NODELAY: 1, socket.TCP_KEEPIDLE: 5, socket.TCP_KEEPINTVL: 2, socket.TCP_KEEPCNT: 3,
    socket.TCP_USER_TIMEOUT: 8_000,
}  # fmt: skip
"""A path that was cut is given up in some seconds: then it is dialled, often, until it is there again. What TCP itself
would wait between two tries grows to a minute."""


class State(enum.Enum):
    IDLE = "idle"
    DIALLING = "dialling"
    SHAKING = "shaking"
    GREETING = "greeting"
    UP = "up"


@dataclass(frozen=True)
class Way:
    """Where a peer may be found."""

    address: Path | tuple[str, int]
    said: str  # for people
    greeting: bytes
    named: str = ""  # in its certificate; on this machine nobody shows one


@dataclass
class Around:
    """What all links of a pilot have in common."""

    loop: Loop
    entry: str  # whose pilot this is
    clock: Callable[[], float]
    say: Callable[[str], None]
    to_pilots: ssl.SSLContext | None = None  # None: nobody can be known by a certificate
    to_relay: ssl.SSLContext | None = None


class Link:
    """To one peer. `ways`: where it may be found now, the best first; `came` takes what it sends, if it may send."""

    def __init__(
        self, around: Around, peer: str, ways: Callable[[], list[Way]], came: Callable[[Record], None] | None = None
    ) -> None:  # fmt: skip
        self._around, self.peer, self._ways, self._came = around, peer, ways, came
        self._decoder = Decoder() if came is not None else None
        self.state = State.IDLE
        self.hopeless = not ways()  # every way was tried in vain since it was up
        self._outbox = Outbox()
        self._socket: socket.socket | None = None
        self._full = False  # it takes nothing more at the moment
        self._way: Way | None = None
        self._tries = 0  # since it was up
        self._until = 0.0  # when what is under way must have come
        self._again = 0.0  # before then it is not dialled
        self._spoke = self._used = 0.0  # when something was sent last; and frames
        self._greeting = Greeting()

    def send(self, data: bytes) -> bool:
        """A record, now or soon; False: too much waits."""
        now = self._around.clock()
        self._used = now
        if not self._outbox.put(data):
            return False
        if self.state is State.UP:
            self._flush()
        elif self.state is State.IDLE and now >= self._again:
            self._dial(now)
        return True

    def tick(self, now: float) -> None:
        """Time has passed."""
        if self.state is State.IDLE:
            wanted = self._outbox.size or self.hopeless or self._came is not None
            if wanted and now >= self._again:
                self._dial(now)
        elif self.state is not State.UP:
            if now >= self._until:
                self._lost("no answer in time")
        elif now - self._used > UNUSED and self._came is None:
            self.close()
        elif now - self._spoke > QUIET:
            self._outbox.put(ALIVE)
            self._flush()

    def close(self) -> None:
        """Nothing goes there any more, unless something is sent."""
        self._hang_up()
        self._outbox.rewind()
        self.state = State.IDLE

    # --- dialling ---------------------------------------------------------------------------------------------------

    def _dial(self, now: float) -> None:
        ways = self._ways()
        if not ways:
            self._way = None
            self._lost("there is no way there")
            return
        way = self._way = ways[self._tries % len(ways)]
        self._until, self._greeting = now + PATIENCE, Greeting()
        self.state = State.DIALLING
        family = socket.AF_UNIX
        if not isinstance(way.address, Path):
            family = socket.AF_INET6 if ":" in way.address[0] else socket.AF_INET
        self._socket = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            if isinstance(way.address, Path):
                with short(way.address) as path:
                    self._socket.connect(path)
            else:
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
                for option, value in LIVELY.items():
                    self._socket.setsockopt(socket.IPPROTO_TCP, option, value)
                self._socket.connect(way.address)
        except BlockingIOError:
            self._around.loop.write(self._socket, self._connected)
            return
        except OSError as error:
            self._lost(str(error))
            return
        self._connected()

    def _connected(self) -> None:
        assert self._socket is not None and self._way is not None
        self._around.loop.write(self._socket, None)
        if failed := self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self._lost(os.strerror(failed))
            return
        if not self._way.named:
            self._greet()
            return
        relay = self._way.named == RELAY_NAME
        context = self._around.to_relay if relay else self._around.to_pilots
        try:
            if context is None:
                raise ValueError("there is no ticket by which to know it")
            name = RELAY_NAME if relay else None
            self._socket = context.wrap_socket(self._socket, do_handshake_on_connect=False, server_hostname=name)
        except (OSError, ValueError) as error:
            self._lost(str(error))
            return
        self.state = State.SHAKING
        self._shake()

    def _shake(self) -> None:
        assert isinstance(self._socket, ssl.SSLSocket) and self._way is not None
        try:
            if not shake(self._around.loop, self._socket, self._shake):
                return
            if (found := entry_of(self._socket.getpeercert())) != self._way.named:
                raise ValueError(f"{found} is there")
        except (OSError, ValueError) as error:
            self._lost(str(error))
            return
        self._greet()

    def _greet(self) -> None:
        assert self._socket is not None and self._way is not None
        self.state = State.GREETING
        try:
            self._socket.send(self._way.greeting)
        except OSError as error:
            self._lost(str(error))
            return
        self._around.loop.read(self._socket, self._hear)
        self._hear()

    def _hear(self) -> None:
        """The peer's word; afterwards what it sends, or else only its end."""
        if self._socket is None:
            return
        try:
            if self.state is State.UP and self._decoder is not None:
                self._take()
                return
            data = self._socket.recv(1024)
            if not data:
                self._lost("it closed the link")
            elif self.state is State.GREETING and (said := self._greeting.feed(data)) is not None:
                if "ok" not in said:
                    raise WireError(f"it said {said}")
                self._up()
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return
        except (OSError, ValueError) as error:
            self._lost(str(error))

    def _take(self) -> None:
        """Records that the peer sends."""
        assert self._socket is not None and self._decoder is not None and self._came is not None
        taken = 0
        # What TLS has unpacked, no poll tells of.
        while taken < RECORD or (isinstance(self._socket, ssl.SSLSocket) and self._socket.pending()):
            if not (size := self._socket.recv_into(self._decoder.room())):
                self._lost("it closed the link")
                return
            taken += size
            for record in self._decoder.took(size):
                self._came(record)
            if self.state is not State.UP:  # what came was answered, and that found the link lost
                return

    def _up(self) -> None:
        assert self._way is not None
        self.state, self._tries, self.hopeless = State.UP, 0, False
        if self._decoder is not None:
            self._decoder = Decoder()
        self._spoke = self._used = self._around.clock()
        self._around.say(f"network: {self.peer} is reached {self._way.said}")
        self._flush()

    # --- sending ----------------------------------------------------------------------------------------------------

    def _flush(self) -> None:
        assert self._socket is not None
        try:
            while (data := self._outbox.first()) is not None:
                self._outbox.sent(self._socket.send(data))
        except (BlockingIOError, ssl.SSLWantWriteError):
            if not self._full:
                self._around.loop.write(self._socket, self._flush)
            self._full = True
            return
        except OSError as error:
            self._lost(str(error))
            return
        self._spoke = self._around.clock()
        if self._full:
            self._around.loop.write(self._socket, None)
        self._full = False

    def _lost(self, why: str) -> None:
        """It is tried again, another way if there is one, when there is something to send."""
        if self._tries == 0 or self.state is State.UP:
            self._around.say(f"network: {self.peer} {self._way.said if self._way else ''}: {why}; it is tried again")
        was_up = self.state is State.UP
        self.close()
        self._tries = 0 if was_up else self._tries + 1
        # After every way was tried in vain it waits, ever longer.
        rounds = self._tries // max(1, len(self._ways()))
        self.hopeless = rounds > 0
        pause = min(MOST, FIRST * 2 ** min(rounds, 10)) if was_up or self.hopeless else 0.0
        self._again = self._around.clock() + pause * random.uniform(0.5, 1.0)

    def _hang_up(self) -> None:
        if self._socket is not None:
            self._around.loop.forget(self._socket)
            with contextlib.suppress(OSError):
                self._socket.close()
            self._socket, self._full = None, False


def relay_socket(workdir: Path, installation: str) -> Path:
    """Where pilots on the front-end's own machine come to its relay."""
    return workdir / f"{SOCKET}-{installation}"


def ways_to_pilot(around: Around, runs: Path, peer: str, at: str) -> list[Way]:
    """By which a pilot may be found: on this node, or where it listens."""
    words = greeting({"join": peer, "from": around.entry})
    ways = []
    if (near := runs / peer / SOCKET).exists():
        ways.append(Way(near, "on this node", words))
    host, _, port = at.rpartition(":")
    if around.to_pilots is not None and host and port.isdecimal():
        ways.append(Way((host.strip("[]"), int(port)), f"at {at}", words, peer))
    return ways


def ways_to_relay(around: Around, gate: Gate | None, near: Path) -> list[Way]:
    """By which the relay may be found: on this machine, or at one of its gate's ports."""
    ways = [Way(near, "on this machine", greeting({"join": "", "from": around.entry}))] if near.exists() else []
    if gate is not None and around.to_relay is not None:
        words = greeting({"id": 1, "op": Carry.JOIN})
        for port in range(gate.first, gate.last + 1):
            ways.append(Way((gate.host, port), f"at {gate.host}:{port}", words, RELAY_NAME))
    return ways


def shake(loop: Loop, peer: ssl.SSLSocket, again: Callable[[], None]) -> bool:
    """Go on with TLS' beginning; False: `again` is called when there is more. Raises OSError, as ssl.SSLError is."""
    try:
        peer.do_handshake()
    except ssl.SSLWantReadError:
        loop.write(peer, None)
        loop.read(peer, again)
        return False
    except ssl.SSLWantWriteError:
        loop.write(peer, again)
        return False
    loop.forget(peer)
    return True


@contextlib.contextmanager
def short(path: Path) -> Iterator[str]:
    """A name for a socket's path that is short enough for the kernel, which takes 107 bytes."""
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)
