"""The relay's side of an entry that a courier carries: what the courier of one entry may do with it, and no more.

The entry lies in the spool as every entry does, and here alone is said how it ended and who owns it: a courier asks for
what a pilot would do itself where it sees the spool. All of it blocks and belongs in a thread; see `wire.Carry`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
from pathlib import Path
from typing import Any

from gridhypervisor.agent import entries, spool
from gridhypervisor.agent.ending import leave_sentinel, settle
from gridhypervisor.agent.lender import forbidden
from gridhypervisor.agent.relayfiles import Files, Refused, remove
from gridhypervisor.model import wire
from gridhypervisor.model.wire import Carry, ExitRecord, Manifest, OwnerRecord

STAGED = ".carried"
"""In an entry: uploads that are not whole yet, and the sentinel before it stands."""

GROWING = frozenset({wire.STDOUT, wire.STDERR, wire.CONSOLE, wire.PILOT_LOG, wire.BATCH_LOG})


class Carried:
    """The entry `name` for one connection of its courier."""

    def __init__(self, files: Files, name: str) -> None:
        self._files, self.name = files, name
        self._entry = files.workdir / wire.SPOOL / name
        self._table = 0  # the version of the last table that was told
        self._claim = ""  # by which this courier owns the entry, once it does
        self._mine: dict[str, str] = {}  # what it may GET: the path in its words, and in the workdir

    def answer(self, request: dict[str, Any], payload: bytes) -> tuple[dict[str, Any], bytes]:
        """Do what one request asks for.

        Raises:
            Refused: it may not be, or makes no sense.
            OSError, WireError, KeyError: it cannot be.
        """
        op = request.get("op")
        if op == Carry.PING:
            return {}, b""
        if op == Carry.CLAIM:
            return self._take(request), b""
        if not self._claim:
            raise Refused("owner", f"{op} {self.name}: claim it first")
        if not self._entry.is_dir():
            raise Refused("gone", f"{op} {self.name}: the entry was removed", "end: nobody wants this run any more")
        match op:
            case Carry.GET:
                size, data = self._get(request)
                return {"size": size}, data
            case Carry.STATUS:
                spool.write_replace(self._entry / wire.STATUS, payload)
                return self.words(), b""
            case Carry.APPEND:
                self._append(str(request["name"]), int(request["offset"]), payload)
                return {}, b""
            case Carry.HAVE:
                part = self._staged(str(request["path"]))[1] + ".part"
                return {"size": self._files.have([part])[part] or 0}, b""
            case Carry.PUT:
                return {"size": self._put(request, payload)}, b""
            case Carry.LEAVE:
                self._leave()
                return {}, b""
            case _:
                raise Refused("request", f"no such operation: {op!r}", "is the bundle another version's?")

    def words(self) -> dict[str, Any]:
        """What the controller has left for the pilot; None for what it has not.

        `cancel`: why somebody wants the job to end; `begin`: who its gang are; `grant`: the beat answered last;
        `save`: the last wish to save the guest, with its number before it; `network`: the table of its private
        networks likewise, where it was not told before.
        """
        control = self._entry / wire.CONTROL
        cancel, begin = entries.word(control / wire.CANCEL), entries.word(control / wire.BEGIN)
        version, table = spool.newest_table(control) or (0, "")
        newer = f"{version} {table}" if version > self._table else None
        self._table = version
        return {
            "cancel": cancel, "begin": begin, "grant": entries.granted(control), "save": spool.to_save(control),
            "network": newer,
        }  # fmt: skip

    def _take(self, request: dict[str, Any]) -> dict[str, Any]:
        """Make this courier the entry's owner, unless somebody is; one that asks again gets the same answer."""
        record = wire.from_plain(OwnerRecord, request["owner"])
        if record.by != "pilot" or not record.claim:
            raise Refused("request", f"claim {self.name}: for {record.by!r}, not for a pilot")
        if buried := spool.buried(self._entry):
            return {"owner": _unnamed(buried)}
        try:
            plain = json.loads((self._entry / wire.MANIFEST).read_bytes())
        except FileNotFoundError as error:
            raise Refused("missing", f"claim {self.name}: it was not prepared, or was removed") from error
        manifest = wire.from_plain(Manifest, plain)
        standing = spool.take_owner(self._entry, record)
        if standing.claim != record.claim:
            return {"owner": _unnamed(standing)}
        self._claim, self._mine = record.claim, self._sources(manifest)
        no = forbidden(self._files.workdir, manifest)
        return {"owner": standing, "manifest": plain, "forbidden": no, **self.words()}

    def _sources(self, manifest: Manifest) -> dict[str, str]:
        inputs = (f"{wire.INPUTS}/{item.path}" for item in manifest.program.inputs)
        layers = (f"{wire.CACHE}/{layer.digest}" for layer in manifest.image.layers)
        return {path: f"{wire.SPOOL}/{self.name}/{path}" for path in inputs} | {
            path: path for layer in layers for path in (layer, f"{layer}.chunks")
        }

    def _get(self, request: dict[str, Any]) -> tuple[int, bytes]:
        path = str(request["path"])
        if path not in self._mine:
            raise Refused("path", f"get {path}: neither an input of {self.name} nor of its image")
        return self._files.get(self._mine[path], int(request["offset"]), int(request["length"]))

    def _append(self, name: str, offset: int, payload: bytes) -> None:
        if name not in GROWING:
            raise Refused("path", f"append to {name!r} of {self.name}: no stream and no log")
        descriptor = os.open(self._entry / name, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with open(descriptor, "wb", buffering=0) as file:
            if (size := os.fstat(descriptor).st_size) < offset:
                raise Refused("offset", f"append to {name} of {self.name} at {offset}: it has {size} bytes")
            file.seek(offset)
            view = memoryview(payload)
            while view:
                view = view[file.write(view) :]

    def _staged(self, path: str) -> tuple[Path, str]:
        """Where an output belongs, and where it is put until it is whole. Under a name that no output can have."""
        if path != wire.EXIT and not path.startswith(f"{wire.OUTPUTS}/"):
            raise Refused("path", f"put {path!r} of {self.name}: no output, and not {wire.EXIT}")
        target = self._files.place(f"{wire.SPOOL}/{self.name}/{path}")
        inside = target.parent.is_relative_to(self._entry / wire.OUTPUTS) or path == wire.EXIT
        if not inside:
            raise Refused("path", f"put {path!r}: it leads out of the outputs of {self.name}")
        name = path if path == wire.EXIT else hashlib.sha256(path.encode()).hexdigest()
        return target, f"{wire.SPOOL}/{self.name}/{STAGED}/{name}"

    def _put(self, request: dict[str, Any], payload: bytes) -> int:
        target, staged = self._staged(str(request["path"]))
        size = self._files.put({**request, "path": staged}, payload)
        if spool.buried(self._entry):  # it was removed meanwhile, and the upload has made its folder anew
            remove(self._entry)
            raise Refused("gone", f"put {request['path']}: the entry {self.name} was removed")
        if request.get("last") and request["path"] != wire.EXIT:
            target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            os.rename(self._files.workdir / staged, target)
            spool.sync_folder(target.parent)
        return size

    def _leave(self) -> None:
        """Let the sentinel stand, once everything is here of which it says that it is."""
        record = spool.read_json(self._entry / STAGED / wire.EXIT, ExitRecord)
        if record is None:
            standing = spool.read_json(self._entry / wire.EXIT, ExitRecord)
            if standing is not None and standing.claim == self._claim:
                return  # asked again: the answer was lost
            raise Refused("missing", f"leave {self.name}: its sentinel was not put")
        if record.claim != self._claim or record.entry != self.name:
            raise Refused("request", f"leave {self.name}: the sentinel is that of {record.entry}, {record.claim}")
        there = settle(self._entry)
        short = [name for name, size in record.streams.items() if there.get(name, 0) < size]
        out = self._entry / wire.OUTPUTS
        short += [file.path for file in record.outputs if not file.link and _size(out / file.path) != file.size]
        if short:
            raise Refused("incomplete", f"leave {self.name}: {short[0]} is not all here", "send it again")
        leave_sentinel(self._entry, record)
        (self._entry / STAGED / wire.EXIT).unlink(missing_ok=True)


def _unnamed(owner: OwnerRecord) -> OwnerRecord:
    """An owner as somebody else may know it: by its claim anybody with the ticket could act for it."""
    return dataclasses.replace(owner, claim="")


def _size(path: Path) -> int:
    with contextlib.suppress(OSError):
        return os.lstat(path).st_size
    return -1
