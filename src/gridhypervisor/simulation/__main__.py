"""The process that simulates, which `client.simulator` starts: `python -m gridhypervisor.simulation SPEC`.

It reads the files, keeps its records in memory and logs in a temporary folder, and says on stdout what comes of it, a
line of JSON for each `model.simulation.Message`. Nobody's installation is touched, and no service is needed.
"""

from __future__ import annotations

import argparse
import asyncio
import gzip
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from gridhypervisor.execution.garbage import spare_records
from gridhypervisor.model.policy import SchedulingPolicy, load_policy
from gridhypervisor.model.simulation import (
    Finished,
    Message,
    Missing,
    Progress,
    Refused,
    SimulationReport,
    SimulationSpec,
    problems,
)
from gridhypervisor.model.swf import parse_trace
from gridhypervisor.model.yamlspec import Problem, SpecError, load
from gridhypervisor.simulation.loop import SteadyLoop
from gridhypervisor.simulation.run import simulate
from gridhypervisor.simulation.workload import Work, generated, of_trace
from gridhypervisor.store import MemoryStore

PACE = 0.5
"""Seconds of real time between two words of progress."""

DAY = 86_400.0

MEMORY = "/dev/shm"
"""Where there is such a folder, nothing of a simulation goes to a disk: a few KiB a job."""


def read_spec(path: Path, policy: str | None, seed: int | None) -> SimulationSpec:
    """What is to be simulated; `policy` and `seed` go before what the file says."""
    spec = load(str(path), path.read_text(errors="replace"), SimulationSpec, problems)
    if seed is not None:
        spec = msgspec.structs.replace(spec, seed=seed)
    if policy is not None:
        return msgspec.structs.replace(spec, policy=policy)
    return msgspec.structs.replace(spec, policy=str(path.parent / spec.policy)) if spec.policy else spec


def read_work(path: Path, spec: SimulationSpec) -> Work:
    """The jobs to come. `path`: of the spec, against whose folder a trace's path is read.

    Raises:
        SpecError: the trace is none, or not a job of it can be run.
        OSError: it cannot be read.
    """
    largest, workload = max(site.cores for site in spec.sites.values()), spec.workload
    if workload.generate is not None:
        work, source = generated(workload, workload.generate, spec.seed, largest), str(path)
    else:
        file = path.parent / workload.trace
        source = str(file)
        data = file.read_bytes()
        text = (gzip.decompress(data) if file.suffix == ".gz" else data).decode(errors="replace")
        work = of_trace(workload.trace, parse_trace(source, text), workload, largest)
    if not work.tasks:
        why = ", ".join(f"{count}: {words}" for words, count in work.left_out.items())
        raise SpecError([Problem(source, 0, 0, "workload", f"no job of it can be run here ({why})", "see `cap`")])
    return work


def read_policy(path: str) -> SchedulingPolicy:
    if not path:
        return SchedulingPolicy()
    name, text = ("stdin", sys.stdin.read()) if path == "-" else (path, Path(path).read_text(errors="replace"))
    return load_policy(name, text)


def run(path: Path, policy: str | None, seed: int | None, say: Callable[[Message], None]) -> SimulationReport:
    """The whole, from files to figures. It says how far it is, and nothing more."""
    spec = read_spec(path, policy, seed)
    work, the_policy = read_work(path, spec), read_policy(spec.policy)
    spoken = time.monotonic()

    def tell(at: float, ended: int) -> None:
        nonlocal spoken
        if time.monotonic() >= spoken + PACE:
            spoken = time.monotonic()
            say(Progress(round(at / DAY, 2), ended, len(work.tasks)))

    spare_records()
    place = MEMORY if os.access(MEMORY, os.W_OK | os.X_OK) else None
    with (
        tempfile.TemporaryDirectory(prefix="ghv-simulation-", dir=place) as folder,
        asyncio.Runner(loop_factory=SteadyLoop) as runner,
    ):
        return runner.run(simulate(spec, work, the_policy, MemoryStore(), Path(folder), tell))


def answer(path: Path, policy: str | None, seed: int | None, say: Callable[[Message], None]) -> Message:
    """What comes of it, as the last message."""
    try:
        return Finished(run(path, policy, seed, say))
    except SpecError as error:
        return Refused(error.problems)
    except (FileNotFoundError, PermissionError, IsADirectoryError, gzip.BadGzipFile) as error:
        return Missing(str(error.filename or path), error.strerror or str(error))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m gridhypervisor.simulation")
    parser.add_argument("spec", type=Path)
    parser.add_argument("--policy", help="the policy's file, before what the spec says; - for stdin")
    parser.add_argument("--seed", type=int, help="before what the spec says")
    arguments = parser.parse_args()

    def say(message: Message) -> None:
        sys.stdout.buffer.write(msgspec.json.encode(message) + b"\n")
        sys.stdout.buffer.flush()

    try:
        say(answer(arguments.spec, arguments.policy, arguments.seed, say))
    except (KeyboardInterrupt, BrokenPipeError):  # whoever asked has gone; what was made has been removed
        sys.exit(130)


if __name__ == "__main__":
    main()
