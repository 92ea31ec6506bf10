"""An installation that uses a real Slurm: what the Slurm tests share."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from types import MappingProxyType

from tests.e2e.cluster import RERUN as RERUN
from tests.e2e.cluster import ClusterLab, tiny
from tests.e2e.cluster import reasons as reasons
from tests.e2e.installation import _processes, guests, wait_for
from testsites import SlurmSite
from testsites.site import UID

TINY = tiny("slurm")


class SlurmLab(ClusterLab):
    site: SlurmSite
    # Each job by itself: tests tell batch jobs by their names, and would form arrays by chance.
    defaults = MappingProxyType({"arrays": "no"})

    # -- the site, from above -------------------------------------------------------------------------------------

    def batch_jobs(self, *states: str) -> dict[str, tuple[str, str]]:
        """This installation's batch jobs by name: the id, and Slurm's word for the state. All, or in these states."""
        listed = self.site.admin("squeue", "--noheader", "--all", "--states=all", "--Format=JobID:|,State:|,Name:|")
        rows = [line.split("|") for line in listed.splitlines()]
        return {
            name: (number, state)
            for number, state, name, _ in rows
            if name.startswith(f"{self.id}-") and (not states or state in states)
        }

    def show(self, number: str) -> str:
        """All that Slurm knows of a batch job."""
        return self.site.admin("scontrol", "-o", "show", "job", number)

    def node(self, job: str) -> str:
        """On which its newest batch job was started."""
        found = re.search(r"\bBatchHost=(\S+)", self.show(self.batch_id(job)))
        assert found is not None, self.show(self.batch_id(job))
        return found[1]

    def start_again(self, number: str) -> None:
        """Let a batch job that was requeued begin. Slurm puts it off by two minutes, so that the end of the first run
        is not taken for the second's and its credential is younger than the revocation: by the second, hence three."""

        def first_ended() -> bool:
            step = f"slurmstepd: [{number}.batch]"
            minded = any(words.startswith(step) and _inside(pid, self.site.root) for pid, words in _processes())
            return not minded and "JobState=PENDING" in self.show(number)

        wait_for("the end of the first run", first_ended)
        self.site.admin("scontrol", "update", f"JobId={number}", "StartTime=now+3")

    @contextlib.contextmanager
    def busy_site(self) -> Iterator[None]:
        """While this lasts all that is left of the nodes is somebody else's, and what is submitted waits."""
        number = self.site.admin(
            "sbatch", "--parsable", "--array=1-9", "--mem=1M", "--chdir=/tmp", "--output=/dev/null",
            "--wrap=exec sleep 600",
        ).strip()  # fmt: skip
        wait_for("full nodes", lambda: "Resources" in self.site.admin("squeue", "-h", "-j", number, "-o", "%r"))
        try:
            yield
        finally:
            self.site.admin("scancel", number)

    # -- the site, from below -------------------------------------------------------------------------------------

    def entry(self, job: str) -> Path | None:
        found = sorted(self.spool.glob(f"{self.id}-{job}-*"), key=lambda path: int(path.name.rpartition("-")[2]))
        return found[-1] if found else None

    def pilot(self, job: str) -> int:
        """Its process, by this machine's number: the status file holds that of the site's own name space."""
        number = super().pilot(job)
        entry = self.entry(job)
        assert entry is not None
        mine = [pid for pid, words in self.processes().items() if f"spool/{entry.name} " in words]
        return next(pid for pid in mine if _inner_number(pid) == number)

    def guests(self, job: str) -> list[int]:
        """The hypervisors of all its attempts."""
        return guests(f"{self.id}-{job}-")

    def assert_clean(self, seconds: float = 120) -> None:
        """No stray process, entry, batch job or file on a node; every job ended exactly once."""
        super().assert_clean(seconds)
        over = ("CANCELLED", "COMPLETED", "FAILED", "NODE_FAIL", "TIMEOUT")
        wait_for("the end of all batch jobs", lambda: set(self.batch_jobs()) == set(self.batch_jobs(*over)), seconds)
        runs = self.site.root / "tmp" / f"ghv-{UID}" / "run"
        wait_for("no run folder on the nodes", lambda: not list(runs.glob(f"{self.id}-*")), seconds)


def _inner_number(pid: int) -> int:
    """A process's number in its own name space."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("NSpid:"):
                return int(line.split()[-1])
    return 0


def _inside(pid: int, root: Path) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/root").samefile(root)
    return False
