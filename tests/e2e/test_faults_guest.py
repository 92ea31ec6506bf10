"""What goes wrong in a guest, in its program, or with its inputs: said clearly, told by the events; nothing is left.

The faults stay in their jobs, so all jobs are submitted at once, and each test waits for its own.
"""

from __future__ import annotations

import hashlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.guestkit import HYPERVISORS
from tests.e2e.installation import Installation, wait_for
from tests.e2e.webserver import WebServer

SMALL = ("--memory", "128M", "--scratch", "48M", "--walltime", "5m", "--retry", "0")
FREEZE = (
    "mkdir /sys/fs/cgroup/ice; echo 1 > /sys/fs/cgroup/ice/cgroup.procs; echo 1 > /sys/fs/cgroup/ice/cgroup.freeze;"
    " sleep 1000"
)


@pytest.fixture(scope="module", params=HYPERVISORS)
def hypervisor(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def web() -> Iterator[WebServer]:
    with WebServer() as server:
        yield server


@pytest.fixture(scope="module")
def jobs(lab: Installation, web: WebServer, hypervisor: str) -> dict[str, str]:
    """Every fault's job, by name."""
    work = lab.work
    web.files["/data"] = b"these bytes"
    rooted = work / "rooted.yaml"
    rooted.write_text("kind: Image\nname: rooted\nbase: busybox\nuser: root\n")
    noise = work / "noise.raw"
    noise.write_bytes(os.urandom(4 << 20))
    lab.ghv("image", "build", str(rooted))
    lab.ghv("image", "import", str(noise), "--tag", "noise")
    (work / "hang.yaml").write_text(
        f"image: rooted\ncommand: [sh, -c, {FREEZE!r}]\nretry: {{times: 0}}\n"
        "resources: {memory: 128M, scratch: 48M}\n"
    )

    def job(*words: str, image: str = "tiny", out: tuple[str, ...] = (), run: str = "true") -> str:
        outputs = [word for pattern in out for word in ("--out", pattern)]
        return lab.detach("--image", image, *SMALL, *outputs, *words, "--", "sh", "-c", run)

    wrong = "0" * 64
    # A minute's silence is waited for once: the tests of one pilot have it shorter, under each hypervisor.
    hang = {"hang": lab.detach("-f", "hang.yaml")} if hypervisor == HYPERVISORS[0] else {}
    return hang | {
        "code": job("--to", "code", out=("made",), run="echo part > made; echo oops >&2; exit 9"),
        "killed": job(run="kill -SEGV $$"),
        "no output": job("--to", "none", out=("made", "absent/*"), run="echo part > made"),
        "not found": lab.detach("--image", "tiny", *SMALL, "--", "no-such-program"),
        "panic": job(image="rooted", run="echo c > /proc/sysrq-trigger; sleep 1000"),
        "scratch": job("--to", "full", out=("log",), run="echo before > log; dd if=/dev/zero of=big bs=1M count=100"),
        "memory": job(run="tail /dev/zero"),
        "boot": job("--hypervisor", "auto", image="noise"),
        "wrong sum": job("--in", f"{web.url}/data#sha256={wrong}"),
        "not there": job("--in", f"{web.url}/nothing"),
        "unreadable": job("--in", "/proc/self/mem=memory"),  # opens, and gives an error when it is read
    }


def ended(lab: Installation, job: str, state: str, reason: str) -> tuple[dict[str, Any], str]:
    """The job's record, after all that holds for any fault; and what `ghv wait` exits with."""
    found = lab.wait(job)
    view = found["job"]
    assert (view["state"], view["reason"]) == (state, reason), found
    assert len(found["attempts"]) == 1, found
    rows = found["ledger"]["rows"]
    assert sum(row["seconds"] for row in rows) == pytest.approx(found["ledger"]["wall"], abs=0.01)
    if state == "failed":
        assert view["message"], view
        assert view["hint"], view
        told = lab.ghv("explain", job).out.decode()
        assert view["message"] in told
        assert view["hint"] in told
        [last] = [event for event in lab.events(job) if event["kind"] == "job" and event["after"] == "failed"]
        assert last["reason"] == reason
        assert last["message"] == view["message"]
    return view, "\n".join((view["message"], view["hint"]))


def code_of(lab: Installation, job: str) -> int:
    return lab.ghv("wait", job, check=False).code


def test_a_program_that_fails_gives_its_code_and_its_outputs(lab: Installation, jobs: dict[str, str]) -> None:
    view, _ = ended(lab, jobs["code"], "done", "exited")
    assert view["exit_code"] == code_of(lab, jobs["code"]) == 9
    assert (lab.work / "code/made").read_text() == "part\n"
    assert lab.ghv("logs", jobs["code"]).err == "oops\n"


def test_a_program_that_a_signal_ends_gives_the_code_of_a_shell(lab: Installation, jobs: dict[str, str]) -> None:
    view, _ = ended(lab, jobs["killed"], "done", "exited")
    assert view["exit_code"] == code_of(lab, jobs["killed"]) == 128 + signal.SIGSEGV


def test_outputs_that_were_not_made_are_named_and_the_others_come_home(lab: Installation, jobs: dict[str, str]) -> None:
    _, words = ended(lab, jobs["no output"], "failed", "output")
    assert "absent/*" in words
    assert "'made'" not in words
    assert (lab.work / "none/made").read_text() == "part\n"
    assert code_of(lab, jobs["no output"]) == 73


def test_a_program_that_the_image_lacks_is_named(lab: Installation, jobs: dict[str, str]) -> None:
    view, _ = ended(lab, jobs["not found"], "done", "exited")
    assert view["exit_code"] == 127
    assert "no-such-program" in lab.ghv("logs", jobs["not found"]).err


def test_a_kernel_panic_is_told_in_the_kernels_words(lab: Installation, jobs: dict[str, str]) -> None:
    _, words = ended(lab, jobs["panic"], "failed", "guest-panic")
    assert "sysrq triggered crash" in words
    assert b"sysrq triggered crash" in lab.ghv("logs", "--stream", "console", jobs["panic"]).out
    assert code_of(lab, jobs["panic"]) == 76


@pytest.mark.parametrize("hypervisor", HYPERVISORS[:1], indirect=True)
def test_a_guest_that_hangs_is_ended(lab: Installation, jobs: dict[str, str]) -> None:
    _, words = ended(lab, jobs["hang"], "failed", "guest-silent")
    assert "has not answered" in words


def test_a_full_scratch_disk_says_so_and_what_was_written_comes_home(lab: Installation, jobs: dict[str, str]) -> None:
    _, words = ended(lab, jobs["scratch"], "failed", "scratch-full")
    assert "more scratch" in words
    assert (lab.work / "full/log").read_text() == "before\n"


def test_too_little_memory_is_said(lab: Installation, jobs: dict[str, str]) -> None:
    view, words = ended(lab, jobs["memory"], "done", "exited")
    assert view["exit_code"] == 128 + signal.SIGKILL
    assert "more memory" in words


def test_an_image_that_cannot_boot_says_what_it_lacks(lab: Installation, jobs: dict[str, str]) -> None:
    _, words = ended(lab, jobs["boot"], "failed", "boot")
    assert "root" in words
    assert code_of(lab, jobs["boot"]) == 76


@pytest.mark.parametrize(
    ("name", "what", "mend"),
    [
        ("wrong sum", hashlib.sha256(b"these bytes").hexdigest(), "sha256"),
        ("not there", "/nothing", "URL"),
        ("unreadable", "/proc/self/mem", "read"),
    ],
    ids=lambda text: text.replace(" ", "-") if len(text) < 20 else "",
)
def test_an_input_that_cannot_be_had_ends_the_job_before_it_is_submitted(
    lab: Installation, jobs: dict[str, str], name: str, what: str, mend: str
) -> None:
    _, words = ended(lab, jobs[name], "failed", "staging")
    assert what in words
    assert mend in words
    assert not [e for e in lab.events(jobs[name]) if e["after"] == "submitting"]
    assert code_of(lab, jobs[name]) == 74


def test_an_input_that_is_not_there_is_refused_at_once(lab: Installation) -> None:
    before = [job["id"] for job in lab.ghv("list", "-o", "json").json]
    refused = lab.ghv("run", "--image", "tiny", "--in", "absent.fits", "--", "true", check=False)
    assert refused.code == 66
    assert "absent.fits" in refused.err
    assert [job["id"] for job in lab.ghv("list", "-o", "json").json] == before


def test_an_input_that_vanishes_before_it_is_taken(lab: Installation) -> None:
    """The relay is stopped in the meantime, for the prolog speaks to it first."""
    brief = Path(lab.work / "brief")
    brief.write_text("here for now")
    lab.ghv("service", "start")
    with lab.silent_site():
        job = lab.detach("--image", "tiny", *SMALL, "--in", "brief", "--", "true")
        brief.unlink()
    _, words = ended(lab, job, "failed", "staging")
    assert str(brief) in words


def test_what_does_not_exist_is_named_with_what_does(lab: Installation) -> None:
    for words, code, told in [
        (("run", "--image", "nothing", "--", "true"), 66, ("nothing", "ghv image list")),
        (("run", "--image", "tiny", "--site", "mars", "--", "true"), 66, ("mars", "local")),
        (("show", "j999"), 66, ("j999", "ghv list")),
        (("run", "--image", "tiny"), 64, ("what to run",)),
    ]:
        refused = lab.ghv(*words, check=False)
        assert refused.code == code, refused
        assert all(word in refused.err for word in told), refused


def test_nothing_is_left(lab: Installation, jobs: dict[str, str]) -> None:
    """Last in this module: whatever went wrong above, neither process nor file of it remains."""
    for job in jobs.values():
        lab.wait(job)
    wait_for("no job alive", lambda: not lab.ghv("service", "status", "-o", "json").json["jobs_alive"])
    lab.assert_clean()
