"""New jobs, within one transaction: opens none and catches nothing.

However many are born together, each table is written once: a statement of its own for each would cost more than all
that becomes of the job later.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

from sqlalchemy import Connection, select, tuple_, update

from gridhypervisor.model.commit import Birth, JobRecords
from gridhypervisor.store import schema, statements
from gridhypervisor.store.prepared import put_in
from gridhypervisor.store.rows import JOB, VM, number_of

_table = schema.job.c

Ident = tuple[str, str, str]
"""Owner, project and idempotency key of a job."""


def reserve(connection: Connection, count: int) -> int:
    """Numbers that no job and no group has, nor ever will have but by who asked: the first of so many in a row."""
    last = schema.meta.c.name == "last_job"
    number = int(connection.execute(select(schema.meta.c.value).where(last)).scalar_one())
    connection.execute(update(schema.meta).where(last).values(value=str(number + count)))
    return number + 1


def create(connection: Connection, births: Sequence[Birth]) -> list[JobRecords]:
    """Write new jobs, numbering those for which no number was reserved. A key seen before, of these or of earlier ones,
    gives the job of then."""
    known = _known(connection, {_ident(birth) for birth in births if birth.idempotency_key})
    new: dict[Ident | int, Birth] = {}
    for place, birth in enumerate(births):
        if (ident := _ident(birth) if birth.idempotency_key else place) not in known:
            new.setdefault(ident, birth)
    nameless = sum(not birth.job.id for birth in new.values())
    numbers = itertools.count(reserve(connection, nameless) if nameless else 0)
    named = {i: _named(b, number_of(b.job.id) if b.job.id else next(numbers)) for i, b in new.items()}
    write(connection, list(named.values()))
    made = known | {ident: JobRecords(birth.job, birth.vm) for ident, birth in named.items()}
    return [made[_ident(birth) if birth.idempotency_key else place] for place, birth in enumerate(births)]


def write(connection: Connection, births: Sequence[Birth]) -> None:
    """Write new jobs that have their ids.

    Raises:
        ValueError: one could not be read again.
    """
    jobs = [JOB.encode(birth.job) | {"idempotency_key": birth.idempotency_key or None} for birth in births]
    for row in jobs:
        JOB.decode([row[column.name] for column in JOB.columns])  # what could not be read again is refused now
    put_in(connection, schema.job, jobs)
    put_in(connection, schema.vm, [VM.encode(birth.vm) for birth in births])
    put_in(connection, schema.event, [statements.event_row(birth.event) for birth in births])


def _ident(birth: Birth) -> Ident:
    return birth.job.owner, birth.job.project, birth.idempotency_key


def _named(birth: Birth, number: int) -> Birth:
    job = dataclasses.replace(birth.job, id=f"j{number}", version=1)
    vm = dataclasses.replace(birth.vm, id=f"v{number}", job=job.id, version=1)
    return Birth(job, vm, dataclasses.replace(birth.event, job=job.id, subject=job.id), birth.idempotency_key)


def _known(connection: Connection, idents: set[Ident]) -> dict[Ident | int, JobRecords]:
    """The jobs of keys that were seen before."""
    found: dict[Ident | int, JobRecords] = {}
    ordered, most = sorted(idents), statements.AT_ONCE // 3
    columns = _table.owner, _table.project, _table.idempotency_key
    for start in range(0, len(ordered), most):
        wanted = tuple_(*columns).in_(ordered[start : start + most])
        idents_of = {
            row[0]: (row[1], row[2], row[3]) for row in connection.execute(select(JOB.key, *columns).where(wanted))
        }
        if idents_of:
            standing = statements.job_records(connection, select(JOB.key).where(wanted))
            found |= {idents_of[records.job.id]: records for records in standing}
    return found
