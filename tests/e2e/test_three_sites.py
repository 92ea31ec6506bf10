"""A dozen jobs in flight over three real sites (this machine, Slurm, Grid Engine) while the service is killed again and
again: each runs once to its end, and nothing is left anywhere.

What each step's death means to one job is in `test_kills.py` and `test_slurm_kills.py`; with a hundred jobs, in virtual
time, in `tests/properties/test_planner_crashes.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from gridhypervisor.model import wire
from tests.e2e.cluster import PATIENT, joined, tiny
from tests.e2e.installation import wait_for
from tests.e2e.slurmsite import SlurmLab
from testsites import GridEngineSite, SlurmSite

pytest_plugins = ("tests.e2e.slurmfixtures",)
pytestmark = pytest.mark.timeout(900)

SITES = ("local", "slurm", "gridengine")
JOBS = 12

DEATHS = (
    *("after-commit:birth", "before-commit:planned-submitting", "before:submit", "after:submit"),
    *("after-commit:submitting-revoking", "before:revoke", "after-commit:submitting-queued"),
    *("before-commit:queued-running", "after-commit:running-ended", "before:collect", "after:collect"),
    *("after-commit:ended-collected", "before:clean", "after-commit:collected-cleaned"),
)
"""Steps at which the service dies, once at each, on whichever job comes to it first."""


class ThreeSites(SlurmLab):
    """Beside Slurm, which is where `SlurmLab` looks, a Grid Engine; and this machine, which everybody has."""

    grid: GridEngineSite

    def add_grid(self, grid: GridEngineSite) -> None:
        self.grid, slurm = grid, self.site
        self.site = grid  # type: ignore[assignment]
        self.add_site("gridengine")
        self.site = slurm

    def assert_clean(self, seconds: float = 120) -> None:
        super().assert_clean(seconds)
        wait_for("the end of all batch jobs", lambda: not self.grid.admin("qstat", "-u", "*"), seconds)
        for spool in (self.grid.home / ".ghv/spool", self.folder / ".ghv/spool"):
            wait_for(f"an empty {spool}", lambda: all(p.name == wire.BURIED for p in spool.iterdir()), seconds)  # noqa: B023


@pytest.fixture
def three(template: Path, node_scratch: Path, slurm_site: SlurmSite) -> Iterator[ThreeSites]:
    with (
        GridEngineSite("sge-k", nodes=2, slots=2) as grid,
        joined(ThreeSites, slurm_site, node_scratch, template) as made,
    ):
        made.add_grid(grid)
        yield made
        made.assert_clean()


def test_a_dozen_jobs_over_three_sites_outlive_the_service_and_run_once_each(three: ThreeSites) -> None:
    three.die_at(*DEATHS)
    jobs = {}
    for number in range(JOBS):
        words = (*tiny(SITES[number % 3]), "--retry", "10", "--out", "made", "--to", f"made{number}")
        program = f"echo run {number} >> made; echo said {number}; sleep 2; exit {number}"
        jobs[three.detach(*words, "--", "sh", "-c", program)] = number
    assert len(jobs) == JOBS  # a request that is repeated makes no second job
    for job, number in jobs.items():
        found = three.wait(job, 600)
        assert (found["job"]["state"], found["job"]["exit_code"]) == ("done", number), (found["job"], three.events(job))
        assert [attempt["hypervisor"] != "" for attempt in found["attempts"]].count(True) == 1, "one run, and no other"
        assert three.ghv("logs", job).out == b"said %d\n" % number
        assert (three.work / f"made{number}/made").read_text() == f"run {number}\n"
    # The last steps may come after the jobs' ends; whoever asks for the events has the service started again each time.
    wait_for("the last of its deaths", lambda: three.events() and not three.deaths_to_come(), 240)
    assert len(three.ghv("list", "-o", "json").json) == JOBS
    strays_are_swept_and_only_ours(three, next(iter(jobs)))


def strays_are_swept_and_only_ours(three: ThreeSites, done: str) -> None:
    """Batch jobs that surface long after the end of the job whose names they bear; beside them some of another
    installation, which would be called so."""
    slurm, grid = three.site, three.grid
    ours, others = f"{three.id}-{done}-1", f"x{three.id[1:]}-{done}-1"
    numbers: list[str] = []  # at Grid Engine
    for name in (ours, others):
        slurm.admin("sbatch", "--hold", "--job-name", name, "--output=/dev/null", "--wrap=true", as_user=True)
        numbers.append(grid.admin("qsub", "-terse", "-h", "-N", name, "-b", "y", "/bin/true", as_user=True).strip())

    def at_slurm() -> list[str]:
        return slurm.admin("squeue", "--noheader", "--all", "--Format=Name:100").split()

    def at_grid_engine() -> list[str]:
        lines = grid.admin("qstat", "-r", "-u", "*").splitlines()
        return [line.partition(":")[2].strip() for line in lines if "Full jobname:" in line]

    # A site is listed while it has something of ours.
    here = [three.detach(*tiny(site), "--", "sh", "-c", PATIENT) for site in ("slurm", "gridengine")]
    try:
        for listed in (at_slurm, at_grid_engine):
            wait_for("the end of ours, and of no other", lambda: others in listed() and ours not in listed())  # noqa: B023
    finally:
        three.ghv("cancel", *here)
        slurm.admin("scancel", "--name", f"{ours},{others}")
        grid.admin("qdel", *numbers, check=False)
    for job in here:
        assert three.wait(job)["job"]["state"] == "cancelled"
