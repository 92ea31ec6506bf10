"""What the drivers of all kinds of batch systems have in common: how fast, and which refusals are only for now."""

from __future__ import annotations

import pytest

from gridhypervisor.model.batch import Rates, Submission
from gridhypervisor.model.errors import LinkError
from gridhypervisor.model.records import Site, SiteKind
from gridhypervisor.model.wire import CommandResult
from gridhypervisor.sites import driver_for

KINDS = [kind for kind in SiteKind if kind is not SiteKind.FORK]
JOB = Submission("a1b-j1-1", "/w/spool/x", "/w/start", "", 1, 1 << 29, 600)


def site(kind: SiteKind, **options: str) -> Site:
    return Site("cluster", "o", "p", kind, options=options)


@pytest.mark.parametrize("kind", KINDS)
def test_a_user_sets_how_fast_we_go_there_by_the_minute(kind: SiteKind) -> None:
    assert driver_for(site(kind), "/w", "d").rates == Rates()
    made = driver_for(site(kind, submit_rate="30", command_rate="0.5"), "/w", "d")
    assert made.rates == Rates(jobs=30, commands=0.5)
    for wrong in ("0", "-1", "fast", "inf", "nan", ""):
        with pytest.raises(LinkError, match=r"options\.submit_rate: .* by the minute"):
            driver_for(site(kind, submit_rate=wrong), "/w", "d")


@pytest.mark.parametrize(
    ("kind", "code", "words"),
    [
        (SiteKind.SLURM, 1, "sbatch: error: AssocMaxSubmitJobLimit\nsbatch: error: Batch job submission failed: Job "
         "violates accounting/QOS policy (job submit limit, user's size and/or time limits)"),
        (SiteKind.SLURM, 1, "sbatch: error: QOSMaxSubmitJobPerUserLimit\nsbatch: error: Batch job submission failed: "
         "Job violates accounting/QOS policy"),
        (SiteKind.SLURM, 1, "sbatch: error: Batch job submission failed: Resource temporarily unavailable"),
        (SiteKind.SLURM, 1, "sbatch: error: Slurm temporarily unable to accept job, sleeping and retrying"),
        (SiteKind.GRIDENGINE, 25, "Unable to run job: job rejected: only 2 jobs are allowed per user (current job "
         "count: 2)\nExiting."),
        (SiteKind.GRIDENGINE, 25, "Unable to run job: job rejected: only 1 jobs are allowed per cluster\nExiting."),
        (SiteKind.HTCONDOR, 1, "ERROR: Number of submitted jobs would exceed MAX_JOBS_SUBMITTED"),
        (SiteKind.HTCONDOR, 1, "ERROR: Number of submitted jobs would exceed MAX_JOBS_PER_OWNER"),
        (SiteKind.PBS, 190, "qsub: submit error (Maximum number of jobs already in queue)"),
    ],
)  # fmt: skip
def test_who_has_too_much_to_do_is_asked_again_and_surely_did_not_take_the_job(
    kind: SiteKind, code: int, words: str
) -> None:
    [answer] = driver_for(site(kind), "/w", "d").submitted([JOB], [CommandResult(code, "", words)]).values()
    assert answer.accepted is False and answer.busy
    assert words[-20:].split("\n")[0].strip() in answer.message and "`max-jobs`" in answer.message


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("code", "words"),
    [
        (None, ""),
        (1, "Socket timed out on send/recv operation"),
        (-9, ""),
        (127, "start it: No such file or directory"),
    ],
)
def test_no_answer_and_other_refusals_are_not_taken_for_that(kind: SiteKind, code: int | None, words: str) -> None:
    [answer] = driver_for(site(kind), "/w", "d").submitted([JOB], [CommandResult(code, "", words)]).values()
    assert not answer.busy
    assert answer.accepted is (False if code == 127 else None)
