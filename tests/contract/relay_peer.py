"""The controller's end of a relay's pipes, as plain as can be: what a relay says is decoded by `wire.Decoder`."""

from __future__ import annotations

import os
import select
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gridhypervisor.model import wire
from gridhypervisor.model.wire import Op


class Refusal(Exception):
    """A relay's error reply."""

    def __init__(self, error: dict[str, str]) -> None:
        super().__init__(f"{error['kind']}: {error['message']} ({error['hint']})")
        self.kind, self.message, self.hint = error["kind"], error["message"], error["hint"]


class Peer:
    """A relay process and the requests to it. Use as a context; leaving it closes the relay's stdin and waits."""

    def __init__(self, argv: Sequence[str], environment: dict[str, str] | None = None) -> None:
        self.process = subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ, **(environment or {})}
        )
        self.notes: list[tuple[dict[str, Any], bytes]] = []
        self._decoder = wire.Decoder()
        self._replies: dict[int, tuple[dict[str, Any], bytes]] = {}
        self._last = 0

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: object) -> None:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait(60)
        self.process.stdout.close()

    def send(self, op: str, payload: bytes = b"", **request: Any) -> int:
        """Send a request; give its id for `reply`."""
        assert self.process.stdin is not None
        self._last += 1
        self.process.stdin.write(wire.encode({"id": self._last, "op": op, **request}, payload))
        self.process.stdin.flush()
        return self._last

    def reply(self, number: int, seconds: float = 60) -> tuple[dict[str, Any], bytes]:
        """Wait for a reply; raises Refusal where it is an error."""
        end = time.monotonic() + seconds
        while number not in self._replies:
            self._receive(end)
        message, payload = self._replies.pop(number)
        if "error" in message:
            raise Refusal(message["error"])
        return message["ok"], payload

    def answered(self, number: int) -> bool:
        """Whether the reply was among what has been read so far; replies come in the order in which they were given."""
        return number in self._replies

    def ask(self, op: str, payload: bytes = b"", **request: Any) -> dict[str, Any]:
        return self.reply(self.send(op, payload, **request))[0]

    def hello(self, installation: str = "inst") -> dict[str, Any]:
        return self.ask(Op.HELLO, installation=installation, protocol=wire.PROTOCOL)

    def note(self, seconds: float = 60) -> tuple[dict[str, Any], bytes]:
        """The next note."""
        end = time.monotonic() + seconds
        while not self.notes:
            self._receive(end)
        return self.notes.pop(0)

    def upload(self, path: str, data: bytes, **digest: str) -> dict[str, Any]:
        return self.ask(Op.PUT, data, path=path, offset=0, last=True, size=len(data), **digest)

    def _receive(self, end: float) -> None:
        assert self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], max(0.0, end - time.monotonic()))
        if not ready:
            raise TimeoutError("the relay said nothing")
        data = os.read(self.process.stdout.fileno(), 1 << 20)
        if not data:
            raise EOFError(f"the relay ended, code {self.process.wait(10)}")
        for message, payload in self._decoder.feed(data):
            if "id" in message:
                self._replies[message["id"]] = message, payload
            else:
                self.notes.append((message, payload))


def manifest(entry: str) -> dict[str, Any]:
    """A manifest in JSON's types; what it would run does not matter to a relay."""
    made = wire.Manifest(
        wire.PROTOCOL, "inst", entry, "vm", 1, "allocation", "job", wire.ImageManifest(()), "0" * 64,
        wire.Program(("true",)), wire.Resources(),
    )  # fmt: skip
    plain: dict[str, Any] = wire.to_plain(made)
    return plain


def write(path: Path, record: object) -> None:
    """Write a record as a pilot does: whole, by renaming."""
    beside = path.with_name(f".{path.name}.new")
    beside.write_bytes(wire.canonical(record))
    beside.rename(path)
