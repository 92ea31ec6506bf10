"""The store in one SQLite file: one writer at a time, readers beside it, a commit is on the disk when it returns.

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
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, delete, event, insert, select, union, update
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import QueuePool

from gridhypervisor.model.commit import Birth, Commit, JobRecords, StoreError
from gridhypervisor.model.records import AllocationState, Event, Job, Ledger, Site, Vm
from gridhypervisor.store import failure, migrate, place, schema, statements
from gridhypervisor.store.rows import EVENT, JOB, LEDGER, PILOT_JOB, SITE, VM, number_of

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
        return self.create_jobs([Birth(job, vm, event, idempotency_key)])[0]

    def create_jobs(self, births: Sequence[Birth]) -> list[JobRecords]:
        """`create_job` of each, in one transaction: all or none."""
        with self._write("create a job") as connection:
            return [self._create(connection, birth) for birth in births]

    @staticmethod
    def _create(connection: Connection, birth: Birth) -> JobRecords:
        job, vm = birth.job, birth.vm
        if birth.idempotency_key:
            known = select(JOB.key).where(
                schema.job.c.owner == job.owner,
                schema.job.c.project == job.project,
                schema.job.c.idempotency_key == birth.idempotency_key,
            )
            if standing := statements.job_records(connection, known):
                return standing[0]
        last = schema.meta.c.name == "last_job"
        number = int(connection.execute(select(schema.meta.c.value).where(last)).scalar_one()) + 1
        connection.execute(update(schema.meta).where(last).values(value=str(number)))
        job = dataclasses.replace(job, id=f"j{number}", version=1)
        vm = dataclasses.replace(vm, id=f"v{number}", job=job.id, version=1)
        row = JOB.encode(job)
        JOB.decode([row[column.name] for column in JOB.columns])  # what could not be read again is refused now
        connection.execute(insert(schema.job), row | {"idempotency_key": birth.idempotency_key or None})
        connection.execute(insert(schema.vm), VM.encode(vm))
        event = dataclasses.replace(birth.event, job=job.id, subject=job.id)
        connection.execute(insert(schema.event), statements.event_row(event))
        return JobRecords(job, vm)

    def commit(self, commits: Sequence[Commit]) -> list[bool]:
        """One transaction. False for each commit of which a version no longer fits: nothing of that one is written.

        A new record whose job, VM or pilot job has been deleted does not fit either. Jobs are only born in
        `create_job`, which counts them.
        """
        with self._write("commit changes") as connection:
            return statements.apply(connection, commits)

    def alive(self) -> list[JobRecords]:
        """Jobs that are not final, are to be deleted, or of which a site may still hold something; oldest first."""
        wanted = union(
            select(JOB.key).where(schema.job.c.alive),
            select(schema.allocation.c.job).where(schema.allocation.c.alive),
        ).subquery()
        with self._read("read the jobs that are alive") as connection:
            return statements.job_records(connection, select(wanted.c[0]))

    def job(self, job: str) -> JobRecords | None:
        """All of one job; None if there is none of that id."""
        with self._read(f"read job {job}") as connection:
            found = statements.job_records(connection, select(JOB.key).where(JOB.key == job))
        return found[0] if found else None

    def states(self, allocations: Sequence[str]) -> dict[str, AllocationState]:
        """How these allocations stand at this moment; one that is not known is left out."""
        with self._read("read how allocations stand") as connection:
            return statements.states(connection, allocations)

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
            return statements.job_records(connection, wanted)[::-1]

    def ledger(self, job: str) -> Ledger | None:
        """Where a job's time went; None while that is not known."""
        with self._read(f"read the ledger of job {job}") as connection:
            found = statements.read(connection, LEDGER, select(*LEDGER.columns).where(LEDGER.key == job))
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
                connection.execute(insert(schema.event), statements.event_row(event))

    def was_deleted(self, job: str) -> bool:
        """Whether there was a job of this id of which everything was removed, sites included: its events outlive it."""
        of_it, told = schema.event.c.job == job, schema.event.c.after == "deleted"
        with self._read(f"read how job {job} ended") as connection:
            return connection.execute(select(EVENT.key).where(of_it, told).limit(1)).first() is not None

    def events(self, *, after: int = 0, job: str = "", limit: int = 1000) -> list[Event]:
        """Oldest first, of sequence numbers above `after`."""
        wanted = select(*EVENT.columns).where(EVENT.key > after).order_by(EVENT.key).limit(limit)
        if job:
            wanted = wanted.where(schema.event.c.job == job)
        with self._read("read events") as connection:
            return statements.read(connection, EVENT, wanted)

    def add_event(self, event: Event) -> None:
        """Append an event that belongs to no commit; its sequence number is the store's to give."""
        with self._write("add an event") as connection:
            connection.execute(insert(schema.event), statements.event_row(event))

    def sites(self) -> list[Site]:
        """By name."""
        with self._read("read the sites") as connection:
            return statements.read(connection, SITE, select(*SITE.columns).order_by(SITE.key))

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
        except (SQLAlchemyError, sqlite3.Error, ValueError, OverflowError) as error:
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
                why = f"SQLite cannot use a write-ahead log there (it says {mode!r})"
                raise StoreError(operation, str(path), why, "set GHV_DATA to a folder on a local disk of this machine")
            with engine.begin() as connection:
                migrate.upgrade(connection, path)
                named = select(schema.meta.c.value).where(schema.meta.c.name == "installation")
                installation: str | None = connection.execute(named).scalar()
                if installation is None:
                    installation = f"g{secrets.token_hex(4)}"
                    new = {"installation": installation, "last_job": "0"}
                    connection.execute(insert(schema.meta), [{"name": n, "value": v} for n, v in new.items()])
        finally:
            engine.dispose()
        # The file's name must survive a power cut as surely as what is in it.
        folder = os.open(path.parent, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
        return installation
    except (SQLAlchemyError, sqlite3.Error, OSError) as error:
        raise failure.explain(error, operation, path) from error


def _engine(path: Path, begin: str, *pragmas: str) -> Engine:
    """Connections that start each transaction with `begin`: Python's sqlite3 would start none before a read."""

    def connect() -> sqlite3.Connection:
        return sqlite3.connect(path, timeout=_WAIT, isolation_level=None, check_same_thread=False)

    engine = create_engine("sqlite://", creator=connect, poolclass=QueuePool, pool_size=4, max_overflow=-1)

    @event.listens_for(engine, "connect")
    def prepare(connection: Any, _: object) -> None:
        for pragma in (f"journal_size_limit={_WAL_KEPT}", *pragmas):
            connection.execute(f"PRAGMA {pragma}").close()

    @event.listens_for(engine, "begin")
    def start(connection: Connection) -> None:
        connection.exec_driver_sql(begin)

    return engine
