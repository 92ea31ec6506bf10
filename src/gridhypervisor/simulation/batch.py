"""A batch system in the words of the fork queue: FIFO over nodes with slots, which forgets ended jobs after a while."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache

from gridhypervisor.model.wire import Command, CommandResult
from gridhypervisor.simulation.dialect import BUSY
from gridhypervisor.simulation.pilot import Pilot

KILL_WAIT = 10.0
"""Seconds between TERM and KILL."""

OVER_TIME = 60.0
"""Seconds beyond its walltime after which a job is ended by force."""


@dataclass
class Node:
    name: str
    free: int
    lost: bool = False


@dataclass
class BatchEntry:
    """One batch job, as the batch system's own record."""

    id: str
    name: str
    cpus: int
    walltime: float
    listed_from: float
    state: str = "PENDING"  # PENDING RUNNING ENDED NODE_LOST
    reason: str = "Resources"
    node: Node | None = None
    code: int | None = None
    restarts: int = 0
    ended_at: float | None = None
    pilot: Pilot | None = None  # the present run; of a run that was given up, see Batch.strays

    def line(self) -> str:
        node = self.node.name if self.node is not None else ""
        return _line(self.id, self.name, self.state, self.reason, self.code, node, self.restarts)


@lru_cache(1 << 14)
def _line(batch_id: str, name: str, state: str, reason: str, code: int | None, node: str, restarts: int) -> str:
    """A job in a listing; remembered, for most jobs are listed unchanged again and again."""
    return json.dumps(
        {"id": batch_id, "name": name, "state": state, "reason": reason, "code": code, "node": node,
         "restarts": restarts}
    )  # fmt: skip


@dataclass
class Weather:
    """What is wrong with the batch system now. Each submission takes the first of `submissions`, if there is one.

    A submission: "lost" (dropped, no answer), "mute" (taken, no answer), "late" (taken after `late` seconds, no
    answer), "refused", "busy" (for now). A listing: "" | "empty" | "fails".
    """

    submissions: deque[str] = field(default_factory=deque)
    late: float = 100.0
    listing: str = ""
    listing_lag: float = 0.0


