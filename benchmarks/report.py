"""What every figure has in common: how it is stated, with what it was measured, and where it is written.

`python -m benchmarks.report` prints what was written last as Markdown, for docs/measurements.md.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import sqlite3
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from math import comb
from pathlib import Path
from typing import Any

BUILD = Path("build/bench")


@dataclass(frozen=True)
class Figure:
    """One number over several runs: the median, and an interval that holds the true one with 95 % confidence."""

    name: str
    unit: str
    runs: int
    median: float
    low: float
    high: float
    target: str = ""  # what it is measured against, in words
    values: tuple[float, ...] = ()  # run by run


@dataclass(frozen=True)
class Report:
    title: str
    figures: tuple[Figure, ...]
    hypervisor: str = "none: no guest runs"
    notes: tuple[str, ...] = ()
    enough: int = 15  # runs, to be quoted; six are the fewest that give an interval at all
    machine: dict[str, Any] = field(default_factory=lambda: machine())


def figure(name: str, unit: str, values: Sequence[float], target: str = "") -> Figure:
    low, high = interval(values)
    return Figure(name, unit, len(values), statistics.median(values), low, high, target, tuple(values))


def interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """Order statistics that hold the median with at least this confidence; all that there is where runs are too few.

    The k-th smallest and k-th largest of n values miss the median with probability 2·P(B < k), B ~ Binomial(n, 1/2).
    """
    ordered, n = sorted(values), len(values)
    k, missed = 0, 2 * 0.5**n
    while missed <= 1 - confidence and 2 * (k + 1) <= n:
        k += 1
        missed += 2 * comb(n, k) * 0.5**n
    k = max(k - 1, 0)
    return ordered[k], ordered[n - 1 - k]


def machine() -> dict[str, Any]:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return {
        "cpu": model or platform.machine(),
        "cores": os.cpu_count(),
        "memory": f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30:.0f} GiB",
        "load": os.getloadavg()[0],
        "system": platform.platform(),
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        "gridhypervisor": importlib.metadata.version("gridhypervisor"),
    }


def write(name: str, report: Report) -> Path:
    BUILD.mkdir(parents=True, exist_ok=True)
    path = BUILD / f"{name}.json"
    path.write_text(json.dumps(asdict(report), indent=2) + "\n")
    return path


def show(report: Report) -> None:
    """As a table, for people."""
    print(f"\n{report.title}")
    print(f"  {'':32} {'median':>10}   {'95 % interval':>23}  {'runs':>4}")
    for f in report.figures:
        span = f"{f.low:.4g} to {f.high:.4g}"
        print(f"  {f.name:32} {f.median:10.4g}   {span:>23}  {f.runs:4}  {f.unit:12} {f.target}")
    for note in report.notes:
        print(f"  {note}")
    if min(f.runs for f in report.figures) < report.enough:
        print(f"  TOO FEW RUNS to be quoted: an interval of fewer than {report.enough} says little")
    m = report.machine
    print(f"  on {m['cpu']}, {m['cores']} cores, {m['memory']}, load {m['load']:.1f}")
    print(f"  {m['system']}; Python {m['python']}; {report.hypervisor}")


def markdown(report: dict[str, Any]) -> str:
    """A written report as it stands in the docs."""
    rows = [
        f"| {f['name'].strip()} | {f['median']:.4g} {f['unit']} | {f['low']:.4g} to {f['high']:.4g} | {f['runs']} | "
        f"{f['target']} |"
        for f in report["figures"]
    ]
    m = report["machine"]
    where = f"{m['cpu']}, {m['cores']} cores, {m['memory']}, load {m['load']:.1f} at the end; {m['system']}; Python "
    return "\n".join([
        f"## {report['title']}",
        "| | median | 95 % interval of the median | runs | to compare |",
        "|---|---|---|---|---|",
        *rows,
        "",
        *report["notes"],
        f"On {where}{m['python']}, SQLite {m['sqlite']}; {report['hypervisor']}.",
    ])  # fmt: skip


if __name__ == "__main__":
    for path in sorted(BUILD.glob("*.json")):
        print(f"{markdown(json.loads(path.read_text()))}\n")
