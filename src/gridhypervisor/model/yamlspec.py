"""Turns YAML that a person wrote into typed records, or says all that is wrong with it, with file, line and field.

It decides nothing about what a spec means: the records (msgspec structs or dataclasses) say which fields there are. It
adds what people need around them: every problem at once instead of the first, each with its place in the text; unknown
fields refused with the nearest known one; a JSON Schema for editors. YAML is read by the rules of version 1.2: `no` and
`on` are text, `30:00` is no number; a plain scalar where text is wanted is taken as it is written
(`command: [sleep, 10]`). Aliases are refused: with them a small file can grow without bound. No I/O: the caller reads.

A field of restricted text says in its `Meta(description=…)` what it holds and how to write one, as `noun: example,
example`; with "a size: 512Mi, 2Gi" a user reads `job.yaml:7: resources.memory: "lots" is not a size; write e.g. 512Mi
or 2Gi`.
"""

from __future__ import annotations

import dataclasses
import difflib
import enum
import functools
import json
import re
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeGuard, TypeVar

import msgspec
import yaml

T = TypeVar("T")


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong, and where. Lines and columns count from 1; 0 where there is no text to point at."""

    file: str
    line: int
    column: int
    field: str  # e.g. resources.memory or inputs[2].url; empty for the whole document
    problem: str
    allowed: str = ""  # what would be right
    missing: bool = False  # nothing is wrong with the text: what it names is not there

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}" if self.line else self.file
        return ": ".join(filter(None, (where, self.field, "; ".join(filter(None, (self.problem, self.allowed))))))


class SpecError(ValueError):
    """A spec that does not mean anything; `problems` holds everything found, in the order of the text."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(sorted(problems, key=lambda p: (p.line, p.column)))
        super().__init__("\n".join(map(str, self.problems)))

    @property
    def missing(self) -> bool:
        """Whether the text is right, and only what it names is not there."""
        return all(problem.missing for problem in self.problems)


Check = Callable[[T], Iterable[tuple[str, str]]]
"""What types cannot say of a record: pairs of a field (`inputs[2].url`) and what is wrong with it."""


def load(path: str, text: str, schema: type[T], check: Check[T] | None = None, absent: Check[T] | None = None) -> T:
    """Read one YAML document as a `schema` (a struct, a dataclass, or a union of tagged structs).

    `path` is for messages. `absent`: which of the things that it names are not there.

    Raises:
        SpecError: it is no YAML, or not such a record, or names what is not there; names every problem found.
    """
    return parse(path, text).convert(schema, check, absent)


def parse(path: str, text: str) -> Document:
    """Read the YAML alone; `Document.convert` gives it its type.

    Raises:
        SpecError: the text is not one YAML document.
    """
    try:
        node = _Loader(text).get_single_node()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line, column = (mark.line + 1, mark.column + 1) if mark else (0, 0)
        why = ", ".join(filter(None, (error.context, error.problem)))
        raise SpecError([Problem(path, line, column, "", f"not valid YAML: {why}")]) from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise SpecError([Problem(path, line, 0, "", "not text: it holds a control character")]) from None
    except RecursionError:
        raise SpecError([Problem(path, 0, 0, "", "nested too deeply")]) from None
    if node is None:
        raise SpecError([Problem(path, 1, 1, "", "the file is empty")])
    return Document(path, node)


def json_schema(schema: Any, *, title: str = "") -> dict[str, Any]:
    """A JSON Schema (2020-12) for editors. Objects allow no fields but their own, as `load` does."""
    out = msgspec.json.schema(schema)
    for part in out.get("$defs", {}).values():
        if part.get("type") == "object" and "properties" in part:
            part.setdefault("additionalProperties", False)
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    return head | ({"title": title} if title else {}) | out


