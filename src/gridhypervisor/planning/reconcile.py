"""Moves one job along: given its records, what was observed, and the time, what to write and what to do.

The rules are those of docs/never-two-guests.md. Three hold throughout: an effect is asked for only when the record that
warrants it is committed (the loop acts after the commit); SUBMIT is asked for exactly once per allocation, in the step
that commits SUBMITTING, so a controller that finds SUBMITTING in the store never submits again; and a new allocation is
made only when every older one is revoked, fenced, or ended by its own sentinel or by the batch system's word.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import assert_never

from gridhypervisor.model.batch import BatchState
from gridhypervisor.model.records import (
    ActionKind,
    Allocation,
    AllocationState,
    CopyState,
    JobState,
    Wish,
)
from gridhypervisor.model.replacing import replace
from gridhypervisor.model.wire import MOVES, ExitRecord, Outcome, Phase, Reason, canonical
from gridhypervisor.planning.draft import OVER, Action, JobPlan
from gridhypervisor.planning.fate import refusals
from gridhypervisor.planning.looking import next_look
from gridhypervisor.planning.member import Member
from gridhypervisor.planning.moves import left
from gridhypervisor.planning.placement import Chooser, place
from gridhypervisor.planning.segments import walltime_of
from gridhypervisor.planning.silence import Silence
from gridhypervisor.planning.succession import Succession, beside, due
from gridhypervisor.planning.suiting import Seeker
from gridhypervisor.planning.travel import Travel, awaited, wanting
from gridhypervisor.planning.world import Absent, Case, Observed, Policy, Result, Seen, SiteFacts, Unknown

S = AllocationState
A = ActionKind

AT_REST = frozenset({JobState.PENDING, JobState.SUSPENDED})
"""States of a job that has no attempt under way."""

SUSPENDED = Reason.SUSPENDED, "suspended before it ran"
"""What an attempt that no pilot is known to have is given up for, and the words for it."""

START_FAILURES: Mapping[int, tuple[Reason, str]] = {
    78: (Reason.BUNDLE, "the bundle at the site is damaged (exit code 78); it is placed anew at the next attempt"),
    64: (Reason.BUNDLE, "the bundle's start script was called wrongly (exit code 64); see `ghv logs --stream batch`"),
    69: (
        Reason.RELAY,
        "the node did not reach the relay (exit code 69): a firewall before the site's `listen`, or a service that was "
        "away for ten minutes",
    ),
    72: (Reason.LOST, "the node has no program to fetch the bundle with, or none to verify it (exit code 72)"),
    73: (Reason.NODE_DISK, "the node's scratch is full or cannot be written (exit code 73)"),
    77: (Reason.BUNDLE, "the node's scratch is not ours to use (exit code 77); set another with `scratch`"),
    126: (Reason.BUNDLE, "the node's scratch forbids running programs (exit code 126); set another with `scratch`"),
}
"""What the bundle's start script says by its exit code, which is all that it can leave behind."""


def plan(
    case: Case,
    sites: Mapping[str, SiteFacts],
    policy: Policy,
    now: float,
    installation: str,
    choose: Chooser | None = None,
) -> JobPlan:
    """The next step of one job. Pure; called again after each commit until it asks for nothing new.

    `choose` says which site it gets, where it wants one: others may want it too. Without, it is as if none did.
    """
    step = _Step(case, sites, policy, now, installation)
    step.run(choose or (lambda job, refused: place(job, sites, refused)))
    return step.result()


def seeker(case: Case, sites: Mapping[str, SiteFacts], now: float, refused: Iterable[str] = ()) -> Seeker | None:
    """The job as it asks for a site: for its next attempt, or for the successor of one that runs; None: for neither."""
    if seeks(case):
        awaits = case.checkpoints and awaited(case.job, case.allocations, case.checkpoints, sites)
        return wanting(case, sites, now, refused) if not awaits else None
    current = case.current
    if current is None or not due(case, sites.get(current.site), now)[0]:
        return None
    return Seeker(beside(case), frozenset(refused), left(case, now)[0])


