"""Gangs: VMs that start together or not at all. Decides when their programs may begin, and when a round is given up.

A round is one attempt of all members: their allocations of one epoch, planned in one commit. While it lasts

    placed together ─▶ each gathers (its guest is ready, its program waits) ─▶ begun: all were ready ─▶ all have ended
             └──────────────┴── one failed, or was not ready in time ──▶ released ◀── one failed ──┘

What is decided stands in the group's `Rounds`, committed before anything follows from it; what each member does by it
is `member`'s. A round that was released ends at every member, whatever it does, before the next one is planned. Nothing
is concluded from silence: a member has failed when its allocation is over, by the rules that hold for every job.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from gridhypervisor.model.records import Allocation, AllocationState, Group, Job, JobState, Rounds
from gridhypervisor.model.replacing import replace
from gridhypervisor.model.spec import parse_duration
from gridhypervisor.model.wire import GANG_MEMBERS, RETRYABLE, Outcome, Phase
from gridhypervisor.planning.draft import OVER, JobPlan
from gridhypervisor.planning.fate import TURNED_AWAY
from gridhypervisor.planning.world import Case, Gang


@dataclass(frozen=True)
class Decision:
    """What is to be committed of a gang now, if anything; else when to look again at the latest."""

    rounds: Rounds | None = None
    message: str = ""
    wake_at: float | None = None


def newest(case: Case) -> Allocation | None:
    """The member's allocation of the round that it is in; None: it was never given a place."""
    return next((a for a in case.allocations if a.epoch == case.vm.epoch), None)


def standing(group: Group, cases: Sequence[Case]) -> Gang:
    """What each member is to know. `cases`: of all members that are not over and done with, in their order."""
    held = [(case, newest(case)) for case in cases]
    complete = bool(cases) and all(case.job.state is JobState.DONE or _completed(a) for case, a in held)
    begun = group.rounds.begun > group.rounds.released
    return Gang(group.rounds, complete, roster(cases) if begun else "")


def decide(group: Group, cases: Sequence[Case], now: float) -> Decision:
    """What becomes of the round that is under way, if one is."""
    assert group.spec is not None and group.spec.gang is not None, f"{group.id} is no gang"
    rounds = group.rounds
    members = [(case, a) for case in cases if (a := newest(case)) is not None and a.epoch > rounds.released]
    if not members:
        return Decision()
    failed = [(a.times.since, number) for number, (case, a) in enumerate(members) if _failed(case, a)]
    if failed:
        case, a = members[min(failed)[1]]  # the first to fail: others may have failed for want of it
        return _release(group, case, a)
    present = max(a.epoch for _, a in members)
    if rounds.begun >= present:
        return Decision()
    waiting = [(case, a) for case, a in members if not gathered(case, a)]
    if not waiting:
        words = f"all {len(members)} are ready: round {present} begins"
        return Decision(replace(rounds, begun=present), words)
    began = [a.times.running for _, a in members if a.times.running is not None]
    if not began:
        return Decision()
    until = min(began) + parse_duration(group.spec.gang.patience)
    if now < until:
        return Decision(wake_at=until)
    case, a = waiting[0]
    words = (
        f"{len(members) - len(waiting)} of {len(members)} were ready {group.spec.gang.patience} after the first had "
        f"started; {case.job.name} was still {case.job.state} at {a.site}"
    )
    return _give_up(group, present, words, site=a.site, counts=True)


def gathered(case: Case, a: Allocation) -> bool:
    """Whether its guest is ready, and waits for the word to begin."""
    view = case.sight(a).view
    status = view.status if view is not None else None
    return a.state is AllocationState.RUNNING and status is not None and status.phase is Phase.GATHER


def roster(cases: Sequence[Case]) -> str:
    """Who the members are, a line for each: index, name, site and node. Empty while a node is not known (again)."""
    lines = []
    for case in cases:
        a = newest(case)
        if a is None:
            return ""
        view = case.sight(a).view
        owner = view.owner if view is not None else None
        node = owner.node if owner is not None else a.exit.node if a.exit is not None else ""
        if not node and a.state not in OVER:
            return ""
        lines.append(f"{case.job.member} {hostname(case.job)} {_word(a.site)} {_word(node)}\n")
    return "".join(lines)


