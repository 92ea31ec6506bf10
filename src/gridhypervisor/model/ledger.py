"""Where a job's time went, as it is kept and shown."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class LedgerRow:
    """One phase of one attempt, in seconds."""

    attempt: int
    phase: str  # a Phase; "middleware": what nobody claims; or "suspended"
    seconds: float


@dataclass(frozen=True)
class OperationRow:
    """Something that was done for an attempt, which takes the longer the more bytes there are."""

    attempt: int
    operation: str  # an OperationKind
    bytes: int
    seconds: float
    predicted: float | None = None  # seconds, by what was known when the attempt was planned; None: nothing was said
    load: float = 1.0  # of the node when it began, which the prediction goes by: see `Timing`


@dataclass(frozen=True)
class Ledger:
    """Where a job's wall time went. The rows add up to `wall`."""

    job: str
    wall: float  # seconds from acceptance to the end
    rows: tuple[LedgerRow, ...] = ()
    cpu: dict[str, float] = field(default_factory=dict)  # seconds: pilot, hypervisor, relay, controller, program
    hypervisor: str = ""  # e.g. "qemu 7.2.22, tcg"
    boot: str = ""  # how the last attempt's guest began: "restored from snapshot 0123456789ab", or "cold: " and why
    operations: tuple[OperationRow, ...] = ()  # in the order in which they were done; parts of the phases
