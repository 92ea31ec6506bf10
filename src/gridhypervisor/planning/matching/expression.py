"""The questions that are asked of a catalogue: does it match, how well, and why not.

An expression is compiled once, and found again by its text. An answer is remembered until the catalogue changes, since
the jobs of an array all ask the same.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gridhypervisor.model.expressions.checking import check, is_number, is_truth
from gridhypervisor.model.expressions.syntax import Node, conjuncts, parse, references
from gridhypervisor.model.expressions.vocabulary import ATTRIBUTES, Nothing, Of, Scalar, Type, attribute
from gridhypervisor.planning.matching import columns
from gridhypervisor.planning.matching.catalogue import Catalogue, Place, one_of
from gridhypervisor.planning.matching.columns import Column
from gridhypervisor.planning.matching.compiling import Run, compile_tree

Booleans = NDArray[np.bool_]
Reals = NDArray[np.float64]
Given = Mapping[str, Column | Scalar]
"""What a job brings along: its own attributes (`Of.JOB`), one value for all places or a column of one a row."""

MOST_COMPILED = 4_096


class Use(enum.Enum):
    REQUIREMENTS = "requirements"
    PART = "a part of requirements"  # which may be a number too: true unless it is zero
    RANK = "rank"


@dataclass(frozen=True)
class Expression:
    """A compiled expression; equal to any other of its text and use."""

    text: str
    use: Use
    tree: Node = field(compare=False, repr=False)
    reads: tuple[str, ...] = field(compare=False)  # attributes, in the order in which they are read
    columnar: bool = field(compare=False)  # whether NumPy answers; else the library, place by place
    run: Run = field(compare=False, repr=False)

    @cached_property
    def conjuncts(self) -> tuple[Expression, ...]:
        """The parts that must all hold."""
        return tuple(_compile(self.text[node.start : node.end], Use.PART) for node in conjuncts(self.tree))

    @cached_property
    def own(self) -> bool:
        """Whether its answer differs from job to job."""
        return any(ATTRIBUTES[name].of is Of.JOB for name in self.reads)


@dataclass(frozen=True)
class Ranking:
    values: Reals  # the higher the better; 0 where the rank is undefined or spoilt
    spoilt: Booleans  # where it is an error: divided by zero, or beyond all bounds
    blind: bool = False  # it is undefined everywhere: it reads what nobody publishes

    def warning(self, expression: Expression, catalogue: Catalogue) -> str:
        """What to tell the job's owner; empty if there is nothing amiss."""
        if self.blind:
            saw = _seen(expression, Rows(catalogue, 0))
            return f"rank {expression.text} is undefined at every site, so it prefers none ({saw})"
        rows = np.flatnonzero(self.spoilt)
        if not len(rows):
            return ""
        place = catalogue.places[int(rows[0])]
        where = f"{'/'.join(filter(None, place))}" + (f" and {len(rows) - 1} more" if len(rows) > 1 else "")
        saw = _seen(expression, Rows(catalogue, int(rows[0])))
        return f"rank {expression.text} is no number at {where} and counts as 0 there" + (f" ({saw})" if saw else "")


@dataclass(frozen=True)
class Failed:
    """A part of the requirements that does not hold at a place."""

    text: str
    verdict: str  # false, unknown (it reads what is not known there) or error
    saw: Mapping[str, Scalar]  # what it read

    def __str__(self) -> str:
        saw = "; ".join(show(name, value) for name, value in self.saw.items())
        if self.verdict == "error":
            return f"{self.text} is an error here" + (f" ({saw})" if saw else "")
        return f"{self.text} does not hold" + (f": {saw}" if saw else "")


def compile_requirements(text: str) -> Expression:
    """What a place has to be.

    Raises:
        ExpressionError: the text means nothing, or its result is neither true nor false.
    """
    return _compile(text.strip(), Use.REQUIREMENTS)


def compile_rank(text: str) -> Expression:
    """How good a place is.

    Raises:
        ExpressionError: the text means nothing, or its result is no number.
    """
    return _compile(text.strip(), Use.RANK)


_WANTED: dict[Use, Callable[[Type], bool]] = {
    Use.REQUIREMENTS: is_truth,
    Use.PART: lambda kind: kind.numeric or kind is Type.NOTHING,
    Use.RANK: is_number,
}


