"""Figure 4: the science case and one that only computes, under each hypervisor of this machine, and natively.

The science case is `evproducts` on its event list, which starts, maps and reads more than it computes; the other is a
loop in Debian's shell, the image's and this machine's. A round runs every case everywhere, so that what
else the machine does meets all alike. What is compared is the time of the program; the whole `ghv run` is beside it.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
import time
from collections import defaultdict
from pathlib import Path

from benchmarks.lab import Lab, open_lab
from benchmarks.report import Figure, Report, figure
from benchmarks.science import EVENTS, IMAGE, JOB, native

RUNS = 15
LOOP = "i=0; while [ $i -lt 500000 ]; do i=$((i + 1)); done"


def guest(lab: Lab, kind: str, *words: str) -> tuple[float, float]:
    """Seconds of the program in its guest, and of the whole `ghv run`."""
    began = time.perf_counter()
    record = json.loads(lab.ghv("run", "-q", "-o", "json", "--instant", "never", "--hypervisor", kind, *words))
    whole = time.perf_counter() - began
    ledger = record["ledger"]
    if not ledger["hypervisor"].endswith(f", {kind}"):
        raise RuntimeError(f"job {ledger['job']} ran under {ledger['hypervisor']} instead of {kind}")
    return sum(row["seconds"] for row in ledger["rows"] if row["phase"] == "execute"), whole


def loop() -> float:
    """Seconds of the loop on this machine."""
    began = time.perf_counter()
    subprocess.run(["sh", "-c", LOOP], check=True)
    return time.perf_counter() - began


def measure(runs: int | None) -> Report:
    if not EVENTS.exists():
        raise SystemExit(f"measure the science case: {EVENTS} is missing; `make setup` brings it")
    program: dict[tuple[str, str], list[float]] = defaultdict(list)
    whole: dict[tuple[str, str], list[float]] = defaultdict(list)
    with open_lab() as lab:
        kinds = lab.hypervisors(IMAGE)
        for _ in range(runs or RUNS):
            with tempfile.TemporaryDirectory(dir=lab.folder) as folder:
                program["science", "native"].append(native(Path(folder)))
            program["loop", "native"].append(loop())
            for kind in kinds:
                with tempfile.TemporaryDirectory(dir=lab.folder) as folder:
                    science = ("-f", str(JOB.absolute()), "--to", folder)
                    computing = ("--image", IMAGE, "--", "sh", "-c", LOOP)
                    for case, words in (("science", science), ("loop", computing)):
                        inside, around = guest(lab, kind, *words)
                        program[case, kind].append(inside)
                        whole[case, kind].append(around)
    figures: list[Figure] = []
    for case in ("science", "loop"):
        alone = program[case, "native"]
        figures.append(figure(f"{case}, native", "s", alone))
        for kind in kinds:
            figures.append(figure(f"{case}, {kind}", "s", program[case, kind]))
            slower = [there / here for there, here in zip(program[case, kind], alone, strict=True)]
            figures.append(figure("  / native", "", slower))
            figures.append(figure("  ghv run", "s", whole[case, kind]))
    return Report(
        "The science case and a loop under each hypervisor, against native",
        tuple(figures),
        hypervisor=", ".join(kinds),
        notes=("Service, bundle and image are warm, and the node's hypervisors measured.",),
    )
