"""What goes wrong at a site: processes killed and stopped, a damaged image, a damaged bundle, a store in use twice.

Each ends, or mends itself, with a clear word; and leaves neither process nor file behind.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gridhypervisor.model import wire
from tests.e2e.conftest import fresh
from tests.e2e.installation import Installation, wait_for

SMALL = ("--image", "tiny", "--memory", "128M", "--scratch", "48M")
WAITS = "echo so far; [ -e go ] && exit; sleep 1000"


def explain(installation: Installation, job: str) -> str:
    return installation.ghv("explain", job).out.decode()


def explained(installation: Installation, job: str) -> str:
    """What a user reads about a job that ended: its message, and what to do next."""
    told = explain(installation, job)
    view = installation.job(job)["job"]
    assert view["message"] in told
    assert not view["hint"] or view["hint"] in told
    return told


def test_a_site_that_is_gone_for_good_is_given_up_and_cleaned_if_it_comes_back(installation: Installation) -> None:
    program = "sleep 12; echo run > made"
    job = installation.detach(*SMALL, "--retry", "3", "--out", "made", "--", "sh", "-c", program)
    installation.wait_phase(job, "execute")
    os.kill(installation.relay(), signal.SIGSTOP)
    refused = installation.ghv("site", "remove", "local", check=False)
    assert refused.code != 0 and job in refused.err and "--abandon" in refused.err, refused
    installation.ghv("site", "remove", "local", "--abandon")
    found = installation.wait(job)
    assert (found["job"]["state"], found["job"]["reason"], len(found["attempts"])) == ("failed", "lost", 1), found
    assert "local was removed" in explained(installation, job)

    installation.ghv("site", "add", "local", "--kind", "fork")
    result = installation.work / "made"
    wait_for("the results", result.exists)
    assert result.read_text() == "run\n"
    installation.assert_clean()


# --- processes --------------------------------------------------------------------------------------------------------


def test_a_killed_pilot_is_told_by_its_watchdog_and_the_job_runs_again(lab: Installation) -> None:
    word = lab.work / "word"
    word.write_text("wait\n")
    program = "echo run >> made; grep -q go word || sleep 1000"
    job = lab.detach(*SMALL, "--in", "word", "--out", "made", "--", "sh", "-c", program)
    lab.wait_phase(job, "execute")
    word.write_text("go\n")  # for the next attempt: each takes its inputs anew
    first = lab.entry(job)
    os.kill(lab.pilot(job), signal.SIGKILL)
    found = lab.wait(job)
    assert (found["job"]["state"], found["job"]["exit_code"]) == ("done", 0), found
    assert [a["reason"] for a in found["attempts"]] == ["pilot", "exited"], found
    assert "the pilot was killed" in found["attempts"][0]["message"]
    assert first is not None
    wait_for("the removal of what the first left", lambda: not first.exists())
    assert (lab.work / "made").read_text() == "run\n"
    assert lab.story(job).count("running>ended") == 2
    assert {row["attempt"] for row in found["ledger"]["rows"]} == {1, 2}


def test_a_killed_hypervisor_fails_the_job_once_its_tries_are_used_up(lab: Installation) -> None:
    job = lab.detach(*SMALL, "--retry", "0", "--", "sh", "-c", WAITS)
    wait_for("the program's first word", lambda: lab.ghv("logs", job).out)
    os.kill(lab.hypervisor(job), signal.SIGKILL)
    found = lab.wait(job)
    assert (found["job"]["state"], found["job"]["reason"]) == ("failed", "hypervisor"), found
    assert "signal 9" in explained(lab, job)
    assert lab.ghv("logs", job).out == b"so far\n"
    assert lab.ghv("wait", job, check=False).code == 75


def test_a_pilot_that_is_stopped_beyond_its_walltime_is_ended_on_the_node(lab: Installation) -> None:
    # Long enough for a slow machine to come to the program before it is to be stopped, after two thirds of it.
    job = lab.detach(*SMALL, "--walltime", "45s", "--", "sh", "-c", WAITS)
    lab.wait_phase(job, "execute")
    pilot = lab.pilot(job)
    os.kill(pilot, signal.SIGSTOP)
    found = lab.wait(job)
    assert (found["job"]["state"], found["job"]["reason"]) == ("failed", "walltime"), found
    assert "stopped or hung" in explained(lab, job)
    assert lab.ghv("wait", job, check=False).code == 124
    wait_for("the pilot's end", lambda: pilot not in lab.processes())


def test_a_killed_relay_is_started_again_and_nothing_is_missed(lab: Installation) -> None:
    """It is killed while the program prints."""
    numbers = range(1, 21)
    program = f"for i in {' '.join(map(str, numbers))}; do echo line $i; sleep 0.5; done"
    ghv = lab.start("run", *SMALL, "--", "sh", "-c", program)
    assert ghv.stdout is not None
    begun = os.read(ghv.stdout.fileno(), 1)  # and no more, which `communicate` would miss
    relay = lab.relay()
    os.kill(relay, signal.SIGKILL)
    rest, err = ghv.communicate(timeout=240)
    assert (ghv.returncode, begun + rest) == (0, b"".join(b"line %d\n" % number for number in numbers)), err
    assert lab.relay() != relay


# --- the image --------------------------------------------------------------------------------------------------------


@pytest.fixture
def damaged(template: Path) -> Iterator[Installation]:
    """An installation on a node of its own, for what is damaged here must not be shared."""
    scratch = Path(tempfile.mkdtemp(prefix="ghv-node-", dir="/tmp"))
    try:
        with fresh(scratch, template) as made:
            yield made
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def base_of(installation: Installation) -> dict[str, Any]:
    layers = installation.ghv("image", "show", "tiny", "-o", "json").json["layers"]
    return next(layer for layer in layers if layer["role"] == "base")


def flip(path: Path, offset: int = 4321) -> None:
    """Flip one bit of a file, in a copy that takes its place: other names of it (hard links) keep what they had."""
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    replace(path, bytes(data))


def replace(path: Path, data: bytes) -> None:
    copy = path.with_name(f"{path.name}.damaged")
    copy.write_bytes(data)
    copy.chmod(path.stat().st_mode & 0o777)
    copy.replace(path)


@pytest.mark.parametrize("how", ["flipped", "truncated"])
def test_a_damaged_layer_in_the_repository_is_refused_by_the_site(damaged: Installation, how: str) -> None:
    base = base_of(damaged)
    [path] = [p for p in (damaged.data / "images").rglob(base["digest"]) if p.stat().st_size == base["size"]]
    flip(path) if how == "flipped" else replace(path, path.read_bytes()[:-1])
    job = damaged.detach(*SMALL, "--retry", "0", "--", "true")
    found = damaged.wait(job)
    assert (found["job"]["state"], found["job"]["reason"]) == ("failed", "image"), found
    told = explained(damaged, job)
    assert base["digest"][:12] in told
    assert "ghv image verify" in told
    assert damaged.ghv("wait", job, check=False).code == 75
    checked = damaged.ghv("image", "verify", "tiny", check=False)
    assert checked.code == 65
    assert base["digest"][:12] in checked.out.decode()
    damaged.assert_clean()


def test_a_damaged_layer_at_the_site_or_on_the_node_is_found_and_mended(damaged: Installation) -> None:
    base = base_of(damaged)["digest"]
    damaged.ghv("run", *SMALL, "--", "true")
    # On the node: the site's copy is taken again.
    flip(damaged.scratch / f"ghv-{os.getuid()}" / "cache" / base)
    damaged.ghv("run", *SMALL, "--retry", "0", "--", "true")
    # At the site, and no copy on the node: said at once, or sent again where another try is allowed.
    copy = damaged.workdir / "cache" / base
    for how in ("flipped", "truncated"):
        flip(copy) if how == "flipped" else replace(copy, copy.read_bytes()[:-1])
        shutil.rmtree(damaged.scratch / f"ghv-{os.getuid()}" / "cache")
        job = damaged.detach(*SMALL, "--", "true")
        found = damaged.wait(job)
        assert [a["reason"] for a in found["attempts"]] == ["image", "exited"], found
        assert base[:12] in found["attempts"][0]["message"]
        assert found["job"]["state"] == "done"
    damaged.assert_clean()


# --- files that are seen late -----------------------------------------------------------------------------------------


class LateSite(Installation):
    """An installation with a site whose spool shows files late, and announces nothing."""

    @property
    def workdir(self) -> Path:
        return self.folder / "late"

    def open(self, lag: float) -> None:
        """Add the site. `lag`: seconds that a file may stay out of sight there."""
        self.environment["GHV_NO_INOTIFY"] = "1"
        option = f"spool_lag={lag:g}"
        self.ghv("site", "add", "late", "--kind", "fork", "--workdir", str(self.workdir), "--option", option)

    def run_dead(self) -> tuple[str, Path]:
        """A job whose pilot and watchdog were killed while its program ran, and the controller with them."""
        job = self.detach(*SMALL, "--site", "late", "--retry", "0", "--", "sh", "-c", WAITS)
        self.wait_phase(job, "execute")
        entry = self.entry(job)
        assert entry is not None
        victims = (self.watchdog(job), self.pilot(job))
        self.kill_service()  # a new one asks for a listing at once
        for number in (signal.SIGSTOP, signal.SIGKILL):
            for pid in victims:
                os.kill(pid, number)
        return job, entry


@pytest.fixture
def late(template: Path, node_scratch: Path) -> Iterator[LateSite]:
    with fresh(node_scratch, template, LateSite) as made:
        assert isinstance(made, LateSite)
        yield made


def test_a_sentinel_that_shows_late_still_counts(late: LateSite) -> None:
    late.open(lag=600)  # longer than the test takes
    job, entry = late.run_dead()
    told = wait_for("a word about it", lambda: t if "waiting for its last word" in (t := explain(late, job)) else None)
    assert "late says that it ended" in told
    # What the pilot had left appears only now.
    owner = json.loads((entry / wire.OWNER).read_bytes())
    record = wire.ExitRecord(
        entry.name, owner["epoch"], owner["claim"], wire.Outcome.COMPLETED, wire.Reason.EXITED, exit_code=5
    )
    shown = entry / "shown-late"
    shown.write_bytes(wire.canonical(record))
    shown.rename(entry / wire.EXIT)
    found = late.wait(job)
    assert (found["job"]["state"], found["job"]["exit_code"]) == ("done", 5), found
    late.ghv("run", *SMALL, "--site", "local", "--", "true")  # whose pilot sweeps what the dead one left on the node
    late.assert_clean()


def test_a_sentinel_that_does_not_show_is_waited_for(late: LateSite) -> None:
    late.open(lag=8)
    job, _ = late.run_dead()
    began = time.monotonic()  # whoever learns of it is yet to be started
    found = late.wait(job)
    assert (found["job"]["state"], found["job"]["reason"]) == ("failed", "lost"), found
    assert time.monotonic() - began > 8
    assert "left no exit record" in explained(late, job)
    late.ghv("run", *SMALL, "--", "true")
    late.assert_clean()


def test_a_spool_that_announces_nothing_is_looked_at(late: LateSite) -> None:
    late.open(lag=8)
    (late.work / "word").write_text("in")
    program = "cat word; for i in 1 2 3; do echo $i; sleep 1; done; echo out > result; exit 6"
    words = ("--site", "late", "--in", "word", "--out", "result", "--", "sh", "-c", program)
    ran = late.ghv("run", *SMALL, *words, check=False)
    assert (ran.code, ran.out) == (6, b"in1\n2\n3\n"), ran
    assert (late.work / "result").read_text() == "out\n"
    job = late.detach(*SMALL, "--site", "late", "--", "sh", "-c", WAITS)
    late.wait_phase(job, "execute")
    late.ghv("cancel", job)
    assert late.wait(job)["job"]["state"] == "cancelled"
    late.assert_clean()


# --- the bundle and the service ---------------------------------------------------------------------------------------


def test_a_damaged_bundle_at_the_site_is_placed_anew(damaged: Installation) -> None:
    """On a node that has nothing unpacked yet."""
    with damaged.busy_site():
        job = damaged.detach(*SMALL, "--", "echo", "works")
        damaged.wait_state(job, "queued")
        [bundle] = [p for p in (damaged.workdir / "bundle").iterdir() if not p.name.startswith(".")]
        replace(bundle / "agent.tar", b"no archive")
        for world in (damaged.scratch / f"ghv-{os.getuid()}").glob("world-*"):
            world.rename(world.with_name(f"old-{world.name}"))  # the relay runs in it
    found = damaged.wait(job)
    assert (found["job"]["state"], found["job"]["exit_code"]) == ("done", 0), found
    assert found["attempts"][0]["reason"] == "bundle", found
    assert "damaged" in found["attempts"][0]["message"]
    assert damaged.ghv("logs", job).out == b"works\n"
    damaged.assert_clean()


def test_two_services_on_one_store(lab: Installation) -> None:
    lab.ghv("service", "start")
    pid = lab.service_pid()
    socket = lab.folder / "run" / "second.sock"
    words = [sys.executable, "-m", "gridhypervisor.app", "serve", "--data", str(lab.data), "--socket", str(socket)]
    second = subprocess.run(words, env=lab.environment, capture_output=True, text=True, timeout=60, check=False)
    assert second.returncode != 0
    assert f"pid {pid}" in second.stderr
    assert "ghv service stop" in second.stderr
    assert "Traceback" not in second.stderr
    assert lab.service_pid() == pid
    assert not socket.exists()
