"""Jobs that are to begin only when others have ended well: finds out how those others are, and tells the planner.

What it finds stands in the case: `held` while one of them has not ended, `futile` once one did not end well. It is
found anew after a restart, and whenever one of them ends. It decides nothing: `planning.reconcile` does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable

from gridhypervisor.execution.cases import Cases
from gridhypervisor.execution.ports import Store
from gridhypervisor.execution.storing import StoreThread
from gridhypervisor.model.records import Group
from gridhypervisor.model.replacing import replace
from gridhypervisor.planning.after import Found, what_of

PAUSE = 2.0
"""Seconds before the store is asked again that could not answer."""


class After:
    """`group` finds an array; `touch` has a job planned."""

    def __init__(
        self,
        store: Store,
        in_store: StoreThread,
        cases: Cases,
        group: Callable[[str], Awaitable[Group | None]],
        touch: Callable[[str], None],
    ) -> None:
        self._store, self._in_store, self._cases, self._group, self._touch = store, in_store, cases, group, touch
        self._waiting: dict[str, dict[str, None]] = {}  # what is waited for -> the jobs that do
        self._dirty: dict[str, None] = {}
        self._wake = asyncio.Event()

    def hold(self, job: str) -> None:
        """A job was taken up that names others. Until they have been looked at, it is held."""
        for name in self._cases[job].job.spec.after:
            self._waiting.setdefault(name, {})[job] = None
        self._look_at(job)

    def ended(self, name: str) -> None:
        """A job or an array has ended, or is there no more."""
        for job in self._waiting.get(name, ()):
            self._look_at(job)

    async def exists(self, name: str) -> bool:
        return await self._find(name) is not None

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            dirty, self._dirty = self._dirty, {}
            for job in dirty:
                try:
                    await self._look(job)
                except Exception:  # of the store, mostly; a fault of ours must keep no other job
                    asyncio.get_running_loop().call_later(PAUSE, self._look_at, job)

    def _look_at(self, job: str) -> None:
        self._dirty[job] = None
        self._wake.set()

    async def _look(self, job: str) -> None:
        names = self._cases[job].job.spec.after if job in self._cases else ()
        found = [(name, await self._find(name)) for name in names]
        case = self._cases.get(job)
        if case is None:
            self._forget(job, names)
            return
        held, futile = what_of(found)
        if futile or not held:
            self._forget(job, names)
        self._cases.put(replace(case, held=held, futile=futile))
        self._touch(job)

    def _forget(self, job: str, names: Iterable[str]) -> None:
        for name in names:
            waiting = self._waiting.get(name, {})
            waiting.pop(job, None)
            if not waiting:
                self._waiting.pop(name, None)

    async def _find(self, name: str) -> Found:
        if not name.startswith("j"):
            group = await self._group(name)
            if group is None or not group.state.final:
                return group
            return group, await self._in_store(self._store.tally, name)
        if name in self._cases:
            return self._cases[name].job
        records = await self._in_store(self._store.job, name)
        return records.job if records is not None else None
