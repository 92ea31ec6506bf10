"""Which hypervisor runs a job: what is asked for, what is possible, what is measured, in this order."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gridhypervisor.agent import probe
from gridhypervisor.agent.choice import EMULATION, PARTS, Finding, Measure, Prove, Rates, Refused, decide, speeds
from gridhypervisor.model.wire import HypervisorKind, HypervisorUsed, Needs

KVM, UML, TCG = HypervisorKind
FAST = Rates((0.6, 0.03, 0.1, 0.02))
SLOW = Rates((2.0, 0.3, 0.4, 0.3))
GOOD = {
    KVM: Finding(KVM, "qemu 7", True, "kvm: the micro-guest ran", FAST),
    UML: Finding(UML, "linux 6", True, "uml: a guest runs, behind walls", FAST),
    TCG: Finding(TCG, "qemu 7", True, "tcg: emulated", SLOW),
}
NO_KVM = GOOD | {KVM: replace(GOOD[KVM], works=False, why="kvm: this node has no /dev/kvm")}
SMALL = Needs()


def test_kvm_wins_where_it_works_and_nothing_else_is_looked_at() -> None:
    assert decide("auto", SMALL, {}) == Prove(KVM)
    used = decide("auto", SMALL, {KVM: GOOD[KVM]})
    assert used == HypervisorUsed(KVM, "qemu 7", "kvm: the micro-guest ran")


def test_without_kvm_user_mode_linux_is_proven_then_measured_then_chosen_with_its_figures() -> None:
    found = {KVM: NO_KVM[KVM]}
    assert decide("auto", SMALL, found) == Prove(UML)
    found[UML] = replace(GOOD[UML], rates=None)
    assert decide("auto", SMALL, found) == Measure(UML)
    found[UML] = GOOD[UML]
    used = decide("auto", SMALL, found)
    assert isinstance(used, HypervisorUsed)
    assert used.kind is UML
    assert "kvm: this node has no /dev/kvm" in used.why
    assert "a standard job would take 35 s (probe: boot 0.60, compute 0.03, processes 0.10, disk 0.02 s)" in used.why
    assert "at least 90 s under tcg" in used.why


def test_a_node_where_system_calls_cost_too_much_is_measured_under_both() -> None:
    found = NO_KVM | {UML: replace(GOOD[UML], rates=Rates((3.0, 0.03, 12.0, 9.0))), TCG: replace(GOOD[TCG], rates=None)}
    step = decide("auto", SMALL, found)
    assert isinstance(step, Measure)
    assert step.kind is TCG
    assert step.best == pytest.approx(969.0)
    used = decide("auto", SMALL, found | {TCG: GOOD[TCG]})
    assert isinstance(used, HypervisorUsed)
    assert used.kind is TCG
    assert "969 s" in used.why
    assert "333 s" in used.why
    stopped = replace(GOOD[TCG], rates=Rates((2.0, 1.1), whole=False))
    used = decide("auto", SMALL, found | {TCG: stopped})
    assert isinstance(used, HypervisorUsed)
    assert used.kind is UML
    assert "at least 1102 s (probe: boot 2.00, compute 1.10 and not done s) under tcg" in used.why


def test_what_a_guest_gets_of_the_nodes_speed_is_told_where_it_was_measured() -> None:
    assert speeds({}) == {}
    assert speeds({KVM: replace(GOOD[KVM], rates=None), UML: replace(GOOD[UML], rates=None)}) == {"kvm": 1.0}
    # 30 s of computing, of which the whole job makes 0.6 + 30 + 3 + 1.28 s; under the emulator 2 + 300 + 12 + 19.2 s
    assert speeds(NO_KVM) == {"uml": 0.86, "tcg": 0.09}
    stopped = replace(GOOD[TCG], rates=Rates((2.0, 1.1), whole=False))
    assert speeds(NO_KVM | {TCG: stopped}) == {"uml": 0.86}, "it was stopped, so nobody knows"
    assert speeds({TCG: GOOD[TCG]}) == {}, "against what?"


@pytest.mark.parametrize(
    ("needs", "why"),
    [
        (Needs(cpus=2), "uml gives a guest 1 CPU, and the job asks for 2"),
        (Needs(network="outbound"), "uml gives a guest no network, and the job asks for outbound"),
        (Needs(whole_disk=True), "uml brings its own kernel, and the image is one whole disk"),
        (Needs(disks=17), "uml gives a guest 16 disks, and the image has layers for 17"),
    ],
)
def test_what_user_mode_linux_cannot_give_is_given_by_the_emulator_or_refused(needs: Needs, why: str) -> None:
    used = decide("auto", needs, NO_KVM)
    assert isinstance(used, HypervisorUsed)
    assert used.kind is TCG
    assert why in used.why
    refused = decide("uml", needs, GOOD)
    assert isinstance(refused, Refused)
    assert why in refused.message
    assert "auto" in refused.hint


def test_what_is_asked_for_is_proven_and_never_replaced() -> None:
    for kind in HypervisorKind:
        assert decide(kind, SMALL, {}) == Prove(kind)
        used = decide(kind, SMALL, GOOD)
        assert used == HypervisorUsed(kind, GOOD[kind].program, f"the job asks for {kind}")
        refused = decide(kind, SMALL, GOOD | {kind: replace(GOOD[kind], works=False, why="because")})
        assert isinstance(refused, Refused)
        assert refused.message.endswith("because")


RATES = st.builds(
    lambda seconds, whole: Rates(tuple(seconds), whole or len(seconds) < 2),
    st.lists(st.floats(0.001, 60), min_size=len(PARTS), max_size=len(PARTS)), st.just(True),
)  # fmt: skip
FINDINGS = st.fixed_dictionaries(
    {kind: st.builds(Finding, st.just(kind), st.just("p"), st.booleans(), st.just(f"{kind} says"), RATES)
     for kind in HypervisorKind}
)  # fmt: skip
NEEDS = st.builds(
    Needs, st.integers(1, 4), st.integers(3, 20), st.sampled_from(["none", "restricted", "outbound"]), st.booleans()
)


@given(st.sampled_from(["auto", *HypervisorKind]), NEEDS, FINDINGS)
def test_it_ends_soon_with_what_works_and_is_fastest_or_refuses_with_every_reason(
    wanted: str, needs: Needs, node: dict[HypervisorKind, Finding]
) -> None:
    found: dict[HypervisorKind, Finding] = {}
    steps = 0
    while isinstance(step := decide(wanted, needs, found), Prove | Measure):
        truth = node[step.kind]
        if isinstance(step, Prove):
            assert step.kind not in found, "nothing is proven twice"
            truth = replace(truth, rates=None)
        else:
            assert found[step.kind].rates is None, "nothing is measured twice"
        assert not needs.unmet(step.kind), "nothing is found out that cannot run the job"
        found[step.kind] = truth
        steps += 1
        assert steps <= 5
    able = [kind for kind in HypervisorKind if not needs.unmet(kind) and node[kind].works and wanted in ("auto", kind)]
    if isinstance(step, Refused):
        assert not able
        assert step.message
        assert step.hint
        return
    assert step.kind in able
    if KVM in able:
        assert step.kind is KVM
    elif len(able) == 2:
        predicted = {kind: node[kind].rates.predicted() for kind in able}  # type: ignore[union-attr]
        uml = node[UML].rates
        assert uml is not None
        if step.kind is TCG:
            assert predicted[TCG] < predicted[UML]
        else:
            assert predicted[UML] <= max(predicted[TCG], EMULATION * uml.seconds[1] * PARTS["compute"])


@pytest.mark.parametrize(
    ("works", "key", "moment", "holds"),
    [
        (True, "k", 1e9, True),
        (False, "k", 11.0, True),
        (False, "k", 11.0 + probe.DOUBT, False),
        (False, "k", 9.0, False),
        (True, "another boot", 11.0, False),
    ],
)
def test_that_it_fails_is_remembered_for_minutes_only(works: bool, key: str, moment: float, holds: bool) -> None:
    finding = replace(GOOD[KVM], works=works)
    assert probe.Remembered("k", 10.0, finding).holds(key, moment) is holds


def test_a_finding_is_remembered_with_its_figures_and_what_does_not_start_is_not(tmp_path: Path) -> None:
    probe.remember(tmp_path, "k", GOOD[UML])
    assert probe.recall(tmp_path, UML, "k") == GOOD[UML]
    assert probe.recall(tmp_path, UML, "another bundle") is None
    assert probe.recall(tmp_path, TCG, "k") is None
    probe.remember(tmp_path, "k", replace(GOOD[TCG], program="", works=False))
    assert probe.recall(tmp_path, TCG, "k") is None
    (tmp_path / "uml-proof.json").write_text('{"key": "k"')
    assert probe.recall(tmp_path, UML, "k") is None