def hostname(job: Job) -> str:
    """What a job's guest calls itself: `g7-0` of a gang's, `worker-0` a VM of an infrastructure."""
    if job.service is not None:
        return job.member
    return f"{job.group}-{job.member}" if job.spec.gang is not None else "guest"


def environment(job: Job) -> dict[str, str]:
    """What the program of a gang's member finds in its environment."""
    if job.spec.gang is None:
        return {}
    count = str(job.spec.gang.count)
    return {
        "GHV_GANG": job.group, "GHV_GANG_INDEX": job.member, "GHV_GANG_SIZE": count, "GHV_GANG_MEMBERS": GANG_MEMBERS
    }  # fmt: skip


def together(plans: Mapping[str, JobPlan], cases: Mapping[str, Case]) -> list[list[str]]:
    """The jobs whose plans must stand or fall together: the members of a gang that are given their places."""
    bundles: dict[str, list[str]] = {}
    for job, step in plans.items():
        bundles.setdefault(cases[job].job.group if _places(step, cases[job]) else job, []).append(job)
    return list(bundles.values())


def torn(plans: Mapping[str, JobPlan], cases: Mapping[str, Case]) -> list[str]:
    """Members that would be given a place, though not all of their gang would: none of them may."""
    placed: dict[str, list[str]] = {}
    for job, step in plans.items():
        if _places(step, cases[job]):
            placed.setdefault(cases[job].job.group, []).append(job)
    return [job for jobs in placed.values() for job in jobs if len(jobs) != size(cases[job])]


def size(case: Case) -> int:
    """How many members its gang has; 0: it is of none."""
    return case.job.spec.gang.count if case.job.spec.gang is not None else 0


def leads(case: Case) -> bool:
    """Whether it stands for its gang where that waits for places; a job of no gang stands for itself."""
    return case.job.spec.gang is None or case.job.member == "0"


def _places(step: JobPlan, case: Case) -> bool:
    new: Iterable[Allocation] = (r for r in step.records if isinstance(r, Allocation))
    return size(case) > 0 and any(a.version == 1 for a in new)


def _completed(a: Allocation | None) -> bool:
    home = a is not None and a.state in (AllocationState.COLLECTED, AllocationState.CLEANED)
    return home and a is not None and a.exit is not None and a.exit.outcome is Outcome.COMPLETED


def _failed(case: Case, a: Allocation) -> bool:
    if case.job.state.final:
        return case.job.state is not JobState.DONE
    return a.state in OVER and (a.exit is None or a.exit.outcome is not Outcome.COMPLETED)


def _release(group: Group, case: Case, a: Allocation) -> Decision:
    """Give the round up because this member's attempt failed."""
    job, reason = case.job, a.exit.reason if a.exit is not None else a.why
    words = job.message if job.state.final else (a.exit.message if a.exit is not None else a.note)
    words = f"{job.name} failed at {a.site}: {words or reason}"
    if reason is None or reason in TURNED_AWAY:  # withdrawn before it was submitted, or turned away at the door
        return _give_up(group, a.epoch, words, site="", counts=False, hopeless=job.state.final)
    hopeless = job.state.final or reason not in RETRYABLE
    return _give_up(group, a.epoch, words, site=a.site, counts=True, hopeless=hopeless)


def _give_up(group: Group, present: int, words: str, *, site: str, counts: bool, hopeless: bool = False) -> Decision:
    assert group.spec is not None
    failed = group.rounds.failed + counts
    over = hopeless or failed > group.spec.retry.times
    rounds = replace(group.rounds, released=present, failed=failed, over=over, why=words, blame=site)
    return Decision(rounds, f"round {present} is released: {words}")


def _word(text: str) -> str:
    """One word of a line: a site may call its nodes anything."""
    return "_".join(text.split()) or "-"
