"""What a plan is made of: the legal transitions, the actions, and the draft in which one call of `plan` collects both.

The draft knows how a decision is written down, once for all (versions, times, events, no illegal transition), and not
which to take: that is `reconcile`, with `silence` and `fate`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import assert_never

from gridhypervisor.model.accounts import Charge
from gridhypervisor.model.commit import Record
from gridhypervisor.model.records import (
    ActionKind,
    Allocation,
    AllocationState,
    CheckpointRecord,
    Event,
    Job,
    JobState,
    Ledger,
    Pause,
    PilotJob,
)
from gridhypervisor.model.replacing import replace
from gridhypervisor.model.wire import ExitRecord, Reason
from gridhypervisor.planning.accounts import charge
from gridhypervisor.planning.ledger import ledger
from gridhypervisor.planning.past import SETTLING
from gridhypervisor.planning.world import Case, Observed, Policy, Result, SiteFacts

S = AllocationState

TRANSITIONS: frozenset[tuple[AllocationState, AllocationState]] = frozenset(
    {
        (S.PLANNED, S.SUBMITTING),
        (S.PLANNED, S.REVOKED),
        (S.SUBMITTING, S.QUEUED),
        (S.SUBMITTING, S.RUNNING),
        (S.SUBMITTING, S.REVOKING),
        (S.QUEUED, S.RUNNING),
        (S.QUEUED, S.REVOKING),
        (S.REVOKING, S.REVOKED),
        (S.REVOKING, S.RUNNING),
        (S.RUNNING, S.ENDED),
        (S.RUNNING, S.FENCING),
        (S.FENCING, S.ENDED),
        (S.FENCING, S.FENCED),
        (S.FENCED, S.CLEANED),
        (S.ENDED, S.COLLECTED),
        (S.COLLECTED, S.CLEANED),
        (S.REVOKED, S.CLEANED),
    }
)
"""Every way in which an allocation's state may change; the diagram in model/records.py shows the same."""

OVER = frozenset({S.ENDED, S.COLLECTED, S.REVOKED, S.FENCED, S.CLEANED})
"""States in which an allocation can never run a guest (again)."""

HERE = frozenset({ActionKind.ERASE})
"""Actions that are done on the service's own machine, whatever their site says."""

HOLDS_PLACE = frozenset({S.PLANNED, S.SUBMITTING, S.QUEUED, S.RUNNING, S.REVOKING, S.FENCING})
"""States in which an allocation counts against its site's limit."""


@dataclass(frozen=True)
class Action:
    kind: ActionKind
    allocation: Allocation
    why: str = ""
    results: bool = True  # of COLLECT: also the outputs, not only the logs
    members: str = ""  # of BEGIN: who they are
    checkpoints: tuple[str, ...] = ()  # of DISCARD and CLEAN: those that are to go; of COPY and ERASE: which


@dataclass(frozen=True)
class JobPlan:
    """What to commit (records stand or fall together), then what to do, then when to look again at the latest."""

    records: tuple[Record, ...] = ()
    events: tuple[Event, ...] = ()
    actions: tuple[Action, ...] = ()
    ledger: Ledger | None = None
    delete: bool = False  # everything is confirmed gone and the user wants the records gone too
    wake_at: float | None = None
    waiting: str = ""  # for the user: what it waits for
    spurned: tuple[str, ...] = ()  # sites with a free place that it looked at, and could not use
    charges: tuple[Charge, ...] = ()  # of attempts that are over by it


