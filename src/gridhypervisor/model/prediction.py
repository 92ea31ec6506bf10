"""What is predicted of an attempt when it gets its place, and kept with it: so it is known later how far it was so."""

from __future__ import annotations

from dataclasses import dataclass, field

from gridhypervisor.model.wire import HypervisorKind, OperationKind


@dataclass(frozen=True)
class Rate:
    """How long an operation takes where nothing else wants the processors: `fixed` seconds, and `per_byte` seconds for
    each byte. It takes as many times longer as the node's load says; see `Timing.load`."""

    fixed: float
    per_byte: float
    learnt: int = 0  # operations like it at that site that it was learnt from; 0: elsewhere, or what is usual
    spread: float = 0.0  # of ln(real / predicted), as a standard deviation

    def seconds(self, size: int) -> float:
        return self.fixed + self.per_byte * size


@dataclass(frozen=True)
class Expected:
    """Of one attempt, as its site was chosen."""

    missing: int  # bytes of its image that the site lacked
    ready: float  # seconds until its guest is ready, but for the site's queue
    rates: dict[str, tuple[float, float]] = field(default_factory=dict)  # by `named`: fixed and per_byte of a `Rate`

    def of(self, kind: OperationKind, hypervisor: HypervisorKind | None, size: int, load: float) -> float | None:
        """Seconds that were predicted for so many bytes at a node as busy as that; None: nothing was."""
        rate = self.rates.get(named(kind, hypervisor))
        return (rate[0] + rate[1] * size) * load if rate is not None else None


GUEST = frozenset({OperationKind.BOOT, OperationKind.RESTORE, OperationKind.SAVE, OperationKind.RESUME})
"""What depends on what runs the guest."""


def named(kind: OperationKind, hypervisor: HypervisorKind | None) -> str:
    """Such operations, in a word or two: "copy", "boot tcg"."""
    return f"{kind} {hypervisor}" if kind in GUEST and hypervisor is not None else str(kind)
