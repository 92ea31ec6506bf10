"""Turns records and observations into what a user sees."""

from __future__ import annotations

import os

from gridhypervisor.model.arrays import tasks_of
from gridhypervisor.model.batch import BatchState
from gridhypervisor.model.commit import JobRecords, Tally
from gridhypervisor.model.records import (
    Allocation,
    AllocationState,
    CheckpointRecord,
    Event,
    Group,
    Job,
    JobState,
    Ledger,
)
from gridhypervisor.model.views import (
    AttemptView,
    CheckpointView,
    EventView,
    GroupView,
    HandOverView,
    JobDetail,
    JobView,
    MemberView,
    PlannedView,
)
from gridhypervisor.model.wire import MOVES, Outcome, Phase
from gridhypervisor.planning.checkpoints import THERE, newest_first
from gridhypervisor.planning.forecast import Forecast
from gridhypervisor.planning.infrastructures import wanted
from gridhypervisor.planning.ledger import HandOvers, handovers
from gridhypervisor.planning.world import Case, Observed, Seen


def job_view(case: Case, waiting: str = "", progress: str = "") -> JobView:
    job = case.job
    current = case.current
    phase: Phase | None = None
    note = ""
    if current is not None and not job.state.final:
        status = case.sight(current).view
        if job.state is JobState.RUNNING and status is not None and status.status is not None:
            phase, note = status.status.phase, status.status.note
        elif job.state in (JobState.PROLOG, JobState.EPILOG):
            note = progress
    if not job.state.final:
        note = waiting or note
    elif _stranded(case):
        note = waiting or "bringing the results home"
    return JobView(
        id=job.id,
        name=job.name,
        owner=job.owner,
        project=job.project,
        state=job.state,
        wish=job.wish,
        created=job.created,
        image=job.spec.image,
        image_digest=job.image_digest,
        command=job.spec.command,
        destination=job.destination,
        phase=phase,
        note=note,
        site=current.site if current is not None else "",
        ended=job.ended,
        exit_code=job.exit_code,
        reason=job.reason,
        message=job.message,
        hint=job.hint,
        group=job.group,
        member=job.member,
    )


def group_view(group: Group, tally: Tally, first_bad: JobView | None, note: str, nodes: dict[str, int]) -> GroupView:
    """`nodes`: of a workflow, how many are in which state."""
    begun = tally.states.keys() - {JobState.PENDING}
    return GroupView(
        id=group.id,
        name=group.name,
        owner=group.owner,
        project=group.project,
        state=JobState.RUNNING if begun and not group.state.final else group.state,
        wish=group.wish,
        created=group.created,
        image=group.spec.image if group.spec is not None else "",
        command=group.spec.command if group.spec is not None else (),
        destination=group.destination,
        total=_total(group, nodes),
        made=group.made,
        counts={str(state): count for state, count in tally.states.items()},
        well=tally.well,
        array=group.spec.array if group.spec is not None else "",
        gang=group.spec.gang if group.spec is not None else None,
        infrastructure=group.standing.state if group.blueprint is not None else None,
        nodes=nodes,
        first_bad=first_bad,
        note=note or group.message or group.rounds.why or group.standing.why,
        rescue=group.rescue,
        exit_code=group.exit_code,
        ended=group.ended,
        version=group.version,
    )


def _total(group: Group, nodes: dict[str, int]) -> int:
    if group.blueprint is not None:
        return len(wanted(group.blueprint.spec))
    return len(tasks_of(group.spec)) if group.spec is not None else sum(nodes.values())


def member_view(case: Case) -> MemberView:
    """A member of a gang."""
    job, last = case.job, case.current
    return MemberView(job.member, job.id, job.state, last.site if last is not None else "")


def planned_view(job: Job, ahead: Forecast) -> PlannedView:
    """What is foreseen of a job, or of the gang that it leads."""
    group = job.group if job.spec.gang is not None else ""
    name = job.name.removesuffix(f"[{job.member}]") if group else job.name
    ready = ahead.starts + ahead.ready if ahead.starts is not None and ahead.ready is not None else None
    return PlannedView(
        job.id, name, job.owner, ahead.site, ahead.at, ahead.starts, ahead.why, group, dict(ahead.places), ready
    )


def job_detail(
    case: Case, ledger: Ledger | None, outputs: tuple[str, ...], now: float, waiting: str = "", progress: str = ""
) -> JobDetail:
    """`outputs`: relative to the job's destination."""
    job = case.job
    named = (job.spec.destinations.get(path, path) for path in outputs)
    places = tuple(os.path.normpath(os.path.join(job.destination, name)) for name in named)
    home = places if job.state.final and not _stranded(case) else ()
    attempts = tuple(_attempt(case, a, now) for a in case.allocations)
    kept = tuple(checkpoint_view(c) for c in newest_first(c for c in case.checkpoints if c.state in THERE))
    cost = handovers(job, case.allocations, now)
    told = HandOverView(cost.times, cost.stood, cost.double) if cost != HandOvers() else None
    return JobDetail(job_view(case, waiting, progress), job.spec, attempts, home, ledger, kept, told)


def checkpoint_view(c: CheckpointRecord) -> CheckpointView:
    hypervisor = f"{c.checkpoint.program}, {c.checkpoint.kind}"
    return CheckpointView(c.id, c.job, c.site, c.made, c.bytes, c.executed, c.state, hypervisor, c.note, c.copy)


def _stranded(case: Case) -> bool:
    """Whether results of it are still at a site."""
    return any(a.state is AllocationState.ENDED for a in case.allocations)


def _attempt(case: Case, a: Allocation, now: float) -> AttemptView:
    sight = case.sight(a)
    status = sight.view.status if sight.view is not None else None
    exit = a.exit
    note, age = _note(sight, a, now)
    leaves = a.why in MOVES and (exit is None or exit.outcome is not Outcome.COMPLETED)
    return AttemptView(
        id=a.id,
        epoch=a.epoch,
        site=a.site,
        entry=a.pilot_job,
        batch_id=case.batch_id(a),
        state=a.state,
        phase=status.phase if status is not None and a.state is AllocationState.RUNNING else None,
        note=note,
        note_age=age,
        node=exit.node if exit is not None else status.node if status is not None else "",
        hypervisor=case.hypervisor(a),
        boot=case.boot(a),
        reason=exit.reason if exit is not None and not leaves else a.why,
        message=exit.message if exit is not None and not leaves else a.note,
        restored=a.restore,
    )


def _note(sight: Observed, a: Allocation, now: float) -> tuple[str, float]:
    """The last word on an attempt, from the pilot while it runs and from the site before, with its age in seconds."""
    if a.state is AllocationState.RUNNING and sight.view is not None and sight.view.status is not None:
        return sight.view.status.note, now - sight.view_at
    if isinstance(sight.batch, Seen) and sight.batch.job.state in (BatchState.PENDING, BatchState.HELD):
        return sight.batch.job.reason, now - sight.batch.since
    return "", 0.0


def case_of(records: JobRecords) -> Case:
    """A job that is no longer planned, as the store remembers it."""
    pilot_jobs = {p.name: p for p in records.pilot_jobs}
    return Case(records.job, records.vm, records.allocations, pilot_jobs, checkpoints=records.checkpoints)


_KINDS = {"allocation": "attempt"}
"""Events whose records users know by another name."""


def event_view(event: Event) -> EventView:
    return EventView(
        event.sequence,
        event.at,
        event.owner,
        event.project,
        event.job,
        _KINDS.get(event.kind, event.kind),
        event.subject,
        event.before,
        event.after,
        event.reason,
        event.message,
    )
