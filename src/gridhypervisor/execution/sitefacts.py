"""What the planner is told of the sites: what their sessions say, and what our jobs have there.

Asked for at each pass, and with many sites few have changed since: what has not is handed out as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from gridhypervisor.execution.cases import Cases
from gridhypervisor.execution.ports import Session
from gridhypervisor.execution.scheduling import Scheduling
from gridhypervisor.model.replacing import replace
from gridhypervisor.model.wire import Share
from gridhypervisor.planning.world import SiteFacts

Given = tuple[SiteFacts, int, Share, float, float, float | None]


class KnownSites:
    """`scheduling`: what is remembered of them."""

    def __init__(
        self, sessions: Mapping[str, Session], cases: Cases, scheduling: Scheduling, clock: Callable[[], float]
    ) -> None:
        self._sessions, self._cases, self._scheduling, self._clock = sessions, cases, scheduling, clock
        self._known: dict[str, tuple[Given, SiteFacts]] = {}

    def __call__(self) -> dict[str, SiteFacts]:
        """Of each site, as it is now."""
        self._known = {name: self._of(name, session.facts) for name, session in self._sessions.items()}
        return {name: facts for name, (_, facts) in self._known.items()}

    def _of(self, name: str, facts: SiteFacts) -> tuple[Given, SiteFacts]:
        credit, save_rate = self._scheduling.credit(name, self._clock()), self._scheduling.save_rate(name)
        wait = self._scheduling.past_of(name).wait
        given = facts, self._cases.places(name), self._cases.share(name), credit, save_rate, wait
        known = self._known.get(name)
        if known is not None and known[0] == given:  # which compares what is the same object by that alone
            return known
        return given, replace(facts, alive=given[1], own=given[2], credit=credit, save_rate=save_rate, wait=wait)
