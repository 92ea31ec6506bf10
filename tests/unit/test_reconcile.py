"""The planner's transition table is the documented diagram; its verdicts on an allocation are the protocol's."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import msgspec
import pytest

from gridhypervisor.model import records
from gridhypervisor.model.batch import BatchJob, BatchState
from gridhypervisor.model.records import (
    ActionKind,
    Allocation,
    AllocationState,
    Job,
    JobState,
    PilotJob,
    Times,
    Vm,
    Wish,
)
from gridhypervisor.model.spec import JobSpec, ResourcesSpec, RetrySpec
from gridhypervisor.model.wire import EntryView, ExitRecord, ImageManifest, OwnerRecord, Reason
from gridhypervisor.model.wire import Outcome as WireOutcome
from gridhypervisor.planning.draft import TRANSITIONS, JobPlan
from gridhypervisor.planning.reconcile import plan
from gridhypervisor.planning.world import (
    Absent,
    Batch,
    Case,
    Observed,
    Outcome,
    Policy,
    Result,
    Seen,
    SiteFacts,
    Stay,
    Unknown,
)

S = AllocationState
A = ActionKind
SITE = SiteFacts("site", up=True, max_jobs=4, listing_lag=5.0, spool_lag=10.0)
NOW = 1000.0
WALLTIME = 100


def arrows(diagram: str) -> set[tuple[str, str]]:
    """The arrows of a drawing in box characters: from a word along the lines to the words at the heads."""
    lines = diagram.splitlines()
    words = {(y, x): m[0] for y, line in enumerate(lines) for m in re.finditer(r"[A-Z]{4,}", line)
             for x in range(m.start(), m.end())}  # fmt: skip
    labels = {(y, x) for y, line in enumerate(lines) for m in re.finditer(r"[a-z:,]+(?: [a-z:,]+)*", line)
              for x in range(m.start(), m.end())}  # fmt: skip
    ways = {"─": "EW", "│": "NS", "┌": "ES", "┐": "WS", "└": "NE", "┘": "NW", "├": "NSE", "┤": "NSW",
            "┬": "EWS", "┴": "EWN", "┼": "NESW", "▶": "W", "▼": "N", "▲": "S"}  # fmt: skip
    heads = {"▶": "E", "▼": "S", "▲": "N"}
    moves = {"N": (-1, 0), "S": (1, 0), "E": (0, 1), "W": (0, -1)}
    back = {"N": "S", "S": "N", "E": "W", "W": "E"}

    def at(y: int, x: int) -> str:
        return lines[y][x] if 0 <= y < len(lines) and 0 <= x < len(lines[y]) else " "

    def follow(y: int, x: int, to: str, seen: set[tuple[int, int, str]]) -> set[str]:
        """Words that are reached when leaving (y, x) towards `to`."""
        if (y, x, to) in seen:
            return set()
        seen.add((y, x, to))
        dy, dx = moves[to]
        y, x = y + dy, x + dx
        if (y, x) in labels:  # a word on the line, or beside it
            return follow(y, x, to, seen)
        char = at(y, x)
        if char in heads and heads[char] == to:
            hy, hx = y + dy, x + dx
            while at(hy, hx) == " ":
                hy, hx = hy + dy, hx + dx
            return {words[hy, hx]}
        if char not in ways or back[to] not in ways[char]:
            return set()
        return {word for out in ways[char] if out != back[to] for word in follow(y, x, out, seen)}

    found = set()
    for (y, x), word in words.items():
        for to in "NSEW":
            if to in "EW" and words.get((y, x + moves[to][1])) == word:
                continue  # not at the word's end
            gap = moves[to][1] if at(y, x + moves[to][1]) == " " else 0  # between a word and its line
            found |= {(word, head) for head in follow(y, x + gap, to, set()) if head != word}
    return found


def test_the_diagram_shows_the_transition_table() -> None:
    diagram = (records.__doc__ or "").partition("Allocation:\n")[2]
    assert arrows(diagram) == {(a.name, b.name) for a, b in TRANSITIONS}


def test_the_reading_of_diagrams_tells_an_arrow_from_a_line() -> None:
    assert arrows("ONEE ──so──▶ TWOO ── FOUR\n  └──────▶ THREE") == {("ONEE", "TWOO"), ("ONEE", "THREE")}


def case(
    state: AllocationState,
    sight: Observed,
    *,
    wish: Wish = Wish.RUN,
    retries: int = 1,
    silence: int = 0,
    running: float = 900.0,
) -> Case:
    """`silence`: seconds after which it is replaced; 0: it is kept. `running`: when its owner was first seen."""
    spec = JobSpec("image", ("true",), resources=ResourcesSpec(walltime=f"{WALLTIME}s"), retry=RetrySpec(retries),
                   on_silence="replace" if silence else "keep", silence=f"{silence}s")  # fmt: skip
    job = Job("j1", "me", "default", "test", spec, "/home", "/home", ImageManifest(()), "0" * 64, 0.0,
              JobState.RUNNING, wish, attempts=1, version=3)  # fmt: skip
    times = Times(900.0, submitting=900.0, running=running, since=running)
    allocation = Allocation("v1.1", "me", "default", "j1", "v1", 1, "g-j1-1", "site", times, state, version=3)
    pilot_job = PilotJob("g-j1-1", "me", "default", "site", "7", 1)
    return Case(job, Vm("v1", "me", "default", "j1", 1, 1), (allocation,), {"g-j1-1": pilot_job}, {"g-j1-1": sight})


def step(
    state: AllocationState, sight: Observed, *, now: float = NOW, wish: Wish = Wish.RUN, up: bool = True
) -> JobPlan:
    return plan(case(state, sight, wish=wish), {"site": replace(SITE, up=up)}, Policy(), now, "g")


def became(found: JobPlan) -> list[AllocationState]:
    return [r.state for r in found.records if isinstance(r, Allocation) and r.epoch == 1]


def wants(found: JobPlan) -> list[ActionKind]:
    return [a.kind for a in found.actions]


def seen(state: BatchState, since: float = 950.0, restarts: int = 0) -> Seen:
    return Seen(BatchJob("7", "g-j1-1", state, restarts=restarts), since)


def owned(by: str) -> EntryView:
    return EntryView("g-j1-1", OwnerRecord(by, "c", 1))


GONE = [
    seen(BatchState.NODE_LOST),
    seen(BatchState.ENDED, restarts=1),
    Absent(950.0, 990.0, 7),
]


@pytest.mark.parametrize("batch", GONE, ids=["node lost", "another run ended", "not listed"])
def test_an_owner_out_of_sight_is_given_up_only_after_its_walltime(batch: Batch) -> None:
    sight = Observed(owned("pilot"), NOW, batch)
    assert became(step(S.RUNNING, sight)) == []
    fence = 900.0 + WALLTIME + Policy().fence_margin
    assert step(S.RUNNING, sight).wake_at == fence
    late = fence + 100.0
    assert became(step(S.RUNNING, replace(sight, view_at=late), now=late)) == [S.ENDED]


def test_a_batch_job_that_outlasts_its_walltime_is_cancelled_not_given_up() -> None:
    found = step(S.RUNNING, Observed(owned("pilot"), NOW, seen(BatchState.RUNNING)), now=5000.0)
    assert became(found) == [] and wants(found) == [ActionKind.BATCH_CANCEL]


def test_the_batch_systems_word_counts_once_the_spool_was_looked_at_after_its_lag() -> None:
    sight = Observed(owned("pilot"), 955.0, seen(BatchState.ENDED, since=995.0))
    assert step(S.RUNNING, sight).wake_at == pytest.approx(1005.0, abs=0.1)
    later = step(S.RUNNING, sight, now=1006.0)
    assert became(later) == [] and wants(later) == [ActionKind.LOOK]
    looked = replace(sight, outcomes={ActionKind.LOOK: Outcome(Result.OK, 1006.0)})
    assert became(step(S.RUNNING, looked, now=1007.0)) == [S.ENDED]


@pytest.mark.parametrize("state", [S.SUBMITTING, S.QUEUED])
def test_what_is_not_owned_is_revoked_and_never_simply_given_up(state: AllocationState) -> None:
    for batch in (seen(BatchState.ENDED), seen(BatchState.NODE_LOST), Absent(950.0, 990.0, 2)):
        found = step(state, Observed(batch=batch))
        assert became(found) == [S.REVOKING] and wants(found) == [ActionKind.REVOKE]


def test_absent_once_is_not_gone_nor_absent_within_the_lag() -> None:
    assert became(step(S.SUBMITTING, Observed(batch=Absent(990.0, 990.0, 1)))) == []
    assert became(step(S.SUBMITTING, Observed(batch=Absent(901.0, 904.0, 2)))) == []


def test_absences_that_began_within_the_lag_count_once_they_outlast_it() -> None:
    assert became(step(S.SUBMITTING, Observed(batch=Absent(901.0, 990.0, 9)))) == [S.REVOKING]


def test_a_submission_is_never_repeated() -> None:
    assert wants(step(S.SUBMITTING, Observed())) == []


def test_a_pilot_that_was_faster_than_the_revocation_has_it() -> None:
    assert became(step(S.REVOKING, Observed(owned("pilot")))) == [S.RUNNING]
    answer = Outcome(Result.OK, NOW, owner=OwnerRecord("pilot", "c", 1))
    assert became(step(S.REVOKING, Observed(outcomes={ActionKind.REVOKE: answer}))) == [S.RUNNING]


def test_an_owner_that_cannot_be_read_decides_nothing() -> None:
    found = step(S.REVOKING, Observed(owned("unknown")))
    assert became(found) == [] and wants(found) == [ActionKind.REVOKE]


def test_a_silent_site_confirms_nothing() -> None:
    found = step(S.REVOKING, Observed(), up=False)
    assert became(found) == [] and wants(found) == []
    assert "is not connected yet" in found.waiting


def test_a_cancelled_run_stops_by_its_pilot_first_and_by_the_batch_system_when_that_does_not() -> None:
    asked = step(S.RUNNING, Observed(owned("pilot"), NOW, seen(BatchState.RUNNING)), wish=Wish.CANCEL, now=950.0)
    assert wants(asked) == [ActionKind.REQUEST_CANCEL] and became(asked) == []
    done = {ActionKind.REQUEST_CANCEL: Outcome(Result.OK, 950.0)}
    sight = Observed(owned("pilot"), NOW, seen(BatchState.RUNNING), done)
    assert wants(step(S.RUNNING, sight, wish=Wish.CANCEL, now=951.0)) == []
    assert wants(step(S.RUNNING, sight, wish=Wish.CANCEL, now=1010.0)) == [ActionKind.BATCH_CANCEL]


def test_a_pilot_that_goes_on_beating_is_left_to_bring_its_outputs_out() -> None:
    done = {ActionKind.REQUEST_CANCEL: Outcome(Result.OK, 950.0)}
    sight = Observed(owned("pilot"), NOW, seen(BatchState.RUNNING), done, news_at=1080.0)
    assert wants(step(S.RUNNING, sight, wish=Wish.CANCEL, now=1100.0)) == []
    assert wants(step(S.RUNNING, replace(sight, news_at=950.0), wish=Wish.CANCEL, now=1100.0)) == [A.BATCH_CANCEL]
    fence = 900.0 + WALLTIME + Policy().fence_margin
    assert A.BATCH_CANCEL in wants(step(S.RUNNING, replace(sight, news_at=fence), wish=Wish.CANCEL, now=fence + 1.0))


@pytest.mark.parametrize("state", [S.SUBMITTING, S.RUNNING, S.REVOKING])
def test_a_batch_jobs_id_is_written_down_whoever_says_it_and_whenever(state: AllocationState) -> None:
    said: list[Observed] = [
        Observed(owned("pilot"), NOW, seen(BatchState.RUNNING)),
        Observed(owned("pilot"), NOW, outcomes={A.SUBMIT: Outcome(Result.OK, 950.0, batch_id="7")}),
    ]
    for sight in said:
        before = case(state, sight)
        unknown = replace(before, pilot_jobs={n: replace(p, batch_id="") for n, p in before.pilot_jobs.items()})
        found = plan(unknown, {"site": SITE}, Policy(), NOW, "g")
        assert [r.batch_id for r in found.records if isinstance(r, PilotJob)] == ["7"]


def test_an_owner_that_stays_unreadable_is_given_up_when_its_guest_is_surely_over() -> None:
    sight = Observed(owned("unknown"), NOW, unreadable_at=950.0)
    over = 950.0 + WALLTIME + Policy().fence_margin
    assert became(step(S.REVOKING, sight, now=over - 1.0)) == []
    assert "cannot be read" in step(S.REVOKING, sight, now=over - 1.0).waiting
    assert became(step(S.REVOKING, sight, now=over)) == [S.REVOKED]


@pytest.mark.parametrize("code", [64, 73, 77, 78, 126])
def test_why_the_bundle_did_not_start_is_said(code: int) -> None:
    batch = Seen(BatchJob("7", "g-j1-1", BatchState.ENDED, code=code), 950.0)
    found = step(S.QUEUED, Observed(batch=batch))
    [moved] = [r for r in found.records if isinstance(r, Allocation)]
    assert moved.why is not Reason.LOST and f"exit code {code}" in moved.note


LEFT_THERE = [S.SUBMITTING, S.QUEUED, S.RUNNING, S.REVOKING, S.ENDED]


@pytest.mark.parametrize("state", LEFT_THERE)
@pytest.mark.parametrize("wish", Wish)
def test_a_site_that_was_removed_ends_its_jobs_and_starts_them_nowhere_else(state: AllocationState, wish: Wish) -> None:
    elsewhere = {"other": replace(SITE, name="other")}
    found = plan(case(state, Observed(), wish=wish), elsewhere, Policy(), 1e6, "g")
    job = next(r for r in found.records if isinstance(r, Job))
    assert job.state is (JobState.CANCELLED if wish.ends else JobState.FAILED)
    assert "site" in job.message and not became(found) and not wants(found)
    assert found.delete is (wish is Wish.DELETE)


def test_what_a_removed_site_was_never_given_goes_elsewhere() -> None:
    elsewhere = {"other": replace(SITE, name="other")}
    found = plan(case(S.PLANNED, Observed()), elsewhere, Policy(), NOW, "g")
    assert became(found) == [S.REVOKED]
    assert next(r for r in found.records if isinstance(r, Job)).state is JobState.PENDING


def test_a_lenders_refusal_costs_no_retry_and_is_not_repeated_at_once() -> None:
    words = Outcome(Result.REFUSED, NOW, reason=Reason.LENDER, message="the lender allows 4 cores; 4 are in use")
    refused = case(S.PLANNED, Observed(outcomes={A.PROLOG: words}), retries=0)
    found = plan(refused, {"site": SITE}, Policy(), NOW, "g")
    assert became(found) == [S.REVOKED]
    [job] = [r for r in found.records if isinstance(r, Job)]
    assert (job.state, job.excluded) == (JobState.PENDING, ())
    [gone] = [r for r in found.records if isinstance(r, Allocation)]

    again = replace(refused, job=job, allocations=(gone,))
    waits = plan(again, {"site": SITE}, Policy(), NOW + 1.0, "g")
    assert "the lender of site has just refused it" in waits.waiting
    assert waits.wake_at == NOW + Policy().refused_pause
    elsewhere = plan(again, {"site": SITE, "other": replace(SITE, name="other")}, Policy(), NOW + 1.0, "g")
    assert [r.site for r in elsewhere.records if isinstance(r, Allocation) and r.epoch == 2] == ["other"]
    tries = plan(again, {"site": SITE}, Policy(), NOW + Policy().refused_pause, "g")
    assert [r.epoch for r in tries.records if isinstance(r, Allocation)] == [2]


def test_a_pilot_that_waited_until_its_lender_no_longer_let_it_start_is_replaced_twice() -> None:
    record = ExitRecord("g-j1-1", 1, "c", WireOutcome.FAILED, Reason.LENDER, "start the guest: the hours are over")
    collected = Observed(outcomes={A.COLLECT: Outcome(Result.OK, NOW)})
    for tries, again in ((1, True), (2, True), (3, False)):
        now = case(S.ENDED, collected, retries=0)
        [last] = now.allocations
        before = [replace(last, id=f"v1.{n}", epoch=n, exit=record, state=S.CLEANED) for n in range(1, tries)]
        last = replace(last, id=f"v1.{tries}", epoch=tries, exit=record)
        now = replace(now, vm=replace(now.vm, epoch=tries), allocations=(*before, last),
                      job=replace(now.job, state=JobState.EPILOG))  # fmt: skip
        found = plan(now, {"site": SITE}, Policy(), NOW, "g")
        epochs = [r.epoch for r in found.records if isinstance(r, Allocation)]
        assert epochs == ([tries, tries + 1] if again else [tries])


# -- silence, where a job is to be replaced ----------------------------------------------------------------------------

SILENCE = 40
HEARD = Observed(view=owned("pilot"), view_at=NOW, news_at=NOW, batch=seen(BatchState.RUNNING))
POLICY = Policy()
OVER = NOW + SILENCE + POLICY.grant_margin


def silent(
    state: AllocationState, now: float, sight: Observed = HEARD, *, up: bool = True, watched: float = 0.0, **of: Any
) -> JobPlan:
    """The next step of a job that is replaced on silence, last heard of at NOW."""
    facts = replace(SITE, up=up, watched=watched)
    long = replace(case(state, sight, silence=SILENCE, **of))
    spec = msgspec.structs.replace(long.job.spec, resources=ResourcesSpec(walltime="10h"))
    return plan(replace(long, job=replace(long.job, spec=spec)), {"site": facts}, POLICY, now, "g")


@pytest.mark.parametrize("up", [True, False])
def test_a_job_that_is_kept_is_never_fenced(up: bool) -> None:
    assert became(step(S.RUNNING, HEARD, now=NOW + 60.0, up=up)) == []


def test_a_run_is_fenced_when_nothing_was_heard_of_it_for_as_long_as_its_grant_lasts() -> None:
    early = silent(S.RUNNING, NOW + SILENCE - 1.0)
    assert became(early) == [] and early.wake_at == NOW + SILENCE
    assert became(silent(S.RUNNING, NOW + SILENCE)) == [S.FENCING]
    lost = replace(HEARD, batch=seen(BatchState.NODE_LOST))
    assert became(silent(S.RUNNING, NOW + SILENCE, lost)) == [S.FENCING]
    assert became(silent(S.RUNNING, NOW + SILENCE, replace(HEARD, batch=Unknown("cut")), up=False)) == [S.FENCING]


def test_a_new_controller_waits_anew_for_a_word_of_it() -> None:
    unheard = Observed(batch=Unknown())
    assert became(silent(S.RUNNING, NOW + SILENCE - 1.0, unheard, up=False, watched=NOW)) == []
    assert became(silent(S.RUNNING, NOW + SILENCE, unheard, up=False, watched=NOW)) == [S.FENCING]
    assert became(silent(S.FENCING, OVER - 1.0, unheard, up=False, watched=NOW)) == []
    assert became(silent(S.FENCING, OVER, unheard, up=False, watched=NOW)) == [S.FENCED]


def test_a_run_whose_owner_is_seen_before_its_first_word_has_as_long_to_say_it() -> None:
    unsaid = Observed(view=owned("pilot"), view_at=NOW, batch=seen(BatchState.RUNNING))
    began = NOW - 1.0  # the site was looked after for long by then
    assert became(silent(S.RUNNING, began + SILENCE - 1.0, unsaid, running=began)) == []
    assert became(silent(S.RUNNING, began + SILENCE, unsaid, running=began)) == [S.FENCING]
    assert became(silent(S.FENCING, OVER - 2.0, unsaid, running=began)) == []
    assert became(silent(S.FENCING, OVER - 1.0, unsaid, running=began)) == [S.FENCED]


def test_a_fenced_run_is_over_when_its_last_grant_is_and_then_there_may_be_another() -> None:
    waiting = silent(S.FENCING, OVER - 1.0)
    assert became(waiting) == [] and waiting.wake_at == OVER and "surely over" in waiting.waiting
    late = replace(HEARD, news_at=NOW + 5.0)  # perhaps answered before it was fenced
    assert became(silent(S.FENCING, OVER, late)) == []
    found = silent(S.FENCING, OVER, up=False)
    assert became(found) == [S.FENCED]
    assert [r.state for r in found.records if isinstance(r, Job)] == [JobState.PENDING]
    spent = silent(S.FENCING, OVER, retries=0)
    assert [(r.state, r.reason) for r in spent.records if isinstance(r, Job)] == [(JobState.FAILED, Reason.LOST)]
    ended = silent(S.FENCING, OVER, wish=Wish.CANCEL, up=False)
    assert [r.state for r in ended.records if isinstance(r, Job)] == [JobState.CANCELLED]


def test_the_last_word_of_a_run_that_is_being_fenced_counts() -> None:
    view = replace(owned("pilot"), exit=ExitRecord("g-j1-1", 1, "c", WireOutcome.COMPLETED, Reason.EXITED))
    assert became(silent(S.FENCING, NOW + SILENCE + 1.0, replace(HEARD, view=view))) == [S.ENDED]


def test_what_is_left_of_a_fenced_run_goes_when_nothing_more_can_come_of_it() -> None:
    view = replace(owned("pilot"), exit=ExitRecord("g-j1-1", 1, "c", WireOutcome.FAILED, Reason.GRANT))
    done = replace(HEARD, batch=seen(BatchState.ENDED, since=OVER))
    assert wants(silent(S.FENCED, OVER + 1.0, replace(HEARD, view=view))) == [A.CLEAN]
    assert wants(silent(S.FENCED, OVER + SITE.spool_lag - 1.0, done)) == []
    assert wants(silent(S.FENCED, OVER + SITE.spool_lag, done)) == [A.CLEAN]
    for sight in (HEARD, replace(HEARD, batch=seen(BatchState.NODE_LOST)), replace(HEARD, batch=Unknown())):
        assert wants(silent(S.FENCED, OVER + 1.0, sight)) == [], "it ends by itself"
    assert wants(silent(S.FENCED, OVER + 1.0, HEARD, wish=Wish.DELETE)) == [A.BATCH_CANCEL]
    assert wants(silent(S.FENCED, OVER + 36_000.0, HEARD)) == [A.BATCH_CANCEL]
    assert wants(silent(S.FENCED, OVER + 36_000.0, replace(HEARD, batch=seen(BatchState.NODE_LOST)))) == [A.CLEAN]


# -- moves -------------------------------------------------------------------------------------------------------------


def leaving(state: AllocationState, sight: Observed, why: Reason = Reason.MOVED, **more: Any) -> Case:
    """One whose attempt is to leave its site."""
    found = case(state, sight, retries=0, **more)
    return replace(found, allocations=(replace(found.allocations[0], why=why, note="elsewhere"),))


def planned(found: Case) -> JobPlan:
    return plan(found, {"site": SITE}, Policy(), NOW, "g")


def goes_on(found: JobPlan) -> bool:
    """Whether the job looks for another site, and its old one is not held against it as one that failed."""
    changed = [r for r in found.records if isinstance(r, Job)]
    assert all(job.excluded == () for job in changed)
    return any(e.kind == "job" and e.after == JobState.PENDING for e in found.events)


def test_a_wait_that_is_over_is_revoked_and_a_run_that_is_to_end_is_written_down_first() -> None:
    weighed = Stay(Reason.WAITED, "too long")
    queued = planned(replace(case(S.QUEUED, Observed(batch=seen(BatchState.PENDING))), stay=weighed))
    assert became(queued) == [S.REVOKING] and wants(queued) == [A.REVOKE]
    runs = Observed(owned("pilot"), NOW, seen(BatchState.RUNNING))
    departs = planned(replace(case(S.RUNNING, runs), stay=replace(weighed, leave=Reason.SLOW)))
    assert became(departs) == [S.RUNNING] and wants(departs) == []
    [a] = [r for r in departs.records if isinstance(r, Allocation)]
    assert (a.why, a.note) == (Reason.SLOW, "too long")
    assert wants(planned(leaving(S.RUNNING, runs))) == [A.REQUEST_CANCEL]


def test_who_is_cancelled_is_not_moved() -> None:
    runs = Observed(owned("pilot"), NOW, seen(BatchState.RUNNING))
    cancelled = replace(case(S.RUNNING, runs, wish=Wish.CANCEL), stay=Stay(Reason.SLOW, "slow"))
    assert became(planned(cancelled)) == [] and wants(planned(cancelled)) == [A.REQUEST_CANCEL]


@pytest.mark.parametrize("state", [S.PLANNED, S.SUBMITTING, S.QUEUED])
def test_what_never_began_leaves_at_once_and_costs_no_retry(state: AllocationState) -> None:
    found = planned(leaving(state, Observed(batch=seen(BatchState.PENDING))))
    if state is not S.PLANNED:
        assert became(found) == [S.REVOKING]
        answer = Outcome(Result.OK, NOW, owner=OwnerRecord("controller", "c", 1))
        found = planned(leaving(S.REVOKING, Observed(outcomes={A.REVOKE: answer})))
    assert became(found) == [S.REVOKED]
    assert goes_on(found)


def test_a_pilot_that_was_faster_ends_a_wait_but_not_a_users_wish() -> None:
    for why, kept in ((Reason.WAITED, None), (Reason.MOVED, Reason.MOVED)):
        found = planned(leaving(S.REVOKING, Observed(owned("pilot")), why))
        [a] = [r for r in found.records if isinstance(r, Allocation)]
        assert (a.state, a.why) == (S.RUNNING, kept)


@pytest.mark.parametrize(
    ("outcome", "reason", "after"),
    [
        (WireOutcome.STOPPED, Reason.MOVED, True),
        (WireOutcome.STOPPED, Reason.CANCELLED, True),
        (WireOutcome.FAILED, Reason.LOST, True),
        (WireOutcome.STOPPED, Reason.WALLTIME, False),
        (WireOutcome.COMPLETED, Reason.EXITED, False),
    ],
)
def test_after_a_departure_the_job_goes_on_unless_it_had_ended(
    outcome: WireOutcome, reason: Reason, after: bool
) -> None:
    record = ExitRecord("g-j1-1", 1, "c", outcome, reason)
    home = Observed(outcomes={A.COLLECT: Outcome(Result.OK, NOW)})
    found = leaving(S.ENDED, home, Reason.SLOW)
    found = replace(found, allocations=(replace(found.allocations[0], exit=record),))
    assert goes_on(planned(found)) is after
    wanted = planned(replace(found, observed={"g-j1-1": Observed()})).actions
    assert [(a.kind, a.results) for a in wanted] == [(A.COLLECT, not after)]
