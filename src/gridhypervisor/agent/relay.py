"""The relay: the controller's hands and eyes in one account of a site.

It answers the requests of `wire.Op` on stdin and stdout until stdin ends, and says unasked when an entry changed or
a watched program printed something. It decides nothing: what to submit, cancel, revoke or remove it is told. A request
that fails is answered by an error; only a peer that breaks the framing ends the relay.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import resource
import secrets
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

from gridhypervisor.agent import relayfiles, spool
from gridhypervisor.agent.commands import Commands
from gridhypervisor.agent.relayfiles import Files, Refused
from gridhypervisor.agent.spoolwatch import SpoolWatch
from gridhypervisor.model import wire
from gridhypervisor.model.wire import Command, ExitRecord, Manifest, Note, Op, OwnerRecord, WireError

AT_ONCE = 32
"""Requests in work at once; further ones wait in the pipe."""
PIECE = 256 << 10
"""Bytes of program output in one note."""
TAIL, TOLD_TAIL = 0.5, 10.0
"""Seconds between looks at watched output, where inotify does not tell and where it does."""

Answer = tuple[dict[str, Any], bytes]


class Relay:
    """One relay on one pair of byte streams."""

    def __init__(self, workdir: Path, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._files = Files(workdir)
        self._spool = workdir / wire.SPOOL
        self._reader, self._writer = reader, writer
        self._writing = asyncio.Lock()
        self._commands = Commands()
        self._watch: SpoolWatch | None = None
        self._looking = asyncio.Lock()
        self._woken = asyncio.Event()
        self._hinted: set[str] = set()  # entries to look at as soon as may be
        self._uploads: dict[str, asyncio.Lock] = {}
        self._tails: dict[tuple[str, str], asyncio.Task[None]] = {}
        self._grew: dict[tuple[str, str], asyncio.Event] = {}  # one for each tail: each clears its own
        self._tasks: set[asyncio.Task[None]] = set()
        self._handlers: dict[str, Callable[[dict[str, Any], bytes], Awaitable[Answer]]] = {
            Op.HELLO: self._hello, Op.EXEC: self._exec, Op.HAVE: self._have, Op.PUT: self._put,
            Op.LINK_IN: self._link_in, Op.GET: self._get, Op.PREPARE: self._prepare, Op.REVOKE: self._revoke,
            Op.REQUEST: self._request, Op.SCAN: self._scan, Op.WATCH: self._watch_output, Op.LIST_OUT: self._list_out,
            Op.REMOVE: self._remove, Op.EVICT: self._evict, Op.USAGE: self._usage,
        }  # fmt: skip

    async def run(self) -> int:
        """Serve until the peer closes its end; give the exit code (65: it broke the framing)."""
        decoder = wire.Decoder()
        slots = asyncio.Semaphore(AT_ONCE)
        try:
            while data := await self._reader.read(PIECE):
                for message, payload in decoder.feed(data):
                    await slots.acquire()
                    task = self._spawn(self._answer(message, payload))
                    task.add_done_callback(lambda _: slots.release())
            return 0
        except WireError as error:
            sys.stderr.write(f"relay: the controller sent what is no message: {error}\n")
            return 65
        finally:
            self._commands.stop()
            for task in self._tasks:
                task.cancel()

    def _spawn(self, work: Any) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _answer(self, message: dict[str, Any], payload: bytes) -> None:
        reply: dict[str, Any] = {"id": message.get("id")}
        data = b""
        try:
            handler = self._handlers.get(message.get("op", ""))
            if handler is None:
                raise Refused(
                    "request", f"no such operation: {message.get('op')!r}", "is the bundle another version's?"
                )
            reply["ok"], data = await handler(message, payload)
            await self._send(reply, data)
        except (ConnectionError, asyncio.CancelledError):
            raise
        except Exception as error:
            reply.pop("ok", None)
            reply["error"] = _explain(message, error)
            with contextlib.suppress(ConnectionError):
                await self._send(reply)

    async def _send(self, message: dict[str, Any], payload: bytes = b"") -> None:
        data = wire.encode(message, payload)
        async with self._writing:
            self._writer.write(data)
            await self._writer.drain()

    # --- requests -------------------------------------------------------------------------------------------------

    async def _hello(self, request: dict[str, Any], _: bytes) -> Answer:
        if request["protocol"] != wire.PROTOCOL:
            spoken = f"the controller speaks protocol {request['protocol']}, this relay {wire.PROTOCOL}"
            raise Refused("protocol", spoken, "upload the bundle of the controller's own version")
        if not _is_name(request["installation"]):
            raise Refused("request", f"installation {request['installation']!r} is not a name")
        if self._watch is None:
            self._watch = SpoolWatch(self._spool, request["installation"])
            self._spawn(self._look_out())
            sweep = relayfiles.sweep_abandoned
            self._spawn(asyncio.to_thread(sweep, self._files.workdir, request["installation"], time.time()))
        return {
            "protocol": wire.PROTOCOL, "host": os.uname().nodename, "user": _user(), "uid": os.getuid(),
            "workdir": str(self._files.workdir), "boot_id": _boot_id(), "pid": os.getpid(),
        }, b""  # fmt: skip

    async def _exec(self, request: dict[str, Any], _: bytes) -> Answer:
        commands = [wire.from_plain(Command, item) for item in request["commands"]]
        return {"results": await asyncio.gather(*(self._commands.run(command) for command in commands))}, b""

    async def _have(self, request: dict[str, Any], _: bytes) -> Answer:
        return {"sizes": await asyncio.to_thread(self._files.have, request["paths"])}, b""

    async def _put(self, request: dict[str, Any], payload: bytes) -> Answer:
        path = str(request["path"])
        lock = self._uploads.setdefault(path, asyncio.Lock())
        async with lock:  # pieces of one file are sent without waiting: written in the order in which they came
            size = await asyncio.to_thread(self._files.put, request, payload)
        if request.get("last"):
            self._uploads.pop(path, None)
        return {"size": size}, b""

    async def _link_in(self, request: dict[str, Any], _: bytes) -> Answer:
        return {"size": await asyncio.to_thread(self._files.link_in, request)}, b""

    async def _get(self, request: dict[str, Any], _: bytes) -> Answer:
        offset = int(request["offset"])
        size, data = await asyncio.to_thread(self._files.get, request["path"], offset, int(request["length"]))
        return {"size": size, "eof": offset + len(data) >= size}, data

    async def _prepare(self, request: dict[str, Any], _: bytes) -> Answer:
        entry = self._entry(request)
        manifest = wire.from_plain(Manifest, request["manifest"])
        if manifest.entry != entry.name:
            raise Refused("request", f"prepare {entry.name}: the manifest is that of {manifest.entry}")
        await asyncio.to_thread(_prepare, entry, wire.canonical(request["manifest"]))
        self._hinted.add(entry.name)  # from now on there is something to look at, though nothing may announce it
        self._woken.set()
        return {}, b""

    async def _revoke(self, request: dict[str, Any], _: bytes) -> Answer:
        entry = self._entry(request)
        claim = f"{request.get('by') or 'controller'}:{secrets.token_hex(8)}"
        why = str(request.get("why", ""))
        record = OwnerRecord("controller", claim, int(request["epoch"]), os.uname().nodename, why)
        return {"owner": await asyncio.to_thread(_revoke, entry, record)}, b""

    async def _request(self, request: dict[str, Any], _: bytes) -> Answer:
        entry = self._entry(request, must_exist=True)
        if request["what"] != wire.CANCEL:
            raise Refused("request", f"request {request['what']!r} of {entry.name}: only {wire.CANCEL!r} is known")
        await asyncio.to_thread(_leave_wish, entry / wire.CONTROL / wire.CANCEL, str(request.get("why", "")))
        return {}, b""

    async def _scan(self, request: dict[str, Any], _: bytes) -> Answer:
        watch = self._known_installation()
        after = str(request.get("after", ""))
        if not after:
            await asyncio.to_thread(spool.forget_buried, self._spool, time.time())
        async with self._looking:
            entries, more = await asyncio.to_thread(watch.scan, after)
        return {"entries": entries, "more": more}, b""

    async def _watch_output(self, request: dict[str, Any], _: bytes) -> Answer:
        entry = self._entry(request, must_exist=True)
        watch = self._known_installation()
        self._end_tails(entry)
        wanted = {stream: request[stream] for stream in (wire.STDOUT, wire.STDERR) if request.get(stream) is not None}
        async with self._looking:
            watch.heed_output(entry.name, bool(wanted))
        for stream, offset in wanted.items():
            self._tails[entry.name, stream] = self._spawn(self._tail(entry, stream, int(offset)))
        return {}, b""

    async def _list_out(self, request: dict[str, Any], _: bytes) -> Answer:
        entry = self._entry(request, must_exist=True)
        files, more = await asyncio.to_thread(self._files.list_out, entry, str(request.get("after", "")))
        return {"files": files, "more": more}, b""

    async def _remove(self, request: dict[str, Any], _: bytes) -> Answer:
        entry = self._entry(request)
        self._end_tails(entry)
        known, force, discard = str(request.get("known", "")), bool(request.get("force")), bool(request.get("discard"))
        await asyncio.to_thread(_remove, entry, known=known, force=force, discard=discard)
        return {}, b""

    async def _evict(self, request: dict[str, Any], _: bytes) -> Answer:
        return {"freed": await asyncio.to_thread(self._files.evict, request["paths"])}, b""

    async def _usage(self, request: dict[str, Any], _: bytes) -> Answer:
        own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
        disk = os.statvfs(self._files.workdir)
        return {
            "cpu_seconds": own.ru_utime
            + own.ru_stime
            + children.ru_utime
            + children.ru_stime
            + self._commands.cpu_seconds(),
            "max_rss_bytes": own.ru_maxrss << 10,
            "free_bytes": disk.f_bavail * disk.f_frsize,
        }, b""

    # --- what is said unasked -------------------------------------------------------------------------------------

    async def _look_out(self) -> None:
        """Say which entries changed: at once where inotify tells, by looking again and again where it cannot."""
        watch = self._known_installation()
        woken, hinted = self._woken, self._hinted

        def told() -> None:
            changed, grew = watch.hints()
            for (name, _), event in self._grew.items():
                if name in grew:
                    event.set()
            if changed:
                hinted.update(changed)
                woken.set()

        if watch.inotify is not None:
            asyncio.get_running_loop().add_reader(watch.inotify.fileno(), told)
        clock = asyncio.get_running_loop().time
        next_look = clock()
        while True:
            try:
                async with asyncio.timeout_at(next_look):
                    await woken.wait()
                names = set(hinted)
            except TimeoutError:
                names = None  # every entry: hints, however many, do not put this off
            woken.clear()
            hinted.clear()
            try:
                async with self._looking:
                    changed = await asyncio.to_thread(watch.look, names)
            except OSError as error:  # a file server that does not answer: unknown, looked at again
                sys.stderr.write(f"relay: look at {self._spool}: {error}\n")
                continue
            finally:
                next_look = min(next_look, clock() + watch.due()) if names is not None else clock() + watch.due()
            for view in changed:
                await self._send({"note": Note.ENTRY, "entry": view})

    async def _tail(self, entry: Path, stream: str, offset: int) -> None:
        """Send what the program printed from `offset` on; end when the entry has its sentinel and all was sent."""
        grew = self._grew[entry.name, stream] = asyncio.Event()
        try:
            while True:
                grew.clear()
                there, ended, data = await asyncio.to_thread(_read_on, entry, stream, offset)
                if not there:
                    return
                if data or ended:
                    note = {"note": Note.OUTPUT, "entry": entry.name, "stream": stream, "offset": offset}
                    offset += len(data)
                    if ended and len(data) < PIECE:
                        await self._send({**note, "eof": True}, data)
                        return
                    await self._send(note, data)
                if len(data) < PIECE:
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(TOLD_TAIL if self._known_installation().told else TAIL):
                            await grew.wait()
        finally:
            if self._grew.get((entry.name, stream)) is grew:  # no later tail has taken this one's place
                del self._grew[entry.name, stream]
                self._tails.pop((entry.name, stream), None)

    def _end_tails(self, entry: Path) -> None:
        for tail in ((entry.name, wire.STDOUT), (entry.name, wire.STDERR)):
            if task := self._tails.pop(tail, None):
                task.cancel()
            self._grew.pop(tail, None)

    # --- checks ---------------------------------------------------------------------------------------------------

    def _known_installation(self) -> SpoolWatch:
        if self._watch is None:
            raise Refused("request", "the installation is not known yet", "say hello first")
        return self._watch

    def _entry(self, request: dict[str, Any], *, must_exist: bool = False) -> Path:
        name: str = request["entry"]
        if not _is_name(name):
            raise Refused("path", f"entry {name!r} is not a name")
        entry = self._spool / name
        if must_exist and not entry.is_dir():
            raise Refused("missing", f"no entry {name} in {self._spool}", "it was removed, or not prepared yet")
        return entry


def _prepare(entry: Path, manifest: bytes) -> None:
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


def _revoke(entry: Path, record: OwnerRecord) -> OwnerRecord:
    """An entry that is not there is made: the name is taken, whatever surfaces later."""
    entry.mkdir(mode=0o700, parents=True, exist_ok=True)
    return spool.take_owner(entry, record)


def _leave_wish(path: Path, why: str) -> None:
    path.parent.mkdir(mode=0o700, exist_ok=True)
    if not path.exists():
        spool.write_durable(path, why.encode())


def _remove(entry: Path, *, known: str, force: bool, discard: bool) -> None:
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
    spool.bury(entry, remover)
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


def _read_on(entry: Path, stream: str, offset: int) -> tuple[bool, bool, bytes]:
    """Whether the entry is there, whether it has its sentinel, and a piece of what the program printed."""
    ended = (entry / wire.EXIT).exists()  # before the reading: what is written before it is then read
    try:
        with (entry / stream).open("rb") as file:
            file.seek(offset)
            return True, ended, file.read(PIECE)
    except FileNotFoundError:
        return entry.is_dir(), ended, b""


def _explain(message: dict[str, Any], error: Exception) -> dict[str, str]:
    what = f"{message.get('op')} {message.get('entry') or message.get('path') or ''}".strip()
    if isinstance(error, Refused):
        return {"kind": error.kind, "message": error.message, "hint": error.hint}
    if isinstance(error, (KeyError, TypeError, ValueError)):  # WireError is one of the last
        why = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        return {"kind": "request", "message": f"{what}: {why}", "hint": "is the bundle of another version?"}
    if isinstance(error, OSError):
        kind, hint = {
            28: ("space", "free space in the workdir, or evict images"),
            122: ("space", "the account's quota is used up: free space, or evict images"),
            13: ("permission", "the account must own its workdir"),
        }.get(error.errno or 0, ("io", "look at the workdir's file system"))
        return {"kind": kind, "message": f"{what}: {error}", "hint": hint}
    return {"kind": "internal", "message": f"{what}: {type(error).__name__}: {error}", "hint": "report this as a bug"}


def _is_name(name: Any) -> bool:
    return isinstance(name, str) and 0 < len(name) <= 200 and name[0] != "." and not set(name) & set("/\0\n")


def _user() -> str:
    if name := os.environ.get("USER") or os.environ.get("LOGNAME"):
        return name
    # Not the account database: its modules are the site's, for another C library. Its oldest file will do.
    uid = str(os.getuid())
    with contextlib.suppress(OSError):
        for line in Path("/etc/passwd").read_text(errors="replace").splitlines():
            if (words := line.split(":"))[2:3] == [uid]:
                return words[0]
    return f"uid {uid}"


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


async def _serve(workdir: Path, out: int) -> int:
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=wire.MAX_PAYLOAD)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    transport, protocol = await loop.connect_write_pipe(asyncio.streams.FlowControlMixin, os.fdopen(out, "wb", 0))
    return await Relay(workdir, reader, asyncio.StreamWriter(transport, protocol, None, loop)).run()


def main(argv: Sequence[str]) -> int:
    """`relay --workdir DIR`: serve stdin and stdout until end of file; give the exit code."""
    parser = argparse.ArgumentParser(prog="relay")
    parser.add_argument("--workdir", type=Path, required=True)
    workdir: Path = parser.parse_args(argv).workdir
    os.umask(0o077)
    workdir.mkdir(mode=0o700, parents=True, exist_ok=True)
    out = os.dup(1)
    os.dup2(2, 1)  # whatever prints, it cannot break the framing
    code = asyncio.run(_serve(workdir.resolve(), out))
    sys.stderr.flush()
    return code
