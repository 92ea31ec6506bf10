"""The store in one SQLite file: one writer at a time, readers beside it, every commit on the disk before it is believed.

A change is written in one transaction or not at all, and a transaction that has returned survives a power cut
(`synchronous=FULL`): an intent must be known before its effect is attempted. Grouping many commits into one
transaction is what makes that affordable.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import secrets
import sqlite3
import threading
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import (
    Connection,
    Engine,
    Select,
    bindparam,
    create_engine,
    delete,
    event,
    insert,
    select,
    union,
    update,
)
from sqlalchemy.exc import SQLAlchemyError

from gridhypervisor.model.commit import Commit, JobRecords, Record, StoreError
from gridhypervisor.model.records import Allocation, Event, Job, Ledger, PilotJob, Site, Vm
from gridhypervisor.store import failure, migrate, place, schema
from gridhypervisor.store.rows import ALLOCATION, BY_KIND, EVENT, JOB, LEDGER, PILOT_JOB, SITE, VERSIONED, VM, Row, Rows
from gridhypervisor.store.rows import number as number_of

R = TypeVar("R")

Ident = tuple[type, str]
"""A record's kind and key."""

_WAIT = 10.0
"""Seconds that a statement waits for a lock that, say, a backup holds."""

_WAL_KEPT = 64 << 20
"""Bytes of the write-ahead log that a checkpoint leaves on the disk for the next round."""


def open_store(path: Path, *, create: bool = True) -> SqliteStore:
    """Open the store in this file, bringing an older one up to date, or make it.

    Raises:
        StoreError: the file is on a network file system, in use, damaged, of a newer version, absent though it should
            not be created, or the disk does not let us; its text says which and what to do.
    """
    path = path.absolute()
    place.require_local(path)
    if not create and not path.exists():
        raise StoreError("open the store", str(path), "there is none", "start the service once, which makes it")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise failure.explain(error, "open the store", path) from error
    lock = place.Lock(path)
    try:
        return SqliteStore(path, lock)
    except BaseException:
        lock.release()
        raise


