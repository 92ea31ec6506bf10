"""When a job that has a place is given another: each rule by itself, and where it goes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from gridhypervisor.model.batch import BatchJob, BatchState
from gridhypervisor.model.policy import FixedResources, Limits, MoveSetting, ResourcePolicies, SchedulingPolicy
from gridhypervisor.model.records import (
    Allocation,
    AllocationState,
    CheckpointRecord,
    Job,
    JobState,
    Site,
    SiteKind,
    Times,
    Vm,
    Wish,
)
from gridhypervisor.model.spec import GangSpec, JobSpec, MovesSpec, ResourcesSpec
from gridhypervisor.model.wire import (
    Checkpoint,
    Effort,
    EntryView,
    HypervisorKind,
    HypervisorUsed,
    ImageManifest,
    NodeReport,
    OperationKind,
    Phase,
    PhaseTime,
    Proven,
    Reason,
    Status,
    Timing,
)
from gridhypervisor.planning.moves import (
    Terms,
    attempt,
    better,
    first,
    immovable,
    kept,
    left,
    lost,
    next_after,
    terms,
    tried,
    weigh,
    wish,
)
from gridhypervisor.planning.past import SitePast
from gridhypervisor.planning.placement import place_all
from gridhypervisor.planning.policies.usage import Usage
from gridhypervisor.planning.predictions import Predictions
from gridhypervisor.planning.published import Published
from gridhypervisor.planning.suiting import Grid, Seeker
from gridhypervisor.planning.world import Batch, Case, Observed, Seen, SiteFacts, Unknown

NOW = 10_000.0
KVM, TCG = HypervisorKind.KVM, HypervisorKind.TCG
TERMS = Terms(wait=600, rate=0.5, observe=100, look=300, settled=3600)
S = AllocationState


def pending(state: BatchState = BatchState.PENDING) -> Seen:
    return Seen(BatchJob("7", "g-j1-1", state), NOW)


def at(
    site: str = "a",
    state: AllocationState = S.QUEUED,
    *,
    since: float = 601.0,
    batch: Batch | None = None,
    status: Status | None = None,
    former: tuple[tuple[str, Reason], ...] = (),
    **spec: Any,
) -> Case:
    """A job with an attempt at that site, queued or running for so many seconds. `former`: sites of earlier ones."""
    made = JobSpec("image", ("true",), resources=ResourcesSpec(walltime="1000s"), **spec)
    job = Job("j1", "me", "default", "test", made, "/home", "/home", ImageManifest(()), "0" * 64, 0.0, JobState.QUEUED)
    begun = NOW - since
    times = Times(begun - 20, begun - 10, begun, begun if state is S.RUNNING else None, since=begun)
    attempts = [*former, (site, None)]
    allocations = tuple(
        Allocation(f"v1.{n}", "me", "default", "j1", "v1", n, f"g-j1-{n}", where, times,
                   state if n == len(attempts) else S.CLEANED, why)
        for n, (where, why) in enumerate(attempts, 1)
    )  # fmt: skip
    view = EntryView(allocations[-1].pilot_job, status=status) if status is not None else None
    sight = Observed(view, NOW, batch or pending())
    return Case(job, Vm("v1", "me", "default", "j1", len(attempts)), allocations, {}, {view.entry if view else "g-j1-"
                f"{len(attempts)}": sight})  # fmt: skip


def runs(
    executed: float, *, effort: Effort | None = None, kind: HypervisorKind = TCG, asks: str = "",
    phase: Phase = Phase.EXECUTE, **more: Any,
) -> Case:  # fmt: skip
    """One whose program has run for so long, 20 s after its pilot began."""
    over = [] if phase is Phase.EXECUTE else [PhaseTime(phase, 20.0 + executed)]
    program = PhaseTime(Phase.EXECUTE, 20.0, 20.0 + executed if over else None)
    phases = (PhaseTime(Phase.PREPARE, 0.0, 20.0), program, *over)
    status = Status("g-j1-1", 1, "c", 5, phase, phases, 20.0 + executed, "n0",
                    hypervisor=HypervisorUsed(kind, "qemu", ""), effort=effort, asks=asks)  # fmt: skip
    return at(state=S.RUNNING, since=executed + 20, status=status, **more)


def site(name: str, works: HypervisorKind | None = None, **more: Any) -> SiteFacts:
    probed = None
    if works is not None:
        probed = NodeReport(
            "n0", "6.1", "X", 1, 8, 1 << 34, 1 << 33, "/s", "/t", 1 << 37, (Proven(works, True, "", ""),)
        )
    known = Site(name, "me", "default", SiteKind.FORK, probed=probed)
    return SiteFacts(name, up=True, max_jobs=4, site=known, **more)


def grid(*sites: SiteFacts, **more: Any) -> Grid:
    facts = {each.name: each for each in sites}
    catalogue = Published().update(facts, {}, NOW)
    return Grid(facts, now=NOW, catalogue=catalogue, **more)


# -- the terms ---------------------------------------------------------------------------------------------------------


def test_a_jobs_own_file_goes_before_the_policy() -> None:
    policy = MoveSetting(wait="10m", rate=0.5, look="5m")
    assert terms(policy, MovesSpec()) == Terms(600, 0.5, 600, 300, 3600)
    assert terms(policy, MovesSpec(wait="0s", settled="2h")) == Terms(0, 0.5, 600, 300, 7200)
    assert terms(MoveSetting(), MovesSpec()).never


# -- who would rather go -----------------------------------------------------------------------------------------------


def test_what_waits_too_long_in_a_queue_wants_away() -> None:
    wanting = wish(at(since=601), TERMS, NOW)
    assert wanting is not None and wanting.why is Reason.WAITED and "601 s in the queue" in wanting.words
    assert wish(at(since=599), TERMS, NOW) is None
    assert wish(at(since=9999), replace(TERMS, wait=0), NOW) is None


@pytest.mark.parametrize("batch", [Unknown(), pending(BatchState.RUNNING)], ids=["silent", "about to run"])
def test_what_may_have_begun_is_left_alone(batch: Batch) -> None:
    assert wish(at(batch=batch), TERMS, NOW) is None


@pytest.mark.parametrize(
    ("executed", "effort", "slow"),
    [
        (150.0, Effort(40.0, 60.0), True),
        (150.0, Effort(60.0, 40.0), False),
        (99.0, Effort(1.0, 99.0), False),  # too early to say
        (150.0, Effort(0.3, 0.4), False),  # it sleeps, so nobody knows
        (150.0, None, False),  # the kernel does not tell
    ],
)
def test_what_gets_little_of_the_processor_that_it_wants_is_slow(
    executed: float, effort: Effort | None, slow: bool
) -> None:
    wanting = wish(runs(executed, effort=effort), replace(TERMS, look=0), NOW)
    assert (wanting is not None and wanting.why is Reason.SLOW) is slow


def test_a_program_may_ask_to_be_moved() -> None:
    wanting = wish(runs(5.0, asks="no licence here"), replace(TERMS, wait=0, rate=0, look=0), NOW)
    assert wanting is not None and wanting.words == "the program asked to be moved: no licence here"
    over = runs(5.0, asks="too late", phase=Phase.STAGE_OUT)
    assert wish(over, TERMS, NOW) is None, "its program has ended"


def test_it_looks_around_until_it_is_settled_if_it_ranks_places() -> None:
    looks = wish(runs(30.0, rank="1"), TERMS, NOW)
    assert looks is not None and looks.better
    assert wish(runs(30.0), TERMS, NOW) is None, "all places are the same to it"
    assert wish(runs(3600.0, rank="1"), TERMS, NOW) is None


def test_who_is_cancelled_or_leaves_already_wants_nothing() -> None:
    case = at()
    assert wish(replace(case, job=replace(case.job, wish=Wish.CANCEL)), TERMS, NOW) is None
    saved = replace(case.allocations[-1], state=AllocationState.QUEUED, restore="g-j1-1-1")
    assert attempt(replace(case, allocations=(saved,))) is None, "its guest is saved where it waits"
    leaves = replace(case.allocations[-1], why=Reason.MOVED)
    assert wish(replace(case, allocations=(leaves,)), TERMS, NOW) is None


def test_a_gangs_members_stay_together_whatever_they_wait_for_or_ask() -> None:
    waits, asks = at(gang=GangSpec(2)), runs(5.0, asks="no licence", gang=GangSpec(2))
    assert wish(waits, TERMS, NOW) is None is wish(asks, TERMS, NOW)
    assert first(waits, TERMS, NOW) is None, "nobody looks"
    assert kept(waits).words == "" == kept(runs(5.0, asks="no licence")).words
    stays = kept(asks)
    assert stays.leave is None and stays.words == (
        "the program asked to be moved: no licence; it stays: it is one of a gang, whose members stay together"
    )


# -- when to look ------------------------------------------------------------------------------------------------------


def test_a_wait_is_weighed_when_it_is_over_and_then_now_and_then() -> None:
    assert first(at(since=100), TERMS, NOW) == NOW + 500
    again = next_after(at(), TERMS, NOW)
    assert again is not None and NOW + 450 <= again <= NOW + 750
    assert first(at(), replace(TERMS, wait=0), NOW) is None
    never = Terms(0, 0, 600, 0, 3600)
    assert next_after(runs(5.0), never, NOW) is None
    assert next_after(runs(5.0, asks="out of here"), never, NOW) is not None, "a site may have room for it later"


def test_jobs_that_came_together_look_around_at_different_times() -> None:
    case, only_look = runs(0.0, rank="1"), replace(TERMS, rate=0)
    jobs = [replace(case, job=replace(case.job, id=f"j{n}")) for n in range(500)]
    times = sorted(first(job, only_look, NOW) or 0.0 for job in jobs)
    assert times[0] > NOW and times[-1] <= NOW + 300
    busiest = max(sum(begin <= t < begin + 10 for t in times) for begin in times)
    assert busiest < 60, "of 500 in 225 s: 22 in each 10 s, were they spread evenly"


# -- where it goes -----------------------------------------------------------------------------------------------------


def verdict(case: Case, on: Grid) -> tuple[Reason | None, str]:
    wanting = wish(case, TERMS, NOW)
    assert wanting is not None
    [stay] = weigh({case.job.id: (case, wanting)}, on).values()
    return stay.leave, stay.words


def test_it_goes_only_where_another_site_can_take_it() -> None:
    assert verdict(at(), grid(site("a"), site("b"))) == (
        Reason.WAITED, "it has waited 601 s in the queue, and its patience is 600 s; b can take it"
    )  # fmt: skip
    leave, words = verdict(at(), grid(site("a"), site("b", alive=4)))
    assert leave is None and "it stays" in words and "b: no room for more" in words
    leave, words = verdict(at(), grid(site("a")))
    assert leave is None and "no other site can take it" in words


def test_it_does_not_go_where_it_has_been_or_failed_or_must_not() -> None:
    been = at("b", former=(("a", Reason.WAITED),))
    assert tried(been) == {"a"} and verdict(been, grid(site("a"), site("b")))[0] is None
    assert verdict(been, grid(site("a"), site("b"), site("c")))[1].endswith("c can take it")
    failed = at()
    failed = replace(failed, job=replace(failed.job, excluded=("b",)))
    assert verdict(failed, grid(site("a"), site("b")))[0] is None
    never = SchedulingPolicy(resources=ResourcePolicies(fixed=FixedResources(resources={"b": 0})))
    assert verdict(at(), grid(site("a"), site("b"), policy=never))[0] is None
    assert verdict(at(site="a"), grid(site("a"), site("b")))[0] is Reason.WAITED


def test_a_limit_that_it_fills_itself_does_not_keep_it() -> None:
    limits = SchedulingPolicy(limits=Limits(user=1))
    usage = Usage(running_users={"me": 1}, running_projects={"default": 1}, running_sites={"a": 1})
    assert verdict(at(), grid(site("a"), site("b"), policy=limits, usage=usage))[0] is Reason.WAITED


def test_no_more_go_than_there_is_room_for() -> None:
    case = at()
    cases = [replace(case, job=replace(case.job, id=f"j{n}")) for n in range(5)]
    wanting = {c.job.id: (c, found) for c in cases if (found := wish(c, TERMS, NOW)) is not None}
    stays = weigh(wanting, grid(site("a"), site("b", alive=2)))
    assert sum(stay.leave is not None for stay in stays.values()) == 2


# -- a better place ----------------------------------------------------------------------------------------------------

RANK = 'Site == "b" ? 1 : 0'


def test_a_better_place_is_one_where_it_gains_more_than_that_costs() -> None:
    """After 100 of 1000 s under emulation at an eighth of the speed: 900 s are left here, 112.5 s there. A guest would
    be ready there after 0.1 + 0.5 + 1.0 s, as is usual; doing it again takes 12.5 s, and others waited 50 s there."""
    past = {"b": SitePast(nodes={"n1": frozenset({KVM})})}
    past["b"].waits.append(50.0)
    words = better(runs(100.0, rank=RANK), "b", grid(site("a"), site("b"), past=past))
    assert words == "it ranks 1 there and 0 here; it would be done 738 s sooner, and moving costs 14 s"
    past["b"].waits.append(10_000.0)
    past["b"].waits.append(10_000.0)
    assert not better(runs(100.0, rank=RANK), "b", grid(site("a"), site("b"), past=past)), "others wait too long there"


def test_what_is_predicted_and_was_measured_counts_for_a_move() -> None:
    """The others booted in 60 s there, and its emulator was measured: half of the node's own speed."""
    past = {"b": SitePast(nodes={"n1": frozenset({TCG})}, rates={"n1": {TCG: 0.5}})}
    slow = Predictions()
    slow.add("b", TCG, "0" * 64, [Timing(OperationKind.BOOT, 512 << 20, 60.0)] * 20)
    words = better(runs(100.0, rank=RANK), "b", grid(site("a"), site("b"), past=past, predictions=slow))
    assert words.endswith("moving costs 86 s"), "60.6 s, and 100 s of an eighth again at half of the speed"


