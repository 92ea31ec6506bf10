"""The pilot's parts without a guest: quoting, streams, what is taken from a hostile tar stream, the node's cache."""

from __future__ import annotations

import contextlib
import hashlib
import io
import itertools
import os
import subprocess
import tarfile
import tempfile
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gridhypervisor.agent import channel, node, outputs, spool
from gridhypervisor.agent.channel import Exit, Lines, Stream
from gridhypervisor.agent.ending import Ending, leave_in_any_case, leave_sentinel, settle
from gridhypervisor.agent.limits import Limits
from gridhypervisor.agent.outputs import Outputs
from gridhypervisor.agent.verdict import stopped
from gridhypervisor.model import wire
from gridhypervisor.model.wire import ExitRecord, ImageManifest, Layer, Manifest, Outcome, Program, Reason, Resources

words = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20)


@given(st.lists(words, min_size=1, max_size=4), words)
def test_a_shell_reads_every_word_of_the_job_file_as_it_was_given(command: list[str], value: str) -> None:
    text = channel.job_file(Program(tuple(command), {"VALUE": value}), user="root", path="")
    script = text + 'start() { printf \'%s\\0\' "$@" "$VALUE"; }\nprogram\n'
    printed = subprocess.run(["sh"], input=script.encode(), capture_output=True, check=True).stdout
    assert printed.decode().split("\0")[:-1] == [*command, value]


@pytest.mark.parametrize(
    "program",
    [
        Program(()),
        Program(("x",), {"a-b": ""}),
        Program(("x\0",)),
        Program(("x",), outputs=("../secret",)),
        Program(("x",), outputs=("/etc/passwd",)),
        Program(("x",), outputs=("a\nb",)),
    ],
)
def test_what_cannot_be_said_to_a_shell_is_refused(program: Program) -> None:
    with pytest.raises(Ending) as caught:
        channel.job_file(program, user="root", path="")
    assert caught.value.reason is Reason.MANIFEST
    assert caught.value.hint


@given(st.binary(), st.lists(st.integers(0, 60)))
def test_a_stream_gives_every_byte_before_the_marker_and_none_of_it(data: bytes, cuts: list[int]) -> None:
    stream = Stream(b"aab")
    data = data.replace(b"aab", b"")
    sent = data + b"aab"
    if b"aab" in sent[:-1]:  # the cut-out may have made a new one
        return
    places = sorted({0, len(sent), *(cut % (len(sent) + 1) for cut in cuts)})
    out = b"".join(stream.feed(sent[a:b]) for a, b in itertools.pairwise(places))
    assert (out, stream.ended, stream.rest()) == (data, True, b"")


def test_a_stream_ends_where_something_follows_its_marker_too() -> None:
    stream = Stream(b"MARK")
    assert (stream.feed(b"firstMA"), stream.feed(b"RKsecond"), stream.ended) == (b"first", b"second", True)
    assert (stream.feed(b"MARK third"), stream.rest(), stream.length) == (b"MARK third", b"", 21)


def test_a_stream_gives_at_once_what_cannot_begin_the_marker() -> None:
    stream = Stream(b"MARK")
    assert stream.feed(b"prompt> ") == b"prompt> "
    assert stream.feed(b"MA") == b""
    assert stream.rest() == b"MA"


def test_lines_of_the_agent_may_be_cut_long_or_garbage() -> None:
    lines = Lines()
    assert lines.feed(b"REA") == []
    assert lines.feed(b"DY 1.0\n\n\xff\xfe x\nEX") == [["READY", "1.0"], ["\ufffd\ufffd", "x"]]
    assert lines.feed(b"x" * 1_000_000) == []
    assert len(lines.feed(b"\n")[0][0]) <= 4096
    assert Exit.parse(["EXIT", "3", "1500000", "0", "77"]) == Exit(3, 1.5, 0, 77)
    assert Exit.parse(["EXIT", "x"]) is None


def tar(tmp_path: Path, *members: tuple[tarfile.TarInfo, bytes]) -> Path:
    path = tmp_path / "disk"
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as archive:
        for info, data in members:
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    with path.open("ab") as file:
        file.truncate(1 << 20)  # as a disk: longer than the stream
    return path


