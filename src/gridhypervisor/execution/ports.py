"""What the loop needs of the outside, and what the service needs of the loop, as narrow Protocols.

Whoever implements one of them lives in an outer package and is wired up in `app.py`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

from gridhypervisor.execution.meter import Meter
from gridhypervisor.model.access import Answer, Caller, Result, TokenRequest, TokenView, Upload
from gridhypervisor.model.accounts import Accounts, By, History
from gridhypervisor.model.batch import Limits, Listing, Rates, Submission, Submitted
from gridhypervisor.model.capacity import Capacity
from gridhypervisor.model.commit import Birth, Commit, JobRecords, Tally
from gridhypervisor.model.infraviews import (
    ExecRequest,
    ExecView,
    InfrastructurePlan,
    InfrastructureRequest,
    InfrastructureView,
)
from gridhypervisor.model.measures import Measures
from gridhypervisor.model.policy import PolicyRecord, PolicyView, SchedulingPolicy
from gridhypervisor.model.records import AllocationState, Denial, Event, Group, Job, Ledger, Site
from gridhypervisor.model.spec import JobSpec
from gridhypervisor.model.token import Token
from gridhypervisor.model.views import (
    CheckpointView,
    EventView,
    Explanation,
    FollowItem,
    GroupView,
    ImageBuildRequest,
    ImageImportRequest,
    ImageView,
    JobDetail,
    JobRequest,
    JobView,
    MatchView,
    NodeView,
    Operation,
    OperationItem,
    PlannedView,
    ReplayView,
    ServiceView,
    SiteChange,
    SiteLogin,
    SiteRemoval,
    SiteRequest,
    SiteUsage,
    SiteView,
    WarmRequest,
)
from gridhypervisor.model.wire import Command, CommandResult, EntryView, Execute, Input, Layer, Op
from gridhypervisor.model.workflow import Progress, Request
from gridhypervisor.planning.draft import Action
from gridhypervisor.planning.world import Case, Outcome, SiteFacts


class Store(Protocol):
    """Records and events. Synchronous: the loop calls it from one worker thread. Raises StoreError."""

    @property
    def installation(self) -> str:
        """This installation's id: a letter and 8 hex digits, chosen when the store was made."""

    def create_jobs(self, births: Sequence[Birth]) -> list[JobRecords]:
        """Write new jobs, all or none, giving each the next id; a key seen before returns the job of then."""

    def commit(self, commits: Sequence[Commit]) -> list[bool]:
        """One transaction. False for each commit of which a version no longer fits: nothing of that one is written."""

    def alive(self) -> list[JobRecords]:
        """Jobs that are not final, or of which a site may still hold something."""

    def job(self, job: str) -> JobRecords | None: ...

    def jobs(
        self,
        *,
        states: Sequence[str] = (),
        before: str = "",
        group: str | None = None,
        owner: str = "",
        limit: int = 100,
    ) -> list[JobRecords]:
        """Newest first, below the id `before`; of this group, or ("") of none; of this owner, or ("") of all."""

    def job_versions(
        self,
        *,
        states: Sequence[str] = (),
        before: str = "",
        group: str | None = None,
        owner: str = "",
        limit: int = 100,
    ) -> list[tuple[str, int]]:
        """The ids and versions of those that `jobs` gives, much sooner."""

    def these_jobs(self, ids: Sequence[str]) -> list[JobRecords]:
        """Those of these jobs that there are."""

    def states(self, allocations: Sequence[str]) -> dict[str, AllocationState]:
        """How these allocations stand at this moment; one that is not known is left out."""

    def ledger(self, job: str) -> Ledger | None: ...

    def delete_job(self, job: str, event: Event) -> None:
        """Remove its records; its events stay."""

    def was_deleted(self, job: str) -> bool:
        """Whether there was a job of this id of which everything was removed, sites included."""

    def events(self, *, after: int = 0, job: str = "", owner: str = "", limit: int = 1000) -> list[Event]: ...

    def add_event(self, event: Event) -> None: ...

    def reserve(self, count: int) -> int:
        """The first of so many numbers in a row for jobs that are yet to be made."""

    def create_group(
        self, group: Group, event: Event, idempotency_key: str = "", nodes: Mapping[str, str] = MappingProxyType({})
    ) -> Group:
        """Write a new group, giving it the next id; a key seen before returns the group of then.

        `nodes`: where each node of a workflow is, as JSON.
        """

    def put_group(
        self,
        group: Group,
        births: Sequence[Birth] = (),
        events: Sequence[Event] = (),
        nodes: Mapping[str, str] = MappingProxyType({}),
    ) -> bool:
        """Change a group and these nodes, and make these members, all or nothing. False: its version no longer fits."""

    def groups(
        self, *, ids: Sequence[str] = (), alive: bool = False, before: str = "", owner: str = "", limit: int = 100
    ) -> list[Group]:
        """Newest first, below the id `before`; of this owner, or ("") of all."""

    def tally(self, group: str) -> Tally: ...

    def member(self, group: str, name: str) -> JobRecords | None: ...

    def nodes(self, group: str) -> dict[str, str]:
        """Where each node of a workflow is, by name, as JSON."""

    def delete_group(self, group: str, event: Event) -> None:
        """Forget a group that has no members any more."""

    def ended(self, *, since: float, limit: int) -> list[JobRecords]:
        """Jobs that ended after that time; the newest of them, if there are more than the limit."""

    def accounts(self, by: Sequence[By], *, since: float, until: float, owner: str = "", limit: int) -> Accounts:
        """What the attempts that ended in that time have used. May be called beside the loop: it may take a while."""

    def policy(self, version: int | None = None) -> PolicyRecord:
        """The one that was set last, or this version; the defaults, where none was set, or for version 0."""

    def put_policy(self, record: PolicyRecord, event: Event) -> bool:
        """False: its version no longer fits."""

    def sites(self) -> list[Site]: ...

    def put_site(self, site: Site) -> bool:
        """False: its version no longer fits."""

    def remove_site(self, name: str) -> None: ...

    def denials(self, *, since: float) -> list[Denial]:
        """Times when sites did not have what they said, after that time; oldest first."""

    def put_denial(self, denial: Denial, *, forget: float) -> None:
        """Keep one; those of that site from before the time `forget` are not needed any more."""

    def tokens(self) -> list[Token]:
        """Oldest first."""

    def put_token(self, token: Token) -> bool:
        """False: its version no longer fits."""

    def answer(self, owner: str, project: str, key: str) -> Answer | None:
        """What a request of this Idempotency-Key was answered."""

    def put_answers(self, answers: Sequence[Answer], *, forget: float) -> None:
        """Keep these; those from before the time `forget` are not needed any more."""

    def close(self) -> None: ...


