"""Folds what the sessions see into the cases, and says which jobs it concerns.

Here stale looks are told from news, an entry's own site from others, and absence from silence. What it all means for a
job, the planner decides.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from gridhypervisor.execution.cases import Cases
from gridhypervisor.execution.output import Output
from gridhypervisor.execution.places import Places
from gridhypervisor.execution.strays import Strays
from gridhypervisor.model.batch import BatchState, Listing
from gridhypervisor.model.wire import EntryView
from gridhypervisor.planning.world import Absent, Seen, Unknown

TAKERS = ("pilot", "controller")
"""Who can have taken an entry's `owner`. Of whom else it speaks, it could not be read."""

ALIVE = (BatchState.PENDING, BatchState.HELD, BatchState.RUNNING)
"""States of a batch job that nobody has asked to end, and that has not."""


class Observer:
    """The sessions' Listener. `touch` has a job planned; `announce` only tells who follows it; `beat` is told of each
    beat: site, job, entry, and its number."""

    def __init__(
        self,
        cases: Cases,
        places: Places,
        strays: Strays,
        output: Output,
        touch: Callable[[str], None],
        announce: Callable[[str], None],
        beat: Callable[[str, str, str, int], None],
        clock: Callable[[], float],
    ) -> None:
        self._cases, self._places, self._strays = cases, places, strays
        self._touch, self._announce, self._beat, self._clock = touch, announce, beat, clock
        self.output = output.take

    def site_changed(self, site: str) -> None:
        for job in self._cases.held(site):
            self._touch(job)
        self._places.changed(site)

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
        # A beat alone decides nothing; it is shown to who follows, and matters to a pending verdict on silence.
        if old is None or now.owner != old.owner or now.exit != old.exit or isinstance(before.batch, Absent):
            self._touch(job)
        else:
            self._announce(job)

    def listed(self, site: str, listing: Listing) -> None:
        for entry, job in self._cases.attended(site):
            before = self._cases.observed(job, entry)
            found = listing.jobs.get(entry)
            now: Seen | Absent
            if found is not None:
                known = before.batch if isinstance(before.batch, Seen) else None
                if known is not None and known.job == found:
                    continue  # nearly all of a long listing says what the one before said
                same_state = known is not None and known.job.state is found.state
                now = Seen(found, known.since if known is not None and same_state else listing.as_of)
            elif isinstance(before.batch, Absent):
                now = Absent(before.batch.first, listing.as_of, before.batch.times + 1)
            else:
                now = Absent(listing.as_of, listing.as_of, 1)
            self._cases.observe(job, entry, replace(before, batch=now))
            self._touch(job)
        for name, found in listing.jobs.items():
            if found.state in ALIVE and not self._cases.home(name)[0]:
                self._strays.suspect(site, name, found.id)

    def silent(self, site: str, why: str) -> None:
        for entry, job in self._cases.attended(site):
            self._cases.observe(job, entry, replace(self._cases.observed(job, entry), batch=Unknown(why)))
        self.site_changed(site)


def merged(old: EntryView, new: EntryView) -> EntryView:
    """Looks through a network file system may be stale: what was once seen stays seen."""
    status = new.status
    if old.status is not None and (status is None or status.sequence <= old.status.sequence):
        status = old.status
    owner = new.owner if new.owner is not None and new.owner.by in TAKERS else old.owner or new.owner
    return EntryView(new.entry, owner, status, new.exit or old.exit)
