"""Jobs that are suspended, resumed and saved: what they keep, where they go on, what is refused, what is removed."""

from __future__ import annotations

import asyncio
import itertools

import pytest

from gridhypervisor.execution.logs import Logs
from gridhypervisor.execution.present import case_of
from gridhypervisor.model.records import CheckpointState, JobState
from gridhypervisor.model.views import ServiceError
from gridhypervisor.model.wire import Effort, HypervisorKind, HypervisorUsed
from gridhypervisor.planning.accounts import history
from gridhypervisor.simulation.pilot import Pilot
from tests.simulation.scenarios import executes, pilots, suspended
from tests.simulation.world import World, in_world


async def running(world: World, job: str) -> Pilot:
    """Wait until its program runs, as the controller has heard, and give its pilot."""
    await executes(world, job)

    def those() -> list[Pilot]:
        return [p for p in pilots(world) if p.entry is not None and p.manifest.job == job and p.executes]

    await world.until(lambda: bool(those()) and world.state(job) == "running", 300.0, f"the program of {job} runs")
    return those()[0]


async def saved(world: World, job: str, count: int = 1) -> list[str]:
    """Wait until that many checkpoints of it are kept, and name them, oldest first."""

    def kept() -> list[str]:
        return [c.id for c in world.records(job).checkpoints if c.state is CheckpointState.KEPT]

    await world.until(lambda: len(kept()) >= count, 100.0, f"{count} checkpoints of {job} are kept")
    return kept()


def printed(world: World, job: str) -> list[str]:
    file = world.folder / f"{job}.stdout"
    Logs(world.folder / "logs").copy(job, "stdout", file)
    return file.read_text().splitlines()


def told(world: World, job: str) -> str:
    return "\n".join(event.message for event in world.store.events(job=job))


def test_a_suspended_job_goes_on_where_it_stood() -> None:
    async def story(world: World) -> None:
        job = await world.submit(60.0, retry=0)
        other = await world.submit(50.0, retry=0)
        first = await running(world, job)
        await asyncio.sleep(20.0)
        await world.suspend(job)
        await suspended(world, job)
        [site] = [a.site for a in world.records(job).allocations]
        await world.until(lambda: not world.sites[site].spool.entries.get(first.name), 30.0, "its entry is removed")
        [checkpoint] = world.records(job).checkpoints
        assert checkpoint.executed == pytest.approx(20.0, abs=4.0)
        assert "ghv resume" in world.controller.waiting[job]
        await asyncio.sleep(100.0)
        await world.resume(job)
        await world.resume(job)
        await world.settled()
        found = world.records(job)
        assert (found.job.state, [a.site for a in found.allocations]) == (JobState.DONE, [site, site])
        assert found.allocations[1].restore == checkpoint.id
        ran = [p.end - p.start for a in found.allocations if a.exit is not None for p in a.exit.phases
               if p.phase == "execute" and p.end is not None]  # fmt: skip
        assert sum(ran) == pytest.approx(60.0, abs=0.1)
        assert len(printed(world, job)) == 2, "each attempt printed one line, and none was lost or came twice"
        ledger = world.store.ledger(job)
        assert ledger is not None
        stood = sum(row.seconds for row in ledger.rows if row.phase == "suspended")
        assert stood == pytest.approx(100.0, abs=2.0)
        stages = [stage for each in history(case_of(found), world.clock()).attempts for stage in each.stages]
        assert sum(s.seconds for s in stages if s.phase == "suspended") == pytest.approx(stood)
        assert len(world.records(other).allocations) == 1
        world.judge()

    in_world(story, nodes=1)


def test_a_paused_guest_keeps_its_place_and_goes_on_there() -> None:
    async def story(world: World) -> None:
        job = await world.submit(30.0, retry=0)
        await running(world, job)
        await world.backend.pause(job, undo=False)
        await world.backend.pause(job, undo=False)  # a client repeats what it got no answer to
        await world.until(lambda: "ghv unpause" in world.controller.waiting.get(job, ""), 30.0, "it stands still")
        await asyncio.sleep(50.0)
        assert world.state(job) == "running" and len(world.records(job).allocations) == 1
        assert told(world, job).count("stands still in its place") == 1
        await world.backend.pause(job, undo=True)
        await world.settled()
        found = world.records(job)
        assert (found.job.state, len(found.allocations)) == (JobState.DONE, 1)
        [ran] = [p.end - p.start for a in found.allocations if a.exit is not None for p in a.exit.phases
                 if p.phase == "execute" and p.end is not None]  # fmt: skip
        assert ran > 80.0, "its program ran its time, and stood still meanwhile"
        with pytest.raises(ServiceError, match="has ended"):
            await world.backend.pause(job, undo=False)
        world.judge()

    in_world(story, sites=1)


def test_a_guest_whose_hypervisor_cannot_stop_it_goes_on_and_it_is_said() -> None:
    async def story(world: World) -> None:
        job = await world.submit(20.0, retry=0)
        pilot = await running(world, job)
        pilot.cannot_save = "uml can neither save nor stop a guest"
        await world.backend.pause(job, undo=False)
        await world.settled()
        assert "it was not done: uml can neither" in told(world, job)
        assert world.records(job).job.state is JobState.DONE
        world.judge()

    in_world(story, sites=1)


