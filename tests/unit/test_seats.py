"""A processor of its own for each guest that wants one, as far as there are any."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from gridhypervisor.agent import seats
from gridhypervisor.agent.hypervisor import Command
from gridhypervisor.agent.trial import Trial
from gridhypervisor.agent.watchdog import Watchdog

USABLE = os.sched_getaffinity(0)


@pytest.fixture
def trial(tmp_path: Path) -> Iterator[Trial]:
    watchdog = Watchdog()
    yield Trial(watchdog, tmp_path)
    watchdog.dismiss()


def allowed(trial: Trial, folder: Path) -> str:
    """The processors that a hypervisor finds itself allowed to use."""
    words = ("/bin/sh", "-c", "while read a b; do test $a = Cpus_allowed_list: && echo $b; done < /proc/self/status; :")
    ended = trial.run(Command(words, {}, seats=str(folder)), 60)
    assert ended.well, ended
    return ended.said.strip()


def test_each_has_its_own_until_none_is_left_and_it_is_free_again_at_the_end(trial: Trial, tmp_path: Path) -> None:
    folder = tmp_path / "cpu"
    others = [seats.take(folder) for _ in range(len(USABLE) - 1)]
    held = [seat.cpu for seat in others if seat is not None]
    [last] = USABLE - set(held)
    assert [allowed(trial, folder) for _ in range(2)] == [str(last), str(last)]  # the first one's is free again
    mine = seats.take(folder)
    assert mine is not None
    assert seats.take(folder) is None
    ours = next(line for line in Path("/proc/self/status").read_text().splitlines() if "Cpus_allowed_list" in line)
    assert allowed(trial, folder) == ours.split()[1]  # all of them: the node's kernel decides
    mine.leave()
    assert allowed(trial, folder) == str(last)


def test_where_no_lock_can_be_made_the_guest_runs_all_the_same(trial: Trial, tmp_path: Path) -> None:
    (tmp_path / "cpu").write_text("not a folder")
    assert seats.take(tmp_path / "cpu") is None
    assert allowed(trial, tmp_path / "cpu")
