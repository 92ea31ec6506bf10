"""Values of one expression at all places at once, and the operators of the ClassAd language over them.

Every operator is total, as in that language: at each place a value is defined, undefined or an error, and each result
says which. Results were read off the library, which a property test asks again:
- `&&`, `||` and `? :` look at their left side first: an error there is an error, whatever the right side is.
- All else but `=?=` and `=!=` is an error where a part is, else undefined where a part is.
- Whole numbers have 64 bits and wrap round; division by zero is an error; so is a fraction of plus infinity.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gridhypervisor.model.expressions.vocabulary import Nothing, Scalar, Type

Array = NDArray[Any]

FALSE, TRUE, UNDEFINED, ERROR = range(4)
"""A truth value at one place; of a number's `state`, FALSE says that it is defined."""

_SMALLEST = np.iinfo(np.int64).min
_AND = np.array([0, 0, 0, 0, 0, 1, 2, 3, 0, 2, 2, 3, 3, 3, 3, 3], np.uint8)  # index: left * 4 + right
_OR = np.array([0, 1, 2, 3, 1, 1, 1, 1, 2, 1, 2, 3, 3, 3, 3, 3], np.uint8)
_NOT = np.array([1, 0, 2, 3], np.uint8)

_DTYPES: dict[Type, Any] = {
    Type.BOOL: np.uint8,
    Type.INT: np.int64,
    Type.REAL: np.float64,
    Type.NOTHING: np.int64,
    Type.STRING: np.int32,
    Type.LIST: np.int32,
}


def dtype_of(kind: Type) -> Any:
    """What a column of that type is stored as."""
    return _DTYPES[kind]


@dataclass
class Table:
    """The different values of a column of text or lists; grows at its end alone. 0 is undefined, 1 an error."""

    values: list[Scalar] = field(default_factory=lambda: [Nothing.UNDEFINED, Nothing.ERROR])
    codes: dict[Scalar, int] = field(default_factory=lambda: {Nothing.UNDEFINED: 0, Nothing.ERROR: 1})

    def code(self, value: Scalar) -> int:
        if (code := self.codes.get(value)) is None:
            code = self.codes[value] = len(self.values)
            self.values.append(value)
        return code


@dataclass(frozen=True)
class Column:
    """One value a place; an array of length one stands for the same at all places.

    `data`: truth values for BOOL, codes of `table` for text and lists, else numbers, which mean something where `state`
    is FALSE. `state` None: defined everywhere.
    """

    type: Type
    data: Array
    state: Array | None = None
    table: Table | None = None

    def states(self) -> Array:
        """FALSE where it is defined, else UNDEFINED or ERROR."""
        if self.type is Type.BOOL:
            return np.where(self.data >= UNDEFINED, self.data, FALSE).astype(np.uint8)
        if self.type.coded:
            return np.array([UNDEFINED, ERROR, FALSE], np.uint8)[np.minimum(self.data, 2)]
        return self.state if self.state is not None else np.zeros(1, np.uint8)

    def values(self, length: int) -> list[Scalar]:
        """The value at each of `length` places."""
        data = np.broadcast_to(self.data, length).tolist()
        if self.table is not None:
            return [self.table.values[code] for code in data]
        states = np.broadcast_to(self.states(), length).tolist()
        plain = [bool(v) for v in data] if self.type is Type.BOOL else data
        return [value if not state else _NOTHINGS[state] for value, state in zip(plain, states, strict=True)]


_NOTHINGS = {UNDEFINED: Nothing.UNDEFINED, ERROR: Nothing.ERROR}
_STATES = {nothing: state for state, nothing in _NOTHINGS.items()}


def column_of(kind: Type, values: Iterable[Scalar]) -> Column:
    """A column of these values. What is not of that type, whole numbers of 64 bits for INT among it, is an error."""
    if kind.coded:
        table = Table()
        return Column(kind, np.array([table.code(v) for v in values], np.int32), table=table)
    stored = [encode(kind, value) for value in values]
    data = np.array([value for value, _ in stored], dtype_of(kind))
    state = np.array([state for _, state in stored], np.uint8)
    if kind is Type.BOOL:
        return Column(kind, np.where(state, state, data).astype(np.uint8))
    return Column(kind, data, state if state.any() else None)


