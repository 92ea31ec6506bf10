"""A trace of 30 days, simulated: 10,000 jobs in the Standard Workload Format, three sites with others' work and faults.

The trace is drawn from a seed and read from a file, as an archive's would be. Each run is a process of its own, as
`ghv simulate` starts it; what is measured is from its start to its end. The planner, the loop and the wire are the
product's own, the store is in memory; the simulated sites run in the same process, so their work is in the figures.
"""

from __future__ import annotations

import resource
import tempfile
import time
from pathlib import Path

from benchmarks.report import Report, figure
from gridhypervisor.client.simulator import simulate
from gridhypervisor.model.simulation import GeneratedSpec
from gridhypervisor.simulation.workload import as_trace

JOBS, DAYS, RUNS = 10_000, 30, 5
WORK = GeneratedSpec(
    jobs=JOBS, over=f"{DAYS}d", run="40m", spread=1.3, longest="1d", cpus=(1, 1, 1, 2, 4, 8, 16), users=50
)
SPEC = """\
kind: Simulation
workload: {trace: month.swf}
sites:
  campus:
    nodes: 4
    cores: 16
    faults: {nodes: {every: 60d, lasts: 6h}, lost: 0.005}
  centre:
    nodes: 12
    cores: 16
    wait: 1m
    others: {share: 0.6, run: 3h, cpus: 4}
    faults: {nodes: {every: 180d, lasts: 6h}, outages: {every: 7d, lasts: 1h}}
  lab:
    nodes: 2
    cores: 16
    faults: {outages: {every: 3d, lasts: 2h}, mute: 0.01}
"""


def cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def measure(runs: int | None = None) -> Report:
    walls, cpus = [], []
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "month.swf").write_text(as_trace(WORK, 1))
        spec = Path(folder) / "month.yaml"
        spec.write_text(SPEC)
        for _ in range(runs or RUNS):
            before, begun = cpu(), time.perf_counter()
            found = simulate(str(spec), lambda progress: None)
            walls.append(time.perf_counter() - begun)
            cpus.append(cpu() - before)
            assert found.jobs == JOBS and found.states["done"] > 0.95 * JOBS, found.states
    return Report(
        f"A trace of {DAYS} days and {JOBS:,} jobs simulated at three sites",
        (
            figure("the whole", "s", walls, "under 60"),
            figure("CPU", "ms a job", [1000 * each / JOBS for each in cpus]),
        ),
        notes=(
            f"{found.seconds / 86_400:.1f} days of virtual time, {found.attempts} attempts, utilisation "
            f"{found.utilisation:.0%}; CPU holds controller and simulated sites together.",
        ),
    )
