"""Guests that are saved while their program runs, and taken up again: nothing lost, nothing twice, nothing given up."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gridhypervisor.agent import spool
from gridhypervisor.agent.cipher import seal
from gridhypervisor.model import wire
from gridhypervisor.model.wire import Checkpoint, HandOver, Outcome, Phase, Reason, Resources, Saved
from tests.e2e import guestkit
from tests.e2e.guestkit import Site, wait_for
from tests.e2e.test_faults_disk import tmpfs

COUNT = """
gone() {
    while :; do # both at the same time, whatever may hold up a guest between two commands
        read -r a _ </proc/uptime; now=$(date +%s); read -r b _ </proc/uptime
        [ $((${b%%.*} - ${a%%.*})) -gt 1 ] || break
    done
    echo $((now - ${b%%.*}))
}
head -c 200000 /dev/urandom >data; sha256sum data >sum
n=0; taken=0; last=$(gone)
while [ $taken -lt TIMES ]; do
    seq $((n + 1)) $((n + 400)); n=$((n + 400))
    echo $n >>count; echo $n >&2
    now=$(gone); [ $((now - last)) -lt 3 ] || taken=$((taken + 1)); last=$now
done
sha256sum -c sum >>count
exit 7
"""
"""Prints until it was taken up so often: the clock then jumps, while the time that it has run for does not."""

GAP = 5.0  # seconds between a save and the guest's going on, which the program cannot fail to see


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    yield from guestkit.sites(tmp_path_factory.mktemp("checkpoints"), "tcg")


@pytest.fixture(scope="module")
def saved(site: Site) -> Checkpoint:
    """A guest that went on after it was saved, and was cancelled then; its program prints what no two may share."""
    entry = site.prepare("while :; do cat /proc/sys/kernel/random/uuid; usleep 50000; done")
    pilot = site.start(entry)
    wait_for(lambda: lines(entry, wire.STDOUT) > 3, 120, "the program to print")
    found = save(site, entry, 1, wire.SAVE_GO_ON)
    assert found.checkpoint is not None, found
    assert found.checkpoint.id == f"{entry.name}-1"
    printed = lines(entry, wire.STDOUT)
    wait_for(lambda: lines(entry, wire.STDOUT) > printed + 3, 60, "the program to go on")
    (entry / wire.CONTROL / wire.CANCEL).touch()
    assert pilot.wait(120) == 1
    record = site.sentinel(entry)
    assert (record.outcome, record.reason, record.checkpoint) == (Outcome.STOPPED, Reason.CANCELLED, None), record
    return found.checkpoint


def lines(entry: Path, name: str) -> int:
    return (entry / name).read_bytes().count(b"\n") if (entry / name).exists() else 0


def wish(entry: Path, number: int, then: str) -> None:
    spool.write_durable(entry / wire.CONTROL / f"{wire.SAVE}{number}", f"{then}: a test".encode())


def save(site: Site, entry: Path, number: int, then: str) -> Saved:
    """Wish that the guest be saved; what became of it."""
    wish(entry, number, then)
    return answer(site, entry, number)


def answer(site: Site, entry: Path, number: int) -> Saved:
    def there() -> bool:
        status = site.status(entry)
        return status is not None and status.saved is not None and status.saved.number >= number

    wait_for(there, 120, f"an answer to {wire.SAVE}{number} of {entry.name}")
    status = site.status(entry)
    assert status is not None
    assert status.saved is not None
    return status.saved


def begun(site: Site, entry: Path) -> bool:
    status = site.status(entry)
    return status is not None and status.phase is not Phase.PREPARE


def printed_more(entry: Path, size: int) -> bool:
    return (entry / wire.STDOUT).exists() and (entry / wire.STDOUT).stat().st_size > size


def suspend(site: Site, entry: Path) -> Checkpoint:
    """Save the guest to its end; nothing is left of it but the checkpoint."""
    wish(entry, 1, wire.SAVE_END)
    record = site.sentinel(entry, 120)
    assert (record.outcome, record.reason) == (Outcome.STOPPED, Reason.SUSPENDED), record
    assert record.checkpoint is not None
    assert record.checkpoint.streams == record.streams
    whole(site, record.checkpoint)
    site.is_clean(entry)
    return record.checkpoint


def whole(site: Site, checkpoint: Checkpoint) -> None:
    """Assert that a checkpoint is there, as it says of itself, and nobody else's to read."""
    folder = site.workdir / wire.CHECKPOINTS / checkpoint.id
    assert spool.read_json(folder / "checkpoint.json", Checkpoint) == checkpoint
    assert folder.stat().st_mode & 0o777 == 0o700
    for part in checkpoint.parts:
        data = (folder / part.name).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (part.size, part.sha256), part
        assert (folder / part.name).stat().st_mode & 0o777 == 0o600


