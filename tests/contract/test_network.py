"""Private networks between real hubs: on one node, and between two nodes with nothing in common but a cable."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gridhypervisor.agent.network.links import SOCKET
from gridhypervisor.agent.network.records import LENGTH, Greeting, greeting, record
from gridhypervisor.agent.network.switch import Count
from gridhypervisor.agent.tls import pilot_contexts
from gridhypervisor.model.wire import Ticket
from gridhypervisor.planning.network import tables
from gridhypervisor.sites.authority import Authority
from tests.contract.network_node import LAN, OTHER, Guest, World, two_nodes, until

GATE = "10.9.0.9:7750-7765"  # nobody is there, but that is the way on which nodes find each other


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with contextlib.closing(World(tmp_path)) as made:
        yield made


def knock(guest: Guest, world: World, node: str = "node") -> socket.socket:
    """A connection to its hub, as a pilot of the same node has it."""
    made = socket.socket(socket.AF_UNIX)
    made.settimeout(10)
    until((world.folder / node / guest.entry / SOCKET).exists, 20, "its socket")
    folder = os.open(world.folder / node / guest.entry, os.O_PATH)
    made.connect(f"/proc/self/fd/{folder}/{SOCKET}")
    os.close(folder)
    return made


def test_guests_of_one_node_reach_each_other_and_no_other_network(world: World) -> None:
    a, b, stranger = world.guest("node"), world.guest("node"), world.guest("node", OTHER)
    world.tell()
    a.reaches(b)
    b.reaches(a)
    a.send(stranger, b"hello")
    a.card.send(a.frame(stranger, b"hello"))
    a.reaches(b)
    assert stranger.received(0.5) == []
    until(lambda: a.count(Count.FOREIGN) >= 2, 20, "what went nowhere to be counted")
    assert a.count(Count.SENT) >= 2


def test_what_a_guest_forges_reaches_nobody(world: World) -> None:
    """Everything that another guest's card gets is looked at, as a capture there would."""
    a, b, c = (world.guest("node") for _ in range(3))
    world.tell()
    a.reaches(b)
    c.reaches(b)
    for spoofed in (
        {"mac": c.nic.mac}, {"address": c.nic.address}, {"mac": c.nic.mac, "address": c.nic.address},
        {"address": "10.42.0.1"}, {"mac": "06:67:68:76:00:01", "address": "10.42.0.1"}, {"address": "8.8.8.8"},
    ):  # fmt: skip
        a.send(b, b"forged", **spoofed)
    a.send(b, b"mine")
    captured = b.hears(lambda came: b"mine" in came)
    until(lambda: a.count(Count.SPOOFED) == 6, 20, "the forged ones to be counted")
    assert b"forged" not in [*captured, *b.received()]


def test_a_pilot_that_forges_is_not_believed(world: World) -> None:
    """Of the same account, but of another entry: it may bring what is its member's, and nothing else."""
    a, b, c = (world.guest("node") for _ in range(3))
    world.tell()
    a.reaches(b)
    with contextlib.closing(knock(b, world)) as line:
        line.sendall(greeting({"join": b.entry, "from": c.entry}))
        heard = Greeting().feed(line.recv(100))
        assert heard == {"ok": {}}
        for source, frame in (
            (1, a.frame(b, b"forged")),
            (3, a.frame(b, b"forged")),
            (3, c.frame(a, b"forged")),
            (3, c.frame(b, b"forged", address=a.nic.address)),
            (9, c.frame(b, b"forged")),
        ):
            line.sendall(record(7, 2, source, LENGTH.pack(len(frame)) + frame))
        frame = c.frame(b, b"true")
        line.sendall(record(8, 2, 3, LENGTH.pack(len(frame)) + frame))
        line.sendall(record(7, 1, 3, LENGTH.pack(len(frame)) + frame))
        line.sendall(record(7, 2, 3, LENGTH.pack(len(frame)) + frame))
        assert b"forged" not in b.hears(lambda came: b"true" in came)
        until(lambda: b.count(Count.REFUSED) == 7, 20, "the forged ones to be counted")
        line.sendall(b"\xff" * 100)
        assert line.recv(1) == b"", "what is no record ends the link"
    for said in (b"nonsense\n", greeting({"join": a.entry, "from": c.entry}), greeting({"join": b.entry, "from": "x"})):
        with contextlib.closing(knock(b, world)) as line:
            line.sendall(said)
            assert line.recv(100) == b""
    a.reaches(b)


