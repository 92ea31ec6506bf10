"""Sees that the members of a gang are planned together, and that each knows how its gang is.

It decides nothing: `planning.gangs` says when they begin and when they are released, and `planning.placement` where
they go. While a gang waits for places it is looked at whenever anybody looks for one: who came later must not take, one
by one, the places that it waits for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import islice

from gridhypervisor.execution.cases import Cases
from gridhypervisor.model.replacing import replace
from gridhypervisor.planning.gangs import leads, size
from gridhypervisor.planning.reconcile import seeks
from gridhypervisor.planning.world import Case, Gang

FEW = 8
"""Gangs that wait which are looked at whenever a job looks for a place; each has its turn when places are offered."""


class Gangs:
    """`gang` says how one is."""

    def __init__(self, cases: Cases, gang: Callable[[str], Gang]) -> None:
        self._cases, self._gang = cases, gang
        self._waiting: dict[str, None] = {}  # for places

    def waits(self, case: Case, waits: bool) -> None:
        """Whether a job waits for a place: one that stands for its gang says so for the gang."""
        if size(case) and leads(case):
            if waits:
                self._waiting[case.job.group] = None
            else:
                self._waiting.pop(case.job.group, None)

    def served_with(self, jobs: Iterable[str]) -> dict[str, Case]:
        """The cases of these jobs, and of all that must be looked at together with them."""
        found = {job: self._cases[job] for job in jobs if job in self._cases}
        gangs = {case.job.group: None for case in found.values() if size(case) and seeks(case)}
        if self._waiting and any(seeks(case) for case in found.values()):
            gangs |= dict.fromkeys(islice(self._waiting, FEW))
        for group in gangs:
            for case in self._cases.gang(group):
                found.setdefault(case.job.id, case)
        told = {group: self._gang(group) for group in {case.job.group for case in found.values() if size(case)}}
        return {job: replace(case, gang=told[case.job.group]) if size(case) else case for job, case in found.items()}
