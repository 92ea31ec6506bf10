"""The fork site's batch system: jobs are processes on this machine under a limit of slots. No daemon.

Each job has a supervisor of its own, which outlives whoever submitted it: it waits for a slot, runs the script, keeps
the walltime and writes down the end. All that the supervisors share is a folder:

    next                the last id given out; ids are never used again
    line                a lock: whoever holds it is first in line, and waits for a slot
    slots/N             locks: whoever holds one has slot N of `--slots`
    jobs/ID/job.json    what was submitted, then what became of it (replaced whole)
    jobs/ID/script      removed when the job has ended
    jobs/ID/output      what the script printed
    jobs/ID/cancel      the wish that it be cancelled
    jobs/ID/alive       a lock that is held as long as a process of the job may run

Locks die with their holders, so nobody who is killed blocks anybody. A supervisor is itself the child of a guard, which
does nothing but outlive it: when a supervisor is killed, the guard inherits its processes, kills them, and writes
`lost`. `list` says the same of a job whose lock is free and whose end nobody wrote down.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import select
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import NoReturn

from gridhypervisor.agent import processes, spool
from gridhypervisor.agent.ending import now
from gridhypervisor.agent.inotify import CLOSE_WRITE, Inotify
from gridhypervisor.model import wire

KEPT, KEPT_SECONDS = 1000, 86400
"""Ended jobs are listed for a day, and never more than about this many of them."""
SLOT_POLL = 5.0
"""Longest time in seconds between looks at the slots; inotify tells of a free one before that."""
PENDING, RUNNING, ENDED = "PENDING", "RUNNING", "ENDED"

_HEEDED = {signal.SIGTERM, signal.SIGCHLD, signal.SIGINT, signal.SIGHUP}


class Cancelled(BaseException):
    """TERM came while a supervisor waited in line."""


@dataclass(frozen=True)
class Job:
    """`job.json`. `reason` says why it ended: exited, walltime, cancelled, lost."""

    id: int
    name: str
    cpus: int
    walltime: float  # seconds
    slots: int
    kill_wait: float  # seconds between TERM and KILL
    state: str = PENDING
    reason: str = ""
    code: int | None = None  # of the script; 128 + signal where one ended it
    supervisor: int = 0  # its pid, 0 before it has started


class Queue:
    """The folder of one fork queue."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._jobs, self._slots = folder / "jobs", folder / "slots"
        for made in (self._jobs, self._slots):
            made.mkdir(mode=0o700, parents=True, exist_ok=True)

    def submit(self, script: bytes, name: str, *, cpus: int, walltime: float, slots: int, kill_wait: float) -> int:
        """Write the job down, start its supervisor, give its id. When this returns, the job is listed."""
        number = self._next_id()
        folder = self._jobs / str(number)
        folder.mkdir(mode=0o700)
        alive = _lock(folder / "alive")  # from before the job can be seen until its last supervisor's end
        (folder / "script").write_bytes(script)
        self._write(Job(number, name, cpus, walltime, slots, kill_wait), durable=True)
        spool.sync_folder(self._jobs)
        apart, tells = os.pipe()
        if os.fork() == 0:
            self._guard(number, tells)
        os.close(alive)
        os.close(tells)
        os.read(apart, 1)  # until the guard has told, or has died: who ends our process group must not reach it
        os.close(apart)
        self._prune()  # now that the job is on its way
        return number

    def jobs(self) -> Iterator[Job]:
        """Every job that is known, oldest first."""
        for number in self._numbers():
            if (job := self.job(number)) is not None:
                yield job

    def job(self, number: int) -> Job | None:
        """The job as it is now; None where there is none of that id (any more)."""
        job = self._read(number)
        if job is None or job.state == ENDED or not _is_free(self._jobs / str(number) / "alive"):
            return job
        job = self._read(number) or job  # it may have ended between the two looks
        return job if job.state == ENDED else replace(job, state=ENDED, reason="lost")

    def cancel(self, number: int) -> None:
        """Let the job be ended. One that has ended, or is not known, needs nothing."""
        job = self.job(number)
        if job is None or job.state == ENDED:
            return
        # The wish first: a supervisor that has not told its pid yet looks for the wish after it has.
        spool.write_replace(self._jobs / str(number) / "cancel", b"")
        job = self._read(number)
        if job is None or not job.supervisor:
            return
        with contextlib.suppress(ProcessLookupError):
            handle = os.pidfd_open(job.supervisor)
            try:
                # Checked after the handle was taken: then the pid is no stranger's that got it later.
                if not _is_free(self._jobs / str(number) / "alive"):
                    signal.pidfd_send_signal(handle, signal.SIGTERM)
            finally:
                os.close(handle)

    # --- the guard and the supervisor -----------------------------------------------------------------------------

    def _guard(self, number: int, tells: int) -> NoReturn:
        """Outlive the supervisor, and end what it left. Never returns: it is a process of its own, which tells by
        closing a descriptor that it has a session of its own."""
        try:
            os.setsid()
            os.close(tells)
            os.chdir("/")
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            _leave_streams(self._jobs / str(number) / "output")
            # Signals are waited for, not handled: nothing is cut in the middle.
            signal.pthread_sigmask(signal.SIG_BLOCK, _HEEDED)
            processes.be_subreaper()
            supervisor = os.fork()
            if supervisor == 0:
                self._supervise(number)
            os.waitpid(supervisor, 0)
            processes.end_descendants(0.0)
            job = self._read(number)
            if job is not None and job.state != ENDED:
                self._write(replace(job, state=ENDED, reason="lost"), durable=True)
        finally:
            os._exit(0)

    def _supervise(self, number: int) -> NoReturn:
        """Take the job through its states. Never returns: it is a process of its own."""
        try:
            processes.be_subreaper()  # what the script leaves behind becomes ours, to be ended and reaped
            folder = self._jobs / str(number)
            job = self._read(number)
            assert job is not None, "written before this process was started"
            job = replace(job, supervisor=os.getpid())
            self._write(job)
            slot = None if (folder / "cancel").exists() else self._wait_for_slot(job)
            if slot is None:
                job = replace(job, state=ENDED, reason="cancelled")
            else:
                job = replace(job, state=RUNNING)
                self._write(job)
                job = _run(job, folder / "script")
            self._write(job, durable=True)
            if slot is not None:
                _unlock(slot)
            (folder / "script").unlink(missing_ok=True)
        except BaseException as error:
            os.write(2, f"forkq: supervise job {number}: {type(error).__name__}: {error}\n".encode())
        finally:
            os._exit(0)

    def _wait_for_slot(self, job: Job) -> int | None:
        """Wait in line for a slot; give its lock, or None when the job was cancelled before."""

        def stop(number: int, frame: FrameType | None) -> None:
            raise Cancelled

        signal.signal(signal.SIGTERM, stop)
        try:
            try:
                signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
                line = _lock(self._folder / "line")
                slot = self._first_free(job.slots)
                _unlock(line)
                return slot
            finally:
                signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        except Cancelled:
            return None

    def _first_free(self, slots: int) -> int:
        """Wait, first in line, until a slot is free; give its lock."""
        told: Inotify | None = None
        with contextlib.suppress(OSError):
            told = Inotify()
            told.add(self._slots, CLOSE_WRITE)  # a slot is let go by closing it
        # Opened once: closing what could not be locked would tell ourselves that a slot is free.
        handles = [os.open(self._slots / str(number), _LOCK_FLAGS, 0o600) for number in range(slots)]
        pause = SLOT_POLL
        while True:
            for handle in handles:
                if _try_lock(handle):
                    for other in set(handles) - {handle}:
                        os.close(other)
                    return handle
            ready, _, _ = select.select([told] if told else [], [], [], pause)
            if told and ready:
                told.read()
                pause = 0.02  # the kernel tells a moment before it lets go of a killed holder's lock
            else:
                pause = min(SLOT_POLL, pause * 2)

    # --- the folder -----------------------------------------------------------------------------------------------

    def _next_id(self) -> int:
        with open(_lock(self._folder / "next"), "r+b", buffering=0) as file:
            number = int(file.read() or b"0") + 1
            file.seek(0)
            file.write(str(number).encode())
            os.fsync(file.fileno())
        return number

    def _numbers(self) -> list[int]:
        return sorted(int(name) for name in os.listdir(self._jobs) if name.isdecimal())

    def _read(self, number: int) -> Job | None:
        return spool.read_json(self._jobs / str(number) / "job.json", Job)

    def _write(self, job: Job, *, durable: bool = False) -> None:
        write = spool.write_durable if durable else spool.write_replace
        write(self._jobs / str(job.id) / "job.json", wire.canonical(job))

    def _prune(self) -> None:
        """Forget ended jobs beyond the last KEPT, and those of more than a day ago."""
        now = time.time()
        for place, number in enumerate(reversed(self._numbers())):
            folder = self._jobs / str(number)
            with contextlib.suppress(OSError):
                old = now - (folder / "job.json").stat().st_mtime > KEPT_SECONDS
                if (place >= KEPT or old) and (job := self.job(number)) is not None and job.state == ENDED:
                    shutil.rmtree(folder, ignore_errors=True)


