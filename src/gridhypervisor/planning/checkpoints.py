"""Of a job's checkpoints: from which it goes on, where it must go for that, which nobody needs; what cannot be saved.

Pure functions of what is known. What follows for an attempt is `suspension`'s.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from dataclasses import replace

import msgspec

from gridhypervisor.model.records import (
    Allocation,
    AllocationState,
    CheckpointRecord,
    CheckpointState,
    CopyState,
    Job,
    Wish,
)
from gridhypervisor.model.spec import parse_duration
from gridhypervisor.model.wire import MOVES, HypervisorKind, Phase, Status
from gridhypervisor.planning.sites import carried
from gridhypervisor.planning.world import Case, Observed, SiteFacts

MOST_KEPT = 2
"""Good checkpoints of a job that are kept: the newest, and one to fall back on."""

COST = 0.05
"""Of a program's time, at most, for which its guest stands still for its checkpoints."""

THERE = frozenset({CheckpointState.KEPT, CheckpointState.REFUSED})
"""States of a checkpoint that its user may go on from, by itself or by his word."""


def newest_first(checkpoints: Iterable[CheckpointRecord]) -> list[CheckpointRecord]:
    return sorted(checkpoints, key=lambda c: (c.since, c.checkpoint.epoch, c.executed), reverse=True)


def onward(
    job: Job, allocations: Sequence[Allocation], checkpoints: Iterable[CheckpointRecord], sites: Container[str]
) -> CheckpointRecord | None:
    """The checkpoint from which its next attempt goes on; None: it begins at the beginning.

    That is the newest good one of which there is a copy, which may go to any site, or that is at a site that is there:
    if it may go to that site, or asks for another one, where a copy can come. A job that has left a site for another
    does not go back for what is there alone, unless its user has chosen a checkpoint since.
    """
    moved = max((a.times.ended or a.times.since for a in allocations if a.why in MOVES), default=float("-inf"))
    for c in newest_first(c for c in checkpoints if c.state in THERE):
        if c.copy is CopyState.KEPT:
            return c
        if c.state is CheckpointState.KEPT and c.site in sites:
            stays = job.spec.site in ("", c.site)
            if c.since > moved if stays else c.copy is not CopyState.REFUSED:
                return c
    return None


def at_home(case: Case, sites: Container[str]) -> Job:
    """The job as one that asks for the site of the checkpoint from which it goes on, if that is there alone."""
    if not case.checkpoints or (found := onward(case.job, case.allocations, case.checkpoints, sites)) is None:
        return case.job
    if found.copy is CopyState.KEPT or case.job.spec.site:
        return case.job
    return replace(case.job, spec=msgspec.structs.replace(case.job.spec, site=found.site))


def superfluous(
    job: Job,
    allocations: Iterable[Allocation],
    checkpoints: Iterable[CheckpointRecord],
    over: Container[AllocationState],
) -> set[str]:
    """Checkpoints that nobody needs any more: older ones than are kept, and all, once the job has ended.

    One that an attempt is to go on from is needed until that is over; while others come, so are the newest of which
    there is a copy, and one that is being copied.
    """
    used = {a.restore for a in allocations if a.state not in over}
    newest = newest_first(c for c in checkpoints if c.state in THERE)
    if not job.state.final:
        used |= {c.id for c in newest if c.copy is CopyState.WANTED}
        used |= {c.id for c in [c for c in newest if c.copy is CopyState.KEPT][:1]}
    found, good = set(), 0
    for c in newest:
        if job.state.final or good >= MOST_KEPT:
            found.add(c.id)
        good += c.state is CheckpointState.KEPT or c.copy is CopyState.KEPT
    return found - used


def unknown(a: Allocation, checkpoints: Iterable[CheckpointRecord]) -> tuple[str, ...]:
    """Checkpoints that may have been made of an attempt that is over, though nobody ever heard of them."""
    known = {c.id for c in checkpoints}
    asked = range(1, (a.saving.number if a.saving is not None else 0) + 1)
    names = (f"{a.pilot_job}-{each}" for each in ([0] if a.segment is not None else []) + list(asked))
    return tuple(name for name in names if name not in known)


