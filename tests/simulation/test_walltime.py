"""Jobs that last longer than their batch jobs: what they keep, what they wait for, what befalls them between two."""

from __future__ import annotations

import asyncio
import itertools
from dataclasses import replace
from math import inf

import pytest

from gridhypervisor.model.records import Allocation, AllocationState, JobState
from gridhypervisor.model.wire import Phase, Reason
from gridhypervisor.planning.ledger import handovers
from gridhypervisor.simulation.pilot import Pilot
from tests.simulation.scenarios import executes, pilots
from tests.simulation.test_suspension import printed, running
from tests.simulation.test_suspension import told as words
from tests.simulation.world import World, in_world

SEGMENT = "40s"


def told(world: World, job: str) -> list[Allocation]:
    """Its attempts, but for those that never got their word: the last one has often been asked for in vain."""
    return [a for a in world.records(job).allocations if not a.untold]


def reasons(world: World, job: str) -> list[Reason | None]:
    return [a.exit.reason if a.exit is not None else a.why for a in told(world, job)]


def ran(world: World, job: str) -> float:
    """Seconds that its program ran, in all attempts."""
    return sum(p.end - p.start for a in world.records(job).allocations if a.exit is not None for p in a.exit.phases
               if p.phase == "execute" and p.end is not None)  # fmt: skip


async def attempts(world: World, job: str, count: int) -> Pilot:
    """Wait until the program runs in its attempt of that number; the pilot."""
    await world.until(lambda: len(world.records(job).allocations) >= count, 600.0, f"attempt {count} of {job}")
    return await running(world, job)


def test_a_job_goes_on_through_batch_jobs_until_it_is_done() -> None:
    async def story(world: World) -> None:
        job = await world.submit(70.0, 7, retry=0, segment=SEGMENT)
        await world.settled()
        found = world.records(job)
        assert (found.job.state, found.job.exit_code) == (JobState.DONE, 7)
        assert reasons(world, job)[-1] is Reason.EXITED
        assert set(reasons(world, job)[:-1]) == {Reason.HAND_OVER} and len(told(world, job)) >= 3
        assert ran(world, job) == pytest.approx(70.0, abs=0.1), "nothing was done twice"
        assert len(printed(world, job)) == len(told(world, job)), "each printed one line, and none was lost"
        assert "was nearly over: it goes on in another, from checkpoint" in words(world, job)
        assert all(a.segment is not None and a.segment.walltime <= 40 for a in found.allocations)
        world.judge()

    in_world(story)


def test_the_next_batch_job_is_there_before_the_one_before_it_is_over() -> None:
    async def story(world: World) -> None:
        job = await world.submit(60.0, retry=0, segment=SEGMENT)
        await world.settled()
        found = world.records(job)
        attempts = told(world, job)
        assert all(a.ahead and a.go for a in attempts[1:]) and len(attempts) > 1
        for before, after in itertools.pairwise(attempts):
            assert after.times.running is not None and before.times.ended is not None
            assert after.times.running < before.times.ended < (after.times.ended or 0.0)
        assert ran(world, job) == pytest.approx(60.0, abs=0.1)
        cost = handovers(found.job, found.allocations, world.clock())
        assert cost.times == len(attempts) - 1
        assert 0 < cost.stood < 20.0 * cost.times and 0 < cost.double < 20.0 * cost.times
        total = world.store.accounts((), since=0.0, until=inf, limit=1).total
        assert total.double_hours == pytest.approx(cost.double / 3600)
        world.judge()

    in_world(story)


def test_a_program_that_ends_needs_no_next_batch_job() -> None:
    """Which is ready by then, or waits in the queue: it ends, and decides nothing."""

    async def story(world: World) -> None:
        site = world.sites["site0"]
        job = await world.submit(13.0, 3, retry=0, segment=SEGMENT, site="site0")
        await running(world, job)
        site.batch.occupy(1, 200.0, 100.0)
        await world.settled()
        found = world.records(job)
        assert (found.job.state, found.job.exit_code) == (JobState.DONE, 3)
        assert [a.untold for a in found.allocations] == [False, True]
        assert found.allocations[1].restore == "" and found.allocations[1].state is AllocationState.CLEANED
        world.judge()

    in_world(story, sites=1)


