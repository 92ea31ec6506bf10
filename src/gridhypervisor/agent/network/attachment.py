"""The pilot's end of its VM's private networks: the cards' sockets, and the process that carries their frames.

Both ends of each card stay open here. So a hypervisor that is started again, and a hub that is, find the card as it
was; what a guest sends meanwhile waits or is lost, as on any network.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gridhypervisor.agent import processes, spool
from gridhypervisor.agent.ending import Ending, now
from gridhypervisor.agent.loop import Loop
from gridhypervisor.agent.network.switch import Switch
from gridhypervisor.agent.report import where
from gridhypervisor.agent.watchdog import DEAF
from gridhypervisor.model import wire
from gridhypervisor.model.wire import Manifest, Reason, Ticket, WireError

MOST = 8
"""Cards of a VM: each is a descriptor that the watchdog is sent, and a message carries 16."""

_AGAIN, _LONGEST = 1.0, 60.0  # seconds between two starts of the hub, at first and at most
_LASTING = 60.0  # seconds for which one lives that has no fault
_PATIENCE = 2.0  # seconds for it to end
_BUFFER = 1 << 20  # bytes that a card's socket may hold, where the node allows it


class Attachment:
    """Of one VM. `at`: where its hub listens; `counts`: what it counted last."""

    def __init__(
        self, manifest: Manifest, entry: Path, runs: Path, loop: Loop, log: Callable[[str], None]
    ) -> None:  # fmt: skip
        """Make the cards' sockets; nothing is started.

        Raises:
            Ending: the manifest's cards are none that a machine can have.
        """
        try:
            for nic in manifest.nics:
                Switch(nic, Counter())
            if len(manifest.nics) > MOST:
                raise WireError(f"{len(manifest.nics)} cards, and a machine has {MOST} at most")
        except WireError as error:
            raise Ending(Reason.MANIFEST, f"attach the VM to its networks: {error}", "report this as a bug") from error
        self.at, self.counts = "", dict[str, int]()
        self._manifest, self._entry, self._runs, self._loop, self._log = manifest, entry, runs, loop, log
        self._pairs = [_card() for _ in manifest.nics]
        self._table = b""  # the line with the last one
        self._pid = 0
        self._line: socket.socket | None = None
        self._words = b""
        self._started = self._again = 0.0  # when it was started last; before then it is not again
        self._pause = _AGAIN
        self._over = False

    @property
    def cards(self) -> list[int]:
        """The hypervisor's ends."""
        return [theirs.fileno() for _, theirs in self._pairs]

    def start(self) -> None:
        """Start the hub, and from now on whenever it has ended."""
        self._start()
        self._loop.every(_AGAIN, lambda: None if self._line is not None else self._start())

    def learn(self, text: str) -> None:
        """A newer table."""
        self._table = b'{"table":%s}\n' % text.replace("\n", " ").encode()
        self._tell()

    def end(self) -> None:
        """It is over, and waited for; what it counted last is heard."""
        self._over = True
        if self._line is not None:
            with contextlib.suppress(OSError):
                self._line.shutdown(socket.SHUT_WR)
            self._loop.wait(lambda: self._line is None, now() + _PATIENCE)
        self._lose()
        for pair in self._pairs:
            for each in pair:
                each.close()
        self._pairs = []

    def _start(self) -> None:
        if self._over or now() < self._again:
            return
        # One that does not live long has a fault that another will have too.
        self._pause = _AGAIN if now() > self._started + _LASTING else min(_LONGEST, 2 * self._pause)
        self._started = now()
        self._again = self._started + self._pause
        self._line, theirs = socket.socketpair()
        ticket = None
        try:
            ticket = spool.read_json(self._entry / wire.TICKET, Ticket)
        except (OSError, WireError) as error:
            self._log(f"network: read {self._entry / wire.TICKET}: {error}; no other node is reached")
        parent = os.getpid()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {*DEAF, signal.SIGCHLD})
        self._pid = os.fork()
        if self._pid == 0:
            self._become(theirs, ticket, parent)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()
        self._log(f"network: carried by process {self._pid}")
        self._words = b""
        self._loop.read(self._line, self._hear)
        self._tell()

    def _become(self, line: socket.socket, ticket: Ticket | None, parent: int) -> None:
        """In the child: carry frames, and never return."""
        code = 1
        try:
            for number in (*DEAF, signal.SIGCONT, signal.SIGPIPE):
                signal.signal(number, signal.SIG_IGN)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal.set_wakeup_fd(-1)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {*DEAF, signal.SIGCHLD})
            os.setsid()  # what stops the pilot's process group must not stop this
            processes.die_with_parent()
            if os.getppid() == parent:
                # The locks and the watchdog's line among the pilot's files say that the pilot lives: not for us.
                kept = {line.fileno(), *(ours.fileno() for ours, _ in self._pairs)}
                _close_all_but({0, 1, 2, *kept})
                from gridhypervisor.agent.network.hub import Hub, Setting
                from gridhypervisor.agent.network.links import relay_socket

                cards = [ours for ours, _ in self._pairs]
                manifest = self._manifest
                relay = relay_socket(self._entry.parents[1], manifest.installation)
                setting = Setting(manifest.entry, manifest.nics, self._runs, relay, ticket, manifest.listen)
                Hub(line, cards, setting).serve()
                code = 0
        except BaseException as error:
            with contextlib.suppress(OSError):
                line.send(json.dumps({"say": f"network: defect: {error!r} at {where(error)}"}).encode() + b"\n")
        finally:
            os._exit(code)

    def _hear(self) -> None:
        assert self._line is not None
        try:
            data = self._line.recv(1 << 16)
        except ConnectionError:
            data = b""
        if not data:
            self._lose()
            if not self._over:
                self._log("network: the process that carries it has ended; it is started again")
            return
        *lines, self._words = (self._words + data).split(b"\n")
        for line in lines:
            said: dict[str, Any] = json.loads(line)
            self.at, self.counts = said.get("at", self.at), said.get("counts", self.counts)
            if "say" in said:
                self._log(said["say"])

    def _tell(self) -> None:
        if self._line is not None and self._table:
            with contextlib.suppress(OSError):  # one that is gone gets it when it is there again
                self._line.sendall(self._table)

    def _lose(self) -> None:
        if self._line is not None:
            self._loop.forget(self._line)
            self._line.close()
            self._line = None
        if self._pid:
            with contextlib.suppress(ChildProcessError, ProcessLookupError):
                os.kill(self._pid, signal.SIGKILL)
                os.waitpid(self._pid, 0)
            self._pid = 0


def _card() -> tuple[socket.socket, socket.socket]:
    """Two ends, of messages: one is a frame."""
    pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    for each in pair:
        each.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER)
    return pair


def _close_all_but(kept: set[int]) -> None:
    begin = 0
    for number in [*sorted(kept), 1 << 16]:
        if begin < number:  # an empty range would be all that there are
            os.closerange(begin, number)
        begin = number + 1
