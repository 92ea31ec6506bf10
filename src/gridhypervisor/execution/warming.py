"""Has sites make snapshots ahead of use, for `ghv image warm`: one small job at each. What it is, and what came of it,
is decided in `planning.warming`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from gridhypervisor.execution.controller import Controller
from gridhypervisor.execution.ownjobs import OwnJobs
from gridhypervisor.model.spec import JobSpec
from gridhypervisor.model.views import Check
from gridhypervisor.model.wire import ImageManifest
from gridhypervisor.planning import warming


class Warming:
    def __init__(self, controller: Controller, *, owner: str, project: str) -> None:
        self._controller, self._jobs = controller, OwnJobs(controller, owner=owner, project=project)

    async def run(
        self, like: JobSpec, digest: str, image: ImageManifest, sites: Sequence[str], patience: float,
        progress: Callable[[str], None],
    ) -> list[Check]:  # fmt: skip
        """At all of these sites at once, each within `patience` seconds. `like`: the jobs that are to come.

        Raises:
            StoreError: a job cannot be written down.
        """
        tasks = [asyncio.create_task(self._at(site, like, digest, image, patience, progress)) for site in sites]
        try:
            return list(await asyncio.gather(*tasks))
        finally:
            for task in tasks:
                if not task.cancelling():  # it withdraws its job, which a second word would end
                    task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _at(
        self, site: str, like: JobSpec, digest: str, image: ImageManifest, patience: float,
        progress: Callable[[str], None],
    ) -> Check:  # fmt: skip
        facts = self._controller.facts()[site]
        if (check := warming.untried(like, facts)) is not None:
            return check
        spec = warming.spec(like, site, facts.max_walltime)
        async with self._jobs.begun(spec, digest, image, f"to have a snapshot at {site}") as job:
            found = await job.ended(patience, lambda words: progress(f"{job.id} at {site}: {words}"))
            if found is None:
                return warming.deleted(like, site)
            if not found.job.state.final:
                return warming.unended(like, found.job, patience, job.told)
            return warming.judged(like, found)
