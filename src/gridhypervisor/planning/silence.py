"""What is done where nothing is heard of an attempt that a pilot has taken: wait, until its guest is surely over.

Silence alone destroys nothing. By itself a guest is over when its walltime is; where the user asked for another attempt
on silence, when its grant has run out, which the controller stops renewing first. See docs/never-two-guests.md.
"""

from __future__ import annotations

from gridhypervisor.model.batch import BatchState
from gridhypervisor.model.records import ActionKind, Allocation, AllocationState
from gridhypervisor.model.wire import Reason
from gridhypervisor.planning.fate import Fate
from gridhypervisor.planning.grants import grant_of
from gridhypervisor.planning.world import Absent, Observed, Seen, Unknown

S = AllocationState
A = ActionKind


class Silence(Fate):
    """The rules for an attempt of which nothing is heard."""

    def gone(self, a: Allocation, sight: Observed) -> tuple[float, str] | None:
        """Since when no process of a pilot that owns the allocation can be left, and who says so; None: one may be.

        Only the batch system's word on this very run counts at once, whichever batch job its pilot came with. A node
        given up, a run repeated by the site, a listing without it leave the guest running for all we know: until its
        watchdog has ended it at its walltime.
        """
        fence = self.fence(a)
        match sight.run:
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
        match sight.run:
            case Seen() if sight.host and not words:
                return fence, "its walltime is over"  # its host may go on, and serve others
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
        if alive and (self.now > settled or self.job.wish.ends):
            self.want(a, sight, A.BATCH_CANCEL, why="nobody waits for it any more")
        elif self.now < settled:
            self.wakes.append(settled)
        else:
            self.clean(a, sight)

    def spare(self, a: Allocation, sight: Observed) -> bool:
        """Have its own batch job ended, where another's pilot has the entry: if it began, it could only yield.

        Nobody else's guest can be in it: only a pilot that has had its own entry serves others. Says whether it has yet
        to be asked for.
        """
        if not sight.host:
            return False
        asked, pilot_job = A.BATCH_CANCEL in sight.outcomes, self.case.pilot_jobs.get(a.pilot_job)
        match sight.batch:
            case Seen(job):
                waits = job.state in (BatchState.PENDING, BatchState.HELD)
            case _:
                waits = not asked and pilot_job is not None and bool(pilot_job.batch_id)
        if waits:
            words = self.waiting
            self.want(a, sight, A.BATCH_CANCEL, why=f"the batch job of {sight.host} serves it")
            self.waiting = words
        return (waits and not asked) or A.SUBMIT in sight.busy

    def last_word(self, a: Allocation, sight: Observed) -> float:
        """When its pilot was heard last, or an earlier controller may have heard it: no later beat was answered.

        Its first word may be seen after its ownership is, which says that it is there.
        """
        return max(sight.news_at, self.sites[a.site].watched, a.times.running or 0.0)
