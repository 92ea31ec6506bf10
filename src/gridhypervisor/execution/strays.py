"""Strays: entries and batch jobs of this installation that no live job knows.

They are removed where the store says that they were done with. What it does not know is left alone: the store may be
that of an old backup.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from gridhypervisor.execution.cases import Cases
from gridhypervisor.execution.ports import Session, Store
from gridhypervisor.execution.storing import StoreThread
from gridhypervisor.model.records import AllocationState


class Strays:
    def __init__(self, store: Store, in_store: StoreThread, sessions: Mapping[str, Session], cases: Cases) -> None:
        self._store, self._in_store, self._sessions, self._cases = store, in_store, sessions, cases
        self._sweeps: dict[str, asyncio.Task[None]] = {}  # by entry

    def suspect(self, site: str, entry: str, batch_id: str = "") -> None:
        """The site has something that goes by this name."""
        if entry not in self._sweeps and entry.startswith(f"{self._store.installation}-"):
            self._sweeps[entry] = asyncio.create_task(self._sweep(site, entry, batch_id))

    async def close(self) -> None:
        for task in self._sweeps.values():
            task.cancel()
        await asyncio.gather(*self._sweeps.values(), return_exceptions=True)

    async def _sweep(self, site: str, entry: str, batch_id: str) -> None:
        try:
            job = entry.split("-")[1]
            records = await self._in_store(self._store.job, job)
            if records is not None:
                done = any(a.pilot_job == entry and a.state is AllocationState.CLEANED for a in records.allocations)
            else:
                done = await self._in_store(self._store.was_deleted, job)
            session = self._sessions.get(site)
            if done and session is not None and not self._cases.home(entry)[0]:
                await session.sweep(entry, batch_id)
        finally:
            del self._sweeps[entry]