class Draft:
    """What one call of `plan` decides, as it grows. Lives no longer than the call."""

    def __init__(
        self, case: Case, sites: Mapping[str, SiteFacts], policy: Policy, now: float, installation: str
    ) -> None:
        self.case, self.sites, self.policy, self.now, self.installation = case, sites, policy, now, installation
        self.job = case.job
        self.checkpoints = {c.id: c for c in case.checkpoints}
        self.records: dict[str, Record] = {}
        self.events: list[Event] = []
        self.actions: list[Action] = []
        self.wakes: list[float] = []
        self.waiting = ""
        self.spurned: tuple[str, ...] = ()
        self.ledger: Ledger | None = None
        self.charges: list[Charge] = []
        self.delete = False

    def result(self) -> JobPlan:
        return JobPlan(
            tuple(self.records.values()),
            tuple(self.events),
            tuple(self.actions),
            self.ledger,
            self.delete,
            min(self.wakes, default=None),
            self.waiting,
            self.spurned,
            tuple(self.charges),
        )

    def decides(self, a: Allocation) -> bool:
        """Whether what becomes of the job is by this attempt: an earlier one, or one that waits for its word, does not
        say."""
        current = self.case.current
        return current is not None and a.epoch == current.epoch

    def put(self, record: Record) -> None:
        if isinstance(record, CheckpointRecord):
            self.checkpoints[record.id] = record
        key = record.name if isinstance(record, PilotJob) else record.id
        self.records[f"{type(record).__name__}:{key}"] = record

    def move(
        self,
        a: Allocation,
        to: AllocationState,
        *,
        exit: ExitRecord | None = None,
        why: Reason | None = None,
        note: str = "",
        reason: Reason | None = None,
        message: str = "",
    ) -> Allocation:
        if (a.state, to) not in TRANSITIONS:
            raise AssertionError(f"{a.id}: {a.state} to {to} is no transition")
        times = replace(a.times, since=self.now)
        match to:
            case S.SUBMITTING:
                times = replace(times, submitting=self.now)
            case S.QUEUED:
                times = replace(times, queued=self.now)
            case S.RUNNING:
                times = replace(times, running=self.now)
            case S.ENDED:
                times = replace(times, ended=self.now)
            case S.COLLECTED:
                times = replace(times, collected=self.now)
            case S.CLEANED:
                times = replace(times, cleaned=self.now)
            case S.PLANNED | S.REVOKING | S.REVOKED | S.FENCING | S.FENCED:
                pass
            case _:
                assert_never(to)
        moved = replace(
            a,
            state=to,
            times=times,
            exit=exit or a.exit,
            why=why or a.why,
            note=note or a.note,
            version=a.version + 1,
        )
        self.put(moved)
        if to in SETTLING:
            self.charges.append(charge(self.job, moved, self.case.allocations))
        self.event("allocation", a.id, a.state, to, reason or "", message)
        return moved

    def change_job(
        self,
        state: JobState,
        *,
        attempts: int | None = None,
        reason: Reason | None = None,
        excluded: tuple[str, ...] | None = None,
        message: str = "",
        hint: str = "",
        exit_code: int | None = None,
        ended: float | None = None,
    ) -> None:
        before = self.job
        if before.state.final or (before.state is state and attempts is None):
            return
        self.job = replace(
            before,
            state=state,
            attempts=before.attempts if attempts is None else attempts,
            reason=reason,
            excluded=before.excluded if excluded is None else excluded,
            message=message,
            hint=hint,
            exit_code=exit_code,
            ended=ended,
            pauses=_pauses(before, state, self.now),
            version=self.case.job.version + 1,
        )
        self.put(self.job)
        self.event("job", before.id, before.state, state, reason or "", message)

    def end(
        self,
        state: JobState,
        reason: Reason,
        message: str = "",
        hint: str = "",
        exit_code: int | None = None,
        a: Allocation | None = None,
    ) -> None:
        if self.job.state.final:
            return
        self.change_job(state, reason=reason, message=message, hint=hint, exit_code=exit_code, ended=self.now)
        allocations = tuple(a if a is not None and a.id == x.id else x for x in self.case.allocations)
        self.ledger = ledger(self.job, allocations, self.case.cpu)

    def event(self, kind: str, subject: str, before: str, after: str, reason: str = "", message: str = "") -> None:
        self.events.append(
            Event(
                at=self.now,
                owner=self.job.owner,
                project=self.job.project,
                job=self.job.id,
                kind=kind,
                subject=subject,
                before=str(before),
                after=str(after),
                reason=str(reason),
                message=message,
            )
        )

    # -- asking for it ---------------------------------------------------------------------------------------------

    def want(
        self,
        a: Allocation,
        sight: Observed,
        kind: ActionKind,
        why: str = "",
        results: bool = True,
        after: float = 0.0,
        members: str = "",
        checkpoints: tuple[str, ...] = (),
    ) -> float | None:
        """Ask for an idempotent action unless it is under way, done (after `after`), or waiting to be tried again.

        Returns when it was done, if it was.
        """
        if kind in sight.busy:
            return None
        outcome = sight.outcomes.get(kind)
        if outcome is not None and outcome.result is Result.OK:
            if outcome.at > after:
                return outcome.at
        elif outcome is not None:
            delay = min(self.policy.retry_first * 2.0 ** (outcome.tries - 1), self.policy.retry_most)
            if self.now < outcome.at + delay:
                self.wakes.append(outcome.at + delay)
                self.waiting = self.waiting or f"{outcome.message}; trying again"
                return None
        site = self.sites.get(a.site)
        if kind not in HERE and (site is None or not site.up):
            self.waiting = f"{a.site} {site.silence_in_short if site is not None else 'does not answer'}"
            return None  # the site's return wakes the planner
        self.actions.append(Action(kind, a, why, results, members, checkpoints))
        return None

    def lag(self, site: str) -> float:
        facts = self.sites.get(site)
        return facts.listing_lag if facts is not None else 60.0

    def spool_lag(self, site: str) -> float:
        facts = self.sites.get(site)
        return facts.spool_lag if facts is not None else 60.0


def _pauses(job: Job, state: JobState, now: float) -> tuple[Pause, ...]:
    """When it was suspended, once it is in that state."""
    if job.state is not JobState.SUSPENDED and state is JobState.SUSPENDED:
        return (*job.pauses, Pause(now))
    if job.state is JobState.SUSPENDED and state is not JobState.SUSPENDED:
        return (*job.pauses[:-1], replace(job.pauses[-1], until=now))
    return job.pauses
