"""Submits batch jobs at one site: what comes while a submission is under way waits, and goes as one after it.

So a lone job goes at once, and of many at a time the batch system sees few commands. Which of them can share one (an
array, say) the driver knows. What is refused as one of many is tried alone: the site may take no arrays, or the answer
be meant for another.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from gridhypervisor.execution.connection import Connection
from gridhypervisor.model.batch import Submission, Submitted

AT_ONCE = 1000
"""Jobs that one submission may hold."""


class Submissions:
    """Those of one connection."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._waiting: dict[Submission, asyncio.Future[Submitted]] = {}
        self._work: asyncio.Task[None] | None = None
        self._together = True

    async def submit(self, job: Submission) -> Submitted:
        """The batch system's answer for one job.

        Raises:
            LinkLost, LinkError: there is none.
        """
        answer: asyncio.Future[Submitted] = asyncio.get_running_loop().create_future()
        self._waiting[job] = answer
        if self._work is None or self._work.done():
            # A task of its own: whoever stops waiting for one job does not stop the others.
            self._work = asyncio.create_task(self._submit_what_waits())
        return await answer

    async def _submit_what_waits(self) -> None:
        while wanted := {job: answer for job, answer in self._waiting.items() if not answer.done()}:
            self._waiting = wanted
            jobs = list(self._waiting)[: AT_ONCE if self._together else 1]
            taken = {job: self._waiting.pop(job) for job in jobs}
            try:
                answers = await self._submit(jobs)
            except Exception as error:
                for answer in taken.values():
                    if not answer.done():
                        answer.set_exception(error)
                continue
            for job, answer in taken.items():
                if not answer.done():
                    answer.set_result(answers[job.name])

    async def _submit(self, jobs: Sequence[Submission]) -> dict[str, Submitted]:
        answers = await self._ask(jobs)
        refused = [job for job in jobs if answers[job.name].accepted is False]
        if len(jobs) > 1 and refused:
            for job in refused:
                answers |= await self._ask([job])
            self._together = not all(answers[job.name].accepted for job in refused)
        return answers

    async def _ask(self, jobs: Sequence[Submission]) -> dict[str, Submitted]:
        driver = self._connection.driver
        return driver.submitted(jobs, await self._connection.batch(driver.submit(jobs, self._connection.site)))
