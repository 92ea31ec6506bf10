"""Keeps over a restart what was learnt of sites that did not have what they said: jobs that were denied it.

That jobs began in time is known from their attempts, so only this is written, and seldom. How far a site is believed by
it is decided in `planning.credit`. What cannot be written is known until the next restart, and learnt again after it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from gridhypervisor.execution.ports import Store
from gridhypervisor.execution.scheduling import Scheduling
from gridhypervisor.execution.storing import StoreThread
from gridhypervisor.model.capacity import Capacity
from gridhypervisor.model.commit import JobRecords, StoreError
from gridhypervisor.model.records import Denial
from gridhypervisor.planning.credit import DAY


class Denials:
    def __init__(self, store: Store, in_store: StoreThread, scheduling: Scheduling, clock: Callable[[], float]) -> None:
        self._store, self._in_store, self._scheduling, self._clock = store, in_store, scheduling, clock
        self._writing: set[asyncio.Task[None]] = set()

    async def load(self, ended: Iterable[JobRecords]) -> None:
        """Take up what was learnt before. `ended`: the jobs of the past day."""
        denied = await self._in_store(self._store.denials, since=self._clock() - DAY)
        self._scheduling.recall(ended, denied)

    def surveyed(self, site: str, capacity: Capacity) -> None:
        """The site has said what it has free."""
        if jobs := self._scheduling.surveyed(site, capacity):
            task = asyncio.create_task(self._write(Denial(site, capacity.as_of, jobs)))
            self._writing.add(task)
            task.add_done_callback(self._writing.discard)

    async def close(self) -> None:
        """What was learnt is written down before."""
        await asyncio.gather(*self._writing, return_exceptions=True)

    async def _write(self, denial: Denial) -> None:
        try:
            await self._in_store(self._store.put_denial, denial, forget=denial.at - DAY)
        except StoreError:
            pass
