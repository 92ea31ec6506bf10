"""What a relay does for the lender: it counts, refuses, tells, keeps the pace; and whose a lender's file is."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gridhypervisor.agent import lender
from gridhypervisor.agent.lender import Lender, Unlent, forbidden
from gridhypervisor.model import wire
from gridhypervisor.model.wire import Lending, Manifest, Note, Op, Share, Terms, Use
from tests.contract.relay_peer import Peer, Refusal, write

RELAY = [sys.executable, "-m", "gridhypervisor.agent.main", "relay", "--workdir"]
NOBODY = 65534


def vm(entry: str, *, cores: int = 1, installation: str = "inst") -> dict[str, Any]:
    made = Manifest(wire.PROTOCOL, installation, entry, "vm", 1, "vm.1", "job", wire.ImageManifest(()), "0" * 64,
                    wire.Program(("true",)), wire.Resources(cores, 64 << 20, 0, 3600), owner="ada")  # fmt: skip
    plain: dict[str, Any] = wire.to_plain(made)
    return plain


def replace(path: Path, text: str) -> None:
    """As an editor does."""
    new = path.with_name(f"{path.name}.new")
    new.write_text(text)
    new.rename(path)


@pytest.fixture
def workdir(tmp_path: Path) -> Path:
    return tmp_path / "work"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """The lender's file of that workdir; it allows two cores."""
    path = tmp_path / "work.lender.toml"
    path.write_text("cores = 2\n")
    return path


@pytest.fixture
def relay(workdir: Path, file: Path) -> Iterator[Peer]:
    with Peer([*RELAY, str(workdir)]) as peer:
        peer.hello()
        yield peer


def told(peer: Peer, holds: Callable[[Lending | None], bool], seconds: float = 60) -> Lending | None:
    """What the relay says of the lender, once this holds of it."""
    deadline = time.monotonic() + seconds
    while True:
        note, _ = peer.note(max(0.1, deadline - time.monotonic()))
        if note["note"] == Note.LENDER:
            said = wire.from_plain(Lending, note["lender"]) if note["lender"] is not None else None
            if holds(said):
                return said


def prepare(peer: Peer, entry: str, cores: int = 1) -> None:
    peer.ask(Op.PREPARE, entry=entry, manifest=vm(entry, cores=cores, installation=entry.split("-")[0]))


def refusal(peer: Peer, entry: str, cores: int = 1) -> Refusal:
    with pytest.raises(Refusal) as caught:
        prepare(peer, entry, cores)
    assert caught.value.kind == "lender"
    return caught.value


def ends(workdir: Path, entry: str, seconds: float) -> None:
    folder = workdir / "spool" / entry
    write(folder / "owner", wire.OwnerRecord("pilot", entry, 1))
    record = wire.ExitRecord(entry, 1, entry, wire.Outcome.COMPLETED, wire.Reason.EXITED, elapsed=seconds)
    write(folder / "exit.json", record)


def test_a_vm_too_many_is_refused_and_the_planner_told_before(relay: Peer, workdir: Path, file: Path) -> None:
    prepare(relay, "inst-1")
    prepare(relay, "inst-2")
    prepare(relay, "inst-2")  # sent again
    relay.notes.clear()
    number = relay.send(Op.PREPARE, entry="inst-3", manifest=vm("inst-3"))
    with pytest.raises(Refusal) as caught:
        relay.reply(number)
    said = [wire.from_plain(Lending, note["lender"]) for note, _ in relay.notes if note["note"] == Note.LENDER]
    assert said[-1].mine == Share(2, 2, 128 << 20, 7200, 7200), "the note came before the refusal"
    assert "prepare inst-3: the lender allows 2 cores; 2 are in use" in caught.value.message
    assert str(file) in caught.value.hint
    assert not (workdir / "spool" / "inst-3").exists()


def test_a_vm_whose_pilot_would_listen_is_refused_where_nobody_may(relay: Peer, file: Path) -> None:
    replace(file, "listen = false\n")
    with pytest.raises(Refusal, match="prepare inst-1: pilots must not accept connections"):
        relay.ask(Op.PREPARE, entry="inst-1", manifest={**vm("inst-1"), "listen": "7800-7809"})
    relay.ask(Op.PREPARE, entry="inst-2", manifest=vm("inst-2"))


