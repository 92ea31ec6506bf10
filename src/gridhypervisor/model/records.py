"""The records that the store keeps, and the states they pass through. Immutable; a change is a new record.

Every record has an owner and a project, and a version that the store checks when a change is committed. Times are
seconds since the epoch on the controller's clock; a site's or a node's clock never appears in them.

An application's life is one `Job`; its virtual machine is one `Vm`, whose `epoch` only grows; each attempt to run it is
one `Allocation`, held by one `PilotJob` at one site. See docs/never-two-guests.md for why there are four.

    Allocation:

                            ┌──────────────────owner: pilot─────────────────┐  ┌───unheard───▶ FENCING ──over───▶ FENCED
                            │                                               ▼  │                     ▼                 │
    PLANNED ──prolog──▶ SUBMITTING ──accepted──▶ QUEUED ──owner: pilot──▶ RUNNING ──exit sentinel──▶ ENDED             │
       │                    │                      │                        ▲                          │ results home  │
       │ cancelled          └─────────┬────────────┘ cancelled,             │ owner: pilot             ▼               │
       │                              ▼              refused, vanished      │                       COLLECTED          │
       │                          REVOKING ─────────────────────────────────┘                          │ entry removed │
       │                              ▼ owner: controller                                              ▼               │
       └─────────────────────────▶ REVOKED ──────────────────entry removed─────────────────────────▶ CLEANED           │
                                                                                                        ▲              │
                                                                                                        └──────────────┘
"""

from __future__ import annotations

from dataclasses import dataclass, field

from gridhypervisor.model.ledger import Ledger as Ledger
from gridhypervisor.model.ledger import LedgerRow as LedgerRow
from gridhypervisor.model.spec import JobSpec
from gridhypervisor.model.states import ActionKind as ActionKind
from gridhypervisor.model.states import AllocationState as AllocationState
from gridhypervisor.model.states import JobState as JobState
from gridhypervisor.model.states import SiteHealth as SiteHealth
from gridhypervisor.model.states import SiteKind as SiteKind
from gridhypervisor.model.states import Wish as Wish
from gridhypervisor.model.wire import ExitRecord, ImageManifest, NodeReport, Reason


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

    @property
    def probe(self) -> bool:
        """It boots nothing: its pilot looks at its node for `ghv site check`."""
        return not self.spec.image


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
class Site:
    """An account at a site: what the user configured. Credentials stay in the user's own files."""

    name: str
    owner: str
    project: str
    kind: SiteKind
    host: str = ""  # as ssh knows it, an alias perhaps; empty: this machine
    port: int = 0  # 0: as ssh_config has it, or 22
    user: str = ""  # empty: as ssh_config has it, or the same as here
    key: str = ""  # path of a private key; empty: the agent's or the default ones
    agent: str = ""  # path of an agent's socket; empty: that of the environment
    ssh_config: str = ""  # path; empty: the user's own and the system's
    known_hosts: str = ""  # path; empty: the user's own
    workdir: str = ""  # empty: the kind's default
    scratch: str = ""  # node-local folder; empty: the batch job's TMPDIR, or /tmp
    slots: int = 0  # fork: jobs at once; 0: one per core
    max_jobs: int = 0  # jobs of ours in the site's queue at once; 0: the kind's default
    options: dict[str, str] = field(default_factory=dict)  # partition, account, qos, constraint, native
    environment: dict[str, str] = field(default_factory=dict)  # for the batch system's commands
    draining: bool = False  # it gets no new work; what it has goes on
    probed: NodeReport | None = None  # what the newest probe found on its node
    probed_at: float = 0.0
    version: int = 0
