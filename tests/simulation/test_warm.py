"""Pilots that serve one job after another: in virtual time, with every fault that can be arranged there."""

from __future__ import annotations

import asyncio

from gridhypervisor.model.records import AllocationState, JobState
from gridhypervisor.simulation.pilot import Pilot
from tests.simulation.scenarios import batch_jobs, pilots
from tests.simulation.world import World, in_world

IDLE = {"sites": 1, "nodes": 2, "idle": 10.0}


def hosts(world: World) -> dict[str, str]:
    """Of each job, the entry in whose batch job its last attempt ran, where that is another's."""
    ended = {job: world.records(job).allocations[-1].exit for job in world.jobs}
    return {job: exit.host for job, exit in ended.items() if exit is not None and exit.host}


def attempts(world: World) -> dict[str, int]:
    """How many each job had, of those that are not deleted."""
    return {job: len(world.records(job).allocations) for job in world.jobs if job not in world.deleted}


def done(world: World, job: str) -> bool:
    return world.records(job).job.state is JobState.DONE


def began(world: World) -> int:
    """Batch jobs that have begun."""
    [site] = world.sites.values()
    return sum(job.began > 0 for job in site.batch.jobs.values())


async def over(world: World) -> None:
    """Every job has ended, and then every pilot that waited for others."""
    await world.settled()
    await world.until(lambda: not any(s.unfinished for s in world.sites.values()), 60.0, "no batch job is left")
    world.judge()


async def serving(world: World, served: int = 1) -> Pilot:
    """One that serves its so-many-th other job, and runs its guest."""

    def find() -> list[Pilot]:
        return [p for p in pilots(world) if p.served >= served and p.executes]

    await world.until(lambda: bool(find()), 300.0, "a pilot serves another job")
    return find()[0]


def test_two_pilots_serve_thirty_jobs() -> None:
    async def story(world: World) -> None:
        for _ in range(30):
            await world.submit(1.0)
        await over(world)
        assert attempts(world) == dict.fromkeys(world.jobs, 1)
        assert len(hosts(world)) >= 24 and began(world) <= 8

    in_world(story, **IDLE)


def test_a_batch_job_whose_entry_another_pilot_serves_is_cancelled_while_it_waits() -> None:
    async def story(world: World) -> None:
        for _ in range(12):
            await world.submit(1.0)
        await world.settled()
        cancelled = [job for job in batch_jobs(world) if job.reason == "Cancelled"]
        assert len(cancelled) >= 6 and all(not job.began for job in cancelled)

    in_world(story, **IDLE)


def test_a_pilot_waits_for_another_job_a_while_and_no_longer() -> None:
    async def story(world: World) -> None:
        first = await world.submit(5.0)
        await world.until(lambda: done(world, first), 200.0, "the first ends")
        second = await world.submit(5.0)
        await world.until(lambda: done(world, second), 200.0, "the second ends")
        assert second in hosts(world)
        ended = world.loop.time()
        await world.until(lambda: not any(s.unfinished for s in world.sites.values()), 60.0, "its batch job is over")
        assert world.loop.time() - ended < 15.0

    in_world(story, **IDLE)


def test_a_job_that_wants_a_batch_job_of_its_own_has_one() -> None:
    async def story(world: World) -> None:
        for number in range(10):
            await world.submit(1.0, isolation="job" if number % 2 else "auto")
        await over(world)
        alone = set(world.jobs[1::2])
        names = {world.records(job).allocations[-1].pilot_job for job in alone}
        assert not alone & hosts(world).keys() and not names & set(hosts(world).values())

    in_world(story, **IDLE)


def test_owners_never_share() -> None:
    async def story(world: World) -> None:
        owner = {}
        for number in range(20):
            name = "ann" if number % 2 else "bob"
            owner[await world.submit(1.0, owner=name)] = name
        await over(world)
        of_entry = {world.records(job).allocations[-1].pilot_job: job for job in world.jobs}
        shared = hosts(world)
        assert len(shared) >= 8
        assert all(owner[job] == owner[of_entry[host]] for job, host in shared.items())

    in_world(story, **IDLE)


def test_a_pilot_that_is_killed_costs_the_job_that_it_runs_one_attempt_and_no_other() -> None:
    async def story(world: World) -> None:
        for _ in range(12):
            await world.submit(4.0)
        pilot = await serving(world, 2)
        hurt = pilot.manifest.job
        pilot.kill()
        await over(world)
        assert attempts(world) == dict.fromkeys(world.jobs, 1) | {hurt: 2}
        assert all(done(world, job) for job in world.jobs)

    in_world(story, **IDLE)


