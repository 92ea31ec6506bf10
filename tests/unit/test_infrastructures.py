"""Virtual infrastructures, without any site: what one step decides, what a VM is seen to be, and how all is kept."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from gridhypervisor.model.infrafile import load
from gridhypervisor.model.infrastructure import ProbeSpec
from gridhypervisor.model.records import (
    Allocation,
    AllocationState,
    Blueprint,
    Event,
    Group,
    InfrastructureState,
    JobState,
    RoleImage,
    Standing,
    Times,
    Wish,
)
from gridhypervisor.model.wire import (
    EntryView,
    ImageManifest,
    OwnerRecord,
    Phase,
    PhaseTime,
    ReadyProbe,
    Service,
    Status,
)
from gridhypervisor.planning.gangs import hostname
from gridhypervisor.planning.infrastructures import (
    LEAST_WALLTIME,
    MARGIN,
    Member,
    begun,
    births,
    changed,
    decide,
    differences,
    member,
    scaled,
)
from gridhypervisor.planning.world import Case, Observed
from gridhypervisor.store import SqliteStore, open_store

S = InfrastructureState

LAB = """\
name: lab
lease: {duration: 1h}
patience: 5m
roles:
  head:
    image: tiny
    ready: {http: {port: 80, path: /up}, interval: 3s, limit: 4s, timeout: 1m}
  worker: {image: tiny, count: {initial: 2, min: 1, max: 3}, after: [head]}
