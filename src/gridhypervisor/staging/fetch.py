"""Brings what a URL names into a cache on this machine: resumed, verified, and only once.

In the cache, by the digest of URL and checksum:

    KEY          the content, complete
    KEY.about    its digest and, where the source names versions, its version
    KEY.part     what has come so far; whoever works on it holds a lock on it
    KEY.of       the version of which KEY.part is a part
    KEY.wrong    content whose checksum was wrong, set aside

With a checksum, content that is there is taken without asking. Without one, the source is asked whether it changed.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from urllib.parse import urlsplit

from gridhypervisor.model.errors import InputError
from gridhypervisor.staging.source import Answer, Interrupted, Source, Unchanged

SCHEMES = ("http://", "https://", "s3://")

TRIES = 6
"""Tries in a row that bring no new byte, before it is given up: about a minute."""

BACK_OFF = (1.0, 60.0)
"""Seconds between two tries: at first, at most."""

_NEWS = 1 << 20
"""Bytes that must have come since the last report for the next."""

Report = Callable[[int, int | None], None]
"""Told of the bytes that are here and of how many there are (None: not known). What it raises ends the transfer."""


@dataclass(frozen=True)
class Fetched:
    path: Path
    sha256: str
    size: int  # bytes


def fetch(
    url: str,
    sha256: str,
    cache: Path,
    progress: Report = lambda done, total: None,
    *,
    wait: Callable[[float], None] = time.sleep,
    public: bool = False,
) -> Fetched:
    """The content of a URL as a file in `cache`, of this SHA-256 (hex; empty: whatever it is).

    What came before an interruption is kept: calling again goes on from there. Two callers of one URL take turns.
    `public`: from the public internet alone.

    Raises:
        InputError: it is not there, may not be read, has another checksum, or cannot be reached.
        OSError: the cache cannot be written, e.g. because the disk is full; what has come so far is kept.
    """
    cache.mkdir(mode=0o700, parents=True, exist_ok=True)
    place = cache / hashlib.sha256(f"{url}\0{sha256}".encode()).hexdigest()[:32]
    with _turn(place.with_suffix(".part")) as part:
        have, version = _complete(place)
        if have is None or have.sha256 != sha256:
            transfer = _Transfer(url, _source(url, public), place, part, progress, wait)
            try:
                transfer.run(unless=version, blindly=bool(sha256))
                have = transfer.settle(sha256)
            except Unchanged:
                if have is None:
                    raise
        with contextlib.suppress(OSError):
            os.utime(place.with_suffix(".about"))  # when it was used last: see `keeping`
        progress(have.size, have.size)
        return have


def shown(url: str) -> str:
    """A URL fit for a message: without the password and the signature that it may hold."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return f"{parts.scheme}://{host}{parts.path}{'?…' if parts.query else ''}"


def _source(url: str, public: bool) -> Source:
    # Each costs a tenth of a second to import, which a job without such an input need not pay.
    if url.startswith("s3://"):
        if public:  # its credentials are those of this user
            raise InputError(
                f"{shown(url)} is not fetched for this job", "give a URL that needs no credentials of ours"
            )
        from gridhypervisor.staging.s3 import S3Source

        return S3Source(url)
    from gridhypervisor.staging.http import HttpSource

    return HttpSource(url, public=public)


@contextlib.contextmanager
def _turn(path: Path) -> Iterator[FileIO]:
    """The file of this name, open, and ours alone for a while. Left empty, it is removed."""
    while True:
        with open(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600), "r+b", buffering=0) as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if not _bears(path, file):
                continue  # whoever had it before has put it in its place, or removed it
            try:
                yield file
            finally:
                if _bears(path, file) and os.fstat(file.fileno()).st_size == 0:
                    path.unlink()
            return


