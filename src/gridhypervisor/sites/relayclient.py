"""The controller's end of the wire: requests and replies by id, many under way at once, files moved in pieces.

It works on any pair of byte streams. It never sends a request twice and never reconnects: when the connection ends,
every request under way fails with LinkLost, which says no more than that its outcome is unknown.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import itertools
import os
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from gridhypervisor.model import wire
from gridhypervisor.model.errors import LinkError, LinkLost
from gridhypervisor.model.wire import Command, CommandResult, Op, WireError

PIECE = 1 << 20
"""Bytes of a file in one message."""
WINDOW = 4
"""Pieces of one file under way at once: a longer queue would make everybody else's requests wait behind it."""
COMMANDS_AT_ONCE = 8
"""How many commands of one request a relay runs side by side."""
FAREWELL = 2.0
"""Seconds from a message that cannot be written to the end of what could be read."""
REPLY = 15.0
"""Seconds that a relay may need beside what it was asked to run."""

Reply = tuple[dict[str, Any], bytes]


class Reader(Protocol):
    async def read(self, n: int) -> bytes: ...


class Writer(Protocol):
    def write(self, data: bytes) -> None: ...
    async def drain(self) -> None: ...


class RelayLink:
    """See `execution.ports.Link`. Must be made inside a running event loop.

    `name` is the site's, for messages. `local`: the relay sees this machine's files, so they need not be sent.
    `epitaph` is asked, once the connection has ended, for what is known of why.
    """

    def __init__(
        self,
        name: str,
        reader: Reader,
        writer: Writer,
        on_note: Callable[[dict[str, Any], bytes], None],
        *,
        local: bool = False,
        epitaph: Callable[[], str] = lambda: "",
    ) -> None:
        self._name, self._reader, self._writer, self._on_note = name, reader, writer, on_note
        self._local, self._epitaph = local, epitaph
        self._ids = itertools.count(1)
        self._waiting: dict[int, tuple[str, asyncio.Future[Reply]]] = {}
        self._writing = asyncio.Lock()
        self._ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(self._receive())

    async def call(
        self, op: Op, args: Mapping[str, object], payload: bytes = b"", *, timeout: float
    ) -> tuple[dict[str, Any], bytes]:
        """One request and its reply.

        Raises:
            LinkError: the relay answered that it will not or cannot.
            LinkLost: the connection ended or `timeout` seconds passed; the outcome is unknown.
        """
        reply: asyncio.Future[Reply] | None = None
        try:
            async with asyncio.timeout(timeout):
                reply = await self._send(op, args, payload)
                return await reply
        except TimeoutError:
            raise LinkLost(f"{_what(op, args)} at {self._name}: no answer within {timeout:.0f} s") from None
        finally:
            if reply is not None:
                reply.cancel()  # one that comes after all is dropped

    async def commands(self, commands: Sequence[Command]) -> list[CommandResult]:
        """Run commands at the site; results in the same order.

        Raises:
            LinkError, LinkLost: see `call`. A command that fails raises nothing.
        """
        if not commands:
            return []
        rounds = -(-len(commands) // COMMANDS_AT_ONCE)
        timeout = REPLY + rounds * max(command.timeout for command in commands)
        reply, _ = await self.call(Op.EXEC, {"commands": commands}, timeout=timeout)
        return [wire.from_plain(CommandResult, result) for result in reply["results"]]

    async def upload(
        self, local: Path, path: str, proof: Mapping[str, object], *, mode: int = 0o600, timeout: float
    ) -> None:
        """Put a local file at `path` below the workdir, going on where an earlier try stopped.

        `proof` is what the relay verifies it by: `sha256`, or `chunks` (and `chunk_size`); see wire.Op.PUT.

        Raises:
            LinkError: it was refused, or is not what the proof says; LinkLost: see `call`.
            OSError: the local file cannot be read.
        """
        announced = {"path": path, "mode": mode, **proof}
        if self._local:
            await self.call(Op.LINK_IN, {"source": str(local.absolute()), **announced}, timeout=timeout)
            return
        try:
            async with asyncio.timeout(timeout):
                size = local.stat().st_size
                reply, _ = await self.call(Op.HAVE, {"paths": [path]}, timeout=timeout)
                part, whole = reply["sizes"].get(f"{path}.part"), reply["sizes"].get(path)
                have = part if part is not None else size if whole == size else 0
                if 0 < have <= size:
                    with contextlib.suppress(LinkError):  # what was there is of another file: all over again
                        await self._put(local, size, have, announced)
                        return
                await self._put(local, size, 0, announced)
        except TimeoutError:
            raise LinkLost(f"upload {path} to {self._name}: not done within {timeout:.0f} s") from None

    async def _put(self, local: Path, size: int, offset: int, announced: Mapping[str, object]) -> None:
        pieces: deque[asyncio.Future[Reply]] = deque()
        try:
            with local.open("rb") as file:
                file.seek(offset)
                last = False
                while not last:
                    data = await asyncio.to_thread(file.read, PIECE)
                    last = not data or offset + len(data) >= size
                    args = {**announced, "offset": offset, "size": size, "last": last}
                    if len(pieces) >= WINDOW:
                        await pieces.popleft()
                    pieces.append(await self._send(Op.PUT, args, data))
                    offset += len(data)
            while pieces:
                await pieces.popleft()
        finally:
            for piece in pieces:
                piece.cancel()

    async def download(
        self,
        path: str,
        local: Path,
        *,
        sha256: str = "",
        mode: int = 0o600,
        optional: bool = False,
        timeout: float,
    ) -> None:
        """Get a file, whole or not at all. With a digest it is verified, and what came before a cut is gone on from.

        Raises:
            LinkError: it is not there (unless `optional`), or not what the digest says; LinkLost: see `call`.
            OSError: the local file cannot be written.
        """
        part = part_of(local, path, sha256)
        try:
            have = part.stat().st_size if sha256 and part.exists() else 0
            async with asyncio.timeout(timeout):
                await self._get(path, part, have)
                if sha256 and await asyncio.to_thread(_digest, part) != sha256:
                    if have:  # what was there was of another file: all over again
                        await self._get(path, part, 0)
                    if not have or await asyncio.to_thread(_digest, part) != sha256:
                        part.unlink()
                        raise LinkError(
                            f"download {path} from {self._name}: its SHA-256 is not {sha256}", "digest",
                            "the file was changed at the site after it was announced",
                        )  # fmt: skip
        except TimeoutError:
            raise LinkLost(f"download {path} from {self._name}: not done within {timeout:.0f} s") from None
        except LinkError as error:
            if not (optional and error.kind == "missing"):
                raise
            part.unlink(missing_ok=True)
            return
        await asyncio.to_thread(_finish, part, local, mode)

    async def _get(self, path: str, part: Path, offset: int) -> None:
        """Append the file's bytes from `offset` to what `part` holds before it."""
        pieces: deque[asyncio.Future[Reply]] = deque()
        try:
            # The folder may hold what a guest has put there: no link is followed.
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            with open(os.open(part, flags, 0o600), "r+b") as file:
                file.seek(offset)
                file.truncate()
                asked, end = offset, offset + 1  # one piece tells the size, then the others are asked for
                while pieces or asked < end:
                    while asked < end and len(pieces) < WINDOW:
                        args = {"path": path, "offset": asked, "length": PIECE}
                        pieces.append(await self._send(Op.GET, args))
                        asked += PIECE
                    reply, data = await pieces.popleft()
                    end = int(reply["size"])
                    await asyncio.to_thread(file.write, data)
        finally:
            for piece in pieces:
                piece.cancel()

    async def lost(self) -> None:
        """Return never.

        Raises:
            LinkLost: the connection ended.
        """
        raise LinkLost(await asyncio.shield(self._ended))

    async def close(self) -> None:
        """Stop listening; requests under way fail. The streams are their maker's to close."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _send(self, op: Op, args: Mapping[str, object], payload: bytes = b"") -> asyncio.Future[Reply]:
        """Write a request; its reply comes into the future."""
        if self._ended.done():
            raise LinkLost(f"{_what(op, args)} at {self._name}: {self._ended.result()}")
        number = next(self._ids)
        message = wire.encode({"id": number, "op": op, **args}, payload)
        reply: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        reply.add_done_callback(lambda _: self._waiting.pop(number, None))
        self._waiting[number] = (_what(op, args), reply)
        try:
            async with self._writing:
                self._writer.write(message)
                await self._writer.drain()
        except Exception as error:  # each kind of stream has its own ways to end
            reply.cancel()
            why = str(error) or type(error).__name__
            with contextlib.suppress(TimeoutError):  # the reading end comes to know why: what died left its last words
                why = await asyncio.wait_for(asyncio.shield(self._ended), FAREWELL)
            raise LinkLost(f"{_what(op, args)} at {self._name}: {why}") from error
        except BaseException:
            reply.cancel()
            raise
        return reply

    async def _receive(self) -> None:
        decoder, why = wire.Decoder(), f"the relay at {self._name} ended"
        try:
            while data := await self._reader.read(PIECE):
                for message, payload in decoder.feed(data):
                    self._take(message, payload)
        except WireError as error:
            why = f"the relay at {self._name} sent what is no message: {error}"
        except Exception as error:
            why = f"the connection to {self._name} broke: {str(error) or type(error).__name__}"
        finally:
            words = self._epitaph()
            self._end(f"{why}: {words}" if words else why)

    def _take(self, message: dict[str, Any], payload: bytes) -> None:
        if "id" not in message:
            self._on_note(message, payload)
            return
        what, reply = self._waiting.get(message["id"], ("", None))
        if reply is None or reply.done():
            return
        if "error" in message:
            error = message["error"]
            words = f"{what} at {self._name}: {error.get('message', '')}"
            reply.set_exception(LinkError(words, str(error.get("kind", "refused")), str(error.get("hint", ""))))
        else:
            reply.set_result((message.get("ok") or {}, payload))

    def _end(self, why: str) -> None:
        self._ended.set_result(why)
        for what, reply in list(self._waiting.values()):
            if not reply.done():
                reply.set_exception(LinkLost(f"{what} at {self._name}: {why}"))
                reply.exception()  # nobody may be waiting for it any more


def _what(op: Op, args: Mapping[str, object]) -> str:
    return " ".join(str(word) for word in (op, args.get("entry") or args.get("path") or "") if word)


def part_of(local: Path, path: str, sha256: str) -> Path:
    """Where a download grows: beside its place, under a name that no user's file has and every file system takes."""
    return local.with_name(f".ghv-{hashlib.sha256(f'{path}#{sha256}'.encode()).hexdigest()[:16]}.part")


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _finish(part: Path, local: Path, mode: int) -> None:
    with part.open("rb") as file:
        os.fchmod(file.fileno(), mode)
        os.fsync(file.fileno())
    try:
        part.replace(local)
    except OSError:
        part.unlink()  # it has no place to go to, and would stay for ever
        raise
