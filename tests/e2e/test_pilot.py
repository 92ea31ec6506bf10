"""One pilot, one real guest: what a user relies on when nothing goes wrong, and when the program does."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from gridhypervisor.agent import spool
from gridhypervisor.model import wire
from gridhypervisor.model.wire import Layer, Outcome, OwnerRecord, Phase, Reason, Resources
from tests.e2e import guestkit
from tests.e2e.guestkit import Site


@pytest.fixture(scope="module", params=guestkit.HYPERVISORS)
def site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    yield from guestkit.sites(tmp_path_factory.mktemp("site"), request.param)


only_qemu = pytest.mark.parametrize("site", ["tcg"], indirect=True)


def test_a_program_gets_its_inputs_and_its_outputs_come_back(site: Site) -> None:
    data = os.urandom(3 << 20)
    entry = site.prepare(
        'cat "sub dir/data" | sha256sum; pwd; echo "$WORD"; echo "to err" >&2; mkdir -p products/deep;'
        ' cp "sub dir/data" products/deep/copy; ln -s deep/copy products/link; printf x > "products/a b";'
        " readlink /proc/self/fd/0",
        inputs={"sub dir/data": data, "empty": b""},
        outputs=("products/*", "empty"),
        environment={"WORD": 'it\'s $HOME `x` "q"\nsecond line'},
    )
    record = site.run(entry)
    digest = hashlib.sha256(data).hexdigest()
    assert (record.outcome, record.reason, record.exit_code) == (Outcome.COMPLETED, Reason.EXITED, 0), record
    expected = f'{digest}  -\n/scratch/job\nit\'s $HOME `x` "q"\nsecond line\n/dev/null\n'
    assert (entry / wire.STDOUT).read_text() == expected
    assert (entry / wire.STDERR).read_text() == "to err\n"
    assert (entry / "out/products/deep/copy").read_bytes() == data
    assert os.readlink(entry / "out/products/link") == "deep/copy"
    found = {file.path: file for file in record.outputs}
    assert sorted(found) == ["empty", "products/a b", "products/deep/copy", "products/link"]
    assert found["products/link"].link == "deep/copy"
    assert record.streams == {name: (entry / name).stat().st_size for name in (wire.STDOUT, wire.STDERR, wire.CONSOLE)}
    assert record.by == "pilot"
    assert (found["products/deep/copy"].sha256, found["products/deep/copy"].size) == (digest, len(data))
    assert [time.phase for time in record.phases] == list(wire.WRAPPER)
    for before, after in zip(record.phases, record.phases[1:], strict=False):
        assert before.end == after.start
    assert record.phases[0].start == 0
    assert record.phases[-1].end == pytest.approx(record.elapsed, abs=5)  # two looks at one clock
    assert record.usage.hypervisor > 0.5
    assert record.usage.program is not None
    status = site.status(entry)
    assert status is not None
    assert status.ready_at is not None
    site.is_clean(entry)


def test_streams_are_byte_exact_and_the_exit_code_is_the_programs(site: Site) -> None:
    data = os.urandom(1 << 20)
    entry = site.prepare("cat data; head -c 100000 data >&2; exit 41", inputs={"data": data})
    record = site.run(entry)
    assert (record.outcome, record.exit_code) == (Outcome.COMPLETED, 41)
    assert (entry / wire.STDOUT).read_bytes() == data
    assert (entry / wire.STDERR).read_bytes() == data[:100000]


def test_a_signal_a_missing_program_and_leftovers_in_the_background_end_in_a_code(site: Site) -> None:
    killed = site.prepare("(sleep 1000 &) ; echo before; kill -9 $$")
    record = site.run(killed)
    assert (record.outcome, record.exit_code) == (Outcome.COMPLETED, 128 + 9)
    assert (killed / wire.STDOUT).read_text() == "before\n"
    absent = site.prepare(("no-such-program", "x"))
    record = site.run(absent)
    assert (record.outcome, record.exit_code) == (Outcome.COMPLETED, 127)
    assert "no-such-program" in (absent / wire.STDERR).read_text()


def test_the_program_runs_as_the_images_user_with_the_images_path_and_layers(site: Site, tmp_path: Path) -> None:
    (tmp_path / "app/bin").mkdir(parents=True)
    tool = tmp_path / "app/bin/tool"
    tool.write_text("#!/bin/sh\necho tool: $0 $1\nid -un\n[ -w . ] && echo mine >> result\n")
    tool.chmod(0o755)
    packed = tmp_path / "app.sqfs"
    subprocess.run(
        ["mksquashfs", str(tmp_path / "app"), str(packed), "-quiet", "-noappend", "-all-root", "-no-progress"],
        check=True, capture_output=True,
    )  # fmt: skip
    app = guestkit.add_layer(site.workdir / "cache", packed.read_bytes(), "app", "squashfs", "/opt/app")
    image = dataclasses.replace(
        site.image, layers=(*site.image.layers, app), user="job", path="/opt/app/bin", cmdline="ghv.test=1"
    )
    entry = site.prepare(("tool", "it's"), image=image, inputs={"result": b""}, outputs=("result",))
    record = site.run(entry)
    assert (record.outcome, record.exit_code) == (Outcome.COMPLETED, 0), (entry / wire.STDERR).read_text()
    assert (entry / wire.STDOUT).read_text() == "tool: /opt/app/bin/tool it's\njob\n"
    assert (entry / "out/result").read_text() == "mine\n"


def test_a_pattern_without_a_match_fails_a_program_that_succeeded_and_other_outputs_come_back(site: Site) -> None:
    record = site.run(entry := site.prepare("echo x > made", outputs=("made", "forgotten*")))
    assert (record.outcome, record.reason, record.exit_code) == (Outcome.FAILED, Reason.OUTPUT, 0)
    assert "'forgotten*'" in record.message
    assert (entry / "out/made").read_text() == "x\n"


def test_scratch_full_is_said_when_the_program_failed_of_it(site: Site) -> None:
    entry = site.prepare(
        "echo x > made; dd if=/dev/zero of=/scratch/big bs=1M 2>/dev/null || exit 7", outputs=("made",),
        resources=Resources(memory=256 << 20, scratch=32 << 20, walltime=120),
    )  # fmt: skip
    record = site.run(entry)
    assert (record.outcome, record.reason, record.exit_code) == (Outcome.FAILED, Reason.SCRATCH_FULL, 7), record
    assert "more scratch" in record.hint
    assert (entry / "out/made").read_text() == "x\n"


def test_a_program_that_eats_all_memory_is_killed_and_the_guest_lives(site: Site) -> None:
    entry = site.prepare("echo x > made; tail /dev/zero", outputs=("made",))
    record = site.run(entry)
    assert (record.outcome, record.exit_code) == (Outcome.COMPLETED, 128 + 9), record
    assert "more memory" in record.hint
    assert (entry / "out/made").exists()


def test_the_guest_reaches_nothing(site: Site) -> None:
    record = site.run(entry := site.prepare("ls /sys/class/net"))
    assert record.exit_code == 0
    assert (entry / wire.STDOUT).read_text().split() == ["lo"]


@only_qemu
def test_the_guest_reaches_what_the_job_asks_for(site: Site) -> None:
    record = site.run(entry := site.prepare("ifconfig eth0 | grep -o 10.0.2.15", network="restricted"))
    assert record.exit_code == 0
    assert "10.0.2.15" in (entry / wire.STDOUT).read_text()


def test_cancel_stops_the_program_gracefully_and_brings_its_outputs(site: Site) -> None:
    entry = site.prepare(
        "trap 'echo last words; echo saved > result; exit 5' TERM; echo started; while :; do sleep 0.1; done",
        outputs=("result",),
        stop_grace=60,
    )
    pilot = site.start(entry)
    stdout = entry / wire.STDOUT
    site.wait_for_stdout(entry, "started\n")
    (entry / wire.CONTROL / wire.CANCEL).touch()
    assert pilot.wait(120) == 1
    record = site.sentinel(entry)
    assert (record.outcome, record.reason, record.exit_code) == (Outcome.STOPPED, Reason.CANCELLED, 5), record
    assert stdout.read_text() == "started\nlast words\n"
    assert (entry / "out/result").read_text() == "saved\n"
    site.is_clean(entry)


def test_a_program_deaf_to_term_is_killed_after_the_grace(site: Site) -> None:
    entry = site.prepare("trap '' TERM; echo x > result; echo 7 > state; echo started; while :; do sleep 1; done",
                         outputs=("result",), restart=("state", "none*"), stop_grace=2)  # fmt: skip
    pilot = site.start(entry)
    site.wait_for_stdout(entry, "started\n")
    # As batch systems do: every process of the job hears it. The hypervisor and the watchdog must not care.
    processes = [pilot.pid, *site.hypervisors(entry)]
    assert len(processes) >= 2
    for process in processes:
        os.kill(process, signal.SIGTERM)
    assert pilot.wait(120) == 1
    record = site.sentinel(entry)
    # Nobody had asked for it, and half an hour was left: the site ended it, and another try may have more luck.
    assert (record.outcome, record.reason) == (Outcome.FAILED, Reason.EVICTED), record
    assert record.hint
    assert record.exit_code == 128 + 9
    assert (entry / "out/result").exists()
    assert {output.path for output in record.outputs} == {"result", "state"}, "for another attempt, if there is one"
    assert (entry / "out/state").read_text() == "7\n"
    site.is_clean(entry)


def test_a_signal_after_the_users_wish_is_the_users_wish(site: Site) -> None:
    """As a batch system's cancel comes, behind the wish in words."""
    entry = site.prepare("echo started; sleep 1000", stop_grace=2)
    pilot = site.start(entry)
    site.wait_for_stdout(entry, "started\n")
    (entry / wire.CONTROL / wire.CANCEL).touch()
    pilot.send_signal(signal.SIGTERM)
    assert pilot.wait(120) == 1
    record = site.sentinel(entry)
    assert (record.outcome, record.reason) == (Outcome.STOPPED, Reason.CANCELLED), record


