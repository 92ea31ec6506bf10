"""What holds of predictions whatever was done: never negative, the same in any unit, not led astray, not stale."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gridhypervisor.model.prediction import Rate
from gridhypervisor.model.wire import HypervisorKind, OperationKind, Timing
from gridhypervisor.planning.predictions import Predictions, Sample, fit

MB = 1_000_000

sizes = st.integers(0, 4000 * MB)
times = st.floats(0.01, 1000.0)
samples = st.lists(st.builds(Sample, sizes, times), max_size=32)
rates = st.builds(Rate, st.floats(0.01, 100.0), st.floats(0.0, 1e-6))
shape = st.builds(Rate, st.floats(0.2, 20.0), st.floats(1e-9, 2e-8))
"""What a site's operations may truly be like."""


@given(samples, rates)
def test_neither_number_is_ever_negative_and_more_bytes_never_take_less(seen: list[Sample], general: Rate) -> None:
    found = fit(seen, general)
    assert found.fixed >= 0 and found.per_byte >= 0 and found.spread > 0
    assert found.fixed + found.per_byte > 0
    assert found.learnt == len(seen)


@given(samples.filter(bool), rates, st.floats(0.25, 4.0), sizes)
def test_it_is_the_same_in_any_unit_of_time(seen: list[Sample], general: Rate, unit: float, size: int) -> None:
    other = [Sample(s.size, s.seconds * unit) for s in seen]
    there = fit(other, Rate(general.fixed * unit, general.per_byte * unit))
    assert there.seconds(size) == pytest.approx(fit(seen, general).seconds(size) * unit, rel=1e-4, abs=1e-4)


@given(shape, st.lists(st.integers(10 * MB, 2000 * MB), min_size=16, max_size=32), st.floats(0.25, 4.0))
def test_what_lies_on_a_line_is_learnt(true: Rate, seen: list[int], wrong: float) -> None:
    """However wrong what was usual is, in its speed: what was seen counts."""
    found = fit([Sample(size, true.seconds(size)) for size in seen], Rate(true.fixed * wrong, true.per_byte * wrong))
    for size in seen:
        assert found.seconds(size) == pytest.approx(true.seconds(size), rel=0.02)


SIZES = [size * MB for size in (10, 40, 160, 640, 20, 80, 320, 1280)] * 4


@given(shape, st.integers(0, len(SIZES) - 1), st.sampled_from((0.1, 10.0, 100.0)))
def test_one_that_is_far_off_leads_nobody_astray(true: Rate, at: int, factor: float) -> None:
    line = [Sample(size, true.seconds(size)) for size in SIZES]
    line[at] = line[at]._replace(seconds=line[at].seconds * factor)
    found = fit(line, true)
    for size in SIZES:
        assert found.seconds(size) == pytest.approx(true.seconds(size), rel=0.1)


@given(shape, st.floats(0.33, 3.0))
def test_the_load_of_today_is_in_it(true: Rate, load: float) -> None:
    """All took as long as ever, and the newer half so much longer, or shorter."""
    found = fit([Sample(s, true.seconds(s) * (load if i >= 16 else 1)) for i, s in enumerate(SIZES)], true)
    for size in SIZES:
        assert found.seconds(size) == pytest.approx(load * true.seconds(size), rel=0.15)


@given(st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from("ij"), sizes, times), max_size=60), sizes)
def test_the_same_past_gives_the_same_predictions_whoever_asked_meanwhile(
    done: list[tuple[str, str, int, float]], size: int
) -> None:
    kind, tcg = OperationKind.BOOT, HypervisorKind.TCG
    asked, quiet = Predictions(), Predictions()
    for site, image, bytes_, seconds in done:
        for known in (asked, quiet):
            known.add(site, tcg, image, [Timing(kind, bytes_, seconds)])
        asked.predict(kind, "a", tcg, size, image=image)
    for site in "abc":
        for image in ("", "i", "j"):
            assert asked.rate(kind, site, tcg, image) == quiet.rate(kind, site, tcg, image)
    quantiles = [quiet.predict(kind, "a", tcg, size, q) for q in (0.05, 0.5, 0.9, 0.99)]
    assert quantiles == sorted(quantiles)
