"""How an allocation ends: the one exception that the pilot's parts raise, and the sentinel that is written once.

Every part that finds a reason to end says so by raising `Ending`; the pilot alone turns it into `exit.json`. The
watchdog may have to write that file too, for a pilot that cannot, so the first writer wins.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from pathlib import Path

from gridhypervisor.agent import spool
from gridhypervisor.model import wire
from gridhypervisor.model.wire import Checkpoint, ExitRecord, Outcome, Reason


class Ending(Exception):
    """The allocation ends here. `message` names the operation, the object and why; `hint` says what to do next;
    `checkpoint` is what is left of its guest."""

    def __init__(
        self, reason: Reason, message: str, hint: str = "", outcome: Outcome = Outcome.FAILED,
        checkpoint: Checkpoint | None = None,
    ) -> None:  # fmt: skip
        super().__init__(message)
        self.outcome = outcome
        self.reason = reason
        self.message = message
        self.hint = hint
        self.checkpoint = checkpoint


def now() -> float:
    """Seconds on CLOCK_BOOTTIME: it runs on while the machine or the process is suspended, and never jumps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def settle(entry: Path) -> dict[str, int]:
    """Put what the guest printed on the disk; the sizes in bytes of stdout, stderr and console, where there are such.

    Raises:
        OSError: it cannot be put there: a network file system may say only now that there is no room.
    """
    sizes = {}
    for name in (wire.STDOUT, wire.STDERR, wire.CONSOLE):
        with contextlib.suppress(FileNotFoundError), (entry / name).open("rb") as file:
            os.fsync(file.fileno())
            sizes[name] = os.fstat(file.fileno()).st_size
    return sizes


def instead(record: ExitRecord, reason: Reason, message: str, hint: str) -> ExitRecord:
    """The record of an end whose results this took away, if there were to be any."""
    words = [message] if record.outcome is Outcome.COMPLETED else [record.message, message]
    message = "; ".join(words).encode(errors="backslashreplace").decode()
    if record.outcome is not Outcome.COMPLETED:
        return dataclasses.replace(record, message=message)
    return dataclasses.replace(record, outcome=Outcome.FAILED, reason=reason, message=message, hint=hint)


def leave_in_any_case(entry: Path, record: ExitRecord) -> Exception | None:
    """`leave_sentinel`, and where that fails one that says less: the controller must learn of the end, if not of all
    that came of it. Returns why the full one could not be left.

    Raises:
        OSError: not even that could be written.
    """
    try:
        leave_sentinel(entry, record)
    except Exception as error:
        hint = "see pilot.log; free space or quota where the account's workdir is"
        less = instead(record, Reason.PILOT, f"write down how the job ended: {error}", hint)
        leave_sentinel(entry, dataclasses.replace(less, outputs=(), hypervisor=None))
        return error
    return None


def leave_sentinel(entry: Path, record: ExitRecord) -> bool:
    """Write `exit.json` durably unless there is one; say whether this record is the one that stands.

    Raises:
        OSError: it could not be written (the spool is full or gone).
    """
    private = entry / f".exit.{os.urandom(8).hex()}"
    spool.write_durable(private, wire.canonical(record))
    try:
        with contextlib.suppress(FileExistsError):
            os.link(private, entry / wire.EXIT)
        # On NFS the return value of link(2) is not to be believed; the link count of our own file is.
        with private.open("rb") as file:
            ours = os.fstat(file.fileno()).st_nlink == 2
    finally:
        private.unlink()
    spool.sync_folder(entry)
    return ours
