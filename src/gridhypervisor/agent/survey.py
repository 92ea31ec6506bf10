"""What a node is and can do, for `ghv site check`: the work of a pilot whose manifest asks for a probe.

The hypervisors are proven as a job's pilot proves them, and remembered on the node, so that jobs to come need not. That
this runs at all proves the rest: the bundle was unpacked and started in the node's scratch, and the orders were found
in the account's workdir. It boots no guest but those of the proofs.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from gridhypervisor.agent.choice import Finding, speeds
from gridhypervisor.agent.hypervisor import of_kind
from gridhypervisor.agent.probe import key_of, recall, remember
from gridhypervisor.agent.reach import reach
from gridhypervisor.agent.scratchdisk import full
from gridhypervisor.agent.trial import Trial
from gridhypervisor.agent.watchdog import Watchdog
from gridhypervisor.agent.world import World
from gridhypervisor.model.wire import HypervisorKind, NodeReport, Proven, baseline_of


def survey(world: World, run: Path, memory: Path, watchdog: Watchdog, entry: Path, scratch: Path) -> NodeReport:
    """Look at this node. `run` is the folder of this run, `memory` the node's, in `scratch`, where findings are kept.

    Raises:
        Ending: the node is full (node-disk).
    """
    try:
        found = {kind: _prove(kind, world, Trial(watchdog, run), memory) for kind in HypervisorKind}
    except OSError as error:
        raise full(f"try hypervisors in {run}", error) from error
    sizes, space = _meminfo(Path("/proc/meminfo").read_text()), os.statvfs(memory)
    processor = Path("/proc/cpuinfo").read_text(errors="replace")
    clock = _first("cpu MHz", processor).partition(".")[0]
    return NodeReport(
        node=os.uname().nodename, kernel=os.uname().release,
        processor=_first("model name", processor) or os.uname().machine,
        cpus=len(os.sched_getaffinity(0)), cores=os.cpu_count() or 1,
        memory=sizes.get("MemTotal", 0), memory_free=sizes.get("MemAvailable", 0), workdir=str(entry.parents[1]),
        scratch=str(scratch), scratch_free=space.f_bavail * space.f_frsize, hypervisors=_proven(found),
        relay=reach(entry), arch=os.uname().machine, mhz=int(clock) if clock.isdecimal() else 0,
        scratch_size=space.f_blocks * space.f_frsize, baseline=baseline_of(_first("flags", processor).split()),
    )  # fmt: skip


def _prove(kind: HypervisorKind, world: World, trial: Trial, memory: Path) -> Finding:
    """What holds of it now: a failure that is only remembered may be over."""
    key = key_of(world)
    found = recall(memory, kind, key)
    if found is None or not found.works:
        found = of_kind(kind, world).prove(trial)
        remember(memory, key, found)
    return found


def _proven(found: Mapping[HypervisorKind, Finding]) -> tuple[Proven, ...]:
    rates = speeds(found)
    return tuple(
        Proven(kind, f.works, f.why, f.program, str(f.rates) if f.rates is not None else "", rates.get(kind))
        for kind, f in found.items()
    )


def _meminfo(text: str) -> dict[str, int]:
    """Bytes by name, of lines such as `MemTotal:  16 kB`."""
    rows = (line.split() for line in text.splitlines())
    return {row[0].rstrip(":"): int(row[1]) << 10 for row in rows if row[2:] == ["kB"] and row[1].isdigit()}


def _first(name: str, text: str) -> str:
    """What `/proc/cpuinfo` tells by that name of the first processor; empty where the architecture does not."""
    return next((line.partition(":")[2].strip() for line in text.splitlines() if line.startswith(name)), "")
