"""Figure 18: how far predictions came true, of real operations of mixed sizes, on a machine under load.

One job after another, each of another size: inputs of up to 192 MiB are brought to the site, a guest of
128 to 768 MiB boots or is taken up from a snapshot, fills up to 160 MiB with random bytes, is suspended, resumed, and
ends. Beside them as many programs compute without end as the machine has cores, all the time. Each prediction was
written down with its attempt before that began, by what had been learnt until then: so each operation is held out. The
first jobs are not counted: of them is learnt. Nor is what had no bytes to move.
"""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import sys
import threading
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from benchmarks.lab import READY, Lab, open_lab, wait_for
from benchmarks.report import Report, figure

IMAGES, RUNS, FIRST, LANES = ("xmm", "tiny"), 14, 8, 1
MEMORY, INPUT, FILLED = (128, 192, 256, 384, 512, 768), 192, 160  # MiB
COUNTED = ("upload", "boot", "restore", "save", "resume", "copy")
PROGRAM = "head -c {filled}M /dev/urandom >data; echo begun; while [ ! -e over ]; do sleep 1; echo on; done"
SUSPENDED = "suspended"

Row = dict[str, Any]


@contextlib.contextmanager
def load() -> Iterator[None]:
    """Programs that compute without end."""
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(os.cpu_count() or 1)]
    try:
        yield
    finally:
        for process in busy:
            process.kill()
            process.wait()


class Lane:
    """Jobs one after another."""

    def __init__(self, lab: Lab, kind: str, seed: int) -> None:
        self.lab, self.kind, self.random = lab, kind, random.Random(seed)
        self.folder = lab.home / f"lane{seed}"
        self.folder.mkdir(exist_ok=True)

    def job(self) -> list[Row]:
        """What was predicted of one job's operations, and how long they took."""
        lab, draw = self.lab, self.random
        memory = draw.choice(MEMORY)
        filled = draw.randrange(4, min(FILLED, memory // 3))
        given = self.folder / "given"
        given.write_bytes(draw.randbytes(1 << 20) * draw.randrange(1, INPUT))
        image, instant = draw.choice(IMAGES), draw.choice(("auto", "auto", "never"))
        words = ("--image", image, "--memory", f"{memory}M", "--scratch", "512M", "--hypervisor", self.kind,
                 "--instant", instant, "--in", str(given))  # fmt: skip
        said = lab.ghv("run", "--detach", "-q", *words, "--", "sh", "-c", PROGRAM.format(filled=filled))
        name = said.decode().split()[-1]
        wait_for(f"{name} to begin", lambda: b"begun" in lab.ghv("logs", name, "--stream", "stdout"), READY)
        lab.ghv("suspend", name)
        wait_for(f"{name} to stand still", lambda: self.state(name) == SUSPENDED, READY)
        stood = lab.ghv("logs", name, "--stream", "stdout")
        lab.ghv("resume", name)
        wait_for(f"{name} to go on", lambda: len(lab.ghv("logs", name, "--stream", "stdout")) > len(stood), READY)
        lab.ghv("cancel", name)
        wait_for(f"{name} to end", lambda: self.state(name) == "cancelled", READY)
        rows: list[Row] = lab.json("show", name, "-o", "json")["ledger"]["operations"]
        return rows

    def state(self, name: str) -> str:
        return str(self.lab.json("show", name, "-o", "json")["job"]["state"])


def measure(runs: int | None) -> Report:
    errors: dict[str, list[float]] = defaultdict(list)
    lock, begun = threading.Lock(), iter(range(FIRST + (runs or RUNS)))
    with open_lab() as lab:
        kind = str(lab.qemu(IMAGES[0]))
        for image in IMAGES:
            used = lab.warm_up(image, kind)["ledger"]["hypervisor"]

        def jobs(seed: int) -> None:
            lane = Lane(lab, kind, seed)
            while True:
                with lock:
                    number = next(begun, None)
                if number is None:
                    return
                rows = lane.job()
                with lock:
                    for row in rows if number >= FIRST else ():
                        if row["operation"] in COUNTED and row["bytes"] and row["predicted"] is not None:
                            errors[row["operation"]].append(row["predicted"] / row["seconds"] - 1)

        with load(), ThreadPoolExecutor(LANES) as lanes:
            list(lanes.map(jobs, range(LANES)))
    each = sorted(abs(error) for found in errors.values() for error in found)
    ninth = each[int(0.9 * len(each))]
    return Report(
        f"Predicted and real, of {len(each)} operations that were held out",
        (
            figure("|error|, all operations", "", each, f"90 % of them within {ninth:.0%}; at most 25 % wanted"),
            *(
                figure(f"|error|, {kind}", "", sorted(map(abs, found)), f"90 % within {_ninth(found):.0%}")
                for kind, found in errors.items()
            ),
        ),
        hypervisor=used,
        notes=(f"{LANES} jobs at a time beside {os.cpu_count()} programs that compute; of {FIRST} before is learnt.",),
    )


def _ninth(errors: list[float]) -> float:
    found = sorted(map(abs, errors))
    return found[int(0.9 * len(found))]
