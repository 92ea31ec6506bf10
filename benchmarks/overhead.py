"""Figure 3: everything that is not the hypervisor, in CPU seconds: for one VM, and as a share of a ten-minute job.

Counted are the pilot, the watchdog and their helpers (by the job's ledger; they are gone when one could look), and by
the kernel's own count the relay with all commands that it ran, the service, the fork queue's processes, and `ghv`.
The ten-minute job computes all the time. Several run at once, two a core, and each is charged with all that relay and
service spent meanwhile: a larger share than it would have alone, on a core of its own.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.lab import Lab, open_lab, wait_for
from benchmarks.report import Report, figure
from gridhypervisor.model import wire

IMAGE, RUNS, MINUTES = "tiny", 15, 10
BUSY = ("sh", "-c", f"timeout {60 * MINUTES} sh -c 'while :; do :; done'; true")
AT_ONCE = 2 * (os.cpu_count() or 1)
_TICK = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Cost:
    """CPU seconds of one job."""

    pilot: float
    service: float
    relay: float
    rest: float  # the fork queue's processes, and ghv
    hypervisor: float

    @property
    def ours(self) -> float:
        return self.pilot + self.service + self.relay + self.rest


def run(lab: Lab, count: int, *command: str) -> list[Cost]:
    """Run so many jobs at once; what each cost."""
    service = int(lab.json("service", "status", "-o", "json")["pid"])
    [relay] = _processes(f"relay --workdir {lab.workdir}")
    queue = f"forkq --dir {lab.workdir}/forkq serve"  # the one that the relay keeps, and what it forks for each job
    before = _cpu(service), _cpu(relay), _children()
    began = {pid: _cpu(pid, waited=False) for pid in _processes(queue)}
    seen = dict(began)
    ghvs = [lab.start("run", "-q", "-o", "json", "--image", IMAGE, "--", *command) for _ in range(count)]
    while any(ghv.poll() is None for ghv in ghvs):
        for pid in _processes(queue):
            with contextlib.suppress(OSError):
                seen[pid] = _cpu(pid, waited=False)
        time.sleep(0.1)
    answers = [ghv.communicate() for ghv in ghvs]
    rest = (_children() - before[2] + sum(seen.values()) - sum(began.values())) / count
    spool = lab.workdir / wire.SPOOL
    wait_for("the spool to be clean", lambda: all(path.name == wire.BURIED for path in spool.iterdir()))
    spent = _cpu(service) - before[0], _cpu(relay) - before[1]
    costs = []
    for ghv, (out, err) in zip(ghvs, answers, strict=True):
        if ghv.returncode != 0:
            raise RuntimeError(f"ghv run {' '.join(command)} ended with {ghv.returncode}: {err.decode()}")
        cpu = json.loads(out)["ledger"]["cpu"]
        costs.append(Cost(cpu["pilot"], *spent, rest, cpu["hypervisor"]))
    return costs


def _processes(words: str) -> list[int]:
    """The processes whose command line holds these words."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if words in path.read_bytes().replace(b"\0", b" ").decode(errors="replace"):
                found.append(int(path.parent.name))
    return found


def _cpu(pid: int, *, waited: bool = True) -> float:
    """CPU seconds of a process; `waited`: and of its children that have ended."""
    fields = (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()
    return sum(int(ticks) for ticks in fields[11 : 15 if waited else 13]) / _TICK


def _children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def measure(runs: int | None) -> Report:
    wanted = runs or RUNS
    short: list[Cost] = []
    long: list[Cost] = []
    with open_lab() as lab:
        used = lab.warm_up(IMAGE)["ledger"]["hypervisor"]
        for _ in range(wanted):
            short += run(lab, 1, "true")
        lab.ghv("site", "remove", "local")
        lab.ghv("site", "add", "local", "--kind", "fork", "--slots", str(AT_ONCE))
        lab.warm_up(IMAGE)
        while len(long) < wanted:
            long += run(lab, min(AT_ONCE, wanted - len(long)), *BUSY)
    return Report(
        "CPU time of everything that is not the hypervisor",
        (
            figure("one VM", "CPU s", [cost.ours for cost in short]),
            figure("  pilot and watchdog", "CPU s", [cost.pilot for cost in short]),
            figure("  service", "CPU s", [cost.service for cost in short]),
            figure("  relay and its commands", "CPU s", [cost.relay for cost in short]),
            figure("  fork queue, ghv", "CPU s", [cost.rest for cost in short]),
            figure("its hypervisor", "CPU s", [cost.hypervisor for cost in short]),
            figure(f"{MINUTES}-minute job", "CPU s", [cost.ours for cost in long]),
            figure("its hypervisor", "CPU s", [cost.hypervisor for cost in long]),
            figure("share", "%", [100 * cost.ours / cost.hypervisor for cost in long], "at most 1"),
        ),
        hypervisor=used,
        notes=(
            f"The {MINUTES}-minute job computes without a pause, and prints nothing; {AT_ONCE} run at once.",
            "Pilots unpack nothing: the bundle and the image were on the node.",
        ),
    )
