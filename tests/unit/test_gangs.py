"""When a gang's programs may begin, when its round is given up, and where its members go. Without any site."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from gridhypervisor.model.commit import Birth
from gridhypervisor.model.policy import Limits, SchedulingPolicy
from gridhypervisor.model.records import (
    ActionKind,
    Allocation,
    AllocationState,
    Group,
    Job,
    JobState,
    PilotJob,
    Rounds,
    Times,
    Vm,
    Wish,
)
from gridhypervisor.model.spec import GangSpec, JobSpec, RetrySpec, problems
from gridhypervisor.model.wire import (
    EntryView,
    ExitRecord,
    ImageManifest,
    Lending,
    Outcome,
    OwnerRecord,
    Phase,
    Reason,
    Share,
    Status,
    Terms,
)
from gridhypervisor.planning.arrays import births, to_make
from gridhypervisor.planning.draft import JobPlan
from gridhypervisor.planning.gangs import Decision, decide, environment, standing, together, torn
from gridhypervisor.planning.packing import Kind, Wanted, best_fit, pack
from gridhypervisor.planning.placement import Choice, place_all, weigh
from gridhypervisor.planning.reconcile import plan
from gridhypervisor.planning.suiting import Grid, Seeker
from gridhypervisor.planning.world import Case, Observed, Policy, SiteFacts

S = AllocationState
NOW = 1000.0
SPEC = JobSpec("image", ("true",), gang=GangSpec(3, patience="5m"), retry=RetrySpec(1))
GROUP = Group("g7", "ann", "xmm", "trio", "/home/ann/results", "/home/ann", 1.5, SPEC, ImageManifest(()), "b" * 64,
              made=3, version=2)  # fmt: skip
SITE = SiteFacts("a", up=True, max_jobs=10)


def member(
    number: int,
    state: AllocationState | None = S.RUNNING,
    phase: Phase = Phase.GATHER,
    *,
    exit: ExitRecord | None = None,
    why: Reason | None = None,
    running: float | None = 900.0,
    spec: JobSpec = SPEC,
    wish: Wish = Wish.RUN,
) -> Case:
    """One of the trio, in its first round; `state` None: it was never given a place."""
    began = JobState.PENDING if state is None else JobState.RUNNING
    job = Job(f"j{number}", "ann", "xmm", f"trio[{number}]", spec, "/r", "/h", ImageManifest(()), "b" * 64, 0.0, began,
              wish, group="g7", member=str(number), version=1)  # fmt: skip
    vm = Vm(f"v{number}", "ann", "xmm", job.id, 1 if state is not None else 0, 1)
    if state is None:
        return Case(job, vm)
    times = Times(900.0, submitting=900.0, running=running, since=running or 900.0)
    name = f"i-{job.id}-1"
    a = Allocation(f"{vm.id}.1", "ann", "xmm", job.id, vm.id, 1, name, "a", times, state, why, exit=exit, version=3)
    status = Status(name, 1, "c", 3, phase, (), 5.0)
    view = EntryView(name, OwnerRecord("pilot", "c", 1, f"n{number}"), status) if running is not None else None
    return Case(job, vm, (a,), {name: PilotJob(name, "ann", "xmm", "a", "7", 1)}, {name: Observed(view)})


def ended(number: int, outcome: Outcome, reason: Reason, state: AllocationState = S.COLLECTED) -> Case:
    return member(number, state, exit=ExitRecord(f"i-j{number}-1", 1, "c", outcome, reason, "why not", node="n9"))


TRIO = [member(0), member(1), member(2)]


# -- what a user may ask for -------------------------------------------------------------------------------------------


def test_a_gang_is_no_array_and_its_names_are_checked_as_an_arrays() -> None:
    assert problems(SPEC) == []
    both = JobSpec("image", ("true",), gang=GangSpec(2), array="1-3")
    assert [field for field, _ in problems(both)] == ["gang"]
    wrong = JobSpec("image", ("true",), gang=GangSpec(2), outputs=("out.${TASKID}",))
    assert "did you mean ${TASK_ID}?" in problems(wrong)[0][1]


def test_all_members_are_made_at_once_and_know_their_places() -> None:
    from gridhypervisor.model.arrays import tasks_of

    array = tasks_of(SPEC)
    assert to_make(array, 0, {}) == 3
    made: list[Birth] = births(replace(GROUP, made=0), array, 3, 8, NOW)
    assert [(b.job.id, b.job.name, b.job.member, b.job.destination) for b in made] == [
        (f"j{8 + n}", f"trio[{n}]", str(n), f"/home/ann/results/{n}") for n in range(3)
    ]
    assert environment(made[2].job) == {
        "GHV_GANG": "g7", "GHV_GANG_INDEX": "2", "GHV_GANG_SIZE": "3", "GHV_GANG_MEMBERS": "/run/ghv/gang"
    }  # fmt: skip
    assert environment(replace(made[0].job, spec=JobSpec("image", ("true",)))) == {}


# -- rounds ------------------------------------------------------------------------------------------------------------


def test_all_begin_when_all_are_ready() -> None:
    found = decide(GROUP, TRIO, NOW)
    assert found.rounds == Rounds(begun=1)
    assert decide(replace(GROUP, rounds=Rounds(begun=1)), TRIO, NOW) == Decision()


@pytest.mark.parametrize(
    "last",
    [
        member(2, S.QUEUED, running=None),
        member(2, S.RUNNING, Phase.BOOT),
        member(2, S.REVOKING),
        member(2, S.PLANNED, running=None),
    ],
    ids=["queued", "boots", "being revoked", "planned"],
)
def test_until_then_they_wait_as_long_as_the_user_has_patience(last: Case) -> None:
    cases = [*TRIO[:2], last]
    assert decide(GROUP, cases, 1199.0) == Decision(wake_at=1200.0)
    found = decide(GROUP, cases, 1200.0)
    assert found.rounds is not None
    assert (found.rounds.released, found.rounds.begun, found.rounds.failed, found.rounds.over) == (1, 0, 1, False)
    assert "2 of 3 were ready 5m after the first had started; trio[2] was still" in found.rounds.why
    again = decide(replace(GROUP, rounds=replace(found.rounds, released=0)), cases, 1200.0)
    assert again.rounds is not None and again.rounds.over, "that was the one retry"


def test_nobody_is_hurried_while_all_are_queued() -> None:
    queued = [member(number, S.QUEUED, running=None) for number in range(3)]
    assert decide(GROUP, queued, 1e9) == Decision()
    assert decide(GROUP, [member(number, None) for number in range(3)], 1e9) == Decision()


@pytest.mark.parametrize("begun", [0, 1])
def test_one_that_fails_has_all_released(begun: int) -> None:
    found = decide(replace(GROUP, rounds=Rounds(begun=begun)), [*TRIO[:2], ended(2, Outcome.FAILED, Reason.PILOT)], NOW)
    assert found.rounds is not None
    assert (found.rounds.released, found.rounds.failed, found.rounds.over) == (1, 1, False)
    assert (found.rounds.why, found.rounds.blame) == ("trio[2] failed at a: why not", "a")


@pytest.mark.parametrize(
    ("last", "counts", "over"),
    [
        (ended(2, Outcome.FAILED, Reason.BOOT), 1, True),
        (ended(2, Outcome.STOPPED, Reason.WALLTIME), 1, True),
        (ended(2, Outcome.FAILED, Reason.EVICTED, S.ENDED), 1, False),
        (member(2, S.REVOKED, why=Reason.LOST), 1, False),
        (member(2, S.FENCED, why=Reason.LOST), 1, False),
        (member(2, S.REVOKED, why=Reason.BUSY), 0, False),
        (member(2, S.CLEANED), 0, False),
    ],
    ids=["boot", "walltime", "evicted", "lost", "fenced", "turned away", "withdrawn"],
)
def test_what_counts_and_what_no_retry_mends(last: Case, counts: int, over: bool) -> None:
    found = decide(GROUP, [*TRIO[:2], last], NOW)
    assert found.rounds is not None
    assert (found.rounds.released, found.rounds.failed, found.rounds.over) == (1, counts, over)


def test_who_has_ended_well_waits_for_the_others_and_all_end_together() -> None:
    begun = replace(GROUP, rounds=Rounds(begun=1))
    first = ended(0, Outcome.COMPLETED, Reason.EXITED)
    assert decide(begun, [first, *TRIO[1:]], NOW) == Decision()
    assert not standing(begun, [first, *TRIO[1:]]).complete
    assert standing(begun, [ended(n, Outcome.COMPLETED, Reason.EXITED) for n in range(3)]).complete


def test_the_roster_names_all_and_is_none_while_a_node_is_unknown() -> None:
    begun = replace(GROUP, rounds=Rounds(begun=1))
    assert standing(begun, TRIO).roster == "0 g7-0 a n0\n1 g7-1 a n1\n2 g7-2 a n2\n"
    assert standing(GROUP, TRIO).roster == "", "nobody is told before all are ready"
    unseen = replace(TRIO[1], observed={})
    assert standing(begun, [TRIO[0], unseen, TRIO[2]]).roster == "", "a restarted controller has yet to see it"
    odd = replace(TRIO[0], observed={"i-j0-1": Observed(EntryView("i-j0-1", OwnerRecord("pilot", "c", 1, "a b\n1 x")))})
    assert standing(begun, [odd, *TRIO[1:]]).roster.splitlines()[0] == "0 g7-0 a a_b_1_x"


# -- what each member does ---------------------------------------------------------------------------------------------


def step(case: Case, rounds: Rounds, cases: Sequence[Case] = ()) -> JobPlan:
    """What a member does by its gang's word."""
    told = standing(replace(GROUP, rounds=rounds), cases or [case, *TRIO[1:]])
    return plan(replace(case, gang=told), {"a": SITE}, Policy(), NOW, "i")


