"""The ways to run a guest, what each of them can, and which was used. The choice is the pilot's, on the node."""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from gridhypervisor.model.wire.manifest import Layer
from gridhypervisor.model.wire.processors import EMULATED, HOST, reaches


class HypervisorKind(enum.StrEnum):
    """The words that a job may ask for, beside `auto`; in the order in which a pilot looks for them."""

    KVM = "kvm"  # QEMU on the processor's own virtualisation
    UML = "uml"  # User-Mode Linux: the guest's kernel is a process, its programs run on the processor
    TCG = "tcg"  # QEMU emulating a processor


@dataclass(frozen=True)
class Capabilities:
    """What may be counted on. What a hypervisor cannot do, it does not declare."""

    cpus: int = 1  # at most
    disks: int = 16  # at most
    network: bool = False  # other than none
    whole_disks: bool = False  # images that are one disk with partitions
    snapshots: bool = False  # a running guest can be saved, and started from that
    suspension: bool = False  # a guest goes on whose processes were stopped and continued


_QEMU = Capabilities(cpus=255, disks=28, network=True, whole_disks=True, snapshots=True, suspension=True)
CAPABILITIES = {HypervisorKind.KVM: _QEMU, HypervisorKind.UML: Capabilities(), HypervisorKind.TCG: _QEMU}


@dataclass(frozen=True)
class Needs:
    """What a job asks of whatever runs its guest."""

    cpus: int = 1
    disks: int = 3
    network: str = "none"
    whole_disk: bool = False
    saved: bool = False  # its guest is to be saved while its program runs
    cpu: str = ""  # the processor that the guest is to see; empty: whichever

    def with_image(self, layers: Iterable[Layer]) -> Needs:
        """What it comes to with an image of these layers: the VM's own disks (base, scratch, out), and its layers'."""
        roles = [layer.role for layer in layers]
        return replace(self, disks=3 + roles.count("app"), whole_disk="disk" in roles)

    def unmet(self, kind: HypervisorKind) -> str:
        """What that hypervisor cannot give, in words; empty where it can run the job."""
        able = CAPABILITIES[kind]
        if self.cpus > able.cpus:
            return f"{kind} gives a guest {able.cpus} CPU{'s' * (able.cpus > 1)}, and the job asks for {self.cpus}"
        if self.network != "none" and not able.network:
            return f"{kind} gives a guest no network, and the job asks for {self.network}"
        if self.whole_disk and not able.whole_disks:
            return f"{kind} brings its own kernel, and the image is one whole disk"
        if self.saved and not able.snapshots:
            return f"{kind} cannot save a guest, and the job's is to be saved"
        if self.disks > able.disks:
            return f"{kind} gives a guest {able.disks} disks, and the image has layers for {self.disks}"
        if kind is HypervisorKind.UML and self.cpu not in ("", HOST):
            return f"{kind} runs programs on the node's own processor, and the job asks for {self.cpu}"
        if kind is HypervisorKind.TCG and (self.cpu == HOST or not reaches(EMULATED, self.cpu)):
            return f"{kind} emulates a processor, up to {EMULATED}, and the job asks for {self.cpu}"
        return ""


@dataclass(frozen=True)
class HypervisorUsed:
    """What runs a job's guest, and why."""

    kind: HypervisorKind
    program: str  # e.g. "qemu 7.2.22"
    why: str  # e.g. "kvm: the micro-guest printed nothing in 3 s"
    boot: str = ""  # "restored from snapshot 0123456789ab", or "cold: " and why
    rates: dict[str, float] = field(default_factory=dict)  # by hypervisor: what a guest gets of this node's own speed
    snapshot: str = ""  # key of the one from which guests like this one start at the site, once it has ended

    def __str__(self) -> str:
        return f"{self.program}, {self.kind}"
