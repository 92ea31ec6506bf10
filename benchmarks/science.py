"""Figure 1: the phase ledger of the science case, against the same program run natively on this machine.

Native is `evproducts` with this machine's own fitscopy on the same event list; pairs alternate. Both must make the same
tables, byte for byte.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.lab import IMAGES, Lab, open_lab
from benchmarks.report import Report, figure

IMAGE, RUNS = "xmm", 15
EVENTS = Path("build/data/xmm_test.fits")
JOB = Path("examples/xmm/job.yaml")
TABLES = ("spectrum.csv", "lightcurve.csv")


def native(folder: Path) -> float:
    """Seconds of wall time."""
    (folder / "events.fits").symlink_to(EVENTS.absolute())
    program = (IMAGES / IMAGE / "evproducts").absolute()
    began = time.perf_counter()
    subprocess.run([program, "events.fits"], cwd=folder, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - began


def through_ghv(lab: Lab, folder: Path) -> tuple[float, dict[str, Any]]:
    """Seconds of wall time of the whole `ghv run`, and the job's ledger."""
    began = time.perf_counter()
    out = lab.ghv("run", "-q", "-o", "json", "-f", str(JOB.absolute()), "--to", str(folder))
    return time.perf_counter() - began, json.loads(out)["ledger"]


def pair(lab: Lab) -> tuple[float, float, dict[str, Any]]:
    with tempfile.TemporaryDirectory(dir=lab.folder) as folder:
        here, there = Path(folder, "native"), Path(folder, "ghv")
        here.mkdir()
        there.mkdir()
        wall, ledger = through_ghv(lab, there)
        alone = native(here)
        for name in TABLES:
            if (here / "products" / name).read_bytes() != (there / "products" / name).read_bytes():
                raise RuntimeError(f"{name} of the guest is not that of this machine")
    return alone, wall, ledger


def measure(runs: int | None) -> Report:
    if not EVENTS.exists() or shutil.which("fitscopy") is None:
        raise SystemExit(f"measure the science case: {EVENTS} or fitscopy is missing; `make setup` brings both")
    with open_lab() as lab:
        lab.warm_up(IMAGE)
        pairs = [pair(lab) for _ in range(runs or RUNS)]
    ledgers = [_phases(ledger) for _, _, ledger in pairs]
    slower = [ledger["execute"] / alone for ledger, (alone, _, _) in zip(ledgers, pairs, strict=True)]
    return Report(
        "The science case through `ghv run`, against native",
        (
            figure("native", "s", [alone for alone, _, _ in pairs]),
            figure("ghv run", "s", [wall for _, wall, _ in pairs]),
            *(figure(f"  {phase}", "s", [ledger[phase] for ledger in ledgers]) for phase in ledgers[0]),
            figure("ghv run / native", "", [wall / alone for alone, wall, _ in pairs]),
            figure("execute / native", "", slower),
            figure("hypervisor", "CPU s", [ledger["cpu"]["hypervisor"] for _, _, ledger in pairs]),
            figure("pilot, relay, controller", "CPU s", [_ours(ledger["cpu"]) for _, _, ledger in pairs]),
        ),
        hypervisor=pairs[-1][2]["hypervisor"],
        notes=("The tables are the same, byte for byte, in every pair. Service, bundle and image are warm.",),
    )


def _phases(ledger: dict[str, Any]) -> dict[str, float]:
    """Seconds by phase: there was one attempt."""
    if any(row["attempt"] != 1 for row in ledger["rows"]):
        raise RuntimeError(f"job {ledger['job']} was retried: see its events")
    return {row["phase"]: row["seconds"] for row in ledger["rows"]}


def _ours(cpu: dict[str, float]) -> float:
    return cpu["pilot"] + cpu["relay"] + cpu["controller"]
