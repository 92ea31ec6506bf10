"""The spool entry on disk: who owns it, what it says, and how anything durable is written there.

Everything that must hold on a network file system is here, and nothing else: ownership by `link(2)` with the link
count as the only witness, files that appear whole or not at all, and one look at an entry. It decides nothing about
virtual machines; pilot, watchdog and relay do, each for its part.
"""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import TypeVar

from gridhypervisor.model import wire
from gridhypervisor.model.wire import EntryView, ExitRecord, OwnerRecord, Status, WireError

T = TypeVar("T")

MAX_RECORD = 64 << 20
"""Longest record file that is read, in bytes: a larger one was not written by us."""

REMEMBERED = 14 * 86400
"""Seconds that a removed entry's name is remembered: longer than any batch job or request can be on its way."""


class SpoolError(OSError):
    """A spool operation failed for a reason that the site must mend (no hard links, no space, no permission)."""


def take_owner(entry: Path, record: OwnerRecord) -> OwnerRecord:
    """Take the entry's `owner` for `record`, unless somebody has it; return the record that stands from now on.

    The caller owns the entry if and only if the returned `claim` is its own. An entry that was buried is owned by
    whoever buried it, for ever. Asked again with the same claim, it
    gets the same answer. `link(2)` is atomic on NFS while its *return value* is not to be believed (a lost reply is
    sent again and then fails with EEXIST), and O_EXCL is worse: so the link count of our own private file decides.

    Raises:
        FileNotFoundError: the entry's folder is gone.
        SpoolError: neither we nor anybody else could be made owner; nothing may be run.
        WireError: `owner` stands but cannot be read; it is not ours, nothing may be run.
    """
    owner = entry / wire.OWNER
    private = entry / f".owner.{os.urandom(8).hex()}"
    failure: OSError | None = None
    try:
        _write_synced(private, wire.canonical(record), 0o600)
        try:
            os.link(private, owner)
        except OSError as error:
            failure = error
        # Opening revalidates the attributes with the server; a bare stat may be answered from the client's cache.
        with private.open("rb") as file:
            ours = os.fstat(file.fileno()).st_nlink == 2
    finally:
        with contextlib.suppress(FileNotFoundError):
            private.unlink()
    if ours:
        sync_folder(entry)
        # An entry that was removed may have been made anew by a request that was on its way for long.
        return buried(entry) or record
    standing = read_json(owner, OwnerRecord)
    if standing is None:
        raise SpoolError(
            f"take {owner}: no hard link could be made ({failure or 'the link count did not change'}); "
            "the spool must be on a file system with hard links and free space"
        )
    return standing


def bury(entry: Path, record: OwnerRecord) -> None:
    """Write down, before an entry is removed, that nobody can own one of this name again."""
    grave = entry.parent / wire.BURIED
    grave.mkdir(mode=0o700, exist_ok=True)
    if not (grave / entry.name).exists():
        write_durable(grave / entry.name, wire.canonical(record))


def buried(entry: Path) -> OwnerRecord | None:
    """Who removed the entry of this name, if it was removed."""
    return read_json(entry.parent / wire.BURIED / entry.name, OwnerRecord)


def file_time(folder: Path) -> float:
    """Now, on the clock from which the files in this folder get their times: a file server's, which may be minutes
    off this machine's. How old a file there is, only that clock can tell. Raises OSError: no file can be made there.
    """
    path = folder / f".time-{os.getpid()}-{os.urandom(4).hex()}"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        return os.fstat(descriptor).st_mtime
    finally:
        os.close(descriptor)
        os.unlink(path)


def forget_buried(spool: Path, now: float) -> None:
    """Drop what was buried so long ago that nothing on its way can still surface. `now`: as `file_time` gives it."""
    for path in (spool / wire.BURIED).glob("*"):
        with contextlib.suppress(FileNotFoundError):
            if now - path.stat().st_mtime > REMEMBERED:
                path.unlink()


def read_json(path: Path, kind: type[T]) -> T | None:
    """The record that the file holds, or None where there is none (or none to be seen yet).

    Raises:
        WireError: the file is there and is not a record of this kind.
        OSError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_RECORD + 1)
    except FileNotFoundError:
        return None
    if len(data) > MAX_RECORD:
        raise WireError(f"read {path}: larger than {MAX_RECORD} bytes")
    try:
        return wire.from_plain(kind, json.loads(data))
    except ValueError as error:  # WireError is one too
        raise WireError(f"read {path}: {error}") from error


def write_durable(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Put `data` at `path`, whole or not at all, and on the disk before this returns."""
    _write_beside(path, data, mode, durable=True)
    sync_folder(path.parent)


def write_replace(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Put `data` at `path`, whole or not at all; a crash of the machine may bring back what was there before."""
    _write_beside(path, data, mode, durable=False)


def view(entry: Path) -> EntryView:
    """One look at an entry. A part that is absent is None, and so is a status or a sentinel that cannot be read:
    only what was understood is reported. An `owner` that cannot be read is still one, of nobody that we know."""
    try:
        owner = read_json(entry / wire.OWNER, OwnerRecord)
    except (OSError, WireError) as error:
        owner = OwnerRecord(by="unknown", claim="", epoch=0, why=str(error))
    return EntryView(
        entry=entry.name, owner=owner, status=_or_none(entry / wire.STATUS, Status),
        exit=_or_none(entry / wire.EXIT, ExitRecord),
    )  # fmt: skip


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _or_none(path: Path, kind: type[T]) -> T | None:
    try:
        return read_json(path, kind)
    except (OSError, WireError):
        return None


def to_save(control: Path) -> str | None:
    """The last wish to save the guest: its number, a space, and what stands in it; None: there is none."""
    with contextlib.suppress(OSError):
        names = (name.removeprefix(wire.SAVE) for name in os.listdir(control) if name.startswith(wire.SAVE))
        number = max((int(name) for name in names if name.isdecimal()), default=0)
        if number:
            return f"{number} {(control / f'{wire.SAVE}{number}').read_text(errors='replace')}"
    return None


def newest_table(control: Path) -> tuple[int, str] | None:
    """The newest table of the VM's private networks: its version, and its text; None: there is none."""
    with contextlib.suppress(OSError):
        names = (name.removeprefix(wire.NETWORK) for name in os.listdir(control) if name.startswith(wire.NETWORK))
        version = max((int(name) for name in names if name.isdecimal()), default=0)
        if version:
            return version, (control / f"{wire.NETWORK}{version}").read_text(errors="replace")
    return None


def _write_beside(path: Path, data: bytes, mode: int, *, durable: bool) -> None:
    temporary = path.with_name(f".{path.name}.{os.urandom(8).hex()}")
    try:
        if durable:
            _write_synced(temporary, data, mode)
        else:
            _write(temporary, data, mode)
        os.rename(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
        raise


def _write_synced(path: Path, data: bytes, mode: int) -> None:
    _write(path, data, mode, sync=True)


def _write(path: Path, data: bytes, mode: int, *, sync: bool = False) -> None:
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode), "wb") as file:
        file.write(data)
        file.flush()
        if sync:
            os.fsync(file.fileno())
