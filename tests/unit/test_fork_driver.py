"""The fork site's dialect: what we say to the bundle's queue, and what its answers mean."""

from __future__ import annotations

import json
import os
from dataclasses import replace

import pytest

from gridhypervisor.model.batch import BatchState, Submission
from gridhypervisor.model.errors import LinkError
from gridhypervisor.model.records import Site, SiteKind
from gridhypervisor.model.wire import CommandResult
from gridhypervisor.sites.fork import ForkDriver

JOB = Submission("a1-j1-1", "/w/spool/a1-j1-1", "/w/bundle/d/start", "/s", 2, 512 << 20, 90)


def site(slots: int = 0, **options: str) -> Site:
    return Site("local", "o", "p", SiteKind.FORK, slots=slots, scratch="/s", options=options)


def listing(stdout: str, code: int | None = 0) -> tuple[dict[str, BatchState] | None, str]:
    found, problem = ForkDriver(site(), "/w", "d").listing([CommandResult(code, stdout, "trouble")], 1.0)
    return ({name: job.state for name, job in found.jobs.items()} if found else None), problem


def line(state: str, number: int = 1) -> str:
    return json.dumps({"id": str(number), "name": "a1-j1-1", "state": state, "reason": "", "code": None}) + "\n"


def test_a_submission_goes_to_the_bundles_own_queue_under_the_slot_limit() -> None:
    [command] = ForkDriver(site(slots=3), "/w", "d").submit([JOB], site(slots=3))
    assert command.argv[:3] == ("/bin/sh", "/w/bundle/d/start", "forkq")
    assert command.argv[-2:] == ("--slots", "3") and "--walltime" in command.argv
    assert "--entry /w/spool/a1-j1-1" in command.stdin and "/w/spool/a1-j1-1/batch.log" in command.stdin


def test_more_jobs_are_handed_over_than_there_are_slots_so_that_none_stays_idle() -> None:
    assert ForkDriver(site(slots=3), "/w", "d").max_jobs(site(slots=3)) > 3


def test_states_are_total_and_a_strange_one_is_unknown() -> None:
    states = {word: (listing(line(word))[0] or {})["a1-j1-1"] for word in ("PENDING", "RUNNING", "ENDED", "NEW")}
    assert list(states.values()) == [BatchState.PENDING, BatchState.RUNNING, BatchState.ENDED, BatchState.UNKNOWN]


def test_of_a_doubled_submission_the_one_that_lives_counts() -> None:
    assert listing(line("ENDED", 1) + line("RUNNING", 2))[0] == {"a1-j1-1": BatchState.RUNNING}


@pytest.mark.parametrize(("stdout", "code"), [("", 78), ("", None), (line("RUNNING"), 1), ("no json", 0), ("[]", 0)])
def test_a_listing_that_failed_is_no_listing_and_says_why(stdout: str, code: int | None) -> None:
    found, problem = listing(stdout, code)
    assert found is None and problem.startswith("forkq list")


def test_an_answer_is_yes_no_or_unclear() -> None:
    results = [CommandResult(0, "12\n"), CommandResult(None), CommandResult(-9), CommandResult(78, "", "damaged")]
    jobs = [replace(JOB, name=f"{JOB.name}{number}") for number in range(len(results))]
    answers = list(ForkDriver(site(), "/w", "d").submitted(jobs, results).values())
    assert [answer.accepted for answer in answers] == [True, None, None, False]
    assert answers[0].batch_id == "12" and "damaged" in answers[3].message


def test_a_job_whose_id_is_not_known_yet_is_not_cancelled_by_guessing() -> None:
    driver = ForkDriver(site(), "/w", "d")
    assert driver.cancel([("a1-j1-1", "")]) == []
    [command] = driver.cancel([("a1-j1-1", ""), ("a1-j2-1", "4"), ("a1-j3-1", "5")])
    assert command.argv[-3:] == ("cancel", "4", "5")


def test_options_of_another_kind_of_site_are_refused() -> None:
    with pytest.raises(LinkError, match=r"options\.partition"):
        ForkDriver(site(partition="batch"), "/w", "d")


def test_a_queue_that_cannot_be_started_is_a_problem_of_the_site() -> None:
    driver = ForkDriver(site(), "/w", "d")
    assert "scratch is full" in driver.limits([CommandResult(73, "", "start: scratch is full")]).problem
    assert not driver.limits([CommandResult(0, "")]).problem


def test_what_this_machine_has_is_a_limit() -> None:
    """Nothing else keeps a job away that no processor here could run."""
    limits = ForkDriver(site(), "/w", "d").limits([CommandResult(0, "")])
    assert limits.max_cpus == os.cpu_count() and limits.max_memory is not None and limits.max_memory > 64 << 20
