"""Decides what becomes of a virtual infrastructure: which VMs are made and which are ended, and how it stands. Pure.

It compares what is wanted (the blueprint) with what there is (its members), again and again; `records.Standing` draws
the states. Each VM is a job whose program runs until it is stopped: where it goes, that it never runs twice, and that a
fault of the site has it run anew, is decided as for every job. What is decided here is committed before it is done.

Nothing is concluded from silence. A VM of which nothing is known is as it was; it counts as not ready in time only when
its pilot says so, by its own clock. A creation or a change that is not done by its deadline has failed, whatever the
sites say or do not say: that is what its user asked for with `patience`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import msgspec

from gridhypervisor.model.commit import Birth
from gridhypervisor.model.infrastructure import InfrastructureSpec, ProbeSpec, RoleSpec, vm_job
from gridhypervisor.model.records import (
    AllocationState,
    Blueprint,
    Event,
    Group,
    InfrastructureState,
    Job,
    JobState,
    Standing,
    Vm,
    Wish,
)
from gridhypervisor.model.replacing import replace
from gridhypervisor.model.spec import parse_duration
from gridhypervisor.model.wire import Phase, ReadyProbe, Service
from gridhypervisor.planning.world import Case

S = InfrastructureState

TRIES = 3
"""Creations, with `on_failure: retry`."""

REPAIR_PAUSE = 60.0
"""Seconds between two VMs that are replaced because they ended: one that ends at once must not cost the site more."""

LEAST_WALLTIME = 60
"""Seconds."""

MARGIN = 120
"""Seconds that a VM's walltime goes beyond the lease, which ends it: the walltime does only where nobody else does."""

ON_ITS_WAY = 1.0
"""Seconds that a pilot's word takes that its service is not ready in time."""

LOOK = 2.0
"""Seconds after which a VM that should have become ready is looked at again, where that word has not come."""


@dataclass(frozen=True)
class Member:
    """One VM of an infrastructure, as it is now."""

    name: str  # ROLE-NUMBER
    job: str
    state: JobState
    wish: Wish
    ready: bool | None  # None: it runs, and nobody knows
    late: bool = False  # it should have become ready, its pilot says
    look_at: float | None = None  # when that may be known
    words: str = ""  # what it does, or how it ended

    @property
    def role(self) -> str:
        return self.name.rpartition("-")[0]

    @property
    def number(self) -> int:
        return int(self.name.rpartition("-")[2])

    @property
    def failed(self) -> bool:
        """It has ended, or is about to, and nobody has asked for another in its place."""
        return (self.state.final and self.wish is not Wish.DELETE) or self.wish is Wish.CANCEL


@dataclass(frozen=True)
class Decision:
    """What is to be committed now, if anything; what to have done to members; when to look again at the latest."""

    standing: Standing | None = None
    births: tuple[str, ...] = ()  # the names of VMs that are to be made
    ends: tuple[tuple[str, Wish], ...] = ()  # jobs, and what is wished of them
    over: JobState | None = None  # it has ended so
    message: str = ""
    wake_at: float | None = None


def member(case: Case, probe: ProbeSpec | None, now: float) -> Member:
    """A VM, as its records and what was seen of it say. `probe`: its role's."""
    job = case.job
    plain = Member(job.member, job.id, job.state, job.wish, False, words=_words(case))
    a = case.current
    if job.state is not JobState.RUNNING or a is None:
        return plain
    view = case.sight(a).view
    status = view.status if view is not None else None
    if a.state is not AllocationState.RUNNING or status is None:
        return replace(plain, ready=None)
    if status.serves:
        return replace(plain, ready=True)
    begun = [phase.start for phase in status.phases if phase.phase is Phase.EXECUTE]
    if probe is None or not begun:
        return plain
    left = parse_duration(probe.timeout) - (status.elapsed - begun[-1])
    told = max(case.sight(a).view_at + left + ON_ITS_WAY, now + LOOK)
    return replace(plain, late=left <= 0, look_at=told if left > 0 else None)


