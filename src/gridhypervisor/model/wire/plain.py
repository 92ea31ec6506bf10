"""Records as JSON's own types and back: everything that comes from another machine is checked here, field by field."""

from __future__ import annotations

import dataclasses
import enum
import functools
import json
import math
import operator
import types
import typing
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")

_ATOMS = frozenset({str, int, float, bool, type(None)})

_MISSING: Any = object()


class WireError(ValueError):
    """A message that does not mean what this version of the protocol can say."""


def to_plain(value: Any) -> Any:
    """Turn records into JSON's own types, leaving out fields that hold their default."""
    kind = type(value)
    if kind in _ATOMS:
        return value
    if kind is dict:
        return {str(key): to_plain(item) for key, item in value.items()}
    if kind is list or kind is tuple:
        return [to_plain(item) for item in value]
    if isinstance(value, enum.Enum):
        return value.value
    if not dataclasses.is_dataclass(kind):
        return value
    return {name: to_plain(item) for name, item in _fields(value).items()}


def _fields(value: Any) -> dict[str, Any]:
    """A record's fields that do not hold their default, as they are."""
    kind: type = type(value)
    get, defaults = _defaults(kind)
    items = zip(get(value), defaults, strict=True)
    return {name: item for item, (name, default) in items if item is not default and item != default}


def _unfold(value: Any) -> Any:
    """What is none of JSON's own types, one step nearer to them. The rest of the way the encoder goes by itself."""
    if dataclasses.is_dataclass(value):
        return _fields(value)
    if isinstance(value, enum.Enum):
        return value.value
    raise TypeError(f"{type(value).__name__} has no place in JSON")


@functools.cache
def _defaults(kind: type) -> tuple[Callable[[Any], tuple[Any, ...]], tuple[tuple[str, Any], ...]]:
    """What gives the values of a record's fields, and these with their defaults, which nothing equals where there is
    none."""
    fields = dataclasses.fields(kind)
    defaults = tuple(
        (f.name, f.default_factory() if f.default_factory is not dataclasses.MISSING
         else _MISSING if f.default is dataclasses.MISSING else f.default)
        for f in fields
    )  # fmt: skip
    if len(fields) == 1:  # of one name `attrgetter` makes no tuple
        return lambda value: (getattr(value, fields[0].name),), defaults
    return operator.attrgetter(*(f.name for f in fields)), defaults


def from_plain(kind: type[T], value: Any) -> T:
    """Build a record of type `kind` from JSON's types. Unknown fields are ignored (a newer peer may say more).

    Raises:
        WireError: a field is missing, has another type, or holds what no column or file could: a whole number of more
            than 64 bits, a number that is none, text that is not Unicode. The message holds the path to it.
    """
    try:
        return typing.cast(T, _reader(typing.cast(Any, kind))(value))
    except _MisfitError as error:
        raise WireError(f"{kind.__name__}{error.path}: {error.what}") from None


class _MisfitError(Exception):
    """A value of another kind than expected. Its path is put together while the readers return."""

    def __init__(self, what: str, path: str = "") -> None:
        super().__init__(what)
        self.what, self.path = what, path


@functools.cache
def _reader(kind: Any) -> Callable[[Any], Any]:
    """What turns a JSON value into one of `kind`; made once for each kind, for messages are read by the thousand."""
    origin = typing.get_origin(kind)
    if kind is Any:
        return lambda value: value
    if origin in (typing.Union, types.UnionType):
        [inner] = [a for a in typing.get_args(kind) if a is not type(None)]
        read = _reader(inner)
        return lambda value: None if value is None else read(value)
    if origin is tuple:
        return functools.partial(_read_tuple, _reader(typing.get_args(kind)[0]))
    if origin is dict:
        return functools.partial(_read_dict, _reader(typing.get_args(kind)[1]))
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        fields = tuple((f.name, _reader(hints[f.name]), _default(f)) for f in dataclasses.fields(kind))
        return functools.partial(_read_record, kind, fields)
    if issubclass(kind, enum.Enum):
        return functools.partial(_read_enum, kind, {m.value: m for m in kind})
    if kind is float:
        return _read_float
    if kind is int:
        return _read_int
    if kind is str:
        return _read_text
    return functools.partial(_read_atom, kind)


