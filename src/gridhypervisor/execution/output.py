"""Output of running programs, as it comes, for jobs that somebody watches: asks for it, and writes it to the logs.

It may miss pieces, and says so: all of a run's output comes home at its end.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from gridhypervisor.execution.cases import Cases
from gridhypervisor.execution.logs import OUTPUT, Logs
from gridhypervisor.execution.ports import Session
from gridhypervisor.model.records import AllocationState

WRITING = 64
"""Pieces of output, of up to 256 KiB, that may wait for the disk; what comes beyond comes when the run has ended."""


class Output:
    """`tell` is called with a job of which more output is there, and with what keeps it from the disk, if anything."""

    def __init__(
        self, sessions: Mapping[str, Session], cases: Cases, logs: Logs, tell: Callable[[str, str], None]
    ) -> None:
        self._sessions, self._cases, self._logs, self._tell = sessions, cases, logs, tell
        self._watched: Counter[str] = Counter()  # job -> those who watch it
        self._scribe = ThreadPoolExecutor(1, thread_name_prefix="output")
        self._pieces = 0  # on their way to the disk

    def watch(self, job: str) -> None:
        self._watched[job] += 1
        self._ask(job)

    def unwatch(self, job: str) -> None:
        self._watched[job] -= 1
        if not self._watched[job]:
            del self._watched[job]
            self._ask(job)

    def job_changed(self, job: str) -> None:
        if job in self._watched:
            self._ask(job)

    def _ask(self, job: str) -> None:
        """Have the sessions send what its running allocations print, or no more."""
        case = self._cases.get(job)
        for a in case.allocations if case is not None else ():
            session = self._sessions.get(a.site)
            if session is None:
                continue
            if a.state is AllocationState.RUNNING and job in self._watched:
                session.watch(a.pilot_job, {stream: self._logs.size(job, a.epoch, stream) for stream in OUTPUT})
            else:
                session.watch(a.pilot_job, None)

    def take(self, site: str, entry: str, stream: str, offset: int, data: bytes) -> None:
        """A session has a piece."""
        job, home = self._cases.home(entry)
        if home != site or self._pieces >= WRITING:
            return
        epoch = next(a.epoch for a in self._cases[job].allocations if a.pilot_job == entry)
        self._pieces += 1
        write = partial(self._logs.write, job, epoch, stream, offset, data)
        written = asyncio.get_running_loop().run_in_executor(self._scribe, write)
        written.add_done_callback(partial(self._written, job))

    def _written(self, job: str, written: asyncio.Future[None]) -> None:
        self._pieces -= 1
        error = None if written.cancelled() else written.exception()
        why = (error.strerror if isinstance(error, OSError) else None) or error
        self._tell(job, f"write its output to {self._logs.root}: {why}; all comes at its end" if error else "")

    def close(self) -> None:
        self._scribe.shutdown()
