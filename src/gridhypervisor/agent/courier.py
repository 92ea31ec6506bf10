"""The courier: a batch job's first process where the nodes do not see the account's workdir.

It gives the pilot, its child, an entry on the node that is like one in the spool: takes the allocation's `owner` at the
relay, brings manifest, inputs and the image's layers, and carries what the pilot and the watchdog write there back, the
sentinel last. So the pilot does not know of it, and the relay's spool alone says who owns an entry and how it ended.

A relay that is away is waited for, and the guest runs on meanwhile: nothing is lost but time, up to the walltime. The
guest never outlives the courier. What is brought, and what is carried back, is in `bringing` and `delivery`.

    claim ─▶ bring ─▶ the pilot runs, what it writes is carried ─▶ nothing of it is left ─▶ the rest, the sentinel last
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import select
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from gridhypervisor.agent import entries, processes, spool
from gridhypervisor.agent.bringing import Bringing, Stopped
from gridhypervisor.agent.delivery import PASSING, Delivery, leave, unbegun
from gridhypervisor.agent.ending import Ending, now
from gridhypervisor.agent.inotify import CREATE, MODIFY, MOVED_TO, Inotify
from gridhypervisor.agent.limits import Limits
from gridhypervisor.agent.line import Away, Declined, Gate, Line
from gridhypervisor.agent.node import Node
from gridhypervisor.agent.report import process_start
from gridhypervisor.model import wire
from gridhypervisor.model.wire import (
    BEGIN_NOTE,
    CANCEL_NOTE,
    GRANT_NOTE,
    NETWORK_NOTE,
    PIECE,
    SAVE_NOTE,
    Carry,
    ExitRecord,
    Manifest,
    OwnerRecord,
    Reason,
    Ticket,
    WireError,
)

T = TypeVar("T")

FIRST, MOST = 1.0, 30.0
"""Seconds before a relay that is away is tried again: at first, at most. Half of it is chance."""

LOOK = 2.0
"""Seconds between looks at what the pilot wrote, where nothing tells of it."""

GAP = 0.2
"""Seconds at least between two looks: a guest that prints line by line must not keep the relay busy."""

LAST = 30.0
"""Seconds before the walltime's end up to which trouble at the site is waited for that may pass."""

WISHED = 60.0
"""Seconds that it is waited for where somebody wants the job to end."""

PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
"""What batch systems say to a job is the pilot's to hear."""


class _Ours(Exception):
    """The entry is not this courier's, or not any more: nothing may run."""


def main(argv: Sequence[str]) -> int:
    """`courier --scratch FOLDER --gate HOST:FIRST-LAST --entry spool/NAME [OPTIONS]`, the ticket on stdin.

    `--words FILE`: with what the batch script printed; `--patience SECONDS`: after them it gives up where it did not
    reach the relay. Gives the pilot's exit code; 0 where somebody else owns the entry, 69 where it did not reach the
    relay, 70 where that declined, 143 where a signal came before.
    """
    parser = argparse.ArgumentParser(prog="courier")
    parser.add_argument("--scratch", type=Path, required=True)
    parser.add_argument("--gate", type=Gate.parse, required=True)
    parser.add_argument("--entry", required=True)
    parser.add_argument("--words", type=Path)
    parser.add_argument("--patience", type=float, default=float("inf"))
    given = parser.parse_args(argv)
    os.umask(0o077)
    started = process_start()
    try:
        courier = Courier(
            given.entry.rpartition("/")[2], given.gate, sys.stdin.read(), given.scratch.absolute(), started
        )
    except (ValueError, OSError) as error:  # ssl.SSLError among them, and a kernel that gives no file in memory
        sys.stderr.write(f"courier: read the ticket of {given.entry}: {error}; submit the job again\n")
        return 70
    return courier.run(given.words, given.patience)


