"""When a guest is saved that is to go on in another batch job: pure decisions on the pilot's clock.

    the program begins ─── due ─▶ save ─┬─ saved ─▶ the allocation ends: `hand-over`
                            ▲           │
                            └── again ──┴─ no time for another try ─▶ its program is stopped: `unsaved`

The site's warning makes it due at once: then the allocation ends for the reason that the signal meant.
"""

from __future__ import annotations

from dataclasses import dataclass

from gridhypervisor.agent.limits import Limits
from gridhypervisor.agent.wishes import SaveWish
from gridhypervisor.model import wire
from gridhypervisor.model.wire import HandOver, Reason, save_seconds

AGAIN = 3.0
"""Seconds before another try."""

GRACE = 30.0
"""Seconds that a site is taken to give between its signal and the end by force: Slurm's default."""

LEAST = 1.0
"""Seconds for which the program must have run, for a batch job to have been of use."""


@dataclass
class HandingOver:
    """Of one guest, since its program has begun."""

    asked: HandOver
    limits: Limits
    began: float
    executed: float = 0.0  # seconds that the program had run before
    warning: str = ""  # the site's signal
    reason: Reason = Reason.HAND_OVER
    why: str = ""  # it was not saved when it was tried last
    _next: float = float("-inf")  # not tried again before

    def program(self) -> Limits:
        """The limits, now that it is known when the program's own time is over: then it is stopped, like any."""
        over = self.began + max(1.0, self.asked.walltime - self.executed)
        return self.limits.ending(over) if over <= self.limits.hard - self.limits.spare else self.limits

    def in_time(self, meaning: Reason, guest: int) -> bool:
        """Whether a guest of so many bytes may be expected to be saved, once the site has sent a signal that means it.
        Else its program is stopped, so that it can leave its outputs."""
        return meaning is not Reason.EVICTED or save_seconds(guest, self.asked.rate) <= GRACE

    def warn(self, meaning: Reason, signal: str) -> None:
        if not self.warning:
            self.warning = signal
            self.reason = Reason.EVICTED if meaning is Reason.EVICTED else Reason.HAND_OVER

    def due(self, moment: float, guest: int) -> bool:
        """Whether a guest of so many bytes is to be saved now."""
        by = self.limits.save_by(save_seconds(guest, self.asked.rate))
        return (bool(self.warning) or moment >= by) and moment >= self._next

    def wish(self) -> SaveWish:
        why = f"the site sent {self.warning}" if self.warning else "its batch job is nearly over"
        return SaveWish(0, wire.SAVE_END, why, self.reason)

    def futile(self, moment: float) -> str:
        """Why it is not worth saving, or empty."""
        ran = moment - self.began
        if self.warning or ran >= LEAST:
            return ""
        return (
            f"its batch job of {self.limits.walltime:.0f} s left its program {max(0.0, ran):.1f} s; "
            "longer ones, or less memory and scratch, would do"
        )

    def failed(self, moment: float, why: str) -> bool:
        """It was not saved, and runs on. Whether it is worth another try: after a warning there is none, for nobody
        knows how much time is left."""
        self.why, self._next = why, moment + AGAIN
        return not self.warning and self._next <= self.limits.hard - self.limits.spare / 2
