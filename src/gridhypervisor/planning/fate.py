"""What becomes of an attempt, and of the job by it: taken, revoked, given up, ended; another attempt, or the job's end.

When which of these is called for is `reconcile`'s to say; here is what each one means, once for all states from which
it can come.
"""

from __future__ import annotations

from collections.abc import Mapping

from gridhypervisor.model.prediction import Expected
from gridhypervisor.model.records import (
    ActionKind,
    Allocation,
    AllocationState,
    JobState,
    PilotJob,
    Times,
    Wish,
)
from gridhypervisor.model.replacing import replace
from gridhypervisor.model.wire import MOVES, RETRYABLE, ExitRecord, Outcome, Reason
from gridhypervisor.planning.checkpoints import unknown
from gridhypervisor.planning.draft import Action
from gridhypervisor.planning.keeping import Keeping
from gridhypervisor.planning.segments import segment, walltime_of
from gridhypervisor.planning.world import Case, Observed, Policy, Result
from gridhypervisor.planning.world import Outcome as ActionOutcome

S = AllocationState
A = ActionKind

TURNED_AWAY: Mapping[Reason, str] = {
    Reason.LENDER: "the lender of {site} refused it",
    Reason.BUSY: "{site} had too much to do to take it",
}
"""Why a site did not take a job at all, which is no failure of an attempt, and the words for it."""

STOPS = frozenset({Reason.CANCELLED, Reason.EVICTED, Reason.MOVED, Reason.SUSPENDED, Reason.HAND_OVER})
"""How a run ends that somebody wanted to end."""


SAVED = frozenset({Reason.SUSPENDED, Reason.HAND_OVER})
"""How a run ends whose guest was saved, to go on."""

UNBLAMED = frozenset({*SAVED, Reason.CHECKPOINT})
"""Ends of an attempt for which another one follows at the same site."""


def refusals(case: Case, policy: Policy, now: float) -> dict[str, float]:
    """Sites whose lender refused it a moment ago, though there seemed to be room (another was faster, mostly), and
    until when it does not ask there again."""
    until = {a.site: a.times.since + policy.refused_pause for a in case.allocations if a.why is Reason.LENDER}
    return {site: at for site, at in until.items() if now < at}


