"""`ghv site check` on this machine: a probe reports what jobs find there, waits like any job, and leaves nothing."""

from __future__ import annotations

import os
import pwd
import re
import signal
from pathlib import Path
from typing import Any

from tests.e2e.installation import Installation, wait_for

SMALL = ("--image", "tiny", "--memory", "128M", "--scratch", "48M")
RUNS = "a batch job runs on a node"


def rows(checks: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {check["claim"]: check for check in checks}


def births(installation: Installation) -> list[str]:
    """Every job that there ever was, whatever became of it."""
    return [event["job"] for event in installation.events() if event["kind"] == "job" and not event["before"]]


def queued(installation: Installation) -> bool:
    """There is a probe, and it waits in the site's queue."""
    return [job["state"] for job in installation.ghv("list", "-o", "json").json] == ["queued"]


def assert_nothing_left(installation: Installation) -> None:
    wait_for("no job", lambda: not installation.ghv("list", "-o", "json").json)
    installation.assert_clean()


def test_a_check_connects_and_tells_what_a_job_then_finds(installation: Installation) -> None:
    installation.stop()
    found = installation.ghv("site", "check", "local", "-o", "json")
    checks = rows(found.json)
    assert all(check["holds"] for check in checks.values()), found
    assert f"{pwd.getpwuid(os.getuid()).pw_name}@" in checks["a relay answers"]["evidence"]
    assert os.uname().nodename in checks[RUNS]["evidence"]
    assert str(installation.workdir) in checks["nodes share the workdir"]["evidence"]
    assert checks["nodes run programs in their scratch"]["evidence"] == str(installation.scratch)
    [total] = re.findall(r"MemTotal: +(\d+)", Path("/proc/meminfo").read_text())
    assert checks["the memory is known"]["evidence"].startswith(f"{int(total) >> 10} MiB")

    view = installation.ghv("site", "show", "local", "-o", "json").json
    works = {each["kind"] for each in view["probed"]["hypervisors"] if each.get("works")}
    job = installation.detach(*SMALL, "--", "true")
    [attempt] = installation.wait(job)["attempts"]
    used = re.search(r", (kvm|uml|tcg):", attempt["hypervisor"])
    assert used is not None and used[1] in works, (attempt, works)
    installation.ghv("delete", job)

    installation.stop()
    shown = installation.ghv("site", "show", "local").out.decode()
    assert re.search(rf"a node +{os.uname().nodename} .*as probed \d+[sm] ago", shown), "it is kept"
    before = births(installation)
    asked = installation.ghv("site", "check", "local", "--no-probe").out.decode()
    assert "a relay answers" in asked and RUNS not in asked
    assert births(installation) == before, "no job was made for it"
    installation.ghv("site", "edit", "local", "--scratch", str(installation.scratch))
    assert "not probed yet" in installation.ghv("site", "show", "local").out.decode(), "it may be another disk now"
    assert_nothing_left(installation)


def test_a_probe_that_waits_is_unknown_and_is_withdrawn_by_the_clock_or_by_its_user(installation: Installation) -> None:
    with installation.busy_site():
        late = installation.ghv("site", "check", "local", "--timeout", "5s", "-o", "json", check=False)
        check = rows(late.json)[RUNS]
        assert (late.code, check["holds"]) == (69, None), late
        assert "still waits after 5 s" in check["evidence"] and "--timeout" in check["hint"]
        wait_for("its end", lambda: not installation.ghv("list", "-o", "json").json)

        asked = installation.start("site", "check", "local")
        assert asked.stderr is not None
        told = next(line for line in asked.stderr if b"pending at local" in line)
        assert b"probe j" in told, "what waits for what"
        asked.send_signal(signal.SIGINT)
        _, err = asked.communicate(timeout=120)
        assert asked.returncode == 130, err
        wait_for("its end", lambda: not installation.ghv("list", "-o", "json").json)
    assert_nothing_left(installation)


def test_a_probe_of_a_killed_service_is_withdrawn_by_the_next(installation: Installation) -> None:
    with installation.busy_site():
        asked = installation.start("site", "check", "local")
        wait_for("a probe", lambda: queued(installation))
        installation.kill_service()
        _, err = asked.communicate(timeout=120)
        assert asked.returncode == 69, err
        wait_for("its end", lambda: not installation.ghv("list", "-o", "json").json)
    assert_nothing_left(installation)


def test_a_folder_that_cannot_be_the_workdir_is_refused_or_told_with_what_to_do(installation: Installation) -> None:
    for setting, words in (("workdir", "begin it with / or ~/"), ("scratch", "begin it with /")):
        refused = installation.ghv("site", "add", "a", "--kind", "fork", f"--{setting}", "here", check=False)
        assert refused.code == 65 and f"{setting}: 'here'" in refused.err and words in refused.err
    file = installation.folder / "file"
    file.touch()
    installation.ghv("site", "add", "a", "--kind", "fork", "--workdir", str(file / "below"))
    checked = installation.ghv("site", "check", "a", check=False)
    assert checked.code == 75
    shown = checked.out.decode()
    assert str(file / "below") in shown and "set `workdir` to a folder of yours" in shown
    assert "not tried" in shown, "there is no use in a probe"
    installation.ghv("site", "edit", "a", "--workdir", str(installation.folder / "new" / "folder"))
    assert installation.ghv("site", "check", "a").code == 0, "one that is not there is made"
    installation.ghv("site", "remove", "a")
