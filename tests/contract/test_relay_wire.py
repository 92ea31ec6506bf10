"""What a controller may rely on when it speaks to a relay: a real relay process, over real pipes."""

from __future__ import annotations

import hashlib
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gridhypervisor.agent import relayfiles
from gridhypervisor.agent.cipher import unseal
from gridhypervisor.model import wire
from gridhypervisor.model.wire import Op
from tests.contract.relay_peer import Peer, Refusal, manifest, write

RELAY = [sys.executable, "-m", "gridhypervisor.agent.main", "relay", "--workdir"]


@pytest.fixture
def workdir(tmp_path: Path) -> Path:
    return tmp_path / "work"


@pytest.fixture(params=["inotify", "polling"])
def peer(request: pytest.FixtureRequest, workdir: Path) -> Iterator[Peer]:
    """A relay that was told of changes, and one that must look for itself, as on a network file system."""
    with Peer([*RELAY, str(workdir)], {"GHV_NO_INOTIFY": "1"} if request.param == "polling" else None) as peer:
        peer.hello()
        yield peer


@pytest.fixture
def quiet(workdir: Path) -> Iterator[Peer]:
    """A relay whose notes do not matter."""
    with Peer([*RELAY, str(workdir)]) as peer:
        peer.hello()
        yield peer


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def status(entry: str, sequence: int) -> wire.Status:
    return wire.Status(entry, 1, "claim", sequence, wire.Phase.BOOT, (), 1.0)


def ended(entry: str, outputs: tuple[wire.OutputFile, ...] = ()) -> wire.ExitRecord:
    return wire.ExitRecord(entry, 1, "claim", wire.Outcome.COMPLETED, wire.Reason.EXITED, exit_code=0, outputs=outputs)


def test_hello_says_where_it_is_and_refuses_another_protocol(workdir: Path) -> None:
    with Peer([*RELAY, str(workdir)]) as peer:
        with pytest.raises(Refusal) as refusal:
            peer.ask(Op.HELLO, installation="inst", protocol=wire.PROTOCOL + 1)
        assert refusal.value.kind == "protocol"
        with pytest.raises(Refusal, match="hello first"):
            peer.ask(Op.SCAN)
        said = peer.hello()
        assert said["protocol"] == wire.PROTOCOL
        assert said["workdir"] == str(workdir)
        assert said["pid"] == peer.process.pid
        assert workdir.stat().st_mode & 0o777 == 0o700


def test_bad_requests_are_answered_and_the_relay_lives(quiet: Peer) -> None:
    bad: list[tuple[str, dict[str, Any]]] = [
        ("nonsense", {}),
        (Op.GET, {}),
        (Op.PUT, {"path": 3}),
        (Op.EXEC, {"commands": [{"argv": "x"}]}),
        (Op.EXEC, {"commands": [{"argv": []}]}),
        (Op.REVOKE, {"entry": "../x", "epoch": 1}),
    ]
    for op, request in bad:
        with pytest.raises(Refusal) as refusal:
            quiet.ask(op, **request)
        assert refusal.value.kind in {"request", "path"}
        assert refusal.value.message
    assert quiet.ask(Op.USAGE)["cpu_seconds"] > 0


def test_broken_framing_ends_the_relay(workdir: Path) -> None:
    peer = Peer([*RELAY, str(workdir)])
    assert peer.process.stdin is not None
    peer.process.stdin.write(b"this is no message\n")
    peer.process.stdin.flush()
    assert peer.process.wait(60) == 65
    peer.__exit__()


def test_it_ends_when_its_stdin_does_even_with_a_command_running(workdir: Path) -> None:
    with Peer([*RELAY, str(workdir)]) as peer:
        peer.send(Op.EXEC, commands=[{"argv": ["sh", "-c", ': >"$0"; exec sleep 600', str(workdir / "began")]}])
        end = time.monotonic() + 60
        while not (workdir / "began").exists():
            assert time.monotonic() < end
            peer.hello()
    # On leaving, the relay was given less time than the command takes.
    assert peer.process.returncode == 0


