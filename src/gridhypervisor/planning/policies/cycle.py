"""One planning cycle: who is given what. Jobs in the order of `jobs`, each to the most suitable resource with room.

Room is counted down as jobs are placed: cores, memory, a site's places, the limits of user, project, site and cycle. It
only shrinks within a cycle; so once nothing has room for a job, nothing has for the next one like it, and ten thousand
jobs that wait cost as little as one. Equally suitable resources are told apart by what part of them is free, so that
work spreads; then by their order.

An urgent or overdue job that only lacks room *holds* the most suitable resource that would have it when empty: nothing
else is placed there in this cycle. Otherwise small jobs that keep coming would keep a large one out for ever.

Nothing is explained that nobody asks for: see `verdicts`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from gridhypervisor.model.policy import SchedulingPolicy
from gridhypervisor.planning.policies.jobs import ORDINARY, Floats, Priorities, Request, prioritise
from gridhypervisor.planning.policies.resources import (
    Bools,
    Candidates,
    Fared,
    Suitability,
    fixed_column,
    suitability,
)
from gridhypervisor.planning.policies.room import NOWHERE, Room
from gridhypervisor.planning.policies.usage import Usage


@dataclass(frozen=True, slots=True)
class Decision:
    job: str
    row: int  # of the candidate that it is given, or NOWHERE
    why: str = ""  # what it waits for, if it is given none
    holds: int = NOWHERE  # the candidate that is kept for it
    limited: bool = False  # it is a limit of the policy that it waits for


@dataclass(frozen=True)
class Cycle:
    """What went in, and what was decided, first to last. `priorities` has its rows as `jobs` has them."""

    jobs: Sequence[Request]
    candidates: Candidates
    policy: SchedulingPolicy
    usage: Usage
    now: float
    priorities: Priorities
    decisions: Sequence[Decision]
    warnings: dict[str, str]  # by job: what of its own was passed over

    @property
    def placed(self) -> dict[str, str]:
        """Job → the candidate that it is given, first to last."""
        return {d.job: self.candidates.names[d.row] for d in self.decisions if d.row != NOWHERE}

    @property
    def waiting(self) -> dict[str, str]:
        """Job → what it waits for, first to last."""
        return {d.job: d.why for d in self.decisions if d.row == NOWHERE}


def assign(
    jobs: Sequence[Request], candidates: Candidates, policy: SchedulingPolicy, usage: Usage, now: float
) -> Cycle:
    """Decide for all jobs that want a place. Pure: the same arguments, the same cycle, in the same order.

    Raises:
        ValueError: a job is of a group that the candidates' tables do not have.
    """
    groups = candidates.eligible.shape[0]
    for job in jobs:
        if not 0 <= job.group < groups:
            raise ValueError(f"plan {job.id}: it is of group {job.group}, and the matcher has {groups}")
    priorities = prioritise(jobs, policy, usage, now)
    scores, room = Scores(candidates, policy, usage, now), Room(candidates, policy, usage)
    decisions: list[Decision] = []
    hopeless: dict[tuple[Kind, float, float], str] = {}
    winners: dict[tuple[Kind, float, float], int] = {}  # without an equal: the best until it has no room
    for index in priorities.order.tolist():
        job = jobs[index]
        if words := room.over(job):
            decisions.append(Decision(job.id, NOWHERE, words, limited=True))
            continue
        kind = scores.kind(job)
        alike = (kind, job.cores, job.memory)
        if alike in hopeless and priorities.precedence[index] <= ORDINARY:
            decisions.append(Decision(job.id, NOWHERE, hopeless[alike]))
            continue
        score = scores.total(kind, job)
        row = winners.get(alike, NOWHERE)
        if row == NOWHERE or not room.has(row, job):
            row, alone = room.best(score, room.fits(job))
            winners[alike] = row if alone else NOWHERE
        if row != NOWHERE:
            room.take(row, job)
            decisions.append(Decision(job.id, row))
            continue
        held = NOWHERE
        if priorities.precedence[index] > ORDINARY:
            held, _ = room.best(score, room.would_fit(job))
            if held != NOWHERE:
                room.hold(held, job)
        words = hopeless.get(alike) or _what_it_waits_for(job, kind, score, scores, room)
        hopeless[alike] = words
        if held != NOWHERE:
            words = f"{candidates.names[held]} is kept for it until there is room; {words}"
        decisions.append(Decision(job.id, NOWHERE, words, held))
    lost = [job.id for job in jobs if scores.lost_rank and scores.kind(job) in scores.lost_rank]
    warnings = dict.fromkeys(lost, "its rank is not a number for some candidates: it counts for none")
    return Cycle(jobs, candidates, policy, usage, now, priorities, decisions, warnings)


class Kind(NamedTuple):
    """What the scores of a job depend on: jobs of one kind have the same."""

    group: int
    user: str  # empty: nothing is remembered of the user's jobs that would make a difference
    avoid: frozenset[str]
    tried: frozenset[str]


class Scores:
    """How suitable each candidate is for each kind of job, worked out when first asked for."""

    def __init__(self, candidates: Candidates, policy: SchedulingPolicy, usage: Usage, now: float) -> None:
        self._candidates, self._policies, self._usage, self._now = candidates, policy.resources, usage, now
        self.fixed = fixed_column(candidates, self._policies)
        self._used = self.fixed > 0
        self._fared: dict[str, Fared] = {}
        self._users: dict[str, str] = {}
        self._total: dict[Kind, Floats] = {}
        weights = (self._policies.fixed, self._policies.rank, self._policies.usage, self._policies.failure)
        self._behind = sum(w.weight for w in weights) + 1.0
        self.lost_rank: set[Kind] = set()

    def kind(self, job: Request) -> Kind:
        user = self._users.get(job.user)
        if user is None:
            user = self._users[job.user] = "" if self.fared(job.user).nothing else job.user
        return Kind(job.group, user, job.avoid, job.tried)

    def fared(self, user: str) -> Fared:
        found = self._fared.get(user)
        if found is None:
            weight = self._policies.usage.last
            found = self._fared[user] = Fared.of(user, self._candidates, self._usage, weight)
        return found

    def total(self, kind: Kind, job: Request) -> Floats:
        """By candidate: the higher the better; −inf: the job may not use it. Those that failed it come last,
        and before them those that hardly have what it wants."""
        found = self._total.get(kind)
        if found is None:
            usable = self.usable(job)
            suited = self.suited(job, usable)
            found = suited.total
            if kind.tried:
                found = found - 2 * self._behind * self.among(kind.tried)
            if self._candidates.last is not None:
                found = found - self._behind * self._candidates.last[kind.group]
            found = self._total[kind] = np.where(usable, found, -np.inf)
            if suited.lost_rank:
                self.lost_rank.add(kind)
        return found

    def usable(self, job: Request) -> Bools:
        """Whether the job may use each candidate, as far as neither room nor limits are concerned."""
        usable = self.matching(job) & self._used
        if not self.fared(job.user).nothing:
            usable &= ~self.banned(job.user)
        if job.avoid:
            usable &= ~self.among(job.avoid)
        return usable

    def matching(self, job: Request) -> Bools:
        """Whether each candidate meets the job's requirements."""
        matching: Bools = self._candidates.eligible[job.group]
        return matching

    def suited(self, job: Request, usable: Bools) -> Suitability:
        rank = self._candidates.rank[job.group]
        return suitability(usable, self.fixed, rank, self.fared(job.user), self._policies)

    def banned(self, user: str) -> Bools:
        banned: Bools = self.fared(user).banned_until > self._now
        return banned

    def among(self, names: frozenset[str]) -> Bools:
        """Whether each candidate, or its site, is one of these."""
        among = np.zeros(len(self.fixed), dtype=np.bool_)
        for name in names:
            among[self._candidates.rows(name)] = True
        return among