class Backend(Protocol):
    """What the API can ask for, by whom it will: who may ask for what is decided before (`service/access.py`).

    `caller`: whose the new things are, or who is meant by "mine"; `owner`: of whom things are wanted, ("") of all.
    Raises ServiceError: its Problem names operation, object and mend.
    """

    @property
    def myself(self) -> Caller:
        """The service's own user."""

    def caller(self, token: str) -> Caller | None:
        """Whose this token is; None: it is none that is good now."""

    async def owner_of(self, name: str) -> str | None:
        """Of a job or a group, by its id, or of a checkpoint; None: there is no such thing."""

    async def answer(self, caller: Caller, key: str) -> Answer | None: ...
    async def keep_answer(self, answer: Answer) -> None: ...
    async def tokens(self) -> list[TokenView]: ...
    async def create_token(self, request: TokenRequest, caller: Caller) -> TokenView: ...
    async def revoke_token(self, token: str) -> TokenView: ...

    async def upload(self, owner: str, sha256: str) -> Upload: ...
    async def add_upload(self, owner: str, sha256: str, offset: int, size: int, data: bytes) -> Upload:
        """`offset`: of `data`; `size`: of the whole."""

    async def results(self, job: str) -> list[Result]: ...
    async def result(self, job: str, path: str, offset: int, limit: int) -> bytes: ...

    async def submit(self, request: JobRequest, idempotency_key: str, caller: Caller) -> JobView: ...
    async def jobs(
        self, *, states: Sequence[str], before: str, group: str | None, owner: str, limit: int
    ) -> list[JobView]: ...
    async def job(self, job: str) -> JobDetail: ...
    async def cancel(self, job: str) -> JobView: ...
    async def delete(self, job: str) -> None: ...
    async def recover(self, job: str) -> JobView: ...
    async def move(self, job: str, to: str) -> JobView: ...
    async def suspend(self, job: str) -> JobView: ...
    async def resume(self, job: str, to: str = "") -> JobView: ...
    async def save(self, job: str) -> JobView: ...
    async def pause(self, job: str, *, undo: bool) -> JobView: ...
    async def checkpoints(self, job: str) -> list[CheckpointView]: ...
    async def delete_checkpoint(self, checkpoint: str) -> None: ...
    async def copy_checkpoint(self, checkpoint: str) -> CheckpointView: ...
    async def restore(self, checkpoint: str) -> JobView: ...
    async def explain(self, job: str) -> Explanation: ...
    async def replay(self, job: str) -> ReplayView: ...
    async def history(self, job: str) -> History: ...
    async def accounting(self, by: Sequence[By], *, since: float, until: float | None, owner: str) -> Accounts: ...
    def follow(self, job: str, *, output: bool) -> AsyncIterator[FollowItem]: ...
    async def log(self, job: str, stream: str, offset: int, limit: int) -> bytes: ...
    async def submit_group(self, request: JobRequest, idempotency_key: str, caller: Caller) -> GroupView: ...
    async def submit_workflow(self, request: Request, idempotency_key: str) -> GroupView: ...
    async def workflow(self, group: str) -> Progress: ...
    async def groups(self, *, before: str, owner: str, limit: int) -> list[GroupView]: ...
    async def group(self, group: str) -> GroupView: ...
    async def member(self, group: str, name: str) -> JobView: ...
    async def cancel_group(self, group: str) -> GroupView: ...
    async def recover_group(self, group: str) -> GroupView: ...
    async def delete_group(self, group: str) -> None: ...
    def follow_group(self, group: str) -> AsyncIterator[GroupView]: ...
    async def apply(self, request: InfrastructureRequest, idempotency_key: str) -> InfrastructureView: ...
    async def scale(self, name: str, counts: dict[str, int]) -> InfrastructureView: ...
    async def plan_infrastructure(self, request: InfrastructureRequest) -> InfrastructurePlan: ...
    async def infrastructures(self, *, before: str, limit: int) -> list[InfrastructureView]: ...
    async def infrastructure(self, name: str) -> InfrastructureView: ...
    def follow_infrastructure(self, name: str) -> AsyncIterator[InfrastructureView]: ...
    async def cancel_infrastructure(self, name: str) -> InfrastructureView: ...
    async def delete_infrastructure(self, name: str) -> None: ...
    async def execute(self, job: str, request: ExecRequest) -> ExecView: ...
    async def events(self, *, after: int, job: str, owner: str, limit: int) -> list[EventView]: ...
    def watch_events(self, *, after: int, job: str, owner: str) -> AsyncIterator[EventView]: ...

    async def images(self) -> list[ImageView]: ...
    async def image(self, reference: str) -> ImageView: ...
    async def build_image(self, request: ImageBuildRequest) -> Operation: ...
    async def import_image(self, request: ImageImportRequest) -> Operation: ...
    async def verify_image(self, reference: str) -> Operation: ...
    async def warm_image(self, request: WarmRequest, owner: str) -> Operation: ...
    async def delete_image(self, reference: str) -> None: ...

    async def sites(self) -> list[SiteView]: ...
    async def site(self, name: str) -> SiteView: ...
    async def add_site(self, request: SiteRequest) -> SiteView: ...
    async def edit_site(self, name: str, change: SiteChange, version: int | None) -> SiteView:
        """`version`: that it must have; None: any."""

    async def drain_site(self, name: str, *, undo: bool) -> SiteView: ...
    async def login_site(self, name: str) -> SiteLogin: ...
    async def remove_site(self, name: str, *, abandon: bool) -> SiteRemoval: ...
    async def check_site(self, name: str, *, patience: int) -> Operation: ...
    async def site_usage(self, name: str) -> SiteUsage: ...

    async def match(self, spec: JobSpec, caller: Caller) -> MatchView: ...
    async def nodes(self, site: str) -> list[NodeView]: ...
    async def plan_ahead(self, limit: int) -> list[PlannedView]: ...
    async def policy(self) -> PolicyView: ...
    async def set_policy(self, policy: SchedulingPolicy, version: int | None, caller: Caller) -> PolicyView:
        """`version`: that the one before must have; None: any."""

    async def all_operations(self) -> list[Operation]: ...
    def follow_operation(self, operation: str) -> AsyncIterator[OperationItem]: ...
    async def stop_operation(self, operation: str) -> None: ...
    async def status(self) -> ServiceView: ...
    async def stop(self) -> None: ...
    async def measures(self) -> Measures: ...


