"""The relay's gate: who comes in, what a courier may do with its own entry, and what is refused to everybody else."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import http.client
import os
import socket
import ssl
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gridhypervisor.agent.gate import FETCHING, LARGE, OF_ONE_ENTRY, STRANGERS, VERIFYING, WAITING
from gridhypervisor.agent.tls import courier_context, gate_context
from gridhypervisor.model import wire
from gridhypervisor.model.wire import (
    RELAY_NAME,
    Carry,
    Command,
    ExitRecord,
    Op,
    Outcome,
    OutputFile,
    OwnerRecord,
    Reason,
)
from gridhypervisor.sites.authority import Authority
from tests.contract.relay_peer import Peer, Refusal, manifest
from testsites.site import free_address

ARGV = [sys.executable, "-m", "gridhypervisor.agent.main", "relay", "--workdir"]
PORT = 7750
NAME = "inst-j1-1"


class Courier:
    """A courier's end of a connection, as plain as can be."""

    def __init__(self, address: str, ticket: str, *, authority: str = "") -> None:
        context = courier_context(ticket)
        if authority:  # another one is believed than the ticket says
            context.load_verify_locations(cadata=authority)
        plain = socket.create_connection((address, PORT), timeout=60)
        self.socket = context.wrap_socket(plain, server_hostname=RELAY_NAME)
        self.notes: list[dict[str, Any]] = []
        self._decoder = wire.Decoder()

    def ask(self, op: str, payload: bytes = b"", **request: Any) -> tuple[dict[str, Any], bytes]:
        self.socket.sendall(wire.encode({"id": 1, "op": op, **request}, payload))
        while True:
            for message, data in self.hear():
                if "id" not in message:
                    self.notes.append(message)
                elif "error" in message:
                    raise Refusal(message["error"])
                else:
                    return message["ok"], data

    def hear(self) -> list[tuple[dict[str, Any], bytes]]:
        data = self.socket.recv(1 << 16)
        if not data:
            raise EOFError("the gate closed the connection")
        return self._decoder.feed(data)

    def claim(self, claim: str, by: str = "pilot") -> dict[str, Any]:
        return self.ask(Carry.CLAIM, owner=wire.to_plain(OwnerRecord(by, claim, 1, "node")))[0]

    def put(self, path: str, data: bytes) -> None:
        sha256 = hashlib.sha256(data).hexdigest()
        self.ask(Carry.PUT, data, path=path, offset=0, last=True, size=len(data), sha256=sha256, mode=0o600)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "tls" / "authority.pem")


@pytest.fixture
def address() -> str:
    return free_address(PORT)


@pytest.fixture
def relay(tmp_path: Path) -> Iterator[Peer]:
    with Peer([*ARGV, str(tmp_path / "work")]) as peer:
        peer.hello()
        yield peer


def listen(relay: Peer, address: str, authority: Authority, last: int = PORT) -> int:
    certificate, key = authority.relay()
    return int(relay.ask(
        Op.LISTEN, host=address, first=PORT, last=last, certificate=certificate, key=key,
        authority=authority.certificate,
    )["port"])  # fmt: skip


