"""Runs a probe: a small batch job of ours by which `ghv site check` learns what a site's nodes can do.

Probes whose check ended with an earlier service are withdrawn. What to ask for and what it means is decided in
`planning.probes`.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from gridhypervisor.execution.controller import Controller
from gridhypervisor.execution.ownjobs import OwnJobs
from gridhypervisor.model.commit import JobRecords, StoreError
from gridhypervisor.model.records import Wish
from gridhypervisor.model.views import Check
from gridhypervisor.model.wire import ImageManifest, NodeReport
from gridhypervisor.planning import probes

LAST_WORDS = 2000
"""Bytes of a batch script's log that are looked at."""


class Probes:
    def __init__(self, controller: Controller, *, owner: str, project: str) -> None:
        self._controller, self._jobs = controller, OwnJobs(controller, owner=owner, project=project)

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
        facts = self._controller.facts().get(there.site)
        spec = probes.spec(there.site, facts.max_walltime if facts is not None else None)
        async with self._jobs.begun(spec, "", ImageManifest(()), f"to check {there.site}") as job:
            found = await job.ended(patience, lambda words: progress(f"probe {job.id} at {there.site}: {words}"))
            if found is None:
                return [probes.untried("somebody deleted the probe", f"ghv site check {there.site}")], None
            if not found.job.state.final:
                return [probes.unended(found.job, patience, job.told)], None
            return probes.judged(found, there, await self._last_words(found)), _report(found)

    async def _last_words(self, found: JobRecords) -> str:
        """What its batch script printed last, in one line."""
        log = await asyncio.to_thread(self._controller.logs.read, found.job.id, "batch", 0, LAST_WORDS)
        lines = log.decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else ""


def _report(found: JobRecords) -> NodeReport | None:
    return next((a.exit.report for a in reversed(found.allocations) if a.exit is not None), None)