def seeks(case: Case) -> bool:
    """Whether the job wants a site: none of its attempts could still run, and it is to run."""
    return (
        case.job.state is JobState.PENDING
        and case.job.wish is Wish.RUN
        and not case.held
        and not case.futile
        and all(a.state in OVER for a in case.allocations)
    )


def _phase(sight: Observed) -> Phase | None:
    """Where the pilot said last that it is."""
    return sight.view.status.phase if sight.view is not None and sight.view.status is not None else None


class _Step(Silence, Member, Succession, Travel):
    """One call of `plan`: the rules."""

    def run(self, choose: Chooser) -> None:
        newest, self.choose = self.case.current, choose
        for allocation in self.case.allocations:
            if allocation.state is S.CLEANED:
                continue
            if allocation.site in self.sites:
                self.allocation(allocation)
            else:
                self.abandoned(allocation)
        self.tidy()
        self.travel()
        if self.job.state.final:
            left = [a.site for a in self.case.allocations if a.state is not S.CLEANED]
            left += [c.site for c in self.checkpoints.values() if not c.over]
            copies = any(c.copy is not CopyState.NONE for c in self.checkpoints.values())
            self.delete = self.job.wish is Wish.DELETE and not copies and not any(site in self.sites for site in left)
            return
        if newest is not None and self.ganged and self.job.state is not JobState.PENDING:
            self.part(newest)
        elif newest is None or newest.state is S.CLEANED or (newest.state in OVER and self.job.state in AT_REST):
            self.start()

    def start(self) -> None:
        """The job has no allocation that could still run: begin one, or end the job."""
        if self.job.wish.ends:
            self.end(JobState.CANCELLED, Reason.CANCELLED, "cancelled before it was given to a site")
            return
        if self.rests():
            return
        if (successor := self.successor()) is not None and all(
            a.untold or a.state in OVER for a in self.case.allocations
        ):
            self.tell(successor)
        if any(a.state not in OVER for a in self.case.allocations):
            return
        if self.case.futile:
            hint = "submit what it was to run after again, and then this"
            self.end(JobState.FAILED, Reason.FUTILE, self.case.futile, hint)
            return
        if self.case.held:
            self.waiting = self.case.held
            return
        if self.awaits_copy():
            return
        refused = refusals(self.case, self.policy, self.now)
        self.wakes.extend(refused.values())
        _, until = left(self.case, self.now)
        if until is not None:
            # Whether another site will do, may change any time.
            self.wakes.append(min(until, next_look(self.job.id, self.now)))
        choice = self.choose(wanting(self.case, self.sites, self.now).job, refused)
        if choice.site is None:
            self.waiting, self.spurned = f"{self.saved()}{choice.summary}", choice.spurned
            if choice.again is not None:
                self.wakes.append(choice.again)
            return
        whence = f"; it goes on {self.whence()}" if self.checkpoints else ""
        allocation = self.attempt(choice.site, f"{choice.summary}{whence}", choice.expected)
        self.change_job(JobState.PROLOG, attempts=self.job.attempts + 1)
        self.actions.append(Action(A.PROLOG, allocation))

    def allocation(self, a: Allocation) -> None:
        sight, words = self.case.sight(a), self.waiting
        self.learn_batch_id(a, sight)
        match a.state:
            case S.PLANNED:
                self.planned(a, sight)
            case S.SUBMITTING | S.QUEUED:
                self.in_queue(a, sight)
            case S.RUNNING:
                self.running(a, sight)
            case S.FENCING:
                self.fencing(a, sight)
            case S.FENCED:
                self.fenced(a, sight)
            case S.REVOKING:
                self.revoking(a, sight)
            case S.REVOKED:
                self.revoked(a, sight)
            case S.ENDED:
                self.ended(a, sight)
            case S.COLLECTED:
                self.collected(a, sight)
            case S.CLEANED:
                pass
            case _:
                assert_never(a.state)
        if a.untold:
            self.waiting = words  # what it waits for is not what the job does

    def abandoned(self, a: Allocation) -> None:
        """The user removed its site, gone for good. Its record stays as it is: were the site added again, it goes on.

        Nobody can say any more whether it runs, so no other attempt is made: the job ends here, by the user's word.
        """
        if a.state is S.PLANNED:
            self.give_up(a, Reason.LOST, f"{a.site} was removed before it was given this job")
        elif not self.decides(a) or self.job.state in AT_REST:
            pass
        elif self.ganged and a.state in OVER and a.state is not S.ENDED:
            pass  # `member` says
        elif a.state is S.COLLECTED:
            self.conclude(a)
        elif self.job.wish.ends:
            self.end(JobState.CANCELLED, Reason.CANCELLED, f"cancelled; {a.site}, where it was, has been removed", a=a)
        elif a.state is S.ENDED:
            self.end(JobState.FAILED, Reason.STAGING, f"{a.site} was removed, and its results were still there", a=a)
        else:
            self.end(
                JobState.FAILED,
                Reason.LOST,
                f"{a.site} was removed while it was {a.state} there: it may still run, for its walltime at most",
                "submit it again if it may run twice; if the site comes back, `ghv site add` it to have it cleaned",
                a=a,
            )

    def learn_batch_id(self, a: Allocation, sight: Observed) -> None:
        """Write down the batch job's id as soon as anybody says it, in whatever state: a cancel may need it."""
        pilot_job = self.case.pilot_jobs.get(a.pilot_job)
        if pilot_job is None or pilot_job.batch_id:
            return
        submit = sight.outcomes.get(A.SUBMIT)
        batch_id = sight.batch.job.id if isinstance(sight.batch, Seen) else submit.batch_id if submit else ""
        if batch_id:
            self.put(replace(pilot_job, batch_id=batch_id, version=pilot_job.version + 1))

    def planned(self, a: Allocation, sight: Observed) -> None:
        if why := self.surplus(a):
            self.give_up(a, Reason.HAND_OVER, why)
            return
        if self.job.wish is not Wish.RUN:
            suspended = self.job.wish is Wish.SUSPEND
            self.give_up(a, *(SUSPENDED if suspended else (Reason.CANCELLED, "cancelled before it was submitted")))
            return
        if a.why is Reason.MOVED:
            self.give_up(a, Reason.MOVED, a.note)
            return
        if why := self.dismissed(a):
            self.give_up(a, Reason.GANG, why)
            return
        site = self.sites[a.site]
        if site.draining:
            self.withdraw(a, f"{a.site} is draining, and had not been given it yet")
            return
        outcome = sight.outcomes.get(A.PROLOG)
        if outcome is not None and outcome.result is Result.REFUSED and outcome.reason is Reason.CHECKPOINT:
            self.unsound(a, outcome)
        elif outcome is not None and outcome.result is Result.REFUSED:
            self.give_up(a, outcome.reason or Reason.STAGING, outcome.message, outcome.hint)
        elif outcome is not None and outcome.result is Result.OK:
            moved = self.move(a, S.SUBMITTING)
            self.actions.append(Action(A.SUBMIT, moved))
        else:
            self.want(a, sight, A.PROLOG)

    def in_queue(self, a: Allocation, sight: Observed) -> None:
        if self.owner_decides(a, sight):
            return
        submit = sight.outcomes.get(A.SUBMIT)
        busy = A.SUBMIT in sight.busy
        if (why := self.surplus(a)) and not busy:
            self.revoke(a, Reason.HAND_OVER, why)
            return
        if self.job.wish is not Wish.RUN and not busy:
            suspended = self.job.wish is Wish.SUSPEND
            self.revoke(a, *(SUSPENDED if suspended else (Reason.CANCELLED, "cancelled by the user")))
            return
        if a.why is Reason.MOVED and not busy:
            self.revoke(a, Reason.MOVED, a.note)
            return
        if (why := self.dismissed(a)) and not busy:
            self.revoke(a, Reason.GANG, why)
            return
        match sight.batch:
            case Seen(job) if job.state in (BatchState.ENDED, BatchState.NODE_LOST):
                if not busy:
                    why, words = START_FAILURES.get(job.code or 0, (Reason.LOST, f"{job.reason or job.state}"))
                    told = f"{a.site} ended batch job {job.id} before the pilot began: {words}"
                    self.revoke(a, why, told, "" if job.code else "ask the site's administrators why")
                return
            case Seen(job):
                if a.state is S.SUBMITTING:
                    self.queued(a, job.id)
                elif (away := self.wants_away(a)) is not None:
                    self.revoke(a, away, self.case.stay.words)
                self.waiting = f"{self.saved(a)}{job.state} at {a.site}" + (f": {job.reason}" if job.reason else "")
                if self.case.stay.words:
                    self.waiting += f"; {self.case.stay.words}"
                return
            case Absent(_, as_of, times):
                asked = max(a.times.submitting or a.times.planned, submit.at if submit is not None else 0.0)
                if times >= 2 and as_of > asked + self.lag(a.site) and not busy:
                    self.revoke(a, Reason.LOST, f"{a.site} does not list it (asked {times} times)")
                    return
            case Unknown():
                pass
        if submit is not None and submit.result is Result.REFUSED:
            self.revoke(a, submit.reason or Reason.SUBMIT, submit.message, submit.hint)
        elif submit is not None and submit.result is Result.OK and a.state is S.SUBMITTING:
            self.queued(a, submit.batch_id)
        elif a.state is S.SUBMITTING and not busy:
            self.waiting = f"learning from {a.site} whether it accepted the job"

    def wants_away(self, a: Allocation) -> Reason | None:
        """Why it should leave its site, as it was weighed just now, if it should, and is not to already."""
        if self.case.stay.again is not None:
            self.wakes.append(self.case.stay.again)
        may = self.job.wish is Wish.RUN and a.why not in MOVES and self.decides(a)
        return self.case.stay.leave if may else None

    def queued(self, a: Allocation, batch_id: str) -> None:
        self.move(a, S.QUEUED, message=f"batch job {batch_id}" if batch_id else "")
        if self.decides(a):
            self.change_job(JobState.QUEUED)

    def running(self, a: Allocation, sight: Observed) -> None:
        view = sight.view
        self.spare(a, sight)
        if view is not None and view.exit is not None and view.owner is not None:
            self.finish(a, view.exit)
            return
        if (away := self.wants_away(a)) is not None:
            self.depart(a, away, self.case.stay.words)
            return
        if (why := self.surplus(a)) and a.why is None:
            self.depart(a, Reason.HAND_OVER, why)
            return
        gang, dismissed = self.case.gang, self.dismissed(a) or self.surplus(a)
        if self.job.wish.ends or a.why in MOVES or dismissed:
            moved = dismissed or f"{Reason.MOVED}: {a.note}"
            asked = moved if not self.job.wish.ends else "cancelled by the user"
            request = self.want(a, sight, A.REQUEST_CANCEL, why=asked)
            if request is not None:
                # A pilot that goes on beating is bringing the outputs out, which takes as long as it takes.
                patience = max(request, sight.news_at) + self.policy.stop_patience + self.spool_lag(a.site)
                patience = min(patience, max(request, self.fence(a)))
                if sight.host:
                    pass  # its own batch job is not where it runs; its watchdog ends it at its walltime
                elif self.now >= patience:
                    self.want(a, sight, A.BATCH_CANCEL, why="the pilot has not stopped, and says nothing any more")
                else:
                    self.wakes.append(patience)
            self.waiting = "stopping: the guest shuts down, outputs so far come back"
            if not self.job.wish.ends and not dismissed:
                self.waiting = f"leaving {a.site}: the guest shuts down, and the job begins anew elsewhere: {a.note}"
        elif gang.rounds.begun == a.epoch and gang.roster and _phase(sight) is Phase.GATHER:
            self.want(a, sight, A.BEGIN, members=gang.roster)
        elif a.go and _phase(sight) is Phase.GATHER:
            self.want(a, sight, A.BEGIN, members=canonical(self.checkpoints[a.restore].checkpoint).decode())
        elif not a.untold:
            self.save(a, sight)
            self.ask_ahead()
        gone = self.gone(a, sight)
        if gone is None:
            self.mind_silence(a, sight)
            self.waiting = self.waiting or self.case.stay.words
            return
        since, words = gone
        # The sentinel may still be on its way through the site's file system: one more look after the lag.
        settled = since + self.spool_lag(a.site)
        if self.now <= settled:
            self.wakes.append(settled + 0.01)
            self.waiting = f"{words}; waiting for its last word"
            return
        if sight.view_at <= settled and self.want(a, sight, A.LOOK, after=settled) is None:
            return
        owner = view.owner if view is not None else None
        self.finish(
            a,
            ExitRecord(
                entry=a.pilot_job,
                epoch=a.epoch,
                claim=owner.claim if owner else "",
                outcome=Outcome.FAILED,
                reason=Reason.LOST,
                message=f"run {a.id} at {a.site}: {words}, and the pilot left no exit record",
                hint="the node or the batch system ended it by force; see `ghv logs --stream pilot` and the site's own "
                "record of the batch job",
                node=owner.node if owner else "",
            ),
        )

    def revoking(self, a: Allocation, sight: Observed) -> None:
        if self.owner_decides(a, sight):
            return
        outcome = sight.outcomes.get(A.REVOKE)
        if outcome is not None and outcome.owner is not None:
            if outcome.owner.by == "pilot":
                self.taken_by_pilot(a, outcome.owner.host)
            else:
                self.give_up(a, a.why or Reason.LOST, a.note)
            return
        if sight.unreadable_at is not None:
            # Whoever took it took it before we saw it, and nobody takes it again: his guest ends by its walltime.
            over = sight.unreadable_at + walltime_of(self.job.spec, a) + self.policy.fence_margin
            if self.now >= over:
                words = f"its `owner` at {a.site} cannot be read, and its walltime is over"
                self.give_up(a, Reason.LOST, words, "see that the file system of the site's workdir is sound")
                return
            self.wakes.append(over)
            self.waiting = f"its `owner` at {a.site} cannot be read; waiting until its walltime is surely over"
        self.want(a, sight, A.REVOKE, why=a.note)
        self.waiting = self.waiting or f"waiting for {a.site} to confirm that it will not run"

    def revoked(self, a: Allocation, sight: Observed) -> None:
        """Nothing of it can run. Its batch job, if one surfaces, is cancelled; its entry is removed."""
        if A.PROLOG in sight.busy:
            return
        over = (BatchState.ENDED, BatchState.ENDING, BatchState.NODE_LOST)
        if isinstance(sight.batch, Seen) and sight.batch.job.state not in over:
            self.want(a, sight, A.BATCH_CANCEL, why="revoked")
            return
        if a.times.submitting is not None and isinstance(sight.batch, Unknown):
            return  # the next listing says whether there is a batch job to cancel
        self.clean(a, sight)

    def ended(self, a: Allocation, sight: Observed) -> None:
        if self.job.wish is Wish.DELETE:
            self.move(a, S.COLLECTED, message="results discarded: the job is being deleted")
            return
        if self.undecided(a):
            return
        outcome = sight.outcomes.get(A.COLLECT)
        if outcome is not None and outcome.result is Result.OK:
            self.settle(self.move(a, S.COLLECTED))
            return
        if outcome is not None and a.untold:
            self.move(a, S.COLLECTED, message="it had nothing that anybody needs")
            return
        if outcome is not None:
            refused, tried = outcome.result is Result.REFUSED, outcome.tries >= self.policy.collect_tries
            if (refused and tried) or (self.job.wish.ends and (refused or tried)):
                self.strand(a, outcome)
                return
            self.waiting = f"{outcome.message}; {outcome.hint}" if outcome.hint else outcome.message
        self.want(a, sight, A.COLLECT, results=not a.untold and self.retry_reason(a) is None)

    def collected(self, a: Allocation, sight: Observed) -> None:
        cleaned = None if self.spare(a, sight) else self.clean(a, sight)
        if self.job.state.final or not self.decides(a) or self.job.state in AT_REST:
            return
        if not self.ganged and (cleaned or not self.cleaning(a)):
            self.conclude(cleaned or a)
