"""What a courier carries from the entry on its node to the one in the spool, and what of it is there already.

While the VM lives: its status, and what is added to its streams and logs. When nothing of it is left: the outputs, and
the sentinel last. What the relay has acknowledged is not sent again; what it may not have got, is.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import os
import resource
from pathlib import Path
from typing import BinaryIO

from gridhypervisor.agent import spool
from gridhypervisor.agent.ending import Ending, instead, now, settle
from gridhypervisor.agent.line import Declined, Line
from gridhypervisor.model import wire
from gridhypervisor.model.wire import PIECE, Carry, ExitRecord, Outcome, OutputFile, OwnerRecord, Reason, WireError

BEAT = 10.0
"""Seconds after which the status is sent again though it is the same: then both ends know that the line holds."""

TRIES = 4
"""How often a relay may decline before the sentinel says less."""


class Delivery:
    """Of one entry. `words`: the batch script's; `started`: when the batch job began, on CLOCK_BOOTTIME."""

    def __init__(self, entry: Path, owner: OwnerRecord, words: Path | None, started: float) -> None:
        self._entry, self._owner, self._started = entry, owner, started
        self._growing = {name: entry / name for name in (wire.PILOT_LOG, wire.CONSOLE, wire.STDOUT, wire.STDERR)}
        if words is not None:
            self._growing[wire.BATCH_LOG] = words
        self._sent: dict[str, int] = {}  # bytes that the relay has, by name
        self._status, self._beat = b"", 0.0
        self._there: set[str] = set()  # outputs that the relay has
        self._declined, self._reduced = 0, False
        self._record: ExitRecord | None = None

    def advance(self, line: Line) -> bool:
        """Send what is new, a piece of each at most; whether there is more.

        Raises:
            Away, Declined: see `Line.call`.
        """
        status = b""
        with contextlib.suppress(OSError):
            status = (self._entry / wire.STATUS).read_bytes()
        if status and (status != self._status or now() - self._beat > BEAT):
            line.call(Carry.STATUS, status)
            self._status, self._beat = status, now()
        more = False
        for name, path in self._growing.items():
            with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
                sent = self._sent.get(name, 0)
                file.seek(sent)
                if data := file.read(PIECE):
                    try:
                        line.call(Carry.APPEND, data, name=name, offset=sent)
                    except Declined as error:
                        if error.kind == "offset":  # the site lost what it had, its machine crashed: all of it again
                            self._sent[name] = 0
                        raise
                    self._sent[name] = sent + len(data)
                    more = more or len(data) == PIECE
        return more

    def finish(self, line: Line) -> None:
        """Send all the rest. To be called when no process of the VM is left.

        Raises:
            Away, Declined: see `Line.call`; to be called again.
        """
        record = self._record = self._record or self._ending()
        while not self._reduced and self.advance(line):
            pass
        for output in self._outputs(record):
            if output.path not in self._there:
                with (self._entry / wire.OUTPUTS / output.path).open("rb") as file:
                    _put(line, f"{wire.OUTPUTS}/{output.path}", file, output)
                self._there.add(output.path)
        leave(line, record)

    def reduce(self, error: Declined | OSError) -> bool:
        """The relay would not have it, or it cannot be read here. Let the sentinel say less, once that has happened
        often; False: it says so little that no more can be done."""
        self._declined += 1
        if self._declined < TRIES:
            return True
        record = self._record
        if record is None or self._declined > 2 * TRIES:
            return False
        if not self._reduced:
            self._reduced = True
            reason, hint = Reason.NODE_DISK, "look at the node's scratch, and retry"
            if isinstance(error, Declined):
                reason, hint = Reason.NODE_DISK if error.kind == "space" else Reason.PILOT, error.hint
            less = instead(record, reason, f"carry the results to the relay: {error}", hint)
            self._record = dataclasses.replace(less, outputs=(), streams={})
        return True

    def _ending(self) -> ExitRecord:
        """The sentinel that the pilot or the watchdog left; or that they were both killed."""
        record: ExitRecord | None = None
        with contextlib.suppress(OSError, WireError):
            record = spool.read_json(self._entry / wire.EXIT, ExitRecord)
        if record is None:
            streams: dict[str, int] = {}
            with contextlib.suppress(OSError):
                streams = settle(self._entry)
            return ExitRecord(
                entry=self._entry.name, epoch=self._owner.epoch, claim=self._owner.claim, outcome=Outcome.FAILED,
                reason=Reason.PILOT, message="run the guest: the pilot and its watchdog were killed, and so the guest",
                hint="see the batch system's record of the job (out of memory? killed by an administrator?) and retry",
                elapsed=now() - self._started, node=self._owner.node, streams=streams, by="courier",
            )  # fmt: skip
        own = resource.getrusage(resource.RUSAGE_SELF)
        usage = dataclasses.replace(record.usage, pilot=record.usage.pilot + own.ru_utime + own.ru_stime)
        return dataclasses.replace(record, usage=usage)

    def _outputs(self, record: ExitRecord) -> list[OutputFile]:
        """The files of which the sentinel says that they are there; all of them, where somebody else than the pilot
        wrote it, who does not know. A link is in the sentinel alone."""
        if record.by == "pilot":
            return [output for output in record.outputs if not output.link]
        found = []
        out = self._entry / wire.OUTPUTS
        for folder, _, names in os.walk(out):
            for path in (Path(folder, name) for name in names):
                if path.is_file() and not path.is_symlink():
                    with path.open("rb") as file:
                        digest = hashlib.file_digest(file, "sha256").hexdigest()
                    status = path.stat()
                    found.append(OutputFile(str(path.relative_to(out)), status.st_size, status.st_mode & 0o777, digest))
        return found


def leave(line: Line, record: ExitRecord) -> None:
    """Let this be the entry's sentinel.

    Raises:
        Away, Declined: see `Line.call`; to be called again.
    """
    data = wire.canonical(record)
    described = OutputFile("", len(data), 0o600, hashlib.sha256(data).hexdigest())
    _put(line, wire.EXIT, io.BytesIO(data), described)
    line.call(Carry.LEAVE)


def unbegun(owner: OwnerRecord, entry: str, error: Exception, elapsed: float) -> ExitRecord:
    """The sentinel of a run that had no place on its node, or no manifest that could be understood."""
    hint = "free space on the node's scratch, or configure another scratch for the site"
    reason, message = Reason.NODE_DISK, f"make a place for the job on {owner.node}: {error}"
    if isinstance(error, Ending):
        reason, message, hint = error.reason, error.message, error.hint
    elif isinstance(error, WireError):
        reason, message, hint = Reason.MANIFEST, f"read the manifest: {error}", "is the bundle of another version?"
    return ExitRecord(
        entry, owner.epoch, owner.claim, Outcome.FAILED, reason, message, hint, elapsed=elapsed, node=owner.node
    )


def _put(line: Line, path: str, source: BinaryIO, file: OutputFile) -> None:
    """Send one file, going on where an earlier try was cut short."""
    reply, _ = line.call(Carry.HAVE, path=path)
    offset = min(int(reply["size"]), max(0, file.size - 1)) // PIECE * PIECE
    source.seek(offset)
    last = False
    while not last:
        data = source.read(PIECE)
        last = offset + len(data) >= file.size or not data
        line.call(
            Carry.PUT, data, path=path, offset=offset, last=last, size=file.size, sha256=file.sha256, mode=file.mode
        )
        offset += len(data)
