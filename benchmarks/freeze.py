"""Figure 14: a guest's suspension and its resumption, against the same done by bare QEMU commands.

Both suspend the same guest, running the same program, and pack the same with the same zstd: memory and devices through
QEMU's migration to a descriptor, the VM's own disks without their holes. Ours begins with the wish and ends when the
sentinel is there: the program frozen, all hashed, on the disk, the node clean. The bare one begins with `stop`, ends
when QEMU has quit and its files are on the disk. A resumption begins with the first bare command, and ends when the
guest has been told the time and its program runs on; ours copies and compares every byte
before that. Ours begins when the pilot owns its entry: what a batch job needs until then is not of a checkpoint.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from benchmarks.lab import READY, Lab, open_lab, wait_for
from benchmarks.report import Report, figure
from gridhypervisor.agent import channel, renewal, scratchdisk, spool
from gridhypervisor.agent.hypervisor import CHANNELS, Ask, Descriptors, Machine
from gridhypervisor.agent.machine import compose
from gridhypervisor.agent.node import Node
from gridhypervisor.agent.qemu import Qemu
from gridhypervisor.agent.world import World
from gridhypervisor.images.repository import Repository
from gridhypervisor.model import wire

IMAGE, RUNS = "xmm", 15
PROGRAM = ("sh", "-c", "head -c 33554432 /dev/urandom >data; echo begun; while :; do echo on; sleep 1; done")
"""With something of its own on its disk and in its memory."""


def manifest(lab: Lab, kind: wire.HypervisorKind, entry: str) -> wire.Manifest:
    image = Repository(lab.data / "images").show(IMAGE)
    return wire.Manifest(
        protocol=wire.PROTOCOL, installation="bench", entry=entry, vm="v", epoch=1, allocation="a", job="j",
        image=image.manifest, image_digest=image.digest, program=wire.Program(PROGRAM), resources=wire.Resources(),
        hypervisor=kind, instant="never",
    )  # fmt: skip


class Pilot:
    """One attempt, by a pilot that no controller knows of."""

    def __init__(self, lab: Lab, job: wire.Manifest) -> None:
        self.entry = lab.workdir / wire.SPOOL / job.entry
        shutil.rmtree(self.entry, ignore_errors=True)
        (self.entry / wire.CONTROL).mkdir(parents=True, mode=0o700)
        spool.write_durable(self.entry / wire.MANIFEST, wire.canonical(job))
        code = "import sys; from gridhypervisor.agent.pilot import main; sys.exit(main())"
        self.began = time.time()
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, "--entry", str(self.entry), "--scratch", str(lab.scratch)],
            env={**os.environ, "GHV_WORLD": str(lab.world)}, start_new_session=True, stdin=subprocess.DEVNULL,
        )  # fmt: skip

    def wait_for_output(self, size: int) -> float:
        """When there are more than so many bytes of it."""
        path = self.entry / wire.STDOUT
        wait_for("the program's output", lambda: path.exists() and path.stat().st_size > size or None, READY)
        return time.time()

    def suspend(self) -> tuple[float, wire.Checkpoint]:
        """Seconds, and what it came to."""
        began = time.time()
        spool.write_durable(self.entry / wire.CONTROL / f"{wire.SAVE}1", f"{wire.SAVE_END}: measured".encode())
        record = wait_for("the sentinel", lambda: spool.read_json(self.entry / wire.EXIT, wire.ExitRecord), READY)
        seconds = time.time() - began
        self.process.wait(READY)
        if record.checkpoint is None:
            raise RuntimeError(f"suspend {self.entry.name}: {record.reason}: {record.message}")
        return seconds, record.checkpoint

    def end(self) -> None:
        (self.entry / wire.CONTROL / wire.CANCEL).touch()
        self.process.wait(READY)


class Ours(NamedTuple):
    suspend: float  # seconds
    resume: float  # since the pilot owned its entry
    start: float  # since it was started
    checkpoint: wire.Checkpoint


def ours(lab: Lab, kind: wire.HypervisorKind) -> Ours:
    job = manifest(lab, kind, "bench-freeze")
    first = Pilot(lab, job)
    first.wait_for_output(len("begun\n"))
    suspended, checkpoint = first.suspend()
    again = Pilot(lab, replace(job, entry="bench-resume", restore=checkpoint))
    status = wait_for("the guest to go on", lambda: executing(again.entry), READY)
    going = next(phase.start for phase in status.phases if phase.phase is wire.Phase.EXECUTE)
    taken = (again.entry / wire.OWNER).stat().st_ctime - again.began
    again.wait_for_output(checkpoint.streams[wire.STDOUT])
    again.end()
    shutil.rmtree(lab.workdir / wire.CHECKPOINTS / checkpoint.id)
    return Ours(suspended, going - taken, going, checkpoint)


def executing(entry: Path) -> wire.Status | None:
    status = spool.read_json(entry / wire.STATUS, wire.Status)
    return status if status is not None and status.phase is wire.Phase.EXECUTE else None


class Bare:
    """A QEMU of this process's own."""

    def __init__(self, qemu: Qemu, machine: Machine) -> None:
        pairs = {name: socket.socketpair() for name in ("monitor", "console", *CHANNELS)}
        self._sockets = {name: mine for name, (mine, _) in pairs.items()}
        numbers = {name: other.fileno() for name, (_, other) in pairs.items()}
        channels = tuple(numbers[name] for name in CHANNELS)
        command = qemu.command(machine, Descriptors(numbers["monitor"], numbers["console"], channels))
        self.process = subprocess.Popen(command.argv, env=command.environment, pass_fds=tuple(numbers.values()))
        for _, other in pairs.values():
            other.close()
        self._qemu, self._monitor = qemu, qemu.monitor()
        for mine in self._sockets.values():
            mine.settimeout(READY)
        self._sockets["monitor"].sendall(self._monitor.greet())

    def say(self, line: str, answer: bytes, on: str = "ctl") -> None:
        """Say a line to the guest's agent, and wait for an answer on that port."""
        if line:
            self._sockets["ctl"].sendall(line.encode() + b"\n")
        said = b""
        while answer not in said:
            said += self._sockets[on].recv(1 << 16)

    def ask(self, questions: Sequence[Ask]) -> None:
        line = self._sockets["monitor"]
        for question in questions:
            data = self._monitor.ask(question)
            socket.send_fds(line, [data], [] if question.descriptor is None else [question.descriptor])
            while (answer := self._monitor.answer()) is None:
                self._monitor.feed(line.recv(1 << 16))
            if answer:
                raise RuntimeError(f"{question.command}: {answer}")

    def quit(self) -> None:
        self._sockets["monitor"].sendall(self._monitor.quit())
        self.process.wait(READY)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        for mine in self._sockets.values():
            mine.close()


