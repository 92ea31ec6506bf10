"""The next batch job of a program that lasts longer than one: when it is asked for, when it gets its word, and when it
is let go."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import pytest

from gridhypervisor.execution.steps import Still, commits
from gridhypervisor.model.records import (
    ActionKind,
    Allocation,
    AllocationState,
    CheckpointRecord,
    Job,
    JobState,
    PilotJob,
    Saving,
    Segment,
    Times,
    Wish,
)
from gridhypervisor.model.spec import ResourcesSpec
from gridhypervisor.model.wire import (
    LEAST_RATE,
    SAVE_HAND_OVER,
    Checkpoint,
    EntryView,
    ExitRecord,
    HypervisorKind,
    HypervisorUsed,
    Outcome,
    OwnerRecord,
    Phase,
    PhaseTime,
    Reason,
    Saved,
    Status,
    from_plain,
)
from gridhypervisor.planning.accounts import charge
from gridhypervisor.planning.draft import JobPlan
from gridhypervisor.planning.ledger import HandOvers, handovers, ledger
from gridhypervisor.planning.reconcile import plan, seeker
from gridhypervisor.planning.succession import LEAD, SPARE, due
from gridhypervisor.planning.world import Case, Observed, Policy, SiteFacts
from tests.unit.test_suspension import HERE, JOB, SPEC, attempt, case, checkpoint, described, seen

S, A = AllocationState, ActionKind
SITE = SiteFacts("here", up=True, max_jobs=4, max_walltime=600, site=HERE)
LONG = replace(
    JOB, spec=msgspec.structs.replace(SPEC, resources=ResourcesSpec(1, "64Mi", "64Mi", "1h")), state=JobState.RUNNING
)
OVER = 20.0 + 600.0
"""When the first one's batch job is over, which ran since 20."""


def first(state: AllocationState = S.RUNNING, **more: object) -> Allocation:
    return replace(attempt(state), segment=Segment(600, LEAST_RATE), **more)  # type: ignore[arg-type]


def second(state: AllocationState = S.RUNNING, **more: object) -> Allocation:
    times = Times(400.0, submitting=400.0, running=450.0, since=450.0)
    return Allocation("v1.2", "me", "default", "j1", "v1", 2, "g-j1-2", "here", times, state, segment=Segment(600, 1e8),
                      ahead=True, version=3, **more)  # type: ignore[arg-type] # fmt: skip


def waits(phase: Phase = Phase.GATHER, exit: ExitRecord | None = None) -> Observed:
    status = Status("g-j1-2", 2, "d", 5, phase, (), 30.0)
    return Observed(EntryView("g-j1-2", OwnerRecord("pilot", "d", 2), status, exit), 460.0, news_at=460.0)


def runs(elapsed: float) -> Observed:
    phases = (PhaseTime(Phase.PREPARE, 0.0, 10.0), PhaseTime(Phase.EXECUTE, 10.0))
    used = HypervisorUsed(HypervisorKind.TCG, "7.2.22", "")
    status = Status("g-j1-1", 1, "c", 5, Phase.EXECUTE, phases, elapsed, hypervisor=used)
    return Observed(EntryView("g-j1-1", OwnerRecord("pilot", "c", 1), status, None), 100.0, news_at=100.0)


def both(
    a: Allocation, b: Allocation, job: Job = LONG, *, of_a: Observed | None = None, of_b: Observed | None = None,
    kept: tuple[CheckpointRecord, ...] = (),
) -> Case:  # fmt: skip
    one = case(job, a, of_a or seen(), kept)
    jobs = {**one.pilot_jobs, "g-j1-2": PilotJob("g-j1-2", "me", "default", "here", "8", version=1)}
    unseen = Observed() if b.state in (S.PLANNED, S.QUEUED) else waits()
    observed = {"g-j1-1": of_a or seen(), "g-j1-2": of_b or unseen}
    return replace(one, vm=replace(one.vm, epoch=2), allocations=(a, b), pilot_jobs=jobs, observed=observed)


def step(what: Case, now: float = 500.0, facts: SiteFacts = SITE) -> JobPlan:
    return plan(what, {"here": facts}, Policy(), now, "g")


def of(result: JobPlan, epoch: int) -> Allocation:
    return next(r for r in result.records if isinstance(r, Allocation) and r.epoch == epoch)


