"""The main job on a real Slurm, over SSH: what a user gets, and what ends a job there."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from tests.e2e.cluster import PATIENT, joined
from tests.e2e.installation import REPOSITORY, wait_for
from tests.e2e.slurmsite import RERUN, TINY, SlurmLab, reasons
from tests.making import BUILD
from testsites import SlurmSite

pytest_plugins = ("tests.e2e.slurmfixtures",)
pytestmark = pytest.mark.timeout(900)

SHORT = "40s"
"""A walltime of which most is left when the guest runs, on a slow machine too, and that Slurm takes for a minute."""


def test_a_job_takes_its_inputs_there_and_brings_streams_code_and_outputs_home(slurm: SlurmLab) -> None:
    (slurm.work / "word").write_text("from home\n")
    program = "cat word; echo aside >&2; mkdir -p made/deep; cp word made/deep/copy; chmod 750 made/deep/copy; exit 7"
    done = slurm.ghv("run", *TINY, "--in", "word", "--out", "made/*", "--", "sh", "-c", program, check=False)
    assert (done.code, done.out) == (7, b"from home\n"), done
    assert "aside\n" in done.err
    copy = slurm.work / "made/deep/copy"
    assert (copy.read_text(), copy.stat().st_mode & 0o777) == ("from home\n", 0o750)
    job = slurm.ghv("list", "-o", "json").json[0]["id"]
    found = slurm.wait(job)
    [attempt] = found["attempts"]
    assert (attempt["site"], attempt["node"]) == ("slurm", slurm.site.name)
    over = ("FAILED", "COMPLETED")
    wait_for("Slurm's word", lambda: attempt["batch_id"] in [number for number, _ in slurm.batch_jobs(*over).values()])
    rows = {row["phase"]: row["seconds"] for row in found["ledger"]["rows"]}
    assert {"prolog", "queue", "prepare", "boot", "execute", "stage_out", "shut_down", "epilog"} <= set(rows)
    assert abs(sum(rows.values()) - found["ledger"]["wall"]) < 0.01


def test_a_check_reports_from_a_node(slurm: SlurmLab) -> None:
    words = "ReservationName=maint StartTime=now+2days Duration=60 Users=root Flags=MAINT Nodes=ALL"
    slurm.site.admin("scontrol", "create", "reservation", *words.split())
    limits = slurm.assert_checked()["its limits are read"]
    slurm.site.admin("scontrol", "delete", "ReservationName=maint")
    assert "walltime: 86400 s; 2 CPUs a node" in limits and "default walltime: 600 s" in limits, limits
    assert "reservation maint: " in limits, limits


def test_a_check_tells_what_a_node_forbids(slurm: SlurmLab) -> None:
    def refused(words: str) -> None:
        found = slurm.ghv("site", "check", "strict", check=False)
        assert found.code == 75 and words in found.out.decode(), found
        assert "ghv site edit strict --scratch" in found.out.decode(), "what to do"

    slurm.add_site("strict", "--scratch", "/srv/scratch")  # which is not there: the relay takes another
    refused("/srv/scratch is not a folder")
    with slurm.site.mounted("/srv/scratch", "noexec,mode=1777"):
        refused("mounted noexec?")
    with slurm.site.mounted("/srv/scratch", "size=4m,mode=1777"):
        refused("cannot unpack into /srv/scratch")
    slurm.ghv("site", "remove", "strict")


def test_a_check_in_a_full_queue_says_the_sites_reason_and_takes_its_probe_back(slurm: SlurmLab) -> None:
    with slurm.busy_site():
        asked = slurm.start("site", "check", "slurm")
        assert asked.stderr is not None
        told = next(line for line in asked.stderr if b"pending at slurm: " in line).decode()
        assert "Priority" in told or "Resources" in told, told
        asked.send_signal(signal.SIGINT)
        assert asked.wait(120) == 130
        wait_for("no job", lambda: not any(job["name"] == "check-slurm" for job in slurm.jobs()))
        wait_for("the batch job's end", lambda: not slurm.batch_jobs("PENDING", "RUNNING"))


def test_bundle_and_image_go_there_once(slurm: SlurmLab) -> None:
    def there() -> dict[str, tuple[int, int]]:
        files = [path for name in ("bundle", "cache") for path in (slurm.workdir / name).rglob("*") if path.is_file()]
        return {str(path): (path.stat().st_ino, path.stat().st_mtime_ns) for path in files}

    slurm.ghv("run", *TINY, "--", "true")
    before = there()
    slurm.stop()
    slurm.ghv("run", *TINY, "--", "true")  # by a new service, over a new connection
    assert there() == before
    assert not list(slurm.workdir.glob("bundle/*.part"))


def test_jobs_that_come_faster_than_they_are_taken_go_as_an_array_and_are_jobs_of_their_own(slurm: SlurmLab) -> None:
    slurm.add_site("arrays", "--workdir", "~/other", "--option", "spool_lag=1", "--option", "submit_rate=6000")
    assert b"at most 6000 jobs a minute" in slurm.ghv("site", "show", "arrays").out
    with slurm.busy_site():
        first, rest = slurm.together("sbatch", "arrays", "echo run >> result; exit 3", 4)
        number = slurm.attempt(rest[0])[1].partition("_")[0]
        assert "_" not in slurm.attempt(first)[1]
        assert [slurm.attempt(job)[1] for job in rest] == [f"{number}_{at}" for at in range(4)]
        slurm.ghv("cancel", rest[1])
        found = slurm.wait(rest[1])
        assert (found["job"]["state"], found["job"]["reason"]) == ("cancelled", "cancelled"), found
    assert slurm.wait(first)["job"]["state"] == "done"
    assert slurm.ghv("logs", first).out == b"of its own\n"
    for at in (0, 2, 3):
        found = slurm.wait(rest[at])
        assert (found["job"]["state"], found["job"]["exit_code"], len(found["attempts"])) == ("done", 3, 1), found
        assert (slurm.work / f"many{at}/result").read_text() == "run\n"
    assert not (slurm.work / "many1/result").exists()
    slurm.ghv("site", "remove", "arrays")


def test_a_job_cancelled_in_a_full_queue_never_runs(slurm: SlurmLab) -> None:
    with slurm.busy_site():
        job = slurm.detach(*TINY, "--", "echo", "never")
        slurm.wait_state(job, "queued")
        wait_for("the site's reason", lambda: b"Priority" in slurm.ghv("explain", job).out)
        slurm.ghv("cancel", job)
        found = slurm.wait(job)
    assert (found["job"]["state"], found["job"]["reason"]) == ("cancelled", "cancelled"), found
    assert slurm.ghv("logs", job).out == b""
    wait_for("the batch job's end", lambda: f"{slurm.id}-{job}-1" in slurm.batch_jobs("CANCELLED"))


def test_a_job_cancelled_while_it_runs_brings_home_what_it_saved(slurm: SlurmLab) -> None:
    job = slurm.detach(*TINY, "--out", "result", "--to", "cancelled", "--", "sh", "-c", PATIENT)
    slurm.wait_word(job)
    slurm.ghv("cancel", job)
    found = slurm.wait(job)
    assert (found["job"]["state"], found["job"]["exit_code"]) == ("cancelled", 3), found
    assert slurm.ghv("logs", job).out == b"started\nstopped\n"
    assert (slurm.work / "cancelled/result").read_text() == "saved\n"


def test_the_walltime_is_kept_to_the_second_and_the_outputs_come_home(slurm: SlurmLab) -> None:
    job = slurm.detach(*TINY, "--walltime", SHORT, "--out", "result", "--to", "late", "--", "sh", "-c", PATIENT)
    found = slurm.wait(job)
    assert (found["job"]["state"], found["job"]["reason"]) == ("failed", "walltime"), found
    assert "walltime" in found["job"]["message"] and "walltime" in found["job"]["hint"]
    assert (slurm.work / "late/result").read_text() == "saved\n"
    rows = {row["phase"]: row["seconds"] for row in found["ledger"]["rows"]}
    ours = ("prepare", "boot", "stage_in", "execute", "stage_out", "shut_down")
    assert sum(rows.get(phase, 0.0) for phase in ours) < 60, rows  # Slurm would not have ended it before
    assert slurm.ghv("wait", job, check=False).code == 124


def test_a_pilot_stopped_beyond_its_walltime_is_ended_on_its_node(slurm: SlurmLab) -> None:
    job = slurm.detach(*TINY, "--walltime", SHORT, "--", "sleep", "1000")
    slurm.wait_phase(job, "execute")
    os.kill(slurm.pilot(job), signal.SIGSTOP)
    found = slurm.wait(job)
    assert (found["job"]["state"], found["job"]["reason"]) == ("failed", "walltime"), found
    assert "the pilot was stopped or hung" in found["job"]["message"]
    assert found["job"]["hint"]


def test_a_killed_pilot_takes_its_guest_along_and_the_job_runs_again(slurm: SlurmLab) -> None:
    seconds = slurm.work / "seconds"
    seconds.write_text("1000\n")
    job = slurm.detach(*TINY, "--in", "seconds", "--out", "made", "--to", "again", "--", "sh", "-c", RERUN)
    slurm.wait_word(job)
    seconds.write_text("0\n")
    os.kill(slurm.pilot(job), signal.SIGKILL)
    found = slurm.wait(job)
    assert (found["job"]["state"], found["job"]["exit_code"]) == ("done", 0), found
    assert reasons(found) == ["pilot", "exited"], found
    assert (slurm.work / "again/made").read_text() == "run\n"


def test_a_killed_hypervisor_fails_the_job_once_its_tries_are_used_up(slurm: SlurmLab) -> None:
    job = slurm.detach(*TINY, "--retry", "0", "--", "sleep", "1000")
    slurm.wait_phase(job, "execute")
    os.kill(slurm.hypervisor(job), signal.SIGKILL)
    found = slurm.wait(job)
    assert (found["job"]["state"], found["job"]["reason"]) == ("failed", "hypervisor"), found
    assert "signal 9" in found["job"]["message"] and found["job"]["hint"]


def test_batch_jobs_deleted_by_an_administrator_are_told_as_that(slurm: SlurmLab) -> None:
    with slurm.busy_site():
        waiting = slurm.detach(*TINY, "--retry", "0", "--", "true")
        slurm.site.admin("scancel", slurm.batch_id(waiting))
        found = slurm.wait(waiting)
    assert (found["job"]["state"], found["job"]["reason"]) == ("failed", "lost"), found
    assert "before the pilot began: CANCELLED" in found["job"]["message"]
    assert "administrators" in found["job"]["message"] + found["job"]["hint"]

    words = ("--retry", "0", "--out", "result", "--to", "deleted")
    running = slurm.detach(*TINY, *words, "--", "sh", "-c", PATIENT)
    slurm.wait_word(running)
    slurm.site.admin("scancel", slurm.batch_id(running))
    found = slurm.wait(running)
    assert (found["job"]["state"], found["job"]["reason"]) == ("failed", "evicted"), found
    assert "the site ended the batch job" in found["job"]["message"] and "administrators" in found["job"]["hint"]
    assert (slurm.work / "deleted/result").read_text() == "saved\n"


def test_the_science_case_gives_there_what_the_host_makes(
    science_template: Path, node_scratch: Path, slurm_site: SlurmSite, tmp_path: Path
) -> None:
    shutil.copy(BUILD / "data" / "xmm_test.fits", tmp_path / "events.fits")
    tool = REPOSITORY / "examples" / "images" / "xmm" / "evproducts"
    subprocess.run([tool, "events.fits"], cwd=tmp_path, check=True, capture_output=True)
    native = {path.name: path.read_bytes() for path in (tmp_path / "products").iterdir()}
    with joined(SlurmLab, slurm_site, node_scratch, science_template) as lab:
        job = str(REPOSITORY / "examples/xmm/job.yaml")
        lab.ghv("run", "-f", job, "--site", "slurm", "--to", "results", timeout=900)
        products = lab.work / "results" / "products"
        assert {path.name: path.read_bytes() for path in products.iterdir()} == native
        lab.assert_clean()
