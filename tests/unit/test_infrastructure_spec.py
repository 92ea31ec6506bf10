"""A virtual infrastructure's file: what it means when it is right, and what a person reads when it is not."""

from __future__ import annotations

import json
import re
from pathlib import Path

import msgspec
import pytest
import yaml

from gridhypervisor.cli.files import infrastructure_schema
from gridhypervisor.model.infrafile import load, schema
from gridhypervisor.model.infrastructure import (
    NOT_YET,
    SERVE,
    CountSpec,
    HttpSpec,
    InfrastructureSpec,
    ParameterSpec,
    RoleSpec,
    vm_job,
)
from gridhypervisor.model.spec import problems as job_problems
from gridhypervisor.model.yamlspec import SpecError

ROOT = Path(__file__).parents[2]

LAB = """\
kind: VirtualInfrastructure
name: lab
parameters:
  workers: {default: 2, min: 1, max: 4}
  image: {default: tiny}
roles:
  head:
    image: ${image}
    ready: {tcp: 80, timeout: 1m}
  worker:
    image: "${image}:latest"
    count: ${workers}
    after: [head]
    command: [sh, -c, 'echo ${HOME} ${workers} $${workers}']
    environment: {SIZE: "${workers}", SHELLS: "${other}"}
"""


def complaints(text: str, given: dict[str, str] | None = None) -> list[str]:
    with pytest.raises(SpecError) as caught:
        load("lab.yaml", text, given)
    return str(caught.value).splitlines()


def test_parameters_stand_for_values_wherever_a_scalar_stands() -> None:
    spec = load("lab.yaml", LAB, {"workers": "3"})
    worker = spec.roles["worker"]
    assert (worker.image, worker.count, spec.roles["head"].image) == ("tiny:latest", 3, "tiny")
    assert worker.command == ("sh", "-c", "echo ${HOME} 3 ${workers}")
    assert worker.environment == {"SIZE": "3", "SHELLS": "${other}"}
    assert spec.parameters["workers"] == ParameterSpec(3, 1, 4), "what was given is what it says of itself"
    assert load("lab.yaml", LAB).roles["worker"].count == 2


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"workers": "5"}, "lab.yaml:4: parameters.workers: 5 is not within its bounds; write 1 to 4"),
        ({"workers": "many"}, "lab.yaml:4: parameters.workers: 'many' is no whole number; write 1 to 4"),
        ({"wrokers": "2"}, "lab.yaml:4: parameters: there is no parameter wrokers; did you mean workers?"),
    ],
)
def test_a_parameter_that_cannot_be_is_told_with_what_can(given: dict[str, str], expected: str) -> None:
    assert complaints(LAB, given) == [expected]


def test_a_parameter_without_a_default_has_to_be_given() -> None:
    text = "name: lab\nparameters:\n  size: {min: 1}\nroles: {a: {image: tiny, count: '${size}'}}\n"
    assert complaints(text) == ["lab.yaml:3: parameters.size: it has no default; give it a value"]
    assert load("lab.yaml", text, {"size": "2"}).roles["a"].count == 2


def test_all_that_is_wrong_is_told_at_once_with_file_line_field_and_what_is_allowed() -> None:
    text = """\
name: lab
lease: {duration: soon}
networks: {lan: {cidr: 10.42.0.0/24}}
roles:
  head:
    image: tiny
    count: 400
    provides: {key: {generate: secret}}
    ready: {tcp: 80, exec: ["true"]}
  worker:
    image: tiny
    after: [haed]
    cuont: 2
    resources: {memory: 12}
    user_data: x.yaml
on_failure: explode
"""
    assert complaints(text) == [
        'lab.yaml:2: lease.duration: "soon" is not a duration; write e.g. 90s or 2h30m',
        "lab.yaml:3: networks: does nothing yet: there is no private network yet; leave it out",
        "lab.yaml:7: roles.head.count: 400 is not allowed; expected a whole number or the fields initial, min, max "
        "<= 256",
        "lab.yaml:8: roles.head.provides: does nothing yet: roles cannot tell each other anything yet; leave it out",
        "lab.yaml:9: roles.head.ready: asks in no way, or in several; give exactly one of tcp, http and exec",
        "lab.yaml:12: roles.worker.after[0]: there is no role haed; did you mean head?",
        'lab.yaml:13: roles.worker.cuont: unknown field; did you mean "count"? allowed here: image, count, command, '
        "inputs, environment, resources, hypervisor, boot_timeout, after, ready, repair, placement",
        "lab.yaml:14: roles.worker.resources.memory: 12 is too little for any guest; did you mean 12M?",
        "lab.yaml:15: roles.worker.user_data: does nothing yet: cloud-init is not fed yet; give a command, and inputs; "
        "leave it out",
        'lab.yaml:16: on_failure: "explode" is not allowed; expected one of keep, rollback, retry',
    ]


