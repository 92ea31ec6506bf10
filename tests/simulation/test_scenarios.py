"""One story after another, each of one thing that happens to jobs, told by the real controller in virtual time."""

from __future__ import annotations

import asyncio
import itertools
from dataclasses import replace

import pytest

from gridhypervisor.model.records import JobState
from gridhypervisor.model.wire import Command, CommandResult
from tests.simulation.scenarios import SCENARIOS, Scenario, a_normal_run
from tests.simulation.world import World, in_world


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda s: s.name)
def test_every_story_ends_well(scenario: Scenario) -> None:
    async def story(world: World) -> None:
        await scenario.story(world)
        world.judge()

    in_world(story, **scenario.options)


def test_a_job_brings_its_exit_code_and_its_results_home() -> None:
    async def story(world: World) -> None:
        await a_normal_run(world)
        jobs = [world.records(job).job for job in world.jobs]
        assert [(job.state, job.exit_code) for job in jobs] == [(JobState.DONE, 0), (JobState.DONE, 7)]

    in_world(story)


def test_a_batch_system_that_takes_its_time_is_not_asked_after_each_submission() -> None:
    async def story(world: World) -> None:
        [site] = world.sites.values()
        site.way.latency = 1.0  # each way: so a listing takes two seconds
        site.driver = replace(site.driver, listing_interval=60.0)
        site.way.cut(0.0)  # what is connected has the old driver
        asked: list[float] = []
        answer = site.batch.command

        def command(command: Command) -> CommandResult:
            if command.argv[-1] == "list":
                asked.append(world.loop.time())
            return answer(command)

        site.batch.command = command  # type: ignore[method-assign]
        for _ in range(60):
            await world.submit(300.0)
            await asyncio.sleep(1.0)
        gaps = [after - before for before, after in itertools.pairwise(asked)]
        assert len(gaps) >= 2 and min(gaps) >= 20.0, gaps

    in_world(story, sites=1, nodes=100)
