"""Probes of `ghv site check`, with the real planner over simulated sites: whatever becomes of them, nothing is left."""

from __future__ import annotations

import asyncio

from gridhypervisor.execution.probing import Probes
from gridhypervisor.model.records import JobState
from gridhypervisor.model.views import Check
from gridhypervisor.model.wire import NodeReport, Terms
from gridhypervisor.planning.probes import RUNS, FrontEnd
from tests.simulation.scenarios import reaches
from tests.simulation.world import World, in_world

Found = tuple[list[Check], NodeReport | None]
THERE = FrontEnd("site0", "/sim")


def probes(world: World) -> Probes:
    return Probes(world.controller, owner="me", project="default")


async def up(world: World) -> None:
    await world.until(lambda: world.controller.sessions["site0"].facts.up, 10.0, "the site answers")


async def gone(world: World) -> None:
    """Nothing is left of any probe: not at the site, not in the list of jobs."""
    await world.settled()
    assert not world.store.jobs()
    assert not world.sites["site0"].spool.entries and not world.sites["site0"].unfinished


def test_a_probe_reports_from_a_node_and_leaves_nothing() -> None:
    async def story(world: World) -> None:
        await up(world)
        said: list[str] = []
        checks, report = await probes(world).run(THERE, 600.0, said.append)
        assert report is not None and report.node in ("n0", "n1")
        assert checks[0].claim == RUNS and all(check.holds for check in checks)
        assert any("queued" in words or "pending" in words for words in said)
        assert len(said) == len(set(said)), "nothing is said twice"
        await gone(world)

    in_world(story)


def test_a_probe_in_a_full_queue_is_unknown_says_what_it_waits_for_and_is_withdrawn() -> None:
    async def story(world: World) -> None:
        await up(world)
        others = [await world.submit(100.0, site="site0") for _ in range(2)]
        for job in others:
            await reaches(world, job, "running")
        [check], report = await probes(world).run(THERE, 30.0, lambda words: None)
        assert report is None and check.holds is None
        assert "still waits after 30 s: pending at site0" in check.evidence
        await world.settled()
        assert {found.job.state for found in world.store.jobs()} == {JobState.DONE}, "only the others are left"
        assert [found.job.id for found in world.store.jobs()] == others[::-1]
        world.judge()

    in_world(story)


def test_a_probe_whose_asker_goes_is_withdrawn() -> None:
    async def story(world: World) -> None:
        await up(world)
        asked = asyncio.create_task(probes(world).run(THERE, 600.0, lambda words: None))
        await world.until(
            lambda: any(case.allocations for case in world.controller.cases.values()), 10.0, "it goes out"
        )
        asked.cancel()
        await asyncio.gather(asked, return_exceptions=True)
        await gone(world)

    in_world(story)


def test_a_probe_of_a_service_that_was_killed_is_swept_by_the_next() -> None:
    async def story(world: World) -> None:
        await up(world)
        for state in ("planned", "queued", "running"):
            asked = asyncio.create_task(probes(world).run(THERE, 600.0, lambda words: None))
            await world.until(lambda: bool(world.controller.cases), 10.0, "there is one")
            [job] = world.controller.cases
            await reaches(world, job, state)
            killed = asyncio.create_task(world.restart())  # its asker hears nothing more of it
            await killed
            asked.cancel()
            await asyncio.gather(asked, return_exceptions=True)
            await probes(world).sweep()
            await up(world)
            await gone(world)

    in_world(story)


def test_a_lender_who_lends_nothing_makes_it_wait_and_says_so() -> None:
    async def story(world: World) -> None:
        await up(world)
        world.sites["site0"].account.lend(Terms("/etc/ghv/lender.toml", cores=0))
        await world.until(lambda: world.controller.sessions["site0"].facts.lending is not None, 30.0, "it is known")
        [check], _ = await probes(world).run(THERE, 30.0, lambda words: None)
        assert check.holds is None and "allows 0 cores" in check.evidence
        await gone(world)

    in_world(story)


def test_a_site_that_refuses_the_probe_fails_the_check() -> None:
    async def story(world: World) -> None:
        await up(world)
        world.sites["site0"].batch.weather.submissions.append("refused")
        [check], report = await probes(world).run(THERE, 600.0, lambda words: None)
        assert report is None and check.holds is False and "submit" in check.evidence
        await gone(world)

    in_world(story)
