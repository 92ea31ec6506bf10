"""Commands that a relay runs for its controller: a few at once, each within its time, never through a shell.

Most are processes of their own. One that names its `server` is a line to a process that is kept: what a listing every
few seconds costs is the start of the program that gives it. The server is `argv[:server]` and the word `serve`; it
reads lines of JSON, `[words, stdin]`, and answers each by a line, `[code, stdout, stderr]`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import select
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from gridhypervisor.agent.processes import cpu_seconds_of
from gridhypervisor.model.wire import Command, CommandResult

AT_ONCE = 8
MAX_OUTPUT = 3 << 20
"""Longest accepted output of one command, in bytes: a listing cut short would read as jobs that are gone."""
MAX_COMPLAINT = 64 << 10
"""Bytes of its stderr that are passed on, from the end."""


class Commands:
    """The commands of one relay."""

    def __init__(self) -> None:
        # Threads of their own: commands that hang must not keep the relay from looking at its files.
        self._threads = ThreadPoolExecutor(AT_ONCE, "command")
        self._running: set[subprocess.Popen[bytes]] = set()
        self._servers: dict[tuple[object, ...], Server] = {}
        self._lock = threading.Lock()
        self._stopped = False

    async def run(self, command: Command) -> CommandResult:
        """Run one when its turn comes. Code 126 or 127: it could not be started; None: killed, or it said too much."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._run, command)

    def _run(self, command: Command) -> CommandResult:
        if not command.argv:
            raise ValueError("a command without words")
        if command.server:
            return self._server(command).ask(command)
        try:
            child = _start(command.argv, command.environment)
        except OSError as error:
            return _not_started(command, error)
        with self._lock:
            self._running.add(child)
            if self._stopped:
                _kill_group(child, reap=False)
        try:
            out, err = child.communicate(command.stdin.encode(), timeout=command.timeout)
        except subprocess.TimeoutExpired:
            _kill_group(child)
            return CommandResult(None, "", f"{command.argv[0]}: no end within {command.timeout:g} s, killed")
        finally:
            with self._lock:
                self._running.discard(child)
        if len(out) > MAX_OUTPUT:
            return CommandResult(None, "", f"{command.argv[0]}: printed {len(out)} bytes, the limit is {MAX_OUTPUT}")
        return CommandResult(
            child.returncode, out.decode(errors="replace"), err[-MAX_COMPLAINT:].decode(errors="replace")
        )

    def _server(self, command: Command) -> Server:
        key = command.argv[: command.server], *sorted(command.environment.items())
        with self._lock:
            if self._stopped:
                raise InterruptedError("the relay ends")
            return self._servers.setdefault(key, Server())

    def cpu_seconds(self) -> float:
        """What the servers that run have used; the kernel counts a child for us only when it has ended."""
        with self._lock:
            return sum(server.cpu_seconds() for server in self._servers.values())

    def stop(self) -> None:
        """Kill what runs: nobody is left to be told, and the peer asks the batch system itself when it is back."""
        with self._lock:
            self._stopped = True
            for child in self._running:
                _kill_group(child, reap=False)
            for server in self._servers.values():
                server.kill()
        self._threads.shutdown(wait=False, cancel_futures=True)


class Server:
    """A process that carries out one command after another. Started when there is one, and again when it has died."""

    def __init__(self) -> None:
        self._turn = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None

    def ask(self, command: Command) -> CommandResult:
        """What came of the command. Code None: nobody knows; else a server that does not start gives its own code."""
        deadline = time.monotonic() + command.timeout
        if not self._turn.acquire(timeout=command.timeout):
            return CommandResult(None, "", f"{command.argv[0]}: others took all of {command.timeout:g} s")
        try:
            child, proven = self._child, True
            if child is None or child.poll() is not None:
                proven = False
                try:
                    child = self._child = _start((*command.argv[: command.server], "serve"), command.environment)
                except OSError as error:
                    return _not_started(command, error)
            answer = _ask(child, json.dumps([command.argv[command.server :], command.stdin]).encode() + b"\n", deadline)
            if answer is not None:
                code, out, err = json.loads(answer)
                return CommandResult(code, out, err[-MAX_COMPLAINT:])
            said = _last_words(child)
            _kill_group(child)
            code = None if proven or time.monotonic() >= deadline else child.returncode
            return CommandResult(code, "", said or f"{command.argv[0]}: no answer within {command.timeout:g} s, killed")
        finally:
            self._turn.release()

    def cpu_seconds(self) -> float:
        child = self._child
        return cpu_seconds_of(child.pid) if child is not None and child.returncode is None else 0.0

    def kill(self) -> None:
        if self._child is not None:
            _kill_group(self._child, reap=False)


def _ask(child: subprocess.Popen[bytes], line: bytes, deadline: float) -> bytes | None:
    """The line that answers this one; None when the process ends, or there is none in time, or none that ends."""
    assert child.stdin is not None and child.stdout is not None
    answer = b""
    try:
        child.stdin.write(line)
        child.stdin.flush()
        while not answer.endswith(b"\n") and len(answer) <= 2 * MAX_OUTPUT:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([child.stdout], [], [], left)[0]:
                return None
            data = os.read(child.stdout.fileno(), 1 << 18)
            if not data:
                return None
            answer += data
    except OSError:  # it ended before it read this
        return None
    return answer if answer.endswith(b"\n") else None


def _last_words(child: subprocess.Popen[bytes]) -> str:
    """What a process said on stderr; waits a moment for its end, but not for it to say more."""
    assert child.stderr is not None
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.wait(1)
    os.set_blocking(child.stderr.fileno(), False)
    return (child.stderr.read() or b"")[-MAX_COMPLAINT:].decode(errors="replace")


def _start(argv: Sequence[str], environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    own = {key: value for key, value in os.environ.items() if not key.startswith("GHV_")}
    return subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=own | dict(environment),
        start_new_session=True,
    )  # fmt: skip


def _not_started(command: Command, error: OSError) -> CommandResult:
    code = 127 if isinstance(error, FileNotFoundError) else 126
    return CommandResult(code, "", f"start {command.argv[0]}: {error.strerror}")


def _kill_group(child: subprocess.Popen[bytes], *, reap: bool = True) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    if reap:
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(5)
        for pipe in (child.stdin, child.stdout, child.stderr):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
