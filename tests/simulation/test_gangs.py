"""Gangs as their users see them, over simulated sites: together or not at all, whatever becomes of one of them."""

from __future__ import annotations

import pytest

from gridhypervisor.execution.jobs import Jobs
from gridhypervisor.model.records import AllocationState, JobState, Wish
from gridhypervisor.model.views import ServiceError
from gridhypervisor.model.wire import ImageManifest, Outcome, Phase, Reason
from gridhypervisor.simulation.pilot import Pilot
from tests.simulation.scenarios import executing, pilots
from tests.simulation.world import World, in_world

AFTER = (Phase.EXECUTE, Phase.STAGE_OUT, Phase.SHUT_DOWN)
"""Phases of a member that was told to begin."""


def gathering(world: World) -> list[Pilot]:
    return [pilot for pilot in pilots(world) if pilot.phase is Phase.GATHER]


def states(world: World, group: str) -> list[JobState]:
    return [job.state for job in world.tasks(group)]


def rounds(world: World, group: str) -> list[list[int]]:
    """The epochs of each member's attempts."""
    return [[a.epoch for a in world.records(job.id).allocations] for job in world.tasks(group)]


def test_no_program_begins_before_all_are_ready_and_each_is_told_of_all() -> None:
    told: dict[str, str] = {}

    async def story(world: World) -> None:
        group = await world.submit_gang(3, 20.0, "${TASK_ID}")

        def over() -> bool:
            begun = [pilot for pilot in pilots(world) if pilot.phase in AFTER]
            told.update((pilot.name, pilot.members) for pilot in begun)
            ready = begun + gathering(world)
            assert not begun or len(told) + len(ready) >= 3, "one has begun, and not all were ready"
            return bool(world.group(group).state.final)  # type: ignore[union-attr]

        await world.until(over, 3000.0, "the gang ends")
        tasks = world.tasks(group)
        assert [(job.name, job.state, job.exit_code) for job in tasks] == [
            (f"gang[{n}]", JobState.DONE, n) for n in range(3)
        ]
        sites = {a.site for job in tasks for a in world.records(job.id).allocations}
        assert len(sites) == 1, "at one site, unless it may spread"
        [members] = set(told.values())
        words = [line.split() for line in members.splitlines()]
        assert [(index, name) for index, name, _, _ in words] == [(str(n), f"{group}-{n}") for n in range(3)]
        assert {site for _, _, site, _ in words} == sites and all(node for *_, node in words)
        world.judge()

    in_world(story, nodes=4)
    assert len(told) == 3


def test_a_member_that_is_never_ready_has_all_released_and_retried_whole() -> None:
    """The site has two nodes, and takes all the jobs that it is given."""

    async def story(world: World) -> None:
        group = await world.submit_gang(3, 5.0, retry=1, patience="40s")
        await world.settled()
        assert states(world, group) == [JobState.FAILED] * 3, world.story()
        assert rounds(world, group) == [[1, 2]] * 3, world.story()
        for job in world.tasks(group):
            assert job.reason is Reason.GANG and "2 of 3 were ready 40s after the first" in job.message, job
            exits = [a.exit for a in world.records(job.id).allocations if a.exit is not None]
            assert all(exit.outcome is Outcome.STOPPED for exit in exits)
            assert all(phase.phase not in AFTER for exit in exits for phase in exit.phases), "no program has run"
        world.judge()

    in_world(story, sites=1, nodes=2)


def test_a_room_that_comes_in_time_lets_the_next_round_begin() -> None:
    async def story(world: World) -> None:
        other = await world.submit(60.0)
        await world.until(lambda: len(executing(world)) == 1, 100.0, "another job has one of the two nodes")
        group = await world.submit_gang(2, 5.0, retry=10, patience="20s")
        await world.settled()
        assert states(world, group) == [JobState.DONE] * 2, world.story()
        assert world.records(other).job.state is JobState.DONE
        assert len(rounds(world, group)[0]) > 1
        world.judge()

    in_world(story, sites=1, nodes=2)


