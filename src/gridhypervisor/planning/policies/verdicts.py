"""Why a job was given what it was given, or waits: its priority in figures, and for every candidate what it lost by.

Worked out when somebody asks, from the cycle alone: the room that the job found is what its predecessors left, so they
are placed again, which takes no decision.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from gridhypervisor.model.views import Candidate
from gridhypervisor.planning.policies.cycle import Cycle, Scores
from gridhypervisor.planning.policies.jobs import FIRST, MOVING, OVERDUE, Request
from gridhypervisor.planning.policies.room import NOWHERE, Room

WhyNot = Callable[[int, int], str]
"""(group, candidate's row) → what the candidate lacks of the requirements: the matcher's word, which is not ours."""


@dataclass(frozen=True)
class Verdict:
    """All that `ghv explain` tells of one job in one cycle."""

    position: int  # in the order of all jobs, from 1
    priority: str  # where that comes from, in figures
    summary: str  # where it goes, or what it waits for
    candidates: tuple[Candidate, ...]  # as the cycle has them; `rank` is the suitability


def explain(cycle: Cycle, job_id: str, why_not: WhyNot | None = None) -> Verdict:
    """Everything about one job of the cycle.

    Raises:
        KeyError: the cycle has no such job.
    """
    found = next((i for i, d in enumerate(cycle.decisions) if d.job == job_id), None)
    if found is None:
        raise KeyError(f"explain {job_id}: it was not among the {len(cycle.jobs)} jobs of this cycle")
    decision, index = cycle.decisions[found], int(cycle.priorities.order[found])
    job = cycle.jobs[index]
    scores = Scores(cycle.candidates, cycle.policy, cycle.usage, cycle.now)
    room = Room(cycle.candidates, cycle.policy, cycle.usage)
    for earlier, row in zip(cycle.decisions[:found], cycle.priorities.order[:found].tolist(), strict=True):
        if earlier.row != NOWHERE:
            room.take(earlier.row, cycle.jobs[row])
        elif earlier.holds != NOWHERE:
            room.hold(earlier.holds, cycle.jobs[row])
    usable = scores.usable(job)
    suited = scores.suited(job, usable)
    score = scores.total(scores.kind(job), job)
    over, winner = room.over(job), cycle.candidates.names[decision.row] if decision.row != NOWHERE else ""
    tried = scores.among(job.tried)
    candidates = []
    for row, name in enumerate(cycle.candidates.names):
        parts = (("fixed", suited.fixed), ("rank", suited.rank), ("usage", suited.usage), ("failure", suited.failure))
        mine = f"{score[row]:.2f} ({', '.join(f'{what} {part[row]:.2f}' for what, part in parts)})"
        mine += "; it failed the job before" if tried[row] else ""
        if row == decision.row:
            words = f"suits best: {mine}"
        elif out := _ruled_out(cycle, job, row, scores, why_not) or over or _no_room(cycle, job, row, room):
            words = out
        elif score[row] < score[decision.row]:
            words = f"suits less than {winner}: {mine}"
        else:
            words = f"suits as well as {winner}, of which a larger part is free, or which comes first: {mine}"
        rank = float(score[row]) if usable[row] else None
        candidates.append(Candidate(name, row == decision.row, words, rank))
    summary = f"goes to {winner}" if winner else decision.why
    if warning := cycle.warnings.get(job_id):
        summary += f"; {warning}"
    return Verdict(found + 1, _priority(cycle, index), summary, tuple(candidates))


def _priority(cycle: Cycle, index: int) -> str:
    p, weights = cycle.priorities, cycle.policy.jobs
    parts = (
        ("fixed", p.fixed, weights.fixed.weight),
        ("share", p.share, weights.share.weight),
        ("waiting", p.waiting, weights.waiting.weight),
        ("deadline", p.deadline, weights.deadline.weight),
    )
    figures = " + ".join(f"{weight:g}·{name} {column[index]:.2f}" for name, column, weight in parts)
    why = {FIRST: "urgent; ", OVERDUE: "overdue; ", MOVING: "has a place already; "}
    return f"{why.get(int(p.precedence[index]), '')}{p.total[index]:.2f} = {figures}"


def _ruled_out(cycle: Cycle, job: Request, row: int, scores: Scores, why_not: WhyNot | None) -> str:
    """Why the job may not use a candidate whatever room there is; empty if it may."""
    name, site = cycle.candidates.names[row], cycle.candidates.sites[row]
    if not scores.matching(job)[row]:
        return (why_not(job.group, row) if why_not else "") or "does not meet the job's requirements"
    if scores.fixed[row] == 0:
        return "the policy gives it priority 0: it is not to be used"
    if name in job.avoid or site in job.avoid:
        return "the job was there, and is to go elsewhere"
    if scores.banned(job.user)[row]:
        left = float(scores.fared(job.user).banned_until[row]) - cycle.now
        return f"banned for {job.user} after failures, for another {left:.0f} s"
    return ""


def _no_room(cycle: Cycle, job: Request, row: int, room: Room) -> str:
    site = int(room.site_of[row])
    name = room.sites[site]
    if room.held[row]:
        return "kept for a job that comes first"
    if room.allowed[site] < 1:
        return f"{name} has as many jobs as the policy allows it"
    if room.places[site] < 1:
        return f"no room for more at {name} (max jobs: {cycle.candidates.total_places.get(name, 0)})"
    if room.cores[row] < job.cores:
        total = cycle.candidates.total_cores[row]
        return f"{max(room.cores[row], 0):g} of {total:g} cores free, {job.cores:g} wanted"
    if room.memory[row] < job.memory:
        return f"{room.memory[row] / (1 << 20):.0f} MiB of memory free, {job.memory / (1 << 20):.0f} MiB wanted"
    return ""
