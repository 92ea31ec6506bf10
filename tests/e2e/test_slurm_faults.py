"""What goes wrong between us and a real Slurm, and in it: nothing runs twice, nothing is lost, and it is told."""

from __future__ import annotations

import os
import signal
import time

from gridhypervisor.model import wire
from tests.e2e.installation import wait_for
from tests.e2e.slurmsite import PATIENT, TINY, SlurmLab, attempts
from testsites.slurm import UID

pytest_plugins = ("tests.e2e.slurmfixtures",)


def test_a_connection_cut_after_the_submission_costs_nothing(slurm: SlurmLab) -> None:
    """Slurm has the job, and the answer never came."""
    reached = slurm.commands / "reached"
    with slurm.command("sbatch", f'/usr/bin/sbatch "$@" && : >{_inside(slurm, "reached")} && exec sleep 600'):
        job = slurm.detach(*TINY, "--", "sh", "-c", "echo once; sleep 5")
        wait_for("the submission", reached.exists)
        assert slurm.site.cut_ssh()
    found = slurm.wait(job)
    assert (found["job"]["state"], len(found["attempts"])) == ("done", 1), found
    assert slurm.ghv("logs", job).out == b"once\n"
    assert any(story.startswith("submitting>") for story in slurm.story(job))
    reached.unlink()


def test_a_submission_that_surfaces_after_it_was_given_up_runs_nothing(slurm: SlurmLab) -> None:
    """The connection is cut while the request is on its way; it arrives when the next attempt runs already."""
    gate = slurm.commands / "gate"
    os.mkfifo(gate)
    os.chown(gate, UID, UID)
    # Of no kin to the session, so that the cut does not reach it.
    late = f'read word <{_inside(slurm, "gate")}; exec /usr/bin/sbatch "$@" <{_inside(slurm, "script")}'
    late = f"cat >{_inside(slurm, 'script')}; ( ( {late} ) >{_inside(slurm, 'said')} 2>&1 & ); "
    with slurm.command("sbatch", f"{late}: >{_inside(slurm, 'reached')}; exec sleep 600"):
        job = slurm.detach(*TINY, "--out", "made", "--to", "late", "--", "sh", "-c", "echo run >> made; sleep 6")
        wait_for("the submission", (slurm.commands / "reached").exists)
        first = slurm.entry(job)
        assert first is not None
        assert slurm.site.cut_ssh()
    wait_for("the second attempt", lambda: len(slurm.job(job)["attempts"]) == 2)
    slurm.wait_phase(job, "execute")
    descriptor = os.open(gate, os.O_WRONLY | os.O_NONBLOCK)
    os.write(descriptor, b"go\n")
    os.close(descriptor)
    wait_for("the late submission", (slurm.commands / "said").read_text)
    over = ("COMPLETED", "CANCELLED", "FAILED")
    wait_for("the end of the late job", lambda: slurm.batch_jobs()[first.name][1] in over)
    assert len(slurm.guests(job)) == 1
    found = slurm.wait(job)
    assert found["job"]["state"] == "done"
    assert [reason for _, reason in attempts(found)] == ["lost", "exited"], found
    assert (slurm.work / "late/made").read_text() == "run\n"
    for name in ("gate", "script", "said", "reached"):
        (slurm.commands / name).unlink()


def test_a_node_that_slurm_lost_finishes_its_job_all_the_same(slurm: SlurmLab) -> None:
    """slurmd is killed, its jobs are not: no second guest, and the results come home while the node is still away."""
    job = slurm.detach(*TINY, "--out", "made", "--to", "node", "--", "sh", "-c", "echo run >> made; sleep 25")
    slurm.wait_phase(job, "execute")
    node = slurm.site.admin("squeue", "-h", "-j", slurm.batch_id(job), "-o", "%N").strip()
    slurm.site.signal(node)
    try:
        wait_for("Slurm's verdict", lambda: slurm.batch_jobs("NODE_FAIL"), 60)
        wait_for("that it is told", lambda: b"lost its node" in slurm.ghv("explain", job).out)
        assert len(slurm.guests(job)) == 1
        found = slurm.wait(job)
    finally:
        slurm.site.start(node)
    assert (found["job"]["state"], len(found["attempts"])) == ("done", 1), found
    assert (slurm.work / "node/made").read_text() == "run\n"
    slurm.site.wait_idle(60)


def test_an_end_that_the_lost_node_has_not_confirmed_starts_nothing_anew(slurm: SlurmLab) -> None:
    """The administrator deletes the job of a node that does not answer: Slurm calls it cancelled, and it runs on."""
    job = slurm.detach(*TINY, "--out", "made", "--to", "unconfirmed", "--", "sh", "-c", "echo run >> made; sleep 35")
    slurm.wait_phase(job, "execute")
    number = slurm.batch_id(job)
    node = slurm.site.admin("squeue", "-h", "-j", number, "-o", "%N").strip()
    slurm.site.signal(node)
    try:
        slurm.site.admin("scancel", number)
        wait_for("Slurm's verdict", lambda: slurm.batch_jobs("CANCELLED"), 60)
        wait_for("that it is told", lambda: b"has not confirmed" in slurm.ghv("explain", job).out)
        assert len(slurm.guests(job)) == 1
        found = slurm.wait(job)
    finally:
        slurm.site.start(node)
    assert (found["job"]["state"], len(found["attempts"])) == ("done", 1), found
    slurm.site.wait_idle(60)