def visible(site: Site) -> set[str]:
    return {path.name for path in (site.workdir / wire.CHECKPOINTS).glob("[!.]*")}


def after(checkpoint: Checkpoint) -> None:
    wait_for(lambda: time.time() - checkpoint.made > GAP, 60, "the clock to have gone on")


def test_over_two_suspensions_nothing_is_lost_or_doubled(site: Site) -> None:
    """The first guest of its kind too, which was saved as a snapshot before. Whatever is on its way when it is saved:
    the program prints faster than it can be saved between two lines."""
    command = COUNT.replace("TIMES", "2")
    entry = site.prepare(command, outputs=("count",))
    pilot = site.start(entry)
    wait_for(lambda: lines(entry, wire.STDOUT) > 400, 180, "the program to print")
    first = suspend(site, entry)
    assert pilot.wait(60) == 1
    after(first)
    second_entry = site.prepare(command, outputs=("count",), restore=first)
    site.start(second_entry)
    wait_for(lambda: lines(second_entry, wire.STDOUT) > lines(entry, wire.STDOUT) + 400, 180, "the program to go on")
    second = suspend(site, second_entry)
    assert second.executed > first.executed > 0
    assert (second_entry / wire.STDOUT).read_bytes().startswith((entry / wire.STDOUT).read_bytes())
    after(second)
    last = site.prepare(command, outputs=("count",), restore=second)
    record = site.run(last)
    assert (record.outcome, record.reason, record.exit_code) == (Outcome.COMPLETED, Reason.EXITED, 7), record
    assert record.hypervisor is not None
    assert record.hypervisor.boot == f"taken up from checkpoint {second.id}"
    assert Phase.STAGE_IN not in [time.phase for time in record.phases]
    printed = list(map(int, (last / wire.STDOUT).read_text().split()))
    assert printed == list(range(1, len(printed) + 1))
    steps = [str(step) for step in range(400, len(printed) + 1, 400)]
    assert (last / wire.STDERR).read_text().split() == steps
    assert (last / "out/count").read_text().split() == [*steps, "data:", "OK"]
    assert (last / wire.CONSOLE).read_bytes().startswith((entry / wire.CONSOLE).read_bytes())
    site.is_clean(last)


def test_two_that_are_taken_up_from_one_share_no_randomness_and_stop_as_any(site: Site, saved: Checkpoint) -> None:
    """Of a guest that had begun from a snapshot. A pilot that is killed while it takes one up harms nothing."""
    killed = site.prepare("", restore=saved)
    pilot = site.start(killed)
    wait_for(lambda: begun(site, killed), 120, "the guest's start")
    pilot.kill()
    pilot.wait(60)
    record = site.sentinel(killed)
    assert (record.by, record.reason) == ("watchdog", Reason.PILOT), record
    whole(site, saved)
    entries = [site.prepare("", restore=saved, stop_grace=20) for _ in range(2)]
    pilots = [site.start(entry) for entry in entries]
    said = []
    for entry, pilot in zip(entries, pilots, strict=True):
        more = functools.partial(printed_more, entry, saved.streams[wire.STDOUT] + 5 * 37)
        wait_for(more, 180, "the program to go on")
        (entry / wire.CONTROL / wire.CANCEL).touch()
        assert pilot.wait(120) == 1
        record = site.sentinel(entry)
        assert (record.outcome, record.reason, record.exit_code) == (Outcome.STOPPED, Reason.CANCELLED, 143), record
        data = (entry / wire.STDOUT).read_bytes()
        said.append(set(data[saved.streams[wire.STDOUT] :].split()))
        site.is_clean(entry)
    # One may have been drawn before the save, and printed after it.
    assert len(said[0] & said[1]) <= 1, said


