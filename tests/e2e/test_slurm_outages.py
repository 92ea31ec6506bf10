"""A real Slurm whose node falls silent and whose controller is away: what runs goes on, and nothing runs twice."""

from __future__ import annotations

import signal
import time

from tests.e2e.cluster import PATIENT
from tests.e2e.installation import wait_for
from tests.e2e.slurmsite import TINY, SlurmLab

pytest_plugins = ("tests.e2e.slurmfixtures",)


def test_a_node_falls_silent_and_then_the_controller_is_away_for_a_minute(slurm: SlurmLab) -> None:
    """slurmd is killed, its jobs are not. Slurm gives one up with its node; the administrator deletes the other, which
    Slurm calls cancelled: neither gets a second guest. Then slurmctld goes as well. Meanwhile all that runs can be
    cancelled and comes home; what is handed in runs afterwards."""
    program = ("sh", "-c", PATIENT)
    jobs = {slurm.detach(*TINY, "--out", "result", "--to", to, "--", *program): to for to in ("one", "two", "three")}
    nodes: dict[str, list[str]] = {}  # two nodes, each for two of them: one has a pair
    for job in jobs:
        slurm.wait_word(job)
        node = slurm.site.admin("squeue", "-h", "-j", slurm.batch_id(job), "-o", "%N").strip()
        nodes.setdefault(node, []).append(job)
    [(silent, (lost, deleted))] = [(node, found) for node, found in nodes.items() if len(found) == 2]
    slurm.site.signal(silent)
    try:
        slurm.site.admin("scancel", slurm.batch_id(deleted))
        for job, state, words in ((lost, "NODE_FAIL", b"lost its node"), (deleted, "CANCELLED", b"has not confirmed")):
            number = slurm.batch_id(job)
            wait_for("Slurm's verdict", lambda: f"JobState={state}" in slurm.show(number))  # noqa: B023
            wait_for("that it is told", lambda: words in slurm.ghv("explain", job).out)  # noqa: B023
            assert len(slurm.guests(job)) == 1
        slurm.site.signal("slurmctld", signal.SIGTERM)
        wait_for("the controller's end", lambda: not slurm.site.alive("slurmctld"))
        away = time.monotonic()
        meanwhile = slurm.detach(*TINY, "--retry", "5", "--", "echo", "afterwards")
        for job, to in jobs.items():
            slurm.ghv("cancel", job)
            found = slurm.wait(job)
            assert (found["job"]["state"], len(found["attempts"])) == ("cancelled", 1), found
            assert slurm.ghv("logs", job).out == b"started\nstopped\n"
            assert (slurm.work / to / "result").read_text() == "saved\n"
        wait_for("Slurm's silence", lambda: "slurm controller" in slurm.why())
        assert slurm.job(meanwhile)["job"]["state"] in ("pending", "prolog", "queued")
        wait_for("a minute", lambda: time.monotonic() > away + 60)
    finally:
        for daemon in ("slurmctld", silent):
            if not slurm.site.alive(daemon):
                slurm.site.start(daemon)
    found = slurm.wait(meanwhile, 300)
    assert (found["job"]["state"], slurm.ghv("logs", meanwhile).out) == ("done", b"afterwards\n"), found
    assert [attempt["hypervisor"] != "" for attempt in found["attempts"]].count(True) == 1
    slurm.site.wait_idle()
