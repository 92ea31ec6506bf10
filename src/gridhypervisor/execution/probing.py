"""Runs a probe: a small batch job of ours by which `ghv site check` learns what a site's nodes can do.

A job that nobody but its check knows: when the check ends, however it ends, the job is deleted, and so is one whose
check ended with an earlier service. What to ask for and what it means is decided in `planning.probes`.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from gridhypervisor.execution.controller import Controller
from gridhypervisor.execution.present import job_view
from gridhypervisor.model.commit import Birth, JobRecords, StoreError
from gridhypervisor.model.records import Event, Job, JobState, Vm, Wish
from gridhypervisor.model.views import Check
from gridhypervisor.model.wire import ImageManifest, NodeReport
from gridhypervisor.planning import probes

LAST_WORDS = 2000
"""Bytes of a batch script's log that are looked at."""


class Probes:
    def __init__(self, controller: Controller, *, owner: str, project: str) -> None:
        self._controller, self._owner, self._project = controller, owner, project

    async def sweep(self) -> None:
        """Withdraw those of an earlier service."""
        for job in [case.job for case in self._controller.cases.values() if case.job.probe]:
            with contextlib.suppress(StoreError):  # it ends by itself
                await self._controller.wish(job.id, Wish.DELETE)

    async def run(
        self, there: probes.FrontEnd, patience: float, progress: Callable[[str], None]
    ) -> tuple[list[Check], NodeReport | None]:
        """What a probe at a site proves, and what it reports if it does. It has `patience` seconds.

        Raises:
            StoreError: it cannot be written down.
        """
        beginning, told = asyncio.create_task(self._begin(there.site)), ""
        try:
            job = await asyncio.shield(beginning)

            def tell(words: str) -> None:
                nonlocal told
                if words != told:
                    told = words
                    progress(f"probe {job} at {there.site}: {words}")

            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(patience):
                    await self._ended(job, tell)
            found = await self._controller.in_store(self._controller.store.job, job)
            if found is None:
                return [probes.untried("somebody deleted the probe", f"ghv site check {there.site}")], None
            if not found.job.state.final:
                return [probes.unended(found.job, patience, told)], None
            return probes.judged(found, there, await self._last_words(found)), _report(found)
        finally:
            with contextlib.suppress(StoreError):  # then the next service does it
                await self._controller.wish(await beginning, Wish.DELETE)

    async def _begin(self, site: str) -> str:
        controller = self._controller
        facts, now = controller.facts().get(site), controller.clock()
        spec = probes.spec(site, facts.max_walltime if facts is not None else None)
        who = self._owner, self._project
        job = Job("", *who, str(spec.name), spec, "/", "/", ImageManifest(()), "", now, version=1)
        event = Event(now, *who, "", "job", "", "", JobState.PENDING, message=f"to check {site}")
        return (await controller.create(Birth(job, Vm("", *who, "", version=1), event))).job.id

    async def _ended(self, job: str, tell: Callable[[str], None]) -> None:
        """Return when it has ended and its logs are here."""
        controller, changed = self._controller, asyncio.Event()
        controller.followers.follow(job, changed)
        try:
            while (case := controller.cases.get(job)) is not None:
                changed.clear()
                view = job_view(case, controller.waiting.get(job, ""))
                tell(view.note or view.state)
                await changed.wait()
        finally:
            controller.followers.unfollow(job, changed)

    async def _last_words(self, found: JobRecords) -> str:
        """What its batch script printed last, in one line."""
        log = await asyncio.to_thread(self._controller.logs.read, found.job.id, "batch", 0, LAST_WORDS)
        lines = log.decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else ""


def _report(found: JobRecords) -> NodeReport | None:
    return next((a.exit.report for a in reversed(found.allocations) if a.exit is not None), None)
