"""What the pilot asks of a hypervisor: the machine in words of our own, and a Protocol.

Behind it are QEMU (`qemu.py`), once with KVM and once as an emulator, and User-Mode Linux (`uml.py`). A hypervisor says
how to start a machine and understands what is heard of it; it starts nothing itself, since its process must be the
watchdog's child. What each of them can is in `model/wire/hypervisors.py`, which of them runs a job in `choice.py`.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from gridhypervisor.model.wire import HypervisorKind

if TYPE_CHECKING:
    from gridhypervisor.agent.choice import Finding
    from gridhypervisor.agent.trial import Trial
    from gridhypervisor.agent.walls import Walls
    from gridhypervisor.agent.world import World

CHANNELS = ("ctl", "out", "err")
"""The guest's ports, in the order of their file descriptors."""

FIRST_DESCRIPTOR = 10
"""Where the descriptors that a hypervisor is given begin in its process."""


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
    kernel: Path  # the image's; not for a hypervisor that is a kernel itself
    initrd: Path
    cmdline: str
    disks: tuple[Disk, ...]
    network: str = "none"  # none | restricted | outbound


@dataclass(frozen=True)
class Descriptors:
    """The numbers, in the hypervisor's process, of the sockets that the pilot holds the other ends of."""

    monitor: int = FIRST_DESCRIPTOR
    console: int = FIRST_DESCRIPTOR + 1
    channels: tuple[int, ...] = tuple(range(FIRST_DESCRIPTOR + 2, FIRST_DESCRIPTOR + 2 + len(CHANNELS)))  # as CHANNELS


def lines() -> tuple[dict[str, socket.socket], list[socket.socket]]:
    """A pair of sockets for each of `Descriptors`: ours by name, not blocking, and theirs in order."""
    ours, theirs = {}, []
    for name in ("monitor", "console", *CHANNELS):
        ours[name], other = socket.socketpair()
        ours[name].setblocking(False)
        theirs.append(other)
    return ours, theirs


@dataclass(frozen=True)
class Command:
    """How to start a process."""

    argv: tuple[str, ...]
    environment: dict[str, str]  # all of it
    walls: Walls | None = None  # behind which the paths above are seen, where there are any
    seats: str | None = None  # where processors are taken (`seats.py`), for one that is to keep to one of them


class Monitor(Protocol):
    """The hypervisor's own voice, without I/O: bytes in, what happened to the guest out."""

    @property
    def voice(self) -> str:
        """Where it is heard: on the socket `monitor`, or among what the guest prints on `console`."""

    def greet(self) -> bytes:
        """What to send to `monitor` first; empty where nothing is."""

    def feed(self, data: bytes) -> list[str]:
        """Take in bytes; return the events that they complete: `shutdown`, `reset` (by the guest), `nospace` (a disk
        could not grow) or `stopped` (the site stopped the guest's processes), after which it cannot go on."""

    def quit(self) -> bytes:
        """What to send to `monitor` to end the hypervisor at once; empty where only a signal does."""


class Hypervisor(Protocol):
    """A way to run a machine on this node."""

    @property
    def kind(self) -> HypervisorKind: ...

    def prove(self, trial: Trial) -> Finding:
        """Whether it runs guests on this node, as far as a moment's `trial` can tell. What fails is said in it."""

    def modules(self) -> bytes:
        """A cpio archive with the modules of a kernel of its own, to follow the image's; empty where it has none."""

    def command(self, machine: Machine, descriptors: Descriptors) -> Command:
        """How to start the machine."""

    def monitor(self) -> Monitor: ...


def of_kind(kind: HypervisorKind, world: World) -> Hypervisor:
    """The bundle's hypervisor of that name."""
    if kind is HypervisorKind.UML:
        from gridhypervisor.agent.uml import Uml  # a guest's start waits for every import

        return Uml(world)
    from gridhypervisor.agent.qemu import Qemu

    return Qemu(world, kind)