"""
SPEC = load("lab.yaml", LAB)
BLUEPRINT = Blueprint(SPEC, {name: RoleImage("b" * 64, ImageManifest(())) for name in SPEC.roles})
GROUP = Group(
    "i7", "ann", "xmm", "lab", "", "/home/ann", 100.0, blueprint=BLUEPRINT, standing=begun(BLUEPRINT, 100.0), version=1
)
BORN = Event(100.0, "ann", "xmm", "", "group", "", "", "creating")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqliteStore]:
    opened = open_store(tmp_path / "store.db")
    yield opened
    opened.close()


def vm(name: str, ready: bool | None = True, state: JobState = JobState.RUNNING, **more: object) -> Member:
    return replace(Member(name, f"j-{name}", state, Wish.RUN, ready, words="does things"), **more)  # type: ignore[arg-type]


ALL = (vm("head-0"), vm("worker-0"), vm("worker-1"))


def in_state(state: S, **more: object) -> Group:
    return replace(GROUP, standing=replace(GROUP.standing, state=state, deadline=None, **more))  # type: ignore[arg-type]


def test_it_is_written_down_and_read_as_it_was(store: SqliteStore) -> None:
    group = store.create_group(GROUP, BORN, "key")
    assert group.id == "i1" and store.create_group(GROUP, BORN, "key") == group
    new = births(group, ("head-0",), store.reserve(1), 200.0)
    standing = Standing(S.DEGRADED, 5.0, 9.0, None, "why", 2, 7.0)
    after = replace(group, made=1, standing=standing, version=2)
    assert store.put_group(after, new, [BORN])
    assert store.groups(ids=["i1"]) == [after] == store.groups(alive=True)
    found = store.member("i1", "head-0")
    assert (
        found is not None
        and found.job == new[0].job
        and found.job.service == Service(ReadyProbe(http=80, path="/up", interval=3, limit=4, timeout=60))
    )


def test_a_vm_is_a_job_for_the_rest_of_the_lease_and_called_by_its_role() -> None:
    [head] = births(GROUP, ("head-0",), 5, 700.0)
    job = head.job
    assert (job.id, job.name, job.group, job.member, job.folder) == ("j5", "lab.head-0", "i7", "head-0", "/home/ann")
    assert job.spec.resources.walltime == f"{3600 - 600 + MARGIN}s" and hostname(job) == "head-0"
    assert (head.vm.id, head.vm.job, head.event.after) == ("vj5", "j5", "pending") or head.vm.id == "v5"
    [late] = births(GROUP, ("worker-0",), 6, 100.0 + 3590)
    assert late.job.spec.resources.walltime == f"{LEAST_WALLTIME + MARGIN}s"
    assert (late.job.service, job.spec.retry.times, job.spec.isolation) == (Service(), 0, "job")


def test_roles_are_made_in_their_order() -> None:
    assert decide(GROUP, (), 101.0).births == ("head-0",)
    waiting = decide(GROUP, (vm("head-0", False),), 101.0)
    assert waiting.births == () and waiting.wake_at == GROUP.standing.deadline == 400.0
    assert decide(GROUP, (vm("head-0"),), 101.0).births == ("worker-0", "worker-1")
    done = decide(GROUP, ALL, 101.0)
    assert done.standing is not None and (done.standing.state, done.standing.deadline) == (S.READY, None)


@pytest.mark.parametrize(
    ("members", "at", "why"),
    [
        ((vm("head-0", False, late=True),), 200.0, "head-0 (j-head-0) was not ready 1m after its start: does things"),
        ((vm("head-0", False, JobState.FAILED),), 200.0, "head-0 (j-head-0) does things"),
        (
            (vm("head-0", False),),
            400.0,
            "not all VMs were ready within 5m: head-0 does things; worker-0 waits for head",
        ),
        ((vm("head-0", wish=Wish.CANCEL),), 200.0, "head-0 (j-head-0) does things"),
    ],
)
def test_a_creation_that_fails_is_undone_and_says_why(members: tuple[Member, ...], at: float, why: str) -> None:
    failed = decide(GROUP, members, at)
    assert failed.standing is not None and failed.standing.state is S.UNDOING
    assert failed.standing.why.startswith(why), failed.standing.why
    undoing = replace(GROUP, standing=failed.standing)
    alive = vm("worker-0")
    assert decide(undoing, (*members, alive), at).ends[-1] == (alive.job, Wish.CANCEL)
    over = decide(undoing, (vm("head-0", False, JobState.CANCELLED),), at)
    assert over.over is JobState.FAILED and over.standing is not None and over.standing.state is S.FAILED


def test_silence_changes_nothing() -> None:
    unknown = tuple(replace(m, ready=None) for m in ALL)
    for state in (S.READY, S.DEGRADED):
        decision = decide(in_state(state, why="x" if state is S.DEGRADED else ""), unknown, 3000.0)
        assert decision.standing is None and not decision.births and not decision.ends
    lost = (*ALL[:2], vm("worker-1", False, JobState.PENDING))
    assert (standing := decide(in_state(S.READY), lost, 3000.0).standing) is not None
    assert (standing.state, standing.why) == (S.DEGRADED, "worker-1 does things")


def test_what_is_too_much_is_ended_from_above() -> None:
    fewer = replace(BLUEPRINT, spec=scaled(SPEC, "worker", 1))
    group = changed(in_state(S.READY), fewer, 500.0)
    assert (group.standing.state, group.standing.deadline) == (S.CHANGING, 800.0)
    assert decide(group, ALL, 501.0).ends == (("j-worker-1", Wish.DELETE),)
    done = decide(group, ALL[:2], 502.0)
    assert done.standing is not None and done.standing.state is S.READY
    late = decide(group, ALL, 800.0)
    assert late.standing is not None and late.standing.state is S.DEGRADED
    assert late.standing.why == "not all VMs were ready within 5m: worker-1 is being ended"


def test_a_vm_that_ended_is_replaced_once_in_a_while() -> None:
    roles = {**SPEC.roles, "head": load("l", "name: l\nroles: {head: {image: tiny, repair: replace}}").roles["head"]}
    spec = load("lab.yaml", LAB.replace("    image: tiny\n", "    image: tiny\n    repair: replace\n"))
    assert roles["head"].repair == "replace"
    group = replace(in_state(S.DEGRADED, why="head-0 (j-head-0) does things"), blueprint=replace(BLUEPRINT, spec=spec))
    ended = (vm("head-0", False, JobState.DONE), *ALL[1:])
    first = decide(group, ended, 1000.0)
    assert first.ends == (("j-head-0", Wish.DELETE),) and first.standing is not None
    group = replace(group, standing=first.standing)
    again = decide(group, ended, 1001.0)
    assert again.ends == () and again.wake_at == 1060.0
    assert decide(group, ended, 1060.0).ends == (("j-head-0", Wish.DELETE),)
    left = decide(in_state(S.DEGRADED, why="head-0 (j-head-0) does things"), ended, 1000.0)
    assert left.ends == (), "unless its role says so"


def test_the_lease_ends_it_and_so_does_its_user() -> None:
    over = decide(in_state(S.READY), ALL, 3700.0)
    assert over.standing is not None and (over.standing.state, over.standing.why) == (
        S.ENDING,
        "its lease of 1h is over",
    )
    asked = decide(replace(in_state(S.READY), wish=Wish.CANCEL), ALL, 500.0)
    assert asked.standing is not None and asked.standing.state is S.ENDING
    gone = tuple(replace(m, state=JobState.CANCELLED, ready=False) for m in ALL)
    assert decide(in_state(S.ENDING), gone, 3700.0).over is JobState.DONE
    assert decide(replace(in_state(S.ENDING), wish=Wish.CANCEL), gone, 500.0).over is JobState.CANCELLED


def test_a_difference_is_said_in_words_and_refused_where_vms_would_not_be_as_the_file_says() -> None:
    text = (
        LAB.replace("initial: 2", "initial: 3")
        .replace("5m", "9m")
        .replace("  worker:", "  extra: {image: t}\n  worker:")
    )
    assert differences(SPEC, load("lab.yaml", text)) == (
        ["worker: 2 → 3 VMs", "extra: a new role, 1 VM", "patience 5m → 9m"], [],
    )  # fmt: skip
    other = load("lab.yaml", LAB.replace("image: tiny\n", "image: big\n").replace("1h", "2h"))
    assert differences(SPEC, other)[1] == ["roles.head.image", "lease"]


@pytest.mark.parametrize(("role", "count"), [("slave", 1), ("worker", 0), ("worker", 4)])
def test_what_cannot_be_scaled_so_is_refused(role: str, count: int) -> None:
    with pytest.raises(ValueError, match=r"roles are head, worker|give 1 to 3"):
        scaled(SPEC, role, count)


def seen(phase: Phase, elapsed: float, *, serves: bool = False, note: str = "") -> Case:
    """A VM whose pilot has said so 10 s ago."""
    [born] = births(GROUP, ("head-0",), 5, 100.0)
    a = Allocation("v5.1", "ann", "xmm", "j5", "v5", 1, "x-j5-1", "here", Times(100.0), AllocationState.RUNNING)
    phases = (PhaseTime(Phase.BOOT, 0.0, 5.0), PhaseTime(phase, 5.0))
    status = Status("x-j5-1", 1, "c", 3, phase, phases, elapsed, note=note, serves=serves)
    observed = Observed(EntryView("x-j5-1", OwnerRecord("pilot", "c", 1, "n1"), status), 290.0)
    return Case(replace(born.job, state=JobState.RUNNING), born.vm, (a,), {}, {"x-j5-1": observed})


def test_a_vm_is_what_its_pilot_says_of_it_by_its_own_clock() -> None:
    probe = ProbeSpec(tcp=80, timeout="1m")
    booting = member(seen(Phase.BOOT, 9.0), probe, 300.0)
    assert (booting.ready, booting.late, booting.look_at) == (False, False, None)
    waiting = member(seen(Phase.EXECUTE, 30.0, note="its service is not ready yet: refused"), probe, 300.0)
    assert (waiting.ready, waiting.late, waiting.look_at) == (False, False, 326.0)
    assert waiting.words == "is running at here: its service is not ready yet: refused"
    assert member(seen(Phase.EXECUTE, 65.0), probe, 300.0).late
    assert not member(seen(Phase.EXECUTE, 64.0), probe, 9000.0).late, "however long nobody has heard of it"
    assert member(seen(Phase.EXECUTE, 500.0, serves=True), probe, 300.0).ready is True
    silent = replace(seen(Phase.EXECUTE, 30.0), observed={})
    assert member(silent, probe, 9000.0).ready is None
