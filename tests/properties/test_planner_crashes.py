"""The controller dies at every step that it can take, in every story that takes it there; afterwards all ends well."""

from __future__ import annotations

from functools import cache

import pytest

from gridhypervisor.execution.steps import STEPS
from tests.simulation.scenarios import SCENARIOS, Scenario
from tests.simulation.world import World, in_world

STORIES = 3
"""At most so many stories are told for one step."""


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
    first = STEPS.index(step)  # steps that many stories reach are told by different ones in turn
    told = [stories[(first + number * 5) % len(stories)] for number in range(min(STORIES, len(stories)))]
    # What happens at one moment may happen in another order next time: a story may for once not come by.
    assert sum(dies_in(scenario, step) for scenario in told), f"nobody died at {step}"


def dies_in(scenario: Scenario, step: str) -> bool:
    """Whether it did."""

    async def story(world: World) -> None:
        world.deadly = step
        await scenario.story(world)
        world.judge()

    return in_world(story, **scenario.options).crashes == 1