def _run(job: Job, script: Path) -> Job:
    """Run the script until it ends, its time is over or it is cancelled; no process of it is left afterwards."""
    script_pid = os.fork()
    if script_pid == 0:
        _become_script(script)
    deadline, kill_at = now() + job.walltime, float("inf")
    reason, code = "", None
    while code is None:
        wait = (kill_at if reason else deadline) - now()
        came = signal.sigtimedwait({signal.SIGTERM, signal.SIGCHLD}, min(max(wait, 0.0), 60.0))
        if came is not None and came.si_signo == signal.SIGCHLD:
            code = processes.reap(script_pid)
        elif not reason and (came is not None or now() >= deadline):
            reason = "cancelled" if came is not None else "walltime"
            kill_at = now() + job.kill_wait
            processes.signal_descendants(signal.SIGTERM)
        elif reason and now() >= kill_at:
            processes.signal_descendants(signal.SIGKILL)
            kill_at = now() + 1
    processes.end_descendants(job.kill_wait)
    return replace(job, state=ENDED, reason=reason or "exited", code=code)


def _become_script(script: Path) -> NoReturn:
    """In the child: a session of its own that dies with its supervisor, then `sh script`."""
    try:
        processes.die_with_parent()
        os.setsid()
        for number in (signal.SIGTERM, signal.SIGPIPE, signal.SIGXFSZ):  # what Python or we have changed
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        os.execv("/bin/sh", ["sh", str(script)])
    except BaseException as error:
        os.write(2, f"forkq: start {script}: {error}\n".encode())
    finally:
        os._exit(126)


