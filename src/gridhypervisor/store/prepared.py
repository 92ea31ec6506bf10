"""Statements of which the text is put together once: with SQLAlchemy that takes longer than what SQLite then does.

For what every job does several times. Values go to the database as they stand, so only for columns of text, numbers and
truths, as all of ours are. It opens no transaction and catches nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from sqlalchemy import Connection, Insert, Table, Update, bindparam, insert, update
from sqlalchemy.sql.compiler import SQLCompiler

from gridhypervisor.store.rows import Row


class Prepared:
    """One statement, for one set of columns."""

    def __init__(self, clause: Insert | Update, columns: Sequence[str]) -> None:
        self._clause, self._columns = clause, list(columns)
        self._texts: dict[str, tuple[str, list[str]]] = {}  # by the database's dialect: text, and parameters in order

    def __call__(self, connection: Connection, rows: Sequence[Row]) -> int:
        """Execute it for each row; how many rows of the table it has met."""
        text, names = self._text(connection)
        return connection.exec_driver_sql(text, [tuple([row[name] for name in names]) for row in rows]).rowcount

    def _text(self, connection: Connection) -> tuple[str, list[str]]:
        dialect = connection.dialect
        known = self._texts.get(dialect.name)
        if known is None:
            compiled: Any = self._clause.compile(dialect=dialect, column_keys=self._columns)
            assert isinstance(compiled, SQLCompiler) and compiled.positiontup is not None
            known = self._texts[dialect.name] = compiled.string, list(compiled.positiontup)
        return known


@cache
def inserting(table: Table, columns: tuple[str, ...]) -> Prepared:
    """INSERT of these columns."""
    return Prepared(insert(table).inline(), columns)


@cache
def replacing(table: Table, key: str, columns: tuple[str, ...]) -> Prepared:
    """UPDATE of the row whose `key` is the parameter `_key`, if its version is the parameter `_was`."""
    guarded = update(table).where(table.c[key] == bindparam("_key"), table.c.version == bindparam("_was"))
    return Prepared(guarded, columns)


def put_in(connection: Connection, table: Table, rows: Sequence[Row]) -> None:
    """Insert rows, all of the same columns."""
    if rows:
        inserting(table, tuple(rows[0]))(connection, rows)
