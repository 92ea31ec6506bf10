"""Snapshots: what makes one another's, what is dropped, and that no byte is used which its maker did not write."""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gridhypervisor.agent import renewal, snapshots
from gridhypervisor.agent.instant import obstacle
from gridhypervisor.agent.snapshot import Kept, Recipe, Snapshot, superfluous
from gridhypervisor.agent.snapshots import Damaged, Snapshots, copy_memory
from gridhypervisor.model.wire import ImageManifest, Layer, Manifest, Program, Resources

KEY = "ab" * 32
SIZE = 8 << 20
DAY = 86400.0

RECIPE = Recipe("anna", ("d1", "d2"), "world-1", "qemu 7.2.22", "a1", ("-smp", "1"), (64 << 20,), "")


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(Recipe)])
def test_whatever_of_a_recipe_differs_it_is_another_snapshot(field: str) -> None:
    value: Any = getattr(RECIPE, field)
    other: Any = (*value, 0 if field == "disks" else "x") if isinstance(value, tuple) else f"{value}x"
    assert dataclasses.replace(RECIPE, **{field: other}).key != RECIPE.key
    assert dataclasses.replace(RECIPE).key == RECIPE.key


def test_the_old_and_what_is_too_much_with_the_newer_is_superfluous() -> None:
    now = 1000 * DAY
    kept = [Kept(name, size, now - age * DAY) for name, size, age in (
        ("new", 60, 0), ("bigger", 50, 1), ("small", 40, 2), ("old", 1, 15),
    )]  # fmt: skip
    assert superfluous(kept, now, limit=100) == ["bigger", "old"], "one that does not fit leaves room for a smaller one"
    assert superfluous(kept, now, limit=1000) == ["old"]
    assert superfluous(kept, now, limit=10, age=100 * DAY) == ["new", "bigger", "small"]


def test_a_job_that_no_snapshot_can_serve_is_told_why() -> None:
    image = ImageManifest((Layer("d", 1, "base", "erofs"),))
    job = Manifest(1, "i", "e", "v", 1, "a", "j", image, "0", Program(("x",)), Resources())
    assert obstacle(job, able=True, kind="tcg") == ""
    assert obstacle(job, able=False, kind="uml") == "uml cannot take up a saved guest"
    assert obstacle(dataclasses.replace(job, instant="never"), able=True, kind="tcg") == "the job asks for it"
    disk = ImageManifest((Layer("d", 1, "disk", "qcow2"),))
    assert "whole disk" in obstacle(dataclasses.replace(job, image=disk), able=True, kind="tcg")


@dataclasses.dataclass
class Guest:
    """What a guest leaves to be kept, and the folder for it."""

    memory: bytes
    state: bytes
    kept: Snapshots
    memory_file: int
    state_file: int

    def keep(self, key: str = KEY) -> Snapshot | None:
        return self.kept.keep(key, self.memory_file, self.state_file, lambda: False)

    def load(self, snapshot: Snapshot) -> tuple[int, int]:
        files = file_of(self.memory_size), file_of(snapshot.state.length)
        self.kept.load(snapshot, *files, lambda: False)
        return files

    @property
    def memory_size(self) -> int:
        return len(self.memory)


def file_of(size: int, data: bytes = b"") -> int:
    descriptor = os.memfd_create("test", os.MFD_ALLOW_SEALING)
    os.ftruncate(descriptor, size)
    os.pwrite(descriptor, data, 0)
    return descriptor


@pytest.fixture
def guest(tmp_path: Path) -> Iterator[Guest]:
    """Its memory begins and ends with something, has something that is no multiple of anything, and much of nothing."""
    memory = bytearray(SIZE)
    for offset, length in ((0, 10), ((1 << 20) - 5, 3 << 20), ((6 << 20) + 4097, 100_000), (SIZE - 1, 1)):
        memory[offset : offset + length] = os.urandom(length - 1) + b"x"
    state = os.urandom(1000)
    made = Guest(bytes(memory), state, Snapshots(tmp_path / "snapshots"), file_of(SIZE), file_of(1000, state))
    source = file_of(SIZE, made.memory)
    copy_memory(source, made.memory_file)
    assert made.kept.claim(KEY)
    yield made
    for descriptor in (source, made.memory_file, made.state_file):
        os.close(descriptor)


