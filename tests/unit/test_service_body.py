"""Request bodies: what is read, and what is said about those that cannot be."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gridhypervisor.model.infraviews import InfrastructureRequest
from gridhypervisor.model.records import SiteKind
from gridhypervisor.model.spec import InputSpec, JobSpec
from gridhypervisor.model.views import JobRequest, ServiceError, SiteRequest
from gridhypervisor.service.body import read_body

SPEC = {"image": "xmm", "command": ["true"]}


def errors(body: object, kind: type = JobRequest) -> dict[str, str]:
    with pytest.raises(ServiceError) as error:
        read_body(body if isinstance(body, bytes) else msgspec.json.encode(body), kind)
    assert error.value.problem.status == 422
    assert error.value.problem.code == "invalid"
    return {e["field"]: e["problem"] for e in error.value.problem.errors}


@given(st.lists(st.text(), min_size=1), st.lists(st.text(min_size=1).map(lambda n: InputSpec(path=n))), st.text())
def test_what_a_client_writes_is_read_back(command: list[str], inputs: list[InputSpec], value: str) -> None:
    request = JobRequest(JobSpec("x", tuple(command), inputs=tuple(inputs), environment={"A": value}), "/a", "/b")
    assert read_body(msgspec.json.encode(request), JobRequest) == request


def test_every_bad_field_is_named_at_once() -> None:
    spec = SPEC | {"resources": {"cpus": "two", "memry": "1Gi", "walltime": "soon"}, "network": "all"}
    found = errors({"spec": spec, "folder": "/a", "destination": "/b"})
    assert set(found) == {"spec.resources.cpus", "spec.resources.memry", "spec.resources.walltime", "spec.network"}
    assert found["spec.resources.memry"] == "unknown field"


def test_an_unknown_field_alone_is_refused() -> None:
    found = errors({"spec": SPEC | {"imaeg": "y"}, "folder": "/a", "destination": "/b"})
    assert found == {"spec.imaeg": "unknown field"}


def test_what_types_cannot_say_is_checked_too() -> None:
    spec = SPEC | {"outputs": ["../up"], "environment": {"a b": "c"}}
    found = errors({"spec": spec, "folder": "here", "destination": "/b"})
    assert set(found) == {"spec.outputs[0]", "spec.environment.a b", "folder"}


@pytest.mark.parametrize("body", [b"", b"{", b"[1]", b"null", b"\xff", b'"x"'])
def test_what_is_no_record_is_refused(body: bytes) -> None:
    assert errors(body)


def test_a_site_is_read() -> None:
    request = SiteRequest("a", SiteKind.SLURM, host="h", options={"partition": "short"})
    assert read_body(msgspec.json.encode(request), SiteRequest) == request
    assert set(errors({"name": "a", "kind": "lsf"}, SiteRequest)) == {"kind"}


def test_an_infrastructure_is_read_and_judged() -> None:
    spec = {"name": "lab", "roles": {"a": {"image": "x", "count": 2, "ready": {"tcp": 80}}}}
    found = read_body(msgspec.json.encode({"spec": spec, "folder": "/a"}), InfrastructureRequest)
    assert found.spec.roles["a"].wanted == 2
    roles = {"a": {"image": "x", "after": ["b"], "networks": ["lan"]}}
    assert errors({"spec": spec | {"roles": roles}, "folder": "/a"}, InfrastructureRequest) == {
        "spec.roles.a.networks": "unknown field"
    }
    roles["a"].pop("networks")
    assert set(errors({"spec": spec | {"roles": roles}, "folder": "here"}, InfrastructureRequest)) == {
        "spec.roles.a.after[0]", "folder",
    }  # fmt: skip
