"""A program is suspended, stands still without a place at its site, and goes on where it stood: real guests."""

from __future__ import annotations

from typing import Any

from gridhypervisor.cli.exits import Exit
from tests.e2e.installation import Installation, wait_for

TINY = ("--image", "tiny", "--memory", "96M", "--scratch", "32M", "--retry", "1", "--hypervisor", "tcg")

FREE = ("upload", "prepare")
"""What takes its time even if there is nothing to be moved."""

COUNTS = """\
echo begun
i=0
while :; do i=$((i + 1)); echo $i > counted; echo $i; sleep 0.3; done
"""


def shown(lab: Installation, job: str) -> dict[str, Any]:
    found: dict[str, Any] = lab.ghv("show", job, "-o", "json").json
    return found


def printed(lab: Installation, job: str) -> list[str]:
    return lab.ghv("logs", job, "--stream", "stdout").out.decode().splitlines()


def kept(lab: Installation, job: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = lab.ghv("checkpoint", "list", job, "-o", "json").json
    return found


def test_a_suspended_program_goes_on_where_it_stood(installation: Installation) -> None:
    lab = installation
    # Its guest starts from a snapshot, though none of its kind has run.
    warmed = lab.ghv(
        "image", "warm", "tiny", "--memory", "96M", "--scratch", "32M", "--hypervisor", "tcg", "-o", "json"
    )
    assert [(check["holds"], check["claim"].rpartition(" ")[2]) for check in warmed.json] == [(True, "local")]
    assert "made just now" in warmed.json[0]["evidence"]
    assert not lab.ghv("list", "-o", "json").json, "the job that did it is gone"
    job = lab.detach(*TINY, "--out", "counted", "--to", "results", "--", "sh", "-c", COUNTS)
    wait_for("it to count", lambda: len(printed(lab, job)) > 3, 300)

    # A checkpoint is made while it runs.
    lab.ghv("checkpoint", job)
    wait_for("a checkpoint", lambda: len(kept(lab, job)) == 1, 300)
    assert shown(lab, job)["job"]["state"] == "running"

    # It stands still in its place, and goes on there, with the time of now.
    lab.ghv("pause", job)
    wait_for("it to stand still", lambda: "ghv unpause" in shown(lab, job)["job"]["note"], 120)
    before = printed(lab, job)
    assert shown(lab, job)["job"]["state"] == "running"
    lab.ghv("unpause", job)
    wait_for("it to count on", lambda: int(printed(lab, job)[-1]) > int(before[-1]), 120)
    assert printed(lab, job)[: len(before)] == before, "nothing is lost or comes twice"
    lab.ghv("pause", job)
    wait_for("it to stand still", lambda: "ghv unpause" in shown(lab, job)["job"]["note"], 120)

    # It is suspended from there, and nothing of it is left but what is kept.
    assert b"suspended" in lab.ghv("suspend", job).out
    wait_for("it to stand still", lambda: shown(lab, job)["job"]["state"] == "suspended", 300)
    stood = printed(lab, job)
    newest, older = kept(lab, job)
    assert newest["executed"] > older["executed"] > 0
    folders = {each.name: each.stat().st_mode & 0o777 for each in (lab.workdir / "checkpoints").iterdir()}
    assert folders == {newest["id"]: 0o700, older["id"]: 0o700}
    wait_for("its place to be free", lambda: lab.ghv("site", "show", "local", "-o", "json").json["running"] == 0, 120)

    # The newest is damaged: it goes on from the one before, and says so.
    memory = max((lab.workdir / "checkpoints" / newest["id"]).iterdir(), key=lambda path: path.stat().st_size)
    data = bytearray(memory.read_bytes())
    data[len(data) // 2] ^= 1
    memory.write_bytes(data)
    lab.ghv("resume", job)
    wait_for("it to count on", lambda: int(printed(lab, job)[-1]) > int(stood[-1]), 600)
    assert [each.get("restored", "") for each in shown(lab, job)["attempts"]] == ["", newest["id"], older["id"]]
    assert b"it goes on from checkpoint " + older["id"].encode() in lab.ghv("events", job).out
    lab.ghv("cancel", job)
    ended = lab.wait(job, 300)
    assert ended["job"]["state"] == "cancelled"

    # What took its time by its size stands beside what was predicted of it, attempt by attempt.
    done = [(row["attempt"], row["operation"]) for row in ended["ledger"]["operations"]]
    assert done == [
        (1, "upload"), (1, "prepare"), (1, "restore"), (1, "save"), (1, "save"),
        (2, "upload"), (2, "prepare"), (3, "upload"), (3, "prepare"), (3, "resume"),
    ]  # fmt: skip
    for row in ended["ledger"]["operations"]:
        assert row["seconds"] > 0 and row["predicted"] > 0 and (row["bytes"] > 0 or row["operation"] in FREE), row
    restored = next(row for row in ended["ledger"]["operations"] if row["operation"] == "restore")
    assert restored["seconds"] < 30 and 1 << 20 < restored["bytes"] < 96 << 20
    history = lab.ghv("history", job, "-o", "json").json
    assert [row for a in history["attempts"] for row in a["operations"]] == ended["ledger"]["operations"]
    assert b"Predicted, and real" in lab.ghv("show", job).out

    # What it counted is home. It began once, and each count that it came by was printed, up to the last.
    lines = printed(lab, job)
    assert lines[: len(stood)] == stood and lines.count("begun") == 1
    again = [int(line) for line in lines[len(stood) :]]
    assert again == list(range(again[0], again[-1] + 1)) and 1 < again[0] <= int(stood[-1])
    assert int((lab.work / "results/counted").read_text()) >= again[-1]

    late = lab.ghv("suspend", job, check=False)
    assert late.code == Exit.CONFLICT and "it has ended" in late.err
    wait_for("the checkpoints to be removed", lambda: not list((lab.workdir / "checkpoints").iterdir()), 120)
    lab.assert_clean()
