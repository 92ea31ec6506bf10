"""Figure 9: a guest's start from a snapshot, against its cold boot and against a restore by bare QEMU commands.

All begin when a hypervisor is to be started and end when the guest's agent has said that it is ready; their disks are
made before. Ours verifies every byte of the snapshot meanwhile, into memory of its own. The bare one trusts a file with
the very same memory, mapped privately as it lies there, which is the fastest that QEMU itself has: a stream with the
memory in it takes longer. Both then wait for the same guest: the rest of its start is emulated where there is no KVM.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from benchmarks.lab import READY, Lab, open_lab
from benchmarks.report import Report, figure
from gridhypervisor.agent import channel, renewal, scratchdisk
from gridhypervisor.agent.hypervisor import CHANNELS, Descriptors
from gridhypervisor.agent.machine import compose
from gridhypervisor.agent.node import Node
from gridhypervisor.agent.qemu import Qemu
from gridhypervisor.agent.snapshot import Snapshot
from gridhypervisor.agent.snapshots import Snapshots, copy_memory
from gridhypervisor.agent.world import World
from gridhypervisor.images.repository import Repository
from gridhypervisor.model import wire

IMAGE, RUNS = "xmm", 15


def ours(lab: Lab, kind: wire.HypervisorKind, instant: str) -> tuple[float, float]:
    """Seconds from the hypervisor's start to guest-ready, and from the start of `ghv run`."""
    words = ("--image", IMAGE, "--hypervisor", kind, "--instant", instant, "--", "true")
    began, status = lab.until_ready(lab.workdir, *words)
    assert status.ready_at is not None and status.hypervisor is not None
    wanted = "restored" if instant == "auto" else "cold: the job asks for it"
    if not status.hypervisor.boot.startswith(wanted):
        raise RuntimeError(f"measure a guest that is {wanted}: it is {status.hypervisor.boot}")
    [boot] = [phase for phase in status.phases if phase.phase is wire.Phase.BOOT]
    assert boot.end is not None
    return boot.end - boot.start, status.ready_at - began


def unpack(lab: Lab, size: int | None = None) -> tuple[Path, Path]:
    """The snapshot that the lab's first guest left (of so many bytes of memory), as a user of QEMU would have it: all
    the memory, the state."""
    kept = {
        folder: wire.from_plain(Snapshot, json.loads((folder / "snapshot.json").read_bytes()))
        for folder in (lab.workdir / wire.SNAPSHOTS).glob("?" * 64)
    }
    [(folder, found)] = [(folder, found) for folder, found in kept.items() if size in (None, found.size)]
    memory, state = (os.memfd_create("bench", os.MFD_ALLOW_SEALING) for _ in range(2))
    os.ftruncate(memory, found.size)
    os.ftruncate(state, found.state.length)
    Snapshots(folder.parent).load(found, memory, state, lambda: False)
    files = lab.scratch / "bare.memory", lab.scratch / "bare.state"
    for source, path in zip((memory, state), files, strict=True):
        with path.open("wb") as file:
            copy_memory(source, file.fileno())
        os.close(source)
    return files


def bare(lab: Lab, kind: wire.HypervisorKind, memory: Path, state: Path) -> float:
    """Seconds to guest-ready of a QEMU that this process has take up the guest."""
    with taken_up(lab, IMAGE, kind, memory, state, ("true",), wire.Resources()) as (began, _, _):
        return time.time() - began


