"""What only a real HTCondor can do to us: jobs that it would run again, holds, leases, a queue that is away.

Each fault is the real one, and each ends with the site whole again.
"""

from __future__ import annotations

import signal
from dataclasses import replace
from pathlib import Path

import pytest

from gridhypervisor.model.batch import BatchState, Submission
from gridhypervisor.sites import Bundle
from tests.contract.accounts import OURS, WAITS, Account, Connected, account_at, until
from testsites import HTCondorSite

LEASE = 30
"""Seconds after which a node that does not answer is given up, where a test waits for that, and sees before that it is
waited for."""


@pytest.fixture
def account(htcondor_site: HTCondorSite, bundle: Bundle, tmp_path: Path) -> Account:
    return account_at(htcondor_site, bundle, tmp_path / "log" / "relay")


def value(pool: HTCondorSite, number: str, key: str) -> str:
    """What the queue knows of a job."""
    return pool.admin("condor_q", "-allusers", number, "-af", key).strip()


async def runs(at: Connected, walltime: int = 600) -> tuple[str, str]:
    """Name and number of a job whose pilot has begun."""
    name, answer = await at.submit(WAITS, walltime=walltime)
    assert answer.accepted, answer.message
    await at.begun(name)
    return name, answer.batch_id


async def never_again(at: Connected, pool: HTCondorSite, name: str, number: str) -> None:
    """The queue takes the job off by itself, and it has not begun a second time."""
    began = (at.entry(name) / "began").read_text()
    await until("the queue to take it off", lambda: value(pool, number, "JobStatus") == "3")
    assert (at.entry(name) / "began").read_text() == began
    assert value(pool, number, "NumShadowStarts") == "1"


def test_a_workdir_of_any_name_is_handed_over_unchanged(
    htcondor_site: HTCondorSite, bundle: Bundle, tmp_path: Path
) -> None:
    folder = """a 'b' "c" $(d) $$(e) $ENV(HOME) ${f} %g # \\"""
    account = account_at(htcondor_site, bundle, tmp_path / "log" / "relay")
    account.site = replace(account.site, workdir=f"/home/scientist/{folder}")
    account.folder = htcondor_site.home / folder

    async def story(at: Connected) -> None:
        name = await at.accepted('echo "$5"')
        await at.until(name, BatchState.ENDED)
        await at.said(name, f"{at.workdir}/spool/{name}\n")

    account.tell(story)


def test_a_job_that_no_machine_can_run_waits_with_the_reason_and_one_on_hold_is_held(
    account: Account, htcondor_site: HTCondorSite
) -> None:
    async def story(at: Connected) -> None:
        name, answer = await at.submit(WAITS, cpus=64)
        await at.until(name, BatchState.PENDING)
        htcondor_site.admin("condor_hold", answer.batch_id)
        held = await at.until(name, BatchState.HELD)
        assert "condor_release" in held.reason
        htcondor_site.admin("condor_qedit", answer.batch_id, "RequestCpus", "1")
        htcondor_site.admin("condor_release", answer.batch_id)
        await at.begun(name)  # one removed before that never ends: no node tells how
        await at.cancel(name)
        await at.until(name, BatchState.ENDED)

    account.tell(story)


def test_at_its_walltime_a_job_gets_term_and_has_ended_and_leaves_the_queue(
    account: Account, htcondor_site: HTCondorSite
) -> None:
    async def story(at: Connected) -> None:
        name, number = await runs(at, walltime=12)  # begun, with its trap, before the limit
        job = await at.until(name, BatchState.ENDED)
        assert "allowed job duration" in job.reason
        assert ((at.entry(name) / "seen").read_text(), job.code) == ("TERM\n", 5)
        await never_again(at, htcondor_site, name, number)
        assert (await at.until(name, BatchState.ENDED)).code == 5

    account.tell(story)


@pytest.mark.parametrize("command", ["condor_hold", "condor_vacate_job", "condor_rm"])
def test_a_running_job_that_an_administrator_takes_off_gets_term_and_never_begins_again(
    account: Account, htcondor_site: HTCondorSite, command: str
) -> None:
    async def story(at: Connected) -> None:
        name, number = await runs(at)
        htcondor_site.admin(command, number)
        job = await at.until(name, BatchState.ENDED)
        assert ((at.entry(name) / "seen").read_text(), job.code, job.restarts) == ("TERM\n", 5, 0)
        htcondor_site.admin("condor_release", number, check=False)
        await never_again(at, htcondor_site, name, number)

    account.tell(story)


def test_a_node_that_fell_silent_is_waited_for_and_then_lost_which_is_not_ended_for_its_job_runs_on(
    htcondor_site: HTCondorSite, bundle: Bundle, tmp_path: Path
) -> None:
    lease = f"job_lease_duration = {LEASE}"
    account = account_at(htcondor_site, bundle, tmp_path / "log" / "relay", native=lease)

    async def story(at: Connected) -> None:
        jobs = [await runs(at), await runs(at)]
        nodes = [(await at.until(name, BatchState.RUNNING)).node for name, _ in jobs]
        assert len(set(nodes)) == 2
        for node in nodes:
            htcondor_site.lose(node.partition("@")[0])
        try:
            [kept, removed] = [name for name, _ in jobs]
            await at.cancel(removed)
            assert (await at.until(removed, BatchState.ENDING, BatchState.ENDED)).state is BatchState.ENDING
            await at.until(kept, BatchState.RUNNING, reason="does not answer")
            for name, number in jobs:
                await at.until(name, BatchState.NODE_LOST, seconds=LEASE + 90)
                await never_again(at, htcondor_site, name, number)
                assert (await at.until(name, BatchState.NODE_LOST, BatchState.ENDED)).state is BatchState.NODE_LOST
                await at.lives_on(name)
        finally:
            for node in htcondor_site.nodes:
                htcondor_site.start(node)
            for name, _ in jobs:
                htcondor_site.end_strays(str(at.entry(name).relative_to(htcondor_site.root)))
        htcondor_site.wait_idle()

    account.tell(story)


def test_a_queue_that_does_not_answer_makes_no_empty_listing_and_the_submission_is_unclear(
    account: Account, htcondor_site: HTCondorSite
) -> None:
    async def story(at: Connected) -> None:
        running, _ = await runs(at)
        htcondor_site.signal("schedd", signal.SIGSTOP)
        try:
            # Left alone, condor_q waits for 20 s and condor_submit for ever.
            late = Submission(at.new_name(), at.workdir, f"{at.workdir}/none", "", 1, 64 << 20, 600)
            asked = (*at.driver.submit([late], account.site), *at.driver.query(OURS))
            submit, query = await at.link.commands([replace(each, timeout=3.0) for each in asked])
            assert at.driver.submitted([late], [submit])[late.name].accepted is None, submit
            listing, problem = at.driver.listing([query], 0.0)
            assert listing is None and problem
        finally:
            htcondor_site.signal("schedd", signal.SIGCONT)
        assert (await at.until(running, BatchState.RUNNING, BatchState.ENDED)).state is BatchState.RUNNING
        listing = await at.lists()
        if late.name in listing.jobs:
            await at.until(late.name, BatchState.ENDED)
        await at.cancel(running)
        await at.until(running, BatchState.ENDED)

    account.tell(story)