class SqliteStore:
    """See `execution.ports.Store`. Its methods may be called from any thread; writers wait for one another."""

    def __init__(self, path: Path, lock: place.Lock) -> None:
        """Made by `open_store`, which has taken the lock."""
        self._path = path
        self._lock = lock
        self._closed = False
        self._writing = threading.Lock()
        self.installation = _prepare(path)
        self._writer = _engine(path, "BEGIN IMMEDIATE", "foreign_keys=ON", "synchronous=FULL")
        self._reader = _engine(path, "BEGIN", "query_only=ON")

    def create_job(self, job: Job, vm: Vm, event: Event, idempotency_key: str = "") -> JobRecords:
        """Write a new job, giving it (and its vm and event) the next id; a key seen before returns the job of then."""
        with self._write("create a job") as connection:
            if idempotency_key:
                known = select(JOB.key).where(
                    schema.job.c.owner == job.owner,
                    schema.job.c.project == job.project,
                    schema.job.c.idempotency_key == idempotency_key,
                )
                if standing := _records(connection, known):
                    return standing[0]
            last = schema.meta.c.name == "last_job"
            number = int(connection.execute(select(schema.meta.c.value).where(last)).scalar_one()) + 1
            connection.execute(update(schema.meta).where(last).values(value=str(number)))
            job = dataclasses.replace(job, id=f"j{number}", version=1)
            vm = dataclasses.replace(vm, id=f"v{number}", job=job.id, version=1)
            row = JOB.encode(job)
            JOB.decode([row[column.name] for column in JOB.columns])  # what could not be read again is refused now
            connection.execute(insert(schema.job), row | {"idempotency_key": idempotency_key or None})
            connection.execute(insert(schema.vm), VM.encode(vm))
            connection.execute(insert(schema.event), [_new_event(dataclasses.replace(event, job=job.id, subject=job.id))])
        return JobRecords(job, vm)

    def commit(self, commits: Sequence[Commit]) -> list[bool]:
        """One transaction. False for each commit of which a version no longer fits: nothing of that one is written.

        A new record whose job, VM or pilot job has been deleted does not fit either. Jobs are only born in
        `create_job`, which counts them.
        """
        rows = [[(record, _encode(record, self._path)) for record in commit.records] for commit in commits]
        with self._write("commit changes") as connection:
            standing = _versions(connection, commits)
            answers = []
            inserts: dict[type, list[Row]] = defaultdict(list)
            updates: dict[type, list[Row]] = defaultdict(list)
            events: list[Row] = []
            ledgers: dict[str, Row] = {}
            for commit, encoded in zip(commits, rows, strict=True):
                changes = _fitting(commit, standing)
                answers.append(changes is not None)
                if changes is None:
                    continue
                standing.update(changes)
                for record, row in encoded:
                    if record.version == 1:
                        inserts[type(record)].append(row)
                    else:
                        guard = {"_key": BY_KIND[type(record)].key_of(record), "_was": record.version - 1}
                        updates[type(record)].append(row | guard)
                events += [_new_event(event) for event in commit.events]
                if commit.ledger is not None:
                    ledgers[commit.ledger.job] = LEDGER.encode(commit.ledger)
            for kind in VERSIONED:
                if inserts[kind.kind]:
                    connection.execute(insert(kind.table), inserts[kind.kind])
            for kind in VERSIONED:
                _update(connection, kind, updates[kind.kind])
            if events:
                connection.execute(insert(schema.event), events)
            if ledgers:
                _write_ledgers(connection, list(ledgers.values()))
        return answers

    def alive(self) -> list[JobRecords]:
        """Jobs that are not final, are to be deleted, or of which a site may still hold something; oldest first."""
        wanted = union(
            select(JOB.key).where(schema.job.c.alive),
            select(schema.allocation.c.job).where(schema.allocation.c.alive),
        ).subquery()
        with self._read("read the jobs that are alive") as connection:
            return _records(connection, select(wanted.c[0]))

    def job(self, job: str) -> JobRecords | None:
        """All of one job; None if there is none of that id."""
        with self._read(f"read job {job}") as connection:
            found = _records(connection, select(JOB.key).where(JOB.key == job))
        return found[0] if found else None

    def jobs(self, *, states: Sequence[str] = (), before: str = "", limit: int = 100) -> list[JobRecords]:
        """Newest first, below the id `before`.

        Raises:
            ValueError: `before` is no job's id.
        """
        wanted = select(JOB.key).order_by(schema.job.c.number.desc()).limit(limit)
        if states:
            wanted = wanted.where(schema.job.c.state.in_(states))
        if before:
            wanted = wanted.where(schema.job.c.number < number_of(before))
        with self._read("list jobs") as connection:
            return _records(connection, wanted)[::-1]

    def ledger(self, job: str) -> Ledger | None:
        """Where a job's time went; None while that is not known."""
        with self._read(f"read the ledger of job {job}") as connection:
            found = _all(connection, LEDGER, select(*LEDGER.columns).where(LEDGER.key == job))
        return found[0] if found else None

    def delete_job(self, job: str, event: Event) -> None:
        """Remove its records; its events stay, with this one after them. Nothing happens if it was removed before."""
        of_job = schema.allocation.c.job == job
        with self._write(f"delete job {job}") as connection:
            pilots = connection.execute(select(schema.allocation.c.pilot_job).where(of_job)).scalars().all()
            for table in (schema.ledger, schema.allocation, schema.vm):
                connection.execute(delete(table).where(table.c.job == job))
            shared = select(schema.allocation.c.pilot_job)
            connection.execute(delete(schema.pilot_job).where(PILOT_JOB.key.in_(pilots), PILOT_JOB.key.not_in(shared)))
            if connection.execute(delete(schema.job).where(JOB.key == job)).rowcount:
                connection.execute(insert(schema.event), [_new_event(event)])

    def events(self, *, after: int = 0, job: str = "", limit: int = 1000) -> list[Event]:
        """Oldest first, of sequence numbers above `after`."""
        wanted = select(*EVENT.columns).where(EVENT.key > after).order_by(EVENT.key).limit(limit)
        if job:
            wanted = wanted.where(schema.event.c.job == job)
        with self._read("read events") as connection:
            return _all(connection, EVENT, wanted)

    def add_event(self, event: Event) -> None:
        """Append an event that belongs to no commit; its sequence number is the store's to give."""
        with self._write("add an event") as connection:
            connection.execute(insert(schema.event), [_new_event(event)])

    def sites(self) -> list[Site]:
        """By name."""
        with self._read("read the sites") as connection:
            return _all(connection, SITE, select(*SITE.columns).order_by(SITE.key))

    def put_site(self, site: Site) -> bool:
        """False: its version no longer fits (that of a new site is 1)."""
        with self._write(f"write site {site.name}") as connection:
            standing = connection.execute(select(schema.site.c.version).where(SITE.key == site.name)).scalar()
            if (standing or 0) != site.version - 1:
                return False
            if standing is None:
                connection.execute(insert(schema.site), SITE.encode(site))
            else:
                connection.execute(update(schema.site).where(SITE.key == site.name), SITE.encode(site))
        return True

    def remove_site(self, name: str) -> None:
        """Forget a site. Nothing happens if it is not known."""
        with self._write(f"remove site {name}") as connection:
            connection.execute(delete(schema.site).where(SITE.key == name))

    def close(self) -> None:
        """Fold the log into the file and give the store free for another process. Harmless when repeated."""
        with self._writing:
            self._closed = True
            self._reader.dispose()
            self._writer.dispose()
            self._lock.release()

    @contextlib.contextmanager
    def _write(self, operation: str) -> Iterator[Connection]:
        with self._writing, self._transaction(self._writer, operation) as connection:
            yield connection

    @contextlib.contextmanager
    def _read(self, operation: str) -> Iterator[Connection]:
        """One moment of the store: what is committed meanwhile is not seen."""
        with self._transaction(self._reader, operation) as connection:
            yield connection

    @contextlib.contextmanager
    def _transaction(self, engine: Engine, operation: str) -> Iterator[Connection]:
        if self._closed:
            raise StoreError(operation, str(self._path), "the store is closed", "open it again")
        try:
            with engine.begin() as connection:
                yield connection
        except (SQLAlchemyError, sqlite3.Error, ValueError) as error:
            raise failure.explain(error, operation, self._path) from error