@contextlib.contextmanager
def taken_up(
    lab: Lab, image_name: str, kind: wire.HypervisorKind, memory: Path, state: Path, command: tuple[str, ...],
    resources: wire.Resources, name: str = "bare",
) -> Iterator[tuple[float, socket.socket, subprocess.Popen[bytes]]]:  # fmt: skip
    """A guest that a QEMU of this process has taken up, ready: when QEMU was started, the guest's port, the process."""
    world = World(lab.world, lab.world / "guest.cpio")
    image = Repository(lab.data / "images").show(image_name)
    program = wire.Program(command)
    manifest = wire.Manifest(
        protocol=wire.PROTOCOL, installation="bench", entry=name, vm="v", epoch=1, allocation="a", job="j",
        image=image.manifest, image_digest=image.digest, program=program, resources=resources,
    )  # fmt: skip
    run = lab.scratch / name
    shutil.rmtree(run, ignore_errors=True)
    run.mkdir()
    job = channel.job_file(program, user=image.manifest.user, path=image.manifest.path)
    scratchdisk.make_scratch(
        world, run, size=manifest.resources.scratch, job_file=job, inputs=(), source=run, stop=lambda: False
    )()
    layers = Node(lab.scratch).cache
    machine = compose(manifest, {x.digest: layers / x.digest for x in image.manifest.layers}, run, world)
    machine = replace(machine, cmdline=f"{machine.cmdline} ghv.instant=1", start="restore")
    pairs = {name: socket.socketpair() for name in ("monitor", "console", *CHANNELS)}
    names = {name: theirs.fileno() for name, (_, theirs) in pairs.items()}
    with memory.open("r+b") as ram, state.open("rb") as devices:
        channels = tuple(names[name] for name in CHANNELS)
        descriptors = Descriptors(names["monitor"], names["console"], channels, ram.fileno())
        qemu = Qemu(world, kind)
        words = qemu.command(machine, descriptors)
        given = (*names.values(), ram.fileno(), devices.fileno())
        began = time.time()
        with subprocess.Popen(words.argv, env=words.environment, pass_fds=given) as process:
            for _, theirs in pairs.values():
                theirs.close()
            try:
                monitor, ours = qemu.monitor(), pairs["monitor"][0]
                ours.settimeout(READY)
                ours.sendall(monitor.greet())
                for question in qemu.take_up():
                    if question.migrated:  # a pilot's hypervisor has the state at another number
                        question = replace(question, arguments={"uri": f"fd:{devices.fileno()}"})
                    ours.sendall(monitor.ask(question))
                    while (answer := monitor.answer()) is None:
                        monitor.feed(ours.recv(1 << 16))
                    if answer:
                        raise RuntimeError(f"{question.command}: {answer}")
                port = pairs["ctl"][0]
                port.settimeout(READY)
                port.sendall(renewal.line(time.time_ns(), os.urandom(renewal.RANDOMNESS)).encode() + b"\n")
                hear(port, b"READY")
                yield began, port, process
            finally:
                process.kill()
                for mine, _ in pairs.values():
                    mine.close()


def hear(port: socket.socket, word: bytes) -> None:
    """Wait until the guest has said it."""
    said = b""
    while word not in said:
        data = port.recv(4096)
        if not data:
            raise RuntimeError(f"the guest ended and did not say {word.decode()}: {said!r}")
        said += data


def measure(runs: int | None) -> Report:
    restored: list[tuple[float, float]] = []
    cold: list[tuple[float, float]] = []
    theirs: list[float] = []
    with open_lab() as lab:
        kind = lab.qemu(IMAGE)
        used = lab.warm_up(IMAGE, kind)["ledger"]["hypervisor"]
        files = unpack(lab)
        bare(lab, kind, *files)
        ours(lab, kind, "auto")
        for _ in range(runs or RUNS):
            restored.append(ours(lab, kind, "auto"))
            theirs.append(bare(lab, kind, *files))
            cold.append(ours(lab, kind, "never"))
    faster = [slow / fast for (slow, _), (fast, _) in zip(cold, restored, strict=True)]
    ratios = [fast / alone for (fast, _), alone in zip(restored, theirs, strict=True)]
    return Report(
        f"A guest of image {IMAGE} from a snapshot, against its cold boot and a bare QEMU's restore",
        (
            figure("from a snapshot, hypervisor's start to ready", "s", [boot for boot, _ in restored]),
            figure("bare QEMU's restore to ready", "s", theirs),
            figure("ratio, pair by pair", "", ratios, "the interval's end at most 1.3"),
            figure("cold boot, hypervisor's start to ready", "s", [boot for boot, _ in cold]),
            figure("times faster than cold, pair by pair", "", faster, "the interval's start at least 5"),
            figure("ghv run to ready, from a snapshot", "s", [whole for _, whole in restored]),
            figure("ghv run to ready, cold", "s", [whole for _, whole in cold]),
        ),
        hypervisor=used,
        notes=("The service is up, image and snapshot are in memory, disks are made before.",),
    )
