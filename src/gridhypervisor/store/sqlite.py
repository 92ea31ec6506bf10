"""The store in one SQLite file: one writer at a time, readers beside it, a commit is on the disk when it returns.

A change is written in one transaction or not at all, and a transaction that has returned survives a power cut
(`synchronous=FULL`): an intent must be known before its effect is attempted. Grouping many commits into one
transaction is what makes that affordable.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import sqlite3
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from sqlalchemy import Connection, Engine, Select, create_engine, delete, event, func, insert, select, union, update
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import QueuePool

from gridhypervisor.model.access import Answer
from gridhypervisor.model.accounts import Accounts, By
from gridhypervisor.model.commit import Birth, Commit, JobRecords, StoreError, Tally
from gridhypervisor.model.policy import PolicyRecord, SchedulingPolicy
from gridhypervisor.model.records import AllocationState, Denial, Event, Group, Job, Ledger, Site, Vm
from gridhypervisor.model.token import Token
from gridhypervisor.store import access, accounts, failure, groups, migrate, place, schema, statements
from gridhypervisor.store import births as born
from gridhypervisor.store.rows import EVENT, JOB, LEDGER, PILOT_JOB, POLICY, SITE, number_of

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
        """Write a new job, giving it (and its vm and event) the next id, if none was reserved for it.

        A key seen before returns the job of then.
        """
        return self.create_jobs([Birth(job, vm, event, idempotency_key)])[0]

    def create_jobs(self, births: Sequence[Birth]) -> list[JobRecords]:
        """`create_job` of each, in one transaction: all or none."""
        with self._write("create a job") as connection:
            return born.create(connection, births)

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
            select(schema.checkpoint.c.job).where(schema.checkpoint.c.alive),
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

    def jobs(
        self,
        *,
        states: Sequence[str] = (),
        before: str = "",
        group: str | None = None,
        owner: str = "",
        limit: int = 100,
    ) -> list[JobRecords]:
        """Newest first, below the id `before`; of this group, or ("") of none; of this owner, or ("") of all.

        Raises:
            ValueError: `before` is no job's id.
        """
        wanted = _listed(states, before, group, owner).limit(limit)
        with self._read("list jobs") as connection:
            return statements.job_records(connection, wanted)[::-1]

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
        wanted = _listed(states, before, group, owner).add_columns(schema.job.c.version).limit(limit)
        with self._read("list jobs") as connection:
            return [(job, version) for job, version in connection.execute(wanted)]

    def these_jobs(self, ids: Sequence[str]) -> list[JobRecords]:
        """Those of these jobs that there are."""
        with self._read("read jobs") as connection:
            return statements.job_records(connection, select(JOB.key).where(JOB.key.in_(ids)))

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
            for table in (schema.ledger, schema.checkpoint, schema.allocation, schema.vm):
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

    def events(self, *, after: int = 0, job: str = "", owner: str = "", limit: int = 1000) -> list[Event]:
        """Oldest first, of sequence numbers above `after`; of this owner, or ("") of all."""
        wanted = select(*EVENT.columns).where(EVENT.key > after).order_by(EVENT.key).limit(limit)
        if job:
            wanted = wanted.where(schema.event.c.job == job)
        if owner:
            wanted = wanted.where(schema.event.c.owner == owner)
        with self._read("read events") as connection:
            return statements.read(connection, EVENT, wanted)

    def add_event(self, event: Event) -> None:
        """Append an event that belongs to no commit; its sequence number is the store's to give."""
        with self._write("add an event") as connection:
            connection.execute(insert(schema.event), statements.event_row(event))

    def reserve(self, count: int) -> int:
        """The first of so many numbers in a row for jobs that are yet to be made."""
        with self._write("reserve numbers of jobs") as connection:
            return born.reserve(connection, count)

    def create_group(
        self, group: Group, event: Event, idempotency_key: str = "", nodes: Mapping[str, str] = MappingProxyType({})
    ) -> Group:
        """Write a new group, giving it the next id; a key seen before returns the group of then.

        `nodes`: where each node of a workflow is, as JSON.
        """
        with self._write("create a group of jobs") as connection:
            return groups.create(connection, group, event, idempotency_key, nodes)

    def put_group(
        self,
        group: Group,
        births: Sequence[Birth] = (),
        events: Sequence[Event] = (),
        nodes: Mapping[str, str] = MappingProxyType({}),
    ) -> bool:
        """Change a group and these nodes, and make these members, all or nothing. False: its version no longer fits."""
        with self._write(f"write group {group.id}") as connection:
            return groups.put(connection, group, births, events, nodes)

    def groups(
        self, *, ids: Sequence[str] = (), alive: bool = False, before: str = "", owner: str = "", limit: int = 100
    ) -> list[Group]:
        """Newest first, below the id `before`; of this owner, or ("") of all. Raises ValueError: `before` is no id."""
        below = number_of(before) if before else None
        with self._read("list groups of jobs") as connection:
            return groups.found(connection, ids=ids, alive=alive, below=below, owner=owner, limit=limit)

    def tally(self, group: str) -> Tally:
        """How the members of a group are."""
        with self._read(f"count the jobs of {group}") as connection:
            return groups.tally(connection, group)

    def member(self, group: str, name: str) -> JobRecords | None:
        """The member of this name; None: it has not been made yet, or was deleted, or never will be."""
        with self._read(f"read {name} of {group}") as connection:
            standing = statements.job_records(connection, groups.member(group, name))
        return standing[0] if standing else None

    def nodes(self, group: str) -> dict[str, str]:
        """Where each node of a workflow is, by name, as JSON."""
        with self._read(f"read the nodes of {group}") as connection:
            return groups.nodes(connection, group)

    def delete_group(self, group: str, event: Event) -> None:
        """Forget a group that has no members any more. Nothing happens if it was removed before."""
        with self._write(f"delete group {group}") as connection:
            groups.remove(connection, group, event)

    def ended(self, *, since: float, limit: int) -> list[JobRecords]:
        """Jobs that ended after that time; the newest of them, if there are more than the limit."""
        wanted = select(JOB.key).where(schema.job.c.ended > since).order_by(schema.job.c.ended.desc()).limit(limit)
        with self._read("read the jobs that ended") as connection:
            return statements.job_records(connection, wanted)

    def accounts(self, by: Sequence[By], *, since: float, until: float, owner: str = "", limit: int) -> Accounts:
        """What the attempts that ended in that time have used, of this owner or ("") of all; those of jobs that were
        deleted since included."""
        with self._read("add up the accounts") as connection:
            return accounts.accounts(connection, by, since, until, owner, limit)

    def policy(self, version: int | None = None) -> PolicyRecord:
        """The one that was set last, or this version; the defaults, where none was set, or for version 0."""
        wanted = select(*POLICY.columns).order_by(POLICY.key.desc()).limit(1)
        if version is not None:
            wanted = wanted.where(POLICY.key == version)
        with self._read("read the policy") as connection:
            found = statements.read(connection, POLICY, wanted)
        return found[0] if found else PolicyRecord(SchedulingPolicy())

    def put_policy(self, record: PolicyRecord, event: Event) -> bool:
        """False: its version no longer fits (that of the first is 1)."""
        with self._write(f"write version {record.version} of the policy") as connection:
            standing = connection.execute(select(func.max(POLICY.key))).scalar()
            if (standing or 0) != record.version - 1:
                return False
            connection.execute(insert(schema.policy), POLICY.encode(record))
            connection.execute(insert(schema.event), statements.event_row(event))
        return True

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
            connection.execute(delete(schema.denial).where(schema.denial.c.site == name))

    def denials(self, *, since: float) -> list[Denial]:
        """Times when sites did not have what they said, after that time; oldest first."""
        table = schema.denial
        wanted = select(table.c.site, table.c.at, table.c.jobs).where(table.c.at > since).order_by(table.c.at)
        with self._read("read what sites did not have") as connection:
            return [Denial(*row) for row in connection.execute(wanted)]

    def put_denial(self, denial: Denial, *, forget: float) -> None:
        """Keep one; those of that site from before the time `forget` are not needed any more."""
        table = schema.denial
        with self._write(f"write that {denial.site} did not have what it said") as connection:
            old = (table.c.at <= forget) | (table.c.at == denial.at)
            connection.execute(delete(table).where(table.c.site == denial.site, old))
            connection.execute(insert(table).values(site=denial.site, at=denial.at, jobs=denial.jobs))

    def tokens(self) -> list[Token]:
        """Oldest first."""
        with self._read("read the tokens") as connection:
            return access.tokens(connection)

    def put_token(self, token: Token) -> bool:
        """False: its version no longer fits (that of a new one is 1)."""
        with self._write(f"write token {token.id}") as connection:
            return access.put_token(connection, token)

    def answer(self, owner: str, project: str, key: str) -> Answer | None:
        """What a request of this Idempotency-Key was answered."""
        with self._read("read what a request was answered") as connection:
            return access.answer(connection, owner, project, key)

    def put_answers(self, answers: Sequence[Answer], *, forget: float) -> None:
        """Keep these; those from before the time `forget` are not needed any more."""
        with self._write("write what requests were answered") as connection:
            access.put_answers(connection, answers, forget)

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


def _listed(states: Sequence[str], before: str, group: str | None, owner: str) -> Select[Any]:
    """The ids of such jobs, newest first."""
    wanted: Select[Any] = select(JOB.key).order_by(schema.job.c.number.desc())
    if states:
        wanted = wanted.where(schema.job.c.state.in_(states))
    if before:
        wanted = wanted.where(schema.job.c.number < number_of(before))
    if group is not None:
        wanted = wanted.where(groups.of(group))
    if owner:
        wanted = wanted.where(schema.job.c.owner == owner)
    return wanted


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
        for pragma in (f"journal_size_limit={_WAL_KEPT}", "temp_store=MEMORY", *pragmas):
            connection.execute(f"PRAGMA {pragma}").close()

    @event.listens_for(engine, "begin")
    def start(connection: Connection) -> None:
        connection.exec_driver_sql(begin)

    return engine