class Steps(Protocol):
    """Told of every step, before and after it, so that tests can stop the controller exactly there."""

    def __call__(self, step: str, /) -> None: ...


class Link(Protocol):
    """A connection to a relay. Every method raises LinkLost or LinkError (model/errors.py)."""

    async def call(
        self, op: Op, args: Mapping[str, object], payload: bytes = b"", *, timeout: float
    ) -> tuple[dict[str, Any], bytes]:
        """One request of the wire, and its reply."""

    async def commands(self, commands: Sequence[Command]) -> list[CommandResult]:
        """Run commands at the site (Op.EXEC)."""

    async def upload(
        self, local: Path, path: str, proof: Mapping[str, object], *, mode: int = 0o600, timeout: float
    ) -> None:
        """Put a local file at `path` below the workdir, resuming where an earlier try stopped; verified by `proof`."""

    async def download(
        self,
        path: str,
        local: Path,
        *,
        sha256: str = "",
        mode: int = 0o600,
        optional: bool = False,
        timeout: float,
    ) -> None:
        """Get a file, whole or not at all (a `.part` beside it is resumed); optional: one that is not there is none."""

    async def lost(self) -> None:
        """Return never; raise LinkLost when the connection ends."""


class Transport(Protocol):
    """The way to one account's relay: places the bundle, starts the relay."""

    @property
    def bundle(self) -> str:
        """Digest of the bundle, whose folder at the site is WORKDIR/bundle/DIGEST."""

    def connect(self, on_note: Callable[[dict[str, Any], bytes], None]) -> AbstractAsyncContextManager[Link]:
        """Connect; on leaving the context the relay's input is closed, and so it ends. Raises LinkLost, LinkError."""


