"""A batch system's word on a job, in terms that hold for every kind of site."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field


class BatchState(enum.StrEnum):
    """Total: whatever a batch system says is one of these, and what we do not know is UNKNOWN, never ENDED."""

    PENDING = "pending"
    HELD = "held"
    RUNNING = "running"
    ENDING = "ending"  # completing, cancelling: processes may still be there
    ENDED = "ended"  # the batch system itself says that no process is left
    NODE_LOST = "node-lost"  # it gave the node up: the processes may well be alive there
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class BatchJob:
    id: str
    name: str
    state: BatchState
    reason: str = ""  # the site's own words: why it waits, how it ended
    node: str = ""
    code: int | None = None


@dataclass(frozen=True)
class Listing:
    """A complete answer of the batch system: a job of ours that it lacks was not there at `as_of`."""

    as_of: float  # controller's clock, when the question was sent
    jobs: dict[str, BatchJob] = field(default_factory=dict)  # by name