class Courier:
    """Of one entry, for one run of its batch job. `started`: when that began, on CLOCK_BOOTTIME."""

    def __init__(self, name: str, gate: Gate, ticket: str, scratch: Path, started: float) -> None:
        self._name, self._scratch, self._started = name, scratch, started
        self._ticket = Ticket(str(gate), ticket)
        self._line = Line(gate, ticket, self._noted)
        self._claim = f"{_host()}:{os.getpid()}:{os.urandom(8).hex()}"
        self._pilot = 0  # its process, while it lives
        self._status = 1  # with which it ended
        self._signals: list[int] = []  # that came
        self._folder: Path | None = None  # on this node, of this run
        self._entry: Path | None = None  # in that folder
        self._words: dict[str, str] = {}  # for the pilot, by the name of their file
        self._table = 0, ""  # of its private networks: the last version, and its text
        self._pause = 0.0  # before the relay is tried again
        self._again = 0.0  # when, on CLOCK_BOOTTIME
        self._wake, self._waker = os.pipe()
        self._told: Inotify | None = None

    def run(self, words: Path | None, patience: float) -> int:
        """Carry it all; the process's exit code. `patience`: seconds in which the relay must be reached at first."""
        self._hear_signals()
        try:
            claimed = self._until_answered(self._join, now() + patience)
        except Stopped:
            return 143
        except Away as error:
            self.say(f"claim the entry: {error}; given up after {patience:.0f} s")
            return 69
        except _Ours as error:
            self.say(str(error))
            return 0
        except Declined as error:
            self.say(f"claim the entry: {error}; {error.hint}")
            return 70
        try:
            return self._play(claimed, words)
        except _Ours as error:
            self.say(f"{error}: the guest is ended")
            self._end_pilot()
            return 1
        finally:
            import shutil  # not before the guest has run

            if self._folder is not None:
                shutil.rmtree(self._folder, ignore_errors=True)
            if words is not None:
                words.unlink(missing_ok=True)

    def _play(self, claimed: dict[str, Any], words: Path | None) -> int:
        """From the claim to the sentinel; the pilot's exit code. Raises _Ours."""
        try:
            manifest = wire.from_plain(Manifest, claimed["manifest"])
            node, entry = self._settle_in(claimed["manifest"])
            if manifest.probe or manifest.nics:  # it goes to others itself, as on a node that sees the workdir
                spool.write_replace(entry / wire.TICKET, wire.canonical(wire.to_plain(self._ticket)))
        except (Ending, OSError, WireError) as error:  # there is nothing to start a pilot in
            self.say(f"begin: {error}")
            record = unbegun(self._owner(), self._name, error, now() - self._started)
            with contextlib.suppress(Stopped, Declined):
                self._until_answered(lambda: self._leave(record))
            return 1
        if no := claimed.get("forbidden"):
            refused: Ending | None = Ending(Reason.LENDER, f"start the guest on {_host()}: {no[0]}", str(no[1]))
        else:
            refused = Bringing(self, node, entry.parents[1]).bring(manifest)
        delivery = Delivery(entry, self._owner(), words, self._started)
        self._start_pilot(refused, Limits.carrying(manifest))
        self._carry_while_it_lives(delivery)
        self._deliver(delivery, self._started + manifest.resources.walltime)
        return self._status

    def _settle_in(self, manifest: dict[str, Any]) -> tuple[Node, Path]:
        """Make the entry on this node, owned as it is at the relay."""
        node = Node(self._scratch)
        # Swept like the folder of a run, if this process is killed.
        self._folder, self._lock = node.enter(f"{self._name}.entry")
        entry = self._folder / wire.SPOOL / self._name
        entries.prepare(entry, wire.canonical(manifest))
        spool.take_owner(entry, self._owner())
        self._entry = entry
        self._hand_in()
        self._watch()
        return node, entry

    # --- the relay --------------------------------------------------------------------------------------------------

    def _owner(self) -> OwnerRecord:
        epoch = int(self._name.rpartition("-")[2])  # an entry's name ends with it
        return OwnerRecord("pilot", self._claim, epoch, _host())

    def _leave(self, record: ExitRecord) -> dict[str, Any]:
        """Leave the sentinel of a run of which there is nothing else."""
        self._join()
        leave(self._line, record)
        return {}

    def _join(self) -> dict[str, Any]:
        """Find the relay, unless it is there, and claim the entry; asked again, it says the same."""
        if self._line.connected:
            return {}
        self._line.connect()
        try:
            claimed, _ = self._line.call(Carry.CLAIM, owner=wire.to_plain(self._owner()))
        except Declined as error:
            self._line.close()
            if error.kind in PASSING:
                raise Away(str(error)) from error
            raise
        standing = wire.from_plain(OwnerRecord, claimed["owner"])
        if standing.claim != self._claim:
            raise _Ours(f"yield: a {standing.by} owns {self._name} {standing.why}".rstrip())
        return claimed

    def keep_line(self) -> None:
        """Find the relay again if it was lost, and it is time to: wishes come by the line.

        Raises:
            Declined: it does not want this courier any more.
        """
        if now() < self._again:
            return
        try:
            self._join()
            self._pause = 0.0
        except Away as error:
            self._later(error)

    def _until_answered(self, work: Callable[[], T], deadline: float = float("inf")) -> T:
        """Do it as soon as the relay is there.

        Raises:
            Stopped: a signal or a wish came before.
            Away: it was not there at the deadline, or after it.
        """
        while True:
            try:
                answer = work()
                self._pause = 0.0
                return answer
            except Away as error:
                if now() >= deadline:
                    raise
                self._back_off(error)
                until = min(now() + self._pause, deadline)
                while (left := until - now()) > 0 and not self.is_stopped():
                    self.wait(left)
                if self.is_stopped():
                    raise Stopped from error

    def _back_off(self, error: Exception) -> None:
        if not self._pause:
            self.say(f"{error}; it is tried again")
        self._pause = min(MOST, 2 * self._pause or FIRST) * random.uniform(0.75, 1.25)

    def _later(self, error: Exception) -> None:
        self._back_off(error)
        self._again = now() + self._pause

    def _noted(self, note: dict[str, Any]) -> None:
        if note.get("note") == CANCEL_NOTE:
            self._words[wire.CANCEL] = str(note.get("why", ""))
            self._hand_in()
        elif note.get("note") == BEGIN_NOTE:
            self._words[wire.BEGIN] = str(note.get("members", ""))
            self._hand_in()
        elif note.get("note") == SAVE_NOTE:
            number, _, text = str(note.get("wish", "")).partition(" ")
            if number.isdecimal():  # the pilot says that it cannot be here
                self._words[f"{wire.SAVE}{number}"] = text
                self._hand_in()
        elif note.get("note") == NETWORK_NOTE:
            number, _, text = str(note.get("table", "")).partition(" ")
            if number.isdecimal():
                self._table = int(number), text
                self._hand_in()
        elif note.get("note") == GRANT_NOTE and self._entry is not None:  # before there is one, no beat was sent
            entries.leave_grant(self._entry / wire.CONTROL, int(note["beat"]))

    def _hand_in(self) -> None:
        """Leave the words where the pilot looks for them."""
        if self._entry is not None:
            for name, text in self._words.items():
                entries.leave_word(self._entry / wire.CONTROL / name, text)
            if self._table[0]:
                entries.leave_table(self._entry / wire.CONTROL, *self._table)

    def piece(self, path: str, offset: int) -> tuple[int, bytes]:
        """See `bringing.Carrier`."""

        def ask() -> tuple[int, bytes]:
            self._join()
            reply, data = self._line.call(Carry.GET, path=path, offset=offset, length=PIECE)
            return int(reply["size"]), data

        return self._until_answered(ask)

    # --- the pilot --------------------------------------------------------------------------------------------------

    def _start_pilot(self, trouble: Ending | None, carrying: float) -> None:
        """Fork it. What signals came or come before it hears them wait for it."""
        assert self._entry is not None
        processes.be_subreaper()  # whatever of the guest outlives the pilot is then waited for here
        signal.pthread_sigmask(signal.SIG_BLOCK, PASSED_ON)
        parent = os.getpid()
        self._pilot = os.fork()
        if self._pilot == 0:
            code = 1
            try:
                for number in (*PASSED_ON, signal.SIGCHLD):
                    signal.signal(number, signal.SIG_DFL)
                signal.set_wakeup_fd(-1)
                self._line.close()
                processes.die_with_parent()
                if os.getppid() == parent:
                    from gridhypervisor.agent.pilot import play

                    code = play(
                        self._entry, self._scratch, self._started, claim=self._claim, refused=trouble, carrying=carrying
                    )
            except BaseException as error:
                sys.stderr.write(f"courier: the pilot failed: {error!r}\n")
            finally:
                sys.stderr.flush()
                os._exit(code)
        for came in self._signals:
            os.kill(self._pilot, came)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, PASSED_ON)

    def _carry_while_it_lives(self, delivery: Delivery) -> None:
        """Carry what the pilot writes, until neither it nor any process of the guest's is left."""
        while self._reap():
            more = False
            if now() >= self._again:
                try:
                    self._join()
                    self._line.hear()
                    more = delivery.advance(self._line)
                    self._pause = 0.0
                except (Away, Declined, OSError) as error:
                    self._check_gone(error)
                    self._later(error)
            if not more and not self.wait(GAP, told=False):
                self.wait(LOOK)

    def _deliver(self, delivery: Delivery, end: float) -> None:
        """Carry the rest, however long the relay is away: the site ends this process when its time is over, at the
        moment `end`. What the relay refuses may pass: it is waited for until shortly before, but not for long where
        somebody wants the job to end, and not at all where the site does."""
        since: float | None = None  # the first refusal
        while True:
            try:
                self._join()
                delivery.finish(self._line)
                return
            except (Away, Declined, OSError) as error:
                self._check_gone(error)
                until = end - LAST
                if not isinstance(error, Away):
                    since = since or now()
                    if wire.CANCEL in self._words:
                        until = min(until, since + WISHED)
                    if self._signals:
                        until = 0.0
                    if not delivery.refused(error, until):
                        self.say(f"leave the sentinel: {error}")
                        return
                self._back_off(error)
                self._rest(min(self._pause, max(FIRST, (end - now()) / 4)))

    def _rest(self, seconds: float) -> None:
        """Until it is time to try again, or the site says that there is no time left."""
        until, heard = now() + seconds, len(self._signals)
        while (left := until - now()) > 0 and len(self._signals) == heard:
            self.wait(left)

    @staticmethod
    def _check_gone(error: Exception) -> None:
        if isinstance(error, Declined) and error.kind == "gone":
            raise _Ours(str(error)) from error

    def _reap(self) -> bool:
        """Collect who has ended; whether anybody is left."""
        try:
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    return True
                if pid == self._pilot:
                    self._pilot, self._status = 0, os.waitstatus_to_exitcode(status) & 0xFF
        except ChildProcessError:
            return False

    def _end_pilot(self) -> None:
        """Kill it; its watchdog ends the guest."""
        if self._pilot:
            os.kill(self._pilot, signal.SIGKILL)
        while self._reap():
            self.wait(LOOK)

    # --- signals, and waiting ---------------------------------------------------------------------------------------

    def _hear_signals(self) -> None:
        for descriptor in (self._wake, self._waker):
            os.set_blocking(descriptor, False)
        for number in PASSED_ON:
            signal.signal(number, self._pass_on)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._waker, warn_on_full_buffer=False)

    def _pass_on(self, number: int, _: object) -> None:
        self._signals.append(number)
        if self._pilot:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pilot, number)

    def is_stopped(self) -> bool:
        return bool(self._signals) or wire.CANCEL in self._words

    def _watch(self) -> None:
        assert self._entry is not None
        with contextlib.suppress(OSError):
            self._told = Inotify()
            self._told.add(self._entry, MODIFY | CREATE | MOVED_TO)

    def wait(self, seconds: float, *, told: bool = True) -> bool:
        """Until something happens: a signal, a word of the relay's, with `told` a file that changed; or for so long,
        then False."""
        sources: list[Any] = [self._wake]
        sources += [self._line] if self._line.connected else []
        sources += [self._told] if told and self._told is not None else []
        ready, _, _ = select.select(sources, [], [], max(0.0, seconds))
        if self._wake in ready:
            with contextlib.suppress(BlockingIOError):
                os.read(self._wake, 4096)
        if self._told is not None and self._told in ready:
            self._told.read()
        if self._line in ready:
            with contextlib.suppress(Away):  # found again at the next try
                self._line.hear()
        return bool(ready)

    def say(self, words: str) -> None:
        """A line in pilot.log, or where the batch script's words go as long as there is none."""
        line = f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())} {now() - self._started:9.3f} courier: {words}\n"
        if self._entry is None:
            sys.stderr.write(line)
            return
        with contextlib.suppress(OSError), (self._entry / wire.PILOT_LOG).open("a") as file:
            file.write(line)


def _host() -> str:
    return os.uname().nodename