def test_the_next_one_is_asked_for_ahead_by_as_much_as_jobs_wait() -> None:
    what = case(LONG, first(), runs(50.0))
    at = OVER - SPARE - LEAD
    assert due(what, SITE, at - 1.0) == (False, at) and due(what, SITE, at) == (True, at)
    assert due(what, replace(SITE, wait=20.0), 100.0) == (False, at - 30.0)
    assert due(what, replace(SITE, wait=1e6), 100.0) == (False, OVER - SPARE - 150.0), "no sooner than that"
    assert step(what, 100.0).wake_at == at and not step(what, 100.0).records
    asked = step(what, at)
    b = of(asked, 2)
    assert (b.ahead, b.go, b.restore, b.segment) == (True, False, "", Segment(600, LEAST_RATE))
    assert [(x.kind, x.allocation.epoch) for x in asked.actions] == [(A.PROLOG, 2)]
    assert [r.attempts for r in asked.records if isinstance(r, Job)] == [2]
    found = seeker(what, {"here": SITE}, at)
    assert found is not None and found.job.spec.site == "here" and seeker(what, {"here": SITE}, at - 1.0) is None


@pytest.mark.parametrize(
    "what",
    [
        case(LONG, first(), seen(Phase.BOOT)),
        case(LONG, replace(first(), segment=None), runs(50.0)),
        case(LONG, first(why=Reason.MOVED), runs(50.0)),
        case(replace(LONG, wish=Wish.SUSPEND), first(), runs(50.0)),
        both(first(), second(S.QUEUED), of_a=runs(50.0)),
        case(LONG, first(restore="g-j1-1-300"), runs(600.0), [checkpoint(300)]),
    ],
    ids=["boots", "needs-none", "leaves", "is-suspended", "has-one", "ends-by-itself"],
)  # fmt: skip
def test_no_other_is_asked_for(what: Case) -> None:
    assert not due(what, SITE, OVER - 40.0)[0]
    assert not any(
        r.epoch > 1 and r.state is S.PLANNED for r in step(what, OVER - 40.0).records if isinstance(r, Allocation)
    )


def test_where_there_is_no_room_it_is_looked_again() -> None:
    full = step(case(LONG, first(), runs(50.0)), 540.0, replace(SITE, alive=4))
    assert not full.records and full.wake_at is not None and 540.0 < full.wake_at <= 555.0


def test_the_guest_is_saved_when_the_next_one_is_ready_and_not_before() -> None:
    assert not step(both(first(), second(S.QUEUED))).records
    assert not step(both(first(), second(), of_b=waits(Phase.PREPARE))).records
    ready = step(both(first(), second()))
    assert of(ready, 1).saving == Saving(1, SAVE_HAND_OVER, 500.0, "its next batch job is there")
    asked = step(both(of(ready, 1), second()), 501.0)
    assert [(x.kind, x.allocation.epoch) for x in asked.actions] == [(A.SAVE, 1)]
    failed = step(both(of(ready, 1), second(), of_a=seen(saved=Saved(1, None, "no space left"))), 501.0)
    assert of(failed, 1).saving is not None and "no space left" in failed.waiting
    later = step(both(of(failed, 1), second(), of_a=seen(saved=Saved(1, None, "no space left"))), 502.0)
    assert not later.records and not later.actions, "it is tried again after a while"


EXIT = ExitRecord("g-j1-1", 1, "c", Outcome.STOPPED, Reason.HAND_OVER, checkpoint=described(1))
PENDING = replace(LONG, state=JobState.PENDING)


@pytest.mark.parametrize(
    ("state", "then"),
    [(S.PLANNED, JobState.PROLOG), (S.QUEUED, JobState.QUEUED), (S.RUNNING, JobState.RUNNING)],
)
def test_its_word_is_committed_before_it_is_sent(state: AllocationState, then: JobState) -> None:
    over = first(S.COLLECTED, exit=EXIT)
    what = both(over, second(state), PENDING, of_a=seen(exit=EXIT), kept=(checkpoint(1),))
    word = step(what)
    b = of(word, 2)
    assert (b.go, b.restore, b.state) == (True, "g-j1-1-1", state)
    assert [r.state for r in word.records if isinstance(r, Job)] == [then]
    assert A.BEGIN not in [x.kind for x in word.actions]
    assert Still.GO in commits(what, word.records)
    if state is S.RUNNING:
        sent = step(both(over, b, replace(LONG, state=then), of_a=seen(exit=EXIT), kept=(checkpoint(1),)))
        [begin] = [x for x in sent.actions if x.kind is A.BEGIN]
        assert begin.allocation.epoch == 2
        assert from_plain(Checkpoint, msgspec.json.decode(begin.members)) == described(1)


@pytest.mark.parametrize("state", [S.ENDED, S.RUNNING])
def test_it_gets_no_word_while_anything_of_the_one_before_may_run_or_is_not_home(state: AllocationState) -> None:
    what = both(first(state, exit=EXIT if state is S.ENDED else None), second(), kept=(checkpoint(1),))
    assert not any(r.go for r in step(what).records if isinstance(r, Allocation))


