"""User-Mode Linux' words, its walls, what it says of itself, and the archive of its modules."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from gridhypervisor.agent import cpio
from gridhypervisor.agent.hypervisor import CHANNELS, Card, Descriptors, Disk, Machine
from gridhypervisor.agent.uml import Uml, Voice, arguments, walls
from gridhypervisor.agent.world import UmlParts, World
from tests.making import system_world

PARTS = UmlParts(
    Path("/w/uml/linux"), (), Path("/w/ld.so"), Path("/w/so/libc.so.6"), Path("/w/uml/xstate.so")
)  # fmt: skip


def machine(*disks: Disk) -> Machine:
    return Machine("ghv-1", 1, 512 << 20, Path("/k"), Path("/r u,n/initrd"), "ghv.base=erofs ghv.x=1", disks)


DISKS = (Disk("base", Path("/c, d/a:b"), readonly=True), Disk("scratch", Path("/r u,n/s")))


def test_every_line_of_the_guest_is_one_that_it_was_given() -> None:
    words = arguments(machine(), Descriptors())
    given = dict(word.split("=", 1) for word in words if "=" in word)
    assert (given["con"], given["ssl"]) == ("null", "null")
    assert given["con0"] == "null,fd:11"
    assert [given[f"ssl{number}"] for number in range(len(CHANNELS))] == ["fd:12", "fd:13", "fd:14"]
    assert given["ghv.lines"].split(",") == ["ttyS0", "ttyS1", "ttyS2"]
    assert words[-2:] == ["ghv.base=erofs", "ghv.x=1"]
    assert not any(word.startswith(("eth", "vec")) for word in words)


def test_a_card_is_a_socket_that_it_was_given() -> None:
    carded = replace(machine(), cards=(Card("02:67:00:07:00:01", 9000), Card("02:67:00:08:00:01", 1500)))
    words = [word for word in arguments(carded, Descriptors()) if word.startswith("vec")]
    assert words == [
        "vec0:transport=fd,fd=17,mac=02:67:00:07:00:01,mtu=9000,depth=64",
        "vec1:transport=fd,fd=18,mac=02:67:00:08:00:01,mtu=1500,depth=64",
    ]


def test_disks_keep_their_order_their_serials_and_whether_they_may_be_written() -> None:
    """It splits words at spaces and disks at commas and colons, so no path of the node is among them."""
    words = [word for word in arguments(machine(*DISKS), Descriptors()) if word.startswith("ubd")]
    assert words == ["ubd0rc=/disks/base,,base", "ubd1c=/disks/scratch,,scratch"]


def test_behind_the_walls_are_its_own_parts_and_the_guests_disks() -> None:
    behind = walls(machine(*DISKS), PARTS, Path("/r u,n/root"))
    assert {item.where: (item.path, item.writable) for item in behind.shown} == {
        "/linux": ("/w/uml/linux", False),
        "/lib64/ld-linux-x86-64.so.2": ("/w/ld.so", False),
        "/lib/x86_64-linux-gnu/libc.so.6": ("/w/so/libc.so.6", False),
        "/dev/null": ("/dev/null", False),
        "/xstate.so": ("/w/uml/xstate.so", False),
        "/initrd": ("/r u,n/initrd", False),
        "/disks/base": ("/c, d/a:b", False),
        "/disks/scratch": ("/r u,n/s", True),
    }
    assert behind.size > 512 << 20


def test_it_loads_what_completes_its_guests_registers_where_there_is_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("uml", "run"):
        (tmp_path / folder).mkdir()
    (tmp_path / "uml/linux").touch()
    asked = replace(machine(), initrd=tmp_path / "run/initrd")
    assert Uml(World(tmp_path)).command(asked, Descriptors()).environment["LD_PRELOAD"] == "/xstate.so"
    monkeypatch.delenv("GHV_XSTATE", raising=False)
    command = Uml(World(None)).command(asked, Descriptors())
    assert "LD_PRELOAD" not in command.environment
    assert command.walls is not None and "/xstate.so" not in {item.where for item in command.walls.shown}


def test_it_is_heard_on_the_console_whatever_the_pieces_in_which_it_comes() -> None:
    voice = Voice()
    text = (
        b"hello\nreboot: System halted\nreboot: Restarting system\n"
        b"critical space allocation error, dev ubdb, sector 438734 op 0x1:(WRITE)\n"
        b"userspace - child stopped with signal 19\n"
    )
    heard = [event for at in range(len(text)) for event in voice.feed(text[at : at + 1])]
    assert heard == ["shutdown", "reset", "nospace", "stopped"]
    assert voice.feed(b"x" * 100_000) == []
    assert voice.feed(b"\nreboot: Power down\n") == ["shutdown"]


def prove(folder: Path, *before: str, code: str = "") -> str:
    """What a process says that proves the system's User-Mode Linux on this node, in `folder`, after some `code`."""
    code += (
        "\nimport pathlib, sys; from gridhypervisor.agent import trial, uml, watchdog, world; w = watchdog.Watchdog();"
        " print(uml.Uml(world.World(None)).prove(trial.Trial(w, pathlib.Path(sys.argv[1])))); w.dismiss()"
    )
    words = [*before, sys.executable, "-c", code, str(folder)]
    return subprocess.run(words, env=system_world(), capture_output=True, text=True, check=True).stdout


def test_a_node_is_proven_by_a_guest_that_runs_a_program(tmp_path: Path) -> None:
    said = prove(tmp_path)
    assert "works=True" in said
    assert "uml: a guest runs, behind walls" in said


def test_a_node_where_its_kernel_starts_and_no_program_runs_is_found_unfit(tmp_path: Path) -> None:
    """As it was on processors with AMX. Here by an init that ends at once."""
    cannot = 'from gridhypervisor.agent import umlproof; umlproof._CODE = bytes.fromhex("6a3c580f05")'
    said = prove(tmp_path, code=cannot)
    assert "works=False" in said
    assert "uml: the micro-guest did not run: Kernel panic - not syncing: Attempted to kill init!" in said


def test_a_node_that_lets_its_users_make_no_namespaces_is_told_as_that(tmp_path: Path) -> None:
    """As an administrator may decide: here for the root of a namespace of its own."""
    forbid = 'echo 0 >/proc/sys/user/max_user_namespaces; exec "$@"'
    forbidden = prove(tmp_path, "unshare", "--user", "--map-root-user", "sh", "-c", forbid, "sh")
    assert "works=False" in forbidden
    assert "make namespaces (are users of this node allowed to?)" in forbidden


def test_an_archive_is_what_the_kernel_reads(tmp_path: Path) -> None:
    files = {"lib/modules/uml/a.ko": b"\x7fELF" * 1000, "ghv/modules": b"/lib/modules/uml/a.ko\n"}
    data = cpio.archive(files)
    assert len(data) % 512 == 0
    subprocess.run(["cpio", "-id", "--quiet"], input=data, cwd=tmp_path, check=True)
    assert {
        str(path.relative_to(tmp_path)): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()
    } == files
