"""Everything that a VM needs, verified, on the node: layers, its own disks, a hypervisor, and how the guest begins."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from gridhypervisor.agent import channel, processes, scratchdisk
from gridhypervisor.agent.ending import Ending, now
from gridhypervisor.agent.loop import Loop
from gridhypervisor.agent.node import MARGIN, Node
from gridhypervisor.agent.watchdog import Watchdog
from gridhypervisor.agent.world import World
from gridhypervisor.model import wire
from gridhypervisor.model.wire import Checkpoint, HypervisorUsed, Manifest, Reason

if TYPE_CHECKING:
    from gridhypervisor.agent.hypervisor import Disk, Hypervisor, Machine, Saver
    from gridhypervisor.agent.instant import Beginning
    from gridhypervisor.agent.vm import Vm


@dataclasses.dataclass(frozen=True)
class Equipment:
    """What the guest is to begin with."""

    used: HypervisorUsed
    beginning: Beginning
    make_vm: Callable[[], Vm]
    machine: Machine  # as one that boots, however it begins
    world: World
    saver: Saver | None

    @property
    def disks(self) -> tuple[Disk, ...]:
        """The VM's own."""
        return tuple(disk for disk in self.machine.disks if not disk.readonly)


class Equipper:
    """What there is to take it from, and where it goes."""

    def __init__(
        self, manifest: Manifest, entry: Path, cache: Path, snapshots: Path, checkpoints: Path, node: Node, run: Path
    ) -> None:  # fmt: skip
        """`cache`: the account's layers at the site; `snapshots`, `checkpoints`: its; `run`: this run's folder on the
        node.

        The layers that are on the node stay there from now on.
        """
        self._manifest, self._entry, self._cache = manifest, entry, cache
        self._snapshots, self._checkpoints = snapshots, checkpoints
        self._node, self._run = node, run
        self.copied, self.copying = 0, 0.0  # bytes of layers that the node lacked, and seconds that they took
        self._paths = {layer.digest: node.has(layer) for layer in manifest.image.layers}

    @property
    def lacks(self) -> bool:
        """Whether layers or a saved guest must be fetched first."""
        return None in self._paths.values() or self._manifest.restore is not None

    def equip(
        self, watchdog: Watchdog, loop: Loop, stop: Callable[[], bool], log: Callable[[str], None]
    ) -> Equipment:  # fmt: skip
        """Do it all, which takes its time where something is to be fetched; `stop`: whether to give up.

        Raises:
            Ending: it cannot be done, or was stopped.
            WorldError: the bundle is not usable.
        """
        manifest, run, image = self._manifest, self._run, self._manifest.image
        world = World.from_environment()
        self._node.make_room(MARGIN)
        there: dict[str, Path] = {}
        for layer in image.layers:
            path = self._paths[layer.digest]
            if path is None:
                log(f"verify and copy layer {layer.digest[:12]} ({layer.role}, {layer.size} bytes)")
                began = now()
                path = self._node.fetch(layer, self._cache, stop)
                self.copied, self.copying = self.copied + layer.size, self.copying + now() - began
            there[layer.digest] = path
        if manifest.restore is not None:
            return self._take_up(manifest.restore, there, world, watchdog, loop, stop)
        made = scratchdisk.make_scratch(
            world, run, size=manifest.resources.scratch,
            job_file=channel.job_file(
                manifest.program, user=image.user, path=image.path, hostname=manifest.hostname, nics=manifest.nics,
                ready=manifest.service.ready if manifest.service is not None else None,
            ),
            inputs=manifest.program.inputs, source=self._entry / wire.INPUTS, stop=stop,
        )  # fmt: skip
        try:  # the file system is made meanwhile, so here is the time for everything that can wait until now
            from gridhypervisor.agent import instant
            from gridhypervisor.agent.machine import compose
            from gridhypervisor.agent.probe import settle

            processes.be_subreaper()
            hypervisor, used = settle(manifest, there, run, world, self._node.root, watchdog)
            machine = compose(manifest, there, run, world, hypervisor.modules())
            beginning = instant.prepare(manifest, machine, hypervisor, used, world, self._snapshots)
            return self._equipped(beginning, hypervisor, used, world, watchdog, loop)
        finally:
            made()

    def _take_up(
        self, checkpoint: Checkpoint, there: dict[str, Path], world: World, watchdog: Watchdog, loop: Loop,
        stop: Callable[[], bool],
    ) -> Equipment:  # fmt: skip
        """The same for a guest that was saved: its disks are brought, not made."""
        from gridhypervisor.agent import likeness, takeup
        from gridhypervisor.agent.machine import compose, only
        from gridhypervisor.agent.probe import settle

        processes.be_subreaper()
        manifest = dataclasses.replace(self._manifest, hypervisor=checkpoint.kind)
        try:
            hypervisor, used = settle(manifest, there, self._run, world, self._node.root, watchdog)
        except Ending as ending:
            if ending.reason is not Reason.HYPERVISOR:
                raise
            raise takeup.refused(checkpoint, ending.message) from ending
        machine, saver = compose(manifest, there, self._run, world, hypervisor.modules()), hypervisor.saver()
        if saver is None:
            raise takeup.refused(checkpoint, f"{used.kind} cannot take up a guest")
        beginning = takeup.prepare(
            checkpoint, likeness.likeness(manifest, machine, used, world, saver), machine, saver, world,
            self._checkpoints, self._run, self._entry, stop, sealed=manifest.sealed,
        )  # fmt: skip
        for disk in machine.disks:
            if disk.format == "qcow2" and not disk.readonly:
                layer = only(manifest, "disk")
                scratchdisk.rebase_overlay(world, disk.path, there[layer.digest], layer.format)
        return self._equipped(beginning, hypervisor, used, world, watchdog, loop)

    def _equipped(
        self, beginning: Beginning, hypervisor: Hypervisor, used: HypervisorUsed, world: World, watchdog: Watchdog,
        loop: Loop,
    ) -> Equipment:  # fmt: skip
        from gridhypervisor.agent.vm import Vm

        used = dataclasses.replace(used, boot=beginning.boot)
        log = self._run / "hypervisor.log"
        return Equipment(
            used, beginning, lambda: Vm(loop, watchdog, hypervisor, self._entry, log), beginning.plain, world,
            hypervisor.saver(),
        )  # fmt: skip
