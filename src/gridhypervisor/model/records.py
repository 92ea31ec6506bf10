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

from gridhypervisor.model.infrastructure import InfrastructureSpec
from gridhypervisor.model.ledger import Ledger as Ledger
from gridhypervisor.model.ledger import LedgerRow as LedgerRow
from gridhypervisor.model.ledger import OperationRow as OperationRow
from gridhypervisor.model.prediction import Expected as Expected
from gridhypervisor.model.spec import JobSpec
from gridhypervisor.model.states import ActionKind as ActionKind
from gridhypervisor.model.states import AllocationState as AllocationState
from gridhypervisor.model.states import CheckpointState as CheckpointState
from gridhypervisor.model.states import CopyState as CopyState
from gridhypervisor.model.states import InfrastructureState as InfrastructureState
from gridhypervisor.model.states import JobState as JobState
from gridhypervisor.model.states import SiteHealth as SiteHealth
from gridhypervisor.model.states import SiteKind as SiteKind
from gridhypervisor.model.states import Wish as Wish
from gridhypervisor.model.wire import Checkpoint, ExitRecord, ImageManifest, NodeReport, Reason, Service


@dataclass(frozen=True)
class Pause:
    """A time for which a job was suspended. Seconds since the epoch; `until` None: it still is."""

    since: float
    until: float | None = None


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
    group: str = ""  # what it was submitted with: an array, a gang, a workflow or an infrastructure
    member: str = ""  # which of it: the number of a task, the name of a node or of a VM
    pauses: tuple[Pause, ...] = ()  # when it was suspended, in order
    service: Service | None = None  # of a VM of an infrastructure: it runs until it is stopped
    version: int = 0

    @property
    def probe(self) -> bool:
        """It boots nothing: its pilot looks at its node for `ghv site check`."""
        return not self.spec.image


@dataclass(frozen=True)
class Rounds:
    """How far a gang is. A round is one attempt of all members together: each one's allocation of that epoch."""

    begun: int = 0  # the last round whose programs were told to begin
    released: int = 0  # the last round that was given up: whatever is left of it is to end
    failed: int = 0  # rounds that were given up for a fault: retries count these
    over: bool = False  # no other round follows
    why: str = ""  # the last one was given up
    blame: str = ""  # the site where that began; empty: none


@dataclass(frozen=True)
class RoleImage:
    """What a role's VMs boot, found when it was applied."""

    digest: str
    manifest: ImageManifest


@dataclass(frozen=True)
class Blueprint:
    """What an infrastructure is to be. A change replaces it whole."""

    spec: InfrastructureSpec
    images: dict[str, RoleImage] = field(default_factory=dict)  # by role


@dataclass(frozen=True)
class Standing:
    """How far an infrastructure is.

                 all are ready             changed            not all are ready in time, or one is lost
    CREATING ───────────────────▶ READY ◀──────────▶ CHANGING ──────────────────────────────────────▶ DEGRADED
       │ one fails, or not in time  ▲ └───────────────── one is lost ────────────────────────────────▶ │ ▲
       ├────────── keep ────────────┼──────────────────────────────────────────────────────────────────┼─┘
       ▼ rollback, retry            └────────────── all are ready (again) ◀────────────────────────────┘
    UNDOING ──▶ FAILED (or CREATING, once more)            any of them ── its lease is over, its user ends it ──▶
                                                           ENDING ──▶ EXPIRED, CANCELLED
    """

    state: InfrastructureState = InfrastructureState.CREATING
    since: float = 0.0  # when it was entered
    expires: float = 0.0  # when its lease is over
    deadline: float | None = None  # of CREATING and CHANGING: until when all must be ready
    why: str = ""  # what is wrong, or was
    tries: int = 1  # creations
    repaired: float = 0.0  # when a VM that had ended was replaced last


