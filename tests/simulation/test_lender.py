"""Sites whose lenders allow less than there is: jobs wait or go elsewhere, and a refusal is nobody's fault."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from gridhypervisor.model.records import JobState
from gridhypervisor.model.wire import (
    PROTOCOL,
    ImageManifest,
    Manifest,
    Op,
    Program,
    Reason,
    Resources,
    Terms,
    to_plain,
)
from gridhypervisor.simulation.relay import Account, Relay
from gridhypervisor.simulation.site import SimulatedSite
from tests.simulation.scenarios import reaches
from tests.simulation.world import WALLTIME, World, in_world


def cores_taken(site: SimulatedSite) -> int:
    """By VMs that were let in and are not over, whoever counts."""
    return sum(
        e.manifest.resources.cpus
        for e in site.spool.entries.values()
        if e.manifest is not None and e.exit is None and (e.owner is None or e.owner.by == "pilot")
    )


async def to_the_end(world: World, always: Callable[[], bool], bound: float = 3000.0) -> None:
    """Until every job has ended and every site is clean; meanwhile this holds at every moment that is looked at."""

    def over() -> bool:
        assert always(), world.story()
        return not world.controller.cases

    await world.until(over, bound, "every job ends and every site is clean")
    await world.emptied()
    world.judge()


def why(world: World, job: str) -> str:
    return world.explain(job).summary


def refusals(world: World) -> int:
    return sum(e.kind == "allocation" and e.reason == Reason.LENDER for e in world.store.events())


class Neighbour:
    """Another installation that shares the account."""

    def __init__(self, account: Account) -> None:
        self._answers: list[bytes] = []
        self._relay, self._account = Relay(account, self._answers.append), account
        self._count = 0
        self._ask(Op.HELLO, installation="b99999999", protocol=PROTOCOL)

    def take(self, cores: int = 1) -> str:
        self._count += 1
        name = f"b99999999-j{self._count}-1"
        manifest = Manifest(PROTOCOL, "b99999999", name, "v", 1, "v.1", "j", ImageManifest(()), "0" * 64,
                            Program(("true",)), Resources(cores, walltime=WALLTIME), owner="neighbour")  # fmt: skip
        self._ask(Op.PREPARE, entry=name, manifest=to_plain(manifest))
        return name

    def leave(self, name: str) -> None:
        self._ask(Op.REMOVE, entry=name)

    def _ask(self, op: Op, **args: Any) -> None:
        answer = self._relay.answer({"id": 1, "op": op, **args}, b"")
        assert b'"error"' not in answer, answer


@pytest.mark.parametrize(("cores", "cpus"), [(2, 1), (5, 2)])
def test_no_more_is_in_use_than_the_lender_allows_and_all_jobs_end(cores: int, cpus: int) -> None:
    async def story(world: World) -> None:
        [site] = world.sites.values()
        site.account.lend(Terms("lender.toml", cores=cores))
        for _ in range(8):
            await world.submit(3.0, cpus=cpus)
        await to_the_end(world, lambda: cores_taken(site) <= cores)
        assert refusals(world) == 0, world.story()

    in_world(story, sites=1, nodes=10)


def test_a_large_job_waits_and_small_ones_go_by() -> None:
    async def story(world: World) -> None:
        [site] = world.sites.values()
        site.account.lend(Terms("lender.toml", cores=4))
        long = await world.submit(60.0, cpus=2)
        await reaches(world, long, "running")
        large = await world.submit(3.0, cpus=4)
        small = [await world.submit(3.0) for _ in range(70)]  # more than are offered a place at once
        await world.until(lambda: why(world, large).endswith("and it needs 4"), 10.0, "it is told why")
        assert "the lender of site0 allows 4 cores; " in why(world, large)
        await reaches(world, small[-1], "cleaned")
        await to_the_end(world, lambda: cores_taken(site) <= 4)

    in_world(story, sites=1, nodes=10)


def test_what_one_lender_does_not_allow_goes_elsewhere() -> None:
    async def story(world: World) -> None:
        world.sites["site0"].account.lend(Terms("lender.toml", images=("f" * 64,)))
        for _ in range(4):
            await world.submit(3.0)
        await to_the_end(world, lambda: cores_taken(world.sites["site0"]) == 0)

    in_world(story)


def test_the_lender_may_change_his_mind_and_nothing_that_runs_is_ended() -> None:
    async def story(world: World) -> None:
        [site] = world.sites.values()
        site.account.lend(Terms("lender.toml", vms=1))
        first, second, third = [await world.submit(40.0) for _ in range(3)]
        await reaches(world, first, "running")
        assert world.state(second) == world.state(third) == "pending"
        site.account.lend(Terms("lender.toml", vms=2))
        await reaches(world, second, "running")
        site.account.lend(Terms("lender.toml", vms=0))
        await reaches(world, second, "cleaned")
        assert [world.records(job).job.state for job in (first, second)] == [JobState.DONE, JobState.DONE]
        assert "allows 0 VMs" in why(world, third)
        site.account.lend(None)
        await to_the_end(world, lambda: True)

    in_world(story, sites=1)


def test_hours_of_the_period_are_reserved_spent_and_then_over() -> None:
    async def story(world: World) -> None:
        [site] = world.sites.values()
        site.account.lend(Terms("lender.toml", vm_seconds=2 * WALLTIME))
        jobs = [await world.submit(30.0) for _ in range(8)]

        def spent() -> int:
            return sum(use.used.vm_seconds for use in site.account.uses())

        def over() -> bool:
            assert spent() <= 2 * WALLTIME
            states = {world.records(job).job.state for job in jobs}
            return states == {JobState.DONE, JobState.PENDING} and spent() > WALLTIME

        await world.until(over, 2000.0, "the hours are spent")
        waits = next(j for j in jobs if world.records(j).job.state is JobState.PENDING)
        assert "allows 0.07 VM-hours a month" in why(world, waits)
        site.account.lend(None)
        await to_the_end(world, lambda: True)

    in_world(story, sites=1)


def test_vms_start_only_where_they_end_within_the_hours() -> None:
    async def story(world: World) -> None:
        [site] = world.sites.values()
        hours = Terms("lender.toml", hours=("Mon-Fri 18:00-08:00",))
        for left in (0.0, WALLTIME - 1.0):
            site.account.lend(hours, left)
            await world.submit(3.0)
            await world.until(lambda: "Mon-Fri 18:00-08:00" in why(world, world.jobs[-1]), 10.0, "it is told why")
        assert all(world.state(job) == "pending" for job in world.jobs)
        site.account.lend(hours, 3600.0)
        await to_the_end(world, lambda: True)

    in_world(story, sites=1)


def test_a_race_that_is_lost_at_the_door_costs_no_attempt_and_makes_no_loop() -> None:
    async def story(world: World) -> None:
        [site] = world.sites.values()
        session = world.controller.sessions["site0"]
        await world.until(lambda: session.facts.up, 10.0, "the site answers")
        site.account.lend(Terms("lender.toml", cores=1))
        neighbour, taken = Neighbour(site.account), []
        site.way.hang(5.0)  # the planner hears late that the neighbour was faster
        job = await world.submit(3.0, retry=0)
        await reaches(world, job, "planned")
        taken.append(neighbour.take())
        await world.until(lambda: refusals(world) > 0, 100.0, "it is refused")
        await world.until(lambda: "allows 1 core; 1 is in use" in why(world, job), 100.0, "it is told why")
        before = refusals(world)
        later = world.loop.time() + 600.0
        await world.until(lambda: world.loop.time() > later, 700.0, "time passes")
        assert before == refusals(world) == 1, world.story()
        neighbour.leave(taken.pop())
        await to_the_end(world, lambda: cores_taken(site) <= 1)
        ended = world.records(job)
        assert ended.job.state is JobState.DONE and len(ended.allocations) == 2

    in_world(story, sites=1)


def test_neighbours_share_and_none_is_forgotten() -> None:
    """Another installation takes what becomes free, again and again, and at last lets go."""

    async def story(world: World) -> None:
        [site] = world.sites.values()
        site.account.lend(Terms("lender.toml", cores=2))
        neighbour = Neighbour(site.account)
        held = [neighbour.take()]
        jobs = [await world.submit(3.0, retry=0) for _ in range(6)]
        for _ in range(4):
            await world.until(lambda: cores_taken(site) == 1 or not world.controller.cases, 200.0, "one is free")
            if cores_taken(site) == 1:
                held.append(neighbour.take())
                neighbour.leave(held.pop(0))
        neighbour.leave(held.pop())
        await to_the_end(world, lambda: cores_taken(site) <= 2)
        assert all(world.records(job).job.state is JobState.DONE for job in jobs)

    in_world(story, sites=1)
