"""Copies of checkpoints on the service's own machine: brought there sealed, kept sealed, and sent along sealed.

    ROOT/keys/CHECKPOINT            the key that opens them, in hex; drawn for this checkpoint alone
    ROOT/copies/CHECKPOINT/PART     a part's frames, as `model/wire/sealing.py` describes them

All of it belongs to the user alone (0700, 0600). A checkpoint's key goes to the relay that seals it, in memory, and in
a file of its own (0600) to the account where a guest is taken up. It is removed first: what is left of a copy then,
wherever it may be, nobody opens any more. What comes is opened at once, and compared with the checkpoint's record: so a
copy is worth as much as the checkpoint was, and one that was damaged at its site is known before it is needed.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import shutil
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from gridhypervisor.execution.ports import Link
from gridhypervisor.model.errors import LinkError
from gridhypervisor.model.wire import (
    FRAME,
    KEY,
    KEY_BYTES,
    NONCE,
    SEAL,
    SEALED,
    SPOOL,
    Checkpoint,
    Op,
    Part,
    bound_to,
    frames_of,
    sealed_size,
)

WINDOW = 4
"""Frames that are asked for at once."""

PATIENCE = 120.0
"""Seconds for one frame."""

BULK = 3600.0
"""Seconds for one part on its way to a site; a lost connection is noticed long before."""

MARGIN = 256 << 20
"""Bytes that a copy leaves free: the service's own records lie on the same disk, mostly."""

Tell = Callable[[str], None]
Digest = Callable[[bytes], None]


class Unsound(Exception):
    """A checkpoint, or the copy of one, is not what its record says."""


class Copies:
    """All of an installation. `draw` gives random bytes."""

    def __init__(self, root: Path, draw: Callable[[int], bytes]) -> None:
        self.root, self._draw = root, draw

    def folder(self, checkpoint: str) -> Path:
        return self.root / "copies" / checkpoint

    def _key_file(self, checkpoint: str) -> Path:
        return self.root / "keys" / checkpoint

    async def bring(self, link: Link, checkpoint: Checkpoint, tell: Tell) -> None:
        """Have all of it here; what came before a cut is opened again, and gone on from.

        Raises:
            Unsound: at its site it is not what the record says, or not all of it is there.
            LinkLost, LinkError: the site.
            OSError: it cannot be kept here.
        """
        key = await asyncio.to_thread(self._prepare, checkpoint)
        for part in checkpoint.parts:
            tell(f"copy {part.name} of checkpoint {checkpoint.id}")
            await self._bring(link, checkpoint, part, key)

    def _prepare(self, checkpoint: Checkpoint) -> bytes:
        """Make the key, where there is none yet, and the folder, if there is room."""
        for folder in (self.root, self.root / "keys", self.root / "copies", self.folder(checkpoint.id)):
            folder.mkdir(mode=0o700, exist_ok=True)
        copy = self.folder(checkpoint.id)
        there = sum(path.stat().st_size for path in copy.iterdir())
        needed = sum(sealed_size(part.size) for part in checkpoint.parts) - there
        space = os.statvfs(copy)
        if needed > 0 and space.f_bavail * space.f_frsize < needed + MARGIN:
            why = f"too little is free: it takes {needed >> 20} MiB, and leaves {MARGIN >> 20} MiB"
            raise OSError(errno.ENOSPC, why, str(copy))
        file = self._key_file(checkpoint.id)
        if not file.exists():
            new = file.with_name(f".{file.name}")
            with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "w") as out:
                out.write(self._draw(KEY_BYTES).hex())
                out.flush()
                os.fsync(out.fileno())
            new.replace(file)
            _sync_folder(file.parent)
        return self._key(checkpoint.id)

    def _key(self, checkpoint: str) -> bytes:
        try:
            return bytes.fromhex(self._key_file(checkpoint).read_text())
        except (FileNotFoundError, ValueError) as error:
            words = f"the key of the copy of checkpoint {checkpoint} is lost: {self._key_file(checkpoint)}"
            raise Unsound(words) from error

    async def _bring(self, link: Link, checkpoint: Checkpoint, part: Part, key: bytes) -> None:
        place, what = self.folder(checkpoint.id) / part.name, f"{part.name} of checkpoint {checkpoint.id}"
        digest = hashlib.sha256()
        with open(os.open(place, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600), "r+b") as file:
            first = await asyncio.to_thread(_sound, file, checkpoint.id, part, key, digest.update)
            asked: deque[asyncio.Task[bytes]] = deque()
            ahead = iter(range(first, frames_of(part.size)))
            try:
                for number in range(first, frames_of(part.size)):
                    while len(asked) < WINDOW and (following := next(ahead, None)) is not None:
                        asked.append(asyncio.create_task(_frame(link, checkpoint.id, part, following, key)))
                    frame = await asked.popleft()
                    await asyncio.to_thread(_take, file, frame, checkpoint.id, part, number, key, digest.update)
            finally:
                for task in asked:
                    task.cancel()
                await asyncio.gather(*asked, return_exceptions=True)
            await asyncio.to_thread(_settle, file)
        if digest.hexdigest() != part.sha256:
            place.unlink()
            raise Unsound(f"{what} is damaged at its site: its SHA-256 is not {part.sha256[:12]}…")

    async def send(self, link: Link, checkpoint: Checkpoint, entry: str, tell: Tell) -> None:
        """Put the copy and its key into an entry, after it was found to be as it was when it was made.

        Raises:
            Unsound: it is not.
            LinkLost, LinkError: the site.
            OSError: it cannot be read.
        """
        key = await asyncio.to_thread(self._key, checkpoint.id)
        tell(f"verifying the copy of checkpoint {checkpoint.id}")
        digests = [await asyncio.to_thread(self._verify, checkpoint, part, key) for part in checkpoint.parts]
        for part, digest in zip(checkpoint.parts, digests, strict=True):
            tell(f"{part.name} of checkpoint {checkpoint.id}")
            local, path = self.folder(checkpoint.id) / part.name, f"{SPOOL}/{entry}/{SEALED}/{part.name}"
            await link.upload(local, path, {"sha256": digest}, timeout=BULK)
        data = key.hex().encode()
        put = {"path": f"{SPOOL}/{entry}/{KEY}", "offset": 0, "size": len(data), "last": True, "mode": 0o600}
        await link.call(Op.PUT, {**put, "sha256": hashlib.sha256(data).hexdigest()}, data, timeout=PATIENCE)

    def _verify(self, checkpoint: Checkpoint, part: Part, key: bytes) -> str:
        """The SHA-256 of a part as it lies here, sealed, of which every frame could be opened."""
        place, content = self.folder(checkpoint.id) / part.name, hashlib.sha256()
        try:
            with place.open("rb") as file:
                whole = _sound(file, checkpoint.id, part, key, content.update)
                if whole != frames_of(part.size) or content.hexdigest() != part.sha256 or file.read(1):
                    raise Unsound(f"the copy of checkpoint {checkpoint.id} is damaged: {place}, at frame {whole}")
                file.seek(0)
                return hashlib.file_digest(file, "sha256").hexdigest()
        except FileNotFoundError as error:
            raise Unsound(f"the copy of checkpoint {checkpoint.id} is not whole: {place} is not there") from error

    def erase(self, checkpoint: str) -> None:
        """Leave nothing of a copy; what was not there is erased already. Raises: OSError: it could not be."""
        key = self._key_file(checkpoint)
        if key.exists():
            key.unlink()
            _sync_folder(key.parent)
        if self.folder(checkpoint).exists():
            shutil.rmtree(self.folder(checkpoint))


