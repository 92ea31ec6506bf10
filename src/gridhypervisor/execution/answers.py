"""What requests with an Idempotency-Key were answered, for a day: those that come together are written together.

An answer that is lost before it is written costs nothing but a second look: jobs and groups keep their keys themselves,
and what else is asked for again after a crash is refused or harmless.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from gridhypervisor.execution.ports import Store
from gridhypervisor.execution.storing import StoreThread
from gridhypervisor.model.access import Answer

KEPT = 86400.0
"""Seconds that an answer is kept."""


class Answers:
    def __init__(self, store: Store, in_store: StoreThread, clock: Callable[[], float]) -> None:
        self._store, self._in_store, self._clock = store, in_store, clock
        self._next: list[tuple[Answer, asyncio.Future[None]]] = []
        self._writing: asyncio.Task[None] | None = None

    async def find(self, owner: str, project: str, key: str) -> Answer | None:
        found = await self._in_store(self._store.answer, owner, project, key)
        return found if found is not None and found.at >= self._clock() - KEPT else None

    async def keep(self, answer: Answer) -> None:
        """Returns once it is written. Raises StoreError: it is not."""
        written: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._next.append((answer, written))
        if self._writing is None or self._writing.done():
            self._writing = asyncio.create_task(self._write())
        await written

    async def _write(self) -> None:
        while self._next:
            batch, self._next = self._next, []
            try:
                answers = [answer for answer, _ in batch]
                await self._in_store(self._store.put_answers, answers, forget=self._clock() - KEPT)
                error = None
            except Exception as raised:
                error = raised
            for _, written in batch:
                if written.done():
                    continue  # whoever asked has gone
                if error is None:
                    written.set_result(None)
                else:
                    written.set_exception(error)
