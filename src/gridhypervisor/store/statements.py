"""What is read and written within one transaction, whatever the database. Opens none and catches nothing."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

from sqlalchemy import Connection, Select, bindparam, delete, insert, select
from sqlalchemy.exc import IntegrityError

from gridhypervisor.model.commit import Commit, JobRecords
from gridhypervisor.model.records import Allocation, AllocationState, CheckpointRecord, Event, Job, PilotJob
from gridhypervisor.store import schema
from gridhypervisor.store.prepared import put_in, replacing
from gridhypervisor.store.rows import (
    ALLOCATION,
    BY_KIND,
    CHARGE,
    CHECKPOINT,
    EVENT,
    JOB,
    LEDGER,
    PILOT_JOB,
    VERSIONED,
    VM,
    Row,
    Rows,
)

R = TypeVar("R")

Ident = tuple[type, str]
"""A record's kind and key."""

AT_ONCE = 10_000
"""Keys in one query: SQLite takes at most 32,766 parameters."""


def read(connection: Connection, rows: Rows[R], wanted: Select[Any]) -> list[R]:
    """The records of a query over `rows.columns`.

    Raises:
        ValueError: a row holds what this version cannot read.
    """
    return [rows.decode(row) for row in connection.execute(wanted)]


def job_records(connection: Connection, jobs: Select[tuple[str]]) -> list[JobRecords]:
    """Everything of the jobs whose ids a query gives, oldest first."""
    of_jobs = schema.allocation.c.job.in_(jobs)
    found = read(connection, JOB, select(*JOB.columns).where(JOB.key.in_(jobs)).order_by(schema.job.c.number))
    vms = {vm.job: vm for vm in read(connection, VM, select(*VM.columns).where(schema.vm.c.job.in_(jobs)))}
    allocations: dict[str, list[Allocation]] = defaultdict(list)
    by_epoch = select(*ALLOCATION.columns).where(of_jobs).order_by(schema.allocation.c.epoch)
    for allocation in read(connection, ALLOCATION, by_epoch):
        allocations[allocation.job].append(allocation)
    checkpoints: dict[str, list[CheckpointRecord]] = defaultdict(list)
    made = select(*CHECKPOINT.columns).where(schema.checkpoint.c.job.in_(jobs)).order_by(schema.checkpoint.c.made)
    for checkpoint in read(connection, CHECKPOINT, made):
        checkpoints[checkpoint.job].append(checkpoint)
    held = select(*PILOT_JOB.columns).where(PILOT_JOB.key.in_(select(schema.allocation.c.pilot_job).where(of_jobs)))
    pilots = {pilot.name: pilot for pilot in read(connection, PILOT_JOB, held)}

    def pilots_of(job: Job) -> tuple[PilotJob, ...]:
        names = dict.fromkeys(allocation.pilot_job for allocation in allocations[job.id])
        return tuple(pilots[name] for name in names)

    return [
        JobRecords(job, vms[job.id], tuple(allocations[job.id]), pilots_of(job), tuple(checkpoints[job.id]))
        for job in found
    ]


def states(connection: Connection, allocations: Sequence[str]) -> dict[str, AllocationState]:
    """The states of these allocations, by id; one that is not known is left out."""
    found: dict[str, AllocationState] = {}
    for start in range(0, len(allocations), AT_ONCE):
        wanted = ALLOCATION.key.in_(allocations[start : start + AT_ONCE])
        rows = connection.execute(select(ALLOCATION.key, schema.allocation.c.state).where(wanted))
        found |= {key: AllocationState(state) for key, state in rows}
    return found


class Misfit(Exception):
    """A row has not the version that it should have had."""


def apply(connection: Connection, commits: Sequence[Commit]) -> list[bool]:
    """Write the commits that fit, in their order; say which those were.

    Nearly always all do. So they are written, each row only where it has the version that it should have; if one has
    not, all is taken back, and now it is looked which of them fit.

    Raises:
        ValueError: a new job is among them (only `create_job` counts jobs), or a record cannot be stored.
    """
    everything = _Changes(commits)
    connection.exec_driver_sql("SAVEPOINT fitting")
    try:
        everything.write(connection)
        connection.exec_driver_sql("RELEASE fitting")
        return [True] * len(commits)
    except (Misfit, IntegrityError):
        connection.exec_driver_sql("ROLLBACK TO fitting")
        connection.exec_driver_sql("RELEASE fitting")
    standing = _versions(connection, commits)
    answers, fit = list[bool](), list[Commit]()
    for commit in commits:
        changes = fitting(commit, standing)
        answers.append(changes is not None)
        if changes is not None:
            standing.update(changes)
            fit.append(commit)
    try:
        _Changes(fit).write(connection)
    except Misfit as error:  # the versions were read in this very transaction
        raise ValueError(f"{error}: somebody else writes to this store") from error
    return answers


