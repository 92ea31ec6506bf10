"""Jobs that last longer than a batch job may: how long their batch jobs are, when their guests are saved, what is
refused beforehand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gridhypervisor.agent.handover import AGAIN, LEAST, HandingOver
from gridhypervisor.agent.limits import Limits
from gridhypervisor.model.records import (
    Allocation,
    AllocationState,
    CheckpointRecord,
    Job,
    JobState,
    Segment,
    Site,
    SiteKind,
)
from gridhypervisor.model.spec import GangSpec, JobSpec, ResourcesSpec, problems
from gridhypervisor.model.wire import (
    LEAST_RATE,
    SETTLE,
    ExitRecord,
    HandOver,
    HypervisorKind,
    ImageManifest,
    Manifest,
    Needs,
    Outcome,
    Phase,
    Program,
    Reason,
    Resources,
    save_seconds,
)
from gridhypervisor.planning.checkpoints import unknown
from gridhypervisor.planning.reconcile import plan
from gridhypervisor.planning.segments import ENDS, handover, lasts, outlives, save_rate, segment, told, unsegmented
from gridhypervisor.planning.suiting import beyond, hopeless
from gridhypervisor.planning.world import Case, Policy, SiteFacts
from tests.unit.test_suspension import JOB, NOW, attempt, case, checkpoint, described, seen, step, the_job

SITE = Site("here", "me", "default", SiteKind.SLURM, host="h")
HERE = SiteFacts("here", up=True, max_jobs=4, max_walltime=120, site=SITE)
S = AllocationState


def spec(walltime: str = "10m", segment: str | None = None, **more: Any) -> JobSpec:
    return JobSpec("image", ("true",), resources=ResourcesSpec(1, "128Mi", "64Mi", walltime, segment), **more)


# -- what is planned ---------------------------------------------------------------------------------------------------


def test_a_job_gets_batch_jobs_as_long_as_they_may_be_and_the_last_one_what_is_left() -> None:
    assert segment(spec("2m"), HERE, 0.0) is None, "it fits into one"
    assert segment(spec("10m"), replace(HERE, max_walltime=None), 0.0) is None, "no limit is known"
    assert segment(spec("10m"), HERE, 0.0) == Segment(120, LEAST_RATE)
    long = replace(HERE, max_walltime=3600)
    assert segment(spec("3h"), long, 0.0) == Segment(3600, LEAST_RATE)
    assert segment(spec("3h"), long, 3 * 3600 - 60.0) == Segment(60 + ENDS, LEAST_RATE)
    assert segment(spec("10m", "40s"), HERE, 0.0) == Segment(40, LEAST_RATE), "its user wants shorter ones"
    assert segment(spec("10m", "5m"), HERE, 0.0) == Segment(120, LEAST_RATE), "the site gives no longer ones"
    assert segment(spec("10m", "40s"), replace(HERE, max_walltime=None, save_rate=1e8), 0.0) == Segment(40, 1e8)
    a = replace(attempt(), segment=Segment(120, LEAST_RATE))
    assert handover(spec("10m"), a) == HandOver(600.0, LEAST_RATE)
    assert handover(spec("10m"), attempt()) is None
    assert "5 or more batch jobs of 120 s" in told(spec(), HERE) and not told(spec("2m"), HERE)


@pytest.mark.parametrize(
    ("asked", "facts", "words"),
    [
        (spec(gang=GangSpec(2)), HERE, "a gang"),
        (spec(hypervisor="uml"), HERE, "cannot be saved"),
        (spec(), replace(HERE, site=replace(SITE, options={"control": "tcp"})), "control: tcp"),
        (spec(), replace(HERE, save_rate=1 << 20), "may take 197 s of its 120 s"),
        (spec(segment="20s"), HERE, "exceeds the job's segment of 20s"),
    ],
    ids=["gang", "uml", "tcp", "slow", "segment"],
)
def test_what_cannot_be_saved_in_time_is_refused_beforehand(asked: JobSpec, facts: SiteFacts, words: str) -> None:
    refusal = unsegmented(asked, facts)
    assert words in refusal and "it cannot go on in another batch job" in refusal
    assert beyond(asked, facts) == refusal and refusal in hopeless(asked, [facts])
    fitting = replace(facts, max_walltime=1200, save_rate=LEAST_RATE)
    longer = msgspec.structs.replace(asked, resources=msgspec.structs.replace(asked.resources, segment=None))
    assert not unsegmented(longer, fitting), "where one batch job is enough, nothing needs to be saved"


def test_a_segment_that_means_nothing_is_refused_where_it_is_read() -> None:
    assert not problems(spec(segment="40s"))
    for wrong in (spec(segment="5s"), spec(segment="40s", gang=GangSpec(2)), spec(segment="40s", hypervisor="uml")):
        assert [field for field, _ in problems(wrong)] == ["resources.segment"]


def test_guests_are_expected_to_be_saved_as_slowly_as_the_slowest_was() -> None:
    assert save_rate([]) == save_rate([1e9] * 4) == LEAST_RATE, "too few to believe that it is faster"
    assert save_rate([1e9, 2e9, 3e9, 4e9, 5e9]) == 1e9
    assert save_rate([1e6]) == 1e6, "one is enough to know that it is slower"
    assert save_seconds(64 << 20, float(32 << 20)) == SETTLE + 2.0


@given(
    walltime=st.integers(21, 1 << 20), limit=st.none() | st.integers(20, 1 << 20),
    wanted=st.none() | st.integers(20, 1 << 20), executed=st.floats(0, 1 << 20),
)  # fmt: skip
def test_batch_jobs_are_never_longer_than_they_may_be(
    walltime: int, limit: int | None, wanted: int | None, executed: float
) -> None:
    facts = replace(HERE, max_walltime=limit)
    asked = spec(f"{walltime}s", f"{wanted}s" if wanted is not None else None)
    found = segment(asked, facts, executed)
    assert (found is not None) == outlives(asked, facts) == (lasts(asked, facts) < walltime)
    if found is not None:
        assert 1 <= found.walltime <= min(each for each in (limit, wanted) if each is not None)
        left = max(1.0, walltime - executed)
        assert found.walltime >= min(left, lasts(asked, facts))
    elif limit is not None:
        assert walltime <= limit


def test_who_must_be_saved_does_not_run_under_user_mode_linux() -> None:
    assert "cannot save" in Needs(saved=True).unmet(HypervisorKind.UML)
    assert not any(Needs(saved=True).unmet(kind) for kind in (HypervisorKind.KVM, HypervisorKind.TCG))


# -- what follows from an end -----------------------------------------------------------------------------------------

MANY = replace(JOB, spec=spec("1000s"), state=JobState.RUNNING)


def ended(reason: Reason, outcome: Outcome = Outcome.STOPPED, number: int = 0) -> ExitRecord:
    left = described(number) if reason in (Reason.HAND_OVER, Reason.EVICTED) else None
    return ExitRecord("g-j1-1", 1, "c", outcome, reason, "", checkpoint=left)


def of_a_segment(state: AllocationState = S.RUNNING, exit: ExitRecord | None = None) -> Allocation:
    return replace(attempt(state), segment=Segment(120, LEAST_RATE), exit=exit)


def test_a_saved_guest_goes_on_in_another_batch_job_of_what_is_left() -> None:
    exit = ended(Reason.HAND_OVER)
    first = step(case(MANY, of_a_segment(), seen(exit=exit)))
    [kept] = [r for r in first.records if isinstance(r, CheckpointRecord)]
    assert the_job(first).state is JobState.EPILOG
    over = of_a_segment(S.COLLECTED, exit)
    waits = case(replace(MANY, state=JobState.PENDING), over, seen(exit=exit), [kept])
    planned = plan(waits, {"here": HERE}, Policy(), NOW, "g")
    [a] = [r for r in planned.records if isinstance(r, Allocation) and r.epoch == 2]
    assert (a.restore, a.segment) == ("g-j1-1-0", Segment(120, LEAST_RATE))
    full = plan(waits, {"here": replace(HERE, alive=4)}, Policy(), NOW, "g")
    assert "its guest is saved at here, after 0 s of the program, and waits: " in full.waiting
    assert "no room for more" in full.waiting


@pytest.mark.parametrize("retries", [0, 1])
@pytest.mark.parametrize("reason", [Reason.HAND_OVER, Reason.EVICTED, Reason.UNSAVED, Reason.WALLTIME])
def test_only_a_hand_over_costs_no_retry(reason: Reason, retries: int) -> None:
    spec = msgspec.structs.replace(MANY.spec, retry=msgspec.structs.replace(MANY.spec.retry, times=retries))
    job = replace(MANY, state=JobState.EPILOG, spec=spec)
    sight = seen(exit=ended(reason))
    done = replace(sight, outcomes={"collect": _collected()})  # type: ignore[dict-item]
    after = step(case(job, of_a_segment(S.ENDED, ended(reason)), done, [checkpoint(0)]))
    again = reason is Reason.HAND_OVER or (reason is not Reason.WALLTIME and retries)
    states = [r.state for r in after.records if isinstance(r, Job)]
    assert states == ([JobState.PROLOG] if again else []), "without a retry it ends when its site is clean"
    assert [r.restore for r in after.records if isinstance(r, Allocation) and r.epoch == 2] == ["g-j1-1-0"] * bool(
        again
    )


def _collected() -> Any:
    from gridhypervisor.planning.world import Outcome as Done
    from gridhypervisor.planning.world import Result

    return Done(Result.OK, NOW)


def test_what_its_pilot_may_have_saved_by_itself_is_removed_though_nobody_heard_of_it() -> None:
    assert unknown(of_a_segment(), []) == ("g-j1-1-0",)
    assert unknown(of_a_segment(), [checkpoint(0)]) == () == unknown(attempt(), [])


def test_a_guest_nobody_hears_of_is_over_with_its_batch_job_and_not_with_its_job() -> None:
    silent = Case(MANY, case().vm, (of_a_segment(),), case().pilot_jobs, {"g-j1-1": seen(Phase.STAGE_OUT)})
    wakes = plan(silent, {"here": replace(HERE, up=False)}, Policy(), 30.0, "g").wake_at
    assert wakes == 20.0 + 120 + Policy().fence_margin


# -- when the pilot saves it ------------------------------------------------------------------------------------------


def manifest(walltime: int, whole: float = 1e6, scratch: int = 64 << 20) -> Manifest:
    return Manifest(
        protocol=1, installation="i", entry="e", vm="v", epoch=1, allocation="a", job="j", image=ImageManifest(()),
        image_digest="", program=Program(("true",), outputs=("x",)),
        resources=Resources(1, 128 << 20, scratch, walltime), handover=HandOver(whole),
    )  # fmt: skip


def handing(walltime: int = 120, whole: float = 1e6, executed: float = 0.0) -> HandingOver:
    asked = manifest(walltime, whole)
    assert asked.handover is not None
    return HandingOver(asked.handover, Limits.of(asked, 100.0), 110.0, executed)


def test_nobody_stops_a_program_for_its_outputs_whose_guest_is_saved() -> None:
    limits = Limits.of(manifest(120), 100.0)
    assert (limits.soft, limits.late) == (limits.hard, Reason.UNSAVED)
    assert limits.meaning(limits.hard - 1.0, cancelled=False) is Reason.UNSAVED
    assert limits.meaning(limits.hard - 1.0, cancelled=True) is Reason.CANCELLED


def test_the_bigger_a_guest_the_sooner_it_is_saved() -> None:
    found = handing(600)
    by = found.limits.save_by(save_seconds(128 << 20, LEAST_RATE))
    assert not found.due(by - 0.1, 128 << 20) and found.due(by, 128 << 20)
    assert found.due(by - 60.0, 4 << 30)
    assert by <= found.limits.hard - found.limits.spare, "a program that ends before can still bring its outputs out"


def test_a_save_that_failed_is_tried_again_while_there_is_time() -> None:
    found = handing(120)
    moment = found.limits.save_by(save_seconds(128 << 20, LEAST_RATE))
    tries = 0
    while found.failed(moment, "no space left"):
        assert not found.due(moment + AGAIN / 2, 128 << 20) and found.due(moment + AGAIN, 128 << 20)
        moment, tries = moment + AGAIN, tries + 1
    assert tries > 1 and moment < found.limits.hard and found.why == "no space left"


def test_after_a_warning_it_is_saved_at_once_and_tried_once() -> None:
    found = handing(3600)
    assert not found.due(200.0, 128 << 20)
    assert found.in_time(Reason.EVICTED, 128 << 20) and not found.in_time(Reason.EVICTED, 1 << 30)
    assert found.in_time(Reason.UNSAVED, 1 << 30), "its time was nearly over, of which enough is left"
    found.warn(Reason.EVICTED, "SIGTERM")
    found.warn(Reason.UNSAVED, "SIGUSR2")
    assert found.due(200.0, 128 << 20)
    assert (found.wish().reason, found.wish().why, found.wish().end) == (Reason.EVICTED, "the site sent SIGTERM", True)
    assert not found.failed(200.0, "no space left")


def test_a_program_whose_own_time_is_over_is_stopped_and_not_saved() -> None:
    found = handing(120, whole=330.0, executed=300.0)
    assert (found.program().soft, found.program().late) == (140.0, Reason.WALLTIME)
    assert handing(120, whole=500.0).program() == found.limits, "it goes on in another batch job"


def test_a_batch_job_that_left_no_time_for_the_program_is_not_gone_on_with() -> None:
    found = handing(120)
    assert "left its program 0.5 s" in found.futile(found.began + LEAST / 2) and not found.futile(found.began + LEAST)


SIZES: Mapping[str, int] = {"tiny": 32 << 20, "usual": 512 << 20, "large": 64 << 30}


@given(
    walltime=st.integers(20, 1 << 20),
    size=st.sampled_from(sorted(SIZES.values())),
    scratch=st.integers(1 << 20, 1 << 40),
)
def test_what_is_expected_to_be_saved_in_time_is(walltime: int, size: int, scratch: int) -> None:
    limits = Limits.of(manifest(walltime, scratch=scratch), 0.0)
    seconds = save_seconds(size, LEAST_RATE)
    assert limits.save_by(seconds) + seconds <= limits.hard + 1e-6
    assert limits.hard < limits.deadline < walltime