@dataclass(frozen=True)
class Group:
    """Jobs that were submitted as one: an array, a gang, a workflow, or the VMs of a virtual infrastructure. Each is
    made as its time comes.

    DONE: of an array or a gang, each task ran to an end of its program's own, whatever its exit code; of a workflow, it
    succeeded as DAGMan counts; of an infrastructure, its lease is over. FAILED: not so.
    """

    id: str  # "a12" an array, "g12" a gang, "w12" a workflow, "i12" an infrastructure: counted with the jobs
    owner: str
    project: str
    name: str
    destination: str  # as the user gave it: substitutions may stand in it. Of a workflow, empty: each node's folder
    folder: str
    created: float
    spec: JobSpec | None = None  # of an array or a gang: that of its tasks, substitutions not made
    image: ImageManifest | None = None  # of an array or a gang
    image_digest: str = ""
    workflow: str = ""  # of a workflow: `workflow.Request`, as JSON
    state: JobState = JobState.PENDING  # or one of the ends
    wish: Wish = Wish.RUN
    made: int = 0  # of an array or a gang: how many of the tasks have been made, in their order
    rounds: Rounds = Rounds()  # of a gang
    blueprint: Blueprint | None = None  # of an infrastructure
    standing: Standing = Standing()  # of an infrastructure
    aborted: int | None = None  # of a workflow: a node ended it, with this exit code
    rescue: str = ""  # of a workflow: the file that says what of it was done
    exit_code: int | None = None  # of a workflow
    message: str = ""
    ended: float | None = None
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
class Denial:
    """A site said that cores were free, and jobs of ours waited there all the same."""

    site: str
    at: float  # when it was asked, on the controller's clock
    jobs: int


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
class Saving:
    """That a guest is to be saved: the intent, which is committed before its pilot is asked."""

    number: int  # counts up from 1 in each entry
    then: str  # `end`: to be suspended; `go-on`: a checkpoint; `pause`, `unpause`: nothing is saved
    asked: float  # seconds since the epoch
    why: str = ""
    answered: bool = False  # what came of it is known, or nothing can any more
    to: str = ""  # the site where it is to go on; empty: that is not decided by it


@dataclass(frozen=True)
class Segment:
    """One of several batch jobs through which a job goes on that lasts longer than any of them."""

    walltime: int  # seconds, of this batch job
    rate: float  # bytes a second at which its guest is surely saved


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
    restore: str = ""  # the checkpoint that it goes on from; empty: it begins at the beginning
    cpu: str = ""  # the processor that its guest sees; empty: whichever
    copied: bool = False  # not from the checkpoint itself, but from its copy on the service's machine
    saving: Saving | None = None  # the last one that was asked for
    segment: Segment | None = None  # None: its batch job is as long as the job
    ahead: bool = False  # asked for while the one before may still run: no guest before its word
    go: bool = False  # its word: nothing of the one before can run any more
    expected: Expected | None = None  # what was predicted when it was planned
    version: int = 0

    @property
    def untold(self) -> bool:
        """Whether it waits for its word, or will have waited in vain: such an attempt decides nothing."""
        return self.ahead and not self.go


@dataclass(frozen=True)
class CheckpointRecord:
    """A checkpoint as the controller knows it: where it is, and whether it is still of use."""

    id: str  # ENTRY-N, its folder's name at the site
    owner: str
    project: str
    job: str
    entry: str  # that made it
    site: str
    bytes: int  # that it takes there
    executed: float  # seconds that the program had run
    made: float  # when the controller learnt of it
    since: float  # the same, or when its user chose it to go on from: of several the latest is meant
    checkpoint: Checkpoint  # as the pilot described it
    state: CheckpointState = CheckpointState.KEPT
    note: str = ""  # why it was made; or why it could not be taken up
    copy: CopyState = CopyState.NONE
    version: int = 0

    @property
    def over(self) -> bool:
        """Whether nothing is left of it anywhere."""
        return self.state is CheckpointState.GONE and self.copy is CopyState.NONE


@dataclass(frozen=True)
class Event:
    """One transition, append-only: what changed, from what to what, and why."""

    at: float
    owner: str
    project: str
    job: str
    kind: str  # job | allocation | checkpoint | site | policy | image | service
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
