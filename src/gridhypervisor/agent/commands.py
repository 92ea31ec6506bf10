"""Commands that a relay runs for its controller: a few at once, each within its time, never through a shell."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor

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
        self._lock = threading.Lock()
        self._stopped = False

    async def run(self, command: Command) -> CommandResult:
        """Run one when its turn comes. Code 126 or 127: it could not be started; None: killed, or it said too much."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._run, command)

    def _run(self, command: Command) -> CommandResult:
        if not command.argv:
            raise ValueError("a command without words")
        environment = {key: value for key, value in os.environ.items() if not key.startswith("GHV_")}
        try:
            child = subprocess.Popen(
                command.argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                env=environment | command.environment, start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            code = 127 if isinstance(error, FileNotFoundError) else 126
            return CommandResult(code, "", f"start {command.argv[0]}: {error.strerror}")
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

    def stop(self) -> None:
        """Kill what runs: nobody is left to be told, and the peer asks the batch system itself when it is back."""
        with self._lock:
            self._stopped = True
            for child in self._running:
                _kill_group(child, reap=False)
        self._threads.shutdown(wait=False, cancel_futures=True)


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