def test_root_in_the_guest_brings_out_only_what_the_job_declares(site: Site) -> None:
    """The tar that packs the outputs is the guest's: its root may put anything on the disk."""
    entry = site.prepare(
        "mkdir products; echo good > products/good; ln -s /etc/passwd products/absolute; mkfifo products/fifo;"
        " ln -s ../../up products/up; echo bad > .bashrc; printf x > products/$(printf 'bad\\377');"
        " ln -s products/good later; echo last > z",
        outputs=("products/*", "z", "later"),
    )
    record = site.run(entry)
    assert (record.outcome, record.reason, record.exit_code) == (Outcome.FAILED, Reason.OUTPUT, 0), record
    assert sorted(file.path for file in record.outputs) == ["later", "products/good", "z"]
    assert (entry / "out/z").read_text() == "last\n"
    site.is_clean(entry)


def test_the_walltime_stops_the_program_before_the_batch_system_would(site: Site) -> None:
    resources = Resources(memory=256 << 20, scratch=64 << 20, walltime=45)
    entry = site.prepare("echo x > result; sleep 1000", outputs=("result",), resources=resources, stop_grace=3)
    record = site.run(entry)
    assert (record.outcome, record.reason) == (Outcome.STOPPED, Reason.WALLTIME), record
    assert record.elapsed < 45
    assert (entry / "out/result").exists()


