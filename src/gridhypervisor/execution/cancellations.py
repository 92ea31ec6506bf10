"""Has batch jobs ended at one site: what comes while a command is under way goes, all together, with the next.

So one alone goes at once, and when pilots serve very many jobs whose own batch jobs still wait, the batch system sees
few commands. What it answers is not believed: whether they are gone, its next listing says.
"""

from __future__ import annotations

import asyncio

from gridhypervisor.execution.connection import Connection


class Cancellations:
    """Those of one connection."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._waiting: dict[tuple[str, str], asyncio.Future[None]] = {}
        self._work: asyncio.Task[None] | None = None

    async def cancel(self, name: str, batch_id: str) -> None:
        """Ask for it; returns when the batch system was asked.

        Raises:
            LinkLost, LinkError: nobody knows whether it was.
        """
        answer = self._waiting.setdefault((name, batch_id), asyncio.get_running_loop().create_future())
        if self._work is None or self._work.done():
            # A task of its own: whoever stops waiting for one job does not stop the others.
            self._work = asyncio.create_task(self._cancel_what_waits())
        await asyncio.shield(answer)

    async def _cancel_what_waits(self) -> None:
        while self._waiting:
            jobs, self._waiting = self._waiting, {}
            failure: Exception | None = None
            try:
                await self._connection.batch(self._connection.driver.cancel(list(jobs)))
            except Exception as error:
                failure = error
            for answer in jobs.values():
                if failure is None:
                    answer.set_result(None)
                else:
                    answer.set_exception(failure)
