"""Submits batch jobs at one site: what comes while a submission is under way waits, and goes as one after it.

So a lone job goes at once, and of many at a time the batch system sees few commands. Which of them can share one (an
array, say) the driver knows. What is refused as one of many is tried alone: the site may take no arrays, or the answer
be meant for another.

Nothing goes faster than the site's user allows. What a batch system refuses because it has enough to do goes again
later, ever more seldom: it was surely not taken. Where there is no answer nobody knows, so that job does not go again,
and the others leave the batch system alone for a while.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from math import inf

from gridhypervisor.execution.connection import Connection
from gridhypervisor.model.batch import Submission, Submitted
from gridhypervisor.planning.pacing import Throttle, patience

AT_ONCE = 1000
"""Jobs that one submission may hold."""

UNSENT = Submitted(False, message="it was not given to the site any more", busy=True)


class Submissions:
    """Those of one connection. `room` is called when a batch system that was too busy may take jobs again; `tell` is
    told what a job waits for here. `jitter` gives a factor, around 1."""

    def __init__(
        self,
        connection: Connection,
        *,
        jitter: Callable[[], float] = lambda: 1.0,
        room: Callable[[], None] = lambda: None,
        tell: Callable[[str, str], None] = lambda job, words: None,
    ) -> None:
        self._connection, self._jitter, self._room, self._tell = connection, jitter, room, tell
        self._waiting: dict[Submission, asyncio.Future[Submitted]] = {}
        self._under_way: dict[Submission, asyncio.Future[Submitted]] = {}
        self._unwanted: set[str] = set()  # of those under way
        self._work: asyncio.Task[None] | None = None
        self._together = True
        self._throttle = Throttle(connection.driver.rates.jobs)
        self._patience = self._until = 0.0
        self._closed = asyncio.Event()
        self.busy = ""
        """Why the batch system is left alone; empty: it may well take jobs."""

    async def submit(self, job: Submission) -> Submitted:
        """The batch system's answer for one job.

        Raises:
            LinkLost, LinkError: there is none.
        """
        if self._closed.is_set():
            return UNSENT
        answer: asyncio.Future[Submitted] = asyncio.get_running_loop().create_future()
        self._waiting[job] = answer
        if self._delay():
            self._tell_why(job)
        if self._work is None or self._work.done():
            # A task of its own: whoever stops waiting for one job does not stop the others.
            self._work = asyncio.create_task(self._submit_what_waits())
        return await answer

    def withdraw(self, name: str) -> None:
        """A job that the batch system has not been given shall not be: that is its answer then."""
        for job in [job for job in self._waiting if job.name == name]:
            _settle(self._waiting.pop(job), UNSENT)
        self._unwanted |= {job.name for job in self._under_way if job.name == name}

    def close(self) -> None:
        """The connection has ended. What the batch system has not been given, it is not given any more."""
        self._closed.set()
        for job in list(self._waiting):
            self.withdraw(job.name)

    def describe(self) -> str:
        """In one line, for people: how fast jobs go, and what holds them up; empty where there is nothing to say."""
        words = [self._pace] if self._pace else []
        if self.busy:
            words.append(f"{self.busy}; tried again in {max(0.0, self._until - _now()):.0f} s")
        if self._waiting:
            words.append(f"waiting: {len(self._waiting)}")
        return "; ".join(words)

    @property
    def _pace(self) -> str:
        return f"at most {self._throttle.rate:g} jobs a minute" if self._throttle.rate < inf else ""

    async def _submit_what_waits(self) -> None:
        while not self._closed.is_set():
            self._waiting = {job: answer for job, answer in self._waiting.items() if not answer.done()}
            if not self._waiting and not self.busy:
                return
            if delay := self._delay():
                for job in self._waiting:
                    self._tell_why(job)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._closed.wait(), delay)
            elif self._waiting:
                most = min(AT_ONCE if self._together else 1, max(1, self._throttle.rate))
                jobs = list(self._waiting)[: int(most)]
                self._under_way = {job: self._waiting.pop(job) for job in jobs}
                self._throttle.take(len(jobs), _now())
                await self._give(jobs)
            else:
                self._relax()  # nobody waits any more who could find out

    def _delay(self) -> float:
        """Seconds until it is time for the next submission, if there is any; 0: now."""
        return max(0.0, self._until - _now(), self._throttle.delay(_now()) if self._waiting else 0.0)

    def _tell_why(self, job: Submission) -> None:
        self._tell(job.name, f"waits to be submitted: {self.busy or self._pace}")

    async def _give(self, jobs: Sequence[Submission]) -> None:
        """Have the answers to jobs that are under way; those that it was too busy for wait on, before all others."""
        try:
            answers = await self._submit(jobs)
        except Exception as error:
            for answer in self._under_way.values():
                if not answer.done():
                    answer.set_exception(error)
        else:
            again = {job: answer for job, answer in self._under_way.items() if answers[job.name].busy}
            for job in self._under_way.keys() - again.keys():
                _settle(self._under_way[job], answers[job.name])
            self._waiting = again | self._waiting
            unclear = [answer for answer in answers.values() if answer.busy or answer.accepted is None]
            if unclear:
                some = any(answer.accepted for answer in answers.values())
                self._patience = patience(0.0 if some else self._patience)
                self._until, self.busy = _now() + self._patience * self._jitter(), unclear[0].message
            else:
                self._relax()
        unwanted, self._under_way, self._unwanted = self._unwanted, {}, set()
        for name in unwanted:
            self.withdraw(name)
        if self._closed.is_set():
            self.close()

    def _relax(self) -> None:
        self._patience = self._until = 0.0
        if self.busy:
            self.busy = ""
            self._room()

    async def _submit(self, jobs: Sequence[Submission]) -> dict[str, Submitted]:
        answers = await self._ask(jobs)
        refused = [job for job in jobs if answers[job.name].accepted is False]
        if len(jobs) > 1 and refused:
            busy = any(answers[job.name].busy for job in refused)
            last: Submitted | None = None
            for job in refused:
                if last is None or not last.busy:  # else it is so for the rest, too
                    last = (await self._ask([job]))[job.name]
                answers[job.name] = last
            self._together = busy or not all(answers[job.name].accepted for job in refused)
        return answers

    async def _ask(self, jobs: Sequence[Submission]) -> dict[str, Submitted]:
        driver = self._connection.driver
        return driver.submitted(jobs, await self._connection.batch(driver.submit(jobs, self._connection.site)))


def _settle(answer: asyncio.Future[Submitted], what: Submitted) -> None:
    if not answer.done():
        answer.set_result(what)


def _now() -> float:
    return asyncio.get_running_loop().time()
