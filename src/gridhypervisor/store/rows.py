"""How a record becomes a row and a row a record again. Pure: what is stored where follows from the records' types.

Text, numbers and truths are stored as they are, enums by their value, everything else as JSON text.
"""

from __future__ import annotations

import dataclasses
import enum
import types
import typing
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import msgspec
from sqlalchemy import Column, Table

from gridhypervisor.model.accounts import Charge
from gridhypervisor.model.policy import PolicyRecord
from gridhypervisor.model.records import (
    Allocation,
    AllocationState,
    CheckpointRecord,
    Event,
    Group,
    Job,
    Ledger,
    PilotJob,
    Site,
    Vm,
    Wish,
)
from gridhypervisor.model.token import Token
from gridhypervisor.store import schema

R = TypeVar("R")

Row = dict[str, Any]

_Encoders = list[tuple[str, Callable[[Any], Any]]]
"""Columns, and what makes their values."""


class Rows(Generic[R]):
    """The rows of one kind of record.

    `key` names the column that identifies one; `derived` are columns that are computed from the record, for searching;
    `parents` are the records that must exist before this one: the fields that name them, and their rows; `fixed` are
    the columns that stay as they were first written, which a change leaves alone, with the indexes over them.
    """

    def __init__(
        self,
        kind: type[R],
        table: Table,
        key: str,
        derived: dict[str, Callable[[R], Any]] | None = None,
        parents: dict[str, Rows[Any]] | None = None,
        fixed: frozenset[str] = frozenset(),
    ) -> None:
        self.kind = kind
        self.table = table
        self.key: Column[Any] = table.c[key]
        self._key = key
        self._derived = derived or {}
        self.parents = parents or {}
        hints = typing.get_type_hints(kind)
        self._fields = [(f.name, *_codec(hints[f.name])) for f in dataclasses.fields(typing.cast(Any, kind))]
        self.columns = [table.c[name] for name, _, _ in self._fields]
        self._whole = [(name, encode) for name, encode, _ in self._fields], list(self._derived.items())
        self._parts = tuple([pair for pair in pairs if pair[0] not in fixed] for pairs in self._whole)

    def key_of(self, record: R) -> str:
        return str(getattr(record, self._key))

    def encode(self, record: R) -> Row:
        """The row of a record.

        Raises:
            ValueError: a text in it cannot be stored (a lone surrogate: half of a character).
        """
        return self._row(record, *self._whole)

    def changes(self, record: R) -> Row:
        """What of its row may differ from that of an earlier version. Raises as `encode`."""
        return self._row(record, *self._parts)

    def _row(self, record: R, fields: _Encoders, derived: _Encoders) -> Row:
        row = {name: encode(getattr(record, name)) for name, encode in fields}
        for name, derive in derived:
            row[name] = derive(record)
        for name, value in row.items():
            if isinstance(value, str) and not value.isascii():
                try:
                    value.encode()
                except UnicodeEncodeError as error:
                    raise ValueError(f"{name} of {self.key_of(record)} is not valid text: {error}") from error
        return row

    def decode(self, values: typing.Sequence[Any]) -> R:
        """The record of a row, whose values come in the order of `columns`.

        Raises:
            ValueError: a value is none that this version can have written.
        """
        try:
            return self.kind(*[decode(value) for (_, _, decode), value in zip(self._fields, values, strict=True)])
        except (msgspec.MsgspecError, ValueError) as error:
            raise ValueError(f"a {self.kind.__name__} that this version cannot read: {error}") from error


def _same(value: Any) -> Any:
    return value


def _codec(hint: Any) -> tuple[Callable[[Any], Any], Callable[[Any], Any]]:
    """How a field of this type is written and read."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        inner = [a for a in typing.get_args(hint) if a is not type(None)]
        if len(inner) == 1:
            encode, decode = _codec(inner[0])
            return (
                lambda value: None if value is None else encode(value),
                lambda value: None if value is None else decode(value),
            )
    if hint in (str, int, float, bool):
        return _same, _same
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return (lambda value: value.value), hint
    return (lambda value: msgspec.json.encode(value).decode()), msgspec.json.Decoder(hint).decode


OWNED = frozenset({"id", "owner", "project"})
"""Fixed, of every record."""

JOB = Rows(
    Job,
    schema.job,
    "id",
    derived={
        "number": lambda job: number_of(job.id),
        "alive": lambda job: not job.state.final or job.wish is Wish.DELETE,
    },
    fixed=OWNED
    | {"number", "name", "destination", "folder", "image", "image_digest", "created", "group", "member", "service"},
)
VM = Rows(Vm, schema.vm, "id", parents={"job": JOB}, fixed=OWNED | {"job"})
PILOT_JOB = Rows(PilotJob, schema.pilot_job, "name", fixed=OWNED | {"name", "site"})
ALLOCATION = Rows(
    Allocation,
    schema.allocation,
    "id",
    derived={"alive": lambda allocation: allocation.state is not AllocationState.CLEANED},
    parents={"job": JOB, "vm": VM, "pilot_job": PILOT_JOB},
    fixed=OWNED | {"job", "vm", "epoch", "pilot_job", "site", "segment", "ahead", "expected"},
)
CHECKPOINT = Rows(
    CheckpointRecord,
    schema.checkpoint,
    "id",
    derived={"alive": lambda checkpoint: not checkpoint.over},
    parents={"job": JOB},
    fixed=OWNED | {"job", "entry", "site", "bytes", "executed", "made", "checkpoint"},
)
GROUP = Rows(
    Group,
    schema.group,
    "id",
    derived={
        "number": lambda group: number_of(group.id),
        "alive": lambda group: not group.state.final or group.wish is Wish.DELETE,
    },
)
LEDGER = Rows(Ledger, schema.ledger, "job", parents={"job": JOB})
EVENT = Rows(Event, schema.event, "sequence")
CHARGE = Rows(Charge, schema.charge, "allocation")
SITE = Rows(Site, schema.site, "name")
POLICY = Rows(PolicyRecord, schema.policy, "version")
TOKEN = Rows(Token, schema.token, "id")

VERSIONED: tuple[Rows[Any], ...] = (JOB, VM, PILOT_JOB, ALLOCATION, CHECKPOINT)
"""What a commit may change, parents first."""

BY_KIND: dict[type, Rows[Any]] = {rows.kind: rows for rows in VERSIONED}


def number_of(name: str) -> int:
    """Which job or group this is, counted from 1: 12 of "j12" or "a12".

    Raises:
        ValueError: it is no id of either.
    """
    if not (name[:1] in ("j", "a", "g", "w", "i") and name[1:].isascii() and name[1:].isdecimal() and len(name) < 19):
        raise ValueError(f"{name!r} is not a job's id; they look like j12")
    return int(name[1:])
