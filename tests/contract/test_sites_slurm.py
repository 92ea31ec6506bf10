"""What only a real Slurm can do to us: controllers that die or do not answer, nodes that fall silent, bare nodes.

Each fault is the real one, and each ends with the site whole again.
"""

from __future__ import annotations

import asyncio
import shutil
import signal
from pathlib import Path

import pytest

from gridhypervisor.model.batch import BatchState
from gridhypervisor.model.errors import LinkError
from gridhypervisor.model.wire import (
    PROTOCOL,
    ImageManifest,
    Lending,
    Manifest,
    Op,
    Program,
    Resources,
    from_plain,
    to_plain,
)
from gridhypervisor.sites import Bundle
from tests.contract.accounts import OURS, WAITS, Account, Connected, account_at, until
from testsites import SlurmSite


@pytest.fixture
def account(slurm_site: SlurmSite, bundle: Bundle, tmp_path: Path) -> Account:
    return account_at(slurm_site, bundle, tmp_path / "log" / "relay")


def test_slurm_gets_the_walltime_in_whole_minutes_and_must_not_requeue(account: Account, slurm_site: SlurmSite) -> None:
    async def story(at: Connected) -> None:
        name, answer = await at.submit(WAITS, walltime=301)
        shown = slurm_site.admin("scontrol", "-o", "show", "job", answer.batch_id)
        assert " TimeLimit=00:06:00 " in shown and " Requeue=0 " in shown
        await at.cancel(name)
        await at.until(name, BatchState.ENDED)

    account.tell(story)


def test_where_a_partition_is_not_there_those_that_are_are_named(
    slurm_site: SlurmSite, bundle: Bundle, tmp_path: Path
) -> None:
    account = account_at(slurm_site, bundle, tmp_path / "log", partition="nonesuch")

    async def story(at: Connected) -> None:
        assert "batch, short" in at.driver.limits(await at.link.commands(at.driver.probe())).problem

    account.tell(story)


def test_a_job_that_will_never_start_is_held_with_the_reason(
    slurm_site: SlurmSite, bundle: Bundle, tmp_path: Path
) -> None:
    account = account_at(slurm_site, bundle, tmp_path / "log", partition="short")

    async def story(at: Connected) -> None:
        assert at.driver.limits(await at.link.commands(at.driver.probe())).max_walltime == 300
        name = await at.accepted("exit 0", walltime=3600)
        job = await at.until(name, BatchState.HELD)
        assert "walltime" in job.reason
        await at.cancel(name)
        await at.until(name, BatchState.ENDED)

    account.tell(story)


def test_a_controller_that_does_not_answer_makes_no_empty_listing_and_a_late_job_surfaces(
    account: Account, slurm_site: SlurmSite
) -> None:
    async def story(at: Connected) -> None:
        running = await at.accepted(WAITS)
        await at.begun(running)
        slurm_site.signal("slurmctld", signal.SIGSTOP)
        try:
            late, answer = await at.submit("exit 0", cpus=1)
            assert answer.accepted is None and "timed out" in answer.message
            listing, problem = await at.listing()
            assert listing is None and problem
        finally:
            slurm_site.signal("slurmctld", signal.SIGCONT)
        await at.until(late, BatchState.ENDED)  # found by its name: nobody was told its id
        assert (await at.until(running, BatchState.RUNNING, BatchState.ENDED)).state is BatchState.RUNNING
        await at.cancel(running)
        await at.until(running, BatchState.ENDED)

    account.tell(story)


def test_a_node_that_fell_silent_is_lost_which_is_not_ended_for_its_job_runs_on(
    account: Account, slurm_site: SlurmSite
) -> None:
    async def story(at: Connected) -> None:
        name = await at.accepted(WAITS)
        node = (await at.until(name, BatchState.RUNNING)).node
        await at.begun(name)
        slurm_site.signal(node)
        try:
            await at.until(name, BatchState.NODE_LOST)
            await at.lives_on(name)
        finally:
            slurm_site.start(node)
        slurm_site.wait_idle()  # the node, back again, ends what it should no longer run
        await until("the job's end", lambda: (at.entry(name) / "seen").exists())

    account.tell(story)


def test_the_sites_administrators_lend_what_they_like(account: Account, slurm_site: SlurmSite) -> None:
    """Their file is in /etc, where the account can only read it."""
    etc = slurm_site.root / "etc" / "ghv"
    (etc / "lender.d").mkdir(parents=True)

    async def scenario() -> None:
        (etc / "lender.toml").write_text('contact = "hpc@example.org"\nvms = 0\n')
        (etc / "lender.d" / "somebody.toml").write_text("vms = 9\n")
        async with account.connect() as at:
            lending = from_plain(Lending, at.hello["lender"])
            terms = lending.terms
            assert (terms.file, terms.holder, terms.own) == ("/etc/ghv/lender.toml", "root", False)
            name = at.new_name()
            manifest = Manifest(PROTOCOL, OURS, name, "v", 1, "v.1", "j", ImageManifest(()), "0" * 64,
                                Program(("true",)), Resources())  # fmt: skip
            request = {"entry": name, "manifest": to_plain(manifest)}
            with pytest.raises(LinkError, match="allows 0 VMs; 0 are in use") as refused:
                await at.link.call(Op.PREPARE, request, timeout=60)
            assert (refused.value.kind, "ask hpc@example.org" in refused.value.hint) == ("lender", True)
            (etc / "lender.d" / f"{at.hello['user']}.toml").write_text("vms = 1\n")
            await at.link.call(Op.PREPARE, request, timeout=60)

    try:
        asyncio.run(scenario())
    finally:
        shutil.rmtree(etc)
