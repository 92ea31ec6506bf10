"""Private networks through relays: pilots that do not reach each other, at one site and at two. The test is the
controller, which joins the sites."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import socket
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from gridhypervisor.agent.network.links import relay_socket, short
from gridhypervisor.agent.network.records import LENGTH, greeting, record
from gridhypervisor.execution.crossing import Crossing
from gridhypervisor.model import wire
from gridhypervisor.model.wire import Note, Op, Ticket
from gridhypervisor.planning.network import Attached, Network, tables
from gridhypervisor.sites.authority import Authority
from gridhypervisor.sites.relayclient import RelayLink
from tests.contract.network_node import LAN, OTHER, Guest, World, until
from tests.contract.relay_peer import Peer, manifest
from testsites.site import free_address

ROLE = [sys.executable, "-m", "gridhypervisor.agent.main", "relay"]
PORT = 7750


class Site:
    """A relay, and the entries that it knows."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.workdir = folder, folder / "work"
        self.entries: set[str] = set()
        self.start()

    def start(self) -> None:
        self.relay = Peer([*ROLE, "--workdir", str(self.workdir)])
        self.relay.hello()

    @property
    def socket(self) -> Path:
        return relay_socket(self.workdir, "inst")

    def learn(self, guest: Guest, table: wire.NetworkTable) -> None:
        """As the controller does it: through the relay, which the pilot's own look follows."""
        if guest.entry not in self.entries:
            self.relay.ask(Op.PREPARE, entry=guest.entry, manifest=manifest(guest.entry))
            self.entries.add(guest.entry)
        self.relay.ask(Op.REQUEST, entry=guest.entry, what="network", table=wire.to_plain(table))
        guest.learn(table)

    def close(self) -> None:
        with contextlib.suppress(BrokenPipeError):
            self.relay.__exit__()


class Grid:
    """Two sites, and guests of one network at them."""

    def __init__(self, folder: Path) -> None:
        self.world = World(folder)
        self.sites = {name: Site(folder / name) for name in ("a", "b")}
        self.at: dict[str, str] = {}
        self.crossed: list[dict[str, object]] = []

    def guest(self, site: str, node: str, network: Network = LAN, **more: object) -> Guest:
        made = self.world.guest(f"{site}-{node}", network, 0, relay=self.sites[site].socket, **more)
        self.at[made.entry] = site
        return made

    def tell(self) -> None:
        self.world.version += 1
        attached = [
            Attached(each.network, each.member, each.name, each.entry, each.at, self.at[each.entry])
            for each in self.world.attached()
        ]
        made = tables([LAN, OTHER], attached, self.world.version)
        for guest in self.world.guests:
            self.sites[self.at[guest.entry]].learn(guest, made[guest.entry])

    def join(self) -> None:
        """What the controller does for a moment: bring to one site what another one has for it."""
        for site in self.sites.values():
            with contextlib.suppress(TimeoutError):
                site.relay._receive(time.monotonic())
            notes, site.relay.notes = site.relay.notes, []
            for note, frames in notes:
                if note["note"] == Note.FRAMES:
                    self.crossed.append(note)
                    to = self.sites[self.at[str(note["entry"])]].relay
                    to.ask(Op.FRAMES, frames, **{k: v for k, v in note.items() if k not in ("note", "from", "payload")})

    def reaches(self, one: Guest, other: Guest, seconds: float = 20.0) -> None:
        word = os.urandom(8)

        def there() -> bool:
            one.send(other, word)
            came = other.received(0.05)
            self.join()
            return word in came

        until(there, seconds, f"{one.entry} to reach {other.entry}")

    def close(self) -> None:
        self.world.close()
        for site in self.sites.values():
            site.close()


@pytest.fixture
def grid(tmp_path: Path) -> Iterator[Grid]:
    with contextlib.closing(Grid(tmp_path)) as made:
        yield made


def test_pilots_of_one_site_that_do_not_reach_each_other_have_the_relay(grid: Grid) -> None:
    one, other = grid.guest("a", "node-1"), grid.guest("a", "node-2")
    grid.tell()
    grid.reaches(one, other)
    grid.reaches(other, one)
    assert grid.crossed == [] or {str(note["entry"]) for note in grid.crossed} <= {one.entry, other.entry}


def test_guests_of_two_sites_reach_each_other_through_the_controller(grid: Grid) -> None:
    one, other, third = grid.guest("a", "node-1"), grid.guest("b", "node-1"), grid.guest("b", "node-1")
    grid.tell()
    grid.reaches(one, other)
    grid.reaches(other, one)
    grid.reaches(third, one)
    grid.reaches(other, third)
    assert not any(note["entry"] == third.entry for note in grid.crossed), "what is near does not go far"


