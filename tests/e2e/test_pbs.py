"""The main job through PBS's commands, over SSH as an ordinary user: what a user gets, and what a hold looks like."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import MappingProxyType

import pytest

from tests.e2e.cluster import cut_after_the_submission, cut_before_the_submission, joined, tiny
from tests.e2e.installation import wait_for
from tests.e2e.slurmsite import SlurmLab
from testsites import PbsSite

TINY = tiny("pbs")


class PbsLab(SlurmLab):
    defaults = MappingProxyType({})


@pytest.fixture(scope="module")
def shared_pbs(template: Path, node_scratch: Path) -> Iterator[PbsLab]:
    with PbsSite("pbs-e", nodes=2, cpus=2) as site, joined(PbsLab, site, node_scratch, template) as made:
        yield made


@pytest.fixture
def pbs(shared_pbs: PbsLab) -> Iterator[PbsLab]:
    """The installation that all tests here share; clean after each of them."""
    yield shared_pbs
    shared_pbs.assert_clean()


def test_a_job_takes_its_inputs_there_and_brings_streams_code_and_outputs_home(pbs: PbsLab) -> None:
    (pbs.work / "word").write_text("from home\n")
    program = "cat word; echo aside >&2; mkdir -p made/deep; cp word made/deep/copy; exit 7"
    words = ("--cpus", "2", "--in", "word", "--out", "made/*")
    done = pbs.ghv("run", *TINY, *words, "--", "sh", "-c", program, check=False)
    assert (done.code, done.out) == (7, b"from home\n"), done
    assert "aside\n" in done.err
    assert (pbs.work / "made/deep/copy").read_text() == "from home\n"
    job = pbs.ghv("list", "-o", "json").json[0]["id"]
    [attempt] = pbs.wait(job)["attempts"]
    assert (attempt["site"], attempt["state"]) == ("pbs", "cleaned")


def test_a_check_reports_from_a_node(pbs: PbsLab) -> None:
    pbs.assert_checked()


def test_a_job_on_hold_says_what_to_do_and_when_cancelled_never_runs(pbs: PbsLab) -> None:
    with pbs.busy_site():
        job = pbs.detach(*TINY, "--", "echo", "never")
        pbs.wait_state(job, "queued")
        number = pbs.batch_id(job)
        pbs.site.admin("qhold", "-h", "u", number)
        wait_for("the reason", lambda: f"qrls {number}" in pbs.ghv("explain", job).out.decode())
        pbs.ghv("cancel", job)
        found = pbs.wait(job)
    assert (found["job"]["state"], found["job"]["reason"]) == ("cancelled", "cancelled"), found
    assert pbs.ghv("logs", job).out == b""


def test_a_connection_cut_in_a_submission_costs_one_attempt_at_most(pbs: PbsLab) -> None:
    cut_after_the_submission(pbs, "qsub")
    job = cut_before_the_submission(pbs, "qsub")
    assert [name for name in pbs.batch_jobs() if name.startswith(f"{pbs.id}-{job}-")] == [f"{pbs.id}-{job}-2"]
