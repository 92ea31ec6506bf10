"""A guest goes from this machine to a real Slurm and back, while its program counts; the cluster is silent by then."""

from __future__ import annotations

import signal
from typing import Any

from gridhypervisor.model import wire
from tests.e2e.installation import wait_for
from tests.e2e.slurmsite import SlurmLab

pytest_plugins = ("tests.e2e.slurmfixtures",)

COUNTS = "grep -m 1 ^flags /proc/cpuinfo >&2; i=0; while :; do i=$((i + 1)); echo $i; sleep 0.2; done"


def test_a_guest_goes_to_a_cluster_and_outlives_it(slurm: SlurmLab) -> None:
    lab = slurm
    small = ("--image", "tiny", "--memory", "96M", "--scratch", "32M", "--hypervisor", "tcg", "--retry", "0")
    job = lab.detach(*small, "--cpu", "x86-64-v2", "--site", "local", "--", "sh", "-c", COUNTS)

    def counted() -> int:
        return len(lab.ghv("logs", job).out.splitlines())

    def been() -> list[tuple[str, str]]:
        return [(each["site"], each["state"]) for each in lab.job(job)["attempts"]]

    def kept() -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = lab.ghv("checkpoint", "list", job, "-o", "json").json
        return found

    wait_for("it to count", counted, 300)
    lab.ghv("move", job, "--to", "slurm")
    wait_for("it to run there", lambda: been()[1:] == [("slurm", "running")], 300)
    left = counted()
    wait_for("it to count there", lambda: counted() > left + 2, 300)
    lab.ghv("suspend", job)
    wait_for("it to stand still", lambda: lab.job(job)["job"]["state"] == "suspended", 300)
    newest = kept()[0]
    assert newest["site"] == "slurm"
    lab.ghv("checkpoint", "copy", newest["id"])
    wait_for("its copy", lambda: kept()[0].get("copy") == "kept", 300)
    stood = counted()
    lab.site.signal("sshd", signal.SIGSTOP)
    try:
        lab.ghv("resume", job, "--to", "local")
        wait_for("it to count here again", lambda: counted() > stood + 2, 300)
        lab.ghv("cancel", job)
        assert lab.wait(job, 300)["job"]["state"] == "cancelled"
    finally:
        lab.site.signal("sshd", signal.SIGCONT)
    assert [site for site, _ in been()] == ["local", "slurm", "local"]
    numbers = list(map(int, lab.ghv("logs", job).out.split()))
    assert numbers == list(range(1, len(numbers) + 1)), "none was lost, and none came twice"
    seen = lab.ghv("logs", job, "--stream", "stderr").err.split()
    assert "sse4_2" in seen and "avx" not in seen, "the processor that was asked for"
    wait_for("nothing of it there", lambda: not list((lab.workdir / wire.CHECKPOINTS).iterdir()), 240)
    wait_for("nothing of it here", lambda: not [p for p in (lab.data / "checkpoints").rglob("*") if p.is_file()], 60)
