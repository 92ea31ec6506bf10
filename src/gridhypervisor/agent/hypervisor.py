"""What the pilot asks of a hypervisor: the machine in words of our own, and a Protocol.

Behind it are QEMU (`qemu.py`), once with KVM and once as an emulator, and User-Mode Linux (`uml.py`). A hypervisor says
how to start a machine and understands what is heard of it; it starts nothing itself, since its process must be the
watchdog's child. What each of them can is in `model/wire/hypervisors.py`, which of them runs a job in `choice.py`.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
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
class Card:
    """A network card. The pilot has the other end of its socket: each message is a frame."""

    mac: str  # empty: which it is does not matter here
    mtu: int


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
    cards: tuple[Card, ...] = ()  # of private networks
    cpu: str = ""  # that the guest sees: `host`, a baseline, or a model of QEMU's; empty: whichever
    # save | restore: its memory is a file that it is given, for a snapshot; resume: it waits for a checkpoint; else it
    # starts as every machine does.
    start: str = ""


@dataclass(frozen=True)
class Descriptors:
    """The numbers, in the hypervisor's process, of the sockets that the pilot holds the other ends of."""

    monitor: int = FIRST_DESCRIPTOR
    console: int = FIRST_DESCRIPTOR + 1
    channels: tuple[int, ...] = tuple(range(FIRST_DESCRIPTOR + 2, FIRST_DESCRIPTOR + 2 + len(CHANNELS)))  # as CHANNELS
    memory: int = FIRST_DESCRIPTOR + 2 + len(CHANNELS)  # of the guest, where it is saved or restored
    state: int = FIRST_DESCRIPTOR + 3 + len(CHANNELS)  # of the devices, where it is restored
    cards: int = FIRST_DESCRIPTOR + 4 + len(CHANNELS)  # of the first card; the others follow


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


@dataclass(frozen=True)
class Ask:
    """One thing to ask of a monitor that answers."""

    command: str
    arguments: Mapping[str, object] = field(default_factory=dict)
    descriptor: int | None = None  # that goes with it
    migrated: bool = False  # done when the guest's state has gone over, not when the answer comes


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

    def ask(self, question: Ask) -> bytes:
        """What to send to `monitor`; the next question follows the answer. Empty where nothing can be asked."""

    def answer(self) -> str | None:
        """What became of the last question: empty where it was done, else why not; None while that is open."""

    def quit(self) -> bytes:
        """What to send to `monitor` to end the hypervisor at once; empty where only a signal does."""


class Saver(Protocol):
    """How a hypervisor saves guests, and takes them up again: in questions for its monitor. Of a snapshot the memory is
    a file that the pilot has too, and what is asked for is the state of the devices, and of the disks. Of a checkpoint
    all but the disks is one stream."""

    def layout(self, machine: Machine) -> tuple[str, ...]:
        """All that the guest could see of how it is started: words that are alike for machines that are."""

    def processor(self, machine: Machine) -> str:
        """What of this node's processor a guest may have found; empty where that is nothing."""

    def save(self, state: int) -> tuple[Ask, ...]:
        """Stop the guest and write the devices' state to a descriptor."""

    def go_on(self, disk: Disk) -> tuple[Ask, ...]:
        """Let the guest go on that was stopped, with `disk` in the place of the one of that serial."""

    def take_up(self) -> tuple[Ask, ...]:
        """Have a machine that was started with `restore` go on where it was saved."""

    def halt(self) -> tuple[Ask, ...]:
        """Stop the guest."""

    def rounds(self) -> tuple[Ask, ...]:
        """What to ask a stopped machine, after which it has passed on what it can of what the guest wrote."""

    def write(self, stream: int) -> tuple[Ask, ...]:
        """Write the stopped guest's memory and devices to a descriptor. Its disks' files hold all when that is done."""

    def give_up(self) -> tuple[Ask, ...]:
        """End what `write` began."""

    def proceed(self) -> tuple[Ask, ...]:
        """Let the guest go on that was stopped. Refused for a moment where a `write` is not quite over."""

    def read(self, stream: int) -> tuple[Ask, ...]:
        """Have a machine that was started with `resume` go on as the descriptor's stream says."""


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

    def saver(self) -> Saver | None:
        """None where guests cannot be saved."""


def of_kind(kind: HypervisorKind, world: World) -> Hypervisor:
    """The bundle's hypervisor of that name."""
    if kind is HypervisorKind.UML:
        from gridhypervisor.agent.uml import Uml  # a guest's start waits for every import

        return Uml(world)
    from gridhypervisor.agent.qemu import Qemu

    return Qemu(world, kind)
