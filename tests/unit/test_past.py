"""What is remembered of attempts that are over: for as long as the policy says, and never more than so much."""

from __future__ import annotations

import pytest

from gridhypervisor.model.policy import FailureSetting, ResourcePolicies, SchedulingPolicy, UsageSetting
from gridhypervisor.model.wire import HypervisorKind, Layer, OperationKind, Timing
from gridhypervisor.planning import past as module
from gridhypervisor.planning.past import Past, Tenure, memory_of

DAY = 86_400.0
POLICY = SchedulingPolicy(resources=ResourcePolicies(usage=UsageSetting(1.0), failure=FailureSetting(1.0)))


def over(at: float, *, owner: str = "me", site: str = "a", well: bool | None = True, **more: object) -> Tenure:
    return Tenure(owner, "default", site, at, 10.0, 10.0, well, **more)  # type: ignore[arg-type]


def counts(past: Past, now: float) -> dict[str, tuple[int, int]]:
    """By site: successes and failures of the user's that count."""
    return {site: (r.successes, r.failures) for site, r in past.usage(now).records.get("me", {}).items()}


def test_what_is_too_long_ago_is_forgotten_attempt_by_attempt() -> None:
    past = Past(POLICY)
    for at in (0.0, 1.0, 2.0):
        past.add(over(at * DAY))
    past.add(over(2 * DAY, site="b", well=False))
    assert counts(past, 2.5 * DAY) == {"a": (3, 0), "b": (0, 1)}
    assert counts(past, 3.5 * DAY) == {"a": (2, 0), "b": (0, 1)}
    past.add(over(3.6 * DAY))
    assert counts(past, 4.5 * DAY) == {"a": (2, 0), "b": (0, 1)}
    assert counts(past, 5.5 * DAY) == {"a": (1, 0)}
    assert counts(past, 7.0 * DAY) == {}
    past.add(over(8 * DAY, site="b"))
    assert counts(past, 8 * DAY) == {"b": (1, 0)}


def test_what_was_done_for_an_attempt_is_learnt_for_its_site() -> None:
    past = Past(POLICY)
    for at in range(8):
        took = (Timing(OperationKind.BOOT, 1 << 28, 12.0), Timing(OperationKind.COPY, 1 << 28, 1.0))
        past.add(over(float(at), hypervisor=HypervisorKind.TCG, image="i", timings=took))
    known = past.predictions
    assert known.predict(OperationKind.BOOT, "a", HypervisorKind.TCG, 1 << 28) == pytest.approx(12.0, rel=0.05)
    assert known.predict(OperationKind.COPY, "a", None, 1 << 28) == pytest.approx(1.0, rel=0.1)


def test_a_past_goes_back_as_far_as_anything_counts() -> None:
    assert memory_of(SchedulingPolicy()) >= DAY
    banned = SchedulingPolicy(resources=ResourcePolicies(failure=FailureSetting(ban="10d", growth="1d")))
    assert memory_of(banned) >= 11 * DAY, "else the ban were over when the service starts again"


def test_of_nodes_and_layers_those_are_remembered_that_were_used_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_NODES", 2)
    monkeypatch.setattr(module, "MOST_LAYERS", 2)
    past = Past(SchedulingPolicy())
    for at, name in enumerate(("n1", "n2", "n1", "n3")):
        layer = Layer(f"layer of {name}", 1, "base", "squashfs")
        past.add(over(float(at), node=name, hypervisor=HypervisorKind.TCG, layers=(layer,)))
    site = past.sites["a"]
    assert set(site.nodes) == {"n1", "n3"} and set(site.layers) == {"layer of n1", "layer of n3"}
    assert site.news == 3, "what was there already is no news"
    uml, tcg = HypervisorKind.UML, HypervisorKind.TCG
    for when, rates in ((5.0, {uml: 0.8}), (6.0, {uml: 0.8}), (7.0, {tcg: 0.1}), (8.0, dict[HypervisorKind, float]())):
        past.add(over(when, node="n3", hypervisor=tcg, rates=rates))
    assert site.rates["n3"] == {uml: 0.8, tcg: 0.1} and site.news == 5, "each job tells what it knows"
    assert site.rates.keys() <= site.nodes.keys()
