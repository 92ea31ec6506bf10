"""What only a real HTCondor can do to us: jobs that it would run again, holds, leases, a queue that is away.

Each fault is the real one, and each ends with the site whole again.
"""

from __future__ import annotations

import asyncio
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from gridhypervisor.model.batch import BatchState, Submission
from gridhypervisor.model.errors import LinkLost
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


def test_neither_the_front_end_nor_a_node_has_python_or_qemu(account: Account, htcondor_site: HTCondorSite) -> None:
    look = "for p in python3 python qemu-system-x86_64 qemu-img perl gcc; do command -v $p; done; echo looked"
    assert htcondor_site.admin("sh", "-c", look, as_user=True) == "looked\n"

    async def scenario() -> None:
        async with account.connect() as at:
            name = await at.accepted(f"PATH=/usr/bin:/usr/sbin; ({look}) >$5/found")
            await at.until(name, BatchState.ENDED)
            assert (at.entry(name) / "found").read_text() == "looked\n"

    asyncio.run(scenario())


def test_the_jobs_of_others_and_of_the_users_own_are_not_ours(account: Account, htcondor_site: HTCondorSite) -> None:
    def described(name: str) -> str:
        return f'executable = /bin/true\ninitialdir = /tmp\nhold = true\n+GhvName = "{name}"\nqueue\n'

    submit = ("condor_submit", "-terse", "-")
    told = [htcondor_site.admin(*submit, as_user=True, stdin=described(name)) for name in ("my own", "b00000000-j1-1")]
    told.append(htcondor_site.as_colleague(*submit, stdin=described(f"{OURS}-j999-1")))
    ids = [words.split()[0] for words in told]

    async def scenario() -> None:
        async with account.connect() as at:
            name = await at.accepted("exit 0")
            await at.until(name, BatchState.ENDED)
            await at.cancel(f"{OURS}-j999-1")
            listing = await at.lists()
            assert not set(ids) & {job.id for job in listing.jobs.values()}
            assert all(known.startswith(f"{OURS}-") for known in listing.jobs)

    asyncio.run(scenario())
    assert value(htcondor_site, ids[2], "JobStatus") == "5"
    htcondor_site.admin("condor_rm", *ids)


def test_a_workdir_of_any_name_is_handed_over_unchanged(
    htcondor_site: HTCondorSite, bundle: Bundle, tmp_path: Path
) -> None:
    folder = """a 'b' "c" $(d) $$(e) $ENV(HOME) ${f} %g # \\"""
    account = account_at(htcondor_site, bundle, tmp_path / "log" / "relay")
    account.site = replace(account.site, workdir=f"/home/scientist/{folder}")
    account.folder = htcondor_site.home / folder

    async def scenario() -> None:
        async with account.connect() as at:
            name = await at.accepted('echo "$5"')
            await at.until(name, BatchState.ENDED)
            await at.said(name, f"{at.workdir}/spool/{name}\n")

    asyncio.run(scenario())


def test_what_the_site_refuses_is_refused_with_the_mend(
    htcondor_site: HTCondorSite, bundle: Bundle, tmp_path: Path
) -> None:
    account = account_at(htcondor_site, bundle, tmp_path / "log", constraint="HasGlass ==")

    async def scenario() -> None:
        async with account.connect() as at:
            _, answer = await at.submit("exit 0")
            assert answer.accepted is False and "option `constraint`" in answer.message
            limits = at.driver.limits(await at.link.commands(at.driver.probe()))
            assert limits.max_cpus == 2

    asyncio.run(scenario())


def test_a_job_that_no_machine_can_run_waits_with_the_reason_and_one_on_hold_is_held(
    account: Account, htcondor_site: HTCondorSite
) -> None:
    async def scenario() -> None:
        async with account.connect() as at:
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

    asyncio.run(scenario())


def test_at_its_walltime_a_job_gets_term_and_has_ended_and_leaves_the_queue(
    account: Account, htcondor_site: HTCondorSite
) -> None:
    async def scenario() -> None:
        async with account.connect() as at:
            name, number = await runs(at, walltime=12)  # begun, with its trap, before the limit
            job = await at.until(name, BatchState.ENDED)
            assert "allowed job duration" in job.reason
            assert ((at.entry(name) / "seen").read_text(), job.code) == ("TERM\n", 5)
            await never_again(at, htcondor_site, name, number)
            assert (await at.until(name, BatchState.ENDED)).code == 5

    asyncio.run(scenario())


