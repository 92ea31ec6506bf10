"""Whom to offer the free places of a site: jobs that wait for one are planned again when there is one they might take.

It keeps the queue moving and wakes few. Which site a job takes, the planner decides.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from gridhypervisor.execution.agenda import Waiting
from gridhypervisor.execution.cases import Cases
from gridhypervisor.execution.ports import Session

SPARE = 64
"""Waiting jobs that are offered a site's free places beyond their number, in case some cannot use them."""


class Places:
    """`wake` has a job planned soon."""

    def __init__(self, sessions: Mapping[str, Session], cases: Cases, wake: Callable[[str], None]) -> None:
        self._sessions, self._cases, self._wake = sessions, cases, wake
        self._waiting = Waiting()
        self._spurned: dict[str, None] = {}  # sites with a place that was offered since the last look at the rest

    def wait(self, job: str, site: str, spurned: Iterable[str] = ()) -> None:
        """It waits for a place, at this site or ("") at any; not at the `spurned`, which had one when it looked."""
        self._waiting.add(job, site)
        self._spurned |= dict.fromkeys(name for name in spurned if self._waiting.unfit(name, job))

    def leave(self, job: str) -> None:
        """It waits for none."""
        self._waiting.remove(job)

    def changed(self, site: str) -> None:
        """The site may serve jobs now that it could not serve before."""
        self._waiting.changed(site)
        self.offer(site)

    def offer(self, site: str) -> None:
        """Wake as many waiting jobs as the site has places, and a few more in case some cannot use it."""
        free = self._free(site)
        if free > 0:
            for job in self._waiting.candidates(site, free + SPARE):
                self._wake(job)

    def freed(self, site: str) -> None:
        """An allocation there has given up its place, and what it had of the account besides."""
        session = self._sessions.get(site)
        if session is not None and session.facts.lending is not None:
            self._waiting.changed(site)  # who needed more than there was may fit in now
        self.offer(site)

    def offer_the_rest(self) -> None:
        """Where jobs could not use a site's free place, others get their turn."""
        spurned, self._spurned = self._spurned, {}
        for site in spurned:
            self.offer(site)

    def _free(self, site: str) -> int:
        session = self._sessions.get(site)
        facts = session.facts if session is not None else None
        return facts.max_jobs - self._cases.places(site) if facts is not None and facts.open else 0