def show(value: object) -> str:
    """A value as it would be written in YAML or JSON, cut short."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:57] + "…" + text[-1]


class Document:
    """A YAML document that still knows where each value was written."""

    def __init__(self, path: str, node: yaml.Node, field: str = "") -> None:
        """`field`: which part of a file it is; empty: all of it."""
        self.path, self._node, self._field = path, node, field

    def convert(self, schema: type[T], check: Check[T] | None = None, absent: Check[T] | None = None) -> T:
        """The document as a `schema`, which also passes `check`, and of which nothing is `absent`.

        What is wrong in one field does not keep the others from being looked at: it has its default for them.

        Raises:
            SpecError: it is not one.
        """
        reader = _Reader(self.path)
        value = reader.read(self._node, schema, self._field)
        found = reader.problems
        if value is _WRONG:
            raise SpecError(found)
        try:
            record = msgspec.convert(value, schema)
        except msgspec.ValidationError as error:  # a rule of a record as a whole, from its __post_init__
            message, _, at = str(error).partition(" - at `$")
            raise SpecError([*found, self.problem(at.rstrip("`").lstrip("."), *_split(message))]) from None
        told = {problem.field for problem in found}
        for rule, missing in ((check, False), (absent, True)):
            for field, message in rule(record) if rule is not None else ():
                if field not in told:
                    found.append(dataclasses.replace(self.problem(field, *_split(message)), missing=missing))
        if found:
            raise SpecError(found)
        return record

    @property
    def kind(self) -> str:
        """What its field of this name holds; empty: nothing."""
        found = self.part("kind")
        return str(found._node.value) if found is not None and isinstance(found._node, yaml.ScalarNode) else ""

    def part(self, key: str) -> Document | None:
        """What stands under one of its keys; None: nothing does."""
        if not isinstance(self._node, yaml.MappingNode):
            return None
        found = [value for name, value in self._node.value if name.value == key]
        return Document(self.path, found[0], _join(self._field, key)) if found else None

    def without(self, why: Callable[[str], str]) -> tuple[Document, list[Problem]]:
        """The same without the fields that `why` has something against (`problem; what is allowed`), and these."""
        found: list[Problem] = []

        def keep(node: yaml.Node, field: str) -> yaml.Node:
            if not isinstance(node, yaml.MappingNode):
                return node
            pairs = []
            for key, value in node.value:
                inner = _join(field, str(key.value))
                if words := why(inner):
                    found.append(_problem(self.path, key, inner, *_split(words)))
                else:
                    pairs.append((key, keep(value, inner)))
            return yaml.MappingNode(node.tag, pairs, node.start_mark, node.end_mark, node.flow_style)

        return Document(self.path, keep(self._node, self._field), self._field), found

    def rewrite(self, change: Callable[[str, str], str]) -> Document:
        """The same with each scalar as `change` makes it of its field and its text. What one is that is not in quotes,
        or was a name alone, is found out anew: in `{count: "${n}"}` YAML wants the quotes.

        Raises:
            SpecError: `change` raised ValueError (`problem; what is allowed`) for some.
        """
        found: list[Problem] = []

        def written(node: yaml.Node, field: str) -> yaml.Node:
            if isinstance(node, yaml.MappingNode):
                pairs = [(key, written(value, _join(field, str(key.value)))) for key, value in node.value]
                return yaml.MappingNode(node.tag, pairs, node.start_mark, node.end_mark, node.flow_style)
            if isinstance(node, yaml.SequenceNode):
                items = [written(item, f"{field}[{i}]") for i, item in enumerate(node.value)]
                return yaml.SequenceNode(node.tag, items, node.start_mark, node.end_mark, node.flow_style)
            assert isinstance(node, yaml.ScalarNode), "there are no other nodes"
            try:
                text = change(field, node.value)
            except ValueError as error:
                found.append(_problem(self.path, node, field, *_split(str(error))))
                return node
            if text == node.value:
                return node
            plain = (node.style is None or _NAME_ALONE.fullmatch(node.value)) and node.tag in _TAGS
            tag = _Loader("").resolve(yaml.ScalarNode, text, (True, False)) if plain else node.tag  # type: ignore[no-untyped-call]
            return yaml.ScalarNode(tag, text, node.start_mark, node.end_mark, node.style)

        document = Document(self.path, written(self._node, self._field), self._field)
        if found:
            raise SpecError(found)
        return document

    def problem(self, field: str, problem: str, allowed: str = "") -> Problem:
        """A problem that the caller found in `field`, e.g. that a file which it names is missing, with its place."""
        return _problem(self.path, _find(self._node, field), field, problem, allowed)


class _Loader(yaml.SafeLoader):
    """YAML 1.2's plain scalars, and no aliases."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 (PyYAML's own way)

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            why = "aliases (*name) are not allowed: write the value out"
            raise yaml.MarkedYAMLError(problem=why, problem_mark=mark)
        return super().compose_node(parent, index)


