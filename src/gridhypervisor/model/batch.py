"""A batch system's word on a job, in terms that hold for every kind of site."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from math import inf


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
    restarts: int = 0  # how often the site ran it again by itself: then its record may be that of another run


@dataclass(frozen=True)
class Listing:
    """A complete answer of the batch system: a job of ours that it lacks was not there at `as_of`."""

    as_of: float  # controller's clock, when the question was sent
    jobs: dict[str, BatchJob] = field(default_factory=dict)  # by name


@dataclass(frozen=True)
class Carried:
    """What a node needs that does not see the account's workdir."""

    gate: str  # where the relay listens: HOST:FIRST-LAST
    bundle: str  # digest
    ticket: str = field(repr=False)  # the entry's certificate, its key, and whose certificate the relay must have
    patience: int | None = None  # seconds after which a node gives up that does not reach the relay; None: a job's


@dataclass(frozen=True)
class Warm:
    """What lets a pilot serve other jobs when its own has ended well; see `agent/warm.py`."""

    pool: str  # whose entries it may serve: of one user of one installation at one site
    idle: float  # seconds that it waits for one, at most


@dataclass(frozen=True)
class Submission:
    """One pilot job, ready to be put into a batch system's own words."""

    name: str  # the batch job's name and the entry's
    entry: str  # absolute path of the entry at the site
    start: str  # absolute path of the bundle's start script at the site
    scratch: str  # node-local folder; empty: the batch job's TMPDIR, or /tmp
    cpus: int
    memory: int  # bytes of the guest; a driver adds what the hypervisor and the pilot need
    walltime: int  # seconds
    carried: Carried | None = None  # None: the nodes see the workdir
    warm: Warm | None = None  # None: it serves its own job alone


@dataclass(frozen=True)
class Submitted:
    """A batch system's answer to one submission. `accepted` None: it cannot be told whether the job was taken."""

    accepted: bool | None
    batch_id: str = ""
    message: str = ""
    busy: bool = False  # refused for what it has to do now, or has of ours already: it may take the job later


@dataclass(frozen=True)
class Rates:
    """How fast a site's user lets us go there; inf: as fast as it comes."""

    jobs: float = inf  # submitted in a minute
    commands: float = inf  # of the batch system, in a minute


@dataclass(frozen=True)
class Limits:
    """What a probe of the batch system found. None: no limit known."""

    version: str = ""  # e.g. "slurm 22.05.8"
    max_walltime: int | None = None  # seconds
    max_cpus: int | None = None  # of one node
    max_memory: int | None = None  # bytes, of one node
    slots: int | None = None  # jobs that can run at a time
    problem: str = ""  # why the site cannot be used at all; empty: it can
    notes: tuple[str, ...] = ()  # what else people should know, e.g. of reservations
