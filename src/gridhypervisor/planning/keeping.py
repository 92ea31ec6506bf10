"""What a step knows of the job's checkpoints: those that it learns of, what becomes of each, and where the job goes on.

Which of them are of use is `checkpoints`'s to say; when they are made, `suspension`'s.
"""

from __future__ import annotations

from dataclasses import replace

from gridhypervisor.model.records import Allocation, CheckpointRecord, CheckpointState, CopyState
from gridhypervisor.model.wire import Checkpoint, ExitRecord, Reason
from gridhypervisor.planning.checkpoints import onward
from gridhypervisor.planning.draft import Draft

NOT_YET = "not copied yet: "
"""How the note of a checkpoint begins that cannot be copied, as long as that is so."""


class Keeping(Draft):
    """A draft that keeps account of checkpoints."""

    def onward(self) -> CheckpointRecord | None:
        """The checkpoint from which the next attempt goes on, if there is one."""
        known = [r for r in self.records.values() if isinstance(r, Allocation)]
        allocations = {a.id: a for a in (*self.case.allocations, *known)}
        return onward(self.job, tuple(allocations.values()), self.checkpoints.values(), self.sites)

    def saved(self, a: Allocation | None = None) -> str:
        """Before the words for what a job waits for: that its guest is kept meanwhile, where it is. `a`: an attempt
        that waits to go on from it; None: the next one."""
        found = self.onward() if a is None else self.checkpoints.get(a.restore)
        if found is None:
            return ""
        return f"its guest is saved at {found.site}, after {found.executed:.0f} s of the program, and waits: "

    def whence(self) -> str:
        """The same in words, with what is lost where there is none any more."""
        if (found := self.onward()) is not None:
            where = f"made at {found.site}, by its copy here" if found.copy is CopyState.KEPT else f"at {found.site}"
            return f"from checkpoint {found.id} {where}, after {found.executed:.0f} s of the program"
        lost = max((c.executed for c in self.checkpoints.values()), default=0.0)
        return "at the beginning" + (f": {lost:.0f} s of the program are lost" if lost else "")

    def keep(self, a: Allocation, checkpoint: Checkpoint) -> None:
        """Know a checkpoint from now on."""
        if checkpoint.id in self.checkpoints or checkpoint.entry != a.pilot_job:
            return
        note = a.saving.why if a.saving is not None else ""
        record = CheckpointRecord(
            id=checkpoint.id,
            owner=a.owner,
            project=a.project,
            job=a.job,
            entry=a.pilot_job,
            site=a.site,
            bytes=checkpoint.size,
            executed=checkpoint.executed,
            made=self.now,
            since=self.now,
            checkpoint=checkpoint,
            note=note,
            version=1,
        )
        self.put(record)
        words = f"{checkpoint.size} bytes at {a.site}, after {checkpoint.executed:.0f} s of the program"
        self.event("checkpoint", checkpoint.id, "", record.state, "", words)

    def learn(self, a: Allocation, exit: ExitRecord) -> None:
        """What the sentinel of an attempt says of checkpoints: the one that it left, or the one that it could not use.

        To be written down with the attempt's end.
        """
        if exit.checkpoint is not None:
            self.keep(a, exit.checkpoint)
        used = self.checkpoints.get(a.restore)
        if exit.reason is not Reason.CHECKPOINT or used is None:
            return
        if a.copied:
            self.change_copy(used, CopyState.REFUSED, exit.message)
        elif used.state is CheckpointState.KEPT:
            self.change(used, CheckpointState.REFUSED, exit.message)

    def change(self, checkpoint: CheckpointRecord, state: CheckpointState, note: str) -> None:
        """Of one that is known: what becomes of it, which may come to more than one change in a step."""
        self._revise(replace(checkpoint, state=state, note=note or checkpoint.note))
        self.event("checkpoint", checkpoint.id, checkpoint.state, state, "", note)

    def change_copy(self, checkpoint: CheckpointRecord, copy: CopyState, note: str) -> None:
        """The same of its copy on the service's machine."""
        # What kept it from being made is over once it is there.
        kept = "" if copy is CopyState.KEPT and checkpoint.note.startswith(NOT_YET) else checkpoint.note
        self._revise(replace(checkpoint, copy=copy, note=note or kept))
        words = f"its copy: {copy}" + (f": {note}" if note else "")
        self.event("checkpoint", checkpoint.id, checkpoint.state, checkpoint.state, "", words)

    def _revise(self, checkpoint: CheckpointRecord) -> None:
        version = next((c.version for c in self.case.checkpoints if c.id == checkpoint.id), 0) + 1
        self.put(replace(checkpoint, version=version))
