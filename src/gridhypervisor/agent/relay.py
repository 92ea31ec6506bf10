"""The relay: the controller's hands and eyes in one account of a site.

It answers the requests of `wire.Op` on stdin and stdout until stdin ends, and says unasked when an entry changed or
a watched program printed something. It decides nothing: what to submit, cancel, revoke or remove it is told; what the
site's lender does not allow, it refuses. A request that fails is answered by an error; only a peer that breaks the
framing ends the relay.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import functools
import os
import resource
import secrets
import sys
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gridhypervisor.agent import entries, relayfiles, spool
from gridhypervisor.agent.commands import Commands
from gridhypervisor.agent.lender import Lender, Unlent, account
from gridhypervisor.agent.pace import Pace
from gridhypervisor.agent.relayfiles import Files, Refused
from gridhypervisor.agent.spoolwatch import SpoolWatch
from gridhypervisor.model import wire
from gridhypervisor.model.wire import Command, Lending, Manifest, Note, Op, OwnerRecord, WireError

if TYPE_CHECKING:
    from gridhypervisor.agent.gate import Gate
    from gridhypervisor.agent.network.exchange import Exchange

AT_ONCE = 32
"""Requests in work at once; further ones wait in the pipe."""
PIECE = 256 << 10
"""Bytes of program output in one note."""
TAIL, TOLD_TAIL = 0.5, 10.0
"""Seconds between looks at watched output, where inotify does not tell and where it does."""
MIND = 5.0
"""Seconds between looks at the lender's file, and at what other installations use."""

Answer = tuple[dict[str, Any], bytes]


