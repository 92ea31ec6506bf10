"""Finds out about this node's hypervisors what `choice.decide` asks for, and remembers it on the node.

A proof or a measurement holds for this boot of the node and this bundle; that something does not work is believed for
minutes only, for a busy node must not go without for good. Two pilots may find out at once.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
from dataclasses import dataclass, replace
from pathlib import Path

from gridhypervisor.agent import choice
from gridhypervisor.agent.choice import LIMIT, PARTS, Finding, Measure, Rates
from gridhypervisor.agent.ending import Ending, now
from gridhypervisor.agent.hypervisor import Command, Descriptors, Disk, Hypervisor, Machine, of_kind
from gridhypervisor.agent.machine import join, needs, only
from gridhypervisor.agent.scratchdisk import full
from gridhypervisor.agent.trial import Trial
from gridhypervisor.agent.watchdog import Watchdog
from gridhypervisor.agent.world import World
from gridhypervisor.model.wire import (
    BASELINES,
    HypervisorKind,
    HypervisorUsed,
    Manifest,
    Reason,
    WireError,
    baseline_of,
    canonical,
    from_plain,
    reaches,
)

DOUBT = 600.0
"""Seconds for which a failure is remembered."""

_MEMORY = 128 << 20  # of the probe's guest at most, bytes: its job may have less
_DISK = 8 << 20  # bytes
_WORD = b"GHV-PROBE"  # at the end of each part


def settle(
    manifest: Manifest, paths: dict[str, Path], run: Path, world: World, memory: Path, watchdog: Watchdog
) -> tuple[Hypervisor, HypervisorUsed]:
    """The hypervisor for a job on this node. `paths` are the image's layers by digest, `run` is the folder of this run,
    `memory` the node's, where findings are kept.

    Raises:
        Ending: none of this node's runs it (hypervisor), or the node is full (node-disk).
    """
    trial = Trial(watchdog, run)
    key = key_of(world)
    found = {kind: known for kind in HypervisorKind if (known := recall(memory, kind, key)) is not None}
    if manifest.cpu in BASELINES and not reaches(here := _baseline(), manifest.cpu):
        why = f"kvm: the job asks for {manifest.cpu}, and this node's processor is {here or 'of no baseline'}"
        found[HypervisorKind.KVM] = Finding(HypervisorKind.KVM, "", False, why)
    while True:
        step = choice.decide(manifest.hypervisor, needs(manifest), found)
        if isinstance(step, choice.Refused):
            raise Ending(Reason.HYPERVISOR, step.message, step.hint)
        hypervisor = of_kind(step.kind, world)
        if isinstance(step, HypervisorUsed):
            return hypervisor, replace(step, rates=choice.speeds(found))
        try:
            if isinstance(step, choice.Prove):
                finding = hypervisor.prove(trial)
            else:
                machine = probe_machine(manifest, paths, run, world, hypervisor)
                finding = measure(step, found[step.kind], hypervisor.command(machine, Descriptors()), trial)
        except OSError as error:
            raise full(f"try {step.kind} in {trial.folder}", error) from error
        found[step.kind] = finding
        remember(memory, key, finding)


def _baseline() -> str:
    """Of this node's processor."""
    lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    return baseline_of(next((line.partition(":")[2] for line in lines if line.startswith("flags")), "").split())


def key_of(world: World) -> str:
    """What a finding holds for: this boot of the node, and this bundle."""
    return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {world.root}"


def probe_machine(
    manifest: Manifest, paths: dict[str, Path], run: Path, world: World, hypervisor: Hypervisor
) -> Machine:
    """The probe's guest, with a disk of its own made in `run`: it boots as the job's would.

    Raises:
        OSError: the disk cannot be made.
        Ending: the image lacks a kernel or an initrd (image), or the node is full (node-disk).
    """
    kernel, initrd = (paths[only(manifest, role).digest] for role in ("kernel", "initrd"))
    disk = run / "probe"
    with disk.open("wb") as file:
        file.truncate(_DISK)
    return Machine(
        name="probe", cpus=1, memory=min(_MEMORY, manifest.resources.memory), kernel=kernel,
        initrd=join(initrd, run, world, hypervisor.modules()), cmdline="ghv.probe=1", disks=(Disk("probe", disk),),
    )  # fmt: skip


def measure(step: Measure, found: Finding, command: Command, trial: Trial) -> Finding:
    """Run the probe's guest under a hypervisor that was `found` to work; it, with the rates. It does not work after all
    where that guest says nothing, or ends too soon.

    Raises:
        OSError: the watchdog is gone.
    """
    began = now()
    ends: list[float] = []
    said = b""

    def rates() -> Rates:
        moments = [began, *ends]
        if len(ends) < len(PARTS):
            moments.append(now())
        return Rates(tuple(b - a for a, b in itertools.pairwise(moments)), len(ends) == len(PARTS))

    def hear(data: bytes) -> bool:
        nonlocal said
        said = (said + data)[-4096 - len(data) :]
        *heard, said = said.split(_WORD)
        ends.extend(now() for _ in heard)
        del ends[len(PARTS) :]
        return len(ends) == len(PARTS) or rates().predicted() > step.best

    ended = trial.run(command, LIMIT, hear)
    measured = rates()
    if measured.whole or (ended.status is None and (ends or measured.predicted() > step.best)):
        return replace(found, rates=measured)
    how = ended.why if ended.status is not None else f"it said nothing in {LIMIT:.0f} s"
    return replace(found, works=False, why=f"{step.kind}: the probe's guest: {how}")


@dataclass(frozen=True)
class Remembered:
    """A finding as it is kept on the node."""

    key: str  # the node's boot and the bundle that it was found for
    at: float  # CLOCK_BOOTTIME
    finding: Finding

    def holds(self, key: str, moment: float) -> bool:
        """Whether it may be believed: that it works since the boot, that it does not for minutes only."""
        return self.key == key and (self.finding.works or 0 <= moment - self.at < DOUBT)


def recall(memory: Path, kind: HypervisorKind, key: str) -> Finding | None:
    """What is known of it, if it is to be believed."""
    with contextlib.suppress(OSError, ValueError, WireError):
        kept = from_plain(Remembered, json.loads((memory / f"{kind}-proof.json").read_bytes()))
        if kept.holds(key, now()):
            return kept.finding
    return None


def remember(memory: Path, key: str, finding: Finding) -> None:
    """Keep it for later pilots of this node. What does not even start is not worth it."""
    if not finding.program:
        return
    import tempfile  # most find what they look for

    descriptor, temporary = tempfile.mkstemp(dir=memory)
    with open(descriptor, "wb") as file:
        file.write(canonical(Remembered(key, now(), finding)))
    os.rename(temporary, memory / f"{finding.kind}-proof.json")
