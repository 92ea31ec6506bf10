"""A guest that stands still in its place, and goes on there: what can be paused, and the words for it. Pure.

It is asked for as a checkpoint is, by a wish of the next number (`Saving`): so it is asked for until it is answered,
and done once. Whether a guest stands still its pilot says, at every beat; it costs its place, and its walltime goes on.
"""

from __future__ import annotations

from gridhypervisor.model.records import AllocationState, Wish
from gridhypervisor.model.wire import (
    MOVES,
    SAVE_END,
    SAVE_GO_ON,
    SAVE_HAND_OVER,
    SAVE_PAUSE,
    SAVE_UNPAUSE,
    HypervisorKind,
)
from gridhypervisor.planning.checkpoints import begins, ends, status_of
from gridhypervisor.planning.world import Case, Observed

PAUSES = frozenset({SAVE_PAUSE, SAVE_UNPAUSE})

DOING = {
    SAVE_END: "suspending: the guest is being saved at {site}",
    SAVE_GO_ON: "making a checkpoint: the guest is being saved at {site}",
    SAVE_HAND_OVER: "going on in another batch job: the guest is being saved at {site}",
    SAVE_PAUSE: "its guest at {site} is being paused",
    SAVE_UNPAUSE: "its guest at {site} is told to go on",
}
DONE = {SAVE_PAUSE: "its guest stands still in its place", SAVE_UNPAUSE: "its guest goes on"}


def paused(sight: Observed) -> bool:
    """Whether its guest stands still, as its pilot says."""
    status = status_of(sight)
    return status is not None and status.saved is not None and status.saved.paused


def unpausable(case: Case, then: str) -> tuple[str, str] | None:
    """Why the guest of a job cannot be paused, or told to go on, and what to do; None: it can."""
    job, a = case.job, case.allocations[-1] if case.allocations else None
    if job.state.final or job.wish.ends:
        return f"it {'has ended' if job.state.final else 'is being cancelled'}: {job.state}", "submit it again"
    if job.wish is Wish.SUSPEND:
        return "it is suspended, or is about to be", f"`ghv resume {job.id}` has it go on"
    if job.probe or a is None or a.state is not AllocationState.RUNNING:
        return f"it is {job.state}, and only a running guest can stand still in its place", (
            f"`ghv suspend {job.id}` keeps it from beginning"
        )
    if job.spec.gang is not None and then == SAVE_PAUSE:
        return "it is one of a gang, whose others would go on without it", f"cancel {job.group}, or let it run"
    if a.why in MOVES:
        return "it is about to leave its site", f"`ghv show {job.id}`"
    sight = case.sight(a)
    if a.saving is not None and not a.saving.answered:
        return DOING[a.saving.then].format(site=a.site), f"`ghv show {job.id}`, and this again"
    if begins(sight) or ends(sight):
        words = "has not begun its program yet" if begins(sight) else "has ended its program"
        return f"its guest {words}", f"`ghv show {job.id}`"
    status = status_of(sight)
    if status is not None and status.hypervisor is not None and status.hypervisor.kind is HypervisorKind.UML:
        return (
            f"it runs under User-Mode Linux at {a.site}, whose processes take being stopped for a fault",
            "let it run; submit with `hypervisor: tcg` or `kvm` what is to be paused",
        )
    return None
