"""What an entry says of its allocation: who owns it, where the pilot is, how it ended; and all of it in one look."""

from __future__ import annotations

from dataclasses import dataclass, field

from gridhypervisor.model.wire.checkpoints import Checkpoint, Saved
from gridhypervisor.model.wire.hypervisors import HypervisorUsed
from gridhypervisor.model.wire.node import NodeReport
from gridhypervisor.model.wire.states import Outcome, Phase, Reason
from gridhypervisor.model.wire.timings import Timing


@dataclass(frozen=True)
class OwnerRecord:
    """The content of `owner`: who took the allocation, forever."""

    by: str  # "pilot" or "controller"
    claim: str  # unique to the taker: a pilot's run, or a controller's revocation
    epoch: int
    node: str = ""
    why: str = ""
    host: str = ""  # the entry with whose batch job the pilot came, where that is another: what ends it, ends its guest


@dataclass(frozen=True)
class PhaseTime:
    """A phase that has begun, in seconds on the pilot's CLOCK_BOOTTIME since the pilot started."""

    phase: Phase
    start: float
    end: float | None = None


@dataclass(frozen=True)
class Effort:
    """What the hypervisor's threads had of the node's processors since the program began, in seconds, and how long they
    wanted to run and were not let. A program that sleeps adds to neither."""

    had: float
    waited: float

    @property
    def share(self) -> float | None:
        """Of the processor time that it wanted, the part that it got; None: it wanted too little to say."""
        wanted = self.had + self.waited
        return self.had / wanted if wanted >= LEAST_WANTED else None


LEAST_WANTED = 10.0
"""Seconds of processor time, below which too little is known to say which share of it a guest got."""


MOST_PRINTED = 1 << 20
"""Bytes of each stream of a command beside the program that are kept; what follows is dropped."""

MOST_INPUT = 256 << 10
"""Bytes that such a command can be given: they go to the guest in lines, which it reads slowly."""

LONGEST_COMMAND = 2048
"""Bytes of such a command, its words quoted for a shell: it goes to the guest as one line."""


@dataclass(frozen=True)
class Execute:
    """A command that is to run in a guest beside its program, as the same user, in the same folder."""

    command: tuple[str, ...]
    limit: int = 60  # seconds; then it is ended
    input: str = ""  # base64; what it finds on its standard input


@dataclass(frozen=True)
class Executed:
    """How it ended."""

    code: int | None = None  # 128 + signal where one ended it; None: it did not run
    why: str = ""  # it did not


@dataclass(frozen=True)
class Status:
    """`status.json`: the pilot's last word. `sequence` only grows; an older one seen later is a stale look."""

    entry: str
    epoch: int
    claim: str
    sequence: int
    phase: Phase
    phases: tuple[PhaseTime, ...]
    elapsed: float  # seconds since the pilot started, its own CLOCK_BOOTTIME, when this was written
    node: str = ""
    pid: int = 0
    hypervisor: HypervisorUsed | None = None
    note: str = ""  # one line for the user, e.g. "waiting for the guest's word, 12 s of 180 s"
    ready_at: float | None = None  # CLOCK_REALTIME of guest-ready; for benchmarks on one machine only
    effort: Effort | None = None  # of the guest, since its program runs
    asks: str = ""  # the program asked to be moved: why, in its words, or `moved`
    serves: bool = False  # of a service: it is ready
    saved: Saved | None = None  # what became of the last wish that the guest be saved
    at: str = ""  # HOST:PORT at which it listens for pilots with which its VM has a private network in common
    frames: dict[str, int] = field(default_factory=dict)  # of its private networks: what was counted, see `Count`
    timings: tuple[Timing, ...] = ()  # of what was done so far


@dataclass(frozen=True)
class OutputFile:
    """One file, folder or link of the outputs, as it lies in `out/`."""

    path: str
    size: int
    mode: int
    sha256: str
    link: str = ""  # of a symbolic link: its target, relative to the link's folder and inside the outputs


@dataclass(frozen=True)
class CpuUsage:
    """CPU seconds (user + system)."""

    pilot: float = 0.0  # pilot, watchdog and their helpers
    hypervisor: float = 0.0
    program: float | None = None  # inside the guest, where the guest said it


@dataclass(frozen=True)
class ExitRecord:
    """`exit.json`: how it ended. Written once; after it the pilot does nothing more for this VM."""

    entry: str
    epoch: int
    claim: str
    outcome: Outcome
    reason: Reason
    message: str = ""  # which operation on which object failed, and why
    hint: str = ""  # what to do next
    exit_code: int | None = None  # the program's; 128 + signal where a signal ended it
    phases: tuple[PhaseTime, ...] = ()
    elapsed: float = 0.0
    usage: CpuUsage = CpuUsage()
    hypervisor: HypervisorUsed | None = None
    outputs: tuple[OutputFile, ...] = ()
    node: str = ""
    # Sizes in bytes of stdout, stderr and console.log, as the node saw them last: a file that is shorter is not yet
    # all visible. One that was never made is left out.
    streams: dict[str, int] = field(default_factory=dict)
    by: str = "pilot"  # or "watchdog", for a pilot that could not: then `outputs` is empty whatever out/ holds
    report: NodeReport | None = None  # of a probe
    checkpoint: Checkpoint | None = None  # of a suspended guest: where it goes on
    host: str = ""  # the entry in whose batch job it ran, where that is another's
    frames: dict[str, int] = field(default_factory=dict)  # as in its last status
    timings: tuple[Timing, ...] = ()  # of what was done with the guest, but for uploads; of saves each


@dataclass(frozen=True)
class EntryView:
    """What a relay sees of one entry in one look. An absent part is None: not yet visible, or not there.

    `exit.outputs` is always empty here (there may be very many): LIST_OUT gives them.
    """

    entry: str
    owner: OwnerRecord | None = None
    status: Status | None = None
    exit: ExitRecord | None = None
