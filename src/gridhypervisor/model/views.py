"""What the API answers with: the records as a user wants to see them. Frozen.

Structs and not dataclasses: every `ghv` makes these classes anew, and msgspec makes them ten times as fast.
"""

from __future__ import annotations

import enum
from typing import Any

import msgspec

from gridhypervisor.model.ledger import Ledger
from gridhypervisor.model.spec import JobSpec
from gridhypervisor.model.states import AllocationState, JobState, SiteHealth, SiteKind, Wish
from gridhypervisor.model.wire import NodeReport, Phase, Reason, Terms, Use

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
    note: str = ""  # one line: what it is doing or waiting for
    site: str = ""
    ended: float | None = None
    exit_code: int | None = None
    reason: Reason | None = None
    message: str = ""
    hint: str = ""


class JobDetail(msgspec.Struct, frozen=True):
    job: JobView
    spec: JobSpec
    attempts: tuple[AttemptView, ...] = ()
    outputs: tuple[str, ...] = ()  # absolute paths of the results, once home
    ledger: Ledger | None = None


class JobRequest(msgspec.Struct, frozen=True):
    """`folder` is where input paths are read from, `destination` where results go; both absolute, on this machine."""

    spec: JobSpec
    folder: str
    destination: str


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
    """One site as the planner weighed it for one job."""

    site: str
    chosen: bool
    verdict: str  # why it was chosen, lost, or cannot take the job
    rank: float | None = None


class Explanation(msgspec.Struct, frozen=True):
    job: str
    state: JobState
    summary: str  # one sentence: what it is waiting for, or how it ended and why
    hint: str = ""
    candidates: tuple[Candidate, ...] = ()
    hypervisor: str = ""  # of the last attempt, and why it was chosen on its node, with the figures; once known


class SiteView(msgspec.Struct, frozen=True):
    name: str
    kind: SiteKind
    address: str  # "this machine" or user@host:port
    health: SiteHealth
    health_why: str = ""
    health_since: float = 0.0
    queued: int = 0
    running: int = 0
    max_jobs: int = 0
    workdir: str = ""
    batch_system: str = ""  # e.g. "slurm 22.05.8"
    draining: bool = False  # it gets no new work
    submissions: str = ""  # how fast jobs go to its batch system, and what holds them up
    probed: NodeReport | None = None  # what the newest probe found on its node
    probed_at: float = 0.0  # seconds since the epoch
    settings: SiteRequest | None = None  # as the user configured it


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


class OperationItem(msgspec.Struct, frozen=True):
    """One line of an operation's follow stream: progress, then one `done` or `error`."""

    kind: str  # progress | done | error
    message: str = ""
    result: Any = None  # with done: what the operation made, e.g. an ImageView or a list of Checks
    problem: Problem | None = None


class Operation(msgspec.Struct, frozen=True):
    id: str


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
    kind: str
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
