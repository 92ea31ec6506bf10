"""How often a relay looks at its spool, and what it tells in one message."""

from __future__ import annotations

from pathlib import Path

import pytest

from gridhypervisor.agent import spool, spoolwatch
from gridhypervisor.agent.spoolwatch import FAST, IDLE, SLOW, SpoolWatch
from gridhypervisor.model import wire
from gridhypervisor.model.wire import ExitRecord, Outcome, OwnerRecord, Phase, Reason, Status

OWNER = OwnerRecord("pilot", "claim", 1, "node")


@pytest.fixture
def watch(tmp_path: Path) -> SpoolWatch:
    """One that must poll, as on a network file system."""
    watch = SpoolWatch(tmp_path, "inst")
    watch.close()
    watch.told = False
    return watch


def make(folder: Path, name: str, sequence: int = 0) -> Path:
    (folder / name).mkdir(exist_ok=True)
    (folder / name / wire.OWNER).write_bytes(wire.canonical(OWNER))
    beat(folder / name, sequence)
    return folder / name


def beat(entry: Path, sequence: int) -> None:
    """As a pilot does: a new file each time. In the old one, two words within one tick of the clock look the same."""
    status = Status(entry.name, 1, "claim", sequence, Phase.EXECUTE, (), float(sequence))
    spool.write_replace(entry / wire.STATUS, wire.canonical(status))


def interval(watch: SpoolWatch) -> float:
    """The middle of what it is due in."""
    return sum(watch.due() for _ in range(1000)) / 1000


def test_beats_do_not_make_it_look_more_often_but_ends_do(watch: SpoolWatch, tmp_path: Path) -> None:
    entry = make(tmp_path, "inst-1")
    watch.look()
    assert interval(watch) == pytest.approx(FAST, rel=0.1)
    for sequence in range(1, 10):
        beat(entry, sequence)
        [view] = watch.look()
        assert view.status is not None and view.status.sequence == sequence
    assert interval(watch) == pytest.approx(SLOW, rel=0.1)
    make(tmp_path, "inst-2")
    watch.look()
    assert interval(watch) == pytest.approx(FAST, rel=0.1)
    beat(entry, 10)
    watch.look()
    (entry / wire.EXIT).write_bytes(
        wire.canonical(ExitRecord(entry.name, 1, "claim", Outcome.COMPLETED, Reason.EXITED))
    )
    watch.look()
    assert interval(watch) == pytest.approx(FAST, rel=0.1)


def test_the_more_entries_live_the_seldomer_it_looks(watch: SpoolWatch, tmp_path: Path) -> None:
    for number in range(300):
        make(tmp_path, f"inst-{number}")
    for _ in range(20):
        watch.look()
    assert SLOW * 2 < interval(watch) < IDLE


def test_entries_are_told_in_pages_of_one_look(
    watch: SpoolWatch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spoolwatch, "PAGE", 1000)
    names = [f"inst-{number}" for number in range(9)]
    for name in names:
        make(tmp_path, name)
    first, more = watch.scan()
    assert more and 0 < len(first) < 9
    make(tmp_path, "inst-9")  # too late for this look
    seen = [view.entry for view in first]
    while more:
        page, more = watch.scan(after=seen[-1])
        seen += [view.entry for view in page]
    assert seen == names


def test_one_entry_larger_than_a_page_is_told_too(
    watch: SpoolWatch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spoolwatch, "PAGE", 1)
    make(tmp_path, "inst-1")
    make(tmp_path, "inst-2")
    page, more = watch.scan()
    assert ([view.entry for view in page], more) == (["inst-1"], True)
