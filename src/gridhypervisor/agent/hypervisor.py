"""What the pilot asks of a hypervisor: the machine in words of our own, and a Protocol with declared capabilities.

QEMU (`qemu.py`) is the first behind it. A hypervisor says how to start a machine and understands its monitor; it
starts nothing itself, since its process must be the watchdog's child.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from gridhypervisor.model.wire import Acceleration, HypervisorUsed

CHANNELS = ("ctl", "out", "err")
"""The guest's ports, `ghv.NAME` each, in the order of their file descriptors."""


@dataclass(frozen=True)
class Disk:
    """A disk as the guest sees it: `serial` is its name there."""

    serial: str
    path: Path
    format: str = "raw"  # raw | qcow2, of the file
    readonly: bool = False


@dataclass(frozen=True)
class Machine:
    """A virtual machine, whoever runs it."""

    name: str
    cpus: int
    memory: int  # bytes
    kernel: Path
    initrd: Path
    cmdline: str
    disks: tuple[Disk, ...]
    network: str = "none"  # none | restricted | outbound


@dataclass(frozen=True)
class Descriptors:
    """The numbers, in the hypervisor's process, of the sockets that the pilot holds the other ends of."""

    monitor: int
    console: int
    channels: tuple[int, ...]  # as CHANNELS


@dataclass(frozen=True)
class Command:
    """How to start a process."""

    argv: tuple[str, ...]
    environment: dict[str, str]  # all of it


@dataclass(frozen=True)
class Capabilities:
    """What the planner may count on."""

    smp: bool = False
    network: bool = False
    whole_disks: bool = False  # boots images that are one disk with partitions


class Monitor(Protocol):
    """The hypervisor's own voice, without I/O: bytes in, what happened to the guest out."""

    def greet(self) -> bytes:
        """What to send first."""

    def feed(self, data: bytes) -> list[str]:
        """Take in bytes; return the events that they complete: `shutdown`, `reset` (by the guest)
        or `nospace` (a disk could not grow, the guest is paused)."""

    def quit(self) -> bytes:
        """What to send to end the hypervisor at once."""


class Hypervisor(Protocol):
    """A way to run a machine on this node."""

    @property
    def capabilities(self) -> Capabilities: ...

    def choose(self, wanted: str, memory_of_proof: Path) -> HypervisorUsed:
        """Decide on the acceleration (`wanted`: auto, kvm, tcg), proving what must be proven; `memory_of_proof` is
        a folder of this node where proofs are remembered.

        Raises:
            Ending: the wanted acceleration is not to be had, or the hypervisor does not start at all.
        """

    def command(self, machine: Machine, acceleration: Acceleration, descriptors: Descriptors) -> Command:
        """How to start the machine."""

    def monitor(self) -> Monitor: ...