def test_a_batch_job_that_is_ended_by_force_costs_the_job_that_it_serves_one_attempt() -> None:
    """Not a word is left: that its guest is over, the record of the batch job says that its pilot came with."""

    async def story(world: World) -> None:
        for _ in range(6):
            await world.submit(20.0)
        pilot = await serving(world)
        hurt, since = pilot.manifest.job, world.loop.time()
        pilot.destroy()
        await world.until(lambda: len(world.records(hurt).allocations) == 2, 60.0, "another attempt")
        assert world.loop.time() - since < 60.0  # and not its walltime
        await over(world)
        assert attempts(world) == dict.fromkeys(world.jobs, 1) | {hurt: 2}

    in_world(story, **IDLE)


def test_a_batch_job_that_the_site_runs_again_says_nothing_of_the_guests_that_it_served() -> None:
    async def story(world: World) -> None:
        for _ in range(4):
            await world.submit(30.0)
        pilot = await serving(world)
        hurt = pilot.manifest.job
        [site] = world.sites.values()
        [job] = [job for job in batch_jobs(world) if job.pilot is pilot]
        site.batch.requeue(job, confirmed=False)
        pilot.cut = True
        await asyncio.sleep(60.0)
        assert len(world.records(hurt).allocations) == 1  # its guest may run until its walltime is over
        site.batch.heal()
        await over(world)

    in_world(story, **IDLE)


def test_a_pilot_that_is_killed_while_it_waits_costs_nobody_anything() -> None:
    async def story(world: World) -> None:
        first = await world.submit(8.0)
        await world.until(lambda: done(world, first), 200.0, "the first ends")
        [pilot] = pilots(world)
        assert pilot.alive and pilot.phase is None
        pilot.kill()
        second = await world.submit(1.0)
        await over(world)
        assert attempts(world) == {first: 1, second: 1} and not hosts(world)

    in_world(story, **IDLE)


def test_a_cancel_ends_the_job_that_is_served_and_nothing_else() -> None:
    async def story(world: World) -> None:
        for _ in range(8):
            await world.submit(8.0)
        pilot = await serving(world)
        job, before = pilot.manifest.job, pilot.served
        await world.cancel(job)
        await world.until(lambda: pilot.served > before, 200.0, "the pilot serves the next")
        await over(world)
        assert world.records(job).job.state is JobState.CANCELLED
        others = [other for other in world.jobs if other != job]
        assert all(done(world, other) and attempts(world)[other] == 1 for other in others)

    in_world(story, **IDLE)


def test_a_cancel_of_a_job_with_a_stopped_pilot_ends_no_batch_job_that_may_serve_others() -> None:
    async def story(world: World) -> None:
        for _ in range(4):
            await world.submit(20.0)
        pilot = await serving(world)
        job = pilot.manifest.job
        pilot.pause()
        await world.cancel(job)
        await asyncio.sleep(100.0)
        [batch] = [each for each in batch_jobs(world) if each.pilot is pilot]
        assert batch.state == "RUNNING"
        pilot.resume()
        await over(world)
        assert world.records(job).job.state is JobState.CANCELLED

    in_world(story, **IDLE)


def test_a_job_that_is_deleted_leaves_its_batch_job_to_those_that_it_serves() -> None:
    async def story(world: World) -> None:
        for _ in range(4):
            await world.submit(15.0)
        pilot = await serving(world)
        host = next(job for job in world.jobs if world.records(job).allocations[-1].pilot_job == pilot.host)
        await world.until(lambda: host not in world.controller.cases, 60.0, "the host's own job is done with")
        await world.delete(host)
        await over(world)
        others = [job for job in world.jobs if job != host]
        assert {job: attempts(world)[job] for job in others} == dict.fromkeys(others, 1)

    in_world(story, **IDLE)


def test_a_controller_that_begins_anew_knows_who_serves_whom() -> None:
    async def story(world: World) -> None:
        for _ in range(10):
            await world.submit(6.0)
        for served in (1, 2):
            await serving(world, served)
            await world.restart()
        pilot = await serving(world, 3)
        hurt = pilot.manifest.job
        await world.restart()
        pilot.destroy()
        await over(world)
        assert attempts(world) == dict.fromkeys(world.jobs, 1) | {hurt: 2}

    in_world(story, **IDLE)


def test_who_asks_sees_the_batch_job_in_which_a_job_runs() -> None:
    async def story(world: World) -> None:
        for _ in range(3):
            await world.submit(15.0)
        pilot = await serving(world)
        job = pilot.manifest.job
        await world.until(lambda: world.state(job) == "running", 30.0, "it is seen to run")
        [batch] = [each for each in batch_jobs(world) if each.pilot is pilot]
        case = world.controller.cases[job]
        assert case.allocations[-1].state is AllocationState.RUNNING
        assert case.sight(case.allocations[-1]).host == batch.name != case.allocations[-1].pilot_job
        await world.settled()
        told = [event.message for event in world.store.events(job=job)]
        assert f"in the batch job of {batch.name}" in told

    in_world(story, **IDLE)
