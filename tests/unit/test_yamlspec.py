"""What a person reads who has written a spec wrongly; and that what is written rightly means what it says."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

import msgspec
import pytest

from gridhypervisor.model.yamlspec import SpecError, json_schema, load

Size = Annotated[str, msgspec.Meta(pattern="^[0-9]+[KMG]i$", description="a size: 512Mi, 2Gi")]


@dataclass(frozen=True)
class Resources:
    cpus: Annotated[int, msgspec.Meta(ge=1)] = 1
    memory: Size = "512Mi"


@dataclass(frozen=True)
class Url:
    url: str
    sha256: str = ""


@dataclass(frozen=True)
class Job:
    command: Annotated[tuple[str, ...], msgspec.Meta(min_length=1)]
    kind: Literal["Job"] = "Job"
    inputs: tuple[str | Url, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)
    resources: Resources = Resources()
    network: Literal["none", "outbound"] = "none"


class Circle(msgspec.Struct, tag_field="kind", tag="Circle"):
    radius: float


class Square(msgspec.Struct, tag_field="kind", tag="Square"):
    side: float

    def __post_init__(self) -> None:
        if self.side <= 0:
            raise ValueError("a square without a side; write a positive number")


def complaints(text: str, schema: object = Job) -> list[str]:
    with pytest.raises(SpecError) as caught:
        load("job.yaml", text, schema)  # type: ignore[arg-type]
    return str(caught.value).splitlines()


def test_scalars_are_taken_as_written_where_text_is_wanted() -> None:
    job = load("job.yaml", "command: [sleep, 10, no, 1.10, 0o17]\nenvironment: {DEBUG: 1, ON: on}\n", Job)
    assert job.command == ("sleep", "10", "no", "1.10", "0o17")
    assert job.environment == {"DEBUG": "1", "ON": "on"}


def test_every_problem_is_named_with_its_line() -> None:
    text = """\
kind: Job
command: []
resources:
  memory: lots
  cpus: 0
  walltime: 30m
inputs: [a, {ur: b}, [c]]
environment: {A: }
network: all
kind: Job
"""
    assert complaints(text) == [
        "job.yaml:2: command: [] is not allowed; expected a list of text of length >= 1",
        'job.yaml:4: resources.memory: "lots" is not a size; write e.g. 512Mi or 2Gi',
        "job.yaml:5: resources.cpus: 0 is not allowed; expected a whole number >= 1",
        "job.yaml:6: resources.walltime: unknown field; allowed here: cpus, memory",
        'job.yaml:7: inputs[1]: the field "url" is missing; it holds text',
        'job.yaml:7: inputs[1].ur: unknown field; did you mean "url"? allowed here: url, sha256',
        "job.yaml:7: inputs[2]: a list is not allowed here; expected text or the fields url, sha256",
        "job.yaml:8: environment.A: an empty value is not allowed; expected text",
        'job.yaml:9: network: "all" is not allowed; expected one of none, outbound',
        "job.yaml:10: kind: given twice, first on line 1; keep one of them",
    ]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "job.yaml:1: the file is empty"),
        ("- a\n", "job.yaml:1: a list is not allowed here; expected the fields command, kind"),
        ("command: [a\n", "job.yaml:2: not valid YAML: while parsing a flow sequence"),
        ("command: &x [a]\ninputs: *x\n", "job.yaml:2: not valid YAML: aliases (*name) are not allowed"),
        ("command: [a]\n---\ncommand: [b]\n", "job.yaml:2: not valid YAML: expected a single document"),
        ("command: !!python/name:os.system a\n", "job.yaml:1: command: the tag tag:yaml.org,2002:python/name:os."),
        ("command: [a]\nnetwork: \x07\n", "job.yaml:2: not text: it holds a control character"),
        ("[" * 1000, "job.yaml: nested too deeply"),
    ],
)
def test_what_is_no_spec_at_all(text: str, complaint: str) -> None:
    assert complaints(text)[0].startswith(complaint)


def test_kind_chooses_among_records() -> None:
    shape = load("shape.yaml", "kind: Square\nside: 2\n", Circle | Square)  # type: ignore[arg-type]
    assert isinstance(shape, Square)
    assert complaints("kind: Star\n", Circle | Square) == [
        'job.yaml:1: kind: "Star" is not known; write kind: Circle or kind: Square'
    ]
    assert complaints("side: 2\n", Circle | Square)[0].startswith('job.yaml:1: the field "kind" is missing')


def test_a_records_own_rule_is_told_like_any_other() -> None:
    assert complaints("kind: Square\nside: 0\n", Square) == [
        "job.yaml:1: a square without a side; write a positive number"
    ]


def test_a_callers_check_is_placed_in_the_text() -> None:
    def check(job: Job) -> list[tuple[str, str]]:
        return [(f"inputs[{i}]", f"there is no file {name}") for i, name in enumerate(job.inputs)]

    with pytest.raises(SpecError) as caught:
        load("job.yaml", "command: [a]\ninputs:\n  - x\n  - y\n", Job, check)
    assert str(caught.value).splitlines() == [
        "job.yaml:3: inputs[0]: there is no file x",
        "job.yaml:4: inputs[1]: there is no file y",
    ]


def test_the_json_schema_refuses_unknown_fields_too() -> None:
    schema = json_schema(Job, title="A job")
    assert schema["title"] == "A job"
    assert all(part["additionalProperties"] is False for part in schema["$defs"].values())
    assert schema["$defs"]["Resources"]["properties"]["memory"]["pattern"] == "^[0-9]+[KMG]i$"


def test_what_is_wrong_what_makes_no_sense_and_what_is_not_there_are_told_together() -> None:
    def check(job: Job) -> list[tuple[str, str]]:
        return [("environment", "is too long")] if len(job.environment) > 1 else []

    def absent(job: Job) -> list[tuple[str, str]]:
        return [(f"inputs[{i}]", f"there is no file {name}; mend it") for i, name in enumerate(job.inputs)]

    def told(text: str) -> SpecError:
        with pytest.raises(SpecError) as caught:
            load("job.yaml", text, Job, check, absent)
        return caught.value

    fine = "command: [a]\ninputs: [x]\n"
    assert str(told(fine)) == "job.yaml:2: inputs[0]: there is no file x; mend it" and told(fine).missing
    both = told(fine + "environment: {A: 1, B: 2}\nresources: {memory: lots, cpus: 2}\nnetwork: all\nnetwrk: none\n")
    assert [problem.field for problem in both.problems] == [
        "inputs[0]", "environment", "resources.memory", "network", "netwrk",
    ]  # fmt: skip
    assert not both.missing, "the text itself is wrong, too"
    assert [p.field for p in told("command: []\ninputs: [x]\n").problems] == ["command"], "without it there is no job"
    assert [p.field for p in told("command: a b\ninputs: [x]\n").problems] == ["command", "inputs[0]"]


def test_a_text_in_a_lists_place_is_told_as_the_list_that_was_meant() -> None:
    assert complaints("command: evproducts events.fits\ninputs: a.fits\n") == [
        'job.yaml:1: command: "evproducts events.fits" is not a list; write ["evproducts", "events.fits"]',
        'job.yaml:2: inputs: "a.fits" is not a list; write ["a.fits"]',
    ]