def test_slurms_controller_away_for_a_minute(slurm: SlurmLab) -> None:
    """What runs goes on and comes home meanwhile; what was handed in meanwhile runs afterwards; all of it once."""
    runs = slurm.detach(*TINY, "--out", "made", "--to", "away", "--", "sh", "-c", "echo run >> made; sleep 10")
    slurm.wait_phase(runs, "execute")
    slurm.site.signal("slurmctld", signal.SIGTERM)
    wait_for("the controller's end", lambda: not slurm.site.alive("slurmctld"))
    away = time.monotonic()
    try:
        meanwhile = slurm.detach(*TINY, "--retry", "5", "--", "echo", "afterwards")
        found = slurm.wait(runs)
        assert (found["job"]["state"], len(found["attempts"])) == ("done", 1), found
        assert (slurm.work / "away/made").read_text() == "run\n"
        wait_for("Slurm's silence", lambda: "slurm controller" in slurm.why(), 60)
        assert slurm.job(meanwhile)["job"]["state"] in ("pending", "prolog", "queued")
        wait_for("a minute", lambda: time.monotonic() > away + 60, 70)
    finally:
        slurm.site.start("slurmctld")
    found = slurm.wait(meanwhile, 150)
    assert (found["job"]["state"], slurm.ghv("logs", meanwhile).out) == ("done", b"afterwards\n"), found
    assert [attempt["hypervisor"] != "" for attempt in found["attempts"]].count(True) == 1


def test_empty_listings_end_nothing_that_runs_and_run_nothing_twice(slurm: SlurmLab) -> None:
    asked = slurm.commands / "asked"
    empty = f"echo asked >>{_inside(slurm, 'asked')}"
    runs = slurm.detach(*TINY, "--", "sh", "-c", "echo on; sleep 12; echo and on")
    slurm.wait_started(runs)
    with slurm.busy_site():
        waits = slurm.detach(*TINY, "--retry", "10", "--", "echo", "once")
        slurm.wait_state(waits, "queued")
        full = f'/usr/bin/squeue "$@" && : >{_inside(slurm, "again")}'
        once = f"if [ -e {_inside(slurm, 'asked')} ]; then {full}; else {empty}; fi"
        with slurm.command("squeue", once):  # absent once is not gone
            wait_for("the empty listing", asked.exists)
            again = slurm.site.home / "commands/again"
            wait_for("the next ones", again.exists)
            assert len(slurm.job(waits)["attempts"]) == 1
        asked.unlink()
        again.unlink()
        with slurm.command("squeue", empty):
            wait_for("a revocation", lambda: len(slurm.job(waits)["attempts"]) > 1)
        assert slurm.job(runs)["job"]["state"] == "running"
    found = slurm.wait(waits)
    assert (found["job"]["state"], slurm.ghv("logs", waits).out) == ("done", b"once\n"), found
    found = slurm.wait(runs)
    assert (found["job"]["state"], len(found["attempts"])) == ("done", 1), found
    assert slurm.ghv("logs", runs).out == b"on\nand on\n"
    asked.unlink()


def test_a_run_that_slurm_starts_again_yields_to_the_one_that_was(slurm: SlurmLab) -> None:
    """Nobody of us is there to prevent it: the administrator requeues one run, and another whose pilot was killed."""
    words = ("--retry", "0", "--out", "result", "--to", "requeued")
    stopped = slurm.detach(*TINY, *words, "--", "sh", "-c", PATIENT)
    program = ("sh", "-c", "echo run >> made; sleep 8")
    killed = slurm.detach(*TINY, "--out", "made", "--to", "rerun", "--", *program)
    slurm.wait_started(stopped)
    slurm.wait_phase(killed, "execute")
    numbers = [slurm.batch_id(job) for job in (stopped, killed)]
    entries = [slurm.entry(job) for job in (stopped, killed)]
    pilot = slurm.pilot(killed)
    for number in numbers:
        slurm.site.admin("scontrol", "update", f"JobId={number}", "Requeue=1")
    slurm.stop()
    os.kill(pilot, signal.SIGKILL)
    for entry, number in zip(entries, numbers, strict=True):
        assert entry is not None
        if entry is entries[1]:
            wait_for("the end of its batch job", lambda: "JobState=FAILED" in slurm.show(number))  # noqa: B023
        slurm.site.admin("scontrol", "requeue", number)
        slurm.start_again(number)
        log = entry / wire.PILOT_LOG
        wait_for("the second run's yield", lambda: "yield: pilot" in log.read_text())  # noqa: B023
    assert not slurm.guests(stopped) + slurm.guests(killed)
    found = slurm.wait(stopped)
    assert (found["job"]["state"], attempts(found)) == ("failed", [("cleaned", "evicted")]), found
    assert (slurm.work / "requeued/result").read_text() == "saved\n"
    found = slurm.wait(killed)
    assert found["job"]["state"] == "done"
    assert [reason for _, reason in attempts(found)] == ["pilot", "exited"], found
    assert (slurm.work / "rerun/made").read_text() == "run\n"


def test_the_service_dies_at_every_step_of_a_job_at_slurm(slurm: SlurmLab) -> None:
    steps = (
        "after:prolog", "before-commit:planned-submitting", "after:submit", "before:collect", "after:collect",
        "after-commit:ended-collected", "before:clean", "after:clean",
    )  # fmt: skip
    slurm.stop()
    slurm.die_at(*steps)
    program = ("sh", "-c", "echo run | tee -a made")
    job = slurm.detach(*TINY, "--retry", "5", "--out", "made", "--to", "died", "--", *program)
    found = slurm.wait(job, 200)
    assert (found["job"]["state"], found["job"]["exit_code"]) == ("done", 0), found
    assert (slurm.work / "died/made").read_text() == "run\n"
    assert slurm.ghv("logs", job).out == b"run\n"
    assert not slurm.deaths_to_come()


def _inside(slurm: SlurmLab, name: str) -> str:
    """A file beside the commands, as the site names it."""
    return f"/home/{slurm.site.login.user}/commands/{name}"
