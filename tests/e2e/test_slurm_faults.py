"""What goes wrong between us and a real Slurm: nothing runs twice, nothing is lost, and it is told."""

from __future__ import annotations

import os
import signal

import pytest

from gridhypervisor.model import wire
from tests.e2e.cluster import FIRST, PATIENT
from tests.e2e.installation import wait_for
from tests.e2e.slurmsite import RERUN, TINY, SlurmLab, reasons
from testsites.site import UID

pytest_plugins = ("tests.e2e.slurmfixtures",)
pytestmark = pytest.mark.timeout(900)


def test_a_submission_that_surfaces_after_it_was_given_up_runs_nothing(slurm: SlurmLab) -> None:
    """The connection is cut while the request is on its way; it arrives when the next attempt runs already."""
    gate = slurm.commands / "gate"
    os.mkfifo(gate)
    os.chown(gate, UID, UID)
    # What waits at the gate is of no kin to the SSH session and has a session of its own before "reached" tells us: the
    # cut does not reach it, nor does the relay, whose last act is to kill the sessions of its commands.
    door, script, waits, said, reached = (
        f"{slurm.commands_there}/{name}" for name in ("gate", "script", "waits", "said", "reached")
    )
    late = f': >{waits}; read word <{door}; exec /usr/bin/sbatch "$@" <{script} >{said} 2>&1'
    with slurm.command(
        "sbatch",
        f"{FIRST.format(reached=reached, real='/usr/bin/sbatch')}"
        f"cat >{script}\n"
        f"setsid --fork sh -c '{late}' sbatch \"$@\" </dev/null >/dev/null 2>&1\n"
        f"until [ -e {waits} ]; do sleep 0.05; done\n"
        f": >{reached}\n"
        "exec sleep 600",
    ):
        job = slurm.detach(*TINY, "--out", "result", "--to", "late", "--", "sh", "-c", PATIENT)
        wait_for("the submission", (slurm.commands / "reached").exists)
        first = slurm.entry(job)
        assert first is not None
        assert slurm.site.cut_ssh()
    wait_for("the second attempt", lambda: len(slurm.job(job)["attempts"]) == 2)
    slurm.wait_word(job)
    gate.write_text("go\n")  # as soon as somebody waits there
    wait_for("the late submission", lambda: first.name in slurm.batch_jobs())
    over = ("COMPLETED", "CANCELLED", "FAILED")
    wait_for("the end of the late job", lambda: slurm.batch_jobs()[first.name][1] in over)
    assert len(slurm.guests(job)) == 1
    slurm.ghv("cancel", job)
    found = slurm.wait(job)
    assert found["job"]["state"] == "cancelled"
    assert reasons(found) == ["lost", "cancelled"], found
    assert slurm.ghv("logs", job).out == b"started\nstopped\n"
    assert (slurm.work / "late/result").read_text() == "saved\n"


def test_empty_listings_end_nothing_that_runs_and_run_nothing_twice(slurm: SlurmLab) -> None:
    asked = slurm.commands / "asked"
    empty = f"echo asked >>{slurm.commands_there}/asked"
    runs = slurm.detach(*TINY, "--", "sh", "-c", PATIENT)
    slurm.wait_word(runs)
    with slurm.busy_site():
        waits = slurm.detach(*TINY, "--retry", "10", "--", "echo", "once")
        slurm.wait_state(waits, "queued")
        full = f'/usr/bin/squeue "$@" && : >{slurm.commands_there}/again'
        once = f"if [ -e {slurm.commands_there}/asked ]; then {full}; else {empty}; fi"
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
    slurm.ghv("cancel", runs)
    found = slurm.wait(runs)
    assert (found["job"]["state"], len(found["attempts"])) == ("cancelled", 1), found
    assert slurm.ghv("logs", runs).out == b"started\nstopped\n"


def test_a_run_that_slurm_starts_again_yields_to_the_one_that_was(slurm: SlurmLab) -> None:
    """Nobody of us is there to prevent it: the administrator requeues one run, and another whose pilot was killed."""
    words = ("--retry", "0", "--out", "result", "--to", "requeued")
    stopped = slurm.detach(*TINY, *words, "--", "sh", "-c", PATIENT)
    seconds = slurm.work / "seconds"
    seconds.write_text("1000\n")
    killed = slurm.detach(*TINY, "--in", "seconds", "--out", "made", "--to", "rerun", "--", "sh", "-c", RERUN)
    for job in (stopped, killed):
        slurm.wait_word(job)
    seconds.write_text("0\n")
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
            wait_for("the watchdog's word", (entry / wire.EXIT).exists)  # there is no guest any more then
        slurm.site.admin("scontrol", "requeue", number)
        slurm.start_again(number)
        log = entry / wire.PILOT_LOG
        wait_for("the second run's yield", lambda: "yield: pilot" in log.read_text())  # noqa: B023
    assert not slurm.guests(stopped) + slurm.guests(killed)
    found = slurm.wait(stopped)
    assert (found["job"]["state"], reasons(found)) == ("failed", ["evicted"]), found
    assert (slurm.work / "requeued/result").read_text() == "saved\n"
    found = slurm.wait(killed)
    assert found["job"]["state"] == "done"
    assert reasons(found) == ["pilot", "exited"], found
    assert (slurm.work / "rerun/made").read_text() == "run\n"
