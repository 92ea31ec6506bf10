"""The process that carries a VM's private networks: its cards, the links to other pilots, who comes from there.

It is a child of the pilot's, so that neither waits for the other: not the frames for a file server, nor the pilot for
frames. It dies with the pilot, and one that has died is started again on the same cards. Messages are lines of JSON:

    pilot -> hub    {"table": NetworkTable}
    hub -> pilot    {"at": HOST:PORT} where it listens · {"counts": {…}} · {"say": …} for the log
"""

from __future__ import annotations

import contextlib
import json
import socket
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gridhypervisor.agent.ending import now
from gridhypervisor.agent.line import Gate
from gridhypervisor.agent.loop import Loop
from gridhypervisor.agent.network.links import Around, Link, State, ways_to_pilot, ways_to_relay
from gridhypervisor.agent.network.port import Port
from gridhypervisor.agent.network.records import Record
from gridhypervisor.agent.network.switch import Bucket, Count, Switch
from gridhypervisor.agent.network.table import Station
from gridhypervisor.agent.network.visitors import Visitors
from gridhypervisor.agent.tls import courier_context, pilot_contexts
from gridhypervisor.model import wire
from gridhypervisor.model.wire import Nic, Ticket

TICK = 0.25
"""Seconds between looks at what is late."""

COUNTED = 2.0
"""Seconds between reports of what was counted, where that has changed."""

LINES = (0.2, 50.0)
"""Lines for the log in a second, and at once: whoever reaches a port can have one written."""


@dataclass(frozen=True)
class Setting:
    """Where it is, and for whom."""

    entry: str
    nics: tuple[Nic, ...]
    runs: Path  # the node's folder of runs
    relay: Path  # where its relay is found, on the front-end's own machine
    ticket: Ticket | None = None  # None: it knows nobody of another node, and nobody there knows it
    listen: str = ""  # FIRST-LAST, ports of this node; empty: none


