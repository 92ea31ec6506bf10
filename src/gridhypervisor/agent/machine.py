"""From a manifest and layers on the node to a machine: which layer is which disk, and what init must know."""

from __future__ import annotations

from pathlib import Path

from gridhypervisor.agent import scratchdisk
from gridhypervisor.agent.ending import Ending
from gridhypervisor.agent.hypervisor import Card, Disk, Machine
from gridhypervisor.agent.world import World
from gridhypervisor.model.wire import Layer, Manifest, Needs, Reason


def compose(manifest: Manifest, paths: dict[str, Path], run: Path, world: World, modules: bytes = b"") -> Machine:
    """The machine, with the disks of its own made in `run` (`scratch` must be there); `paths` by layer digest,
    `modules` the hypervisor's own.

    Raises:
        Ending: the image's layers make no machine (image), or the node is full (node-disk).
    """
    kernel, initrd = only(manifest, "kernel"), only(manifest, "initrd")
    if needs(manifest).whole_disk:
        disk = only(manifest, "disk")
        disks = [Disk("base", scratchdisk.make_overlay(world, run, paths[disk.digest], disk.format), "qcow2")]
        words = ["ghv.disk=1"]
    else:
        base = only(manifest, "base")
        disks = [Disk("base", paths[base.digest], readonly=True)]
        words = [f"ghv.base={base.format}"]
    for number, app in enumerate(layer for layer in manifest.image.layers if layer.role == "app"):
        # It becomes a word on the kernel's command line, split at spaces and colons.
        if not app.mount.startswith("/") or len(app.mount.split()) != 1 or ".." in app.mount.split("/"):
            raise Ending(
                Reason.IMAGE,
                f"mount application layer {number} at {app.mount!r}: not an absolute path without spaces",
                "mend the image's recipe and build it again",
            )
        disks.append(Disk(f"app{number}", paths[app.digest], readonly=True))
        words.append(f"ghv.app={number}:{app.format}:{app.mount}")
    disks.append(Disk("scratch", run / "scratch"))
    disks.append(Disk("out", scratchdisk.make_out(run, manifest.resources.scratch)))
    if manifest.network != "none":
        words.append(f"ghv.net={manifest.network}")
    if manifest.nics:
        words.append(f"ghv.nics={len(manifest.nics)}")
    return Machine(
        name=manifest.entry, cpus=manifest.resources.cpus, memory=manifest.resources.memory,
        kernel=paths[kernel.digest], initrd=join(paths[initrd.digest], run, world, modules),
        cmdline=" ".join([*words, manifest.image.cmdline]).strip(), disks=tuple(disks), network=manifest.network,
        cards=tuple(Card(nic.mac, nic.mtu) for nic in manifest.nics),
        cpu=manifest.cpu,
    )  # fmt: skip


def needs(manifest: Manifest) -> Needs:
    """What the job asks of a hypervisor."""
    saved = manifest.checkpoints or manifest.handover is not None
    asked = Needs(manifest.resources.cpus, network=manifest.network, saved=saved, cpu=manifest.cpu)
    return asked.with_image(manifest.image.layers)


def join(initrd: Path, run: Path, world: World, modules: bytes) -> Path:
    """The image's initrd with the hypervisor's modules and the bundle's guest archive after it."""
    path = run / "initrd"
    try:
        data = initrd.read_bytes()
        # The kernel unpacks archive after archive; each must begin on a multiple of four bytes.
        path.write_bytes(data + bytes(-len(data) % 512) + modules + world.guest_archive())
    except OSError as error:
        raise scratchdisk.full(f"write {path}", error) from error
    return path


def only(manifest: Manifest, role: str) -> Layer:
    """The image's one layer of that role.

    Raises:
        Ending: there is none, or another beside it (image).
    """
    found = [layer for layer in manifest.image.layers if layer.role == role]
    if len(found) != 1:
        raise Ending(
            Reason.IMAGE,
            f"read image {manifest.image_digest[:12]}: it has {len(found)} {role} layers instead of one",
            "build or import the image again",
        )
    return found[0]