def test_a_member_that_dies_as_it_starts_has_all_retried_elsewhere() -> None:
    async def story(world: World) -> None:
        group = await world.submit_gang(2, 5.0, retry=1)
        await world.until(lambda: any(p.phase is Phase.BOOT for p in pilots(world)), 100.0, "one boots")
        next(p for p in pilots(world) if p.phase is Phase.BOOT).kill()
        await world.settled()
        assert states(world, group) == [JobState.DONE] * 2, world.story()
        assert rounds(world, group) == [[1, 2]] * 2
        sites = [{a.site for a in world.records(job.id).allocations} for job in world.tasks(group)]
        assert sites == [{"site0", "site1"}] * 2, "the site that failed it comes last"
        world.judge()

    in_world(story, nodes=2)


def test_a_member_that_fails_while_another_has_ended_has_both_run_again() -> None:
    async def story(world: World) -> None:
        group = await world.submit_gang(2, 40.0)
        await world.until(lambda: len(executing(world)) == 2, 100.0, "both run")
        slow = executing(world)[1]
        slow.pause()
        first = world.tasks(group)[0].id
        await world.until(lambda: world.state(first) in ("collected", "cleaned"), 200.0, "the first has ended")
        assert not world.records(first).job.state.final, "a gang ends as one"
        slow.kill()
        await world.settled()
        assert states(world, group) == [JobState.DONE] * 2, world.story()
        assert rounds(world, group) == [[1, 2]] * 2
        assert all(a.state is AllocationState.CLEANED for a in world.records(first).allocations)
        world.judge()

    in_world(story, sites=1, nodes=2)


def test_what_no_retry_mends_ends_all() -> None:
    async def story(world: World) -> None:
        group = await world.submit_gang(2, 40.0)
        await world.until(lambda: len(executing(world)) == 2, 100.0, "both run")
        executing(world)[0].stop(Reason.WALLTIME, "its walltime is over")
        await world.settled()
        reasons = {job.reason for job in world.tasks(group)}
        assert states(world, group) == [JobState.FAILED] * 2 and reasons == {Reason.WALLTIME, Reason.GANG}
        assert rounds(world, group) == [[1]] * 2
        ended = world.group(group)
        assert ended is not None and ended.state is JobState.FAILED
        world.judge()

    in_world(story, sites=1, nodes=2)


def test_the_cancel_of_one_is_that_of_all() -> None:
    async def story(world: World) -> None:
        group = await world.submit_gang(3, 40.0)
        await world.until(lambda: len(executing(world)) == 3, 100.0, "all run")
        await world.cancel(world.tasks(group)[1].id)
        await world.settled()
        assert states(world, group) == [JobState.CANCELLED] * 3
        waiting = await world.submit_gang(30, 40.0)  # more than any site has
        await world.until(lambda: len(world.tasks(waiting)) == 30, 100.0, "they are made")
        await world.delete(world.tasks(waiting)[0].id)
        await world.settled()
        assert states(world, waiting) == [JobState.CANCELLED] * 29
        await world.wish_group(group, Wish.DELETE)
        await world.settled()
        assert world.group(group) is None
        world.judge()

    in_world(story, nodes=3, places=4)


def test_a_gang_waits_for_all_its_places_and_who_comes_later_does_not_take_them() -> None:
    async def story(world: World) -> None:
        early = [await world.submit(20.0 * (number + 1)) for number in range(3)]
        await world.until(lambda: len(executing(world)) == 3, 100.0, "the site is full")
        group = await world.submit_gang(3, 5.0)
        await world.until(lambda: len(world.tasks(group)) == 3, 100.0, "its members are made")
        late = []

        def begun() -> bool:
            return any(world.records(job.id).allocations for job in world.tasks(group))

        while not begun():
            late.append(await world.submit(1.0))
            before = world.loop.time()
            await world.until(lambda: world.loop.time() >= before + 3.0, 10.0, "a moment passes")  # noqa: B023
            placed = [bool(world.records(job.id).allocations) for job in world.tasks(group)]
            assert all(placed) or not any(placed), "all or none"
        assert all(world.records(job).job.state.final for job in early)
        placed_at = world.records(world.tasks(group)[0].id).allocations[0].times.planned
        attempts = [a for job in late for a in world.records(job).allocations]
        assert all(a.times.planned >= placed_at for a in attempts), f"who came later was first\n{world.story()}"
        await world.settled()
        assert states(world, group) == [JobState.DONE] * 3
        assert all(world.records(job).job.state is JobState.DONE for job in late)
        world.judge()

    in_world(story, sites=1, nodes=3, places=3)


