"""New jobs: those that are asked for while others are being written are written together, in one transaction.

Whoever asked hears of his own job alone: one that cannot be written keeps no other from it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from gridhypervisor.execution.ports import Steps, Store
from gridhypervisor.execution.steps import Still
from gridhypervisor.execution.storing import StoreThread
from gridhypervisor.model.commit import Birth, JobRecords


class Births:
    """`adopt` is called with each new job, before whoever asked for it hears of it."""

    def __init__(self, store: Store, in_store: StoreThread, adopt: Callable[[JobRecords], None], steps: Steps) -> None:
        self._store, self._in_store, self._adopt, self._steps = store, in_store, adopt, steps
        self._next: list[tuple[Birth, asyncio.Future[JobRecords]]] = []
        self._midwife: asyncio.Task[None] | None = None

    async def add(self, birth: Birth) -> JobRecords:
        """Write a job. Raises what the store says against it."""
        future: asyncio.Future[JobRecords] = asyncio.get_running_loop().create_future()
        self._next.append((birth, future))
        if self._midwife is None or self._midwife.done():
            self._midwife = asyncio.create_task(self._bear())
        return await future

    async def _bear(self) -> None:
        while self._next:
            births, self._next = self._next, []
            self._steps(f"before-commit:{Still.BIRTH}")
            results = await self._in_store.together(self._store.create_jobs, [birth for birth, _ in births])
            self._steps(f"after-commit:{Still.BIRTH}")
            for result, (_, future) in zip(results, births, strict=True):
                if isinstance(result, JobRecords):
                    self._adopt(result)
                if future.done():
                    continue  # whoever asked has gone; the job is there all the same
                if isinstance(result, JobRecords):
                    future.set_result(result)
                else:
                    future.set_exception(result)