for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", list("-+.0123456789")),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"(?:{_pattern})\\Z"), _first)


def _scalar(node: yaml.Node) -> object:
    match node.tag.rpartition(":")[2]:
        case "null":
            return None
        case "bool":
            return node.value.lower() == "true"
        case "int":
            return int(node.value, 0 if node.value[1:2] in ("o", "x") else 10)
        case "float":
            return float(node.value)
        case _:
            return str(node.value)


_NAME_ALONE = re.compile(r"\$\{[^{}]*\}")

_WRONG: Any = object()
"""In a value's place: it is not what it should be, and that has been told."""


class _Reader:
    """Walks text and type side by side. It finds the place; msgspec judges the scalars, so there is one judge."""

    def __init__(self, path: str) -> None:
        self.problems: list[Problem] = []
        self._path = path

    def add(self, node: yaml.Node, field: str, problem: str, allowed: str = "") -> None:
        self.problems.append(_problem(self._path, node, field, problem, allowed))

    def read(self, node: yaml.Node, hint: Any, field: str) -> object:
        """The node's value as plain Python, shaped for `hint`; problems are added to the list. What is wrong is left
        out of records and mappings, and spoils a list."""
        if node.tag not in _TAGS:
            self.add(node, field, f"the tag {node.tag} is not allowed", "remove it")
            return _WRONG
        arms = _arms(hint)
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, arms, hint, field)
        if isinstance(node, yaml.SequenceNode):
            return self._sequence(node, arms, hint, field)
        return self._scalar(node, arms, hint, field)

    def _scalar(self, node: yaml.Node, arms: list[Any], hint: Any, field: str) -> object:
        value = _scalar(node)
        kinds = [_bare(arm) for arm in arms]
        if value is not None and not isinstance(value, str) and str in kinds and type(value) not in kinds:
            value = str(node.value)
        try:
            msgspec.convert(value, hint)
        except msgspec.ValidationError as error:
            self.add(node, field, *_explain(value, hint, str(error)))
            return value.split() if _meant_as_list(value, hint) else _WRONG
        return value

    def _sequence(self, node: yaml.SequenceNode, arms: list[Any], hint: Any, field: str) -> object:
        arm = next((arm for arm in arms if typing.get_origin(_bare(arm)) in _LISTS or _bare(arm) is Any), None)
        if arm is None:
            self.add(node, field, "a list is not allowed here", f"expected {describe(hint)}")
            return _WRONG
        inner = (typing.get_args(_bare(arm)) or (Any,))[0]
        out = [self.read(item, inner, f"{field}[{i}]") for i, item in enumerate(node.value)]
        return out if _WRONG not in out and self._whole(node, out, arm, field) else _WRONG

    def _mapping(self, node: yaml.MappingNode, arms: list[Any], hint: Any, field: str) -> object:
        pairs = self._pairs(node, field)
        records = [arm for arm in map(_bare, arms) if _is_record(arm)]
        if records:
            return self._record(node, pairs, records, field)
        for arm in arms:
            if _bare(arm) is Any or typing.get_origin(_bare(arm)) in _MAPPINGS:
                inner = (typing.get_args(_bare(arm)) or (Any, Any))[1]
                found = {key: self.read(value, inner, _join(field, key)) for key, (_, value) in pairs.items()}
                return {key: value for key, value in found.items() if value is not _WRONG}
        self.add(node, field, "fields are not allowed here", f"expected {describe(hint)}")
        return _WRONG

    def _pairs(self, node: yaml.MappingNode, field: str) -> dict[str, tuple[yaml.Node, yaml.Node]]:
        pairs: dict[str, tuple[yaml.Node, yaml.Node]] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                self.add(key, field, "a field's name must be text")
            elif key.value in pairs:
                first = pairs[key.value][0].start_mark.line + 1
                self.add(key, _join(field, key.value), f"given twice, first on line {first}", "keep one of them")
            else:
                pairs[key.value] = (key, value)
        return pairs

    def _record(
        self, node: yaml.MappingNode, pairs: dict[str, tuple[yaml.Node, yaml.Node]], records: list[Any], field: str
    ) -> object:
        out: dict[str, object] = {}
        tags = {tag: record for record in records if (tag := _tag_of(record))}
        kind = records[0]
        if tags:
            [name] = {tag_field for tag_field, _ in tags}
            allowed = f"write {' or '.join(f'{name}: {tag}' for _, tag in tags)}"
            if name not in pairs:
                self.add(node, field, f'the field "{name}" is missing', allowed)
                return _WRONG
            given = pairs.pop(name)[1]
            out[name] = given.value
            if (name, given.value) not in tags:
                self.add(given, _join(field, name), f"{show(given.value)} is not known", allowed)
                return _WRONG
            kind = tags[name, given.value]
        known = _fields(kind)
        for key, (at, value) in pairs.items():
            if key in known:
                out[key] = self.read(value, known[key][0], _join(field, key))
            else:
                near = difflib.get_close_matches(key, known, 1)
                guess = f'did you mean "{near[0]}"? ' if near else ""
                self.add(at, _join(field, key), "unknown field", f"{guess}allowed here: {', '.join(known)}")
        for key, (inner, required) in known.items():
            if required and key not in pairs:
                self.add(node, field, f'the field "{key}" is missing', f"it holds {describe(inner)}")
        right = {key: value for key, value in out.items() if value is not _WRONG}
        return right if all(key in right for key, (_, required) in known.items() if required) else _WRONG

    def _whole(self, node: yaml.Node, value: object, hint: Any, field: str) -> bool:
        """Whether a list's own constraints hold, e.g. its least length."""
        if typing.get_origin(hint) is typing.Annotated:
            try:
                msgspec.convert(value, hint)
            except msgspec.ValidationError as error:
                message, _, path = str(error).partition(" - at `")
                if not path:  # else it is about an item, which has been reported
                    self.add(node, field, f"{show(value)} is not allowed", _wanted(hint, message))
                return False
        return True