def decide(group: Group, members: Sequence[Member], now: float) -> Decision:
    """The next step of an infrastructure that has not ended, and is not being deleted."""
    assert group.blueprint is not None, f"{group.id} is no infrastructure"
    return _Step(group, group.blueprint.spec, members, now).decide()


def begun(blueprint: Blueprint, now: float) -> Standing:
    """How an infrastructure stands when it begins."""
    spec = blueprint.spec
    return Standing(
        since=now, expires=now + parse_duration(spec.lease.duration), deadline=now + parse_duration(spec.patience)
    )


def changed(group: Group, blueprint: Blueprint, now: float) -> Group:
    """The infrastructure when its user wants it to be so from now on."""
    s, spec = group.standing, blueprint.spec
    if s.state is not S.CREATING:  # a creation goes on, by the deadline that it has
        s = replace(s, state=S.CHANGING, since=now, deadline=now + parse_duration(spec.patience), why="")
    return replace(group, blueprint=blueprint, standing=s)


FREE = frozenset({"count", "repair"})
"""Fields of a role that may change while it has VMs."""


def differences(old: InfrastructureSpec, new: InfrastructureSpec) -> tuple[list[str], list[str]]:
    """What a change would do, in words, and what of it cannot be done while the infrastructure is there."""
    found: list[str] = []
    refused: list[str] = []
    for name in [*old.roles, *(name for name in new.roles if name not in old.roles)]:
        was, role = old.roles.get(name), new.roles.get(name)
        if was is None and role is not None:
            found.append(f"{name}: a new role, {_vms(role.wanted)}")
        elif was is not None and role is None:
            found.append(f"{name}: the role goes, with {_vms(was.wanted)}")
        elif was is not None and role is not None:
            if was.wanted != role.wanted:
                found.append(f"{name}: {was.wanted} → {role.wanted} VMs")
            for field in RoleSpec.__struct_fields__:
                one, other = getattr(was, field), getattr(role, field)
                if field in FREE:
                    if field != "count" and one != other:
                        found.append(f"{name}: {field} {one} → {other}")
                elif one != other:
                    refused.append(f"roles.{name}.{field}")
    if old.lease != new.lease:
        refused.append("lease")
    for field in ("patience", "on_failure"):
        one, other = getattr(old, field), getattr(new, field)
        if one != other:
            found.append(f"{field} {one} → {other}")
    return found, refused


def births(group: Group, names: Sequence[str], number: int, now: float) -> list[Birth]:
    """The VMs of these names as jobs, the first of them with this number."""
    return [_birth(group, name, number + place, now) for place, name in enumerate(names)]


def _birth(group: Group, name: str, number: int, now: float) -> Birth:
    assert group.blueprint is not None
    role_name = name.rpartition("-")[0]
    role, image = group.blueprint.spec.roles[role_name], group.blueprint.images[role_name]
    walltime = max(LEAST_WALLTIME, math.ceil(group.standing.expires - now)) + MARGIN
    made = Job(
        id=f"j{number}",
        owner=group.owner,
        project=group.project,
        name=f"{group.name}.{name}",
        spec=vm_job(role, name, walltime),
        destination=group.folder,
        folder=group.folder,
        image=image.manifest,
        image_digest=image.digest,
        created=now,
        group=group.id,
        member=name,
        service=Service(probe(role.ready)),
        version=1,
    )
    vm = Vm(f"v{number}", group.owner, group.project, made.id, version=1)
    return Birth(
        made,
        vm,
        Event(now, group.owner, group.project, made.id, "job", made.id, "", JobState.PENDING, message=group.id),
    )


def probe(spec: ProbeSpec | None) -> ReadyProbe | None:
    """What a VM's pilot is told of how it becomes ready."""
    if spec is None:
        return None
    http = spec.http
    return ReadyProbe(
        tcp=spec.tcp or 0,
        http=http.port if http is not None else 0,
        path=http.path if http is not None else "/",
        command=spec.exec,
        interval=parse_duration(spec.interval),
        limit=parse_duration(spec.limit),
        timeout=parse_duration(spec.timeout),
    )


