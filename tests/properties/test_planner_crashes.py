"""The controller dies at every step that it can take, in every story that takes it there; afterwards all ends well.

And at every step while a hundred jobs are in flight over three sites: each restart has all of them to take up.
"""

from __future__ import annotations

import itertools
from functools import cache
from random import Random

import pytest

from gridhypervisor.execution.steps import STEPS
from gridhypervisor.model.records import AllocationState
from gridhypervisor.simulation.pilot import Pilot
from tests.simulation.scenarios import SCENARIOS, Scenario, pilots
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
        world.deadly = {step}
        await scenario.story(world)
        world.judge()

    return in_world(story, **scenario.options).crashes == 1


# -- a hundred jobs over three sites -----------------------------------------------------------------------------------

IN_FLIGHT = 100


@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", range(2))
def test_the_controller_dies_at_every_step_with_a_hundred_jobs_in_flight(seed: int) -> None:
    """Users change their minds, submissions are lost, pilots die: what takes the controller to its rarer steps too."""
    in_flight: list[int] = []

    async def story(world: World) -> None:
        random = Random(seed)
        deeds = itertools.cycle(DEEDS)
        while sum(not case.job.state.final for case in world.controller.cases.values()) < IN_FLIGHT:
            await world.submit(
                random.choice(LENGTHS), retry=5, replace=random.random() < 0.5, segment=random.choice(SEGMENTS)
            )
        world.deadly = set(STEPS)
        while world.deadly:
            assert world.loop.time() < 20_000, f"never reached: {sorted(world.deadly)}"
            await befalls(world, random, next(deeds))
            while (alive := sum(not case.job.state.final for case in world.controller.cases.values())) < IN_FLIGHT:
                await world.submit(
                    random.choice(LENGTHS), retry=5, replace=random.random() < 0.5, segment=random.choice(SEGMENTS)
                )
            in_flight.append(alive)
        for site in world.sites.values():
            site.calm()
        await world.resume_all()
        await world.settled(20_000.0)
        await world.until(
            lambda: not any(s.unfinished for s in world.sites.values()), 1000.0, "no pilot waits for more"
        )
        world.judge()

    # In the second one, pilots serve others.
    world = in_world(story, sites=3, nodes=8, places=40, listing_lag=3.0, spool_lag=4.0, idle=10.0 * seed, seed=seed)
    assert world.crashes == len(STEPS)
    assert min(in_flight) >= IN_FLIGHT


DEEDS = ("cancel one that runs", "lose a submission", "cancel one as it begins", "end a pilot", "delete", "recover",
         "cancel one in its prolog", "lose answers where nothing is listed", "cut a site off",
         "hand in an array", "move", "hand in a gang", "end a gang's pilot", "suspend", "save", "copy",
         "resume")  # fmt: skip
LENGTHS = (2.0, 10.0, 40.0)
"""Seconds that programs take."""
SEGMENTS = (None, None, "40s")
"""Batch jobs of what lasts longer: as long as it does, or so long."""


def blind(world: World) -> bool:
    """Whether site0 lists nothing at present."""
    return bool(world.sites["site0"].batch.weather.listing)


def runs_unnamed(world: World) -> bool:
    """Whether a job runs whose batch job's number is not known: it is learned once there are listings again."""
    return any(
        a.state is AllocationState.RUNNING and not case.pilot_jobs[a.pilot_job].batch_id
        for case in world.controller.cases.values()
        for a in case.allocations
    )


def executing(world: World) -> list[str]:
    """Jobs whose programs run, one by one and not in gangs."""
    return [p.manifest.job for p in pilots(world) if p.executes and not p.manifest.hold]


async def befalls(world: World, random: Random, deed: str) -> None:
    """Something happens to one of the jobs or sites, and a moment passes."""
    job, site = random.choice(world.jobs), random.choice(list(world.sites.values()))
    match deed:
        case "cancel one in its prolog":
            for each in world.sites.values():
                each.way.hang(5.0)
            await world.cancel(await world.submit(random.choice(LENGTHS)))
        case "cancel one as it begins":
            begun = [p.manifest.job for p in pilots(world) if p.entry is not None]
            if unseen := [job for job in begun if world.state(job) == "queued"]:
                await world.cancel(unseen[0])
        case "cancel one that runs":
            if running := [job for job in world.controller.cases if world.state(job) == "running"]:
                await world.cancel(running[0])
        case "delete" if job in world.controller.cases:
            await world.delete(job)
        case "recover":
            await world.recover(job)
        case "move" if job in world.controller.cases:
            await world.move(job)
        case "suspend" if programs := executing(world):
            await world.suspend(random.choice(programs))
        case "save" if programs := executing(world):
            await world.checkpoint(random.choice(programs))
        case "copy" if kept := [c.id for case in world.controller.cases.values() for c in case.checkpoints]:
            await world.copy(random.choice(kept))
        case "resume":
            await world.resume_all()
        case "hand in an array":
            await world.submit_array("1-3%2", random.choice(LENGTHS))
        case "hand in a gang":
            await world.submit_gang(3, random.choice(LENGTHS), retry=20, spread=random.random() < 0.5)
        case "end a gang's pilot" if there := [p for p in pilots(world) if p.entry is not None and p.manifest.hold]:
            random.choice(there).kill()
        case "cut a site off":
            site.way.cut(random.choice((20.0, 60.0, 200.0)))
        case "lose a submission":
            site.batch.weather.submissions.append(random.choice(("lost", "mute", "late")))
        case "end a pilot" if there := site.batch.pilots():
            random.choice((Pilot.kill, Pilot.destroy, Pilot.pause))(random.choice(there))
        case "lose answers where nothing is listed" if not blind(world):
            world.sites["site0"].batch.weather.listing = "fails"
            world.sites["site0"].batch.weather.submissions.extend(("mute", "mute", "mute"))
        case "lose answers where nothing is listed" if runs_unnamed(world):
            world.sites["site0"].batch.weather.listing = ""
        case _:
            pass  # there is nobody to whom it could happen
    end = world.loop.time() + random.choice((0.1, 1.0, 5.0))
    await world.until(lambda: world.loop.time() >= end, 10.0, "a moment passes")
