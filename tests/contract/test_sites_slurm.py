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
from gridhypervisor.model.errors import LinkError, LinkLost
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
from tests.contract.accounts import OURS, WAITS, Account, account_at, until
from testsites import SlurmSite


@pytest.fixture
def account(slurm_site: SlurmSite, bundle: Bundle, tmp_path: Path) -> Account:
    return account_at(slurm_site, bundle, tmp_path / "log" / "relay")


def test_neither_the_front_end_nor_a_node_has_python_or_qemu(account: Account, slurm_site: SlurmSite) -> None:
    look = "for p in python3 python qemu-system-x86_64 qemu-img perl gcc; do command -v $p; done; echo looked"
    assert slurm_site.admin("sh", "-c", look, as_user=True) == "looked\n"

    async def scenario() -> None:
        async with account.connect() as at:
            name = await at.accepted(f"({look}) >$5/found")
            await at.until(name, BatchState.ENDED)
            assert (at.entry(name) / "found").read_text() == "looked\n"

    asyncio.run(scenario())


def test_the_jobs_of_others_and_of_the_users_own_are_not_ours(account: Account, slurm_site: SlurmSite) -> None:
    def foreign(*options: str, as_user: bool) -> str:
        words = ("sbatch", "--parsable", "--hold", "--chdir=/tmp", *options, "--wrap=true")
        return slurm_site.admin(*words, as_user=as_user).strip()

    ids = [foreign("--job-name=my own", as_user=True), foreign("--job-name=a\nb|c", as_user=True),
           foreign(f"--job-name={OURS}-j999-1", as_user=False)]  # fmt: skip

    async def scenario() -> None:
        async with account.connect() as at:
            name = await at.accepted("exit 0")
            await at.until(name, BatchState.ENDED)
            listing = await at.lists()
            assert not set(ids) & {job.id for job in listing.jobs.values()}
            assert all(known.startswith(f"{OURS}-") for known in listing.jobs)

    asyncio.run(scenario())
    slurm_site.admin("scancel", *ids)


def test_slurm_gets_the_walltime_in_whole_minutes_and_must_not_requeue(account: Account, slurm_site: SlurmSite) -> None:
    async def scenario() -> None:
        async with account.connect() as at:
            name, answer = await at.submit(WAITS, walltime=301)
            shown = slurm_site.admin("scontrol", "-o", "show", "job", answer.batch_id)
            assert " TimeLimit=00:06:00 " in shown and " Requeue=0 " in shown
            await at.cancel(name)
            await at.until(name, BatchState.ENDED)

    asyncio.run(scenario())


def test_what_the_site_refuses_is_refused_with_the_mend(slurm_site: SlurmSite, bundle: Bundle, tmp_path: Path) -> None:
    account = account_at(slurm_site, bundle, tmp_path / "log", partition="nonesuch")

    async def scenario() -> None:
        async with account.connect() as at:
            _, answer = await at.submit("exit 0")
            assert answer.accepted is False and "option `partition`" in answer.message
            assert "batch, short" in at.driver.limits(await at.link.commands(at.driver.probe())).problem

    asyncio.run(scenario())


def test_a_job_that_will_never_start_is_held_with_the_reason(
    slurm_site: SlurmSite, bundle: Bundle, tmp_path: Path
) -> None:
    account = account_at(slurm_site, bundle, tmp_path / "log", partition="short")

    async def scenario() -> None:
        async with account.connect() as at:
            assert at.driver.limits(await at.link.commands(at.driver.probe())).max_walltime == 300
            name = await at.accepted("exit 0", walltime=3600)
            job = await at.until(name, BatchState.HELD)
            assert "walltime" in job.reason
            await at.cancel(name)
            await at.until(name, BatchState.ENDED)

    asyncio.run(scenario())


def test_a_controller_that_does_not_answer_makes_no_empty_listing_and_a_late_job_surfaces(
    account: Account, slurm_site: SlurmSite
) -> None:
    async def scenario() -> None:
        async with account.connect() as at:
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

    asyncio.run(scenario())


def test_a_dead_controller_makes_no_empty_listing_and_the_running_job_is_found_again(
    account: Account, slurm_site: SlurmSite
) -> None:
    async def scenario() -> None:
        async with account.connect() as at:
            running = await at.accepted(WAITS)
            await at.until(running, BatchState.RUNNING)
            await at.begun(running)
            slurm_site.signal("slurmctld", signal.SIGTERM)  # it saves its state; a crash may forget the last seconds
            await until("the controller to be gone", lambda: not slurm_site.alive("slurmctld"))
            try:
                listing, problem = await at.listing()
                assert listing is None and "Unable to contact" in problem
            finally:
                slurm_site.start("slurmctld")
            assert (await at.until(running, BatchState.RUNNING, BatchState.ENDED)).state is BatchState.RUNNING
            await at.cancel(running)
            await at.until(running, BatchState.ENDED)

    asyncio.run(scenario())


def test_a_node_that_fell_silent_is_lost_which_is_not_ended_for_its_job_runs_on(
    account: Account, slurm_site: SlurmSite
) -> None:
    async def scenario() -> None:
        async with account.connect() as at:
            name = await at.accepted(WAITS)
            node = (await at.until(name, BatchState.RUNNING)).node
            await at.begun(name)
            slurm_site.signal(node)
            try:
                await at.until(name, BatchState.NODE_LOST)
                alive = at.entry(name) / "alive"
                before = alive.stat().st_size
                await until("the lost job's next sign of life", lambda: alive.stat().st_size > before)
            finally:
                slurm_site.start(node)
            slurm_site.wait_idle()  # the node, back again, ends what it should no longer run
            await until("the job's end", lambda: (at.entry(name) / "seen").exists())

    asyncio.run(scenario())


def test_a_cut_in_the_middle_of_a_submission_leaves_it_unclear_and_the_listing_tells(
    account: Account, slurm_site: SlurmSite
) -> None:
    async def scenario() -> None:
        async with account.connect() as at:
            name = at.new_name()
            slurm_site.signal("slurmctld", signal.SIGSTOP)  # so that sbatch is surely still waiting
            try:
                submitting = asyncio.create_task(at.submit("exit 0", name=name, cpus=1))
                await until("sbatch to wait", lambda: "sbatch" in slurm_site.processes())
                assert slurm_site.cut_ssh()
                with pytest.raises(LinkLost):
                    await submitting
                with pytest.raises(LinkLost):
                    await at.link.lost()
            finally:
                slurm_site.signal("slurmctld", signal.SIGCONT)
        async with account.connect() as at:
            # The controller had read the request before its sender was killed, or not.
            if name in (await at.lists()).jobs:
                await at.until(name, BatchState.ENDED)

    asyncio.run(scenario())


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