def test_an_entry_is_carried_from_its_claim_to_its_sentinel(
    relay: Peer, tmp_path: Path, authority: Authority, address: str
) -> None:
    assert listen(relay, address, authority) == PORT
    made = manifest(NAME)
    made["program"]["inputs"] = [{"path": "deep/data", "size": 5, "sha256": "", "mode": 0o644}]
    relay.ask(Op.PREPARE, entry=NAME, manifest=made)
    relay.upload(f"spool/{NAME}/in/deep/data", b"12345")
    entry = tmp_path / "work/spool" / NAME
    courier = Courier(address, authority.entry(NAME))
    with pytest.raises(Refusal, match="owner"):
        courier.ask(Carry.STATUS, b"{}")
    for _ in range(2):  # asked again, it gets the same answer
        claimed = courier.claim("mine")
        assert (
            claimed["owner"]["claim"] == "mine"
            and claimed["manifest"] == made
            and claimed["cancel"] is claimed["begin"] is claimed["grant"] is None
        )
    assert courier.ask(Carry.GET, path="in/deep/data", offset=2, length=100)[1] == b"345"
    for path in (f"spool/{NAME}/manifest.json", "in/other", "../x", "charges/x"):
        with pytest.raises(Refusal, match="path"):
            courier.ask(Carry.GET, path=path, offset=0, length=1)
    for _ in range(2):
        courier.ask(Carry.APPEND, b"hello ", name="stdout", offset=0)
    courier.ask(Carry.APPEND, b"world", name="stdout", offset=6)
    assert (entry / "stdout").read_bytes() == b"hello world"
    with pytest.raises(Refusal, match="offset"):
        courier.ask(Carry.APPEND, b"x", name="stdout", offset=12)
    for name in ("owner", "../x", "out/x"):
        with pytest.raises(Refusal, match="path"):
            courier.ask(Carry.APPEND, b"x", name=name, offset=0)
    for path in ("owner", "out/../owner", "in/deep/data", "/etc/x"):
        with pytest.raises(Refusal, match="path"):
            courier.put(path, b"x")
    record = ExitRecord(
        NAME, 1, "mine", Outcome.COMPLETED, Reason.EXITED, exit_code=0, streams={"stdout": 11},
        outputs=(OutputFile("a/b", 6, 0o600, hashlib.sha256(b"result").hexdigest()),),
    )  # fmt: skip
    courier.put("exit.json", wire.canonical(record))
    with pytest.raises(Refusal, match="incomplete"):
        courier.ask(Carry.LEAVE)
    assert not (entry / "exit.json").exists()
    courier.put("out/a/b", b"result")
    relay.ask(Op.REQUEST, entry=NAME, what="cancel", why="enough")
    courier.ask(Carry.STATUS, b"{}")
    while not courier.notes:
        courier.notes += [message for message, _ in courier.hear()]
    assert courier.notes == [{"note": "cancel", "why": "enough"}]
    for members in ("0 g1-0 a n1\n", "another\n"):  # the first one counts
        relay.ask(Op.REQUEST, entry=NAME, what="begin", members=members)
    while {"note": "begin", "members": "0 g1-0 a n1\n"} not in courier.notes:
        courier.notes += [message for message, _ in courier.hear()]
    relay.ask(Op.GRANT, grants={NAME: 7})
    while {"note": "grant", "beat": 7} not in courier.notes:
        courier.notes += [message for message, _ in courier.hear()]
    claimed = courier.claim("mine")
    assert (claimed["begin"], claimed["grant"]) == ("0 g1-0 a n1\n", 7)  # also where the note was lost
    for _ in range(2):
        courier.ask(Carry.LEAVE)
    assert (entry / "exit.json").read_bytes() == wire.canonical(record)
    assert (entry / "out/a/b").read_bytes() == b"result"
    again = Courier(address, authority.entry(NAME))  # a second run of the same batch job
    owner = again.claim("another")["owner"]
    assert (owner["by"], owner["claim"]) == ("pilot", ""), "nobody learns by which claim another one acts"
    with pytest.raises(Refusal, match="owner"):
        again.ask(Carry.APPEND, b"x", name="stdout", offset=0)
    relay.ask(Op.REMOVE, entry=NAME, known="mine")
    with pytest.raises(Refusal, match="gone"):
        courier.ask(Carry.STATUS, b"{}")
    owner = again.claim("another")["owner"]
    assert (owner["by"], owner["claim"]) == ("controller", "")