def interval(job: Job, a: Allocation, checkpoints: Iterable[CheckpointRecord]) -> float | None:
    """Seconds between two checkpoints of an attempt; None: its user wants none. As its user says, or longer, so that
    its guest stands still for COST of the time at most, as long as it did for the last one."""
    if job.spec.checkpoint_interval is None:
        return None
    stood = max((c.checkpoint.stood for c in checkpoints if c.entry == a.pilot_job), default=0.0)
    return max(float(parse_duration(job.spec.checkpoint_interval)), stood / COST)


def status_of(sight: Observed) -> Status | None:
    return sight.view.status if sight.view is not None else None


def unsavable(a: Allocation, sight: Observed, facts: SiteFacts | None) -> tuple[str, str] | None:
    """Why the guest of an attempt cannot be saved as far as is known beforehand, and what to do; None: nothing is
    against it."""
    if facts is not None and facts.site is not None and carried(facts.site):
        words = (
            f"{a.site} is configured with `control: tcp`: its nodes do not see the folder where checkpoints are kept"
        )
        return (
            words,
            "let it run to its end, or `ghv move` it to a site whose nodes see the workdir, where it begins anew",
        )
    status = status_of(sight)
    if status is not None and status.hypervisor is not None and status.hypervisor.kind is HypervisorKind.UML:
        words = f"it runs under User-Mode Linux at {a.site}, which cannot be saved"
        return (
            words,
            "let it run to its end; submit such jobs with `hypervisor: tcg` or `kvm` where they are to be saved",
        )
    return None


def unsuspendable(case: Case, facts: SiteFacts | None) -> tuple[str, str] | None:
    """Why a job cannot be suspended, and what to do instead; None: it can. `facts`: of its present site."""
    if (why := _unfit(case.job)) is not None:
        return why
    a = case.current
    if a is None or a.state is not AllocationState.RUNNING:
        ended = a is not None and a.state in (AllocationState.ENDED, AllocationState.COLLECTED)
        if ended and case.job.state.value == "epilog":
            return "its program has ended, and what it made is coming home", f"`ghv wait {case.job.id}`"
        return None
    return unsavable(a, case.sight(a), facts)


def uncheckpointable(case: Case, facts: SiteFacts | None) -> tuple[str, str] | None:
    """Why no checkpoint of a job can be made now, and what to do; None: one can."""
    if (why := _unfit(case.job)) is not None:
        return why
    a = case.current
    if a is None or a.state is not AllocationState.RUNNING:
        return f"it is {case.job.state}, and only a running program can be saved", f"`ghv show {case.job.id}`"
    if a.why in MOVES or case.job.wish is not Wish.RUN:
        return "it is about to leave its site", f"`ghv show {case.job.id}`"
    if a.saving is not None and not a.saving.answered:
        return "it is being saved already", f"`ghv checkpoint list {case.job.id}` shows when it is done"
    sight = case.sight(a)
    if begins(sight):
        return "its guest is not there yet, or has not begun its program", f"`ghv show {case.job.id}`, and this again"
    if ends(sight):
        return "its program has ended, and what it made is coming home", f"`ghv wait {case.job.id}`"
    return unsavable(a, sight, facts)


def begins(sight: Observed) -> bool:
    """Whether there is no program to be saved yet, as its pilot says."""
    status = status_of(sight)
    return status is not None and status.phase in (Phase.PREPARE, Phase.BOOT, Phase.STAGE_IN, Phase.GATHER)


def ends(sight: Observed) -> bool:
    """Whether its program has ended, as its pilot says."""
    status = status_of(sight)
    return status is not None and status.phase in (Phase.STAGE_OUT, Phase.SHUT_DOWN)


def _unfit(job: Job) -> tuple[str, str] | None:
    if job.state.final or job.wish.ends:
        return f"it {'has ended' if job.state.final else 'is being cancelled'}: {job.state}", "submit it again"
    if job.probe:
        return "it is the check of a site, which takes moments", "`ghv cancel` it"
    if job.spec.gang is not None:
        words = "it is one of a gang, whose members cannot all be saved at one moment"
        return words, f"let the gang run to its end, or cancel {job.group} and submit it again later"
    return None
