"""Answers the beats of pilots whose guests may run only as long as somebody answers (`on_silence: replace`).

Each answer is given after the store was asked, after the beat came, how the allocation stands: so whoever has committed
that it is fenced knows that no later beat was answered. One message goes to a site at a time, with all that came
meanwhile; an answer that is lost is not repeated, since the next beat gets its own. How long a grant lasts and who gets
one is `planning.grants`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from gridhypervisor.execution.cases import Cases
from gridhypervisor.execution.ports import Session, Store
from gridhypervisor.execution.storing import StoreThread
from gridhypervisor.model.commit import StoreError
from gridhypervisor.model.replacing import replace
from gridhypervisor.planning.grants import GRANTED, grant_of, renewal


class Grants:
    def __init__(
        self,
        store: Store,
        in_store: StoreThread,
        sessions: Mapping[str, Session],
        cases: Cases,
        clock: Callable[[], float],
    ) -> None:
        self._store, self._in_store, self._sessions, self._cases, self._clock = store, in_store, sessions, cases, clock
        self._beats: dict[str, dict[str, int]] = {}  # by site and entry: those not yet answered
        self._answering: dict[str, asyncio.Task[None]] = {}  # by site

    def heard(self, site: str, job: str, entry: str, beat: int) -> None:
        """A beat has come, of this number."""
        case = self._cases.get(job)
        if case is None or not (grant := grant_of(case.job)):
            return
        if self._clock() < self._cases.observed(job, entry).granted_at + renewal(grant):
            return
        self._beats.setdefault(site, {})[entry] = beat
        if site not in self._answering:
            self._answering[site] = asyncio.create_task(self._answer(site))

    async def close(self) -> None:
        tasks = list(self._answering.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _answer(self, site: str) -> None:
        try:
            while beats := self._beats.pop(site, None):
                await self._answer_all(site, beats, self._clock())
        except (StoreError, OSError):
            pass  # a full disk, mostly: the next beats are answered when there is room, or nothing is
        finally:
            del self._answering[site]

    async def _answer_all(self, site: str, beats: Mapping[str, int], came: float) -> None:
        allocations = {entry: a for entry in beats if (a := self._cases.allocation(entry))}
        states = await self._in_store(self._store.states, list(allocations.values()))
        granted = {entry: beats[entry] for entry, a in allocations.items() if states.get(a) in GRANTED}
        session = self._sessions.get(site)
        if not granted or session is None or not await session.grant(granted):
            return
        for entry in granted:
            job, _ = self._cases.home(entry)
            self._cases.observe(job, entry, replace(self._cases.observed(job, entry), granted_at=came))
