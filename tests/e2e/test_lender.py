"""A lender's file at a real site: no more is in use than it says, it may be edited at any time, and every job ends."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from gridhypervisor.model import wire
from tests.e2e.installation import Installation, wait_for

SMALL = ("--image", "tiny", "--memory", "128M", "--scratch", "48M")
LONG = "sleep 10000"


def write(file: Path, text: str) -> None:
    new = file.with_name(f"{file.name}.new")
    new.write_text(text)
    new.rename(file)


def live(spool: Path) -> set[str]:
    """Entries that a pilot runs in, or may begin to."""
    found = set()
    for entry in spool.glob("[!.]*"):
        if not (entry / wire.MANIFEST).exists() or (entry / wire.EXIT).exists():
            continue
        owner = ""
        with suppress(FileNotFoundError):
            owner = json.loads((entry / wire.OWNER).read_bytes())["by"]
        if owner != "controller" and entry.exists():
            found.add(entry.name)
    return found


@contextmanager
def most_at_once(spool: Path) -> Iterator[list[int]]:
    """The largest number that was seen, looked at all the time; in a list of one."""
    most, over = [0], threading.Event()

    def look() -> None:
        while not over.wait(0.02):
            # What is in both looks was there between the two, all at once, however long they took.
            most[0] = max(most[0], len(live(spool) & live(spool)))

    looker = threading.Thread(target=look)
    looker.start()
    try:
        yield most
    finally:
        over.set()
        looker.join()


def two_of(installation: Installation, jobs: list[str]) -> set[str] | None:
    """The two that run; which, is the planner's to choose."""
    running = {job for job in jobs if installation.job(job)["job"]["state"] == "running"}
    return running if len(running) == 2 else None


@pytest.mark.timeout(1200)  # eight guests, on what may be a slow machine
def test_jobs_wait_for_what_is_lent_and_an_edit_takes_effect_at_once(installation: Installation) -> None:
    workdir, file = installation.folder / "lent", installation.folder / "lent.lender.toml"
    write(file, 'contact = "the head of the group"\ncores = 2\ncore_hours = 100\n')
    at = (*SMALL, "--site", "lent")
    installation.ghv("site", "add", "lent", "--kind", "fork", "--slots", "4", "--workdir", str(workdir))
    with most_at_once(workdir / wire.SPOOL) as most:
        jobs = [installation.detach(*at, "--", "echo", str(n)) for n in range(4)]
        for job in jobs:
            assert installation.wait(job)["job"]["state"] == "done"
    assert 1 <= most[0] <= 2, "four slots, of which two are lent"
    assert not any(e["reason"] == "lender" for e in installation.events()), "the planner knew"

    long = [installation.detach(*at, "--", "sh", "-c", LONG) for _ in range(3)]
    running = wait_for("two that run", lambda: two_of(installation, long), 120)
    [third] = set(long) - running
    words = "your own cap on lent allows 2 cores; 2 are in use"
    wait_for("the reason", lambda: words in installation.ghv("explain", third).out.decode())
    usage = installation.ghv("site", "usage", "lent", "-o", "json").json
    assert usage["lender"]["cores"] == 2 and usage["lender"]["own"]
    [use] = usage["uses"]
    assert use["installation"] == installation.id and use["used"]["cores"] == 2
    assert use["used"]["core_seconds"] >= 4, "what has ended was counted"
    shown = installation.ghv("site", "usage", "lent").out.decode()
    assert "a cap of its own" in shown and "the head of the group" in shown

    write(file, "cores = 3\n")
    installation.wait_state(third, "running", 120)
    write(file, "cores = three\n")
    fourth = installation.detach(*at, "--", "true")
    told = f"{file}, line 1: not TOML"
    wait_for("the fault", lambda: told in installation.ghv("explain", fourth).out.decode())
    checked = installation.ghv("site", "check", "lent", check=False)
    assert checked.code == 75 and told in checked.out.decode()
    for job in long:
        assert installation.job(job)["job"]["state"] == "running", "nothing that runs is ended"
        installation.ghv("cancel", job)
        installation.wait(job)
    write(file, "cores = 1\n")
    assert installation.wait(fourth)["job"]["state"] == "done"
    wait_for("an empty spool", lambda: not list((workdir / wire.SPOOL).glob("[!.]*")))
    installation.assert_clean()


def test_a_pilot_that_comes_too_late_starts_nothing_and_the_job_waits(installation: Installation) -> None:
    file = installation.folder / ".ghv.lender.toml"
    with installation.busy_site():
        job = installation.detach(*SMALL, "--retry", "0", "--", "echo", "works")
        installation.wait_state(job, "queued")
        write(file, "images = []\n")
    wait_for("the refusal", lambda: installation.job(job)["attempts"][0]["reason"] == "lender", 120)
    wait_for("the reason", lambda: "allows 0 images" in installation.ghv("explain", job).out.decode())
    refused = installation.job(job)
    assert refused["job"]["state"] == "pending" and len(refused["attempts"]) == 1, refused
    assert "start the guest" in refused["attempts"][0]["message"]
    file.unlink()
    found = installation.wait(job)
    assert (found["job"]["state"], len(found["attempts"])) == ("done", 2), found
    assert installation.ghv("logs", job).out == b"works\n"
    installation.assert_clean()
