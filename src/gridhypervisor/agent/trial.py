"""Runs a hypervisor for a moment, to find out about it: under the watchdog like every guest, and never beyond a limit.

Before the guest of the job exists, so the watchdog has no other process, and nobody else hears it. What a trial means
is the caller's to say.
"""

from __future__ import annotations

import os
import select
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from gridhypervisor.agent.ending import now
from gridhypervisor.agent.hypervisor import FIRST_DESCRIPTOR, Command, lines
from gridhypervisor.agent.watchdog import Watchdog

_END = 10.0  # seconds that a killed process may take to end


@dataclass(frozen=True)
class Ended:
    """How a trial ended."""

    status: int | None  # as wait() gives it; None where it was stopped
    said: str  # on its stdout and stderr

    @property
    def well(self) -> bool:
        return self.status is not None and os.waitstatus_to_exitcode(self.status) == 0

    @property
    def why(self) -> str:
        """What went wrong, in a few words."""
        if self.status is None:
            return "it was stopped"
        code = os.waitstatus_to_exitcode(self.status)
        how = f"ended with status {code}" if code >= 0 else f"was killed by signal {-code}"
        lines = self.said.strip().splitlines()
        return f"it {how}" + (f": {lines[-1][:200]}" if lines else "")


@dataclass(frozen=True)
class Trial:
    """Runs one process after another."""

    watchdog: Watchdog
    folder: Path  # of this run: for what the process prints, and for disks

    def run(self, command: Command, limit: float, hear: Callable[[bytes], bool] = lambda _: False) -> Ended:
        """Run it for at most `limit` seconds. `hear` is given what comes on the console, and nothing when a moment has
        passed; it ends the trial by saying True.

        Raises:
            OSError: the watchdog is gone.
        """
        log = self.folder / "trial.log"
        log.unlink(missing_ok=True)
        ours, theirs = lines()
        try:
            self.watchdog.spawn(command, dict(enumerate((other.fileno() for other in theirs), FIRST_DESCRIPTOR)), log)
            for other in theirs:
                other.close()
            status = self._listen(ours["console"], now() + limit, hear)
            if status is None:
                self.watchdog.kill()
                if self._exited(_END) is None:
                    raise OSError("the watchdog does not say that the trial's process has ended")
        finally:
            for one in (*ours.values(), *theirs):
                one.close()
        return Ended(status, log.read_text(errors="replace") if log.exists() else "")

    def _listen(self, console: socket.socket, until: float, hear: Callable[[bytes], bool]) -> int | None:
        """The status with which it ended by itself; None when it is to be ended."""
        poll = select.poll()
        poll.register(console, select.POLLIN)
        poll.register(self.watchdog.socket, select.POLLIN)
        while now() < until:
            ready = {descriptor for descriptor, _ in poll.poll(50)}
            data = b""
            if console.fileno() in ready and not (data := console.recv(1 << 16)):
                poll.unregister(console)
            if hear(data):
                return None
            if self.watchdog.socket.fileno() in ready and (status := self._exited(0)) is not None:
                return status
        return None

    def _exited(self, wait: float) -> int | None:
        """The status that the watchdog tells within `wait` seconds.

        Raises:
            OSError: the watchdog is gone.
        """
        until = now() + wait
        poll = select.poll()
        poll.register(self.watchdog.socket, select.POLLIN)
        while poll.poll(max(0, int((until - now()) * 1000))):
            messages = self.watchdog.receive()
            if messages is None:
                raise OSError("the watchdog was killed")
            for message in messages:
                if message["op"] == "exited":
                    return int(message["status"])
        return None
