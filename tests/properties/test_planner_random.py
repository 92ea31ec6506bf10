"""The real planner and controller in a world that Hypothesis hurts: faults, users and crashes in any order.

Throughout: never two guests of a VM, no result removed before it is home, nothing new to a drained site. Once the
faults stop: every job ends, once, and the sites are clean.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gridhypervisor.execution.steps import STEPS
from gridhypervisor.model.wire import Terms
from gridhypervisor.simulation.site import SimulatedSite
from tests.simulation.world import World, in_world

HURTS = (
    *("lose-submission", "mute-submission", "late-submission", "refuse-submission", "busy-submission"),
    *("empty-listing", "failing-listing"),
    *("good-listing", "cut", "hang", "requeue", "requeue-unconfirmed", "kill-pilot", "destroy-pilot", "pause-pilot"),
    *("resume-pilot", "node-dies", "node-cut", "heal", "batch-cancel", "lend", "lend-all", "damage", "full"),
)


@dataclass(frozen=True)
class Deed:
    """What happens `after` seconds, to the job or site of number `to`."""

    after: float
    what: str
    to: int


def deeds() -> st.SearchStrategy[list[Deed]]:
    users = st.sampled_from(
        (
            "submit",
            "submit-long",
            "submit-replace",
            "submit-segments",
            "submit-array",
            "submit-gang",
            "cancel",
            "delete",
            "recover",
            "move",
            "suspend",
            "resume",
            "checkpoint",
            "copy",
            "send",
            "resume-elsewhere",
            "spoil",
            "drain",
            "undrain",
        )
    )
    deaths = st.sampled_from(STEPS) | st.just("restart")
    one = st.builds(
        Deed,
        st.sampled_from((0.0, 0.02, 0.1, 0.5, 2.0, 7.0, 30.0, 130.0)),
        users | st.sampled_from(HURTS) | deaths,
        st.integers(0, 5),
    )
    return st.lists(one, max_size=12)


def hurt(site: SimulatedSite, what: str, number: int) -> None:
    weather, batch = site.batch.weather, site.batch
    pilots = batch.pilots()
    pilot = pilots[number % len(pilots)] if pilots else None
    jobs = list(batch.jobs.values())
    job = jobs[number % len(jobs)] if jobs else None
    match what:
        case "lose-submission":
            weather.submissions.append("lost")
        case "mute-submission":
            weather.submissions.append("mute")
        case "late-submission":
            weather.submissions.append("late")
        case "refuse-submission":
            weather.submissions.append("refused")
        case "busy-submission":
            weather.submissions.append("busy")
        case "empty-listing":
            weather.listing = "empty"
        case "failing-listing":
            weather.listing = "fails"
        case "good-listing":
            weather.listing = ""
        case "cut":
            site.way.cut(7.0 * number)
        case "hang":
            site.way.hang(20.0 * number)
        case "requeue" if job is not None:
            batch.requeue(job)
        case "requeue-unconfirmed" if job is not None:
            batch.requeue(job, confirmed=False)
        case "batch-cancel" if job is not None:
            batch.cancel(job.id)
        case "kill-pilot" if pilot is not None:
            pilot.kill()
        case "destroy-pilot" if pilot is not None:
            pilot.destroy()
        case "pause-pilot" if pilot is not None:
            pilot.pause()
        case "resume-pilot" if pilot is not None:
            pilot.resume()
        case "node-dies" | "node-cut" if job is not None and job.node is not None:
            batch.lose_node(job.node, alive=what == "node-cut")
        case "heal":
            batch.heal()
        case "lend":
            site.account.lend(Terms("lender.toml", cores=number // 2))
        case "damage":
            for kept in site.spool.kept.values():
                kept.damaged = True
        case "full" if pilot is not None:
            pilot.cannot_save = "no space left on the device"
        case "lend-all":
            site.account.lend(None)
        case _:
            pass  # there is nobody to whom it could happen


async def do(world: World, deed: Deed) -> None:
    site = list(world.sites.values())[deed.to % len(world.sites)]
    job = world.jobs[deed.to % len(world.jobs)]
    match deed.what:
        case "submit":
            await world.submit(2.0, deed.to, retry=deed.to)
        case "submit-long":
            await world.submit(200.0, retry=deed.to)
        case "submit-replace":
            await world.submit(40.0, retry=deed.to, replace=True)
        case "submit-segments":
            await world.submit(60.0, retry=deed.to, segment="40s", replace=deed.to > 3)
        case "submit-array":
            await world.submit_array("1-4%2", 10.0)
        case "submit-gang":
            await world.submit_gang(2 + deed.to % 2, 10.0, spread=deed.to > 2, retry=deed.to)
        case "cancel":
            await world.cancel(job)
        case "delete":
            if job in world.controller.cases:
                await world.delete(job)
        case "recover":
            await world.recover(job)
        case "move":
            await world.move(job)
        case "suspend":
            await world.suspend(job)
        case "resume":
            await world.resume(job)
        case "checkpoint":
            await world.checkpoint(job)
        case "copy":
            found = world.store.job(job)
            for checkpoint in found.checkpoints if found is not None else ():
                await world.copy(checkpoint.id)
        case "spoil":
            world.spoil()
        case "send":
            await world.send(job, site.name)
        case "resume-elsewhere":
            await world.resume(job, site.name)
        case "drain" | "undrain":
            world.drain(site.name, undo=deed.what == "undrain")
        case "restart":
            await world.restart()
        case step if step in STEPS:
            world.deadly = {step}
        case what:
            hurt(site, what, deed.to)


@pytest.mark.timeout(1800)
@settings(max_examples=100, suppress_health_check=[HealthCheck.too_slow])
@given(
    deeds=deeds(),
    lags=st.sampled_from(((0.0, 0.0), (3.0, 0.0), (0.0, 4.0), (5.0, 30.0))),
    idle=st.sampled_from((0.0, 10.0)),
    seed=st.integers(0, 1000),
)
def test_whatever_happens_never_two_guests_and_all_jobs_end_once(
    deeds: list[Deed], lags: tuple[float, float], idle: float, seed: int
) -> None:
    async def story(world: World) -> None:
        await world.submit(4.0, replace=bool(seed % 2))
        if seed % 3 == 0:
            await world.submit(60.0, segment="40s")
        for deed in deeds:
            await asyncio.sleep(deed.after)
            if world.crashed.is_set():
                await world.restart()
            await do(world, deed)
            world.judge_always()
        for name, site in world.sites.items():
            site.calm()
            world.drain(name, undo=True)
        await world.resume_all()
        await world.settled(5000.0)
        # What a late submission or a requeue brought back finds itself revoked or owned, and ends.
        await world.until(lambda: not any(s.unfinished for s in world.sites.values()), 1000.0, "no batch job is left")
        world.judge()

    in_world(story, listing_lag=lags[0], spool_lag=lags[1], idle=idle, seed=seed)