class _Changes:
    """The rows that commits write, by table."""

    def __init__(self, commits: Sequence[Commit]) -> None:
        self.inserts: dict[type, list[Row]] = defaultdict(list)
        self.updates: dict[type, list[Row]] = defaultdict(list)
        self.events: list[Row] = []
        self.ledgers: dict[str, Row] = {}
        self.charges: list[Row] = []
        for commit in commits:
            for record in commit.records:
                rows = BY_KIND[type(record)]
                if record.version > 1:
                    guard = {"_key": rows.key_of(record), "_was": record.version - 1}
                    self.updates[rows.kind].append(rows.changes(record) | guard)
                elif rows is not JOB:
                    self.inserts[rows.kind].append(rows.encode(record))
                else:
                    raise ValueError(f"job {rows.key_of(record)} of version 1 in a commit: only create_job makes jobs")
            self.events += map(event_row, commit.events)
            self.charges += map(CHARGE.encode, commit.charges)
            if commit.ledger is not None:
                self.ledgers[commit.ledger.job] = LEDGER.encode(commit.ledger)

    def write(self, connection: Connection) -> None:
        """All of them.

        Raises:
            Misfit: a row to be replaced has another version than its `_was` tells, or is not there.
        """
        for rows in VERSIONED:
            put_in(connection, rows.table, self.inserts[rows.kind])
        for rows in VERSIONED:
            if changed := self.updates[rows.kind]:
                columns = tuple(name for name in changed[0] if name not in ("_key", "_was"))
                count = replacing(rows.table, rows.key.name, columns)(connection, changed)
                if count != len(changed):
                    raise Misfit(f"{count} of {len(changed)} rows of {rows.table.name} changed")
        put_in(connection, schema.event, self.events)
        put_in(connection, schema.charge, self.charges)
        if self.ledgers:
            _put_ledgers(connection, list(self.ledgers.values()))


def event_row(event: Event) -> Row:
    """The row of a new event, without the sequence number, which the database gives."""
    row = EVENT.encode(event)
    del row["sequence"]
    return row


def _parents(commit: Commit) -> Iterator[Ident]:
    """What must exist for the new records of a commit."""
    for record in commit.records:
        if record.version == 1:
            for name, rows in BY_KIND[type(record)].parents.items():
                yield rows.kind, getattr(record, name)
    if commit.ledger is not None:
        yield Job, commit.ledger.job


def _versions(connection: Connection, commits: Sequence[Commit]) -> dict[Ident, int]:
    """The versions, as they stand, of all records that the commits change or build upon."""
    wanted: dict[type, set[str]] = defaultdict(set)
    for commit in commits:
        for record in commit.records:
            wanted[type(record)].add(BY_KIND[type(record)].key_of(record))
        for kind, key in _parents(commit):
            wanted[kind].add(key)
    found: dict[Ident, int] = {}
    for kind, keys in wanted.items():
        rows = BY_KIND[kind]
        ordered = sorted(keys)
        for start in range(0, len(ordered), AT_ONCE):
            query = select(rows.key, rows.table.c.version).where(rows.key.in_(ordered[start : start + AT_ONCE]))
            found |= {(kind, key): version for key, version in connection.execute(query)}
    return found


def fitting(commit: Commit, standing: dict[Ident, int]) -> dict[Ident, int] | None:
    """The versions after this commit; None if it does not fit those that stand."""
    changes: dict[Ident, int] = {}
    for record in commit.records:
        ident = (type(record), BY_KIND[type(record)].key_of(record))
        if record.version - 1 != changes.get(ident, standing.get(ident, 0)):
            return None
        changes[ident] = record.version
    if all(parent in changes or parent in standing for parent in _parents(commit)):
        return changes
    return None


def _put_ledgers(connection: Connection, ledgers: list[Row]) -> None:
    """Put each in its job's place, with the job's owner, project and version."""
    job = schema.job.c
    of_job = {
        name: select(job[name]).where(job.id == bindparam("_job")).scalar_subquery()
        for name in ("owner", "project", "version")
    }
    rows = [row | {"_job": row["job"]} for row in ledgers]
    connection.execute(delete(schema.ledger).where(LEDGER.key == bindparam("_job")), rows)
    connection.execute(insert(schema.ledger).values(of_job), rows)
