"""A whole site in virtual time, with a census: how many guests each VM has, and what must never have happened."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from random import Random

from gridhypervisor.simulation.batch import SIMPLE, Batch, BatchEntry, Rules
from gridhypervisor.simulation.dialect import Dialect
from gridhypervisor.simulation.link import Way
from gridhypervisor.simulation.pilot import Pilot, Serving, Tempo
from gridhypervisor.simulation.relay import Account
from gridhypervisor.simulation.spool import Spool


class Census:
    """Guests that run now, by VM, over all sites that share it."""

    def __init__(self) -> None:
        self.guests: Counter[str] = Counter()
        self.harm: list[str] = []

    def guest(self, vm: str, change: int) -> None:
        self.guests[vm] += change
        if self.guests[vm] > 1:
            self.harm.append(f"{self.guests[vm]} guests of {vm}")


class SimulatedSite:
    """`transport` and `driver` are what a session needs; `batch`, `way` and `spool_lag` are where faults come in."""

    def __init__(
        self,
        name: str,
        loop: asyncio.AbstractEventLoop,
        *,
        nodes: int = 2,
        slots: int = 1,
        census: Census | None = None,
        tempo: Tempo | None = None,
        spool_lag: float = 0.0,
        listing_lag: float = 0.0,
        random: Random | None = None,
        memory: float = 300.0,
        rules: Rules = SIMPLE,
        idle: float = 0.0,
    ) -> None:
        self.name, self.census, self.tempo = name, census or Census(), tempo or Tempo()
        self.spool_lag = spool_lag  # at most; each write draws its own, so that files show out of order
        self._loop, self._random = loop, random or Random(0)
        self._runs = 0
        self.spool = Spool(loop, self._lag)
        self.batch = Batch(loop, nodes, slots, self._launch, memory, rules)
        self.batch.weather.listing_lag = listing_lag
        self.account = Account(self.spool, self.batch, loop.time)
        self.transport = self.way = Way(loop, self.account)
        self.driver = Dialect(listing_lag, spool_lag, idle=idle)

    def _lag(self) -> float:
        return self._random.uniform(0.0, self.spool_lag) if self.spool_lag else 0.0

    def _launch(self, job: BatchEntry, done: Callable[[int | None], None]) -> Pilot:
        self._runs += 1
        node = job.node.name if job.node is not None else ""
        claim = f"{self.name}:{self._runs}"
        warm = Serving(job.warm, self._loop.time() + job.walltime) if job.warm is not None else None
        return Pilot(self._loop, self.spool, job.name, node, claim, self.tempo, self.census.guest, done, warm)

    def calm(self) -> None:
        """Every fault stops; what was hurt is mended as far as it can be."""
        self.batch.weather.submissions.clear()
        self.batch.weather.listing = ""
        self.batch.heal()
        self.way.cut(0.0)  # also ends what hangs
        for pilot in self.batch.pilots():
            pilot.resume()
        if self.account.terms is not None and not self.account.terms.cores:
            self.account.lend(None)  # a lender who allows nothing would be waited for; one who allows little stays

    @property
    def unfinished(self) -> list[str]:
        """Batch jobs that wait or run."""
        return [j.name for j in self.batch.jobs.values() if j.state in ("PENDING", "RUNNING")]