def test_what_is_printed_is_followed_over_a_suspension() -> None:
    async def story(world: World) -> None:
        job = await world.submit(30.0, retry=0)
        pieces = b""

        async def follow() -> None:
            nonlocal pieces
            async for item in world.backend.follow(job, output=True):
                assert item.stream != "stdout" or item.offset == len(pieces)
                pieces += item.data if item.stream == "stdout" else b""

        following = asyncio.create_task(follow())
        for _ in range(2):
            await running(world, job)
            await asyncio.sleep(5.0)
            await world.suspend(job)
            await suspended(world, job)
            await world.resume(job)
        await world.settled()
        await following
        assert pieces.decode().splitlines() == printed(world, job)
        assert len(printed(world, job)) == 3
        world.judge()

    in_world(story, sites=1)


def test_a_job_that_nobody_has_begun_just_stands_still() -> None:
    async def story(world: World) -> None:
        blocking = await world.submit(30.0)
        await running(world, blocking)
        waits = await world.submit(5.0)
        await world.suspend(waits)
        await suspended(world, waits)
        await running(world, blocking)
        assert world.records(waits).job.state is JobState.SUSPENDED
        assert not world.records(waits).checkpoints
        await world.cancel(waits)
        await world.settled()
        assert world.records(waits).job.state is JobState.CANCELLED
        world.judge()

    in_world(story, sites=1, nodes=1, places=1)


def test_a_save_that_is_refused_gives_nothing_up_and_says_why() -> None:
    async def story(world: World) -> None:
        job = await world.submit(40.0, retry=0)
        pilot = await running(world, job)
        pilot.cannot_save = "no space left where checkpoints are kept"
        await world.suspend(job)
        await world.until(lambda: "not saved" in told(world, job), 60.0, "it is said")
        view = await world.backend.job(job)
        assert (view.job.wish, view.job.state) == ("run", "running")
        assert "no space left" in view.job.message
        await world.checkpoint(job)
        await world.until(lambda: told(world, job).count("no space left") == 2, 60.0, "it is said again")
        await world.settled()
        found = world.records(job)
        assert (found.job.state, len(found.allocations)) == (JobState.DONE, 1)
        assert "no space left" in told(world, job)
        world.judge()

    in_world(story)


def test_a_job_whose_guest_boots_is_suspended_as_soon_as_its_program_runs() -> None:
    async def story(world: World) -> None:
        job = await world.submit(30.0, retry=0)
        await world.until(lambda: world.state(job) == "running", 30.0, "a pilot has it")
        await world.suspend(job)
        await world.until(lambda: "as soon as its program runs" in world.controller.waiting[job], 10.0, "it is said")
        with pytest.raises(ServiceError, match="about to leave"):
            await world.backend.save(job)
        await suspended(world, job)
        assert world.records(job).job.state is JobState.SUSPENDED
        await world.resume(job)
        await world.settled()
        assert [a.restore != "" for a in world.records(job).allocations] == [False, True]
        world.judge()

    in_world(story)


def test_a_program_that_ends_while_it_is_suspended_has_ended() -> None:
    async def story(world: World) -> None:
        job = await world.submit(6.0, retry=0)
        await running(world, job)
        await asyncio.sleep(4.9)
        await world.suspend(job)
        await world.settled()
        assert (world.records(job).job.state, len(world.records(job).allocations)) == (JobState.DONE, 1)
        world.judge()

    in_world(story)


@pytest.mark.parametrize("older", [True, False], ids=["an-older-one-is-used", "it-begins-anew"])
def test_a_checkpoint_that_is_damaged(older: bool) -> None:
    async def story(world: World) -> None:
        job = await world.submit(60.0, retry=0)
        await running(world, job)
        await asyncio.sleep(10.0)
        if older:
            await world.checkpoint(job)
            await saved(world, job)
        await asyncio.sleep(10.0)
        await world.suspend(job)
        await suspended(world, job)
        *good, bad = await saved(world, job, 1 + older)
        [site] = [s for s in world.sites.values() if bad in s.spool.kept]
        site.spool.kept[bad].damaged = True
        await world.resume(job)
        await world.settled()
        found = world.records(job)
        assert found.job.state is JobState.DONE
        assert [a.restore for a in found.allocations] == ["", bad, good[0] if older else ""]
        assert "is damaged" in told(world, job)
        assert (f"it goes on from checkpoint {good[0]}" if older else "s of the program are lost") in told(world, job)
        world.judge()

    in_world(story)


def test_a_job_whose_node_dies_goes_on_from_its_last_checkpoint() -> None:
    async def story(world: World) -> None:
        job = await world.submit(100.0, retry=1)
        for count in (1, 2):
            pilot = await running(world, job)
            await asyncio.sleep(10.0)
            await world.checkpoint(job)
            await saved(world, job, count)
        await asyncio.sleep(10.0)
        await world.checkpoint(job)  # of three the oldest is not kept
        await world.until(lambda: [c.state for c in world.records(job).checkpoints][:1] == ["gone"], 60.0, "it is gone")
        [_, newest] = await saved(world, job, 2)
        pilot.destroy()
        await world.settled()
        found = world.records(job)
        assert (found.job.state, [a.restore for a in found.allocations]) == (JobState.DONE, ["", newest])
        assert "it goes on from checkpoint" in told(world, job)
        world.judge()

    in_world(story)


