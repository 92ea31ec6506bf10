"""Jobs that have a place and are given another: why, where to, how often, and what survives."""

from __future__ import annotations

from dataclasses import replace

from gridhypervisor.execution.session import Session
from gridhypervisor.model.policy import FixedResources, MoveSetting, ResourcePolicies, SchedulingPolicy
from gridhypervisor.model.spec import MovesSpec
from gridhypervisor.model.wire import Effort, HypervisorKind, HypervisorUsed, NodeReport, Proven
from gridhypervisor.simulation.pilot import Pilot
from tests.simulation.scenarios import pilots
from tests.simulation.world import World, in_world


def policy(**moves: object) -> SchedulingPolicy:
    """Everything goes to site0, where it can."""
    fixed = FixedResources(resources={"site0": 99})
    return SchedulingPolicy(resources=ResourcePolicies(fixed=fixed), moves=MoveSetting(**moves))  # type: ignore[arg-type]


def attempts(world: World, job: str) -> list[tuple[str, str]]:
    return [(a.site, str(a.why or "")) for a in world.records(job).allocations]


def ended(world: World, job: str) -> tuple[str, int]:
    """How, and after how many attempts."""
    found = world.records(job).job
    return str(found.state), found.attempts


async def up(world: World) -> None:
    sessions = world.controller.sessions
    await world.until(lambda: all(s.facts.up for s in sessions.values()), 10.0, "the sites answer")


async def running(world: World, job: str) -> Pilot:
    """Wait until its program runs, and give its pilot."""
    await world.until(lambda: any(p.entry is not None and p.manifest.job == job and p.executes for p in pilots(world)),
                      300.0, f"the program of {job} runs")  # fmt: skip
    return next(p for p in pilots(world) if p.entry is not None and p.manifest.job == job)


def test_what_waits_too_long_goes_elsewhere_and_not_back() -> None:
    async def story(world: World) -> None:
        await up(world)
        await world.set_policy(policy(wait="30s"))
        first = await world.submit(100.0, retry=0)
        second = await world.submit(90.0, retry=0, site="site1")
        third = await world.submit(5.0, retry=0)
        patient = await world.submit(5.0, retry=0, moves=MovesSpec(wait="0s"))
        await world.until(lambda: world.state(third) == "queued" and attempts(world, third)[-1][0] == "site1", 100.0,
                          "it waits at the other site")  # fmt: skip
        await world.until(lambda: "it stays" in world.controller.waiting[third], 60.0, "it is told why it stays there")
        await world.settled()
        assert attempts(world, third) == [("site0", "waited"), ("site1", "")]
        assert ended(world, third) == ("done", 2)
        assert [ended(world, job) for job in (first, second, patient)] == [("done", 1)] * 3
        told = [e.message for e in world.store.events(job=third) if e.reason == "waited"]
        assert any("has waited" in words and "site1 can take it" in words for words in told), told
        world.judge()

    in_world(story, sites=2, nodes=1, places=8)


def test_nobody_moves_where_no_other_site_can_take_him() -> None:
    async def story(world: World) -> None:
        await up(world)
        blocking = await world.submit(100.0)
        waits = await world.submit(5.0)
        await world.until(lambda: world.state(waits) == "queued", 30.0, "it waits")
        await world.set_policy(policy(wait="10s"))  # which holds at once, for those that are there too
        await world.until(lambda: "it stays" in world.controller.waiting.get(waits, ""), 100.0, "it is told why")
        assert "its patience is 10 s" in world.explain(waits).summary
        await world.settled()
        assert [len(attempts(world, job)) for job in (blocking, waits)] == [1, 1]
        world.judge()

    in_world(story, sites=1, nodes=1, places=8)


def test_no_more_jobs_move_than_find_room() -> None:
    async def story(world: World) -> None:
        await up(world)
        await world.set_policy(policy(wait="20s"))
        jobs = [await world.submit(60.0) for _ in range(8)]  # one runs, seven wait; site1 has room for its three
        world.drain("site1")
        await world.until(lambda: all(world.state(job) in ("queued", "running") for job in jobs), 60.0, "all are there")
        others = [await world.submit(100.0, site="site1") for _ in range(5)]
        world.drain("site1", undo=True)
        await world.until(lambda: sum(len(attempts(world, job)) > 1 for job in jobs) >= 3, 100.0, "three moved")
        await world.settled()
        moved = [job for job in jobs if len(attempts(world, job)) > 1]
        assert all(ended(world, job)[0] == "done" for job in (*jobs, *others))
        assert all(len(attempts(world, job)) <= 2 for job in moved)
        world.judge()

    in_world(story, sites=2, nodes=1, places=8)


def test_what_runs_too_slowly_goes_elsewhere_and_counts_as_no_failure_of_the_job() -> None:
    async def story(world: World) -> None:
        await up(world)
        await world.set_policy(policy(rate=0.5, observe="20s"))
        slow, well = await world.submit(60.0, retry=0), await world.submit(60.0, retry=0, site="site1")
        (await running(world, slow)).effort = Effort(3.0, 17.0)
        (await running(world, well)).effort = Effort(17.0, 3.0)
        await world.settled()
        assert attempts(world, slow) == [("site0", "slow"), ("site1", "")] and ended(world, slow) == ("done", 2)
        assert attempts(world, well) == [("site1", "")]
        assert any("runs at 15% of the predicted rate" in e.message for e in world.store.events(job=slow))
        world.judge()

    in_world(story, sites=2, nodes=2, places=8)


