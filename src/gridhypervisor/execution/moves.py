"""Has it weighed from time to time whether jobs that have a place should have another, each at its own times.

It remembers when; whether a job moves is decided in `planning.moves`, and carried out by the planner's steps. What it
remembers is worth nothing: after a restart all begin anew.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from gridhypervisor.execution.scheduling import Scheduling
from gridhypervisor.model.records import Allocation, AllocationState
from gridhypervisor.model.replacing import replace
from gridhypervisor.planning import moves
from gridhypervisor.planning.moves import Wanting
from gridhypervisor.planning.world import Case, SiteFacts, Stay

PARKED = 30.0
"""Seconds before it is weighed again for jobs for which it could not be, by a fault of our own."""


@dataclass(frozen=True)
class _Standing:
    """What is known of one attempt since it was weighed last."""

    attempt: str
    state: AllocationState
    policy: int  # the version by which it was
    asked: str  # by the program
    stay: Stay


class Moves:
    def __init__(self, scheduling: Scheduling) -> None:
        self._scheduling = scheduling
        self._standing: dict[str, _Standing] = {}
        self._setting = scheduling.policy.moves

    def changed(self) -> bool:
        """Whether the policy says otherwise about moves than when this was asked last."""
        before, self._setting = self._setting, self._scheduling.policy.moves
        return before != self._setting

    def consider(self, cases: Iterable[Case], sites: Mapping[str, SiteFacts], now: float) -> dict[str, Case]:
        """The cases, each with what is so now of its staying or going. `sites`: with all that was given away just now
        counted."""
        found, wanting = dict[str, Case](), dict[str, tuple[Case, Wanting]]()
        for case in cases:
            job, a = case.job.id, moves.attempt(case)
            if a is None:
                self._standing.pop(job, None)
                stay = moves.kept(case)
                found[job] = case if stay == case.stay else replace(case, stay=stay)
                continue
            stay, due = self._known(case, a, now)
            if due and (want := moves.wish(case, self._terms(case), now)) is not None:
                wanting[job] = case, want
            if due:
                stay = self._remember(case, a, Stay(again=moves.next_after(case, self._terms(case), now)))
            found[job] = replace(case, stay=stay)
        for job, stay in self._weighed(wanting, sites, now).items():
            case, a = wanting[job][0], wanting[job][0].newest
            again = stay.again if stay.again is not None else found[job].stay.again
            found[job] = replace(case, stay=self._remember(case, a, replace(stay, again=again)))
        return found

    def drop(self, job: str) -> None:
        """It has ended, or is not known any more."""
        self._standing.pop(job, None)

    def _known(self, case: Case, a: Allocation, now: float) -> tuple[Stay, bool]:
        """What was so when it was weighed last, and whether it is time to do so again."""
        standing, asked = self._standing.get(case.job.id), moves.asks(case)
        version = self._scheduling.record.version
        if standing is None or (standing.attempt, standing.state, standing.policy) != (a.id, a.state, version):
            again = moves.first(case, self._terms(case), now)
            stay = self._remember(case, a, Stay(again=again))
            return stay, bool(asked) or (again is not None and again <= now)
        again = standing.stay.again
        # A move that was decided stands until it is committed, or until it is weighed anew.
        return standing.stay, asked != standing.asked or (again is not None and again <= now)

    def _remember(self, case: Case, a: Allocation, stay: Stay) -> Stay:
        version = self._scheduling.record.version
        self._standing[case.job.id] = _Standing(a.id, a.state, version, moves.asks(case), stay)
        return stay

    def _terms(self, case: Case) -> moves.Terms:
        return moves.terms(self._scheduling.policy.moves, case.job.spec.moves)

    def _weighed(
        self, wanting: Mapping[str, tuple[Case, Wanting]], sites: Mapping[str, SiteFacts], now: float
    ) -> dict[str, Stay]:
        if not wanting:
            return {}
        try:
            grid = self._scheduling.grid(sites, [case.job for case, _ in wanting.values()], now)
            return moves.weigh(wanting, grid)
        except Exception as error:  # a fault of ours must not cost anybody his step
            words = f"weigh a move: {type(error).__name__}: {error}; report this as a bug"
            return {job: Stay(words=words, again=now + PARKED) for job in wanting}
