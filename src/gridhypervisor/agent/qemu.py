"""QEMU behind the `Hypervisor` Protocol: its command line (a pure function), its monitor, its version.

It starts nothing itself; the machine is started by the watchdog. What the flags are for is said beside them;
figures are from Debian 12's QEMU 7.2 under emulation.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gridhypervisor.agent.choice import Finding
from gridhypervisor.agent.hypervisor import CHANNELS, Command, Descriptors, Machine
from gridhypervisor.agent.trial import Trial
from gridhypervisor.agent.world import World
from gridhypervisor.model.wire import HypervisorKind

PROGRAM = "qemu-system-x86_64"

_START = 30.0  # seconds for QEMU to say its version, on a node whose disks are busy

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
    out += ["-machine", "q35,sata=off,smbus=off,usb=off,vmport=off,i8042=off,hpet=off"]
    if kind is HypervisorKind.KVM:
        out += ["-accel", "kvm", "-cpu", "host"]
    else:
        # Debian's kernel boots as fast on `max` as on `qemu64`, and programs built for newer processors run too.
        out += ["-accel", "tcg,thread=multi", "-cpu", "max"]
    out += ["-smp", str(machine.cpus), "-m", f"{machine.memory >> 20}M"]
    out += ["-kernel", str(machine.kernel), "-initrd", str(machine.initrd)]
    out += ["-append", f"{CMDLINE} {machine.cmdline}".rstrip()]
    out += ["-device", "virtio-rng-pci"]
    for disk in machine.disks:
        out += _disk(disk.serial, str(disk.path), disk.format, readonly=disk.readonly)
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
    return out


def _disk(serial: str, path: str, form: str, *, readonly: bool) -> list[str]:
    node: dict[str, Any] = {"driver": form, "node-name": serial, "read-only": readonly, "discard": "unmap"}
    node["file"] = {"driver": "file", "filename": path, "read-only": readonly, "discard": "unmap"}
    if not readonly:
        # A VM's own disks are thrown away with it: what a power cut would lose, nobody would read.
        node["cache"] = node["file"]["cache"] = {"no-flush": True}
    return ["-blockdev", json.dumps(node), "-device", f"virtio-blk-pci,drive={serial},serial={serial}"]


def _escape(value: str) -> str:
    return value.replace(",", ",,")


class Qmp:
    """QEMU's monitor protocol, as far as a pilot needs it. Sans-I/O."""

    voice = "monitor"

    def __init__(self) -> None:
        self._buffer = b""

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
            if event == "SHUTDOWN":
                out.append("reset" if message.get("data", {}).get("reason") == "guest-reset" else "shutdown")
            elif event == "BLOCK_IO_ERROR" and message.get("data", {}).get("nospace"):
                out.append("nospace")
        return out

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

    def _words(self) -> Sequence[str]:
        return [*self.world.argv(PROGRAM), *self.world.firmware()]
