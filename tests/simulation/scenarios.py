"""Stories that between them make the controller take every step that it can take. Each ends settled.

A story must hold wherever the controller dies in it: it waits for conditions, and says what befalls the world.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import msgspec

from gridhypervisor.model.infrafile import load
from gridhypervisor.model.infrastructure import InfrastructureSpec, ProbeSpec
from gridhypervisor.model.records import (
    CheckpointRecord,
    CheckpointState,
    CopyState,
    InfrastructureState,
    JobState,
    Wish,
)
from gridhypervisor.model.wire import Phase, Terms
from gridhypervisor.simulation.batch import BatchEntry
from gridhypervisor.simulation.pilot import Pilot
from tests.simulation.world import World

Story = Callable[[World], Awaitable[None]]


@dataclass(frozen=True)
class Scenario:
    story: Story
    options: dict[str, float] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.story.__name__


async def reaches(world: World, job: str, *states: str) -> None:
    """Wait until it is there, or beyond any hope of it."""
    await world.until(lambda: world.state(job) in (*states, "cleaned", "deleted"), 2000.0, f"{job} gets to {states}")


def batch_jobs(world: World) -> list[BatchEntry]:
    return [j for site in world.sites.values() for j in site.batch.jobs.values()]


def pilots(world: World) -> list[Pilot]:
    return [p for site in world.sites.values() for p in site.batch.pilots()]


async def a_normal_run(world: World) -> None:
    await world.submit(3.0)
    await world.submit(3.0, 7)
    await world.settled()


async def cancelled_before_any_site_answers(world: World) -> None:
    for site in world.sites.values():
        site.way.cut(60.0)
    job = await world.submit()
    await world.cancel(job)
    await world.settled()


async def cancelled_while_planned(world: World) -> None:
    sessions = world.controller.sessions
    await world.until(lambda: all(s.facts.up for s in sessions.values()), 10.0, "the sites answer")
    for site in world.sites.values():
        site.way.hang(20.0)
    job = await world.submit()
    await reaches(world, job, "planned")
    await world.cancel(job)
    await world.settled()


async def cancelled_while_submitting(world: World) -> None:
    for site in world.sites.values():
        site.batch.weather.submissions.append("mute")
    job = await world.submit()
    await reaches(world, job, "submitting")
    await world.cancel(job)
    await world.settled()


async def cancelled_in_the_queue(world: World) -> None:
    first = await world.submit(30.0, site="site0")
    second = await world.submit(30.0, site="site0")
    third = await world.submit(1.0, site="site0")
    await reaches(world, third, "queued")
    await world.cancel(third)
    await world.cancel(second)
    await reaches(world, first, "running")
    await world.settled()


async def cancelled_while_running(world: World) -> None:
    job = await world.submit(60.0)
    await reaches(world, job, "running")
    await world.cancel(job)
    await world.settled()


async def cancelled_while_its_pilot_is_stopped(world: World) -> None:
    job = await world.submit(60.0)
    await reaches(world, job, "running")
    for pilot in pilots(world):
        pilot.pause()
    await world.cancel(job)
    await world.settled()


async def executes(world: World, job: str) -> None:
    """Wait until the controller knows that its program runs."""

    def told() -> bool:
        case = world.controller.cases.get(job)
        view = case.sight(case.allocations[-1]).view if case is not None and case.allocations else None
        return view is not None and view.status is not None and view.status.phase is Phase.EXECUTE

    await world.until(lambda: told() or _at_rest(world, job), 300.0, f"the program of {job} runs")


async def suspended(world: World, job: str) -> None:
    """Wait until it stands still, or has ended."""
    await world.until(lambda: _at_rest(world, job), 2000.0, f"{job} is suspended")


def _at_rest(world: World, job: str) -> bool:
    found = world.records(job).job
    return found.state is JobState.SUSPENDED or found.state.final


async def suspended_before_any_site_answers(world: World) -> None:
    for site in world.sites.values():
        site.way.cut(60.0)
    job = await world.submit(retry=0)
    await world.suspend(job)
    await suspended(world, job)
    await world.resume(job)
    await world.resume(job)
    await world.settled()


async def suspended_in_its_prolog(world: World) -> None:
    sessions = world.controller.sessions
    await world.until(lambda: all(s.facts.up for s in sessions.values()), 10.0, "the sites answer")
    for site in world.sites.values():
        site.way.hang(20.0)
    job = await world.submit(retry=0)
    await reaches(world, job, "planned")
    await world.suspend(job)
    await suspended(world, job)
    await world.resume(job)
    await world.settled()


async def suspended_in_the_queue(world: World) -> None:
    jobs = [await world.submit(30.0, site="site0") for _ in range(2)]
    waits = await world.submit(5.0, site="site0", retry=0)
    await reaches(world, waits, "queued")
    await world.suspend(waits)
    await suspended(world, waits)
    await world.resume(waits)
    await reaches(world, jobs[0], "running")
    await world.settled()


async def suspended_while_running(world: World) -> None:
    job = await world.submit(30.0, retry=0)
    await reaches(world, job, "running")
    await world.suspend(job)
    await suspended(world, job)
    await world.resume(job)
    await world.settled()


async def suspended_and_cancelled(world: World) -> None:
    first, second = [await world.submit(60.0) for _ in range(2)]
    await reaches(world, first, "running")
    await reaches(world, second, "running")
    await world.suspend(first)
    await world.cancel(first)
    await world.suspend(second)
    await suspended(world, second)
    await world.delete(second)
    await world.settled()


async def suspended_while_its_site_is_silent(world: World) -> None:
    job = await world.submit(60.0, retry=0)
    await reaches(world, job, "running")
    for site in world.sites.values():
        site.way.cut(30.0)
    await world.suspend(job)
    await suspended(world, job)
    await world.resume(job)
    await world.settled()


async def a_checkpoint_outlives_its_node(world: World) -> None:
    job = await world.submit(60.0, retry=3)
    await reaches(world, job, "running")
    await executes(world, job)
    await world.checkpoint(job)
    await world.until(lambda: bool(world.records(job).checkpoints) or _at_rest(world, job), 300.0, "it is saved")
    for pilot in pilots(world):
        pilot.destroy()
    await world.settled()


async def goes_on_at_another_site(world: World) -> None:
    job = await world.submit(30.0, retry=0)
    await reaches(world, job, "running")
    await world.suspend(job)
    await suspended(world, job)
    been = {a.site for a in world.records(job).allocations}
    await world.resume(job, next(site for site in world.sites if site not in been))
    await world.settled()


async def a_copy_outlives_its_site(world: World) -> None:
    job = await world.submit(60.0, retry=3)
    await reaches(world, job, "running")
    await executes(world, job)
    await world.checkpoint(job)

    def kept() -> list[CheckpointRecord]:
        return [c for c in world.records(job).checkpoints if c.state is CheckpointState.KEPT]

    await world.until(lambda: bool(kept()) or _at_rest(world, job), 300.0, "it is saved")
    for checkpoint in kept():
        await world.copy(checkpoint.id)

    def copied() -> bool:
        return not any(c.copy is CopyState.WANTED for c in kept())

    await world.until(lambda: copied() or _at_rest(world, job), 300.0, "it is copied")
    for pilot in pilots(world):
        pilot.destroy()
    for checkpoint in kept():
        world.sites[checkpoint.site].way.cut(100.0)
    await world.settled()


async def a_damaged_checkpoint(world: World) -> None:
    job = await world.submit(60.0, retry=0)
    await reaches(world, job, "running")
    await world.suspend(job)
    await suspended(world, job)
    for site in world.sites.values():
        for kept in site.spool.kept.values():
            kept.damaged = True
    await world.resume(job)
    await world.settled()


async def goes_on_through_batch_jobs(world: World) -> None:
    await world.submit(60.0, retry=0, segment="40s")
    await world.settled()


async def its_next_batch_job_waits_in_the_queue(world: World) -> None:
    job = await world.submit(40.0, retry=1, segment="40s", site="site0")
    await executes(world, job)
    world.sites["site0"].batch.occupy(1, 90.0, 80.0)
    await world.settled()


async def it_ends_while_its_next_batch_job_waits(world: World) -> None:
    """Asked for ahead, and needed no more: in the queue, or ready and waiting for its word."""
    for job in [await world.submit(seconds, retry=0, segment="40s", site="site0") for seconds in (13.0, 15.0)]:
        await executes(world, job)
    world.sites["site0"].batch.occupy(1, 200.0, 100.0)
    await world.settled()


async def its_next_batch_job_is_lost(world: World) -> None:
    job = await world.submit(40.0, retry=1, segment="40s")
    await world.until(lambda: _is_ready(world) or _at_rest(world, job), 300.0, "the next one is ready")
    for pilot in pilots(world):
        if pilot.phase is Phase.GATHER:
            pilot.destroy()
    await world.settled()


def _is_ready(world: World) -> bool:
    return any(pilot.phase is Phase.GATHER for pilot in pilots(world))


async def its_node_dies_between_batch_jobs(world: World) -> None:
    job = await world.submit(60.0, retry=2, segment="40s")
    for attempt in (2, 3):
        await executes(world, job)
        for pilot in pilots(world):
            pilot.destroy()
        known = partial(_goes_on, world, job, attempt)
        await world.until(known, 1000.0, f"attempt {attempt}")
    await world.settled()


def _goes_on(world: World, job: str, attempt: int) -> bool:
    return len(world.records(job).allocations) >= attempt or _at_rest(world, job)


async def moved_in_its_prolog(world: World) -> None:
    sessions = world.controller.sessions
    await world.until(lambda: all(s.facts.up for s in sessions.values()), 10.0, "the sites answer")
    for site in world.sites.values():
        site.way.hang(20.0)
    job = await world.submit(retry=0)
    await reaches(world, job, "planned")
    await world.move(job)
    await world.settled()


async def moved_in_the_queue(world: World) -> None:
    jobs = [await world.submit(30.0, site="site0") for _ in range(2)]
    waits = await world.submit(5.0, site="site0", retry=0)
    await reaches(world, waits, "queued")
    await world.move(waits, "site1")
    await reaches(world, jobs[0], "running")
    await world.settled()


async def moved_while_running(world: World) -> None:
    job = await world.submit(30.0, retry=0)
    await reaches(world, job, "running")
    await world.move(job)
    await world.settled()


async def moved_while_its_pilot_is_stopped(world: World) -> None:
    job = await world.submit(30.0, retry=0)
    await reaches(world, job, "running")
    for pilot in pilots(world):
        pilot.pause()
    await world.move(job)
    await world.settled()


async def moved_and_cancelled(world: World) -> None:
    job = await world.submit(60.0)
    await reaches(world, job, "running")
    await world.move(job)
    await world.cancel(job)
    await world.settled()


async def a_pilot_is_faster_than_its_revocation(world: World) -> None:
    """Nobody sees the owner yet when the user cancels."""
    job = await world.submit(5.0)
    await world.until(lambda: any(p.entry is not None for p in pilots(world)) or world.state(job) == "cleaned", 300.0,
                      "a pilot owns it")  # fmt: skip
    await world.cancel(job)
    await world.settled()


async def a_pilot_is_faster_than_the_answer_to_its_submission(world: World) -> None:
    for site in world.sites.values():
        site.batch.weather.submissions.append("mute")
    await world.submit(5.0)
    await world.settled()


async def a_submission_is_lost(world: World) -> None:
    for site in world.sites.values():
        site.batch.weather.submissions.append("lost")
    await world.submit()
    await world.settled()


async def a_submission_surfaces_late(world: World) -> None:
    for site in world.sites.values():
        site.batch.weather.submissions.append("late")
        site.batch.weather.late = 40.0
    await world.submit()
    await world.settled()
    await world.until(lambda: all(not s.unfinished for s in world.sites.values()), 200.0, "what is late is over")


async def a_submission_is_refused(world: World) -> None:
    for site in world.sites.values():
        site.batch.weather.submissions.extend(["refused", "refused"])
    await world.submit(retry=5)
    await world.submit(retry=0)
    await world.settled()


async def a_submission_is_put_off(world: World) -> None:
    for site in world.sites.values():
        site.batch.weather.submissions.extend(["busy", "busy", "busy"])
    await world.submit(retry=0)
    cancelled = await world.submit(retry=0)
    await reaches(world, cancelled, "submitting")
    await world.cancel(cancelled)
    await world.settled()


async def a_pilot_is_killed(world: World) -> None:
    job = await world.submit(30.0)
    await reaches(world, job, "running")
    for pilot in pilots(world):
        pilot.kill()
    await world.settled()


async def a_pilot_ends_without_a_word(world: World) -> None:
    job = await world.submit(30.0)
    await reaches(world, job, "running")
    for pilot in pilots(world):
        pilot.destroy()
    await world.settled()


async def a_pilot_is_stopped_beyond_its_walltime(world: World) -> None:
    job = await world.submit(30.0)
    await reaches(world, job, "running")
    for pilot in pilots(world):
        pilot.pause()
    await world.settled()


async def a_node_is_lost_and_lives_on(world: World) -> None:
    job = await world.submit(30.0)
    await reaches(world, job, "running")
    for site in world.sites.values():
        for entry in list(site.batch.jobs.values()):
            if entry.node is not None and entry.state == "RUNNING":
                site.batch.lose_node(entry.node, alive=True)
    await world.settled()


async def a_run_is_repeated_while_the_first_lives_on(world: World) -> None:
    job = await world.submit(30.0)
    await reaches(world, job, "running")
    for site in world.sites.values():
        for entry in list(site.batch.jobs.values()):
            site.batch.requeue(entry, confirmed=False)
    await world.settled()


async def listings_are_empty_for_a_minute(world: World) -> None:
    job = await world.submit(30.0)
    await reaches(world, job, "running")
    for site in world.sites.values():
        site.batch.weather.listing = "empty"
    await world.submit(5.0)
    await world.until(lambda: world.loop.time() > 80.0, 200.0, "a minute passes")
    for site in world.sites.values():
        site.batch.weather.listing = ""
    await world.settled()


async def a_site_falls_silent(world: World) -> None:
    job = await world.submit(20.0)
    await reaches(world, job, "running")
    for site in world.sites.values():
        site.way.cut(90.0)
    await world.settled()


async def replaced_at_a_silent_site(world: World) -> None:
    """Nobody answers there for long: the guest ends with its grant, another runs elsewhere."""
    job = await world.submit(60.0, replace=True)
    await reaches(world, job, "running")
    where = world.controller.cases[job].allocations[-1].site if job in world.controller.cases else "site0"
    world.sites[where].way.cut(600.0)
    await world.settled()


async def replaced_when_its_node_is_cut_off(world: World) -> None:
    job = await world.submit(60.0, replace=True)
    await reaches(world, job, "running")
    for site in world.sites.values():
        for entry in list(site.batch.jobs.values()):
            if entry.node is not None and entry.state == "RUNNING":
                site.batch.lose_node(entry.node, alive=True)
    await world.until(lambda: world.state(job) != "running", 300.0, "it is given up")
    await world.settled()


async def not_replaced_when_its_last_word_comes_after_all(world: World) -> None:
    job = await world.submit(10.0, replace=True)
    await reaches(world, job, "running")
    for site in world.sites.values():
        site.way.cut(1000.0)
    await reaches(world, job, "fencing")
    for site in world.sites.values():
        site.way.cut(0.0)
    for session in world.controller.sessions.values():
        session.reconnect()
    await world.settled()


async def deleted_while_running(world: World) -> None:
    job = await world.submit(60.0)
    await reaches(world, job, "running")
    await world.delete(job)
    await world.settled()


async def deleted_with_its_results_uncollected(world: World) -> None:
    job = await world.submit(5.0)
    await reaches(world, job, "ended")
    await world.delete(job)
    await world.settled()


async def results_cannot_come_home_until_the_user_mends_it(world: World) -> None:
    job = await world.submit(3.0)
    in_the_way = Path(world.records(job).job.destination) / "products"
    in_the_way.parent.mkdir(parents=True)
    in_the_way.write_text("a file where a folder must be")
    await world.until(lambda: world.records(job).job.state.final, 200.0, "the job ends without its results")
    in_the_way.unlink()
    await world.recover(job)
    await world.settled()


LAGS = {"listing_lag": 3.0, "spool_lag": 4.0}


async def a_lender_refuses_what_seemed_to_fit(world: World) -> None:
    """The planner does not hear in time that the lender has closed."""
    sessions = world.controller.sessions
    await world.until(lambda: all(s.facts.up for s in sessions.values()), 10.0, "the sites answer")
    for site in world.sites.values():
        site.way.hang(20.0)
    job = await world.submit(3.0, retry=0)
    await reaches(world, job, "planned")
    for site in world.sites.values():
        site.account.lend(Terms("lender.toml", cores=0))
    await reaches(world, job, "revoked")
    for site in world.sites.values():
        site.account.lend(Terms("lender.toml", cores=1))
    await world.settled()


async def an_array_two_at_a_time(world: World) -> None:
    group = await world.submit_array("1-5%2", 3.0)
    await world.settled()
    world.jobs += [job.id for job in world.tasks(group)]
    assert [job.member for job in world.tasks(group)] == ["1", "2", "3", "4", "5"]


async def an_array_deleted_halfway(world: World) -> None:
    group = await world.submit_array("1-6%2", 20.0)
    await world.until(lambda: any(job.state.final for job in world.tasks(group)), 2000.0, "a task has ended")
    await world.wish_group(group, Wish.DELETE)
    await world.settled()
    assert world.group(group) is None and not world.tasks(group)


async def a_workflow_with_a_second_try(world: World) -> None:
    text = "JOB A 2-0\nJOB B 2-4\nJOB C 2-0\nPARENT A CHILD B C\nRETRY B 1\n"
    group = await world.submit_workflow(text)
    await world.settled()
    jobs = world.tasks(group)
    world.jobs += [job.id for job in jobs]
    assert sorted(job.member for job in jobs) == ["A", "B", "B.2", "C"]
    assert await world.nodes(group) == {"A": "done", "B": "failed", "C": "done"}


async def a_gang(world: World) -> None:
    group = await world.submit_gang(2, 3.0)
    await world.settled()
    world.jobs += [job.id for job in world.tasks(group)]
    assert [job.state for job in world.tasks(group)] == [JobState.DONE] * 2, world.story()


async def a_gang_of_which_one_fails(world: World) -> None:
    """While it runs: whenever its controller dies, there is another round, and one only."""
    group = await world.submit_gang(2, 60.0, retry=10)
    await world.until(lambda: len(executing(world)) == 2, 2000.0, "its programs run")
    present = max(world.records(job.id).vm.epoch for job in world.tasks(group))  # 2, if a submission was never sent
    executing(world)[0].kill()
    await world.settled()
    jobs = world.tasks(group)
    world.jobs += [job.id for job in jobs]
    assert [job.state for job in jobs] == [JobState.DONE] * 2, world.story()
    rounds = [[a.epoch for a in world.records(job.id).allocations] for job in jobs]
    assert rounds == [[*range(1, present + 2)]] * 2, world.story()


def infrastructure(text: str) -> InfrastructureSpec:
    """One of two roles, with these lines added."""
    return load("lab.yaml", LAB + text)


LAB = """\
name: lab
lease: {duration: 1h}
patience: 5m
roles:
  head: {image: image}
  worker: {image: image, count: 2, after: [head]}
