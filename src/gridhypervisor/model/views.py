"""What the API answers with: the records as a user wants to see them. Frozen.

Structs and not dataclasses: every `ghv` makes these classes anew, and msgspec makes them ten times as fast.
"""

from __future__ import annotations

import enum
from typing import Any

import msgspec

from gridhypervisor.model.ledger import Ledger
from gridhypervisor.model.spec import GangSpec, JobSpec
from gridhypervisor.model.states import (
    AllocationState,
    CheckpointState,
    CopyState,
    InfrastructureState,
    JobState,
    SiteHealth,
    SiteKind,
    Wish,
)
from gridhypervisor.model.wire import HypervisorKind, NodeReport, Phase, Reason, Terms, Use

PATIENCE = 600
"""Seconds that a probe may take, most of them in the site's queue, unless somebody says otherwise."""


class AttemptView(msgspec.Struct, frozen=True):
    """One allocation."""

    id: str
    epoch: int
    site: str
    entry: str
    batch_id: str
    state: AllocationState
    phase: Phase | None = None  # while the pilot has it
    note: str = ""  # what it is doing or waiting for, in the pilot's or the site's words
    note_age: float = 0.0  # seconds since that was learnt
    node: str = ""
    hypervisor: str = ""  # "qemu 7.2.22, tcg: <why>", once known
    reason: Reason | None = None
    message: str = ""
    boot: str = ""  # "restored from snapshot <key>", or "cold: <why>", once known
    restored: str = ""  # the checkpoint that it went on from; empty: it began at the beginning


class JobView(msgspec.Struct, frozen=True):
    id: str
    name: str
    owner: str
    project: str
    state: JobState
    wish: Wish
    created: float  # seconds since the epoch
    image: str
    image_digest: str
    command: tuple[str, ...]
    destination: str
    phase: Phase | None = None
    note: str = ""  # one line: what it is doing or waiting for; of one that has ended, what keeps its results
    site: str = ""
    ended: float | None = None
    exit_code: int | None = None
    reason: Reason | None = None
    message: str = ""
    hint: str = ""
    group: str = ""  # the array or gang that it is a task of
    member: str = ""  # which of it
    warning: str = ""  # in the answer to its submission: what keeps it from every site, or of its wishes means nothing


class GroupView(msgspec.Struct, frozen=True):
    """An array, a gang, a workflow or an infrastructure, as one."""

    id: str
    name: str
    owner: str
    project: str
    state: JobState  # pending until a job of it has begun, running until all have ended; see records.Group
    wish: Wish
    created: float  # seconds since the epoch
    image: str
    command: tuple[str, ...]
    destination: str
    total: int  # tasks, nodes, or VMs
    made: int  # tasks that have become jobs so far
    counts: dict[str, int]  # of its jobs: how many are in which state
    well: int  # how many are done with exit code 0; of an infrastructure: are ready
    array: str = ""  # its tasks, as they were written
    gang: GangSpec | None = None
    nodes: dict[str, int] = msgspec.field(default_factory=dict)  # of a workflow: how many are in which state
    infrastructure: InfrastructureState | None = None  # of one: how it is
    first_bad: JobView | None = None  # the first that ended otherwise
    note: str = ""  # what keeps it, or went wrong
    rescue: str = ""  # of a workflow that did not succeed: the file that says what of it was done
    exit_code: int | None = None  # of a workflow
    ended: float | None = None
    version: int = 0  # grows with each change of its own
    warning: str = ""  # in the answer to an array's submission, as a job's


class CheckpointView(msgspec.Struct, frozen=True):
    """A saved guest, from which its job can go on."""

    id: str
    job: str
    site: str  # where it is, and where the job goes on from it
    made: float  # seconds since the epoch
    bytes: int  # that it takes there
    executed: float  # seconds that the program had run
    state: CheckpointState
    hypervisor: str = ""
    note: str = ""  # why it was made; or why it could not be taken up, or not copied yet
    copy: CopyState = CopyState.NONE  # sealed, on the service's machine: with it the job may go on at any site


class HandOverView(msgspec.Struct, frozen=True):
    """What it cost that a job went on from batch job to batch job."""

    times: int
    stood: float  # seconds that its guest stood still for it
    double: float  # core-seconds that were billed twice, since the next batch job had begun already


class JobDetail(msgspec.Struct, frozen=True):
    job: JobView
    spec: JobSpec
    attempts: tuple[AttemptView, ...] = ()
    outputs: tuple[str, ...] = ()  # absolute paths of the results, once home
    ledger: Ledger | None = None
    checkpoints: tuple[CheckpointView, ...] = ()  # that are kept, newest first
    handovers: HandOverView | None = None  # None: it did not


class JobRequest(msgspec.Struct, frozen=True):
    """`folder` is where input paths are read from, `destination` where results go; both absolute, on the service's
    machine. Without a folder, paths are the SHA-256 of uploads; without a destination, results stay with the job."""

    spec: JobSpec
    folder: str = ""
    destination: str = ""
    substitute: bool = False  # GridWay's `${JOB_ID}` and its like mean something even though it is no array


