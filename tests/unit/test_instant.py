"""How a guest is to begin, by what lies in the account's folder; the guests themselves are in tests/e2e."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest

from gridhypervisor.agent.hypervisor import Disk, Machine
from gridhypervisor.agent.instant import Beginning, NotRestored, prepare
from gridhypervisor.agent.qemu import Qemu
from gridhypervisor.agent.snapshots import Snapshots
from gridhypervisor.agent.world import World
from gridhypervisor.model.wire import (
    HypervisorKind,
    HypervisorUsed,
    ImageManifest,
    Layer,
    Manifest,
    Program,
    Resources,
    canonical,
)

MEMORY = 64 << 20
JOB = Manifest(1, "i", "e", "v", 1, "a", "j", ImageManifest((Layer("d", 1, "base", "erofs"),)), "0", Program(("x",)),
               Resources(), owner="ada")  # fmt: skip
USED = HypervisorUsed(HypervisorKind.TCG, "qemu 7.2.22", "")


class Node:
    """Pilots of one account, each with a run folder of its own."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.snapshots = Snapshots(root / "snapshots")

    def prepare(self, run: str, job: Manifest = JOB) -> Beginning:
        folder = self.root / run
        folder.mkdir()
        disks = []
        for serial, readonly in (("base", True), ("scratch", False)):
            (folder / serial).write_bytes(serial.encode())
            disks.append(Disk(serial, folder / serial, readonly=readonly))
        machine = Machine(run, 1, MEMORY, Path("/k"), Path("/i"), "ghv.base=erofs", tuple(disks))
        world = World(None)
        return prepare(job, machine, Qemu(world, HypervisorKind.TCG), USED, world, self.snapshots.folder)

    def keep(self, begin: Beginning) -> None:
        """Leave a snapshot as the guest of `begin` would."""
        memory, state = (os.memfd_create("test") for _ in range(2))
        os.ftruncate(memory, MEMORY)
        for descriptor in (memory, state):
            os.pwrite(descriptor, b"something", 0)
        assert self.snapshots.keep(begin.key, memory, state, lambda: False) is not None
        os.close(memory)
        os.close(state)


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


def test_the_first_guest_is_saved_before_it_can_see_its_scratch_disk_and_the_next_is_taken_up(node: Node) -> None:
    first = node.prepare("first")
    assert (first.machine.start, first.boot.startswith("cold: no snapshot")) == ("save", True)
    base, blank = first.machine.disks
    assert base.path.read_bytes() == b"base", "the image's bytes are what a snapshot is made from"
    assert blank.path.read_bytes() == bytes(len(b"scratch"))
    assert first.plain.disks[1].path.read_bytes() == b"scratch"
    node.keep(first)
    first.end(well=True)

    then = node.prepare("then")
    assert (then.machine.start, then.boot) == ("restore", f"restored from snapshot {first.key[:12]}")
    assert then.machine.disks[1].path.read_bytes() == b"scratch"
    then.end(well=True)
    others = [
        node.prepare("other", dataclasses.replace(JOB, owner="bob")),
        node.prepare("image", dataclasses.replace(JOB, image=ImageManifest((Layer("e", 1, "base", "erofs"),)))),
    ]
    for other in others:
        assert (other.machine.start, other.key != first.key) == ("save", True)
        other.end(well=False)


def test_whether_there_is_a_snapshot_now_is_told_when_the_job_has_ended(node: Node) -> None:
    first = node.prepare("first")
    assert first.told(USED).snapshot == "", "it was not saved"
    node.keep(first)
    first.end(well=True)
    then = node.prepare("then")
    assert then.told(USED).snapshot == first.key
    then.instead(NotRestored("why not", damaged=True))
    assert then.told(USED).snapshot == ""
    then.end(well=True)
    full = node.prepare("full")
    full.trouble = "no snapshot is kept: no room"
    assert full.told(dataclasses.replace(USED, boot="cold")).boot == "cold, but no snapshot is kept: no room"
    full.end(well=False)


def test_nobody_waits_for_a_snapshot_that_another_makes(node: Node) -> None:
    first, second = node.prepare("first"), node.prepare("second")
    assert (second.machine.start, second.machine) == ("", second.plain)
    assert second.boot.startswith("cold: no snapshot") and "another pilot makes it" in second.boot
    second.end(well=True)
    first.end(well=False)  # it was cancelled before it was saved
    third = node.prepare("third")
    assert third.machine.start == "save"
    third.end(well=False)


def test_what_is_damaged_is_removed_and_what_cannot_be_read_is_left(node: Node) -> None:
    first = node.prepare("first")
    node.keep(first)
    first.end(well=True)
    record = node.snapshots.folder / first.key / "snapshot.json"

    found = node.snapshots.find(first.key)
    assert found is not None
    record.unlink()
    record.mkdir()  # as a file server that answers with an error
    unread = node.prepare("unread")
    assert (unread.machine.start, unread.boot.startswith("cold: read snapshot ")) == ("", True)
    assert record.exists(), "nothing is destroyed for want of an answer"
    record.rmdir()

    record.write_bytes(canonical(dataclasses.replace(found, size=MEMORY // 2)))
    smaller = node.prepare("smaller")
    assert (smaller.machine.start, "is removed: its record says" in smaller.boot) == ("save", True)
    assert not record.exists()
    smaller.end(well=False)


@pytest.mark.parametrize("damaged", [True, False])
def test_a_guest_that_was_not_taken_up_boots_as_if_there_were_no_snapshots(node: Node, damaged: bool) -> None:
    first = node.prepare("first")
    node.keep(first)
    first.end(well=True)
    begin = node.prepare("then")
    words = begin.instead(NotRestored("why not", damaged=damaged))
    assert begin.machine == begin.plain and begin.machine.start == ""
    assert words.startswith("cold: snapshot ") and words.endswith(": why not")
    assert ("removed" in words, node.snapshots.find(first.key) is None) == (damaged, damaged)
    begin.end(well=True)
