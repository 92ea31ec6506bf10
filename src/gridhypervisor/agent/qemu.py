"""QEMU behind the `Hypervisor` Protocol: its command line (a pure function), its monitor, its version.

It starts nothing itself; the machine is started by the watchdog. What the flags are for is said beside them;
figures are from Debian 12's QEMU 7.2 under emulation.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gridhypervisor.agent.choice import Finding
from gridhypervisor.agent.hypervisor import CHANNELS, Ask, Command, Descriptors, Disk, Machine
from gridhypervisor.agent.trial import Trial
from gridhypervisor.agent.world import World
from gridhypervisor.model.wire import HOST, HypervisorKind, qemu_words

PROGRAM = "qemu-system-x86_64"

_START = 30.0  # seconds for QEMU to say its version, on a node whose disks are busy

_MIGRATION = [{"capability": name, "state": True} for name in ("x-ignore-shared", "events")]
"""Memory in a shared file stays where it is; and it says when it is done."""

_WHOLE = [{"capability": "x-ignore-shared", "state": False}, {"capability": "events", "state": True}]
"""All of the memory is in the stream, wherever it lies."""

_BANDWIDTH = 1 << 40
"""Bytes a second: what is written stands still, so there is nothing to spare a network for."""

_ROUNDS = 6
"""Turns of QEMU's loop in which what a full socket held back comes out, once that has been read: one to see that there
is room, one to pass on the rest, and as many again for each look that came too early."""

_MEMORY = "pc.ram"
"""The name of the guest's memory in what is saved: as QEMU calls it where nobody gave it a file."""

CMDLINE = (
    # A panic must end QEMU (with -no-reboot) and leave its words on the console; nothing else is worth the time.
    "console=ttyS0 quiet panic=-1 "
    # Nobody uses these; each costs boot time under emulation.
    "audit=0 nowatchdog 8250.nr_uarts=1"
)
"""The kernel's command line that every guest of QEMU gets."""


