"""Cancelling a job in each of its phases: it ends once, soon, as cancelled, with what it had made; nothing is left.

A phase is held by real means: a site that is busy, a server that does not answer, a pilot that is stopped, a full disk.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator

import pytest

from gridhypervisor.model import wire
from gridhypervisor.model.wire import Phase
from tests.e2e.installation import Installation, wait_for
from tests.e2e.test_faults_disk import enlarge, tmpfs
from tests.e2e.webserver import WebServer

SMALL = ("--image", "tiny", "--memory", "128M", "--scratch", "64M")
MAKES = "echo made > result; dd if=/dev/zero of=bulk bs=1M count=8 2>/dev/null; echo so far; sleep {}"
PLACES = (os.cpu_count() or 1) + 2
"""Jobs that the local site takes at once: its slots, and two to wait in its queue."""


@contextlib.contextmanager
def held_before_the_site(lab: Installation) -> Iterator[str]:
    with lab.busy_site():
        others = [lab.detach(*SMALL, "--", "true") for _ in range(PLACES)]
        job = lab.detach(*SMALL, "--", "echo", "never")
        lab.wait_state(job, "pending")
        assert "no site can take it now" in lab.ghv("explain", job).out.decode()
        yield job
        lab.ghv("cancel", *others)
        for other in others:
            lab.wait(other)


@contextlib.contextmanager
def held_in_the_prolog(lab: Installation) -> Iterator[str]:
    with WebServer() as web:
        web.held.add("/never")
        job = lab.detach(*SMALL, "--in", f"{web.url}/never", "--", "echo", "never")
        wait_for("the question for the input", lambda: web.asked)
        lab.wait_state(job, "prolog")
        yield job


@contextlib.contextmanager
def held_in_the_queue(lab: Installation) -> Iterator[str]:
    with lab.busy_site():
        job = lab.detach(*SMALL, "--", "echo", "never")
        lab.wait_state(job, "queued")
        yield job
        lab.wait(job)  # before the site has room for it


@contextlib.contextmanager
def held_at_the_pilot(lab: Installation, phase: Phase) -> Iterator[str]:
    """The pilot is stopped while it says that it is in this phase, and goes on once the wish lies before it."""
    (lab.work / "some").mkdir(exist_ok=True)
    for number in range(1000):  # which take the guest a moment
        (lab.work / f"some/{number}").write_text("input")
    program = MAKES.format(600 if phase is Phase.EXECUTE else 0)
    words = ("--in", "some", "--out", "result", "--out", "bulk", "--to", f"in-{phase}", "--", "sh", "-c", program)
    for _ in range(20):  # some phases are over in a few hundredths of a second
        job = lab.detach(*SMALL, *words)
        if phase is Phase.EXECUTE:
            lab.wait_word(job)
        pid = stopped_in(lab, job, phase)
        if pid is not None:
            break
        lab.wait(job)
    assert pid is not None, f"no pilot was caught in {phase}"
    entry = lab.entry(job)
    try:
        yield job
        assert entry is not None
        wish = entry / wire.CONTROL / wire.CANCEL
        wait_for("the wish at the site", lambda: wish.exists() or not entry.exists())  # shut down, it may be over
    finally:
        os.kill(pid, signal.SIGCONT)


def stopped_in(lab: Installation, job: str, phase: Phase) -> int | None:
    """The job's pilot, stopped while it is in this phase; None: it was over too soon."""
    order = [*Phase]
    limit = time.monotonic() + 120
    begun = False
    while (status := lab.status(job)) is None or order.index(status["phase"]) < order.index(phase):
        assert time.monotonic() < limit, f"{job} never came to {phase}: {status}"
        if begun and status is None:  # its entry is gone already
            return None
        begun = status is not None
    with contextlib.suppress(ProcessLookupError):
        os.kill(status["pid"], signal.SIGSTOP)
        found = lab.status(job)
        if found is not None and found["phase"] == phase:
            return int(status["pid"])
        os.kill(status["pid"], signal.SIGCONT)
    return None


@contextlib.contextmanager
def held_in_the_epilog(lab: Installation) -> Iterator[str]:
    results = lab.work / "too-small"
    with tmpfs(results, "1m"):
        words = ("--out", "result", "--out", "bulk", "--to", "too-small", "--", "sh", "-c", MAKES.format(0))
        job = lab.detach(*SMALL, *words)
        wait_for("a word about the disk", lambda: "No space" in lab.ghv("explain", job).out.decode())
        with lab.silent_site():
            lab.ghv("recover", job)  # forgets how often it failed: one that is cancelled is given up after a few tries
            yield job
            enlarge(results, "20m")
        assert lab.wait(job)["job"]["state"] in ("done", "cancelled")
        assert (results / "result").read_text() == "made\n"
        assert (results / "bulk").stat().st_size == 8 << 20


@contextlib.contextmanager
def held_as_it_gathers(lab: Installation) -> Iterator[str]:
    """Two machines are to begin together, and there is room for one."""
    with lab.taken_slots((os.cpu_count() or 1) - 1):
        gang = lab.detach(*SMALL, "--gang", "2", "--", "echo", "never")
        members = wait_for("its members", lambda: [row["id"] for row in lab.ghv("list", gang, "-o", "json").json])
        gathering = wait_for(
            "one that is ready",
            lambda: [job for job in members if (lab.status(job) or {}).get("phase") == Phase.GATHER],
        )
        yield gathering[0]
        assert lab.ghv("wait", gang, check=False).code == 130


HOLDS = {
    Phase.WAIT: held_before_the_site,
    Phase.PROLOG: held_in_the_prolog,
    Phase.QUEUE: held_in_the_queue,
    Phase.GATHER: held_as_it_gathers,
    Phase.EPILOG: held_in_the_epilog,
}


@pytest.mark.parametrize("phase", Phase)
def test_cancel(lab: Installation, phase: Phase) -> None:
    with HOLDS[phase](lab) if phase in HOLDS else held_at_the_pilot(lab, phase) as job:
        lab.ghv("cancel", job)
    found = lab.wait(job)
    view = found["job"]
    ran = phase in (Phase.EXECUTE, Phase.STAGE_OUT, Phase.SHUT_DOWN, Phase.EPILOG)
    if phase in (Phase.STAGE_OUT, Phase.SHUT_DOWN, Phase.EPILOG):
        # The program had run to its end before the wish came: either word is true, and nothing is lost.
        assert (view["state"], view["exit_code"]) in (("done", 0), ("cancelled", 0)), (view, lab.story(job))
    else:
        assert (view["state"], view["reason"]) == ("cancelled", "cancelled"), found
    assert lab.ghv("wait", job, check=False).code == (0 if view["state"] == "done" else 130)
    assert lab.ghv("logs", job).out == (b"so far\n" if ran else b"")
    if ran and phase is not Phase.EPILOG:
        assert (lab.work / f"in-{phase}/result").read_text() == "made\n"
    assert [e for e in lab.events(job) if "asked to cancel" in e["message"]]
    lab.assert_clean()
    lab.ghv("delete", job)
    wait_for("its records to be gone", lambda: lab.ghv("show", job, check=False).code == 66)