def test_only_work_that_is_lost_counts() -> None:
    """The restart files go with it; of one that was taken up from a checkpoint also what was done before."""
    assert lost(runs(100.0, rank=RANK, restart_files=("state",)), None) == 0.0
    case = runs(100.0, rank=RANK)
    status = case.sight(case.allocations[-1]).view.status  # type: ignore[union-attr]
    assert lost(case, status) == 100.0
    [a] = case.allocations
    described = Checkpoint("g-j1-0-1", "g-j1-0", 1, "b" * 64, "tcg", "qemu 7", "", (), "", 1 << 29, {}, ())
    saved = CheckpointRecord("g-j1-0-1", "me", "default", "j1", "g-j1-0", "a", 1, 700.0, 1.0, 1.0, described)
    resumed = replace(case, allocations=(replace(a, restore="g-j1-0-1"),), checkpoints=(saved,))
    assert lost(resumed, status) == 800.0


@pytest.mark.parametrize(
    ("case", "there"),
    [
        (runs(100.0, rank=RANK), site("b")),  # nobody knows what can run a guest there
        (runs(100.0, rank=RANK), site("b", TCG)),  # as slow
        (runs(100.0, rank=RANK, kind=KVM), site("b", KVM)),  # as fast
        (runs(100.0, rank="0"), site("b", KVM)),  # it does not rank it higher
        (runs(100.0, rank=RANK, hypervisor="tcg"), site("b", KVM)),  # it asks to be emulated
        (runs(990.0, rank=RANK), site("b", KVM)),  # nearly done
    ],
)
def test_no_other_place_is_better(case: Case, there: SiteFacts) -> None:
    assert not better(case, "b", grid(site("a"), there))


