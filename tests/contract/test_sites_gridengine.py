"""What only a real Grid Engine can do to us: accounts that lie, queue masters that die or hang, nodes cut off, errors.

Each fault is the real one, and each ends with the site whole again.
"""

from __future__ import annotations

import asyncio
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from gridhypervisor.model.batch import BatchState
from gridhypervisor.sites import Bundle
from tests.contract.accounts import OURS, WAITS, Account, Connected, account_at, until
from testsites import GridEngineSite

DEAF = "trap 'echo USR2 >>$5/seen' USR2; echo $$ >$5/began; while :; do echo . >>$5/alive; sleep 0.1; done"


@pytest.fixture
def account(gridengine_site: GridEngineSite, bundle: Bundle, tmp_path: Path) -> Account:
    return account_at(gridengine_site, bundle, tmp_path / "log" / "relay")


def end(site: GridEngineSite, at: Connected, name: str) -> None:
    """Kill a job that Grid Engine no longer minds, if its node, once it is heard of again, was not faster."""
    site.admin("sh", "-c", f"kill -9 {(at.entry(name) / 'began').read_text().strip()}", check=False)


def test_what_the_site_refuses_is_refused_with_the_mend(
    gridengine_site: GridEngineSite, bundle: Bundle, tmp_path: Path
) -> None:
    async def scenario(mend: str, walltime: int = 600, cpus: int = 2, **options: str) -> None:
        account = account_at(gridengine_site, bundle, tmp_path / "log", **options)
        async with account.connect() as at:
            _, answer = await at.submit("exit 0", cpus=cpus, walltime=walltime)
            assert answer.accepted is False and mend in answer.message

    asyncio.run(scenario("option `queue`", queue="nonesuch.q"))
    asyncio.run(scenario("option `pe`", pe="nonesuch"))
    asyncio.run(scenario("option `project`", project="nonesuch"))
    asyncio.run(scenario("ask for less walltime", walltime=100 * 3600))
    asyncio.run(scenario("ask for less walltime", cpus=64))


def test_what_the_user_configured_for_a_site_is_what_the_job_asks_for(
    gridengine_site: GridEngineSite, bundle: Bundle, tmp_path: Path
) -> None:
    options = {"queue": "batch.q@sge-a-n2", "memory": "mem_free", "native": "-js 5 -w w"}
    account = account_at(gridengine_site, bundle, tmp_path / "log", **options)

    async def story(at: Connected) -> None:
        assert at.driver.limits(await at.link.commands(at.driver.probe())).max_walltime == 86400
        name, answer = await at.submit(WAITS, memory=128 << 20)
        shown = gridengine_site.admin("qstat", "-j", answer.batch_id)
        for words in ("mem_free=256M", "h_rt=600", "smp range: 2", "batch.q@sge-a-n2", "restart:", "notify:"):
            assert words in shown
        assert (await at.until(name, BatchState.RUNNING)).node == "sge-a-n2"
        await at.begun(name)
        await at.cancel(name)
        await at.over(name)

    account.tell(story)


def test_at_the_limit_a_job_is_warned_and_its_end_says_so(account: Account) -> None:
    async def story(at: Connected) -> None:
        # Long enough for either to set its trap before, on a machine that may be busy.
        heeds, deaf = await at.accepted(WAITS, walltime=15), await at.accepted(DEAF, walltime=15)
        assert (await at.until(heeds, BatchState.ENDED)).code == 5
        job = await at.until(deaf, BatchState.ENDED)
        assert job.code == 137 and "h_rt" in job.reason
        for name in (heeds, deaf):
            assert set((at.entry(name) / "seen").read_text().split()) == {"USR2"}

    account.tell(story)


def test_a_job_in_error_is_held_with_the_sites_reason(account: Account) -> None:
    async def story(at: Connected) -> None:
        name = await at.accepted("exit 100")  # which Grid Engine takes for: keep me, and show me to somebody
        job = await at.until(name, BatchState.HELD)
        while "exit_status" not in job.reason and "100" not in job.reason:
            job = await at.until(name, BatchState.HELD)
        await at.cancel(name)
        await at.over(name)

    account.tell(story)