def test_a_better_place_is_taken_for_a_gain_above_the_cost() -> None:
    async def story(world: World) -> None:
        await up(world)
        await world.set_policy(policy(look="20s"))
        session = world.controller.sessions["site1"]
        assert isinstance(session, Session)
        kvm = Proven(HypervisorKind.KVM, True, "", "qemu")
        report = NodeReport("n0", "6.1", "fast", 1, 8, 1 << 34, 1 << 33, "/sim", "/tmp", 1 << 37, (kvm,))
        session.take(replace(session.site, probed=report))
        world.drain("site1")
        rank = 'Site == "site1" ? 1 : 0'
        moves = await world.submit(100.0, rank=rank)
        stays = await world.submit(100.0, rank=rank)
        for job, kind in ((moves, HypervisorKind.TCG), (stays, HypervisorKind.KVM)):
            (await running(world, job)).used = HypervisorUsed(kind, "qemu", "")
        world.drain("site1", undo=True)
        await world.settled()
        assert attempts(world, moves) == [("site0", "moved"), ("site1", "")], world.story()
        assert attempts(world, stays) == [("site0", "")]
        [told] = [e.message for e in world.store.events(job=moves) if e.before == e.after == "running"]
        assert "site1 is better: it ranks 1 there and 0 here" in told and "moving costs" in told
        world.judge()

    in_world(story, sites=2, nodes=2, places=8)


def test_a_program_that_asks_is_moved_once_to_each_site() -> None:
    async def story(world: World) -> None:
        await up(world)
        job = await world.submit(60.0, retry=0)
        for _ in range(2):
            (await running(world, job)).asks = "no licence here"
            here = len(attempts(world, job))
            await world.until(
                lambda here=here: len(attempts(world, job)) > here or "it stays" in world.controller.waiting[job],  # type: ignore[misc]
                100.0, "it was heard",
            )  # fmt: skip
        await world.settled()
        assert [why for _, why in attempts(world, job)] == ["moved", ""] and ended(world, job) == ("done", 2)
        assert any("the program asked to be moved: no licence here" in e.message for e in world.store.events(job=job))
        world.judge()

    in_world(story, sites=2)


def test_a_user_moves_a_job_to_a_site_of_his_choice() -> None:
    async def story(world: World) -> None:
        await up(world)
        await world.set_policy(policy())
        job = await world.submit(60.0, retry=0)
        await running(world, job)
        await world.move(job, "site2")
        await world.until(lambda: attempts(world, job)[-1][0] == "site2", 100.0, "it is there")
        await running(world, job)
        await world.move(job, "site0")
        await world.settled()
        assert attempts(world, job) == [("site0", "moved"), ("site2", "moved"), ("site0", "")]
        assert ended(world, job) == ("done", 3)
        world.judge()

    in_world(story, sites=3)


def test_what_an_attempt_leaves_is_taken_along_to_the_next_ones() -> None:
    async def story(world: World) -> None:
        await up(world)
        await world.set_policy(policy())
        job = await world.submit(60.0, retry=1, restart_files=("chk/*", "state"))
        first = await running(world, job)
        assert first.manifest.program.environment["GHV_RESTARTED"] == "0" and not first.manifest.program.inputs
        await world.move(job, "site1")

        async def begins_with(epoch: int) -> Pilot:
            """The pilot of that attempt, which has what the first one left."""
            await world.until(lambda: world.records(job).job.attempts == epoch, 300.0, "another attempt")
            pilot = await running(world, job)
            assert pilot.manifest.epoch == epoch and pilot.entry is not None
            assert [each.path for each in pilot.manifest.program.inputs] == ["state", "chk/result"]
            assert pilot.manifest.program.environment["GHV_RESTARTED"] == "1"
            assert pilot.entry.files["in/state"].data == f"{job} 1 state\n".encode()
            return pilot

        (await begins_with(2)).kill()  # so it leaves nothing
        await world.until(lambda: world.records(job).job.attempts == 3, 300.0, "a third attempt")
        await world.restart()
        await begins_with(3)
        await world.settled()
        assert ended(world, job) == ("done", 3)
        assert not list(world.controller.logs.root.glob("*/*/restart*")), "it has ended, and needs them no more"
        assert not list(world.folder.glob("results/*/state")), "they are no results"
        world.judge()

    in_world(story, sites=3)


def test_a_job_that_waits_for_a_site_may_be_sent_to_another() -> None:
    async def story(world: World) -> None:
        await up(world)
        blocking = await world.submit(100.0, site="site0")
        waits = await world.submit(5.0, site="site0")
        await world.until(lambda: waits in world.controller.seeking, 20.0, "it waits")
        await world.move(waits, "site1")
        await world.until(lambda: waits not in world.controller.cases, 60.0, "it is done")
        assert attempts(world, waits) == [("site1", "")]
        await world.settled()
        assert ended(world, blocking) == ("done", 1)
        world.judge()

    in_world(story, sites=2, nodes=1, places=1)


def test_a_move_is_taken_up_where_a_service_left_it() -> None:
    async def story(world: World) -> None:
        await up(world)
        await world.set_policy(policy(wait="20s"))
        blocking = await world.submit(100.0)
        waits = await world.submit(5.0, retry=0)
        await world.until(lambda: world.state(waits) == "queued", 30.0, "it waits")
        world.deadly = {"after-commit:queued-revoking"}  # the intent is written, and nothing was done yet
        await world.until(lambda: world.crashes == 1, 100.0, "the service dies as it moves it")
        await world.settled()
        assert attempts(world, waits) == [("site0", "waited"), ("site1", "")]
        assert [ended(world, job)[0] for job in (blocking, waits)] == ["done", "done"]
        world.judge()

    in_world(story, sites=2, nodes=1, places=8)
