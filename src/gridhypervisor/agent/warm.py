"""A pilot whose own job has ended well serves others with what is left of its batch job, one after another.

So short jobs wait neither for the queue nor for a boot each. Among the entries of its pool that are open it takes the
`owner` of one by link(2), as every pilot does (who comes second looks on), and has a child of its own run it: a new
pilot, watchdog and guest, of which nothing is left when the next begins. Which one it may take, `wire.suits` decides.

It ends when nothing more comes for a while; when a job did not end well, for that may be the node's fault, and a bad
node must not try its hand at one job after another; when somebody wants its own job or its batch job to end; and when
too little is left of its time. Then all others still have batch jobs of their own.
"""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from gridhypervisor.agent import inotify, processes, spool
from gridhypervisor.agent.ending import leave_sentinel, now
from gridhypervisor.agent.loop import Loop
from gridhypervisor.model import wire
from gridhypervisor.model.wire import ExitRecord, Manifest, Outcome, OwnerRecord, Reason, WireError, suits

if TYPE_CHECKING:
    from gridhypervisor.agent.pilot import Pilot

MARGIN = 5.0
"""Seconds of the batch job that are left when the walltime of the last job that it serves is over."""

LOOK = 1.0
"""Seconds between two listings while it waits: on a network file system nothing else tells what others write there."""

LEAST = 1.0
"""Seconds that it waits at least for another job, if it may at all. It never waits for longer than it has just worked:
a stream of short jobs costs few idle core-seconds, and a pilot holds its node at most twice as long as it is of use."""

_PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)  # as batch systems say to a job


def serve(own: Pilot, pool: str, idle: float, lasts: float) -> None:
    """Serve others after its own entry, until the batch job is to end. `idle`: seconds that it waits for one at most;
    `lasts`: its batch job's walltime, in seconds."""
    if not own.serves_on:
        return
    host = _Host(own, pool, idle, lasts)
    # Now that signals are heard here: those that came before, and a wish for its own job that came late. After such a
    # wish its batch job may be ended by force, and then must have no other's guest.
    own.wishes.look()
    if own.wishes.stop is None:
        try:
            host.serve(now() - own.report.started)
        except (OSError, WireError) as error:
            sys.stderr.write(f"ghv: serve others from {own.entry}: {error}; no more are served\n")


