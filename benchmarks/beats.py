"""Figure 8: 10,000 pilots that beat at one controller: what a beat costs it, its memory, and how soon it acts.

The site is simulated and in the controller's process, in real time: every pilot beats every ten seconds, over a way of
10 ms. First nothing happens but beats and listings. Then guests end too, five a second, and others begin; from a
guest's last word at the site to the first action that follows, the collection of its results, is the latency. At the
end the controller is gone and the site beats on to a relay that nobody listens to: what that costs is the site's own
share. One process, many windows, each a run: a window holds as many beats as there are pilots, or fifty ends.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

from benchmarks.report import Report, figure
from benchmarks.simulated import create, open_grid
from gridhypervisor.execution.controller import Controller
from gridhypervisor.execution.garbage import spare_records
from gridhypervisor.execution.session import Session
from gridhypervisor.model.records import ActionKind
from gridhypervisor.model.wire import PROTOCOL, EntryView, Op, Phase, encode
from gridhypervisor.planning.draft import Action
from gridhypervisor.planning.world import Case, Outcome
from gridhypervisor.simulation.relay import Relay
from gridhypervisor.simulation.site import SimulatedSite

PILOTS, RUNS = 10_000, 15
BEAT = 10.0
"""Seconds between two beats of a pilot: `Manifest.beat`."""
QUIET, BUSY, ALONE = 5.0, 10.0, 2.0
"""Seconds of a window: with beats alone, with guests that end, and with the site alone."""
ENDS = 50
"""Guests that end in a window of those in which guests end."""
LIFE = 2
"""Windows after which the first of them have ended."""
STARTING = 600.0
"""Seconds within which all of them must run."""
LISTING = 10.0
"""The listing interval of real sites, in seconds."""


class Watched(Session):
    """Tells when the results of which entry began to be collected."""

    def __init__(self, *arguments: object, **named: object) -> None:
        super().__init__(*arguments, **named)  # type: ignore[arg-type]
        self.begun: dict[str, float] = {}

    async def act(self, action: Action, case: Case) -> Outcome:
        if action.kind is ActionKind.COLLECT:
            self.begun.setdefault(action.allocation.pilot_job, time.perf_counter())
        return await super().act(action, case)


class Seen:
    """What the site has to say, and when: beats, and ends by their entries."""

    def __init__(self) -> None:
        self.words = 0
        self.ended: dict[str, float] = {}

    def __call__(self, view: EntryView) -> None:
        self.words += 1
        if view.exit is not None:
            self.ended[view.entry] = time.perf_counter()


async def window(seconds: float, seen: Seen) -> float:
    """CPU microseconds of this process for each word of the site."""
    words, cpu = seen.words, time.process_time()
    await asyncio.sleep(seconds)
    return 1e6 * (time.process_time() - cpu) / max(1, seen.words - words)


def resident() -> float:
    """MiB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20


async def bring_up(controller: Controller, folder: Path, site: SimulatedSite, pilots: int) -> None:
    """Have so many guests run."""
    await create(controller, folder, range(pilots), 86_000)
    async with asyncio.timeout(STARTING):
        while _running(site) < pilots:
            await asyncio.sleep(1.0)


def _running(site: SimulatedSite) -> int:
    seen = (entry.seen.status for entry in site.spool.entries.values())
    return sum(status is not None and status.phase is Phase.EXECUTE for status in seen)


async def serve(folder: Path, pilots: int, runs: int) -> dict[str, list[float]]:
    loop = asyncio.get_running_loop()
    site = SimulatedSite("grid", loop, nodes=pilots + 1000)
    site.driver = replace(site.driver, listing_interval=LISTING)
    seen = Seen()
    site.spool.watchers.append(seen)
    found: dict[str, list[float]] = defaultdict(list)
    empty = resident()
    async with open_grid(folder, site, time.time, Watched, max_jobs=pilots + 1000) as controller:
        session = controller.sessions["grid"]
        assert isinstance(session, Watched)
        await bring_up(controller, folder, site, pilots)
        for _ in range(runs):
            found["beat"].append(await window(QUIET, seen))
            found["memory"].append(resident())
            found["share"].append(1024 * (resident() - empty) / pilots)
        for run in range(runs + LIFE):
            coming = asyncio.create_task(_churn(controller, folder, pilots + run * ENDS))
            await asyncio.sleep(BUSY)
            await coming
            ended, seen.ended = seen.ended, {}
            async with asyncio.timeout(STARTING):
                while not ended.keys() <= session.begun.keys():
                    await asyncio.sleep(0.1)
            if run >= LIFE:
                delays = sorted(1000 * (session.begun[entry] - moment) for entry, moment in ended.items())
                found["median"].append(statistics.median(delays))
                found["p99"].append(delays[-1 - len(delays) // 100])
    relay = Relay(site.account, lambda data: None)
    hello = {"id": 1, "op": Op.HELLO, "protocol": PROTOCOL, "installation": controller.store.installation}
    relay.receive(encode(hello))
    for _ in range(runs):
        found["alone"].append(await window(ALONE, seen))
    relay.close()
    if site.spool.harm:
        raise RuntimeError(f"the simulated site came to harm: {site.spool.harm[:3]}")
    return found


async def _churn(controller: Controller, folder: Path, first: int) -> None:
    for number in range(first, first + ENDS):
        await create(controller, folder, [number], 1)
        await asyncio.sleep(BUSY / ENDS)


def once(pilots: int, runs: int) -> dict[str, list[float]]:
    Path("build").mkdir(exist_ok=True)  # a real disk, where a temporary folder may be memory
    spare_records()  # as the service does
    with tempfile.TemporaryDirectory(dir="build") as folder:
        return asyncio.run(serve(Path(folder), pilots, runs))


def measure(runs: int | None) -> Report:
    words = [sys.executable, "-m", "benchmarks.beats", str(PILOTS), str(runs or RUNS)]
    found: dict[str, list[float]] = json.loads(subprocess.run(words, stdout=subprocess.PIPE, check=True).stdout)
    alone = statistics.median(found["alone"])
    ours = [beat - alone for beat in found["beat"]]
    return Report(
        f"{PILOTS:,} pilots that beat at one controller",
        (
            figure("a beat, controller and site", "CPU µs", found["beat"]),
            figure("  of it the simulated site", "CPU µs", found["alone"]),
            figure("  of it the controller", "CPU µs", ours),
            figure("the controller, for all beats", "% of a core", [beat * 1e-4 * PILOTS / BEAT for beat in ours]),
            figure("end of a guest to action, median", "ms", found["median"]),
            figure("  99th percentile", "ms", found["p99"]),
            figure("resident memory", "MiB", found["memory"]),
            figure("  of it for each pilot", "KiB", found["share"]),
        ),
        notes=(
            "Memory holds controller, store and the simulated site together. Delays hold 10 ms of the way to the site.",
        ),
    )


if __name__ == "__main__":
    json.dump(once(int(sys.argv[1]), int(sys.argv[2])), sys.stdout)
