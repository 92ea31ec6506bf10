"""Which job goes first: GridWay's four job policies and their weighted sum, over all jobs that wait.

    priority = W_fixed·FP + W_share·SH + W_waiting·WT + W_deadline·DL         each contribution between 0 and 1

Sources: GridWay's sched.conf, and gw_scheduler_job_policies() for what that leaves open. Three things differ. Use is
counted in core-seconds and not in jobs, so a user cannot gain by cutting work small, and between projects as well. DL
is exactly half at `half` (GridWay's e^(−t/1.5·half) is 0.51 there). And since WT is normalised, jobs of a high fixed
priority that keep coming could keep others away for ever, whatever the weights: so a job that has waited longer than
`patience` goes before all that are not urgent, one of each user at a time, so that nobody's thousand old jobs go before
another's new one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from gridhypervisor.model.policy import URGENT, SchedulingPolicy, ShareSetting
from gridhypervisor.model.spec import parse_duration
from gridhypervisor.planning.policies.usage import Usage, Windows, remembered

Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.intp]

FAR = 0.01
"""A deadline's contribution below which it is none: over 6.6 times `half` ahead. GridWay counts in hundredths."""

MOVING, ORDINARY, OVERDUE, FIRST = -1, 0, 1, 2
"""Precedence, before any priority: jobs that have a place already come last, urgent ones first."""


class Request(NamedTuple):
    """A job that wants a place; made by the ten thousand. Times in seconds since the epoch."""

    id: str
    user: str
    project: str
    submitted: float
    cores: float = 1.0
    memory: float = 0.0  # bytes
    seconds: float = 0.0  # walltime; with the cores it is what the job is expected to use
    group: int = 0  # its row in the matcher's tables: jobs with the same requirements and rank have the same
    fixed: int | None = None  # its own priority, 0 to 19, or URGENT; None: as the policy has it for user and project
    deadline: float | None = None
    avoid: frozenset[str] = frozenset()  # resources or sites where it must not go
    tried: frozenset[str] = frozenset()  # those that failed it: only where there is no other
    moving: bool = False  # it has a place, and looks for a better one


@dataclass(frozen=True)
class Priorities:
    """One row a job, as they were given. The contributions are between 0 and 1; `total` is their weighted sum."""

    fixed: Floats
    share: Floats
    waiting: Floats
    deadline: Floats
    total: Floats
    precedence: npt.NDArray[np.int8]
    order: Indices  # rows, first to last


def prioritise(jobs: Sequence[Request], policy: SchedulingPolicy, usage: Usage, now: float) -> Priorities:
    """Order all jobs: by precedence, then by priority, then by arrival (`submitted`, then as they were given)."""
    rules = policy.jobs
    given = [rules.fixed.of(j.user, j.project) if j.fixed is None else j.fixed for j in jobs]
    submitted = np.array([j.submitted for j in jobs], dtype=np.float64)
    fixed = fixed_part(np.array(given, dtype=np.float64))
    waiting = waiting_part(now - submitted)
    until = np.array([np.inf if j.deadline is None else j.deadline - now for j in jobs], dtype=np.float64)
    deadline = deadline_part(until, parse_duration(rules.deadline.half))
    total = rules.fixed.weight * fixed + rules.waiting.weight * waiting + rules.deadline.weight * deadline
    arrival = np.argsort(submitted, kind="stable")
    before = arrival[np.argsort(-total[arrival], kind="stable")]
    users, projects = _numbered([j.user for j in jobs]), _numbered([j.project for j in jobs])
    wanted = np.array([j.cores * j.seconds for j in jobs], dtype=np.float64)
    share = share_part(before, users, projects, wanted, rules.share, usage, now)
    total = total + rules.share.weight * share
    precedence = np.array([FIRST if g >= URGENT else MOVING if j.moving else ORDINARY
                           for g, j in zip(given, jobs, strict=True)], dtype=np.int8)  # fmt: skip
    ordinary = arrival[precedence[arrival] == ORDINARY]
    longest = ordinary[np.unique(users[0][ordinary], return_index=True)[1]]  # of each user
    precedence[longest[now - submitted[longest] > parse_duration(rules.waiting.patience)]] = OVERDUE
    key = np.where(
        precedence > ORDINARY, 0.0, total
    )  # among urgent and overdue jobs the first come is the first served
    order = arrival[np.lexsort((-key[arrival], -precedence[arrival]))]
    return Priorities(fixed, share, waiting, deadline, total, precedence, order)