def test_a_place_that_starves_it_is_left_for_a_better_one() -> None:
    starved = runs(100.0, rank=RANK, kind=KVM, effort=Effort(20.0, 80.0))
    assert "sooner" in better(starved, "b", grid(site("a"), site("b", KVM)))


# -- after it left -----------------------------------------------------------------------------------------------------


def gone(**more: Any) -> Case:
    """It left a just now, and looks for a site."""
    case = at(state=S.REVOKED, **more)
    [a] = case.allocations
    return replace(case, allocations=(replace(a, why=Reason.WAITED, times=replace(a.times, since=NOW)),))


def chosen(case: Case, *sites: SiteFacts, now: float = NOW) -> str | None:
    seeker = Seeker(case.job, left=left(case, now)[0])
    return place_all([seeker], grid(*sites))["j1"].site


def test_it_waits_for_another_place_while_there_is_one_but_not_for_ever() -> None:
    full = site("b", alive=4)
    assert chosen(gone(), site("a"), site("b")) == "b"
    assert chosen(gone(), site("a"), full) is None
    assert left(gone(), NOW)[1] == NOW + 600
    assert chosen(gone(), site("a"), full, now=NOW + 600) == "a", "it has waited long enough"
    assert chosen(gone(), site("a"), replace(full, up=False)) is None, "it may answer in a moment"
    assert chosen(gone(), site("a"), replace(full, draining=True)) == "a", "no other will do"
    assert chosen(gone(site="a"), site("a")) == "a"