def test_a_whole_disk_goes_on_at_another_node(site: Site, tmp_path: Path) -> None:
    """Where the layers lie elsewhere. What it wrote is read from its disk again, not from memory."""
    image = guestkit.whole_disk(site, tmp_path)
    command = (
        "trap 'echo 3 >/proc/sys/vm/drop_caches; cat /opt/made; exit 5' TERM; head -c 300000 /dev/zero >/opt/made;"
        " echo made >>/opt/made; sync; echo begun; while :; do usleep 100000; done"
    )
    entry = site.prepare(command, image=image)
    site.start(entry)
    site.wait_for_stdout(entry, "begun\n", 180)
    checkpoint = suspend(site, entry)
    assert {part.name for part in checkpoint.parts} > {"base.zst", "scratch.zst", "out.zst"}
    here, site.scratch = site.scratch, tmp_path / "scratch"
    try:
        site.scratch.mkdir()
        last = site.prepare(command, image=image, restore=checkpoint, stop_grace=60)
        pilot = site.start(last)
        site.wait_for_phase(last, Phase.EXECUTE)
        (last / wire.CONTROL / wire.CANCEL).touch()
        assert pilot.wait(120) == 1
        record = site.sentinel(last)
        assert (record.reason, record.exit_code) == (Reason.CANCELLED, 5), record
        assert (last / wire.STDOUT).read_bytes() == b"begun\n" + bytes(300000) + b"made\n"
        site.is_clean(last)
    finally:
        site.scratch = here


FAULTS = ("truncated", "flipped", "missing", "unrecorded", "program", "memory", "processor", "wrong key", "no key")


def sealed(entry: Path, folder: Path, checkpoint: Checkpoint, key: bytes) -> None:
    """Put the parts of a checkpoint into an entry as they come with one that goes on from a copy."""
    (entry / wire.SEALED).mkdir(mode=0o700)
    for part in checkpoint.parts:
        data, out = (folder / part.name).read_bytes(), b""
        for number in range(wire.frames_of(part.size)):
            bound = wire.bound_to(checkpoint.id, part.name, part.size, number)
            out += seal(key, os.urandom(wire.NONCE), data[number * wire.FRAME :][: wire.FRAME], bound)
        (entry / wire.SEALED / part.name).write_bytes(out)