class Fate(Keeping):
    """The ways on for an attempt."""

    @property
    def ganged(self) -> bool:
        """Whether it is a member of a gang, which says when it begins, and what follows from a failure."""
        return self.job.spec.gang is not None

    def attempt(self, site: str, words: str, expected: Expected | None, *, ahead: bool = False) -> Allocation:
        """Another attempt, at this site. `expected`: what it is believed to take; `ahead`: it waits for its word."""
        epoch = self.case.vm.epoch + 1
        name = f"{self.installation}-{self.job.id}-{epoch}"
        restore = self.onward()
        allocation = Allocation(
            id=f"{self.case.vm.id}.{epoch}",
            owner=self.job.owner,
            project=self.job.project,
            job=self.job.id,
            vm=self.case.vm.id,
            epoch=epoch,
            pilot_job=name,
            site=site,
            times=Times(planned=self.now, since=self.now),
            restore=restore.id if restore is not None and not ahead else "",
            segment=segment(self.job.spec, self.sites[site], restore.executed if restore is not None else 0.0),
            ahead=ahead,
            expected=expected,
            version=1,
        )
        self.put(replace(self.case.vm, epoch=epoch, version=self.case.vm.version + 1))
        self.put(PilotJob(name=name, owner=self.job.owner, project=self.job.project, site=site, version=1))
        self.put(allocation)
        self.event("allocation", allocation.id, "", S.PLANNED, message=f"at {site}: {words}")
        return allocation

    def owner_decides(self, a: Allocation, sight: Observed) -> bool:
        """The owner file has the last word on who may act for an allocation, where it can be read."""
        by = sight.view.owner.by if sight.view is not None and sight.view.owner is not None else ""
        if by not in ("pilot", "controller"):
            return False
        if by == "pilot":
            self.taken_by_pilot(a, sight.host)
        elif a.state is S.REVOKING:
            self.give_up(a, a.why or Reason.LOST, a.note)
        else:
            # Revoked by a controller that died before it wrote so down.
            self.revoke(a, Reason.LOST, "the controller had revoked it")
        return True

    def taken_by_pilot(self, a: Allocation, host: str = "") -> None:
        if a.why in (Reason.WAITED, Reason.SUSPENDED):
            a = replace(a, why=None, note="")  # its wait is over after all; or it has become a guest that can be saved
        self.move(a, S.RUNNING, message=f"in the batch job of {host}" if host else "")
        if self.decides(a):
            self.change_job(JobState.RUNNING)

    def depart(self, a: Allocation, why: Reason, words: str) -> None:
        """It is to leave its site: the intent, which the next step acts on. See `planning.moves` for when."""
        self.put(replace(a, why=why, note=words, version=a.version + 1))
        self.event("allocation", a.id, a.state, a.state, why, words)

    def finish(self, a: Allocation, exit: ExitRecord) -> None:
        self.learn(a, exit)
        self.move(a, S.ENDED, exit=exit, reason=exit.reason, message=exit.message)
        if self.decides(a):
            self.change_job(JobState.EPILOG)

    def strand(self, a: Allocation, outcome: ActionOutcome) -> None:
        """The results cannot come home: the job ends without them. They stay at the site until somebody asks."""
        fetch = f"`ghv recover {self.job.id}` fetches them from {a.site}, or `ghv delete` drops them"
        hint = f"{outcome.hint}; then {fetch}" if outcome.hint else fetch
        self.waiting = outcome.message
        code = a.exit.exit_code if a.exit is not None else None
        if not self.job.wish.ends:
            self.end(JobState.FAILED, Reason.STAGING, outcome.message, hint, code, a)
        else:
            message = f"cancelled before its results came home: {outcome.message}"
            self.end(JobState.CANCELLED, Reason.CANCELLED, message, hint, code, a)

    def settle(self, a: Allocation) -> None:
        """The results are home: another attempt, or the job waits for the clean-up to end."""
        if not self.decides(a):
            return
        if self.job.state.final:
            self.job = replace(
                self.job, hint="its results are home now, and the site is clean", version=self.case.job.version + 1
            )
            self.put(self.job)
            return
        retry = self.retry_reason(a)
        if retry is not None and not self.ganged:
            self.try_again(a, retry)

    def conclude(self, a: Allocation) -> None:
        """The job ends as its last attempt did."""
        exit = a.exit
        assert exit is not None
        match exit.outcome:
            case Outcome.COMPLETED:
                self.end(JobState.DONE, exit.reason, exit.message, exit.hint, exit.exit_code, a)
            case _ if exit.reason in STOPS and self.job.wish.ends:
                self.end(JobState.CANCELLED, exit.reason, exit.message, exit.hint, exit.exit_code, a)
            case _:
                self.end(JobState.FAILED, exit.reason, exit.message, exit.hint, exit.exit_code, a)

    def cleaning(self, a: Allocation) -> bool:
        """Whether its end still waits for the site's clean-up."""
        over = a.times.since + self.policy.clean_patience
        if a.state is not S.COLLECTED or self.now >= over:
            return False
        self.wakes.append(over)
        return True

    def clean(self, a: Allocation, sight: Observed) -> Allocation | None:
        outcome = sight.outcomes.get(A.CLEAN)
        if outcome is not None and outcome.result is Result.OK:
            return self.move(a, S.CLEANED, message=outcome.message)
        self.want(a, sight, A.CLEAN, checkpoints=unknown(a, self.checkpoints.values()))
        return None

    def revoke(self, a: Allocation, why: Reason, note: str, hint: str = "") -> None:
        moved = self.move(a, S.REVOKING, why=why, note=f"{note}; {hint}" if hint else note, reason=why, message=note)
        self.actions.append(Action(A.REVOKE, moved, why=note))

    def give_up(self, a: Allocation, why: Reason, note: str, hint: str = "", to: AllocationState = S.REVOKED) -> None:
        """The allocation can never run. What becomes of the job depends on why."""
        moved = self.move(a, to, why=why, note=note, reason=why, message=note)
        if not self.decides(a) or self.ganged:
            return  # of a gang, `member` says
        if why is Reason.CANCELLED or self.job.wish.ends:
            self.end(JobState.CANCELLED, Reason.CANCELLED, note, hint, a=moved)
        elif (
            why is Reason.SUSPENDED
            or why in MOVES
            or (why in RETRYABLE and self.spent(moved) <= self.job.spec.retry.times)
        ):
            self.try_again(moved, why)
        else:
            self.end(JobState.FAILED, why, note, hint, a=moved)

    def withdraw(self, a: Allocation, note: str) -> None:
        """Nothing was submitted, and nothing shall be: the job looks for another place, and has lost nothing by it."""
        self.move(a, S.REVOKED, note=note, message=note)
        if self.decides(a) and not self.ganged:
            self.change_job(JobState.PENDING, message=note)

    def retry_reason(self, a: Allocation) -> Reason | None:
        """Why this attempt's end calls for another, if it does."""
        exit = a.exit
        if exit is None or exit.outcome is Outcome.COMPLETED or self.job.wish.ends or self.job.state.final:
            return None
        if self.ganged:
            return None if self.case.gang.rounds.over else exit.reason
        if a.why in MOVES and exit.reason in STOPS | RETRYABLE:
            return a.why
        if exit.reason in SAVED:
            return exit.reason
        if exit.reason in RETRYABLE and self.spent(a) <= self.job.spec.retry.times:
            return exit.reason
        return None

    def spent(self, last: Allocation) -> int:
        """Attempts that count against the job's retries, `last` included.

        What a lender refused at the door is none, nor what a site had too much to do for, nor what was saved to go on,
        or could not go on from a checkpoint (there are few of these, and each is tried once), nor what was moved to
        another, nor what was withdrawn before it was submitted (without a `why`). A submission of which nobody ever
        heard again (this controller died in it, mostly), or that waited until its lender no longer let it start, is
        nobody's failure; but a site that does so with everything that it is given must not go on for ever.
        """
        known = [last if a.id == last.id else a for a in self.case.allocations]
        attempts = [
            a
            for a in known
            if a.why not in TURNED_AWAY
            and a.why not in MOVES
            and a.why not in SAVED
            and not a.untold
            and (a.exit is None or a.exit.reason not in UNBLAMED)
            and (a.state not in (S.REVOKED, S.CLEANED) or a.why is not None or a.exit is not None)
        ]
        lost = sum(
            (a.why is Reason.LOST and a.exit is None and a.times.queued is None and a.times.running is None)
            or (a.exit is not None and a.exit.reason is Reason.LENDER)
            for a in attempts
        )
        return len(attempts) - min(lost, self.policy.free_losses)

    def try_again(self, a: Allocation, why: Reason) -> None:
        excluded, failed = self.job.excluded, why not in TURNED_AWAY and why not in MOVES and why not in UNBLAMED
        if self.job.spec.retry.elsewhere and a.site not in excluded and failed:
            excluded = (*excluded, a.site)
        if why in MOVES:
            words = f"it leaves {a.site}: {a.note}"
        elif why is Reason.SUSPENDED:
            to = a.saving.to if a.saving is not None else ""
            words = f"{f'it leaves {a.site} for {to}' if to else 'suspended'}: it goes on {self.whence()}"
        elif why is Reason.HAND_OVER:
            words = f"its batch job at {a.site} was nearly over: it goes on in another, {self.whence()}"
        elif why is Reason.CHECKPOINT and a.exit is not None:
            words = f"attempt {a.epoch} could not go on from {a.restore}: {a.exit.message}; it goes on {self.whence()}"
        else:
            words = TURNED_AWAY.get(why, f"attempt {a.epoch} failed: {why}").format(site=a.site)
            words += f"; it goes on {self.whence()}" if self.onward() is not None else ""
        state = JobState.SUSPENDED if self.job.wish is Wish.SUSPEND else JobState.PENDING
        self.change_job(state, reason=why, excluded=excluded, message=words)

    def fence(self, a: Allocation) -> float:
        """When the guest of an allocation that a pilot took is surely over, whatever anybody says."""
        return (a.times.running or a.times.since) + walltime_of(self.job.spec, a) + self.policy.fence_margin
