"""Checkpoints as files: what is written comes back, what was not finished is not there, what is wrong is said."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gridhypervisor.agent.checkpoints import Abandoned, Damaged, Reader, Writer, obstacle, sweep
from gridhypervisor.agent.likeness import difference
from gridhypervisor.agent.world import World
from gridhypervisor.model.wire import Checkpoint, canonical

HERE: dict[str, Any] = {
    "image": "i", "kind": "tcg", "program": "qemu 7", "bundle": "b", "layout": ("-m", "1M"), "processor": "",
    "memory": 1 << 20,
}  # fmt: skip
SIZE = 8 << 20


def never() -> bool:
    return False


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """A disk with something at its begin, in its middle and at its end."""
    path = tmp_path / "disk"
    with path.open("wb") as file:
        file.truncate(SIZE)
        for place in (0, SIZE // 2, SIZE - 4096):
            file.seek(place)
            file.write(os.urandom(4096))
    return path


def write(folder: Path, disk: Path, stop: Callable[[], bool] = never) -> Checkpoint:
    folder.mkdir(exist_ok=True)
    writer = Writer(folder, "e-1", World(None), 1, stop)
    try:
        writer.disk("scratch", disk)
        writer.plain("stdout", io.BytesIO(b"printed, and more"), 7)
        checkpoint = Checkpoint(
            "e-1", "e", 1, **HERE, disks={"scratch": SIZE}, parts=writer.parts(), streams={"stdout": 7}
        )  # fmt: skip
        writer.keep(checkpoint)
        return checkpoint
    finally:
        writer.discard()


def test_what_was_written_comes_back_with_its_holes(tmp_path: Path, disk: Path) -> None:
    checkpoint = write(tmp_path / "kept", disk)
    reader = Reader(tmp_path / "kept", checkpoint, tmp_path / "here", World(None), never)
    reader.bring()
    reader.unpack({"scratch": tmp_path / "again"})
    assert (tmp_path / "again").read_bytes() == disk.read_bytes()
    assert (tmp_path / "again").stat().st_blocks <= disk.stat().st_blocks
    reader.lay(tmp_path)
    assert (tmp_path / "stdout").read_bytes() == b"printed"
    assert checkpoint.size == sum(path.stat().st_size for path in (tmp_path / "kept/e-1").iterdir()) - len(
        canonical(checkpoint)
    )


def test_what_was_given_up_leaves_nothing(tmp_path: Path, disk: Path) -> None:
    with pytest.raises(Abandoned):
        write(tmp_path / "kept", disk, lambda: True)
    assert not list((tmp_path / "kept").iterdir())


def test_a_source_that_is_shorter_than_was_said_is_no_checkpoint(tmp_path: Path, disk: Path) -> None:
    writer = Writer(tmp_path, "e-1", World(None), 1, never)
    with pytest.raises(OSError, match="3 bytes less"):
        writer.plain("stdout", io.BytesIO(b"pri"), 6)
    writer.discard()


def test_a_record_of_another_is_not_believed(tmp_path: Path, disk: Path) -> None:
    checkpoint = write(tmp_path / "kept", disk)
    record = tmp_path / "kept/e-1/checkpoint.json"
    record.write_bytes(record.read_bytes().replace(b'"epoch":1', b'"epoch":2'))
    with pytest.raises(Damaged, match="that of another"):
        Reader(tmp_path / "kept", checkpoint, tmp_path / "here", World(None), never).bring()


def test_what_somebody_left_is_swept_when_it_is_old(tmp_path: Path) -> None:
    for name in (".new", ".old", "kept"):
        (tmp_path / name).mkdir()
    for name in (".old", "kept"):
        os.utime(tmp_path / name, (0, 0))
    assert sweep(tmp_path) == [".old"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [".new", "kept"]


def test_no_room_is_said_before_a_guest_stands_still(tmp_path: Path) -> None:
    assert obstacle(tmp_path / "new", 1) == ""
    assert " MiB may be needed" in obstacle(tmp_path / "new", 1 << 62)


@pytest.mark.parametrize(
    ("name", "other", "words"),
    [
        ("program", "qemu 8", "made by qemu 7, and here is qemu 8"),
        ("layout", ("-m", "1M", "-device"), "'nothing', here '-device'"),
        ("processor", "flags : fpu avx", "'nothing', here 'flags'"),
        ("kind", "kvm", "made under tcg"),
    ],
)
def test_what_differs_is_said(name: str, other: object, words: str) -> None:
    checkpoint = Checkpoint("e-1", "e", 1, **HERE, disks={}, parts=())
    assert difference(checkpoint, HERE) == ""
    assert words in difference(checkpoint, {**HERE, name: other})