async def _frame(link: Link, checkpoint: str, part: Part, number: int, key: bytes) -> bytes:
    """One frame from the site."""
    what = f"{part.name} of checkpoint {checkpoint}"
    args = {"checkpoint": checkpoint, "part": part.name, "frame": number, "key": key.hex()}
    try:
        reply, frame = await link.call(Op.SEAL, args, timeout=PATIENCE)
    except LinkError as error:
        if error.kind in ("missing", "offset"):
            raise Unsound(f"{what} is not there any more, or not whole: {error}") from error
        raise
    if reply["size"] != part.size:
        raise Unsound(f"{what} has {reply['size']} bytes at its site instead of {part.size}")
    return frame


def seal(key: bytes, nonce: bytes, data: bytes, bound: bytes) -> bytes:
    """A frame of `data`, as a relay seals it."""
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    return nonce + AESGCM(key).encrypt(nonce, data, bound)


def unseal(key: bytes, frame: bytes, bound: bytes) -> bytes:
    """What a frame holds. Raises: ValueError: it is not whole, or was sealed otherwise."""
    from cryptography.exceptions import InvalidTag  # most services never copy a checkpoint
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    if len(frame) < SEAL:
        raise ValueError(f"a frame of {len(frame)} bytes")
    try:
        return AESGCM(key).decrypt(frame[:NONCE], frame[NONCE:], bound)
    except InvalidTag as error:
        raise ValueError("it was altered, or sealed with another key") from error


def _sound(file: BinaryIO, checkpoint: str, part: Part, key: bytes, digest: Digest) -> int:
    """How many frames at the beginning of a file are whole and sound. `digest` is given what they hold, and the file is
    left standing behind them."""
    for number in range(frames_of(part.size)):
        frame = file.read(FRAME + SEAL)
        try:
            digest(unseal(key, frame, bound_to(checkpoint, part.name, part.size, number)))
        except ValueError:
            file.seek(number * (FRAME + SEAL))
            return number
    return frames_of(part.size)


def _take(file: BinaryIO, frame: bytes, checkpoint: str, part: Part, number: int, key: bytes, digest: Digest) -> None:
    """Open a frame that has come, and put it behind those before it."""
    try:
        digest(unseal(key, frame, bound_to(checkpoint, part.name, part.size, number)))
    except ValueError as error:
        raise Unsound(f"frame {number} of {part.name} of checkpoint {checkpoint}: {error}") from error
    file.write(frame)


def _settle(file: BinaryIO) -> None:
    """All that is to be in the file is, up to where it stands."""
    file.truncate()
    file.flush()
    os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
