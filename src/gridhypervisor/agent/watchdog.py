"""The watchdog: a small process that outlives the pilot and is the parent of the hypervisor.

Forked from the pilot before anything else, single-threaded (PR_SET_PDEATHSIG follows the *thread* that spawned), deaf
to the signals that batch systems send to every process of a job. It starts the hypervisor, says when it has ended, and
enforces three things though the pilot be stopped or dead: the walltime, the grant where the guest needs one, and that
no guest outlives its pilot. It decides nothing else. `Watchdog` below is the pilot's end of it.

Messages are lines of JSON over a socket pair; `spawn` carries the hypervisor's descriptors, and says the numbers that
they are to have there.

    pilot -> watchdog    arm {entry, run, claim, epoch, node, host, started, deadline, late}
                         grant {until, seconds}
                         spawn {argv, environment, walls, seats, numbers, log} · kill {} · done {}
    watchdog -> pilot    exited {status, cpu, own_cpu}
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import resource
import select
import signal
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from gridhypervisor.agent import processes, seats, spool
from gridhypervisor.agent.ending import leave_sentinel, now, settle
from gridhypervisor.model import wire
from gridhypervisor.model.wire import CpuUsage, ExitRecord, Outcome, Reason, Status

if TYPE_CHECKING:
    from gridhypervisor.agent.hypervisor import Command

DEAF = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM)
"""What watchdog and hypervisor do not hear: the guest is ended by the pilot, gracefully, or by SIGKILL."""

_MAX_MESSAGE = 1 << 20
_ASIDE = 100  # where descriptors wait for the numbers that they are to have, which are all lower


class Watchdog:
    """The pilot's end. Must be made before the pilot has threads or signal handlers."""

    def __init__(self) -> None:
        """Fork."""
        self.socket, theirs = socket.socketpair()
        self.pid = os.fork()
        if self.pid == 0:
            self.socket.close()
            _Process(theirs).serve()
        theirs.close()
        self._buffer = b""

    def arm(self, **what: Any) -> None:
        """Give the watchdog what it needs to speak for the pilot, and the deadline (CLOCK_BOOTTIME)."""
        self._send({"op": "arm", **what})

    def grant(self, until: float, seconds: float) -> None:
        """From now on a guest may run until then (CLOCK_BOOTTIME), and no longer; a grant lasts so many seconds."""
        with contextlib.suppress(OSError):  # one that is gone has taken the guest along
            self._send({"op": "grant", "until": until, "seconds": seconds})

    def spawn(self, command: Command, descriptors: Mapping[int, int], log: Path) -> None:
        """Start a hypervisor where none runs; `exited` follows, also where it cannot be started (status 127 << 8).
        `descriptors`: the number that each is to have there, and what it is here; at most 16."""
        message: dict[str, Any] = {
            "op": "spawn",
            "argv": command.argv,
            "environment": command.environment,
            "seats": command.seats,
            "numbers": list(descriptors),
            "log": str(log),
        }
        message["walls"] = None if command.walls is None else dataclasses.asdict(command.walls)
        data = json.dumps(message).encode() + b"\n"
        sent = socket.send_fds(self.socket, [data], list(descriptors.values()))
        self.socket.sendall(data[sent:])

    def kill(self) -> None:
        """End the hypervisor at once; `exited` follows. A watchdog that is gone has taken it along."""
        with contextlib.suppress(OSError):
            self._send({"op": "kill"})

    def receive(self) -> list[dict[str, Any]] | None:
        """Messages that have come; None when the watchdog is gone."""
        try:
            data = self.socket.recv(1 << 16)
        except ConnectionError:
            return None
        if not data:
            return None
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        return [json.loads(line) for line in lines]

    def dismiss(self) -> None:
        """End the watchdog, which ends a hypervisor that may still run, and wait for it."""
        with contextlib.suppress(OSError):
            self._send({"op": "done"})
        self.socket.close()
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.pid, 0)

    def _send(self, message: dict[str, Any]) -> None:
        self.socket.sendall(json.dumps(message).encode() + b"\n")


