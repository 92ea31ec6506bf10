"""Real faults, provoked: each ends in a sentinel that says what happened and what to do, and leaves nothing behind."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gridhypervisor.agent import entries
from gridhypervisor.model import wire
from gridhypervisor.model.wire import Outcome, Phase, Reason, Resources
from tests.e2e import guestkit
from tests.e2e.guestkit import Site


@pytest.fixture(params=guestkit.HYPERVISORS)
def site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    yield from guestkit.sites(tmp_path_factory.mktemp("site"), request.param)


def test_a_killed_pilot_takes_its_guest_along_and_the_watchdog_says_so(site: Site) -> None:
    entry = site.prepare("sleep 1000")
    pilot = site.start(entry)
    site.wait_for_phase(entry, Phase.EXECUTE)
    assert site.hypervisors(entry)
    pilot.kill()
    record = site.sentinel(entry)
    assert site.hypervisors(entry) == []  # nothing of the guest may live when its end is told
    assert (record.outcome, record.reason) == (Outcome.FAILED, Reason.PILOT)
    assert record.by == "watchdog"
    assert record.streams[wire.CONSOLE] == (entry / wire.CONSOLE).stat().st_size
    assert record.usage.hypervisor > 0
    assert record.phases[-1].phase is Phase.EXECUTE
    assert record.phases[-1].end is not None
    site.is_clean(entry)


def test_a_pilot_stopped_beyond_its_walltime_is_ended_by_the_watchdog(site: Site) -> None:
    # Seconds: long enough for a slow machine to come to the program before it is to be stopped, after two thirds of it.
    resources = Resources(memory=256 << 20, scratch=64 << 20, walltime=45)
    entry = site.prepare("sleep 1000", resources=resources, stop_grace=2)
    pilot = site.start(entry)
    site.wait_for_phase(entry, Phase.EXECUTE)
    os.kill(pilot.pid, signal.SIGSTOP)
    record = site.sentinel(entry, 120)
    assert (record.outcome, record.reason, record.by) == (Outcome.STOPPED, Reason.WALLTIME, "watchdog")
    assert record.elapsed < 60  # the watchdog has a margin, and the machine may have others to run
    assert pilot.wait(60) == -signal.SIGKILL
    site.is_clean(entry)


@pytest.mark.parametrize("site", ["uml"], indirect=True)
def test_a_guest_that_needs_a_grant_lives_as_long_as_its_beats_are_answered(site: Site) -> None:
    grant = 16  # seconds: this process, or a pilot, may be kept waiting for most of that
    unanswered = site.prepare("sleep 1000", grant=4, beat=1)
    answered = [site.prepare("sleep 1000", grant=grant, beat=1) for _ in range(2)]
    alone, *pilots = (site.start(entry) for entry in (unanswered, *answered))

    def answer() -> list[wire.Status]:
        found = [status for entry in answered if (status := site.status(entry)) is not None]
        for entry, status in zip(answered, found, strict=True):
            entries.leave_grant(entry / wire.CONTROL, status.sequence)
        return found

    def wait_for_a_word(entry: Path) -> bool:
        status = site.status(entry)
        return status is not None and "word" in status.note

    guestkit.wait_for(lambda: all(map(wait_for_a_word, answered)), 120, "the pilots to wait for a word")
    assert not any(map(site.hypervisors, answered))
    first = answer()
    past = [status.elapsed + grant + 2 for status in first]
    guestkit.wait_for(
        lambda: all(status.elapsed > limit for status, limit in zip(answer(), past, strict=True)), 180,
        "guests that outlive their first grant",
    )  # fmt: skip
    for entry in answered:
        assert site.hypervisors(entry) and not (entry / wire.EXIT).exists()
    os.kill(pilots[0].pid, signal.SIGSTOP)  # the one can do nothing; the other lives, and nobody answers it
    last = answer()
    for entry, pilot, status in zip(answered, pilots, last, strict=True):
        record = site.sentinel(entry, 180)
        assert site.hypervisors(entry) == []  # whoever reads the sentinel may start another
        assert (record.outcome, record.reason, record.by) == (Outcome.FAILED, Reason.GRANT, "watchdog"), record
        assert record.elapsed < status.elapsed + grant + 30  # the machine may have others to run
        assert pilot.wait(60) == -signal.SIGKILL
        site.is_clean(entry)
    assert alone.wait(60) == 1
    record = site.sentinel(unanswered)
    assert (record.outcome, record.reason, record.by) == (Outcome.FAILED, Reason.GRANT, "pilot"), record
    assert Phase.BOOT not in {each.phase for each in record.phases}, "a guest began without a word"


def test_a_job_that_was_stopped_for_a_while_goes_on(site: Site) -> None:
    """What a batch system's suspend does: a pause is not the guest's silence. What does not survive it, says so."""
    busy = "(while :; do :; done) & for i in 1 2 3 4 5 6 7 8; do sleep 1; done; echo done"
    entry = site.prepare(busy, beat=1, debug={"silent_after": "10"})
    pilot = site.start(entry)
    site.wait_for_phase(entry, Phase.EXECUTE)
    processes = [pilot.pid, *site.hypervisors(entry)]
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGSTOP)
    stopped_at = os.times().elapsed
    guestkit.wait_for(lambda: os.times().elapsed > stopped_at + 13, 60, "the pause to outlast the silence limit")
    for process in reversed(processes):  # the guest first, for whose silence the pilot listens
        with contextlib.suppress(ProcessLookupError):  # of a family, some come and go
            os.kill(process, signal.SIGCONT)
    code = pilot.wait(120)
    record = site.sentinel(entry)
    if wire.CAPABILITIES[wire.HypervisorKind(site.hypervisor)].suspension:
        assert (code, record.outcome) == (0, Outcome.COMPLETED), record
    else:  # it is lost, and said to be: another try may have more luck
        assert (code, record.outcome, record.reason) == (1, Outcome.FAILED, Reason.HYPERVISOR), record
        assert "its processes were stopped" in record.message
        site.is_clean(entry)


def test_a_killed_hypervisor(site: Site) -> None:
    entry = site.prepare("echo so far; sleep 1000")
    pilot = site.start(entry)
    site.wait_for_stdout(entry, "so far\n")
    os.kill(site.hypervisors(entry)[0], signal.SIGKILL)
    record = site.sentinel(entry)
    assert site.hypervisors(entry) == []
    assert pilot.wait(60) == 1
    assert (record.outcome, record.reason) == (Outcome.FAILED, Reason.HYPERVISOR)
    assert "signal 9" in record.message
    assert (entry / wire.STDOUT).read_text() == "so far\n"
    site.is_clean(entry)


def test_a_killed_watchdog_takes_the_hypervisor_along_and_the_pilot_says_so(site: Site) -> None:
    entry = site.prepare("sleep 1000")
    pilot = site.start(entry)
    site.wait_for_phase(entry, Phase.EXECUTE)
    above = [site.hypervisors(entry)[0]]
    while above[-1] != pilot.pid:
        with open(f"/proc/{above[-1]}/stat") as file:
            above.append(int(file.read().rpartition(")")[2].split()[1]))
    os.kill(above[-2], signal.SIGKILL)
    assert pilot.wait(60) == 1
    record = site.sentinel(entry)
    assert (record.outcome, record.reason) == (Outcome.FAILED, Reason.HYPERVISOR)
    assert "watchdog was killed" in record.message
    site.is_clean(entry)


def test_a_kernel_panic(site: Site) -> None:
    entry = site.prepare("echo c > /proc/sysrq-trigger; sleep 1000")
    record = site.run(entry)
    assert (record.outcome, record.reason) == (Outcome.FAILED, Reason.GUEST_PANIC), record
    assert "sysrq triggered crash" in record.message
    assert "sysrq triggered crash" in (entry / wire.CONSOLE).read_text()
    site.is_clean(entry)


def test_a_guest_that_hangs(site: Site) -> None:
    """Root in the guest freezes the agent: the kernel lives, the program runs, and nobody answers any more."""
    entry = site.prepare(
        "mkdir /sys/fs/cgroup/ice; echo 1 > /sys/fs/cgroup/ice/cgroup.procs; echo 1 > /sys/fs/cgroup/ice/cgroup.freeze;"
        " sleep 1000",
        beat=1,
        debug={"silent_after": "4"},
    )
    record = site.run(entry)
    assert (record.outcome, record.reason) == (Outcome.FAILED, Reason.GUEST_SILENT), record
    assert "has not answered" in record.message
    site.is_clean(entry)


def test_a_guest_that_the_program_powers_off(site: Site) -> None:
    record = site.run(entry := site.prepare("poweroff -f"))
    assert (record.outcome, record.reason) == (Outcome.FAILED, Reason.GUEST_SILENT), record
    assert "powered off by itself" in record.message
    site.is_clean(entry)


def test_a_flipped_bit_in_a_layer_is_found_and_named(site: Site) -> None:
    base = next(layer for layer in site.image.layers if layer.role == "base")
    path = site.workdir / "cache" / base.digest
    data = bytearray(path.read_bytes())
    data[700_000] ^= 1
    path.write_bytes(data)
    record = site.run(entry := site.prepare("true"))
    assert (record.outcome, record.reason) == (Outcome.FAILED, Reason.IMAGE)
    assert base.digest[:12] in record.message
    assert "chunk 0" in record.message
    assert not list((site.scratch / f"ghv-{os.getuid()}/cache").glob(f"*{base.digest}*"))
    site.is_clean(entry)


def test_a_truncated_layer_and_an_absent_one(site: Site) -> None:
    base = next(layer for layer in site.image.layers if layer.role == "base")
    path = site.workdir / "cache" / base.digest
    os.truncate(path, base.size - 1)
    assert f"{base.size - 1} bytes instead of {base.size}" in (record := site.run(site.prepare("true"))).message
    assert record.reason is Reason.IMAGE
    path.unlink()
    record = site.run(site.prepare("true"))
    assert (record.reason, "cleans the account's workdir" in record.hint) == (Reason.IMAGE, True)


def test_an_image_that_cannot_boot_says_so_at_once(site: Site) -> None:
    garbage = guestkit.add_layer(site.workdir / "cache", os.urandom(1 << 20), "base", "squashfs")
    layers = tuple(layer for layer in site.image.layers if layer.role != "base")
    image = dataclasses.replace(site.image, layers=(*layers, garbage))
    record = site.run(entry := site.prepare("true", image=image))
    assert (record.outcome, record.reason) == (Outcome.FAILED, Reason.BOOT), record
    assert "no squashfs file system" in record.message
    assert record.elapsed < 60
    site.is_clean(entry)


def test_a_kernel_that_says_nothing_runs_into_the_boot_timeout(site: Site) -> None:
    silent = guestkit.add_layer(site.workdir / "cache", b"no archive at all", "initrd", "raw")
    layers = tuple(layer for layer in site.image.layers if layer.role != "initrd")
    image = dataclasses.replace(site.image, layers=(*layers, silent), cmdline="rdinit=/nothing panic=0")
    record = site.run(entry := site.prepare("true", image=image, boot_timeout=6))
    assert (record.outcome, record.reason) in [
        (Outcome.FAILED, Reason.BOOT),
        (Outcome.FAILED, Reason.GUEST_PANIC),
    ], record
    site.is_clean(entry)


def test_a_missing_and_a_damaged_input(site: Site) -> None:
    entry = site.prepare("true", inputs={"data": b"12345"})
    (entry / "in/data").write_bytes(b"12346")
    record = site.run(entry)
    assert (record.outcome, record.reason) == (Outcome.FAILED, Reason.INPUT)
    assert "data" in record.message
    entry = site.prepare("true", inputs={"data": b"12345"})
    (entry / "in/data").unlink()
    record = site.run(entry)
    assert (record.outcome, record.reason) == (Outcome.FAILED, Reason.INPUT)
    site.is_clean(entry)


def test_a_manifest_that_cannot_be_read_or_is_of_another_protocol(site: Site) -> None:
    entry = site.prepare("true")
    (entry / wire.MANIFEST).write_text("{")
    assert site.run(entry).reason is Reason.MANIFEST
    entry = site.prepare("true", protocol=99)
    record = site.run(entry)
    assert (record.reason, "protocol 99" in record.message) == (Reason.MANIFEST, True)


def test_a_full_node_is_said(site: Site) -> None:
    """A tmpfs too small for the layers stands for a full disk."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m,mode=700", "tmpfs", str(site.scratch)], check=True)
    try:
        record = site.run(entry := site.prepare("true"))
        assert (record.outcome, record.reason) == (Outcome.FAILED, Reason.NODE_DISK), record
        assert "free space" in record.hint
        site.is_clean(entry)
    finally:
        subprocess.run(["umount", "--lazy", str(site.scratch)], check=True)


