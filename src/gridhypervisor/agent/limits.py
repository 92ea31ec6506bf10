"""When an allocation must end, and what it means when somebody wants it to: pure decisions on the pilot's clock.

started ─────────────── soft ── hard ── deadline ── walltime
                         │       │       └ the watchdog kills the guest, and the pilot, and says so
                         │       └ the pilot gives up what it is at, and leaves the sentinel: it knows more
                         └ the program is stopped, so that its outputs can still be brought out

Where the program is to go on in another batch job, its guest is saved by `save_by` instead, and `soft` is `hard`:

started ──────── save_by ─────── hard ── deadline ── walltime
                    └ hard − max(what stopping it would take, what saving it takes)
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from gridhypervisor.model.wire import Manifest, Reason

NEAR = 120.0
"""Seconds before the walltime's end in which a signal is taken for its warning: Slurm's may come a minute early."""

_STAGE_OUT_RATE = 64 << 20  # bytes a second that an emulated guest and a file server bring out together
_STAGE_OUT = 20.0  # seconds that it takes whatever the size

_CARRY_RATE = 64 << 20  # bytes a second, from a node to the front-end
_CARRY = 10.0  # seconds that it takes whatever the size


@dataclass(frozen=True)
class Limits:
    """Moments on CLOCK_BOOTTIME."""

    started: float
    walltime: float  # seconds
    soft: float
    hard: float
    deadline: float
    spare: float = 0.0  # seconds that it takes to stop the program and to bring its outputs out
    late: Reason = Reason.WALLTIME  # why the allocation ends at `soft`

    @classmethod
    def of(cls, manifest: Manifest, started: float, carrying: float = 0.0) -> Limits:
        """The limits of a pilot that started then. Of a short walltime, most must remain for the program. `carrying`:
        the seconds that a courier needs after the pilot's end."""
        wanted = manifest.resources
        walltime = float(wanted.walltime)
        deadline = started + walltime - max(1.0, min(15.0, walltime / 20)) - carrying
        hard = deadline - max(0.5, min(5.0, walltime / 40))
        bring_out = _STAGE_OUT + (wanted.scratch / _STAGE_OUT_RATE if manifest.program.leaves else 0.0)
        spare = min(manifest.stop_grace + bring_out, walltime / 4)
        if manifest.handover is not None:
            return cls(started, walltime, hard, hard, deadline, spare, Reason.UNSAVED)
        return cls(started, walltime, hard - spare, hard, deadline, spare)

    @staticmethod
    def carrying(manifest: Manifest) -> float:
        """Seconds that are left for a courier to carry the results to the relay; of a short walltime not much."""
        wanted = manifest.resources
        seconds = _CARRY + (wanted.scratch / _CARRY_RATE if manifest.program.leaves else 0.0)
        return min(seconds, wanted.walltime / 8)

    def save_by(self, seconds: float) -> float:
        """When to begin to save a guest that is to go on in another batch job, which takes so many seconds. Were its
        program to end by itself a moment before, its outputs could still be brought out."""
        return self.hard - max(self.spare, seconds)

    def ending(self, moment: float) -> Limits:
        """The same for a program that may run no longer than until that moment, in whatever batch job."""
        return replace(self, soft=min(moment, self.hard), late=Reason.WALLTIME)

    def meaning(self, moment: float, *, cancelled: bool) -> Reason:
        """What a bare signal of the site means. It is the user's wish only where that was left in words."""
        if cancelled:
            return Reason.CANCELLED
        left = self.started + self.walltime - moment
        near = left <= min(max(NEAR, self.walltime / 10), self.walltime / 2)
        return self.late if near else Reason.EVICTED
