"""From which checkpoint a job goes on, which nobody needs, what cannot be saved; and what a plan makes of that."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import msgspec
import pytest

from gridhypervisor.model.records import (
    ActionKind,
    Allocation,
    AllocationState,
    CheckpointRecord,
    CheckpointState,
    CopyState,
    Job,
    JobState,
    Pause,
    PilotJob,
    Saving,
    Site,
    SiteKind,
    Times,
    Vm,
    Wish,
)
from gridhypervisor.model.spec import JobSpec, ResourcesSpec
from gridhypervisor.model.wire import (
    Checkpoint,
    EntryView,
    ExitRecord,
    HypervisorKind,
    HypervisorUsed,
    ImageManifest,
    Outcome,
    OwnerRecord,
    Part,
    Phase,
    Reason,
    Saved,
    Status,
)
from gridhypervisor.planning.checkpoints import (
    COST,
    interval,
    onward,
    superfluous,
    uncheckpointable,
    unknown,
    unsuspendable,
)
from gridhypervisor.planning.draft import OVER, JobPlan
from gridhypervisor.planning.ledger import ledger
from gridhypervisor.planning.pausing import unpausable
from gridhypervisor.planning.reconcile import plan
from gridhypervisor.planning.world import Case, Observed, Policy, SiteFacts

S, K = AllocationState, CheckpointState
NOW = 1000.0
HERE = Site("here", "me", "default", SiteKind.FORK)
SITES = {"here": SiteFacts("here", up=True, max_jobs=4, site=HERE), "there": SiteFacts("there", up=True, max_jobs=4)}
SPEC = JobSpec("image", ("true",), resources=ResourcesSpec(walltime="1000s"))
JOB = Job("j1", "me", "default", "test", SPEC, "/home", "/home", ImageManifest(()), "0" * 64, 0.0, JobState.RUNNING,
          attempts=1, version=3)  # fmt: skip


def described(number: int) -> Checkpoint:
    part = Part("memory.zst", 1000, "d" * 64, 1 << 29)
    return Checkpoint(f"g-j1-1-{number}", "g-j1-1", 1, "b" * 64, "tcg", "qemu 7.2.22", "c" * 64, (), "", 1 << 29, {},
                      (part,), {"stdout": 7}, 10.0 * number)  # fmt: skip


def checkpoint(number: int, state: CheckpointState = K.KEPT, since: float | None = None) -> CheckpointRecord:
    at = 100.0 * number if since is None else since
    return CheckpointRecord(f"g-j1-1-{number}", "me", "default", "j1", "g-j1-1", "here", 1000, 10.0 * number, at, at,
                            described(number), state, version=1)  # fmt: skip


def attempt(state: AllocationState = S.RUNNING, saving: Saving | None = None, why: Reason | None = None) -> Allocation:
    times = Times(10.0, submitting=10.0, running=20.0, ended=500.0, since=500.0)
    return Allocation(
        "v1.1", "me", "default", "j1", "v1", 1, "g-j1-1", "here", times, state, why, saving=saving, version=3
    )


def seen(
    phase: Phase = Phase.EXECUTE, *, saved: Saved | None = None, exit: ExitRecord | None = None, kind: str = "tcg"
) -> Observed:
    used = HypervisorUsed(HypervisorKind(kind), "7.2.22", "")
    status = Status("g-j1-1", 1, "c", 5, phase, (), 30.0, hypervisor=used, saved=saved)
    return Observed(EntryView("g-j1-1", OwnerRecord("pilot", "c", 1), status, exit), NOW, news_at=NOW)


def case(
    job: Job = JOB, a: Allocation | None = None, sight: Observed | None = None, kept: Sequence[CheckpointRecord] = ()
) -> Case:
    a = a or attempt()
    pilot_job = PilotJob("g-j1-1", "me", "default", "here", "7", version=1)
    return Case(job, Vm("v1", "me", "default", "j1", 1, version=2), (a,), {"g-j1-1": pilot_job},
                {"g-j1-1": sight or seen()}, checkpoints=tuple(kept))  # fmt: skip


def step(what: Case) -> JobPlan:
    return plan(what, SITES, Policy(), NOW, "g")


def the_job(result: JobPlan) -> Job:
    return next(record for record in result.records if isinstance(record, Job))


def test_a_job_goes_on_from_its_newest_good_checkpoint() -> None:
    kept = [checkpoint(1), checkpoint(2), checkpoint(3, K.REFUSED), checkpoint(4, K.DOOMED)]

    def chosen(job: Job = JOB, a: Allocation | None = None, sites: Sequence[str] = ("here", "there")) -> str:
        found = onward(job, [a or attempt(S.COLLECTED)], kept, sites)
        return found.id if found is not None else ""

    assert chosen() == "g-j1-1-2"
    assert chosen(sites=["there"]) == "", "the site that has it was removed"
    assert chosen(replace(JOB, spec=msgspec.structs.replace(SPEC, site="there"))) == "g-j1-1-2", "it can be brought"
    moved = attempt(S.COLLECTED, why=Reason.MOVED)
    assert chosen(a=moved) == "", "it has left that site"
    kept[0] = checkpoint(1, since=600.0)
    assert chosen(a=moved) == "g-j1-1-1", "its user has chosen it since"


def test_two_good_checkpoints_are_kept_and_none_of_a_job_that_has_ended() -> None:
    kept = [checkpoint(1), checkpoint(2), checkpoint(3, K.REFUSED), checkpoint(4)]
    assert superfluous(JOB, [attempt()], kept, OVER) == {"g-j1-1-1"}
    used = replace(attempt(), restore="g-j1-1-1")
    assert superfluous(JOB, [used], kept, OVER) == set(), "an attempt goes on from it"
    over = replace(JOB, state=JobState.DONE)
    assert superfluous(over, [attempt(S.CLEANED)], kept, OVER) == {c.id for c in kept}
    kept[0], kept[1] = replace(kept[0], copy=CopyState.KEPT), replace(kept[1], copy=CopyState.WANTED)
    assert superfluous(JOB, [attempt()], kept, OVER) == set(), "of one there is a copy, and one is being copied"
    kept[1] = replace(kept[1], copy=CopyState.KEPT)
    assert superfluous(JOB, [attempt()], kept, OVER) == {"g-j1-1-1"}, "there is a copy of a newer one"
    kept[1] = replace(kept[1], state=K.REFUSED)
    assert onward(JOB, [], kept[:3], ["there"]) == kept[1], "its copy is good, whatever became of itself"
    assert unknown(attempt(saving=Saving(3, "end", 0.0)), [checkpoint(2)]) == ("g-j1-1-1", "g-j1-1-3")


@pytest.mark.parametrize(
    ("what", "facts", "words"),
    [
        (case(sight=seen(kind="uml")), SITES["here"], "User-Mode Linux"),
        (case(), replace(SITES["here"], site=replace(HERE, options={"control": "tcp"})), "control: tcp"),
        (case(replace(JOB, state=JobState.DONE)), SITES["here"], "has ended"),
        (case(replace(JOB, wish=Wish.CANCEL)), SITES["here"], "is being cancelled"),
        (case(replace(JOB, state=JobState.EPILOG), attempt(S.ENDED)), SITES["here"], "coming home"),
    ],
    ids=["uml", "tcp", "ended", "cancelled", "epilog"],
)
def test_what_cannot_be_saved_is_told_beforehand(what: Case, facts: SiteFacts, words: str) -> None:
    for refusal in (unsuspendable(what, facts), uncheckpointable(what, facts) or ("", "")):
        assert refusal is not None and all(refusal), what
    told = unsuspendable(what, facts)
    assert told is not None and words in told[0]


def test_a_save_is_intended_before_it_is_asked_for_and_asked_for_until_it_is_answered() -> None:
    wished = replace(JOB, wish=Wish.SUSPEND)
    assert not step(case(wished, sight=seen(Phase.BOOT))).records, "there is nothing to be saved yet"
    intent = step(case(wished))
    [changed] = [record for record in intent.records if isinstance(record, Allocation)]
    assert changed.saving == Saving(1, "end", NOW, "the user suspends it") and not intent.actions
    asked = step(case(wished, changed))
    assert [action.kind for action in asked.actions] == [ActionKind.SAVE] and not asked.records
    refused = step(case(wished, changed, seen(saved=Saved(1, None, "no space left"))))
    assert the_job(refused).wish is Wish.RUN and "no space left" in the_job(refused).message
    made = step(case(wished, changed, seen(saved=Saved(1, described(1)))))
    assert [r.id for r in made.records if isinstance(r, CheckpointRecord)] == ["g-j1-1-1"]
    stale = step(case(wished, replace(changed, saving=Saving(2, "end", NOW)), seen(saved=Saved(1, described(1)))))
    assert [action.kind for action in stale.actions] == [ActionKind.SAVE], "that was said of another wish"


def test_a_guest_stands_still_in_its_place_until_it_is_told_to_go_on() -> None:
    asked = attempt(saving=Saving(1, "pause", NOW, "the user pauses it"))
    assert [action.kind for action in step(case(a=asked)).actions] == [ActionKind.SAVE]
    stands = seen(saved=Saved(1, paused=True))
    answered = step(case(a=asked, sight=stands))
    [a] = [record for record in answered.records if isinstance(record, Allocation)]
    assert a.saving is not None and a.saving.answered and not answered.actions
    assert ["stands still" in event.message for event in answered.events] == [True]
    assert "ghv unpause j1" in step(case(a=a, sight=stands)).waiting
    suspended = step(case(replace(JOB, wish=Wish.SUSPEND), a, stands))
    assert [r.saving.then for r in suspended.records if isinstance(r, Allocation) and r.saving] == ["end"]
    refused = step(case(a=asked, sight=seen(saved=Saved(1, why="its program has ended"))))
    assert "it was not done: its program has ended" in refused.events[0].message
    [same] = refused.records
    assert isinstance(same, Allocation) and same.saving is not None and same.saving.answered


@pytest.mark.parametrize(
    ("what", "words"),
    [
        (case(sight=seen(kind="uml")), "User-Mode Linux"),
        (case(replace(JOB, state=JobState.DONE)), "has ended"),
        (case(replace(JOB, wish=Wish.SUSPEND)), "suspended"),
        (case(replace(JOB, state=JobState.QUEUED), attempt(S.QUEUED)), "only a running guest"),
        (case(sight=seen(Phase.BOOT)), "has not begun"),
        (case(a=attempt(saving=Saving(1, "end", NOW))), "being saved"),
    ],
)
def test_what_cannot_be_paused_is_told_beforehand(what: Case, words: str) -> None:
    refusal = unpausable(what, "pause")
    assert refusal is not None and all(refusal) and words in refusal[0]
    assert unpausable(case(), "pause") is None is unpausable(case(sight=seen(saved=Saved(1, paused=True))), "unpause")


def test_the_end_of_a_suspended_guest_and_its_checkpoint_are_known_together() -> None:
    exit = ExitRecord("g-j1-1", 1, "c", Outcome.STOPPED, Reason.SUSPENDED, checkpoint=described(1))
    wished = replace(JOB, wish=Wish.SUSPEND)
    ended = step(case(wished, attempt(saving=Saving(1, "end", 0.0)), seen(exit=exit)))
    assert {type(record) for record in ended.records} == {Job, Allocation, CheckpointRecord}
    a = next(record for record in ended.records if isinstance(record, Allocation))
    collecting = step(case(the_job(ended), a, seen(exit=exit), [checkpoint(1)]))
    assert [(x.kind, x.results) for x in collecting.actions] == [(ActionKind.COLLECT, False)]
    cancelled = step(case(replace(wished, wish=Wish.CANCEL), attempt(), seen(exit=exit)))
    assert the_job(cancelled).state is JobState.EPILOG


def test_a_guest_is_saved_so_often_as_its_user_says_unless_that_costs_too_much() -> None:
    job = replace(JOB, spec=msgspec.structs.replace(SPEC, checkpoint_interval="2m"))
    assert interval(JOB, attempt(), []) is None
    assert interval(job, attempt(), []) == interval(job, attempt(), [checkpoint(1)]) == 120.0
    slow = replace(checkpoint(2), checkpoint=replace(described(2), stood=30.0))
    assert interval(job, attempt(), [checkpoint(1), slow]) == 30.0 / COST

    def due(what: Case) -> JobPlan:
        return plan(what, SITES, Policy(), 150.0, "g")  # which ran since 20

    [saving] = [r.saving for r in due(case(job)).records if isinstance(r, Allocation)]
    assert saving is not None and (saving.number, saving.then, saving.asked) == (1, "go-on", 150.0)
    before = attempt(saving=Saving(4, "go-on", 100.0, answered=True))
    early = due(case(job, before))
    assert not early.records and early.wake_at == 220.0
    for nothing in (seen(Phase.BOOT), seen(Phase.STAGE_OUT), seen(kind="uml")):
        assert not due(case(job, sight=nothing)).records
    leaves = due(case(replace(job, wish=Wish.SUSPEND)))
    assert [r.saving.then for r in leaves.records if isinstance(r, Allocation) and r.saving] == ["end"]


def test_suspended_time_is_neither_waiting_nor_running() -> None:
    pauses = (Pause(2.0, 6.0), Pause(700.0, 900.0))
    job = replace(JOB, state=JobState.CANCELLED, ended=950.0, attempts=2, pauses=pauses)
    found = ledger(job, [replace(attempt(S.CLEANED), times=Times(10.0, since=600.0))], {})
    rows = [(row.phase, row.seconds) for row in found.rows]
    assert rows == [("wait", 2.0), ("suspended", 4.0), ("wait", 4.0), ("prolog", 590.0), ("wait", 100.0),
                    ("suspended", 200.0), ("wait", 50.0)]  # fmt: skip
    assert sum(seconds for _, seconds in rows) == found.wall
