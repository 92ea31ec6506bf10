"""Private networks: how fast frames go from card to card through two hubs, and what of a processor that takes.

The guests are sockets, so that nothing but our part is measured: one end sends as fast as it can, the other counts.
Guests add their own; an emulated one sends some hundreds of Mbit/s at most. All is on this machine's cores, the senders
too: a path's figure is what is left for it.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import statistics
import tempfile
import time
from pathlib import Path

from benchmarks.report import Figure, Report, figure
from gridhypervisor.agent.processes import cpu_seconds_of
from gridhypervisor.model.wire import Ticket
from gridhypervisor.planning.network import tables
from gridhypervisor.sites.authority import Authority
from tests.contract.network_node import LAN, Guest, World, two_nodes, until
from tests.contract.relay_peer import Peer
from tests.contract.test_network_relay import Site

RUNS = 15
SECONDS = 1.0
ECHOES = 200


def stream(one: Guest, other: Guest, size: int) -> float:
    """Mbit/s of what arrives in SECONDS."""
    frame = one.frame(other, bytes(size - 20))
    came, end = 0, time.monotonic() + SECONDS
    one.card.setblocking(False)
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            while time.monotonic() < end:
                select.select([], [one.card], [], 0.1)
                with contextlib.suppress(BlockingIOError):
                    while True:
                        one.card.send(frame)
        os._exit(0)
    began = time.monotonic()
    while time.monotonic() < end:
        if select.select([other.card], [], [], 0.1)[0]:
            with contextlib.suppress(BlockingIOError):
                while True:
                    came += len(other.card.recv(1 << 17, socket.MSG_DONTWAIT))
    took = time.monotonic() - began
    os.waitpid(child, 0)
    other.received(0.3)
    return came * 8 / took / 1e6


def echo(one: Guest, other: Guest) -> float:
    """Milliseconds there and back, the median of ECHOES."""
    times = []
    for _ in range(ECHOES):
        began = time.perf_counter()
        one.send(other, b"ping")
        if not select.select([other.card], [], [], 5)[0]:
            raise RuntimeError("a frame was lost")
        other.card.recv(100)
        other.send(one, b"pong")
        if not select.select([one.card], [], [], 5)[0]:
            raise RuntimeError("a frame was lost")
        one.card.recv(100)
        times.append(time.perf_counter() - began)
    return 1000 * statistics.median(times)


def path(name: str, one: Guest, other: Guest, runs: int, relays: tuple[Peer, ...] = ()) -> list[Figure]:
    """What one path does."""
    one.reaches(other)
    other.reaches(one)
    for guest in (one, other):
        guest.received(0.3)
    ours = [guest.hub.pid for guest in (one, other)] + [relay.process.pid for relay in relays]
    figures = [figure(f"{name}, there and back", "ms", [echo(one, other) for _ in range(runs)])]
    for size in (1500, 9000):
        speeds, costs = [], []
        for _ in range(runs):
            before = sum(map(cpu_seconds_of, ours))
            speeds.append(stream(one, other, size))
            costs.append((sum(map(cpu_seconds_of, ours)) - before) / (speeds[-1] * SECONDS / 1000))
        figures.append(figure(f"{name}, packets of {size}", "Mbit/s", speeds))
        figures.append(figure("  our CPU", "s/Gbit", costs))
    return figures


def measure(runs: int | None) -> Report:
    runs = runs or RUNS
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory() as name, two_nodes() as nodes:
        folder = Path(name)
        with contextlib.closing(World(folder / "near")) as world:
            one, other = world.guest("node"), world.guest("node")
            world.tell()
            figures += path("same node", one, other, runs)
        with contextlib.closing(World(folder / "far")) as world:
            authority = Authority(folder / "authority.pem")
            for number, inside in enumerate(nodes, 1):
                ticket = Ticket("10.9.0.9:7750", authority.entry(f"inst-{number}-1"))
                world.guest(f"node-{number}", ticket=ticket, listen="7800-7809", inside=inside)
            one, other = world.guests
            until(lambda: one.at and other.at, 20, "both to listen")
            world.tell()
            figures += path("same site, TLS", one, other, runs)
        with contextlib.closing(World(folder / "relayed")) as world, contextlib.closing(Site(folder / "site")) as site:
            one, other = (world.guest(f"node-{number}", relay=site.socket) for number in (1, 2))
            made = tables([LAN], world.attached(), 1)
            for guest in (one, other):
                site.learn(guest, made[guest.entry])
            figures += path("through a relay", one, other, runs, (site.relay,))
    return Report("Private networks, from card to card", tuple(figures), notes=(f"{SECONDS:g} s each.",))
