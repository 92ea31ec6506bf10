"""How a guest begins: taken up from a snapshot, or booted; and what is booted first is saved for those that follow.

    cold       boot ────────────────────────────────────────────────────────────▶ READY
    saving     boot ─▶ PRISTINE ─▶ stop, save, copy ─▶ its own disk ─▶ renew ────▶ READY     (kept while the job runs)
    restored   sealed memory, devices ─────────────────────────────▶ renew ────▶ READY

A guest that saves boots on an empty disk in the place of its scratch disk: nothing of a job is near it until it has
been saved. There it waits for the pilot's word, as does every guest that is taken up; with it come the time and its own
randomness, before anything else runs. A snapshot never ends a job: what is wrong with one is said, and the guest boots.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from gridhypervisor.agent import renewal
from gridhypervisor.agent.ending import Ending, now
from gridhypervisor.agent.hypervisor import Disk, Hypervisor, Machine, Saver
from gridhypervisor.model.wire import HypervisorUsed, Manifest, OperationKind, Reason

if TYPE_CHECKING:
    from gridhypervisor.agent.snapshot import Snapshot
    from gridhypervisor.agent.snapshots import Snapshots
    from gridhypervisor.agent.vm import Vm
    from gridhypervisor.agent.world import World

RESTORE_LIMIT = 30.0
"""Seconds in which a guest must have been taken up, else it boots; it takes a fraction of one."""

LOST = (Reason.HYPERVISOR, Reason.GUEST_SILENT, Reason.GUEST_PANIC)
"""Endings of a guest in which nothing has run."""

_SAVE_LIMIT = 30.0  # seconds for the devices' state, less than a megabyte
_KEEP_LIMIT = 20.0  # seconds that an ended job waits for its snapshot to be written
_WAIT = "ghv.instant=1"  # the kernel's word by which init waits to be saved or renewed


class NotRestored(Exception):
    """The guest could not be taken up; nothing has run in it. `damaged`: nor would it be the next time."""

    def __init__(self, why: str, *, damaged: bool) -> None:
        super().__init__(why)
        self.damaged = damaged


@dataclasses.dataclass(frozen=True)
class Waiting:
    """What the pilot does while a guest begins. Both raise Ending when the guest is lost, or to end."""

    until: Callable[[Callable[[], bool], float], bool]
    """Wait until something is so, or until a moment (CLOCK_BOOTTIME); whether it came."""
    apart: Callable[[Callable[[], None]], None]
    """Do something that takes its time, and wait for it; raises what that does."""


@dataclasses.dataclass
class Beginning:
    """How one guest begins. `boot` is what the ledger says of it."""

    machine: Machine
    boot: str
    plain: Machine  # the machine as one that boots, whatever there is
    saver: Saver | None = None
    snapshots: Snapshots | None = None
    key: str = ""
    found: Snapshot | None = None  # from which it is taken up
    descriptors: tuple[int, ...] = ()  # the memory's, and to take up a guest the devices' state
    claimed: bool = False  # no other pilot makes the snapshot meanwhile
    keeper: Keeper | None = None
    bringing: float = 0.0  # seconds that went before, to bring to the node what it is taken up from
    failed: bool = False  # it could not be taken up, so it began a second time
    trouble: str = ""  # why a snapshot was to be made of it, and is not kept

    @property
    def operation(self) -> tuple[OperationKind, int]:
        """What is done until the guest is ready, and with how many bytes."""
        if self.found is not None:
            return OperationKind.RESTORE, self.found.bytes
        return OperationKind.BOOT, self.plain.memory

    def begin(self, vm: Vm, waiting: Waiting, run: Path, log: Callable[[str], None]) -> None:
        """From the hypervisor's start to the moment from which the guest goes on as one that boots.

        Raises:
            NotRestored: a snapshot's guest could not be taken up.
            Ending: the guest is lost, or to end.
        """
        try:
            if self.machine.start == "restore":
                self._restore(vm, waiting)
            elif self.machine.start == "save":
                self._save(vm, waiting, run, log)
        finally:
            self.close()

    def close(self) -> None:
        """Leave the guest's memory to the hypervisor; end a claim that nobody goes on to use."""
        for descriptor in self.descriptors:
            os.close(descriptor)
        self.descriptors = ()
        if self.claimed and self.snapshots is not None:
            self.snapshots.release(self.key)
            self.claimed = False

    def _restore(self, vm: Vm, waiting: Waiting) -> None:
        """Verify the snapshot while the hypervisor starts, which looks at nothing of it before it is told to."""
        assert self.saver is not None and self.snapshots is not None and self.found is not None
        from gridhypervisor.agent.snapshots import Damaged

        limit = now() + RESTORE_LIMIT
        snapshots, found, (memory, state) = self.snapshots, self.found, self.descriptors
        try:
            waiting.apart(lambda: snapshots.load(found, memory, state, lambda: now() > limit))
            refusal = vm.ask(self.saver.take_up(), waiting.until, limit)
        except Damaged as error:
            raise NotRestored(str(error), damaged=True) from error
        except OSError as error:
            raise NotRestored(f"read it: {error.strerror or error}", damaged=False) from error
        except Ending as ending:
            if ending.reason not in LOST or vm.watchdog_lost:
                raise
            raise NotRestored(ending.message, damaged=True) from ending
        if refusal:
            raise NotRestored(refusal, damaged=now() < limit)
        _renew(vm)

    def _save(self, vm: Vm, waiting: Waiting, run: Path, log: Callable[[str], None]) -> None:
        assert self.saver is not None and self.snapshots is not None
        if not waiting.until(lambda: vm.pristine, float("inf")):
            return  # it has not booted in time, and who waits for its word will say so
        began = now()
        state, memory = (_unnamed(run / name) for name in ("state", "memory"))
        try:
            refusal = vm.ask(self.saver.save(state), waiting.until, began + _SAVE_LIMIT)
            if not refusal:
                from gridhypervisor.agent.snapshots import copy_memory

                copy_memory(self.descriptors[0], memory)
        except OSError as error:
            refusal = f"copy the guest's memory: {error.strerror or error}"
        [scratch] = (disk for disk in self.plain.disks if disk.serial == "scratch")
        if failure := vm.ask(self.saver.go_on(scratch), waiting.until, now() + _SAVE_LIMIT):
            raise Ending(Reason.HYPERVISOR, f"let the guest go on after it was saved: {failure}", "retry")
        _renew(vm)
        log(f"the guest stood still for {now() - began:.2f} s to be saved")
        if refusal:
            self.trouble = f"no snapshot is kept: {refusal}"
            log(self.trouble)
            self.claimed = False  # it binds on: not every guest shall stand still in vain
            os.close(state)
            os.close(memory)
        else:
            self.keeper, self.claimed = Keeper(self.snapshots, self.key, memory, state, log), False

    def instead(self, error: NotRestored) -> str:
        """From now on it is a cold boot; what the ledger says of it."""
        assert self.snapshots is not None
        if error.damaged:
            self.snapshots.drop(self.key)
        removed = " and is removed" if error.damaged else ""
        self.failed = True
        self.machine, self.boot = self.plain, f"cold: snapshot {self.key[:12]} cannot be used{removed}: {error}"
        return self.boot

    def end(self, *, well: bool) -> None:
        """The job has ended: a snapshot that is not yet written is waited for a while, if the job ended well."""
        self.close()
        if self.keeper is not None:
            self.keeper.end(well=well)
            self.trouble = self.keeper.trouble
        if self.snapshots is not None:
            self.snapshots.sweep()

    def told(self, used: HypervisorUsed) -> HypervisorUsed:
        """What is to be said when the job has ended: also whether there is a snapshot now."""
        if self.trouble:
            return dataclasses.replace(used, boot=f"{used.boot}, but {self.trouble}")
        there = (self.found is not None and not self.failed) or (self.keeper is not None and self.keeper.kept)
        return dataclasses.replace(used, snapshot=self.key) if there else used


