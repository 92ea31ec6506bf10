"""Clocks that are ten minutes off, and one that is set: nothing of it is seen in what becomes of a job.

The machines of these tests share one clock; what should have another gets it from libfaketime: the service, and on the
nodes whatever a batch job starts. The site's relay, the batch system's daemons and all files keep the true time.
"""

from __future__ import annotations

import calendar
import ctypes
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gridhypervisor.model import wire
from tests.e2e.cluster import PATIENT, joined
from tests.e2e.slurmsite import TINY, SlurmLab
from testsites import SlurmSite

pytest_plugins = ("tests.e2e.slurmfixtures",)
pytestmark = pytest.mark.timeout(900)

LIBRARY = Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1")


SEMAPHORE, MEMORY = (f"/ghv-test-{os.getpid()}-{name}" for name in ("semaphore", "memory"))
"""What the library's processes share. Else each makes its own, named by its pid, leaves it behind when killed, and
the next one of that pid, in whatever namespace, ends at once."""


def faked(library: str, minutes: int) -> dict[str, str]:
    """The time of day is off by so much; other clocks are as they are."""
    return {"LD_PRELOAD": library, "FAKETIME": f"{minutes:+d}m", "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "FAKETIME_SHARED": f"{SEMAPHORE} {MEMORY}"}  # fmt: skip


class OtherClocks(SlurmLab):
    def settings(self) -> dict[str, str]:
        """Those of the batch commands, which Slurm hands on to the job."""
        return {**super().settings(), **faked(f"/home/{self.site.login.user}/{LIBRARY.name}", -10)}

    def set_clock(self, minutes: int) -> None:
        """Have the service end without a word; the next one finds a clock that is off by so much."""
        self.kill_service()
        self.environment.update(faked(str(LIBRARY), minutes))
        self.ghv("service", "start")
        started = float(self.ghv("service", "status", "-o", "json").json["started"])
        assert abs(started - time.time() - 60 * minutes) < 120, "else nothing is tried"


@pytest.fixture
def shared() -> Iterator[None]:
    """For all users, as `faked` names them."""
    files = Path(f"/dev/shm/sem.{SEMAPHORE[1:]}"), Path(f"/dev/shm{MEMORY}")
    libc = ctypes.CDLL(None, use_errno=True)
    libc.sem_open.restype = ctypes.c_void_p
    new = ctypes.c_int(os.O_CREAT | os.O_EXCL), ctypes.c_uint(0o600), ctypes.c_uint(1)
    assert libc.sem_open(SEMAPHORE.encode(), *new), os.strerror(ctypes.get_errno())
    files[1].write_bytes(bytes(4096))
    for file in files:
        file.chmod(0o666)
    yield
    for file in files:
        file.unlink()


@pytest.fixture
def clocks(shared: None, template: Path, node_scratch: Path, slurm_site: SlurmSite) -> Iterator[OtherClocks]:
    """What runs in a batch job is ten minutes late, and so are the commands of the batch system."""
    shutil.copy(LIBRARY, there := slurm_site.home / LIBRARY.name)
    with joined(OtherClocks, slurm_site, node_scratch, template) as made:
        yield made
        made.assert_clean()
    there.unlink()


def test_clocks_that_differ_or_are_set_end_no_job_and_give_none_a_second_guest(clocks: OtherClocks) -> None:
    """The service's clock is set forward by twenty minutes, and back: a walltime and what is waited for beyond it."""
    clocks.set_clock(-10)
    job = clocks.detach(*TINY, "--walltime", "5m", "--out", "result", "--to", "late", "--", "sh", "-c", PATIENT)
    clocks.wait_state(job, "running")
    clocks.wait_word(job)
    entry = clocks.entry(job)
    assert entry is not None
    said = (entry / wire.PILOT_LOG).read_text().split()[0]
    assert abs(calendar.timegm(time.strptime(said, "%Y-%m-%dT%H:%M:%SZ")) - time.time() + 600) < 120, said
    for minutes in (10, -10):
        clocks.set_clock(minutes)
        # It has heard of the first one as well, and been through with it, when this one is home.
        assert clocks.ghv("run", *TINY, "--", "echo", "between").out == b"between\n"
        found = clocks.job(job)
        assert (found["job"]["state"], len(found["attempts"])) == ("running", 1), found
        assert len(clocks.guests(job)) == 1
    clocks.ghv("cancel", job)
    found = clocks.wait(job)
    assert (found["job"]["state"], found["job"]["exit_code"], len(found["attempts"])) == ("cancelled", 3, 1), found
    assert (clocks.work / "late/result").read_text() == "saved\n"
    rows = [row["seconds"] for row in found["ledger"]["rows"]]
    assert all(-0.01 < seconds < 600 for seconds in rows), "nobody has waited for ten minutes"
