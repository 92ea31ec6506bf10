"""A real Slurm of which a node is cut off, another falls silent, and whose controller is away; connections cut in a
submission: what runs goes on, and nothing runs twice.

Each node has a network of its own, so a cut loses packets and stops no process: daemon, pilot and guest go on.
The front-end sees the spool through a late view, which keeps back what that node writes for as long as the cut lasts.
"""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gridhypervisor.planning.probes import REACH
from tests.e2e.cluster import PATIENT, RERUN, cut_after_the_submission, cut_before_the_submission, joined, reasons
from tests.e2e.installation import wait_for
from tests.e2e.slurmsite import TINY, SlurmLab
from testsites import SlurmSite

pytestmark = pytest.mark.timeout(900)

DELAY = 2
"""Seconds that what nodes write stays unseen at most, while nothing is cut off."""

WALLTIME = 75
"""Seconds, of the job whose node is cut off: it still runs when that is done, on a slow machine too."""


@pytest.fixture(scope="module")
def shared_lab(template: Path, node_scratch: Path) -> Iterator[SlurmLab]:
    with (
        SlurmSite("slurm-o", nodes=3, cpus=2, wired=True, spool_delay=DELAY) as site,
        joined(SlurmLab, site, node_scratch, template, spool_lag=str(DELAY + 1)) as made,
    ):
        yield made


@pytest.fixture
def slurm(shared_lab: SlurmLab) -> Iterator[SlurmLab]:
    yield shared_lab
    shared_lab.assert_clean()


def test_a_node_is_cut_off_another_falls_silent_and_the_controller_is_away_for_a_minute(slurm: SlurmLab) -> None:
    """Nobody can know that the guest on a node that is cut off is gone but by its walltime: until then its job has no
    second one, and then one. The rest goes wrong while that is waited for."""
    with cut_off(slurm):
        cut_after_the_submission(slurm, "sbatch")
        job = cut_before_the_submission(slurm, "sbatch")
        assert [name for name in slurm.batch_jobs() if name.startswith(f"{slurm.id}-{job}-")] == [f"{slurm.id}-{job}-2"]
        a_check_says_whether_nodes_reach_the_address_at_which_the_relay_listens(slurm)
        a_node_falls_silent_and_then_the_controller_is_away_for_a_minute(slurm)


@contextlib.contextmanager
def cut_off(slurm: SlurmLab) -> Iterator[None]:
    """While this lasts a node is cut off, on which the guest of a job runs whose inputs let only its next one end."""
    seconds = slurm.work / "seconds"
    seconds.write_text("1000\n")
    words = ("--cpus", "2", "--walltime", f"{WALLTIME}s", "--retry", "1", "--in", "seconds", "--out", "made")
    job = slurm.detach(*TINY, *words, "--to", "cut", "--", "sh", "-c", RERUN)  # which has its node for itself
    slurm.wait_word(job)
    slurm.wait_state(job, "running")
    seconds.write_text("0\n")
    number, first = slurm.batch_id(job), slurm.entry(job)
    node = slurm.node(job)
    assert first is not None
    with slurm.site.unseen(first.name), slurm.counting(job) as most:
        slurm.site.connect(node, False)
        try:
            assert slurm.guests(job), "the guest runs on"
            wait_for("Slurm's verdict", lambda: "JobState=NODE_FAIL" in slurm.show(number))
            wait_for("that it is told", lambda: b"waiting until its walltime" in slurm.ghv("explain", job).out)
            yield
            wait_for("the second attempt", lambda: len(slurm.job(job)["attempts"]) == 2, 300)
            found = slurm.wait(job)
        finally:
            slurm.site.connect(node, True)
        assert max(most) == 1
    assert (found["job"]["state"], reasons(found)) == ("done", ["lost", "exited"]), found
    assert "its walltime is over" in found["attempts"][0]["message"]
    running, planned = (
        next(event["at"] for event in slurm.events(job) if (event["subject"], event["after"]) == (attempt["id"], after))
        for attempt, after in zip(found["attempts"], ("running", "planned"), strict=True)
    )
    assert planned > running + WALLTIME, "it was planned when the first guest might have been running"
    assert slurm.node(job) != node
    assert (slurm.work / "cut/made").read_text() == "run\n"


