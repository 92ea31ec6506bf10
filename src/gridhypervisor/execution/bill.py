"""What each job costs in CPU seconds beside its run: its share of the controller, and of the relays it was at."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from gridhypervisor.execution.meter import Meter
from gridhypervisor.execution.ports import Session
from gridhypervisor.planning.world import Case


class Bill:
    """`cpu`: CPU seconds of this process so far."""

    def __init__(self, cpu: Callable[[], float], sessions: Mapping[str, Session]) -> None:
        self._cpu, self._sessions = cpu, sessions
        self._meter = Meter()
        self._began: dict[str, tuple[float, dict[str, float]]] = {}  # job -> the meters' values when it was taken up

    def share(self, alive: int) -> None:
        """What was used since the last time falls to so many jobs."""
        self._meter.advance(self._cpu(), alive)

    def open(self, job: str) -> None:
        relays = {name: session.relay_cpu.value for name, session in self._sessions.items()}
        self._began[job] = self._meter.value, relays

    def close(self, job: str) -> None:
        self._began.pop(job, None)

    def of(self, case: Case) -> dict[str, float]:
        """What falls to a job since it was opened."""
        own, relays = self._began[case.job.id]
        relay = 0.0
        for site in {a.site for a in case.allocations}:
            session = self._sessions.get(site)
            if session is not None:
                relay += session.relay_cpu.value - relays.get(site, 0.0)
        return {"controller": self._meter.value - own, "relay": relay}
