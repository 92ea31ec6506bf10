"""One batch job that serves many short jobs on a real Slurm, over SSH: which begin, and which are cancelled."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.cluster import joined
from tests.e2e.installation import wait_for
from tests.e2e.slurmsite import TINY, SlurmLab
from tests.e2e.test_warm import served
from testsites import SlurmSite

pytest_plugins = ("tests.e2e.slurmfixtures",)
pytestmark = pytest.mark.timeout(900)

CORES = 4
"""Of the site: so many jobs run at once."""
JOBS = 8


@pytest.fixture
def warm(template: Path, node_scratch: Path, slurm_site: SlurmSite) -> Iterator[SlurmLab]:
    """An installation whose pilots at the site serve others."""
    with joined(SlurmLab, slurm_site, node_scratch, template, idle="10") as made:
        yield made
        made.assert_clean()


def test_pilots_serve_short_jobs_and_a_cancel_ends_one_of_these_alone(warm: SlurmLab) -> None:
    with warm.busy_site():  # until all of them wait: then no pilot ends for want of another
        array = warm.detach(*TINY, "--array", f"1-{JOBS}", "--", "sleep", "1")
        wait_for("the array in the queue", lambda: len(warm.batch_jobs("PENDING")) == JOBS, 300)
        last = warm.detach(*TINY, "--", "sh", "-c", "echo up; sleep 1000")
        warm.wait_state(last, "queued")
    warm.ghv("wait", array, timeout=600)
    warm.wait_word(last, 600)
    warm.wait_state(last, "running")
    events = warm.events()
    attempts = Counter(e["job"] for e in events if e["kind"] == "attempt" and e["after"] == "planned")
    assert len(attempts) == JOBS + 1 and set(attempts.values()) == {1}
    others = served(events)
    assert len(attempts) - len(others) <= CORES, others
    unbegun = set(warm.batch_jobs("PENDING", "CANCELLED"))
    assert not unbegun & set(others.values()), (unbegun, others)

    # Its own batch job is cancelled, or began just before and found it taken. The user's cancel does not end the one in
    # which it runs.
    host, entry = others[last], warm.entry(last)
    assert entry is not None and host != entry.name
    wait_for("the end of its own batch job", lambda: entry.name in warm.batch_jobs("CANCELLED", "COMPLETED"))
    wait_for("its host's number", lambda: warm.batch_id(last) == warm.batch_jobs()[host][0])
    warm.ghv("cancel", last)
    assert warm.wait(last)["job"]["state"] == "cancelled"
    wait_for("the end of its host", lambda: host in warm.batch_jobs("COMPLETED"))