def test_who_does_not_read_harms_nobody_else(world: World) -> None:
    a, stuck, b = (world.guest("node") for _ in range(3))
    world.tell()
    a.reaches(stuck)
    a.reaches(b)
    stuck.hub.send_signal(signal.SIGSTOP)
    for _ in range(200):
        with contextlib.suppress(BlockingIOError):
            a.card.setblocking(False)
            a.send(stuck, bytes(8900))
        a.reaches(b)
    until(lambda: a.count(Count.FULL) > 0, 20, "what is too much to be dropped")
    stuck.hub.send_signal(signal.SIGCONT)
    until(lambda: stuck.received(0.1) and not stuck.received(0.1), 20, "what waited to arrive")
    a.reaches(stuck)


def test_a_guest_that_does_not_read_harms_nobody_else(world: World) -> None:
    a, deaf, b = (world.guest("node") for _ in range(3))
    world.tell()
    a.reaches(b)
    b.reaches(deaf)
    for _ in range(300):
        a.send(deaf, bytes(8900))
    a.reaches(b)
    until(lambda: deaf.count(Count.FULL) > 0, 20, "what is too much to be dropped")
    deaf.hears(lambda came: len(came) > 50)
    b.reaches(deaf)


def test_a_hub_that_died_is_found_again_and_knows_what_it_knew(world: World) -> None:
    a, b = world.guest("node"), world.guest("node")
    world.tell()
    a.reaches(b)
    b.hub.kill()
    b.hub.wait()
    a.send(b, b"lost or late")
    b.start()
    a.reaches(b)
    b.reaches(a)


def test_a_member_that_moved_is_followed_and_an_older_table_changes_nothing(world: World) -> None:
    a, b = world.guest("node"), world.guest("node")
    after = world.guest("node", member=2)  # the second one's next allocation
    before = [each for each in world.attached() if each.entry != after.entry]
    moved = [each for each in world.attached() if each.entry != b.entry]
    early, late = tables([LAN], before, 1), tables([LAN], moved, 2)
    a.learn(early[a.entry])
    b.learn(early[b.entry])
    a.reaches(b)
    a.learn(late[a.entry])
    after.learn(late[after.entry])

    def follows(word: bytes) -> None:
        """What goes to the member, by its address, comes where it is now."""

        def there() -> bool:
            a.send(b, word)
            return word in after.received(0.1)

        until(there, 20, "the frames to follow")

    follows(b"first")
    a.learn(early[a.entry])
    follows(b"second")
    assert b"second" not in b.received(0.3)


def test_names_and_addresses_are_answered_though_nobody_else_is_there(world: World) -> None:
    a = world.guest("node")
    a.card.send(b"\xff" * 6 + bytes.fromhex("026700070001") + bytes.fromhex("0806 0001 0800 06 04 0001")
                + bytes.fromhex("026700070001 0a2a0002 000000000000 0a2a0001"))  # fmt: skip
    a.card.settimeout(20)
    assert a.card.recv(100)[28:32] == bytes([10, 42, 0, 1])


# --- two nodes --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def nodes() -> Iterator[tuple[list[str], list[str]]]:
    with two_nodes() as made:
        yield made


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "authority.pem")


def far(world: World, authority: Authority, nodes: tuple[list[str], list[str]]) -> tuple[Guest, Guest]:
    """A guest on either node, each of whose pilots may listen."""
    number = len(world.guests)
    made = []
    for each, inside in enumerate(nodes, 1):
        ticket = Ticket(GATE, authority.entry(f"inst-{number + each}-1"))
        made.append(world.guest(f"node-{each}", ticket=ticket, listen="7800-7809", inside=inside))
    until(lambda: all(guest.at for guest in made), 20, "both to listen")
    return made[0], made[1]


CAPTURE = """
import select, socket, sys, time
wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
wire.bind(("cable", 0))
print("ready", flush=True)
while True:
    if sys.stdin in select.select([sys.stdin, wire], [], [])[0]:
        break
    sys.stdout.buffer.write(wire.recv(1 << 17))
"""