def test_what_crosses_goes_over_the_controllers_own_connections(tmp_path: Path) -> None:
    """Two relays as a session has them, and between them the part of the controller that the tables are told to."""

    async def run() -> None:
        links: dict[str, RelayLink] = {}
        crossing = Crossing(links.get)
        async with contextlib.AsyncExitStack() as stack:
            for name in ("a", "b"):
                relay = await asyncio.create_subprocess_exec(
                    *ROLE, "--workdir", str(tmp_path / name), stdin=asyncio.subprocess.PIPE,
                    stdout=asyncio.subprocess.PIPE,
                )  # fmt: skip
                assert relay.stdin is not None and relay.stdout is not None
                stack.push_async_callback(relay.wait)
                stack.callback(relay.stdin.close)
                take = functools.partial(crossing.take, name)
                links[name] = RelayLink(name, relay.stdout, relay.stdin, take)
                stack.push_async_callback(links[name].close)
                hello = {"installation": "inst", "protocol": wire.PROTOCOL}
                await links[name].call(Op.HELLO, hello, timeout=20)
            world = World(tmp_path / "nodes")
            stack.callback(world.close)
            one, other = (world.guest(name, relay=relay_socket(tmp_path / name, "inst")) for name in ("a", "b"))
            attached = [replace(each, site=name) for each, name in zip(world.attached(), ("a", "b"), strict=True)]
            crossing.learn(attached)
            for guest, name in ((one, "a"), (other, "b")):
                table = tables([LAN], attached, 1)[guest.entry]
                await links[name].call(
                    Op.PREPARE, {"entry": guest.entry, "manifest": manifest(guest.entry)}, timeout=20
                )
                request = {"entry": guest.entry, "what": "network", "table": table}
                await links[name].call(Op.REQUEST, request, timeout=20)
                guest.learn(table)
            await asyncio.to_thread(one.reaches, other)
            await asyncio.to_thread(other.reaches, one)
            frames = b"".join(LENGTH.pack(len(frame)) + frame for frame in [one.frame(other, b"forged")])
            before = crossing.dropped
            note = {"from": other.entry, "network": 7, "source": 1, "destination": 2}
            crossing.take("b", note, frames)
            assert crossing.dropped == before + 1

    asyncio.run(run())


def test_a_relay_that_died_is_found_again(grid: Grid) -> None:
    one, other = grid.guest("a", "node-1"), grid.guest("b", "node-1")
    grid.tell()
    grid.reaches(one, other)
    grid.sites["a"].relay.process.kill()
    grid.sites["a"].close()
    grid.sites["a"].start()
    grid.tell()
    grid.reaches(one, other)
    grid.reaches(other, one)


def test_a_pilot_comes_through_the_gate_by_its_certificate(grid: Grid, tmp_path: Path) -> None:
    authority, address = Authority(tmp_path / "authority.pem"), free_address(PORT)
    certificate, key = authority.relay()
    grid.sites["a"].relay.ask(
        Op.LISTEN, host=address, first=PORT, last=PORT + 1, certificate=certificate, key=key,
        authority=authority.certificate,
    )  # fmt: skip
    gate = f"{address}:{PORT}-{PORT + 1}"
    one = grid.guest("a", "node-1", ticket=Ticket(gate, authority.entry("inst-1-1")))
    other = grid.guest("a", "node-2", ticket=Ticket(gate, authority.entry("inst-2-1")))
    grid.tell()
    for guest in (one, other):
        guest._given["relay"] = "/nowhere"
        guest.hub.kill()
        guest.hub.wait()
        guest.start()
    grid.reaches(one, other)
    assert f"the relay is reached at {gate[:-5]}" in one.log()


def test_a_pilot_may_send_through_the_relay_only_what_its_table_says(grid: Grid) -> None:
    one, other, stranger = (
        grid.guest("a", "node-1"),
        grid.guest("a", "node-2"),
        grid.guest("a", "node-3", network=OTHER),
    )
    grid.tell()
    grid.reaches(one, other)
    grid.sites["a"].relay.notes.clear()
    with socket.socket(socket.AF_UNIX) as line:
        with short(grid.sites["a"].socket) as name:
            line.connect(name)
        line.settimeout(20)
        line.sendall(greeting({"join": "", "from": stranger.entry}))
        assert line.recv(100) == b'{"ok": {}}\n'
        for source, destination, network in ((1, 2, 7), (3, 2, 7), (3, 2, 8), (2, 1, 7)):
            frame = one.frame(other, b"forged")
            line.sendall(record(network, destination, source, LENGTH.pack(len(frame)) + frame))
        grid.reaches(one, other)
        assert b"forged" not in other.received(0.5)
        line.sendall(b"\xff" * 64)
        assert line.recv(1) == b""
    for words in (b"nonsense\n", greeting({"from": "../x"}), greeting({"from": "inst-none-1"})):
        with socket.socket(socket.AF_UNIX) as line:
            with short(grid.sites["a"].socket) as name:
                line.connect(name)
            line.settimeout(20)
            line.sendall(words)
            assert line.recv(1) == b""
    assert not any(note["from"] == stranger.entry for note in grid.crossed)


def test_the_controller_brings_nothing_that_the_table_does_not_say(grid: Grid) -> None:
    one, other = grid.guest("a", "node-1"), grid.guest("b", "node-1")
    grid.tell()
    grid.reaches(one, other)
    relay = grid.sites["b"].relay
    frames = LENGTH.pack(40) + bytes(40)
    for entry, network, destination, source in (
        (other.entry, 7, 2, 2), (other.entry, 7, 1, 1), (other.entry, 8, 2, 1), ("inst-9-1", 7, 2, 1),
        (other.entry, 7, 2, 9),
    ):  # fmt: skip
        said = relay.ask(Op.FRAMES, frames, entry=entry, network=network, destination=destination, source=source)
        assert said == {"dropped": True}
    assert relay.ask(Op.FRAMES, frames, entry=other.entry, network=7, destination=2, source=1) == {"dropped": False}
