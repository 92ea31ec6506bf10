"""The main job on a real HTCondor, over SSH as an ordinary user: what a user gets, and what ends a job there."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.e2e.cluster import (
    PATIENT,
    ClusterLab,
    cut_after_the_submission,
    cut_before_the_submission,
    joined,
    share_batch_jobs,
    suspended_and_resumed,
    tiny,
    without_its_batch_system_for_a_minute,
)
from tests.e2e.installation import wait_for
from testsites import HTCondorSite
from testsites.site import UID

TINY = tiny("htcondor")


class HTCondorLab(ClusterLab):
    site: HTCondorSite

    def processes(self) -> dict[int, str]:
        return {pid: words for pid, words in super().processes().items() if "condor_" not in words}

    def batch_jobs(self) -> dict[str, str]:
        """This installation's batch jobs by name: HTCondor's number for the state, and which node has it."""
        listed = self.site.admin("condor_q", "-allusers", "-af", "GhvName", "JobStatus", "RemoteHost")
        rows = (line.split() for line in listed.splitlines())
        return {name: f"{status} {node}" for name, status, node in rows if name.startswith(f"{self.id}-")}

    @contextlib.contextmanager
    def busy_site(self) -> Iterator[None]:
        """While this lasts all that is left of the nodes is other work, and what is submitted waits."""
        words = "executable = /bin/sleep\ntransfer_executable = false\nshould_transfer_files = NO\ninitialdir = /\n"
        words += "arguments = 600\nrequest_memory = 1\nrequest_cpus = 1\nqueue 4\n"
        cluster = self.site.admin("condor_submit", "-terse", "-", as_user=True, stdin=words).split(".")[0]
        busy = ("condor_q", "-allusers", cluster, "-constraint", "JobStatus == 2", "-af", "ProcId")
        wait_for("full nodes", lambda: len(self.site.admin(*busy).split()) == 4)
        try:
            yield
        finally:
            self.site.admin("condor_rm", cluster)

    def assert_clean(self, seconds: float = 60) -> None:
        """No stray process, entry, batch job or file on a node; every job ended exactly once."""
        super().assert_clean(seconds)
        over = {"3 undefined", "4 undefined"}
        wait_for("the end of all batch jobs", lambda: set(self.batch_jobs().values()) <= over, seconds)
        nodes = self.site.root / "var/lib/condor"
        wait_for("no run folder on the nodes", lambda: not list(nodes.glob(f"*/*/ghv-{UID}/run/*")), seconds)


@pytest.fixture(scope="module")
def shared_pool(template: Path, node_scratch: Path) -> Iterator[HTCondorLab]:
    with (
        # A guest that is emulated on a busy machine may need a minute to stop.
        HTCondorSite("htcondor-e", nodes=2, cpus=2, vacate=180) as site,
        joined(HTCondorLab, site, node_scratch, template) as made,
    ):
        yield made


@pytest.fixture
def pool(shared_pool: HTCondorLab) -> Iterator[HTCondorLab]:
    yield shared_pool
    shared_pool.assert_clean()


def test_a_job_takes_its_inputs_there_and_brings_streams_code_and_outputs_home(pool: HTCondorLab) -> None:
    (pool.work / "word").write_text("from home\n")
    program = "cat word; echo aside >&2; mkdir -p made/deep; cp word made/deep/copy; exit 7"
    done = pool.ghv("run", *TINY, "--in", "word", "--out", "made/*", "--", "sh", "-c", program, check=False)
    assert (done.code, done.out) == (7, b"from home\n"), done
    assert "aside\n" in done.err
    assert (pool.work / "made/deep/copy").read_text() == "from home\n"
    job = pool.ghv("list", "-o", "json").json[0]["id"]
    [attempt] = pool.wait(job)["attempts"]
    assert (attempt["site"], attempt["state"]) == ("htcondor", "cleaned")


def test_a_check_reports_from_a_node(pool: HTCondorLab) -> None:
    pool.assert_checked()


def test_a_job_cancelled_in_a_full_queue_never_runs(pool: HTCondorLab) -> None:
    with pool.busy_site():
        job = pool.detach(*TINY, "--", "echo", "never")
        pool.wait_state(job, "queued")
        wait_for("the site's reason", lambda: b"no match found" in pool.ghv("explain", job).out)
        pool.ghv("cancel", job)
        found = pool.wait(job)
    assert (found["job"]["state"], found["job"]["reason"]) == ("cancelled", "cancelled"), found
    assert pool.ghv("logs", job).out == b""


def test_a_job_cancelled_while_it_runs_brings_home_what_it_saved(pool: HTCondorLab) -> None:
    job = pool.detach(*TINY, "--out", "result", "--to", "cancelled", "--", "sh", "-c", PATIENT)
    wait_for("its first word", lambda: pool.ghv("logs", job).out, 180)
    pool.ghv("cancel", job)
    found = pool.wait(job)
    assert (found["job"]["state"], found["job"]["exit_code"]) == ("cancelled", 3), found
    assert (pool.work / "cancelled/result").read_text() == "saved\n"


def test_a_job_removed_by_an_administrator_shuts_down_cleanly_and_is_told_as_evicted(pool: HTCondorLab) -> None:
    words = ("--retry", "0", "--out", "result", "--to", "removed")
    job = pool.detach(*TINY, *words, "--", "sh", "-c", PATIENT)
    wait_for("its first word", lambda: pool.ghv("logs", job).out, 180)
    pool.site.admin("condor_rm", pool.batch_id(job))
    found = pool.wait(job)
    assert (found["job"]["state"], found["job"]["reason"]) == ("failed", "evicted"), found
    assert (pool.work / "removed/result").read_text() == "saved\n"


def test_a_suspended_guest_goes_on_where_it_stood_in_another_batch_job(pool: HTCondorLab) -> None:
    suspended_and_resumed(pool, lambda name: pool.batch_jobs().get(name, "") in ("", "3 undefined", "4 undefined"))


def test_one_batch_job_serves_several_short_jobs(pool: HTCondorLab) -> None:
    share_batch_jobs((pool,), 8)


def test_a_connection_cut_in_a_submission_costs_one_attempt_at_most(pool: HTCondorLab) -> None:
    cut_after_the_submission(pool, "condor_submit")
    job = cut_before_the_submission(pool, "condor_submit")
    assert [name for name in pool.batch_jobs() if name.startswith(f"{pool.id}-{job}-")] in ([], [f"{pool.id}-{job}-2"])


def test_the_queue_is_away_for_a_minute_with_all_who_watch_over_its_jobs(pool: HTCondorLab) -> None:
    without_its_batch_system_for_a_minute(pool, pool.site.cut_queue, partial(pool.site.start, "schedd"))
    pool.site.wait_idle()
