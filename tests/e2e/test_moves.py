"""Two sites on this machine: a job leaves one for the other because it waits, because its user or its program asks."""

from __future__ import annotations

from typing import Any

from gridhypervisor.cli.exits import Exit
from gridhypervisor.sites.fork import AHEAD
from tests.e2e.installation import Installation, wait_for

TINY = ("--image", "tiny", "--memory", "96M", "--scratch", "32M", "--retry", "0")
POLICY = "kind: Policy\nresources: {fixed: {resources: {local: 99}}}\n"

IMPATIENT = """\
image: tiny
command: [sh, -c, "echo moved > made"]
outputs: [made]
resources: {memory: 96M, scratch: 32M}
retry: {times: 0}
moves: {wait: 2s}
"""


GOES_ON = """\
image: tiny
command: [sh, goeson.sh]
inputs: [goeson.sh]
outputs: [made]
restart_files: [state/*]
resources: {memory: 96M, scratch: 32M}
retry: {times: 0}
"""

GOES_ON_SCRIPT = """\
if [ "$GHV_RESTARTED" = 1 ]; then
    echo "$(cat state/far), restarted" > made
    exit 0
fi
mkdir state
echo "not restarted" > state/far
trap 'echo "not restarted, told to stop" > state/far; exit 3' TERM
echo no licence on this node > /run/ghv/move
sleep 3000 & wait
"""


def shown(lab: Installation, job: str) -> dict[str, Any]:
    found: dict[str, Any] = lab.ghv("show", job, "-o", "json").json
    return found


def up_with_one_slot(lab: Installation, site: str) -> bool:
    now = lab.ghv("site", "show", site, "-o", "json").json
    return bool(now["health"] == "up" and now["max_jobs"] == 1 + AHEAD)


def been(lab: Installation, job: str) -> list[tuple[str, str]]:
    """Where it has been, and why it left."""
    return [(each["site"], each.get("reason") or "") for each in shown(lab, job)["attempts"]]


def runs_at(lab: Installation, job: str, site: str) -> None:
    def look() -> bool:
        now = shown(lab, job)["job"]
        return (now.get("phase"), now["site"]) == ("execute", site)

    wait_for(f"{job} to run at {site}", look, 300)


def test_jobs_leave_a_site_for_another(installation: Installation) -> None:
    lab = installation
    where = ("--workdir", str(lab.folder / "second"), "--scratch", str(lab.scratch), "--slots", "1")
    lab.ghv("site", "edit", "local", "--slots", "1")
    lab.ghv("site", "add", "second", "--kind", "fork", *where)
    for site in ("local", "second"):
        wait_for(f"{site} with one slot", lambda site=site: up_with_one_slot(lab, site), 300)  # type: ignore[misc]
    (lab.work / "policy.yaml").write_text(POLICY)
    lab.ghv("policy", "set", "policy.yaml")

    # It waits behind the other, and goes where nobody is before it.
    stays = lab.detach(*TINY, "--site", "local", "--", "sleep", "3000")
    runs_at(lab, stays, "local")
    (lab.work / "impatient.yaml").write_text(IMPATIENT)
    waits = lab.detach("-f", "impatient.yaml", "--to", "results")
    ended = lab.wait(waits, 300)
    assert (ended["job"]["state"], ended["job"]["exit_code"]) == ("done", 0), ended
    assert been(lab, waits) == [("local", "waited"), ("second", "exited")]
    assert (lab.work / "results/made").read_text() == "moved\n"
    assert b"its patience is 2 s; second can take it" in lab.ghv("events", waits).out

    # Its user asks; a place where it is already, or that is not there, is no place to go to.
    lab.ghv("move", stays, "--to", "second")
    runs_at(lab, stays, "second")
    # Whether its guest goes along depends on what runs it.
    assert been(lab, stays)[0] in (("local", "moved"), ("local", "suspended"))
    there = lab.ghv("move", stays, "--to", "second", check=False)
    assert there.code == Exit.CONFLICT and "it is at second already" in there.err
    nowhere = lab.ghv("move", stays, "--to", "third", check=False)
    assert nowhere.code == Exit.MISSING and "third" in nowhere.err

    # Its program asks, and goes on elsewhere with what it had written down when it was told to stop.
    lab.ghv("cancel", stays)
    assert lab.wait(stays, 300)["job"]["state"] == "cancelled"
    (lab.work / "goeson.yaml").write_text(GOES_ON)
    (lab.work / "goeson.sh").write_text(GOES_ON_SCRIPT)
    asks = lab.detach("-f", "goeson.yaml", "--to", "goeson")
    ended = lab.wait(asks, 300)
    assert (ended["job"]["state"], ended["job"]["exit_code"]) == ("done", 0), ended
    assert been(lab, asks) == [("local", "moved"), ("second", "exited")]
    assert "no licence on this node" in shown(lab, asks)["attempts"][0]["message"]
    assert (lab.work / "goeson/made").read_text() == "not restarted, told to stop, restarted\n"
    assert sorted(path.name for path in (lab.work / "goeson").iterdir()) == ["made"], "what is kept is no result"
    lab.assert_clean()
