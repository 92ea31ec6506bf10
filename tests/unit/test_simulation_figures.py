"""What a simulation's figures are, against values worked out by hand; and what its file may not say."""

from __future__ import annotations

import pytest

from gridhypervisor.model.simulation import SimulationSpec, problems
from gridhypervisor.model.yamlspec import SpecError, load
from gridhypervisor.simulation.batch import Stay
from gridhypervisor.simulation.figures import core_seconds, jain, over_time, slowdown, spread


@pytest.mark.parametrize(
    ("wait", "run", "expected"),
    [
        (100.0, 100.0, 2.0),
        (0.0, 100.0, 1.0),
        (90.0, 1.0, 9.1),  # (90 + 1) / 10: a very short program counts as one of 10 s
        (5.0, 1.0, 1.0),  # never below 1
        (20.0, 0.0, 2.0),
    ],
)
def test_bounded_slowdown(wait: float, run: float, expected: float) -> None:
    assert slowdown(wait, run) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([3.0, 3.0, 3.0], 1.0),
        ([1.0, 0.0, 0.0, 0.0], 0.25),
        ([1.0, 2.0, 3.0], 36 / (3 * 14)),
        ([], 1.0),
        ([0.0, 0.0], 1.0),
    ],
)
def test_jains_index(values: list[float], expected: float) -> None:
    assert jain(values) == pytest.approx(expected)


def test_use_over_time_is_the_mean_of_each_step() -> None:
    stays = [Stay("a", 0.0, 15.0, 4), Stay("b", 5.0, 25.0, 2), Stay("c", 29.0, 99.0, 1)]
    # 0–10: 4·10 + 2·5 = 50; 10–20: 4·5 + 2·10 = 40; 20–30: 2·5 + 1·1 = 11; and the rest of c is beyond.
    assert over_time(stays, 10.0, 3) == [5.0, 4.0, 1.1]
    assert core_seconds(stays, 30.0) == 4 * 15 + 2 * 20 + 1 * 1


def test_a_spread_has_its_percentiles() -> None:
    found = spread([float(value) for value in range(101)])
    assert (found.mean, found.median, found.p90, found.most) == (50.0, 50.0, 90.0, 100.0)
    assert found.curve == tuple(float(value) for value in range(101))
    assert spread([]).curve == ()


@pytest.mark.parametrize(
    ("text", "line", "field", "words"),
    [
        ("workload: {trace: a.swf}\nsites: {}\n", 2, "sites", "names no site"),
        ("workload: {}\nsites: {a: {}}\n", 1, "workload", "exactly one of trace and generate"),
        ("workload: {trace: a, generate: {jobs: 1}}\nsites: {a: {}}\n", 1, "workload", "exactly one"),
        ("workload: {trace: a}\nsites:\n  a: {nods: 3}\n", 3, "sites.a.nods", "unknown field"),
        ("workload: {trace: a}\nsites:\n  a: {listing: 0s}\n", 3, "sites.a.listing", "is no time at all"),
        ("workload: {trace: a}\nsites:\n  a b: {}\n", 3, "sites.a b", "is no name for a site"),
        ("workload: {trace: a}\nsites:\n  a:\n    faults: {lost: 0.7, mute: 0.4}\n", 4, "sites.a.faults", "more than"),
        ("workload: {trace: a}\nsites:\n  a: {cores: 2, others: {share: 0.5, cpus: 4}}\n", 3, "sites.a.others.cpus",
         "more than the 2 of a node"),
    ],
)  # fmt: skip
def test_what_means_nothing_is_refused_with_line_and_field(text: str, line: int, field: str, words: str) -> None:
    with pytest.raises(SpecError) as refused:
        load("s.yaml", text, SimulationSpec, problems)
    assert any((p.line, p.field) == (line, field) and words in f"{p.problem} {p.allowed}" for p in
               refused.value.problems), refused.value  # fmt: skip