@pytest.mark.parametrize("fault", FAULTS)
def test_what_cannot_be_taken_up_is_refused_before_anything_runs(site: Site, saved: Checkpoint, fault: str) -> None:
    entry = site.prepare("", **(restore := {"restore": dataclasses.replace(saved, id=f"{fault}-1")}))  # type: ignore[arg-type]
    folder = site.workdir / wire.CHECKPOINTS / f"{fault}-1"
    shutil.copytree(folder.with_name(saved.id), folder)
    asked = restore["restore"]
    memory = folder / "memory.zst"
    match fault:
        case "truncated":
            os.truncate(memory, memory.stat().st_size // 2)
            words = "its memory.zst has "
        case "flipped":
            data = bytearray(memory.read_bytes())
            data[len(data) // 2] ^= 1
            memory.write_bytes(data)
            words = "its memory.zst is damaged"
        case "missing":
            (folder / "scratch.zst").unlink()
            words = "its scratch.zst is not there"
        case "unrecorded":
            (folder / "checkpoint.json").unlink()
            words = "without checkpoint.json"
        case "program":
            asked = dataclasses.replace(asked, program="qemu 9.9.9")
            words = "it was made by qemu 9.9.9, and here is qemu"
        case "memory":
            asked = dataclasses.replace(asked, memory=1 << 30)
            words = "its guest has 1073741824 bytes of memory, the job asks for 268435456"
        case "wrong key" | "no key":
            sealed(entry, folder, asked, os.urandom(wire.KEY_BYTES))
            words = "the key of its copy cannot be read"
            if fault == "wrong key":
                (entry / wire.KEY).write_text(os.urandom(wire.KEY_BYTES).hex())
                words = "cannot be opened at frame 0: it was altered, or sealed with another key"
        case _:
            asked = dataclasses.replace(asked, processor="vendor_id : another")
            words = "it was made on another processor model"
    if fault != "unrecorded":
        spool.write_durable(folder / "checkpoint.json", wire.canonical(asked))
    manifest = spool.read_json(entry / wire.MANIFEST, wire.Manifest)
    assert manifest is not None
    changed = dataclasses.replace(manifest, restore=asked, sealed=fault.endswith("key"))
    spool.write_durable(entry / wire.MANIFEST, wire.canonical(changed))
    record = site.run(entry)
    assert (record.outcome, record.reason) == (Outcome.FAILED, Reason.CHECKPOINT), record
    assert words in record.message, record.message
    assert record.hint
    assert "is taken up" not in (entry / wire.PILOT_LOG).read_text()
    site.is_clean(entry)
    shutil.rmtree(folder)


def test_where_a_guest_cannot_be_saved_it_goes_on(site: Site) -> None:
    """No room, from the start or later; a pilot killed meanwhile leaves nothing that could be taken for a checkpoint,
    and what it had begun is swept by the next."""
    folder = site.workdir / wire.CHECKPOINTS
    entry = site.prepare("n=0; while :; do n=$((n + 1)); echo $n; usleep 50000; done")
    wish_before(entry)
    pilot = site.start(entry)
    wait_for(lambda: lines(entry, wire.STDOUT) > 0, 180, "the program to print")
    assert "its program does not run now" in answer(site, entry, 1).why

    def refused(number: int, words: str) -> None:
        found = save(site, entry, number, wire.SAVE_END)
        assert found.checkpoint is None
        assert words in found.why, found.why
        printed = lines(entry, wire.STDOUT)
        wait_for(lambda: lines(entry, wire.STDOUT) > printed + 3, 60, "the program to go on")

    with tmpfs(folder, "1m"):
        refused(2, " MiB may be needed")
    with tmpfs(folder, "1g,nr_inodes=4"):  # a folder, and two files in it
        refused(3, "No space left on device")
        assert not list(folder.iterdir())
    folder.mkdir(exist_ok=True)
    old = folder / ".test-0-1.0123"
    old.mkdir()
    os.utime(old, (0, 0))
    before = visible(site)
    assert save(site, entry, 4, wire.SAVE_GO_ON).checkpoint is not None
    assert not old.exists()
    assert visible(site) - before == {f"{entry.name}-4"}
    wish(entry, 5, wire.SAVE_END)
    wait_for(lambda: bool([*folder.glob(f".{entry.name}-5.*"), *folder.glob(f"{entry.name}-5")]), 60, "a save")
    pilot.kill()
    pilot.wait(60)
    site.sentinel(entry)
    for name in visible(site) - before:
        checkpoint = spool.read_json(folder / name / "checkpoint.json", Checkpoint)
        assert checkpoint is not None
        whole(site, checkpoint)
    printed = list(map(int, (entry / wire.STDOUT).read_text().split()))
    assert printed == list(range(1, len(printed) + 1))


def wish_before(entry: Path) -> None:
    """Before there is anything that could be saved."""
    (entry / wire.CONTROL).mkdir(mode=0o700, exist_ok=True)
    wish(entry, 1, wire.SAVE_END)


def test_a_cancel_goes_before_a_save(site: Site) -> None:
    """Whichever the pilot hears first: the job ends as cancelled, with its outputs, unless all was saved before."""
    entry = site.prepare("echo made >made; echo started; sleep 1000", outputs=("made",), stop_grace=20)
    pilot = site.start(entry)
    site.wait_for_stdout(entry, "started\n", 180)
    wish(entry, 1, wire.SAVE_END)
    (entry / wire.CONTROL / wire.CANCEL).touch()
    assert pilot.wait(120) == 1
    record = site.sentinel(entry)
    folder = site.workdir / wire.CHECKPOINTS
    if record.checkpoint is not None:
        assert record.reason is Reason.SUSPENDED
        whole(site, record.checkpoint)
    else:
        assert (record.outcome, record.reason) == (Outcome.STOPPED, Reason.CANCELLED), record
        assert (entry / "out/made").read_text() == "made\n"
        assert not list(folder.glob(f"*{entry.name}-*"))
    site.is_clean(entry)


def test_a_guest_is_saved_before_its_batch_job_is_over_and_its_successor_goes_on(site: Site) -> None:
    """By the pilot's own clock: nobody tells it to. The next one has begun, and waits; it is then ended by the site."""
    count = "n=0; while :; do n=$((n + 1)); echo $n; usleep 50000; done"

    def prepare(walltime: int, successor: bool) -> Path:
        resources = Resources(memory=128 << 20, scratch=32 << 20, walltime=walltime)
        return site.prepare(count, resources=resources, handover=HandOver(3600.0, 1e12), successor=successor)

    first, later = prepare(30, False), prepare(300, True)
    site.start(first)
    pilot = site.start(later)
    site.wait_for_phase(later, Phase.GATHER)
    record = site.sentinel(first, 90)
    assert (record.outcome, record.reason) == (Outcome.STOPPED, Reason.HAND_OVER), record
    assert record.checkpoint is not None and record.checkpoint.id == f"{first.name}-0"
    assert record.elapsed < 30.0 and record.checkpoint.guest >= 128 << 20 and record.checkpoint.took["finish"] > 0
    whole(site, record.checkpoint)
    site.is_clean(first)
    assert not site.hypervisors(later) and not lines(later, wire.STDOUT)

    spool.write_durable(later / wire.CONTROL / wire.BEGIN, wire.canonical(record.checkpoint))
    wait_for(lambda: lines(later, wire.STDOUT) > lines(first, wire.STDOUT) + 20, 120, "the program to go on")
    pilot.terminate()
    ended = site.sentinel(later, 90)
    assert (ended.outcome, ended.reason) == (Outcome.FAILED, Reason.EVICTED), ended
    assert ended.checkpoint is not None and ended.checkpoint.executed > record.checkpoint.executed + 1.0
    whole(site, ended.checkpoint)
    printed = list(map(int, (later / wire.STDOUT).read_text().split()))
    assert printed == list(range(1, len(printed) + 1)), "nothing is lost, and nothing comes twice"
    site.is_clean(later)


def test_a_guest_that_cannot_be_saved_in_time_is_stopped_with_its_outputs(site: Site) -> None:
    folder = site.workdir / wire.CHECKPOINTS
    resources = Resources(memory=128 << 20, scratch=32 << 20, walltime=30)
    program = "trap 'echo saved >made; exit 3' TERM; echo started; while :; do usleep 50000; done"
    entry = site.prepare(program, outputs=("made",), resources=resources, handover=HandOver(3600.0, 1e12))
    with tmpfs(folder, "1m"):
        record = site.run(entry)
    assert (record.outcome, record.reason) == (Outcome.FAILED, Reason.UNSAVED), record
    assert "before its guest was saved: " in record.message and " MiB may be needed" in record.message, record
    assert (entry / "out/made").read_text() == "saved\n" and record.checkpoint is None
    site.is_clean(entry)


def test_user_mode_linux_says_that_it_cannot(tmp_path: Path) -> None:
    for site in guestkit.sites(tmp_path, "uml"):
        entry = site.prepare("echo started; until [ -e /nowhere ]; do usleep 100000; done")
        pilot = site.start(entry)
        site.wait_for_stdout(entry, "started\n")
        assert save(site, entry, 1, wire.SAVE_END) == Saved(1, None, "uml can neither save nor stop a guest")
        (entry / wire.CONTROL / wire.CANCEL).touch()
        assert pilot.wait(120) == 1
        record = site.sentinel(entry)
        assert (record.outcome, record.reason) == (Outcome.STOPPED, Reason.CANCELLED), record
        assert not visible(site)