def test_a_job_that_the_site_runs_again_by_itself_says_so(account: Account) -> None:
    async def story(at: Connected) -> None:
        name = await at.accepted("[ ! -e $5/ran ] || exit 7; echo >$5/ran; exit 99")  # run again, says exit code 99
        job = await at.until(name, BatchState.ENDED)
        assert (job.code, job.restarts) == (7, 1)

    account.tell(story)


def test_a_queue_master_that_hangs_makes_no_empty_listing(account: Account, gridengine_site: GridEngineSite) -> None:
    async def story(at: Connected) -> None:
        gridengine_site.signal("qmaster", signal.SIGSTOP)
        try:
            asked = [replace(command, timeout=1.0) for command in at.driver.query(OURS)]  # it would hang for good
            listing, problem = at.driver.listing(await at.link.commands(asked), 0.0)
            assert listing is None and "no answer in time" in problem
        finally:
            gridengine_site.signal("qmaster", signal.SIGCONT)
        await at.lists()

    account.tell(story)


def test_a_node_cut_off_is_lost_and_stays_so_when_an_administrator_deletes_the_job_by_force(
    account: Account, gridengine_site: GridEngineSite
) -> None:
    """The accounts then hold a success with exit code 0, while the job runs on."""

    async def story(at: Connected) -> None:
        name = await at.accepted(WAITS)
        job = await at.until(name, BatchState.RUNNING)
        await at.begun(name)
        await until("the node's first word of it", lambda: is_running(gridengine_site, job.id))
        gridengine_site.connect(job.node, False)
        try:
            await at.until(name, BatchState.NODE_LOST)
            gridengine_site.admin("qdel", "-f", job.id)
            accounts = gridengine_site.root / "opt/sge/default/common/accounting"
            await until("the record", lambda: f":{name}:{job.id}:" in accounts.read_text())
            assert "exit_status  0 " in gridengine_site.admin("qacct", "-j", job.id)
            # While the queue still lists it, it is lost for another reason: the node does not answer.
            forced = await at.until(name, BatchState.NODE_LOST, BatchState.ENDED, reason="has not confirmed")
            assert forced.state is BatchState.NODE_LOST
            await at.lives_on(name)
        finally:
            gridengine_site.connect(job.node, True)
        end(gridengine_site, at, name)
        gridengine_site.wait_ready()

    account.tell(story)


def is_running(site: GridEngineSite, number: str) -> bool:
    """The node has told the queue master that it began (`r`, no longer `t`)."""
    listed = site.admin("qstat", "-u", "*", "-s", "r").splitlines()
    return any(line.split()[0] == number and " r " in line for line in listed)


def test_a_job_whose_shepherd_was_killed_is_lost_for_it_runs_on(
    account: Account, gridengine_site: GridEngineSite
) -> None:
    async def story(at: Connected) -> None:
        name, answer = await at.submit(WAITS)
        await at.begun(name)
        await until("the node's first word of it", lambda: is_running(gridengine_site, answer.batch_id))
        gridengine_site.lose_shepherd(answer.batch_id)
        # A busy node, too, may pass for lost for a while, but for another reason.
        job = await at.until(name, BatchState.NODE_LOST, BatchState.ENDED, reason="before writing exit_status")
        assert job.state is BatchState.NODE_LOST
        await at.lives_on(name)
        end(gridengine_site, at, name)

    account.tell(story)


def test_a_queue_master_with_too_many_jobs_of_ours_takes_the_next_when_one_has_gone(
    account: Account, gridengine_site: GridEngineSite
) -> None:
    async def story(at: Connected) -> None:
        first = await at.accepted(WAITS)
        await at.begun(first)
        gridengine_site.limit("max_u_jobs", 1)
        try:
            second = asyncio.create_task(at.submit("exit 4"))
            refused = await at.prepared("exit 0")
            results = await at.batch(at.driver.submit([refused], account.site))
            [answer] = at.driver.submitted([refused], results).values()
            assert answer.busy and "only 1 jobs are allowed per user" in answer.message
            assert not second.done()
            await at.cancel(first)
            name, answer = await second
            assert answer.accepted and (await at.until(name, BatchState.ENDED)).code == 4
        finally:
            gridengine_site.limit("max_u_jobs", 0)

    account.tell(story)
