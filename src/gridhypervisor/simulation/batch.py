"""A batch system in the words of the fork queue: first come, first served over nodes, which forgets ended jobs after a
while. Where it is to, it fills gaps as EASY does; other people's jobs may be in its queue, which no listing tells us.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import islice
from typing import NamedTuple

from gridhypervisor.model.batch import Warm
from gridhypervisor.model.wire import Command, CommandResult
from gridhypervisor.simulation.dialect import BUSY
from gridhypervisor.simulation.pilot import Pilot

KILL_WAIT = 10.0
"""Seconds between TERM and KILL."""

OVER_TIME = 60.0
"""Seconds beyond its walltime after which a job is ended by force."""


DEPTH = 50
"""Jobs behind the first that waits, of which it is asked whether they fill a gap."""


class Stay(NamedTuple):
    """What a job had of the site: cores, from when to when, in seconds of the loop's time. Others' have no name."""

    name: str
    begin: float
    end: float
    cores: int


@dataclass(eq=False)
class Node:
    name: str
    slots: int
    free: int
    lost: bool = False
    running: dict[str, BatchEntry] = field(default_factory=dict)  # by id


@dataclass(frozen=True)
class Rules:
    """How it serves its queue."""

    by_cpus: bool = False  # a job takes as many slots as it has CPUs; else one
    backfill: bool = False  # who waits behind the first may begin where that does not delay it


SIMPLE = Rules()


@dataclass(eq=False)
class BatchEntry:
    """One batch job, as the batch system's own record."""

    id: str
    name: str  # empty: somebody else's
    size: int  # slots that it takes, of one node
    walltime: float
    listed_from: float
    state: str = "PENDING"  # PENDING RUNNING ENDED NODE_LOST
    reason: str = "Resources"
    node: Node | None = None
    code: int | None = None
    restarts: int = 0
    began: float = 0.0  # the present run
    ended_at: float | None = None
    pilot: Pilot | None = None  # the present run; of a run that was given up, see Batch.strays
    seconds: float = 0.0  # that somebody else's runs
    limit: asyncio.TimerHandle | None = None  # at which the present run is ended by force
    warm: Warm | None = None  # its pilot may serve others

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
    answer), "refused", "busy" (for now). A listing: "" | "empty" | "fails". `boasts`: it says that
    all cores are free, whatever is so.
    """

    submissions: deque[str] = field(default_factory=deque)
    chance: Callable[[], str] = str  # what befalls a submission for which `submissions` has nothing
    wait: Callable[[], float] = float  # seconds from a submission until the job is considered
    late: float = 100.0
    listing: str = ""
    listing_lag: float = 0.0
    boasts: bool = False


class Batch:
    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        nodes: int,
        slots: int,
        launch: Callable[[BatchEntry, Callable[[int | None], None]], Pilot],
        memory: float = 300.0,
        rules: Rules = SIMPLE,
    ) -> None:
        self._loop, self._launch, self._memory, self._rules = loop, launch, memory, rules
        self.nodes = [Node(f"n{i}", slots, slots) for i in range(nodes)]
        self.jobs: dict[str, BatchEntry] = {}  # by id
        self.queue: deque[BatchEntry] = deque()
        self.weather = Weather()
        self.strays: list[Pilot] = []  # runs on nodes that were given up: their processes may live
        self.stays: list[Stay] = []  # that are over, of ours
        self.others: list[Stay] = []
        self.submitted = 0
        self._over: deque[tuple[float, BatchEntry]] = deque()  # when which ended, to be forgotten in that order
        self._count = 0
        self._scheduling = False

    # -- its commands ----------------------------------------------------------------------------------------------

    def command(self, command: Command) -> CommandResult:
        """`… forkq --dir D submit|list|nodes|cancel …`"""
        words = command.argv[command.argv.index("forkq") + 3 :]
        match words[0]:
            case "submit":
                options = dict(zip(words[1::2], words[2::2], strict=True))
                name, cpus, walltime = options["--name"], int(options["--cpus"]), float(options["--walltime"])
                warm = Warm(options["--pool"], float(options["--idle"])) if "--pool" in options else None
                return self._submit(name, cpus, walltime, warm)
            case "list":
                return self._list()
            case "nodes":
                return self._nodes()
            case "cancel":
                for batch_id in words[1:]:
                    self.cancel(batch_id)
                return CommandResult(0)
            case _:
                return CommandResult(2, "", f"forkq: unknown command {words[0]}")

    def _submit(self, name: str, cpus: int, walltime: float, warm: Warm | None) -> CommandResult:
        fate = self.weather.submissions.popleft() if self.weather.submissions else self.weather.chance()
        match fate:
            case "lost":
                return CommandResult(None, "", "no answer")
            case "mute":
                self._take(name, cpus, walltime, warm)
                return CommandResult(None, "", "no answer")
            case "late":
                self._loop.call_later(self.weather.late, self._take, name, cpus, walltime, warm)
                return CommandResult(None, "", "no answer")
            case "busy":
                return CommandResult(BUSY, "", "forkq: submit: too many jobs of this account, for now")
            case "refused":
                return CommandResult(1, "", "forkq: submit: over the limit of this account")
            case _:
                return CommandResult(0, self._take(name, cpus, walltime, warm) + "\n")

    def _take(self, name: str, cpus: int, walltime: float, warm: Warm | None) -> str:
        self.submitted += 1
        job = self._entry(name, cpus, walltime)
        job.warm = warm
        self.jobs[job.id] = job
        if wait := self.weather.wait():
            self._loop.call_later(wait, self._consider, job)
        else:
            self._consider(job)
        return job.id

    def _entry(self, name: str, cpus: int, walltime: float) -> BatchEntry:
        self._count += 1
        size = cpus if self._rules.by_cpus else 1
        return BatchEntry(str(self._count), name, size, walltime, self._loop.time() + self.weather.listing_lag)

    def _consider(self, job: BatchEntry) -> None:
        if job.state == "PENDING":  # else it was cancelled meanwhile
            self.queue.append(job)
            self._schedule_soon()

    def occupy(self, cpus: int, walltime: float, seconds: float) -> None:
        """Somebody else submits a job that will run so long."""
        job = self._entry("", cpus, walltime)
        job.seconds = seconds
        self._consider(job)

    def _list(self) -> CommandResult:
        now = self._loop.time()
        if self.weather.listing == "fails":
            return CommandResult(1, "", "forkq: list: cannot reach the queue")
        if self.weather.listing == "empty":
            return CommandResult(0)
        while self._over and self._over[0][0] + self._memory <= now:
            at, over = self._over.popleft()
            if over.ended_at == at:  # else it was run again
                self.jobs.pop(over.id, None)
        return CommandResult(0, "\n".join(job.line() for job in self.jobs.values() if job.listed_from <= now))

    def _nodes(self) -> CommandResult:
        if self.weather.listing == "fails":
            return CommandResult(1, "", "forkq: nodes: cannot reach the queue")
        boasts = self.weather.boasts
        nodes = [(node.name, node.slots, node.slots if boasts else node.free, node.lost) for node in self.nodes]
        return CommandResult(0, json.dumps({"nodes": nodes, "waiting": len(self.queue)}))

    def cancel(self, batch_id: str) -> None:
        """TERM, then KILL; of an id or a name that is not there, nothing."""
        for job in [j for j in self.jobs.values() if batch_id in (j.id, j.name)]:
            if job.state == "PENDING":
                if job in self.queue:
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
        tried: dict[int, int] = {}  # size -> the first node that may have room for it: there is only less as we go on
        while self.queue:
            node = self._room(self.queue[0].size, tried)
            if node is None:
                break
            self._begin(self.queue.popleft(), node)
        if self._rules.backfill and len(self.queue) > 1:
            self._fill_gaps(tried)

    def _room(self, size: int, tried: dict[int, int], but: Node | None = None) -> Node | None:
        for number in range(tried.get(size, 0), len(self.nodes)):
            node = self.nodes[number]
            if node.free >= size and not node.lost and node is not but:
                if but is None:
                    tried[size] = number
                return node
        if but is None:
            tried[size] = len(self.nodes)
        return None

    def _fill_gaps(self, tried: dict[int, int]) -> None:
        """The first that waits has a node reserved, where it can begin soonest if all take their walltimes: who keeps
        out of its way may go before it."""
        first, now = self.queue[0], self._loop.time()
        at, reserved, spare = min(
            (self._free_at(node, first.size) for node in self.nodes if not node.lost),
            key=lambda found: found[0],
            default=(float("inf"), None, 0),
        )
        for job in list(islice(self.queue, 1, DEPTH)):
            node = self._room(job.size, tried, reserved)
            if node is None and reserved is not None and reserved.free >= job.size:
                over_in_time = now + job.walltime <= at
                if over_in_time or job.size <= spare:
                    node, spare = reserved, spare - (0 if over_in_time else job.size)
            if node is not None:
                self.queue.remove(job)
                self._begin(job, node)

    @staticmethod
    def _free_at(node: Node, size: int) -> tuple[float, Node, int]:
        """When the node has so many slots free at the latest, and how many more."""
        free = node.free
        for end, taken in sorted((job.began + job.walltime, job.size) for job in node.running.values()):
            free += taken
            if free >= size:
                return end, node, free - size
        return float("inf"), node, 0

    def _begin(self, job: BatchEntry, node: Node) -> None:
        node.free -= job.size
        node.running[job.id] = job
        job.state, job.reason, job.node, job.began = "RUNNING", "", node, self._loop.time()
        if not job.name:
            self._loop.call_later(job.seconds, self._leave, job)
            return
        run = job.restarts

        def done(code: int | None) -> None:
            if job.restarts == run and job.state == "RUNNING":
                if job.limit is not None:
                    job.limit.cancel()
                self._free(job)
                self._ended(job, code, "" if code == 0 else "Killed" if code is None else f"ExitCode {code}")

        job.pilot = self._launch(job, done)
        job.limit = self._loop.call_later(job.walltime + OVER_TIME, job.pilot.destroy)

    def _leave(self, job: BatchEntry) -> None:
        if job.state == "RUNNING":
            self._free(job)
            job.state = "ENDED"

    def _free(self, job: BatchEntry) -> None:
        if job.node is not None:
            job.node.free += job.size
            del job.node.running[job.id]
            stays = self.stays if job.name else self.others
            stays.append(Stay(job.name, job.began, self._loop.time(), job.size))
            self._schedule_soon()

    def _ended(self, job: BatchEntry, code: int | None, reason: str, state: str = "ENDED") -> None:
        job.state, job.code, job.reason, job.ended_at = state, code, reason, self._loop.time()
        self._over.append((job.ended_at, job))

    def unfinished_stays(self) -> list[Stay]:
        """What has something of the site still, as if it ended now."""
        now = self._loop.time()
        return [Stay(job.name, job.began, now, job.size) for node in self.nodes for job in node.running.values()]

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
        for job in list(node.running.values()):
            self._free(job)
            self._ended(job, None, "NodeFail", "NODE_LOST")
            if job.pilot is not None:
                self.strays.append(job.pilot)
                job.pilot.cut = True
                if not alive:
                    job.pilot.destroy()

    def mend(self, node: Node) -> None:
        """A node comes back empty."""
        node.lost = False
        self._schedule_soon()

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