class _Process:
    """The watchdog's own side."""

    def __init__(self, pilot: socket.socket) -> None:
        self.pilot = pilot
        self.pilot_pid = os.getppid()
        self.hypervisor = 0
        self.status: int | None = None  # with which it ended, while others of its family may yet be ending
        self.cpu = 0.0
        self.duty: dict[str, Any] = {}
        self.granted: dict[str, Any] = {}
        self.speaking = False  # it says itself how all ended: the pilot shall not come before it, who knows less
        self.buffer = b""
        self.descriptors: list[int] = []
        self.seat: seats.Seat | None = None

    def serve(self) -> NoReturn:
        """Serve until the pilot has no more need; never returns, and runs nothing of the pilot's on its way out."""
        code = 1
        try:
            for number in (*DEAF, signal.SIGCONT, signal.SIGPIPE):
                signal.signal(number, signal.SIG_IGN)
            with contextlib.suppress(OSError):
                os.setsid()  # not in the pilot's process group: what stops the group must not stop this
            processes.be_subreaper()  # process 1 of a container may never reap orphans
            # A zombie's end wakes the poll below through this descriptor (pidfd is not in every site's kernel).
            wake, waker = os.pipe()
            os.set_blocking(wake, False)
            os.set_blocking(waker, False)
            signal.signal(signal.SIGCHLD, lambda *_: None)
            signal.set_wakeup_fd(waker)
            self._loop(wake)
            code = 0
        except BaseException as error:
            sys.stderr.write(f"ghv watchdog: {error!r}\n")
        finally:
            os._exit(code)

    def _loop(self, wake: int) -> None:
        poll = select.poll()
        poll.register(self.pilot, select.POLLIN)
        poll.register(wake, select.POLLIN)
        while True:
            left = min(5.0, self._until(guest=self.hypervisor != 0) - now())
            if left <= 0:
                return self._overdue()
            for descriptor, _ in poll.poll(max(1, int(left * 1000))):
                if descriptor == wake:
                    with contextlib.suppress(BlockingIOError):
                        os.read(wake, 4096)
                elif not self._hear():
                    return None
            self._reap()

    def _hear(self) -> bool:
        """Take in what the pilot says; False when there is nothing more to do."""
        try:
            data, descriptors, _, _ = socket.recv_fds(self.pilot, 1 << 16, 16)
        except ConnectionError:
            data, descriptors = b"", []
        self.descriptors += descriptors
        if not data:
            self._bereaved()
            return False
        *lines, self.buffer = (self.buffer + data).split(b"\n")
        if len(self.buffer) > _MAX_MESSAGE:
            raise ValueError("a message from the pilot without an end")
        for line in lines:
            message = json.loads(line)
            match message["op"]:
                case "arm":
                    self.duty = message
                case "grant":
                    self.granted = message
                case "spawn":
                    if now() >= self._until(guest=True):  # it may have been frozen since it last looked
                        self._overdue()
                        return False
                    self._spawn(message)
                case "kill":
                    self._kill()
                case "done":
                    self._end_hypervisor()
                    return False
                case unknown:
                    raise ValueError(f"the pilot asks for {unknown!r}")
        return True

    def _until(self, *, guest: bool) -> float:
        """Until when all may go on as it is. Without a guest no grant is needed: what it had made is brought out."""
        limits = [self.duty.get("deadline"), self.granted.get("until") if guest else None]
        return min((limit for limit in limits if limit is not None), default=float("inf"))

    def _spawn(self, message: dict[str, Any]) -> None:
        log = os.open(message["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        me = os.getpid()
        self.seat = seats.take(Path(message["seats"])) if message["seats"] is not None else None
        self.hypervisor = os.fork()
        if self.hypervisor == 0:
            try:
                self._become(message, log, me)
            except BaseException as error:
                os.write(2, f"start {message['argv'][0]}: {error}\n".encode())
            finally:
                os._exit(127)
        os.close(log)
        for descriptor in self.descriptors:
            os.close(descriptor)
        self.descriptors = []

    def _become(self, message: dict[str, Any], log: int, parent: int) -> NoReturn:
        """In the child: become the hypervisor, in a session of its own, deaf, and dying with the watchdog."""
        os.setsid()
        processes.die_with_parent()
        if os.getppid() != parent:
            os._exit(127)
        if self.seat is not None:
            with contextlib.suppress(OSError):  # it was taken from the job meanwhile
                os.sched_setaffinity(0, {self.seat.cpu})
        signal.set_wakeup_fd(-1)
        # Blocked, not ignored: QEMU installs handlers of its own, but leaves its mask as it finds it.
        signal.pthread_sigmask(signal.SIG_BLOCK, DEAF)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(log, 1)
        os.dup2(log, 2)
        # First out of the way of the numbers that they are to have. All others close by themselves at exec.
        moved = [os.dup2(fd, _ASIDE + i, False) for i, fd in enumerate(self.descriptors)]
        for number, fd in zip(message["numbers"], moved, strict=True):
            os.dup2(fd, number)
        if message["walls"] is not None:
            from gridhypervisor.agent import walls  # most hypervisors need none

            walls.enter(walls.Walls.of(message["walls"]))
        os.execve(message["argv"][0], message["argv"], message["environment"])

    def _reap(self, *, wait: bool = False) -> None:
        """Collect whoever has ended, and tell the pilot when the hypervisor has: when there is no child any more. What
        a hypervisor started is inherited here when it dies, and is as much the guest as itself."""
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, status, usage = os.wait4(-1, 0 if wait else os.WNOHANG)
                if pid == 0:
                    return
                self.cpu += usage.ru_utime + usage.ru_stime
                if pid == self.hypervisor:
                    self.status = status
        if self.hypervisor:
            word = {"op": "exited", "status": self.status, "cpu": self.cpu, "own_cpu": _own_cpu()}
            self.hypervisor, self.status = 0, None
            if self.seat is not None:
                self.seat.leave()
                self.seat = None
            if not self.speaking:
                with contextlib.suppress(OSError):
                    self.pilot.send(json.dumps(word).encode() + b"\n", socket.MSG_DONTWAIT)

    def _kill(self) -> None:
        if self.hypervisor and self.status is None:
            os.kill(self.hypervisor, signal.SIGKILL)
        elif self.hypervisor:  # what it left behind should be ending by itself
            processes.signal_descendants(signal.SIGKILL)

    def _end_hypervisor(self) -> None:
        if self.hypervisor:
            self._kill()
            self._reap(wait=True)

    def _overdue(self) -> None:
        """The walltime is over and the pilot has not ended: it is stopped, or hangs. Or nobody renewed the grant."""
        self.speaking = True
        self._end_hypervisor()
        if now() >= self._until(guest=False):
            reason = Reason(self.duty.get("late", Reason.WALLTIME))
            self._speak(
                Outcome.STOPPED if reason is Reason.WALLTIME else Outcome.FAILED,
                reason,
                "run the guest: the walltime is over, and the pilot was stopped or hung, so outputs could not be taken",
                "find out why the job was stopped on its node; submit again, with a longer walltime if it needs one",
            )
        else:
            self._speak(
                Outcome.FAILED,
                Reason.GRANT,
                f"run the guest: the service was not heard from for {self.granted['seconds']:.0f} s, and with "
                "`on_silence: replace` the guest may not run on then",
                "another attempt follows where its retries allow; a longer `silence` bears longer interruptions",
            )
        # Never before the sentinel: our parent's end may be what the batch system waits for to kill us.
        os.kill(self.pilot_pid, signal.SIGKILL)

    def _bereaved(self) -> None:
        """The pilot is gone without a farewell."""
        self._end_hypervisor()
        self._speak(
            Outcome.FAILED,
            Reason.PILOT,
            "run the guest: the pilot was killed, so the guest was ended",
            "see the batch system's record of the job (out of memory? killed by an administrator?) and retry",
        )

    def _speak(self, outcome: Outcome, reason: Reason, message: str, hint: str) -> None:
        if not self.duty:
            return  # nothing was owned, so nothing may be said
        entry = Path(self.duty["entry"])
        status = None
        with contextlib.suppress(OSError, wire.WireError):
            status = spool.read_json(entry / wire.STATUS, Status)
        elapsed = now() - self.duty["started"]
        phases = status.phases if status else ()
        if phases and phases[-1].end is None:
            phases = (*phases[:-1], wire.PhaseTime(phases[-1].phase, phases[-1].start, elapsed))
        streams: dict[str, int] = {}
        with contextlib.suppress(OSError):
            streams = settle(entry)
        record = ExitRecord(
            entry=entry.name, epoch=self.duty["epoch"], claim=self.duty["claim"], outcome=outcome, reason=reason,
            message=message, hint=hint, phases=phases, elapsed=elapsed, node=self.duty["node"],
            usage=CpuUsage(pilot=_own_cpu(), hypervisor=self.cpu), hypervisor=status.hypervisor if status else None,
            streams=streams, by="watchdog", host=self.duty["host"],
        )  # fmt: skip
        with contextlib.suppress(OSError):
            leave_sentinel(entry, record)
        if self.duty["run"]:
            import shutil  # not when a guest is to start

            shutil.rmtree(self.duty["run"], ignore_errors=True)


def _own_cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime
