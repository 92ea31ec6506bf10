"""What attempts have used, as it is kept, and as it is shown: `ghv accounting` and `ghv history`.

A `Charge` is kept of each attempt that is over, for good: it outlives the job.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import msgspec

from gridhypervisor.model.ledger import OperationRow
from gridhypervisor.model.states import AllocationState
from gridhypervisor.model.wire import Phase, Reason

By = Literal["user", "project", "site", "profile", "reason"]
"""What accounts may be kept by."""

MOST = 1000
"""Accounts in one answer: those with the most core-hours."""


@dataclass(frozen=True)
class Charge:
    """What one attempt has used of its site. Times in seconds, on the controller's clock."""

    allocation: str
    job: str
    owner: str
    project: str
    site: str
    profile: str  # what the job was handed in as: single, array, gang, workflow, infrastructure, or a probe of the site
    reason: str  # why the attempt ended, a `Reason`; empty: none was told
    completed: bool  # its program came to an end of its own, with whatever exit code
    ended: float  # since the epoch
    waited: float  # in the site's queue
    ran: float
    core_seconds: float
    double: float = 0.0  # of these, those that went beside the attempt before it, which it was to follow


class Account(msgspec.Struct, frozen=True):
    """What the attempts of one user, project, site, … have used together."""

    of: dict[By, str]  # by what was asked for; empty: of all
    jobs: int
    attempts: int
    completed: int  # attempts of which the program came to an end of its own, with whatever exit code
    waited: float  # seconds in the sites' queues
    hours: float  # that virtual machines ran
    core_hours: float
    double_hours: float = 0.0  # of these, those that were billed twice: a job's next batch job had begun already


class Accounts(msgspec.Struct, frozen=True):
    """Of the attempts that ended in an interval."""

    by: tuple[By, ...]
    since: float  # seconds since the epoch; 0: from the beginning
    until: float
    accounts: tuple[Account, ...]  # those with the most core-hours first, at most `MOST` of them
    total: Account  # of all attempts, also those whose account is not among these


class Stage(msgspec.Struct, frozen=True):
    """A phase of an attempt."""

    phase: str  # a `Phase`, or "middleware": what nobody claims
    at: float  # when it began, seconds since the epoch on the controller's clock
    seconds: float


class AttemptHistory(msgspec.Struct, frozen=True):
    """What became of one attempt, and when."""

    id: str
    attempt: int
    site: str
    node: str
    batch_id: str
    hypervisor: str  # e.g. "qemu 7.2.22, tcg"; empty: none has run
    state: AllocationState
    stages: tuple[Stage, ...]  # one after another, the wait for this attempt first; the last may go on
    phase: Phase | None = None  # while the pilot has it: what it does now
    reason: Reason | None = None
    message: str = ""
    operations: tuple[OperationRow, ...] = ()  # what of it takes its time by its size, as predicted and as it was


class History(msgspec.Struct, frozen=True):
    """All attempts of a job, first to last."""

    job: str
    name: str
    created: float  # seconds since the epoch
    ended: float | None
    attempts: tuple[AttemptHistory, ...]
