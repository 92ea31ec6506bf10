"""A real courier and its pilot against a real relay's gate; no guest, for what is asked here does not need one."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gridhypervisor.agent import delivery as delivering
from gridhypervisor.agent import spool
from gridhypervisor.agent.courier import GAP, Courier
from gridhypervisor.agent.delivery import CARRYING, Delivery
from gridhypervisor.agent.ending import now
from gridhypervisor.agent.line import Away, Declined, Gate, Line
from gridhypervisor.agent.reach import reach
from gridhypervisor.model import wire
from gridhypervisor.model.wire import (
    Carry,
    ExitRecord,
    Op,
    Outcome,
    OutputFile,
    OwnerRecord,
    Phase,
    Reached,
    Reason,
    Status,
    Ticket,
)
from gridhypervisor.planning.network import Network, nic_of
from gridhypervisor.sites.authority import Authority
from tests.contract.relay_peer import Peer, manifest
from testsites.site import free_address

PORT = 7750
NAME = "inst-j1-1"
ROLE = [sys.executable, "-m", "gridhypervisor.agent.main"]


class Site:
    """A front-end with a relay that can be killed and started again, and a node."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.workdir, self.scratch = folder, folder / "work", folder / "scratch"
        self.scratch.mkdir()
        self.entry = self.workdir / "spool" / NAME
        self.authority, self.address = Authority(folder / "authority.pem"), free_address(PORT)
        self.relay: Peer | None = None
        self.couriers: list[subprocess.Popen[bytes]] = []

    def start(self) -> Peer:
        self.relay = Peer([*ROLE, "relay", "--workdir", str(self.workdir)])
        self.relay.hello()
        return self.relay

    def listen(self, first: int = PORT) -> None:
        assert self.relay is not None
        certificate, key = self.authority.relay()
        self.relay.ask(
            Op.LISTEN, host=self.address, first=first, last=PORT + 3, certificate=certificate, key=key,
            authority=self.authority.certificate,
        )  # fmt: skip

    def kill_relay(self) -> None:
        assert self.relay is not None
        self.relay.process.kill()
        with contextlib.suppress(BrokenPipeError):
            self.relay.__exit__()

    @property
    def gate(self) -> str:
        return f"{self.address}:{PORT}-{PORT + 3}"

    def courier(self, *words: str) -> subprocess.Popen[bytes]:
        """The process of a batch job."""
        started = subprocess.Popen(
            [*ROLE, "courier", "--scratch", str(self.scratch), "--gate", self.gate, "--entry", f"spool/{NAME}", *words],
            stdin=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, "GHV_WORLD": "system"},
        )  # fmt: skip
        self.couriers.append(started)
        assert started.stdin is not None
        started.stdin.write(self.authority.entry(NAME).encode())
        started.stdin.close()
        return started

    def sentinel(self) -> ExitRecord:
        record = spool.read_json(self.entry / wire.EXIT, ExitRecord)
        assert record is not None
        return record

    def close(self) -> None:
        for each in self.couriers:
            each.kill()
            each.wait()
            if each.stderr is not None:
                each.stderr.close()
        if self.relay is not None:
            self.kill_relay()


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with contextlib.closing(Site(tmp_path)) as made:
        yield made


