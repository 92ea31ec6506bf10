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
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gridhypervisor.agent import channel, node, outputs
from gridhypervisor.agent.channel import Exit, Lines, Stream
from gridhypervisor.agent.ending import Ending, leave_sentinel
from gridhypervisor.model import wire
from gridhypervisor.model.wire import ExitRecord, Layer, Outcome, Program, Reason

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
    found = {file.path: file for file in outputs.unpack(disk, out)}
    assert sorted(found) == sorted(["products/x", "products/link", "products/hard", long])
    assert found["products/link"].link == "x"
    assert found["products/x"] == wire.OutputFile("products/x", 4, 0o755, hashlib.sha256(b"data").hexdigest())
    assert (out / "products/x").stat().st_mode & 0o7777 == 0o755
    assert os.readlink(out / "products/link") == "x"
    assert (out / long).read_bytes() == b"long"


def test_an_untouched_disk_holds_no_outputs(tmp_path: Path) -> None:
    (tmp_path / "disk").write_bytes(bytes(4096))
    assert list(outputs.unpack(tmp_path / "disk", tmp_path)) == []


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
    ],
)
def test_nothing_hostile_comes_out_of_a_stream(tmp_path: Path, members: list[tuple[tarfile.TarInfo, bytes]]) -> None:
    out = tmp_path / "inner" / "out"
    out.mkdir(parents=True)
    with pytest.raises(Ending) as caught:
        list(outputs.unpack(tar(tmp_path, (info("first"), b"1"), *members), out))
    assert caught.value.reason is Reason.OUTPUT
    assert (out / "first").read_bytes() == b"1"
    assert [path.name for path in (tmp_path / "inner").iterdir()] == ["out"]


def test_a_header_that_lies_about_its_size_is_refused(tmp_path: Path) -> None:
    disk = tar(tmp_path, (info("x"), b"data"))
    data = bytearray(disk.read_bytes())
    data[124:136] = b"77777777777\0"
    data[148:156] = b"%06o\0 " % (sum(data[:148]) + 8 * 32 + sum(data[156:512]))
    disk.write_bytes(data)
    with pytest.raises(Ending, match="claims"):
        list(outputs.unpack(disk, tmp_path))
    data[0] ^= 1
    disk.write_bytes(data)
    with pytest.raises(Ending, match="checksum"):
        list(outputs.unpack(disk, tmp_path))


@given(st.binary(max_size=3000))
def test_garbage_on_the_disk_is_an_ending_and_nothing_else(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        (path / "disk").write_bytes(data)
        (path / "out").mkdir()
        with contextlib.suppress(Ending):
            list(outputs.unpack(path / "disk", path / "out"))


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
