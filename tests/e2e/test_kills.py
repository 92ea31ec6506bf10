"""The service is killed by SIGKILL at every step of `STEPS`; each job ends exactly once all the same, with its results.

Each scenario below takes a job along one way, and lists the commits and actions before and after which the service dies
on it, each once. `ghv` starts the service again by itself: nothing in these tests does, but where its death takes long.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable
from typing import NamedTuple

import pytest

from gridhypervisor.execution.steps import STEPS
from gridhypervisor.model import wire
from tests.e2e.cluster import RERUN, goes_on_through_batch_jobs
from tests.e2e.installation import Installation, wait_for
from tests.e2e.killing import (
    FENCES,
    GANG,
    SUSPENSION,
    around,
    array_of_two,
    fenced_twice,
    gang_of_two,
    sent,
    suspended_and_resumed,
)
from tests.e2e.webserver import WebServer

TINY = ("--image", "tiny", "--memory", "128M", "--scratch", "64M", "--retry", "10")
PATIENT = "trap 'echo stopped; echo saved > result; exit 3' TERM; echo started; while :; do sleep 0.1; done"


def from_start_to_end(installation: Installation) -> None:
    """A job that `ghv run` follows through all its deaths. Submissions that were lost are revoked and made anew."""
    (installation.work / "word").write_text("middle\n")
    program = "echo first; cat word; echo second >&2; cp word result; exit 7"
    words = ("run", *TINY, "--in", "word", "--out", "result", "--", "sh", "-c", program)
    with installation.busy_site():
        ghv = installation.start(*words)
        last = "after-commit:submitting-queued"
        wait_for("the deaths until it is queued", lambda: last not in installation.deaths_to_come(), 600)
    out, err = ghv.communicate(timeout=600)
    assert (ghv.returncode, out) == (7, b"first\nmiddle\n"), err
    assert b"second\n" in err
    assert (installation.work / "result").read_text() == "middle\n"
    assert installation.job("j1")["job"]["state"] == "done"


def submitted_unknown_to_the_controller(installation: Installation) -> None:
    """The submission went out and the controller died of it; the pilot began in the meantime."""
    program = "sleep 20; echo once | tee result"  # from the pilot's start until the pilot is stopped it must not end
    job = installation.detach(*TINY, "--out", "result", "--", "sh", "-c", program)
    wait_for("the death after the submission", lambda: "after:submit" not in installation.deaths_to_come())
    pilot = installation.pilot(job)
    os.kill(pilot, signal.SIGSTOP)  # it must not end before the listing tells the batch job's id
    wait_for("the batch job's id", lambda: installation.job(job) and not installation.deaths_to_come())
    os.kill(pilot, signal.SIGCONT)
    found = installation.wait(job)
    assert (found["job"]["state"], found["job"]["exit_code"], len(found["attempts"])) == ("done", 0, 1), found
    assert installation.ghv("logs", job).out == b"once\n"
    assert (installation.work / "result").read_text() == "once\n"


def cancelled_in_the_prolog(installation: Installation) -> None:
    """The input comes from a server that never gives it."""
    with WebServer() as web:
        web.held.add("/never")
        job = installation.detach(*TINY, "--in", f"{web.url}/never", "--", "true")
        installation.wait_state(job, "prolog")
        installation.ghv("cancel", job)
        found = installation.wait(job)
        assert (found["job"]["state"], found["job"]["reason"]) == ("cancelled", "cancelled"), found


def cancelled_in_the_queue(installation: Installation) -> None:
    with installation.busy_site():
        job = installation.detach(*TINY, "--", "echo", "never")
        installation.wait_state(job, "queued")
        installation.ghv("cancel", job)
        found = installation.wait(job)
        # The job has ended; its batch job waits in the queue until it is cancelled, by whichever service comes to it.
        wait_for("its batch job's end", lambda: installation.job(job) and not installation.deaths_to_come())
    assert (found["job"]["state"], found["job"]["reason"]) == ("cancelled", "cancelled"), found
    assert installation.ghv("logs", job).out == b""


def cancelled_while_it_runs(installation: Installation) -> None:
    job = installation.detach(*TINY, "--out", "result", "--", "sh", "-c", PATIENT)
    installation.wait_word(job)
    installation.ghv("cancel", job)
    found = installation.wait(job)
    assert (found["job"]["state"], found["job"]["exit_code"]) == ("cancelled", 3), found
    assert installation.ghv("logs", job).out == b"started\nstopped\n"
    assert (installation.work / "result").read_text() == "saved\n"


def cancelled_as_the_pilot_begins(installation: Installation) -> None:
    """The relay is stopped, so that the revocation comes after the pilot has taken the ownership."""
    with contextlib.ExitStack() as silence:
        with installation.busy_site():
            job = installation.detach(*TINY, "--out", "result", "--", "sh", "-c", PATIENT)
            installation.wait_state(job, "queued")
            silence.enter_context(installation.silent_site())
            installation.ghv("cancel", job)
            wait_for("the intent to revoke", lambda: "queued>revoking" in installation.story(job))
        installation.wait_word(job)
    found = installation.wait(job)
    assert (found["job"]["state"], found["job"]["exit_code"]) == ("cancelled", 3), found
    assert (installation.work / "result").read_text() == "saved\n"


def lost_without_a_word(installation: Installation) -> None:
    """Pilot and watchdog are killed, so that nobody leaves a sentinel; the next attempt does the work."""
    word = installation.work / "word"
    word.write_text("wait\n")
    program = "grep -q go word || sleep 1000; echo done > result"
    job = installation.detach(*TINY, "--in", "word", "--out", "result", "--", "sh", "-c", program)
    installation.wait_phase(job, "execute")
    word.write_text("go\n")  # for the next attempt: each takes its inputs anew
    watchdog, pilot = installation.watchdog(job), installation.pilot(job)
    installation.kill_service()  # first: it dies by itself as soon as it sees the loss; and a new one lists at once
    for number in (signal.SIGSTOP, signal.SIGKILL):
        for process in (watchdog, pilot):
            os.kill(process, number)
    found = installation.wait(job)
    assert (found["job"]["state"], len(found["attempts"])) == ("done", 2), found
    assert found["attempts"][0]["reason"] == "lost", found["attempts"][0]["message"]
    assert (installation.work / "result").read_text() == "done\n"


def ended_without_its_results(installation: Installation) -> None:
    """Once the user has mended what is in their way, they come home; then the job is deleted, and all of it."""
    in_the_way = installation.work / "made"
    in_the_way.write_text("a file where a folder must be\n")
    job = installation.detach(*TINY, "--out", "made/*", "--", "sh", "-c", "mkdir made; echo saved > made/result")
    # Not the job's state, which takes longer to ask for: after a few tries it would fail by itself.
    wait_for("the end of the run", lambda: (entry := installation.entry(job)) and (entry / wire.EXIT).exists())
    installation.ghv("cancel", job)
    found = installation.wait(job)
    assert (found["job"]["state"], str(in_the_way) in found["job"]["message"]) == ("cancelled", True), found
    installation.ghv("recover", job)  # in vain, but not forgotten
    in_the_way.unlink()
    installation.ghv("recover", job)
    wait_for("the clean site", lambda: installation.job(job)["attempts"][0]["state"] == "cleaned")
    assert (in_the_way / "result").read_text() == "saved\n"
    installation.ghv("delete", job)
    wait_for("the removal", lambda: "no such job" in installation.ghv("show", job, check=False).err)
    assert not (installation.data / "jobs" / job).exists()


def silent_and_replaced(installation: Installation) -> None:
    fenced_twice(installation, *TINY)


def moved_while_it_runs(installation: Installation) -> None:
    """To a site that takes nothing before. There it has little to do."""
    lab, seconds = installation, installation.work / "seconds"
    where = ("--workdir", str(lab.folder / "second"), "--scratch", str(lab.scratch), "--slots", "1")
    lab.ghv("site", "add", "second", "--kind", "fork", *where)
    lab.ghv("site", "drain", "second")
    seconds.write_text("1000\n")
    words = ("--in", "seconds", "--out", "made", "--to", "moved", "--", "sh", "-c", RERUN)
    job = lab.detach(*TINY, *words)
    lab.wait_word(job)
    seconds.write_text("0\n")
    lab.ghv("site", "drain", "second", "--undo")
    show = ("site", "show", "second", "-o", "json")
    wait_for("the other site", lambda: lab.ghv(*show).json["health"] == "up", 300)
    sent(lab, job)
    found = lab.wait(job, 600)
    been = [(attempt["site"], attempt["reason"]) for attempt in found["attempts"]]
    assert (found["job"]["state"], been) == ("done", [("local", "moved"), ("second", "exited")]), found
    assert (lab.work / "moved/made").read_text() == "run\n"


def an_array(installation: Installation) -> None:
    array_of_two(installation, *TINY)


def a_gang(installation: Installation) -> None:
    gang_of_two(installation, *TINY)


def suspended_while_it_runs(installation: Installation) -> None:
    suspended_and_resumed(installation, *TINY)


def goes_on_in_another_batch_job(installation: Installation) -> None:
    goes_on_through_batch_jobs(installation, *TINY)


class Scenario(NamedTuple):
    play: Callable[[Installation], None]
    commits: tuple[str, ...] = ()
    actions: tuple[str, ...] = ()
    also: tuple[str, ...] = ()

    @property
    def steps(self) -> tuple[str, ...]:
        """Before and after each commit and each action."""
        return (*around(self.commits, self.actions), *self.also)


SCENARIOS = (
    Scenario(
        from_start_to_end,
        ("birth", "none-planned", "planned-submitting", "submitting-queued", "queued-running", "running-ended",
         "ended-collected", "collected-cleaned", "submitting-revoking", "revoking-revoked", "revoked-cleaned"),
        ("prolog", "submit", "revoke", "collect", "clean"),
    ),
    Scenario(submitted_unknown_to_the_controller, ("submitting-running", "batch-id"), also=("after:submit",)),
    Scenario(cancelled_in_the_prolog, ("planned-revoked",)),
    Scenario(cancelled_in_the_queue, ("wish-cancel", "queued-revoking"), ("batch-cancel",)),
    Scenario(cancelled_while_it_runs, (), ("request-cancel",)),
    Scenario(cancelled_as_the_pilot_begins, ("revoking-running",)),
    Scenario(lost_without_a_word, (), ("look",)),
    Scenario(ended_without_its_results, ("end", "recover", "wish-delete", "removal")),
    Scenario(silent_and_replaced, FENCES),
    Scenario(moved_while_it_runs, ("departure",)),
    Scenario(an_array, ("group",)),
    Scenario(a_gang, GANG, ("begin",)),
    Scenario(suspended_while_it_runs, *SUSPENSION),
    Scenario(goes_on_in_another_batch_job, ("go",)),
)  # fmt: skip


def test_every_step_has_its_kill() -> None:
    assert set(STEPS) == {step for scenario in SCENARIOS for step in scenario.steps}


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda s: s.play.__name__)
def test_killed_at_each_step(installation: Installation, scenario: Scenario) -> None:
    installation.die_at(*scenario.steps)
    scenario.play(installation)
    # Some may come after the job's end; whoever asks for the events has the service started again each time.
    wait_for("the last of its deaths", lambda: installation.events() and not installation.deaths_to_come())
    installation.assert_clean()
