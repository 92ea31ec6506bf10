"""The service is killed at every step of `STEPS` while its jobs are at a real Slurm, with as few jobs as that takes.

See `test_kills.py`: the same steps, and there a story for each. What a story must not do is to call `ghv` where the
service is to stay dead: that starts it again.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import NamedTuple

import pytest

from gridhypervisor.execution.steps import STEPS
from tests.e2e.cluster import goes_on_through_batch_jobs
from tests.e2e.installation import wait_for
from tests.e2e.killing import (
    FENCES,
    GANG,
    SUSPENSION,
    around,
    fenced_twice,
    gang_of_two,
    sent,
    suspended_and_resumed,
)
from tests.e2e.slurmsite import RERUN, TINY, SlurmLab
from tests.e2e.webserver import WebServer

pytest_plugins = ("tests.e2e.slurmfixtures",)

RETRIED = (*TINY, "--retry", "10")


FROM_START_TO_END = (
    *around(("birth", "none-planned", "planned-submitting", "submitting-queued", "queued-running", "running-ended",
             "ended-collected", "collected-cleaned", "submitting-revoking", "revoking-revoked", "revoked-cleaned"),
            ("prolog", "revoke", "collect", "clean")),
    "before:submit",
)  # fmt: skip


def from_start_to_end(slurm: SlurmLab) -> None:
    """`ghv run` follows the job through all deaths. Submissions that were lost are revoked and made anew."""
    slurm.die_at(*FROM_START_TO_END)
    (slurm.work / "word").write_text("middle\n")
    program = "echo first; cat word; echo second >&2; cp word result; exit 7"
    with slurm.busy_site():
        ghv = slurm.start("run", *RETRIED, "--in", "word", "--out", "result", "--", "sh", "-c", program)
        queued = "after-commit:submitting-queued"
        wait_for("the deaths until it is queued", lambda: queued not in slurm.deaths_to_come(), 600)
    out, err = ghv.communicate(timeout=600)
    assert (ghv.returncode, out) == (7, b"first\nmiddle\n"), err
    assert b"second\n" in err
    assert (slurm.work / "result").read_text() == "middle\n"


BEGUN_UNKNOWN_AND_LOST = ("after:submit", *around(("submitting-running", "batch-id"), ("look",)))


def begun_unknown_and_lost(slurm: SlurmLab) -> None:
    """The service dies of the submission; the pilot begins meanwhile. Then it and its watchdog die without a word."""
    slurm.die_at(*BEGUN_UNKNOWN_AND_LOST)
    seconds = slurm.work / "seconds"
    seconds.write_text("1000\n")
    job = slurm.detach(*RETRIED, "--in", "seconds", "--out", "made", "--to", "lost", "--", "sh", "-c", RERUN)
    slurm.wait_word(job)
    seconds.write_text("0\n")
    doomed = slurm.watchdog(job), slurm.pilot(job)
    for process in doomed:
        os.kill(process, signal.SIGSTOP)
    looks = set(around(actions=("look",)))
    wait_for("the batch job's id", lambda: slurm.job(job) and set(slurm.deaths_to_come()) == looks, 240)
    for process in doomed:
        os.kill(process, signal.SIGKILL)
    found = slurm.wait(job, 600)
    assert (found["job"]["state"], len(found["attempts"])) == ("done", 2), found
    assert found["attempts"][0]["reason"] == "lost", found["attempts"][0]["message"]
    assert (slurm.work / "lost/made").read_text() == "run\n"


CANCELLED = (
    *around(("wish-cancel", "planned-revoked"), ("batch-cancel",)),
    "before-commit:queued-revoking",
)
CANCELLED_AS_IT_BEGINS = "after-commit:queued-revoking"
RESULTS_KEPT_BACK = around(("revoking-running", "end"), ("request-cancel",))
DELETED = around(("recover", "wish-delete", "removal"))


def cancelled_in_prolog_and_queue_and_as_it_begins(slurm: SlurmLab) -> None:
    """The one in the prolog waits for an input that never comes. The results of the one that begins do not come home
    before the user mends what is in their way; then it is deleted."""
    in_the_way = slurm.work / "made"
    in_the_way.write_text("a file where a folder must be\n")
    patient = "trap 'mkdir made; echo saved > made/result; exit 3' TERM; echo started; while :; do sleep 0.1; done"
    with slurm.busy_site(), WebServer() as web:
        web.held.add("/never")
        prolog = slurm.detach(*TINY, "--in", f"{web.url}/never", "--", "true")
        queued = slurm.detach(*TINY, "--", "echo", "never")
        begins = slurm.detach(*TINY, "--out", "made/*", "--", "sh", "-c", patient)
        for job in (queued, begins):
            slurm.wait_state(job, "queued")
        slurm.die_at(*CANCELLED)
        for job in (prolog, queued):
            slurm.ghv("cancel", job)
            found = slurm.wait(job)
            assert (found["job"]["state"], found["job"]["reason"]) == ("cancelled", "cancelled"), found
        wait_for("the deaths at the batch job's end", lambda: slurm.job(queued) and not slurm.deaths_to_come())
        assert slurm.ghv("logs", queued).out == b""
        slurm.die_at(CANCELLED_AS_IT_BEGINS)
        slurm.site.signal("sshd", signal.SIGSTOP)  # whoever comes after must not revoke before the pilot has begun
        slurm.ghv("cancel", begins)
        wait_for("the death after the intent", lambda: not slurm.deaths_to_come())
        slurm.die_at(*RESULTS_KEPT_BACK)
    slurm.wait_word(begins)
    slurm.site.signal("sshd", signal.SIGCONT)
    found = slurm.wait(begins, 600)
    assert (found["job"]["state"], str(in_the_way) in found["job"]["message"]) == ("cancelled", True), found
    assert "revoking>running" in slurm.story(begins)
    assert not slurm.deaths_to_come()
    slurm.die_at(*DELETED)
    slurm.ghv("recover", begins)  # in vain, but not forgotten: a service that was just started may then be faster
    in_the_way.unlink()
    slurm.ghv("recover", begins)
    wait_for("the clean site", lambda: slurm.job(begins)["attempts"][0]["state"] == "cleaned")
    assert (in_the_way / "result").read_text() == "saved\n"
    slurm.ghv("delete", begins)
    wait_for("the removal", lambda: "no such job" in slurm.ghv("show", begins, check=False).err)


def silent_and_replaced(slurm: SlurmLab) -> None:
    slurm.die_at(*around(FENCES))
    fenced_twice(slurm, *RETRIED)


def sent_while_it_waits_and_a_gang(slurm: SlurmLab) -> None:
    slurm.die_at(*around(("departure",)))
    name = "slurm"
    slurm.ghv("site", "drain", name)
    job = slurm.detach(*RETRIED, "--", "true")
    sent(slurm, job, "--to", name)
    slurm.ghv("cancel", job)
    assert slurm.wait(job)["job"]["state"] == "cancelled" and slurm.job(job)["spec"]["site"] == name
    slurm.ghv("site", "drain", name, "--undo")
    slurm.die_at(*around(("group", *GANG), ("begin",)))
    gang_of_two(slurm, *RETRIED)


def suspended_while_it_runs(slurm: SlurmLab) -> None:
    slurm.die_at(*around(*SUSPENSION))
    suspended_and_resumed(slurm, *RETRIED)


def goes_on_in_another_batch_job(slurm: SlurmLab) -> None:
    slurm.die_at(*around(("go",)))
    goes_on_through_batch_jobs(slurm, *RETRIED)


class Story(NamedTuple):
    play: Callable[[SlurmLab], None]
    steps: tuple[str, ...]


STORIES = (
    Story(from_start_to_end, FROM_START_TO_END),
    Story(begun_unknown_and_lost, BEGUN_UNKNOWN_AND_LOST),
    Story(
        cancelled_in_prolog_and_queue_and_as_it_begins,
        (*CANCELLED, CANCELLED_AS_IT_BEGINS, *RESULTS_KEPT_BACK, *DELETED),
    ),
    Story(silent_and_replaced, around(FENCES)),
    Story(suspended_while_it_runs, around(*SUSPENSION)),
    Story(goes_on_in_another_batch_job, around(("go",))),
    Story(sent_while_it_waits_and_a_gang, around(("departure", "group", *GANG), ("begin",))),
)


def test_every_step_has_its_kill_at_slurm() -> None:
    assert set(STEPS) == {step for story in STORIES for step in story.steps}


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("story", STORIES, ids=lambda story: story.play.__name__)
def test_killed_at_each_step_at_slurm(slurm: SlurmLab, story: Story) -> None:
    story.play(slurm)
    # Some may come after the job's end; whoever asks for the events has the service started again each time.
    wait_for("the last of its deaths", lambda: slurm.events() and not slurm.deaths_to_come(), 240)
