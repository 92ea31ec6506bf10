"""What PBS's commands can do to us: servers that do not answer, ends that no node confirmed, holds, refusals.

Behind them is a real Slurm (see `testsites.pbs`); each fault is a real one of that, and each ends with the site whole.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from gridhypervisor.model.batch import BatchState
from gridhypervisor.sites import Bundle
from tests.contract.accounts import WAITS, Account, Connected, account_at, until
from testsites import PbsSite


@pytest.fixture
def account(pbs_site: PbsSite, bundle: Bundle, tmp_path: Path) -> Account:
    return account_at(pbs_site, bundle, tmp_path / "log" / "relay")


def test_what_the_user_configured_for_a_site_is_what_the_job_asks_for(
    pbs_site: PbsSite, bundle: Bundle, tmp_path: Path
) -> None:
    options = {"queue": "short", "constraint": "pbs-a-n2", "native": "-p 7"}
    account = account_at(pbs_site, bundle, tmp_path / "log", **options)

    async def story(at: Connected) -> None:
        limits = at.driver.limits(await at.link.commands(at.driver.probe()))
        assert (limits.max_walltime, limits.max_cpus) == (300, 2) and limits.max_memory
        name, answer = await at.submit(WAITS, walltime=241, memory=128 << 20)
        shown = pbs_site.admin("scontrol", "-o", "show", "job", answer.batch_id)
        for words in ("Partition=short", "NumCPUs=2", "MinMemoryNode=512M", "TimeLimit=00:05:00", "Requeue=0"):
            assert f" {words} " in shown
        assert (await at.until(name, BatchState.RUNNING)).node == "pbs-a-n2"
        await at.cancel(name)
        await at.until(name, BatchState.ENDED)

    account.tell(story)


def test_an_end_that_no_node_confirmed_is_a_lost_node_for_the_job_runs_on(account: Account, pbs_site: PbsSite) -> None:
    async def story(at: Connected) -> None:
        name = await at.accepted(WAITS)
        node = (await at.until(name, BatchState.RUNNING)).node
        await at.begun(name)
        pbs_site.signal(node)
        pbs_site.admin("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=silent")  # as it will find
        try:
            job = await at.until(name, BatchState.NODE_LOST)
            assert f"{node} has not confirmed" in job.reason
            await at.lives_on(name)
        finally:
            pbs_site.start(node)
        pbs_site.wait_idle()  # the node, back again, ends what it should no longer run
        await until("the job's end", lambda: (at.entry(name) / "seen").exists())

    account.tell(story)
