"""A real Grid Engine of which a node is cut off, and whose queue master is away; connections cut in a submission.

Each node has a network of its own, so a cut loses packets and stops no process: daemon, pilot and guest go on.
The front-end sees the spool through a late view, which keeps back what the node writes for as long as the cut lasts.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.e2e.cluster import (
    RERUN,
    cut_after_the_submission,
    cut_before_the_submission,
    joined,
    reasons,
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
    """Nobody can know that the guest on that node is gone but by its walltime: until then its job has no second one.
    Waiting for that, connections are cut in submissions, and the queue master is away for a minute."""
    seconds = grid.work / "seconds"
    seconds.write_text("1000\n")
    words = ("--walltime", f"{WALLTIME}s", "--retry", "1", "--in", "seconds", "--out", "made", "--to", "cut")
    job = grid.detach(*TINY, *words, "--", "sh", "-c", RERUN)
    grid.wait_word(job)
    grid.wait_state(job, "running")
    seconds.write_text("0\n")
    [attempt] = grid.job(job)["attempts"]
    node, first = attempt["node"], grid.entry(job)
    assert first is not None
    with grid.site.unseen(first.name):
        grid.site.connect(node, False)
        try:
            assert grid.guests(first), "the guest runs on"
            wait_for("Grid Engine's verdict", lambda: node not in grid.site.ready_nodes())
            wait_for("that it is told", lambda: b"waiting until its walltime" in grid.ghv("explain", job).out)
            with grid.counting(job) as most:
                cut_after_the_submission(grid, "qsub")
                cut_before_the_submission(grid, "qsub")
                away, back = partial(grid.site.signal, "qmaster"), partial(grid.site.start, "qmaster")
                without_its_batch_system_for_a_minute(grid, away, back)
                wait_for("the end of the guest, by its watchdog", lambda: not grid.guests(first))
                wait_for("the second attempt", lambda: len(grid.job(job)["attempts"]) == 2, 300)
                found = grid.wait(job)
            assert max(most) == 1
        finally:
            grid.site.connect(node, True)
    assert (found["job"]["state"], reasons(found)) == ("done", ["lost", "exited"]), found
    assert "its walltime is over" in found["attempts"][0]["message"]
    running, planned = (next(e["at"] for e in grid.events(job) if (e["subject"], e["after"]) == (attempt["id"], after))
                        for attempt, after in zip(found["attempts"], ("running", "planned"), strict=True))  # fmt: skip
    assert planned > running + WALLTIME, "it was planned when the first guest might have been running"
    assert found["attempts"][1]["node"] != node
    assert (grid.work / "cut/made").read_text() == "run\n"
    grid.site.wait_ready()