def test_the_word_to_begin_is_given_once_it_is_committed() -> None:
    assert step(TRIO[0], Rounds()).actions == ()
    [action] = step(TRIO[0], Rounds(begun=1)).actions
    assert (action.kind, action.members) == (ActionKind.BEGIN, "0 g7-0 a n0\n1 g7-1 a n1\n2 g7-2 a n2\n")
    assert step(member(0, phase=Phase.EXECUTE), Rounds(begun=1)).actions == ()


@pytest.mark.parametrize(
    ("case", "kind"),
    [
        (member(0), ActionKind.REQUEST_CANCEL),
        (member(0, S.QUEUED, running=None), ActionKind.REVOKE),
    ],
    ids=["running", "queued"],
)
def test_who_is_released_is_ended(case: Case, kind: ActionKind) -> None:
    [action] = step(case, Rounds(begun=1, released=1, why="trio[2] failed")).actions
    assert (action.kind, action.why) == (kind, "trio[2] failed")


def test_what_was_never_submitted_never_is() -> None:
    found = step(member(0, S.PLANNED, running=None), Rounds(released=1, why="x"))
    assert [r.state for r in found.records if isinstance(r, Allocation)] == [S.REVOKED]


def became(found: JobPlan) -> list[tuple[JobState, Reason | None]]:
    return [(record.state, record.reason) for record in found.records if isinstance(record, Job)]