class FollowKind(enum.StrEnum):
    JOB = "job"  # the job changed: see job
    OUTPUT = "output"  # the program printed: see stream, offset, data
    END = "end"  # the job has ended and all of its output was sent: see job


class FollowItem(msgspec.Struct, frozen=True):
    """One line of a job's follow stream (newline-delimited JSON)."""

    kind: FollowKind
    job: JobView | None = None
    stream: str = ""  # stdout | stderr
    offset: int = 0
    data: bytes = b""  # base64 in JSON


class Candidate(msgspec.Struct, frozen=True):
    """One site, or one node of it, as the planner weighed it for one job."""

    site: str
    chosen: bool
    verdict: str  # why it was chosen, lost, or cannot take the job
    rank: float | None = None
    node: str = ""
    ready: float | None = None  # seconds that are predicted until the guest is ready there, but for the site's queue


class MemberView(msgspec.Struct, frozen=True):
    """Where a member of a gang is."""

    member: str
    job: str
    state: JobState
    site: str = ""  # of its newest attempt


class Explanation(msgspec.Struct, frozen=True):
    job: str
    state: JobState
    summary: str  # one sentence: what it is waiting for, or how it ended and why
    hint: str = ""
    candidates: tuple[Candidate, ...] = ()
    hypervisor: str = ""  # of the last attempt, and why it was chosen on its node, with the figures; once known
    turn: str = ""  # of a job that waits for a site: whose turn is before its own
    warning: str = ""  # what of its own wishes was passed over: a rank that is no number
    boot: str = ""  # how its guest began: from a snapshot, or cold and why
    group: str = ""  # the gang that it is a member of
    places: dict[str, int] = {}  # of a gang that waits: how many of its members would go to which site now
    members: tuple[MemberView, ...] = ()  # of a gang: all of them


class MatchView(msgspec.Struct, frozen=True):
    """Where a job of such a kind could go now, best first, and why not elsewhere. Nothing is given to it."""

    summary: str  # the site that it would be given, and why; or what it would wait for
    sites: tuple[Candidate, ...] = ()
    nodes: tuple[Candidate, ...] = ()  # that are known; `chosen`: it meets the requirements
    warning: str = ""  # of its rank: where that is no number


class ReplayView(msgspec.Struct, frozen=True):
    """The cycle that gave a job its site last, gone through again from the record of it."""

    job: str
    at: float  # when it was, in seconds since the epoch
    policy: int  # version
    jobs: int  # that wanted a site then
    site: str  # that it was given
    again: str = ""  # that it is given by the replay; empty: none
    differences: tuple[str, ...] = ()  # of all jobs, in words; none: the same plan


class PlannedView(msgspec.Struct, frozen=True):
    """Where a job that waits would go, and when, as things are. Times in seconds since the epoch."""

    job: str
    name: str
    owner: str
    site: str = ""  # empty: no site that there is can take it
    at: float | None = None  # when it would be given to the site
    starts: float | None = None  # when it would run there; None: nobody knows how long the site's queue takes
    why: str = ""
    group: str = ""  # the gang that the job stands for
    places: dict[str, int] = {}  # of a gang: how many of its members go to which site
    ready: float | None = None  # when its guest would be ready; None: as `starts`


class NodeView(msgspec.Struct, frozen=True):
    """What is known of a node, or ("") of a site as a whole."""

    site: str
    node: str
    published: dict[str, Any]  # by attribute, see docs/requirements.md


class SiteView(msgspec.Struct, frozen=True):
    name: str
    kind: SiteKind
    address: str  # "this machine" or user@host:port
    health: SiteHealth
    health_why: str = ""
    health_since: float = 0.0
    queued: int = 0
    running: int = 0
    max_jobs: int = 0  # 0: not known before it has been connected
    workdir: str = ""
    batch_system: str = ""  # e.g. "slurm 22.05.8"
    draining: bool = False  # it gets no new work
    submissions: str = ""  # how fast jobs go to its batch system, and what holds them up
    probed: NodeReport | None = None  # what the newest probe found on its node
    probed_at: float = 0.0  # seconds since the epoch
    rates: dict[HypervisorKind, float] = {}  # of a node's own speed, what a guest gets at the best one that is known
    settings: SiteRequest | None = None  # as the user configured it
    version: int = 0  # grows with each change of its own


class SiteUsage(msgspec.Struct, frozen=True):
    """Who uses how much of the account at a site, as its relay counts over all installations that share it."""

    site: str
    problem: str = ""  # why nobody knows
    lender: Terms | None = None  # None: nobody limits the account
    uses: tuple[Use, ...] = ()