def wait(what: str, holds: Any, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"waited {seconds} s for {what}"
        time.sleep(0.02)


def said(courier: subprocess.Popen[bytes], words: bytes) -> None:
    """Until the courier has said this."""
    assert courier.stderr is not None
    heard = b""
    while words not in heard:
        line = courier.stderr.readline()
        assert line, heard
        heard += line


def prepare(relay: Peer, **changes: Any) -> dict[str, Any]:
    made = {**manifest(NAME), **changes}
    relay.ask(Op.PREPARE, entry=NAME, manifest=made)
    return made


def layer(data: bytes, role: str = "base") -> dict[str, Any]:
    chunks = hashlib.sha256(data).digest()
    return {"digest": hashlib.sha256(chunks).hexdigest(), "size": len(data), "role": role, "format": "raw"}


def test_a_relay_that_is_not_there_is_waited_for_wherever_it_listens_then(site: Site) -> None:
    courier = site.courier()
    said(courier, b"it is tried again")
    prepare(site.start())
    site.listen(first=PORT + 2)
    assert courier.wait(120) == 1
    record, owner = site.sentinel(), spool.read_json(site.entry / wire.OWNER, OwnerRecord)
    assert owner is not None and record.claim == owner.claim
    assert (record.reason, record.by) == ("image", "pilot"), record  # it has no layers
    assert "0 kernel layers" in record.message and record.streams == {}
    assert b"image" in (site.entry / wire.PILOT_LOG).read_bytes()
    assert not list(site.scratch.glob("ghv-*/run/*")), "nothing stays on the node"


def test_a_probes_courier_gives_up_where_it_does_not_reach_the_relay(site: Site) -> None:
    """By its exit code alone the batch system can tell."""
    courier = site.courier("--patience", "1")
    said(courier, b"Connection refused; given up after 1 s")
    assert courier.wait(120) == 69


def test_a_node_tells_how_soon_the_relay_answers_or_why_it_does_not(site: Site, tmp_path: Path) -> None:
    """The ticket is enough, whoever owns the entry and whether or not it is there; nothing of it is told."""
    entry = tmp_path / NAME
    entry.mkdir()
    assert reach(entry) is None, "no ticket: the relay does not listen, and nobody looks"

    def tried(ticket: str) -> Reached:
        spool.write_replace(entry / wire.TICKET, wire.canonical(wire.to_plain(Ticket(site.gate, ticket))))
        found = reach(entry)
        assert found is not None and "PRIVATE KEY" not in str(found) and found.gate == site.gate
        return found

    ticket = site.authority.entry(NAME)
    closed = tried(ticket)
    assert "Connection refused" in closed.why and f"{site.address} port {PORT}" in closed.why and not closed.at
    site.start()
    site.listen(first=PORT + 2)
    found = tried(ticket)
    assert (found.why, found.at) == ("", f"{site.address} port {PORT + 2}") and 0 < found.milliseconds < 20_000
    strange = tried(Authority(tmp_path / "other.pem").entry(NAME))
    assert "certificate" in strange.why.lower(), strange
    assert "cannot be used" in tried("no ticket").why


def test_who_comes_second_runs_nothing_and_changes_nothing(site: Site) -> None:
    prepare(site.start())
    site.listen()
    assert site.courier().wait(120) == 1
    before = {path: path.read_bytes() for path in site.entry.rglob("*") if path.is_file()}
    assert site.courier().wait(120) == 0
    assert {path: path.read_bytes() for path in site.entry.rglob("*") if path.is_file()} == before


def test_a_revoked_entry_is_left_alone(site: Site) -> None:
    relay = site.start()
    site.listen()
    relay.ask(Op.REVOKE, entry=NAME, epoch=1)
    prepare(relay)
    assert site.courier().wait(120) == 0
    assert not (site.entry / wire.EXIT).exists() and not (site.entry / wire.STATUS).exists()


def test_a_signal_before_the_claim_ends_it_and_nothing_is_owned(site: Site) -> None:
    courier = site.courier()
    said(courier, b"it is tried again")
    courier.send_signal(signal.SIGTERM)
    assert courier.wait(120) == 143


@pytest.mark.parametrize("kind", ["missing", "damaged", "input"])
def test_what_cannot_be_brought_is_the_reason_of_the_end(site: Site, kind: str) -> None:
    relay = site.start()
    site.listen()
    made = manifest(NAME)
    if kind == "input":
        made["program"]["inputs"] = [{"path": "data", "size": 5, "sha256": "", "mode": 0o644}]
    else:
        made["image"]["layers"] = [layer(b"bytes")]
        digest = made["image"]["layers"][0]["digest"]
        relay.upload(f"cache/{digest}.chunks", hashlib.sha256(b"bytes").digest())
        if kind == "damaged":
            relay.upload(f"cache/{digest}", b"other")
    prepare(relay, **made)
    assert site.courier().wait(120) == 1
    record = site.sentinel()
    assert record.reason == ("input" if kind == "input" else "image"), record
    assert ("damaged" if kind == "damaged" else "bring") in record.message


def test_a_lender_at_the_front_end_is_asked_again_before_the_guest_boots(site: Site) -> None:
    prepare(site.start())
    site.listen()
    (site.folder / "work.lender.toml").write_text("images = []\n")
    assert site.courier().wait(120) == 1
    assert site.sentinel().reason == "lender" and "start the guest" in site.sentinel().message


def test_a_layer_is_kept_on_the_node_and_verified_there(site: Site) -> None:
    relay = site.start()
    site.listen()
    data = os.urandom(5 << 19)
    chunks = b"".join(hashlib.sha256(data[at : at + (1 << 20)]).digest() for at in range(0, len(data), 1 << 20))
    digest = hashlib.sha256(chunks).hexdigest()
    made = manifest(NAME)
    made["image"]["layers"] = [{"digest": digest, "size": len(data), "role": "base", "format": "raw"}]
    relay.upload(f"cache/{digest}.chunks", chunks)
    relay.upload(f"cache/{digest}", data)
    prepare(relay, **made)
    assert site.courier().wait(120) == 1
    assert "0 kernel layers" in site.sentinel().message  # so the pilot had no complaint of this one
    [kept] = site.scratch.glob(f"ghv-*/cache/{digest}")
    assert kept.read_bytes() == data and kept.stat().st_nlink == 1


def test_a_cancel_that_was_there_before_ends_it_before_anything_is_brought(site: Site) -> None:
    relay = site.start()
    site.listen()
    made = manifest(NAME)
    made["image"]["layers"] = [layer(b"that is not at the site")]
    prepare(relay, **made)
    relay.ask(Op.REQUEST, entry=NAME, what="cancel", why="enough")
    assert site.courier().wait(120) == 1
    assert site.sentinel().reason == "cancelled"


def test_a_run_ends_whose_entry_was_removed(site: Site) -> None:
    """The user gave the site up: nobody wants the run any more, whatever it is at."""
    relay = site.start()
    site.listen()
    made = manifest(NAME)
    made["program"]["inputs"] = [{"path": "data", "size": 16 << 20, "sha256": "", "mode": 0o644}]
    prepare(relay, **made)
    relay.upload(f"spool/{NAME}/in/data", bytes(16 << 20))
    courier = site.courier()
    wait("the claim", (site.entry / wire.OWNER).exists)
    relay.ask(Op.REMOVE, entry=NAME, force=True, discard=True)
    courier.wait(120)
    assert not site.entry.exists() and not list(site.scratch.glob("ghv-*/run/*"))


def test_a_node_without_a_place_for_the_job_says_so_in_the_sentinel(site: Site) -> None:
    prepare(site.start())
    site.listen()
    own = site.scratch / f"ghv-{os.getuid()}"
    own.mkdir()
    own.chmod(0o755)
    assert site.courier().wait(120) == 1
    assert (site.sentinel().reason, str(own) in site.sentinel().message) == ("node-disk", True)


class Home:
    """What a run that has ended left on its node, and its line to the relay, which owns the entry for it."""

    def __init__(self, site: Site, *, size: int = 1000, by: str = "pilot") -> None:
        prepare(site.start())
        site.listen()
        self.site, self.data, self.notes = site, os.urandom(size), list[dict[str, Any]]()
        self.entry = site.folder / "node" / NAME
        (self.entry / "out").mkdir(parents=True)
        (self.entry / "out/result").write_bytes(self.data)
        (self.entry / "stdout").write_bytes(b"words\n")
        output = OutputFile("result", size, 0o640, hashlib.sha256(self.data).hexdigest())
        record = ExitRecord(
            NAME, 1, "mine", Outcome.COMPLETED if by == "pilot" else Outcome.STOPPED,
            Reason.EXITED if by == "pilot" else Reason.WALLTIME, outputs=(output,) if by == "pilot" else (),
            streams={"stdout": 6}, by=by,
        )  # fmt: skip
        (self.entry / "exit.json").write_bytes(wire.canonical(record))
        self.last = Status(NAME, 1, "mine", 7, Phase.SHUT_DOWN, (), 1.0)
        (self.entry / "status.json").write_bytes(wire.canonical(self.last))
        owner = OwnerRecord("pilot", "mine", 1, "node")
        self.line = Line(Gate(site.address, PORT, PORT + 3), site.authority.entry(NAME), self.notes.append)
        self.line.connect()
        self.line.call(Carry.CLAIM, owner=wire.to_plain(owner))
        self.delivery = Delivery(self.entry, owner, None, now())

    def deliver(self, tries: int, until: float) -> int:
        """Try so often at most; how often it took. Fails where it is given up."""
        for number in range(1, tries + 1):
            try:
                self.delivery.finish(self.line)
                return number
            except Declined as error:
                if not self.delivery.refused(error, until):
                    raise
        return 0

    def is_home(self) -> bool:
        return (self.site.entry / "out/result").read_bytes() == self.data


@pytest.fixture
def home(site: Site) -> Iterator[Home]:
    made = Home(site)
    yield made
    made.line.close()


def test_results_on_their_way_are_told_of_piece_by_piece(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who is silent after a cancellation is ended by force."""
    monkeypatch.setattr(delivering, "BEAT", 0.0)
    home = Home(site, size=5 << 19)
    home.delivery.advance(home.line)
    assert home.deliver(1, 0.0) == 1 and home.is_home()
    status = spool.read_json(site.entry / wire.STATUS, Status)
    assert status is not None and (status.phase, status.note) == (Phase.SHUT_DOWN, CARRYING)
    assert status.sequence >= home.last.sequence + 3, "one for each piece at least"
    home.line.close()


def test_a_site_that_lost_what_it_had_acknowledged_gets_it_again(home: Home) -> None:
    """A front-end that crashed: what was appended was not on its disk."""
    home.delivery.advance(home.line)
    (home.site.entry / "stdout").write_bytes(b"wo")
    assert home.deliver(2, 0.0) == 2
    record = home.site.sentinel()
    assert (record.outcome, record.streams) == (Outcome.COMPLETED, {"stdout": 6}) and home.is_home()
    assert (home.site.entry / "stdout").read_bytes() == b"words\n"


def test_trouble_at_the_site_that_passes_costs_no_results(home: Home) -> None:
    trouble = home.site.entry / "out"
    trouble.write_bytes(b"")  # no folder can be made there
    assert home.deliver(10, now() + 3600) == 0
    assert not (home.site.entry / wire.EXIT).exists()
    trouble.unlink()
    assert home.deliver(1, now() + 3600) == 1 and home.is_home()
    assert home.site.sentinel().outcome is Outcome.COMPLETED


@pytest.mark.parametrize("by", ["pilot", "watchdog"])
def test_trouble_that_lasts_to_the_end_is_told_in_a_sentinel_that_says_less(site: Site, by: str) -> None:
    home = Home(site, by=by)
    (site.entry / "out").write_bytes(b"")
    assert home.deliver(10, now()) == 5
    record = site.sentinel()
    told = (Outcome.FAILED, Reason.PILOT) if by == "pilot" else (Outcome.STOPPED, Reason.WALLTIME)
    assert (record.outcome, record.reason, record.outputs, record.streams) == (*told, (), {})
    assert "carry the results to the relay" in record.message
    home.line.close()


def test_when_not_even_the_end_can_be_told_the_next_try_is_of_all_again(home: Home) -> None:
    trouble = home.site.entry / ".carried"
    trouble.write_bytes(b"")
    assert home.deliver(5, now()) == 0  # the last one was of less
    trouble.unlink()
    assert home.deliver(1, now()) == 1 and home.is_home()
    assert home.site.sentinel().outcome is Outcome.COMPLETED


def test_a_wish_and_a_grant_that_another_relay_was_told_of_are_heard(home: Home) -> None:
    with Peer([*ROLE, "relay", "--workdir", str(home.site.workdir)]) as newer:
        newer.hello()
        newer.ask(Op.REQUEST, entry=NAME, what="cancel", why="enough")
        newer.ask(Op.REQUEST, entry=NAME, what="begin", members="0 g1-0 a n1\n")
        newer.ask(Op.GRANT, grants={NAME: 7})
        for version in (3, 2):  # the latest holds
            newer.ask(Op.REQUEST, entry=NAME, what="network", table={"version": version})
    home.delivery.advance(home.line)
    begin = {"note": "begin", "members": "0 g1-0 a n1\n"}
    table = {"note": "network", "table": '3 {"version":3}'}
    assert home.notes == [{"note": "cancel", "why": "enough"}, begin, {"note": "grant", "beat": 7}, table]
    home.line.call(Carry.STATUS, b"{}")
    assert home.notes.count(table) == 1, "it is told once on a line"


def test_a_courier_waits_for_a_site_in_trouble_and_says_so(site: Site) -> None:
    prepare(site.start())
    site.listen()
    trouble = site.entry / ".carried"
    trouble.write_bytes(b"")
    courier = site.courier()
    words = CARRYING.encode() + b": put"
    wait("its word", lambda: (site.entry / wire.STATUS).exists() and words in (site.entry / wire.STATUS).read_bytes())
    trouble.unlink()
    assert courier.wait(120) == 1
    assert (site.sentinel().reason, "carry" in site.sentinel().message) == ("image", False), "all that there was"


def test_a_courier_that_waits_for_its_turn_at_a_layer_hears_a_wish_also_of_the_next_relay(site: Site) -> None:
    made = manifest(NAME)
    made["image"]["layers"] = [layer(b"bytes")]
    prepare(site.start(), **made)
    site.listen()
    cache = site.scratch / f"ghv-{os.getuid()}" / "cache"
    cache.mkdir(mode=0o700, parents=True)
    cache.parent.chmod(0o700)
    with (cache / f".turn-{made['image']['layers'][0]['digest']}").open("wb") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)  # another courier's
        courier = site.courier()
        wait("the claim", (site.entry / wire.OWNER).exists)
        site.kill_relay()
        relay = site.start()
        site.listen()
        relay.ask(Op.REQUEST, entry=NAME, what="cancel", why="enough")
        assert courier.wait(120) == 1
    assert site.sentinel().reason == "cancelled"


def test_a_pilot_with_a_private_network_gets_ticket_and_tables(site: Site) -> None:
    made = manifest(NAME)
    made["image"]["layers"] = [layer(b"bytes")]
    made["nics"] = [wire.to_plain(nic_of(Network(7, "10.42.0.0/24", "lab.internal"), 1, "head"))]
    relay = site.start()
    prepare(relay, **made)
    site.listen()
    relay.ask(Op.REQUEST, entry=NAME, what="network", table={"version": 1})
    cache = site.scratch / f"ghv-{os.getuid()}" / "cache"
    cache.mkdir(mode=0o700, parents=True)
    cache.parent.chmod(0o700)
    entry = cache.parent / "run" / f"{NAME}.entry" / "spool" / NAME
    with (cache / f".turn-{made['image']['layers'][0]['digest']}").open("wb") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)  # another courier's
        courier = site.courier()
        wait("the ticket", (entry / wire.TICKET).exists)
        assert (entry / "control/network-1").exists()
        ticket = spool.read_json(entry / wire.TICKET, Ticket)
        assert ticket is not None and ticket.gate == site.gate
        assert (entry / wire.TICKET).stat().st_mode & 0o777 == 0o600
        for version in (4, 3):
            relay.ask(Op.REQUEST, entry=NAME, what="network", table={"version": version})
        wait("the newest table", (entry / "control/network-4").exists)
        assert [path.name for path in (entry / "control").iterdir()] == ["network-4"]
        relay.ask(Op.REQUEST, entry=NAME, what="cancel", why="enough")
        assert courier.wait(120) == 1


def test_a_guest_that_prints_line_by_line_does_not_keep_the_relay_busy(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, name = Gate(home.site.address, PORT, PORT + 3), "inst-j2-1"
    assert home.site.relay is not None
    home.site.relay.ask(Op.PREPARE, entry=name, manifest=manifest(name))
    courier = Courier(name, gate, home.site.authority.entry(name), home.site.scratch, 0.0)
    courier._entry = home.entry
    courier._watch()
    began, looks = now(), list[float]()
    monkeypatch.setattr(courier, "_reap", lambda: now() - began < 2)

    def look(line: Line) -> bool:
        looks.append(now())
        with (home.entry / "stdout").open("ab") as file:  # there is more as soon as it has looked
            file.write(b"a line\n")
        return home.delivery._grow(home.line)

    monkeypatch.setattr(home.delivery, "advance", look)
    courier._carry_while_it_lives(home.delivery)
    assert len(looks) > 1 and len(looks) <= (now() - began) / GAP + 1
    courier._line.close()


class Dying(Line):
    """A line whose relay is killed after so many pieces."""

    def __init__(self, site: Site, pieces: int) -> None:
        super().__init__(Gate(site.address, PORT, PORT + 3), site.authority.entry(NAME), lambda note: None)
        self._site, self._left = site, pieces

    def call(self, op: Carry, payload: bytes = b"", **request: Any) -> tuple[dict[str, Any], bytes]:
        if op is Carry.PUT:
            self._left -= 1
            if self._left == -1:
                self._site.kill_relay()
        return super().call(op, payload, **request)


def test_a_relay_killed_at_any_piece_of_the_results_has_them_whole_in_the_end(site: Site, tmp_path: Path) -> None:
    prepare(site.start())
    site.listen()
    owner = OwnerRecord("pilot", "mine", 1, "node")
    entry = tmp_path / "node" / NAME
    data = os.urandom(5 << 19)
    (entry / "out/deep").mkdir(parents=True)
    (entry / "out/deep/result").write_bytes(data)
    (entry / "stdout").write_bytes(b"words\n")
    output = OutputFile("deep/result", len(data), 0o640, hashlib.sha256(data).hexdigest())
    record = ExitRecord(NAME, 1, "mine", Outcome.COMPLETED, Reason.EXITED, outputs=(output,), streams={"stdout": 6})
    (entry / "exit.json").write_bytes(wire.canonical(record))
    delivery = Delivery(entry, owner, None, 0.0)
    for pieces in (1, 1, 1, 99):  # of four: each try goes on where the one before was cut short
        line = Dying(site, pieces)
        line.connect()
        line.call(Carry.CLAIM, owner=wire.to_plain(owner))
        if pieces == 99:
            delivery.finish(line)
        else:
            with pytest.raises(Away):
                delivery.finish(line)
            assert not (site.entry / wire.EXIT).exists()
            site.start()
            site.listen()
        line.close()
    found = site.entry / "out/deep/result"
    assert found.read_bytes() == data and found.stat().st_mode & 0o777 == 0o640
    assert site.sentinel().outputs == (output,) and (site.entry / "stdout").read_bytes() == b"words\n"