def test_a_round_that_is_over_is_followed_by_another_or_by_the_end() -> None:
    stopped = ended(0, Outcome.STOPPED, Reason.CANCELLED, S.CLEANED)
    failed = ended(0, Outcome.FAILED, Reason.PILOT, S.CLEANED)
    well = ended(0, Outcome.COMPLETED, Reason.EXITED, S.CLEANED)
    released = Rounds(begun=1, released=1, failed=1, why="trio[2] failed", blame="b")
    for case in (stopped, failed, well):
        assert became(step(case, Rounds(begun=1))) == [], "it waits for the gang's word"
        [job] = [r for r in step(case, released).records if isinstance(r, Job)]
        assert (job.state, job.excluded) == (JobState.PENDING, ("b",))
    over = replace(released, over=True)
    assert became(step(stopped, over)) == [(JobState.FAILED, Reason.GANG)]
    assert became(step(failed, over)) == [(JobState.FAILED, Reason.PILOT)]
    assert became(step(well, over)) == [(JobState.DONE, Reason.EXITED)]
    all_well = [replace(ended(n, Outcome.COMPLETED, Reason.EXITED, S.CLEANED)) for n in range(3)]
    assert became(step(all_well[0], Rounds(begun=1), all_well)) == [(JobState.DONE, Reason.EXITED)]