def wanted(spec: InfrastructureSpec) -> list[str]:
    """The names of all VMs, role by role."""
    return [f"{name}-{number}" for name, role in spec.roles.items() for number in range(role.wanted)]


class _Step:
    """One call of `decide`."""

    def __init__(self, group: Group, spec: InfrastructureSpec, members: Sequence[Member], now: float) -> None:
        self.group, self.spec, self.now, self.s = group, spec, now, group.standing
        self.members = {m.name: m for m in members}
        self.wanted = wanted(spec)
        self.missing = [name for name in self.wanted if name not in self.members]
        self.surplus = [m for m in members if m.name not in set(self.wanted)]

    def decide(self) -> Decision:
        if self.s.state in (S.ENDING, S.UNDOING):
            return self.end()
        if self.group.wish is not Wish.RUN:
            return self.become(S.ENDING, "its user wants it to end")
        if self.now >= self.s.expires:
            return self.become(S.ENDING, f"its lease of {self.spec.lease.duration} is over")
        if self.s.state is S.CREATING and (why := self.failure()):
            return self.failed(why)
        state, why = self.assessed()
        if state is not self.s.state:
            return self.become(state, why)
        if why != self.s.why and state is S.DEGRADED:
            return Decision(replace(self.s, why=why), message=why)
        return self.tend()

    def assessed(self) -> tuple[InfrastructureState, str]:
        """How it is, and what is wrong."""
        s = self.s
        if not self.missing and not self.surplus and all(m.ready for m in self.of(self.wanted)):
            return S.READY, ""
        if s.state is S.CREATING:
            return s.state, ""
        if trouble := self.failure():
            return S.DEGRADED, trouble
        if s.state is S.CHANGING:
            return s.state, ""
        if self.missing or self.surplus or any(m.ready is False for m in self.of(self.wanted)):
            return S.DEGRADED, self.waits()
        return s.state, s.why  # of some nothing is known now: they are as they were

    def failure(self) -> str:
        """Why a creation or a change has failed; empty: it has not."""
        for m in self.of(self.wanted):
            if m.failed:
                return f"{m.name} ({m.job}) {m.words}"
            if m.late:
                probe = self.spec.roles[m.role].ready
                limit = probe.timeout if probe is not None else ""
                return f"{m.name} ({m.job}) was not ready {limit} after its start: {m.words}"
        if self.s.deadline is not None and self.now >= self.s.deadline:
            return f"not all VMs were ready within {self.spec.patience}: {self.waits()}"
        return ""

    def waits(self) -> str:
        """What those wait for that are not ready, a few of them in words."""
        told = [f"{m.name} {m.words}" for m in self.of(self.wanted) if not m.ready]
        told += [f"{name} {self.gate(name)}" for name in self.missing]
        told += [f"{m.name} is being ended" for m in self.surplus]
        return "; ".join(told[:3]) + (f"; and {len(told) - 3} more" if len(told) > 3 else "")

    def gate(self, name: str) -> str:
        """Why a VM that is missing is not made yet, in words."""
        unready = self.unready(name.rpartition("-")[0])
        return f"waits for {', '.join(unready)}" if unready else "is about to be made"

    def unready(self, role: str) -> list[str]:
        """The roles that this one is to come after, of which not all VMs are ready."""
        return [
            before
            for before in self.spec.roles[role].after
            if not all(
                (m := self.members.get(f"{before}-{number}")) is not None and m.ready
                for number in range(self.spec.roles[before].wanted)
            )
        ]

    def tend(self) -> Decision:
        """Nothing is to be said of it as a whole: make and end VMs."""
        born = tuple(name for name in self.missing if not self.unready(name.rpartition("-")[0]))
        if born:
            return Decision(births=born, message=f"{', '.join(born)}: to be made")
        ends = [(m.job, Wish.DELETE) for m in sorted(self.surplus, key=lambda m: (m.role, -m.number))]
        wakes = [at for m in self.members.values() if (at := m.look_at) is not None]
        wakes += [self.s.expires] + ([self.s.deadline] if self.s.deadline is not None else [])
        over = [m for m in self.of(self.wanted) if m.failed and self.spec.roles[m.role].repair == "replace"]
        if over and self.s.state is not S.CREATING:
            m, again = over[0], self.s.repaired + REPAIR_PAUSE
            if self.now >= again:
                words = f"{m.name} ({m.job}) {m.words}: it is replaced"
                return Decision(replace(self.s, repaired=self.now), ends=((m.job, Wish.DELETE),), message=words)
            wakes.append(again)
        return Decision(ends=tuple(ends), wake_at=min(wakes))

    def failed(self, why: str) -> Decision:
        if self.spec.on_failure == "keep":
            return self.become(S.DEGRADED, why)
        return self.become(S.UNDOING, why)

    def become(self, state: InfrastructureState, why: str) -> Decision:
        deadline = self.s.deadline if state is self.s.state else None
        standing = replace(self.s, state=state, since=self.now, why=why, deadline=deadline)
        return Decision(standing, message=why or "all VMs are ready")

    def end(self) -> Decision:
        """Have all VMs ended; when the sites have confirmed it, it is over, or begins once more."""
        s = self.s
        again = s.state is S.UNDOING and self.spec.on_failure == "retry" and s.tries < TRIES
        again = again and self.group.wish is Wish.RUN and self.now < s.expires
        wish = Wish.DELETE if again else Wish.CANCEL
        left = [m for m in self.members.values() if again or not m.state.final]
        if left:
            return Decision(ends=tuple((m.job, wish) for m in left))
        if again:
            deadline = self.now + parse_duration(self.spec.patience)
            anew = replace(s, state=S.CREATING, since=self.now, deadline=deadline, tries=s.tries + 1)
            return Decision(anew, message=f"creation {anew.tries} of {TRIES}: {s.why}")
        if s.state is S.UNDOING:
            return self.over(S.FAILED, JobState.FAILED)
        if self.group.wish is not Wish.RUN:
            return self.over(S.CANCELLED, JobState.CANCELLED)
        return self.over(S.EXPIRED, JobState.DONE)

    def over(self, state: InfrastructureState, job_state: JobState) -> Decision:
        return replace(self.become(state, self.s.why), over=job_state, message=self.s.why)

    def of(self, names: Iterable[str]) -> list[Member]:
        return [self.members[name] for name in names if name in self.members]