def info(name: str, kind: bytes = tarfile.REGTYPE, target: str = "", mode: int = 0o644) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname, member.mode = kind, target, mode
    return member


def test_outputs_come_out_with_their_digests_modes_and_links(tmp_path: Path) -> None:
    long = "a" * 90 + "/" + "b" * 120
    disk = tar(
        tmp_path,
        (info("./products", tarfile.DIRTYPE), b""), (info("./products/x", mode=0o6755), b"data"),
        (info("products/link", tarfile.SYMTYPE, "x"), b""),
        (info("products/hard", tarfile.LNKTYPE, "./products/x"), b""),
        (info(long), b"long"),
    )  # fmt: skip
    out = tmp_path / "out"
    out.mkdir()
    unpacked = Outputs(out, ["products", "a*"])
    unpacked.unpack(disk)
    found = unpacked.files
    assert unpacked.complaint is None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["disk", "out"]
    assert sorted(found) == sorted(["products/x", "products/link", "products/hard", long])
    assert found["products/link"].link == "x"
    assert found["products/x"] == wire.OutputFile("products/x", 4, 0o755, hashlib.sha256(b"data").hexdigest())
    assert (out / "products/x").stat().st_mode & 0o7777 == 0o755
    assert os.readlink(out / "products/link") == "x"
    assert (out / long).read_bytes() == b"long"


def test_an_untouched_disk_holds_no_outputs(tmp_path: Path) -> None:
    (tmp_path / "disk").write_bytes(bytes(4096))
    unpacked = Outputs(tmp_path / "out", ["*"])
    (tmp_path / "out").mkdir()
    unpacked.unpack(tmp_path / "disk")
    assert (unpacked.files, unpacked.complaint) == ({}, None)


@pytest.mark.parametrize(
    "members",
    [
        [(info("/etc/passwd"), b"x")],
        [(info("../escaped"), b"x")],
        [(info("a/../../escaped"), b"x")],
        [(info("link", tarfile.SYMTYPE, "/tmp"), b"")],
        [(info("a/link", tarfile.SYMTYPE, "../../x"), b"")],
        [(info("link", tarfile.SYMTYPE, "."), b""), (info("link/x"), b"x")],
        [(info("node", tarfile.CHRTYPE), b"")],
        [(info("fifo", tarfile.FIFOTYPE), b"")],
        [(info("hard", tarfile.LNKTYPE, "../../etc/passwd"), b"")],
        [(info("hard", tarfile.LNKTYPE, "/etc/passwd"), b"")],
        [(info(".bashrc"), b"x")],
        [(info("a/b/up", tarfile.SYMTYPE, "../.."), b""), (info("around", tarfile.SYMTYPE, "a/b/up/../../x"), b"")],
        [(info("link", tarfile.SYMTYPE, "a/../../x"), b"")],
        [(info("not-utf-8-\udcff"), b"x")],
        [(info("link", tarfile.SYMTYPE, "\udcff"), b"")],
        [(info("a/b"), b"x"), (info("a"), b"a file over a folder")],
        [(info("a"), b"x"), (info("a/b"), b"below a file")],
        [(info("a"), b"x"), (info("a", tarfile.DIRTYPE), b"")],
        [(info("n" * 256), b"longer than a name may be")],
        [(info("unknown", b"Z"), b"with data" * 100)],
    ],
)
def test_what_may_not_come_out_is_passed_over_and_said_and_the_rest_comes(
    tmp_path: Path, members: list[tuple[tarfile.TarInfo, bytes]]
) -> None:
    out = tmp_path / "inner" / "out"
    out.mkdir(parents=True)
    unpacked = Outputs(out, ["*"])
    unpacked.unpack(tar(tmp_path, (info("first"), b"1"), *members, (info("last"), b"2" * 1000)))
    assert unpacked.complaint is not None
    assert unpacked.complaint.reason is Reason.OUTPUT
    unpacked.complaint.message.encode()
    assert (out / "first").read_bytes() == b"1"
    assert (out / "last").read_bytes() == b"2" * 1000
    assert {"first", "last"} <= set(unpacked.files) <= {"first", "last", "a", "a/b", "a/b/up", "link"}
    wire.canonical(list(unpacked.files.values()))
    assert [path.name for path in (tmp_path / "inner").iterdir()] == ["out"]


