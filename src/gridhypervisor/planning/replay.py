"""A cycle as it was: what the choices of sites rested on, written down with them, and made again from that alone.

Jobs are not in it, only what of them changes: what a user asked for stays in the store. Nor is the policy, of which the
store keeps every version.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import cast

import msgspec

from gridhypervisor.model.policy import SchedulingPolicy
from gridhypervisor.model.records import Job
from gridhypervisor.model.replacing import replace
from gridhypervisor.planning.matching import Catalogue, Place
from gridhypervisor.planning.past import SitePast
from gridhypervisor.planning.placement import Choice, place_all
from gridhypervisor.planning.policies.usage import Usage
from gridhypervisor.planning.published import Published
from gridhypervisor.planning.suiting import Grid, Seeker, ready
from gridhypervisor.planning.world import SiteFacts

Value = bool | int | float | str | tuple[str, ...]
Values = dict[str, Value]


class Asked(msgspec.Struct, frozen=True):
    """A job that wanted a site, as far as that may be different now."""

    job: str
    excluded: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()
    left: tuple[str, ...] = ()
    unfit: tuple[tuple[str, str], ...] = ()
    site: str | None = None  # that it asked for, or where its checkpoint was; None: as it asks now


class Recorded(msgspec.Struct, frozen=True):
    """One cycle."""

    at: float  # seconds since the epoch
    version: int  # of the policy
    asked: tuple[Asked, ...]
    chosen: dict[str, str]  # job → site, of those that got one
    sites: dict[str, SiteFacts]
    usage: Usage
    partly: bool = False  # `sites` are those alone that are not as in the cycle before it; see `less`
    # Where a job had requirements or a rank:
    published: dict[str, Values] = {}  # by site: what it said of itself
    snapshot: int = 0  # which of the nodes; see `Published.version`
    layers: dict[str, dict[str, int]] = {}  # by site: of images, in its cache
    ready: dict[str, dict[str, float]] = {}  # by job and site: what was predicted, of jobs that went by that


class Snapshot(msgspec.Struct, frozen=True):
    """What nodes published, by site and node, as long as that was the same: many cycles share it."""

    snapshot: int
    nodes: dict[str, dict[str, Values]]


def less(cycle: Recorded, before: Recorded) -> Recorded:
    """The cycle without what it has in common with the one before it: of a thousand sites, few change between two."""
    if before.sites.keys() - cycle.sites.keys():
        return cycle
    known = before.sites  # mostly by the very same facts, which is seen sooner than that they are equal
    changed = {n: facts for n, facts in cycle.sites.items() if (k := known.get(n)) is not facts and k != facts}
    return msgspec.structs.replace(cycle, sites=changed, partly=True)


def more(cycle: Recorded, before: Recorded) -> Recorded:
    """`less` undone, as far as the cycle before it goes back itself."""
    return msgspec.structs.replace(cycle, sites=before.sites | cycle.sites, partly=before.partly)


def as_it_is(
    seekers: Sequence[Seeker], grid: Grid, version: int, choices: Mapping[str, Choice], published: Published
) -> Recorded:
    """A cycle that was just gone through, as it is to be written down, at once.

    What a site says of its nodes counts as far as it is published.
    """
    sites = {name: facts.recorded for name, facts in grid.sites.items()}
    u, asked = grid.usage, grid.catalogue is published.catalogue
    counts = (dict(u.running_users), dict(u.running_projects), dict(u.running_sites))
    return Recorded(
        at=grid.now,
        version=version,
        asked=tuple(
            Asked(
                s.job.id,
                s.job.excluded,
                tuple(sorted(s.refused)),
                tuple(sorted(s.left)),
                tuple(sorted(s.unfit)),
                s.job.spec.site,
            )
            for s in seekers
        ),
        chosen={job: choice.site for job, choice in choices.items() if choice.site is not None},
        sites=sites,
        usage=replace(u, running_users=counts[0], running_projects=counts[1], running_sites=counts[2]),
        published=cast(dict[str, Values], published.sites) if asked else {},
        snapshot=published.version if asked else 0,
        layers={name: past.layers for name, past in grid.past.items() if past.layers} if asked else {},
        ready={s.job.id: dict(told) for s in seekers if (told := ready(s.job, grid))} if asked else {},
    )


def snapshot_of(published: Published) -> Snapshot:
    """To be written down at once, too."""
    return Snapshot(published.version, cast(dict[str, dict[str, Values]], published.nodes))


def replay(
    recorded: Recorded, nodes: Mapping[str, Mapping[str, Values]], jobs: Iterable[Job], policy: SchedulingPolicy
) -> dict[str, str]:
    """Go through the cycle again: job → site, of those that get one. `jobs`: all that wanted one, as they are now."""
    catalogue = Catalogue()
    for site, values in recorded.published.items():
        for node, own in nodes.get(site, {}).items():
            catalogue.set(Place(site, node), {**values, **own})
    past = {name: SitePast(layers=layers) for name, layers in recorded.layers.items()}
    grid = Grid(recorded.sites, policy, recorded.usage, recorded.at, catalogue, past, ready=recorded.ready)
    by_id = {job.id: job for job in jobs}
    seekers = [
        Seeker(_as_it_asked(by_id[a.job], a), frozenset(a.refused), frozenset(a.left), frozenset(a.unfit))
        for a in recorded.asked
    ]
    return {job: choice.site for job, choice in place_all(seekers, grid).items() if choice.site is not None}


def _as_it_asked(job: Job, asked: Asked) -> Job:
    site = asked.site if asked.site is not None else job.spec.site
    return replace(job, excluded=asked.excluded, spec=msgspec.structs.replace(job.spec, site=site))