# --- commands ---------------------------------------------------------------------------------------------------------


def test_commands_run_side_by_side_each_with_its_own_end(quiet: Peer) -> None:
    results = quiet.ask(
        Op.EXEC,
        commands=[
            {"argv": ["cat"], "stdin": "grüße\n"},
            {"argv": ["sh", "-c", "echo $WHO >&2; exit 3"], "environment": {"WHO": "me"}},
            {"argv": ["/no/such/program"]},
            {"argv": ["sh", "-c", "sleep 600 & sleep 600"], "timeout": 0.5},  # longer than we wait for the reply
            {"argv": ["head", "-c", str(4 << 20), "/dev/zero"]},
            {"argv": ["echo", "$HOME; `id`"]},
        ],
    )["results"]
    assert results[0] == {"code": 0, "stdout": "grüße\n"}
    assert results[1] == {"code": 3, "stderr": "me\n"}
    assert results[2]["code"] == 127
    assert results[3]["code"] is None and "0.5 s" in results[3]["stderr"]
    assert results[4]["code"] is None and "limit" in results[4]["stderr"]
    assert results[5]["stdout"] == "$HOME; `id`\n"


# --- files ------------------------------------------------------------------------------------------------------------


def test_an_upload_in_pieces_is_taken_up_again_and_verified(quiet: Peer, workdir: Path) -> None:
    data = os.urandom(300_000)
    path, piece = "spool/inst-1/in/sub/events.fits", 100_000
    sent = [quiet.send(Op.PUT, data[at : at + piece], path=path, offset=at, last=False, size=len(data)) for at in
            (0, 100_000)]  # fmt: skip
    assert [quiet.reply(number)[0]["size"] for number in sent] == [100_000, 200_000]
    assert quiet.ask(Op.HAVE, paths=[path])["sizes"] == {path: None, f"{path}.part": 200_000}
    with pytest.raises(Refusal) as refusal:
        quiet.ask(Op.PUT, b"x", path=path, offset=250_000, last=False, size=len(data))
    assert refusal.value.kind == "offset"
    final = {"path": path, "offset": 200_000, "last": True, "size": len(data), "sha256": sha256(data), "mode": 0o755}
    assert quiet.ask(Op.PUT, data[200_000:], **final) == {"size": len(data)}
    assert quiet.ask(Op.PUT, data[200_000:], **final) == {"size": len(data)}  # its answer was lost: sent again
    assert (workdir / path).read_bytes() == data
    assert (workdir / path).stat().st_mode & 0o777 == 0o755
    assert quiet.ask(Op.HAVE, paths=[path])["sizes"] == {path: len(data), f"{path}.part": None}


def test_damaged_uploads_get_no_name(quiet: Peer, workdir: Path) -> None:
    with pytest.raises(Refusal) as refusal:
        quiet.upload("cache/x", b"damaged", sha256=sha256(b"whole"))
    assert refusal.value.kind == "digest"
    assert quiet.ask(Op.HAVE, paths=["cache/x"])["sizes"] == {"cache/x": None, "cache/x.part": None}
    data = os.urandom(2_500_000)
    chunks = b"".join(hashlib.sha256(data[at : at + (1 << 20)]).digest() for at in range(0, len(data), 1 << 20))
    quiet.upload("cache/d.chunks", chunks, sha256=sha256(chunks))
    wrong = bytearray(data)
    wrong[1_500_000] ^= 1
    with pytest.raises(Refusal, match="chunk 1"):
        quiet.upload("cache/d", bytes(wrong), chunks="cache/d.chunks")
    # What was right is kept: the upload goes on from the damaged chunk.
    assert quiet.ask(Op.HAVE, paths=["cache/d"])["sizes"] == {"cache/d": None, "cache/d.part": 1 << 20}
    quiet.ask(
        Op.PUT, data[1 << 20 :], path="cache/d", offset=1 << 20, last=True, size=len(data), chunks="cache/d.chunks"
    )
    assert (workdir / "cache/d").read_bytes() == data