def test_what_was_kept_comes_back_byte_for_byte_and_nobody_can_write_it(guest: Guest) -> None:
    kept = guest.keep()
    assert kept is not None and guest.kept.find(KEY) == kept
    assert kept.bytes < 5 << 20, "nothing is kept of nothing"
    for descriptor, data in zip(guest.load(kept), (guest.memory, guest.state), strict=True):
        assert os.pread(descriptor, SIZE, 0) == data
        with pytest.raises(PermissionError):
            os.pwrite(descriptor, b"x", 0)
        with pytest.raises(PermissionError):
            os.ftruncate(descriptor, 0)
        with pytest.raises(PermissionError):
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, 0)
        os.close(descriptor)
    assert guest.kept.find("cd" * 32) is None


@pytest.mark.parametrize("name", ["memory", "state"])
def test_a_changed_a_missing_and_an_additional_byte_are_noticed(guest: Guest, name: str) -> None:
    kept = guest.keep()
    assert kept is not None
    path = guest.kept.folder / KEY / name
    data = path.read_bytes()
    for wrong in (data[:-1] + bytes([data[-1] ^ 1]), data[:-1], data + b"x", b""):
        path.write_bytes(wrong)
        with pytest.raises(Damaged, match=name):
            guest.load(kept)
    path.unlink()
    with pytest.raises(Damaged, match="not there"):
        guest.load(kept)


def test_a_record_that_is_wrong_is_not_believed(guest: Guest) -> None:
    kept = guest.keep()
    assert kept is not None
    path = guest.kept.folder / KEY / "snapshot.json"
    record = json.loads(path.read_bytes())
    for wrong in ({}, {**record, "key": "cd" * 32}, {**record, "size": "much"}):
        path.write_text(json.dumps(wrong))
        with pytest.raises(Damaged):
            guest.kept.find(KEY)
    path.unlink()
    with pytest.raises(Damaged, match="not there"):
        guest.kept.find(KEY)
    path.write_text("{")
    with pytest.raises(Damaged):
        guest.kept.find(KEY)
    piece = dataclasses.replace(kept.pieces[0], offset=SIZE)
    with pytest.raises(Damaged, match="record"):
        guest.load(dataclasses.replace(kept, pieces=(piece, *kept.pieces[1:])))


def test_one_pilot_makes_it_and_one_that_died_over_it_is_not_waited_for_for_good(guest: Guest) -> None:
    claim = guest.kept.folder / f"{KEY}.claim"
    assert not guest.kept.claim(KEY)
    assert guest.kept.claim("cd" * 32), "another snapshot is another's"
    long_ago = time.time() - 2 * snapshots.CLAIM
    os.utime(claim, (long_ago, long_ago))
    assert guest.kept.claim(KEY)
    first = guest.keep()
    assert first is not None
    assert not claim.exists()
    assert guest.keep() is None, "the first one stays"
    assert guest.kept.find(KEY) == first
    guest.kept.drop(KEY)
    guest.kept.drop(KEY)
    assert guest.kept.find(KEY) is None


def test_a_snapshot_that_cannot_be_kept_leaves_nothing_but_its_claim(
    guest: Guest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshots, "LARGEST", 1 << 20)
    with pytest.raises(OSError, match="1 MiB at most"):
        guest.keep()
    assert [path.name for path in guest.kept.folder.iterdir()] == [f"{KEY}.claim"]
    assert not guest.kept.claim(KEY), "the next guest does not stand still in vain"


def test_sweeping_drops_what_nobody_used_and_what_somebody_left(guest: Guest) -> None:
    assert guest.keep() is not None and guest.keep("cd" * 32) is not None
    long_ago = time.time() - 20 * DAY
    os.utime(guest.kept.folder / KEY / "snapshot.json", (long_ago, long_ago))
    left, fresh = (guest.kept.folder / f".{name}" for name in ("left", "fresh"))
    for folder in (left, fresh):
        folder.mkdir()
    os.utime(left, (long_ago, long_ago))
    assert guest.kept.sweep() == [KEY]
    assert sorted(path.name for path in guest.kept.folder.iterdir()) == [".fresh", "cd" * 32]
    assert Snapshots(guest.kept.folder / "absent").sweep() == []


def test_renewal_brings_the_time_and_the_randomness_as_the_kernel_takes_them() -> None:
    randomness = bytes(range(renewal.RANDOMNESS))
    verb, text = renewal.line(1_700_000_000_123_456_789, randomness).split(" ")
    assert verb == "RENEW"
    data = bytes(int(word, 8) for word in text.split("\\")[1:])
    assert struct.unpack_from("<qqii", data) == (1_700_000_000, 123_456_789, 512, 64)
    assert data[24:] == randomness
    program = renewal.program()
    assert program[:4] == b"\x7fELF"
    entry, size = struct.unpack_from("<Q", program, 24)[0], struct.unpack_from("<Q", program, 64 + 32)[0]
    assert (entry & 0xFFF, size) == (64 + 56, len(program)), "it begins behind its headers, and all of it is loaded"