def a_node_falls_silent_and_then_the_controller_is_away_for_a_minute(slurm: SlurmLab) -> None:
    """slurmd is killed, its jobs are not. Slurm gives one up with its node; the administrator deletes the other, which
    Slurm calls cancelled: neither gets a second guest. Then slurmctld goes as well. Meanwhile all that runs can be
    cancelled and comes home; what is submitted runs afterwards."""
    program = ("sh", "-c", PATIENT)
    jobs = {slurm.detach(*TINY, "--out", "result", "--to", to, "--", *program): to for to in ("one", "two", "three")}
    nodes: dict[str, list[str]] = {}  # two nodes, each for two of them: one has a pair
    for job in jobs:
        slurm.wait_word(job)
        nodes.setdefault(slurm.node(job), []).append(job)
    [(silent, (lost, deleted))] = [(node, found) for node, found in nodes.items() if len(found) == 2]
    slurm.site.signal(silent)
    try:
        slurm.site.admin("scancel", slurm.batch_id(deleted))
        for job, state, words in ((lost, "NODE_FAIL", b"lost its node"), (deleted, "CANCELLED", b"has not confirmed")):
            number = slurm.batch_id(job)
            wait_for("Slurm's verdict", lambda: f"JobState={state}" in slurm.show(number))  # noqa: B023
            wait_for("that it is told", lambda: words in slurm.ghv("explain", job).out)  # noqa: B023
            assert len(slurm.guests(job)) == 1
        slurm.site.signal("slurmctld", signal.SIGTERM)
        wait_for("the controller's end", lambda: not slurm.site.alive("slurmctld"))
        away = time.monotonic()
        meanwhile = slurm.detach(*TINY, "--retry", "5", "--", "echo", "afterwards")
        for job, to in jobs.items():
            slurm.ghv("cancel", job)
            found = slurm.wait(job)
            assert (found["job"]["state"], len(found["attempts"])) == ("cancelled", 1), found
            assert slurm.ghv("logs", job).out == b"started\nstopped\n"
            assert (slurm.work / to / "result").read_text() == "saved\n"
        wait_for("Slurm's silence", lambda: "slurm controller" in slurm.why())
        assert slurm.job(meanwhile)["job"]["state"] in ("pending", "prolog", "queued")
        wait_for("a minute", lambda: time.monotonic() > away + 60)
    finally:
        for daemon in ("slurmctld", silent):
            if not slurm.site.alive(daemon):
                slurm.site.start(daemon)
    found = slurm.wait(meanwhile, 300)
    assert (found["job"]["state"], slurm.ghv("logs", meanwhile).out) == ("done", b"afterwards\n"), found
    assert [attempt["hypervisor"] != "" for attempt in found["attempts"]].count(True) == 1


def a_check_says_whether_nodes_reach_the_address_at_which_the_relay_listens(slurm: SlurmLab) -> None:
    """They need not, here, but the relay can be asked to listen. The front-end's own loopback is not theirs."""
    kind, told = slurm.site.kind, ""
    there, loopback = f"at {slurm.site.name} port 77", "127.0.0.1 port 7760: [Errno 111] Connection refused"
    for listen, holds, words in ((":7760-7769", True, there), ("127.0.0.1:7760", False, loopback)):
        slurm.ghv("site", "edit", kind, "--option", f"listen={listen}")
        found = slurm.ghv("site", "check", kind, "-o", "json", check=False)
        [row] = [check for check in found.json if check["claim"] == REACH]
        assert (row["holds"], found.code) == (holds, 0 if holds else 75), found
        assert words in row["evidence"] and holds == ("ms there and back" in row["evidence"]), row
        assert holds or f"ghv site edit {kind} --option listen=HOST" in row["hint"], row
        assert words.removeprefix("at ") in slurm.ghv("site", "show", kind).out.decode()
        told += str(found)
    lender = slurm.site.home / ".ghv.lender.toml"
    lender.write_text("listen = false\n")
    lender.chmod(0o644)
    slurm.ghv("site", "edit", kind, "--option", "listen=:7760")
    assert "not needed" in slurm.ghv("site", "check", kind).out.decode(), "a lender who forbids it is obeyed"
    lender.unlink()
    slurm.ghv("site", "edit", kind, "--unset", "option:listen")
    assert "PRIVATE KEY" not in told + (slurm.data / "service.log").read_text()