def arguments(machine: Machine, kind: HypervisorKind, descriptors: Descriptors) -> list[str]:
    """QEMU's words for a machine: no configuration, no default device, no display, no TCP port."""
    out = ["-name", _escape(machine.name), "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]
    out += ["-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"]
    chipset = "q35,sata=off,smbus=off,usb=off,vmport=off,i8042=off,hpet=off"
    if machine.start in ("save", "restore"):
        # What is shared is not saved with the devices but by who has it too; what is not shared is copied on write.
        shared = "on" if machine.start == "save" else "off"
        file = f"mem-path=/proc/self/fd/{descriptors.memory},share={shared}"
        out += ["-object", f"memory-backend-file,id={_MEMORY},size={machine.memory >> 20}M,{file}"]
        chipset += f",memory-backend={_MEMORY}"
    if machine.start in ("restore", "resume"):
        out += ["-incoming", "defer"]
    out += ["-machine", chipset]
    if kind is HypervisorKind.KVM:
        out += ["-accel", "kvm", "-cpu", "host" if own(machine) else qemu_words(machine.cpu, emulated=False)]
    else:
        # Debian's kernel boots as fast on `max` as on `qemu64`, and programs built for newer processors run too.
        out += ["-accel", "tcg,thread=multi", "-cpu", "max" if own(machine) else qemu_words(machine.cpu, emulated=True)]
    out += ["-smp", str(machine.cpus), "-m", f"{machine.memory >> 20}M"]
    out += ["-kernel", str(machine.kernel), "-initrd", str(machine.initrd)]
    out += ["-append", f"{CMDLINE} {machine.cmdline}".rstrip()]
    out += ["-device", "virtio-rng-pci"]
    for disk in machine.disks:
        out += _disk(disk)
    out += ["-chardev", f"socket,id=monitor,fd={descriptors.monitor}", "-mon", "chardev=monitor,mode=control"]
    out += ["-chardev", f"socket,id=console,fd={descriptors.console}", "-serial", "chardev:console"]
    out += ["-device", "virtio-serial-pci"]
    for number, (name, descriptor) in enumerate(zip(CHANNELS, descriptors.channels, strict=True), start=1):
        out += ["-chardev", f"socket,id={name},fd={descriptor}"]
        out += ["-device", f"virtserialport,nr={number},name=ghv.{name},chardev={name}"]
    if machine.network != "none":
        # Without restrict=on, root in the guest reaches this node's loopback and the site as the user.
        restrict = "off" if machine.network == "outbound" else "on"
        out += ["-netdev", f"user,id=net,restrict={restrict}", "-device", "virtio-net-pci,netdev=net,romfile="]
    for number, card in enumerate(machine.cards):
        out += ["-netdev", f"dgram,id=card{number},local.type=fd,local.str={descriptors.cards + number}"]
        # Its guest takes the MTU from the card. What is large stands in for the offloads that a socket cannot have.
        mac = f",mac={card.mac}" * bool(card.mac)
        out += ["-device", f"virtio-net-pci,netdev=card{number},host_mtu={card.mtu}{mac},romfile="]
    return out


def own(machine: Machine) -> bool:
    """Whether its guest sees what there is, and nothing that was asked for by name."""
    return machine.cpu in ("", HOST)


def _disk(disk: Disk) -> list[str]:
    device = f"virtio-blk-pci,drive={disk.serial},serial={disk.serial}"
    return ["-blockdev", json.dumps(_node(disk)), "-device", device]


def _node(disk: Disk) -> dict[str, Any]:
    """A disk as QEMU's block layer is told of it: the format's node, and in it the file's."""
    node: dict[str, Any] = {"driver": disk.format, "node-name": disk.serial}
    node["file"] = {"driver": "file", "filename": str(disk.path)}
    for each in (node, node["file"]):
        each |= {"read-only": disk.readonly, "discard": "unmap"}
        if not disk.readonly:
            # A VM's own disks are thrown away with it: what a power cut would lose, nobody would read.
            each["cache"] = {"no-flush": True}
    return node


def _escape(value: str) -> str:
    return value.replace(",", ",,")


class Qmp:
    """QEMU's monitor protocol, as far as a pilot needs it. Sans-I/O."""

    voice = "monitor"

    def __init__(self) -> None:
        self._buffer = b""
        self._asked = 0  # the last question's number
        self._answer: str | None = ""
        self._moved = ""  # what QEMU said last of the guest's state that is on its way

    def greet(self) -> bytes:
        """Commands are accepted after this one; QEMU reads it when it is ready."""
        return b'{"execute":"qmp_capabilities"}\n'

    def feed(self, data: bytes) -> list[str]:
        """Bytes from QEMU in; events out: `shutdown`, `reset`, `nospace`. What is no JSON object is passed over."""
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        out = []
        for line in lines:
            try:
                message = json.loads(line)
                event = message.get("event")
            except (ValueError, AttributeError):
                continue
            if message.get("id") == self._asked:
                self._answer = str(message["error"].get("desc", "error")) if "error" in message else ""
            elif event == "MIGRATION":
                self._moved = str(message.get("data", {}).get("status"))
            if event == "SHUTDOWN":
                out.append("reset" if message.get("data", {}).get("reason") == "guest-reset" else "shutdown")
            elif event == "BLOCK_IO_ERROR" and message.get("data", {}).get("nospace"):
                out.append("nospace")
        return out

    def ask(self, question: Ask) -> bytes:
        self._asked, self._answer = self._asked + 1, None
        self._moved = "" if question.migrated else "completed"
        words = {"execute": question.command, "arguments": question.arguments, "id": self._asked}
        return json.dumps(words).encode() + b"\n"

    def answer(self) -> str | None:
        if self._answer or self._moved == "completed":
            return self._answer
        return f"the guest's state: {self._moved}" if self._moved in ("failed", "cancelled") else None

    def quit(self) -> bytes:
        return b'{"execute":"quit"}\n'


@dataclass(frozen=True)
class Qemu:
    """The bundle's QEMU, with KVM or as an emulator."""

    world: World
    kind: HypervisorKind

    def prove(self, trial: Trial) -> Finding:
        """KVM where a guest of a few bytes ran under it, see `kvmproof`; the emulator where QEMU starts."""
        environment = self.world.environment()
        ended = trial.run(Command((*self._words(), "--version"), environment), _START)
        words = ended.said.split()
        if not ended.well or "version" not in words[:-1]:
            return Finding(self.kind, "", False, f"start {PROGRAM}: {ended.why}")
        program = f"qemu {words[words.index('version') + 1]}"
        if self.kind is HypervisorKind.TCG:
            return Finding(self.kind, program, True, "tcg: emulated")
        from gridhypervisor.agent import kvmproof  # most find the proof made

        failure = kvmproof.prove(self._words(), environment, trial)
        return Finding(self.kind, program, not failure, f"kvm: {failure or 'the micro-guest ran'}")

    def modules(self) -> bytes:
        return b""

    def command(self, machine: Machine, descriptors: Descriptors) -> Command:
        words = [*self._words(), *arguments(machine, self.kind, descriptors)]
        return Command(tuple(words), {"PATH": "/usr/bin:/bin", **self.world.environment()})

    def monitor(self) -> Qmp:
        return Qmp()

    def saver(self) -> Qemu:
        return self

    def layout(self, machine: Machine) -> tuple[str, ...]:
        disks = tuple(replace(disk, path=Path(disk.serial)) for disk in machine.disks)
        cards = tuple(replace(card, mac="") for card in machine.cards)  # the guest is told its own
        alike = replace(
            machine, name="", kernel=Path("kernel"), initrd=Path("initrd"), disks=disks, cards=cards, start=""
        )
        return tuple(arguments(alike, self.kind, Descriptors()))

    def processor(self, machine: Machine) -> str:
        """The first processor's model and features, where guests run on it; of one that was asked for by name, whose
        features QEMU has compared, only who made it: programs may ask for that."""
        if self.kind is HypervisorKind.TCG:
            return ""
        lines = Path("/proc/cpuinfo").read_text().split("\n\n", 1)[0].splitlines()
        wanted = ["vendor_id"]
        if own(machine):
            wanted += ["cpu family", "model", "model name", "stepping", "microcode", "flags"]
        return "\n".join(line for line in lines if line.partition("\t")[0].rstrip(" :") in wanted)

    def save(self, state: int) -> tuple[Ask, ...]:
        return (
            Ask("stop"),
            Ask("migrate-set-capabilities", {"capabilities": _MIGRATION}),
            Ask("getfd", {"fdname": "state"}, descriptor=state),
            Ask("migrate", {"uri": "fd:state"}, migrated=True),
        )

    def go_on(self, disk: Disk) -> tuple[Ask, ...]:
        node = _node(disk)
        file = {**node["file"], "node-name": f"{disk.serial}-file"}
        return (
            Ask("blockdev-add", file),
            Ask("blockdev-reopen", {"options": [{**node, "file": file["node-name"]}]}),
            Ask("cont"),
        )

    def take_up(self) -> tuple[Ask, ...]:
        return (
            Ask("migrate-set-capabilities", {"capabilities": _MIGRATION}),
            Ask("migrate-incoming", {"uri": f"fd:{Descriptors().state}"}, migrated=True),
            Ask("cont"),
        )

    def halt(self) -> tuple[Ask, ...]:
        return (Ask("stop"),)

    def rounds(self) -> tuple[Ask, ...]:
        return (Ask("query-status"),) * _ROUNDS

    def write(self, stream: int) -> tuple[Ask, ...]:
        return (
            Ask("migrate-set-capabilities", {"capabilities": _WHOLE}),
            Ask("migrate-set-parameters", {"max-bandwidth": _BANDWIDTH}),
            Ask("getfd", {"fdname": "stream"}, descriptor=stream),
            Ask("migrate", {"uri": "fd:stream"}, migrated=True),
        )

    def give_up(self) -> tuple[Ask, ...]:
        return (Ask("migrate_cancel"),)

    def proceed(self) -> tuple[Ask, ...]:
        return (Ask("cont"),)

    def read(self, stream: int) -> tuple[Ask, ...]:
        return (
            Ask("migrate-set-capabilities", {"capabilities": _WHOLE}),
            Ask("getfd", {"fdname": "stream"}, descriptor=stream),
            Ask("migrate-incoming", {"uri": "fd:stream"}, migrated=True),
            Ask("cont"),
        )

    def _words(self) -> Sequence[str]:
        return [*self.world.argv(PROGRAM), *self.world.firmware()]
