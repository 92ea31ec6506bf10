"""What every kind of site must do, asked of real ones through the real relay: fork here, Slurm behind SSH,
one whose front-end sees late what its nodes write, Grid Engine, HTCondor, PBS's wrappers over Slurm."""

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
from gridhypervisor.model.records import Site, SiteKind
from gridhypervisor.sites import Bundle
from tests.contract.accounts import CAPACITY, WAITS, Account, account_at, until

KINDS = ["fork", "slurm_site", "late_slurm_site", "gridengine_site", "htcondor_site", "pbs_site"]


@pytest.fixture(scope="module", params=KINDS)
def account(request: pytest.FixtureRequest, bundle: Bundle) -> Iterator[Account]:
    folder = Path(tempfile.mkdtemp(prefix="ghv-contract-"))
    if request.param == "fork":
        site = Site("local", "o", "p", SiteKind.FORK, workdir=str(folder / "work"), scratch="/tmp", slots=CAPACITY)
        yield Account(site, bundle, folder / "work", folder / "log" / "relay")
    else:
        yield account_at(request.getfixturevalue(request.param), bundle, folder / "log" / "relay")
    shutil.rmtree(folder)


def test_a_job_ends_with_its_code_and_its_words_are_in_the_entry(account: Account) -> None:
    async def scenario() -> None:
        async with account.connect() as at:
            name = await at.accepted("echo out; echo err >&2; exit 78")
            job = await at.until(name, BatchState.ENDED)
            assert job.code == 78 and job.name == name
            await at.said(name, "out\nerr\n")

    asyncio.run(scenario())


def test_an_accepted_job_is_listed_at_once_under_the_id_that_was_told(account: Account) -> None:
    async def scenario() -> None:
        async with account.connect() as at:
            name, answer = await at.submit(WAITS)  # it must not end before it is listed
            assert (await at.lists()).jobs[name].id == answer.batch_id
            await at.begun(name)
            await at.cancel(name)
            await at.over(name)

    asyncio.run(scenario())


def test_cancelling_sends_the_pilot_itself_a_signal_that_it_can_trap(account: Account) -> None:
    async def scenario() -> None:
        async with account.connect() as at:
            name = await at.accepted(WAITS)
            await at.until(name, BatchState.RUNNING)
            await at.begun(name)
            await at.cancel(name)
            await at.until(name, BatchState.ENDED)
            seen = (at.entry(name) / "seen").read_text().split()
            assert set(seen) in ({"TERM"}, {"USR2"})  # to the job's group and to each process, it may come twice

    asyncio.run(scenario())


def test_a_job_beyond_the_capacity_waits_and_can_be_cancelled_before_it_began(account: Account) -> None:
    async def scenario() -> None:
        async with account.connect() as at:
            running = [await at.accepted(WAITS) for _ in range(CAPACITY)]
            for name in running:
                await at.until(name, BatchState.RUNNING)
                await at.begun(name)
            waiting = await at.accepted(WAITS)
            await at.until(waiting, BatchState.PENDING)
            await at.cancel(waiting)
            await at.over(waiting)
            assert not (at.entry(waiting) / "began").exists()
            for name in running:
                assert (await at.until(name, BatchState.RUNNING, BatchState.ENDED)).state is BatchState.RUNNING
            await at.cancel(*running)
            for name in running:
                await at.until(name, BatchState.ENDED)

    asyncio.run(scenario())


