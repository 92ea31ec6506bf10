"""The scheduling policy at work: set while jobs wait, kept over restarts, held to whatever happens."""

from __future__ import annotations

from collections import Counter

import pytest

from gridhypervisor.execution.decisions import Decisions
from gridhypervisor.execution.places import SPARE
from gridhypervisor.model.commit import JobRecords, StoreError
from gridhypervisor.model.policy import (
    FailureSetting,
    FixedResources,
    Limits,
    RankSetting,
    ResourcePolicies,
    SchedulingPolicy,
    UsageSetting,
)
from gridhypervisor.planning.replay import replay
from tests.simulation.world import World, in_world


def begun(world: World) -> list[str]:
    """Jobs in the order in which they were first given to a site."""
    planned = [e.job for e in world.store.events() if e.kind == "allocation" and e.after == "planned"]
    return list(dict.fromkeys(planned))


def test_a_user_with_many_jobs_does_not_starve_one_with_a_single_one() -> None:
    async def story(world: World) -> None:
        many = [await world.submit(60.0, owner="ada") for _ in range(60)]
        single = await world.submit(60.0, owner="bob")
        await world.until(lambda: single in begun(world), 600.0, "the single job has a site")
        assert begun(world).index(single) < 12, "after those that had a site already, and a turn of the other's at most"
        for job in many:
            await world.cancel(job)
        await world.settled()
        world.judge()

    in_world(story, sites=1, nodes=2, places=4)


def test_urgent_jobs_go_first_and_those_alike_in_the_order_in_which_they_came() -> None:
    async def story(world: World) -> None:
        first = [await world.submit(30.0) for _ in range(6)]
        high = await world.submit(30.0, priority=10)
        urgent = await world.submit(30.0, priority=20)
        await world.settled()
        assert begun(world) == [urgent, high, *first]
        world.judge()

    in_world(story, sites=1, nodes=1, places=1)


def test_a_policy_holds_at_once_and_after_a_restart() -> None:
    async def story(world: World) -> None:
        await world.set_policy(
            SchedulingPolicy(resources=ResourcePolicies(fixed=FixedResources(resources={"site0": 0})))
        )
        jobs = [await world.submit(20.0) for _ in range(4)]
        await world.until(lambda: all(world.state(job) == "running" for job in jobs[:2]), 60.0, "two run")
        assert {a.site for job in jobs for a in world.controller.cases[job].allocations} == {"site1"}
        assert "not to be used" in next(c.verdict for c in world.explain(jobs[3]).candidates if c.site == "site0")
        await world.restart()
        assert world.controller.scheduling.record.version == 1
        await world.until(lambda: all(world.state(job) != "pending" for job in jobs), 60.0, "the others follow")
        assert {a.site for job in jobs for a in world.records(job).allocations} == {"site1"}
        waits = [await world.submit(20.0) for _ in range(3)]
        await world.set_policy(SchedulingPolicy())  # no event but this one
        await world.until(lambda: any(a.site == "site0" for job in waits for a in world.records(job).allocations),
                          5.0, "the site is used again")  # fmt: skip
        await world.settled()
        assert [e.after for e in world.store.events() if e.kind == "policy"] == ["set", "set"]
        world.judge()

    in_world(story, sites=2, nodes=2, places=2)


def test_limits_hold_at_every_moment_and_keep_nobody_for_ever() -> None:
    async def story(world: World) -> None:
        await world.set_policy(SchedulingPolicy(limits=Limits(user=3, sites={"site1": 1}, cycle=2)))
        jobs = [await world.submit(20.0, owner="ada" if n % 2 else "bob") for n in range(14)]
        most: Counter[str] = Counter()

        def over() -> bool:
            users, _, sites = world.controller.cases.counts()
            for name, count in (*users.items(), *sites.items()):
                most[name] = max(most[name], count)
            return not world.controller.cases

        await world.until(over, 3000.0, "all have ended")
        assert (most["ada"], most["bob"], most["site1"]) == (3, 3, 1), most
        assert all(world.records(job).job.state == "done" for job in jobs)
        world.judge()

    in_world(story, sites=2, nodes=4, places=8)


