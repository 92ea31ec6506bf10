"""What a node is and can do, for `ghv site check`: the work of a pilot whose manifest asks for a probe.

The hypervisors are proven as a job's pilot proves them, and remembered on the node, so that jobs to come need not. That
this runs at all proves the rest: the bundle was unpacked and started in the node's scratch, and the orders were found
in the account's workdir. It boots no guest but those of the proofs.
"""

from __future__ import annotations

import os
from pathlib import Path

from gridhypervisor.agent.hypervisor import of_kind
from gridhypervisor.agent.probe import key_of, recall, remember
from gridhypervisor.agent.reach import reach
from gridhypervisor.agent.scratchdisk import full
from gridhypervisor.agent.trial import Trial
from gridhypervisor.agent.watchdog import Watchdog
from gridhypervisor.agent.world import World
from gridhypervisor.model.wire import HypervisorKind, NodeReport, Proven


def survey(world: World, run: Path, memory: Path, watchdog: Watchdog, entry: Path, scratch: Path) -> NodeReport:
    """Look at this node. `run` is the folder of this run, `memory` the node's, in `scratch`, where findings are kept.

    Raises:
        Ending: the node is full (node-disk).
    """
    try:
        hypervisors = tuple(_prove(kind, world, Trial(watchdog, run), memory) for kind in HypervisorKind)
    except OSError as error:
        raise full(f"try hypervisors in {run}", error) from error
    sizes, space = _meminfo(Path("/proc/meminfo").read_text()), os.statvfs(memory)
    return NodeReport(
        node=os.uname().nodename, kernel=os.uname().release,
        processor=_processor(Path("/proc/cpuinfo").read_text(errors="replace")) or os.uname().machine,
        cpus=len(os.sched_getaffinity(0)), cores=os.cpu_count() or 1,
        memory=sizes.get("MemTotal", 0), memory_free=sizes.get("MemAvailable", 0), workdir=str(entry.parents[1]),
        scratch=str(scratch), scratch_free=space.f_bavail * space.f_frsize, hypervisors=hypervisors,
        relay=reach(entry),
    )  # fmt: skip


def _prove(kind: HypervisorKind, world: World, trial: Trial, memory: Path) -> Proven:
    """What holds of it now: a failure that is only remembered may be over."""
    key = key_of(world)
    found = recall(memory, kind, key)
    if found is None or not found.works:
        found = of_kind(kind, world).prove(trial)
        remember(memory, key, found)
    return Proven(kind, found.works, found.why, found.program, str(found.rates) if found.rates is not None else "")


def _meminfo(text: str) -> dict[str, int]:
    """Bytes by name, of lines such as `MemTotal:  16 kB`."""
    rows = (line.split() for line in text.splitlines())
    return {row[0].rstrip(":"): int(row[1]) << 10 for row in rows if row[2:] == ["kB"] and row[1].isdigit()}


def _processor(text: str) -> str:
    """The model of the first processor; empty where the architecture does not tell."""
    return next((line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name")), "")
