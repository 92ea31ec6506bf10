"""Figure 2: from `ghv run` of `true` to guest-ready, against the same image started by a bare QEMU command line.

Both run the same QEMU with the same flags on the same kernel, initrd and layers, all in this machine's memory. The bare
one finds its disks made and is ready when the guest's agent says so on its port; `ghv run` does everything that it does
for a user, and is ready when its pilot heard the same word. The service is up, but for the figure that says otherwise.
"""

from __future__ import annotations

import shutil
import socket
import subprocess
import time

from benchmarks.lab import READY, Lab, open_lab
from benchmarks.report import Report, figure
from gridhypervisor.agent import channel, scratchdisk
from gridhypervisor.agent.hypervisor import CHANNELS, Descriptors
from gridhypervisor.agent.machine import compose
from gridhypervisor.agent.node import Node
from gridhypervisor.agent.qemu import Qemu
from gridhypervisor.agent.world import World
from gridhypervisor.images.repository import Repository
from gridhypervisor.model import wire

IMAGE, RUNS = "xmm", 15


def through_ghv(lab: Lab, kind: wire.HypervisorKind) -> tuple[float, float]:
    """Seconds to guest-ready, and how many of them passed before QEMU was started."""
    words = ("--image", IMAGE, "--hypervisor", kind, "--instant", "never", "--", "true")
    began, status = lab.until_ready(lab.workdir, *words)
    assert status.ready_at is not None
    [boot] = [phase for phase in status.phases if phase.phase is wire.Phase.BOOT]
    assert boot.end is not None
    ready = status.ready_at - began
    return ready, ready - (boot.end - boot.start)


def bare(lab: Lab, kind: wire.HypervisorKind) -> float:
    """Seconds to guest-ready of a QEMU that this process starts, with nothing else around it."""
    world = World(lab.world, lab.world / "guest.cpio")
    image = Repository(lab.data / "images").show(IMAGE)
    program = wire.Program(("true",))
    manifest = wire.Manifest(
        protocol=wire.PROTOCOL, installation="bench", entry="bare", vm="v", epoch=1, allocation="a", job="j",
        image=image.manifest, image_digest=image.digest, program=program, resources=wire.Resources(),
    )  # fmt: skip
    run = lab.scratch / "bare"
    shutil.rmtree(run, ignore_errors=True)
    run.mkdir()
    job = channel.job_file(program, user=image.manifest.user, path=image.manifest.path)
    scratchdisk.make_scratch(
        world, run, size=manifest.resources.scratch, job_file=job, inputs=(), source=run, stop=lambda: False
    )()
    layers = Node(lab.scratch).cache
    machine = compose(manifest, {x.digest: layers / x.digest for x in image.manifest.layers}, run, world)
    pairs = {name: socket.socketpair() for name in ("monitor", "console", *CHANNELS)}
    numbers = {name: theirs.fileno() for name, (_, theirs) in pairs.items()}
    descriptors = Descriptors(numbers["monitor"], numbers["console"], tuple(numbers[name] for name in CHANNELS))
    command = Qemu(world, kind).command(machine, descriptors)
    began = time.time()
    with subprocess.Popen(command.argv, env=command.environment, pass_fds=numbers.values()) as qemu:
        for _, theirs in pairs.values():
            theirs.close()
        try:
            _until(b"READY", pairs["ctl"][0])
            return time.time() - began
        finally:
            qemu.kill()
            for ours, _ in pairs.values():
                ours.close()


def _until(word: bytes, port: socket.socket) -> None:
    port.settimeout(READY)
    said = b""
    while word not in said:
        data = port.recv(4096)
        if not data:
            raise RuntimeError(f"the bare guest ended before it was ready; it said {said!r}")
        said += data


def measure(runs: int | None) -> Report:
    ours: list[tuple[float, float]] = []
    theirs: list[float] = []
    cold: list[float] = []
    with open_lab() as lab:
        kind = lab.qemu(IMAGE)
        used = lab.warm_up(IMAGE, kind)["ledger"]["hypervisor"]
        bare(lab, kind)
        for _ in range(runs or RUNS):
            ours.append(through_ghv(lab, kind))
            theirs.append(bare(lab, kind))
        for _ in range(runs or RUNS):
            lab.ghv("service", "stop")
            cold.append(through_ghv(lab, kind)[0])
    ratios = [ready / alone for (ready, _), alone in zip(ours, theirs, strict=True)]
    return Report(
        f"`ghv run` of `true` in image {IMAGE} to guest-ready, against a bare QEMU",
        (
            figure("ghv run to ready", "s", [ready for ready, _ in ours]),
            figure("  of it before QEMU starts", "s", [before for _, before in ours]),
            figure("bare QEMU to ready", "s", theirs),
            figure("ratio, pair by pair", "", ratios, "the interval's end at most 1.15"),
            figure("ghv run, service not started", "s", cold),
        ),
        hypervisor=used,
        notes=("The service is up and the image in memory, except in the last line.",),
    )
