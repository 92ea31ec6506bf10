"""Measure: `python -m benchmarks [NAME…]`. Without names, all figures, in this order.

A figure is a module of this package with `measure(runs: int | None) -> Report`; add its name to FIGURES.
"""

from __future__ import annotations

import argparse
import importlib

from benchmarks import report

QUICK = 3
FIGURES = (
    "science",
    "ready",
    "instant",
    "freeze",
    "predictions",
    "warm",
    "overhead",
    "hypervisors",
    "simulated",
    "latency",
    "array",
    "beats",
    "policies",
    "placing",
    "planning",
    "listing",
    "api",
    "trace",
    "gangs",
    "network",
)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure what GridHypervisor costs.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(FIGURES)}; default: all")
    parser.add_argument("--runs", type=int, help="runs of each; default: the figure's own number")
    parser.add_argument("--quick", action="store_true", help="3 runs of each: to see that it works, not to be quoted")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(FIGURES):
        parser.error(f"no figure named {', '.join(sorted(unknown))}; there are: {', '.join(FIGURES)}")
    runs = QUICK if arguments.quick else arguments.runs
    for name in arguments.names or FIGURES:
        found: report.Report = importlib.import_module(f"benchmarks.{name}").measure(runs)
        report.show(found)
        print(f"  written to {report.write(name, found)}")


if __name__ == "__main__":
    main()