class Batch:
    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        nodes: int,
        slots: int,
        launch: Callable[[BatchEntry, Callable[[int | None], None]], Pilot],
        memory: float = 300.0,
    ) -> None:
        self._loop, self._launch, self._memory = loop, launch, memory
        self.nodes = [Node(f"n{i}", slots) for i in range(nodes)]
        self.jobs: dict[str, BatchEntry] = {}  # by id
        self.queue: deque[BatchEntry] = deque()
        self.weather = Weather()
        self.strays: list[Pilot] = []  # runs on nodes that were given up: their processes may live
        self.submitted = 0
        self._count = 0
        self._scheduling = False

    # -- its commands ----------------------------------------------------------------------------------------------

    def command(self, command: Command) -> CommandResult:
        """`… forkq --dir D submit|list|cancel …`"""
        words = command.argv[command.argv.index("forkq") + 3 :]
        match words[0]:
            case "submit":
                options = dict(zip(words[1::2], words[2::2], strict=True))
                name, cpus, walltime = options["--name"], int(options["--cpus"]), float(options["--walltime"])
                return self._submit(name, cpus, walltime)
            case "list":
                return self._list()
            case "cancel":
                for batch_id in words[1:]:
                    self.cancel(batch_id)
                return CommandResult(0)
            case _:
                return CommandResult(2, "", f"forkq: unknown command {words[0]}")

    def _submit(self, name: str, cpus: int, walltime: float) -> CommandResult:
        fate = self.weather.submissions.popleft() if self.weather.submissions else ""
        match fate:
            case "lost":
                return CommandResult(None, "", "no answer")
            case "mute":
                self._take(name, cpus, walltime)
                return CommandResult(None, "", "no answer")
            case "late":
                self._loop.call_later(self.weather.late, self._take, name, cpus, walltime)
                return CommandResult(None, "", "no answer")
            case "busy":
                return CommandResult(BUSY, "", "forkq: submit: too many jobs of this account, for now")
            case "refused":
                return CommandResult(1, "", "forkq: submit: over the limit of this account")
            case _:
                return CommandResult(0, self._take(name, cpus, walltime) + "\n")

    def _take(self, name: str, cpus: int, walltime: float) -> str:
        self._count += 1
        self.submitted += 1
        job = BatchEntry(str(self._count), name, cpus, walltime, self._loop.time() + self.weather.listing_lag)
        self.jobs[job.id] = job
        self.queue.append(job)
        self._schedule_soon()
        return job.id

    def _list(self) -> CommandResult:
        now = self._loop.time()
        if self.weather.listing == "fails":
            return CommandResult(1, "", "forkq: list: cannot reach the queue")
        if self.weather.listing == "empty":
            return CommandResult(0)
        for job in list(self.jobs.values()):
            if job.ended_at is None or job.ended_at + self._memory > now:
                break  # they end about in the order in which they came: enough to forget from the front
            del self.jobs[job.id]
        return CommandResult(0, "\n".join(job.line() for job in self.jobs.values() if job.listed_from <= now))

    def cancel(self, batch_id: str) -> None:
        """TERM, then KILL; of an id or a name that is not there, nothing."""
        for job in [j for j in self.jobs.values() if batch_id in (j.id, j.name)]:
            if job.state == "PENDING":
                self.queue.remove(job)
                self._ended(job, None, "Cancelled")
            elif job.state == "RUNNING" and job.pilot is not None:
                job.pilot.end("the batch system asked it to stop")
                self._loop.call_later(KILL_WAIT, job.pilot.destroy)

    # -- its scheduler ---------------------------------------------------------------------------------------------

    def _schedule_soon(self) -> None:
        if not self._scheduling:
            self._scheduling = True
            self._loop.call_later(0.05, self._schedule)

    def _schedule(self) -> None:
        self._scheduling = False
        free = deque(n for n in self.nodes if n.free > 0 and not n.lost)
        while self.queue and free:
            job, node = self.queue.popleft(), free[0]
            node.free -= 1
            if node.free == 0:
                free.popleft()
            job.state, job.reason, job.node = "RUNNING", "", node
            run = job.restarts

            def done(code: int | None, job: BatchEntry = job, run: int = run) -> None:
                if job.restarts == run and job.state == "RUNNING":
                    self._free(job)
                    self._ended(job, code, "" if code == 0 else "Killed" if code is None else f"ExitCode {code}")

            job.pilot = self._launch(job, done)
            self._loop.call_later(job.walltime + OVER_TIME, job.pilot.destroy)

    def _free(self, job: BatchEntry) -> None:
        if job.node is not None:
            job.node.free += 1
            self._schedule_soon()

    def _ended(self, job: BatchEntry, code: int | None, reason: str) -> None:
        job.state, job.code, job.reason, job.ended_at = "ENDED", code, reason, self._loop.time()

    # -- what befalls it -------------------------------------------------------------------------------------------

    def requeue(self, job: BatchEntry, *, confirmed: bool = True) -> None:
        """The site runs a job again. Not confirmed: the first run's node was given up, its processes live on."""
        if job.state not in ("RUNNING", "NODE_LOST", "ENDED") or job.pilot is None:
            return
        if job.state == "RUNNING":
            self._free(job)
        old, job.pilot = job.pilot, None
        job.state, job.reason, job.node, job.code, job.ended_at = "PENDING", "Requeued", None, None, None
        job.restarts += 1
        if confirmed:
            old.destroy()
        else:
            old.cut = True
            self.strays.append(old)
        self.queue.append(job)
        self._schedule_soon()

    def lose_node(self, node: Node, *, alive: bool) -> None:
        """The batch system gives a node up; what runs there is dead, or lives on and reaches nobody."""
        node.lost = True
        for job in self.jobs.values():
            if job.node is node and job.state == "RUNNING":
                assert job.pilot is not None
                job.state, job.reason, job.ended_at = "NODE_LOST", "NodeFail", self._loop.time()
                node.free += 1
                self.strays.append(job.pilot)
                job.pilot.cut = True
                if not alive:
                    job.pilot.destroy()

    def heal(self) -> None:
        """Nodes come back, and whatever runs on them reaches the spool again."""
        for node in self.nodes:
            node.lost = False
        for pilot in self.strays:
            pilot.cut = False
        self.strays = [p for p in self.strays if p.alive]
        self._schedule_soon()

    def pilots(self) -> list[Pilot]:
        return [j.pilot for j in self.jobs.values() if j.pilot is not None and j.pilot.alive]
