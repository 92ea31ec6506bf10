"""The scheduling policy as it is set: written down first, every version of it, and then it holds, without a restart.

What is remembered of the past is gathered anew with it, for the policy says how long anything is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from gridhypervisor.execution.ports import Store
from gridhypervisor.execution.scheduling import Scheduling
from gridhypervisor.execution.storing import StoreThread
from gridhypervisor.model.commit import JobRecords
from gridhypervisor.model.policy import PolicyRecord, SchedulingPolicy
from gridhypervisor.model.records import Event
from gridhypervisor.planning.past import memory_of

REMEMBERED = 5_000
"""Jobs that have ended, the newest, that count when a past is gathered from the store."""


class Policies:
    """`changed` is called when jobs may be given to sites that could not before; `announce` when there are events."""

    def __init__(
        self,
        store: Store,
        in_store: StoreThread,
        scheduling: Scheduling,
        changed: Callable[[], None],
        announce: Callable[[], None],
        clock: Callable[[], float],
    ) -> None:
        self._store, self._in_store, self._scheduling = store, in_store, scheduling
        self._changed, self._announce, self._clock = changed, announce, clock

    async def load(self) -> list[JobRecords]:
        """Take up the one that was set last; the jobs that ended as long ago as anything is remembered."""
        record = await self._in_store(self._store.policy)
        ended = await self._ended(record.policy)
        self._hold(record, ended)
        return ended

    async def set(
        self, policy: SchedulingPolicy, by: str, project: str, version: int | None = None
    ) -> PolicyRecord | None:
        """From the next choice of a site on this policy holds; None: the one before is not of that version. Raises
        StoreError: it does not hold."""
        while True:
            before = await self._in_store(self._store.policy)
            if version not in (None, before.version):
                return None
            record = PolicyRecord(policy, before.version + 1, self._clock(), by)
            ended = await self._ended(policy)  # first: once it is written, nothing may keep it from holding
            event = Event(record.at, by, project, "", "policy", str(record.version), "", "set", message=f"by {by}")
            if await self._in_store(self._store.put_policy, record, event):
                self._hold(record, ended)
                self._announce()
                return record

    async def _ended(self, policy: SchedulingPolicy) -> list[JobRecords]:
        since = self._clock() - memory_of(policy)
        return await self._in_store(self._store.ended, since=since, limit=REMEMBERED)

    def _hold(self, record: PolicyRecord, ended: Iterable[JobRecords]) -> None:
        if record.version >= self._scheduling.record.version:  # else somebody has set another meanwhile
            self._scheduling.adopt(record, ended)
            self._changed()