def test_the_end_of_a_vm_makes_room_and_is_told(relay: Peer, workdir: Path) -> None:
    prepare(relay, "inst-1", 2)
    refusal(relay, "inst-2")
    ends(workdir, "inst-1", 1800)
    said = told(relay, lambda lending: lending is not None and not lending.mine.cores)
    assert said is not None and said.rest == Share(vm_seconds=1800, core_seconds=3600)
    prepare(relay, "inst-2")
    relay.ask(Op.REMOVE, entry="inst-1", known="inst-1")
    used = Use("inst", "ada", Share(0, 0, 0, 1800, 3600), Share.of(1, 64 << 20, 3600))
    answer = relay.ask(Op.LENT)
    assert [wire.from_plain(Use, use) for use in answer["uses"]] == [used], "its time is remembered"
    assert wire.from_plain(Terms, answer["lender"]).cores == 2


def test_what_is_revoked_takes_nothing(relay: Peer) -> None:
    prepare(relay, "inst-1", 2)
    relay.ask(Op.REVOKE, entry="inst-1", epoch=1)
    prepare(relay, "inst-2", 2)


def test_an_edit_holds_at_once_and_is_told_without_any_request(relay: Peer, file: Path) -> None:
    prepare(relay, "inst-1", 2)
    replace(file, "cores = 1\n")
    assert "allows 1 core; 2 are in use" in refusal(relay, "inst-2").message
    replace(file, "cores = 3\n")
    told(relay, lambda lending: lending is not None and lending.terms.cores == 3)
    prepare(relay, "inst-2")
    file.unlink()
    told(relay, lambda lending: lending is None)
    prepare(relay, "inst-3", 64)


def test_a_file_that_cannot_be_understood_lets_nothing_start(relay: Peer, file: Path) -> None:
    for text, why in (("cores = 2\ncpus = 4\n", f"{file}, line 2: cpus"), ("", "it is empty"), ("\0", "not TOML")):
        replace(file, text)
        assert why in refusal(relay, "inst-1").message
    said = told(relay, lambda lending: lending is not None and bool(lending.terms.problem))
    assert said is not None and said.terms.own
    replace(file, "cores = 2\n")
    prepare(relay, "inst-1")


def test_installations_that_share_the_account_share_what_is_lent(relay: Peer, workdir: Path) -> None:
    with Peer([*RELAY, str(workdir)]) as other:
        assert other.hello("other")["lender"]["terms"]["cores"] == 2
        prepare(other, "other-1")
        prepare(relay, "inst-1")
        refusal(relay, "inst-2")
        refusal(other, "other-2")
        told(relay, lambda lending: lending is not None and lending.mine.cores == lending.rest.cores == 1)
        other.ask(Op.REMOVE, entry="other-1")
        told(relay, lambda lending: lending is not None and lending.rest.cores == 0)
        prepare(relay, "inst-2")
        with pytest.raises(Refusal, match="of another installation"):
            other.ask(Op.PREPARE, entry="inst-3", manifest=vm("inst-3"))


def test_without_a_lender_nothing_is_limited_and_use_is_still_shown(workdir: Path) -> None:
    with Peer([*RELAY, str(workdir)]) as peer:
        assert peer.hello()["lender"] is None
        prepare(peer, "inst-1", 64)
        answer = peer.ask(Op.LENT)
        assert answer["lender"] is None
        assert [wire.from_plain(Use, use).reserved.cores for use in answer["uses"]] == [64]
        assert not (workdir / wire.CHARGES).exists()


def test_a_relay_that_was_killed_has_forgotten_nothing(workdir: Path, file: Path) -> None:
    file.write_text("core_hours = 2\n")
    with Peer([*RELAY, str(workdir)]) as peer:
        peer.hello()
        prepare(peer, "inst-1")
        ends(workdir, "inst-1", 3000)
        peer.ask(Op.REMOVE, entry="inst-1", known="inst-1")
        prepare(peer, "inst-2")
        peer.process.kill()
    with Peer([*RELAY, str(workdir)]) as peer:
        peer.hello()
        why = refusal(peer, "inst-3").message
        assert "allows 2 core-hours a month; 1.83 are in use, and it needs 1" in why


@pytest.mark.parametrize("way", ["up", "down"])
def test_files_go_at_the_lenders_pace(workdir: Path, file: Path, way: str) -> None:
    file.write_text('bandwidth = "1 MiB/s"\n')
    data = bytes(1 << 20)
    with Peer([*RELAY, str(workdir)]) as peer:
        peer.hello()
        began = time.monotonic()
        if way == "up":
            sent = [peer.send(Op.PUT, data, path=f"cache/{n}", offset=0, last=True, size=len(data)) for n in range(4)]
        else:
            (workdir / "cache").mkdir()
            (workdir / "cache/a").write_bytes(data)
            sent = [peer.send(Op.GET, path="cache/a", offset=0, length=len(data)) for _ in range(4)]
        assert peer.ask(Op.HAVE, paths=["cache/a"]), "what is small is not held up"
        for number in sent:
            peer.reply(number, 60)
        assert time.monotonic() - began >= 2.99, "four seconds' worth, of which one may go at once"