def test_no_results_are_brought_home_before_it_is_known_whether_they_count() -> None:
    failed = ended(0, Outcome.FAILED, Reason.PILOT, S.ENDED)
    assert step(failed, Rounds(begun=1)).actions == ()
    for over in (False, True):
        [action] = step(failed, Rounds(begun=1, released=1, why="x", over=over)).actions
        assert (action.kind, action.results) == (ActionKind.COLLECT, over)


def test_the_user_may_end_a_member_at_any_time() -> None:
    assert step(member(0, wish=Wish.CANCEL), Rounds()).actions[0].kind is ActionKind.REQUEST_CANCEL
    for state, exit in ((S.REVOKED, None), (S.CLEANED, ExitRecord("e", 1, "c", Outcome.STOPPED, Reason.CANCELLED))):
        assert became(step(member(0, state, wish=Wish.CANCEL, exit=exit), Rounds())) == [
            (JobState.CANCELLED, Reason.CANCELLED)
        ]


# -- placing -----------------------------------------------------------------------------------------------------------


def seekers(
    gang: str = "g1", *, spread: bool = False, count: int = 3, first: int = 1, created: float = 0.0
) -> list[Seeker]:
    spec = JobSpec("image", ("true",), gang=GangSpec(count, spread))
    return [
        Seeker(Job(f"j{first + n}", "ann", "xmm", "x", spec, "/", "/", ImageManifest(()), "", created, group=gang,
                   member=str(n)))
        for n in range(count)
    ]  # fmt: skip


def single(name: str, created: float = 0.0) -> Seeker:
    return Seeker(Job(name, "ann", "xmm", "x", JobSpec("image", ("true",)), "/", "/", ImageManifest(()), "", created))


def grid(*facts: SiteFacts, policy: SchedulingPolicy | None = None) -> Grid:
    return Grid({f.name: f for f in facts}, policy or SchedulingPolicy(), now=NOW)


def where(found: dict[str, Choice]) -> dict[str, str | None]:
    return {job: choice.site for job, choice in found.items()}


A, B = SiteFacts("a", up=True, max_jobs=4), SiteFacts("b", up=True, max_jobs=4)


def test_a_gang_gets_one_site_where_the_least_stays_free() -> None:
    assert where(place_all(seekers(), grid(A, replace(B, alive=1)))) == {"j1": "b", "j2": "b", "j3": "b"}


def test_without_room_for_all_none_gets_a_place() -> None:
    tight = grid(replace(A, alive=2), replace(B, alive=2))
    found = place_all(seekers(), tight)
    assert set(where(found).values()) == {None}
    assert "room for 2 more (max jobs: 4), and its gang needs it for 3 at once" in found["j1"].summary
    assert sorted(map(str, where(place_all(seekers(spread=True), tight)).values())) == ["a", "a", "b"]
    assert found["j1"].spurned == (), "it is offered what becomes free"
    assert set(where(place_all(seekers()[:2], grid(A, B))).values()) == {None}, "one of them is not there"


def test_who_comes_later_does_not_take_what_a_gang_waits_for() -> None:
    later = single("j9", created=5.0)
    found = place_all([*seekers(created=1.0), later], grid(replace(A, alive=2)))
    assert set(where(found).values()) == {None} and "kept for g1" in found["j9"].summary
    assert found["j9"].again is not None
    assert where(place_all([*seekers(created=1.0), later], grid(replace(A, alive=2), B)))["j9"] == "a"
    before = single("j9", created=0.5)
    assert where(place_all([*seekers(created=1.0), before], grid(replace(A, alive=2))))["j9"] == "a"