class _Host:
    def __init__(self, own: Pilot, pool: str, idle: float, lasts: float) -> None:
        self._own, self._name, self._scratch = own.manifest, own.entry.name, own.scratch
        used = own.report.hypervisor
        self._kind = str(used.kind) if used is not None else ""
        self._spool, self._open = own.entry.parent, own.workdir / wire.OPEN / pool
        self._idle, self._until = idle, own.report.started + lasts - MARGIN
        self._child = 0  # the pilot that serves, while it lives
        self._ended_as: int | None = None  # its exit code
        self._stopped = False
        self._unfit: set[str] = set()  # what did not suit, which is so for good: there is only less time left
        self._loop = Loop()
        heard = {number: functools.partial(self._stop, number) for number in _PASSED_ON}
        self._loop.signals(heard | {signal.SIGHUP: lambda: None, signal.SIGCHLD: lambda: None})
        self._loop.every(LOOK * (0.8 + 0.4 * os.urandom(1)[0] / 255), lambda: None)
        processes.be_subreaper()  # whatever of a guest outlives its pilot is then waited for here

    def serve(self, worked: float) -> None:
        """Serve until it is to end. `worked`: seconds that its own job took."""
        self._hear_of_offers()
        while (found := self._next(min(self._idle, max(LEAST, worked)))) is not None:
            began = now()
            if not self._run(*found) or self._stopped:
                return
            worked = now() - began

    def _hear_of_offers(self) -> None:
        with contextlib.suppress(OSError):
            self._open.mkdir(mode=0o700, parents=True, exist_ok=True)
            told = inotify.Inotify()
            told.add(self._open, inotify.CREATE | inotify.MOVED_TO)
            self._loop.read(told, told.read)

    def _stop(self, number: signal.Signals) -> None:
        self._stopped = True
        if self._child:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._child, number)

    # --- taking -------------------------------------------------------------------------------------------------------

    def _next(self, patience: float) -> tuple[Path, OwnerRecord] | None:
        """An entry that is ours from now on; None: nothing came for so many seconds, or it is to end."""
        found: list[tuple[Path, OwnerRecord]] = []

        def look() -> bool:
            if not self._stopped and (taken := self._take()) is not None:
                found.append(taken)
            return self._stopped or bool(found)

        self._loop.wait(look, min(now() + patience, self._until))
        return found[0] if found else None  # though a signal came meanwhile: its pilot shall hear it

    def _take(self) -> tuple[Path, OwnerRecord] | None:
        """Take one of those that are open, if one suits.

        Raises:
            OSError, WireError: nobody knows whether it was taken: then this batch job must end, for its record says so.
        """
        names: list[str] = []
        with contextlib.suppress(FileNotFoundError):
            names = os.listdir(self._open)
        for name in sorted(names, key=lambda _: os.urandom(4)):  # of many that look at once each finds another
            if name in self._unfit:
                continue
            entry = self._spool / name
            manifest = None
            if not (entry / wire.OWNER).exists():
                with contextlib.suppress(OSError, WireError):
                    manifest = spool.read_json(entry / wire.MANIFEST, Manifest)
            if manifest is None:
                self._strike(name)
                continue
            if not suits(self._own, self._kind, manifest, self._until - now()):
                self._unfit.add(name)
                continue
            node = os.uname().nodename
            claim = f"{node}:{os.getpid()}:{os.urandom(8).hex()}"
            owner = OwnerRecord("pilot", claim, manifest.epoch, node, host=self._name)
            try:
                standing = spool.take_owner(entry, owner)
            except FileNotFoundError:
                continue  # removed in this moment
            self._strike(name)
            if standing.claim == claim:
                return entry, owner
        return None

    def _strike(self, name: str) -> None:
        with contextlib.suppress(OSError):
            (self._open / name).unlink()

    # --- serving ------------------------------------------------------------------------------------------------------

    def _run(self, entry: Path, owner: OwnerRecord) -> bool:
        """Have a child run it, to its very end; whether it ended well."""
        began, parent = now(), os.getpid()
        self._ended_as = None
        signal.pthread_sigmask(signal.SIG_BLOCK, _PASSED_ON)  # what comes now the child hears when it can
        self._child = os.fork()
        if self._child == 0:
            code = 1
            try:
                signal.set_wakeup_fd(-1)
                for number in (*_PASSED_ON, signal.SIGCHLD):
                    signal.signal(number, signal.SIG_DFL)
                processes.die_with_parent()
                if os.getppid() == parent:
                    from gridhypervisor.agent.pilot import played

                    code = 0 if played(entry, self._scratch, began, claim=owner.claim, host=self._name).serves_on else 1
            except BaseException as error:
                sys.stderr.write(f"ghv: serve {entry}: {error!r}\n")
            finally:
                sys.stderr.flush()
                os._exit(code)
        if self._stopped:  # a signal came after the entry was taken
            os.kill(self._child, signal.SIGTERM)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _PASSED_ON)
        self._loop.wait(self._all_ended)
        self._child = 0
        if self._ended_as != 0:
            self._speak_for(entry, owner, now() - began)
        return self._ended_as == 0

    def _all_ended(self) -> bool:
        """Whether neither the pilot nor any process of its guest is left."""
        try:
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    return False
                if pid == self._child:
                    self._child, self._ended_as = 0, os.waitstatus_to_exitcode(status)
        except ChildProcessError:
            return True

    def _speak_for(self, entry: Path, owner: OwnerRecord, elapsed: float) -> None:
        """A pilot that was killed before it had armed its watchdog has left no word, and its batch job goes on."""
        record = ExitRecord(
            entry.name, owner.epoch, owner.claim, Outcome.FAILED, Reason.PILOT,
            "run the guest: the pilot was killed before it could start one",
            "see the batch system's record of the job (out of memory? killed by an administrator?) and retry",
            elapsed=elapsed, node=owner.node, host=self._name,
        )  # fmt: skip
        with contextlib.suppress(OSError):  # it was collected and removed already
            if not (entry / wire.EXIT).exists():
                leave_sentinel(entry, record)
