"""User-Mode Linux behind the `Hypervisor` Protocol: its command line (a pure function), its walls, what it says.

The guest's kernel is a process of this node, its programs are processes that this one traces: they compute at the
processor's own speed, and pay for each system call, page fault and fork. The kernel is the bundle's, not the image's;
so are the modules that the image's initrd lacks for it. Figures and words are those of Debian 12's 6.1.

Whoever is root in the guest can become that process (load a module, write to /dev/mem), so it runs behind walls
(`walls.py`): there it has the guest's disks, and nothing to reach.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from gridhypervisor.agent import cpio
from gridhypervisor.agent.choice import Finding
from gridhypervisor.agent.hypervisor import Ask, Command, Descriptors, Machine
from gridhypervisor.agent.trial import Trial
from gridhypervisor.agent.umlproof import micro_guest
from gridhypervisor.agent.walls import Shown, Walls
from gridhypervisor.agent.world import UmlParts, World, WorldError
from gridhypervisor.model.wire import HypervisorKind

_KERNEL, _INITRD, _XSTATE = "/linux", "/initrd", "/xstate.so"  # as seen behind the walls
_START = 30.0  # seconds for it to say its version, on a node whose disks are busy
_SLACK = 64 << 20  # bytes: it adds up to 32 MiB to the memory that it was given, for a gap that its loader leaves
_DEPTH = 64  # frames that it takes or gives at once
_PRINTED = 4096  # bytes of the proof's console that are kept, to find this:
_PANIC = re.compile(rb"Kernel panic[^\r\n]{,200}(?=[\r\n])")
_LINES = ("ttyS0", "ttyS1", "ttyS2")  # as CHANNELS

CMDLINE = (
    # A panic or a restart must end it.
    "quiet panic=-1 noreboot "
    # Nothing but what is named here is connected. Where a guest may mount files of the host, there are none.
    "con=null ssl=null console=tty0 hostfs=/none uml_dir=/tmp/ root=/dev/ram0"
)
"""The kernel's command line that every guest of User-Mode Linux gets."""


def arguments(machine: Machine, descriptors: Descriptors) -> list[str]:
    """Its words for a machine. It splits them at spaces, and disks at commas: paths are those behind the walls."""
    out = [_KERNEL, f"umid={machine.name}", f"mem={machine.memory >> 20}M", f"initrd={_INITRD}", *CMDLINE.split()]
    out.append(f"con0=null,fd:{descriptors.console}")
    out += [f"ssl{number}=fd:{descriptor}" for number, descriptor in enumerate(descriptors.channels)]
    out.append(f"ghv.lines={','.join(_LINES)}")
    for number, disk in enumerate(machine.disks):
        # `c`: no lock on the file, which guests share (read-only) and some network file systems cannot lock.
        out.append(f"ubd{number}{'r' * disk.readonly}c={_disk(disk.serial)},,{disk.serial}")
    for number, card in enumerate(machine.cards):
        socket = f"transport=fd,fd={descriptors.cards + number}"
        out.append(f"vec{number}:{socket},mac={card.mac},mtu={card.mtu},depth={_DEPTH}")
    return [*out, *machine.cmdline.split()]


def walls(machine: Machine, parts: UmlParts, root: Path) -> Walls:
    """What it sees of the node: its own parts, the initrd, and the guest's disks."""
    shown = [*_own(parts), Shown(str(machine.initrd), _INITRD)]
    shown += [Shown(str(disk.path), _disk(disk.serial), not disk.readonly) for disk in machine.disks]
    return Walls(str(root), tuple(shown), machine.memory + _SLACK)


def _own(parts: UmlParts) -> tuple[Shown, ...]:
    xstate = () if parts.xstate is None else (Shown(str(parts.xstate), _XSTATE),)
    return (
        Shown(str(parts.kernel), _KERNEL),
        Shown(str(parts.loader), "/lib64/ld-linux-x86-64.so.2"),
        Shown(str(parts.libc), "/lib/x86_64-linux-gnu/libc.so.6"),
        Shown("/dev/null", "/dev/null"),  # what `con=null` opens
        *xstate,
    )


