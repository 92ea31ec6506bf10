"""One owner for each entry, whoever tries when; records that are there whole or not at all."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from gridhypervisor.agent import spool
from gridhypervisor.agent.spool import SpoolError
from gridhypervisor.model import wire
from gridhypervisor.model.wire import EntryView, OwnerRecord, WireError

PILOT = OwnerRecord(by="pilot", claim="run-1", epoch=1, node="n1")
CONTROLLER = OwnerRecord(by="controller", claim="revoke-1", epoch=1, why="replaced")


def test_the_first_takes_it_and_everybody_is_told_whose_it_is(tmp_path: Path) -> None:
    assert spool.take_owner(tmp_path, PILOT) == PILOT
    assert spool.take_owner(tmp_path, CONTROLLER) == PILOT
    assert spool.take_owner(tmp_path, PILOT) == PILOT
    assert [path.name for path in tmp_path.iterdir()] == [wire.OWNER]


def test_of_many_takers_at_once_exactly_one_wins(tmp_path: Path) -> None:
    takers = 8

    def take(entry: Path, number: int, start: threading.Barrier, results: multiprocessing.SimpleQueue[str]) -> None:
        mine = OwnerRecord(by="pilot", claim=f"run-{number}", epoch=1)
        start.wait()
        results.put(spool.take_owner(entry, mine).claim)

    fork = multiprocessing.get_context("fork")
    for round_ in range(10):
        entry = tmp_path / str(round_)
        entry.mkdir()
        start, results = fork.Barrier(takers), fork.SimpleQueue()
        processes = [fork.Process(target=take, args=(entry, number, start, results)) for number in range(takers)]
        for process in processes:
            process.start()
        told = {results.get() for _ in processes}
        for process in processes:
            process.join()
        assert len(told) == 1
        assert [path.name for path in entry.iterdir()] == [wire.OWNER]


def test_a_lost_reply_of_link_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NFS sends a request again whose answer was lost: link(2) then says EEXIST although it was ours that worked."""
    link = os.link

    def lossy(source: Path, target: Path) -> None:
        link(source, target)
        raise FileExistsError(17, "File exists")

    monkeypatch.setattr(os, "link", lossy)
    assert spool.take_owner(tmp_path, PILOT) == PILOT


def test_without_hard_links_nobody_owns_and_the_message_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(source: Path, target: Path) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(SpoolError, match="hard link"):
        spool.take_owner(tmp_path, PILOT)
    assert list(tmp_path.iterdir()) == []


def test_an_entry_that_is_gone_cannot_be_taken(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        spool.take_owner(tmp_path / "gone", PILOT)


def test_an_owner_that_cannot_be_read_is_not_ours(tmp_path: Path) -> None:
    (tmp_path / wire.OWNER).write_text("{")
    with pytest.raises(WireError, match="owner"):
        spool.take_owner(tmp_path, PILOT)


@pytest.mark.parametrize("write", [spool.write_durable, spool.write_replace])
def test_readers_see_the_old_or_the_new_and_never_a_part(
    tmp_path: Path, write: Callable[[Path, bytes, int], None]
) -> None:
    path = tmp_path / wire.OWNER
    records = [OwnerRecord(by="pilot", claim=str(number) * 20_000, epoch=number) for number in range(2)]
    write(path, wire.canonical(records[0]), 0o640)
    done = threading.Event()
    seen: list[OwnerRecord | None] = []

    def read() -> None:
        while not done.is_set():
            seen.append(spool.read_json(path, OwnerRecord))

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    for turn in range(100):
        write(path, wire.canonical(records[turn % 2]), 0o640)
    done.set()
    reader.join()
    assert set(seen) <= set(records)
    assert path.stat().st_mode & 0o777 == 0o640
    assert [item.name for item in tmp_path.iterdir()] == [wire.OWNER]


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "status.json"
    spool.write_durable(path, b"old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        spool.write_durable(path, b"new")
    assert path.read_bytes() == b"old"
    assert [item.name for item in tmp_path.iterdir()] == ["status.json"]


def test_a_look_reports_what_is_there(tmp_path: Path) -> None:
    assert spool.view(tmp_path) == EntryView(entry=tmp_path.name)
    spool.take_owner(tmp_path, PILOT)
    (tmp_path / wire.STATUS).write_text("not a status")
    assert spool.view(tmp_path) == EntryView(entry=tmp_path.name, owner=PILOT)
    assert spool.read_json(tmp_path / wire.EXIT, wire.ExitRecord) is None


def test_the_files_own_clock_is_asked_for_the_time_and_nothing_is_left(tmp_path: Path) -> None:
    """Of this machine's clock a file server knows nothing."""

    def made(name: str) -> float:
        (tmp_path / name).touch()
        return (tmp_path / name).stat().st_mtime

    assert made("before") <= spool.file_time(tmp_path) <= made("after")
    assert {path.name for path in tmp_path.iterdir()} == {"before", "after"}
    with pytest.raises(FileNotFoundError):
        spool.file_time(tmp_path / "nowhere")
