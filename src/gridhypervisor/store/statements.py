"""What is read and written within one transaction, whatever the database. Opens none and catches nothing."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

from sqlalchemy import Connection, Select, bindparam, delete, insert, select, update

from gridhypervisor.model.commit import Commit, JobRecords
from gridhypervisor.model.records import Allocation, AllocationState, Event, Job, PilotJob
from gridhypervisor.store import schema
from gridhypervisor.store.rows import ALLOCATION, BY_KIND, EVENT, JOB, LEDGER, PILOT_JOB, VERSIONED, VM, Row, Rows

R = TypeVar("R")

Ident = tuple[type, str]
"""A record's kind and key."""

_AT_ONCE = 10_000
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
    held = select(*PILOT_JOB.columns).where(PILOT_JOB.key.in_(select(schema.allocation.c.pilot_job).where(of_jobs)))
    pilots = {pilot.name: pilot for pilot in read(connection, PILOT_JOB, held)}

    def pilots_of(job: Job) -> tuple[PilotJob, ...]:
        names = dict.fromkeys(allocation.pilot_job for allocation in allocations[job.id])
        return tuple(pilots[name] for name in names)

    return [JobRecords(job, vms[job.id], tuple(allocations[job.id]), pilots_of(job)) for job in found]


def states(connection: Connection, allocations: Sequence[str]) -> dict[str, AllocationState]:
    """The states of these allocations, by id; one that is not known is left out."""
    found: dict[str, AllocationState] = {}
    for start in range(0, len(allocations), _AT_ONCE):
        wanted = ALLOCATION.key.in_(allocations[start : start + _AT_ONCE])
        rows = connection.execute(select(ALLOCATION.key, schema.allocation.c.state).where(wanted))
        found |= {key: AllocationState(state) for key, state in rows}
    return found


def apply(connection: Connection, commits: Sequence[Commit]) -> list[bool]:
    """Write the commits that fit, in their order; say which those were.

    Raises:
        ValueError: a new job is among them (only `create_job` counts jobs), or a record cannot be stored.
    """
    standing = _versions(connection, commits)
    answers = []
    inserts: dict[type, list[Row]] = defaultdict(list)
    updates: dict[type, list[Row]] = defaultdict(list)
    events: list[Row] = []
    ledgers: dict[str, Row] = {}
    for commit in commits:
        changes = _fitting(commit, standing)
        answers.append(changes is not None)
        if changes is None:
            continue
        standing.update(changes)
        for record in commit.records:
            rows = BY_KIND[type(record)]
            if record.version > 1:
                guard = {"_key": rows.key_of(record), "_was": record.version - 1}
                updates[rows.kind].append(rows.encode(record) | guard)
            elif rows is not JOB:
                inserts[rows.kind].append(rows.encode(record))
            else:
                raise ValueError(f"job {rows.key_of(record)} of version 1 in a commit: only create_job makes jobs")
        events += map(event_row, commit.events)
        if commit.ledger is not None:
            ledgers[commit.ledger.job] = LEDGER.encode(commit.ledger)
    for rows in VERSIONED:
        if inserts[rows.kind]:
            connection.execute(insert(rows.table), inserts[rows.kind])
    for rows in VERSIONED:
        if updates[rows.kind]:
            _update(connection, rows, updates[rows.kind])
    if events:
        connection.execute(insert(schema.event), events)
    if ledgers:
        _put_ledgers(connection, list(ledgers.values()))
    return answers


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
        for start in range(0, len(ordered), _AT_ONCE):
            query = select(rows.key, rows.table.c.version).where(rows.key.in_(ordered[start : start + _AT_ONCE]))
            found |= {(kind, key): version for key, version in connection.execute(query)}
    return found


def _fitting(commit: Commit, standing: dict[Ident, int]) -> dict[Ident, int] | None:
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


def _update(connection: Connection, rows: Rows[Any], changed: list[Row]) -> None:
    """Replace rows, each only where it still has the version that its `_was` tells.

    Raises:
        ValueError: one has another; the versions were read in this very transaction, so somebody else writes here.
    """
    table = rows.table
    guarded = update(table).where(rows.key == bindparam("_key"), table.c.version == bindparam("_was"))
    count = connection.execute(guarded, changed).rowcount
    if count != len(changed):
        raise ValueError(f"{count} of {len(changed)} rows of {table.name} changed: somebody else writes to this store")


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
