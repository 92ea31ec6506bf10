"""Files that users sent: each known by its SHA-256, to its owner alone, and kept while jobs may want it.

In the folder of an owner, SHA256 is a file that is complete and was verified, SHA256.part what has come of one so far.
A file comes in pieces, each of which says where it belongs; so an upload that broke off goes on where it stopped, and a
piece that comes twice changes nothing. Safe to call from several threads.
"""

from __future__ import annotations

import hashlib
import os
import re
import threading
import time
from pathlib import Path

from gridhypervisor.model.access import Upload
from gridhypervisor.model.errors import InputError

LIMIT = 100 << 30
"""Bytes that the uploads of one owner may take together."""

FORGOTTEN = 30 * 86400.0
"""Seconds after its last use after which an upload goes."""

_DIGEST = re.compile("[0-9a-f]{64}")


class Misplaced(Exception):
    """A piece that does not begin where the upload stands, which is `at`, or of another size than the ones before."""

    def __init__(self, at: int) -> None:
        super().__init__(f"{at} bytes have come so far")
        self.at = at


class Uploads:
    """`root`: a folder that is the service's alone."""

    def __init__(self, root: Path, *, limit: int = LIMIT) -> None:
        self._root, self._limit = root, limit
        self._changing = threading.Lock()

    def folder(self, owner: str) -> Path:
        """Where the uploads of an owner are, each under its digest."""
        path = self._root / hashlib.sha256(owner.encode()).hexdigest()[:32]
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        return path

    def look(self, owner: str, sha256: str) -> Upload:
        """How much of a file has come. Raises InputError: that is no digest."""
        place = self._place(owner, sha256)
        if (size := _size(place)) is not None:
            return Upload(sha256, size, True)
        return Upload(sha256, _size(_part(place)) or 0, False)

    def add(self, owner: str, sha256: str, offset: int, size: int, data: bytes) -> Upload:
        """Take in a piece of a file that has `size` bytes.

        Raises:
            Misplaced: it begins beyond the end of what has come, or ends beyond `size`.
            InputError: the file is complete and not the one of this digest, so that it was removed; or it is too large.
            OSError: the disk does not take it.
        """
        with self._changing:
            place = self._place(owner, sha256)
            if _size(place) is not None:
                os.utime(place)
                return self.look(owner, sha256)
            part = _part(place)
            have = _size(part) or 0
            if offset > have or offset + len(data) > size:
                raise Misplaced(have)
            fresh = data[have - offset :]
            self._make_room(place.parent, size - have)
            with part.open("ab") as file:
                os.fchmod(file.fileno(), 0o600)
                file.write(fresh)
                file.flush()
                have += len(fresh)
                if have == size:
                    os.fsync(file.fileno())
            if have < size:
                return Upload(sha256, have, False)
            with part.open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
            if found != sha256:
                part.unlink()
                raise InputError(f"what came has the SHA-256 {found}, not {sha256}", "send it again")
            part.rename(place)
            return Upload(sha256, size, True)

    def use(self, owner: str, sha256: str) -> bool:
        """Whether it is there, complete; if so, it stays for another while."""
        try:
            os.utime(self._place(owner, sha256))
        except FileNotFoundError:
            return False
        return True

    def _place(self, owner: str, sha256: str) -> Path:
        if not _DIGEST.fullmatch(sha256):
            raise InputError(f"{sha256!r} is no SHA-256", "give 64 hexadecimal digits, in small letters")
        return self.folder(owner) / sha256

    def _make_room(self, folder: Path, wanted: int) -> None:
        """Forget what was not used for long; refuse what there is no room for."""
        now, taken = time.time(), 0
        with os.scandir(folder) as items:
            for item in items:
                seen = item.stat(follow_symlinks=False)
                if now - seen.st_mtime > FORGOTTEN:
                    os.unlink(item.path)
                else:
                    taken += seen.st_size
        if taken + wanted > self._limit:
            why = f"your uploads would take {(taken + wanted) >> 20} MiB, and may take {self._limit >> 20}"
            raise InputError(why, "give large inputs as URLs; uploads go when no job has used them for 30 days")


def _part(place: Path) -> Path:
    return place.with_name(f"{place.name}.part")


def _size(place: Path) -> int | None:
    try:
        return place.stat().st_size
    except FileNotFoundError:
        return None