class Hub:
    """One run of that process."""

    def __init__(self, pilot: socket.socket, cards: Sequence[socket.socket], setting: Setting) -> None:
        """Raises WireError: a card has what no card has."""
        self._pilot, self._setting = pilot, setting
        self._loop, self._counts = Loop(), Counter[str]()
        self._told: dict[str, int] = {}
        self._words = b""  # of the pilot's next line
        self._version = 0
        self._log = Bucket(*LINES)
        self._welcome: frozenset[str] = frozenset()  # entries with which a network is shared
        self._links: dict[str, Link] = {}
        self._at: dict[str, str] = {}  # by entry: where its pilot listens
        self._gate: Gate | None = None
        self._ports = {
            nic.network: Port(self._loop, card, Switch(nic, self._counts), self._counts, now, self._send)
            for nic, card in zip(setting.nics, cards, strict=True)
        }
        self._around = around = Around(self._loop, setting.entry, now, self._say)
        self._relay = Link(
            around, "the relay", lambda: ways_to_relay(around, self._gate, setting.relay),
            lambda record: self._deliver("", record),
        )  # fmt: skip
        self._visitors = Visitors(
            self._loop, setting.entry, lambda entry: entry in self._welcome, self._deliver, now, self._say
        )

    def serve(self) -> None:
        """Until the pilot has no more need of it, or is gone."""
        try:
            self._visitors.near(self._setting.runs / self._setting.entry)
        except OSError as error:
            self._say(f"network: pilots of this node cannot come here: {error}")
        self._trust()
        self._loop.every(TICK, self._tick)
        self._loop.every(COUNTED, self._report)
        over: list[bool] = []
        self._loop.read(self._pilot, lambda: over.append(True) if not self._hear() else None)
        self._loop.wait(lambda: bool(over))
        self._report()

    def learn(self, table: wire.NetworkTable) -> None:
        """Where everybody is from now on; an older one than is known changes nothing.

        Raises:
            WireError: it is not that of these cards; the one before holds.
        """
        if table.version <= self._version:
            return
        lans = {lan.network: lan for lan in table.lans}
        for network, port in self._ports.items():
            port.switch.learn(lans.get(network, wire.Lan(network)))
        self._version = table.version
        stations = [each for port in self._ports.values() for each in port.switch.stations.by_number.values()]
        self._welcome = frozenset(each.entry for each in stations) - {"", self._setting.entry}
        self._at = {station.entry: station.at for station in stations if station.at}
        for entry in self._links.keys() - self._welcome:
            self._links.pop(entry).close()

    def _trust(self) -> None:
        """Know pilots of other nodes by their certificates, and hear them where that is allowed."""
        setting = self._setting
        if setting.ticket is None:
            return
        try:
            serving, self._around.to_pilots = pilot_contexts(setting.ticket.ticket)
            self._around.to_relay = courier_context(setting.ticket.ticket)
            self._gate, host = _addresses(Gate.parse(setting.ticket.gate))
            if setting.listen:
                first, _, last = setting.listen.partition("-")
                self._tell({"at": self._visitors.far(host, int(first), int(last or first), serving)})
        except (OSError, ValueError) as error:
            self._say(f"network: other nodes cannot be reached, or come here: {error}")

    def _send(self, station: Station, record: bytes) -> None:
        link = self._links.get(station.entry) or self._link(station.entry)
        if link.hopeless and self._relay.state is State.UP:
            link = self._relay
        if not link.send(record):
            self._counts[Count.FULL] += 1

    def _link(self, entry: str) -> Link:
        around, runs = self._around, self._setting.runs
        made = Link(around, entry, lambda: ways_to_pilot(around, runs, entry, self._at.get(entry, "")))
        self._links[entry] = made
        return made

    def _deliver(self, entry: str, record: Record) -> None:
        """What came from the pilot of an entry; or, of no entry, from the relay, which knows from whom it is."""
        port = self._ports.get(record.network)
        station = port.switch.stations.by_number.get(record.source) if port is not None else None
        known = port is not None and station is not None and entry in ("", station.entry)
        if port is None or station is None or not known or record.destination != port.switch.own.number:
            self._counts[Count.REFUSED] += 1
            return
        port.take(station, record)

    def _tick(self) -> None:
        moment = now()
        if self._welcome:
            self._relay.tick(moment)
        for link in self._links.values():
            link.tick(moment)
        self._visitors.tick(moment)

    # --- the pilot --------------------------------------------------------------------------------------------------

    def _hear(self) -> bool:
        """What the pilot says; False: it has no more need."""
        try:
            data = self._pilot.recv(1 << 18)
        except ConnectionError:
            data = b""
        *lines, self._words = (self._words + data).split(b"\n")
        for line in lines:
            try:
                self.learn(wire.from_plain(wire.NetworkTable, json.loads(line)["table"]))
            except (ValueError, KeyError, TypeError) as error:  # WireError among them
                self._say(f"network: a table cannot be used, so the one before holds: {error}")
        return bool(data)

    def _report(self) -> None:
        if self._counts != self._told:
            self._told = dict(self._counts)
            self._tell({"counts": self._told})

    def _say(self, words: str) -> None:
        if self._log.takes(1, now()):
            self._tell({"say": words})

    def _tell(self, what: dict[str, Any]) -> None:
        with contextlib.suppress(OSError):  # it is gone, or does not listen: this is nothing to wait for
            self._pilot.send(json.dumps(what).encode() + b"\n", socket.MSG_DONTWAIT)


def _addresses(gate: Gate) -> tuple[Gate, str]:
    """The gate's, for names are looked up once and never while frames wait; and this node's own, by which it goes
    there: there other nodes reach it too. Nothing is sent. Raises OSError."""
    family, _, _, _, there = socket.getaddrinfo(gate.host, gate.first, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect(there)
        return Gate(str(there[0]), gate.first, gate.last), str(probe.getsockname()[0])
