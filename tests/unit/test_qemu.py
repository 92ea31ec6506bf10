"""QEMU's words, its monitor, and the proof of KVM."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from gridhypervisor.agent import kvmproof
from gridhypervisor.agent.hypervisor import Command, Descriptors, Disk, Machine
from gridhypervisor.agent.qemu import Qemu, Qmp, arguments
from gridhypervisor.agent.trial import Trial
from gridhypervisor.agent.watchdog import Watchdog
from gridhypervisor.agent.world import World
from gridhypervisor.model.wire import HypervisorKind

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