async def ready(world: World, job: str) -> Pilot:
    """Wait until the next batch job waits for its word; its pilot."""

    def those() -> list[Pilot]:
        return [p for p in pilots(world) if p.entry is not None and p.manifest.job == job and p.phase is Phase.GATHER]

    await world.until(lambda: bool(those()), 300.0, f"a successor of {job} waits")
    return those()[0]


@pytest.mark.parametrize("saved", [True, False], ids=["goes-on-from-a-checkpoint", "begins-anew"])
def test_the_first_ones_node_dies_when_the_next_one_is_ready(saved: bool) -> None:
    """It is never told to begin while anything of the first one may run; and not at all with nothing to go on from."""

    async def story(world: World) -> None:
        job = await world.submit(50.0, retry=1, segment=SEGMENT)
        first = await running(world, job)
        first.tempo = replace(first.tempo, save=1000.0 if not saved else 1.5)
        if saved:
            await world.checkpoint(job)
            await world.until(lambda: bool(world.records(job).checkpoints), 30.0, "it is saved")
            first.tempo = replace(first.tempo, save=1000.0)
        await ready(world, job)
        first.destroy()
        await world.settled()
        found = world.records(job)
        assert found.job.state is JobState.DONE and found.allocations[0].exit is not None
        assert found.allocations[0].exit.reason is Reason.LOST
        assert found.allocations[1].go is saved
        assert (found.allocations[1].restore != "") is saved
        world.judge()

    in_world(story)


def test_a_user_suspends_or_cancels_when_the_next_one_is_ready() -> None:
    async def story(world: World) -> None:
        job, other = [await world.submit(90.0, retry=0, walltime=600, segment=SEGMENT) for _ in range(2)]
        await ready(world, job)
        await world.suspend(job)
        await ready(world, other)
        await world.cancel(other)
        await world.until(lambda: world.records(job).job.state is JobState.SUSPENDED, 200.0, "it stands still")
        await asyncio.sleep(100.0)
        assert not [p for p in pilots(world) if p.alive]
        await world.resume(job)
        await world.settled()
        assert [world.records(each).job.state for each in (job, other)] == [JobState.DONE, JobState.CANCELLED]
        assert ran(world, job) == pytest.approx(90.0, abs=0.1)
        world.judge()

    in_world(story, nodes=4)


def test_its_walltime_is_its_programs_whatever_the_batch_jobs() -> None:
    async def story(world: World) -> None:
        job = await world.submit(500.0, retry=0, walltime=60, segment=SEGMENT)
        await world.settled()
        assert (world.records(job).job.state, world.records(job).job.reason) == (JobState.FAILED, Reason.WALLTIME)
        assert ran(world, job) == pytest.approx(60.0, abs=1.0)
        world.judge()

    in_world(story)


def test_a_saved_guest_waits_for_a_blocked_queue_and_says_what_for() -> None:
    """Ten minutes; and the service dies meanwhile. It is the site that has its checkpoint which it waits for."""

    async def story(world: World) -> None:
        job = await world.submit(60.0, retry=0, segment=SEGMENT)
        await running(world, job)
        [site] = [world.sites[a.site] for a in world.records(job).allocations]
        site.batch.occupy(1, 630.0, 600.0)
        await world.until(lambda: world.state(job) == "queued", 200.0, "it is in the queue again")
        await asyncio.sleep(100.0)
        assert "its guest is saved at" in world.controller.waiting[job] and "waits: " in world.controller.waiting[job]
        assert world.records(job).job.state is JobState.QUEUED
        await world.restart()
        await world.settled()
        assert world.records(job).job.state is JobState.DONE
        assert ran(world, job) == pytest.approx(60.0, abs=0.1)
        world.judge()

    in_world(story, nodes=1, sites=1)