def bare(lab: Lab, kind: wire.HypervisorKind) -> tuple[float, float]:
    """The same by bare commands."""
    world, job = World(lab.world, lab.world / "guest.cpio"), manifest(lab, kind, "bare")
    run, kept = lab.scratch / "bare", lab.workdir / "bare"
    for folder in (run, kept):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
    text = channel.job_file(job.program, user=job.image.user, path=job.image.path)
    size = job.resources.scratch
    scratchdisk.make_scratch(world, run, size=size, job_file=text, inputs=(), source=run, stop=lambda: False)()
    layers = Node(lab.scratch).cache
    machine = compose(job, {layer.digest: layers / layer.digest for layer in job.image.layers}, run, world)
    qemu, zstd = Qemu(world, kind), world.argv("zstd")
    disks, threads = ["scratch", "out"], f"-T{machine.cpus}"
    with contextlib.closing(Bare(qemu, machine)) as guest:
        guest.say("", b"READY")
        guest.say("STAGE", b"STAGED")
        guest.say("RUN mark", b"begun\non\n", "out")
        began = time.time()
        guest.say("FREEZE 1", b"FROZEN 1 1")
        guest.ask(qemu.halt())
        with (kept / "memory.zst").open("wb") as file:
            packer = subprocess.Popen([*zstd, "-q", "-1", threads, "-c"], stdin=subprocess.PIPE, stdout=file)
            assert packer.stdin is not None
            with packer.stdin:
                guest.ask(qemu.write(packer.stdin.fileno()))
            packer.wait(READY)
        pack = " ".join([*zstd, "-1", threads])
        subprocess.run(["tar", "-S", "-I", pack, "-cf", str(kept / "disks.tar"), *disks], cwd=run, check=True)
        subprocess.run(["sync", *map(str, kept.iterdir())], check=True)
        guest.quit()
        suspended = time.time() - began
    for name in disks:
        (run / name).unlink()
    began = time.time()
    subprocess.run(["tar", "-I", " ".join(zstd), "-xf", str(kept / "disks.tar")], cwd=run, check=True)
    with contextlib.closing(Bare(qemu, replace(machine, start="resume"))) as guest:
        unpacker = subprocess.Popen([*zstd, "-q", "-d", "-c", str(kept / "memory.zst")], stdout=subprocess.PIPE)
        assert unpacker.stdout is not None
        with unpacker.stdout:
            guest.ask(qemu.read(unpacker.stdout.fileno()))
        unpacker.wait(READY)
        guest.say(renewal.line(time.time_ns(), os.urandom(renewal.RANDOMNESS)), b"RENEWED 0")
        guest.say("THAW", b"")
        resumed = time.time() - began
        guest.say("", b"on\n", "out")
    return suspended, resumed


def measure(runs: int | None) -> Report:
    mine: list[Ours] = []
    theirs: list[tuple[float, float]] = []
    with open_lab() as lab:
        kind = lab.qemu(IMAGE)
        used = lab.warm_up(IMAGE, kind)["ledger"]["hypervisor"]
        for number in range((runs or RUNS) + 1):
            pair = ours(lab, kind), bare(lab, kind)
            if number:  # the first one warms up
                mine.append(pair[0])
                theirs.append(pair[1])
    pairs = list(zip(mine, theirs, strict=True))
    suspends = [each.suspend / alone for each, (alone, _) in pairs]
    resumes = [each.resume / alone for each, (_, alone) in pairs]
    return Report(
        f"A guest of image {IMAGE} suspended and resumed, against bare QEMU commands",
        (
            figure("suspend, wish to sentinel", "s", [each.suspend for each in mine]),
            figure("bare: stop, migrate, pack, quit", "s", [suspend for suspend, _ in theirs]),
            figure("ratio, pair by pair", "", suspends, "the interval's end at most 1.2"),
            figure("resume, ownership to running", "s", [each.resume for each in mine]),
            figure("bare: unpack, start, take up", "s", [resume for _, resume in theirs]),
            figure("ratio of those, pair by pair", "", resumes, "the interval's end at most 1.2"),
            figure("resume, pilot's start to running", "s", [each.start for each in mine]),
            figure("stood still before it was kept", "s", [each.checkpoint.stood for each in mine]),
            figure("size of a checkpoint", "MiB", [each.checkpoint.size / 2**20 for each in mine]),
        ),
        hypervisor=used,
        notes=("512 MiB of memory, 32 MiB of random bytes on its disk and in its cache.",),
    )
