"""Asks a site now and then what it has, and what of it is free: seldom, and the more so the longer an answer takes.

Nothing depends on the answers but what is published of the site. Jobs are listed, and the end of a link is noticed,
elsewhere.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from gridhypervisor.execution.connection import Connection
from gridhypervisor.execution.ports import Listener
from gridhypervisor.model.capacity import Capacity
from gridhypervisor.model.errors import LinkError, LinkLost
from gridhypervisor.model.replacing import replace

SURVEY, SELDOM = 60.0, 180.0
"""Seconds between two questions: while jobs of ours wait there, else."""

RESPITE = 20.0
"""How many times as long as an answer took passes at least before the next question."""

PART = 10
"""Of the commands that a site's user lets us give, at most one in so many is such a question."""

STALE = 600.0
"""Seconds after which an answer is not believed any more; more, where it is asked for more seldom."""


class Surveyor:
    """Of one site. `waits`: whether jobs of ours wait in its queue; `report`: told of a fault of ours."""

    def __init__(
        self,
        site: str,
        listener: Listener,
        clock: Callable[[], float],
        jitter: Callable[[], float],
        waits: Callable[[], bool],
        report: Callable[[Exception], None],
    ) -> None:
        self._site, self._listener, self._clock, self._jitter = site, listener, clock, jitter
        self._waits, self._report = waits, report
        self._capacity: Capacity | None = None
        self._pause = 0.0

    @property
    def capacity(self) -> Capacity | None:
        """The newest answer; None: there is none, or it is too old."""
        found = self._capacity
        return found if found is not None and self._clock() <= found.as_of + max(STALE, 3 * self._pause) else None

    def forget(self) -> None:
        """It is another site now."""
        self._capacity = None

    async def run(self, connection: Connection) -> None:
        """Until cancelled, or the link is lost."""
        least = 60.0 * PART * len(connection.driver.survey()) / connection.driver.rates.commands  # 0: no rate is set
        await asyncio.sleep(least)
        while True:
            as_of, found = self._clock(), None
            try:
                found = await connection.capacity()
            except LinkLost:
                return
            except LinkError:
                pass  # asked again
            except Exception as error:  # an answer that nobody has thought of
                self._report(error)
            took = self._clock() - as_of
            if found is not None:
                self._capacity = replace(found, as_of=as_of)
                self._listener.surveyed(self._site, self._capacity)
            self._pause = max(SURVEY if self._waits() else SELDOM, least, RESPITE * took)
            await asyncio.sleep(self._pause * self._jitter())
