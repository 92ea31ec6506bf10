"""What the planner is told: one job's records with what was observed of them, and the facts of the sites.

Observations live in memory only. After a restart they are all unknown, and the planner must decide rightly even so.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from gridhypervisor.model.batch import BatchJob
from gridhypervisor.model.capacity import Capacity
from gridhypervisor.model.records import ActionKind, Allocation, CheckpointRecord, Job, PilotJob, Rounds, Site, Vm
from gridhypervisor.model.replacing import replace
from gridhypervisor.model.wire import (
    LEAST_RATE,
    NO_SHARE,
    EntryView,
    HypervisorUsed,
    Lending,
    OwnerRecord,
    Reason,
    Share,
)


@dataclass(frozen=True)
class Seen:
    """The batch system lists it, in this state since the listing asked for at `since`."""

    job: BatchJob
    since: float


@dataclass(frozen=True)
class Absent:
    """`times` complete listings in a row, the first asked for at `first` and the last at `as_of`, lacked it."""

    first: float
    as_of: float
    times: int


@dataclass(frozen=True)
class Unknown:
    """No complete listing since this controller started, or since the site fell silent."""

    why: str = ""


Batch = Seen | Absent | Unknown


class Result(enum.StrEnum):
    OK = "ok"
    REFUSED = "refused"  # it will not work however often it is tried: the message says why
    UNKNOWN = "unknown"  # it may have worked or not, or may work later


@dataclass(frozen=True)
class Outcome:
    """What is known of an action after it returned. Absent: it never ran under this controller."""

    result: Result
    at: float
    tries: int = 1
    reason: Reason | None = None
    message: str = ""
    hint: str = ""
    owner: OwnerRecord | None = None  # of REVOKE: who owns the allocation now
    batch_id: str = ""  # of SUBMIT
    discarded: tuple[str, ...] = ()  # of DISCARD: checkpoints that are gone
    copied: str = ""  # of COPY and ERASE: the checkpoint whose copy it was about


@dataclass(frozen=True)
class Observed:
    """What is known of one allocation beyond its record."""

    view: EntryView | None = None
    view_at: float = 0.0  # when that was received
    batch: Batch = Unknown()
    outcomes: Mapping[ActionKind, Outcome] = field(default_factory=dict)
    busy: frozenset[ActionKind] = frozenset()
    news_at: float = 0.0  # when the pilot was last seen to have said something new
    granted_at: float = 0.0  # when the newest beat came that was answered
    unreadable_at: float | None = None  # since when there is an `owner` that cannot be read
    bearer: Batch = Unknown()  # of its host, where it has one

    @property
    def host(self) -> str:
        """The entry with whose batch job its pilot came, where that is another; else empty."""
        owner = self.view.owner if self.view is not None else None
        return owner.host if owner is not None and owner.by == "pilot" else ""

    @property
    def run(self) -> Batch:
        """What the batch system says of the batch job in which its guest runs, or may begin to run."""
        return self.bearer if self.host else self.batch


UNSEEN = Observed()
"""Of an entry of which nothing is known (yet)."""


@dataclass(frozen=True)
class Stay:
    """Whether an attempt should leave its site for another, as it was weighed last; see `planning.moves`."""

    leave: Reason | None = None  # one of `MOVES`; None: it stays
    words: str = ""  # why it should leave; or why it stays, though it would rather not
    again: float | None = None  # when to weigh it again; None: when something happens


STAYS = Stay()


@dataclass(frozen=True)
class Gang:
    """What a member is told of its gang; see `gangs`."""

    rounds: Rounds = field(default_factory=Rounds)
    complete: bool = False  # all programs of this round have ended by themselves, and their results are home
    roster: str = ""  # who all members are, for their guests; empty: not known (yet)


@dataclass(frozen=True)
class Case:
    """One job, whole. `allocations` by epoch; `pilot_jobs` and `observed` by entry name."""

    job: Job
    vm: Vm
    allocations: tuple[Allocation, ...] = ()
    pilot_jobs: Mapping[str, PilotJob] = field(default_factory=dict)
    observed: Mapping[str, Observed] = field(default_factory=dict)
    held: str = ""  # why it may not begin yet: what it is to run after
    futile: str = ""  # why it never can
    gang: Gang = Gang()  # of a member of one
    cpu: Mapping[str, float] = field(default_factory=dict)  # CPU seconds spent on it here so far: controller, relay
    stay: Stay = STAYS  # of its newest allocation
    checkpoints: tuple[CheckpointRecord, ...] = ()  # in the order in which they were made

    @property
    def current(self) -> Allocation | None:
        """The attempt that decides what becomes of the job: the newest, but for one that waits for its word."""
        return next((a for a in reversed(self.allocations) if not a.untold), None)

    @property
    def newest(self) -> Allocation:
        """The same, of a job that has one."""
        assert self.current is not None
        return self.current

    def sight(self, allocation: Allocation) -> Observed:
        return self.observed.get(allocation.pilot_job, UNSEEN)

    def batch_id(self, allocation: Allocation) -> str:
        """The batch job in which it runs, or waits to: as the batch system names it, or by its entry's name where
        another's is not known better; empty before it is known."""
        sight, pilot_job = self.sight(allocation), self.pilot_jobs.get(allocation.pilot_job)
        if host := sight.host or (allocation.exit.host if allocation.exit is not None else ""):
            return sight.bearer.job.id if isinstance(sight.bearer, Seen) else host
        return pilot_job.batch_id if pilot_job is not None else ""

    def hypervisor(self, allocation: Allocation) -> str:
        """What ran its guest, or runs it, and why; empty before that is known."""
        used = self._used(allocation)
        return "" if used is None else f"{used}: {used.why}".removesuffix(": ")

    def boot(self, allocation: Allocation) -> str:
        """How its guest began, from a snapshot or cold and why; empty before that is known."""
        used = self._used(allocation)
        return "" if used is None else used.boot

    def _used(self, allocation: Allocation) -> HypervisorUsed | None:
        sight = self.sight(allocation)
        if allocation.exit is not None:
            return allocation.exit.hypervisor
        return sight.view.status.hypervisor if sight.view is not None and sight.view.status is not None else None


