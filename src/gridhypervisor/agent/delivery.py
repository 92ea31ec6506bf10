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
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from gridhypervisor.agent import spool
from gridhypervisor.agent.ending import Ending, instead, now, settle
from gridhypervisor.agent.line import Declined, Line
from gridhypervisor.model import wire
from gridhypervisor.model.wire import (
    PIECE,
    Carry,
    ExitRecord,
    Outcome,
    OutputFile,
    OwnerRecord,
    Reason,
    Status,
    WireError,
)

BEAT = 10.0
"""Seconds after which the status is sent again though it is the same: then both ends know that the line holds."""

TRIES = 4
"""How often a relay may decline before the sentinel says less."""

PASSING = frozenset({"io", "space", "permission", "internal"})
"""Why a relay may decline now and not later: its disk is full, its file server is away, somebody mends its folder."""

LOST_THERE = frozenset({"incomplete", "offset", "digest", "missing"})
"""Why a relay declines that has lost what it had acknowledged: its machine crashed."""

CARRYING = "carrying the results home"


class Delivery:
    """Of one entry. `words`: the batch script's; `started`: when the batch job began, on CLOCK_BOOTTIME."""

    def __init__(self, entry: Path, owner: OwnerRecord, words: Path | None, started: float) -> None:
        self._entry, self._owner, self._started = entry, owner, started
        self._growing = {name: entry / name for name in (wire.PILOT_LOG, wire.CONSOLE, wire.STDOUT, wire.STDERR)}
        if words is not None:
            self._growing[wire.BATCH_LOG] = words
        self._sent: dict[str, int] = {}  # bytes that the relay has, by name
        self._status, self._beaten = b"", 0.0  # what was sent last, and when
        self._there: set[str] = set()  # outputs that the relay has
        self._declined = self._waited = 0  # refusals that will last, and that may pass
        self._record: ExitRecord | None = None  # that is to stand
        self._less: ExitRecord | None = None  # that is to stand instead, at the next try
        self._files: list[OutputFile] | None = None  # that go to the relay
        self._last: Status | None = None  # the pilot's last word; then what is added to it
        self._note = CARRYING

    def advance(self, line: Line) -> bool:
        """Send what is new, a piece of each at most; whether there is more.

        Raises:
            Away, Declined: see `Line.call`.
        """
        status = b""
        with contextlib.suppress(OSError):
            status = (self._entry / wire.STATUS).read_bytes()
        if status and (status != self._status or now() - self._beaten > BEAT):
            line.call(Carry.STATUS, status)
            self._status, self._beaten = status, now()
        return self._grow(line)

    def finish(self, line: Line) -> None:
        """Send all the rest. To be called when no process of the VM is left.

        Raises:
            Away, Declined: see `Line.call`; to be called again.
        """
        if self._less is not None:
            leave(line, self._less)
            return
        if self._record is None:
            self._record, self._beaten = self._ending(), 0.0
            with contextlib.suppress(OSError, WireError):
                self._last = spool.read_json(self._entry / wire.STATUS, Status)

        def beat() -> None:
            self._beat(line)

        beat()
        while self._grow(line):
            beat()
        if self._files is None:
            self._files = self._outputs(self._record, beat)
        for output in self._files:
            if output.path not in self._there:
                with (self._entry / wire.OUTPUTS / output.path).open("rb") as file:
                    _put(line, f"{wire.OUTPUTS}/{output.path}", file, output, beat)
                self._there.add(output.path)
        leave(line, self._record)

    def refused(self, error: Declined | OSError, until: float) -> bool:
        """The relay would not have it, or it cannot be read here: decide what the next try sends.

        All of it again, mostly: trouble that may pass is waited for up to the moment `until`. Then, or when it is
        refused often for what will not pass, a sentinel that says less; and where that is refused too, all again.
        False: no more can be done.
        """
        kind = error.kind if isinstance(error, Declined) else ""
        passing = kind in PASSING
        self._waited += passing
        self._declined += not passing
        self._note, self._beaten = f"{CARRYING}: {error}", 0.0
        if kind in LOST_THERE:
            self._sent.clear()
            self._there.clear()
        if self._less is not None:
            self._less = None
        elif self._record is not None and (
            self._declined >= TRIES or (passing and self._waited >= TRIES and now() >= until)
        ):
            self._less = self._reduced(self._record, error)
        return self._declined <= 2 * TRIES

    @staticmethod
    def _reduced(record: ExitRecord, error: Declined | OSError) -> ExitRecord:
        reason, hint = Reason.NODE_DISK, "look at the node's scratch, and retry"
        if isinstance(error, Declined):
            reason, hint = Reason.NODE_DISK if error.kind == "space" else Reason.PILOT, error.hint
        less = instead(record, reason, f"carry the results to the relay: {error}", hint)
        return dataclasses.replace(less, outputs=(), streams={})

    def _beat(self, line: Line) -> None:
        """Say that the results are on their way: who is silent after a cancellation is ended by force."""
        if self._last is None or now() - self._beaten < BEAT:
            return
        self._last = dataclasses.replace(
            self._last, sequence=self._last.sequence + 1, elapsed=now() - self._started, note=self._note
        )
        line.call(Carry.STATUS, wire.canonical(self._last))
        self._beaten = now()

    def _grow(self, line: Line) -> bool:
        """Send what was added to streams and logs, a piece of each at most; whether there is more."""
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

    def _outputs(self, record: ExitRecord, beat: Callable[[], None]) -> list[OutputFile]:
        """The files of which the sentinel says that they are there; all of them, where somebody else than the pilot
        wrote it, who does not know. A link is in the sentinel alone."""
        if record.by == "pilot":
            return [output for output in record.outputs if not output.link]
        found = []
        out = self._entry / wire.OUTPUTS
        for folder, _, names in os.walk(out):
            for path in (Path(folder, name) for name in names):
                if path.is_file() and not path.is_symlink():
                    beat()
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
    _put(line, wire.EXIT, io.BytesIO(data), described, lambda: None)
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


def _put(line: Line, path: str, source: BinaryIO, file: OutputFile, beat: Callable[[], None]) -> None:
    """Send one file, going on where an earlier try was cut short; `beat` before each piece."""
    reply, _ = line.call(Carry.HAVE, path=path)
    offset = min(int(reply["size"]), max(0, file.size - 1)) // PIECE * PIECE
    source.seek(offset)
    last = False
    while not last:
        beat()
        data = source.read(PIECE)
        last = offset + len(data) >= file.size or not data
        line.call(
            Carry.PUT, data, path=path, offset=offset, last=last, size=file.size, sha256=file.sha256, mode=file.mode
        )
        offset += len(data)
