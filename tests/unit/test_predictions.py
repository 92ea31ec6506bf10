"""How long operations take, learnt of those that were done: worked out by hand, and what a job is told by it."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from gridhypervisor.model.prediction import Rate
from gridhypervisor.model.spec import ResourcesSpec
from gridhypervisor.model.wire import HypervisorKind, OperationKind, Timing
from gridhypervisor.planning.predictions import DOUBT, HALF, USUAL, Predictions, Sample, expected, fit
from tests.unit.test_placing import LAYER, job

K, H = OperationKind, HypervisorKind
MB = 1_000_000
GENERAL = Rate(1.0, 1e-8)
"""2 s for 100 MB."""


def boots(*seconds: float) -> list[Timing]:
    return [Timing(K.BOOT, 256 * MB, each) for each in seconds]


def test_where_nothing_was_seen_holds_what_holds_in_general() -> None:
    assert fit([], GENERAL) == Rate(1.0, 1e-8, 0, DOUBT)


def test_one_operation_tells_how_fast_a_site_is_at_every_size() -> None:
    """It took twice as long as usual. What is usual counts, at that speed, at 50 and 200 MB: 3 and 6 s. All lie on
    2 s + 100 MB per 2 s."""
    found = fit([Sample(100 * MB, 4.0)], GENERAL)
    assert [found.fixed, found.per_byte * MB] == pytest.approx([2.0, 0.02]) and found.learnt == 1
    assert found.spread == pytest.approx(math.sqrt(DOUBT**2 / 2)), "it errs by nothing, and half is doubt"


def test_operations_of_several_sizes_tell_both_numbers() -> None:
    line = [Sample(size * MB, 5.0 + size / 10) for size in (10, 400, 90, 250)] * 4
    found = fit(line, Rate(5.0, 1 / (10 * MB)))
    assert [found.fixed, found.per_byte * MB] == pytest.approx([5.0, 0.1])
    found = fit(line, GENERAL)
    assert [found.seconds(size * MB) for size in (10, 100, 400)] == pytest.approx([6, 15, 45], rel=0.1)


def test_the_least_of_two_weighted_errors_by_hand() -> None:
    """At no size 3.9 s, then 4 s, as is usual: weights 2^(-1/8) and 1, and a quarter for what is usual there. None is
    far off, so the least of Σ w·(a / t − 1)² is at a = Σ(w / t) / Σ(w / t²)."""
    found = fit([Sample(0, 3.9), Sample(0, 4.0)], Rate(4.0, 0.0))
    older = 2 ** (-1 / HALF)
    by_hand = (older / 3.9 + 1.25 / 4.0) / (older / 3.9**2 + 1.25 / 4.0**2)
    assert found.seconds(0) == pytest.approx(by_hand, rel=2e-3), "but for what counts in proportion to the prediction"


def test_time_that_falls_with_the_size_is_taken_for_noise() -> None:
    found = fit([Sample(100 * MB, 4.0), Sample(400 * MB, 2.0), Sample(900 * MB, 1.0)] * 3, GENERAL)
    assert found.per_byte * 900 * MB < found.fixed, "but for what is usual"
    assert 0.5 < found.seconds(400 * MB) < 4.0


def test_a_site_is_predicted_by_others_until_it_was_seen() -> None:
    known = Predictions()
    assert known.rate(K.BOOT, "a", H.TCG) == replace(USUAL["boot tcg"], spread=DOUBT)
    known.add("b", H.TCG, "i", boots(*[9.0] * 8))
    assert known.predict(K.BOOT, "a", H.TCG, 256 * MB) == pytest.approx(9.0, rel=0.05)
    assert known.predict(K.BOOT, "a", H.UML, 256 * MB) == USUAL["boot uml"].seconds(256 * MB)
    known.add("a", H.TCG, "i", boots(*[3.0] * 8))
    assert known.predict(K.BOOT, "a", H.TCG, 256 * MB) == pytest.approx(3.0, rel=0.05)
    assert known.predict(K.BOOT, "b", H.TCG, 256 * MB) == pytest.approx(9.0, rel=0.05)
    assert known.rate(K.BOOT, "a", H.TCG).learnt == 8


def test_an_image_that_boots_slowly_is_told_from_the_others_of_its_site() -> None:
    known = Predictions()
    for _ in range(8):
        known.add("a", H.TCG, "quick", boots(3.0))
        known.add("a", H.TCG, "slow", boots(60.0))
    assert known.predict(K.BOOT, "a", H.TCG, 256 * MB, image="quick") == pytest.approx(3.0, rel=0.1)
    assert known.predict(K.BOOT, "a", H.TCG, 256 * MB, image="slow") == pytest.approx(60.0, rel=0.1)
    assert 3.0 < known.predict(K.BOOT, "a", H.TCG, 256 * MB, image="another") < 60.0


def test_a_save_of_a_guest_with_a_snapshot_is_told_from_the_others() -> None:
    known = Predictions()
    for _ in range(8):
        known.add("a", H.TCG, "i", [Timing(K.SAVE, 100 * MB, 2.0)], instant=True)
        known.add("a", H.TCG, "i", [Timing(K.SAVE, 100 * MB, 1.0)])
    like = job(hypervisor="tcg")
    like = replace(like, image_digest="i")
    never = replace(like, spec=job(hypervisor="tcg", instant="never").spec)
    for wanted, took in ((like, 2.0), (never, 1.0)):
        found = expected(wanted, "a", (), {H.TCG}, known).of(K.SAVE, H.TCG, 100 * MB, 1.0)
        assert found == pytest.approx(took, rel=0.1)


def test_a_part_of_all_cases_takes_less_than_its_quantile() -> None:
    known = Predictions()
    known.add("a", H.TCG, "i", [Timing(K.SAVE, 100 * MB, 2.0)] * 20)
    rate = known.rate(K.SAVE, "a", H.TCG)
    half, most = (known.predict(K.SAVE, "a", H.TCG, 100 * MB, q) for q in (0.5, 0.99))
    assert half == pytest.approx(2.0, rel=0.05)
    assert most == pytest.approx(half * math.exp(2.3263 * rate.spread), rel=1e-3)


def test_what_shares_its_processors_takes_longer_and_teaches_the_same() -> None:
    """As many tasks again want each processor: all takes twice as long, and is known to have."""
    known = Predictions()
    known.add("a", H.TCG, "i", [Timing(K.BOOT, 256 * MB, 3.0, 1.0), Timing(K.BOOT, 256 * MB, 6.0, 2.0)] * 10)
    assert known.predict(K.BOOT, "a", H.TCG, 256 * MB, load=1.0) == pytest.approx(3.0, rel=0.05)
    assert known.predict(K.BOOT, "a", H.TCG, 256 * MB, load=3.0) == pytest.approx(9.0, rel=0.05)
    known.add("a", H.TCG, "i", [Timing(K.BOOT, 256 * MB, 6.0, 2.0)] * 20)
    assert known.load("a") == pytest.approx(2.0, rel=0.05) and known.load("b") == 1.0
    assert known.predict(K.BOOT, "a", H.TCG, 256 * MB) == pytest.approx(6.0, rel=0.05), "as it was lately"
    assert known.predict(K.UPLOAD, "a", None, 0) == USUAL["upload"].fixed, "which no node has to do with"


def test_what_means_nothing_is_not_learnt() -> None:
    known = Predictions()
    known.add("a", None, "i", [Timing(K.BOOT, MB, 4.0), Timing(K.COPY, MB, 0.0), Timing(K.COPY, -1, 3.0)])
    assert known.rate(K.BOOT, "a", H.TCG).learnt == known.rate(K.COPY, "a").learnt == 0


def test_a_job_is_told_when_its_guest_will_be_ready() -> None:
    """At a site that lacks its image it is sent there, and copied to the node; then it boots, or begins from a snapshot
    where its image has done so."""
    known, wanted = Predictions(), job(hypervisor="tcg")
    fresh = expected(wanted, "a", (), {H.TCG}, known)
    there = expected(wanted, "a", (LAYER.digest,), {H.TCG}, known)
    assert (fresh.missing, there.missing) == (LAYER.size, 0)
    way = USUAL["upload"].per_byte * LAYER.size + USUAL["copy"].seconds(LAYER.size)
    assert fresh.ready - there.ready == pytest.approx(way, rel=1e-3)
    known.add("a", H.TCG, wanted.image_digest, [Timing(K.RESTORE, 80 * MB, 0.7)] * 8)
    instant = expected(wanted, "a", (LAYER.digest,), {H.TCG}, known)
    usual = USUAL["upload"].fixed + USUAL["prepare"].fixed
    assert instant.ready == pytest.approx(usual + 0.7, rel=0.05)
    never = expected(job(hypervisor="tcg", instant="never"), "a", (LAYER.digest,), {H.TCG}, known)
    assert never.ready == pytest.approx(there.ready)
    assert instant.of(K.RESTORE, H.TCG, 80 * MB, 2.0) == pytest.approx(1.4, rel=0.05)
    assert instant.of(K.RESTORE, H.UML, 80 * MB, 1.0) is None, "which cannot"


def test_the_fastest_hypervisor_is_counted_on_of_those_that_a_site_has_and_the_job_can_use() -> None:
    def likely(able: set[HypervisorKind], cpus: int = 1) -> float:
        return expected(job(resources=ResourcesSpec(cpus)), "a", (LAYER.digest,), able, Predictions()).ready

    before = USUAL["upload"].fixed + USUAL["prepare"].fixed
    memory = 512 << 20
    assert likely({H.UML, H.TCG}) == pytest.approx(before + USUAL["boot uml"].seconds(memory), rel=1e-3)
    assert likely({H.TCG}) == pytest.approx(before + USUAL["boot tcg"].seconds(memory), rel=1e-3)
    assert likely({H.UML, H.TCG}, cpus=2) == likely({H.TCG}), "User-Mode Linux gives one CPU"
    names = expected(job(), "a", (), {H.UML, H.TCG}, Predictions()).rates.keys()
    assert names == {"upload", "prepare", "copy", "boot uml", "boot tcg", "restore tcg", "save tcg", "resume tcg"}
