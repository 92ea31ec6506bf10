"""QEMU's words, its monitor, and the proof of KVM."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from gridhypervisor.agent import kvmproof
from gridhypervisor.agent.hypervisor import Ask, Card, Command, Descriptors, Disk, Machine, of_kind
from gridhypervisor.agent.qemu import Qemu, Qmp, arguments
from gridhypervisor.agent.trial import Trial
from gridhypervisor.agent.watchdog import Watchdog
from gridhypervisor.agent.world import World
from gridhypervisor.model.wire import CAPABILITIES, HypervisorKind

DESCRIPTORS = Descriptors(10, 11, (12, 13, 14))


def machine(network: str = "none", *disks: Disk) -> Machine:
    return Machine("a,b", 2, 512 << 20, Path("/k"), Path("/i"), "ghv.base=erofs", disks, network)


def after(words: list[str], option: str) -> list[str]:
    return [value for word, value in itertools.pairwise(words) if word == option]


def test_nothing_listens_and_nothing_is_there_that_was_not_asked_for() -> None:
    words = arguments(machine(), HypervisorKind.TCG, DESCRIPTORS)
    assert {"-nodefaults", "-no-user-config", "-no-reboot"} <= set(words)
    assert after(words, "-name") == ["a,,b"]
    assert after(words, "-netdev") == []
    assert all(chardev.startswith("socket,id=") and ",fd=" in chardev for chardev in after(words, "-chardev"))
    assert not any("tcp" in word or "server" in word for word in words)


@pytest.mark.parametrize(("network", "restrict"), [("restricted", "on"), ("outbound", "off")])
def test_a_network_is_restricted_unless_outbound_is_asked(network: str, restrict: str) -> None:
    words = arguments(machine(network), HypervisorKind.TCG, DESCRIPTORS)
    assert after(words, "-netdev") == [f"user,id=net,restrict={restrict}"]


def test_a_card_is_a_socket_that_it_was_given_and_its_address_makes_no_other_machine() -> None:
    one, other = (replace(machine("outbound"), cards=(Card(f"02:67:00:07:00:0{number}", 9000),)) for number in (1, 2))
    words = arguments(one, HypervisorKind.TCG, Descriptors())
    assert after(words, "-netdev") == ["user,id=net,restrict=off", "dgram,id=card0,local.type=fd,local.str=17"]
    [card] = [word for word in after(words, "-device") if "netdev=card0" in word]
    assert card == "virtio-net-pci,netdev=card0,host_mtu=9000,mac=02:67:00:07:00:01,romfile="
    qemu = Qemu(World(None), HypervisorKind.TCG)
    assert qemu.layout(one) == qemu.layout(other) != qemu.layout(machine("outbound"))


def test_kvm_only_where_it_was_chosen() -> None:
    assert "kvm" in after(arguments(machine(), HypervisorKind.KVM, DESCRIPTORS), "-accel")
    assert not any("kvm" in word for word in arguments(machine(), HypervisorKind.TCG, DESCRIPTORS))


def test_disks_keep_their_order_their_serials_and_whether_they_may_be_written() -> None:
    disks = (Disk("base", Path("/c/a,b"), readonly=True), Disk("scratch", Path("/r/s")))
    words = arguments(machine("none", *disks), HypervisorKind.TCG, DESCRIPTORS)
    nodes = [json.loads(word) for word in after(words, "-blockdev")]
    assert [(n["node-name"], n["file"]["filename"], n["read-only"]) for n in nodes] == [
        ("base", "/c/a,b", True),
        ("scratch", "/r/s", False),
    ]
    devices = [word for word in after(words, "-device") if word.startswith("virtio-blk")]
    assert [device.split("serial=")[1] for device in devices] == ["base", "scratch"]


def test_the_monitor_tells_a_restart_from_a_power_off_and_survives_what_it_does_not_know() -> None:
    monitor = Qmp()
    assert json.loads(monitor.greet()) == {"execute": "qmp_capabilities"}
    assert monitor.feed(b'{"QMP": {}}\r\n{"return": {}}\r\n[1]\nnonsense\n{"event": "SHUT') == []
    assert monitor.feed(b'DOWN", "data": {"guest": true, "reason": "guest-reset"}}\n') == ["reset"]
    assert monitor.feed(b'{"event": "SHUTDOWN", "data": {"guest": true, "reason": "guest-shutdown"}}\n') == ["shutdown"]
    assert monitor.feed(b'{"event": "BLOCK_IO_ERROR", "data": {"nospace": true}}\n') == ["nospace"]
    assert monitor.feed(b'{"event": "BLOCK_IO_ERROR", "data": {"nospace": false}}\n') == []


@pytest.mark.parametrize("kind", HypervisorKind)
def test_who_can_save_guests_says_so(kind: HypervisorKind) -> None:
    assert (of_kind(kind, World(None)).saver() is not None) == CAPABILITIES[kind].snapshots


def test_a_machine_that_is_saved_taken_up_or_neither_is_alike_to_its_guest() -> None:
    qemu = Qemu(World(None), HypervisorKind.TCG)
    one = machine("none", Disk("base", Path("/a/base"), readonly=True), Disk("scratch", Path("/a/scratch")))
    other = machine("none", Disk("base", Path("/b/x"), readonly=True), Disk("scratch", Path("/b/y")))
    layouts = {qemu.layout(replace(each, start=start)) for each in (one, other) for start in ("", "save", "restore")}
    assert len(layouts) == 1
    different = (replace(one, cpus=1), replace(one, memory=1 << 30), replace(one, cmdline="x"), machine("restricted"))
    assert len({qemu.layout(each) for each in (one, *different)}) == 5
    assert qemu.layout(one) != Qemu(World(None), HypervisorKind.KVM).layout(one)


def test_memory_is_shared_to_be_saved_and_private_to_be_taken_up() -> None:
    for start, shared in (("save", "on"), ("restore", "off")):
        words = arguments(replace(machine(), start=start), HypervisorKind.TCG, DESCRIPTORS)
        [memory] = after(words, "-object")
        assert memory == f"memory-backend-file,id=pc.ram,size=512M,mem-path=/proc/self/fd/15,share={shared}"
        assert after(words, "-machine")[0].endswith(",memory-backend=pc.ram")
        assert after(words, "-incoming") == (["defer"] if start == "restore" else [])
    assert "-object" not in arguments(machine(), HypervisorKind.TCG, DESCRIPTORS)


def test_the_monitor_says_what_became_of_a_question_and_of_a_guest_on_its_way() -> None:
    monitor = Qmp()
    asked = json.loads(monitor.ask(Ask("stop")))
    assert (asked["execute"], monitor.answer()) == ("stop", None)
    monitor.feed(b'{"return": {}}\n{"return": {}, "id": 77}\n')
    assert monitor.answer() is None, "those were answers to others"
    monitor.feed(json.dumps({"return": {}, "id": asked["id"]}).encode() + b"\n")
    assert monitor.answer() == ""

    asked = json.loads(monitor.ask(Ask("getfd")))
    monitor.feed(json.dumps({"error": {"class": "x", "desc": "no file"}, "id": asked["id"]}).encode() + b"\n")
    assert monitor.answer() == "no file"

    for status, answer in (("completed", ""), ("failed", "the guest's state: failed")):
        asked = json.loads(monitor.ask(Ask("migrate", migrated=True)))
        monitor.feed(json.dumps({"return": {}, "id": asked["id"]}).encode() + b"\n")
        monitor.feed(b'{"event": "MIGRATION", "data": {"status": "active"}}\n')
        assert monitor.answer() is None, "it is on its way"
        monitor.feed(json.dumps({"event": "MIGRATION", "data": {"status": status}}).encode() + b"\n")
        assert monitor.answer() == answer


@pytest.fixture
def trial(tmp_path: Path) -> Iterator[Trial]:
    watchdog = Watchdog()
    yield Trial(watchdog, tmp_path)
    watchdog.dismiss()


def test_the_micro_guest_runs_on_a_processor_that_works(trial: Trial, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under the emulator, with the system's QEMU: the same bytes are the proof of KVM."""
    monkeypatch.setattr(kvmproof, "LIMIT", 120.0)  # the emulator's start may take a busy machine longer than KVM's
    qemu = ["/usr/bin/qemu-system-x86_64"]
    assert kvmproof.run_micro_guest(qemu, {}, ["-accel", "tcg"], trial) == ""
    assert "did not run" in kvmproof.run_micro_guest(qemu, {}, ["-accel", "no-such-accelerator"], trial)


def test_a_qemu_that_does_not_start_is_said(trial: Trial, tmp_path: Path) -> None:
    for name in ("ld.so", "bin/qemu-system-x86_64"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("#!/bin/sh\necho no such library >&2\nexit 3\n")
        (tmp_path / name).chmod(0o755)
    found = Qemu(World(tmp_path), HypervisorKind.TCG).prove(trial)
    assert (found.program, found.works) == ("", False)
    assert "ended with status 3: no such library" in found.why


def test_a_trial_is_ended_at_its_limit_and_another_may_follow(trial: Trial) -> None:
    ended = trial.run(Command(("/bin/sleep", "1000"), {}), 0.2)
    assert (ended.status, ended.well) == (None, False)
    ended = trial.run(Command(("/bin/bash", "-c", "echo said; echo heard >&11"), {}), 60)
    assert (ended.well, ended.said) == (True, "said\n")
    heard = b""

    def hear(data: bytes) -> bool:
        nonlocal heard
        heard += data
        return heard == b"heard\n"

    assert (
        trial.run(Command(("/bin/bash", "-c", "echo heard >&11; exec sleep 1000"), {"PATH": "/bin"}), 60, hear).status
        is None
    )
    assert heard == b"heard\n"
