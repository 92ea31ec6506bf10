"""Where a job should rather go: GridWay's four resource policies and their weighted sum, over the resources it may use.

    suitability = W_fixed·RP + W_rank·RA + W_usage·UG + W_failure·FR          each contribution between 0 and 1

Sources: GridWay's sched.conf, and gw_scheduler_host_policies() for what that leaves open. GridWay's ranks are
normalised to [−1, 1], positive and negative ones apart; here to [0, 1] by one straight line, in the same order and,
where all ranks have one sign, with the same differences. Its failure policy is the ban alone (`usage.banned`); here the
rate counts too, so that a site which promises what it does not have is ranked down before it is banned, and after.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt

from gridhypervisor.model.policy import ResourcePolicies
from gridhypervisor.planning.policies.jobs import Floats, Indices
from gridhypervisor.planning.policies.usage import Usage

Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Candidates:
    """What jobs may be given, in columns: a row for each node, or for each site that chooses its nodes itself.

    Cores and memory (bytes) are of a row, `inf` where they are not known or do not matter; places are jobs of ours that
    a site takes. `eligible` and `rank` are the matcher's, a row for each group of jobs (`Request.group`) and a column
    for each candidate; `last`, in the same shape, where a group goes only if nowhere else has room.
    """

    names: Sequence[str]  # all different
    sites: Sequence[str]  # of each row; its own name where the row is a site
    free_cores: Floats
    total_cores: Floats
    free_memory: Floats
    total_memory: Floats
    free_places: Mapping[str, int]  # by site
    total_places: Mapping[str, int]
    eligible: Bools
    rank: Floats
    last: Bools | None = None  # nowhere
    credit: Mapping[str, float] = field(default_factory=dict)  # by site: what its free part counts, 0 to 1; else 1

    def __post_init__(self) -> None:
        rows = len(self.names)
        columns = (self.sites, self.free_cores, self.total_cores, self.free_memory, self.total_memory)
        if any(len(column) != rows for column in columns) or len(set(self.names)) != rows:
            raise ValueError(f"candidates: {rows} names need to be different, and all columns as long")
        if self.eligible.shape != self.rank.shape or self.eligible.ndim != 2 or self.eligible.shape[1] != rows:
            raise ValueError(f"candidates: eligible and rank need the same rows, and {rows} columns")

    def rows(self, name: str) -> Indices:
        """The rows of this name, and all of the site of this name."""
        return np.array(self._by_site.get(name, self._by_name.get(name, ())), dtype=np.intp)

    @cached_property
    def _by_name(self) -> dict[str, tuple[int, ...]]:
        return {name: (row,) for row, name in enumerate(self.names)}

    @cached_property
    def _by_site(self) -> dict[str, tuple[int, ...]]:
        found: dict[str, list[int]] = {}
        for row, site in enumerate(self.sites):
            found.setdefault(site, []).append(row)
        return {site: tuple(rows) for site, rows in found.items()}


@dataclass(frozen=True)
class Suitability:
    """One row a candidate. Contributions between 0 and 1 where it may be used; `total` is their weighted sum."""

    fixed: Floats
    rank: Floats
    usage: Floats
    failure: Floats
    total: Floats
    lost_rank: bool = False  # the rank is not a number for some candidate, and counts for none


@dataclass(frozen=True)
class Fared:
    """What is remembered of one user's jobs, in columns over the candidates."""

    expected: Floats  # seconds; NaN: not known
    reliability: Floats  # 0 to 1
    banned_until: Floats  # seconds since the epoch; −inf: it is not

    @classmethod
    def of(cls, user: str, candidates: Candidates, usage: Usage, weight: float) -> Fared:
        """`weight` is the last job's against the mean: see `Record.expected`."""
        records, bans = usage.records.get(user, {}), usage.bans.get(user, {})
        shape = len(candidates.names)
        fared = cls(np.full(shape, np.nan), np.ones(shape), np.full(shape, -np.inf))
        for name, ban in bans.items():
            rows = candidates.rows(name)
            fared.banned_until[rows] = np.maximum(fared.banned_until[rows], ban.until)
        found = [(candidates.rows(name), record) for name, record in records.items()]
        for rows, record in sorted(found, key=lambda each: -len(each[0])):  # a node's own goes before its site's
            expected = record.expected(weight)
            fared.expected[rows] = np.nan if expected is None else expected
            fared.reliability[rows] = record.reliability
        return fared

    @cached_property
    def nothing(self) -> bool:
        """Whether it makes no difference between candidates."""
        known = ~np.isnan(self.expected) | (self.reliability < 1) | (self.banned_until > -np.inf)
        return not known.any()


def fixed_column(candidates: Candidates, policies: ResourcePolicies) -> Floats:
    """The fixed priority (0–99) of each candidate; 0: never used."""
    pairs = zip(candidates.names, candidates.sites, strict=True)
    return np.array([policies.fixed.of(name, site) for name, site in pairs], dtype=np.float64)


def suitability(usable: Bools, fixed: Floats, rank: Floats, fared: Fared, policies: ResourcePolicies) -> Suitability:
    """How suitable each candidate is for jobs of one user and group that may use those of `usable`."""
    rp, p = fixed_part(fixed, usable), policies
    ra, lost = rank_part(rank, usable)
    total = p.fixed.weight * rp + p.rank.weight * ra
    if fared.nothing:
        return Suitability(rp, ra, np.zeros_like(rp), np.ones_like(rp), total + p.failure.weight, lost)
    ug, fr = usage_part(fared.expected, usable), failure_part(fared.reliability, usable)
    return Suitability(rp, ra, ug, fr, total + p.usage.weight * ug + p.failure.weight * fr, lost)


def fixed_part(fixed: Floats, usable: Bools) -> Floats:
    """RP: the fixed priority (0–99) over the largest among those that may be used."""
    return _over_largest(fixed * usable)


def rank_part(rank: Floats, usable: Bools) -> tuple[Floats, bool]:
    """RA: (rank − low) / (high − low), low = min(0, lowest rank), high = max(0, highest), among those that may be used.

    So all ranks above 0: the rank over the largest; all below: 1 − the rank over the smallest; all the same 0: 0. A
    rank that is no number, or so large that its arithmetic is none, makes all count 0, and the second value True.
    """
    rank = np.where(usable, rank, 0.0)
    high, low = max(_largest(rank), 0.0), -max(_largest(-rank), 0.0)
    span = high - low  # Python's own numbers: infinite where it overflows
    if not math.isfinite(span):
        return np.zeros_like(rank), True
    return ((rank - low) / span if span > 0 else np.zeros_like(rank)), False


def usage_part(expected: Floats, usable: Bools) -> Floats:
    """UG: the shortest expected time over the candidate's; where none is known, as for the longest that is.

    Seconds; less than one counts as one. 0 everywhere, if nothing is known of any that may be used.
    """
    known = usable & ~np.isnan(expected)
    if not known.any():
        return np.zeros_like(expected)
    times = np.maximum(expected[known], 1.0)
    part = np.full_like(expected, times.min() / times.max())
    part[known] = times.min() / times
    return part


def failure_part(reliability: Floats, usable: Bools) -> Floats:
    """FR: the reliability (see `Record.reliability`) over the largest among those that may be used."""
    return _over_largest(reliability * usable)


def _largest(values: Floats) -> float:
    """NaN if there is one; 0 of nothing. Not `max`, which takes longer than all else here."""
    return float(values[values.argmax()]) if values.size else 0.0


def _over_largest(values: Floats) -> Floats:
    largest = _largest(values)
    return values / largest if largest > 0 else np.zeros_like(values)
