"""The clock of the store's times, when the machine's own is set, and over restarts of service and machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from gridhypervisor.store import clock
from gridhypervisor.store.clock import open_clock


class Machine:
    """Its time of day, which anybody may set, and the seconds since it started."""

    def __init__(self) -> None:
        self.day, self.up = 1_000_000.0, 50.0

    def passes(self, seconds: float) -> None:
        self.day += seconds
        self.up += seconds

    def open(self, path: Path, *, alive: bool = True) -> float:
        return open_clock(path, alive=alive, wall=lambda: self.day, steady=lambda: self.up)()


@pytest.mark.parametrize("step", [600.0, -600.0])
def test_a_clock_that_is_set_makes_no_time_pass(tmp_path: Path, step: float) -> None:
    machine = Machine()
    now = open_clock(tmp_path / "clock", alive=False, wall=lambda: machine.day, steady=lambda: machine.up)
    begun = now()
    assert begun == machine.day
    machine.day += step
    machine.passes(7.0)
    assert now() == pytest.approx(begun + 7.0)
    assert machine.open(tmp_path / "clock") == pytest.approx(begun + 7.0), "a new service, and jobs are alive"
    assert machine.open(tmp_path / "clock", alive=False) == machine.day, "nothing is measured: it is set"
    assert machine.open(tmp_path / "clock") == machine.day, "and stays so"


def test_after_a_restart_of_the_machine_it_is_the_time_of_day(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine()
    machine.open(tmp_path / "clock", alive=False)
    other = tmp_path / "boot"
    other.write_text("another start\n")
    monkeypatch.setattr(clock, "BOOT_ID", other)
    machine.passes(1000.0)
    machine.up = 3.0
    assert machine.open(tmp_path / "clock") == machine.day


def test_what_is_damaged_or_cannot_be_written_keeps_nobody_from_starting(tmp_path: Path) -> None:
    machine = Machine()
    (tmp_path / "clock").write_text('{"boot": 3')
    assert machine.open(tmp_path / "clock") == machine.day
    assert machine.open(tmp_path / "no such folder" / "clock") == machine.day