def _bears(path: Path, file: FileIO) -> bool:
    """Whether an open file is the one of this name."""
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def _complete(place: Path) -> tuple[Fetched | None, str]:
    """What is in the cache, if it is what was put there, and its version."""
    try:
        about = json.loads(place.with_suffix(".about").read_text())
        with place.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
            size = os.fstat(file.fileno()).st_size
        if found == about["sha256"]:
            return Fetched(place, found, size), str(about["version"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        pass  # nothing yet, or damaged: it is fetched
    return None, ""


class _Transfer:
    """One URL's bytes on their way into one place of the cache."""

    def __init__(
        self, url: str, source: Source, place: Path, part: FileIO, progress: Report, wait: Callable[[float], None]
    ) -> None:
        self._url = url
        self._source = source
        self._place = place
        self._part = part
        self._progress = progress
        self._wait = wait
        self._of = place.with_suffix(".of")
        self._resumed = False

    def run(self, *, unless: str, blindly: bool) -> None:
        """Fill the part, trying again while that brings anything.

        `blindly`: a checksum will tell, so resume even where the source does not say of which version it is.

        Raises:
            Unchanged: it is still of the version `unless`.
            InputError: it cannot be had.
            OSError: it cannot be written.
        """
        fruitless, pause = 0, BACK_OFF[0]
        while True:
            size = self._size()
            version = self._of.read_text() if self._of.exists() else ""
            start = size if version or blindly else 0
            try:
                with self._source.get(start, version if start else "", unless) as answer:
                    self._receive(answer)
                return
            except Interrupted as interruption:
                if self._size() > size:
                    fruitless, pause = 0, BACK_OFF[0]
                fruitless += 1
                if fruitless == TRIES:
                    raise InputError(
                        f"fetch {shown(self._url)}: {interruption} ({TRIES} tries)",
                        "see that the address is right and can be reached from here; what has come so far is kept",
                    ) from interruption
                self._wait(min(max(pause, interruption.after), BACK_OFF[1]))
                pause *= 2
            except InputError as error:
                raise InputError(f"fetch {shown(self._url)}: {error}", error.hint) from error

    def settle(self, sha256: str) -> Fetched:
        """Put the full part in its place.

        Raises:
            InputError: its checksum is wrong, even when fetched anew from its first byte.
        """
        found = self._digest()
        if sha256 and found != sha256 and self._resumed:
            # Perhaps two contents in one: a source may have said nothing of its having changed.
            self._part.truncate(0)
            self._resumed = False
            self.run(unless="", blindly=True)
            found = self._digest()
        if sha256 and found != sha256:
            wrong = self._place.with_suffix(".wrong")
            self._path("part").rename(wrong)
            raise InputError(
                f"fetch {shown(self._url)}: the content has the SHA-256 {found}, but {sha256} was asked for",
                f"correct the sha256 in the job, or the URL; what came is in {wrong}",
            )
        os.fsync(self._part.fileno())
        version = self._of.read_text() if self._of.exists() else ""
        self._path("part").rename(self._place)
        self._path("about").write_text(json.dumps({"sha256": found, "version": version}))
        self._of.unlink(missing_ok=True)
        return Fetched(self._place, found, self._size())

    def _receive(self, answer: Answer) -> None:
        """Write an answer's bytes where they belong."""
        if answer.start == 0:
            self._part.truncate(0)
            self._of.write_text(answer.version)
        self._resumed = self._resumed or answer.start > 0
        self._part.seek(answer.start)
        done = told = answer.start
        self._progress(done, answer.total)
        for chunk in answer.chunks:
            self._write(chunk)
            done += len(chunk)
            if done - told >= _NEWS:
                told = done
                self._progress(done, answer.total)
        if answer.total is not None and done != answer.total:
            raise Interrupted(f"{done} of {answer.total} bytes came")

    def _write(self, chunk: bytes) -> None:
        rest = memoryview(chunk)
        try:
            while rest:
                rest = rest[self._part.write(rest) :]
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self._path("part"))) from error

    def _digest(self) -> str:
        self._part.seek(0)
        return hashlib.file_digest(self._part, "sha256").hexdigest()

    def _size(self) -> int:
        return os.fstat(self._part.fileno()).st_size

    def _path(self, what: str) -> Path:
        return self._place.with_suffix(f".{what}")
