"""Files that a job takes along from one attempt to the next: brought home beside the attempt's logs, put among the next
one's inputs, and forgotten when the job ends.

A set counts when it is whole; then it takes its place at once. The next attempt gets the newest.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

from gridhypervisor.execution.collect import Collector
from gridhypervisor.execution.logs import Logs
from gridhypervisor.execution.ports import StagedInput
from gridhypervisor.execution.results import Unfit
from gridhypervisor.model.records import Allocation, Job
from gridhypervisor.model.wire import ExitRecord, Input

SET, PART = "restart", "restart.part"
"""Folders of an attempt: all that it left, and what of it is home so far."""


async def keep(collector: Collector, logs: Logs, a: Allocation, job: Job) -> None:
    """Bring home what an attempt has left, if that is all of it; another attempt of the job follows.

    Raises:
        LinkError, OSError: not now.
    """
    if not job.spec.restart_files or not _left(a.exit):
        return
    folder = logs.folder(a.job, a.epoch)
    try:
        brought = await collector.results(folder / PART, job.spec.restart_files, others=job.spec.outputs, links=False)
    except Unfit:  # an older set is better than a part of this one
        brought = 0
    if brought:
        shutil.rmtree(folder / SET, ignore_errors=True)
        (folder / PART).rename(folder / SET)
    shutil.rmtree(folder / PART, ignore_errors=True)


def newest(logs: Logs, a: Allocation) -> list[StagedInput]:
    """What this attempt is to begin with: the newest set of those before it; none: there is no set."""
    for epoch in range(a.epoch - 1, 0, -1):
        folder = logs.root / a.job / str(epoch) / SET
        if folder.is_dir():
            return [_staged(Path(where, name), folder) for where, _, names in os.walk(folder) for name in sorted(names)]
    return []


def forget(logs: Logs, job: Job) -> None:
    """The job has ended."""
    for folder in (logs.root / job.id).glob(f"*/{SET}*") if job.spec.restart_files else ():
        shutil.rmtree(folder, ignore_errors=True)


def _left(exit: ExitRecord | None) -> bool:
    return exit is not None and exit.by == "pilot"  # a watchdog does not know what is whole


def _staged(path: Path, folder: Path) -> StagedInput:
    with path.open("rb") as file:
        status, digest = os.fstat(file.fileno()), hashlib.file_digest(file, "sha256").hexdigest()
    name = path.relative_to(folder).as_posix()
    return StagedInput(path, Input(name, status.st_size, digest, status.st_mode & 0o777))