class SiteRequest(msgspec.Struct, frozen=True):
    """A site's configuration; see `records.Site` for what empty fields mean. Paths are absolute, on this machine."""

    name: str
    kind: SiteKind
    host: str = ""
    port: int = 0
    user: str = ""
    key: str = ""
    agent: str = ""
    ssh_config: str = ""
    known_hosts: str = ""
    workdir: str = ""
    scratch: str = ""
    slots: int = 0
    max_jobs: int = 0
    options: dict[str, str] = msgspec.field(default_factory=dict)
    environment: dict[str, str] = msgspec.field(default_factory=dict)


class SiteChange(msgspec.Struct, frozen=True, omit_defaults=True):
    """What to change of a site's configuration. What is not named stays; null restores a field's default, and removes
    an option or a variable."""

    kind: SiteKind | msgspec.UnsetType = msgspec.UNSET
    host: str | msgspec.UnsetType | None = msgspec.UNSET
    port: int | msgspec.UnsetType | None = msgspec.UNSET
    user: str | msgspec.UnsetType | None = msgspec.UNSET
    key: str | msgspec.UnsetType | None = msgspec.UNSET
    agent: str | msgspec.UnsetType | None = msgspec.UNSET
    ssh_config: str | msgspec.UnsetType | None = msgspec.UNSET
    known_hosts: str | msgspec.UnsetType | None = msgspec.UNSET
    workdir: str | msgspec.UnsetType | None = msgspec.UNSET
    scratch: str | msgspec.UnsetType | None = msgspec.UNSET
    slots: int | msgspec.UnsetType | None = msgspec.UNSET
    max_jobs: int | msgspec.UnsetType | None = msgspec.UNSET
    options: dict[str, str | None] | msgspec.UnsetType = msgspec.UNSET
    environment: dict[str, str | None] | msgspec.UnsetType = msgspec.UNSET


class SiteRemoval(msgspec.Struct, frozen=True):
    """A site that was removed, and what it leaves without a place."""

    name: str
    waiting: tuple[str, ...] = ()  # jobs that ask for it, and go nowhere else
    sites: tuple[str, ...] = ()  # that are left


class SiteLogin(msgspec.Struct, frozen=True):
    """The command with which a person lets the service in, to be run in a terminal; empty: somebody has."""

    command: tuple[str, ...]


class Check(msgspec.Struct, frozen=True):
    """One claim about a site, proven or not."""

    claim: str
    holds: bool | None  # None: could not be found out
    evidence: str
    hint: str = ""  # what to do about it


class LayerView(msgspec.Struct, frozen=True):
    role: str
    digest: str
    size: int
    format: str
    mount: str = ""


class ImageView(msgspec.Struct, frozen=True):
    digest: str
    tags: tuple[str, ...]
    size: int  # bytes, all layers
    description: str = ""
    arch: str = "x86_64"
    user: str = "root"
    layers: tuple[LayerView, ...] = ()


class ImageBuildRequest(msgspec.Struct, frozen=True):
    recipe: str  # absolute path of the recipe, on this machine
    tag: str = ""  # default: the recipe's name


class ImageImportRequest(msgspec.Struct, frozen=True):
    path: str  # absolute
    tag: str
    format: str  # qcow2 | raw


class WarmRequest(msgspec.Struct, frozen=True):
    """Have sites make a snapshot ahead of use, for jobs that are to come."""

    like: JobSpec  # its image, resources, network and hypervisor count
    sites: tuple[str, ...] = ()  # none: all
    patience: int = PATIENCE  # seconds for each site


class OperationItem(msgspec.Struct, frozen=True):
    """One line of an operation's follow stream: progress, then one `done` or `error`."""

    kind: str  # progress | done | error
    message: str = ""
    result: Any = None  # with done: what the operation made, e.g. an ImageView or a list of Checks
    problem: Problem | None = None


class Operation(msgspec.Struct, frozen=True):
    id: str
    state: str = "running"  # running | done | failed


class Problem(msgspec.Struct, frozen=True):
    """RFC 9457. `code` is stable and for programs; `detail` and `hint` are for people."""

    title: str  # which operation on which object failed
    status: int  # HTTP
    code: str  # not-found | invalid | conflict | refused | unavailable | internal
    detail: str = ""  # why
    hint: str = ""  # what to do next
    errors: tuple[dict[str, Any], ...] = ()  # one per bad field: file, line, field, problem, allowed


class ServiceView(msgspec.Struct, frozen=True):
    version: str
    pid: int
    installation: str
    started: float
    data: str  # the folder of its data
    jobs_alive: int = 0
    cpu_seconds: float = 0.0
    max_rss: int = 0  # bytes


class EventView(msgspec.Struct, frozen=True):
    sequence: int
    at: float
    owner: str
    project: str
    job: str
    kind: str  # job | attempt | checkpoint | group | site | policy
    subject: str
    before: str
    after: str
    reason: str = ""
    message: str = ""


class ServiceError(Exception):
    """What a backend raises and the client raises again: carries the Problem."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(f"{problem.title}: {problem.detail}" if problem.detail else problem.title)
        self.problem = problem
