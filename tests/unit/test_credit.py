"""How far a site is believed: by what became of jobs while it said that cores were free."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gridhypervisor.model.capacity import Capacity, NodeRow, NodeState, capacity
from gridhypervisor.planning.credit import DAY, LATEST, PROMPT, Experience, Waiting, denied

NOW = 1e6


def says(at: float, *free: int) -> Capacity:
    rows = (NodeRow(f"n{i}", NodeState.MIXED, 8, count) for i, count in enumerate(free))
    return replace(capacity(rows), as_of=at)


def waits(cpus: int = 1, since: float = NOW - PROMPT, entry: str = "e1") -> Waiting:
    return Waiting(entry, cpus, since)


def test_a_job_is_denied_what_the_site_says_twice_that_it_has() -> None:
    before, now = says(NOW - 60, 0, 2), says(NOW, 1, 2)
    assert denied([waits(2)], before, now) == ["e1"]
    assert denied([waits(3)], before, now) == [], "no node has room for it"
    assert denied([waits(2)], says(NOW - 60, 1, 1), now) == [], "there was none a minute ago"
    assert denied([waits(2)], None, now) == []
    assert denied([waits(2, since=NOW - PROMPT + 1)], before, now) == [], "it has not waited for long"
    assert denied([waits(2)], replace(before, as_of=NOW - PROMPT - 1), now) == [], "it was not there then"


def test_nodes_that_take_no_work_offer_none() -> None:
    down = replace(capacity([NodeRow("n1", NodeState.DOWN, 8, 0), NodeRow("n2", None)]), as_of=NOW - 60)
    assert denied([waits()], down, says(NOW, 4)) == []


def test_credit_is_what_was_kept_of_what_was_promised() -> None:
    met = Experience()
    assert met.credit(NOW) == 1.0
    met.surveyed([], says(NOW - 60, 4))
    met.surveyed([waits(), waits(entry="e2"), waits(entry="e3")], says(NOW, 4))
    assert met.credit(NOW) == pytest.approx(1 / 4)
    met.began(NOW, PROMPT)
    met.began(NOW, PROMPT + 1)  # it did not begin at once, which alone is nobody's lie
    assert met.credit(NOW) == pytest.approx(2 / 5)
    assert met.credit(NOW + DAY) == 1.0, "what is long ago is forgotten"


def test_who_goes_on_waiting_counts_again_but_not_at_every_look() -> None:
    met = Experience()
    for minute in range(11):
        met.surveyed([waits()], says(NOW + 60 * minute, 4))
    # The first look proves nothing; then at 1, 6 minutes, and so on, each `PROMPT` after the one before.
    assert met.credit(NOW + 600) == pytest.approx(1 / 3)


def test_a_site_that_has_mended_is_believed_again() -> None:
    met = Experience()
    met.surveyed([], says(NOW - 60, 4))
    met.surveyed([waits(entry=f"e{i}") for i in range(LATEST)], says(NOW, 4))
    assert met.credit(NOW) == pytest.approx(1 / (LATEST + 1))
    for second in range(LATEST):
        met.began(NOW + second, 1.0)
    assert met.credit(NOW + LATEST) == 1.0
