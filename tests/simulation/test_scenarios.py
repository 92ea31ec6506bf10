"""One story after another, each of one thing that happens to jobs, told by the real controller in virtual time."""

from __future__ import annotations

import pytest

from gridhypervisor.model.records import JobState
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
