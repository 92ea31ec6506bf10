"""When a job that has a place should have another. Pure predicates: the words for it, or empty.

Sources: GridWay's template keywords SUSPENSION_TIMEOUT, CPULOAD_THRESHOLD, RESCHEDULING_INTERVAL and
RESCHEDULING_THRESHOLD, and what its scheduler does with them (gw_scheduler_jobs.c). Two rules are stricter: GridWay
moves a job to whatever ranks higher, here the predicted gain must exceed the predicted cost too; and GridWay compares
CPU time with wall time, so that a program that sleeps runs too slowly, here what it got with what it wanted.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Outlook:
    """What is predicted of a job at one place."""

    rate: float  # units of its work a second, whatever they are
    wait: float = 0.0  # seconds before it would go on there
    rank: float = 0.0  # what the job's own `rank` says of the place

    def finish(self, left: float) -> float:
        """Seconds until the work that is left is done."""
        return self.wait + left / self.rate if self.rate > 0 else math.inf


def waits_too_long(queued: float, patience: float) -> str:
    """`queued` seconds in a site's queue, of which it has no more than `patience`; 0: it waits for ever."""
    if patience <= 0 or queued < patience:
        return ""
    return f"it has waited {queued:.0f} s in the queue, and its patience is {patience:.0f} s"


def runs_too_slowly(rate: float, predicted: float, running: float, threshold: float, observe: float) -> str:
    """Whether its rate is below `threshold` (a part of 1) of what was predicted, once it has run `observe` seconds.

    Both rates in the same unit; 0 predicted: nothing is known, so nothing is judged.
    """
    if predicted <= 0 or running < observe or rate >= threshold * predicted:
        return ""
    return f"it runs at {rate / predicted:.0%} of the predicted rate, below {threshold:.0%}"


def worth_moving(left: float, here: Outlook, there: Outlook, cost: float) -> str:
    """Whether a job with `left` units of work should go there: a strictly higher rank, and a gain above the cost.

    gain = left/rate_here − (wait_there + left/rate_there); `cost` in seconds: the way, the boot, and doing again what
    would be lost.
    """
    finish = here.finish(left)
    gain = finish - there.finish(left) if math.isfinite(finish) else math.inf
    if there.finish(left) == math.inf or there.rank <= here.rank or gain <= cost:
        return ""
    ranks = f"it ranks {there.rank:g} there and {here.rank:g} here"
    return f"{ranks}; it would be done {gain:.0f} s sooner, and moving costs {cost:.0f} s"