@pytest.mark.parametrize("command", ["condor_hold", "condor_vacate_job", "condor_rm"])
def test_a_running_job_that_an_administrator_takes_off_gets_term_and_never_begins_again(
    account: Account, htcondor_site: HTCondorSite, command: str
) -> None:
    async def scenario() -> None:
        async with account.connect() as at:
            name, number = await runs(at)
            htcondor_site.admin(command, number)
            job = await at.until(name, BatchState.ENDED)
            assert ((at.entry(name) / "seen").read_text(), job.code, job.restarts) == ("TERM\n", 5, 0)
            htcondor_site.admin("condor_release", number, check=False)
            await never_again(at, htcondor_site, name, number)

    asyncio.run(scenario())


def test_a_node_that_fell_silent_is_waited_for_and_then_lost_which_is_not_ended_for_its_job_runs_on(
    htcondor_site: HTCondorSite, bundle: Bundle, tmp_path: Path
) -> None:
    lease = f"job_lease_duration = {LEASE}"
    account = account_at(htcondor_site, bundle, tmp_path / "log" / "relay", native=lease)

    async def scenario() -> None:
        async with account.connect() as at:
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
                    await shows_life(at, name)
            finally:
                for node in htcondor_site.nodes:
                    htcondor_site.start(node)
                for name, _ in jobs:
                    htcondor_site.end_strays(str(at.entry(name).relative_to(htcondor_site.root)))
            htcondor_site.wait_idle()

    asyncio.run(scenario())


async def shows_life(at: Connected, name: str) -> None:
    alive = at.entry(name) / "alive"
    before = alive.stat().st_size
    await until("the lost job's next sign of life", lambda: alive.stat().st_size > before)


def test_a_queue_that_does_not_answer_makes_no_empty_listing_and_the_submission_is_unclear(
    account: Account, htcondor_site: HTCondorSite
) -> None:
    async def scenario() -> None:
        async with account.connect() as at:
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

    asyncio.run(scenario())


def test_a_dead_queue_makes_no_empty_listing_and_the_running_job_is_found_again(
    account: Account, htcondor_site: HTCondorSite
) -> None:
    async def scenario() -> None:
        async with account.connect() as at:
            running, number = await runs(at)
            htcondor_site.cut_queue()
            await until("the queue to be gone", lambda: not htcondor_site.alive("schedd"))
            try:
                listing, problem = await at.listing()
                assert listing is None and problem
                _, answer = await at.submit("exit 0", cpus=1)
                assert answer.accepted is None, answer
                [result] = await at.link.commands(at.driver.cancel([(running, number)]))
                assert result.code != 0
            finally:
                htcondor_site.start("schedd")
            job = await at.until(running, BatchState.RUNNING, BatchState.ENDED, BatchState.NODE_LOST)
            assert (job.state, job.restarts) == (BatchState.RUNNING, 0)
            await until("the node to be found again", lambda: value(htcondor_site, number, "NumShadowStarts") == "2")
            assert not (at.entry(running) / "seen").exists()
            await at.cancel(running)
            assert (await at.until(running, BatchState.ENDED)).code == 5

    asyncio.run(scenario())


def test_a_cut_in_the_middle_of_a_submission_leaves_it_unclear_and_the_listing_tells(
    account: Account, htcondor_site: HTCondorSite
) -> None:
    async def scenario() -> None:
        async with account.connect() as at:
            name = at.new_name()
            htcondor_site.signal("schedd", signal.SIGSTOP)  # so that condor_submit is surely still waiting
            try:
                submitting = asyncio.create_task(at.submit("exit 0", name=name, cpus=1))
                await until("condor_submit to wait", lambda: "condor_submit" in htcondor_site.processes())
                assert htcondor_site.cut_ssh()
                with pytest.raises(LinkLost):
                    await submitting
                with pytest.raises(LinkLost):
                    await at.link.lost()
            finally:
                htcondor_site.signal("schedd", signal.SIGCONT)
        async with account.connect() as at:
            listing = await at.lists()
            if name in listing.jobs:  # the queue had read the request before its sender was killed, or not
                await at.until(name, BatchState.ENDED)

    asyncio.run(scenario())
