"""Groups and their members, within one transaction: opens none and catches nothing.

Members are born together with the group's own change that says how many there are, so that after a crash there are as
many as it says.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from sqlalchemy import ColumnElement, Connection, Select, and_, bindparam, delete, func, insert, select, text, update

from gridhypervisor.model.commit import Birth, Tally
from gridhypervisor.model.records import Event, Group, JobState
from gridhypervisor.store import births as born
from gridhypervisor.store import schema, statements
from gridhypervisor.store.prepared import put_in
from gridhypervisor.store.rows import GROUP, JOB

_job = schema.job.c


def of(group: str) -> ColumnElement[bool]:
    """Jobs of this group, or ("") of none."""
    return and_(_job["group"] == group, text(schema.MEMBER)) if group else and_(text(schema.ALONE))


def create(connection: Connection, group: Group, event: Event, key: str, nodes: Mapping[str, str]) -> Group:
    """Write a new group under the next number; a key seen before returns the group of then."""
    if key:
        table = schema.group.c
        known = and_(table.owner == group.owner, table.project == group.project, table.idempotency_key == key)
        if standing := statements.read(connection, GROUP, select(*GROUP.columns).where(known)):
            return standing[0]
    group = dataclasses.replace(group, id=f"{letter(group)}{born.reserve(connection, 1)}", version=1)
    connection.execute(insert(schema.group), GROUP.encode(group) | {"idempotency_key": key or None})
    if nodes:
        rows = [{"group": group.id, "name": name, "run": run} for name, run in nodes.items()]
        connection.execute(insert(schema.node), rows)
    event = dataclasses.replace(event, job=group.id, subject=group.id)
    connection.execute(insert(schema.event), statements.event_row(event))
    return group


def letter(group: Group) -> str:
    """With which its id begins."""
    if group.blueprint is not None:
        return "i"
    if group.workflow:
        return "w"
    return "g" if group.spec is not None and group.spec.gang is not None else "a"


def put(
    connection: Connection,
    group: Group,
    births: Sequence[Birth],
    events: Sequence[Event],
    nodes: Mapping[str, str],
) -> bool:
    """Change a group, with new members, whose ids have been reserved. False: its version no longer fits."""
    fits = and_(GROUP.key == group.id, schema.group.c.version == group.version - 1)
    if not connection.execute(update(schema.group).where(fits), GROUP.encode(group)).rowcount:
        return False
    put_in(connection, schema.event, [statements.event_row(event) for event in events])
    if births:
        born.write(connection, births)
    if nodes:
        table = schema.node.c
        one = and_(table["group"] == group.id, table.name == bindparam("_name"))
        changed = [{"_name": name, "run": run} for name, run in nodes.items()]
        connection.execute(update(schema.node).where(one), changed)
    return True


def found(
    connection: Connection, *, ids: Sequence[str], alive: bool, below: int | None, owner: str, limit: int
) -> list[Group]:
    """Newest first."""
    table = schema.group.c
    wanted = select(*GROUP.columns).order_by(table.number.desc()).limit(limit)
    if ids:
        wanted = wanted.where(GROUP.key.in_(ids))
    if alive:
        wanted = wanted.where(table.alive)
    if below is not None:
        wanted = wanted.where(table.number < below)
    if owner:
        wanted = wanted.where(table.owner == owner)
    return statements.read(connection, GROUP, wanted)


def tally(connection: Connection, group: str) -> Tally:
    """How many of its members are in which state, and the first that ended otherwise than well."""
    well = and_(_job.state == JobState.DONE, _job.exit_code == 0)
    of_it = of(group)
    counts = select(_job.state, func.count(), func.min(_job.number).filter(~well)).where(of_it).group_by(_job.state)
    well_done = connection.execute(select(func.count()).where(of_it, well)).scalar_one()
    states, bad = {}, []
    for state, count, first in connection.execute(counts):
        states[JobState(state)] = count
        if JobState(state).final and first is not None:
            bad.append(first)
    return Tally(states, well_done, f"j{min(bad)}" if bad else "")


def member(group: str, name: str) -> Select[tuple[str]]:
    return select(JOB.key).where(of(group), _job.member == name)


def nodes(connection: Connection, group: str) -> dict[str, str]:
    table = schema.node.c
    found = connection.execute(select(table.name, table.run).where(table["group"] == group))
    return {str(name): str(run) for name, run in found}


def remove(connection: Connection, group: str, event: Event) -> None:
    """Forget a group that has no members any more; its events stay, with this one after them."""
    connection.execute(delete(schema.node).where(schema.node.c["group"] == group))
    if connection.execute(delete(schema.group).where(GROUP.key == group)).rowcount:
        connection.execute(insert(schema.event), statements.event_row(event))