_TAGS = {f"tag:yaml.org,2002:{name}" for name in ("null", "bool", "int", "float", "str", "seq", "map")}
_LISTS = (list, tuple, set, frozenset, Sequence)
_MAPPINGS = (dict, Mapping)


def _bare(hint: Any) -> Any:
    return typing.get_args(hint)[0] if typing.get_origin(hint) is typing.Annotated else hint


def _arms(hint: Any) -> list[Any]:
    bare = _bare(hint)
    if typing.get_origin(bare) in (typing.Union, types.UnionType):
        return [arm for part in typing.get_args(bare) for arm in _arms(part)]
    return [hint]


def _is_record(hint: Any) -> bool:
    return isinstance(hint, type) and (issubclass(hint, msgspec.Struct) or dataclasses.is_dataclass(hint))


def _tag_of(record: Any) -> tuple[str, str] | None:
    config = getattr(record, "__struct_config__", None)
    return (config.tag_field, str(config.tag)) if config is not None and config.tag_field else None


@functools.cache  # a workflow may have thousands of files
def _fields(record: Any) -> dict[str, tuple[Any, bool]]:
    """Field name as written → its type, and whether it must be given."""
    if issubclass(record, msgspec.Struct):
        return {f.encode_name: (f.type, f.required) for f in msgspec.structs.fields(record)}
    hints = typing.get_type_hints(record, include_extras=True)
    missing = dataclasses.MISSING
    return {
        f.name: (hints[f.name], f.default is missing and f.default_factory is missing)
        for f in dataclasses.fields(record)
    }