def test_a_gang_that_may_spread_goes_where_there_is_room() -> None:
    async def story(world: World) -> None:
        tight = await world.submit_gang(3, 5.0)
        wide = await world.submit_gang(3, 5.0, spread=True)
        await world.until(lambda: world.group(wide).state.final, 300.0, "the one that may spread ends")  # type: ignore[union-attr]
        assert states(world, wide) == [JobState.DONE] * 3, world.story()
        where = [world.records(job.id).allocations[-1].site for job in world.tasks(wide)]
        assert sorted(map(where.count, set(where))) == [1, 2]
        told = world.explain(world.tasks(tight)[0].id)
        assert "its gang of 3 exceeds the 2 jobs that can be there at once" in told.summary, told
        await world.wish_group(tight, Wish.CANCEL)
        await world.settled()
        world.judge()

    in_world(story, nodes=2, places=2)


def test_a_gang_is_planned_explained_and_kept_as_one() -> None:
    async def story(world: World) -> None:
        jobs = Jobs(world.controller, lambda _: ("", ImageManifest(())), "me", "default")
        first = await world.submit_gang(3, 30.0, spread=True)
        await world.until(lambda: len(executing(world)) == 3, 100.0, "all run")
        second = await world.submit_gang(2, 5.0)
        await world.until(lambda: len(world.controller.seeking) == 1, 50.0, "it waits")
        [line] = await jobs.plan_ahead(10)
        assert line.group == second and line.name == "gang" and list(line.places.values()) == [2], line
        assert line.at is not None and line.at > world.clock(), "when one of those that run has ended"
        told = await jobs.explain(world.tasks(second)[1].id)
        assert (told.group, [m.state for m in told.members], told.turn) == (
            second, [JobState.PENDING] * 2, "1 of 1 jobs that wait"
        )  # fmt: skip
        member = world.tasks(first)[0].id
        told = await jobs.explain(member)
        assert [(m.member, m.state) for m in told.members] == [(str(n), JobState.RUNNING) for n in range(3)]
        assert len({m.site for m in told.members}) == 2

        # None of it is moved, not even by its own wish.
        with pytest.raises(ServiceError) as error:
            await jobs.move(member, "")
        problem = error.value.problem
        assert problem.status == 409 and "whose members stay together" in problem.detail and first in problem.hint
        executing(world)[0].asks = "no licence here"

        def heard() -> bool:
            return any("it stays: it is one of a gang" in w for w in world.controller.waiting.values())

        await world.until(heard, 100.0, "it was heard")
        await world.settled()
        assert rounds(world, first) == [[1]] * 3 and states(world, second) == [JobState.DONE] * 2
        told = await jobs.explain(member)
        assert [m.state for m in told.members] == [JobState.DONE] * 3, "those that are over as well"
        world.judge()

    in_world(story, nodes=2, places=2)


def test_a_gang_goes_on_over_a_restart_at_any_time() -> None:
    async def story(world: World) -> None:
        group = await world.submit_gang(3, 10.0)
        await world.until(lambda: len(gathering(world)) >= 1, 100.0, "one is ready")
        await world.restart()
        await world.until(lambda: len(executing(world)) == 3, 200.0, "all run")
        await world.restart()
        await world.settled()
        assert states(world, group) == [JobState.DONE] * 3
        assert rounds(world, group) == [[1]] * 3
        world.judge()

    in_world(story, nodes=3, spool_lag=4.0)