def test_with_nothing_to_go_on_from_it_is_let_go_and_never_told_again() -> None:
    lost = replace(EXIT, reason=Reason.LOST, outcome=Outcome.FAILED, checkpoint=None)
    what = both(first(S.COLLECTED, exit=lost), second(), PENDING, of_a=seen(exit=lost))
    decided = of(step(what), 2)
    assert decided.why is Reason.HAND_OVER and not decided.go
    found = replace(what, allocations=(what.allocations[0], decided), checkpoints=(checkpoint(1),))
    asked = step(found)
    kinds = [x.kind for x in asked.actions if x.allocation.epoch == 2]
    assert kinds == [A.REQUEST_CANCEL], "though there is something now"
    assert not any(isinstance(r, Allocation) and r.epoch == 3 for r in asked.records), "before it is over"
    ended = waits(exit=replace(EXIT, entry="g-j1-2", epoch=2, claim="d", reason=Reason.CANCELLED, checkpoint=None))
    over = of(step(replace(found, observed={**found.observed, "g-j1-2": ended})), 2)
    anew = step(replace(found, allocations=(what.allocations[0], over), observed={**found.observed, "g-j1-2": ended}))
    assert of(anew, 3).restore == "g-j1-1-1" and not of(anew, 3).ahead


@pytest.mark.parametrize(
    ("job", "state", "kind"),
    [
        (replace(LONG, state=JobState.DONE), S.PLANNED, None),
        (replace(LONG, state=JobState.DONE), S.QUEUED, A.REVOKE),
        (replace(LONG, wish=Wish.SUSPEND), S.QUEUED, A.REVOKE),
        (replace(LONG, wish=Wish.CANCEL), S.RUNNING, A.REQUEST_CANCEL),
    ],
)
def test_who_is_not_needed_any_more_ends_and_decides_nothing(
    job: Job, state: AllocationState, kind: ActionKind | None
) -> None:
    done = replace(EXIT, reason=Reason.EXITED, outcome=Outcome.COMPLETED, checkpoint=None)
    a = first(S.CLEANED, exit=done) if job.state.final else first()
    result = step(both(a, second(state), job))
    if state is S.RUNNING:
        result = step(both(a, of(result, 2), job))
    assert kind is None or kind in [x.kind for x in result.actions if x.allocation.epoch == 2]
    assert not any(isinstance(r, Job) and r.state.final for r in result.records)
    b = next((r for r in result.records if isinstance(r, Allocation) and r.epoch == 2), None)
    assert b is None or b.state in (S.REVOKED, S.REVOKING)


def test_what_a_successor_did_beside_the_first_one_took_the_job_no_time_and_is_told() -> None:
    one = first(S.CLEANED, exit=replace(EXIT, elapsed=380.0, phases=(PhaseTime(Phase.EXECUTE, 0.0, 380.0),),
                checkpoint=replace(described(1), took={"memory": 2.0})))  # fmt: skip
    one = replace(one, times=Times(10.0, submitting=10.0, running=20.0, ended=500.0, collected=505.0, since=600.0))
    phases = (
        PhaseTime(Phase.PREPARE, 0.0, 40.0),
        PhaseTime(Phase.GATHER, 40.0, 60.0),
        PhaseTime(Phase.EXECUTE, 60.0, 160.0),
    )
    two = second(S.CLEANED, go=True, exit=replace(EXIT, epoch=2, reason=Reason.EXITED, elapsed=160.0, phases=phases,
                 checkpoint=None))  # fmt: skip
    two = replace(two, times=Times(400.0, submitting=400.0, running=450.0, ended=612.0, collected=613.0, since=614.0))
    vain = replace(second(S.CLEANED), id="v1.3", epoch=3, times=Times(550.0, running=560.0, ended=615.0, since=615.0))
    job = replace(LONG, state=JobState.DONE, ended=620.0, attempts=3)
    rows = ledger(job, [one, two, vain], {})
    assert sum(row.seconds for row in rows.rows) == pytest.approx(rows.wall) and rows.wall == 620.0
    assert all(row.seconds >= 0 for row in rows.rows)
    assert [row.seconds for row in rows.rows if (row.attempt, row.phase) == (2, Phase.EXECUTE)] == [100.0]
    assert [charge(job, a, [one, two, vain]).double for a in (one, two, vain)] == [0.0, 50.0, 52.0]
    assert handovers(job, [one, two, vain], 620.0) == HandOvers(1, 2.0 + 450.0 + 60.0 - 500.0, 50.0 + 52.0)