def fixed_part(priorities: Floats) -> Floats:
    """FP: the fixed priority (0–20) over the largest present; 0 where all are 0."""
    return _over_largest(priorities)


def waiting_part(waited: Floats) -> Floats:
    """WT: the time waited (seconds) over the longest present: linear. A submission in the future has not waited."""
    return _over_largest(np.maximum(waited, 0.0))


def deadline_part(until: Floats, half: float) -> Floats:
    """DL: 2^(−t/half), t seconds before the deadline (infinite: none) and 1 after it, over the largest present.

    Exponential: 1 at the deadline, 1/2 at `half` seconds before it, 1/4 at twice that.
    """
    near = np.exp2(-np.maximum(until, 0.0) / half)
    return _over_largest(np.where(near < FAR, 0.0, near))


def share_part(
    order: Indices,
    users: tuple[Indices, list[str]],
    projects: tuple[Indices, list[str]],
    wanted: Floats,
    setting: ShareSetting,
    usage: Usage,
    now: float,
) -> Floats:
    """SH = 1 − [(1−p)·V_user/max V_user + p·V_project/max V_project], p the weight of projects.

    V = (core-seconds remembered of the account + `wanted` by its jobs before this one) / its share. So equal accounts
    take turns within a cycle, and over days each comes to its share, for what a job takes counts against the next ones.
    A user's jobs come in the `order` that the other policies give them, a project's in that of its users' V. GridWay
    does this with jobs instead of core-seconds, and has no projects.
    """
    by_user = _virtual_use(order, users, wanted, usage.users, setting.users, setting, now)
    fair = order[np.argsort(by_user[order], kind="stable")]
    by_project = _virtual_use(fair, projects, wanted, usage.projects, setting.projects, setting, now)
    p = setting.project_weight
    return np.maximum(1.0 - ((1 - p) * _over_largest(by_user) + p * _over_largest(by_project)), 0.0)


def _virtual_use(
    order: Indices,
    accounts: tuple[Indices, list[str]],
    wanted: Floats,
    past: Mapping[str, Windows],
    shares: Mapping[str, float],
    setting: ShareSetting,
    now: float,
) -> Floats:
    numbers, names = accounts
    size = parse_duration(setting.window)
    used = np.array([remembered(past.get(n, Windows()), now, size, setting.windows) for n in names], dtype=np.float64)
    share = np.array([shares.get(n, setting.default) for n in names], dtype=np.float64)
    grouped = order[np.argsort(numbers[order], kind="stable")]  # account by account, each in order
    before = np.cumsum(wanted[grouped]) - wanted[grouped]
    account = numbers[grouped]
    starts = np.flatnonzero(np.diff(account, prepend=-1))
    before -= np.repeat(before[starts], np.diff(starts, append=len(account)))
    use = np.empty(len(wanted), dtype=np.float64)
    use[grouped] = (used[account] + before) / share[account]
    return use


def _numbered(names: Sequence[str]) -> tuple[Indices, list[str]]:
    numbers: dict[str, int] = {}
    return np.array([numbers.setdefault(n, len(numbers)) for n in names], dtype=np.intp), list(numbers)


def _over_largest(values: Floats) -> Floats:
    largest = values.max(initial=0.0)
    return values / largest if largest > 0 else np.zeros_like(values)
