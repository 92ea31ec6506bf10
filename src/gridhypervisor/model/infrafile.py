"""Reads the file of a virtual infrastructure: fills in its parameters, refuses what does not act yet, and checks it.

A parameter is a name for a value, and nothing more: `${name}` stands for it in any scalar, a number where the scalar is
nothing else. `$${name}` is a `${name}` that is meant as it is written. In a command and in the environment, which
belong to a shell in the guest as much, a `${name}` that is no parameter stays. All that is wrong is told at once.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import msgspec

from gridhypervisor.model.infrastructure import NOT_YET, InfrastructureSpec, ParameterSpec, faulty, problems, within
from gridhypervisor.model.workflow import nearest
from gridhypervisor.model.yamlspec import Check, Document, Problem, SpecError, json_schema, parse

T = TypeVar("T")

_NAME = re.compile(r"\$?\$\{([^}]*)\}")
_SHELLS = re.compile(r"roles\.[^.]+\.(command|environment|ready\.exec)\b.*")
"""Fields in which a shell's own `${name}` may stand."""


def load(
    path: str, text: str, given: Mapping[str, str] | None = None, absent: Check[InfrastructureSpec] | None = None
) -> InfrastructureSpec:
    """The infrastructure that a file describes. `given`: values of parameters, as text. `absent`: which of the things
    that it names are not there.

    Raises:
        SpecError: it describes none; names every problem found.
    """
    return read(parse(path, text), given or {}, absent)


def read(
    document: Document, given: Mapping[str, str], absent: Check[InfrastructureSpec] | None = None
) -> InfrastructureSpec:
    """See `load`."""
    found: list[Problem] = []

    def gather(step: Callable[[], T], otherwise: T) -> T:
        try:
            return step()
        except SpecError as error:
            found.extend(error.problems)
            return otherwise

    document, refused = document.without(_not_yet)
    found += refused
    part = document.part("parameters")
    declared: dict[str, ParameterSpec] = {}
    if part is not None:
        declared = gather(lambda: part.convert(dict[str, ParameterSpec]), declared)
    values: dict[str, int | str] = {}
    for name, parameter in declared.items():
        value, why = _value(parameter, given.get(name))
        if value is None:  # which is told; what follows from it, not too
            value = parameter.min or parameter.max or 1 if parameter.number else "x"
        values[name] = value
        if why and not faulty(name, parameter):
            problem, _, allowed = why.partition("; ")
            found.append(document.problem(f"parameters.{name}", problem, allowed))
    for name in given:
        if name not in declared:
            found.append(document.problem("parameters", f"there is no parameter {name}", nearest(name, declared)))
    filled = gather(lambda: document.rewrite(lambda field, text: _fill(field, text, values)), document)
    spec = gather(lambda: filled.convert(InfrastructureSpec, problems, absent), None)
    if found or spec is None:
        raise SpecError(_once(found))
    used = {name: msgspec.structs.replace(each, default=values[name]) for name, each in declared.items()}
    return msgspec.structs.replace(spec, parameters=used)


def schema() -> dict[str, Any]:
    """The JSON Schema of such a file: wherever a value may stand, a parameter may."""
    out = json_schema(InfrastructureSpec, title="GridHypervisor virtual infrastructure")
    parts = out["$defs"]
    for name, part in parts.items():
        if name != "ParameterSpec":
            for field, inner in part.get("properties", {}).items():
                if field not in ("kind", "parameters"):
                    part["properties"][field] = _or_parameter(inner)
    parts["Parameter"] = {"type": "string", "pattern": r"\$\{[a-z][a-z0-9_]*\}", "description": "a parameter's value"}
    return out


def _or_parameter(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema of a value, of which a scalar may be a parameter too."""
    if "items" in schema:
        return schema | {"items": _or_parameter(schema["items"])}
    free = schema.get("type") == "string" and not schema.keys() & {"pattern", "enum", "minLength"}
    if free or "$ref" in schema or schema.get("type") == "object":
        return schema
    return {"anyOf": [schema, {"$ref": "#/$defs/Parameter"}]} | (
        {"default": schema["default"]} if "default" in schema else {}
    )


def _not_yet(field: str) -> str:
    """Why a field is refused that a user may expect; empty: it is not."""
    pattern = re.sub(r"^roles\.[^.\[]+", "roles.*", field)
    why = NOT_YET.get(pattern, "")
    return f"does nothing yet: {why}; leave it out" if why else ""


def _value(parameter: ParameterSpec, given: str | None) -> tuple[int | str | None, str]:
    """What a parameter stands for; and what is wrong with that, and what is allowed."""
    if given is None:
        return parameter.default, "" if parameter.default is not None else "it has no default; give it a value"
    if not parameter.number:
        return given, ""
    if not re.fullmatch(r"[-+]?\d{1,18}", given):
        return None, f"{given!r} is no whole number; {within(parameter)}"
    value = int(given)
    low, high = parameter.min, parameter.max
    if (low is not None and value < low) or (high is not None and value > high):
        return value, f"{value} is not within its bounds; {within(parameter)}"
    return value, ""


def _fill(field: str, text: str, values: Mapping[str, int | str]) -> str:
    """The text of a scalar with parameters filled in.

    Raises:
        ValueError: it names one that there is not.
    """
    if field.startswith("parameters."):
        return text

    def one(match: re.Match[str]) -> str:
        if match[0].startswith("$$"):
            return match[0][1:]
        if match[1] not in values:
            if _SHELLS.fullmatch(field):
                return match[0]
            known = f"{nearest(match[1], values)}" if values else "declare it under parameters"
            raise ValueError(f"${{{match[1]}}} is no parameter; {known}")
        return str(values[match[1]])

    return _NAME.sub(one, text)


def _once(found: list[Problem]) -> list[Problem]:
    """Of several problems with one field the first: what follows from it is of no use."""
    seen: dict[tuple[str, int], Problem] = {}
    for problem in found:
        seen.setdefault((problem.field, problem.line), problem)
    return list(seen.values())
