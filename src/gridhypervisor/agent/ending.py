"""How an allocation ends: the one exception that the pilot's parts raise, and the sentinel that is written once.

Every part that finds a reason to end says so by raising `Ending`; the pilot alone turns it into `exit.json`. The
watchdog may have to write that file too, for a pilot that cannot, so the first writer wins.
"""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

from gridhypervisor.agent import spool
from gridhypervisor.model import wire
from gridhypervisor.model.wire import ExitRecord, Outcome, Reason


class Ending(Exception):
    """The allocation ends here. `message` names the operation, the object and why; `hint` says what to do next."""

    def __init__(self, reason: Reason, message: str, hint: str = "", outcome: Outcome = Outcome.FAILED) -> None:
        super().__init__(message)
        self.outcome = outcome
        self.reason = reason
        self.message = message
        self.hint = hint


def now() -> float:
    """Seconds on CLOCK_BOOTTIME: it runs on while the machine or the process is suspended, and never jumps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


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