def _what_it_waits_for(job: Request, kind: Kind, score: Floats, scores: Scores, room: Room) -> str:
    """In one sentence, for all jobs alike: how many candidates there are, and what keeps them."""
    usable = score > -np.inf
    count = int(usable.sum())
    if not count:
        return _why_none_is_usable(job, scores)
    site, rest = room.site_of, usable.copy()
    causes: list[str] = []
    for words, kept in (
        ("kept for jobs that come first", room.held),
        ("at the policy's limit for the site", (room.allowed < 1)[site]),
        ("with their max jobs", (room.places < 1)[site]),
        (f"without {job.cores:g} free cores", room.cores < job.cores),
        (f"without {job.memory / (1 << 20):.0f} MiB of free memory", room.memory < job.memory),
    ):
        if number := int((rest & kept).sum()):
            causes.append(f"{number} {words}")
        rest &= ~kept
    return f"no room at any of {count} that it may use: {', '.join(causes)}"


def _why_none_is_usable(job: Request, scores: Scores) -> str:
    matching = scores.matching(job)
    if not len(scores.fixed):
        return "there is no resource"
    if not matching.any():
        return f"none of {len(scores.fixed)} resources matches it"
    banned = matching & scores.banned(job.user)
    left = int(matching.sum()) - int(banned.sum())
    words = [f"{int(banned.sum())} banned for {job.user} after failures"] if banned.any() else []
    words += [f"{left} that the policy or the job itself rules out"] if left else []
    return f"of {len(scores.fixed)} resources {int(matching.sum())} match it, and none may be used: {', '.join(words)}"
