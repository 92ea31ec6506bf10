"""Jobs of the service's own: small ones by which it finds out or prepares something, and that nobody else knows.

Each is a job like any other, so every rule that holds for jobs holds for it. When whoever has it is done, however that
ends, the job is deleted.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

from gridhypervisor.execution.controller import Controller
from gridhypervisor.execution.present import job_view
from gridhypervisor.model.commit import Birth, JobRecords, StoreError
from gridhypervisor.model.records import Event, Job, JobState, Vm, Wish
from gridhypervisor.model.spec import JobSpec
from gridhypervisor.model.wire import ImageManifest


class OwnJob:
    def __init__(self, controller: Controller, name: str) -> None:
        self.id = name
        self.told = ""  # what it did last, in words
        self._controller = controller

    async def ended(self, patience: float, tell: Callable[[str], None]) -> JobRecords | None:
        """The job when it has ended and its logs are here, or as it is after `patience` seconds; None: somebody deleted
        it. `tell` is told what it does."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience):
                await self._follow(tell)
        return await self._controller.in_store(self._controller.store.job, self.id)

    async def _follow(self, tell: Callable[[str], None]) -> None:
        controller, changed = self._controller, asyncio.Event()
        controller.followers.follow(self.id, changed)
        try:
            while (case := controller.cases.get(self.id)) is not None:
                changed.clear()
                view = job_view(case, controller.waiting.get(self.id, ""))
                if (words := view.note or str(view.state)) != self.told:
                    self.told = words
                    tell(words)
                await changed.wait()
        finally:
            controller.followers.unfollow(self.id, changed)


class OwnJobs:
    def __init__(self, controller: Controller, *, owner: str, project: str) -> None:
        self.controller, self._owner, self._project = controller, owner, project

    @contextlib.asynccontextmanager
    async def begun(self, spec: JobSpec, digest: str, image: ImageManifest, why: str) -> AsyncIterator[OwnJob]:
        """A job of this spec, of the image with that digest.

        Raises:
            StoreError: it cannot be written down.
        """
        beginning = asyncio.create_task(self._begin(spec, digest, image, why))
        try:
            yield OwnJob(self.controller, await asyncio.shield(beginning))
        finally:
            with contextlib.suppress(StoreError):  # then the next service does it, or it ends by itself
                await self.controller.wish(await beginning, Wish.DELETE)

    async def _begin(self, spec: JobSpec, digest: str, image: ImageManifest, why: str) -> str:
        now, who = self.controller.clock(), (self._owner, self._project)
        job = Job("", *who, str(spec.name), spec, "/", "/", image, digest, now, version=1)
        event = Event(now, *who, "", "job", "", "", JobState.PENDING, message=why)
        return (await self.controller.create(Birth(job, Vm("", *who, "", version=1), event))).job.id