def test_a_node_that_fills_up_while_the_guest_writes(site: Site) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=100m,mode=700", "tmpfs", str(site.scratch)], check=True)
    try:
        resources = Resources(memory=256 << 20, scratch=512 << 20, walltime=1800)
        record = site.run(entry := site.prepare("dd if=/dev/urandom of=big bs=1M count=300; sync; sleep 1000",
                                                resources=resources))  # fmt: skip
        assert (record.outcome, record.reason) == (Outcome.FAILED, Reason.NODE_DISK), record
        site.is_clean(entry)
    finally:
        subprocess.run(["umount", "--lazy", str(site.scratch)], check=True)


def test_what_a_dead_node_left_is_swept_by_the_next_pilot(site: Site) -> None:
    left = site.scratch / f"ghv-{os.getuid()}" / "run" / "test-dead"
    left.mkdir(parents=True)
    for folder in (left.parent.parent, left.parent):
        folder.chmod(0o700)
    (left / "scratch").write_bytes(b"x")
    (left / "lock").touch()
    assert site.run(site.prepare("true")).outcome is Outcome.COMPLETED
    assert not left.exists()


@pytest.mark.parametrize("site", ["uml"], indirect=True)
def test_the_node_says_which_hypervisor_is_best_and_remembers_why(site: Site) -> None:
    def proof(kind: str) -> dict[str, Any]:
        plain = json.loads((site.scratch / f"ghv-{os.getuid()}/{kind}-proof.json").read_bytes())
        found: dict[str, Any] = plain["finding"]
        return found

    record = site.run(entry := site.prepare("true", hypervisor="auto"))
    assert (record.outcome, record.exit_code) == (Outcome.COMPLETED, 0), record
    assert record.hypervisor is not None
    site.is_clean(entry)
    if proof("kvm")["works"]:
        assert record.hypervisor.kind is wire.HypervisorKind.KVM
        return
    assert record.hypervisor.kind in (wire.HypervisorKind.UML, wire.HypervisorKind.TCG)
    assert proof("kvm")["why"] in record.hypervisor.why
    assert "a standard job would take" in record.hypervisor.why
    assert len(proof("uml")["rates"]["seconds"]) == 4
    again = site.run(site.prepare("true", hypervisor="auto"))
    assert again.hypervisor == record.hypervisor
    record = site.run(entry := site.prepare("true", hypervisor="kvm"))
    assert (record.outcome, record.reason) == (Outcome.FAILED, Reason.HYPERVISOR)
    assert proof("kvm")["why"] in record.message
    site.is_clean(entry)


