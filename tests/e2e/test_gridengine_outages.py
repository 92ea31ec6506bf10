"""A real Grid Engine of which a node is cut off, and whose queue master is away; connections cut in a submission.

Each node has a network of its own, so a cut loses packets and stops no process: daemon, pilot and guest go on.
The front-end sees the spool through a late view, which keeps back what the node writes for as long as the cut lasts.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from gridhypervisor.agent import spool
from gridhypervisor.model import wire
from tests.e2e.cluster import (
    RERUN,
    cut_after_the_submission,
    cut_before_the_submission,
    joined,
    without_its_batch_system_for_a_minute,
)
from tests.e2e.installation import guests, wait_for
from tests.e2e.test_gridengine import TINY, GridEngineLab
from testsites import GridEngineSite

pytestmark = pytest.mark.timeout(900)

DELAY = 2
"""Seconds that what nodes write stays unseen at most, while nothing is cut off."""

WALLTIME = 90
"""Seconds, of the job whose node is cut off: it still runs when that is done, on a slow machine too."""

SILENCE = 150
"""Seconds without a word after which the other job there is replaced, half a minute later."""


class CutLab(GridEngineLab):
    def guests(self, entry: Path) -> list[int]:
        return guests(f"{entry.name} ")


@pytest.fixture(scope="module")
def shared_grid(template: Path, node_scratch: Path) -> Iterator[CutLab]:
    with (
        GridEngineSite("sge-o", nodes=2, slots=3, spool_delay=DELAY) as site,
        joined(CutLab, site, node_scratch, template, spool_lag=str(DELAY + 1)) as made,
    ):
        yield made


@pytest.fixture
def grid(shared_grid: CutLab) -> Iterator[CutLab]:
    yield shared_grid
    shared_grid.assert_clean(120)


def test_a_node_is_cut_off_and_other_things_go_wrong_meanwhile(grid: CutLab) -> None:
    """Nobody can know that the guests there are gone but by their walltime, or by the grant that one of them needs:
    until then its job has no second one. Waiting for that, connections are cut in submissions, and the queue master is
    away for a minute."""
    seconds = grid.work / "seconds"
    seconds.write_text("1000\n")
    words = (*TINY, "--retry", "5", "--in", "seconds", "--out", "made")
    program = ("--", "sh", "-c", RERUN)
    with grid.one_node():
        kept = grid.detach(*words, "--walltime", f"{WALLTIME}s", "--to", "kept", *program)
        replaced = grid.detach(
            *words, "--on-silence", "replace", "--silence", f"{SILENCE}s", "--to", "replaced", *program
        )
        for job in (replaced, kept):
            grid.wait_word(job)
            grid.wait_state(job, "running")
    seconds.write_text("0\n")
    [node] = {grid.job(job)["attempts"][0]["node"] for job in (kept, replaced)}
    first, other = grid.entry(kept), grid.entry(replaced)
    assert first is not None and other is not None
    with grid.site.unseen(first.name, other.name):
        grid.site.connect(node, False)
        try:
            assert grid.guests(first) and grid.guests(other), "the guests run on"
            wait_for("Grid Engine's verdict", lambda: node not in grid.site.ready_nodes())
            wait_for("that it is told", lambda: b"waiting until its walltime" in grid.ghv("explain", kept).out)
            with grid.counting(kept) as most, grid.counting(replaced) as most_replaced:
                cut_before_the_submission(grid, "qsub")  # long before there is another submission that it could meet
                cut_after_the_submission(grid, "qsub")
                without_its_batch_system_for_a_minute(grid, partial(_away, grid), partial(_back, grid, node))
                wait_for("the end of the guest, by its watchdog", lambda: not grid.guests(first))
                wait_for("the second attempt", lambda: len(grid.job(kept)["attempts"]) > 1, 300)
                found, found_replaced = grid.wait(kept), grid.wait(replaced)
            assert max(most) == max(most_replaced) == 1
            last_word = spool.read_json(other / wire.EXIT, wire.ExitRecord)
            assert last_word is not None and (last_word.reason, last_word.by) == ("grant", "watchdog"), last_word
        finally:
            grid.site.connect(node, True)
    for each, why in ((found, "its walltime is over"), (found_replaced, "its guest's grant is over")):
        first_try, *_, last_try = each["attempts"]
        assert each["job"]["state"] == "done", grid.story(each["job"]["id"])
        assert (first_try["reason"], last_try["reason"]) == ("lost", "exited") and why in first_try["message"], each
        assert last_try["node"] != node
        ran = _attempts(grid, each, "running")
        assert ran == [first_try["id"], last_try["id"]], grid.ghv("show", each["job"]["id"]).out.decode()
    assert (grid.work / "kept/made").read_text() == (grid.work / "replaced/made").read_text() == "run\n"
    moments = {(e["subject"], e["after"]): float(e["at"]) for e in grid.events(kept)}
    began, next_began = ((found["attempts"][n]["id"], state) for n, state in enumerate(("running", "planned")))
    assert moments[next_began] > moments[began] + WALLTIME, (
        "it was planned when the first guest might have been running"
    )
    order = [(e["subject"], e["after"]) for e in grid.events(replaced) if e["kind"] == "attempt"]
    first_id, next_id = (found_replaced["attempts"][n]["id"] for n in (0, 1))
    assert order.index((first_id, "fencing")) < order.index((first_id, "fenced")) < order.index((next_id, "planned"))
    grid.site.wait_ready()


def _away(grid: CutLab) -> None:
    """The queue master ends. What is to begin again waits until it is back: the submission would meet nobody."""
    grid.ghv("site", "drain", "gridengine")
    grid.site.signal("qmaster")


def _back(grid: CutLab, node: str) -> None:
    """It is back, and has noticed again that a node is missing: before, it might send a job there."""
    grid.site.start("qmaster")
    wait_for("Grid Engine's verdict", lambda: node not in grid.site.ready_nodes())
    grid.ghv("site", "drain", "gridengine", "--undo")


def _attempts(grid: CutLab, found: dict[str, Any], state: str) -> list[str]:
    """Those that have come to this state, in the order in which they did."""
    return [e["subject"] for e in grid.events(found["job"]["id"]) if e["kind"] == "attempt" and e["after"] == state]