def refused_without_certificate(address: str, authority: Authority) -> bool:
    """Whether a peer that shows no certificate is sent away."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=authority.certificate)
    try:
        with context.wrap_socket(socket.create_connection((address, PORT), 60), server_hostname=RELAY_NAME) as bare:
            bare.sendall(wire.encode({"id": 1, "op": Carry.CLAIM}))
            return not bare.recv(1)
    except OSError:
        return True


def test_only_certificates_of_this_installation_open_the_gate_and_each_its_own_entry(
    relay: Peer, tmp_path: Path, authority: Authority, address: str
) -> None:
    listen(relay, address, authority)
    for number in (1, 2):
        relay.ask(Op.PREPARE, entry=f"inst-j{number}-1", manifest=manifest(f"inst-j{number}-1"))
    stranger = Authority(tmp_path / "other.pem")
    with pytest.raises(ssl.SSLCertVerificationError):  # the pilot's side: this is not its relay
        Courier(address, stranger.entry(NAME))
    with pytest.raises((OSError, EOFError)):  # the relay's side: this is not its pilot
        Courier(address, stranger.entry(NAME), authority=authority.certificate).claim("wrong")
    assert refused_without_certificate(address, authority)
    Courier(address, authority.entry("inst-j2-1")).claim("second")
    spool = tmp_path / "work/spool"
    assert not (spool / NAME / "owner").exists() and (spool / "inst-j2-1/owner").exists()
    with pytest.raises(Refusal, match="request"):  # it may not take what is the controller's to take
        Courier(address, authority.entry(NAME)).claim("x", by="controller")


def test_an_entry_cannot_pose_as_the_relay(tmp_path: Path, authority: Authority) -> None:
    certificate, _, rest = authority.entry(RELAY_NAME).partition("-----BEGIN PRIVATE KEY-----")
    key = "-----BEGIN PRIVATE KEY-----" + rest.partition("-----BEGIN CERT")[0]
    server = gate_context(certificate, key, authority.certificate)
    client = courier_context(authority.entry("x"))
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    theirs = server.wrap_bio(to_server, to_client, server_side=True)
    ours = client.wrap_bio(to_client, to_server, server_hostname=RELAY_NAME)
    with contextlib.suppress(ssl.SSLWantReadError):
        ours.do_handshake()
    with contextlib.suppress(ssl.SSLWantReadError):
        theirs.do_handshake()
    with pytest.raises(ssl.SSLCertVerificationError):
        ours.do_handshake()


def test_the_bundle_is_there_for_everybody_and_nothing_else_is(
    relay: Peer, tmp_path: Path, authority: Authority, address: str
) -> None:
    digest = "a" * 64
    listen(relay, address, authority)
    relay.upload(f"bundle/{digest}/SUMS", b"sums")
    relay.upload(f"bundle/{digest}/zstd/ld.so", bytes(3 << 20))

    def get(path: str) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(address, PORT, timeout=60)
        connection.request("GET", path)
        with contextlib.closing(connection), connection.getresponse() as response:
            return response.status, response.read()

    assert get(f"/{digest}/SUMS") == (200, b"sums")
    assert get(f"/{digest}/zstd/ld.so") == (200, bytes(3 << 20))
    relay.upload("cache/secret", b"secret")
    for path in ("/cache/secret", f"/{digest}/../../cache/secret", f"/{digest}/zstd/../SUMS", "/", f"/{'b' * 64}/SUMS"):
        assert get(path) == (404, b""), path


def fetcher(address: str, digest: str) -> socket.socket:
    """A peer that asks for a file of the bundle and reads nothing of it."""
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    made.settimeout(60)
    made.connect((address, PORT))
    made.sendall(f"GET /{digest}/world.tar.zst HTTP/1.0\r\n\r\n".encode())
    return made


def open_files(relay: Peer) -> int:
    return len(os.listdir(f"/proc/{relay.process.pid}/fd"))


def settled(what: str, holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not holds():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def test_peers_that_anybody_can_send_do_not_shut_out_the_controller_or_couriers(
    relay: Peer, authority: Authority, address: str
) -> None:
    digest = "a" * 64
    listen(relay, address, authority)
    relay.upload(f"bundle/{digest}/world.tar.zst", bytes(16 << 20))
    relay.ask(Op.PREPARE, entry=NAME, manifest=manifest(NAME))
    before, most = open_files(relay), WAITING + 2 * FETCHING
    with contextlib.ExitStack() as peers:
        for _ in range(most + 200):
            peers.enter_context(fetcher(address, digest))
        for _ in range(STRANGERS + 50):  # and such as say nothing at all
            peers.enter_context(socket.create_connection((address, PORT), 60))
        settled("those who are too many are sent away", lambda: open_files(relay) <= before + most + STRANGERS)
        courier = Courier(address, authority.entry(NAME))
        assert courier.claim("mine")["owner"]["claim"] == "mine"
        assert relay.ask(Op.EXEC, commands=[wire.to_plain(Command(("/bin/true",)))])["results"][0]["code"] == 0
        assert [view["entry"] for view in relay.ask(Op.SCAN)["entries"]] == [NAME]
    settled("what they held is given back", lambda: open_files(relay) <= before + 2)


def test_one_ticket_holds_a_few_connections_open_and_the_newest_is_heard(
    relay: Peer, authority: Authority, address: str
) -> None:
    listen(relay, address, authority)
    relay.ask(Op.PREPARE, entry=NAME, manifest=manifest(NAME))
    ticket = authority.entry(NAME)
    before = open_files(relay)
    couriers = []
    for _ in range(12):
        couriers.append(Courier(address, ticket))
        couriers[-1].claim("mine")
    settled("the others are sent away", lambda: open_files(relay) <= before + OF_ONE_ENTRY)
    for courier in couriers[-OF_ONE_ENTRY:]:
        courier.claim("mine")
    with pytest.raises((OSError, EOFError)):
        couriers[0].claim("mine")


def test_couriers_large_files_do_not_hold_up_the_controller(
    relay: Peer, tmp_path: Path, authority: Authority, address: str
) -> None:
    """Each file is verified where a lock, which is the test's, keeps that from going on."""
    listen(relay, address, authority)
    couriers: list[Courier] = []
    with contextlib.ExitStack() as held:
        for number in range(33):  # more than Python has threads for such work
            name = f"inst-j{number}-1"
            relay.ask(Op.PREPARE, entry=name, manifest=manifest(name))
            couriers.append(Courier(address, authority.entry(name)))
            couriers[-1].claim("mine")
            staged = tmp_path / "work/spool" / name / ".carried"
            staged.mkdir()
            part = held.enter_context((staged / f"{hashlib.sha256(b'out/big').hexdigest()}.part").open("wb"))
            part.truncate(LARGE)
            fcntl.flock(part, fcntl.LOCK_EX)
            last = {"path": "out/big", "offset": LARGE - 1, "last": True, "size": LARGE, "sha256": "", "mode": 0o600}
            couriers[-1].socket.sendall(wire.encode({"id": 1, "op": Carry.PUT, **last}, b"x"))
        settled("they are at it", lambda: waiting_for_locks(relay) >= VERIFYING)
        assert len(relay.ask(Op.SCAN)["entries"]) == 33
        assert relay.ask(Op.REVOKE, entry="inst-j99-1", epoch=1)["owner"]["by"] == "controller"
    for number, courier in enumerate(couriers):
        while not courier.hear():
            pass
        assert (tmp_path / f"work/spool/inst-j{number}-1/out/big").stat().st_size == LARGE


def waiting_for_locks(relay: Peer) -> int:
    lines = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
    return sum(line[1] == "->" and line[5] == str(relay.process.pid) for line in lines)


def test_a_taken_port_is_passed_over_and_where_none_is_free_that_is_said(
    relay: Peer, authority: Authority, address: str
) -> None:
    with socket.create_server((address, PORT)):
        with pytest.raises(Refusal, match=r"address.*listen at .*7750.*option `listen`"):
            listen(relay, address, authority)
        assert listen(relay, address, authority, last=PORT + 15) > PORT
    with pytest.raises(Refusal, match="no such address"), Peer(relay.process.args) as other:  # type: ignore[arg-type]
        listen(other, "no-such-host.invalid", authority)


def test_a_lender_can_forbid_a_relay_to_listen(relay: Peer, tmp_path: Path, authority: Authority, address: str) -> None:
    (tmp_path / "work.lender.toml").write_text("listen = false\n")
    with pytest.raises(Refusal, match=r"lender: listen at .*`listen`"):
        listen(relay, address, authority)
    (tmp_path / "work.lender.toml").write_text("listen = true\n")
    assert listen(relay, address, authority) == PORT
