"""What becomes of a job that its user suspends, resumes or has saved, and how an attempt goes on from a checkpoint.

To suspend is an ending like any other: the guest is saved, its pilot ends, its sentinel says so; what follows waits for
that as after a failure. Nothing is given up before there is a checkpoint, and none is removed that may be needed.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace

from gridhypervisor.model.records import (
    ActionKind,
    Allocation,
    CheckpointRecord,
    CheckpointState,
    JobState,
    Saving,
    Wish,
)
from gridhypervisor.model.wire import SAVE_END, SAVE_GO_ON, SAVE_HAND_OVER, Reason
from gridhypervisor.planning.checkpoints import begins, ends, superfluous, unsavable
from gridhypervisor.planning.checkpoints import interval as checkpoint_interval
from gridhypervisor.planning.draft import OVER
from gridhypervisor.planning.fate import Fate
from gridhypervisor.planning.pausing import DOING, DONE, PAUSES, paused
from gridhypervisor.planning.world import Observed, Result

A = ActionKind


VERBS = {SAVE_END: "suspending", SAVE_GO_ON: "making a checkpoint", SAVE_HAND_OVER: "going on in another batch job"}
"""What is done when a guest is saved, by what is to become of it then."""


class Suspension(Fate):
    """The rules."""

    def hand_over(self, a: Allocation, sight: Observed) -> bool:
        """Whether another batch job is there in which it goes on; see `succession`."""
        return False

    def rests(self) -> bool:
        """Whether a job without an attempt is to stand still, or has only now been told to go on."""
        if self.job.wish is Wish.SUSPEND:
            self.change_job(JobState.SUSPENDED, message="suspended by the user")
            self.waiting = f"suspended: `ghv resume {self.job.id}` has it go on {self.whence()}"
            return True
        if self.job.state is JobState.SUSPENDED:
            self.change_job(JobState.PENDING, message=f"resumed by the user: it goes on {self.whence()}")
            return True
        return False

    def save(self, a: Allocation, sight: Observed) -> None:
        """Of an attempt that runs: have its guest saved where that is wanted, and take down what came of it."""
        saving = a.saving
        if saving is None or saving.answered:
            if self.job.wish is Wish.SUSPEND:
                self.suspend(a, sight)
            elif not self.hand_over(a, sight):
                if paused(sight):
                    self.waiting = (
                        f"paused: its guest stands still in its place; `ghv unpause {self.job.id}` has it go on"
                    )
                else:
                    self.save_at_times(a, sight)
            return
        status = sight.view.status if sight.view is not None else None
        saved = status.saved if status is not None else None
        if saved is None or saved.number < saving.number:
            self.want(a, sight, A.SAVE, after=saving.asked)  # what was done before was of an earlier one
            leaving = f"leaving for {saving.to}: its guest is being saved at {a.site}" if saving.to else ""
            self.waiting = self.waiting or leaving or DOING[saving.then].format(site=a.site)
        elif saving.then in PAUSES:
            self.put(replace(a, saving=replace(saving, answered=True), version=a.version + 1))
            words = f"it was not done: {saved.why}" if saved.why else DONE[saving.then]
            self.event("allocation", a.id, a.state, a.state, "", f"{saving.why}: {words}")
        elif saved.checkpoint is not None:
            self.keep(a, saved.checkpoint)
            if saving.then == SAVE_GO_ON:
                self.put(replace(a, saving=replace(saving, answered=True), version=a.version + 1))
            else:
                self.waiting = f"{_verb(saving)}: the guest is saved, and its pilot ends"
        else:
            self.put(replace(a, saving=replace(saving, answered=True), version=a.version + 1))
            self.unsaved(a, saving.then == SAVE_END, saved.why)

    def save_at_times(self, a: Allocation, sight: Observed) -> None:
        """Of a program that runs, where its user wants that: the intent, once the interval since the last is over."""
        interval = checkpoint_interval(self.job, a, self.checkpoints.values())
        if interval is None or begins(sight) or ends(sight) or unsavable(a, sight, self.sites.get(a.site)) is not None:
            return
        due = (a.saving.asked if a.saving is not None else a.times.running or self.now) + interval
        if self.now < due:
            self.wakes.append(due)
            return
        number = a.saving.number + 1 if a.saving is not None else 1
        saving = Saving(number, SAVE_GO_ON, self.now, f"every {interval:.0f} s, as the job asks")
        self.put(replace(a, saving=saving, version=a.version + 1))

    def suspend(self, a: Allocation, sight: Observed) -> None:
        """The intent, which the next step acts on; or the user's wish is undone, where it can never be fulfilled."""
        if (refusal := unsavable(a, sight, self.sites.get(a.site))) is not None:
            self.unsaved(a, True, "; ".join(refusal))
            return
        if begins(sight):
            self.waiting = "suspending: it is saved as soon as its program runs"
            return
        if ends(sight):
            self.waiting = "its program has ended, before it could be suspended"
            return
        number = a.saving.number + 1 if a.saving is not None else 1
        self.put(replace(a, saving=Saving(number, SAVE_END, self.now, "the user suspends it"), version=a.version + 1))
        self.event("allocation", a.id, a.state, a.state, Reason.SUSPENDED, "its guest is to be saved, and to end then")

    def unsaved(self, a: Allocation, end: bool, why: str) -> None:
        """The guest was not saved, and runs on."""
        words = f"its guest at {a.site} was not saved, and runs on: {why or 'its pilot did not say why'}"
        if not end:
            self.event("checkpoint", a.id, "", "", Reason.CHECKPOINT, words)
        elif self.job.wish is Wish.SUSPEND:
            # Nothing was given up, so nothing is tried for ever: the user may ask again.
            message, version = f"it was not suspended: {words}", self.case.job.version + 1
            self.job = replace(self.job, wish=Wish.RUN, message=message, version=version)
            self.put(self.job)
            self.event("job", self.job.id, self.job.state, self.job.state, Reason.CHECKPOINT, message)
        elif a.saving is not None and a.saving.to:
            message, version = f"it was not moved to {a.saving.to}: {words}", self.case.job.version + 1
            self.job = replace(self.job, message=message, version=version)
            self.put(self.job)
            self.event("job", self.job.id, self.job.state, self.job.state, Reason.CHECKPOINT, message)
        self.waiting = words

    def tidy(self) -> None:
        """Remove the checkpoints that nobody needs any more, of a job that has ended all."""
        if not self.checkpoints:
            return
        allocations = {
            a.pilot_job: a for a in (*self.case.allocations, *self.records.values()) if isinstance(a, Allocation)
        }
        for name in superfluous(self.job, allocations.values(), self.checkpoints.values(), OVER):
            self.change(self.checkpoints[name], CheckpointState.DOOMED, "")
        doomed = defaultdict[str, list[CheckpointRecord]](list)
        for checkpoint in self.checkpoints.values():
            if checkpoint.state is CheckpointState.DOOMED and checkpoint.site in self.sites:
                doomed[checkpoint.entry].append(checkpoint)
        words = self.waiting
        for entry, those in doomed.items():
            a = allocations[entry]
            sight = self.case.sight(a)
            outcome = sight.outcomes.get(A.DISCARD)
            gone = outcome.discarded if outcome is not None and outcome.result is Result.OK else ()
            left = [c for c in those if c.id not in gone]
            for checkpoint in those:
                if checkpoint.id in gone:
                    self.change(checkpoint, CheckpointState.GONE, "")
            if left:
                after = outcome.at if outcome is not None else 0.0
                self.want(a, sight, A.DISCARD, after=after, checkpoints=tuple(c.id for c in left))
        self.waiting = words


def _verb(saving: Saving) -> str:
    return f"leaving for {saving.to}" if saving.to else VERBS[saving.then]
