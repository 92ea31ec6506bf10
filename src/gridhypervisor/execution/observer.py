"""Folds what the sessions see into the cases, and says which jobs it concerns.

Here stale looks are told from news, an entry's own site from others, and absence from silence. What it all means for a
job, the planner decides.
"""

from __future__ import annotations

from collections.abc import Callable

from gridhypervisor.execution.cases import Cases
from gridhypervisor.execution.denials import Denials
from gridhypervisor.execution.networks import Networks
from gridhypervisor.execution.output import Output
from gridhypervisor.execution.places import Places
from gridhypervisor.execution.strays import Strays
from gridhypervisor.model.batch import BatchJob, BatchState, Listing
from gridhypervisor.model.capacity import Capacity
from gridhypervisor.model.replacing import replace
from gridhypervisor.model.wire import EntryView, Phase
from gridhypervisor.planning.world import Absent, Batch, Seen, Unknown

TAKERS = ("pilot", "controller")
"""Who can have taken an entry's `owner`. Of whom else it speaks, it could not be read."""

WAITING = (BatchState.PENDING, BatchState.HELD)
"""States of a batch job that has not begun. One that has may be a pilot's that serves others when its own job is done
with, and deleted; if it is not, its entry is gone or taken, so that it ends by itself."""


class Observer:
    """The sessions' Listener. `touch` has a job planned; `announce` only tells who follows it; `beat` is told of each
    beat: site, job, entry, and its number."""

    def __init__(
        self,
        cases: Cases,
        denials: Denials,
        places: Places,
        strays: Strays,
        output: Output,
        touch: Callable[[str], None],
        announce: Callable[[str], None],
        beat: Callable[[str, str, str, int], None],
        networks: Networks,
        clock: Callable[[], float],
    ) -> None:
        self._cases, self._denials, self._places, self._strays = cases, denials, places, strays
        self._touch, self._announce, self._beat, self._clock = touch, announce, beat, clock
        self.output, self.frames, self._networks = output.take, networks.crossing.take, networks

    def site_changed(self, site: str) -> None:
        for job in self._cases.held(site):
            self._touch(job)
        self._places.changed(site)
        self._networks.tell(site)

    def room_changed(self, site: str) -> None:
        self._places.changed(site)

    def entry_seen(self, site: str, view: EntryView, at: float) -> None:
        job, home = self._cases.home(view.entry)
        if not job:
            self._strays.suspect(site, view.entry)
            return
        if home != site:
            return  # whatever a site says of an entry that was given to another proves nothing
        before = self._cases.observed(job, view.entry)
        old = before.view
        unreadable = view.owner is not None and view.owner.by not in TAKERS
        now = merged(old, view) if old is not None else view
        news = now.status is not None and (old is None or now.status is not old.status)
        after = replace(
            before,
            view=now,
            view_at=at,
            news_at=self._clock() if news else before.news_at,  # not before it was sent, as `at` may be
            unreadable_at=(before.unreadable_at or at) if unreadable else None,
        )
        self._cases.observe(job, view.entry, after)
        if news and now.status is not None and now.exit is None:
            self._beat(site, job, view.entry, now.status.sequence)
        # A beat alone decides nothing; it is shown to who follows, and matters to a pending verdict on silence. That a
        # guest is ready matters to its gang, that its program runs to who would save it, and what came of that too; and
        # that a service is ready to its infrastructure.
        was = old.status if old is not None else None
        told = now.status is not None and (now.status.asks != (was.asks if was else "") or
                                           now.status.saved != (was.saved if was else None) or
                                           now.status.serves != (was.serves if was else False))  # fmt: skip
        changed = old is None or now.owner != old.owner or now.exit != old.exit or _stage(now) != _stage(old)
        if changed or isinstance(before.batch, Absent) or told:
            self._touch(job)
        else:
            self._announce(job)

    def listed(self, site: str, listing: Listing) -> None:
        for entry, job, before in self._cases.attended(site):
            batch = folded(before.batch, listing.jobs.get(entry), listing.as_of)
            bearer = before.bearer
            if before.host:
                bearer = folded(bearer, listing.jobs.get(before.host), listing.as_of)
            if batch is before.batch and bearer is before.bearer:
                continue  # nearly all of a long listing says what the one before said
            self._cases.observe(job, entry, replace(before, batch=batch, bearer=bearer))
            self._touch(job)
        for name in sorted(self._cases.unknown(listing.jobs.keys())):
            if (stray := listing.jobs[name]).state in WAITING:
                self._strays.suspect(site, name, stray.id)

    def surveyed(self, site: str, capacity: Capacity) -> None:
        self._denials.surveyed(site, capacity)
        self._places.published(site)

    def silent(self, site: str, why: str) -> None:
        for entry, job, before in self._cases.attended(site):
            self._cases.observe(job, entry, replace(before, batch=Unknown(why), bearer=Unknown(why)))
        self.site_changed(site)


def _stage(view: EntryView) -> Phase | None:
    """Its phase, where something may wait for that."""
    phase = view.status.phase if view.status is not None else None
    return phase if phase in (Phase.GATHER, Phase.EXECUTE) else None


def folded(before: Batch, found: BatchJob | None, as_of: float) -> Batch:
    """What is known of a batch job after a listing that has it so, or (None) lacks it: the same object, if that is what
    was known before."""
    match before:
        case Seen(job) if job is found or job == found:
            return before
        case Seen(job, since) if found is not None and job.state is found.state:
            return Seen(found, since)
        case Absent(first, _, times) if found is None:
            return Absent(first, as_of, times + 1)
        case _:
            return Seen(found, as_of) if found is not None else Absent(as_of, as_of, 1)


def merged(old: EntryView, new: EntryView) -> EntryView:
    """Looks through a network file system may be stale: what was once seen stays seen."""
    status = new.status
    if old.status is not None and (status is None or status.sequence <= old.status.sequence):
        status = old.status
    owner = new.owner if new.owner is not None and new.owner.by in TAKERS else old.owner or new.owner
    return EntryView(new.entry, owner, status, new.exit or old.exit)
