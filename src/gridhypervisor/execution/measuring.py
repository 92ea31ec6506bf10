"""What is measured of the running service, put together when somebody asks; and how late the event loop is."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable

from gridhypervisor.execution.controller import Controller
from gridhypervisor.execution.counts import Durations
from gridhypervisor.model.measures import Measures, SiteMeasures
from gridhypervisor.model.views import SiteView

LAG_INTERVAL = 5.0
"""Seconds between two looks at how late the event loop is."""


async def watch_lag(lag: Durations) -> None:
    """Until cancelled: what takes the loop too long shows here, whatever it is."""
    loop = asyncio.get_running_loop()
    while True:
        due = loop.time() + LAG_INTERVAL
        await asyncio.sleep(LAG_INTERVAL)
        lag.add(max(0.0, loop.time() - due))


def measures(controller: Controller, sites: Iterable[SiteView], started: float, used: tuple[float, int]) -> Measures:
    """`used`: CPU seconds and bytes of memory, of this process."""
    counts = controller.counts
    return Measures(
        jobs=Counter(str(case.job.state) for case in controller.cases.values()),
        groups=len(controller.groups.alive()),
        seeking=len(controller.seeking),
        actions=dict(counts.actions),
        calls=dict(counts.calls),
        store=counts.store.taken(),
        passes=counts.passes.taken(),
        lag=counts.lag.taken(),
        sites=tuple(
            SiteMeasures(s.name, s.health, s.queued, s.running, s.max_jobs, s.draining, counts.beats[s.name])
            for s in sites
        ),
        started=started,
        cpu_seconds=used[0],
        resident=used[1],
    )
