"""An account at the simulated site, over its own relay's wire and in virtual time: the contract tests' first candidate.

Its batch system is the simulation's; what that starts are the pilots of these tests, as far as a batch system can tell
one from another: those that exit, wait for a signal, or heed none.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, cast

from gridhypervisor.model.batch import Submission
from gridhypervisor.model.wire import PROTOCOL, Op
from gridhypervisor.simulation.batch import Batch, BatchEntry
from gridhypervisor.simulation.loop import VirtualLoop
from gridhypervisor.simulation.site import SimulatedSite
from tests.contract.accounts import CAPACITY, OURS, WAITS, Account, Connected


@dataclass
class ScriptedPilot:
    """One run of a script: `echo $5` and what follows it, one of WAITS, DEAF and `exit CODE`."""

    script: str
    done: Callable[[int | None], None]
    alive: bool = True
    cut: bool = False
    seen: set[str] = field(default_factory=set)

    def begin(self, loop: asyncio.AbstractEventLoop) -> None:
        if code := re.search(r"exit (\d+)$", self.script):
            loop.call_later(0.1, self._over, int(code[1]))

    def end(self, message: str) -> None:
        if self.script.endswith(WAITS):
            self.seen.add("TERM")
            self._over(5)

    def destroy(self) -> None:
        self._over(None)

    def _over(self, code: int | None) -> None:
        if self.alive:
            self.alive = False
            self.done(code)


@dataclass
class SimulatedAccount(Account):
    def run(self, told: Coroutine[Any, Any, None]) -> None:
        with asyncio.Runner(loop_factory=VirtualLoop) as runner:
            loop = runner.get_loop()
            self.scripts, self.pilots = dict[str, str](), dict[str, ScriptedPilot]()
            self.cluster = SimulatedSite("simulated", loop, nodes=CAPACITY)
            self.cluster.account.batch = self.cluster.batch = Batch(loop, CAPACITY, 1, cast(Any, self._launch))
            runner.run(told)

    def _launch(self, job: BatchEntry, done: Callable[[int | None], None]) -> ScriptedPilot:
        pilot = self.pilots[job.name] = ScriptedPilot(self.scripts[job.name], done)
        pilot.begin(asyncio.get_running_loop())
        return pilot

    @asynccontextmanager
    async def connect(self, progress: Callable[[str], None] = lambda words: None) -> AsyncIterator[Connected]:
        notes: list[tuple[dict[str, Any], bytes]] = []
        async with self.cluster.transport.connect(lambda note, payload: notes.append((note, payload))) as link:
            hello, _ = await link.call(Op.HELLO, {"installation": OURS, "protocol": PROTOCOL}, timeout=240)
            driver = cast(Any, self.cluster.driver)
            yield SimulatedConnected(self, cast(Any, link), driver, str(hello["workdir"]), hello, notes)


class SimulatedConnected(Connected):
    account: SimulatedAccount

    async def prepared(
        self, script: str, *, name: str = "", cpus: int = 2, walltime: int = 600, memory: int = 64 << 20
    ) -> Submission:
        name = name or self.new_name()
        self.account.scripts[name] = script
        entry = f"{self.workdir}/spool/{name}"
        return Submission(name, entry, f"{entry}/start", "", cpus, memory, walltime)

    def has_begun(self, name: str) -> bool:
        return name in self.account.pilots

    def signals(self, name: str) -> set[str]:
        return self.account.pilots[name].seen

    async def said(self, name: str, words: str, seconds: float = 60) -> None:
        """Its pilots say nothing."""
        assert self.has_begun(name)
