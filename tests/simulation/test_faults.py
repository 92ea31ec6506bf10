"""What one job, one site or one fault of ours must not do to the others; and results that do not come at once."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from gridhypervisor.execution import controller as controlling
from gridhypervisor.execution.jobs import Jobs
from gridhypervisor.model.commit import Birth, Commit, JobRecords
from gridhypervisor.model.records import AllocationState, JobState
from gridhypervisor.model.spec import JobSpec
from gridhypervisor.model.views import JobRequest, ServiceError
from gridhypervisor.model.wire import EntryView, ExitRecord, ImageManifest, Layer, Outcome, Reason
from gridhypervisor.planning import reconcile
from gridhypervisor.simulation.pilot import Tempo
from gridhypervisor.simulation.spool import Entry
from tests.simulation.scenarios import pilots, reaches
from tests.simulation.world import SILENCE, World, in_world


async def stranded(world: World, job: str) -> None:
    await world.until(lambda: world.records(job).job.state.final, 200.0, "the job ends without its results")


def test_results_that_cannot_come_home_end_the_job_and_wait_at_the_site() -> None:
    async def story(world: World) -> None:
        in_the_way = world.folder / "results/0/products"
        in_the_way.parent.mkdir(parents=True)
        in_the_way.write_text("a file where a folder must be")
        job = await world.submit(3.0, 7)
        await stranded(world, job)
        ended = world.records(job).job
        assert (ended.state, ended.reason, ended.exit_code) == (JobState.FAILED, Reason.STAGING, 7)
        assert str(in_the_way) in ended.message and f"ghv recover {job}" in ended.hint
        assert world.controller.cases.held(world.records(job).allocations[0].site) == [job]
        assert any(site.spool.entries for site in world.sites.values())
        jobs = Jobs(world.controller, lambda _: ("", ImageManifest(())), "me", "default")
        assert (await jobs.recover(job)).note, "it says that something of it is left to do"

        in_the_way.unlink()
        await world.controller.recover(job)
        await world.settled()
        assert not (await jobs.recover(job)).note
        assert (in_the_way / "result").exists() and "home" in world.records(job).job.hint
        world.judge()

    in_world(story)


def test_a_cancel_ends_a_job_whose_results_do_not_come() -> None:
    async def story(world: World) -> None:
        (world.folder / "results").write_text("")
        job = await world.submit(3.0)
        await reaches(world, job, "ended")
        await world.cancel(job)
        await stranded(world, job)
        assert world.records(job).job.state is JobState.CANCELLED
        await world.delete(job)
        await world.settled()
        world.judge()

    in_world(story)


def test_a_job_is_deleted_long_after_its_end() -> None:
    async def story(world: World) -> None:
        job = await world.submit(1.0)
        await world.settled()
        await world.delete(job)
        await world.until(lambda: world.store.job(job) is None, 10.0, "it is forgotten")
        await world.controller.recover(job)
        await world.delete(job)
        world.judge()

    in_world(story)


def test_a_deletion_that_is_asked_for_again_has_been_done() -> None:
    async def story(world: World) -> None:
        jobs = Jobs(world.controller, lambda _: ("", ImageManifest(())), "me", "default")
        job = await world.submit(1.0)
        await world.settled()
        await jobs.delete(job)
        await world.until(lambda: world.store.job(job) is None, 10.0, "it is forgotten")
        await jobs.delete(job)
        with pytest.raises(ServiceError) as error:
            await jobs.delete("j99")
        assert error.value.problem.status == 404

    in_world(story)


def test_a_hypervisor_that_cannot_boot_the_image_is_refused_before_any_site_hears_of_it() -> None:
    async def story(world: World) -> None:
        disk = ImageManifest((Layer("d" * 64, 1 << 20, "disk", "qcow2"),))
        jobs = Jobs(world.controller, lambda _: ("d" * 64, disk), "me", "default")
        spec = JobSpec("debian", ("true",), hypervisor="uml")
        with pytest.raises(ServiceError) as error:
            await jobs.submit(JobRequest(spec, "/tmp", "/tmp"), "key", jobs.myself)
        problem = error.value.problem
        assert (problem.status, problem.hint) == (422, "ask for auto or kvm or tcg")
        assert problem.detail == "hypervisor: uml brings its own kernel, and the image is one whole disk"
        assert not world.controller.cases

    in_world(story)


@pytest.mark.parametrize("before", ["abc", "j", "j" + "9" * 40])
def test_a_page_of_jobs_that_begins_nowhere_is_refused(before: str) -> None:
    async def story(world: World) -> None:
        jobs = Jobs(world.controller, lambda _: ("", ImageManifest(())), "me", "default")
        with pytest.raises(ServiceError) as error:
            await jobs.jobs(states=(), before=before, limit=10)
        assert error.value.problem.status == 422 and before in error.value.problem.detail

    in_world(story)


def test_a_job_that_the_store_refuses_keeps_no_other_from_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(world: World) -> None:
        poison = await world.submit(3.0)
        take = world.store.commit

        def commit(commits: Sequence[Commit]) -> list[bool]:
            if any(getattr(r, "exit", None) and getattr(r, "job", "") == poison for c in commits for r in c.records):
                raise OverflowError("int too large to convert to SQLite INTEGER")
            return take(commits)

        monkeypatch.setattr(world.store, "commit", commit)
        others = [await world.submit(3.0) for _ in range(4)]
        await world.until(lambda: set(world.controller.cases) == {poison}, 200.0, "all others end")
        assert all(world.records(job).job.state is JobState.DONE for job in others)
        assert "OverflowError" in world.controller.waiting[poison]
        monkeypatch.undo()
        await world.settled()
        world.judge()

    in_world(story)


def test_a_job_that_the_store_refuses_at_its_birth_keeps_no_other_from_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(world: World) -> None:
        take = world.store.create_jobs

        def create(births: Sequence[Birth]) -> list[JobRecords]:
            if any(birth.job.spec.site == "poison" for birth in births):
                raise OverflowError("int too large to convert to SQLite INTEGER")
            return take(births)

        monkeypatch.setattr(world.store, "create_jobs", create)
        births = [world.submit(1.0), world.submit(1.0, site="poison"), world.submit(1.0)]
        first, refused, last = await asyncio.gather(*births, return_exceptions=True)
        assert isinstance(refused, OverflowError)
        assert first != last and {first, last} == set(world.jobs) == set(world.controller.cases)
        await world.settled()

    in_world(story)


def test_a_job_that_we_fail_to_plan_keeps_no_other_from_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = reconcile.plan

    async def story(world: World) -> None:
        poison = await world.submit(3.0)

        def planning(case: Any, *rest: Any) -> Any:
            return 1 // 0 if case.job.id == poison else plan(case, *rest)

        monkeypatch.setattr(controlling, "plan", planning)
        await world.submit(3.0)
        await world.until(lambda: set(world.controller.cases) == {poison}, 200.0, "the other ends")
        assert "ZeroDivisionError" in world.controller.waiting[poison]
        monkeypatch.undo()
        await world.settled()
        world.judge()

    in_world(story)


def test_a_site_speaks_only_for_its_own_entries() -> None:
    async def story(world: World) -> None:
        job = await world.submit(20.0, site="site0")
        await reaches(world, job, "running")
        entry = world.records(job).allocations[0].pilot_job
        lie = ExitRecord(entry, 1, "x", Outcome.COMPLETED, Reason.EXITED, exit_code=0)
        world.controller.observer.entry_seen("site1", EntryView(entry, exit=lie), world.clock())
        world.controller.observer.output("site1", entry, "stdout", 0, b"lies")
        assert world.controller.cases[job].observed[entry].view.exit is None  # type: ignore[union-attr]
        await world.settled()
        assert world.controller.logs.read(job, "stdout", 0, 100).startswith(b"v1 on ")
        world.judge()

    in_world(story)


def test_a_long_stage_out_is_not_cut_short_by_a_cancel() -> None:
    async def story(world: World) -> None:
        for site in world.sites.values():
            site.tempo = Tempo(shut_down=90.0)
        job = await world.submit(60.0)
        await reaches(world, job, "running")
        await world.cancel(job)
        await world.settled()
        ended = world.records(job).job
        assert (ended.state, ended.reason) == (JobState.CANCELLED, Reason.CANCELLED)
        assert "control" not in ended.message and world.controller.cases == {}
        assert ended.ended is not None and ended.ended - ended.created > 90.0

    in_world(story)


def test_what_the_site_ends_by_itself_is_tried_again() -> None:
    async def story(world: World) -> None:
        job = await world.submit(20.0, retry=1)
        await reaches(world, job, "running")
        for site in world.sites.values():
            for entry in list(site.batch.jobs.values()):
                site.batch.cancel(entry.id)
        await world.settled()
        assert [a.exit.reason for a in world.records(job).allocations if a.exit] == [Reason.EVICTED, Reason.EXITED]
        assert world.records(job).job.state is JobState.DONE
        world.judge()

    in_world(story)


def test_a_submission_that_nobody_got_costs_no_retry() -> None:
    async def story(world: World) -> None:
        for site in world.sites.values():
            site.batch.weather.submissions.append("lost")
        job = await world.submit(3.0, retry=0)
        await world.settled()
        assert world.records(job).job.state is JobState.DONE
        world.judge()

    in_world(story, sites=1)


def test_streams_that_show_late_come_home_whole() -> None:
    async def story(world: World) -> None:
        jobs = [await world.submit(2.0) for _ in range(12)]
        await world.settled()
        for job in jobs:
            assert world.controller.logs.read(job, "stdout", 0, 100).startswith(f"v{job[1:]} on ".encode()), job
        world.judge()

    in_world(story, spool_lag=30.0)


def test_what_a_killed_pilot_had_taken_out_of_the_guest_comes_home() -> None:
    async def story(world: World) -> None:
        job = await world.submit(30.0, retry=0)
        await reaches(world, job, "running")
        for site in world.sites.values():
            for entry in site.spool.entries.values():
                site.spool.write(entry, "out/products/part", b"half of it")
        for pilot in pilots(world):
            pilot.kill()
        await world.settled()
        records = world.records(job).job
        assert records.reason is Reason.PILOT
        assert (Path(records.destination) / "products/part").read_bytes() == b"half of it"

    in_world(story)


def test_all_pages_of_a_spool_are_seen() -> None:
    async def story(world: World) -> None:
        site = world.sites["site0"]
        names = {f"{world.store.installation}-j{number}-1" for number in range(900, 1150)}
        for name in names:
            site.spool.make(name)
        seen: set[str] = set()
        take = world.controller.observer.entry_seen

        def note(site: str, view: EntryView, at: float) -> None:
            seen.add(view.entry)
            take(site, view, at)

        world.controller.observer.entry_seen = note  # type: ignore[method-assign]
        site.way.cut(0.0)
        await world.until(lambda: names <= seen, 60.0, "every entry is seen")

    in_world(story)


def test_jobs_for_a_site_that_is_down_do_not_starve_the_others() -> None:
    async def story(world: World) -> None:
        world.sites["site0"].way.cut(1e9)
        for _ in range(100):
            await world.submit(1.0, site="site0")
        job = await world.submit(1.0)
        await world.until(lambda: world.store.job(job).job.state.final, 100.0, "the other ends")  # type: ignore[union-attr]

    in_world(story)


def test_a_front_end_that_takes_minutes_to_start_its_relay_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(world: World) -> None:
        way = world.sites["site0"].way
        monkeypatch.setattr(way, "latency", 45.0)  # each way, and for all that comes before
        way.cut(0.0)
        session = world.controller.sessions["site0"]
        await world.until(lambda: not session.facts.up, 10.0, "it is gone")
        await world.until(lambda: session.facts.up, 600.0, "it is there again")

    in_world(story)


def test_a_site_that_is_gone_for_good_is_removed_and_cleaned_if_it_comes_back_after_all() -> None:
    async def story(world: World) -> None:
        job = await world.submit(20.0)
        await reaches(world, job, "running")
        site = world.records(job).allocations[-1].site
        world.sites[site].way.cut(1e9)
        waits = await world.submit(5.0, site=site)
        session = world.controller.sessions[site]
        world.controller.remove_session(site)
        await world.until(lambda: world.records(job).job.state.final, 10.0, "the job ends without its site")
        ended = world.records(job)
        assert (ended.job.state, ended.job.reason) == (JobState.FAILED, Reason.LOST)
        assert len(ended.allocations) == 1 and site in ended.job.message
        assert world.records(waits).job.state is JobState.PENDING  # it was for this site, which may be added again
        await world.cancel(waits)

        world.sites[site].way.cut(0.0)
        world.controller.add_session(site, session)
        await world.settled()
        assert "home" in world.records(job).job.hint
        world.judge()

    in_world(story)


def test_jobs_that_look_for_a_place_while_one_becomes_free_are_not_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(world: World) -> None:
        observer, jobs = world.controller.observer, [await world.submit(1.0) for _ in range(9)]
        seen = observer.entry_seen

        def seen_by_all(site: str, view: EntryView, at: float) -> None:
            seen(site, view, at)
            if not world.records(jobs[2]).job.state.final:
                for job in jobs:  # all look for a place in the very pass in which one becomes free
                    world.controller.touch(job)

        monkeypatch.setattr(observer, "entry_seen", seen_by_all)
        await world.settled(500.0)
        world.judge()

    in_world(story, sites=1, nodes=1, places=2)


def test_guests_that_need_answers_get_them_in_time_and_no_more_often_than_that() -> None:
    async def story(world: World) -> None:
        [site] = world.sites.values()
        answers, messages = Counter[str](), 0
        leave, send = site.spool.grant, world.controller.sessions["site0"].grant

        def count(entry: Entry, beat: int) -> None:
            answers[entry.name] += 1
            leave(entry, beat)

        async def sent(beats: Mapping[str, int]) -> bool:
            nonlocal messages
            messages += 1
            return await send(beats)

        site.spool.grant = count  # type: ignore[method-assign]
        world.controller.sessions["site0"].grant = sent  # type: ignore[method-assign]
        for _ in range(40):
            await world.submit(3.0 * SILENCE, replace=True)
        await world.settled()
        assert all(len(world.records(job).allocations) == 1 for job in world.jobs)
        assert set(answers.values()) <= set(range(3, 4 * 4 + 1)), "about four to a grant"
        assert messages < sum(answers.values()) / 4, "those of one moment go together"
        world.judge()

    in_world(story, sites=1, nodes=40)


def test_a_service_that_is_away_for_too_long_costs_the_guest_that_needs_it_one_attempt() -> None:
    async def story(world: World) -> None:
        jobs = [await world.submit(60.0, replace=replace) for replace in (True, False)]
        for job in jobs:
            await reaches(world, job, "running")
        await asyncio.sleep(15.0)
        assert +world.census.guests == {"v1": 1, "v2": 1}
        await world.stop()
        await asyncio.sleep(SILENCE + 1.0)
        assert +world.census.guests == {"v2": 1}, "nobody answers, and the other needs no answer"
        await world.start()
        await world.settled()
        ends = [[a.exit.reason for a in world.records(job).allocations if a.exit is not None] for job in jobs]
        assert ends == [[Reason.GRANT, Reason.EXITED], [Reason.EXITED]]
        assert all(world.records(job).job.state is JobState.DONE for job in jobs)
        world.judge()

    in_world(story)


def test_no_beat_is_answered_that_the_store_does_not_know_to_be_running(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory may be late: of what another moment's plan has just fenced, the store alone can tell."""

    async def story(world: World) -> None:
        job = await world.submit(60.0, retry=0, replace=True)
        await reaches(world, job, "running")
        await asyncio.sleep(15.0)
        stand = {"v1.1": AllocationState.FENCING}
        monkeypatch.setattr(world.store, "states", lambda allocations: stand)
        await world.settled()
        ended = world.records(job)
        assert (ended.job.state, ended.job.reason) == (JobState.FAILED, Reason.GRANT)
        world.judge()

    in_world(story)
