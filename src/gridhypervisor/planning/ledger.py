"""Where a job's wall time went: a sum that comes out even.

The controller's times cut the wall time into intervals; within the interval from submission to end, the pilot's own
durations are laid. Two machines' clocks are never compared: only the *length* of the pilot's life is taken from it, and
what is left of the interval is the site's queue (until the controller saw the pilot own the allocation) and middleware
(what nobody claims: noticing, committing, starting the pilot).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from gridhypervisor.model.records import Allocation, Job, Ledger, LedgerRow
from gridhypervisor.model.wire import Phase

MIDDLEWARE = "middleware"

SUSPENDED = "suspended"


def ledger(job: Job, allocations: Sequence[Allocation], own_cpu: Mapping[str, float]) -> Ledger:
    """The ledger of a job that has ended; `own_cpu`: what controller and relay spent on it.

    Rows in seconds, summing to `wall` but for rounding of floats.
    """
    assert job.ended is not None
    rows: list[LedgerRow] = []
    cpu: dict[str, float] = {}
    hypervisor = boot = ""
    mark = job.created
    attempts = sorted(allocations, key=lambda a: a.epoch)
    nexts = [a.times.planned for a in attempts[1:]]
    for a, until in zip(attempts, [*nexts, job.ended], strict=False):
        t, attempt = a.times, a.epoch
        rows += _waited(job, attempt, mark, t.planned)
        submitting = t.submitting
        if submitting is None:
            mark = _over(job, a, until)
            rows.append(LedgerRow(attempt, Phase.PROLOG, mark - t.planned))
            continue
        rows.append(LedgerRow(attempt, Phase.PROLOG, submitting - t.planned))
        ended = t.ended if t.ended is not None else _over(job, a, until)
        span = ended - submitting
        exit = a.exit
        life = min(exit.elapsed, span) if exit is not None else 0.0
        gap = span - life
        queue = min(gap, (t.running if t.running is not None else ended) - submitting)
        rows.append(LedgerRow(attempt, Phase.QUEUE, queue))
        claimed = 0.0
        if exit is not None:
            for p in exit.phases:
                length = max(0.0, min((p.end if p.end is not None else exit.elapsed) - p.start, life - claimed))
                rows.append(LedgerRow(attempt, p.phase, length))
                claimed += length
            cpu["pilot"] = cpu.get("pilot", 0.0) + exit.usage.pilot
            cpu["hypervisor"] = cpu.get("hypervisor", 0.0) + exit.usage.hypervisor
            if exit.usage.program is not None:
                cpu["program"] = cpu.get("program", 0.0) + exit.usage.program
            if exit.hypervisor is not None:
                hypervisor, boot = str(exit.hypervisor), exit.hypervisor.boot
        rows.append(LedgerRow(attempt, MIDDLEWARE, gap - queue + life - claimed))
        mark = ended
        if t.ended is not None:
            mark = _over(job, a, until)
            rows.append(LedgerRow(attempt, Phase.EPILOG, mark - ended))
    if mark < job.ended:
        rows += _waited(job, job.attempts, mark, job.ended)
    return Ledger(job.id, job.ended - job.created, tuple(rows), cpu | dict(own_cpu), hypervisor, boot)


def _waited(job: Job, attempt: int, since: float, until: float) -> list[LedgerRow]:
    """A time without an attempt: the job waited, but for when it was suspended."""
    rows, mark = [], since
    for pause in job.pauses:
        begin, end = max(mark, pause.since), min(until, pause.until if pause.until is not None else until)
        if begin < end:
            rows += [LedgerRow(attempt, Phase.WAIT, begin - mark)] * (begin > mark)
            rows.append(LedgerRow(attempt, SUSPENDED, end - begin))
            mark = end
    return [*rows, LedgerRow(attempt, Phase.WAIT, until - mark)] if mark < until or not rows else rows


def _over(job: Job, a: Allocation, until: float) -> float:
    """When the attempt stopped costing the job time; `until`: the next one began, or the job ended.

    The last one costs time until the job ends. Of the others the clean-up does not: the next attempt goes on beside it.
    """
    if a.epoch == job.attempts:
        return until
    return min(a.times.collected or a.times.since, until)