def test_a_pilot_starts_nothing_that_the_lender_no_longer_allows(workdir: Path, file: Path) -> None:
    manifest = wire.from_plain(Manifest, vm("inst-1", cores=64))
    assert forbidden(workdir, manifest) is None, "what was let in is not counted again"
    replace(file, f'images = ["{"a" * 64}"]\n')
    no = forbidden(workdir, manifest)
    assert no is not None and "1 image, and " in no[0] and str(file) in no[1]
    digest = "b3" + "0" * 62
    lied = wire.from_plain(Manifest, {**vm("inst-1"), "image_digest": digest})
    replace(file, f'images = ["{digest}"]\n')
    assert forbidden(workdir, lied) is not None, "the image itself counts, not what the manifest calls it"


# --- whose the file is ------------------------------------------------------------------------------------------------


@pytest.fixture
def land() -> Iterator[Path]:
    """A folder that everybody may enter."""
    folder = Path(tempfile.mkdtemp(prefix="ghv-lender-", dir="/tmp"))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def test_the_sites_own_file_goes_before_the_one_beside_the_workdir(land: Path) -> None:
    etc, workdir = land / "etc", land / "work"
    reader = Lender(workdir, etc=etc)
    assert reader.terms() is None
    for cores, path in ((1, land / "work.lender.toml"), (2, etc / "lender.toml"),
                        (3, etc / "lender.d" / f"{lender.account()}.toml")):  # fmt: skip
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"cores = {cores}\n")
        terms = reader.terms()
        assert terms is not None and (terms.cores, terms.file) == (cores, str(path))


def test_a_file_that_the_account_can_change_is_its_own_cap(land: Path) -> None:
    """Root can change every file: so it is asked as an ordinary user, where the tests run as root."""
    mine, sticky, lent = land / "mine", land / "sticky", land / "lent"
    for folder in (mine, sticky, lent):
        folder.mkdir()
        (folder / "work.lender.toml").write_text("cores = 1\n")
    sticky.chmod(0o1777)
    root = os.geteuid() == 0
    if root:
        os.chown(mine, NOBODY, NOBODY)  # whoever owns the folder can put another file in its place
    workdirs = [folder / "work" for folder in (mine, sticky, lent)]
    owns = in_another_process(lambda: [_own(workdir) for workdir in workdirs], NOBODY if root else None)
    assert owns == ([True, False, False] if root else [True, True, True])


def _own(workdir: Path) -> bool:
    terms = Lender(workdir, etc=workdir).terms()
    assert terms is not None and not terms.problem
    return terms.own


def in_another_process(ask: Callable[[], Any], uid: int | None) -> Any:
    """What comes of it, asked as this user."""
    reads, writes = os.pipe()
    child = os.fork()
    if not child:
        answer: Any = "it failed"
        with contextlib.suppress(BaseException):
            if uid is not None:
                os.setgroups([])
                os.setgid(uid)
                os.setuid(uid)
            answer = ask()
        os.write(writes, json.dumps(answer).encode())
        os._exit(0)
    os.close(writes)
    with open(reads, "rb") as file:
        answer = json.loads(file.read())
    os.waitpid(child, 0)
    return answer


def test_two_relays_take_turns(workdir: Path, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While another relay lets a VM in, ours waits; it says so if that one never ends."""
    (workdir / "spool").mkdir(parents=True)
    one, two = Lender(workdir, etc=workdir), Lender(workdir, etc=workdir)
    first, second = (wire.from_plain(Manifest, vm(f"inst-{n}", cores=2)) for n in (1, 2))

    def slow() -> None:
        monkeypatch.setattr(lender, "TURN", 0.2)
        with pytest.raises(TimeoutError, match="another relay of this account"):
            two.admit(workdir / "spool/inst-2", second, lambda: None)
        entry = workdir / "spool/inst-1"
        entry.mkdir()
        write(entry / "manifest.json", first)

    one.admit(workdir / "spool/inst-1", first, slow)
    with pytest.raises(Unlent):
        two.admit(workdir / "spool/inst-2", second, lambda: None)