def test_which_checkpoint_a_job_goes_on_from_is_its_users_to_say() -> None:
    async def story(world: World) -> None:
        job = await world.submit(80.0, retry=0)
        await running(world, job)
        await asyncio.sleep(5.0)
        await world.checkpoint(job)
        [first] = await saved(world, job)
        with pytest.raises(ServiceError, match="attempt under way"):
            await world.restore(first)
        await asyncio.sleep(5.0)
        await world.suspend(job)
        await suspended(world, job)
        [_, second] = await saved(world, job, 2)
        assert [c.id for c in await world.backend.checkpoints(job)] == [second, first]
        await world.restore(first)
        await running(world, job)
        with pytest.raises(ServiceError, match="goes on from it"):
            await world.discard(first)
        await world.discard(second)
        await world.until(lambda: not any(second in s.spool.kept for s in world.sites.values()), 30.0, "it is removed")
        with pytest.raises(ServiceError, match="deleted"):
            await world.backend.restore(second)
        await world.settled()
        assert [a.restore for a in world.records(job).allocations] == ["", first]
        assert world.records(job).job.state is JobState.DONE
        world.judge()

    in_world(story)


def test_a_suspended_job_waits_for_the_site_that_has_it() -> None:
    async def story(world: World) -> None:
        job = await world.submit(40.0, retry=0)
        await running(world, job)
        await world.suspend(job)
        await suspended(world, job)
        [home] = {a.site for a in world.records(job).allocations}
        world.drain(home)
        await world.resume(job)
        await asyncio.sleep(30.0)
        assert len(world.records(job).allocations) == 1
        explanation = world.explain(job)
        assert f"its checkpoint is, at {home}" in explanation.summary and "draining" in explanation.summary
        world.drain(home, undo=True)
        await world.settled()
        assert {a.site for a in world.records(job).allocations} == {home}
        world.judge()

    in_world(story)


def test_what_cannot_be_suspended_is_refused_beforehand() -> None:
    async def story(world: World) -> None:
        gang = await world.submit_gang(2, 20.0)
        await world.until(lambda: len(world.tasks(gang)) == 2, 30.0, "its members are made")
        member = world.tasks(gang)[0].id
        with pytest.raises(ServiceError, match="one of a gang"):
            await world.backend.suspend(member)
        job = await world.submit(30.0)
        with pytest.raises(ServiceError, match="only a running program"):
            await world.backend.save(job)
        pilot = await running(world, job)
        pilot.used = HypervisorUsed(HypervisorKind.UML, "6.1.55", "no /dev/kvm here")
        pilot.effort = Effort(1.0, 0.0)
        case = world.controller.cases[job]

        def says_so() -> bool:
            view = world.controller.cases[job].sight(case.allocations[0]).view
            return view is not None and view.status is not None and view.status.hypervisor is not None

        await world.until(says_so, 60.0, "its pilot says what runs it")
        with pytest.raises(ServiceError, match="User-Mode Linux"):
            await world.backend.suspend(job)
        await world.settled()
        with pytest.raises(ServiceError, match="has ended"):
            await world.backend.suspend(job)
        world.judge()

    in_world(story)


def test_a_pilot_that_died_with_an_unseen_checkpoint_leaves_none_behind() -> None:
    async def story(world: World) -> None:
        job = await world.submit(60.0, retry=1)
        pilot = await running(world, job)
        await world.checkpoint(job)
        [site] = [s for s in world.sites.values() if pilot.name in s.spool.entries]
        await world.until(lambda: bool(site.spool.kept), 30.0, "it is made")
        pilot.destroy()  # before its word is seen
        await world.settled()
        assert world.records(job).job.state is JobState.DONE
        world.judge()

    in_world(story, spool_lag=20.0)


def test_a_guest_is_saved_now_and_then_where_its_user_wants_that() -> None:
    """What a node's death costs is what was done since; no more than two checkpoints are kept at a time."""

    async def story(world: World) -> None:
        job = await world.submit(100.0, retry=1, checkpoint_interval="15s")
        pilot = await running(world, job)
        await world.until(lambda: len(world.records(job).checkpoints) >= 3, 100.0, "it is saved thrice")
        [site] = [world.sites[a.site] for a in world.records(job).allocations]
        assert len(site.spool.kept) <= 3
        pilot.destroy()
        await world.settled()
        found = world.records(job)
        lost = found.checkpoints[2].executed
        assert found.job.state is JobState.DONE and found.allocations[1].restore == found.checkpoints[2].id
        made = [c.executed for c in found.checkpoints]
        assert all(14.0 <= b - a <= 16.0 for a, b in itertools.pairwise(made[:3])), made
        assert lost > 30.0 and len(made) > 4, "its next attempt is saved, too"
        world.judge()

    in_world(story)
