"""Whether a job that has a place should have another: it waits or runs badly there, asked to go, or gains by it.

First by itself (`wish`): what the policy and its own file say of its wait and its run. Then, of those that would
rather go, all together (`weigh`): whether another site would take them now, and for a better place whether the gain
exceeds the cost. What follows is the protocol's: the attempt is revoked, or its pilot asked to stop, and when that is
certain the job looks for a site as every job does, but not where it has been (`left`). While nobody answers for the old
place there is no new one: docs/never-two-guests.md.

Of what the program had done its restart files are kept, if it has any: else the job begins anew, and the cost of a move
has in it what is lost so.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import msgspec

from gridhypervisor.model.batch import BatchState
from gridhypervisor.model.policy import MoveSetting
from gridhypervisor.model.records import Allocation, AllocationState, CopyState, Job, JobState, Wish
from gridhypervisor.model.replacing import replace
from gridhypervisor.model.spec import MovesSpec, parse_duration
from gridhypervisor.model.wire import MOVES, HypervisorKind, Needs, Phase, Reason, Status
from gridhypervisor.planning.looking import part
from gridhypervisor.planning.past import SitePast
from gridhypervisor.planning.placement import Choice, place_all
from gridhypervisor.planning.policies.moves import Outlook, runs_too_slowly, waits_too_long, worth_moving
from gridhypervisor.planning.policies.usage import Usage
from gridhypervisor.planning.published import best_rates, kinds
from gridhypervisor.planning.suiting import Grid, Group, Seeker, outlook
from gridhypervisor.planning.world import STAYS, Case, Seen, SiteFacts, Stay

S = AllocationState

RATES: Mapping[HypervisorKind, float] = {HypervisorKind.KVM: 1.0, HypervisorKind.UML: 1.0, HypervisorKind.TCG: 0.125}
"""Speed of a program by what runs its guest, against the node's own, where nobody has measured it: docs/hypervisors.md
has the figures."""

AVOIDED = 600.0
"""Seconds after it has left a site for which a job does not go there again, though no other site has taken it."""

LEAVES = frozenset({S.PLANNED, S.SUBMITTING, S.QUEUED, S.REVOKING, S.RUNNING})
"""States in which an attempt may be told to leave."""

STUCK = "it is one of a gang, whose members stay together"
"""Why a job is never moved."""

LEAST = 30.0
"""Seconds between two times of weighing the same, at least."""


@dataclass(frozen=True)
class Terms:
    """When one job moves: seconds, and of `rate` a part of 1. 0: never."""

    wait: float
    rate: float
    observe: float
    look: float
    settled: float

    @property
    def never(self) -> bool:
        return not (self.wait or self.rate or self.look)


@lru_cache(1024)
def terms(policy: MoveSetting, own: MovesSpec) -> Terms:
    """The policy's, but for what the job's own file says."""

    def seconds(name: str) -> float:
        value: str | None = getattr(own, name)
        return float(parse_duration(value if value is not None else getattr(policy, name)))

    rate = own.rate if own.rate is not None else policy.rate
    return Terms(seconds("wait"), rate, seconds("observe"), seconds("look"), seconds("settled"))


@dataclass(frozen=True)
class Wanting:
    """It would rather go, for this reason; `better`: only to a place that is worth it."""

    why: Reason
    words: str
    better: bool = False


def attempt(case: Case) -> Allocation | None:
    """The one that may be told to leave its site: the newest, while it waits or runs and is to go on."""
    a = case.current
    if a is None or case.job.wish is not Wish.RUN or case.job.probe or case.job.spec.gang is not None or a.why in MOVES:
        return None
    copied = {c.id for c in case.checkpoints if c.copy is CopyState.KEPT}
    if a.state is S.QUEUED and a.restore and a.restore not in copied:
        return None  # its guest is saved where it waits: elsewhere it would begin anew
    return a if a.state in (S.QUEUED, S.RUNNING) else None


def kept(case: Case) -> Stay:
    """Of a job that has no attempt to move: what its program is told that asks to be."""
    asked = asks(case) if case.job.spec.gang is not None and case.job.wish is Wish.RUN else ""
    return Stay(words=f"{_asked(asked)}; it stays: {STUCK}") if asked else STAYS


def movable(case: Case) -> Allocation | None:
    """The attempt that a user may ask to leave its site, at any time before its program has ended."""
    a = case.current
    return a if a is not None and a.state in LEAVES and a.why is not Reason.MOVED else None


def immovable(case: Case, to: str, grid: Grid) -> tuple[str, str] | None:
    """Why a user cannot move the job, to the site `to` if that is not empty, and what to do instead; None: he can."""
    job, a = case.job, case.current
    if job.wish is Wish.SUSPEND and not job.state.final:
        return "it is suspended, or is about to be", f"`ghv resume {job.id}` first"
    if job.state.final or job.wish is not Wish.RUN:
        return f"it {'has ended' if job.state.final else 'is being cancelled'}: {job.state}", "submit it again"
    if job.spec.gang is not None:
        return STUCK, f"cancel {job.group}, and submit it again"
    leaves = a is not None and a.state in LEAVES
    if job.state is JobState.PENDING and not leaves:
        return None if to else ("it waits for a site, and has none to leave", f"`ghv explain {job.id}` says why")
    if a is None or not leaves:
        return "its program has ended, and what it made is coming home", f"`ghv wait {job.id}`"
    if a.site == to:
        return f"it is at {to} already", f"`ghv show {job.id}`"
    spec = msgspec.structs.replace(job.spec, site=to) if to else job.spec
    away = frozenset({a.site}) if to else frozenset({a.site, *tried(case)})
    seeker = Seeker(replace(job, spec=spec), left=away)
    choice = place_all([seeker], replace(grid, usage=_without(grid.usage, [case])))[job.id]
    if choice.site is None or choice.site in away:
        words = "no other site can take it, and it has been where one could"
        return choice.summary if choice.site is None else words, f"`ghv explain {job.id}` says why, of each site"
    return None


def asks(case: Case) -> str:
    """Why the program itself asked to be moved, if it did."""
    status = _status(case)
    return status.asks if status is not None and status.phase is Phase.EXECUTE else ""


def _asked(why: str) -> str:
    return "the program asked to be moved" + (f": {why}" if why != Reason.MOVED else "")


def first(case: Case, t: Terms, now: float) -> float | None:
    """When to weigh for the first time whether its attempt should go; None: never, unless it asks.

    Jobs that came together look around at different times, each at its own within the interval.
    """
    a = attempt(case)
    if a is None or t.never:
        return None
    if a.state is S.QUEUED:
        return (a.times.queued or a.times.since) + t.wait if t.wait else None
    begun = a.times.running or a.times.since
    times = [max(now, begun + t.observe)] if t.rate else []
    times += [now + t.look * (0.25 + 0.75 * part(case.job.id))] if t.look else []
    return min(times, default=None)


def next_after(case: Case, t: Terms, now: float) -> float | None:
    """When to weigh again, after it was weighed and stayed."""
    a = attempt(case)
    if a is None:
        return None
    if a.state is S.QUEUED:
        pauses = [t.wait] * bool(t.wait)
    else:
        ran = executed(_status(case))
        pauses = [t.observe - ran if ran < t.observe else t.observe] * bool(t.rate)
        pauses += [t.look] * (t.look > 0 and ran < t.settled) + [LEAST] * bool(asks(case))
    return now + max(LEAST, min(pauses)) * (0.75 + 0.5 * part(case.job.id)) if pauses else None


def wish(case: Case, t: Terms, now: float) -> Wanting | None:
    """Whether it would rather be elsewhere, as far as is known now. What is not known is no reason to go."""
    a = attempt(case)
    if a is None:
        return None
    if a.state is S.QUEUED:
        batch = case.sight(a).batch
        if not (isinstance(batch, Seen) and batch.job.state in (BatchState.PENDING, BatchState.HELD)):
            return None  # it is about to begin, or its site does not answer
        words = waits_too_long(now - (a.times.queued or a.times.since), t.wait)
        return Wanting(Reason.WAITED, words) if words else None
    status = _status(case)
    if status is None or status.phase is not Phase.EXECUTE:
        return None
    if status.asks:
        return Wanting(Reason.MOVED, _asked(status.asks))
    share = status.effort.share if status.effort is not None else None
    if share is not None and t.rate:
        words = runs_too_slowly(share, 1.0, executed(status), t.rate, t.observe)
        if words:
            return Wanting(Reason.SLOW, words)
    if t.look and executed(status) < t.settled and case.job.spec.rank:
        return Wanting(Reason.MOVED, "", better=True)
    return None


def weigh(wanting: Mapping[str, tuple[Case, Wanting]], grid: Grid) -> dict[str, Stay]:
    """What comes of it, by job: those that another site takes now go. They are served together, in the policy's order,
    so that not all of them go where there is room for one."""
    cases = [case for case, _ in wanting.values()]
    seekers = [Seeker(case.job, left=frozenset({case.newest.site, *tried(case)})) for case in cases]
    choices = place_all(seekers, replace(grid, usage=_without(grid.usage, cases)))
    found = {}
    for seeker in seekers:
        case, want = wanting[seeker.job.id]
        choice = choices[seeker.job.id]
        if choice.site is None or choice.site in seeker.left:
            why = choice.summary if choice.site is None else "no other site can take it"
            found[seeker.job.id] = Stay(words="" if want.better else f"{want.words}; it stays: {why}")
            continue
        words = f"{want.words}; {choice.site} can take it"
        if want.better:
            gain = better(case, choice.site, grid)
            words = f"{choice.site} is better: {gain}" if gain else ""
        found[seeker.job.id] = Stay(want.why, words) if words else STAYS
    return found


def better(case: Case, there: str, grid: Grid) -> str:
    """Why it is worth it to begin anew at that site; empty: it is not, or nobody knows.

    With walltime W and E seconds of the program behind it, left = (W − E)·rate_here. Going costs what is predicted
    until a guest of it is ready there, and doing again what is lost, L·rate_here/rate_there (see `lost`). There it
    waits as long as others have waited, or as it has here where nobody knows.
    """
    a, status = case.newest, _status(case)
    names = sorted(grid.sites)
    if status is None or status.hypervisor is None or a.site not in grid.sites or there not in grid.sites:
        return ""
    group = Group(Seeker(case.job), grid, names)
    rank = dict(zip(names, group.rank.tolist(), strict=True))
    share = status.effort.share if status.effort is not None else None
    measured = status.hypervisor.rates or speeds(a.site, grid)
    rate = measured.get(status.hypervisor.kind, RATES[status.hypervisor.kind])
    here = Outlook(rate * (share if share is not None else 1.0), rank=rank[a.site])
    past, known = grid.past.get(there, SitePast()), speeds(there, grid)
    able = [known.get(kind, RATES[kind]) for kind in kinds(grid.sites[there], past) if _suits(case.job, kind)]
    if not able or here.rate <= 0:
        return ""
    t = a.times
    submitted = t.submitting or t.planned
    wait = past.wait if past.wait is not None else (t.running or submitted) - submitted
    ahead = Outlook(max(able), wait, rank[there])
    left = max(0.0, parse_duration(case.job.spec.resources.walltime) - executed(status)) * here.rate
    cost = outlook(case.job, grid.sites[there], grid).ready + lost(case, status) * here.rate / ahead.rate
    return worth_moving(left, here, ahead, cost)


def lost(case: Case, status: Status | None) -> float:
    """Seconds of its program that a job loses when it leaves its site: all that it did, in the attempts too whose
    guest it took up; nothing, where its restart files go with it."""
    if case.job.spec.restart_files:
        return 0.0
    before = (c.executed for c in case.checkpoints if c.id == case.allocations[-1].restore)
    return next(before, 0.0) + executed(status)


def speeds(site: str, grid: Grid) -> dict[HypervisorKind, float]:
    """Of the hypervisors that were measured there, what a guest gets of the node's own speed at best."""
    facts = grid.sites[site].site
    return best_rates(facts.probed if facts is not None else None, grid.past.get(site, SitePast()))


