"""What a relay does to an entry of the spool when it is told to: make it, take it, leave a wish in it, remove it.

Each blocks, belongs in a thread, and has the effect of once however often it is asked for; see `wire.Op`.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from gridhypervisor.agent import relayfiles, spool
from gridhypervisor.agent.relayfiles import Refused
from gridhypervisor.model import wire
from gridhypervisor.model.wire import ExitRecord, OwnerRecord


def prepare(entry: Path, manifest: bytes) -> None:
    """Make an entry with this manifest, durably; one that it has already is never changed."""
    for folder in (entry, entry / wire.INPUTS, entry / wire.CONTROL):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if spool.buried(entry):
        raise Refused("gone", f"prepare {entry.name}: it was removed, and its name is never used again")
    path = entry / wire.MANIFEST
    if path.exists():
        if path.read_bytes() != manifest:
            raise Refused("conflict", f"prepare {entry.name}: it has another manifest, which is never changed")
        return
    spool.write_durable(path, manifest)
    spool.sync_folder(entry.parent)


def offer(entry: Path, pool: str) -> None:
    """Let pilots of this pool serve an entry that nobody has. Not durable: without it its own batch job serves it."""
    if not (entry / wire.MANIFEST).exists() or (entry / wire.OWNER).exists() or spool.buried(entry):
        return
    folder = entry.parent.parent / wire.OPEN / pool
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    os.close(os.open(folder / entry.name, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))


def _withhold(entry: Path) -> None:
    """Nobody need look at it any more. One that was left is no harm: whoever looks finds that it is taken."""
    for offered in entry.parent.parent.glob(f"{wire.OPEN}/*/{entry.name}"):
        offered.unlink(missing_ok=True)


def revoke(entry: Path, record: OwnerRecord) -> OwnerRecord:
    """An entry that is not there is made: the name is taken, whatever surfaces later."""
    entry.mkdir(mode=0o700, parents=True, exist_ok=True)
    owner = spool.take_owner(entry, record)
    _withhold(entry)
    return owner


def leave_word(path: Path, text: str) -> None:
    """Leave a word for the pilot, where there is none of this kind yet."""
    path.parent.mkdir(mode=0o700, exist_ok=True)
    if not path.exists():
        spool.write_durable(path, text.encode())


def leave_table(control: Path, version: int, text: str) -> None:
    """Leave a version of the table of a VM's private networks. Nothing happens where it is there, or a later one.

    Raises:
        FileNotFoundError: the entry is gone.
    """
    standing = [name for name in os.listdir(control) if name.startswith(wire.NETWORK)]
    known = {int(number) for name in standing if (number := name.removeprefix(wire.NETWORK)).isdecimal()}
    if known and max(known) >= version:
        return
    spool.write_durable(control / f"{wire.NETWORK}{version}", text.encode())
    for name in standing:
        (control / name).unlink(missing_ok=True)


def word(path: Path) -> str | None:
    """What was left there; None: nothing was."""
    with contextlib.suppress(OSError):
        return path.read_text(errors="replace")
    return None


def leave_grant(control: Path, beat: int) -> None:
    """Say that the beat of this number was answered. Nothing happens where the entry is gone, or a later one was.

    Not durable: what a crash takes back, the next answer says again.
    """
    try:
        standing = sorted(name for name in os.listdir(control) if name.startswith(wire.GRANT))
    except FileNotFoundError:
        return
    if any(int(name.removeprefix(wire.GRANT)) >= beat for name in standing):
        return
    new = control / f"{wire.GRANT}{beat}"
    if not standing:
        os.close(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
        return
    with contextlib.suppress(FileNotFoundError):  # the answer before, or the entry, was removed in this moment
        os.rename(control / standing.pop(), new)
    for name in standing:
        (control / name).unlink(missing_ok=True)


_THEN = (wire.SAVE_END, wire.SAVE_GO_ON, wire.SAVE_HAND_OVER, wire.SAVE_PAUSE, wire.SAVE_UNPAUSE)


def word_of(entry: str, request: Mapping[str, Any]) -> tuple[str, str]:
    """The file in control/, and what stands in it, that wire.Op.REQUEST asks for.

    Raises:
        Refused: it is none that a pilot knows.
    """
    match request["what"]:
        case wire.CANCEL:
            return wire.CANCEL, str(request.get("why", ""))
        case wire.BEGIN:
            return wire.BEGIN, str(request.get("members", ""))
        case "save" if request.get("then") in _THEN and int(request.get("number", 0)) > 0:
            return f"{wire.SAVE}{int(request['number'])}", f"{request['then']}: {request.get('why', '')}"
        case "exec" if int(request.get("number", 0)) > 0:
            wish = wire.from_plain(wire.Execute, request["execute"])
            return f"{wire.EXECUTE}{int(request['number'])}", wire.canonical(wish).decode()
    known = f"{wire.CANCEL!r}, {wire.BEGIN!r}, 'save' and 'exec'"
    raise Refused("request", f"request {request!r:.200} of {entry}: only {known} are known")


def granted(control: Path) -> int | None:
    """The number of the beat that was answered last; None: none was."""
    with contextlib.suppress(OSError):
        names = (name.removeprefix(wire.GRANT) for name in os.listdir(control) if name.startswith(wire.GRANT))
        return max(map(int, names), default=None)
    return None


def remove(entry: Path, settle: Callable[[Path], None], *, known: str, force: bool, discard: bool) -> None:
    """Remove an entry in which nobody can act any more, for good; see wire.Op.REMOVE for what is refused."""
    remover = OwnerRecord("controller", f"remove:{secrets.token_hex(8)}", 0, os.uname().nodename, "removed")
    if entry.is_dir():
        if not force and not (entry / wire.EXIT).exists():
            owner = spool.take_owner(entry, remover)
            if owner.by != "controller":
                raise Refused(
                    "busy",
                    f"remove {entry.name}: {owner.by} {owner.claim} on {owner.node} has it and has left no sentinel",
                    "wait for its end, or make sure that it is dead and force the removal",
                )
        if not discard:
            _refuse_unseen(entry, entry.name, known)
        settle(entry)
    spool.bury(entry, remover)
    _withhold(entry)
    aside = entry.with_name(f".removed.{entry.name}")
    relayfiles.remove(aside)  # a file that showed late kept it from being removed when this was asked before
    if not entry.is_dir():
        return
    os.rename(entry, aside)
    try:
        if not discard:
            _refuse_unseen(aside, entry.name, known)  # it may have come in the last moment
    except Refused:
        os.rename(aside, entry)
        raise
    relayfiles.remove(aside)


def _refuse_unseen(entry: Path, name: str, known: str) -> None:
    exit = spool.read_json(entry / wire.EXIT, ExitRecord)
    if exit is not None and exit.claim != known:
        raise Refused("unseen", f"remove {name}: it has a sentinel ({exit.outcome}) that was not collected",
                      "collect its results first")  # fmt: skip
