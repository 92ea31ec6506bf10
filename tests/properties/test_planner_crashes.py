"""The controller dies at every step that it can take, in every story that takes it there; afterwards all ends well."""

from __future__ import annotations

from functools import cache

import pytest

from gridhypervisor.execution.controller import STEPS
from tests.simulation.scenarios import SCENARIOS, Scenario
from tests.simulation.world import World, in_world


@cache
def reached(scenario_name: str) -> frozenset[str]:
    """The steps of a story in which nobody dies."""
    [scenario] = [s for s in SCENARIOS if s.name == scenario_name]
    return frozenset(in_world(scenario.story, **scenario.options).reached)


def test_the_stories_reach_every_step() -> None:
    missing = set(STEPS).difference(*(reached(s.name) for s in SCENARIOS))
    assert not missing, f"no story of tests/simulation/scenarios.py reaches {sorted(missing)}: tell one"


@pytest.mark.parametrize("step", STEPS)
def test_the_controller_dies_at(step: str) -> None:
    stories = [s for s in SCENARIOS if step in reached(s.name)]
    assert stories, f"no story reaches {step}"
    for scenario in stories:
        dies_in(scenario, step)


def dies_in(scenario: Scenario, step: str) -> None:
    async def story(world: World) -> None:
        world.deadly = step
        await scenario.story(world)
        assert world.crashes == 1, f"{step} was not reached in {scenario.name}\n{world.story()}"
        world.judge()

    in_world(story, **scenario.options)
