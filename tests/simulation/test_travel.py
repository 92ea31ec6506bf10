"""Guests that go on at another site, by copies of their checkpoints: what comes of them, and of what is wrong."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable

import pytest

from gridhypervisor.execution import copies
from gridhypervisor.model.policy import MoveSetting, SchedulingPolicy
from gridhypervisor.model.records import CheckpointState, CopyState, JobState
from gridhypervisor.model.views import ServiceError
from gridhypervisor.model.wire import Effort, HypervisorKind, HypervisorUsed
from tests.simulation.scenarios import suspended
from tests.simulation.test_suspension import printed, running, saved, told
from tests.simulation.world import World, in_world


async def said(world: World, job: str, pilot_says: HypervisorKind = HypervisorKind.TCG) -> None:
    """Wait until the controller knows what runs the guest of a job."""
    pilot = await running(world, job)
    pilot.used, pilot.effort = HypervisorUsed(pilot_says, "7.2.22", "asked for"), Effort(1.0, 0.0)

    def known() -> bool:
        case = world.controller.cases[job]
        view = case.sight(case.allocations[-1]).view
        return view is not None and view.status is not None and view.status.hypervisor is not None

    await world.until(known, 60.0, "its pilot says what runs it")


async def copied(world: World, job: str, count: int = 1) -> list[str]:
    """Wait until there are copies of so many of its checkpoints, and name these."""

    def there() -> list[str]:
        return [c.id for c in world.records(job).checkpoints if c.copy is CopyState.KEPT]

    await world.until(lambda: len(there()) >= count, 300.0, f"{count} checkpoints of {job} are copied")
    return there()


def been(world: World, job: str) -> list[tuple[str, bool]]:
    """Where it has been, and whether it went on there from a copy."""
    return [(a.site, a.copied) for a in world.records(job).allocations]


def elsewhere(world: World, job: str) -> str:
    return next(site for site in world.sites if site != world.records(job).allocations[-1].site)


async def stands_still(world: World) -> str:
    """A job of a minute that ran for 20 s, and is suspended."""
    job = await world.submit(60.0, retry=0)
    await running(world, job)
    await asyncio.sleep(20.0)
    await world.suspend(job)
    await suspended(world, job)
    return job


def test_a_suspended_job_goes_on_at_another_site_where_it_stood() -> None:
    async def story(world: World) -> None:
        job = await stands_still(world)
        there = elsewhere(world, job)
        world.sites[world.records(job).allocations[0].site].way.cut(10.0)
        await world.resume(job, there)
        await world.until(lambda: "is copied from" in world.controller.waiting[job], 30.0, "it says what it waits for")
        assert "does not answer" in world.explain(job).summary
        await world.settled()
        found = world.records(job)
        assert (found.job.state, been(world, job)[1]) == (JobState.DONE, (there, True))
        ran = [p.end - p.start for a in found.allocations if a.exit is not None for p in a.exit.phases
               if p.phase == "execute" and p.end is not None]  # fmt: skip
        assert sum(ran) == pytest.approx(60.0, abs=0.1)
        assert len(printed(world, job)) == 2, "each attempt printed one line, and none was lost or came twice"
        world.judge()

    in_world(story)


def test_a_running_guest_that_is_moved_goes_on_there_and_so_does_its_next_attempt() -> None:
    async def story(world: World) -> None:
        job = await world.submit(80.0, retry=1)
        await said(world, job)
        await asyncio.sleep(20.0)
        there = elsewhere(world, job)
        await world.backend.move(job, there)
        await world.backend.move(job, there)
        await world.until(lambda: world.records(job).allocations[-1].site == there, 200.0, "it is there")
        pilot = await running(world, job)
        pilot.destroy()
        await world.settled()
        found = world.records(job)
        assert (found.job.state, found.job.spec.site) == (JobState.DONE, there)
        assert [(site, copy) for site, copy in been(world, job)][1:] == [(there, True), (there, True)]
        assert f"it leaves {found.allocations[0].site} for {there}: it goes on from checkpoint" in told(world, job)
        world.judge()

    in_world(story)


def test_a_guest_that_cannot_be_saved_after_all_is_not_moved_and_nothing_is_given_up() -> None:
    async def story(world: World) -> None:
        job = await world.submit(60.0, retry=0)
        await said(world, job)
        pilot = await running(world, job)
        pilot.cannot_save = "no space left where checkpoints are kept"
        await world.backend.move(job, elsewhere(world, job))
        await world.until(lambda: "it was not moved" in told(world, job), 60.0, "it is said")
        await world.settled()
        found = world.records(job)
        assert (found.job.state, len(found.allocations), found.job.spec.site) == (JobState.DONE, 1, "")
        world.judge()

    in_world(story)


@pytest.mark.parametrize("how", ["cut", "drained", "its disk was altered"])
def test_a_job_whose_site_is_lost_goes_on_elsewhere_from_its_copy(how: str) -> None:
    async def story(world: World) -> None:
        job = await stands_still(world)
        [name] = await saved(world, job)
        home = world.records(job).allocations[0].site
        await world.copy(name)
        await copied(world, job)
        match how:
            case "cut":
                world.sites[home].way.cut(1000.0)
                await world.until(lambda: not world.controller.facts()[home].up, 60.0, "it is silent")
            case "drained":
                world.drain(home)
            case _:
                world.sites[home].spool.kept[name].damaged = True
        await world.resume(job)
        await world.until(lambda: world.records(job).job.state is JobState.DONE, 900.0, "it is done")
        if how == "its disk was altered":  # it is tried first, where it is
            assert been(world, job)[1] == (home, False) and been(world, job)[2][1]
        else:
            assert been(world, job)[1] == (elsewhere_of(world, home), True)
        await world.settled()
        world.judge()

    in_world(story)


def elsewhere_of(world: World, home: str) -> str:
    return next(site for site in world.sites if site != home)


def test_a_job_with_a_copy_goes_on_where_its_checkpoint_is_while_that_site_takes_it() -> None:
    async def story(world: World) -> None:
        job = await stands_still(world)
        [name] = await saved(world, job)
        await world.copy(name)
        await copied(world, job)
        await world.resume(job)
        await world.settled()
        home = world.records(job).allocations[0].site
        assert been(world, job) == [(home, False), (home, False)]
        world.judge()

    in_world(story, sites=3)


@pytest.mark.parametrize("original", ["good", "damaged too"])
def test_a_copy_that_is_spoilt_is_not_sent_but_mended_or_the_older_one_is_used(original: str) -> None:
    async def story(world: World) -> None:
        job = await world.submit(80.0, retry=0)
        await running(world, job)
        await asyncio.sleep(10.0)
        await world.checkpoint(job)
        [older] = await saved(world, job)
        await world.copy(older)
        await copied(world, job)
        await asyncio.sleep(10.0)
        await world.suspend(job)
        await suspended(world, job)
        [_, newest] = await saved(world, job, 2)
        await world.copy(newest)
        await copied(world, job, 2)
        world.spoil(newest)
        home = world.records(job).allocations[0].site
        world.sites[home].spool.kept[newest].damaged = original != "good"
        await world.resume(job, elsewhere(world, job))
        await world.settled()
        found = world.records(job)
        assert found.job.state is JobState.DONE
        used = newest if original == "good" else older
        assert [(a.restore, a.copied) for a in found.allocations] == [("", False), (newest, True), (used, True)]
        assert f"the copy of checkpoint {newest} is damaged" in told(world, job)
        assert original == "good" or f"it goes on from checkpoint {older}" in told(world, job)
        world.judge()

    in_world(story)


def test_two_who_ask_for_the_same_at_once_get_one_attempt() -> None:
    async def story(world: World) -> None:
        job = await stands_still(world)
        [name] = await saved(world, job)
        there = elsewhere(world, job)
        asked = [world.backend.copy_checkpoint(name), world.backend.copy_checkpoint(name)]
        await asyncio.gather(*asked)
        await copied(world, job)
        both = [world.backend.restore(name), world.backend.restore(name), world.backend.resume(job, there)]
        await asyncio.gather(*both, return_exceptions=True)
        await world.settled()
        found = world.records(job)
        assert (found.job.state, len(found.allocations)) == (JobState.DONE, 2)
        world.judge()

    in_world(story)


def test_a_full_disk_here_keeps_a_copy_waiting_and_is_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(world: World) -> None:
        job = await stands_still(world)
        [name] = await saved(world, job)
        monkeypatch.setattr(copies, "MARGIN", 1 << 60)
        await world.copy(name)
        await asyncio.sleep(100.0)
        [view] = await world.backend.checkpoints(job)
        assert view.copy is CopyState.WANTED and "too little is free" in view.note
        assert told(world, job).count("too little is free") == 1
        monkeypatch.setattr(copies, "MARGIN", 0)
        await copied(world, job)
        [view] = await world.backend.checkpoints(job)
        assert "too little" not in view.note
        await world.cancel(job)
        await world.settled()
        world.judge()

    in_world(story)


async def _refused(asked: Awaitable[object], words: str) -> None:
    with pytest.raises(ServiceError, match=words):
        await asked


def test_what_cannot_be_is_refused_before_anything_is_given_up() -> None:
    async def story(world: World) -> None:
        job = await world.submit(60.0, retry=0)
        await said(world, job)
        there = elsewhere(world, job)
        session = world.controller.sessions[there]
        blind = world.sites[there].transport
        blind.bundle = "f" * 64
        world.sites[there].way.cut(0.0)
        await world.until(lambda: world.controller.facts()[there].bundle == "f" * 64, 60.0, "it has another bundle")
        await _refused(world.backend.move(job, there), "was saved with bundle 0000")
        await _refused(world.backend.resume(job, there), "an attempt under way")
        await _refused(world.backend.resume(job, "nowhere"), "nowhere")
        await world.suspend(job)
        await suspended(world, job)
        await _refused(world.backend.resume(job, there), "was saved with bundle 0000")
        [name] = await saved(world, job)
        await _refused(world.backend.copy_checkpoint(name[:-1] + "7"), "no such checkpoint")
        assert world.records(job).job.state is JobState.SUSPENDED
        await world.copy(name)
        await copied(world, job)
        home = world.records(job).allocations[0].site
        world.drain(home)
        await world.resume(job)
        await asyncio.sleep(30.0)
        assert len(world.records(job).allocations) == 1
        verdicts = {c.site: c.verdict for c in world.explain(job).candidates}
        assert "was saved with bundle" in verdicts[there] and "draining" in verdicts[home]
        world.drain(home, undo=True)
        await world.settled()
        assert been(world, job) == [(home, False), (home, False)]
        assert session is world.controller.sessions[there]
        world.judge()

    in_world(story)


def test_each_checkpoint_of_a_job_that_asks_for_it_is_copied() -> None:
    async def story(world: World) -> None:
        job = await world.submit(100.0, retry=1, copy_checkpoints=True)
        pilot = await running(world, job)
        home = world.records(job).allocations[0].site
        for count in (1, 2, 3):
            await asyncio.sleep(10.0)
            await world.checkpoint(job)
            await saved(world, job, min(count, 2))
            await world.until(lambda: bool(_newest_is_copied(world, job)), 100.0, "it is copied")
        assert sum(c.state is CheckpointState.KEPT for c in world.records(job).checkpoints) == 2
        assert sum(c.copy is CopyState.KEPT for c in world.records(job).checkpoints) == 2
        pilot.destroy()
        world.drain(home)
        await world.settled()
        assert been(world, job) == [(home, False), (elsewhere_of(world, home), True)]
        world.judge()

    in_world(story)


def _newest_is_copied(world: World, job: str) -> bool:
    return world.records(job).checkpoints[-1].copy is CopyState.KEPT


@pytest.mark.parametrize("cuts", [1, 2, 3])
def test_a_site_that_is_cut_off_while_it_is_copied_from(cuts: int) -> None:
    async def story(world: World) -> None:
        job = await stands_still(world)
        home = world.records(job).allocations[0].site
        await world.resume(job, elsewhere(world, job))
        for _ in range(cuts):
            await asyncio.sleep(0.03)
            world.sites[home].way.cut(5.0)
            await asyncio.sleep(10.0)
        await world.settled()
        found = world.records(job)
        assert (found.job.state, len(found.allocations)) == (JobState.DONE, 2)
        assert found.allocations[1].copied
        world.judge()

    in_world(story)


def upgraded(world: World) -> Awaitable[None]:
    """All sites get another bundle."""
    for site in world.sites.values():
        site.transport.bundle = "f" * 64
        site.way.cut(0.0)
    facts = world.controller.facts
    return world.until(lambda: {f.bundle for f in facts().values()} == {"f" * 64}, 60.0, "they are upgraded")


def test_a_copy_that_no_site_can_take_up_is_not_waited_for() -> None:
    """Of a job that nobody looks after: its node is lost after an upgrade."""

    async def story(world: World) -> None:
        job = await world.submit(60.0, retry=1)
        pilot = await running(world, job)
        await asyncio.sleep(10.0)
        await world.checkpoint(job)
        [name] = await saved(world, job)
        await world.copy(name)
        await copied(world, job)
        await upgraded(world)
        for site in world.sites.values():
            for kept in site.spool.kept.values():
                kept.damaged = True
        pilot.destroy()
        await world.settled()
        found = world.records(job)
        assert (found.job.state, [a.restore for a in found.allocations]) == (JobState.DONE, ["", name, ""])
        assert "no site can take it up" in told(world, job) and "s of the program are lost" in told(world, job)
        world.judge()

    in_world(story)


def test_who_resumes_what_would_begin_anew_is_told_before() -> None:
    async def story(world: World) -> None:
        job = await stands_still(world)
        [name] = await saved(world, job)
        await upgraded(world)
        await _refused(world.backend.resume(job), "was saved with bundle 0000")
        assert world.records(job).job.state is JobState.SUSPENDED
        await world.discard(name)
        await world.backend.resume(job)
        await world.settled()
        assert (world.records(job).job.state, been(world, job)[1][1]) == (JobState.DONE, False)
        world.judge()

    in_world(story)


def test_a_copy_goes_where_there_is_a_place_when_the_queue_at_home_takes_too_long() -> None:
    async def story(world: World) -> None:
        await world.set_policy(SchedulingPolicy(moves=MoveSetting(wait="30s")))
        job = await stands_still(world)
        [name] = await saved(world, job)
        await world.copy(name)
        await copied(world, job)
        home = world.records(job).allocations[0].site
        await running(world, await world.submit(500.0, site=home))
        await world.resume(job)
        await world.settled()
        assert world.records(job).job.state is JobState.DONE
        assert been(world, job) == [(home, False), (home, False), (elsewhere_of(world, home), True)]
        assert len(printed(world, job)) == 2
        world.judge()

    in_world(story, nodes=1, places=8)