def test_cancel_before_the_guest_is_up_ends_it_there(site: Site) -> None:
    entry = site.prepare("echo never")
    pilot = site.start(entry)
    site.wait_for_phase(entry, Phase.BOOT)
    (entry / wire.CONTROL / wire.CANCEL).touch()
    assert pilot.wait(120) == 1
    record = site.sentinel(entry)
    assert (record.outcome, record.reason, record.exit_code) == (Outcome.STOPPED, Reason.CANCELLED, None)
    assert not (entry / wire.STDOUT).exists()
    site.is_clean(entry)


def test_a_second_pilot_yields_to_the_first_and_touches_nothing(site: Site) -> None:
    entry = site.prepare("trap 'echo stopped; exit 0' TERM; echo once; while :; do sleep 0.1; done", stop_grace=60)
    first = site.start(entry)
    site.wait_for_phase(entry, Phase.BOOT)
    second = site.start(entry)
    assert second.wait(120) == 0
    assert not (entry / wire.EXIT).exists()
    site.wait_for_stdout(entry, "once\n")
    (entry / wire.CONTROL / wire.CANCEL).touch()
    assert first.wait(120) == 1
    record = site.sentinel(entry)
    assert (record.outcome, record.exit_code) == (Outcome.STOPPED, 0), record
    assert (entry / wire.STDOUT).read_text() == "once\nstopped\n"


def test_a_revoked_entry_is_never_run(site: Site) -> None:
    entry = site.prepare("echo never")
    spool.take_owner(entry, OwnerRecord("controller", "revocation-1", 2))
    assert site.start(entry).wait(120) == 0
    assert not (entry / wire.EXIT).exists()
    assert not (entry / wire.STATUS).exists()
    assert "revocation-1" in (entry / wire.PILOT_LOG).read_text()


def test_a_layer_is_verified_once_per_node_and_again_when_it_changed(site: Site) -> None:
    def layer_of(role: str) -> Layer:
        return next(layer for layer in site.image.layers if layer.role == role)

    site.run(site.prepare("true"))
    entry = site.prepare("true")
    site.run(entry)
    assert "verify" not in (entry / wire.PILOT_LOG).read_text()
    copy = site.scratch / f"ghv-{os.getuid()}/cache" / layer_of("base").digest
    os.utime(copy)
    entry = site.prepare("true")
    assert site.run(entry).outcome is Outcome.COMPLETED
    assert "verify" in (entry / wire.PILOT_LOG).read_text()


@only_qemu
def test_an_image_that_is_one_whole_disk_is_run_from_its_root_partition(site: Site, tmp_path: Path) -> None:
    """As an imported one: a partition table, the root in the second partition, and nothing of ours in it."""
    image = guestkit.whole_disk(site, tmp_path)
    entry = site.prepare("cat /etc/os-release data; echo x > /opt/made && echo y > made", image=image,
                         inputs={"data": b"input\n"}, outputs=("made",))  # fmt: skip
    record = site.run(entry)
    assert (record.outcome, record.exit_code) == (Outcome.COMPLETED, 0), record
    assert (entry / wire.STDOUT).read_text() == "ID=other\ninput\n"
    assert (entry / "out/made").read_text() == "y\n"
