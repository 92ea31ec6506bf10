"""One batch job that serves many short jobs, on this machine: who ran where, and what is left of it."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from tests.e2e.installation import Installation, wait_for

TINY = ("--image", "tiny", "--memory", "128M", "--scratch", "48M")
JOBS, SLOTS = 16, 2


def served(events: list[dict[str, Any]]) -> dict[str, str]:
    """Of each job that another's batch job served, in its last attempt: the entry of that one's own job."""
    words = "in the batch job of "
    return {e["job"]: e["message"].removeprefix(words) for e in events if e["message"].startswith(words)}


@pytest.mark.timeout(900)
def test_two_pilots_serve_many_jobs_though_the_service_is_killed_meanwhile(installation: Installation) -> None:
    lab = installation
    lab.ghv("site", "edit", "local", "--slots", str(SLOTS), "--max-jobs", str(2 * JOBS), "--option", "idle=10")
    with lab.taken_slots(SLOTS):  # until all of them wait: then no pilot ends for want of another
        array = lab.detach(*TINY, "--array", f"1-{JOBS}", "--out", "made", "--to", "of-${TASK_ID}", "--", "sh", "-c",
                           "sleep 1; echo ${TASK_ID} >made")  # fmt: skip
        wait_for("all to be queued", lambda: sum(e["after"] == "queued" for e in lab.events()) >= 2 * JOBS, 300)

    def ended(events: list[dict[str, Any]]) -> list[str]:
        return [e["job"] for e in events if e["kind"] == "job" and e["after"] == "done"]

    wait_for("a third of them", lambda: len(ended(lab.events())) >= JOBS // 3, 600)
    lab.kill_service()
    lab.ghv("wait", array, timeout=600)
    events = lab.events()
    assert len(ended(events)) == len(set(ended(events))) == JOBS, ended(events)
    attempts = Counter(e["job"] for e in events if e["kind"] == "attempt" and e["after"] == "planned")
    assert attempts == dict.fromkeys(attempts, 1) and len(attempts) == JOBS
    others, own = served(events), JOBS - len(served(events))
    assert own <= SLOTS, f"{own} batch jobs served their own jobs: {others}"
    for number in range(1, JOBS + 1):
        assert (lab.work / f"of-{number}" / "made").read_text() == f"{number}\n"

    # Who asks sees in which batch job it ran; the ledger's times are its own.
    job, host = next(iter(others.items()))
    wait_for("who served it", lambda: lab.job(job)["attempts"][0]["batch_id"] == host)
    found = lab.job(job)
    assert found["attempts"][0]["node"]
    rows = {row["phase"]: row["seconds"] for row in found["ledger"]["rows"]}
    assert abs(sum(rows.values()) - found["ledger"]["wall"]) < 0.01 and rows["execute"] >= 0.9, rows
    lab.assert_clean()
