"""What an attempt is charged with when it is over, and a job's history. Pure; what is kept of it, the store knows."""

from __future__ import annotations

from collections.abc import Sequence

from gridhypervisor.model.accounts import AttemptHistory, Charge, History, Stage
from gridhypervisor.model.records import Allocation, AllocationState, Job, OperationRow
from gridhypervisor.model.replacing import replace
from gridhypervisor.model.wire import ExitRecord, Outcome, Reason
from gridhypervisor.planning.ledger import beside, ledger, operations
from gridhypervisor.planning.past import tenure
from gridhypervisor.planning.world import Case

PROFILES = {"": "single", "a": "array", "g": "gang", "w": "workflow", "i": "infrastructure"}
"""What a job was handed in as, by the first letter of its group."""


def profile(job: Job) -> str:
    return "probe" if job.probe else PROFILES[job.group[:1]]


def charge(job: Job, a: Allocation, others: Sequence[Allocation] = ()) -> Charge:
    """Of an attempt in one of the states of `past.SETTLED`: what it counts for `share` is what is told here. `others`:
    the job's."""
    t, exit = tenure(job, a), a.exit
    reason = exit.reason if exit is not None else a.why
    return Charge(
        allocation=a.id,
        job=job.id,
        owner=job.owner,
        project=job.project,
        site=a.site,
        profile=profile(job),
        reason=str(reason or ""),
        completed=exit is not None and exit.outcome is Outcome.COMPLETED,
        ended=t.ended,
        waited=t.waited if t.waited is not None else _unserved(a, t.ended),
        ran=t.ended - a.times.running if a.times.running is not None else 0.0,
        core_seconds=t.core_seconds,
        double=beside(a, others, t.ended) * job.spec.resources.cpus,
    )


def _unserved(a: Allocation, ended: float) -> float:
    """How long an attempt that never ran was in the site's queue."""
    return ended - a.times.submitting if a.times.submitting is not None else 0.0


def history(case: Case, now: float) -> History:
    """All attempts so far. Of a job that has not ended, as if it did `now`."""
    job = case.job
    attempts = [_so_far(case, a, now) for a in case.allocations]
    rows = ledger(job if job.ended is not None else replace(job, ended=now), attempts, {}).rows
    stages: dict[int, list[Stage]] = {}
    at = job.created
    for row in rows:
        stages.setdefault(row.attempt, []).append(Stage(row.phase, at, row.seconds))
        at += row.seconds
    return History(
        job.id,
        job.name,
        job.created,
        job.ended,
        tuple(
            _attempt(case, a, stages.get(a.epoch, ()), operations(told))
            for a, told in zip(case.allocations, attempts, strict=True)
        ),
    )


def _so_far(case: Case, a: Allocation, now: float) -> Allocation:
    """An attempt that runs, as if it ended now: with what its pilot has told of its phases."""
    view, running = case.sight(a).view, a.times.running
    status = view.status if view is not None else None
    if a.state is not AllocationState.RUNNING or a.exit is not None or status is None or running is None:
        return a
    ending = Outcome.STOPPED, Reason.CANCELLED
    record = ExitRecord(
        status.entry,
        status.epoch,
        status.claim,
        *ending,
        phases=status.phases,
        elapsed=max(status.elapsed, now - running),
        hypervisor=status.hypervisor,
        timings=status.timings,
    )
    return replace(a, exit=record)


def _attempt(case: Case, a: Allocation, stages: Sequence[Stage], done: Sequence[OperationRow]) -> AttemptHistory:
    view = case.sight(a).view
    status = view.status if view is not None else None
    alive = a.state is AllocationState.RUNNING
    return AttemptHistory(
        id=a.id,
        attempt=a.epoch,
        site=a.site,
        node=a.exit.node if a.exit is not None else status.node if status is not None else "",
        batch_id=case.batch_id(a),
        hypervisor=case.hypervisor(a).partition(":")[0],
        state=a.state,
        stages=tuple(stages),
        phase=status.phase if alive and status is not None else None,
        reason=a.exit.reason if a.exit is not None else a.why,
        message=a.exit.message if a.exit is not None else a.note,
        operations=tuple(done),
    )
