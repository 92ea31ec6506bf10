"""Moves one job along: given its records, what was observed, and the time, what to write and what to do.

The rules are those of docs/never-two-guests.md. Three hold throughout: an effect is asked for only when the record that
warrants it is committed (the loop acts after the commit); SUBMIT is asked for exactly once per allocation, in the step
that commits SUBMITTING, so a controller that finds SUBMITTING in the store never submits again; and a new allocation is
made only when every older one is revoked, fenced, or ended by its own sentinel or by the batch system's word.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import assert_never

from gridhypervisor.model.batch import BatchState
from gridhypervisor.model.records import (
    ActionKind,
    Allocation,
    AllocationState,
    JobState,
    PilotJob,
    Times,
    Wish,
)
from gridhypervisor.model.spec import parse_duration
from gridhypervisor.model.wire import RETRYABLE, ExitRecord, Outcome, Reason
from gridhypervisor.planning.draft import OVER, Action, Draft, JobPlan
from gridhypervisor.planning.grants import grant_of
from gridhypervisor.planning.placement import place
from gridhypervisor.planning.world import Absent, Case, Observed, Policy, Result, Seen, SiteFacts, Unknown
from gridhypervisor.planning.world import Outcome as ActionOutcome

S = AllocationState
A = ActionKind

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


TURNED_AWAY: Mapping[Reason, str] = {
    Reason.LENDER: "the lender of {site} refused it",
    Reason.BUSY: "{site} had too much to do to take it",
}
"""Why a site did not take a job at all, which is no failure of an attempt, and the words for it."""


def plan(case: Case, sites: Mapping[str, SiteFacts], policy: Policy, now: float, installation: str) -> JobPlan:
    """The next step of one job. Pure; called again after each commit until it asks for nothing new."""
    step = _Step(case, sites, policy, now, installation)
    step.run()
    return step.result()


class _Step(Draft):
    """One call of `plan`: the rules."""

    def run(self) -> None:
        current = None
        for allocation in self.case.allocations:
            if allocation.state is S.CLEANED:
                continue
            if allocation.epoch == self.case.vm.epoch:
                current = allocation
            if allocation.site in self.sites:
                self.allocation(allocation)
            else:
                self.abandoned(allocation)
        if self.job.state.final:
            left = (a for a in self.case.allocations if a.state is not S.CLEANED)
            self.delete = self.job.wish is Wish.DELETE and not any(a.site in self.sites for a in left)
            return
        if current is None or (current.state in OVER and self.job.state is JobState.PENDING):
            self.start()

    def start(self) -> None:
        """The job has no allocation that could still run: begin one, or end the job."""
        if self.job.wish is not Wish.RUN:
            self.end(JobState.CANCELLED, Reason.CANCELLED, "cancelled before it was given to a site")
            return
        if any(a.state not in OVER for a in self.case.allocations):
            return
        choice = place(self.job, self.sites, self.refused())
        if choice.site is None:
            self.waiting, self.spurned = choice.summary, choice.spurned
            return
        epoch = self.case.vm.epoch + 1
        name = f"{self.installation}-{self.job.id}-{epoch}"
        allocation = Allocation(
            id=f"{self.case.vm.id}.{epoch}",
            owner=self.job.owner,
            project=self.job.project,
            job=self.job.id,
            vm=self.case.vm.id,
            epoch=epoch,
            pilot_job=name,
            site=choice.site,
            times=Times(planned=self.now, since=self.now),
            version=1,
        )
        self.put(replace(self.case.vm, epoch=epoch, version=self.case.vm.version + 1))
        self.put(PilotJob(name=name, owner=self.job.owner, project=self.job.project, site=choice.site, version=1))
        self.put(allocation)
        self.event("allocation", allocation.id, "", S.PLANNED, message=f"at {choice.site}: {choice.summary}")
        self.change_job(JobState.PROLOG, attempts=self.job.attempts + 1)
        self.actions.append(Action(A.PROLOG, allocation))

    def refused(self) -> set[str]:
        """Sites whose lender refused it a moment ago, though there seemed to be room: another was faster, mostly."""
        until = {a.site: a.times.since + self.policy.refused_pause for a in self.case.allocations
                 if a.why is Reason.LENDER}  # fmt: skip
        waits = {site: at for site, at in until.items() if self.now < at}
        self.wakes.extend(waits.values())
        return set(waits)

    def allocation(self, a: Allocation) -> None:
        sight = self.case.sight(a)
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

    def abandoned(self, a: Allocation) -> None:
        """The user removed its site, gone for good. Its record stays as it is: were the site added again, it goes on.

        Nobody can say any more whether it runs, so no other attempt is made: the job ends here, by the user's word.
        """
        if a.state is S.PLANNED:
            self.give_up(a, Reason.LOST, f"{a.site} was removed before it was given this job")
        elif a.epoch != self.case.vm.epoch or self.job.state is JobState.PENDING:
            pass
        elif a.state is S.COLLECTED:
            self.conclude(a)
        elif self.job.wish is not Wish.RUN:
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
        if self.job.wish is not Wish.RUN:
            self.give_up(a, Reason.CANCELLED, "cancelled before it was submitted")
            return
        site = self.sites[a.site]
        if site.draining:
            self.withdraw(a, f"{a.site} is draining, and had not been given it yet")
            return
        outcome = sight.outcomes.get(A.PROLOG)
        if outcome is not None and outcome.result is Result.REFUSED:
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
        if self.job.wish is not Wish.RUN and not busy:
            self.revoke(a, Reason.CANCELLED, "cancelled by the user")
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
                self.waiting = f"{job.state} at {a.site}" + (f": {job.reason}" if job.reason else "")
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

    def queued(self, a: Allocation, batch_id: str) -> None:
        self.move(a, S.QUEUED, message=f"batch job {batch_id}" if batch_id else "")
        self.change_job(JobState.QUEUED)

    def running(self, a: Allocation, sight: Observed) -> None:
        view = sight.view
        if view is not None and view.exit is not None and view.owner is not None:
            self.finish(a, view.exit)
            return
        if self.job.wish is not Wish.RUN:
            request = self.want(a, sight, A.REQUEST_CANCEL, why="cancelled by the user")
            if request is not None:
                # A pilot that goes on beating is bringing the outputs out, which takes as long as it takes.
                patience = max(request, sight.news_at) + self.policy.stop_patience + self.spool_lag(a.site)
                patience = min(patience, max(request, self.fence(a)))
                if self.now >= patience:
                    self.want(a, sight, A.BATCH_CANCEL, why="the pilot has not stopped, and says nothing any more")
                else:
                    self.wakes.append(patience)
            self.waiting = "stopping: the guest shuts down, outputs so far come back"
        gone = self.gone(a, sight)
        if gone is None:
            self.mind_silence(a, sight)
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

    def gone(self, a: Allocation, sight: Observed) -> tuple[float, str] | None:
        """Since when no process of a pilot that owns the allocation can be left, and who says so; None: one may be.

        Only the batch system's word on this very run counts at once. A node given up, a run repeated by the site, a
        listing without it leave the guest running for all we know: until its watchdog has ended it at its walltime.
        """
        fence = self.fence(a)
        match sight.batch:
            case Seen(job, since) if job.state is BatchState.ENDED and not job.restarts:
                return since, f"{a.site} says that it ended" + (f": {job.reason}" if job.reason else "")
            case Seen(job) if job.state is BatchState.NODE_LOST:
                words = f"{a.site} lost its node" + (f" ({job.reason})" if job.reason else "")
            case Seen(job) if job.restarts:
                words = f"{a.site} ran it again by itself ({job.state}), which that run refused"
            case Absent(_, _, times) if times >= 2:
                words = f"{a.site} no longer lists it"
            case _:
                words = ""
        if self.now < fence:
            self.wakes.append(fence)
            if words:
                self.waiting = f"{words}; waiting until its walltime is surely over"
            return None
        match sight.batch:
            case Seen(job) if job.state not in (BatchState.ENDED, BatchState.NODE_LOST):
                self.want(a, sight, A.BATCH_CANCEL, why="it outlasts its walltime")
                self.waiting = f"its walltime is over and {a.site} still lists it as {job.state}"
                return None
            case _ if words:
                return fence, f"{words}, and its walltime is over"
            case _:
                return None

    def mind_silence(self, a: Allocation, sight: Observed) -> None:
        """Where another attempt is wanted when nothing is heard of this one: nobody may let its guest run on.

        Its grant has run out by then, for that counts from when a beat was sent, and this from when the last one came.
        """
        grant = grant_of(self.job)
        if not grant:
            return
        word = self.last_word(a, sight)
        if self.now < word + grant:
            self.wakes.append(word + grant)
            if self.waiting or not self.sites[a.site].up:
                self.waiting = (
                    f"nothing is heard of it from {a.site}; another attempt follows when that lasts {grant} s"
                )
            return
        words = f"nothing was heard of it for {self.now - word:.0f} s, so its guest may not run on"
        self.move(a, S.FENCING, message=words)

    def fencing(self, a: Allocation, sight: Observed) -> None:
        """No beat of it is answered any more: once that is committed, its guest is over soon."""
        if sight.view is not None and sight.view.exit is not None:
            self.finish(a, sight.view.exit)
            return
        over = self.last_word(a, sight) + grant_of(self.job) + self.policy.grant_margin
        if self.now < over:
            self.wakes.append(over)
            self.waiting = f"nothing is heard of it from {a.site}: its guest is surely over in {over - self.now:.0f} s"
            return
        words = f"run {a.id} at {a.site}: nothing was heard of it any more, and its guest's grant is over"
        self.give_up(a, Reason.LOST, words, f"see what became of {a.site}", to=S.FENCED)

    def last_word(self, a: Allocation, sight: Observed) -> float:
        """When its pilot was heard last, or an earlier controller may have heard it: no later beat was answered."""
        return max(sight.news_at, self.sites[a.site].watched)

    def fenced(self, a: Allocation, sight: Observed) -> None:
        """It can do no harm: what is left of it at its site ends by itself, and is removed when that can be seen.

        Results of a run that had completed may yet come from a node that was cut off; they are waited for until its
        walltime is over.
        """
        settled, alive = self.fence(a), False
        match sight.batch:
            case _ if sight.view is not None and sight.view.exit is not None:
                settled = self.now
            case Unknown():
                return  # the next listing says whether something of it is left
            case Seen(job, since) if job.state is BatchState.ENDED and not job.restarts:
                settled = since + self.spool_lag(a.site)
            case Seen(job):
                alive = job.state not in (BatchState.ENDED, BatchState.NODE_LOST)
            case Absent(_, _, times):
                if times < 2:
                    return
        if alive and (self.now > settled or self.job.wish is not Wish.RUN):
            self.want(a, sight, A.BATCH_CANCEL, why="nobody waits for it any more")
        elif self.now < settled:
            self.wakes.append(settled)
        else:
            self.clean(a, sight)

    def finish(self, a: Allocation, exit: ExitRecord) -> None:
        self.move(a, S.ENDED, exit=exit, reason=exit.reason, message=exit.message)
        self.change_job(JobState.EPILOG)

    def revoking(self, a: Allocation, sight: Observed) -> None:
        if self.owner_decides(a, sight):
            return
        outcome = sight.outcomes.get(A.REVOKE)
        if outcome is not None and outcome.owner is not None:
            if outcome.owner.by == "pilot":
                self.taken_by_pilot(a)
            else:
                self.give_up(a, a.why or Reason.LOST, a.note)
            return
        if sight.unreadable_at is not None:
            # Whoever took it took it before we saw it, and nobody takes it again: his guest ends by its walltime.
            over = sight.unreadable_at + self.walltime() + self.policy.fence_margin
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
        outcome = sight.outcomes.get(A.COLLECT)
        if outcome is not None and outcome.result is Result.OK:
            self.settle(self.move(a, S.COLLECTED))
            return
        if outcome is not None:
            refused, tried = outcome.result is Result.REFUSED, outcome.tries >= self.policy.collect_tries
            if (refused and tried) or (self.job.wish is not Wish.RUN and (refused or tried)):
                self.strand(a, outcome)
                return
            self.waiting = f"{outcome.message}; {outcome.hint}" if outcome.hint else outcome.message
        self.want(a, sight, A.COLLECT, results=self.retry_reason(a) is None)

    def strand(self, a: Allocation, outcome: ActionOutcome) -> None:
        """The results cannot come home: the job ends without them. They stay at the site until somebody asks."""
        fetch = f"`ghv recover {self.job.id}` fetches them from {a.site}, or `ghv delete` drops them"
        hint = f"{outcome.hint}; then {fetch}" if outcome.hint else fetch
        self.waiting = outcome.message
        code = a.exit.exit_code if a.exit is not None else None
        if self.job.wish is Wish.RUN:
            self.end(JobState.FAILED, Reason.STAGING, outcome.message, hint, code, a)
        else:
            message = f"cancelled before its results came home: {outcome.message}"
            self.end(JobState.CANCELLED, Reason.CANCELLED, message, hint, code, a)

    def settle(self, a: Allocation) -> None:
        """The results are home: another attempt, or the job waits for the clean-up to end."""
        if self.job.state.final:
            self.job = replace(
                self.job, hint="its results are home now, and the site is clean", version=self.case.job.version + 1
            )
            self.put(self.job)
            return
        retry = self.retry_reason(a)
        if retry is not None and a.epoch == self.case.vm.epoch:
            self.try_again(a, retry)

    def collected(self, a: Allocation, sight: Observed) -> None:
        cleaned = self.clean(a, sight)
        if self.job.state.final or a.epoch != self.case.vm.epoch or self.job.state is JobState.PENDING:
            return
        deadline = a.times.since + self.policy.clean_patience
        if not cleaned and self.now < deadline:
            self.wakes.append(deadline)
            return
        self.conclude(cleaned or a)

    def conclude(self, a: Allocation) -> None:
        """The job ends as its last attempt did."""
        exit = a.exit
        assert exit is not None
        match exit.outcome:
            case Outcome.COMPLETED:
                self.end(JobState.DONE, exit.reason, exit.message, exit.hint, exit.exit_code, a)
            case _ if exit.reason in (Reason.CANCELLED, Reason.EVICTED) and self.job.wish is not Wish.RUN:
                self.end(JobState.CANCELLED, exit.reason, exit.message, exit.hint, exit.exit_code, a)
            case _:
                self.end(JobState.FAILED, exit.reason, exit.message, exit.hint, exit.exit_code, a)

    def clean(self, a: Allocation, sight: Observed) -> Allocation | None:
        outcome = sight.outcomes.get(A.CLEAN)
        if outcome is not None and outcome.result is Result.OK:
            return self.move(a, S.CLEANED, message=outcome.message)
        self.want(a, sight, A.CLEAN)
        return None

    # -- what the rules share -------------------------------------------------------------------------------------

    def owner_decides(self, a: Allocation, sight: Observed) -> bool:
        """The owner file has the last word on who may act for an allocation, where it can be read."""
        by = sight.view.owner.by if sight.view is not None and sight.view.owner is not None else ""
        if by not in ("pilot", "controller"):
            return False
        if by == "pilot":
            self.taken_by_pilot(a)
        elif a.state is S.REVOKING:
            self.give_up(a, a.why or Reason.LOST, a.note)
        else:
            # Revoked by a controller that died before it wrote so down.
            self.revoke(a, Reason.LOST, "the controller had revoked it")
        return True

    def taken_by_pilot(self, a: Allocation) -> None:
        self.move(a, S.RUNNING)
        self.change_job(JobState.RUNNING)

    def revoke(self, a: Allocation, why: Reason, note: str, hint: str = "") -> None:
        moved = self.move(a, S.REVOKING, why=why, note=f"{note}; {hint}" if hint else note, reason=why, message=note)
        self.actions.append(Action(A.REVOKE, moved, why=note))

    def give_up(self, a: Allocation, why: Reason, note: str, hint: str = "", to: AllocationState = S.REVOKED) -> None:
        """The allocation can never run. What becomes of the job depends on why."""
        moved = self.move(a, to, why=why, note=note, reason=why, message=note)
        if a.epoch != self.case.vm.epoch:
            return
        if why is Reason.CANCELLED or self.job.wish is not Wish.RUN:
            self.end(JobState.CANCELLED, Reason.CANCELLED, note, hint, a=moved)
        elif why in RETRYABLE and self.spent(moved) <= self.job.spec.retry.times:
            self.try_again(a, why)
        else:
            self.end(JobState.FAILED, why, note, hint, a=moved)

    def withdraw(self, a: Allocation, note: str) -> None:
        """Nothing was submitted, and nothing shall be: the job looks for another place, and has lost nothing by it."""
        self.move(a, S.REVOKED, note=note, message=note)
        if a.epoch == self.case.vm.epoch:
            self.change_job(JobState.PENDING, message=note)

    def retry_reason(self, a: Allocation) -> Reason | None:
        """Why this attempt's failure calls for another, if it does."""
        exit = a.exit
        if exit is None or exit.outcome is Outcome.COMPLETED or self.job.wish is not Wish.RUN or self.job.state.final:
            return None
        if exit.reason in RETRYABLE and self.spent(a) <= self.job.spec.retry.times:
            return exit.reason
        return None

    def spent(self, last: Allocation) -> int:
        """Attempts that count against the job's retries, `last` included.

        What a lender refused at the door is none, nor what a site had too much to do for, nor what was withdrawn before
        it was submitted (without a `why`). A
        submission of which nobody ever heard again (this controller died in it, mostly), or that waited until its
        lender no longer let it start, is nobody's failure; but a site that does so with everything that it is given
        must not go on for ever.
        """
        known = [last if a.id == last.id else a for a in self.case.allocations]
        attempts = [
            a
            for a in known
            if a.why not in TURNED_AWAY
            and (a.state not in (S.REVOKED, S.CLEANED) or a.why is not None or a.exit is not None)
        ]
        lost = sum(
            (a.why is Reason.LOST and a.exit is None and a.times.queued is None and a.times.running is None)
            or (a.exit is not None and a.exit.reason is Reason.LENDER)
            for a in attempts
        )
        return len(attempts) - min(lost, self.policy.free_losses)

    def try_again(self, a: Allocation, why: Reason) -> None:
        excluded = self.job.excluded
        if self.job.spec.retry.elsewhere and a.site not in excluded and why not in TURNED_AWAY:
            excluded = (*excluded, a.site)
        words = TURNED_AWAY.get(why, f"attempt {a.epoch} failed: {why}").format(site=a.site)
        self.change_job(JobState.PENDING, reason=why, excluded=excluded, message=words)

    def fence(self, a: Allocation) -> float:
        """When the guest of an allocation that a pilot took is surely over, whatever anybody says."""
        return (a.times.running or a.times.since) + self.walltime() + self.policy.fence_margin

    def walltime(self) -> float:
        return float(parse_duration(self.job.spec.resources.walltime))
