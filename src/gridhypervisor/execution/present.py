"""Turns records and observations into what a user sees."""

from __future__ import annotations

from gridhypervisor.model.batch import BatchState
from gridhypervisor.model.commit import JobRecords
from gridhypervisor.model.records import Allocation, AllocationState, Event, JobState, Ledger
from gridhypervisor.model.views import AttemptView, EventView, JobDetail, JobView
from gridhypervisor.model.wire import Phase
from gridhypervisor.planning.world import Case, Observed, Seen


def job_view(case: Case, waiting: str = "", progress: str = "") -> JobView:
    job = case.job
    current = case.allocations[-1] if case.allocations else None
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
    )


def job_detail(
    case: Case, ledger: Ledger | None, outputs: tuple[str, ...], now: float, waiting: str = "", progress: str = ""
) -> JobDetail:
    """`outputs`: relative to the job's destination."""
    job = case.job
    stranded = any(a.state is AllocationState.ENDED for a in case.allocations)
    home = tuple(f"{job.destination}/{path}" for path in outputs) if job.state.final and not stranded else ()
    attempts = tuple(_attempt(case, a, now) for a in case.allocations)
    return JobDetail(job_view(case, waiting, progress), job.spec, attempts, home, ledger)


def _attempt(case: Case, a: Allocation, now: float) -> AttemptView:
    sight = case.sight(a)
    pilot_job = case.pilot_jobs.get(a.pilot_job)
    status = sight.view.status if sight.view is not None else None
    exit = a.exit
    note, age = _note(sight, a, now)
    return AttemptView(
        id=a.id,
        epoch=a.epoch,
        site=a.site,
        entry=a.pilot_job,
        batch_id=pilot_job.batch_id if pilot_job is not None else "",
        state=a.state,
        phase=status.phase if status is not None and a.state is AllocationState.RUNNING else None,
        note=note,
        note_age=age,
        node=exit.node if exit is not None else status.node if status is not None else "",
        hypervisor=case.hypervisor(a),
        reason=exit.reason if exit is not None else a.why,
        message=exit.message if exit is not None else a.note,
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
    return Case(records.job, records.vm, records.allocations, {p.name: p for p in records.pilot_jobs})


def event_view(event: Event) -> EventView:
    return EventView(
        event.sequence,
        event.at,
        event.owner,
        event.project,
        event.job,
        event.kind,
        event.subject,
        event.before,
        event.after,
        event.reason,
        event.message,
    )