@lru_cache(MOST_COMPILED)
def _compile(text: str, use: Use) -> Expression:
    tree = parse(text)
    types = check(tree, text, _WANTED[use])
    run, columnar = compile_tree(tree, types)
    names = dict.fromkeys(known.name for each in references(tree) if (known := attribute(each.name)) is not None)
    return Expression(text, use, tree, tuple(names), columnar, run)


class Rows:
    """A catalogue, or one row of it, with what a job brings along."""

    def __init__(self, catalogue: Catalogue, row: int | None = None, given: Given | None = None) -> None:
        self._catalogue, self._row, self._given = catalogue, row, given or {}

    def column(self, name: str) -> Column:
        if ATTRIBUTES[name].of is Of.JOB:
            value = self._given.get(name, Nothing.UNDEFINED)
            column = value if isinstance(value, Column) else columns.column_of(ATTRIBUTES[name].type, [value])
        else:
            column = self._catalogue.column(name)
        return column if self._row is None else one_of(column, self._row)


def match(expression: Expression, catalogue: Catalogue, given: Given | None = None) -> Booleans:
    """Where the requirements are true; neither undefined nor an error is. Not to be changed.

    `given`: the job's own attributes, as `columns.column_of` makes columns of them, or one value for all places.
    """
    if not len(catalogue):
        return np.zeros(0, np.bool_)
    known: Booleans | None = None if expression.own else catalogue.remembered.get(expression)
    if known is not None:
        return known
    found = columns.truth(expression.run(Rows(catalogue, given=given))) == columns.TRUE
    answer: Booleans = _frozen(np.broadcast_to(found, len(catalogue)))
    if not expression.own:
        catalogue.remember(expression, answer)
    return answer


def rank(expression: Expression, catalogue: Catalogue, given: Given | None = None) -> Ranking:
    """How good each place is; what is undefined counts as 0, as in HTCondor, and so does what is spoilt."""
    if not len(catalogue):
        return Ranking(np.zeros(0), np.zeros(0, np.bool_))
    known: Ranking | None = None if expression.own else catalogue.remembered.get(expression)
    if known is not None:
        return known
    found = expression.run(Rows(catalogue, given=given))
    states = found.states()
    truth = found.type is Type.BOOL
    values = (found.data == columns.TRUE if truth else found.data).astype(np.float64)
    spoilt = (states == columns.ERROR) | ((states == columns.FALSE) & ~np.isfinite(values))
    values = np.where((states != columns.FALSE) | spoilt, 0.0, values)
    size = len(catalogue)
    blind = bool((states == columns.UNDEFINED).all())
    answer = Ranking(_frozen(np.broadcast_to(values, size)), _frozen(np.broadcast_to(spoilt, size)), blind)
    if not expression.own:
        catalogue.remember(expression, answer)
    return answer


def why_not(
    expression: Expression, catalogue: Catalogue, place: Place, given: Given | None = None
) -> tuple[Failed, ...]:
    """The parts of the requirements that are not true at a place, with what they saw; none: it matches.

    Raises:
        KeyError: the catalogue has no such place.
    """
    rows = Rows(catalogue, catalogue.row(place), given)
    failed = []
    for part in expression.conjuncts:
        [verdict] = columns.truth(part.run(rows)).tolist()
        if verdict != columns.TRUE:
            words = {columns.FALSE: "false", columns.UNDEFINED: "unknown", columns.ERROR: "error"}[verdict]
            failed.append(Failed(part.text, words, {name: rows.column(name).values(1)[0] for name in part.reads}))
    return tuple(failed)


def show(name: str, value: Scalar) -> str:
    """What a place says of an attribute, in words."""
    unit = ATTRIBUTES[name].unit
    match value:
        case Nothing.UNDEFINED:
            return f"{name} is not known"
        case Nothing.ERROR:
            return f"{name} is not what it should be"
        case bool():
            words = str(value).lower()
        case float():
            words = f"{value:.6g}"
        case tuple():
            words = ", ".join(value) or "none"
        case _:
            words = str(value)
    return f"{name} is {words}" + (f" {unit}" if unit else "")


def _seen(expression: Expression, rows: Rows) -> str:
    return "; ".join(show(name, rows.column(name).values(1)[0]) for name in expression.reads)


def _frozen(array: NDArray[Any]) -> NDArray[Any]:
    copy = np.array(array)
    copy.setflags(write=False)
    return copy
