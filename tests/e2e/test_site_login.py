"""Sites that take more than a key: what waits, what is said, how a person lets the service in, and how long that lasts.

A real front-end whose sshd wants a password beside the key; behind it, instead of a batch system, the fork queue.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import fresh
from tests.e2e.installation import Installation, wait_for
from tests.terminal import at_a_terminal
from testsites import FrontEnd

TINY = ("--image", "tiny", "--memory", "128M", "--scratch", "48M", "--walltime", "10m")
GHV = (sys.executable, "-m", "gridhypervisor.cli")


@pytest.fixture(scope="module")
def front() -> Iterator[FrontEnd]:
    with FrontEnd() as made:
        yield made


@pytest.fixture
def home(template: Path, node_scratch: Path, front: FrontEnd) -> Iterator[Installation]:
    with fresh(node_scratch, template) as made:
        yield made
    front.require("publickey")


def add(home: Installation, front: FrontEnd, *words: str) -> None:
    login = front.login
    home.ghv(
        "site", "add", "front", "--kind", "fork", "--host", login.host, "--port", str(login.port), "--user", login.user,
        "--key", str(login.key), "--known-hosts", str(login.known_hosts), "--slots", "1", *words,
    )  # fmt: skip


def site(home: Installation) -> dict[str, Any]:
    found: dict[str, Any] = home.ghv("site", "show", "front", "-o", "json").json
    return found


def wait_health(home: Installation, health: str) -> dict[str, Any]:
    def look() -> dict[str, Any] | None:
        found = site(home)
        return found if found["health"] == health else None

    return wait_for(f"the site to be {health}", look, 180)


def login(home: Installation, *words: str) -> tuple[int, str]:
    """`ghv site login` at a terminal. What it leaves behind is in use when it ends: it has checked the site."""
    command = ("env", f"--chdir={home.work}", *GHV, "site", "login", "front")
    return at_a_terminal(command, *words, environment=home.environment, seconds=240)


def masters(home: Installation) -> list[int]:
    """Processes that hold a connection to the front-end."""
    return [pid for pid, words in home_processes() if f" -S {home.folder}/run/" in words and " -M " in words]


def home_processes() -> Iterator[tuple[int, str]]:
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if words:
            yield int(folder.name), words


def test_a_site_with_a_second_factor_from_the_first_job_to_the_last_logout(home: Installation, front: FrontEnd) -> None:
    front.require("publickey,password")
    knocks = front.knocks()
    add(home, front)
    assert "ghv site login front" in wait_health(home, "auth-needed")["health_why"]
    job = home.detach(*TINY, "--site", "front", "echo", "hello")
    assert b"ghv site login front" in home.ghv("explain", job).out
    assert b"ghv site login front" in home.ghv("show", job).out
    home.ghv("recover", job)
    assert front.knocks() == knocks + 1  # nobody asked it again
    check = home.ghv("site", "check", "front", check=False)
    assert check.code == 75 and b"auth-needed" in check.out
    assert front.knocks() == knocks + 2

    code, shown = login(home, "wrong", "wrong", "wrong")
    assert code == 77 and "Permission denied" in shown and home.job(job)["job"]["state"] == "pending"
    code, shown = login(home, front.password)
    assert code == 0 and "a relay answers" in shown
    assert home.wait(job)["job"]["state"] == "done" and home.ghv("logs", job).out == b"hello\n"

    knocks = front.knocks()
    code, shown = login(home)
    assert code == 0 and "logged in already" in shown
    home.stop()
    wait_health(home, "up")  # another service, through the same login
    assert front.knocks() == knocks
    everything = home.ghv("site", "show", "front", "-o", "json").out + home.ghv("events", "-o", "json").out
    logs = b"".join(path.read_bytes() for path in home.data.rglob("*.log"))
    assert front.password.encode() not in everything + logs + (home.data / "store.sqlite").read_bytes()

    front.cut_ssh()
    wait_health(home, "auth-needed")
    assert login(home, front.password)[0] == 0
    assert site(home)["health"] == "up" and masters(home)
    home.ghv("site", "remove", "front")
    wait_for("the end of the login", lambda: not masters(home))


def test_a_master_that_the_user_opens_with_ssh_lets_the_service_in(home: Installation, front: FrontEnd) -> None:
    config = home.folder / "ssh_config"
    login_ = front.login
    config.write_text(
        f"Host hpc\n  HostName {login_.host}\n  Port {login_.port}\n  User {login_.user}\n"
        f"  IdentityFile {login_.key}\n  UserKnownHostsFile {login_.known_hosts}\n"
        f"  ControlPath {home.folder}/run/own\n"
    )
    front.require("publickey,password")
    home.ghv("site", "add", "front", "--kind", "fork", "--host", "hpc", "--ssh-config", str(config))
    wait_health(home, "auth-needed")

    def up() -> bool:
        return bool(site(home)["health"] == "up")

    by_hand = ("ssh", "-F", str(config), "-M", "-N", "-f", "hpc")
    code, shown = at_a_terminal(by_hand, front.password, stays=up, seconds=240)
    assert code == 0 and up(), shown
    subprocess.run(["ssh", "-F", config, "-O", "exit", "hpc"], check=True, capture_output=True)
    wait_health(home, "auth-needed")


def test_settings_change_under_a_running_job_or_say_why_they_may_not(home: Installation, front: FrontEnd) -> None:
    add(home, front)
    wait_health(home, "up")
    job = home.detach(*TINY, "--site", "front", "--", "sh", "-c", "echo on; while :; do sleep 0.2; done")
    wait_for("its first word", lambda: home.ghv("logs", job).out, 120)
    attempt = home.job(job)["attempts"]
    for words in (("--user", "somebody"), ("--workdir", "~/other"), ("--host", "localhost"), ("--unset", "port")):
        refused = home.ghv("site", "edit", "front", *words, check=False)
        assert refused.code == 78 and job in refused.err and "ghv site drain front" in refused.err, refused
    key = home.folder / "moved"
    key.write_bytes(front.login.key.read_bytes())
    key.chmod(0o600)
    home.ghv("site", "edit", "front", "--key", str(key), "--max-jobs", "7", "--option", "spool_lag=2")
    found = wait_health(home, "up")
    assert (found["max_jobs"], found["settings"]["key"]) == (7, str(key))
    assert [a["entry"] for a in home.job(job)["attempts"]] == [a["entry"] for a in attempt]
    assert home.job(job)["job"]["state"] == "running"

    home.ghv("site", "drain", "front")
    pinned = home.detach(*TINY, "--site", "front", "true")
    wait_for("the reason", lambda: b"draining" in home.ghv("explain", pinned).out)
    home.stop()
    assert wait_health(home, "up")["draining"] is True
    assert b"draining" in home.ghv("site", "list").out
    home.ghv("cancel", job)
    assert home.wait(job)["job"]["state"] == "cancelled"
    moves = ("site", "edit", "front", "--workdir", "~/other")
    wait_for("nothing of it there", lambda: home.ghv(*moves, check=False).code == 0)
    assert home.job(pinned)["job"]["state"] == "pending"
    home.ghv("site", "drain", "front", "--undo")
    assert home.wait(pinned)["job"]["state"] == "done"
    assert (front.home / "other/spool").is_dir() and not (front.home / "other/spool" / attempt[0]["entry"]).exists()
    said = [(e["after"], e["message"]) for e in home.events() if e["kind"] == "site" and e["subject"] == "front"]
    assert [after for after, _ in said] == ["added", "edited", "draining", "edited", "undrained"]
    assert said[1][1] == "key, max_jobs, options"