def test_many_that_are_submitted_at_once_are_jobs_of_their_own(account: Account) -> None:
    async def scenario() -> None:
        async with account.connect() as at:
            jobs = [await at.prepared(f"echo $5; {WAITS}") for _ in range(2 * CAPACITY)]
            jobs = [replace(job, start=jobs[0].start) for job in jobs]
            names = [job.name for job in jobs]
            answers = await at.submitted(*jobs)
            assert all(answers[name].accepted for name in names), answers
            listing = await at.lists()
            assert {name: listing.jobs[name].id for name in names} == {name: answers[name].batch_id for name in names}
            began = {name: at.entry(name) / "began" for name in names}
            await until("the site to be full", lambda: sum(path.exists() for path in began.values()) == CAPACITY)
            first, second = (name for name in names if began[name].exists())  # which, is the site's choice
            waiting = [name for name in names if name not in (first, second)]
            for name in (first, second):
                await at.until(name, BatchState.RUNNING)
                await at.said(name, f"{at.workdir}/spool/{name}\n")
            await at.cancel(waiting[0])
            await at.over(waiting[0])  # before there is a place for it
            await at.cancel(first)
            await at.until(first, BatchState.ENDED)
            await at.begun(waiting[1])
            await at.until(waiting[1], BatchState.RUNNING)
            assert (await at.until(second, BatchState.RUNNING, BatchState.ENDED)).state is BatchState.RUNNING
            assert not (at.entry(waiting[0]) / "began").exists()
            await at.cancel(second, waiting[1])
            for name in (second, waiting[1]):
                await at.until(name, BatchState.ENDED)
                assert set((at.entry(name) / "seen").read_text().split()) in ({"TERM"}, {"USR2"})

    asyncio.run(scenario())


def test_a_name_that_the_site_never_heard_of_is_absent_and_may_be_cancelled(account: Account) -> None:
    async def scenario() -> None:
        async with account.connect() as at:
            name = at.new_name()
            assert name not in (await at.lists()).jobs
            await at.cancel(name)

    asyncio.run(scenario())


def test_a_job_that_ignores_term_is_ended_all_the_same(account: Account) -> None:
    async def scenario() -> None:
        async with account.connect() as at:
            name = await at.accepted("trap '' TERM USR2; echo >$5/began; while :; do sleep 0.1; done")
            await at.begun(name)
            await at.cancel(name)
            await at.until(name, BatchState.ENDED)

    asyncio.run(scenario())


def test_jobs_outlive_the_relay_that_submitted_them(account: Account) -> None:
    async def scenario() -> None:
        async with account.connect() as at:
            name = await at.accepted(WAITS)
            await at.until(name, BatchState.RUNNING)
            await at.begun(name)
        async with account.connect() as at:
            assert (await at.until(name, BatchState.RUNNING, BatchState.ENDED)).state is BatchState.RUNNING
            await at.cancel(name)
            await at.until(name, BatchState.ENDED)

    asyncio.run(scenario())


def test_a_probe_finds_nothing_wrong_and_names_the_version(account: Account) -> None:
    async def scenario() -> None:
        async with account.connect() as at:
            limits = at.driver.limits(await at.link.commands(at.driver.probe()))
            assert not limits.problem and limits.version

    asyncio.run(scenario())


def test_eight_submissions_at_once_are_eight_jobs(account: Account) -> None:
    async def scenario() -> None:
        async with account.connect() as at:
            names = await asyncio.gather(*(at.accepted("exit 3", cpus=1) for _ in range(8)))
            assert len({(await at.until(name, BatchState.ENDED)).id for name in names}) == 8

    asyncio.run(scenario())


def test_a_fork_job_is_ended_at_its_walltime(bundle: Bundle, tmp_path: Path) -> None:
    """Slurm's limits are whole minutes: there, only what was asked for is looked at; see test_sites_slurm."""
    site = Site("local", "o", "p", SiteKind.FORK, workdir=str(tmp_path / "work"), scratch="/tmp", slots=1)
    account = Account(site, bundle, tmp_path / "work", tmp_path / "log" / "relay")

    async def scenario() -> None:
        async with account.connect() as at:
            name = await at.accepted(WAITS, walltime=10)  # in which it surely comes to set its traps
            job = await at.until(name, BatchState.ENDED)
            assert job.reason == "walltime"
            assert (at.entry(name) / "seen").read_text() == "TERM\n"

    asyncio.run(scenario())


def test_a_jobs_environment_has_none_of_the_services_secrets(account: Account, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "hunter2")

    async def scenario() -> None:
        async with account.connect() as at:
            name = await at.accepted("env >$5/env")
            await at.until(name, BatchState.ENDED)
            assert "hunter2" not in (at.entry(name) / "env").read_text()

    asyncio.run(scenario())
    assert os.environ["SECRET_TOKEN"] == "hunter2"
