"""Figure 14: a hundred jobs of a second on two slots, through pilots that serve one job after another.

Against the same jobs with a batch job each, and against the least that there is to be done: two loops, each of which
makes a job's disk, has a bare QEMU take up the same guest from a file, waits for its program, and has it power off. Its
user trusts the file, keeps no output, and would start from the beginning if anything went wrong.

A job's seconds are those that it has of a slot: all the time from the first request to the last result at home, times
the slots, by the jobs. All three run in turn; what ours adds is taken run by run.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.instant import hear, taken_up, unpack
from benchmarks.lab import Lab, open_lab
from benchmarks.report import Report, figure
from gridhypervisor.model import wire

IMAGE, JOBS, SLOTS, RUNS = "tiny", 100, 2, 6
PROGRAM = ("sleep", "1")
MEMORY, SCRATCH = 128 << 20, 48 << 20
SMALL = ("--image", IMAGE, "--memory", "128M", "--scratch", "48M")


def ours(lab: Lab, kind: wire.HypervisorKind, isolation: str) -> tuple[float, int]:
    """A slot's seconds for each job, and how many batch jobs served others."""
    words = (*SMALL, "--hypervisor", kind, "--isolation", isolation, "--array", f"1-{JOBS}", "--to", "results")
    began = time.time()
    array = lab.ghv("run", "--detach", *words, "--", *PROGRAM).decode().strip()
    lab.ghv("wait", array)
    seconds = time.time() - began
    served = [
        event for event in lab.json("events", "-o", "json") if event["message"].startswith("in the batch job of ")
    ]
    hosts = {event["message"] for event in served if event["at"] >= began}
    return seconds * SLOTS / JOBS, len(hosts)


def bare(lab: Lab, kind: wire.HypervisorKind, memory: Path, state: Path) -> float:
    """The same of as many loops as there are slots."""

    def loop(slot: int) -> None:
        for _ in range(JOBS // SLOTS):
            one(lab, kind, memory, state, f"bare-{slot}")

    began = time.time()
    with ThreadPoolExecutor(SLOTS) as loops:
        list(loops.map(loop, range(SLOTS)))
    return (time.time() - began) * SLOTS / JOBS


def one(lab: Lab, kind: wire.HypervisorKind, memory: Path, state: Path, name: str) -> None:
    """A job from its disk to its guest's end."""
    wanted = wire.Resources(memory=MEMORY, scratch=SCRATCH)
    with taken_up(lab, IMAGE, kind, memory, state, PROGRAM, wanted, name) as (_, port, process):
        for say, answer in ((b"STAGE\n", b"STAGED"), (b"RUN end\n", b"EXIT")):
            port.sendall(say)
            hear(port, answer)
        port.sendall(b"POWEROFF\n")
        process.wait(60)


def measure(runs: int | None) -> Report:
    warm: list[float] = []
    cold: list[float] = []
    theirs: list[float] = []
    hosts: list[float] = []
    with open_lab() as lab:
        kind = lab.qemu(IMAGE)
        lab.ghv("site", "edit", "local", "--slots", str(SLOTS), "--option", "idle=10")
        used = lab.json("run", "-q", "-o", "json", *SMALL, "--hypervisor", kind, "--", "true")["ledger"]["hypervisor"]
        files = unpack(lab, MEMORY)
        one(lab, kind, *files, "bare")
        for _ in range(runs or RUNS):
            seconds, served = ours(lab, kind, "auto")
            warm.append(seconds)
            hosts.append(served)
            theirs.append(bare(lab, kind, *files))
            cold.append(ours(lab, kind, "job")[0])
    added = [mine - alone for mine, alone in zip(warm, theirs, strict=True)]
    return Report(
        f"{JOBS} jobs of a second in image {IMAGE} on {SLOTS} slots: a slot's seconds for each",
        (
            figure("through pilots that serve others", "s", warm),
            figure("two loops that restore a bare QEMU", "s", theirs),
            figure("what ours adds to these", "s", added, "at most 0.3"),
            figure("with a batch job each", "s", cold),
            figure("batch jobs that served others", "", hosts),
        ),
        hypervisor=used,
        notes=("The service is up, image and snapshot are in memory.",),
    )