@pytest.mark.parametrize("field", NOT_YET)
def test_a_field_that_does_not_act_is_refused_and_not_passed_over(field: str) -> None:
    path = field.replace("*", "a").split(".")
    content: dict[str, object] = {"name": "lab", "roles": {"a": {"image": "tiny"}}}
    at = content
    for key in path[:-1]:
        at = at.setdefault(key, {})  # type: ignore[assignment]
    at[path[-1]] = "x"
    [told] = complaints(yaml.safe_dump(content))
    assert f"{field.replace('*', 'a')}: does nothing yet: {NOT_YET[field]}" in told


@pytest.mark.parametrize(
    ("roles", "expected"),
    [
        ("{a: {image: t, after: [b]}, b: {image: t, after: [c]}, c: {image: t, after: [b]}}", "in a circle: b → c → b"),
        ("{a: {image: t, after: [a]}}", "a waits for itself; remove it"),
        ("{A_1: {image: t}}", "'A_1' is no name of a role; write 1 to 32 small letters"),
        ("{a: {image: t, count: {initial: 5, max: 3}}}", "5 is not between min and max; write 0 to 3"),
        (
            "{a: {image: t, count: 200}, b: {image: t, count: 100}}",
            "come to 300 VMs; one infrastructure has at most 256",
        ),
        ("{a: {image: t, ready: {tcp: 80, interval: 0s}}}", "0s is no time at all; write for instance 10s"),
        ("{a: {image: t, ready: {http: {port: 80, path: 'x y'}}}}", "'x y' is no path of a URL"),
        ("{a: {image: t, placement: {requirements: 'Memory >'}}}", "roles.a.placement.requirements"),
        ("{a: {image: t, hypervisor: uml, resources: {cpus: 2}}}", "uml gives a guest 1 CPU"),
        ("{}", "roles: there is none; describe at least one"),
    ],
)
def test_roles_that_cannot_be_are_told_with_what_can(roles: str, expected: str) -> None:
    assert expected in "\n".join(complaints(f"name: lab\nroles: {roles}\n"))


def test_a_name_that_looks_like_an_id_is_refused() -> None:
    assert "j1 looks like the id of a job or a group" in complaints("name: j1\nroles: {a: {image: tiny}}\n")[0]


def test_what_a_vm_asks_of_its_site_is_what_a_job_may_ask() -> None:
    role = RoleSpec("tiny", ready=None, repair="replace")
    job = vm_job(role, "a", 600)
    assert job.command == SERVE and job.resources.walltime == "600s" and job_problems(job) == []
    assert msgspec.convert(msgspec.to_builtins(job), type(job)) == job, "its own bounds hold too"
    assert vm_job(RoleSpec("tiny", command=("httpd",)), "a", 600).retry.times == 0


def test_a_role_is_scaled_within_what_it_was_written_as() -> None:
    assert RoleSpec("tiny", 2).scaled(5).count == 5
    assert RoleSpec("tiny", CountSpec(2, 1, 8)).scaled(5).count == CountSpec(5, 1, 8)


def test_the_published_schema_is_the_one_in_force() -> None:
    published = (ROOT / "docs" / "infrastructure.schema.json").read_text()
    assert published == infrastructure_schema(), "ghv schema infrastructure > docs/infrastructure.schema.json"


def test_the_schema_takes_a_parameter_wherever_the_reader_does() -> None:
    parts = schema()["$defs"]
    pattern = parts["Parameter"]["pattern"]
    assert re.fullmatch(pattern, "${workers}")
    for part, field in (("RoleSpec", "count"), ("ProbeSpec", "tcp"), ("LeaseSpec", "duration"), ("RoleSpec", "repair")):
        assert {"$ref": "#/$defs/Parameter"} in parts[part]["properties"][field]["anyOf"], (part, field)
    assert "anyOf" not in parts["PlacementSpec"]["properties"]["rank"], "any text is right there already"
    assert "$ref" not in json.dumps(parts["ParameterSpec"])


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("**/*.yaml")), ids=lambda path: str(path.name))
def test_the_examples_are_right(path: Path) -> None:
    text = path.read_text()
    if "kind: VirtualInfrastructure" in text:
        assert isinstance(load(str(path), text), InfrastructureSpec)


def test_http_probes_have_a_path_of_their_own() -> None:
    spec = load("lab.yaml", "name: lab\nroles: {a: {image: t, ready: {http: {port: 8080, path: /health}}}}\n")
    probe = spec.roles["a"].ready
    assert probe is not None and probe.http == HttpSpec(8080, "/health")
