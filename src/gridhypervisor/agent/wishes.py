"""What others want of a pilot, heard at any moment: the site by signals, the service by files in control/, the walltime
by its near end; and until when the service grants that its guest runs.

Only that it is to stop, and why, is kept here, the word to begin, which wish to save the guest came last, and which
table of its networks. What that means is the matter of the phase that the pilot is in.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gridhypervisor.agent import spool
from gridhypervisor.agent.ending import now
from gridhypervisor.agent.grant import Grant
from gridhypervisor.agent.limits import Limits
from gridhypervisor.agent.loop import Loop
from gridhypervisor.agent.verdict import stopped
from gridhypervisor.agent.watchdog import Watchdog
from gridhypervisor.model import wire
from gridhypervisor.model.wire import Execute, Reason

if TYPE_CHECKING:
    from gridhypervisor.agent.inotify import Inotify


@dataclass(frozen=True)
class SaveWish:
    """That the guest be saved, or stand still, or go on: see `wire.SAVE`."""

    number: int  # 0: the pilot's own
    then: str
    why: str
    reason: Reason = Reason.SUSPENDED  # for which the allocation ends then

    @property
    def end(self) -> bool:
        """To go on elsewhere."""
        return self.then in (wire.SAVE_END, wire.SAVE_HAND_OVER)


_POLL = 2.0  # seconds between looks into control/, which on a network file system nothing else announces


class Wishes:
    """What is wanted of one pilot. `grant`: None where its guest needs none."""

    def __init__(
        self, entry: Path, limits: Limits, grant: Grant | None, watchdog: Watchdog, loop: Loop,
        log: Callable[[str], None],
    ) -> None:  # fmt: skip
        self.stop: Reason | None = None  # why the allocation is to end, once somebody said so
        self.hold = False  # whether it is to wait for the word to begin
        self.word: str | None = None  # what it says: who its gang are, a line for each; or the checkpoint to go on from
        self.save: Callable[[SaveWish], None] | None = None  # whom to tell of a wish to save the guest
        self.warned: Callable[[Reason, str], bool] | None = None  # whether it makes use of the time that a signal gives
        self._saves = 0  # the number of the last one
        self.table: Callable[[str], None] | None = None  # whom to tell who is in the VM's private networks
        self._tables = 0  # the version of the last one
        self.execute: Callable[[int, Execute], None] | None = None  # whom to tell of a command for the guest
        self._executes = 0  # the number of the last one
        self.limits, self.grant = limits, grant
        self._control = entry / wire.CONTROL
        self._watchdog, self._loop, self._log = watchdog, loop, log
        self._inotify: Inotify | None = None

    def hear_signals(self) -> None:
        def stop(name: str) -> Callable[[], None]:
            return lambda: self._signalled(name)

        # Some sites send USR1 or USR2 as a warning that the time is nearly over, and TERM when it is.
        names = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
        self._loop.signals({number: stop(number.name) for number in names} | {signal.SIGHUP: lambda: None})
        signal.pthread_sigmask(signal.SIG_UNBLOCK, names)  # a courier's pilot has those wait that came before

    def hear(self) -> None:
        """Hear wishes and the time from now on, within a few seconds."""
        with contextlib.suppress(OSError):
            self._control.mkdir(mode=0o700, exist_ok=True)
        # Not all pilots at once: they may share a file server.
        self._loop.every(_POLL * (0.8 + 0.4 * os.urandom(1)[0] / 255), self.look)

    def hear_at_once(self) -> None:
        """Hear from now on at once what this machine writes into control/, and look at what is there."""
        if self._inotify is not None:
            return
        from gridhypervisor.agent import inotify  # not before the guest runs, or while layers are fetched

        with contextlib.suppress(OSError):
            self._inotify = inotify.Inotify()
            self._inotify.add(self._control, inotify.CREATE | inotify.MOVED_TO)
            self._loop.read(self._inotify, self._announced)
        self.look()

    def look(self) -> None:
        """Look for wishes and answers, and at the time."""
        if self.grant is not None and self.grant.heard(self._left_in_control()):
            self._watchdog.grant(self.grant.until, self.grant.seconds)
        if self.hold and self.word is None and wire.BEGIN in self._left_in_control():
            with contextlib.suppress(OSError):
                self.word = (self._control / wire.BEGIN).read_text(errors="replace")
        if self.stop is None and now() >= self.limits.soft:
            self._wish(self.limits.late, "the walltime is nearly over")
        elif self.stop in (None, Reason.EVICTED) and self._cancelled():
            self._wish(self._asked_for(), "control/cancel")
        if self.save is not None and (wish := self._to_save()) is not None:
            self._log(f"{wire.SAVE}{wish.number}: {wish.then}: {wish.why}")
            self.save(wish)
        if self.table is not None and (found := spool.newest_table(self._control)) and found[0] > self._tables:
            self._tables = found[0]
            self.table(found[1])
        if self.execute is not None:
            for number, command in self._to_execute():
                self.execute(number, command)

    def stopped(self) -> bool:
        return self.stop is not None

    def check(self) -> None:
        """End the allocation here if somebody wants it to end.

        Raises:
            Ending: somebody does.
        """
        if self.stop is not None:
            raise stopped(self.stop, "prepare the program's run")

    def _signalled(self, name: str) -> None:
        """The site ends the batch job soon, or somebody does there."""
        meaning = self.limits.meaning(now(), cancelled=self._cancelled())
        if self.stop is None and meaning is not Reason.CANCELLED and self.warned and self.warned(meaning, name):
            return
        self._wish(None, name)

    def end(self, reason: Reason, what: str) -> None:
        """The pilot itself finds that the allocation is to end."""
        self._wish(reason, what)

    def _wish(self, reason: Reason | None, what: str) -> None:
        """Somebody wants the allocation to end; None: by a bare signal."""
        if self.stop is None or (self.stop is Reason.EVICTED and reason in (Reason.CANCELLED, Reason.MOVED)):
            self.stop = reason or self.limits.meaning(now(), cancelled=self._cancelled())
            self._log(f"{what}: stop, reason {self.stop}")

    def _announced(self) -> None:
        assert self._inotify is not None
        self._inotify.read()
        self.look()

    def _cancelled(self) -> bool:
        return wire.CANCEL in self._left_in_control()

    def _asked_for(self) -> Reason:
        """What the wish in control/ is for: the job's end, or that it goes on elsewhere."""
        with contextlib.suppress(OSError):
            if (self._control / wire.CANCEL).read_text(errors="replace").startswith(Reason.MOVED):
                return Reason.MOVED
        return Reason.CANCELLED

    def _to_save(self) -> SaveWish | None:
        """The wish of the highest number, if it is new."""
        if not any(name.startswith(wire.SAVE) for name in self._left_in_control()):
            return None
        number, _, said = (spool.to_save(self._control) or "0").partition(" ")
        if int(number) <= self._saves:
            return None
        self._saves = int(number)
        then, _, why = said.partition(":")
        reason = Reason.HAND_OVER if then == wire.SAVE_HAND_OVER else Reason.SUSPENDED
        return SaveWish(self._saves, then, why.strip(), reason)

    def _to_execute(self) -> Iterator[tuple[int, Execute]]:
        """The commands that are new, in the order of their numbers. What was taken is removed: there may be many."""
        names = (name.removeprefix(wire.EXECUTE) for name in self._left_in_control() if name.startswith(wire.EXECUTE))
        for number in sorted(int(name) for name in names if name.isdecimal()):
            path = self._control / f"{wire.EXECUTE}{number}"
            with contextlib.suppress(OSError, wire.WireError):
                command = spool.read_json(path, Execute)
                if command is not None and number > self._executes:
                    self._executes = number
                    yield number, command
            with contextlib.suppress(OSError):
                path.unlink()

    def _left_in_control(self) -> list[str]:
        # A listing asks the file server, where a look at one name may be answered from the memory of its absence.
        with contextlib.suppress(OSError):
            return os.listdir(self._control)
        return []
