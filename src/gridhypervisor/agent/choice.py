"""Which hypervisor runs a job on this node: a pure decision, one step at a time.

`decide` looks at what the job asks for, what it needs, and what has been found out about this node; it says what to
find out next, or which hypervisor it is and why, with the figures. Proofs and measurements cost time, so none is asked
for that cannot change the answer: a node where KVM runs guests is never measured, and the emulator is only where
User-Mode Linux loses so much on other work that an emulated processor might be faster.

What is compared is the time that a standard job would take: half a minute's computing, some hundreds of processes, a
quarter of a gigabyte written. It is predicted from the times of a probe guest (`guest/probe.sh`), each part of which is
a small piece of that job.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from gridhypervisor.model.wire import HypervisorKind, HypervisorUsed, Needs

KVM, UML, TCG = HypervisorKind

PARTS = {"boot": 1.0, "compute": 1000.0, "processes": 30.0, "disk": 64.0}
"""The probe's parts, and how often a standard job does each: 30 s of computing where a processor takes 30 ms for the
part, 300 processes, 256 MiB written and flushed."""

EMULATION = 3.0
"""How many times slower an emulated processor computes, at least: 5 to 11 times were measured."""

LIMIT = 10.0
"""Seconds that a probe guest may take at most."""


@dataclass(frozen=True)
class Rates:
    """Seconds that a probe guest took for each of PARTS, in their order. One that was stopped has fewer of them, and
    the last is what it had taken for that part until then."""

    seconds: tuple[float, ...]
    whole: bool = True

    def predicted(self) -> float:
        """Seconds of a standard job; at least, where the guest was stopped."""
        return sum(seconds * often for seconds, often in zip(self.seconds, PARTS.values(), strict=False))

    def emulated(self) -> float:
        """Seconds that the standard job would take an emulator for its computing alone, at least, where a processor
        took these; 0 where that was not measured."""
        return EMULATION * self.seconds[1] * PARTS["compute"] if self.whole else 0.0

    def __str__(self) -> str:
        parts = [f"{name} {seconds:.2f}" for name, seconds in zip(PARTS, self.seconds, strict=False)]
        if not self.whole:
            parts[-1] += " and not done"
        least = "" if self.whole else "at least "
        return f"{least}{self.predicted():.0f} s (probe: {', '.join(parts)} s)"


@dataclass(frozen=True)
class Finding:
    """What was found out about a hypervisor on this node. `program` is empty where it does not even start."""

    kind: HypervisorKind
    program: str  # e.g. "qemu 7.2.22"
    works: bool
    why: str
    rates: Rates | None = None


@dataclass(frozen=True)
class Prove:
    """Find out whether it runs guests here."""

    kind: HypervisorKind


@dataclass(frozen=True)
class Measure:
    """Find out how fast it is, until it cannot be faster than `best`, seconds of a standard job, any more."""

    kind: HypervisorKind
    best: float = float("inf")


@dataclass(frozen=True)
class Refused:
    """No hypervisor of this node runs the job."""

    message: str
    hint: str


def decide(
    wanted: str, needs: Needs, found: Mapping[HypervisorKind, Finding]
) -> Prove | Measure | HypervisorUsed | Refused:
    """The next step. `wanted`: auto, or a kind. Ends after at most five findings; KVM wins where it works, then whoever
    is predicted to be faster, then the one that computes on the processor."""
    if wanted != "auto":
        return _as_asked(HypervisorKind(wanted), needs, found)
    reasons: list[str] = []
    if not (unmet := needs.unmet(KVM)):
        if KVM not in found:
            return Prove(KVM)
        if found[KVM].works:
            return HypervisorUsed(KVM, found[KVM].program, found[KVM].why)
        unmet = found[KVM].why
    reasons.append(unmet)
    uml = found.get(UML)
    if unmet := needs.unmet(UML):
        reasons.append(unmet)
        uml = None
    elif uml is None:
        return Prove(UML)
    elif not uml.works:
        reasons.append(uml.why)
        uml = None
    elif uml.rates is None:
        return Measure(UML)
    if uml is not None and uml.rates is not None and uml.rates.predicted() <= uml.rates.emulated():
        figures = f"a standard job would take {uml.rates} under uml, at least {uml.rates.emulated():.0f} s under tcg"
        return HypervisorUsed(UML, uml.program, "; ".join([*reasons, figures]))
    if not (unmet := needs.unmet(TCG)):
        if TCG not in found:
            return Prove(TCG)
        tcg = found[TCG]
        if tcg.works and uml is None:
            return HypervisorUsed(TCG, tcg.program, "; ".join(reasons))
        if tcg.works and tcg.rates is None and uml is not None and uml.rates is not None:
            return Measure(TCG, best=uml.rates.predicted())
        if tcg.works and tcg.rates is not None and uml is not None and uml.rates is not None:
            figures = f"a standard job would take {uml.rates} under uml, {tcg.rates} under tcg"
            faster = tcg if tcg.rates.whole and tcg.rates.predicted() < uml.rates.predicted() else uml
            return HypervisorUsed(faster.kind, faster.program, "; ".join([*reasons, figures]))
        unmet = tcg.why
    if uml is not None:
        return HypervisorUsed(UML, uml.program, "; ".join([*reasons, unmet]))
    return Refused(f"run the guest on this node: {'; '.join([*reasons, unmet])}", "run `ghv site check` on this site")


def speeds(found: Mapping[HypervisorKind, Finding]) -> dict[str, float]:
    """What a standard job's guest gets of this node's own speed, by hypervisor, where that is known: 1, if it loses
    nothing. Under KVM it computes on the processor, and what it loses beside that is not measured: 1. For the others
    the processor's own time is what User-Mode Linux took for the computing."""
    known: dict[str, float] = {}
    if KVM in found and found[KVM].works:
        known[KVM.value] = 1.0
    uml = found.get(UML)
    if uml is None or uml.rates is None or not uml.rates.whole:
        return known
    own = uml.rates.seconds[1] * PARTS["compute"]
    for kind in (UML, TCG):
        finding = found.get(kind)
        if finding is not None and finding.works and finding.rates is not None and finding.rates.whole:
            known[kind.value] = round(own / finding.rates.predicted(), 3)
    return known


def _as_asked(
    kind: HypervisorKind, needs: Needs, found: Mapping[HypervisorKind, Finding]
) -> Prove | HypervisorUsed | Refused:
    if unmet := needs.unmet(kind):
        return Refused(f"run the guest under {kind}, as the job asks: {unmet}", "ask for hypervisor auto, or for less")
    if kind not in found:
        return Prove(kind)
    if not found[kind].works:
        hint = f"ask for hypervisor auto, or for a site whose nodes have {kind}"
        return Refused(f"run the guest under {kind}, as the job asks: {found[kind].why}", hint)
    return HypervisorUsed(kind, found[kind].program, f"the job asks for {kind}")
