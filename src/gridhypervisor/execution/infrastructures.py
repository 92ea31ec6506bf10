"""Keeps virtual infrastructures: sees what each consists of, and what is to be done next. `Groups` commits and does it.

It decides nothing: `planning.infrastructures` does. Members that have ended for good are known to the store alone; they
are remembered here, since their names are taken.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from gridhypervisor.execution.cases import Cases
from gridhypervisor.execution.ports import Store
from gridhypervisor.execution.present import case_of
from gridhypervisor.execution.storing import StoreThread
from gridhypervisor.model.records import Group
from gridhypervisor.planning.infrastructures import Decision, Member, decide, member
from gridhypervisor.planning.world import Case

MOST = 1000
"""VMs of one infrastructure that are looked at, those that are on their way out included."""


class Infrastructures:
    def __init__(self, store: Store, in_store: StoreThread, cases: Cases, clock: Callable[[], float]) -> None:
        self._store, self._in_store, self._cases, self._clock = store, in_store, cases, clock
        self._alive: dict[str, set[str]] = {}  # by infrastructure: its jobs that were alive at the last look
        self._ended: dict[str, dict[str, Case]] = {}  # by infrastructure and job: those that are not any more

    async def next(self, group: Group) -> Decision:
        """What is to be done of it now."""
        return decide(group, [self._member(group, case) for case in await self.cases(group)], self._clock())

    async def members(self, group: Group) -> list[tuple[Case, Member]]:
        """All its VMs, each as it is and as it counts."""
        return [(case, self._member(group, case)) for case in await self.cases(group)]

    async def cases(self, group: Group) -> list[Case]:
        alive = set(self._cases.members(group.id))
        if not self._alive.get(group.id, set()) <= alive or group.id not in self._alive:
            # One has ended for good, or was deleted; or this is the first look.
            find = partial(self._store.jobs, group=group.id, limit=MOST)
            found = {records.job.id: case_of(records) for records in await self._in_store(find)}
            alive = set(self._cases.members(group.id))
            self._ended[group.id] = {job: case for job, case in found.items() if job not in alive}
        self._alive[group.id] = alive
        ended = self._ended.get(group.id, {})
        return [*(self._cases[job] for job in alive), *(case for job, case in ended.items() if job not in alive)]

    def drop(self, group: str) -> None:
        self._alive.pop(group, None)
        self._ended.pop(group, None)

    def _member(self, group: Group, case: Case) -> Member:
        assert group.blueprint is not None
        role = group.blueprint.spec.roles.get(case.job.member.rpartition("-")[0])
        return member(case, role.ready if role is not None else None, self._clock())
