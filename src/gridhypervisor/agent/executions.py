"""Runs commands in a guest beside its program, as its user asks for them, and keeps what comes of it in the entry.

Such a command is nothing that the VM answers for: that it was asked for is committed nowhere, and what it printed is
kept for who asked, of the last few. The guest's agent runs it as it runs the program: same user, folder, environment.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from gridhypervisor.agent import spool
from gridhypervisor.agent.channel import number, starting
from gridhypervisor.agent.ending import now
from gridhypervisor.agent.loop import Loop
from gridhypervisor.agent.wishes import Wishes
from gridhypervisor.model import wire
from gridhypervisor.model.wire import LONGEST_COMMAND, MOST_PRINTED, Execute, Executed

if TYPE_CHECKING:
    from gridhypervisor.agent.vm import Vm

KEPT = 8
"""Commands of which the results are kept."""


PIECE = 3000
"""Characters of a command's input in one line: a multiple of four, and less than a terminal holds."""

GRACE = 5.0
"""Seconds in which a command that has taken too long may end."""


class Executions:
    """Of one guest, while its program runs."""

    def __init__(self, entry: Path, vm: Vm, wishes: Wishes, loop: Loop, log: Callable[[str], None]) -> None:
        self._folder, self._vm, self._log = entry / wire.EXECUTIONS, vm, log
        self._printed: dict[int, dict[str, int]] = {}  # bytes by command that runs, of each stream
        self._until: dict[int, float] = {}  # when it has to have ended
        self._lines: dict[
            int, list[str]
        ] = {}  # of each that has not begun: what the guest is to be told yet, last first
        self._over: list[int] = []
        vm.execution = self._hear
        wishes.execute = self._begin
        loop.every(1.0, self._tick)
        wishes.look()

    def _begin(self, count: int, wish: Execute) -> None:
        """Have the guest run a command."""
        script = starting(wish.command)
        self._printed[count] = {"out": 0, "err": 0}
        if not wish.command or any("\0" in word for word in wish.command):
            self._end(count, Executed(why="the command is empty, or holds a NUL character"))
        elif len(script.encode()) > LONGEST_COMMAND:
            self._end(count, Executed(why=f"the command is longer than {LONGEST_COMMAND} bytes"))
        else:
            self._log(f"run a command in the guest, number {count}")
            self._until[count] = now() + max(1, wish.limit)
            pieces = [wish.input[at : at + PIECE] for at in range(0, len(wish.input), PIECE)]
            told = f"EXEC {count} {base64.b64encode(script.encode()).decode()}"
            self._lines[count] = [told, *(f"INPUT {count} {piece}" for piece in reversed(pieces))]
            self._tell(count)

    def _tell(self, count: int) -> None:
        """The next line for the guest; what it is given it acknowledges piece by piece, or it might lose some."""
        if lines := self._lines.get(count):
            self._vm.say(lines.pop())

    def _tick(self) -> None:
        """End what takes longer than it may; what does not end even so, nobody waits for any more."""
        for count, until in list(self._until.items()):
            if now() >= until + GRACE:
                self._end(count, Executed(why="it took too long, and did not end when it was asked to"))
            elif now() >= until:
                self._vm.say(f"END {count}")

    def _hear(self, words: list[str]) -> None:
        """A line of the agent's. Root in the guest may write such lines too: of a command that runs, and no more of it
        than is kept."""
        match words:
            case ["TOOK", word] if (count := number(word)) in self._printed:
                assert count is not None
                self._tell(count)
            case ["PRINTED", word, ("out" | "err") as stream, text] if (count := number(word)) in self._printed:
                assert count is not None
                with contextlib.suppress(binascii.Error, ValueError):
                    self._keep(count, stream, base64.b64decode(text, validate=True))
            case ["EXECUTED", word, code] if (count := number(word)) in self._printed:
                assert count is not None
                self._end(count, Executed(min(number(code) or 0, 255)))

    def _keep(self, count: int, stream: str, data: bytes) -> None:
        had = self._printed[count][stream]
        data = data[: MOST_PRINTED - had]
        if data:
            self._printed[count][stream] = had + len(data)
            with contextlib.suppress(OSError):
                self._folder.mkdir(mode=0o700, exist_ok=True)
                flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
                with open(os.open(self._folder / f"{count}.{stream}", flags, 0o600), "wb") as file:
                    file.write(data)

    def _end(self, count: int, how: Executed) -> None:
        """Its result is whole; the oldest that is kept goes. What cannot be written, whoever asked waits for in vain,
        for as long as he said."""
        del self._printed[count]
        self._until.pop(count, None)
        self._lines.pop(count, None)
        with contextlib.suppress(OSError):
            self._folder.mkdir(mode=0o700, exist_ok=True)
            spool.write_replace(self._folder / f"{count}.json", wire.canonical(how))
            self._over.append(count)
            while len(self._over) > KEPT:
                old = self._over.pop(0)
                for end in ("out", "err", "json"):
                    (self._folder / f"{old}.{end}").unlink(missing_ok=True)