class Keeper:
    """Writes a snapshot while the job runs."""

    def __init__(
        self, snapshots: Snapshots, key: str, memory: int, state: int, log: Callable[[str], None]
    ) -> None:  # fmt: skip
        """Start. It closes the descriptors."""
        import threading  # only for the first guest of its kind

        self._over, self.kept, self.trouble = False, False, ""

        def work() -> None:
            began = now()
            try:
                kept = snapshots.keep(key, memory, state, lambda: self._over)
                if kept is not None:
                    self.kept = True
                    log(f"snapshot {key[:12]}: {kept.bytes >> 20} MiB kept in {now() - began:.1f} s")
            except OSError as error:
                self.trouble = f"snapshot {key[:12]} is not kept: {error.strerror or error}"
                log(self.trouble)
            finally:
                os.close(memory)
                os.close(state)

        self._thread = threading.Thread(target=work, daemon=True)
        self._thread.start()

    def end(self, *, well: bool) -> None:
        """Have it done, or given up, soon."""
        if well:
            self._thread.join(_KEEP_LIMIT)
        self._over = True
        self._thread.join(_KEEP_LIMIT)


def prepare(
    manifest: Manifest, machine: Machine, hypervisor: Hypervisor, used: HypervisorUsed, world: World, folder: Path
) -> Beginning:  # fmt: skip
    """How this guest begins, with all that it takes; `folder` is the account's snapshots'."""
    saver = hypervisor.saver()
    if why := obstacle(manifest, able=saver is not None, kind=used.kind):
        return Beginning(machine, f"cold: {why}", machine)
    assert saver is not None
    from gridhypervisor.agent.snapshots import Damaged, Snapshots

    snapshots = Snapshots(folder)
    waiting = dataclasses.replace(machine, cmdline=f"{machine.cmdline} {_WAIT}")
    key = key_of(manifest, waiting, saver, used, world)
    why = "no snapshot of this machine is here yet"
    try:
        found = snapshots.find(key)
        if found is not None:
            if found.size != machine.memory:
                raise Damaged(f"its record says {found.size} bytes of memory instead of {machine.memory}")
            restore = dataclasses.replace(waiting, start="restore")
            files = _files(found.size, found.state.length)
            boot = f"restored from snapshot {key[:12]}"
            return Beginning(restore, boot, machine, saver, snapshots, key, found, files)
    except Damaged as error:
        snapshots.drop(key)
        why = f"snapshot {key[:12]} cannot be used and is removed: {error}"
    except OSError as error:
        return Beginning(machine, f"cold: read snapshot {key[:12]}: {error.strerror or error}", machine)
    if not snapshots.claim(key):
        return Beginning(machine, f"cold: {why}, and another pilot makes it, or it cannot be written", machine)
    try:
        disks = tuple(_blank(disk) if disk.serial == "scratch" else disk for disk in machine.disks)
        save = dataclasses.replace(waiting, start="save", disks=disks)
        boot = f"cold: {why}; this guest is saved for the next"
        return Beginning(save, boot, machine, saver, snapshots, key, None, _files(machine.memory), claimed=True)
    except OSError as error:
        snapshots.release(key)
        return Beginning(machine, f"cold: {why}, and cannot be made: {error.strerror or error}", machine)