def test_an_empty_file_and_a_shorter_one_over_a_longer(quiet: Peer, workdir: Path) -> None:
    quiet.upload("spool/inst-1/in/a", b"long content", sha256=sha256(b"long content"))
    quiet.upload("spool/inst-1/in/a", b"short", sha256=sha256(b"short"))
    quiet.upload("spool/inst-1/in/empty", b"", sha256=sha256(b""))
    assert (workdir / "spool/inst-1/in/a").read_bytes() == b"short"
    assert (workdir / "spool/inst-1/in/empty").read_bytes() == b""


def test_link_in_links_what_nobody_writes_on_and_copies_the_rest(quiet: Peer, workdir: Path, tmp_path: Path) -> None:
    data = os.urandom(100_000)
    layer, events = tmp_path / "layer", tmp_path / "events"
    for path, mode in ((layer, 0o444), (events, 0o644)):
        path.write_bytes(data)
        path.chmod(mode)
    for _ in range(2):
        quiet.ask(Op.LINK_IN, source=str(layer), path="cache/l", sha256=sha256(data))
        quiet.ask(Op.LINK_IN, source=str(events), path="spool/inst-1/in/events", sha256=sha256(data), mode=0o600)
    assert (workdir / "cache/l").samefile(layer)
    assert not (workdir / "spool/inst-1/in/events").samefile(events)
    assert (workdir / "spool/inst-1/in/events").read_bytes() == data
    assert sorted(path.name for path in (workdir / "cache").iterdir()) == ["l"]
    with pytest.raises(Refusal) as refusal:
        quiet.ask(Op.LINK_IN, source=str(tmp_path / "none"), path="cache/n")
    assert refusal.value.kind == "missing"
    with pytest.raises(Refusal) as refusal:
        quiet.ask(Op.LINK_IN, source=str(layer), path="cache/m", sha256=sha256(b"other"))
    assert refusal.value.kind == "digest"
    assert layer.read_bytes() == data
    assert not (workdir / "cache/m").exists()


def test_downloads_come_in_pieces(quiet: Peer, workdir: Path) -> None:
    (workdir / "spool/inst-1/out").mkdir(parents=True)
    (workdir / "spool/inst-1/out/r").write_bytes(b"0123456789")
    path = "spool/inst-1/out/r"
    assert quiet.reply(quiet.send(Op.GET, path=path, offset=0, length=6)) == ({"size": 10, "eof": False}, b"012345")
    assert quiet.reply(quiet.send(Op.GET, path=path, offset=6, length=6)) == ({"size": 10, "eof": True}, b"6789")
    assert quiet.reply(quiet.send(Op.GET, path=path, offset=99, length=6)) == ({"size": 10, "eof": True}, b"")
    with pytest.raises(Refusal) as refusal:
        quiet.ask(Op.GET, path="spool/inst-1/out/none", offset=0, length=1)
    assert refusal.value.kind == "missing"


