"""Jobs that last longer than a batch job may: how long each of their batch jobs is, and why some cannot have several.

A job's walltime is its program's. Where a site gives no batch job so long, or the user wants shorter ones, it goes on
through successive batch jobs, *segments*: before one is over its guest is saved (`agent/handover.py`), and taken up in
the next. Pure.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from functools import lru_cache

from gridhypervisor.model.records import Allocation, Segment
from gridhypervisor.model.spec import JobSpec, ResourcesSpec, parse_duration, parse_size
from gridhypervisor.model.wire import LEAST_RATE, HandOver, save_seconds
from gridhypervisor.planning.sites import carried
from gridhypervisor.planning.world import SiteFacts

ENDS = 300
"""Seconds that the last batch job is longer than what is left of the program: for its guest to be taken up on a busy
node, and its outputs to be brought out."""

ENOUGH = 5
"""Saves at a site that must be known before guests there are expected to be saved faster than LEAST_RATE."""


def save_rate(seen: Collection[float]) -> float:
    """Bytes a second at which guests are surely saved at a site, by the rates of the latest there (a hundred at most):
    the slowest of them, which is at or below their first percentile."""
    known = min(seen, default=LEAST_RATE)
    return known if len(seen) >= ENOUGH else min(known, LEAST_RATE)


@lru_cache(4096)
def _times(resources: ResourcesSpec) -> tuple[int, int]:
    """Seconds of the job's walltime, and of the longest batch job that its user wants."""
    walltime = parse_duration(resources.walltime)
    return walltime, min(walltime, parse_duration(resources.segment)) if resources.segment else walltime


def lasts(spec: JobSpec, facts: SiteFacts) -> int:
    """Seconds of the longest batch job that it gets there."""
    _, wanted = _times(spec.resources)
    return wanted if facts.max_walltime is None else min(wanted, facts.max_walltime)


def outlives(spec: JobSpec, facts: SiteFacts) -> bool:
    """Whether the job takes more than one batch job there, if it lasts as long as it may."""
    return lasts(spec, facts) < _times(spec.resources)[0]


def segment(spec: JobSpec, facts: SiteFacts, executed: float) -> Segment | None:
    """The batch job that a job gets there, whose program has run for so many seconds; None: it needs no more than one.

    Its length is the site's limit, or what is left of the program and ENDS.
    """
    if not outlives(spec, facts):
        return None
    left = max(1.0, _times(spec.resources)[0] - executed)
    return Segment(min(lasts(spec, facts), math.ceil(left) + ENDS), facts.save_rate)


def walltime_of(spec: JobSpec, a: Allocation) -> int:
    """Seconds that the batch job of an attempt may last."""
    return a.segment.walltime if a.segment is not None else _times(spec.resources)[0]


def handover(spec: JobSpec, a: Allocation) -> HandOver | None:
    """What the pilot of an attempt is told, where its program may have to go on in another batch job."""
    return HandOver(_times(spec.resources)[0], a.segment.rate) if a.segment is not None else None


def unsegmented(spec: JobSpec, facts: SiteFacts) -> str:
    """Why a job whose walltime is longer than a batch job there cannot go on in another; empty: it can, or need not."""
    if not outlives(spec, facts):
        return ""
    limit = lasts(spec, facts)
    if facts.max_walltime is not None and limit == facts.max_walltime:
        told = f"walltime {_times(spec.resources)[0]} s exceeds the site's limit of {limit} s"
    else:
        told = f"walltime {spec.resources.walltime} exceeds the job's segment of {spec.resources.segment}"
    why = next(filter(None, (_unsavable(spec, facts), _unsaved(spec, limit, facts.save_rate))), "")
    return f"{told}, and it cannot go on in another batch job: {why}" if why else ""


def _unsavable(spec: JobSpec, facts: SiteFacts) -> str:
    if not spec.image:
        return "it is the check of a site"
    if spec.gang is not None:
        return "it is a gang, whose members cannot all be saved at one moment"
    if spec.hypervisor == "uml":
        return "a guest of User-Mode Linux cannot be saved (ask for hypervisor auto, kvm or tcg)"
    if facts.site is not None and carried(facts.site):
        return "with `control: tcp` its nodes do not see the folder where guests are kept"
    return ""


def _unsaved(spec: JobSpec, limit: int, rate: float) -> str:
    """The whole of it may have to be saved; and a batch job of which saving takes more than half is of little use."""
    guest = parse_size(spec.resources.memory) + parse_size(spec.resources.scratch)
    needed = save_seconds(guest, rate)
    if needed <= limit / 2:
        return ""
    return (
        f"saving {guest >> 20} MiB of memory and scratch may take {needed:.0f} s of its {limit} s, "
        "which is more than half (ask for less memory or scratch)"
    )


def told(spec: JobSpec, facts: SiteFacts) -> str:
    """That it takes several batch jobs there, or is not saved as asked, in words; empty: neither."""
    if spec.checkpoint_interval is not None and facts.site is not None and carried(facts.site):
        return "no checkpoints are made there: with `control: tcp` its nodes do not see the folder for them"
    if not outlives(spec, facts):
        return ""
    limit = lasts(spec, facts)
    count = math.ceil(_times(spec.resources)[0] / limit)
    return f"its walltime takes {count} or more batch jobs of {limit} s; its guest runs under QEMU, which can save it"