def _words(case: Case) -> str:
    """What a VM does or waits for, or how it ended."""
    job = case.job
    if job.state.final:
        told = job.message or (f"its command ended with code {job.exit_code}" if job.exit_code is not None else "")
        return f"is {job.state}" + (f": {told}" if told else "")
    if job.wish.ends:
        return "is being ended"
    a = case.current
    view = case.sight(a).view if a is not None else None
    where = f" at {a.site}" if a is not None else ""
    note = view.status.note if view is not None and view.status is not None and job.state is JobState.RUNNING else ""
    note = re.sub(r", \d+ s$", "", note)  # how long it has waited would be new each time
    return f"is {job.state}{where}" + (f": {note}" if note else "")


def _vms(count: int) -> str:
    return f"{count} VM{'s' * (count != 1)}"


def scaled(spec: InfrastructureSpec, role: str, count: int) -> InfrastructureSpec:
    """The same with so many VMs of a role.

    Raises:
        ValueError: it has no such role, or that is beyond its bounds; says what is allowed.
    """
    if role not in spec.roles:
        raise ValueError(f"there is no role {role}; roles are {', '.join(spec.roles)}")
    bounds = spec.roles[role].bounds
    if not bounds.min <= count <= bounds.max:
        raise ValueError(f"{count} VMs of {role} are beyond its bounds; give {bounds.min} to {bounds.max}")
    return msgspec.structs.replace(spec, roles={**spec.roles, role: spec.roles[role].scaled(count)})
