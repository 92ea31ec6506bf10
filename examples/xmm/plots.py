"""Draws the demo's products: spectrum.png and lightcurve.png, in the folder of the results."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt


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


def main() -> None:
    results = Path(sys.argv[1])
    plot_spectrum(results)
    plot_lightcurve(results)


if __name__ == "__main__":
    main()
