"""The pilot's account of itself: phases on its own clock, `status.json`, the hypervisor that was used."""

from __future__ import annotations

import contextlib
import os
import resource
import time
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING

from gridhypervisor.agent import spool
from gridhypervisor.agent.ending import now
from gridhypervisor.agent.grant import Grant
from gridhypervisor.model import wire
from gridhypervisor.model.wire import (
    Effort,
    HypervisorUsed,
    OperationKind,
    OwnerRecord,
    Phase,
    PhaseTime,
    Saved,
    Status,
    Timing,
)

LOOKS = 6
"""Looks at the node's load of which the mean is taken; one a second."""

if TYPE_CHECKING:
    from gridhypervisor.agent.network.attachment import Attachment


class Report:
    """What `status.json` says; it is replaced at each phase and each beat, once the entry is owned."""

    def __init__(self, entry: Path, started: float) -> None:
        self.entry = entry
        self.started = started  # CLOCK_BOOTTIME
        self.hypervisor: HypervisorUsed | None = None
        self.note = ""
        self.ready_at: float | None = None
        self.owner: OwnerRecord | None = None
        self.grant: Grant | None = None  # that answers to the beats renew
        self.effort: Effort | None = None  # of the guest, while its program runs
        self.saved: Saved | None = None  # what became of the last wish to save the guest
        self.serves = False  # of a service: it is ready
        self.asks = ""  # why the program asked to be moved, if it did
        self.attachment: Attachment | None = None  # to private networks
        self.timings: list[Timing] = []
        self._loads: deque[float] = deque(maxlen=LOOKS)
        self._phases = [PhaseTime(Phase.PREPARE, 0.0)]
        self._sequence = 0

    @property
    def elapsed(self) -> float:
        """Seconds since the pilot started."""
        return now() - self.started

    @property
    def phase(self) -> Phase:
        return self._phases[-1].phase

    def enter(self, phase: Phase, note: str = "") -> None:
        """The phase before ends and this one begins, at the same moment."""
        moment = self.elapsed
        self.look()
        self._close(moment)
        self._phases.append(PhaseTime(phase, moment))
        self.note = note
        self.write()

    def finish(self) -> tuple[PhaseTime, ...]:
        """All phases, the last one ended."""
        self._close(self.elapsed)
        return tuple(self._phases)

    def ready(self) -> None:
        """The guest has reported ready."""
        self.ready_at = time.time()

    def timed(self, kind: OperationKind, size: int, seconds: float, load: float) -> None:
        """It was done, with so many bytes; `load`: as it was when that began."""
        self.timings.append(Timing(kind, size, round(max(0.0, seconds), 3), round(load, 2)))

    def look(self) -> None:
        """Take in how busy the node is at this moment."""
        with contextlib.suppress(OSError, ValueError, IndexError):
            running = int(Path("/proc/loadavg").read_text().split()[3].partition("/")[0])  # this process is one of them
            self._loads.append(running / len(os.sched_getaffinity(0)))

    @property
    def load(self) -> float:
        """How many tasks wanted to run lately, for each processor; at least 1."""
        self.look()
        return max(1.0, sum(self._loads) / len(self._loads)) if self._loads else 1.0

    def write(self) -> None:
        """Replace `status.json`. That it cannot be written now ends nothing: it is a report, and the next follows."""
        if self.owner is None:
            return
        self._sequence += 1
        if self.grant is not None:
            self.grant.sent(self._sequence, now())
        status = Status(
            entry=self.entry.name, epoch=self.owner.epoch, claim=self.owner.claim, sequence=self._sequence,
            phase=self._phases[-1].phase, phases=tuple(self._phases), elapsed=self.elapsed, node=self.owner.node,
            pid=os.getpid(), hypervisor=self.hypervisor, note=self.note, ready_at=self.ready_at,
            effort=self.effort, asks=self.asks, serves=self.serves, saved=self.saved, timings=tuple(self.timings),
            at=self.attachment.at if self.attachment is not None else "",
            frames=self.attachment.counts if self.attachment is not None else {},
        )  # fmt: skip
        with contextlib.suppress(OSError):
            spool.write_replace(self.entry / wire.STATUS, wire.canonical(status))

    def _close(self, moment: float) -> None:
        last = self._phases[-1]
        if last.end is None:
            self._phases[-1] = PhaseTime(last.phase, last.start, moment)


def process_start() -> float:
    """When this process began, on CLOCK_BOOTTIME: as the batch script, so that unpacking the bundle is counted too."""
    moment = now()
    with contextlib.suppress(OSError, ValueError, IndexError):
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        began = int(fields[19]) / os.sysconf("SC_CLK_TCK")
        if 0 <= moment - began < 3600:
            return began
    return moment


def cpu_seconds() -> float:
    """User and system, of this process and of the children that it waited for."""
    return sum(
        usage.ru_utime + usage.ru_stime
        for usage in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )


def where(error: BaseException) -> str:
    """The file and line that raised it."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}" if trace else "?"
