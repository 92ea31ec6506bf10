"""Sites that are drained, that want a person, that are tried again, and that fall silent: with time to wait for it."""

from __future__ import annotations

import asyncio

from gridhypervisor.execution.session import LOOK, Session
from gridhypervisor.model.records import JobState, SiteHealth
from gridhypervisor.model.wire import Reason
from gridhypervisor.planning.sites import PASSING
from tests.simulation.scenarios import reaches
from tests.simulation.world import World, in_world


def session_of(world: World, site: str) -> Session:
    session = world.controller.sessions[site]
    assert isinstance(session, Session)
    return session


async def up(world: World, *sites: str) -> None:
    await world.until(lambda: all(session_of(world, s).facts.up for s in sites), 10.0, "the sites answer")


def words(world: World, job: str) -> str:
    """What `ghv explain` says of it."""
    found = world.explain(job)
    return "\n".join([found.summary, *(c.verdict for c in found.candidates)])


# One site's trouble is its own


def test_a_site_that_hangs_for_an_hour_delays_no_job_elsewhere_by_a_second() -> None:
    def lasted(hang: float) -> list[float]:
        """Seconds from its submission to its end of each job at the other site, of which one comes every 5 minutes."""
        found = list[float]()

        async def story(world: World) -> None:
            await up(world, "site0", "site1")
            there = await world.submit(1.0, site="site0")
            await reaches(world, there, "running")
            if hang:
                world.sites["site0"].way.hang(hang)
            stuck = [await world.submit(1.0, site="site0") for _ in range(3)]
            jobs = []
            for _ in range(11):
                jobs.append(await world.submit(1.0, site="site1"))
                await asyncio.sleep(300.0)
            assert not hang or not any(world.records(job).job.state.final for job in (there, *stuck))
            for job in jobs:
                ended = world.records(job).job
                assert ended.ended is not None
                found.append(ended.ended - ended.created)
            await world.settled()
            world.judge()

        in_world(story)
        return found

    usual = lasted(0.0)
    assert max(lasted(3600.0)) <= max(usual) + 1.0, usual


def test_a_site_that_is_too_busy_says_so_keeps_what_it_was_given_and_gets_no_more_meanwhile() -> None:
    async def story(world: World) -> None:
        await up(world, "site0", "site1")
        site = world.sites["site0"]
        site.batch.weather.submissions.extend(["busy"] * 100)
        kept, wrong = await world.submit(1.0, site="site0", retry=0), await world.submit(1.0, site="site0", retry=0)
        await world.until(
            lambda: bool(session_of(world, "site0").facts.busy), 30.0, "the site says that it is too busy"
        )
        assert "too many jobs of this account" in session_of(world, "site0").submitting
        pinned, free = await world.submit(1.0, site="site0", retry=0), await world.submit(1.0)
        await world.until(lambda: world.records(free).job.state.final, 30.0, "the one that may go elsewhere ends")
        assert [a.site for a in world.records(free).allocations] == ["site1"]
        await world.until(lambda: "takes no more jobs for now" in words(world, pinned), 5.0, "the reason")
        await world.cancel(wrong)
        await world.until(lambda: world.records(wrong).job.state.final, 5.0, "nothing keeps a cancelled job waiting")
        site.batch.weather.submissions.clear()
        await world.settled()
        for job in (kept, pinned):
            assert (world.records(job).job.state, len(world.records(job).allocations)) == (JobState.DONE, 1)
        assert not session_of(world, "site0").submitting and site.batch.submitted == 2
        world.judge()

    in_world(story)


def test_what_a_busy_site_was_not_given_when_the_connection_broke_has_lost_no_try() -> None:
    async def story(world: World) -> None:
        await up(world, "site0", "site1")
        for _ in range(4):
            world.sites["site0"].batch.weather.submissions.extend(["busy"] * 3)
        job = await world.submit(1.0, site="site0", retry=0)
        for _ in range(4):
            await world.until(lambda: bool(session_of(world, "site0").facts.busy), 200.0, "the site is too busy")
            world.sites["site0"].way.cut(5.0)
            await asyncio.sleep(1.0)
        await world.settled()
        assert world.records(job).job.state is JobState.DONE
        assert [a.why for a in world.records(job).allocations][:-1] == [Reason.BUSY] * 4
        world.judge()

    in_world(story)


# Draining


def test_what_a_drained_site_has_ends_there_and_what_is_new_goes_elsewhere_or_waits() -> None:
    async def story(world: World) -> None:
        await up(world, "site0", "site1")
        has = await world.submit(20.0, site="site0")
        await reaches(world, has, "running")
        world.drain("site0")
        elsewhere, pinned = await world.submit(1.0), await world.submit(1.0, site="site0")
        await world.until(lambda: world.records(elsewhere).job.state.final, 60.0, "the one that may go elsewhere ends")
        assert [a.site for a in world.records(elsewhere).allocations] == ["site1"]
        await world.until(lambda: world.records(has).job.state.final, 60.0, "what the site had ends")
        assert world.records(has).job.state is JobState.DONE
        assert world.records(pinned).job.state is JobState.PENDING
        assert "draining" in words(world, pinned) and "ghv site drain site0 --undo" in words(world, pinned)
        world.drain("site0", undo=True)
        await world.settled()
        world.judge()

    in_world(story)


