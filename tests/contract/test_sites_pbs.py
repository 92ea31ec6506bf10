"""What PBS's commands can do to us: servers that do not answer, ends that no node confirmed, holds, refusals.

Behind them is a real Slurm (see `testsites.pbs`); each fault is a real one of that, and each ends with the site whole.
"""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import pytest

from gridhypervisor.model.batch import BatchState
from gridhypervisor.sites import Bundle
from tests.contract.accounts import OURS, WAITS, Account, account_at, until
from testsites import PbsSite


@pytest.fixture
def account(pbs_site: PbsSite, bundle: Bundle, tmp_path: Path) -> Account:
    return account_at(pbs_site, bundle, tmp_path / "log" / "relay")


def test_neither_the_front_end_nor_a_node_has_python_or_qemu(account: Account, pbs_site: PbsSite) -> None:
    look = "for p in python3 python qemu-system-x86_64 qemu-img gcc; do command -v $p; done; echo looked"
    assert pbs_site.admin("sh", "-c", look, as_user=True) == "looked\n"

    async def scenario() -> None:
        async with account.connect() as at:
            name = await at.accepted(f"({look}) >$5/found")
            await at.until(name, BatchState.ENDED)
            assert (at.entry(name) / "found").read_text() == "looked\n"

    asyncio.run(scenario())


def test_the_jobs_of_others_and_of_the_users_own_are_not_ours(account: Account, pbs_site: PbsSite) -> None:
    def foreign(name: str, *, as_user: bool) -> str:
        words = ("sbatch", "--parsable", "--hold", "--chdir=/tmp", f"--job-name={name}", "--wrap=true")
        return pbs_site.admin(*words, as_user=as_user).strip()

    ids = [foreign("a b<c&d", as_user=True), foreign(f"{OURS}-j999-1", as_user=False)]

    async def scenario() -> None:
        async with account.connect() as at:
            name = await at.accepted("exit 0")
            await at.until(name, BatchState.ENDED)
            listing = await at.lists()
            assert not set(ids) & {job.id for job in listing.jobs.values()}
            assert all(known.startswith(f"{OURS}-") for known in listing.jobs)

    asyncio.run(scenario())
    pbs_site.admin("qdel", *ids)


def test_what_the_site_refuses_is_refused_with_the_mend(pbs_site: PbsSite, bundle: Bundle, tmp_path: Path) -> None:
    account = account_at(pbs_site, bundle, tmp_path / "log", queue="nonesuch")

    async def scenario() -> None:
        async with account.connect() as at:
            _, answer = await at.submit("exit 0")
            assert answer.accepted is False and "option `queue`" in answer.message
            assert "batch, short" in at.driver.limits(await at.link.commands(at.driver.probe())).problem

    asyncio.run(scenario())


def test_what_the_user_configured_for_a_site_is_what_the_job_asks_for(
    pbs_site: PbsSite, bundle: Bundle, tmp_path: Path
) -> None:
    options = {"queue": "short", "constraint": "pbs-a-n2", "native": "-p 7"}
    account = account_at(pbs_site, bundle, tmp_path / "log", **options)

    async def scenario() -> None:
        async with account.connect() as at:
            limits = at.driver.limits(await at.link.commands(at.driver.probe()))
            assert (limits.max_walltime, limits.max_cpus) == (300, 2) and limits.max_memory
            name, answer = await at.submit(WAITS, walltime=241, memory=128 << 20)
            shown = pbs_site.admin("scontrol", "-o", "show", "job", answer.batch_id)
            for words in ("Partition=short", "NumCPUs=2", "MinMemoryNode=512M", "TimeLimit=00:05:00", "Requeue=0"):
                assert f" {words} " in shown
            assert (await at.until(name, BatchState.RUNNING)).node == "pbs-a-n2"
            await at.cancel(name)
            await at.until(name, BatchState.ENDED)

    asyncio.run(scenario())


def test_a_job_on_hold_says_so_and_runs_when_it_is_released(account: Account, pbs_site: PbsSite) -> None:
    async def scenario() -> None:
        async with account.connect() as at:
            full = [await at.accepted(WAITS) for _ in range(2)]
            for name in full:
                await at.begun(name)
            name, answer = await at.submit("exit 4")
            pbs_site.admin("qhold", "-h", "u", answer.batch_id)
            await at.cancel(*full)
            job = await at.until(name, BatchState.HELD)
            assert f"qrls {answer.batch_id}" in job.reason
            pbs_site.admin("qrls", answer.batch_id)
            assert (await at.until(name, BatchState.ENDED)).code == 4

    asyncio.run(scenario())


def test_a_dead_server_makes_no_empty_listing_and_no_refusal_and_the_running_job_is_found_again(
    account: Account, pbs_site: PbsSite
) -> None:
    async def scenario() -> None:
        async with account.connect() as at:
            running = await at.accepted(WAITS)
            await at.until(running, BatchState.RUNNING)
            await at.begun(running)
            pbs_site.signal("slurmctld", signal.SIGTERM)  # it saves its state; a crash may forget the last seconds
            await until("the server to be gone", lambda: not pbs_site.alive("slurmctld"))
            try:
                listing, problem = await at.listing()
                assert listing is None and "cannot connect" in problem
                _, answer = await at.submit("exit 0")
                assert answer.accepted is None and "Unable to contact" in answer.message
            finally:
                pbs_site.start("slurmctld")
            assert (await at.until(running, BatchState.RUNNING, BatchState.ENDED)).state is BatchState.RUNNING
            await at.cancel(running)
            await at.until(running, BatchState.ENDED)

    asyncio.run(scenario())


def test_an_end_that_no_node_confirmed_is_a_lost_node_for_the_job_runs_on(account: Account, pbs_site: PbsSite) -> None:
    async def scenario() -> None:
        async with account.connect() as at:
            name = await at.accepted(WAITS)
            node = (await at.until(name, BatchState.RUNNING)).node
            await at.begun(name)
            pbs_site.signal(node)
            pbs_site.admin("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=silent")  # as it will find
            try:
                job = await at.until(name, BatchState.NODE_LOST)
                assert f"{node} has not confirmed" in job.reason
                alive = at.entry(name) / "alive"
                before = alive.stat().st_size
                await until("the lost job's next sign of life", lambda: alive.stat().st_size > before)
            finally:
                pbs_site.start(node)
            pbs_site.wait_idle()  # the node, back again, ends what it should no longer run
            await until("the job's end", lambda: (at.entry(name) / "seen").exists())

    asyncio.run(scenario())
