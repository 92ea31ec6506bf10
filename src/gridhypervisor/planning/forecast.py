"""Where waiting work would go, and when: what `ghv plan` shows. Nothing is promised, and nothing decided.

Jobs are taken in the order in which they would be served; each gets the site that has a place for it first, as if what
runs there took its whole walltime, what is queued there began now, and its own wait in the queue were that of the
latest. So it mostly is later than it will be. A gang is told of as one, by the job that leads it: it gets its places
when there are as many at one site, or, if it may spread, at all together. Sites that do not answer, drain, or cannot
take the job are left out, and what a lender allows is not looked at.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from gridhypervisor.model.records import Job
from gridhypervisor.planning.placement import amounts, in_order
from gridhypervisor.planning.suiting import Grid, Group, Key, Seeker, key_of, most_together, outlook


@dataclass(frozen=True)
class Held:
    """A place that an attempt holds, until `ends` at the latest: seconds since the epoch."""

    owner: str
    project: str
    site: str
    ends: float


@dataclass(frozen=True)
class Forecast:
    job: str
    site: str = ""  # empty: none of those that there are can take it
    at: float | None = None  # when it would be given to the site, seconds since the epoch
    starts: float | None = None  # when it would run there; None: nobody knows how long that site's queue takes
    ready: float | None = None  # seconds that it is predicted to take besides, until its guest is ready
    why: str = ""
    places: Mapping[str, int] = field(default_factory=dict)  # of a gang: how many of its members go where


Open = tuple[float, tuple[bool, bool, float, str]]
"""A site that can take a job: not before when; then what tells it from others, the better one less, with its name."""


class _Slots:
    """Places that are free at some time: of a site, or of what a user or project may have."""

    def __init__(self, count: float, taken: Iterable[float], now: float) -> None:
        ends = sorted(taken)
        self._always = math.isinf(count)
        spare = 0 if self._always else max(0, int(count) - len(ends))
        # With more taken than there are, as many have to end first.
        late = ends[max(0, len(ends) - int(count)) :] if not self._always else []
        self._free = [now] * spare + [max(now, end) for end in late]
        self._now = now

    def when(self, count: int = 1) -> float:
        """When so many are free; infinite: there never are."""
        if self._always:
            return self._now
        if count > len(self._free):
            return math.inf
        return self._free[0] if count == 1 else heapq.nsmallest(count, self._free)[-1]

    def soonest(self, count: int) -> list[float]:
        """When each of the next that come free does, at most so many."""
        return [self._now] * count if self._always else heapq.nsmallest(count, self._free)

    def take(self, until: float, count: int = 1) -> None:
        for _ in range(0 if self._always else count):
            heapq.heapreplace(self._free, until)


def forecast(jobs: Sequence[Job], held: Sequence[Held], grid: Grid, limit: int | None = None) -> list[Forecast]:
    """For jobs that wait, first to last, at most `limit`. `held`: every place that is held now."""
    now, limits = grid.now, grid.policy.limits
    sites = {
        name: _Slots(min(facts.max_jobs, limits.of_site(name)), (h.ends for h in held if h.site == name), now)
        for name, facts in grid.sites.items()
    }
    users = {
        name: _Slots(limits.of_user(name), (h.ends for h in held if h.owner == name), now)
        for name in {job.owner for job in jobs}
    }
    projects = {
        name: _Slots(limits.of_project(name), (h.ends for h in held if h.project == name), now)
        for name in {job.project for job in jobs}
    }
    groups: dict[Key, Group] = {}
    names, by_id, found = sorted(grid.sites), {job.id: job for job in jobs}, []
    for name in in_order(jobs, grid.policy, grid.usage, now)[:limit]:
        job = by_id[name]
        seeker = Seeker(job)
        group = groups.get(key_of(seeker))
        if group is None:
            group = groups[key_of(seeker)] = Group(seeker, grid, names)
        size = job.spec.gang.count if job.spec.gang is not None else 1
        may = max(users[job.owner].when(size), projects[job.project].when(size))
        open_: list[Open] = []
        for row, site in enumerate(names):
            if group.never(grid.sites[site]) or grid.policy.resources.fixed.of(site, site) == 0:
                continue
            ban = grid.usage.bans.get(job.owner, {}).get(site)
            liked = site in job.excluded, bool(group.lacks[row]), -float(group.rank[row]), site
            open_.append((max(may, ban.until if ban is not None else now), liked))
        spread = job.spec.gang is not None and job.spec.gang.spread
        at, places = _first(open_, sites, size, grid) if not spread else _scattered(open_, sites, size, grid)
        if not places:
            found.append(Forecast(job.id, why=_why_never(job, group, grid, names)))
            continue
        waits = [past.wait if (past := grid.past.get(site)) is not None else None for site in places]
        known = [wait for wait in waits if wait is not None]
        until = at + max(known, default=0.0) + amounts(job.spec.resources)[2]
        for slots, count in (*((sites[site], count) for site, count in places.items()),
                             (users[job.owner], size), (projects[job.project], size)):  # fmt: skip
            slots.take(until, count)
        words = "as soon as it is given away" if at <= now else "when there is room"
        starts = at + max(known) if len(known) == len(waits) else None  # a gang begins when all of it runs
        ready = max(outlook(job, grid.sites[site], grid).ready for site in places)
        site = next(iter(places))
        found.append(Forecast(job.id, site, at, starts, ready, words, places if job.spec.gang else {}))
    return found


def _first(open_: Sequence[Open], sites: Mapping[str, _Slots], size: int, grid: Grid) -> tuple[float, dict[str, int]]:
    """The site that has so many places first, of those that have them together the one that is liked best."""
    at, liked = min(
        ((max(may, sites[liked[-1]].when(size)), liked) for may, liked in open_ if _most(grid, liked[-1]) >= size),
        default=(math.inf, None),
    )
    return (at, {liked[-1]: size}) if liked is not None and math.isfinite(at) else (at, {})


def _scattered(
    open_: Sequence[Open], sites: Mapping[str, _Slots], size: int, grid: Grid
) -> tuple[float, dict[str, int]]:
    """One site, if it has so many places as soon as all have together; else the places that come free first."""
    each = sorted(
        (max(may, at), liked)
        for may, liked in open_
        for at in sites[liked[-1]].soonest(min(size, _most(grid, liked[-1])))
    )[:size]
    if len(each) < size or not math.isfinite(each[-1][0]):
        return math.inf, {}
    at, places = _first(open_, sites, size, grid)
    return (
        (at, places) if places and at <= each[-1][0] else (each[-1][0], dict(Counter(liked[-1] for _, liked in each)))
    )


def _most(grid: Grid, site: str) -> int:
    """Jobs that run there at once at most, of which those of a gang must be."""
    return most_together(grid.sites[site])


def _why_never(job: Job, group: Group, grid: Grid, names: Sequence[str]) -> str:
    said = {name: group.never(grid.sites[name], brief=True) for name in names if job.spec.site in ("", name)}
    other = "the policy gives it no place there" if job.spec.gang is None else "no room for all of its gang, ever"
    words = (f"{name}: {why or other}" for name, why in said.items())
    return "; ".join(words) or "there is no such site"