def test_a_site_that_fails_its_jobs_is_ranked_down_banned_and_used_again() -> None:
    async def story(world: World) -> None:
        failing = FailureSetting(1.0, ban="10m")
        await world.set_policy(SchedulingPolicy(resources=ResourcePolicies(failure=failing)))
        bad = world.sites["site0"]
        bad.batch.weather.submissions.append("refused")
        first = await world.submit(5.0, site="site0", retry=0)
        await world.until(lambda: first not in world.controller.cases, 600.0, "it has failed there")
        assert world.records(first).job.state == "failed"
        waits = await world.submit(5.0, site="site0")
        assert "banned for me" in world.explain(waits).summary
        others = [await world.submit(5.0) for _ in range(3)]
        await world.restart()  # what is remembered comes from the store
        await world.until(lambda: all(o not in world.controller.cases for o in others), 600.0, "the others are done")
        assert {a.site for job in others for a in world.records(job).allocations} == {"site1"}
        assert world.state(waits) == "pending"
        await world.until(lambda: waits not in world.controller.cases, 900.0, "the ban ends by itself")
        assert world.records(waits).job.state == "done"
        await world.settled()
        world.judge()

    in_world(story, sites=2, nodes=2, places=4)


def test_a_success_at_a_banned_site_lets_those_who_wait_go_there_at_once() -> None:
    async def story(world: World) -> None:
        failing = FailureSetting(1.0, ban="10h")
        await world.set_policy(SchedulingPolicy(resources=ResourcePolicies(failure=failing)))
        good = await world.submit(100.0)
        await world.until(lambda: world.state(good) == "running", 60.0, "one runs")
        world.sites["site0"].batch.weather.submissions.append("refused")
        bad = await world.submit(5.0, retry=0)
        await world.until(lambda: bad not in world.controller.cases, 90.0, "another has failed")
        waits = await world.submit(5.0)
        await world.until(lambda: "banned for me" in world.controller.waiting.get(waits, ""), 5.0, "a third waits")
        await world.settled(600.0)
        assert world.records(waits).job.state == "done"
        world.judge()

    in_world(story, sites=1, nodes=4, places=4)


def test_where_jobs_take_less_time_more_of_them_go() -> None:
    async def story(world: World) -> None:
        usage = ResourcePolicies(usage=UsageSetting(1.0), rank=RankSetting(0.0))
        await world.set_policy(SchedulingPolicy(resources=usage))
        slow, quick = await world.submit(100.0, site="site0"), await world.submit(2.0, site="site1")
        await world.until(lambda: not {slow, quick} & world.controller.cases.keys(), 900.0, "both are done")
        later = [await world.submit(2.0) for _ in range(3)]
        await world.settled()
        assert {a.site for job in later for a in world.records(job).allocations} == {"site1"}
        world.judge()

    in_world(story, sites=2, nodes=4, places=4)


def test_a_choice_is_made_again_from_its_record() -> None:
    async def story(world: World) -> None:
        first = [await world.submit(20.0, owner="ada") for _ in range(6)]
        await world.set_policy(SchedulingPolicy(limits=Limits(site=2)))
        asking = await world.submit(5.0, requirements='Site == "site1" && FreePlaces > 0', rank="-Jobs", priority=5)
        await world.settled()
        jobs = [world.records(job).job for job in (*first, asking)]
        for job in (*first, asking):
            known = Decisions(world.folder / "decisions.jsonl").last(job)
            assert known is not None
            recorded, snapshot = known
            assert recorded.chosen[job] == world.records(job).allocations[0].site
            policy = world.store.policy(recorded.version)
            assert policy.version == recorded.version
            assert replay(recorded, snapshot.nodes, jobs, policy.policy) == recorded.chosen
        assert Decisions(world.folder / "decisions.jsonl").last("j99") is None
        world.judge()

    in_world(story, sites=2, nodes=2, places=2)


