"""What a job's program printed, and what its pilot and console said, on the user's machine.

One folder per job and epoch. `stdout` and `stderr` of a job are the concatenation over its attempts; offsets count in
that. Of an attempt that went on from a checkpoint, whose streams begin with what was printed before, only what comes
after that counts. A stream is written at given offsets, so a piece that comes twice changes nothing.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
from collections.abc import Mapping
from pathlib import Path

from gridhypervisor.model.access import Result
from gridhypervisor.model.spec import unsafe
from gridhypervisor.model.wire import (
    BATCH_LOG,
    CONSOLE,
    EXIT,
    PILOT_LOG,
    STDERR,
    STDOUT,
    ExitRecord,
    Outcome,
    OutputFile,
    Reason,
    from_plain,
)

STREAMS = {"stdout": STDOUT, "stderr": STDERR, "console": CONSOLE, "pilot": PILOT_LOG, "batch": BATCH_LOG}

OUTPUT = ("stdout", "stderr")
"""The streams of the program itself, which go on from attempt to attempt."""


NO_RECORD = ExitRecord("", 0, "", Outcome.FAILED, Reason.LOST)
"""Of an attempt whose sentinel is not there, or cannot be read."""

RESULTS = "results"

BEGINS = "begins.json"
"""In the folder of an attempt that goes on from a checkpoint: what its streams begin with."""


class Logs:
    def __init__(self, root: Path) -> None:
        self.root = root

    def folder(self, job: str, epoch: int) -> Path:
        path = self.root / job / str(epoch)
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        return path

    def begin(self, job: str, epoch: int, sizes: Mapping[str, int]) -> None:
        """Note what the streams of an attempt begin with that was printed before it, in bytes, before any of it comes.

        Raises:
            OSError: it could not be written.
        """
        place = self.folder(job, epoch) / BEGINS
        new = place.with_name(f".{BEGINS}")
        new.write_text(json.dumps({stream: sizes.get(STREAMS[stream], 0) for stream in OUTPUT}))
        new.replace(place)

    def begins(self, job: str, epoch: int, stream: str) -> int:
        """Bytes at the beginning of an attempt's stream that were printed before it."""
        try:
            return int(json.loads((self.root / job / str(epoch) / BEGINS).read_bytes())[stream])
        except (FileNotFoundError, NotADirectoryError, KeyError):
            return 0

    def before(self, job: str, epoch: int, stream: str) -> int:
        """Bytes of a job's stream that attempts before this one have printed."""
        return sum(self._own(job, each, stream) for each in self._epochs(job) if each < epoch)

    def _own(self, job: str, epoch: int, stream: str) -> int:
        return max(0, self.size(job, epoch, stream) - self.begins(job, epoch, stream))

    def write(self, job: str, epoch: int, stream: str, offset: int, data: bytes) -> None:
        """Add a piece of a stream, unless one before it is missing: then the whole comes when the run has ended.

        Raises:
            OSError: it could not be written, at least not all of it.
        """
        if offset > self.size(job, epoch, stream):
            return
        fd = os.open(self.folder(job, epoch) / STREAMS[stream], os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            while data:
                written = os.pwrite(fd, data, offset)
                offset, data = offset + written, data[written:]
        finally:
            os.close(fd)

    def size(self, job: str, epoch: int, stream: str) -> int:
        try:
            return (self.root / job / str(epoch) / STREAMS[stream]).stat().st_size
        except OSError:
            return 0

    def read(self, job: str, stream: str, offset: int, limit: int) -> bytes:
        """At most `limit` bytes from `offset` on; empty: no more for now. Console and pilot: the newest attempt's."""
        epochs = self._epochs(job)
        if stream not in OUTPUT:
            epochs = epochs[-1:]
        for epoch in epochs:
            begins = self.begins(job, epoch, stream) if stream in OUTPUT else 0
            size = max(0, self.size(job, epoch, stream) - begins)
            if offset < size:
                with open(self.root / job / str(epoch) / STREAMS[stream], "rb") as file:
                    file.seek(begins + offset)
                    return file.read(limit)
            offset -= size
        return b""

    def copy(self, job: str, stream: str, place: Path) -> None:
        """Make a file of all that there is of a stream, in the place of what is there.

        Raises:
            OSError: it could not be written.
        """
        new = place.with_name(f".ghv-{job}.{stream}")
        with open(new, "wb") as file:
            while data := self.read(job, stream, file.tell(), 1 << 20):
                file.write(data)
        new.replace(place)

    def outputs(self, job: str) -> tuple[str, ...]:
        """Paths of the results, relative to the job's destination, as its newest collected sentinel lists them: of the
        attempt that completed, if there is one, though another was asked for after it."""
        return tuple(output.path for output in self._sentinel(job))

    def _sentinel(self, job: str) -> tuple[OutputFile, ...]:
        records = list[ExitRecord]()
        for epoch in self._epochs(job):
            try:
                records.append(from_plain(ExitRecord, json.loads((self.root / job / str(epoch) / EXIT).read_bytes())))
            except (OSError, ValueError):
                records.append(NO_RECORD)
        completed = [record for record in records if record.outcome is Outcome.COMPLETED]
        return tuple(output for record in (completed or records)[-1:] for output in record.outputs)

    def home(self, job: str) -> Path:
        """Where the results of a job are kept that was given no other place for them: as long as the job itself."""
        return self.root / job / RESULTS

    def results(self, job: str) -> list[Result]:
        """All that are kept there, by path."""
        told = {output.path: output.sha256 for output in self._sentinel(job)}
        home, found = self.home(job), []
        for folder, folders, names in os.walk(home):
            for name in (*names, *(each for each in folders if os.path.islink(os.path.join(folder, each)))):
                place = Path(folder, name)
                path, seen = str(place.relative_to(home)), place.lstat()
                if stat.S_ISLNK(seen.st_mode):
                    found.append(Result(path, 0, link=os.readlink(place)))
                elif stat.S_ISREG(seen.st_mode):
                    found.append(Result(path, seen.st_size, seen.st_mode & 0o777, told.get(path, "")))
        return sorted(found, key=lambda result: result.path)

    def result(self, job: str, path: str, offset: int, limit: int) -> bytes | None:
        """At most `limit` bytes of one of them; None: there is no such file."""
        if unsafe(path):
            return None
        try:
            home = self.home(job).resolve(strict=True)
            place = (home / path).resolve(strict=True)  # a link leads to a result, or nowhere
            if not place.is_relative_to(home) or not place.is_file():
                return None
            with place.open("rb") as file:
                file.seek(offset)
                return file.read(limit)
        except OSError:
            return None

    def remove(self, job: str) -> None:
        if (self.root / job).is_dir():
            shutil.rmtree(self.root / job)

    def _epochs(self, job: str) -> list[int]:
        try:
            return sorted(int(name) for name in os.listdir(self.root / job) if name.isdigit())
        except FileNotFoundError:
            return []