def _prepare(path: Path) -> str:
    """Bring the file up to date; return the installation's id."""
    operation = "open the store"
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        # Foreign keys are off, for a migration may have to make a table anew.
        engine = _engine(path, "BEGIN IMMEDIATE", "journal_mode=WAL", "synchronous=FULL")
        try:
            with engine.connect() as connection:
                mode = connection.exec_driver_sql("PRAGMA journal_mode").scalar_one()
            if mode != "wal":
                raise StoreError(
                    operation, str(path), f"SQLite cannot use a write-ahead log there (it says {mode!r})",
                    "set GHV_DATA to a folder on a local disk of this machine",
                )  # fmt: skip
            with engine.begin() as connection:
                migrate.upgrade(connection, path)
                known = dict(connection.execute(select(schema.meta.c.name, schema.meta.c.value)).tuples().all())
                if not known:
                    known = {"installation": f"g{secrets.token_hex(4)}", "last_job": "0"}
                    connection.execute(insert(schema.meta), [{"name": n, "value": v} for n, v in known.items()])
        finally:
            engine.dispose()
        # The file's name must survive a power cut as surely as what is in it.
        folder = os.open(path.parent, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
        return known["installation"]
    except (SQLAlchemyError, sqlite3.Error, OSError) as error:
        raise failure.explain(error, operation, path) from error


def _engine(path: Path, begin: str, *pragmas: str) -> Engine:
    """Connections that start each transaction with `begin`: Python's sqlite3 would start none before a read."""

    def connect() -> sqlite3.Connection:
        return sqlite3.connect(path, timeout=_WAIT, isolation_level=None, check_same_thread=False)

    engine = create_engine("sqlite://", creator=connect, pool_size=4, max_overflow=-1)

    @event.listens_for(engine, "connect")
    def prepare(connection: Any, _: object) -> None:
        for pragma in (f"journal_size_limit={_WAL_KEPT}", *pragmas):
            connection.execute(f"PRAGMA {pragma}").close()

    @event.listens_for(engine, "begin")
    def start(connection: Connection) -> None:
        connection.exec_driver_sql(begin)

    return engine


def _all(connection: Connection, rows: Rows[R], wanted: Select[Any]) -> list[R]:
    return [rows.decode(row) for row in connection.execute(wanted).tuples()]


def _records(connection: Connection, jobs: Select[tuple[str]]) -> list[JobRecords]:
    """Everything of the jobs whose ids a query gives, oldest first."""
    found = _all(connection, JOB, select(*JOB.columns).where(JOB.key.in_(jobs)).order_by(schema.job.c.number))
    vms = {vm.job: vm for vm in _all(connection, VM, select(*VM.columns).where(schema.vm.c.job.in_(jobs)))}
    of_jobs = schema.allocation.c.job.in_(jobs)
    allocations: dict[str, list[Allocation]] = defaultdict(list)
    by_epoch = select(*ALLOCATION.columns).where(of_jobs).order_by(schema.allocation.c.epoch)
    for allocation in _all(connection, ALLOCATION, by_epoch):
        allocations[allocation.job].append(allocation)
    used = select(schema.allocation.c.pilot_job).where(of_jobs)
    pilots = {
        pilot.name: pilot
        for pilot in _all(connection, PILOT_JOB, select(*PILOT_JOB.columns).where(PILOT_JOB.key.in_(used)))
    }

    def pilots_of(job: Job) -> tuple[PilotJob, ...]:
        names = dict.fromkeys(allocation.pilot_job for allocation in allocations[job.id])
        return tuple(pilots[name] for name in names)

    return [JobRecords(job, vms[job.id], tuple(allocations[job.id]), pilots_of(job)) for job in found]


def _encode(record: Record, path: Path) -> Row:
    if isinstance(record, Job) and record.version == 1:
        raise ValueError(f"job {record.id} of version 1 in a commit: jobs are made by create_job")
    try:
        return BY_KIND[type(record)].encode(record)
    except ValueError as error:
        raise failure.explain(error, "commit changes", path) from error


def _new_event(new: Event) -> Row:
    row = EVENT.encode(new)
    del row["sequence"]  # the store's to give
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
        for start in range(0, len(ordered), 10_000):  # SQLite takes 32,766 parameters at once
            query = select(rows.key, rows.table.c.version).where(rows.key.in_(ordered[start : start + 10_000]))
            found |= {(kind, key): version for key, version in connection.execute(query).tuples()}
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


def _update(connection: Connection, kind: Rows[Any], rows: list[Row]) -> None:
    if not rows:
        return
    table = kind.table
    guarded = update(table).where(kind.key == bindparam("_key"), table.c.version == bindparam("_was"))
    changed = connection.execute(guarded, rows).rowcount
    if changed != len(rows):  # the versions were read in this very transaction
        raise ValueError(f"{changed} of {len(rows)} rows of {table.name} changed: somebody else writes to this store")


def _write_ledgers(connection: Connection, rows: list[Row]) -> None:
    """Put each in its job's place, with the job's owner, project and version."""
    job = schema.job.c
    of_job = {
        name: select(job[name]).where(job.id == bindparam("job")).scalar_subquery()
        for name in ("owner", "project", "version")
    }
    connection.execute(delete(schema.ledger).where(LEDGER.key == bindparam("_job")), [{"_job": r["job"]} for r in rows])
    connection.execute(insert(schema.ledger).values(of_job), rows)