def _default(field: dataclasses.Field[Any]) -> Callable[[], Any] | None:
    """What gives a field's value where none is said; None: one must be."""
    if field.default is not dataclasses.MISSING:
        value = field.default
        return lambda: value
    return field.default_factory if field.default_factory is not dataclasses.MISSING else None


def _read_record(
    kind: type, fields: tuple[tuple[str, Callable[[Any], Any], Callable[[], Any] | None], ...], value: Any
) -> Any:
    if type(value) is not dict:
        raise _misfit("an object", value)
    given = {}
    for name, read, default in fields:
        if name in value:
            try:
                given[name] = read(value[name])
            except _MisfitError as error:
                raise _MisfitError(error.what, f".{name}{error.path}") from None
        elif default is not None:
            given[name] = default()
        else:
            raise _MisfitError("missing", f".{name}")
    record: Any = object.__new__(kind)
    record.__dict__.update(given)  # all at once: a frozen class's own `__init__` takes its fields one by one
    return record


def _read_tuple(read: Callable[[Any], Any], value: Any) -> tuple[Any, ...]:
    if type(value) is not list:
        raise _misfit("a list", value)
    items = []
    for i, item in enumerate(value):
        try:
            items.append(read(item))
        except _MisfitError as error:
            raise _MisfitError(error.what, f"[{i}]{error.path}") from None
    return tuple(items)


def _read_dict(read: Callable[[Any], Any], value: Any) -> dict[str, Any]:
    if type(value) is not dict:
        raise _misfit("an object", value)
    items = {}
    for key, item in value.items():
        try:
            items[_read_text(key)] = read(item)
        except _MisfitError as error:
            raise _MisfitError(error.what, f".{key}{error.path}") from None
    return items


def _read_enum(kind: type[enum.Enum], members: dict[Any, enum.Enum], value: Any) -> Any:
    try:
        return members[value]
    except (KeyError, TypeError):
        raise _MisfitError(f"{value!r} is not one of {', '.join(str(m.value) for m in kind)}") from None


def _read_float(value: Any) -> float:
    if type(value) is float and math.isfinite(value):
        return value
    if not _is_int(value):
        raise _misfit("a number", value)
    return float(value)


def _read_int(value: Any) -> int:
    if not _is_int(value):
        raise _misfit("a whole number of at most 64 bits", value)
    return typing.cast(int, value)


def _is_int(value: Any) -> bool:
    return type(value) is int and -(1 << 63) <= value < 1 << 63


def _read_text(value: Any) -> str:
    if type(value) is str and (value.isascii() or is_text(value)):
        return value
    raise _misfit("text", value)


def is_text(value: str) -> bool:
    """Whether it can be written down: a file's name that is no UTF-8 cannot, nor what JSON makes of half a pair."""
    if value.isascii():
        return True
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _read_atom(kind: type, value: Any) -> Any:
    if type(value) is not kind:
        raise _misfit(kind.__name__, value)
    return value


def _misfit(what: str, value: Any) -> _MisfitError:
    return _MisfitError(f"expected {what}, got {value!r:.80}")


def canonical(value: Any) -> bytes:
    """The one JSON text of a record, over which digests are taken: sorted keys, no spaces, UTF-8."""
    return _SORTED.encode(value).encode()


def one_line(value: Any) -> bytes:
    """JSON without spaces, its fields in the order in which they come."""
    return _PLAIN.encode(value).encode()


_SORTED, _PLAIN = (
    json.JSONEncoder(
        sort_keys=sort,
        separators=(",", ":"),
        ensure_ascii=False,
        default=_unfold,
        check_circular=False,  # records are trees, of which every part would be written down and crossed out
    )
    for sort in (True, False)
)
