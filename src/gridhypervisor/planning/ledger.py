"""Where a job's wall time went: a sum that comes out even.

The controller's times cut the wall time into intervals; within the interval from submission to end, the pilot's own
durations are laid. Two machines' clocks are never compared: only the *length* of the pilot's life is taken from it, and
what is left of the interval is the site's queue (until the controller saw the pilot own the allocation) and middleware
(what nobody claims: noticing, committing, starting the pilot).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gridhypervisor.model.records import Allocation, Job, Ledger, LedgerRow, OperationRow, Times
from gridhypervisor.model.replacing import replace
from gridhypervisor.model.wire import Phase, Reason, Timing
from gridhypervisor.planning.past import timings

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
    attempts = sorted((a for a in allocations if not a.untold), key=lambda a: a.epoch)
    # The job has begun no other attempt after the last of them.
    final = attempts[-1].epoch if attempts and max(a.epoch for a in allocations) >= job.attempts else 0
    for number, each in enumerate(attempts):
        # Until the next one that was not asked for beside it.
        until = next((b.times.planned for b in attempts[number + 1 :] if not b.ahead), job.ended)
        a = replace(each, times=_since(each, mark))
        t, attempt = a.times, a.epoch
        rows += _waited(job, attempt, mark, t.planned)
        submitting = t.submitting
        if submitting is None:
            mark = _over(a, until, last=a.epoch == final)
            rows.append(LedgerRow(attempt, Phase.PROLOG, mark - t.planned))
            continue
        rows.append(LedgerRow(attempt, Phase.PROLOG, submitting - t.planned))
        ended = t.ended if t.ended is not None else _over(a, until, last=a.epoch == final)
        span = ended - submitting
        exit = a.exit
        life = min(exit.elapsed, span) if exit is not None else 0.0
        gap = span - life
        queue = min(gap, (t.running if t.running is not None else ended) - submitting)
        rows.append(LedgerRow(attempt, Phase.QUEUE, queue))
        claimed = 0.0
        if exit is not None:
            # Of a successor, what it did beside the attempt before it took the job no time.
            beside = exit.elapsed - life if a.ahead else 0.0
            for p in exit.phases:
                end = p.end if p.end is not None else exit.elapsed
                length = max(0.0, min(end - max(p.start, beside), life - claimed))
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
            mark = _over(a, until, last=a.epoch == final)
            rows.append(LedgerRow(attempt, Phase.EPILOG, mark - ended))
    if mark < job.ended:
        rows += _waited(job, job.attempts, mark, job.ended)
    done = tuple(row for a in attempts for row in operations(a))
    return Ledger(job.id, job.ended - job.created, tuple(rows), cpu | dict(own_cpu), hypervisor, boot, done)


def operations(a: Allocation) -> list[OperationRow]:
    """What was done for an attempt that takes its time by its size, with how long was predicted for that size."""
    kind = a.exit.hypervisor.kind if a.exit is not None and a.exit.hypervisor is not None else None

    def predicted(t: Timing) -> float | None:
        return a.expected.of(t.kind, kind, t.bytes, t.load) if a.expected is not None else None

    return [OperationRow(a.epoch, t.kind, t.bytes, t.seconds, predicted(t), t.load) for t in timings(a)]


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


def _since(a: Allocation, mark: float) -> Times:
    """The times of an attempt, as far as it took the job's: of a successor, from the end of the one before on."""
    if not a.ahead:
        return a.times
    t = a.times

    def later(at: float | None) -> float | None:
        return None if at is None else max(mark, at)

    return replace(
        t, planned=max(mark, t.planned), submitting=later(t.submitting), running=later(t.running),
        ended=later(t.ended), collected=later(t.collected), since=max(mark, t.since),
    )  # fmt: skip


@dataclass(frozen=True)
class HandOvers:
    """What it cost that a job went on from batch job to batch job."""

    times: int = 0
    stood: float = 0.0  # seconds that its guest stood still, from its saving on until it went on, or now
    double: float = 0.0  # core-seconds that were billed twice: a successor was there while the one before it ran


def handovers(job: Job, allocations: Sequence[Allocation], now: float) -> HandOvers:
    """Of all its attempts so far. Each interval is between two moments of the controller's clock, or of one pilot's,
    which is taken to have begun when the controller saw it own the allocation.
    """
    attempts = sorted(allocations, key=lambda a: a.epoch)
    told = [a for a in attempts if not a.untold]
    times, stood = 0, 0.0
    for a, b in zip(told, [*told[1:], None], strict=False):
        if (
            a.exit is None
            or a.exit.checkpoint is None
            or a.exit.reason is not Reason.HAND_OVER
            or a.times.ended is None
        ):
            continue
        times += 1
        stood += sum(a.exit.checkpoint.took.values())
        if b is not None and b.times.running is not None and b.exit is not None:
            began = next((p.start for p in b.exit.phases if p.phase is Phase.EXECUTE), b.exit.elapsed)
            stood += max(0.0, b.times.running + began - a.times.ended)
        elif b is None:
            stood += now - a.times.ended
    double = sum(beside(a, attempts, now) for a in attempts) * job.spec.resources.cpus
    return HandOvers(times, stood, double)


def beside(a: Allocation, others: Sequence[Allocation], now: float) -> float:
    """Seconds for which an attempt that was asked for ahead has been there beside the one that it was to follow."""
    if not a.ahead or a.times.running is None:
        return 0.0
    ends = [x.times.ended for x in others if x.epoch < a.epoch and not x.untold]  # by epoch
    until = [end for end in (a.times.ended, *ends[-1:]) if end is not None]
    return max(0.0, min(until, default=now) - a.times.running)


def _over(a: Allocation, until: float, *, last: bool) -> float:
    """When the attempt stopped costing the job time; `until`: the next one began, or the job ended.

    The last one costs time until the job ends. Of the others the clean-up does not: the next attempt goes on beside it.
    """
    if last:
        return until
    return min(a.times.collected or a.times.since, until)