def test_outputs_are_bounded_in_number_and_in_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    out.mkdir()
    links = [(info(f"link{n}", tarfile.LNKTYPE, "big"), b"") for n in range(10)]
    unpacked = Outputs(out, ["*"])
    unpacked.unpack(tar(tmp_path, (info("big"), bytes(300_000)), *links))
    assert sorted(unpacked.files) == ["big", "link0", "link1"]  # of one MiB
    assert unpacked.complaint is not None
    monkeypatch.setattr(outputs, "MAX_MEMBERS", 3)
    unpacked = Outputs(out, ["*"])
    with pytest.raises(Ending, match="more than 3 files"):
        unpacked.unpack(tar(tmp_path, *((info(f"{n}"), b"") for n in range(5))))
    assert len(unpacked.files) == 3


def test_outputs_that_come_too_late_are_left_and_no_half_file_stands(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    pieces = iter(range(3))

    def stop() -> None:
        if next(pieces) == 2:
            raise stopped(Reason.WALLTIME, "bring out the outputs")

    unpacked = Outputs(out, ["*"], stop)
    with pytest.raises(Ending) as caught:
        unpacked.unpack(tar(tmp_path, (info("a"), b"1"), (info("b"), b"2"), (info("c"), b"3")))
    assert (caught.value.reason, caught.value.outcome) == (Reason.WALLTIME, Outcome.STOPPED)
    assert sorted(path.name for path in out.iterdir()) == sorted(unpacked.files) == ["a", "b"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["disk", "out"]


def test_a_header_that_lies_about_its_size_is_refused(tmp_path: Path) -> None:
    disk = tar(tmp_path, (info("x"), b"data"))
    data = bytearray(disk.read_bytes())
    data[124:136] = b"77777777777\0"
    data[148:156] = b"%06o\0 " % (sum(data[:148]) + 8 * 32 + sum(data[156:512]))
    disk.write_bytes(data)
    with pytest.raises(Ending, match="claims"):
        Outputs(tmp_path / "out", ["*"]).unpack(disk)
    data[0] ^= 1
    disk.write_bytes(data)
    with pytest.raises(Ending, match="checksum"):
        Outputs(tmp_path / "out", ["*"]).unpack(disk)


@given(st.binary(max_size=3000))
def test_garbage_on_the_disk_is_an_ending_and_nothing_else(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        (path / "disk").write_bytes(data)
        (path / "out").mkdir()
        with contextlib.suppress(Ending):
            Outputs(path / "out", ["*"]).unpack(path / "disk")


def layer_in(cache: Path, data: bytes) -> Layer:
    cache.mkdir(parents=True, exist_ok=True)
    chunks = b"".join(hashlib.sha256(data[i : i + 4096]).digest() for i in range(0, len(data), 4096))
    digest = hashlib.sha256(chunks).hexdigest()
    (cache / digest).write_bytes(data)
    (cache / f"{digest}.chunks").write_bytes(chunks)
    return Layer(digest, len(data), "base", "raw", chunk_size=4096)


def never() -> bool:
    return False


def test_pilots_race_for_a_layer_and_all_have_it(tmp_path: Path) -> None:
    cache, data = tmp_path / "cache", os.urandom(300_000)
    layer = layer_in(cache, data)
    found: list[bytes] = []

    def fetch() -> None:
        found.append(node.Node(tmp_path).fetch(layer, cache, never).read_bytes())

    pilots = [threading.Thread(target=fetch) for _ in range(8)]
    for pilot in pilots:
        pilot.start()
    for pilot in pilots:
        pilot.join()
    assert found == [data] * 8
    names = {path.name for path in node.Node(tmp_path).cache.iterdir()}
    assert names == {layer.digest, f"{layer.digest}.stamp"}


@given(st.integers(0, 299_999))
def test_any_flipped_bit_is_found_in_its_chunk(place: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder) / "cache"
        layer = layer_in(cache, bytes(300_000))
        data = bytearray(300_000)
        data[place] = 1
        (cache / layer.digest).write_bytes(data)
        with pytest.raises(Ending, match=f"chunk {place // 4096} ") as caught:
            node.Node(Path(folder)).fetch(layer, cache, never)
        assert caught.value.reason is Reason.IMAGE


def test_a_folder_is_removed_with_its_own_things_and_nothing_else(tmp_path: Path) -> None:
    mine, others = tmp_path / "mine", tmp_path / "others"
    (mine / "deep" / "deeper").mkdir(parents=True)
    (mine / "deep" / "file").write_text("")
    others.mkdir()
    (others / "file").write_text("kept")
    (mine / "deep" / "folder").symlink_to(others)
    (mine / "link").symlink_to(others / "file")
    (mine / "dangling").symlink_to("nowhere")
    node.remove(mine)
    node.remove(mine)  # what is not there is no error
    assert not mine.exists()
    assert (others / "file").read_text() == "kept"


def test_a_damaged_copy_on_the_node_is_replaced_from_the_cache(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    layer = layer_in(cache, b"good" * 5000)
    place = node.Node(tmp_path)
    place.fetch(layer, cache, never)
    assert place.has(layer)
    (place.cache / layer.digest).unlink()
    (place.cache / layer.digest).write_bytes(b"evil" * 5000)
    assert place.has(layer) is None
    assert place.fetch(layer, cache, never).read_bytes() == b"good" * 5000
    assert place.has(layer)


def test_a_scratch_that_somebody_else_could_have_made_is_refused(tmp_path: Path) -> None:
    root = tmp_path / f"ghv-{os.getuid()}"
    root.mkdir(mode=0o755)
    with pytest.raises(Ending) as caught:
        node.Node(tmp_path)
    assert caught.value.reason is Reason.NODE_DISK
    root.rmdir()
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    root.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(Ending):
        node.Node(tmp_path)


def test_sweeping_spares_what_is_held(tmp_path: Path) -> None:
    place = node.Node(tmp_path)
    held, lock = place.enter("held")
    dropped, other = place.enter("dropped")
    os.close(other)
    assert place.sweep() == ["dropped"]
    assert held.exists()
    assert not dropped.exists()
    os.close(lock)
    assert place.sweep() == ["held"]


def test_the_first_sentinel_stands(tmp_path: Path) -> None:
    first = ExitRecord("e", 1, "a", Outcome.FAILED, Reason.PILOT)
    assert leave_sentinel(tmp_path, first)
    assert not leave_sentinel(tmp_path, ExitRecord("e", 1, "b", Outcome.COMPLETED, Reason.EXITED))
    assert [path.name for path in tmp_path.iterdir()] == [wire.EXIT]
    assert (tmp_path / wire.EXIT).read_bytes() == wire.canonical(first)


def test_an_end_that_cannot_be_written_down_in_full_is_written_down(tmp_path: Path) -> None:
    lost = wire.OutputFile("not-utf-8-\udcff", 1, 0o644, "")
    record = ExitRecord("e", 1, "a", Outcome.COMPLETED, Reason.EXITED, exit_code=0, outputs=(lost,))
    assert isinstance(leave_in_any_case(tmp_path, record), UnicodeEncodeError)
    found = spool.read_json(tmp_path / wire.EXIT, ExitRecord)
    assert found is not None
    assert (found.outcome, found.reason, found.claim, found.outputs) == (Outcome.FAILED, Reason.PILOT, "a", ())
    assert found.hint
    assert [path.name for path in tmp_path.iterdir()] == [wire.EXIT]


def test_the_sentinel_says_how_long_the_streams_are(tmp_path: Path) -> None:
    (tmp_path / wire.STDOUT).write_bytes(b"said")
    (tmp_path / wire.CONSOLE).write_bytes(b"")
    assert settle(tmp_path) == {wire.STDOUT: 4, wire.CONSOLE: 0}


def test_copies_that_no_pilot_uses_make_room_the_oldest_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "node").mkdir()
    place = node.Node(tmp_path / "node")
    layers = [layer_in(tmp_path / "cache", bytes([n]) * 10_000) for n in range(4)]
    monkeypatch.setattr(node, "_link", lambda data, private: False)  # as from another file system
    for age, layer in enumerate(layers):
        place.fetch(layer, tmp_path / "cache", never)
        os.utime(place.cache / f"{layer.digest}.stamp", (age, age))
    free = 0

    def space() -> int:
        return free + 10_000 * (4 - len([path for path in place.cache.iterdir() if path.suffix == ""]))

    monkeypatch.setattr(place, "_free", space)
    place.make_room(5_000)
    assert all(place.has(layer) for layer in layers), "all are in use"
    later = node.Node(tmp_path / "node")  # another pilot
    monkeypatch.setattr(later, "_free", space)
    assert later.has(layers[0]) == later.cache / layers[0].digest
    for descriptor in place._held:
        os.close(descriptor)  # the first one has ended
    os.utime(later.cache / f"{layers[0].digest}.stamp", (0, 0))
    later.make_room(5_000)
    there = [(later.cache / layer.digest).exists() for layer in layers]
    assert there == [True, False, True, True], "the oldest that nobody uses"
    later.make_room(1 << 40)
    assert [path.name for path in sorted(later.cache.iterdir())] == [layers[0].digest, f"{layers[0].digest}.stamp"]
    free = 1 << 40
    assert later.fetch(layers[3], tmp_path / "cache", never).exists()


def test_what_a_killed_pilot_had_begun_to_copy_is_swept(tmp_path: Path) -> None:
    place = node.Node(tmp_path)
    for name, age in ((".old.1", 2 * node.ABANDONED), (".new.1", 0.0)):
        (place.cache / name).write_bytes(b"part")
        moment = time.time() - age
        os.utime(place.cache / name, (moment, moment))
    place.sweep()
    assert [path.name for path in place.cache.iterdir()] == [".new.1"]


@pytest.mark.parametrize(
    "line",
    [
        "EXIT 100000000000000000000 0 0 0", "EXIT 256 0 0 0", "EXIT -1 0 0 0", "EXIT 0 " + "9" * 400 + " 0 0",
        "EXIT 0 0 0 9223372036854775808", "EXIT 0 0 0", "EXIT 0 0 0 0 0", "EXIT x 0 0 0", "EXIT \u0663 0 0 0",
    ],
)  # fmt: skip
def test_an_exit_that_no_record_could_hold_is_none(line: str) -> None:
    assert Exit.parse(line.split()) is None


def test_the_limits_come_one_after_another_and_leave_time_for_the_program() -> None:
    for walltime in (10, 60, 600, 1800, 86400):
        for scratch in (1 << 25, 2 << 30, 1 << 42):
            limits = Limits.of(manifest(walltime, scratch), 100.0)
            assert limits.soft < limits.hard < limits.deadline < 100.0 + walltime
            assert limits.soft - 100.0 >= walltime / 2
            carrying = Limits.carrying(manifest(walltime, scratch))
            carried = Limits.of(manifest(walltime, scratch), 100.0, carrying)
            assert 0 < limits.deadline - carried.deadline <= walltime / 8 and carried.soft - 100.0 >= walltime / 3
    small, large = (Limits.of(manifest(86400, scratch), 0.0).soft for scratch in (1 << 30, 100 << 30))
    assert small - large > 1000, "much to bring out takes time"


@pytest.mark.parametrize(
    ("left", "cancelled", "reason"),
    [
        (1000.0, False, Reason.EVICTED), (1000.0, True, Reason.CANCELLED), (90.0, False, Reason.WALLTIME),
        (90.0, True, Reason.CANCELLED),
    ],
)  # fmt: skip
def test_a_bare_signal_is_no_wish_of_the_user(left: float, cancelled: bool, reason: Reason) -> None:
    limits = Limits.of(manifest(1800, 1 << 30), 0.0)
    assert limits.meaning(1800.0 - left, cancelled=cancelled) is reason
    ending = stopped(Reason.EVICTED, "run")
    assert (ending.outcome, ending.reason in wire.RETRYABLE) == (Outcome.FAILED, True)


def manifest(walltime: int, scratch: int) -> Manifest:
    return Manifest(
        protocol=1, installation="i", entry="e", vm="v", epoch=1, allocation="a", job="j", image=ImageManifest(()),
        image_digest="", program=Program(("true",), outputs=("x",)),
        resources=Resources(walltime=walltime, scratch=scratch),
    )  # fmt: skip
