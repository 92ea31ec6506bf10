"""A program is suspended, stands still without a place at its site, and goes on where it stood, there and at another
site: real guests."""

from __future__ import annotations

from typing import Any

from gridhypervisor.cli.exits import Exit
from tests.e2e.installation import Installation, wait_for
from tests.e2e.test_faults_disk import tmpfs

TINY = ("--image", "tiny", "--memory", "96M", "--scratch", "32M", "--retry", "1", "--hypervisor", "tcg")

FREE = ("upload", "prepare")
"""What takes its time even if there is nothing to be moved."""

COUNTS = """\
echo begun
grep -m 1 ^flags /proc/cpuinfo >flags
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
    lab, second = installation, installation.folder / "second"
    lab.ghv("site", "add", "second", "--kind", "fork", "--workdir", str(second), "--scratch", str(lab.scratch))
    lab.ghv("site", "drain", "second")
    # Its guest starts from a snapshot, though none of its kind has run.
    words = ("--memory", "96M", "--scratch", "32M", "--hypervisor", "tcg", "--cpu", "x86-64-v2", "--site", "local")
    warmed = lab.ghv("image", "warm", "tiny", *words, "-o", "json")
    assert [(check["holds"], check["claim"].rpartition(" ")[2]) for check in warmed.json] == [(True, "local")]
    assert "made just now" in warmed.json[0]["evidence"]
    assert not lab.ghv("list", "-o", "json").json, "the job that did it is gone"
    job = lab.detach(
        *TINY, "--cpu", "x86-64-v2", "--out", "counted", "--out", "flags", "--to", "results", "--", "sh", "-c", COUNTS
    )
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

    # A copy of the older one comes here as soon as there is room for it.
    with tmpfs(lab.data / "checkpoints", "4m"):
        lab.ghv("checkpoint", "copy", older["id"])
        full = wait_for("it to be said", lambda: [c["note"] for c in kept(lab, job) if "too little" in c["note"]], 120)
        assert str(lab.data / "checkpoints") in full[0]
    wait_for("the copy", lambda: [c for c in kept(lab, job) if c.get("copy") == "kept"], 120)

    # The newest is damaged: it goes on from the one before, and says so.
    memory = max((lab.workdir / "checkpoints" / newest["id"]).iterdir(), key=lambda path: path.stat().st_size)
    data = bytearray(memory.read_bytes())
    data[len(data) // 2] ^= 1
    memory.write_bytes(data)
    lab.ghv("resume", job)
    wait_for("it to count on", lambda: int(printed(lab, job)[-1]) > int(stood[-1]), 600)
    assert [each.get("restored", "") for each in shown(lab, job)["attempts"]] == ["", newest["id"], older["id"]]
    assert b"it goes on from checkpoint " + older["id"].encode() in lab.ghv("events", job).out

    # It goes on at another site as it runs, by way of this machine; nobody can read what lies here.
    lab.ghv("site", "drain", "second", "--undo")
    lab.ghv("move", job, "--to", "second")
    wait_for("it to be there", lambda: len(shown(lab, job)["attempts"]) == 4, 300)
    *_, before, there = shown(lab, job)["attempts"]
    assert (there["site"], there["restored"]) == ("second", f"{before['entry']}-1")
    copies = [path for path in (lab.data / "checkpoints").rglob("*") if path.is_file()]
    assert copies and all(path.stat().st_mode & 0o777 == 0o600 for path in copies)
    assert not any(b"begun" in path.read_bytes() for path in copies), "what it printed is sealed, too"
    keys = [path.read_bytes() for path in (lab.data / "checkpoints/keys").iterdir()]
    left = len(printed(lab, job))
    wait_for("it to count on there", lambda: len(printed(lab, job)) > left + 3, 600)
    told = [*lab.data.glob("*.log"), *lab.data.glob("store.sqlite*"), *second.glob("spool/*/*.log")]
    assert len(keys) == 2 and not [path for path in told for key in keys if key in path.read_bytes()]
    lab.ghv("cancel", job)
    ended = lab.wait(job, 300)
    assert ended["job"]["state"] == "cancelled"

    # What took its time by its size stands beside what was predicted of it, attempt by attempt.
    done = [(row["attempt"], row["operation"]) for row in ended["ledger"]["operations"]]
    assert done == [
        (1, "upload"), (1, "prepare"), (1, "restore"), (1, "save"), (1, "save"),
        (2, "upload"), (2, "prepare"), (3, "upload"), (3, "prepare"), (3, "resume"),
        (3, "save"), (4, "upload"), (4, "prepare"), (4, "resume"),
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
    seen = (lab.work / "results/flags").read_text().split()
    assert "sse4_2" in seen and "avx" not in seen, "it saw the processor that was asked for"

    late = lab.ghv("suspend", job, check=False)
    assert late.code == Exit.CONFLICT and "it has ended" in late.err
    places = lab.workdir / "checkpoints", lab.data / "checkpoints/keys", lab.data / "checkpoints/copies"
    wait_for("the checkpoints to be removed", lambda: not any(list(place.iterdir()) for place in places), 120)
    lab.assert_clean()