@dataclass(frozen=True)
class SiteFacts:
    """One site as the planner sees it now. Lags in seconds, as the site's driver declares them."""

    name: str
    up: bool
    why: str = ""  # why it is not up
    max_jobs: int = 1  # of ours, queued and running; 0: nobody knows, as it was never connected
    alive: int = 0  # allocations that hold, or may hold, a place there
    max_walltime: int | None = None  # seconds; None: no limit known
    max_cpus: int | None = None
    max_memory: int | None = None  # bytes, of one job
    slots: int | None = None  # jobs that can run at a time; None: not known
    listing_lag: float = 0.0  # how long a submission may stay out of a listing
    spool_lag: float = 0.0  # how long a file written on a node may stay invisible to the relay
    draining: bool = False  # the user wants no new work there
    busy: str = ""  # why its batch system takes no jobs now, though it answers
    login: bool = False  # it is not up until a person has logged in
    lending: Lending | None = None  # what its relay said last; None: nobody limits the account
    lacks: frozenset[str] = frozenset()  # hypervisors that did not work on the node that was probed
    bundle: str = ""  # digest of what guests would be taken up with there; empty: not known
    watched: float = 0.0  # since when this controller looks after it, whether it has answered or not
    site: Site | None = None  # as it is configured, and what the newest probe found; None: nobody says
    capacity: Capacity | None = None  # what it says that it has, and has free; None: it has not said, or long ago
    credit: float = 1.0  # how far it is to be believed of that, 0 to 1: see `planning.credit`
    save_rate: float = LEAST_RATE  # bytes a second at which guests are surely saved there: see `planning.segments`
    wait: float | None = None  # seconds that the latest jobs waited in its queue; None: there were none
    own: Share = NO_SHARE  # of the allocations counted in `alive`: the relay may not know of all of them yet

    @cached_property
    def recorded(self) -> SiteFacts:
        """As it may be written down: without the environment of its commands, which may hold secrets, and without its
        nodes. The same each time, which is soon compared."""
        site = replace(self.site, environment={}) if self.site is not None else None
        return replace(self, capacity=None, site=site)

    @property
    def open(self) -> bool:
        """Whether a job may begin there, if there is a place."""
        return self.up and not self.draining and not self.busy

    @property
    def silence(self) -> str:
        """Why it is not up, and what to do, for the user."""
        if self.login:
            return f"needs you to log in: `ghv site login {self.name}`"
        return f"does not answer: {self.why}" if self.why else "is not connected yet"

    @property
    def silence_in_short(self) -> str:
        """The same for a line of a list, where many jobs may wait for the site: why it is silent it says itself."""
        if self.login or not self.why:
            return self.silence
        return f"does not answer (`ghv site show {self.name}` says why)"


@dataclass(frozen=True)
class Policy:
    """Bounds, in seconds unless said otherwise."""

    retry_first: float = 1.0  # before an action is tried again; doubles
    retry_most: float = 30.0
    clean_patience: float = 10.0  # a job's end waits that long for the site's clean-up
    stop_patience: float = 45.0  # that a pilot may say nothing after a cancel, before the batch system is to end it
    fence_margin: float = 120.0  # beyond its walltime, when a guest that nobody can see is surely gone
    grant_margin: float = 30.0  # beyond its grant, when a guest that nobody can see is surely gone
    collect_tries: int = 5  # (a number) to bring results home that will not come, before the job ends without them
    free_losses: int = 2  # (a number) submissions lost before anybody had the job, that cost it no retry
    refused_pause: float = 10.0  # after a site's lender has refused a job, before it asks there again
