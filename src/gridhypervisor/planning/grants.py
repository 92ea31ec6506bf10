"""Grants: under `on_silence: replace` a guest runs on only as long as its pilot's beats are answered. How long a grant
lasts, how often it is renewed, and which allocations get one: pure. Rule 5 of docs/never-two-guests.md says why.

Nothing is asked or sent here: `execution.grants` answers, `agent.grant` counts, `reconcile` says when silence was long
enough.
"""

from __future__ import annotations

from gridhypervisor.model.records import AllocationState, Job
from gridhypervisor.model.spec import SILENCE, parse_duration

BEAT = 10
"""Seconds between beats where nothing asks for more."""

GRANTED = frozenset(
    {AllocationState.SUBMITTING, AllocationState.QUEUED, AllocationState.RUNNING, AllocationState.REVOKING}
)
"""States in which a beat is answered: whose pilot may own it, known or not. From FENCING on there is no grant."""


def grant_of(job: Job) -> int:
    """Seconds that the job's guest may run after a beat that was answered; 0: as long as it likes."""
    return parse_duration(job.spec.silence or SILENCE) if job.spec.on_silence == "replace" and not job.probe else 0


def beat_of(job: Job) -> int:
    """Seconds between the beats of its pilot: six to a grant at least."""
    grant = grant_of(job)
    return min(BEAT, max(1, grant // 6)) if grant else BEAT


def renewal(grant: int) -> float:
    """Seconds from an answer to the next: beats between the two need none, and very many pilots' would cost."""
    return grant / 4