def tried(case: Case) -> frozenset[str]:
    """Sites that it has left for another, or that failed it."""
    return frozenset({a.site for a in case.allocations if a.why in MOVES}).union(case.job.excluded)


def left(case: Case, now: float) -> tuple[frozenset[str], float | None]:
    """Sites where it is not to go again for now, and until when that holds, if there are any."""
    a = case.current
    if a is None or a.why not in MOVES or case.job.spec.site:
        return frozenset(), None
    until = (a.times.collected or a.times.since) + AVOIDED
    return (tried(case), until) if now < until else (frozenset(), None)


def executed(status: Status | None) -> float:
    """Seconds for which the program had run, at the pilot's last word."""
    if status is None:
        return 0.0
    return sum((p.end if p.end is not None else status.elapsed) - p.start
               for p in status.phases if p.phase is Phase.EXECUTE)  # fmt: skip


def given_away(sites: Mapping[str, SiteFacts], choices: Mapping[str, Choice]) -> dict[str, SiteFacts]:
    """The sites as they are once these choices have been committed, as far as places are counted."""
    taken = Counter(choice.site for choice in choices.values() if choice.site is not None)
    return {**sites, **{name: replace(sites[name], alive=sites[name].alive + count) for name, count in taken.items()}}


def _without(usage: Usage, cases: Sequence[Case]) -> Usage:
    """What limits would count if these jobs had given up the places that they have."""
    users, projects = Counter(usage.running_users), Counter(usage.running_projects)
    users.subtract(case.job.owner for case in cases)
    projects.subtract(case.job.project for case in cases)
    return replace(usage, running_users=users, running_projects=projects)


def _suits(job: Job, kind: HypervisorKind) -> bool:
    spec = job.spec
    needs = Needs(cpus=spec.resources.cpus, network=spec.network, cpu=spec.cpu).with_image(job.image.layers)
    return spec.hypervisor in ("auto", kind) and not needs.unmet(kind)


def _status(case: Case) -> Status | None:
    view = case.sight(a).view if (a := case.current) is not None else None
    return view.status if view is not None else None