def encode(kind: Type, value: Scalar) -> tuple[bool | int | float, int]:
    """What a column of numbers or truth values stores for one value, and its state."""
    if isinstance(value, Nothing):
        return 0, _STATES[value]
    match kind:
        case Type.BOOL if isinstance(value, bool):
            return value, FALSE
        case Type.INT if isinstance(value, int) and _SMALLEST <= value <= -_SMALLEST - 1:
            return int(value), FALSE
        case Type.REAL if isinstance(value, (int, float)):
            return float(value), FALSE
    return 0, ERROR


# --- Truth. -----------------------------------------------------------------------------------------------------------


def truth(column: Column) -> Array:
    """Truth values, as `&&`, `!` and `?` see them: a number is true unless it is zero."""
    if column.type is Type.BOOL:
        return column.data
    return _told(column.data != 0, column.state)


def _told(answer: Array, state: Array | None) -> Array:
    """Truth values from answers and where there is none."""
    codes: Array = answer.view(np.uint8)
    return codes if state is None else np.where(state, state, codes)


def negate(column: Column) -> Column:
    return Column(Type.BOOL, np.take(_NOT, truth(column)))


def both(left: Column, right: Column) -> Column:
    return Column(Type.BOOL, np.take(_AND, truth(left) * np.uint8(4) + truth(right)))


def either(left: Column, right: Column) -> Column:
    return Column(Type.BOOL, np.take(_OR, truth(left) * np.uint8(4) + truth(right)))


# --- Numbers. ---------------------------------------------------------------------------------------------------------


def _numbers(column: Column) -> tuple[Array, Array | None]:
    """Numbers and their state; truth as 0 and 1."""
    if column.type is not Type.BOOL:
        return column.data, column.state
    if (column.data < UNDEFINED).all():
        return column.data.astype(np.int64), None
    return (column.data == TRUE).astype(np.int64), column.states()


def _worst(left: Array | None, right: Array | None) -> Array | None:
    if left is None or right is None:
        return left if right is None else right
    return np.maximum(left, right)


_COMPARE: dict[str, Callable[[Array, Array], Array]] = {
    "<": np.less,
    "<=": np.less_equal,
    ">": np.greater,
    ">=": np.greater_equal,
    "==": np.equal,
    "!=": np.not_equal,
}
_RECKON: dict[str, Callable[[Array, Array], Array]] = {
    "+": np.add,
    "-": np.subtract,
    "*": np.multiply,
    "/": np.true_divide,
}


def compare(operator: str, left: Column, right: Column) -> Column:
    (a, a_state), (b, b_state) = _numbers(left), _numbers(right)
    return Column(Type.BOOL, _told(_COMPARE[operator](a, b), _worst(a_state, b_state)))


def reckon(operator: str, kind: Type, left: Column, right: Column) -> Column:
    """`+ - * / %` of numbers. `kind`: INT where both are whole, else REAL."""
    (a, a_state), (b, b_state) = _numbers(left), _numbers(right)
    state = _worst(a_state, b_state)
    with np.errstate(all="ignore"):
        if kind is Type.REAL:
            data = _RECKON[operator](a, b)
            wrong = np.isposinf(data)
        elif operator in "/%":
            data, wrong = _divide(a, b)[operator == "%"], b == 0
        else:
            return Column(kind, _RECKON[operator](a, b), state)
    if wrong.any():
        errors = wrong.view(np.uint8) * np.uint8(ERROR)
        state = errors if state is None else np.where(state, state, errors)
    return Column(kind, data, state)


def _divide(a: Array, b: Array) -> tuple[Array, Array]:
    """Quotient towards zero, and the remainder that has the sign of the dividend; of division by zero, anything."""
    safe = np.where((b == 0) | (b == -1), 1, b)
    quotient = a // safe
    rest = a - quotient * safe
    quotient = quotient + ((rest != 0) & ((a < 0) != (safe < 0)))
    # The smallest number has no opposite: the library answers with the largest.
    opposite = np.where(a == _SMALLEST, -_SMALLEST - 1, -a)
    return np.where(b == -1, opposite, quotient), np.where(b == -1, 0, a - quotient * safe)


def minus(column: Column) -> Column:
    with np.errstate(all="ignore"):
        return Column(column.type, -column.data, column.state)


def real(column: Column) -> Column:
    """The same numbers as fractions."""
    data, state = _numbers(column)
    return Column(Type.REAL, data.astype(np.float64), state)


# --- Choices, and what is or is not. ----------------------------------------------------------------------------------