class Driver(Protocol):
    """One kind of batch system: pure functions from requests to command text, and from answers to records."""

    @property
    def listing_lag(self) -> float:
        """Seconds that an accepted job may stay out of a listing."""

    @property
    def spool_lag(self) -> float:
        """Seconds that a file written on a node may stay invisible on the front-end."""

    @property
    def listing_interval(self) -> float:
        """Seconds between listings while jobs wait."""

    @property
    def idle(self) -> float:
        """Seconds that a pilot whose job has ended waits for another at most; 0: it serves no other."""

    @property
    def rates(self) -> Rates: ...

    def max_jobs(self, site: Site) -> int: ...
    def probe(self) -> list[Command]: ...
    def limits(self, results: Sequence[CommandResult]) -> Limits: ...
    def submit(self, jobs: Sequence[Submission], site: Site) -> list[Command]:
        """As few commands as the batch system lets them be."""

    def submitted(self, jobs: Sequence[Submission], results: Sequence[CommandResult]) -> dict[str, Submitted]:
        """What the answers to `submit` mean for each of its jobs, by name."""

    def query(self, installation: str) -> list[Command]: ...

    def listing(self, results: Sequence[CommandResult], as_of: float) -> tuple[Listing | None, str]:
        """All jobs of ours, ended ones too as long as the batch system remembers them; or None and why not."""

    def cancel(self, jobs: Sequence[tuple[str, str]]) -> list[Command]:
        """For (name, batch id) pairs; the id may be empty, then by name."""

    def survey(self) -> list[Command]:
        """What asks for the site's nodes and queue: a few commands, however many nodes there are."""

    def capacity(self, results: Sequence[CommandResult]) -> Capacity | None:
        """What the answers to `survey` tell; None: nothing that makes sense."""