@pytest.mark.parametrize("site", ["uml"], indirect=True)
def test_what_a_hypervisor_cannot_do_is_refused_or_done_by_another(site: Site) -> None:
    resources = Resources(cpus=2, memory=256 << 20, scratch=64 << 20, walltime=120)
    record = site.run(site.prepare("true", resources=resources))
    assert (record.outcome, record.reason) == (Outcome.FAILED, Reason.HYPERVISOR), record
    assert "uml gives a guest 1 CPU, and the job asks for 2" in record.message
    record = site.run(entry := site.prepare("nproc", resources=resources, hypervisor="auto"))
    assert (record.outcome, record.exit_code) == (Outcome.COMPLETED, 0), record
    assert (entry / wire.STDOUT).read_text() == "2\n"


@pytest.mark.parametrize("site", ["uml"], indirect=True)
def test_root_in_the_guest_finds_nothing_of_the_node(site: Site) -> None:
    """It may become the process that runs it: that one sees its disks, and has no network and no rights."""
    entry = site.prepare("mkdir /n; mount -t hostfs none /n || mount -t hostfs -o /.. none /n || echo none; sleep 1000")
    pilot = site.start(entry)
    stdout = entry / wire.STDOUT
    guestkit.wait_for(lambda: stdout.exists() and stdout.read_text() == "none\n", 60, "the program's word")
    for process in site.hypervisors(entry):
        within = Path("/proc", str(process))
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # one of the family that has ended
            own = {"dev", "disks", "initrd", "lib", "lib64", "linux", "tmp"}
            assert set(os.listdir(within / "root")) - {"xstate.so"} == own  # that one where there is a tcc
            assert sorted(os.listdir(within / "root/disks")) == ["base", "out", "scratch"]
            assert os.listdir(within / "root/dev") == ["null"]
            said = dict(line.split(":\t") for line in (within / "status").read_text().splitlines() if ":\t" in line)
            assert (said["CapEff"], said["CapPrm"], said["NoNewPrivs"]) == ("0" * 16, "0" * 16, "1")
            assert "".join(
                line.split(":")[0] for line in (within / "net/dev").read_text().splitlines()[2:]
            ).split() == ["lo"]
    pilot.terminate()
    assert pilot.wait(60) == 1
    site.is_clean(entry)
