"""A relay of a simulated account: bytes of the wire in, bytes of the wire out, the real one's answers.

One instance is one relay process on one connection; spool, files and batch system are the account's and outlive it.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gridhypervisor.execution.copies import seal
from gridhypervisor.model.replacing import replace
from gridhypervisor.model.wire import (
    BEGIN,
    CHECKPOINTS,
    EXIT,
    FRAME,
    NO_SHARE,
    NONCE,
    OUTPUTS,
    PROTOCOL,
    SPOOL,
    Command,
    Decoder,
    EntryView,
    Lending,
    Manifest,
    NetworkTable,
    Note,
    Op,
    OwnerRecord,
    Share,
    Terms,
    Use,
    bound_to,
    encode,
    frames_of,
    from_plain,
    obstacle,
    to_plain,
)
from gridhypervisor.simulation.batch import Batch
from gridhypervisor.simulation.spool import Entry, File, Spool

PAGE = 100
"""Entries in one answer to SCAN: few, so that tests have many pages."""


class Refused(Exception):
    """A request that is answered by an error."""

    def __init__(self, kind: str, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.kind, self.hint = kind, hint


class Account:
    """What a site holds for us: workdir files below `files`, the spool's entries, and what was lost by removals; and
    what its lender allows, who may change his mind by `lend`."""

    def __init__(self, spool: Spool, batch: Batch, now: Callable[[], float]) -> None:
        self.spool, self.batch, self.now = spool, batch, now
        self.files: dict[str, bytes] = {}  # by path below the workdir, but for the spool
        self.removed: list[Entry] = []
        self.claims = 0
        self.terms: Terms | None = None
        self.open_for: float | None = None  # seconds; as the lender's hours stand
        self.spent: list[Use] = []  # by VMs whose entries were removed
        self.minders: list[Callable[[], None]] = []  # relays, to be told that something may have changed for the lender

    def lend(self, terms: Terms | None, open_for: float | None = None) -> None:
        self.terms, self.open_for = terms, open_for
        self.stir()

    def stir(self) -> None:
        for tell in list(self.minders):
            tell()

    def uses(self) -> list[Use]:
        found = [use for entry in self.spool.entries.values() if (use := _use(entry)) is not None]
        return found + self.spent

    def lending(self, installation: str) -> Lending | None:
        if self.terms is None:
            return None
        mine, rest = NO_SHARE, NO_SHARE
        for use in self.uses():
            spent = Share(0, 0, 0, use.used.vm_seconds, use.used.core_seconds)
            live = use.used + use.reserved + spent.times(-1)
            mine, rest = (mine + live, rest) if use.installation == installation else (mine, rest + live)
            rest += spent
        return Lending(self.terms, mine, rest, self.open_for)

    def entry(self, name: object) -> Entry:
        entry = self.spool.entries.get(str(name))
        if entry is None:
            raise Refused("missing", f"no entry {name} in the spool", "it was removed, or not prepared yet")
        return entry


class Relay:
    """`send` takes bytes for the controller."""

    def __init__(self, account: Account, send: Callable[[bytes], None]) -> None:
        self._account, self._send = account, send
        self._decoder = Decoder()
        self._installation = self._prefix = ""
        self._told: Lending | None = None
        self._watched: dict[str, dict[str, int]] = {}
        self._handlers: dict[str, Callable[[dict[str, Any], bytes], tuple[dict[str, Any], bytes]]] = {
            Op.HELLO: self._hello, Op.EXEC: self._exec, Op.HAVE: self._have, Op.PUT: self._put,
            Op.LINK_IN: self._link_in, Op.GET: self._get, Op.PREPARE: self._prepare, Op.REVOKE: self._revoke,
            Op.REQUEST: self._request, Op.SCAN: self._scan, Op.WATCH: self._watch, Op.LIST_OUT: self._list_out,
            Op.REMOVE: self._remove, Op.EVICT: self._evict, Op.USAGE: self._usage,
            Op.LENT: self._lent, Op.GRANT: self._grant, Op.FETCH: self._fetch, Op.OFFER: self._offer,
            Op.SEAL: self._seal,
        }  # fmt: skip

    def close(self) -> None:
        if self._seen in self._account.spool.watchers:
            self._account.spool.watchers.remove(self._seen)
            self._account.minders.remove(self._tell_lending)

    def receive(self, data: bytes) -> None:
        for message, payload in self._decoder.feed(data):
            self._send(self.answer(message, payload))

    def answer(self, message: dict[str, Any], payload: bytes) -> bytes:
        reply: dict[str, Any] = {"id": message.get("id")}
        try:
            handler = self._handlers.get(str(message.get("op")))
            if handler is None:
                raise Refused("request", f"no such operation: {message.get('op')!r}")
            reply["ok"], data = handler(message, payload)
            return encode(reply, data)
        except Refused as error:
            reply["error"] = {"kind": error.kind, "message": str(error), "hint": error.hint}
        except (KeyError, TypeError, ValueError) as error:
            reply["error"] = {"kind": "request", "message": f"{message.get('op')}: {error!r}", "hint": ""}
        return encode(reply)

    # -- requests --------------------------------------------------------------------------------------------------

    def _hello(self, request: dict[str, Any], _: bytes) -> tuple[dict[str, Any], bytes]:
        if request["protocol"] != PROTOCOL:
            raise Refused("protocol", f"this relay speaks protocol {PROTOCOL}, not {request['protocol']}")
        self._installation = str(request["installation"])
        self._prefix = f"{self._installation}-"
        self.close()
        self._account.spool.watchers.append(self._seen)
        self._account.minders.append(self._tell_lending)
        self._told = self._account.lending(self._installation)
        return {"protocol": PROTOCOL, "host": "front", "user": "user", "uid": 1000, "workdir": "/work-dir",
                "boot_id": "1", "pid": 0, "lender": self._told}, b""  # fmt: skip

    def _exec(self, request: dict[str, Any], _: bytes) -> tuple[dict[str, Any], bytes]:
        results = [self._account.batch.command(from_plain(Command, item)) for item in request["commands"]]
        return {"results": results}, b""

    def _have(self, request: dict[str, Any], _: bytes) -> tuple[dict[str, Any], bytes]:
        sizes: dict[str, int | None] = {}
        for path in request["paths"]:
            for name in (path, f"{path}.part"):
                data = self._bytes(name)
                sizes[name] = None if data is None else len(data)
        return {"sizes": sizes}, b""

    def _put(self, request: dict[str, Any], payload: bytes) -> tuple[dict[str, Any], bytes]:
        path, offset = str(request["path"]), int(request["offset"])
        part = (self._bytes(f"{path}.part") or b"")[:offset]
        if len(part) < offset:
            raise Refused("offset", f"put {path}: piece at {offset}, but only {len(part)} bytes are here")
        data = part + payload
        if not request.get("last"):
            self._store(f"{path}.part", data)
            return {"size": len(data)}, b""
        self._drop(f"{path}.part")
        self._verify(request, data)
        self._store(path, data)
        return {"size": len(data)}, b""

    def _link_in(self, request: dict[str, Any], _: bytes) -> tuple[dict[str, Any], bytes]:
        data = Path(request["source"]).read_bytes()
        self._verify(request, data)
        self._store(str(request["path"]), data)
        return {"size": len(data)}, b""

    def _get(self, request: dict[str, Any], _: bytes) -> tuple[dict[str, Any], bytes]:
        path, offset = str(request["path"]), int(request["offset"])
        data = self._bytes(path)
        if data is None:
            raise Refused("missing", f"no file {path}", "it may have been removed, or not be made")
        piece = data[offset : offset + int(request["length"])]
        end = offset + len(piece) >= len(data)
        if end and path.startswith(f"{SPOOL}/"):
            self._file(path).fetched = True
        return {"size": len(data), "eof": end}, piece

    def _fetch(self, request: dict[str, Any], _: bytes) -> tuple[dict[str, Any], bytes]:
        folder, left = f"{SPOOL}/{request['entry']}", int(request["most"])
        names, whole = [str(name) for name in request["names"]], b""
        if request["outputs"] and (sentinel := self._bytes(f"{folder}/{EXIT}")) is not None:
            names += [f"{OUTPUTS}/{file['path']}" for file in json.loads(sentinel).get("outputs", ())]
        sizes: dict[str, int | None] = {}
        for name in names:
            data = self._bytes(path := f"{folder}/{name}")
            if data is None:
                sizes[name] = None
            elif len(whole) + len(data) <= left:
                sizes[name], whole = len(data), whole + data
                self._file(path).fetched = True
        return {"sizes": sizes}, whole

    def _prepare(self, request: dict[str, Any], _: bytes) -> tuple[dict[str, Any], bytes]:
        manifest = from_plain(Manifest, request["manifest"])
        if request["entry"] in self._account.spool.buried:
            raise Refused("gone", f"prepare {request['entry']}: it was removed, and its name is never used again")
        known = self._account.spool.entries.get(str(request["entry"]))
        if known is not None and known.manifest is not None and known.manifest != manifest:
            raise Refused("conflict", f"prepare {known.name}: it has another manifest, which is never changed")
        if known is None or known.manifest is None:
            self._admit(manifest)
        self._account.spool.make(str(request["entry"])).manifest = manifest
        self._account.stir()
        return {}, b""

    def _admit(self, manifest: Manifest) -> None:
        lending, wants = self._account.lending(manifest.installation), manifest.resources
        if lending is None:
            return
        want, digest = Share.of(wants.cpus, wants.memory, wants.walltime), manifest.image_digest
        why = obstacle(lending.terms, lending.taken(), want, digest, wants.walltime, lending.open_for)
        if why:
            self._told = lending
            self._send(encode({"note": Note.LENDER, "lender": to_plain(lending)}))
            raise Refused("lender", f"prepare {manifest.entry}: {why}", lending.terms.hint)

    def _offer(self, request: dict[str, Any], _: bytes) -> tuple[dict[str, Any], bytes]:
        entry = self._account.spool.entries.get(str(request["entry"]))
        if entry is not None:
            self._account.spool.offer(entry, str(request["pool"]))
        return {}, b""

    def _revoke(self, request: dict[str, Any], _: bytes) -> tuple[dict[str, Any], bytes]:
        self._account.claims += 1
        claim = f"controller:{self._account.claims}"
        record = OwnerRecord("controller", claim, int(request["epoch"]), "front", str(request.get("why", "")))
        if request["entry"] in self._account.spool.buried:
            return {"owner": record}, b""
        entry = self._account.spool.make(str(request["entry"]))
        return {"owner": self._account.spool.take_owner(entry, record)}, b""

    def _request(self, request: dict[str, Any], _: bytes) -> tuple[dict[str, Any], bytes]:
        entry = self._account.entry(request["entry"])
        if request["what"] == BEGIN:
            self._account.spool.begin(entry, str(request["members"]))
        elif request["what"] == "save":
            self._account.spool.save(entry, int(request["number"]), str(request["then"]))
        elif request["what"] == "network":
            table = from_plain(NetworkTable, request["table"])
            if entry.table is None or table.version > entry.table.version:
                entry.table = table
        else:
            self._account.spool.wish(entry, str(request.get("why", "")))
        return {}, b""

    def _grant(self, request: dict[str, Any], _: bytes) -> tuple[dict[str, Any], bytes]:
        for name, beat in request["grants"].items():
            if (entry := self._account.spool.entries.get(name)) is not None:
                self._account.spool.grant(entry, int(beat))
        return {}, b""

    def _scan(self, request: dict[str, Any], _: bytes) -> tuple[dict[str, Any], bytes]:
        after = str(request.get("after", ""))
        names = sorted(n for n in self._account.spool.entries if n.startswith(self._prefix) and n > after)
        page = [self._account.spool.entries[name].seen for name in names[:PAGE]]
        return {"entries": page, "more": len(names) > PAGE}, b""

    def _watch(self, request: dict[str, Any], _: bytes) -> tuple[dict[str, Any], bytes]:
        entry = self._account.entry(request["entry"])
        wanted = {s: int(request[s]) for s in ("stdout", "stderr") if request.get(s) is not None}
        self._watched.pop(entry.name, None)
        if wanted:
            self._watched[entry.name] = wanted
            self._tell_output(entry)
        return {}, b""

    def _list_out(self, request: dict[str, Any], _: bytes) -> tuple[dict[str, Any], bytes]:
        entry = self._account.entry(request["entry"])
        digests = {f.path: f.sha256 for f in entry.exit.outputs} if entry.exit is not None else {}
        files = [
            {"path": path[4:], "size": len(file.data), "mode": 0o644, "sha256": digests.get(path[4:], "")}
            for path, file in sorted(entry.files.items())
            if path.startswith("out/") and file.visible <= self._account.now()
        ]
        return {"files": files, "more": False}, b""

    def _remove(self, request: dict[str, Any], _: bytes) -> tuple[dict[str, Any], bytes]:
        entry = self._account.spool.entries.get(str(request["entry"]))
        if entry is not None:
            if not request.get("force") and entry.exit is None:
                me = OwnerRecord("controller", "remove", 0, "front")
                if self._account.spool.take_owner(entry, me).by != "controller":
                    raise Refused("busy", f"remove {entry.name}: a pilot has it and has left no sentinel")
            visible = self._bytes(f"{SPOOL}/{entry.name}/{EXIT}") is not None
            unseen = visible and entry.exit is not None and entry.exit.claim != request.get("known", "")
            if unseen and not request.get("discard"):
                raise Refused("unseen", f"remove {entry.name}: it has a sentinel that was not collected")
            if entry.exit is not None and entry.exit.claim != request.get("known", "") and not request.get("discard"):
                raise Refused("unseen", f"remove {entry.name}: it has a sentinel that was not collected")
            if (use := _use(entry)) is not None:
                self._account.spent.append(replace(use, used=_time(use.used), reserved=NO_SHARE))
            self._account.removed.append(entry)
            self._account.spool.remove(entry)
            self._account.stir()
        self._account.spool.buried.add(str(request["entry"]))
        return {}, b""

    def _evict(self, request: dict[str, Any], _: bytes) -> tuple[dict[str, Any], bytes]:
        freed = 0
        for path in map(str, request["paths"]):
            kept = self._account.spool.kept.pop(path.removeprefix(f"{CHECKPOINTS}/"), None)
            freed += kept.checkpoint.size if kept is not None else len(self._account.files.pop(path, b""))
        return {"freed": freed}, b""

    def _seal(self, request: dict[str, Any], _: bytes) -> tuple[dict[str, Any], bytes]:
        name, part, number = str(request["checkpoint"]), str(request["part"]), int(request["frame"])
        kept = self._account.spool.kept.get(name)
        data = kept.part(part) if kept is not None else None
        if data is None:
            raise Refused("missing", f"no file {CHECKPOINTS}/{name}/{part}", "removed, or not made yet?")
        if not 0 <= number < frames_of(len(data)):
            raise Refused("offset", f"seal {part}: it has no frame {number}")
        nonce = hashlib.sha256(f"{name} {part} {number}".encode()).digest()[:NONCE]  # of bytes that never change
        bound = bound_to(name, part, len(data), number)
        return {"size": len(data)}, seal(bytes.fromhex(request["key"]), nonce, data[number * FRAME :][:FRAME], bound)

    def _usage(self, request: dict[str, Any], _: bytes) -> tuple[dict[str, Any], bytes]:
        return {"cpu_seconds": 0.0, "max_rss_bytes": 0, "free_bytes": 1 << 40}, b""

    def _lent(self, request: dict[str, Any], _: bytes) -> tuple[dict[str, Any], bytes]:
        return {"lender": self._account.terms, "uses": self._account.uses()}, b""

    # -- what it says unasked --------------------------------------------------------------------------------------

    def _seen(self, view: EntryView) -> None:
        if view.entry.startswith(self._prefix):
            self._send(encode({"note": Note.ENTRY, "entry": view}))
            if view.exit is not None and view.entry in self._watched:
                self._tell_output(self._account.entry(view.entry))
        if view.exit is not None:
            self._tell_lending()

    def _tell_lending(self) -> None:
        now = self._account.lending(self._installation)
        if now != self._told:
            self._told = now
            self._send(encode({"note": Note.LENDER, "lender": to_plain(now)}))

    def _tell_output(self, entry: Entry) -> None:
        for stream, offset in self._watched.get(entry.name, {}).items():
            data = entry.files[stream].data[offset:] if stream in entry.files else b""
            if data:
                self._watched[entry.name][stream] += len(data)
                note = {"note": Note.OUTPUT, "entry": entry.name, "stream": stream, "offset": offset}
                self._send(encode(note, data))

    # -- files -----------------------------------------------------------------------------------------------------

    def _file(self, path: str) -> File:
        _, name, inner = path.split("/", 2)
        return self._account.entry(name).files[inner]

    def _bytes(self, path: str) -> bytes | None:
        if not path.startswith(f"{SPOOL}/"):
            return self._account.files.get(path)
        _, name, inner = path.split("/", 2)
        entry = self._account.spool.entries.get(name)
        file = entry.files.get(inner) if entry is not None else None
        return file.data if file is not None and file.visible <= self._account.now() else None

    def _store(self, path: str, data: bytes) -> None:
        if path.startswith(f"{SPOOL}/"):
            _, name, inner = path.split("/", 2)
            self._account.entry(name).files[inner] = File(data, 0.0)
        else:
            self._account.files[path] = data

    def _drop(self, path: str) -> None:
        if path.startswith(f"{SPOOL}/"):
            _, name, inner = path.split("/", 2)
            self._account.entry(name).files.pop(inner, None)
        else:
            self._account.files.pop(path, None)

    def _verify(self, request: dict[str, Any], data: bytes) -> None:
        """By the digest given, or by the chunk list that came before."""
        expected = request.get("sha256")
        if expected and hashlib.sha256(data).hexdigest() != expected:
            raise Refused("digest", f"verify {request['path']}: not the file that was announced")
        if chunks := request.get("chunks"):
            size = int(request.get("chunk_size", 1 << 20))
            pieces = b"".join(hashlib.sha256(data[i : i + size]).digest() for i in range(0, len(data), size))
            if self._bytes(str(chunks)) != pieces:
                raise Refused("digest", f"verify {request['path']}: a chunk is not that of {chunks}")


def _use(entry: Entry) -> Use | None:
    """What an entry takes of the account, as far as the relay sees it; None: nothing ever."""
    if entry.manifest is None or (entry.owner is not None and entry.owner.by == "controller"):
        return None
    m = entry.manifest
    want = Share.of(m.resources.cpus, m.resources.memory, m.resources.walltime)
    if entry.seen.exit is not None:
        seconds = min(m.resources.walltime, math.ceil(entry.seen.exit.elapsed))
        return Use(m.installation, m.owner, Share(0, 0, 0, seconds, seconds * want.cores), NO_SHARE)
    if entry.owner is not None:
        return Use(m.installation, m.owner, want + _time(want).times(-1), _time(want))
    return Use(m.installation, m.owner, NO_SHARE, want)


def _time(share: Share) -> Share:
    return Share(0, 0, 0, share.vm_seconds, share.core_seconds)