# -- a user asks -------------------------------------------------------------------------------------------------------


def refusal(case: Case, on: Grid, to: str = "") -> str:
    found = immovable(case, to, on)
    return found[0] if found is not None else ""


def test_a_user_is_told_why_a_job_cannot_be_moved() -> None:
    both = grid(site("a"), site("b"))
    assert refusal(at(), both) == "" == refusal(at(), both, "b")
    assert refusal(at(), both, "a") == "it is at a already"
    assert "no other site can take it" in refusal(at(), grid(site("a"), site("b", draining=True)))
    full = refusal(at(), grid(site("a"), site("b", alive=4)), "b")
    assert full.startswith("no site can take it now") and "b: no room for more" in full
    been = at("b", former=(("a", Reason.MOVED),))
    assert refusal(been, both) and refusal(been, both, "a") == "", "who names a site may go back"
    assert "coming home" in refusal(at(state=S.ENDED), both)
    case = at()
    done = replace(case, job=replace(case.job, state=JobState.DONE))
    assert refusal(done, both) == "it has ended: done"
    assert "it is one of a gang, whose members stay together" in refusal(at(gang=GangSpec(2)), both)
    waits = replace(gone(), job=replace(case.job, state=JobState.PENDING))
    assert "has none to leave" in refusal(waits, both) and refusal(waits, both, "b") == ""
