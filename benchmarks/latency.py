"""Figure 6: from submit to the start on the node: what `ghv run` adds to a bare sbatch, qsub and condor_submit.

Each batch system is real, on this machine, and has nothing else to do. Bare is its own command, typed at the front-end;
`ghv run` is typed elsewhere, and has all that it does for a user before the node's turn: the service over SSH, the
entry with its manifest, the submission. The start is that of the batch script's process, to the kernel's hundredth of
a second. The two alternate; what is added is taken pair by pair.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from benchmarks.cluster import join
from benchmarks.lab import Lab, open_lab, wait_for
from benchmarks.report import Figure, Report, figure
from gridhypervisor.model import wire
from testsites import GridEngineSite, HTCondorSite, SlurmSite
from testsites.site import UID, USER, ClusterSite

IMAGE, RUNS = "tiny", 15
RESULTS, SCRIPT = "results", "bare.sh"
"""In the user's home at the site."""

BARE = f"""\
#!/bin/sh
read -r stat </proc/$$/stat
echo "$stat" >/home/{USER}/{RESULTS}/.$1
mv /home/{USER}/{RESULTS}/.$1 /home/{USER}/{RESULTS}/$1
"""
_TICK = os.sysconf("SC_CLK_TCK")


def sbatch(site: ClusterSite, number: int) -> None:
    script = f"/home/{USER}/{SCRIPT}"
    site.admin("sbatch", "--chdir=/", "--output=/dev/null", script, str(number), as_user=True)


def qsub(site: ClusterSite, number: int) -> None:
    words = ("qsub", "-S", "/bin/sh", "-wd", "/", "-o", "/dev/null", "-j", "y", f"/home/{USER}/{SCRIPT}", str(number))
    site.admin(*words, as_user=True)


def condor_submit(site: ClusterSite, number: int) -> None:
    description = (
        f"executable = /home/{USER}/{SCRIPT}\narguments = {number}\n"
        "transfer_executable = false\nshould_transfer_files = no\nqueue\n"
    )
    site.admin("condor_submit", "-", as_user=True, stdin=description)


SYSTEMS: tuple[tuple[Callable[[], ClusterSite], Callable[[ClusterSite, int], None]], ...] = (
    (SlurmSite, sbatch), (GridEngineSite, qsub), (HTCondorSite, condor_submit),
)  # fmt: skip


def bare(site: ClusterSite, submit: Callable[[ClusterSite, int], None], number: int) -> float:
    """Seconds to the start of a job that the user submits at the front-end."""
    result = site.home / RESULTS / str(number)
    began = time.time()
    submit(site, number)
    wait_for(f"job {number} at {site.name}", result.exists)
    ticks = int(result.read_text().rpartition(")")[2].split()[19])
    return ticks / _TICK + time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) - began


def through_ghv(lab: Lab, site: ClusterSite, hypervisor: str) -> float:
    """Seconds to the start of a VM job's batch script."""
    words = ("--site", site.kind, "--image", IMAGE, "--hypervisor", hypervisor, "--", "true")
    began, status = lab.until_ready(site.home / ".ghv", *words)
    [boot] = [phase for phase in status.phases if phase.phase is wire.Phase.BOOT]
    assert status.ready_at is not None and boot.end is not None
    return status.ready_at - boot.end - began


def prepare(site: ClusterSite) -> None:
    """The bare job's script, and where it says when it began."""
    results, script = site.home / RESULTS, site.home / SCRIPT
    results.mkdir()
    script.write_text(BARE)
    script.chmod(0o755)
    for path in (results, script):
        os.chown(path, UID, UID)


def measure(runs: int | None) -> Report:
    figures: list[Figure] = []
    with open_lab() as lab:
        hypervisor = lab.qemu(IMAGE)
        for kind, submit in SYSTEMS:
            with kind() as site:
                used = join(lab, site, IMAGE, hypervisor)
                prepare(site)
                bare(site, submit, 0)
                pairs = [
                    (bare(site, submit, number), through_ghv(lab, site, hypervisor))
                    for number in range(1, (runs or RUNS) + 1)
                ]
                lab.ghv("site", "remove", site.kind)
            command = submit.__name__
            figures += [
                figure(f"{command} to start", "s", [alone for alone, _ in pairs]),
                figure(f"ghv run to start, {site.kind}", "s", [ours for _, ours in pairs]),
                figure("  added", "s", [ours - alone for alone, ours in pairs]),
            ]
    return Report(
        "From submit to the start on the node, against the batch system's own command",
        tuple(figures),
        hypervisor=used,
        notes=("Nodes are idle, service, bundle and image are warm. A start of `ghv` is in each of its figures.",),
    )