def test_between_nodes_all_is_encrypted(world: World, authority: Authority, nodes: tuple[list[str], list[str]]) -> None:
    a, b = far(world, authority, nodes)
    assert (a.at.split(":")[0], b.at.split(":")[0]) == ("10.9.0.1", "10.9.0.2")
    capture = subprocess.Popen(
        [*nodes[1], sys.executable, "-c", CAPTURE], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert capture.stdout is not None and capture.stdout.readline() == b"ready\n"
    world.tell()
    a.reaches(b)
    b.reaches(a)
    secret = os.urandom(32)
    a.reaches(b, secret * 20)
    seen, _ = capture.communicate(b"x", timeout=20)
    assert len(seen) > 2000
    assert secret not in seen and LENGTH.pack(34 + 640) not in seen


def test_a_path_that_was_cut_comes_back(
    world: World, authority: Authority, nodes: tuple[list[str], list[str]]
) -> None:  # fmt: skip
    a, b = far(world, authority, nodes)
    world.tell()
    a.reaches(b)
    cable = [*nodes[0], "ip", "link", "set", "cable"]
    subprocess.run([*cable, "down"], check=True)
    try:
        a.send(b, b"late")
        assert b"late" not in b.received(0.5)
    finally:
        subprocess.run([*cable, "up"], check=True)
    a.reaches(b)
    b.reaches(a)


def test_who_has_no_certificate_for_its_entry_is_nobody(
    world: World, authority: Authority, nodes: tuple[list[str], list[str]], tmp_path: Path
) -> None:
    a, b = far(world, authority, nodes)
    world.tell()
    a.reaches(b)
    other = Authority(tmp_path / "other.pem")
    port = int(b.at.rpartition(":")[2])
    for ticket, said in (
        (authority.entry("inst-9-1"), "inst-9-1"),  # of the site, but in none of its networks
        (authority.entry("inst-9-1"), a.entry),
        (other.entry(a.entry), a.entry),
        (None, a.entry),
    ):
        assert ask(nodes[0], port, ticket, b.entry, said) != b'{"ok": {}}\n', said
    assert ask(nodes[0], port, authority.entry(a.entry), b.entry, a.entry) == b'{"ok": {}}\n'
    a.reaches(b)


ASK = """
import socket, ssl, sys
from gridhypervisor.agent.tls import pilot_contexts
port, ticket, words = int(sys.argv[1]), sys.stdin.read(), sys.argv[2].encode() + b"\\n"
line = socket.create_connection(("10.9.0.2", port), 10)
try:
    if ticket:
        line = pilot_contexts(ticket)[1].wrap_socket(line)
    line.sendall(words)
    print(line.recv(100).decode(), end="")
except (OSError, ValueError) as error:
    print(error)
"""


def ask(inside: list[str], port: int, ticket: str | None, join: str, says: str) -> bytes:
    """What a pilot is answered that says it is that entry's."""
    words = greeting({"join": join, "from": says}).decode().strip()
    return subprocess.run(
        [*inside, sys.executable, "-c", ASK, str(port), words], input=(ticket or "").encode(), stdout=subprocess.PIPE,
        check=True, timeout=60,
    ).stdout  # fmt: skip


def test_strangers_at_the_port_do_not_keep_others_out(
    world: World, authority: Authority, nodes: tuple[list[str], list[str]]
) -> None:
    a, b = far(world, authority, nodes)
    port = b.at.rpartition(":")[2]
    code = (
        "import socket, sys, time; there = ('10.9.0.2', int(sys.argv[1]));"
        "held = [socket.create_connection(there) for _ in range(100)];"
        "print('held', flush=True); time.sleep(3600)"
    )
    crowd = subprocess.Popen([*nodes[0], sys.executable, "-c", code, port], stdout=subprocess.PIPE)
    try:
        assert crowd.stdout is not None and crowd.stdout.readline()
        world.tell()
        a.reaches(b)
    finally:
        crowd.kill()
        crowd.communicate()


def test_a_ticket_makes_both_ends(authority: Authority) -> None:
    serving, calling = pilot_contexts(authority.entry("x" * 90))
    assert serving.verify_mode is calling.verify_mode is ssl.CERT_REQUIRED
    with pytest.raises(ValueError):
        pilot_contexts("nothing")
