"""Pilots that serve other entries after their own, with real guests: which they take, and what befalls them."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from gridhypervisor.agent import entries, spool
from gridhypervisor.model import wire
from gridhypervisor.model.wire import ExitRecord, Outcome, OwnerRecord, Phase, Reason, Resources
from tests.e2e import guestkit
from tests.e2e.guestkit import Site, wait_for

POOL = "a-pool"
PATIENT = ("--pool", POOL, "--idle", "600", "--lasts", "7200")
"""How long it waits for others is no matter here: all are open before it looks."""

LONG = "echo up; sleep 1000"


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    yield from guestkit.sites(tmp_path, "uml")


def offered(site: Site, command: str = "echo served", **manifest: object) -> Path:
    entry = site.prepare(command, **manifest)  # type: ignore[arg-type]
    entries.offer(entry, POOL)
    return entry


def is_open(site: Site) -> set[str]:
    return {path.name for path in (site.workdir / wire.OPEN / POOL).glob("*")}


def owner(entry: Path) -> OwnerRecord | None:
    return spool.read_json(entry / wire.OWNER, OwnerRecord)


def host(entry: Path) -> str:
    found = owner(entry)
    assert found is not None
    return found.host


def served(site: Site, entry: Path) -> ExitRecord:
    wait_for(lambda: (entry / wire.EXIT).exists(), 240, f"the end of {entry.name}")
    return site.sentinel(entry)


def running(site: Site, entry: Path) -> int:
    """The pilot that runs the entry's program."""
    site.wait_for_phase(entry, Phase.EXECUTE, 240)
    site.wait_for_stdout(entry, "up\n")
    status = site.status(entry)
    assert status is not None
    return status.pid


def test_a_pilot_serves_what_suits_it_and_leaves_the_rest(site: Site) -> None:
    own = site.prepare("echo own")
    same = [offered(site, "cat given; hostname", inputs={"given": b"a\n"}), offered(site, "exit 3")]
    others = [
        offered(site, owner="somebody-else"),
        offered(site, installation="another"),
        offered(site, resources=Resources(cpus=2, memory=256 << 20, scratch=64 << 20, walltime=1800)),
        offered(site, resources=Resources(memory=257 << 20, scratch=64 << 20, walltime=1800)),
        offered(site, resources=Resources(memory=256 << 20, scratch=64 << 20, walltime=7200)),
        offered(site, hypervisor="kvm"),
        offered(site, grant=60),
        offered(site, hold=True),
    ]
    taken, gone = offered(site), offered(site)
    spool.take_owner(taken, OwnerRecord("pilot", "another", 1))
    (gone / wire.MANIFEST).unlink()
    pilot = site.start(own, "--pool", POOL, "--idle", "2", "--lasts", "7200")
    assert pilot.wait(240) == 0
    for entry, code in zip((own, *same), (0, 0, 3), strict=True):
        record = site.sentinel(entry)
        assert (record.outcome, record.exit_code) == (Outcome.COMPLETED, code), record
        assert record.host == host(entry) == ("" if entry is own else own.name)
        assert record.usage.pilot < 30 and record.phases[0].start == 0.0
    assert (same[0] / wire.STDOUT).read_bytes().startswith(b"a\n")
    assert [owner(entry) for entry in others] == [None] * len(others)
    assert is_open(site) == {entry.name for entry in others}
    for entry in (own, *same):
        site.is_clean(entry)


def test_two_pilots_share_what_is_open_and_no_entry_has_two(site: Site) -> None:
    firsts = [site.prepare("sleep 1") for _ in range(2)]
    many = [offered(site) for _ in range(4)]
    pilots = [site.start(first, *PATIENT) for first in firsts]
    for entry in many:
        assert served(site, entry).outcome is Outcome.COMPLETED
        assert (entry / wire.STDOUT).read_bytes() == b"served\n"
        assert host(entry) in {first.name for first in firsts}
    for pilot in pilots:
        os.kill(pilot.pid, signal.SIGTERM)
        pilot.wait(60)


def killed_child(pilot: subprocess.Popen[bytes], child: int) -> None:
    os.kill(child, signal.SIGKILL)


def killed_whole(pilot: subprocess.Popen[bytes], child: int) -> None:
    pilot.kill()


@pytest.mark.parametrize("kill", [killed_child, killed_whole])
def test_a_pilot_that_is_killed_takes_down_what_it_serves_and_nothing_else(site: Site, kill: object) -> None:
    own, second = site.prepare("true"), offered(site, LONG)
    pilot = site.start(own, *PATIENT)
    child = running(site, second)
    assert child != pilot.pid
    third = offered(site)
    assert callable(kill)
    kill(pilot, child)
    pilot.wait(60)  # what took one down may be the node's fault: it serves no more
    record = served(site, second)
    assert (record.reason, record.by, record.host) == (Reason.PILOT, "watchdog", own.name), record
    assert host(second) == own.name
    assert owner(third) is None and is_open(site) == {third.name}
    site.is_clean(second)


def test_a_cancel_ends_what_is_served_and_the_pilot_serves_on(site: Site) -> None:
    own, first = site.prepare("true"), offered(site, LONG)
    pilot = site.start(own, *PATIENT)
    child, others = running(site, first), [offered(site, LONG), offered(site, LONG)]
    entries.leave_word(first / wire.CONTROL / wire.CANCEL, "cancelled by the user")
    assert served(site, first).reason is Reason.CANCELLED
    wait_for(lambda: any(owner(each) for each in others), 240, "the pilot to serve another")
    [second, third] = sorted(others, key=lambda each: owner(each) is None)
    assert running(site, second) not in (child, pilot.pid)
    assert {host(first), host(second)} == {own.name}
    # A signal is for the batch job: whatever it serves then ends, as a job's own guest does, and it serves no more.
    os.kill(pilot.pid, signal.SIGTERM)
    assert served(site, second).reason is Reason.EVICTED
    pilot.wait(60)
    assert owner(third) is None


@pytest.mark.parametrize("cancelled", [True, False])
def test_a_pilot_whose_own_job_was_cancelled_or_failed_serves_no_other(site: Site, cancelled: bool) -> None:
    other = offered(site)
    own = site.prepare(LONG, inputs={} if cancelled else {"given": b"x"})
    if not cancelled:
        (own / "in" / "given").unlink()
    pilot = site.start(own, *PATIENT)
    if cancelled:
        running(site, own)
        entries.leave_word(own / wire.CONTROL / wire.CANCEL, "cancelled by the user")
    pilot.wait(240)
    assert site.sentinel(own).outcome is not Outcome.COMPLETED
    assert owner(other) is None