"""


async def an_infrastructure(world: World) -> None:
    """It is made, grows, shrinks and is deleted: never are there more VMs, or others, than there should be."""
    name = await world.apply(infrastructure(""))
    await world.until(lambda: standing(world, name) is InfrastructureState.READY, 1000.0, "all are ready")
    await world.scale(name, worker=3)
    await world.until(
        lambda: members(world, name) == ["head-0", "worker-0", "worker-1", "worker-2"], 1000.0, "it grows"
    )
    await world.until(lambda: standing(world, name) is InfrastructureState.READY, 1000.0, "all are ready again")
    await world.scale(name, worker=1)
    await world.until(lambda: members(world, name) == ["head-0", "worker-0"], 1000.0, "it shrinks")
    await world.until(lambda: standing(world, name) is InfrastructureState.READY, 1000.0, "that is all")
    await world.wish_group(name, Wish.DELETE)
    await world.settled()
    assert world.group(name) is None and not world.tasks(name), world.story()


async def an_infrastructure_that_is_undone(world: World) -> None:
    spec = infrastructure("").roles
    spec = {
        **spec,
        "worker": msgspec.structs.replace(spec["worker"], command=("refuse",), ready=ProbeSpec(tcp=80, timeout="20s")),
    }
    name = await world.apply(msgspec.structs.replace(infrastructure(""), roles=spec))
    await world.settled()
    ended = world.group(name)
    assert ended is not None and ended.state is JobState.FAILED, world.story()
    assert ended.standing.state is InfrastructureState.FAILED and "was not ready 20s" in ended.standing.why
    world.jobs += [job.id for job in world.tasks(name)]
    assert [job.state for job in world.tasks(name)] == [JobState.CANCELLED] * 3, world.story()


def standing(world: World, name: str) -> InfrastructureState | None:
    """How an infrastructure is; None: it is not there any more."""
    found = world.group(name)
    return found.standing.state if found is not None else None


def members(world: World, name: str) -> list[str]:
    return sorted(job.member for job in world.tasks(name))


def executing(world: World) -> list[Pilot]:
    return [pilot for pilot in pilots(world) if pilot.phase is Phase.EXECUTE]


SCENARIOS = [
    Scenario(a_normal_run),
    Scenario(a_gang),
    Scenario(a_gang_of_which_one_fails),
    Scenario(an_infrastructure),
    Scenario(an_infrastructure_that_is_undone),
    Scenario(an_array_two_at_a_time),
    Scenario(an_array_deleted_halfway),
    Scenario(a_workflow_with_a_second_try),
    Scenario(cancelled_before_any_site_answers),
    Scenario(cancelled_while_planned),
    Scenario(cancelled_while_submitting),
    Scenario(cancelled_in_the_queue),
    Scenario(cancelled_while_running),
    Scenario(cancelled_while_its_pilot_is_stopped),
    Scenario(goes_on_through_batch_jobs, LAGS),
    Scenario(its_node_dies_between_batch_jobs),
    Scenario(its_next_batch_job_waits_in_the_queue, LAGS),
    Scenario(it_ends_while_its_next_batch_job_waits),
    Scenario(its_next_batch_job_is_lost),
    Scenario(moved_in_its_prolog),
    Scenario(moved_in_the_queue),
    Scenario(moved_while_running, LAGS),
    Scenario(moved_while_its_pilot_is_stopped),
    Scenario(moved_and_cancelled, LAGS),
    Scenario(suspended_before_any_site_answers),
    Scenario(suspended_in_its_prolog),
    Scenario(suspended_in_the_queue),
    Scenario(suspended_while_running, LAGS),
    Scenario(suspended_and_cancelled),
    Scenario(suspended_while_its_site_is_silent),
    Scenario(a_checkpoint_outlives_its_node, LAGS),
    Scenario(a_damaged_checkpoint),
    Scenario(goes_on_at_another_site, LAGS),
    Scenario(a_copy_outlives_its_site),
    Scenario(a_pilot_is_faster_than_its_revocation, {"spool_lag": 30.0}),
    Scenario(a_pilot_is_faster_than_the_answer_to_its_submission, {"listing_lag": 30.0}),
    Scenario(a_submission_is_lost, LAGS),
    Scenario(a_submission_surfaces_late),
    Scenario(a_submission_is_refused),
    Scenario(a_submission_is_put_off),
    Scenario(a_pilot_is_killed, LAGS),
    Scenario(a_pilot_ends_without_a_word, LAGS),
    Scenario(a_pilot_is_stopped_beyond_its_walltime),
    Scenario(a_node_is_lost_and_lives_on),
    Scenario(a_run_is_repeated_while_the_first_lives_on),
    Scenario(listings_are_empty_for_a_minute),
    Scenario(a_site_falls_silent),
    Scenario(replaced_at_a_silent_site),
    Scenario(replaced_when_its_node_is_cut_off),
    Scenario(not_replaced_when_its_last_word_comes_after_all),
    Scenario(deleted_while_running),
    Scenario(deleted_with_its_results_uncollected),
    Scenario(results_cannot_come_home_until_the_user_mends_it),
    Scenario(a_lender_refuses_what_seemed_to_fit),
]
