"""The API against its own document: schemathesis asks what the document allows, and what it does not, of every route.

The answers must be those that the document names, of the types that it names; and none may be a fault of ours. The
application, its store and its server are real, and whoever asks is the service's own user, who may ask for everything.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from hypothesis.strategies import SearchStrategy
from schemathesis.checks import not_a_server_error
from schemathesis.core.failures import Failure, FailureGroup
from schemathesis.core.result import Ok
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from gridhypervisor.model.views import JobRequest
from gridhypervisor.service.api import Api
from gridhypervisor.service.guard import LOCAL, Receive, Scope, Send
from tests.contract import real_service
from tests.contract.real_service import RealService

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]

EXAMPLES = 8
"""Requests to each route, of each kind."""

ENDLESS = "watch"
"""The parameter that makes an answer one without end."""


class LocalApi(Api):
    """Whoever comes is the service's own user."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope[LOCAL] = True
        await super().__call__(scope, receive, send)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealService]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(real_service, "Api", LocalApi)
        with RealService(tmp_path_factory.mktemp("document")) as running:
            yield running


def test_every_route_answers_as_the_document_says(service: RealService) -> None:
    schema = schemathesis.openapi.from_url(f"{service.url}/openapi.json")
    asked, wrong = 0, []
    for found in schema.get_all_operations():
        assert isinstance(found, Ok), found
        operation = found.ok()
        for mode in GenerationMode:
            try:
                ask(operation.as_strategy(generation_mode=mode))
            except Unsatisfiable:
                continue  # nothing of this kind can be asked of it
            except (FailureGroup, Failure) as error:
                wrong.append(f"{operation.label} ({mode.value}): {error}")
        asked += 1
    assert not wrong, "\n\n".join(wrong)
    assert asked > 60


def ask(cases: SearchStrategy[schemathesis.Case[Any]]) -> None:
    """So many of them."""

    @given(cases)
    @settings(
        max_examples=EXAMPLES, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
    )
    def asked(case: schemathesis.Case[Any]) -> None:
        case.query.pop(ENDLESS, None)
        case.headers.pop("Accept", None)
        case.call_and_validate(checks=CHECKS, timeout=real_service.WAIT)

    asked()


def test_the_document_is_valid_and_names_every_type(service: RealService) -> None:
    with service.http() as client:
        found = client.get("/openapi.json").json()
    assert found["openapi"].startswith("3.1")
    assert JobRequest.__name__ in found["components"]["schemas"]
    assert found["components"]["securitySchemes"]["token"] == {"type": "http", "scheme": "bearer"}
    for path, methods in found["paths"].items():
        keys = [each["name"] for each in methods.get("post", {}).get("parameters", ())]
        assert "post" not in methods or keys.count("Idempotency-Key") == 1, path
    operations = [each["operationId"] for methods in found["paths"].values() for each in methods.values()]
    assert len(operations) == len(set(operations)) > 60