class Tickets(Protocol):
    """A site's certificates, for its relays that listen and the couriers that come; PEM. Raises OSError, ValueError."""

    @property
    def certificate(self) -> str:
        """Of the authority that both sides believe."""

    def relay(self) -> tuple[str, str]:
        """A relay's certificate, and its key."""

    def entry(self, name: str) -> str:
        """What the courier of an entry needs."""


class Layers(Protocol):
    def paths(self, layer: Layer) -> tuple[Path, Path]:
        """A layer's data and chunk list on this machine. Raises InputError if the repository lacks it."""


@dataclass(frozen=True)
class StagedInput:
    local: Path
    described: Input


class Inputs(Protocol):
    async def plan(self, job: Job, progress: Callable[[str], None]) -> Sequence[StagedInput]:
        """Every input of the job as a file on this machine, fetched where it is a URL. Raises InputError."""


class Session(Protocol):
    """One account at one site, as the controller uses it. See `execution.session`."""

    relay_cpu: Meter

    @property
    def facts(self) -> SiteFacts: ...
    @property
    def link(self) -> Link | None:
        """The connection to the site's relay, if there is one now."""

    async def act(self, action: Action, case: Case) -> Outcome:
        """Carry out one action. Never raises: what went wrong is in the outcome."""

    def watch(self, entry: str, offsets: dict[str, int] | None) -> None:
        """Ask for the program's output of an entry from these offsets on; None: no more."""

    async def execute(self, entry: str, number: int, command: Execute) -> None:
        """Have a pilot run a command in its guest; what comes of it, it leaves in the entry. Raises LinkLost,
        LinkError."""

    async def peek(self, entry: str, name: str, offset: int, limit: int) -> bytes:
        """What an entry's file holds now, from the offset on; empty where that cannot be seen."""

    def attend(self, entry: str, urgent: bool | None) -> None:
        """How much the batch system's word on an entry matters from now on; None: no more."""

    async def grant(self, beats: Mapping[str, int]) -> bool:
        """Answer these beats, by entry, all in one message. Whether the site has them."""

    def withdraw(self, entry: str) -> None:
        """Do not submit it any more, if the batch system has not been given it yet. Its submission ends, refused."""

    async def sweep(self, entry: str, batch_id: str) -> None:
        """Remove a stray: cancel its batch job if it has an id, and remove its entry unless a pilot owns it."""

    async def usage(self) -> SiteUsage:
        """Who uses how much of the account, and what its lender allows. Never raises: it says why it does not know."""

    def reconnect(self) -> None:
        """Try again now to connect, where it is waited for that the site answers; not where a person has to log in."""

    async def run(self) -> None:
        """Connect, observe, reconnect, until cancelled."""


class Listener(Protocol):
    """What a session tells the controller. Called on the loop's thread."""

    def site_changed(self, site: str) -> None: ...
    def room_changed(self, site: str) -> None:
        """Jobs that wait for a place may find one there now."""

    def entry_seen(self, site: str, view: EntryView, at: float) -> None: ...
    def listed(self, site: str, listing: Listing) -> None: ...
    def surveyed(self, site: str, capacity: Capacity) -> None: ...
    def silent(self, site: str, why: str) -> None: ...
    def output(self, site: str, entry: str, stream: str, offset: int, data: bytes) -> None: ...
    def frames(self, site: str, note: Mapping[str, Any], frames: bytes) -> None:
        """What the site's relay has of private networks for other sites: its note FRAMES."""
