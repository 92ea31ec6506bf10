"""What the loop and the store say to each other: one job's records together, changes that stand together, a failure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from gridhypervisor.model.accounts import Charge
from gridhypervisor.model.records import Allocation, CheckpointRecord, Event, Job, JobState, Ledger, PilotJob, Vm

Record = Job | Vm | PilotJob | Allocation | CheckpointRecord


@dataclass(frozen=True)
class JobRecords:
    """All records of one job, as the store has them."""

    job: Job
    vm: Vm
    allocations: tuple[Allocation, ...] = ()  # by epoch
    pilot_jobs: tuple[PilotJob, ...] = ()
    checkpoints: tuple[CheckpointRecord, ...] = ()  # in the order in which they were made


@dataclass(frozen=True)
class Birth:
    """A job to be made. Its id, and those of its VM and event, are the store's to give."""

    job: Job
    vm: Vm
    event: Event
    idempotency_key: str = ""  # seen before: the job of then is meant


@dataclass(frozen=True)
class Tally:
    """How the members of a group are, those that have been made and not deleted."""

    states: Mapping[JobState, int]
    well: int  # those that are done with exit code 0
    first_bad: str  # the first that ended otherwise; empty: none did


@dataclass(frozen=True)
class Commit:
    """Changes that stand or fall together. A record of version n replaces one of version n - 1; version 1 is new."""

    records: tuple[Record, ...]
    events: tuple[Event, ...] = ()
    ledger: Ledger | None = None
    charges: tuple[Charge, ...] = ()  # new; one to an attempt, ever


class StoreError(Exception):
    """The store could not do what was asked, and did none of it; what was committed before still stands."""

    def __init__(self, operation: str, path: str, why: str, hint: str) -> None:
        super().__init__(f"{operation} in {path}: {why}; {hint}")
        self.operation = operation
        self.path = path
        self.why = why
        self.hint = hint