def identical(left: Column, right: Column) -> Column:
    """`=?=`: of one type and equal, or both undefined, or both an error. Never undefined itself. Not of text, lists."""
    a_state, b_state = left.states(), right.states()
    same = a_state == b_state
    if left.type is not right.type:
        return Column(Type.BOOL, _told(same & (a_state != FALSE), None))
    equal = (a_state != FALSE) | (_numbers(left)[0] == _numbers(right)[0])
    return Column(Type.BOOL, _told(same & equal, None))


def is_undefined(column: Column) -> Column:
    return Column(Type.BOOL, _told(column.states() == UNDEFINED, None))


def is_error(column: Column) -> Column:
    return Column(Type.BOOL, _told(column.states() == ERROR, None))


def choose(condition: Column, chosen: Column, other: Column) -> Column:
    """`condition ? chosen : other`; both of one type, or one of them NOTHING."""
    return _merge(truth(condition), chosen, other)


def default(value: Column, other: Column) -> Column:
    """`value ?: other`."""
    states = value.states()
    which = np.where(states == UNDEFINED, np.uint8(FALSE), np.uint8(TRUE))
    return _merge(which, value, other)


def _merge(which: Array, chosen: Column, other: Column) -> Column:
    kind = chosen.type if other.type is Type.NOTHING else other.type
    chosen, other = _retyped(chosen, kind), _retyped(other, kind)
    first = which == TRUE
    if kind is Type.BOOL:
        return Column(kind, np.where(which >= UNDEFINED, which, np.where(first, chosen.data, other.data)))
    if chosen.table is not None and other.table is not None:
        values = chosen.table.values + other.table.values
        data = np.where(first, chosen.data, other.data + len(chosen.table.values))
        data = np.where(which >= UNDEFINED, which - np.uint8(UNDEFINED), data)
        table = Table()
        codes = np.array([table.code(value) for value in values], np.int32)
        return Column(kind, np.take(codes, data), table=table)
    state = np.where(which >= UNDEFINED, which, np.where(first, chosen.states(), other.states()))
    return Column(kind, np.where(first, chosen.data, other.data), state if state.any() else None)


def _retyped(column: Column, kind: Type) -> Column:
    """A column of NOTHING as one of another type."""
    if column.type is kind:
        return column
    states = column.states()
    if kind is Type.BOOL:
        return Column(kind, states)
    if kind.coded:
        return Column(kind, (states - np.uint8(UNDEFINED)).astype(np.int32), table=Table())
    return Column(kind, np.zeros(1, dtype_of(kind)), states)


# --- What the library answers. ----------------------------------------------------------------------------------------


class Answers:
    """Columns of the library's answers to one question, each about one value of every part.

    Equal values are asked about once. About a table's values it is remembered what was answered last, as a table only
    grows: so whoever asks again about thousands of names pays for the new ones.
    """

    def __init__(self, kind: Type, ask: Callable[[Iterable[Sequence[Scalar]]], list[Scalar]]) -> None:
        self._kind, self._ask = kind, ask
        self._about: tuple[Table, list[Scalar | None]] | None = None
        self._said: list[Scalar] = []
        self._column = column_of(kind, [])

    def of(self, parts: Sequence[Column]) -> Column:
        length = max((len(part.data) for part in parts), default=1)
        if length == 1:
            return column_of(self._kind, self._ask([[part.values(1)[0] for part in parts]]))
        wide = [part for part in parts if len(part.data) > 1]
        if len(wide) > 1 or (table := wide[0].table) is None:
            return column_of(self._kind, self._ask(zip(*(part.values(length) for part in parts), strict=True)))
        answers = self._about_table(table, [None if part is wide[0] else part.values(1)[0] for part in parts])
        codes = wide[0].data
        state = None if answers.state is None else np.take(answers.state, codes)
        return Column(self._kind, np.take(answers.data, codes), state, answers.table)

    def _about_table(self, table: Table, fixed: list[Scalar | None]) -> Column:
        """The answer for each value of a table. `fixed`: of the other parts; None where the table's value goes."""
        if self._about is None or self._about[0] is not table or self._about[1] != fixed:
            self._about, self._said = (table, fixed), []
        if new := table.values[len(self._said) :]:
            self._said += self._ask([[value if one is None else one for one in fixed] for value in new])
            self._column = column_of(self._kind, self._said)
        return self._column
