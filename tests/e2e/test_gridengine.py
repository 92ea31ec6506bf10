"""The main job on a real Grid Engine, over SSH as an ordinary user: what a user gets, and what ends a job there."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from gridhypervisor.model.spec import RetrySpec
from tests.e2e.cluster import (
    PATIENT,
    ClusterLab,
    goes_on_through_batch_jobs,
    joined,
    share_batch_jobs,
    suspended_and_resumed,
    tiny,
)
from tests.e2e.installation import wait_for
from testsites import GridEngineSite

TINY = tiny("gridengine")


class GridEngineLab(ClusterLab):
    site: GridEngineSite

    @contextlib.contextmanager
    def one_node(self) -> Iterator[None]:
        """While this lasts nothing begins on the other nodes."""
        others = [f"*@{node}" for node in self.site.nodes[1:]]
        self.site.admin("qmod", "-d", *others)
        try:
            yield
        finally:
            self.site.admin("qmod", "-e", *others)

    def assert_clean(self, seconds: float = 60) -> None:
        """No stray process, entry, batch job or file on a node; every job ended exactly once."""
        super().assert_clean(seconds)
        wait_for("the end of all batch jobs", lambda: not self.site.admin("qstat", "-u", "*"), seconds)
        nodes = self.site.root / "tmp"
        wait_for("no folder of a batch job on the nodes", lambda: not list(nodes.glob("*.batch.q")), seconds)


@pytest.fixture(scope="module")
def shared_grid(template: Path, node_scratch: Path) -> Iterator[GridEngineLab]:
    with (
        GridEngineSite("sge-e", nodes=2, slots=2) as site,
        joined(GridEngineLab, site, node_scratch, template) as made,
    ):
        yield made


@pytest.fixture
def grid(shared_grid: GridEngineLab) -> Iterator[GridEngineLab]:
    """The installation that all tests here share; clean after each of them."""
    yield shared_grid
    shared_grid.clear_commands()
    shared_grid.assert_clean()


def test_a_job_takes_its_inputs_there_and_brings_streams_code_and_outputs_home(grid: GridEngineLab) -> None:
    (grid.work / "word").write_text("from home\n")
    program = "cat word; echo aside >&2; mkdir -p made/deep; cp word made/deep/copy; exit 7"
    words = ("--cpus", "2", "--in", "word", "--out", "made/*")
    done = grid.ghv("run", *TINY, *words, "--", "sh", "-c", program, check=False)
    assert (done.code, done.out) == (7, b"from home\n"), done
    assert "aside\n" in done.err
    assert (grid.work / "made/deep/copy").read_text() == "from home\n"
    job = grid.ghv("list", "-o", "json").json[0]["id"]
    [attempt] = grid.wait(job)["attempts"]
    assert attempt["site"] == "gridengine" and attempt["node"] in grid.site.nodes


def test_a_check_reports_from_a_node(grid: GridEngineLab) -> None:
    grid.assert_checked()


def test_a_job_cancelled_on_hold_in_the_queue_never_runs(grid: GridEngineLab) -> None:
    for node in grid.site.nodes:
        grid.site.admin("qmod", "-d", f"*@{node}")
    job = grid.detach(*TINY, "--", "echo", "never")
    grid.wait_state(job, "queued")
    number = grid.batch_id(job)
    grid.site.admin("qhold", number)
    for node in grid.site.nodes:
        grid.site.admin("qmod", "-e", f"*@{node}")
    wait_for("the reason", lambda: f"qrls {number}" in grid.ghv("explain", job).out.decode())
    grid.ghv("cancel", job)
    found = grid.wait(job)
    assert (found["job"]["state"], found["job"]["reason"]) == ("cancelled", "cancelled"), found
    assert grid.ghv("logs", job).out == b""


def test_a_job_cancelled_while_it_runs_brings_home_what_it_saved(grid: GridEngineLab) -> None:
    job = grid.detach(*TINY, "--out", "result", "--to", "cancelled", "--", "sh", "-c", PATIENT)
    wait_for("its first word", lambda: grid.ghv("logs", job).out, 180)
    grid.ghv("cancel", job)
    found = grid.wait(job)
    assert (found["job"]["state"], found["job"]["exit_code"]) == ("cancelled", 3), found
    assert (grid.work / "cancelled/result").read_text() == "saved\n"


def test_a_job_deleted_by_an_administrator_shuts_down_cleanly_and_is_told_as_evicted(grid: GridEngineLab) -> None:
    """USR2 goes to every process of the job; the hypervisor must not die of it."""
    words = ("--retry", "0", "--out", "result", "--to", "deleted")
    job = grid.detach(*TINY, *words, "--", "sh", "-c", PATIENT)
    wait_for("its first word", lambda: grid.ghv("logs", job).out, 180)
    grid.site.admin("qdel", grid.batch_id(job))
    found = grid.wait(job)
    assert (found["job"]["state"], found["job"]["reason"]) == ("failed", "evicted"), found
    assert (grid.work / "deleted/result").read_text() == "saved\n"


def test_a_killed_pilot_takes_its_guest_along_and_the_accounts_let_the_job_run_again(grid: GridEngineLab) -> None:
    job = grid.detach(*TINY, "--out", "made", "--to", "again", "--", "sh", "-c", "echo run >> made; sleep 20")
    grid.wait_phase(job, "execute")
    entry = grid.entry(job)
    assert entry is not None
    pilots = [pid for pid, words in grid.processes().items() if " pilot " in words and entry.name in words]
    for number in (signal.SIGSTOP, signal.SIGKILL):  # the watchdog is not to see its pilot die, and say so
        for pid in pilots:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
    found = grid.wait(job)
    assert (found["job"]["state"], found["job"]["exit_code"]) == ("done", 0), found
    assert [attempt["reason"] for attempt in found["attempts"]] == ["lost", "exited"], found
    assert "says that it ended" in str(grid.events(job)), "not the walltime, but the accounts"
    assert (grid.work / "again/made").read_text() == "run\n"


def test_a_job_goes_on_through_batch_jobs_that_are_shorter_than_it(grid: GridEngineLab) -> None:
    goes_on_through_batch_jobs(grid, *TINY, "--retry", "0")


def test_a_suspended_guest_goes_on_where_it_stood_in_another_batch_job(grid: GridEngineLab) -> None:
    suspended_and_resumed(grid, lambda name: name[:10] not in grid.site.admin("qstat", "-u", "*"))


def test_pilots_serve_jobs_of_their_owner_and_of_nobody_else(
    grid: GridEngineLab, template: Path, node_scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOGNAME", "eve")  # who a service works for
    with joined(GridEngineLab, grid.site, node_scratch, template) as eves, grid.one_node():
        share_batch_jobs((grid, eves), 4)
        assert {job["owner"] for job in eves.jobs()} == {"eve"} != {job["owner"] for job in grid.jobs()}
        eves.assert_clean()


def test_jobs_that_come_together_are_one_array_and_end_one_by_one(grid: GridEngineLab) -> None:
    with grid.one_node():  # two run at once, six wait
        one_by_one(grid)


def one_by_one(grid: GridEngineLab) -> None:
    first, rest = grid.together("qsub", "gridengine", PATIENT, 8, retry=RetrySpec(0))
    number = grid.attempt(rest[0])[1].partition(".")[0]
    assert "." not in grid.attempt(first)[1]
    assert [grid.attempt(job)[1] for job in rest] == [f"{number}.{at}" for at in range(1, 9)]

    def begun() -> list[str]:
        return [job for job in rest if grid.ghv("logs", job).out]

    def listed() -> list[str]:
        rows = (line.split() for line in grid.site.admin("qstat", "-g", "d", "-u", "*").splitlines())
        return sorted(row[-1] for row in rows if row[:1] == [number])

    wait_for("two of them, and no room for more", lambda: len(begun()) == 2, 300)
    evicted, cancelled = begun()
    waiting, *left = (job for job in rest if job not in (evicted, cancelled))
    grid.ghv("cancel", waiting)
    assert grid.wait(waiting)["job"]["state"] == "cancelled"
    others = sorted(str(at) for at in range(1, 9) if rest[at - 1] != waiting)
    wait_for("its end, and no other's", lambda: listed() == others)
    grid.site.admin("qdel", grid.attempt(evicted)[1])
    found = grid.wait(evicted)
    assert (found["job"]["state"], found["job"]["reason"]) == ("failed", "evicted"), found
    for job in (cancelled, *left):
        assert grid.attempt(job)[0] in ("queued", "running")  # nobody asked for their end
    grid.ghv("cancel", cancelled, *left)
    for job in (cancelled, *left):
        assert grid.wait(job)["job"]["state"] == "cancelled"
    for job in (evicted, cancelled):
        assert (grid.work / f"many{rest.index(job)}/result").read_text() == "saved\n"
    assert not (grid.work / f"many{rest.index(waiting)}/result").exists()
    found = grid.wait(first)
    assert (found["job"]["state"], grid.ghv("logs", first).out) == ("done", b"of its own\n"), found
