"""Reads request bodies: strictly, and with every problem named by its field.

msgspec alone judges fast, but it stops at the first problem and overlooks unknown fields; `yamlspec` finds them all
and says what is allowed, slowly. So a body that is right costs only the first.
"""

from __future__ import annotations

import json
import re
from collections.abc import Generator, Iterator
from typing import Any, TypeVar

import msgspec
from litestar.dto import AbstractDTO, DTOFieldDefinition
from litestar.typing import FieldDefinition

from gridhypervisor.model import infrastructure, policy
from gridhypervisor.model.foreign import foreign_inputs, foreign_results
from gridhypervisor.model.infraviews import InfrastructureRequest
from gridhypervisor.model.spec import JobSpec, problems
from gridhypervisor.model.views import JobRequest, Problem, ServiceError, WarmRequest

T = TypeVar("T")


class Body(AbstractDTO[T]):
    """Hands a handler's `data` the record that the body holds. `Body[JobRequest]` reads a JobRequest."""

    def decode_bytes(self, value: bytes) -> Any:
        return read_body(value, self.model_type)

    @classmethod
    def create_for_field_definition(cls, *_: Any, **__: Any) -> None:
        """Nothing to prepare: the record itself is what is read."""

    @classmethod
    def create_openapi_schema(cls, field_definition: FieldDefinition, handler_id: str, schema_creator: Any) -> Any:
        return schema_creator.for_field_definition(field_definition)

    @classmethod
    def generate_field_definitions(cls, model_type: type[Any]) -> Generator[DTOFieldDefinition, None, None]:
        yield from ()

    @classmethod
    def detect_nested_field(cls, field_definition: FieldDefinition) -> bool:
        return False


def read_body(body: bytes, kind: type[T]) -> T:
    """The record in a body.

    Raises:
        ServiceError: it holds none, with one entry in `errors` for each bad field.
    """
    try:
        raw = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _bad([{"field": "", "problem": f"is not JSON: {error}"}]) from error
    try:
        value = msgspec.convert(raw, kind)
    except msgspec.ValidationError as error:
        raise _bad(_explain(body, kind) or [{"field": "", "problem": str(error)}]) from error
    if not _known(raw, msgspec.to_builtins(value)):
        raise _bad(_explain(body, kind) or [{"field": "", "problem": "holds a field that is not known"}])
    if found := [{"field": field, "problem": problem} for field, problem in _check(value)]:
        raise _bad(found)
    return value


def _known(raw: Any, read: Any) -> bool:
    """Whether everything that was given was read."""
    if isinstance(raw, dict) and isinstance(read, dict):
        return all(key in read and _known(value, read[key]) for key, value in raw.items())
    if isinstance(raw, list) and isinstance(read, (list, tuple)):
        return all(map(_known, raw, read))
    return True


def _check(value: Any) -> Iterator[tuple[str, str]]:
    """What types cannot say: the field, and what is wrong with it."""
    if isinstance(value, JobSpec):
        yield from problems(value)
    elif isinstance(value, WarmRequest):
        yield from ((f"like.{field}", problem) for field, problem in problems(value.like))
    elif isinstance(value, policy.SchedulingPolicy):
        yield from policy.problems(value)
    elif isinstance(value, JobRequest):
        yield from ((f"spec.{field}", problem) for field, problem in problems(value.spec))
        for field in ("folder", "destination"):
            if (path := getattr(value, field)) and not path.startswith("/"):
                yield field, "must be an absolute path, or be left out"
        if not value.folder:
            yield from ((f"spec.{field}", problem) for field, problem in foreign_inputs(value.spec))
        if not value.destination:
            yield from ((f"spec.{field}", problem) for field, problem in foreign_results(value.spec))
    elif isinstance(value, InfrastructureRequest):
        yield from ((f"spec.{field}", problem) for field, problem in infrastructure.problems(value.spec))
        if not value.folder.startswith("/"):
            yield "folder", "must be an absolute path"


def _explain(body: bytes, kind: type[Any]) -> list[dict[str, Any]]:
    from gridhypervisor.model.yamlspec import SpecError, load  # only for what is wrong: it costs its import

    try:
        load("body", _whole(body.decode()), kind)
    except SpecError as error:
        return [{"line": p.line, "field": p.field, "problem": p.problem, "allowed": p.allowed} for p in error.problems]
    return []


def _whole(text: str) -> str:
    """JSON as YAML reads it aright: which takes a character that JSON writes as two escapes for two halves of one."""
    return _PAIR.sub(lambda pair: json.loads(f'"{pair[0]}"') if pair[1] else pair[0], text)


_PAIR = re.compile(r"\\\\|(\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2})")
"""Two halves; or an escaped backslash, after which comes no escape."""


def _bad(errors: list[dict[str, Any]]) -> ServiceError:
    detail = "; ".join(": ".join(filter(None, (error["field"], error["problem"]))) for error in errors)
    hint = "GET /openapi.json says what is allowed."
    return ServiceError(Problem("read the request's body", 422, "invalid", detail, hint, tuple(errors)))