def _environment(parts: UmlParts) -> dict[str, str]:
    return {"TMPDIR": "/tmp"} if parts.xstate is None else {"TMPDIR": "/tmp", "LD_PRELOAD": _XSTATE}


def _disk(serial: str) -> str:
    return f"/disks/{serial}"


_SAYS = {
    b"reboot: Restarting system": "reset",
    b"reboot: System halted": "shutdown",
    b"reboot: Power down": "shutdown",
    b"userspace - child stopped with signal": "stopped",  # it traces its programs, and a stop is no end that it knows
    b"wait_stub_done : failed to wait": "stopped",
    b"critical space allocation error, dev ubd": "nospace",  # what was written is lost: it does not wait, as QEMU does
}


class Voice:
    """What it says of itself, on the guest's console: it has no monitor that a pilot needs. Sans-I/O.

    Root in the guest may print the same words. It can lie about its own job's end only.
    """

    voice = "console"

    def __init__(self) -> None:
        self._line = b""

    def greet(self) -> bytes:
        return b""

    def feed(self, data: bytes) -> list[str]:
        """Bytes of the console in; events out: `shutdown`, `reset`, `nospace`, `stopped`."""
        *whole, self._line = (self._line + data).split(b"\n")
        self._line = self._line[-4096:]
        return [event for line in whole for words, event in _SAYS.items() if words in line]

    def ask(self, question: Ask) -> bytes:
        return b""

    def answer(self) -> str:
        return "it has no monitor"

    def quit(self) -> bytes:
        return b""


@dataclass(frozen=True)
class Uml:
    """The bundle's User-Mode Linux."""

    world: World
    kind: HypervisorKind = HypervisorKind.UML

    def prove(self, trial: Trial) -> Finding:
        """A guest runs a program, behind walls like those of a job's: what a node may forbid are these, and what its
        processor or kernel may not get on with is what runs programs."""
        try:
            parts = self.world.uml()
        except WorldError as error:
            return Finding(self.kind, "", False, f"uml: {error}")
        behind = Walls(str(_root(trial.folder)), _own(parts), _SLACK)
        ended = trial.run(Command((_KERNEL, "--version"), _environment(parts), behind), _START)
        version = ended.said.strip()
        if not ended.well or not version or len(version.split()) != 1:
            return Finding(self.kind, "linux", False, f"uml: {ended.why}")
        failure = self._run_micro_guest(trial)
        return Finding(self.kind, f"linux {version}", not failure, f"uml: {failure or 'a guest runs, behind walls'}")

    def _run_micro_guest(self, trial: Trial) -> str:
        """Run the guest of the proof; say what went wrong, in a few words, or nothing."""
        voice, events, printed = Voice(), list[str](), b""

        def hear(data: bytes) -> bool:
            nonlocal printed
            printed = (printed + data)[-_PRINTED - len(data) :]
            events.extend(voice.feed(data))
            return _PANIC.search(printed) is not None  # the first process behind walls is deaf to its own abort()

        ended = trial.run(self.command(micro_guest(trial.folder), Descriptors()), _START, hear)
        if ended.well and "shutdown" in events:
            return ""
        panic = _PANIC.search(printed)
        return f"the micro-guest did not run: {panic[0].decode(errors='replace') if panic else ended.why}"

    def modules(self) -> bytes:
        """`/ghv/modules` of the image lists another kernel's; this archive follows it, so this list counts."""
        files = {f"lib/modules/uml/{path.name}": path.read_bytes() for path in self.world.uml().modules}
        listing = "".join(f"/{name}\n" for name in files).encode()
        return cpio.archive({**files, "ghv/modules": listing})

    def command(self, machine: Machine, descriptors: Descriptors) -> Command:
        parts = self.world.uml()
        behind = walls(machine, parts, _root(machine.initrd.parent))
        seats = None if self.world.root is None else str(self.world.root.parent / "cpu")
        return Command(tuple(arguments(machine, descriptors)), _environment(parts), behind, seats)

    def monitor(self) -> Voice:
        return Voice()

    def saver(self) -> None:
        return None


def _root(run: Path) -> Path:
    """The folder on which the root behind the walls is mounted."""
    root = run / "root"
    root.mkdir(mode=0o700, exist_ok=True)
    return root