def test_requirements_wait_for_a_site_that_meets_them() -> None:
    async def story(world: World) -> None:
        job = await world.submit(5.0, requirements="QueueWaitMeasured < 60")
        await world.submit(5.0, requirements='Site == "site1"', rank="1 / (MaxJobs - MaxJobs)")
        await world.until(
            lambda: "QueueWaitMeasured is not known" in world.controller.waiting.get(job, ""), 30.0, "why"
        )
        await world.settled()  # the other's run at site1 tells how long its queue takes
        assert world.records(job).allocations[0].site == "site1"
        world.judge()

    in_world(story, sites=2, nodes=2, places=4)


def test_a_policy_that_could_not_be_set_is_not_written_either() -> None:
    async def story(world: World) -> None:
        def fails(*, since: float, limit: int) -> list[JobRecords]:
            raise StoreError("read", "store", f"no {limit} jobs after {since:.0f}", "try again")

        policy = SchedulingPolicy(limits=Limits(user=1))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(world.store, "ended", fails)
            with pytest.raises(StoreError):
                await world.controller.policies.set(policy, "me", "default")
        assert world.store.policy().version == world.controller.scheduling.record.version == 0

    in_world(story, sites=1)


def test_who_has_all_that_the_policy_allows_keeps_no_other_from_a_free_place() -> None:
    async def story(world: World) -> None:
        await world.set_policy(SchedulingPolicy(limits=Limits(users={"ada": 1})))
        world.drain("site0")
        many = [await world.submit(100.0, owner="ada", priority=10) for _ in range(SPARE + 10)]
        other = await world.submit(5.0, owner="bob")
        world.drain("site0", undo=True)
        await world.until(lambda: other in begun(world), 30.0, "the other has one of the places that are left")
        for job in many:
            await world.cancel(job)
        await world.settled()
        world.judge()

    in_world(story, sites=1, nodes=2, places=4)


def test_a_site_that_lies_about_what_is_free_is_believed_less_and_comes_later() -> None:
    async def story(world: World) -> None:
        liar = world.sites["site0"].batch
        liar.weather.boasts = True
        for node in liar.nodes:
            node.free = 0  # somebody else has it

        def given(site: str, jobs: list[str]) -> list[str]:
            return [job for job in jobs if [a.site for a in world.records(job).allocations] == [site]]

        def verdict(job: str) -> str:
            return next(c.verdict for c in world.explain(job).candidates if c.site == "site0")

        first = [await world.submit(20.0) for _ in range(8)]
        await world.until(lambda: len(given("site0", first)) == 4, 60.0, "the site that boasts has its half")
        facts = world.controller.facts
        await world.until(lambda: facts()["site0"].credit < 0.25, 1200.0, "nobody believes it any more")
        assert facts()["site1"].credit == 1.0
        await world.until(lambda: sum(d.jobs for d in world.store.denials(since=0.0)) >= 4, 10.0, "it is written down")
        await world.restart()
        facts = world.controller.facts
        assert facts()["site0"].credit < 0.25, "nor after a restart"
        await world.until(lambda: facts()["site0"].up and facts()["site1"].up, 60.0, "both answer again")
        second = [await world.submit(20.0) for _ in range(4)]
        await world.until(lambda: all(world.state(job) == "cleaned" for job in second), 300.0, "they are done")
        assert given("site1", second) == second
        asks = await world.submit(20.0, requirements='SiteFreeCpus >= 1 && Site == "site0"')
        await world.until(lambda: world.controller.waiting.get(asks, "") != "", 60.0, "why it waits is known")
        assert "SiteFreeCpus is 0" in verdict(asks), "what it says counts so little"
        other = await world.submit(60.0)
        await world.until(lambda: world.state(other) == "running", 60.0, "it runs")
        assert "jobs waited there though it said that cores were free" in verdict(other)
        for job in (*first, asks, other):
            await world.cancel(job)
        await world.settled()
        world.judge()

    in_world(story, sites=2, nodes=2)
