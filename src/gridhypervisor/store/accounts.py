"""Sums over what attempts have used, within one transaction: opens none and catches nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, and_, distinct, func, select

from gridhypervisor.model.accounts import Account, Accounts, By
from gridhypervisor.store import schema

_charge = schema.charge.c

_COLUMNS = {
    "user": _charge.owner,
    "project": _charge.project,
    "site": _charge.site,
    "profile": _charge.profile,
    "reason": _charge.reason,
}

_SUMS = (
    func.count(distinct(_charge.job)),
    func.count(),
    func.count().filter(_charge.completed),
    func.total(_charge.waited),
    func.total(_charge.ran),
    func.total(_charge.core_seconds),
    func.total(_charge.double),
)


def accounts(connection: Connection, by: Sequence[By], since: float, until: float, owner: str, limit: int) -> Accounts:
    """Of the attempts that ended after `since`, until `until`; of this owner, or ("") of all."""
    within = and_(_charge.ended > since, _charge.ended <= until)
    if owner:
        within = and_(within, _charge.owner == owner)
    columns = [_COLUMNS[name] for name in by]
    most_first = func.total(_charge.core_seconds).desc()
    grouped = select(*columns, *_SUMS).where(within).group_by(*columns).order_by(most_first, *columns).limit(limit)
    found = [_account(by, row) for row in connection.execute(grouped)] if columns else []
    total = _account((), connection.execute(select(*_SUMS).where(within)).one())
    return Accounts(tuple(by), since, until, tuple(found), total)


def _account(by: Sequence[By], row: Sequence[Any]) -> Account:
    names, sums = row[: len(by)], row[len(by) :]
    jobs, attempts, completed, waited, *seconds = sums
    hours = (each / 3600 for each in seconds)
    return Account(dict(zip(by, names, strict=True)), jobs, attempts, completed, waited, *hours)
