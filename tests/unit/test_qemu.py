"""QEMU's words, its monitor, and the proof of KVM."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest

from gridhypervisor.agent import kvmproof
from gridhypervisor.agent.hypervisor import Descriptors, Disk, Machine
from gridhypervisor.agent.qemu import Qmp, arguments
from gridhypervisor.model.wire import Acceleration

DESCRIPTORS = Descriptors(10, 11, (12, 13, 14))


def machine(network: str = "none", *disks: Disk) -> Machine:
    return Machine("a,b", 2, 512 << 20, Path("/k"), Path("/i"), "ghv.base=erofs", disks, network)


def after(words: list[str], option: str) -> list[str]:
    return [value for word, value in itertools.pairwise(words) if word == option]


def test_nothing_listens_and_nothing_is_there_that_was_not_asked_for() -> None:
    words = arguments(machine(), Acceleration.TCG, DESCRIPTORS)
    assert {"-nodefaults", "-no-user-config", "-no-reboot"} <= set(words)
    assert after(words, "-name") == ["a,,b"]
    assert after(words, "-netdev") == []
    assert all(chardev.startswith("socket,id=") and ",fd=" in chardev for chardev in after(words, "-chardev"))
    assert not any("tcp" in word or "server" in word for word in words)


@pytest.mark.parametrize(("network", "restrict"), [("restricted", "on"), ("outbound", "off")])
def test_a_network_is_restricted_unless_outbound_is_asked(network: str, restrict: str) -> None:
    words = arguments(machine(network), Acceleration.TCG, DESCRIPTORS)
    assert after(words, "-netdev") == [f"user,id=net,restrict={restrict}"]


def test_kvm_only_where_it_was_chosen() -> None:
    assert "kvm" in after(arguments(machine(), Acceleration.KVM, DESCRIPTORS), "-accel")
    assert not any("kvm" in word for word in arguments(machine(), Acceleration.TCG, DESCRIPTORS))


def test_disks_keep_their_order_their_serials_and_whether_they_may_be_written() -> None:
    disks = (Disk("base", Path("/c/a,b"), readonly=True), Disk("scratch", Path("/r/s")))
    words = arguments(machine("none", *disks), Acceleration.TCG, DESCRIPTORS)
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


def test_the_micro_guest_runs_on_a_processor_that_works(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under the emulator, with the system's QEMU: the same bytes are the proof of KVM."""
    monkeypatch.setattr(kvmproof, "LIMIT", 120.0)  # the emulator's start may take a busy machine longer than KVM's
    qemu = ["/usr/bin/qemu-system-x86_64"]
    assert kvmproof.run_micro_guest(qemu, {}, ["-accel", "tcg"]) == ""
    assert "did not run" in kvmproof.run_micro_guest(qemu, {}, ["-accel", "no-such-accelerator"])


def test_a_qemu_that_does_not_start_is_said_and_not_remembered(tmp_path: Path) -> None:
    proof = kvmproof.remembered(["/no/such/qemu"], {}, tmp_path)
    assert (proof.version, proof.kvm) == ("", False)
    assert "/no/such/qemu" in proof.why
    assert list(tmp_path.iterdir()) == []


def test_a_proof_is_remembered_for_this_boot_and_this_qemu(tmp_path: Path) -> None:
    qemu = tmp_path / "qemu"
    qemu.write_text(f"#!/bin/sh\necho x >> {tmp_path}/calls\n[ $1 = --version ] && echo QEMU emulator version 9.9\n")
    qemu.chmod(0o755)
    folder = tmp_path / "node"
    folder.mkdir()
    first = kvmproof.remembered([str(qemu)], {"PATH": "/bin"}, folder)
    calls = (tmp_path / "calls").read_text()
    assert (first.version, first.kvm) == ("9.9", False)
    assert kvmproof.remembered([str(qemu)], {"PATH": "/bin"}, folder) == first
    assert (tmp_path / "calls").read_text() == calls
    other = tmp_path / "other"
    other.symlink_to(qemu)
    kvmproof.remembered([str(other)], {"PATH": "/bin"}, folder)
    assert (tmp_path / "calls").read_text() != calls
