"""What becomes of a gang's member by its gang's word: when its attempt is to end, and what follows when it is over.

The word is `gangs`'s, and committed; here is what one member does by it. Until its gang has said what follows from a
failure, nothing does.
"""

from __future__ import annotations

from gridhypervisor.model.records import Allocation, AllocationState, JobState
from gridhypervisor.model.wire import Outcome, Reason
from gridhypervisor.planning.draft import OVER
from gridhypervisor.planning.fate import Fate

S = AllocationState


class Member(Fate):
    """The rules of a member."""

    def dismissed(self, a: Allocation) -> str:
        """Why its gang has given this attempt up; empty: it has not."""
        rounds = self.case.gang.rounds
        return rounds.why if self.ganged and a.epoch <= rounds.released else ""

    def undecided(self, a: Allocation) -> bool:
        """Whether its gang has yet to say what follows from its failure."""
        failed = a.exit is not None and a.exit.outcome is not Outcome.COMPLETED and not self.job.wish.ends
        return failed and self.ganged and a.epoch > self.case.gang.rounds.released

    def part(self, a: Allocation) -> None:
        """A member of a gang whose attempt is over goes on, or ends, as its gang does: see `gangs`."""
        if a.state not in OVER or a.state is S.ENDED:
            return
        rounds = self.case.gang.rounds
        if self.job.wish.ends:
            if a.exit is None:
                self.end(JobState.CANCELLED, Reason.CANCELLED, a.note or "cancelled", a=a)
            elif not self.cleaning(a):
                self.conclude(a)
        elif a.epoch <= rounds.released and not rounds.over:
            excluded = self.job.excluded
            if self.job.spec.retry.elsewhere and rounds.blame and rounds.blame not in excluded:
                excluded = (*excluded, rounds.blame)
            self.change_job(JobState.PENDING, reason=Reason.GANG, excluded=excluded, message=rounds.why)
        elif self.cleaning(a):
            pass
        elif a.epoch <= rounds.released and (a.exit is None or a.exit.reason is Reason.CANCELLED):
            hint = f"`ghv list {self.job.group}` shows how each member ended; mend that, and submit it again"
            self.end(JobState.FAILED, a.why or Reason.GANG, rounds.why, hint, a=a)
        elif a.epoch <= rounds.released or self.case.gang.complete:
            self.conclude(a)
        else:
            self.waiting = "it has ended, and waits for the others of its gang"
