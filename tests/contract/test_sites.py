"""What every kind of site must do, whatever stands behind its relay: the simulated one, fork on this machine, and over
SSH Slurm, a Slurm of another make, one whose front-end sees late what its nodes write, one whose nodes do not see the
workdir, Grid Engine, HTCondor, PBS.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from gridhypervisor.model.batch import BatchState
from gridhypervisor.model.capacity import NodeState
from gridhypervisor.model.records import Site, SiteKind
from gridhypervisor.sites import Bundle
from tests.contract.accounts import CAPACITY, DEAF, WAITS, Account, Connected, account_at, until
from tests.contract.labs import LABS, SLURM
from tests.contract.simulated import SimulatedAccount

SLURMS = ["slurm_site", "other_slurm_site", "late_slurm_site", "tcp_slurm_site"]
REAL = ["fork", *SLURMS, *(lab.fixture for lab in LABS if lab is not SLURM)]


@pytest.fixture(scope="module", params=["simulated", *REAL])
def account(request: pytest.FixtureRequest, bundle: Bundle) -> Iterator[Account]:
    folder = Path(tempfile.mkdtemp(prefix="ghv-contract-"))
    if request.param == "simulated":
        site = Site("simulated", "o", "p", SiteKind.FORK)
        yield SimulatedAccount(site, bundle, folder / "work", folder / "log" / "relay")
    elif request.param == "fork":
        site = Site("local", "o", "p", SiteKind.FORK, workdir=str(folder / "work"), scratch="/tmp", slots=CAPACITY)
        yield Account(site, bundle, folder / "work", folder / "log" / "relay")
    else:
        yield account_at(request.getfixturevalue(request.param), bundle, folder / "log" / "relay")
    shutil.rmtree(folder)


def test_a_job_ends_with_its_code_and_its_words_are_in_the_entry(account: Account) -> None:
    async def story(at: Connected) -> None:
        name = await at.accepted("echo out; echo err >&2; exit 78")
        job = await at.until(name, BatchState.ENDED)
        assert job.code == 78 and job.name == name
        await at.said(name, "out\nerr\n")

    account.tell(story)


def test_an_accepted_job_is_listed_at_once_under_the_id_that_was_told(account: Account) -> None:
    async def story(at: Connected) -> None:
        name, answer = await at.submit(WAITS)  # it must not end before it is listed
        assert (await at.lists()).jobs[name].id == answer.batch_id
        await at.begun(name)
        await at.cancel(name)
        await at.over(name)

    account.tell(story)


def test_cancelling_sends_the_pilot_itself_a_signal_that_it_can_trap(account: Account) -> None:
    async def story(at: Connected) -> None:
        name = await at.accepted(WAITS)
        await at.until(name, BatchState.RUNNING)
        await at.begun(name)
        await at.cancel(name)
        await at.until(name, BatchState.ENDED)
        assert at.signals(name) in ({"TERM"}, {"USR2"})

    account.tell(story)


def test_a_job_beyond_the_capacity_waits_and_can_be_cancelled_before_it_began(account: Account) -> None:
    """And the site says so: what it has free and who waits there, as it is asked for all of its nodes."""

    async def story(at: Connected) -> None:
        empty = await at.surveyed(lambda has: has.nodes == has.idle and has.free_cpus == has.cpus)
        assert empty.nodes == len(empty.rows) and empty.cpus is not None and empty.cpus >= 1
        assert all(row.state is NodeState.IDLE and row.free_cpus == row.cpus for row in empty.rows)
        running = [await at.accepted(WAITS) for _ in range(CAPACITY)]
        for name in running:
            await at.until(name, BatchState.RUNNING)
            await at.begun(name)
        waiting = await at.accepted(WAITS)
        await at.until(waiting, BatchState.PENDING)
        full = await at.surveyed(lambda has: has.free_cpus == 0 and has.waiting == 1)
        assert (full.nodes, full.idle, full.cpus) == (empty.nodes, 0, empty.cpus)
        await at.cancel(waiting)
        await at.over(waiting)
        assert not at.has_begun(waiting)
        for name in running:
            assert (await at.until(name, BatchState.RUNNING, BatchState.ENDED)).state is BatchState.RUNNING
        await at.cancel(*running)
        for name in running:
            await at.until(name, BatchState.ENDED)

    account.tell(story)


def test_many_that_are_submitted_at_once_are_jobs_of_their_own(account: Account) -> None:
    async def story(at: Connected) -> None:
        jobs = [await at.prepared(f"echo $5; {WAITS}") for _ in range(2 * CAPACITY)]
        jobs = [replace(job, start=jobs[0].start) for job in jobs]
        names = [job.name for job in jobs]
        answers = await at.submitted(*jobs)
        assert all(answers[name].accepted for name in names), answers
        listing = await at.lists()
        assert {name: listing.jobs[name].id for name in names} == {name: answers[name].batch_id for name in names}
        await until("the site to be full", lambda: sum(at.has_begun(name) for name in names) == CAPACITY)
        first, second = (name for name in names if at.has_begun(name))  # which, is the site's choice
        waiting = [name for name in names if name not in (first, second)]
        for name in (first, second):
            await at.until(name, BatchState.RUNNING)
            await at.said(name, f"{at.entry_there(name)}\n")
        await at.cancel(waiting[0])
        await at.over(waiting[0])  # before there is a place for it
        await at.cancel(first)
        await at.until(first, BatchState.ENDED)
        await at.begun(waiting[1])
        await at.until(waiting[1], BatchState.RUNNING)
        assert (await at.until(second, BatchState.RUNNING, BatchState.ENDED)).state is BatchState.RUNNING
        assert not at.has_begun(waiting[0])
        await at.cancel(second, waiting[1])
        for name in (second, waiting[1]):
            await at.until(name, BatchState.ENDED)
            assert at.signals(name) in ({"TERM"}, {"USR2"})

    account.tell(story)


def test_a_name_that_the_site_never_heard_of_is_absent_and_may_be_cancelled(account: Account) -> None:
    async def story(at: Connected) -> None:
        name = at.new_name()
        assert name not in (await at.lists()).jobs
        await at.cancel(name)

    account.tell(story)


def test_a_job_that_ignores_term_is_ended_all_the_same(account: Account) -> None:
    async def story(at: Connected) -> None:
        name = await at.accepted(DEAF)
        await at.begun(name)
        await at.cancel(name)
        await at.until(name, BatchState.ENDED)

    account.tell(story)


def test_jobs_outlive_the_relay_that_submitted_them(account: Account) -> None:
    name = ""

    async def submits(at: Connected) -> None:
        nonlocal name
        name = await at.accepted(WAITS)
        await at.until(name, BatchState.RUNNING)
        await at.begun(name)

    async def finds(at: Connected) -> None:
        assert (await at.until(name, BatchState.RUNNING, BatchState.ENDED)).state is BatchState.RUNNING
        await at.cancel(name)
        await at.until(name, BatchState.ENDED)

    account.tell(submits, finds)


def test_a_probe_finds_nothing_wrong_and_names_the_version(account: Account) -> None:
    async def story(at: Connected) -> None:
        limits = at.driver.limits(await at.link.commands(at.driver.probe()))
        assert not limits.problem and limits.version

    account.tell(story)


def test_eight_submissions_at_once_are_eight_jobs(account: Account) -> None:
    async def story(at: Connected) -> None:
        names = await asyncio.gather(*(at.accepted("exit 3", cpus=1) for _ in range(8)))
        assert len({(await at.until(name, BatchState.ENDED)).id for name in names}) == 8

    account.tell(story)


@pytest.fixture
def local(bundle: Bundle, tmp_path: Path) -> Account:
    site = Site("local", "o", "p", SiteKind.FORK, workdir=str(tmp_path / "work"), scratch="/tmp", slots=1)
    return Account(site, bundle, tmp_path / "work", tmp_path / "log" / "relay")


def test_a_fork_job_is_ended_at_its_walltime(local: Account) -> None:
    """Slurm's limits are whole minutes: there, only what was asked for is looked at; see test_sites_slurm."""

    async def story(at: Connected) -> None:
        name = await at.accepted(WAITS, walltime=10)  # in which it surely comes to set its traps
        job = await at.until(name, BatchState.ENDED)
        assert job.reason == "walltime"
        assert (at.entry(name) / "seen").read_text() == "TERM\n"

    local.tell(story)


def test_a_fork_jobs_environment_has_none_of_the_services_secrets(
    local: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "hunter2")

    async def story(at: Connected) -> None:
        name = await at.accepted("env >$5/env")
        await at.until(name, BatchState.ENDED)
        assert "hunter2" not in (at.entry(name) / "env").read_text()

    local.tell(story)
    assert os.environ["SECRET_TOKEN"] == "hunter2"