def test_what_a_cycle_may_give_away_counts_all_members() -> None:
    def given(most: int, *asking: Seeker) -> list[str]:
        found = place_all(asking, grid(A, B, policy=SchedulingPolicy(limits=Limits(cycle=most))))
        assert all("the policy gives away" in c.summary for c in found.values() if c.site is None)
        return [job for job, choice in found.items() if choice.site]

    gang, first, last = seekers(created=1.0), single("j8", created=0.5), single("j9", created=5.0)
    assert given(4, first, *gang, last) == ["j8", "j1", "j2", "j3"], "one and three"
    assert given(3, first, *gang, last) == ["j8", "j9"], "not two of its three; in the next cycle it is the first"
    assert given(3, *gang, last) == ["j1", "j2", "j3"]
    assert given(2, *gang, last) == ["j1", "j2", "j3"], "who is more than the limit goes by itself"
    assert given(4, *gang, *seekers("g2", first=4, created=2.0)) == ["j1", "j2", "j3"]


def test_it_is_explained_where_all_would_go() -> None:
    choice = weigh(seekers(spread=True)[0], grid(replace(A, alive=2), replace(B, alive=2)))
    assert choice.places == {"a": 2, "b": 1}
    assert [c.site for c in choice.candidates if c.chosen] == ["a", "b"]
    assert weigh(single("j9"), grid(A)).places == {}


def test_limits_and_lenders_count_all_members() -> None:
    few = SchedulingPolicy(limits=Limits(user=2))
    found = place_all(seekers(), grid(A, policy=few))
    assert set(where(found).values()) == {None} and "its gang needs 3" in found["j1"].summary
    lent = replace(A, lending=Lending(Terms("lender.toml", cores=2), mine=Share(), rest=Share()))
    found = place_all(seekers(), grid(lent))
    assert set(where(found).values()) == {None} and "the lender of a allows 2 cores" in found["j1"].summary
    over_two = place_all(seekers(spread=True), grid(lent, replace(B, alive=3)))
    assert sorted(map(str, where(over_two).values())) == ["a", "a", "b"]


def test_it_is_said_what_can_never_be() -> None:
    choice = weigh(seekers(count=5)[0], grid(A, replace(B, max_jobs=9, slots=4)))
    assert choice.site is None
    assert [c.verdict for c in choice.candidates] == ["its gang of 5 exceeds the 4 jobs that can be there at once"] * 2
    assert weigh(seekers()[0], grid(A)).site == "a"


def test_plans_that_place_a_gang_stand_or_fall_together() -> None:
    cases = {f"j{n}": member(n, None) for n in range(3)} | {"j9": replace(member(9, None), job=single("j9").job)}
    chosen = {job: Choice("a", "") for job in cases}
    plans = {job: plan(c, {"a": SITE}, Policy(), NOW, "i", lambda job, _: chosen[job.id]) for job, c in cases.items()}
    assert together(plans, cases) == [["j0", "j1", "j2"], ["j9"]] and torn(plans, cases) == []
    del plans["j1"]
    assert torn(plans, cases) == ["j0", "j2"]


# -- packing -----------------------------------------------------------------------------------------------------------


def wanted(*sizes: int, room: dict[str, int], spread: bool = False) -> list[Wanted]:
    likes = tuple((site, 1.0) for site in room)
    return [Wanted(f"g{number}", Kind(size, spread, likes)) for number, size in enumerate(sizes)]


def test_what_best_fit_strands_finds_its_place() -> None:
    room = {"a": 6, "b": 5}
    gangs = wanted(3, 3, 5, room=room)
    assert set(best_fit(gangs, room)) == {"g0", "g1"}, "or this shows nothing"
    assert pack(gangs, room) == {"g0": {"a": 3}, "g1": {"a": 3}, "g2": {"b": 5}}
    assert pack(gangs, room) == pack(gangs, room)


def test_who_came_first_keeps_a_place() -> None:
    room = {"a": 4}
    assert pack(wanted(2, 4, room=room), room) == {"g0": {"a": 2}}, "though four would be more than two"


def test_those_that_may_spread_fill_what_is_left() -> None:
    room = {"a": 3, "b": 2, "c": 1}
    gangs = [*wanted(3, room=room), *(replace(g, id="w") for g in wanted(3, room=room, spread=True))]
    assert pack(gangs, room) == {"g0": {"a": 3}, "w": {"b": 2, "c": 1}}


def test_a_site_that_is_liked_better_is_taken() -> None:
    room = {"a": 9, "b": 4}
    liked = Wanted("g0", Kind(4, False, (("a", 2.0), ("b", 1.0))))
    assert pack([liked], room) == {"g0": {"a": 4}}
