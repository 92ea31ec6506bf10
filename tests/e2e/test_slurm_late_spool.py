"""A real Slurm whose front-end sees late, and out of order, what the nodes write: as with a network file system.

What the nodes have written, and the controller cannot know yet, is read from below. See `testsites.latespool`.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gridhypervisor.model import wire
from tests.e2e.cluster import PATIENT, joined
from tests.e2e.installation import wait_for
from tests.e2e.slurmsite import TINY, SlurmLab
from testsites import SlurmSite

pytestmark = pytest.mark.timeout(900)

DELAY = 6
"""Seconds that anything stays unseen at most."""


@pytest.fixture(scope="module")
def shared_lab(template: Path, node_scratch: Path) -> Iterator[SlurmLab]:
    with (
        SlurmSite("slurm-late", nodes=2, cpus=2, spool_delay=DELAY) as site,
        joined(SlurmLab, site, node_scratch, template, spool_lag=str(10 * DELAY)) as made,
    ):
        yield made


@pytest.fixture
def late(shared_lab: SlurmLab) -> Iterator[SlurmLab]:
    yield shared_lab
    shared_lab.assert_clean()


def test_what_a_job_printed_and_made_comes_home_whole(late: SlurmLab) -> None:
    program = (
        "mkdir -p made/deep; for n in 1 2 3 4 5 6 7 8; do echo line $n; echo $n > made/deep/$n; sleep 0.4; done; "
        "head -c 3000000 /dev/zero > made/large; echo aside >&2; exit 7"
    )
    done = late.ghv("run", *TINY, "--out", "made/*", "--", "sh", "-c", program, check=False)
    assert (done.code, done.out) == (7, b"".join(b"line %d\n" % n for n in range(1, 9))), done
    assert "aside\n" in done.err
    assert {path.name: path.read_text() for path in (late.work / "made/deep").iterdir()} == {
        str(n): f"{n}\n" for n in range(1, 9)
    }
    assert (late.work / "made/large").read_bytes() == bytes(3_000_000)
    assert len(late.job(late.ghv("list", "-o", "json").json[0]["id"])["attempts"]) == 1
    for file in (wire.OWNER, wire.EXIT):  # else nothing was tried
        assert max(late.site.late(file)) > 1, file


def test_a_cancel_in_the_queue_and_one_when_the_pilot_has_begun_unseen(late: SlurmLab) -> None:
    with late.site.unseen():
        with late.busy_site():
            queued = late.detach(*TINY, "--", "echo", "never")
            begins = late.detach(*TINY, "--out", "result", "--to", "begun", "--", "sh", "-c", PATIENT)
            for job in (queued, begins):
                late.wait_state(job, "queued")
            late.ghv("cancel", queued)
            found = late.wait(queued)
        assert (found["job"]["state"], late.ghv("logs", queued).out) == ("cancelled", b""), found
        entry = late.entry(begins)
        assert entry is not None
        wait_for("the pilot's ownership", (entry / wire.OWNER).exists)
        assert late.job(begins)["job"]["state"] == "queued"
        late.ghv("cancel", begins)  # which revokes, and so finds the owner
        wait_for("the finding", lambda: {"queued>revoking", "revoking>running"} <= set(late.story(begins)))
    found = late.wait(begins)
    assert (found["job"]["state"], len(found["attempts"])) == ("cancelled", 1), found
    assert not late.guests(begins)


def test_a_service_killed_while_the_spool_keeps_owner_and_sentinel_from_it(late: SlurmLab) -> None:
    def killed_before(entry: Path, file: str, unseen: str) -> None:
        wait_for(f"{file} on its node", (entry / file).exists)
        late.kill_service()
        assert not any(step.endswith(unseen) for step in late.story(job)), file

    words = ("--retry", "5", "--out", "result", "--to", "killed")
    with late.site.unseen():
        job = late.detach(*TINY, *words, "--", "sh", "-c", PATIENT)
        entry = wait_for("the entry", lambda: late.entry(job))
        killed_before(entry, wire.OWNER, "running")
    late.wait_state(job, "running")
    late.wait_word(job)
    with late.site.unseen():  # for less than the site's `spool_lag`, after which the job is given up, and rightly
        late.ghv("cancel", job)
        killed_before(entry, wire.EXIT, "epilog")
    # The batch system says that it is over; that alone is no reason to give it up.
    wait_for("Slurm's word", lambda: late.batch_jobs("COMPLETED", "FAILED").get(entry.name))
    found = late.wait(job)
    assert (found["job"]["state"], len(found["attempts"])) == ("cancelled", 1), found
    assert (late.work / "killed/result").read_text() == "saved\n"
    assert late.ghv("logs", job).out == b"started\nstopped\n"


def test_what_shows_only_after_the_results_are_home_is_removed_as_well(late: SlurmLab) -> None:
    """Files go on appearing in the entry, so that its removal meets some that it has not seen."""
    job = late.detach(*TINY, "--", "true")
    entry = wait_for("the entry", lambda: late.entry(job))
    wait_for("the sentinel on its node", (entry / wire.EXIT).exists)
    with contextlib.suppress(FileNotFoundError):  # it was moved aside
        for number in itertools.count():
            (entry / f"late-{number}").touch()
            time.sleep(0.1)
    assert late.wait(job)["job"]["state"] == "done"
    wait_for("the end of the removal", lambda: late.job(job)["attempts"][0]["state"] == "cleaned")
    assert late.site.late(f".removed.{entry.name}/late-*")  # else nothing was tried
