"""The next batch job of a program that lasts longer than one: asked for ahead of time, taken as soon as it is there.

    the attempt that runs   ───────── EXECUTE ─────────▶ saved ─▶ ENDED ─▶ COLLECTED
    its successor              PLANNED ─▶ QUEUED ─▶ RUNNING: ready  · · · · · · · ·  ─▶ its word: it goes on

The successor's pilot has all there that can be, and waits. Only then is the guest saved; and only when nothing of the
first one can run any more does the successor get its word, which is committed before it is sent. One that never gets it
decides nothing. See rule 10 of docs/never-two-guests.md.
"""

from __future__ import annotations

import math

import msgspec

from gridhypervisor.model.records import (
    ActionKind,
    Allocation,
    AllocationState,
    CheckpointState,
    Job,
    JobState,
    Saving,
    Wish,
)
from gridhypervisor.model.replacing import replace
from gridhypervisor.model.spec import parse_duration
from gridhypervisor.model.wire import MOVES, SAVE_HAND_OVER, Phase, Reason
from gridhypervisor.planning.checkpoints import begins, ends, status_of, unsavable
from gridhypervisor.planning.draft import OVER, Action
from gridhypervisor.planning.fate import refusals
from gridhypervisor.planning.moves import executed
from gridhypervisor.planning.placement import Chooser
from gridhypervisor.planning.suspension import Suspension
from gridhypervisor.planning.world import Case, Observed, SiteFacts

S = AllocationState
A = ActionKind

LEAD = 60.0
"""Seconds before its guest must be saved in which a successor is asked for: its way to the site, and its pilot's start.
Beside these, half as long again as jobs wait there."""

SPARE = 30.0
"""Seconds before the end of a batch job in which a guest is saved, mostly."""

MOST = 3
"""Successors that are asked for ahead of one attempt, at most: those that end before their time come to nothing."""

LOOK = 15.0
"""Seconds after which it is looked again whether there is room for one."""

AGAIN = 30.0
"""Seconds after which it is tried again to save a guest whose successor is there."""

AS_JOB = {
    S.PLANNED: JobState.PROLOG,
    S.SUBMITTING: JobState.PROLOG,
    S.QUEUED: JobState.QUEUED,
    S.RUNNING: JobState.RUNNING,
}
"""What the user sees of a job whose successor has got its word, by how far that is."""


def due(case: Case, facts: SiteFacts | None, now: float) -> tuple[bool, float | None]:
    """Whether a successor is to be asked for now, and else when that is to be looked at again; None: when something
    happens. Not where the program's own time is over before its batch job's is."""
    a = case.current
    if a is None or a.segment is None or facts is None or a.state is not S.RUNNING or a.times.running is None:
        return False, None
    if case.job.wish is not Wish.RUN or a.why in MOVES or case.job.state is not JobState.RUNNING:
        return False, None
    later = [x for x in case.allocations if x.epoch > a.epoch]
    status = status_of(case.sight(a))
    if any(x.state not in OVER for x in later) or len(later) >= MOST or status is None:
        return False, None
    if status.phase is not Phase.EXECUTE:
        return False, None
    before = next((c.executed for c in case.checkpoints if c.id == a.restore), 0.0)
    over, spare = a.times.running + a.segment.walltime, min(SPARE, a.segment.walltime / 4)
    if now + parse_duration(case.job.spec.resources.walltime) - before - executed(status) <= over - spare:
        return False, None
    lead = min(LEAD + 1.5 * (facts.wait or 0.0), a.segment.walltime / 4)
    at = over - spare - lead
    return now >= at, at


def beside(case: Case) -> Job:
    """The job as one that asks for a place for its successor: where its checkpoint will be."""
    return replace(case.job, spec=msgspec.structs.replace(case.job.spec, site=case.newest.site))


class Succession(Suspension):
    """The rules. `choose`: as of `reconcile.plan`."""

    choose: Chooser

    def ask_ahead(self) -> None:
        """Of an attempt whose batch job will be over before its program is: have the next one asked for in time."""
        current = self.case.current
        now, at = due(self.case, self.sites.get(current.site) if current is not None else None, self.now)
        if at is not None and not now:
            self.wakes.append(at)
        if not now or self.job is not self.case.job:
            return
        choice = self.choose(beside(self.case), refusals(self.case, self.policy, self.now))
        if choice.site is None:
            self.wakes.append(min(choice.again or math.inf, self.now + LOOK))
            return
        allocation = self.attempt(
            choice.site, f"ahead of the end of attempt {self.case.newest.epoch}", choice.expected, ahead=True
        )
        self.job = replace(self.job, attempts=self.job.attempts + 1, version=self.case.job.version + 1)
        self.put(self.job)
        self.actions.append(Action(A.PROLOG, allocation))

    def successor(self) -> Allocation | None:
        """The one that waits for its word, or is on its way to where it does."""
        return next((a for a in reversed(self.case.allocations) if a.untold and a.state not in OVER), None)

    def surplus(self, a: Allocation) -> str:
        """Why an attempt that waits for its word will never get it; empty: it may."""
        current = self.case.current
        if not a.untold or current is None:
            return ""
        if a.why is Reason.HAND_OVER:
            return a.note  # that was decided, and may have been acted upon
        if self.job.state.final or self.job.wish is not Wish.RUN:
            return "nobody waits for it any more"
        if current.why in MOVES:
            return f"the job leaves {current.site}"
        if current.state in OVER and self.case.job.state is JobState.PENDING:
            found = self.onward()
            if found is None or found.site != a.site or found.state is not CheckpointState.KEPT:
                return "there is nothing at its site to go on from"
            if self.job.spec.site not in ("", a.site):
                return f"the job goes on at {self.job.spec.site}"
        return ""

    def hand_over(self, a: Allocation, sight: Observed) -> bool:
        """Whether its successor is there; then the intent to have its guest saved, and its pilot end."""
        s = self.successor()
        if s is None or s.state is not S.RUNNING or self.surplus(s):
            return False
        status = status_of(self.case.sight(s))
        if status is None or status.phase is not Phase.GATHER:
            return False
        if begins(sight) or ends(sight) or unsavable(a, sight, self.sites.get(a.site)) is not None:
            return False
        if a.saving is not None and a.saving.then == SAVE_HAND_OVER and self.now < a.saving.asked + AGAIN:
            self.wakes.append(a.saving.asked + AGAIN)
            return True
        number = a.saving.number + 1 if a.saving is not None else 1
        saving = Saving(number, SAVE_HAND_OVER, self.now, "its next batch job is there")
        self.put(replace(a, saving=saving, version=a.version + 1))
        words = f"attempt {s.epoch} is there: its guest is to be saved, to go on in that"
        self.event("allocation", a.id, a.state, a.state, Reason.HAND_OVER, words)
        return True

    def tell(self, s: Allocation) -> None:
        """Nothing of the attempt before can run any more: give its successor the word, the intent of it; what follows
        is the next step's."""
        if self.surplus(s):
            self.waiting = f"attempt {s.epoch}, which waited at {s.site}, has nothing to go on from, and ends first"
            return
        found = self.onward()
        if found is None or s.state not in AS_JOB or f"Allocation:{s.id}" in self.records:
            return
        self.put(replace(s, go=True, restore=found.id, version=s.version + 1))
        words = f"its word: it goes on {self.whence()}"
        self.event("allocation", s.id, s.state, s.state, Reason.HAND_OVER, words)
        self.change_job(AS_JOB[s.state], message=words)
