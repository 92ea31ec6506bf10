"""Copies of checkpoints: sealed before they leave their site, as good as their records say, and open to nobody else.

What seals at the site (libcrypto, by ctypes) and what opens here (the package `cryptography`) are two implementations.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from gridhypervisor.agent import cipher
from gridhypervisor.agent.checkpoints import Damaged, SealedReader
from gridhypervisor.agent.relayfiles import Files, Refused
from gridhypervisor.agent.world import World
from gridhypervisor.execution import copies as here
from gridhypervisor.execution.copies import Copies, Unsound
from gridhypervisor.model.errors import LinkError, LinkLost
from gridhypervisor.model.wire import CHECKPOINTS, FRAME, KEY, SEAL, SEALED, SPOOL, Checkpoint, Op, Part, sealed_size

KEY_OF_ONE = bytes(range(32))
NONCE = bytes(12)


class Account:
    """The relay of a site, as a link to it. `cut_after`: so many frames come, then the connection is lost."""

    def __init__(self, workdir: Path) -> None:
        self.workdir = workdir
        workdir.mkdir(exist_ok=True)
        self.files = Files(workdir.resolve())
        self.cut_after, self.sealed = 1 << 30, 0
        self.said: list[str] = []

    async def call(
        self, op: Op, args: Mapping[str, Any], payload: bytes = b"", *, timeout: float
    ) -> tuple[dict[str, Any], bytes]:
        self.said.append(json.dumps(dict(args)))
        try:
            if op is Op.PUT:
                return {"size": self.files.put(dict(args), payload)}, b""
            assert op is Op.SEAL
            if self.sealed == self.cut_after:
                raise LinkLost("cut")
            self.sealed += 1
            key = bytes.fromhex(args["key"])
            size, frame = self.files.seal(args["checkpoint"], args["part"], args["frame"], key)
            return {"size": size}, frame
        except Refused as error:
            raise LinkError(str(error), error.kind, error.hint) from error

    async def upload(
        self, local: Path, path: str, proof: Mapping[str, object], *, mode: int = 0o600, timeout: float
    ) -> None:
        data = local.read_bytes()
        self.files.put({"path": path, "offset": 0, "size": len(data), "last": True, "mode": mode, **proof}, data)

    @property
    def entry(self) -> Path:
        return self.workdir / SPOOL / "e"


@pytest.fixture
def site(tmp_path: Path) -> Account:
    return Account(tmp_path / "site")


@pytest.fixture
def copies(tmp_path: Path) -> Copies:
    return Copies(tmp_path / "home", os.urandom)


CONTENTS = {"memory.zst": os.urandom(2 * FRAME + 100), "scratch.zst": os.urandom(FRAME), "stdout": b""}


@pytest.fixture
def checkpoint(site: Account) -> Checkpoint:
    folder = site.workdir / CHECKPOINTS / "e-1"
    folder.mkdir(parents=True)
    for name, data in CONTENTS.items():
        (folder / name).write_bytes(data)
    parts = (Part(name, len(data), hashlib.sha256(data).hexdigest(), len(data)) for name, data in CONTENTS.items())
    return Checkpoint("e-1", "e", 1, "i", "tcg", "qemu 7", "b", (), "", 1 << 20, {}, tuple(parts))


def bring(copies: Copies, site: Account, checkpoint: Checkpoint) -> None:
    asyncio.run(copies.bring(site, checkpoint, lambda words: None))  # type: ignore[arg-type]


def send(copies: Copies, site: Account, checkpoint: Checkpoint) -> None:
    asyncio.run(copies.send(site, checkpoint, "e", lambda words: None))  # type: ignore[arg-type]


def read(site: Account, checkpoint: Checkpoint, place: Path) -> dict[str, bytes]:
    """As a pilot does."""
    key = bytes.fromhex((site.entry / KEY).read_text())
    reader = SealedReader(site.entry / SEALED, key, checkpoint, place, World(None), lambda: False)
    reader.bring()
    reader.fetch()
    return {name: reader.text(name) for name in CONTENTS}


def flip(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


def test_a_guest_goes_from_one_site_to_another_and_nobody_on_the_way_can_read_it(
    site: Account, copies: Copies, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    bring(copies, site, checkpoint)
    kept = copies.folder("e-1")
    assert {path.name: path.stat().st_size for path in kept.iterdir()} == {
        part.name: sealed_size(part.size) for part in checkpoint.parts
    }
    assert CONTENTS["scratch.zst"][:64] not in (kept / "scratch.zst").read_bytes()
    for path in [copies.root, *copies.root.rglob("*")]:
        assert path.stat().st_mode & 0o777 == (0o700 if path.is_dir() else 0o600), path
    other = Account(tmp_path / "other")
    send(copies, other, checkpoint)
    assert read(other, checkpoint, tmp_path / "node") == CONTENTS
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in other.entry.rglob("*") if path.is_file())
    key = (other.entry / KEY).read_text()
    assert not any(key in words for words in other.said), "it goes as a file, and not among the words of a request"
    copies.erase("e-1")
    assert not [path for path in copies.root.rglob("*") if path.is_file()]
    copies.erase("e-1")


def test_what_was_cut_off_goes_on_behind_the_last_frame_that_came(
    site: Account, copies: Copies, checkpoint: Checkpoint
) -> None:
    site.cut_after = 2
    with pytest.raises(LinkLost):
        bring(copies, site, checkpoint)
    file = copies.folder("e-1") / "memory.zst"
    with file.open("ab") as half:
        half.write(b"half a frame")
    came, site.cut_after = site.sealed, 1 << 30
    bring(copies, site, checkpoint)
    whole = file.stat().st_size // (FRAME + SEAL)
    assert whole == 2 and site.sealed <= came + 5 - 1, "of five frames at least one had come"
    asked = site.sealed
    bring(copies, site, checkpoint)
    assert site.sealed == asked, "all is here, and is only looked at"


@pytest.mark.parametrize("fault", ["flipped", "shorter", "gone"])
def test_a_checkpoint_that_is_damaged_at_its_site_is_never_kept_as_a_copy(
    site: Account, copies: Copies, checkpoint: Checkpoint, fault: str
) -> None:
    memory = site.workdir / CHECKPOINTS / "e-1/memory.zst"
    if fault == "flipped":
        flip(memory, FRAME + 5)
    elif fault == "shorter":
        os.truncate(memory, FRAME)
    else:
        memory.unlink()
    with pytest.raises(Unsound, match=r"memory\.zst of checkpoint e-1"):
        bring(copies, site, checkpoint)


@pytest.mark.parametrize("fault", ["flipped", "truncated", "longer", "gone", "key", "swapped"])
def test_a_copy_that_was_altered_is_not_sent_along_and_is_mended_by_another_one(
    site: Account, copies: Copies, checkpoint: Checkpoint, fault: str, tmp_path: Path
) -> None:
    bring(copies, site, checkpoint)
    memory = copies.folder("e-1") / "memory.zst"
    match fault:
        case "flipped":
            flip(memory, FRAME + SEAL + 20)
        case "truncated":
            os.truncate(memory, 2 * (FRAME + SEAL))
        case "longer":
            with memory.open("ab") as file:
                file.write(b"x")
        case "gone":
            memory.unlink()
        case "key":
            (copies.root / "keys/e-1").unlink()
        case _:  # the first two frames, each of them whole
            data = memory.read_bytes()
            frame = FRAME + SEAL
            memory.write_bytes(data[frame : 2 * frame] + data[:frame] + data[2 * frame :])
    with pytest.raises(Unsound, match="checkpoint e-1"):
        send(copies, site, checkpoint)
    bring(copies, site, checkpoint)
    send(copies, site, checkpoint)
    assert read(site, checkpoint, tmp_path / "node") == CONTENTS


@pytest.mark.parametrize("fault", ["flipped", "truncated", "another's", "wrong key", "gone"])
def test_a_pilot_opens_nothing_that_is_not_what_was_sealed(
    site: Account, copies: Copies, checkpoint: Checkpoint, fault: str, tmp_path: Path
) -> None:
    bring(copies, site, checkpoint)
    send(copies, site, checkpoint)
    part = site.entry / SEALED / "scratch.zst"
    match fault:
        case "flipped":
            flip(part, 100)
        case "truncated":
            os.truncate(part, part.stat().st_size - 1)
        case "another's":
            part.write_bytes((site.entry / SEALED / "memory.zst").read_bytes()[: FRAME + SEAL])
        case "wrong key":
            (site.entry / KEY).write_text(os.urandom(32).hex())
        case _:
            part.unlink()
    with pytest.raises(Damaged, match=r"scratch\.zst"):
        read(site, checkpoint, tmp_path / "node")


def test_where_there_is_no_room_nothing_is_begun(
    site: Account, copies: Copies, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(here, "MARGIN", 1 << 60)
    with pytest.raises(OSError, match="too little is free"):
        bring(copies, site, checkpoint)
    assert not site.sealed


def test_the_cipher_is_that_of_everybody_else(tmp_path: Path) -> None:
    for size in (0, 1, 1000, FRAME):
        data, bound = os.urandom(size), b"bound to this"
        frame = cipher.seal(KEY_OF_ONE, NONCE, data, bound)
        assert here.unseal(KEY_OF_ONE, frame, bound) == data
        assert frame == here.seal(KEY_OF_ONE, NONCE, data, bound)
        assert cipher.unseal(KEY_OF_ONE, frame, bound) == data
        for forged in (frame[:-1], bytes([frame[0] ^ 1]) + frame[1:], frame + b"x", b""):
            with pytest.raises(cipher.Forged):
                cipher.unseal(KEY_OF_ONE, forged, bound)
        for key, what in ((bytes(32), bound), (KEY_OF_ONE, b"bound to that")):
            with pytest.raises(cipher.Forged):
                cipher.unseal(key, frame, what)
    for key, nonce in ((bytes(16), NONCE), (KEY_OF_ONE, bytes(8))):
        with pytest.raises(ValueError, match="bytes instead of"):
            cipher.seal(key, nonce, b"", b"")
