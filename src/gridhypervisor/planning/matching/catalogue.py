"""What every site and node publishes, as columns: one row a place, kept up by deltas.

Rows are in the order of their names, whatever happened before: so the same facts give the same columns, and with them
the same choice. A site's own row comes before its nodes'. Nothing is decided here.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from gridhypervisor.model.expressions.vocabulary import ATTRIBUTES, Nothing, Of, Scalar, Type, attribute, nearest
from gridhypervisor.planning.matching.classads import classad_of
from gridhypervisor.planning.matching.columns import UNDEFINED, Array, Column, Table, dtype_of, encode

MOST_REMEMBERED = 2_000  # answers, until the next change


class Place(NamedTuple):
    site: str
    node: str = ""  # empty: the site as a whole


class Catalogue:
    """The rows. Reading is cheap; a change costs some microseconds for each row that it touches."""

    def __init__(self) -> None:
        self._places: list[Place] = []
        self._room = 64
        self._tables: dict[str, Table] = {}
        self._at: dict[str, tuple[Type, int]] = {}  # attribute → its type, and which line of that type's block
        counts: dict[Type, int] = {}
        for name, each in ATTRIBUTES.items():
            self._at[name] = (each.type, counts.setdefault(each.type, 0))
            counts[each.type] += 1
            if each.type.coded:
                self._tables[name] = Table()
        self._blocks = {kind: np.zeros((n, self._room), dtype_of(kind)) for kind, n in counts.items()}
        numbers = (Type.INT, Type.REAL)
        self._states = {kind: np.full((counts[kind], self._room), UNDEFINED, np.uint8) for kind in numbers}
        self._columns: dict[str, Column] = {}
        self.remembered: dict[Any, Any] = {}
        """Answers about the rows as they are, for whoever asks often; forgotten at every change."""

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[Place]:
        return iter(self._places)

    def __contains__(self, place: Place) -> bool:
        row = bisect_left(self._places, place)
        return row < len(self._places) and self._places[row] == place

    @property
    def places(self) -> list[Place]:
        """The place of each row, in their order; not to be changed."""
        return self._places

    def row(self, place: Place) -> int:
        """Which row is the place's.

        Raises:
            KeyError: it has none.
        """
        row = bisect_left(self._places, place)
        if row == len(self._places) or self._places[row] != place:
            raise KeyError(f"{'/'.join(filter(None, place))} is not in the catalogue")
        return row

    def rows_of(self, site: str) -> slice:
        """The rows of a site and of its nodes."""
        return slice(bisect_left(self._places, Place(site)), bisect_left(self._places, Place(site + "\0")))

    def set(self, place: Place, values: Mapping[str, Scalar]) -> None:
        """Make or replace a place's row. What `values` lacks is undefined there.

        `Site` and `Node` are the place's own. A value of another type than its attribute's is an error there.

        Raises:
            ValueError: an attribute is not in the vocabulary, or is one of a job.
        """
        _check(values)
        if place not in self:
            self._insert(bisect_left(self._places, place), place)
        row = self.row(place)
        for kind, block in self._blocks.items():
            block[:, row] = UNDEFINED if kind is Type.BOOL else 0
        for states in self._states.values():
            states[:, row] = UNDEFINED
        node = place.node or Nothing.UNDEFINED
        self._write(slice(row, row + 1), {**values, "Site": place.site, "Node": node})

    def patch(self, site: str, values: Mapping[str, Scalar]) -> None:
        """Change some attributes of a site, in its own row and in its nodes'. The others stay.

        Raises:
            ValueError: an attribute is not in the vocabulary, or is not a site's.
        """
        _check(values, site_only=True)
        self._write(self.rows_of(site), values)

    def remove(self, place: Place) -> None:
        """Forget a place; nothing happens if it is not there."""
        if place in self:
            row = self.row(place)
            self._delete(slice(row, row + 1))

    def remove_site(self, site: str) -> None:
        """Forget a site and its nodes."""
        self._delete(self.rows_of(site))

    def column(self, name: str) -> Column:
        """What all places say of an attribute of that name; as long as the catalogue. Good until the next change."""
        if (column := self._columns.get(name)) is None:
            kind, line = self._at[name]
            data = self._blocks[kind][line, : len(self)]
            state: Array | None = None
            if kind in self._states:
                states = self._states[kind][line, : len(self)]
                state = states if states.any() else None
            column = self._columns[name] = Column(kind, data, state, self._tables.get(name))
        return column

    def values(self, place: Place) -> dict[str, Scalar]:
        """What is known of a place.

        Raises:
            KeyError: it has no row.
        """
        row = self.row(place)
        found = {name: one_of(self.column(name), row).values(1)[0] for name in self._at}
        return {name: value for name, value in found.items() if value is not Nothing.UNDEFINED}

    def ad(self, place: Place) -> Any:
        """The same as a `classad2.ClassAd`."""
        return classad_of(self.values(place))

    def _all(self) -> Iterator[Array]:
        yield from self._blocks.values()
        yield from self._states.values()

    def _write(self, rows: slice, values: Mapping[str, Scalar]) -> None:
        for name, value in values.items():
            kind, line = self._at[name]
            block = self._blocks[kind]
            if kind.coded:
                block[line, rows] = self._tables[name].code(value if _fits(kind, value) else Nothing.ERROR)
                continue
            stored, state = encode(kind, value)
            block[line, rows] = state if kind is Type.BOOL and state else stored
            if kind is not Type.BOOL:
                self._states[kind][line, rows] = state
        self._changed()

    def _insert(self, row: int, place: Place) -> None:
        count = len(self._places)
        if count == self._room:
            self._room *= 2
            for blocks in (self._blocks, self._states):
                for kind, block in blocks.items():
                    blocks[kind] = np.concatenate([block, np.zeros_like(block)], axis=1)
        for block in self._all():
            block[:, row + 1 : count + 1] = block[:, row:count]
        self._places.insert(row, place)
        self._changed()

    def _delete(self, rows: slice) -> None:
        count = len(self._places)
        left = count - (rows.stop - rows.start)
        for block in self._all():
            block[:, rows.start : left] = block[:, rows.stop : count]
        del self._places[rows]
        self._changed()

    def _changed(self) -> None:
        self._columns.clear()
        self.remembered.clear()

    def remember(self, key: Any, answer: Any) -> None:
        """Keep an answer about the rows as they are, until the next change."""
        if len(self.remembered) >= MOST_REMEMBERED:
            self.remembered.clear()
        self.remembered[key] = answer


def one_of(column: Column, row: int) -> Column:
    """A column of one row's value."""
    part = slice(row, row + 1) if len(column.data) > 1 else slice(0, 1)
    state = column.state
    if state is not None and len(state) > 1:
        state = state[row : row + 1]
    return Column(column.type, column.data[part], state, column.table)


def _fits(kind: Type, value: Scalar) -> bool:
    if isinstance(value, Nothing):
        return True
    if kind is Type.STRING:
        return isinstance(value, str)
    return isinstance(value, tuple) and all(isinstance(item, str) for item in value)


def _check(values: Mapping[str, Scalar], *, site_only: bool = False) -> None:
    for name in values:
        known = attribute(name)
        if known is None or known.name != name:
            guess = nearest(name, ATTRIBUTES)
            raise ValueError(f"{name} is not an attribute of places; {guess}".rstrip("; "))
        if known.of is Of.JOB:
            raise ValueError(f"{name} differs from job to job: it is given with the question")
        if site_only and known.of is not Of.SITE:
            raise ValueError(f"{name} is a node's: set that node's row")