def _leave_streams(output: Path) -> None:
    """Let go of the submitter's streams (it waits for their end); keep what the script prints in a file."""
    null = os.open(os.devnull, os.O_RDONLY)
    log = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for source, target in ((null, 0), (log, 1), (log, 2)):
        os.dup2(source, target)
    os.close(null)
    os.close(log)


_LOCK_FLAGS = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC


def _lock(path: Path) -> int:
    """Wait for the lock of a file; it is held until the descriptor, and every copy that a fork made, is closed."""
    descriptor = os.open(path, _LOCK_FLAGS, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    return descriptor


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _unlock(descriptor: int) -> None:
    fcntl.flock(descriptor, fcntl.LOCK_UN)  # before the closing, which is what others are told of
    os.close(descriptor)


def _is_free(path: Path) -> bool:
    """Whether nobody holds the lock. Looks with a shared lock, so that two lookers do not see each other."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True


def main(argv: Sequence[str]) -> int:
    """`forkq --dir DIR submit|list|cancel|serve`: give the exit code."""
    given = _parse(argv)
    queue = Queue(given.dir.absolute())
    if given.command == "serve":
        return _serve(queue, ("--dir", str(given.dir)))
    sys.stdout.write(_carry_out(queue, given, sys.stdin.buffer.read))
    return 0


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="forkq")
    parser.add_argument("--dir", type=Path, required=True)
    commands = parser.add_subparsers(dest="command", required=True)
    submit = commands.add_parser("submit", help="run the script on stdin; prints the job's id")
    submit.add_argument("--name", required=True)
    submit.add_argument("--cpus", type=int, default=1)
    submit.add_argument("--walltime", type=float, required=True, help="seconds")
    submit.add_argument("--slots", type=int, default=os.cpu_count() or 1, help="jobs that may run at once")
    submit.add_argument("--kill-wait", type=float, default=10.0, help="seconds between TERM and KILL")
    commands.add_parser("list", help="one JSON object a line")
    commands.add_parser("cancel").add_argument("id", nargs="+", type=int)
    commands.add_parser("serve", help="carry out one command a line of stdin; see `commands`")
    given = parser.parse_args(argv)
    if given.command == "submit" and (given.slots < 1 or given.walltime <= 0):
        parser.error("--slots and --walltime must be positive")
    return given


def _carry_out(queue: Queue, given: argparse.Namespace, script: Callable[[], bytes]) -> str:
    """Do what one command says; give what it prints."""
    command: str = given.command
    match command:
        case "submit":
            number = queue.submit(
                script(), given.name, cpus=given.cpus, walltime=given.walltime, slots=given.slots,
                kill_wait=given.kill_wait,
            )  # fmt: skip
            return f"{number}\n"
        case "list":
            shown = (
                {"id": str(job.id), "name": job.name, "state": job.state, "reason": job.reason, "code": job.code,
                 "cpus": job.cpus}
                for job in queue.jobs()
            )  # fmt: skip
            return "".join(f"{json.dumps(each)}\n" for each in shown)
        case "cancel":
            for number in given.id:
                queue.cancel(number)
            return ""
        case _:
            raise ValueError(f"no such command: {command}")


def _serve(queue: Queue, first: Sequence[str]) -> int:
    """Carry out command after command, as `commands.Server` sends them, until stdin ends. Jobs run on after that."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # a guard that has ended is nobody's to wait for
    for line in sys.stdin.buffer:
        words, stdin = json.loads(line)
        code, out, err = 0, "", ""
        try:
            out = _carry_out(queue, _parse([*first, *words]), stdin.encode)
        except SystemExit:
            code, err = 2, f"forkq: not understood: {' '.join(words)}"
        except Exception as error:
            code, err = 1, f"forkq {words[0]}: {type(error).__name__}: {error}"
        sys.stdout.write(json.dumps([code, out, err]) + "\n")
        sys.stdout.flush()
    return 0