class Relay:
    """One relay on one pair of byte streams."""

    def __init__(self, workdir: Path, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._files = Files(workdir)
        self._spool = workdir / wire.SPOOL
        self._reader, self._writer = reader, writer
        self._writing = asyncio.Lock()
        self._commands = Commands()
        self._lender, self._pace = Lender(workdir), Pace()
        self._lending: Lending | None = None  # as the controller was told
        self._counting = asyncio.Lock()
        self._stirred = asyncio.Event()  # something may have changed for the lender
        self._gate: Gate | None = None
        self._networks: Exchange | None = None
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
            Op.REMOVE: self._remove, Op.EVICT: self._evict, Op.USAGE: self._usage, Op.OFFER: self._offer,
            Op.LENT: self._lent, Op.LISTEN: self._listen, Op.GRANT: self._grant, Op.FETCH: self._fetch,
            Op.FRAMES: self._frames, Op.SEAL: self._seal,
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
            if self._gate is not None:
                self._gate.close()
            if self._networks is not None:
                self._networks.close()
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
            self._lending = await asyncio.to_thread(self._lender.lending, request["installation"])
            self._watch = SpoolWatch(self._spool, request["installation"])
            self._spawn(self._look_out())
            self._spawn(asyncio.to_thread(self._sweep, request["installation"]))
            self._spawn(self._mind_the_lender())
        return {
            "protocol": wire.PROTOCOL, "host": os.uname().nodename, "user": account(), "uid": os.getuid(),
            "workdir": str(self._files.workdir), "boot_id": _boot_id(), "pid": os.getpid(), "lender": self._lending,
        }, b""  # fmt: skip

    def _sweep(self, installation: str) -> None:
        try:
            now = spool.file_time(self._spool)
        except OSError:
            return  # a full disk, mostly: the next relay sweeps
        spool.forget_buried(self._spool, now)
        relayfiles.sweep_abandoned(self._files.workdir, installation, now)
        self._lender.charges.forget_old(now)

    async def _exec(self, request: dict[str, Any], _: bytes) -> Answer:
        commands = [wire.from_plain(Command, item) for item in request["commands"]]
        return {"results": await asyncio.gather(*(self._commands.run(command) for command in commands))}, b""

    async def _have(self, request: dict[str, Any], _: bytes) -> Answer:
        return {"sizes": await asyncio.to_thread(self._files.have, request["paths"])}, b""

    async def _put(self, request: dict[str, Any], payload: bytes) -> Answer:
        path = str(request["path"])
        lock = self._uploads.setdefault(path, asyncio.Lock())
        async with lock:  # pieces of one file are sent without waiting: written in the order in which they came
            await self._keep_pace(len(payload))
            size = await asyncio.to_thread(self._files.put, request, payload)
        if request.get("last"):
            self._uploads.pop(path, None)
        return {"size": size}, b""

    async def _link_in(self, request: dict[str, Any], _: bytes) -> Answer:
        return {"size": await asyncio.to_thread(self._files.link_in, request)}, b""

    async def _get(self, request: dict[str, Any], _: bytes) -> Answer:
        offset = int(request["offset"])
        size, data = await asyncio.to_thread(self._files.get, request["path"], offset, int(request["length"]))
        await self._keep_pace(len(data))
        return {"size": size, "eof": offset + len(data) >= size}, data

    async def _fetch(self, request: dict[str, Any], _: bytes) -> Answer:
        entry = self._entry(request)
        names, most = [str(name) for name in request["names"]], int(request["most"])
        found = await asyncio.to_thread(self._files.fetch, entry, names, most, bool(request["outputs"]))
        data = b"".join(content for content in found.values() if content is not None)
        await self._keep_pace(len(data))
        return {"sizes": {name: None if each is None else len(each) for name, each in found.items()}}, data

    async def _prepare(self, request: dict[str, Any], _: bytes) -> Answer:
        entry = self._entry(request)
        manifest = wire.from_plain(Manifest, request["manifest"])
        if manifest.entry != entry.name:
            raise Refused("request", f"prepare {entry.name}: the manifest is that of {manifest.entry}")
        if manifest.installation != self._known_installation().installation:
            raise Refused("request", f"prepare {entry.name}: it is of another installation, {manifest.installation!r}")
        write = functools.partial(entries.prepare, entry, wire.canonical(request["manifest"]))
        try:
            await asyncio.to_thread(self._lender.admit, entry, manifest, write)
        except Unlent as error:
            await self._tell_lending()  # first: so the planner knows why, before it learns that
            raise Refused("lender", f"prepare {entry.name}: {error}", error.hint) from error
        self._stirred.set()
        self._hinted.add(entry.name)  # from now on there is something to look at, though nothing may announce it
        self._woken.set()
        return {}, b""

    async def _offer(self, request: dict[str, Any], _: bytes) -> Answer:
        entry, pool = self._entry(request), str(request["pool"])
        if not _is_name(pool):
            raise Refused("request", f"offer {entry.name}: pool {pool!r} is not a name")
        await asyncio.to_thread(entries.offer, entry, pool)
        return {}, b""

    async def _revoke(self, request: dict[str, Any], _: bytes) -> Answer:
        entry = self._entry(request)
        claim = f"{request.get('by') or 'controller'}:{secrets.token_hex(8)}"
        why = str(request.get("why", ""))
        record = OwnerRecord("controller", claim, int(request["epoch"]), os.uname().nodename, why)
        owner = await asyncio.to_thread(entries.revoke, entry, record)
        self._stirred.set()
        return {"owner": owner}, b""

    async def _request(self, request: dict[str, Any], _: bytes) -> Answer:
        entry = self._entry(request, must_exist=True)
        if request["what"] == "network":
            table = wire.from_plain(wire.NetworkTable, request["table"])
            text = wire.canonical(table).decode()
            await asyncio.to_thread(entries.leave_table, entry / wire.CONTROL, table.version, text)
            await self._exchange().learn(entry.name)
        else:
            name, text = entries.word_of(entry.name, request)
            await asyncio.to_thread(entries.leave_word, entry / wire.CONTROL / name, text)
        if self._gate is not None:
            self._gate.tell(entry.name)
        return {}, b""

    async def _grant(self, request: dict[str, Any], _: bytes) -> Answer:
        beats = {self._entry({"entry": name}): int(beat) for name, beat in request["grants"].items()}

        def leave() -> None:
            for entry, beat in beats.items():
                entries.leave_grant(entry / wire.CONTROL, beat)

        await asyncio.to_thread(leave)
        if self._gate is not None:
            for entry in beats:
                self._gate.tell(entry.name)
        return {}, b""

    async def _scan(self, request: dict[str, Any], _: bytes) -> Answer:
        watch = self._known_installation()
        after = str(request.get("after", ""))
        async with self._looking:
            views, more = await asyncio.to_thread(watch.scan, after)
        return {"entries": views, "more": more}, b""

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
        settle = self._lender.settle
        await asyncio.to_thread(entries.remove, entry, settle, known=known, force=force, discard=discard)
        if self._networks is not None:
            self._networks.forget(entry.name)
        self._stirred.set()
        return {}, b""

    async def _evict(self, request: dict[str, Any], _: bytes) -> Answer:
        return {"freed": await asyncio.to_thread(self._files.evict, request["paths"])}, b""

    async def _seal(self, request: dict[str, Any], _: bytes) -> Answer:
        checkpoint, part, number = str(request["checkpoint"]), str(request["part"]), int(request["frame"])
        if not _is_name(checkpoint) or not _is_name(part):
            raise Refused("path", f"seal {part!r} of checkpoint {checkpoint!r}: these are no names")
        key = bytes.fromhex(request["key"])
        size, frame = await asyncio.to_thread(self._files.seal, checkpoint, part, number, key)
        await self._keep_pace(len(frame))
        return {"size": size}, frame

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

    async def _lent(self, request: dict[str, Any], _: bytes) -> Answer:
        terms = await asyncio.to_thread(self._lender.terms)
        return {"lender": terms, "uses": await asyncio.to_thread(self._lender.uses, terms)}, b""

    async def _listen(self, request: dict[str, Any], _: bytes) -> Answer:
        host, first, last = str(request["host"]), int(request["first"]), int(request["last"])
        terms = await asyncio.to_thread(self._lender.terms)
        if terms is not None and (terms.problem or terms.listen is False):
            why = terms.problem or "a relay must not accept connections here (`listen`)"
            raise Refused("lender", f"listen at {host}: {why}", terms.hint)
        if self._gate is None:
            from gridhypervisor.agent.gate import Gate  # most relays never listen, and TLS takes a while to load

            self._gate = Gate(self._files, self._keep_pace, _explain, self._join)
        pair = (str(request["certificate"]), str(request["key"]), str(request["authority"]))
        return {"port": self._gate.open(host, first, last, *pair)}, b""

    async def _frames(self, request: dict[str, Any], payload: bytes) -> Answer:
        await self._keep_pace(len(payload))
        network, destination, source = (int(request[name]) for name in ("network", "destination", "source"))
        taken = self._exchange().bring(self._entry(request).name, network, destination, source, payload)
        return {"dropped": not taken}, b""

    def _exchange(self) -> Exchange:
        """What passes on frames of private networks; most relays never have any."""
        if self._networks is None:
            from gridhypervisor.agent.network.exchange import Exchange
            from gridhypervisor.agent.network.links import relay_socket

            self._networks = Exchange(self._spool, self._pass_on)
            if self._watch is not None:
                try:
                    self._networks.open(relay_socket(self._files.workdir, self._watch.installation))
                except OSError as error:  # pilots of other machines come by the gate
                    sys.stderr.write(f"relay: hear pilots of this machine: {error}\n")
        return self._networks

    async def _pass_on(self, note: dict[str, object], frames: bytes) -> None:
        await self._keep_pace(len(frames))
        await self._send(note, frames)

    async def _join(self, entry: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self._exchange().attend(entry, reader, writer)

    async def _keep_pace(self, size: int) -> None:
        """Wait until so many bytes may go; those who wait keep their slots, and so the pipe does."""
        rate = self._lending.terms.bandwidth if self._lending is not None else None
        if rate is not None:
            await asyncio.sleep(self._pace.delay(size, rate, asyncio.get_running_loop().time()))

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
            if any(view.exit is not None for view in changed):
                self._stirred.set()

    async def _mind_the_lender(self) -> None:
        """Say what changed in the terms or in what is in use: own changes at once, others' within MIND seconds."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(MIND):
                    await self._stirred.wait()
            self._stirred.clear()
            try:
                await self._tell_lending(again=False)
            except OSError as error:
                sys.stderr.write(f"relay: count what is in use of the account: {error}\n")

    async def _tell_lending(self, *, again: bool = True) -> None:
        """`again`: also where nothing has changed but the time."""
        installation = self._known_installation().installation
        async with self._counting:  # who counts later, tells later
            before, now = self._lending, await asyncio.to_thread(self._lender.lending, installation)
            self._lending = now
            if again or _without_time(before) != _without_time(now):
                await self._send({"note": Note.LENDER, "lender": now})

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


def _without_time(lending: Lending | None) -> Lending | None:
    """But for how long the hours last: that changes all the time, and is as good as known."""
    return lending and dataclasses.replace(lending, open_for=1.0 if lending.open_for else lending.open_for)


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
