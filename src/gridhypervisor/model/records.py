"""The records that the store keeps, and the states they pass through. Immutable; a change is a new record.

Every record has an owner and a project, and a version that the store checks when a change is committed. Times are
seconds since the epoch on the controller's clock; a site's or a node's clock never appears in them.

An application's life is one `Job`; its virtual machine is one `Vm`, whose `epoch` only grows; each attempt to run it is
one `Allocation`, held by one `PilotJob` at one site. See docs/never-two-guests.md for why there are four.

    Allocation:

                            ┌──────────────────owner: pilot─────────────────┐
                            │                                               ▼
    PLANNED ──prolog──▶ SUBMITTING ──accepted──▶ QUEUED ──owner: pilot──▶ RUNNING ──exit sentinel──▶ ENDED
       │                    │                      │                        ▲                          │ results home
       │ cancelled          └─────────┬────────────┘ cancelled,             │ owner: pilot             ▼
       │                              ▼              refused, vanished      │                       COLLECTED
       │                          REVOKING ─────────────────────────────────┘                          │ entry removed
       │                              ▼ owner: controller                                              ▼
       └─────────────────────────▶ REVOKED ──────────────────entry removed─────────────────────────▶ CLEANED
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from gridhypervisor.model.spec import JobSpec
from gridhypervisor.model.wire import ExitRecord, ImageManifest, Reason


class JobState(enum.StrEnum):
    """What a user sees. The first five are ways of being alive; the last three are ends."""

    PENDING = "pending"  # in our own queue: no site chosen yet
    PROLOG = "prolog"  # bundle, image and inputs go to the site
    QUEUED = "queued"  # in the site's queue
    RUNNING = "running"  # the pilot has it: see the phase
    EPILOG = "epilog"  # results come home
    DONE = "done"  # the program ran to its end; see the exit code
    FAILED = "failed"  # see the reason, the message and the hint
    CANCELLED = "cancelled"

    @property
    def final(self) -> bool:
        return self in (JobState.DONE, JobState.FAILED, JobState.CANCELLED)


class Wish(enum.StrEnum):
    """What the user wants of a job. Only grows: run, then cancel, then delete."""

    RUN = "run"
    CANCEL = "cancel"
    DELETE = "delete"


class AllocationState(enum.StrEnum):
    PLANNED = "planned"  # the intent is written; the prolog may be under way; nothing was submitted
    SUBMITTING = "submitting"  # the intent to submit is written; whether the site has it is not known
    QUEUED = "queued"  # the batch system has it
    RUNNING = "running"  # a pilot took the ownership
    ENDED = "ended"  # how it ended is known; results may still be at the site
    COLLECTED = "collected"  # the results are home
    REVOKING = "revoking"  # the controller is about to take the ownership
    REVOKED = "revoked"  # the controller took the ownership (or nothing was ever submitted): it can never run
    CLEANED = "cleaned"  # nothing of it is left at the site


class ActionKind(enum.StrEnum):
    """The effects that a plan may ask for. Each is idempotent and named after the entry that it acts on."""

    PROLOG = "prolog"  # bundle, image, inputs and manifest to the site
    SUBMIT = "submit"  # the pilot job to the batch system; once per allocation, ever
    REVOKE = "revoke"  # take the ownership, or learn who has it
    REQUEST_CANCEL = "request-cancel"  # ask the pilot to stop
    BATCH_CANCEL = "batch-cancel"  # ask the batch system to end the job
    LOOK = "look"  # at the entry, through the site's file system, after a given time
    COLLECT = "collect"  # results to the user's folder, logs to the service's
    CLEAN = "clean"  # remove the entry from the site


@dataclass(frozen=True)
class Job:
    id: str  # "j12": counted by the store
    owner: str
    project: str
    name: str
    spec: JobSpec
    destination: str  # absolute folder for the results, on the user's machine
    folder: str  # absolute folder against which the spec's input paths are read
    image: ImageManifest
    image_digest: str
    created: float
    state: JobState = JobState.PENDING
    wish: Wish = Wish.RUN
    reason: Reason | None = None
    message: str = ""
    hint: str = ""
    exit_code: int | None = None
    ended: float | None = None
    attempts: int = 0
    excluded: tuple[str, ...] = ()  # sites that failed it
    recover: int = 0  # how often the user asked to try again what is stuck
    version: int = 0


@dataclass(frozen=True)
class Vm:
    id: str  # "v12"
    owner: str
    project: str
    job: str
    epoch: int = 0  # of the newest allocation; 0: none yet
    version: int = 0


@dataclass(frozen=True)
class PilotJob:
    """One batch job. Found again by its name alone, which is chosen and committed before the submission."""

    name: str  # INSTALLATION-JOB-EPOCH; the entry's name too
    owner: str
    project: str
    site: str
    batch_id: str = ""  # as the batch system names it, once known
    version: int = 0


@dataclass(frozen=True)
class Times:
    """When an allocation reached each state, on the controller's clock. None: not (yet)."""

    planned: float
    submitting: float | None = None
    queued: float | None = None
    running: float | None = None  # when the controller first saw the pilot's ownership
    ended: float | None = None  # when the controller saw how it ended
    collected: float | None = None
    cleaned: float | None = None
    since: float = 0.0  # when the present state was entered


@dataclass(frozen=True)
class Allocation:
    id: str  # "v12.1": the VM and the epoch
    owner: str
    project: str
    job: str
    vm: str
    epoch: int
    pilot_job: str
    site: str
    times: Times
    state: AllocationState = AllocationState.PLANNED
    why: Reason | None = None  # why it is being revoked
    note: str = ""  # the words for it
    exit: ExitRecord | None = None
    version: int = 0


@dataclass(frozen=True)
class Event:
    """One transition, append-only: what changed, from what to what, and why."""

    at: float
    owner: str
    project: str
    job: str
    kind: str  # job | allocation | site | image | service
    subject: str  # the record's id
    before: str
    after: str
    reason: str = ""
    message: str = ""
    sequence: int = 0  # given by the store; only grows


@dataclass(frozen=True)
class LedgerRow:
    """One phase of one attempt, in seconds."""

    attempt: int
    phase: str  # a Phase, or "middleware": what nobody claims
    seconds: float


@dataclass(frozen=True)
class Ledger:
    """Where a job's wall time went. The rows add up to `wall`."""

    job: str
    wall: float  # seconds from acceptance to the end
    rows: tuple[LedgerRow, ...] = ()
    cpu: dict[str, float] = field(default_factory=dict)  # seconds: pilot, hypervisor, relay, controller, program
    hypervisor: str = ""  # e.g. "qemu 7.2.22, tcg"


class SiteKind(enum.StrEnum):
    FORK = "fork"
    SLURM = "slurm"


@dataclass(frozen=True)
class Site:
    """An account at a site: what the user configured. Credentials stay in the user's own files."""

    name: str
    owner: str
    project: str
    kind: SiteKind
    host: str = ""  # empty: this machine
    port: int = 22
    user: str = ""
    key: str = ""  # path of a private key; empty: the agent's or the default ones
    known_hosts: str = ""  # path; empty: the user's own
    workdir: str = ""  # empty: the kind's default
    scratch: str = ""  # node-local folder; empty: the batch job's TMPDIR, or /tmp
    slots: int = 0  # fork: jobs at once; 0: one per core
    max_jobs: int = 0  # jobs of ours in the site's queue at once; 0: the kind's default
    options: dict[str, str] = field(default_factory=dict)  # partition, account, qos, constraint, native
    environment: dict[str, str] = field(default_factory=dict)  # for the batch system's commands
    version: int = 0
