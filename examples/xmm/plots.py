"""Draws the demo's three pictures: spectrum.png, lightcurve.png and ledger.png, in the folder of the results."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt

PHASES = {
    "wait": "#c9ced6", "prolog": "#8fb8de", "queue": "#dfe3e8", "prepare": "#5b8db8", "boot": "#e8a33d",
    "stage_in": "#9ac39a", "execute": "#2f7d4f", "stage_out": "#9ac39a", "shut_down": "#c07f2c", "epilog": "#8fb8de",
    "middleware": "#b5483a",
}  # fmt: skip


def table(path: Path) -> tuple[list[float], list[float], list[int]]:
    """Lower edges, upper edges and counts of a product's table."""
    with path.open() as file:
        rows = list(csv.reader(file))[1:]
    return [float(row[0]) for row in rows], [float(row[1]) for row in rows], [int(row[2]) for row in rows]


def plot_spectrum(results: Path) -> None:
    low, high, counts = table(results / "products/spectrum.csv")
    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    edges = [*low, high[-1]]
    axes.stairs(counts, edges, fill=True, color="#24476b", alpha=0.85)
    axes.set(xlabel="PI (eV)", ylabel=f"events per {high[0] - low[0]:.0f} eV", xlim=(edges[0], edges[-1]),
             ylim=(0, None),
             title=f"EPIC-pn spectrum: {sum(counts):,} events")  # fmt: skip
    axes.grid(alpha=0.25, linewidth=0.4)
    figure.savefig(results / "spectrum.png", dpi=120)


def plot_lightcurve(results: Path) -> None:
    low, high, counts = table(results / "products/lightcurve.csv")
    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    start = low[0]
    rates = [c / (b - a) for a, b, c in zip(low, high, counts, strict=True)]
    axes.stairs(rates, [t - start for t in (*low, high[-1])], baseline=None, linewidth=1.2, color="#7a2f2f")
    axes.set(xlabel="time since the first event (s)", ylabel="events / s",
             title=f"Light curve, 0.3–10 keV: {sum(counts):,} events in bins of {high[0] - low[0]:.0f} s")  # fmt: skip
    axes.grid(alpha=0.25, linewidth=0.4)
    figure.savefig(results / "lightcurve.png", dpi=120)


def plot_ledger(results: Path) -> None:
    ledger = json.loads((results / "job.json").read_text())["ledger"]
    figure, axes = plt.subplots(figsize=(8, 3), layout="constrained")
    start = 0.0
    seen: set[str] = set()
    for row in ledger["rows"]:
        phase, seconds = row["phase"], row["seconds"]
        label = None if phase in seen else phase.replace("_", " ")
        axes.barh(f"attempt {row['attempt']}", seconds, left=start, color=PHASES[phase], label=label)
        if seconds > ledger["wall"] / 25:
            axes.text(start + seconds / 2, f"attempt {row['attempt']}", f"{seconds:.1f}", ha="center", va="center",
                      fontsize=8)  # fmt: skip
        seen.add(phase)
        start += seconds
    axes.set(xlabel="seconds", xlim=(0, ledger["wall"]),
             title=f"Where {ledger['wall']:.1f} s went ({ledger['hypervisor']})")  # fmt: skip
    figure.legend(ncols=6, fontsize=8, loc="outside lower center", frameon=False)
    figure.savefig(results / "ledger.png", dpi=120)


def main() -> None:
    results = Path(sys.argv[1])
    plot_spectrum(results)
    plot_lightcurve(results)
    plot_ledger(results)


if __name__ == "__main__":
    main()