def test_a_user_suspends_resumes_and_cancels_what_goes_on() -> None:
    async def story(world: World) -> None:
        job = await world.submit(300.0, retry=0, walltime=600, segment=SEGMENT)
        await attempts(world, job, 2)
        await world.suspend(job)
        await world.until(lambda: world.records(job).job.state is JobState.SUSPENDED, 100.0, "it stands still")
        await asyncio.sleep(50.0)
        await world.resume(job)
        await attempts(world, job, 3)
        await world.cancel(job)
        await world.settled()
        assert world.records(job).job.state is JobState.CANCELLED
        world.judge()

    in_world(story)


@pytest.mark.parametrize("deed", [Pilot.destroy, Pilot.kill, Pilot.pause], ids=["node-dies", "killed", "stopped"])
def test_what_befalls_a_later_batch_job_costs_only_that(deed: object) -> None:
    """Its node dies, its pilot is killed, or is stopped beyond the time by which its guest was to be saved."""

    async def story(world: World) -> None:
        job = await world.submit(60.0, retry=1, segment=SEGMENT)
        pilot = await attempts(world, job, 2)
        before = world.records(job).checkpoints[-1].executed
        deed(pilot)  # type: ignore[operator]
        await world.settled()
        found = world.records(job)
        assert found.job.state is JobState.DONE
        assert found.allocations[2].restore == found.allocations[1].restore != ""
        assert before > 10.0 and reasons(world, job)[1] not in (Reason.HAND_OVER, Reason.EXITED)
        world.judge()

    in_world(story)


def test_a_guest_that_cannot_be_saved_is_tried_again_from_what_there_is() -> None:
    async def story(world: World) -> None:
        job = await world.submit(60.0, retry=1, segment=SEGMENT)
        pilot = await attempts(world, job, 2)
        pilot.cannot_save = "no space left where checkpoints are kept"
        await world.settled()
        found = world.records(job)
        assert found.job.state is JobState.DONE and reasons(world, job)[1] is Reason.UNSAVED
        assert found.allocations[2].restore == found.allocations[1].restore != ""
        world.judge()

    in_world(story)


def test_a_guest_that_its_site_evicts_is_saved_first() -> None:
    async def story(world: World) -> None:
        job = await world.submit(60.0, retry=1, segment=SEGMENT)
        pilot = await running(world, job)
        await asyncio.sleep(10.0)
        pilot.end("the site's administrator")
        await world.settled()
        assert reasons(world, job)[0] is Reason.EVICTED and world.records(job).job.state is JobState.DONE
        assert ran(world, job) == pytest.approx(60.0, abs=0.1), "nothing was lost"
        world.judge()

    in_world(story)


def test_a_site_that_is_silent_when_a_batch_job_ends_delays_and_loses_nothing() -> None:
    async def story(world: World) -> None:
        job = await world.submit(60.0, retry=0, segment=SEGMENT)
        await executes(world, job)
        for site in world.sites.values():
            site.way.cut(120.0)
        await world.settled()
        assert world.records(job).job.state is JobState.DONE
        assert ran(world, job) == pytest.approx(60.0, abs=0.1)
        world.judge()

    in_world(story)


def test_what_nobody_heard_of_is_not_left_at_the_site() -> None:
    """A pilot that saved its guest, and died before its sentinel was seen."""

    async def story(world: World) -> None:
        job = await world.submit(150.0, retry=1, walltime=600, segment="120s")
        pilot = await running(world, job)
        [site] = [world.sites[a.site] for a in world.records(job).allocations]
        site.batch.occupy(1, 400.0, 300.0)
        await world.until(lambda: bool(site.spool.kept), 150.0, "its guest is saved")
        pilot.destroy()
        await world.settled()
        found = world.records(job)
        assert found.job.state is JobState.DONE and found.allocations[0].state is AllocationState.CLEANED
        assert not pilots(world)
        world.judge()

    in_world(story, spool_lag=20.0, sites=1)
