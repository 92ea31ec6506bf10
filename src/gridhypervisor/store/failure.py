"""What a failure of SQLite or of the disk means to the user, and what to do about it. Repairs nothing."""

from __future__ import annotations

import errno
import os
import sqlite3
from pathlib import Path

from gridhypervisor.model.commit import StoreError

_KEEP = (
    "keep the file for an inquiry, and put a copy from before in its place, or move it away and start afresh "
    "(jobs that run are then no longer known)"
)

_NEXT_TO_NOTHING = 1 << 20
"""Free bytes below which a disk is as good as full."""


def explain(error: Exception, operation: str, path: Path) -> StoreError:
    """The StoreError to raise from an error of SQLAlchemy, of sqlite3 or of the operating system."""
    cause = getattr(error, "orig", None) or error
    if isinstance(cause, OSError):
        why, hint = f"{cause.strerror or cause}", _advice(cause.errno, path)
    elif isinstance(cause, sqlite3.Error):
        why, hint = f"{cause}", _sqlite_advice(getattr(cause, "sqlite_errorcode", 0), path)
    else:
        why, hint = f"{cause}", "nothing was changed; please report this with the service's log"
    return StoreError(operation, str(path), why, hint)


def _sqlite_advice(code: int, path: Path) -> str:
    match code & 0xFF:  # the low byte is the kind, the rest says more
        case sqlite3.SQLITE_FULL:
            return _space(path)
        case sqlite3.SQLITE_IOERR if _free(path) < _NEXT_TO_NOTHING:
            return _space(path)  # SQLite could not even make its index of the log, and does not say why
        case sqlite3.SQLITE_IOERR:
            return f"nothing was changed; see that the disk of {path.parent} is sound and not full"
        case sqlite3.SQLITE_CORRUPT | sqlite3.SQLITE_NOTADB:
            return f"the file is damaged or is no store: {_KEEP}"
        case sqlite3.SQLITE_READONLY | sqlite3.SQLITE_CANTOPEN | sqlite3.SQLITE_PERM:
            return f"see that you may write to {path} and to its folder"
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            return "another program holds the file (a backup, a sqlite3 shell): end it, then try again"
        case _:
            return "nothing was changed; please report this with the service's log"


def _advice(code: int | None, path: Path) -> str:
    if code in (errno.ENOSPC, errno.EDQUOT):
        return _space(path)
    return f"see that you may write to {path} and to its folder"


def _space(path: Path) -> str:
    return (
        f"nothing was changed; make room on the disk of {path.parent} ({_free(path) >> 20} MiB are free), or in your "
        "quota, then try again"
    )


def _free(path: Path) -> int:
    """Bytes that are free there for ordinary users."""
    try:
        state = os.statvfs(path.parent)
    except OSError:
        return 0
    return state.f_bavail * state.f_frsize
