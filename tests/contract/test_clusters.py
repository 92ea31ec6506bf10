"""What every kind of cluster must do beside `test_sites.py`: where others work too, servers die, and jobs are held.

Each fault is the real one, and each ends with the site whole again. What only one kind can do to us is in its own file.
"""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import pytest

from gridhypervisor.model.batch import BatchState
from gridhypervisor.model.errors import LinkLost
from gridhypervisor.sites import Bundle
from tests.contract.accounts import OURS, WAITS, Account, Connected, account_at, until
from tests.contract.labs import GRIDENGINE, HTCONDOR, LABS, PBS, Lab
from testsites.site import ClusterSite

ENDS_WHEN_TOLD = "echo >$5/began; until [ -e $5/go ]; do sleep 0.1; done; echo >$5/gone"


@pytest.fixture(scope="module", params=LABS, ids=lambda lab: lab.fixture)
def lab(request: pytest.FixtureRequest) -> Lab:
    assert isinstance(request.param, Lab)
    return request.param


@pytest.fixture(scope="module")
def site(lab: Lab, request: pytest.FixtureRequest) -> ClusterSite:
    found = request.getfixturevalue(lab.fixture)
    assert isinstance(found, ClusterSite)
    return found


@pytest.fixture
def account(site: ClusterSite, bundle: Bundle, tmp_path: Path) -> Account:
    return account_at(site, bundle, tmp_path / "log" / "relay")


def test_neither_the_front_end_nor_a_node_has_python_or_qemu(account: Account, site: ClusterSite, lab: Lab) -> None:
    names = "python3 python qemu-system-x86_64 qemu-img gcc" + " perl" * (lab is not PBS)
    look = f"PATH=/usr/bin:/usr/sbin; for p in {names}; do command -v $p; done; echo looked"
    assert site.admin("sh", "-c", look, as_user=True) == "looked\n"

    async def story(at: Connected) -> None:
        name = await at.accepted(f"({look}) >$5/found")
        await at.until(name, BatchState.ENDED)
        assert (at.entry(name) / "found").read_text() == "looked\n"

    account.tell(story)


def test_the_jobs_of_others_and_of_the_users_own_are_not_ours(account: Account, site: ClusterSite, lab: Lab) -> None:
    theirs = f"{OURS}-j999-1"
    ids = {lab.foreign(site, "a&b<c|d", True), lab.foreign(site, "b00000000-j1-1", True)}
    ids.add(lab.foreign(site, theirs, False))

    async def story(at: Connected) -> None:
        name = await at.accepted("exit 0")
        await at.until(name, BatchState.ENDED)
        listing = await at.lists()
        assert not ids & {job.id for job in listing.jobs.values()}
        assert all(known.startswith(f"{OURS}-") for known in listing.jobs)
        assert theirs not in listing.jobs
        if lab in (GRIDENGINE, HTCONDOR):  # elsewhere we may not even ask for it
            await at.cancel(theirs)

    account.tell(story)
    for number in ids:  # all are still there
        site.admin(*lab.release, number)


def test_what_the_site_refuses_is_refused_with_the_mend(
    site: ClusterSite, lab: Lab, bundle: Bundle, tmp_path: Path
) -> None:
    async def story(at: Connected) -> None:
        _, answer = await at.submit("exit 0")
        [key] = lab.refused
        assert answer.accepted is False and not answer.busy and f"option `{key}`" in answer.message

    account_at(site, bundle, tmp_path / "log" / "relay", **lab.refused).tell(story)


def test_a_job_on_hold_says_so_and_runs_when_it_is_released(account: Account, site: ClusterSite, lab: Lab) -> None:
    async def story(at: Connected) -> None:
        full = [await at.accepted(WAITS) for _ in range(2)]
        for name in full:
            await at.begun(name)
        name, answer = await at.submit("exit 4")
        site.admin(*lab.hold, answer.batch_id, as_user=True)
        job = await at.until(name, BatchState.HELD)
        assert lab.held in job.reason
        await at.cancel(*full)
        for each in full:
            await at.until(each, BatchState.ENDED)
        site.admin(*lab.release, answer.batch_id, as_user=True)
        assert (await at.until(name, BatchState.ENDED)).code == 4

    account.tell(story)


def test_a_dead_server_makes_no_empty_listing_and_no_refusal_and_the_running_job_is_found_again(
    account: Account, site: ClusterSite, lab: Lab
) -> None:
    async def story(at: Connected) -> None:
        running, taken = await at.submit(WAITS)
        ends = await at.accepted(ENDS_WHEN_TOLD)
        await at.begun(ends)
        await at.until(running, BatchState.RUNNING)
        await at.begun(running)
        lab.kill(site)
        await until("the server to be gone", lambda: not site.alive(lab.server))
        try:
            listing, problem = await at.listing()
            assert listing is None and problem and lab.silence in problem
            _, answer = await at.submit("exit 0", cpus=1)
            assert answer.accepted is None, answer
            if lab.books:  # else it ends when the server is back
                (at.entry(ends) / "go").touch()
                await until(f"the end of {ends}", (at.entry(ends) / "gone").exists)
        finally:
            site.start(lab.server)
        (at.entry(ends) / "go").touch()
        job = await at.until(running, BatchState.RUNNING, BatchState.ENDED)  # lost it may be, until its node is heard
        assert (job.state, job.restarts) == (BatchState.RUNNING, 0)
        await until("its job to be found again", lambda: lab.found_again(site, taken.batch_id))
        assert not (at.entry(running) / "seen").exists()
        await at.cancel(running)
        assert (await at.until(running, BatchState.ENDED)).code == 5
        assert (await at.until(ends, BatchState.ENDED)).code == 0

    account.tell(story)


def test_a_cut_in_the_middle_of_a_submission_leaves_it_unclear_and_the_listing_tells(
    account: Account, site: ClusterSite, lab: Lab
) -> None:
    name = ""

    async def cut(at: Connected) -> None:
        nonlocal name
        name = at.new_name()
        site.signal(lab.server, signal.SIGSTOP)  # so that the submission surely still waits
        try:
            submitting = asyncio.create_task(at.submit("exit 0", name=name, cpus=1))
            await until("the submission to wait", lambda: lab.submits in site.processes())
            assert site.cut_ssh()
            with pytest.raises(LinkLost):
                await submitting
            with pytest.raises(LinkLost):
                await at.link.lost()
        finally:
            site.signal(lab.server, signal.SIGCONT)

    async def after(at: Connected) -> None:
        # The server had read the request before its sender was killed, or not.
        if name in (await at.lists()).jobs:
            await at.until(name, BatchState.ENDED)

    account.tell(cut, after)