def test_nothing_leads_out_of_the_workdir(quiet: Peer, workdir: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    (workdir / "spool/inst-1").mkdir(parents=True)
    (workdir / "spool/inst-1/link").symlink_to(tmp_path)
    (workdir / "spool/inst-1/file").symlink_to(tmp_path / "secret")
    for path in ("../secret", "/etc/passwd", "spool/../../secret", "spool/inst-1/link/secret", "spool/inst-1/file", ""):
        with pytest.raises(Refusal) as refusal:
            quiet.ask(Op.GET, path=path, offset=0, length=10)
        assert refusal.value.kind == "path"
        if path != "spool/inst-1/file":
            with pytest.raises(Refusal):
                quiet.upload(path, b"x")
    quiet.upload("spool/inst-1/file", b"ours")  # replaces the link, does not follow it
    assert (tmp_path / "secret").read_text() == "secret"
    for path in ("spool/inst-1", "cache", "cache/../spool/inst-1"):
        with pytest.raises(Refusal):
            quiet.ask(Op.EVICT, paths=[path])
    for entry in ("..", ".", "a/b", ""):
        with pytest.raises(Refusal):
            quiet.ask(Op.REMOVE, entry=entry)


def test_evict_says_what_it_freed(quiet: Peer, workdir: Path) -> None:
    quiet.upload("cache/a", b"x" * 1000)
    quiet.upload("bundle/b/world", b"y" * 500)
    quiet.upload("checkpoints/inst-1-1/memory.zst", b"z" * 50)
    paths = ["cache/a", "bundle/b", "cache/none", "checkpoints/inst-1-1"]
    assert quiet.ask(Op.EVICT, paths=paths) == {"freed": 1550}
    assert not (workdir / "checkpoints/inst-1-1").exists()
    assert quiet.ask(Op.HAVE, paths=["cache/a"])["sizes"]["cache/a"] is None


# --- entries ----------------------------------------------------------------------------------------------------------


def test_a_manifest_is_written_once(quiet: Peer, workdir: Path) -> None:
    first = manifest("inst-1")
    for _ in range(2):
        quiet.ask(Op.PREPARE, entry="inst-1", manifest=first)
    with pytest.raises(Refusal) as refusal:
        quiet.ask(Op.PREPARE, entry="inst-1", manifest={**first, "epoch": 2})
    assert refusal.value.kind == "conflict"
    with pytest.raises(Refusal, match="inst-1"):
        quiet.ask(Op.PREPARE, entry="inst-2", manifest=first)
    assert (workdir / "spool/inst-1/manifest.json").read_bytes() == wire.canonical(first)


def test_revoking_takes_what_nobody_has_and_leaves_what_a_pilot_has(quiet: Peer, workdir: Path) -> None:
    first = quiet.ask(Op.REVOKE, entry="inst-1", epoch=3, why="replaced")["owner"]
    assert (first["by"], first["epoch"], first["why"]) == ("controller", 3, "replaced")
    assert quiet.ask(Op.REVOKE, entry="inst-1", epoch=4)["owner"] == first
    taken = wire.OwnerRecord("pilot", "run", 1, "node")
    (workdir / "spool/inst-2").mkdir()
    write(workdir / "spool/inst-2/owner", taken)
    assert quiet.ask(Op.REVOKE, entry="inst-2", epoch=2)["owner"] == wire.to_plain(taken)


def test_a_wish_is_left_for_the_pilot(quiet: Peer, workdir: Path) -> None:
    with pytest.raises(Refusal) as refusal:
        quiet.ask(Op.REQUEST, entry="inst-1", what="cancel", why="user")
    assert refusal.value.kind == "missing"
    quiet.ask(Op.PREPARE, entry="inst-1", manifest=manifest("inst-1"))
    quiet.ask(Op.REQUEST, entry="inst-1", what="cancel", why="user")
    assert (workdir / "spool/inst-1/control/cancel").read_text() == "user"
    for members in ("0 g1-0 a n1\n", "another\n"):
        quiet.ask(Op.REQUEST, entry="inst-1", what="begin", members=members)
    assert (workdir / "spool/inst-1/control/begin").read_text() == "0 g1-0 a n1\n", "the first one counts"
    for number, then in ((1, "go-on"), (1, "end"), (2, "end")):
        quiet.ask(Op.REQUEST, entry="inst-1", what="save", number=number, then=then, why="user")
    saves = [(workdir / f"spool/inst-1/control/save-{number}").read_text() for number in (1, 2)]
    assert saves == ["go-on: user", "end: user"], "the first one of each number counts"
    wrong: tuple[dict[str, Any], ...] = (
        {"what": "../../x"}, {"what": "save", "number": 3}, {"what": "save", "number": 0, "then": "end"},
    )  # fmt: skip
    for request in wrong:
        with pytest.raises(Refusal):
            quiet.ask(Op.REQUEST, entry="inst-1", why="", **request)


def test_the_answer_to_a_beat_is_left_for_the_pilot_under_its_number(quiet: Peer, workdir: Path) -> None:
    quiet.ask(Op.PREPARE, entry="inst-1", manifest=manifest("inst-1"))
    control = workdir / "spool/inst-1/control"
    for beat, left in ((1, 1), (7, 7), (7, 7), (3, 7)):  # one that comes late says nothing new
        quiet.ask(Op.GRANT, grants={"inst-1": beat, "inst-gone": beat})
        assert [path.name for path in control.iterdir()] == [f"grant-{left}"]
    assert not (workdir / "spool/inst-gone").exists()
    quiet.ask(Op.REQUEST, entry="inst-1", what="cancel", why="user")
    quiet.ask(Op.GRANT, grants={"inst-1": 8})
    assert sorted(path.name for path in control.iterdir()) == ["cancel", "grant-8"]
    with pytest.raises(Refusal):
        quiet.ask(Op.GRANT, grants={"../inst-1": 9})


def test_scan_shows_our_entries_and_notes_tell_of_changes(peer: Peer, workdir: Path) -> None:
    # Announced, as a controller does: a relay that must look for itself looks seldom while it knows of no entry.
    for name in ("inst-1", "inst-2"):
        peer.ask(Op.PREPARE, entry=name, manifest=manifest(name))
    (workdir / "spool/other-1").mkdir()
    views = peer.ask(Op.SCAN)["entries"]
    assert views == [{"entry": "inst-1"}, {"entry": "inst-2"}]
    entry = workdir / "spool/inst-1"
    owner = wire.OwnerRecord("pilot", "claim", 1, "node")
    write(entry / "owner", owner)
    seen: dict[str, object] = {}
    while "owner" not in seen:
        seen = peer.note()[0]["entry"]
    write(entry / "status.json", status("inst-1", 5))
    while "status" not in seen:
        seen = peer.note()[0]["entry"]
    write(entry / "status.json", status("inst-1", 4))  # a stale look
    write(entry / "exit.json", ended("inst-1", (wire.OutputFile("a", 1, 0o644, "00"),)))
    while "exit" not in seen:
        seen = peer.note()[0]["entry"]
    assert seen == wire.to_plain(wire.EntryView("inst-1", owner, status("inst-1", 5), ended("inst-1")))
    assert peer.ask(Op.SCAN)["entries"] == [seen, {"entry": "inst-2"}]
    peer.ask(Op.REMOVE, entry="inst-2")
    assert peer.ask(Op.SCAN)["entries"] == [seen]


def test_a_new_entry_of_another_hand_is_seen(peer: Peer, workdir: Path) -> None:
    """The batch job of a former controller may surface at any time."""
    entry = workdir / "spool/inst-9"
    entry.mkdir(parents=True)
    write(entry / "owner", wire.OwnerRecord("pilot", "claim", 1, "node"))
    seen: dict[str, object] = {}
    while "owner" not in seen:
        seen = peer.note(150)[0]["entry"]  # without inotify it looks every 30 s or so
    assert seen["entry"] == "inst-9"


def test_unreadable_records_hide_nothing(quiet: Peer, workdir: Path) -> None:
    entry = workdir / "spool/inst-1"
    entry.mkdir(parents=True)
    (entry / "owner").write_text("{")
    (entry / "status.json").write_text("[]")
    [view] = quiet.ask(Op.SCAN)["entries"]
    assert view["owner"]["by"] == "unknown" and view.keys() == {"entry", "owner"}


def test_output_is_followed_to_its_end(peer: Peer, workdir: Path) -> None:
    entry = workdir / "spool/inst-1"
    entry.mkdir(parents=True)
    peer.ask(Op.SCAN)
    big = os.urandom(1 << 20)
    (entry / "stdout").write_bytes(b"before")
    peer.ask(Op.WATCH, entry="inst-1", stdout=3, stderr=0)
    came = {"stdout": b"bef", "stderr": b""}
    ends: set[str] = set()

    def follow() -> None:
        note, payload = peer.note()
        if note["note"] == "output":
            assert note["offset"] == len(came[note["stream"]])
            came[note["stream"]] += payload
            if note.get("eof"):
                ends.add(note["stream"])

    while came["stdout"] != b"before":
        follow()
    for _ in range(3):
        with (entry / "stdout").open("ab") as file:
            file.write(b"+")
        wanted = came["stdout"] + b"+"
        while came["stdout"] != wanted:
            follow()
    (entry / "stderr").write_bytes(big)
    while len(came["stderr"]) < len(big):
        follow()
    with (entry / "stdout").open("ab") as file:
        file.write(b"last")
    write(entry / "exit.json", ended("inst-1"))
    while ends != {"stdout", "stderr"}:
        follow()
    assert came == {"stdout": b"before+++last", "stderr": big}


def test_outputs_are_listed_in_pages_with_their_digests(quiet: Peer, workdir: Path, tmp_path: Path) -> None:
    entry = workdir / "spool/inst-1"
    (entry / "out/sub").mkdir(parents=True)
    (entry / "out/sub/b.txt").write_text("bb")
    (entry / "out/a").write_text("a")
    (entry / "out/link").symlink_to("a")
    (tmp_path / "secret").write_text("secret")
    (entry / "out/leak").symlink_to(tmp_path / "secret")
    write(entry / "exit.json", ended("inst-1", (wire.OutputFile("a", 1, 0o644, "00"),)))
    listed = quiet.ask(Op.LIST_OUT, entry="inst-1")
    assert not listed["more"]
    assert [(file["path"], file["size"], file.get("sha256")) for file in listed["files"]] == [
        ("a", 1, "00"), ("link", 1, None), ("sub/b.txt", 2, None),
    ]  # fmt: skip
    assert [file["path"] for file in quiet.ask(Op.LIST_OUT, entry="inst-1", after="a")["files"]] == [
        "link",
        "sub/b.txt",
    ]


def test_what_is_small_of_an_entry_comes_in_one_answer(quiet: Peer, workdir: Path, tmp_path: Path) -> None:
    entry = workdir / "spool/inst-1"
    (entry / "out/sub").mkdir(parents=True)
    (tmp_path / "secret").write_bytes(b"not yours")
    contents = {"stdout": b"out", "pilot.log": b"", "out/a": b"aa", "out/big": b"b" * 100, "out/sub/c": b"ccc"}
    for name, data in contents.items():
        (entry / name).write_bytes(data)
    names = (name.removeprefix("out/") for name in contents if name.startswith("out/"))
    outputs = [wire.OutputFile(name, 1, 0o644, "") for name in (*names, "gone")]
    write(entry / "exit.json", ended("inst-1", (*outputs, wire.OutputFile("link", 0, 0o777, "", link="a"))))

    def fetch(entry: str, outputs: bool, most: int) -> tuple[dict[str, int | None], bytes]:
        asked = quiet.send(
            Op.FETCH, entry=entry, names=["stdout", "batch.log", "pilot.log"], outputs=outputs, most=most
        )
        reply, payload = quiet.reply(asked)
        return reply["sizes"], payload

    logs = {"stdout": 3, "batch.log": None, "pilot.log": 0}
    assert fetch("inst-1", False, 99) == (logs, b"out")
    # What is too large is left out, what comes behind it is not; a link is the controller's to make.
    assert fetch("inst-1", True, 99) == (logs | {"out/a": 2, "out/sub/c": 3, "out/gone": None}, b"outaaccc")
    assert fetch("inst-1", True, 4) == ({"stdout": 3, "batch.log": None, "pilot.log": 0, "out/gone": None}, b"out")
    assert fetch("inst-2", True, 99) == (dict.fromkeys(logs), b""), "of an entry that is gone there is nothing"
    (entry / "batch.log").symlink_to(tmp_path / "secret")
    assert fetch("inst-1", False, 99) == ({"stdout": 3, "pilot.log": 0}, b"out"), "GET says what is wrong with it"


def test_an_entry_is_removed_only_when_nobody_can_act_in_it(quiet: Peer, workdir: Path) -> None:
    entry = workdir / "spool/inst-1"
    entry.mkdir(parents=True)
    write(entry / "owner", wire.OwnerRecord("pilot", "claim", 1, "node"))
    with pytest.raises(Refusal) as refusal:
        quiet.ask(Op.REMOVE, entry="inst-1")
    assert refusal.value.kind == "busy" and "node" in refusal.value.message
    closed = entry / "out/closed"
    closed.mkdir(parents=True)
    (closed / "file").touch()
    closed.chmod(0)
    write(entry / "exit.json", ended("inst-1"))
    with pytest.raises(Refusal) as refusal:
        quiet.ask(Op.REMOVE, entry="inst-1")
    assert refusal.value.kind == "unseen"  # results that nobody has collected
    for _ in range(2):
        quiet.ask(Op.REMOVE, entry="inst-1", known="claim")
    (workdir / "spool/inst-2").mkdir()
    write(workdir / "spool/inst-2/owner", wire.OwnerRecord("pilot", "claim", 1, "node"))
    quiet.ask(Op.REMOVE, entry="inst-2", force=True)
    assert not [path for path in (workdir / "spool").iterdir() if "inst-" in path.name]


def test_a_thousand_entries_are_scanned_in_moments(quiet: Peer, workdir: Path) -> None:
    for number in range(1000):
        entry = workdir / f"spool/inst-{number:04}"
        entry.mkdir(parents=True)
        write(entry / "owner", wire.OwnerRecord("pilot", "claim", 1, "node"))
        write(entry / "status.json", status(entry.name, 1))
    assert len(quiet.ask(Op.SCAN)["entries"]) == 1000
    before = quiet.ask(Op.USAGE)["cpu_seconds"]
    assert len(quiet.ask(Op.SCAN)["entries"]) == 1000
    assert quiet.ask(Op.USAGE)["cpu_seconds"] - before < 1.0


def test_a_relay_that_is_killed_leaves_the_spool_usable(workdir: Path) -> None:
    with Peer([*RELAY, str(workdir)]) as peer:
        peer.hello()
        data = os.urandom(200_000)
        peer.ask(Op.PUT, data[:100_000], path="cache/x", offset=0, last=False, size=len(data))
        peer.process.send_signal(signal.SIGKILL)
        peer.process.wait(60)
    with Peer([*RELAY, str(workdir)]) as peer:
        peer.hello()
        have = peer.ask(Op.HAVE, paths=["cache/x"])["sizes"]["cache/x.part"]
        rest = {"path": "cache/x", "offset": have, "last": True, "size": len(data), "sha256": sha256(data)}
        peer.ask(Op.PUT, data[have:], **rest)
        assert (workdir / "cache/x").read_bytes() == data


def test_entries_come_in_pages_that_an_older_peer_need_not_ask_for(quiet: Peer, workdir: Path) -> None:
    for number in range(3):
        (workdir / f"spool/inst-{number}").mkdir(parents=True)
    reply = quiet.ask(Op.SCAN)
    assert ([view["entry"] for view in reply["entries"]], reply["more"]) == (["inst-0", "inst-1", "inst-2"], False)
    assert [view["entry"] for view in quiet.ask(Op.SCAN, after="inst-1")["entries"]] == ["inst-2"]


def test_commands_that_hang_hold_up_nothing_else(quiet: Peer, workdir: Path) -> None:
    waits = ("sh", "-c", 'until [ -e "$0" ]; do sleep 0.1; done', str(workdir / "go"))
    waiting = quiet.send(Op.EXEC, commands=wire.to_plain([wire.Command(waits, timeout=120.0)] * 16))
    for number in range(20):
        quiet.ask(Op.PUT, b"data", path=f"cache/{number}", offset=0, last=True, size=4)
    assert not quiet.answered(waiting)
    (workdir / "go").touch()
    assert [result["code"] for result in quiet.reply(waiting)[0]["results"]] == [0] * 16


def test_an_output_whose_name_is_no_text_hides_no_other(quiet: Peer, workdir: Path) -> None:
    out = workdir / "spool/inst-1/out"
    out.mkdir(parents=True)
    (out / "a").write_bytes(b"1")
    (out / os.fsdecode(b"\xff")).write_bytes(b"2")
    (out / "z").write_bytes(b"3")
    assert [file["path"] for file in quiet.ask(Op.LIST_OUT, entry="inst-1")["files"]] == ["a", "z"]


def test_what_was_cut_short_long_ago_is_swept_at_hello(workdir: Path) -> None:
    (workdir / "cache").mkdir(parents=True)
    (workdir / "spool").mkdir()
    for name in ("old.part", "new.part", "whole"):
        (workdir / "cache" / name).write_bytes(b"x")
    long_ago = time.time() - 30 * 86400
    os.utime(workdir / "cache/old.part", (long_ago, long_ago))
    os.utime(workdir / "cache/whole", (long_ago, long_ago))
    for name in (".removed.inst-1", ".removed.other-1"):
        (workdir / "spool" / name / "out").mkdir(parents=True)
    relayfiles.sweep_abandoned(workdir, "inst", time.time())
    assert (workdir / "spool/.removed.inst-1").exists(), "somebody may be at it"
    relayfiles.sweep_abandoned(workdir, "inst", time.time() + relayfiles.REMOVAL_CUT_SHORT + 60)
    assert [path.name for path in (workdir / "spool").iterdir()] == [".removed.other-1"]
    assert sorted(path.name for path in (workdir / "cache").iterdir()) == ["new.part", "whole"]
    (workdir / "cache/old.part").write_bytes(b"x")
    os.utime(workdir / "cache/old.part", (long_ago, long_ago))
    with Peer([*RELAY, str(workdir)]) as peer:
        peer.hello()
        end = time.monotonic() + 60
        while (workdir / "cache/old.part").exists():
            assert time.monotonic() < end
            peer.ask(Op.USAGE)


def test_a_part_of_a_checkpoint_leaves_its_site_sealed(quiet: Peer, workdir: Path) -> None:
    folder, key = workdir / wire.CHECKPOINTS / "e-1", os.urandom(wire.KEY_BYTES)
    folder.mkdir(parents=True)
    data = os.urandom(wire.FRAME + 10)
    (folder / "memory.zst").write_bytes(data)
    asked: dict[str, Any] = {"checkpoint": "e-1", "part": "memory.zst", "key": key.hex()}
    found = b""
    for number in (0, 1):
        reply, frame = quiet.reply(quiet.send(Op.SEAL, frame=number, **asked))
        assert reply == {"size": len(data)}
        found += unseal(key, frame, wire.bound_to("e-1", "memory.zst", len(data), number))
    assert found == data
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"frame": 2}, "offset"),
        ({"frame": -1}, "offset"),
        ({"frame": 0, "part": "none"}, "missing"),
        ({"frame": 0, "part": "../e-1/memory.zst"}, "path"),
        ({"frame": 0, "checkpoint": ".."}, "path"),
        ({"frame": 0, "key": "00"}, "request"),
        ({"frame": 0, "key": "no hex"}, "request"),
    ]
    for request, kind in wrong:
        with pytest.raises(Refusal) as refusal:
            quiet.ask(Op.SEAL, **{**asked, **request})
        assert refusal.value.kind == kind
        assert key.hex() not in str(refusal.value)