def obstacle(manifest: Manifest, *, able: bool, kind: str) -> str:
    """Why no snapshot can serve this job, whatever there is, or empty. `able`: the hypervisor can save guests."""
    if manifest.instant == "never":
        return "the job asks for it"
    if not able:
        return f"{kind} cannot take up a saved guest"
    if any(layer.role == "disk" for layer in manifest.image.layers):
        return "the image is one whole disk, which its guest writes while it boots"
    return ""


def key_of(manifest: Manifest, machine: Machine, saver: Saver, used: HypervisorUsed, world: World) -> str:
    """The key of the snapshot from which this machine can begin."""
    import hashlib

    from gridhypervisor.agent.snapshot import Recipe

    return Recipe(
        owner=manifest.owner,
        layers=tuple(layer.digest for layer in manifest.image.layers),
        bundle=world.root.name if world.root is not None else "",
        program=used.program,
        agent=hashlib.sha256(world.guest_archive()).hexdigest(),
        words=saver.layout(machine),
        disks=tuple(disk.path.stat().st_size for disk in machine.disks if not disk.readonly),
        processor=saver.processor(machine),
    ).key


def _blank(disk: Disk) -> Disk:
    """An empty disk in the place of the VM's scratch disk, for a guest that must not see that one yet."""
    path = disk.path.with_name("blank")
    with path.open("xb") as file:
        file.truncate(disk.path.stat().st_size)
    return dataclasses.replace(disk, path=path)


def _unnamed(path: Path) -> int:
    """A file on the node's disk that nobody finds: what is secret in it ends with its descriptor."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    path.unlink()
    return descriptor


def _files(*sizes: int) -> tuple[int, ...]:
    """Files without a name, in memory, that may be sealed.

    Raises:
        OSError: there is no room for them.
    """
    made: list[int] = []
    try:
        for size in sizes:
            made.append(os.memfd_create("ghv", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING))
            os.ftruncate(made[-1], size)
    except OSError:
        for descriptor in made:
            os.close(descriptor)
        raise
    return tuple(made)


def _renew(vm: Vm) -> None:
    vm.say(renewal.line(time.time_ns(), os.urandom(renewal.RANDOMNESS)))
