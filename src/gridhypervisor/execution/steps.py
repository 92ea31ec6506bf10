"""The steps at which a controller can die: before and after each of its commits, and before and after each action.

It names them, so that tests can stop the controller exactly there, at each of them, and demand that whoever comes after
brings every job to its one end.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum

from gridhypervisor.model.commit import Record
from gridhypervisor.model.records import ActionKind, Allocation, AllocationState, CheckpointRecord, Job, Wish
from gridhypervisor.planning.draft import TRANSITIONS
from gridhypervisor.planning.world import Case

UNBORN = "none"
"""The state that an allocation has before it is planned."""


class Still(StrEnum):
    """The commits that move no allocation."""

    BIRTH = "birth"  # of a job
    WISH_CANCEL = f"wish-{Wish.CANCEL}"
    WISH_DELETE = f"wish-{Wish.DELETE}"
    WISH_SUSPEND = f"wish-{Wish.SUSPEND}"
    WISH_RUN = f"wish-{Wish.RUN}"  # of one that was suspended
    RECOVER = "recover"
    DEPARTURE = "departure"  # an attempt is to leave its site, which the next step acts on
    END = "end"  # of a job of which no site has anything, or the site still has what it had
    GO = "go"  # the word for an attempt that was asked for ahead
    SAVING = "saving"  # a guest is to be saved, or it is known what came of that
    CHECKPOINT = "checkpoint"  # what becomes of one
    BATCH_ID = "batch-id"  # learned late
    REMOVAL = "removal"  # of a job's records
    GROUP = "group"  # of an array or a gang: itself, or with tasks that are made
    BEGIN = "gang-begin"  # all of a gang are ready
    RELEASE = "gang-release"  # a round of a gang is given up


COMMITS: tuple[str, ...] = (
    f"{UNBORN}-{AllocationState.PLANNED}",
    *sorted(f"{before}-{after}" for before, after in TRANSITIONS),
    *Still,
)

STEPS: tuple[str, ...] = tuple(
    sorted(
        [f"{when}-commit:{commit}" for when in ("before", "after") for commit in COMMITS]
        + [f"{when}:{kind}" for when in ("before", "after") for kind in ActionKind]
    )
)


def no_steps(step: str) -> None:
    """Nobody wants to know."""


def commits(case: Case, records: Iterable[Record]) -> list[str]:
    """What these records of a plan are to the case that they were planned for, in the words of `COMMITS`."""
    states = {a.id: a.state for a in case.allocations}
    savings = {a.id: a.saving for a in case.allocations}
    told = {a.id: a.go for a in case.allocations}
    kinds = {type(r) for r in records}
    moves = [
        f"{states.get(r.id, UNBORN)}-{r.state}"
        if states.get(r.id) is not r.state
        else Still.GO
        if r.go and not told.get(r.id)
        else Still.SAVING
        if r.saving != savings.get(r.id)
        else Still.DEPARTURE
        for r in records
        if isinstance(r, Allocation)
    ]
    rest = Still.END if Job in kinds else Still.CHECKPOINT if CheckpointRecord in kinds else Still.BATCH_ID
    return moves or [rest]