def test_a_job_that_was_on_its_way_to_a_site_that_is_drained_loses_nothing() -> None:
    async def story(world: World) -> None:
        await up(world, "site0", "site1")
        world.sites["site0"].way.hang(60.0)  # its prolog takes a while
        job = await world.submit(1.0, retry=1, site="site0")
        await reaches(world, job, "planned")
        world.drain("site0")
        await world.until(lambda: world.records(job).job.state is JobState.PENDING, 10.0, "it is on its way no more")
        assert world.records(job).job.excluded == ()
        world.sites["site0"].batch.weather.submissions.append("refused")
        world.drain("site0", undo=True)
        await world.settled()
        assert world.records(job).job.state is JobState.DONE  # the one retry that it has is spent on the refusal alone
        world.judge()

    in_world(story)


def test_a_drained_site_stays_so_when_the_controller_starts_again() -> None:
    async def story(world: World) -> None:
        await up(world, "site0", "site1")
        world.drain("site0")
        await world.restart()
        job = await world.submit(1.0, site="site0")
        await up(world, "site0", "site1")
        await asyncio.sleep(120.0)
        assert world.records(job).allocations == ()
        world.drain("site0", undo=True)
        await world.settled()
        world.judge()

    in_world(story)


# A site that wants a person


def test_a_site_that_wants_a_person_is_asked_once_and_its_jobs_wait_until_somebody_has_logged_in() -> None:
    async def story(world: World) -> None:
        await up(world, "site0", "site1")
        has = await world.submit(60.0, site="site0")
        await reaches(world, has, "running")
        way, session = world.sites["site0"].way, session_of(world, "site0")
        way.asks = True
        way.cut(0.0)
        before = way.knocks
        await world.until(lambda: session.health is SiteHealth.AUTH_NEEDED, 10.0, "it wants a person")
        pinned, any_site = await world.submit(1.0, site="site0"), await world.submit(1.0)
        await world.until(lambda: world.records(any_site).job.state.final, 60.0, "the other site takes it")
        await asyncio.sleep(12 * 3600.0)
        await world.recover(pinned)
        await asyncio.sleep(3600.0)
        assert way.knocks == before + 1  # nobody hammers at a door that only a person can open
        assert "ghv site login site0" in words(world, pinned)
        assert world.records(has).job.state not in (JobState.FAILED, JobState.CANCELLED)  # unknown is not failed
        way.entered = True
        await world.until(lambda: session.facts.up, 2 * LOOK, "the login is noticed at once")
        await world.settled()
        assert world.records(has).job.state is world.records(pinned).job.state is JobState.DONE
        way.entered = False
        way.cut(0.0)
        await world.until(lambda: session.health is SiteHealth.AUTH_NEEDED, 10.0, "it wants a person again")
        world.judge()

    in_world(story)


def test_a_login_that_worked_without_a_person_is_tried_again_but_seldom() -> None:
    async def story(world: World) -> None:
        await up(world, "site0")
        way, session = world.sites["site0"].way, session_of(world, "site0")
        way.asks = way.passing = True
        way.cut(0.0)
        await world.until(lambda: session.health is SiteHealth.AUTH_NEEDED, 10.0, "it is refused")
        before = way.knocks
        await asyncio.sleep(10 * PASSING)
        assert 7 <= way.knocks - before <= 14
        way.asks = False  # the site's directory is mended
        await world.until(lambda: session.facts.up, 2 * PASSING, "it is in again by itself")

    in_world(story)


def test_asking_for_a_check_tries_at_once_and_says_what_is_now() -> None:
    async def story(world: World) -> None:
        await up(world, "site0")
        way, session = world.sites["site0"].way, session_of(world, "site0")
        way.cut(3600.0)
        await world.until(lambda: session.health is SiteHealth.UNREACHABLE, 10.0, "it is gone")
        await asyncio.sleep(600.0)  # the back-off is at its longest
        way.cut(0.0)
        way.asks = True
        knocks, began = way.knocks, world.loop.time()
        await session.tried()
        assert way.knocks == knocks + 1 and world.loop.time() - began < 1.0
        [check] = await session.check()
        assert "wants a code" in check.evidence and "auth-needed" in check.evidence  # not what was hours ago
        way.asks = False
        await asyncio.gather(*(session.tried() for _ in range(5)))
        assert way.knocks == knocks + 2  # one attempt serves all who ask
        assert session.facts.up and all(each.holds is not False for each in await session.check())

    in_world(story)


def test_a_check_ends_the_wait_after_a_batch_systems_outage() -> None:
    async def story(world: World) -> None:
        await up(world, "site0")
        session, weather = session_of(world, "site0"), world.sites["site0"].batch.weather
        job = await world.submit(600.0, site="site0")
        await reaches(world, job, "running")
        weather.listing = "fails"
        await world.until(lambda: bool(session.why), 300.0, "the batch system is silent")
        await asyncio.sleep(600.0)
        weather.listing = ""
        began = world.loop.time()
        await session.check()
        await world.until(lambda: not session.why, 5.0, "it is heard at once")
        assert world.loop.time() - began < 5.0
        await world.cancel(job)
        await world.settled()

    in_world(story)
