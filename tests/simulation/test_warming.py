"""Snapshots ahead of use, with the real planner over simulated sites: whatever becomes of it, nothing is left."""

from __future__ import annotations

import asyncio

from gridhypervisor.execution.warming import Warming
from gridhypervisor.model.records import JobState
from gridhypervisor.model.spec import JobSpec
from gridhypervisor.model.wire import ImageManifest
from tests.simulation.scenarios import reaches
from tests.simulation.world import World, in_world

LIKE = JobSpec("image", ("true",))


async def asked(world: World, patience: float, said: list[str]) -> list[bool | None]:
    warming = Warming(world.controller, owner="me", project="default")
    sites = sorted(world.controller.sessions)
    checks = await warming.run(LIKE, "0" * 64, ImageManifest(()), sites, patience, said.append)
    assert [check.claim.rpartition(" ")[2] for check in checks] == sites
    return [check.holds for check in checks]


def test_each_site_is_asked_by_a_job_of_its_own_which_is_gone_then() -> None:
    """Simulated pilots take no snapshots, and say so: it does not hold, and is not unknown."""

    async def story(world: World) -> None:
        said: list[str] = []
        await world.until(lambda: all(s.facts.up for s in world.controller.sessions.values()), 10.0, "all answer")
        assert set(await asked(world, 600.0, said)) == {False}
        assert any("running" in words or "queued" in words for words in said)
        await world.settled()
        assert not world.store.jobs()
        assert all(not site.spool.entries and not site.unfinished for site in world.sites.values())
        world.judge()

    in_world(story)


def test_one_that_waits_too_long_is_withdrawn_and_so_are_all_when_the_asker_goes() -> None:
    async def story(world: World) -> None:
        await world.until(lambda: all(s.facts.up for s in world.controller.sessions.values()), 10.0, "all answer")
        others = [await world.submit(100.0, site=site) for site in world.sites for _ in range(2)]
        for job in others:
            await reaches(world, job, "running")
        assert set(await asked(world, 30.0, [])) == {None}
        gone = asyncio.create_task(asked(world, 600.0, []))
        await asyncio.sleep(5)
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)
        await world.settled()
        assert {found.job.state for found in world.store.jobs()} == {JobState.DONE}, "only the others are left"
        assert len(world.store.jobs()) == len(others)
        world.judge()

    in_world(story)