def _problem(path: str, node: yaml.Node, field: str, problem: str, allowed: str) -> Problem:
    mark = node.start_mark
    return Problem(path, mark.line + 1, mark.column + 1, field, problem, allowed)


def _join(field: str, key: str) -> str:
    return f"{field}.{key}" if field else key


def _find(node: yaml.Node, field: str) -> yaml.Node:
    """The node of a field path, or the nearest one above it."""
    for key, index in re.findall(r"([^.\[\]]+)|\[(\d+)\]", field):
        if isinstance(node, yaml.MappingNode):
            node = next((value for name, value in node.value if name.value == (key or index)), node)
        elif isinstance(node, yaml.SequenceNode) and index and int(index) < len(node.value):
            node = node.value[int(index)]
    return node


def _split(message: str) -> tuple[str, str]:
    problem, _, allowed = message.partition("; ")
    return problem, allowed


def _explain(value: object, hint: Any, message: str) -> tuple[str, str]:
    """msgspec's verdict on a scalar, in words that say what to write."""
    given = "an empty value" if value is None else show(value)
    noun, _, examples = _description(hint).partition(": ")
    if noun and examples:
        return f"{given} is not {noun}", f"write e.g. {' or '.join(examples.split(', '))}"
    if _meant_as_list(value, hint):
        return f"{given} is not a list", f"write {json.dumps(value.split(), ensure_ascii=False)}"
    return f"{given} is not allowed", _wanted(hint, message.partition(" - at `")[0])


def _meant_as_list(value: object, hint: Any) -> TypeGuard[str]:
    """Whether it is a text, and nothing but a list of texts is allowed."""
    [bare, *others] = map(_bare, _arms(hint))
    if others or typing.get_origin(bare) not in _LISTS or not isinstance(value, str) or not value.strip():
        return False
    return str in map(_bare, _arms(typing.get_args(bare)[0]))


def _wanted(hint: Any, message: str) -> str:
    constraint = re.search(r"(?:>|<|matching|of length|that's).*$", message.replace("`", ""))
    return f"expected {describe(hint)}{' ' + constraint[0] if constraint else ''}"


def _description(hint: Any) -> str:
    """What the type's author said of it, of the first arm that says anything."""
    for arm in _arms(hint):
        for meta in getattr(arm, "__metadata__", ()):
            if isinstance(meta, msgspec.Meta) and meta.description:
                return meta.description
    return ""


_WORDS: dict[Any, str] = {
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    type(None): "nothing",
    Any: "anything",
}


def describe(hint: Any) -> str:
    """A type in a user's words."""
    arms = _arms(hint)
    if len(arms) > 1:
        return " or ".join(describe(arm) for arm in arms if _bare(arm) is not type(None))
    if noun := _description(hint).partition(": ")[0]:
        return noun
    bare = _bare(hint)
    if bare in _WORDS:
        return _WORDS[bare]
    origin, args = typing.get_origin(bare), typing.get_args(bare)
    if origin is Literal:
        return f"one of {', '.join(map(str, args))}"
    if origin in _LISTS:
        return f"a list of {describe(args[0])}"
    if origin in _MAPPINGS:
        return f"names with {describe(args[1])} each"
    if isinstance(bare, type) and issubclass(bare, enum.Enum):
        return f"one of {', '.join(str(member.value) for member in bare)}"
    if _is_record(bare):
        tag = _tag_of(bare)
        return f"the fields {', '.join(([tag[0]] if tag else []) + list(_fields(bare)))}"
    return getattr(bare, "__name__", str(bare))
