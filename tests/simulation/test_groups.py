"""Arrays as their users see them, over simulated sites: in order, so many at a time, and as one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from gridhypervisor.execution.places import SPARE
from gridhypervisor.model.records import JobState, Wish
from gridhypervisor.model.wire import Reason
from gridhypervisor.planning.arrays import AHEAD
from tests.simulation.scenarios import executes, suspended
from tests.simulation.world import World, in_world


def test_no_more_tasks_are_alive_at_once_than_the_array_says() -> None:
    most = 0

    async def story(world: World) -> None:
        nonlocal most
        group = await world.submit_array("1-8%3", 5.0, "${TASK_ID}")

        def over() -> bool:
            nonlocal most
            most = max(most, sum(not job.state.final for job in world.tasks(group)))
            return world.group(group).state.final  # type: ignore[union-attr]

        await world.until(over, 3000.0, "the array ends")
        tasks = world.tasks(group)
        assert [(job.name, job.state, job.exit_code) for job in tasks] == [
            (f"many[{n}]", JobState.DONE, n) for n in range(1, 9)
        ]
        ended = world.group(group)
        assert ended is not None and ended.state is JobState.DONE and ended.made == 8
        for job in tasks:
            assert job.destination.endswith(f"/results/many/{job.member}")
            assert (Path(job.destination) / "products/result").read_text().split()[0] == job.id
        tally = world.store.tally(group)
        assert (tally.well, tally.first_bad) == (0, tasks[0].id)

    in_world(story, nodes=20)
    assert most == 3


def test_a_long_array_is_made_as_its_tasks_come_up_and_survives_a_restart() -> None:
    async def story(world: World) -> None:
        group = await world.submit_array("1-2000", 30.0)
        await world.until(lambda: len(world.tasks(group)) >= AHEAD, 60.0, "the first tasks are made")
        assert len(world.controller.cases) <= AHEAD + 2 * 20
        await world.restart()
        await world.until(lambda: any(job.state.final for job in world.tasks(group)), 600.0, "a task ends")
        assert len(world.tasks(group)) < 2000
        await world.wish_group(group, Wish.CANCEL)
        await world.settled()
        ended, tasks = world.group(group), world.tasks(group)
        assert ended is not None and ended.state is JobState.CANCELLED
        assert all(job.state.final for job in tasks) and len({job.member for job in tasks}) == len(tasks) == ended.made

    in_world(story, nodes=20, places=20)


def test_a_task_is_a_job_like_all_others() -> None:
    async def story(world: World) -> None:
        group = await world.submit_array("5,7,9", 60.0)
        await world.until(lambda: len(world.tasks(group)) == 3, 60.0, "they are made")
        seven = world.store.member(group, "7")
        assert seven is not None and seven.job.name == "many[7]"
        await world.cancel(seven.job.id)
        await world.settled()
        states = {job.member: job.state for job in world.tasks(group)}
        assert states == {"5": JobState.DONE, "7": JobState.CANCELLED, "9": JobState.DONE}
        ended = world.group(group)
        assert ended is not None and ended.state is JobState.FAILED

    in_world(story)


def test_a_task_that_stands_still_keeps_its_array_alive_until_it_is_resumed() -> None:
    async def story(world: World) -> None:
        group = await world.submit_array("1-3%2", 40.0)
        await world.until(lambda: len(world.tasks(group)) == 2, 60.0, "the first are made")
        first = world.tasks(group)[0].id
        await executes(world, first)
        await world.suspend(first)
        await suspended(world, first)
        await world.until(lambda: sum(job.state.final for job in world.tasks(group)) == 2, 300.0, "the others end")
        alive = world.group(group)
        assert alive is not None and not alive.state.final
        assert f"ghv resume {first}" in world.story()
        await world.resume_all()
        await world.settled()
        ended = world.group(group)
        assert ended is not None and ended.state is JobState.DONE
        assert world.records(first).job.state is JobState.DONE
        world.judge()

    in_world(story)


def test_a_job_that_is_to_run_after_others_waits_for_them_over_a_restart() -> None:
    async def story(world: World) -> None:
        first, array = await world.submit(40.0), await world.submit_array("1-3", 20.0)
        last = await world.submit(1.0, after=(first, array))
        await world.until(lambda: world.state(first) == "running", 100.0, "the first runs")
        await world.restart()
        await world.settled()
        began = next(e.at for e in world.store.events(job=last) if e.after == "planned")
        ends = [world.records(first).job.ended, *(job.ended for job in world.tasks(array))]
        assert world.records(last).job.state is JobState.DONE
        assert all(end is not None and end <= began for end in ends)

    in_world(story)


def test_a_job_that_is_to_run_after_one_that_fails_never_runs() -> None:
    async def story(world: World) -> None:
        bad = await world.submit(5.0, 4)
        never = await world.submit(1.0, after=(bad,))
        and_never = await world.submit(1.0, after=(never,))
        await world.settled()
        for job, why in ((never, f"{bad}, which ended with exit code 4"), (and_never, f"{never}, which is failed")):
            records = world.records(job)
            assert (records.job.state, records.job.reason) == (JobState.FAILED, Reason.FUTILE)
            assert why in records.job.message and not records.allocations

    in_world(story)


def test_jobs_that_are_held_stand_in_nobodys_way() -> None:
    """More of them than are offered a free place at a time, and all before the one that can use it."""

    async def story(world: World) -> None:
        first, second = await world.submit(100.0), await world.submit(5.0)
        for _ in range(SPARE + 10):
            await world.submit(0.5, after=(first,))
        last = await world.submit(1.0)
        await world.until(lambda: world.records(last).job.state is JobState.DONE, 90.0, "the last has the free place")
        assert world.records(second).job.state is JobState.DONE
        assert not world.records(first).job.state.final
        await world.settled()
        world.judge()

    in_world(story, sites=1, places=2, nodes=4)


def test_a_cancel_that_comes_as_the_array_ends_finds_it_ended() -> None:
    async def story(world: World) -> None:
        group = await world.submit_array("1-2", 1.0)
        before = world.controller.groups.alive()
        await world.settled()
        found = world.group(group)
        assert found is not None and found.state is JobState.DONE
        world.controller.groups._take(replace(before[0], version=0))  # what a slow request still holds
        await world.wish_group(group, Wish.CANCEL)
        await world.settled()
        assert world.group(group) == found

    in_world(story)
