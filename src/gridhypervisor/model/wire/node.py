"""What a probe job says of the node that it ran on: what a job would find there."""

from __future__ import annotations

from dataclasses import dataclass

from gridhypervisor.model.wire.hypervisors import HypervisorKind


@dataclass(frozen=True)
class Proven:
    """What was found out about one hypervisor."""

    kind: HypervisorKind
    works: bool
    why: str  # in the words of a job's pilot, e.g. "kvm: the micro-guest printed nothing in 3 s"
    program: str = ""  # e.g. "qemu 7.2.22"; empty where it does not even start
    rates: str = ""  # of a standard job, where jobs had it measured on this node
    rate: float | None = None  # of the node's own speed, what a guest gets; None: not known

    def __str__(self) -> str:
        if not self.works:
            return f"no {self.kind}: {self.why.removeprefix(f'{self.kind}: ')}"
        return f"{self.kind}, {self.program}" + self.speed + (f", {self.rates}" if self.rates else "")

    @property
    def speed(self) -> str:
        """What a guest gets of the node's own, in words; empty where nobody knows."""
        return f", {self.rate:.0%} of the node's speed" if self.rate is not None else ""


@dataclass(frozen=True)
class Reached:
    """Whether the node reaches the relay by TCP."""

    gate: str  # where it looked: HOST:FIRST-LAST
    at: str = ""  # where it was answered: "HOST port PORT"
    milliseconds: float = 0.0  # that a request and its answer took, of a few the least
    why: str = ""  # it does not; empty: it does

    def __str__(self) -> str:
        return f"not reached: {self.why}" if self.why else f"{self.at}, {self.milliseconds:.1f} ms there and back"


@dataclass(frozen=True)
class NodeReport:
    """One node, at one time. Sizes in bytes."""

    node: str
    kernel: str  # its release
    processor: str  # its model
    cpus: int  # that a job of one core may run on
    cores: int  # that the node has
    memory: int
    memory_free: int
    workdir: str  # where it found its orders; if that is the account's own, the node shares it
    scratch: str  # in which programs may run: the pilot's do
    scratch_free: int
    hypervisors: tuple[Proven, ...] = ()
    relay: Reached | None = None  # None: the relay does not listen, so nobody looked
    arch: str = ""  # the processor's architecture, as `uname -m` says it; of an older report nothing, as below
    mhz: int = 0  # the processor's clock; 0: it does not tell
    scratch_size: int = 0
    baseline: str = ""  # the highest that the processor has, see `processors`
