"""One running VM as the pilot sees it: its sockets, what the agent and the monitor said, and whether it is still there.

It keeps what it heard as plain attributes, writes the streams and the console into the entry, and raises `Ending` from
`check` when the guest is lost. What to do next is the pilot's.
"""

from __future__ import annotations

import contextlib
import functools
import os
import socket
from collections.abc import Callable, Sequence
from pathlib import Path

from gridhypervisor.agent.channel import Exit, Heard, HeardStream, Lines, Stream, number
from gridhypervisor.agent.ending import Ending, now
from gridhypervisor.agent.hypervisor import Ask, Descriptors, Hypervisor, Machine, lines
from gridhypervisor.agent.loop import Loop
from gridhypervisor.agent.verdict import STREAM_LIMIT
from gridhypervisor.agent.watchdog import Watchdog
from gridhypervisor.model import wire
from gridhypervisor.model.wire import Reason

CONSOLE_LIMIT = 1 << 20
"""Bytes of the console that are kept: a guest that prints without end must not fill the spool."""

_STREAMS = {"out": wire.STDOUT, "err": wire.STDERR}
_TAIL = 4096  # bytes of the console that are remembered for messages
_PANIC = b"Kernel panic - not syncing"
_AFTER_PANIC = 2.0  # seconds in which QEMU should have ended by itself
_TICK = 1.0  # seconds


class Vm:
    """A VM from the start of its hypervisor to its end."""

    def __init__(self, loop: Loop, watchdog: Watchdog, hypervisor: Hypervisor, entry: Path, log: Path) -> None:
        self._loop = loop
        self._watchdog = watchdog
        self._hypervisor = hypervisor
        self._entry = entry
        self._log = log
        self._lines = Lines()
        self._monitor = hypervisor.monitor()
        self._sockets: dict[str, socket.socket] = {}
        self._marker = ""
        self._streams: dict[str, tuple[Stream, int]] = {}
        self._console = b""
        self._console_file = -1
        self._console_length = 0
        self._panicked: float | None = None
        self._events: set[str] = set()
        self._asked = 0  # pings sent
        self._answered: int | None = 0  # the last one's number, as the guest said it
        self._silence = 0.0
        self._silent_after = float("inf")
        self._last_tick = now()
        self._still = False
        self.taken = 0  # bytes that came of the guest
        self.pristine = False  # it has booted, and waits to be renewed
        self.ready = False
        self.staged = False
        self.frozen: tuple[int, bool] | None = None  # by which word, and whether the program stands still
        self.renewed: int | None = None  # with which error
        self.exit: Exit | None = None
        self.packed = False
        self.pack_failure = ""
        self._patterns = 0
        self.missing: set[int] = set()  # indices of the patterns that matched nothing
        self.cut: set[str] = set()  # the streams, as the entry names them, that were longer than is kept
        self.free: int | None = None  # bytes left on the scratch disk, at the agent's last word
        self.cannot = ""
        self.asks = ""  # why the program wants to be moved, in its words or else ours
        self.probed: tuple[int, int, str] | None = None  # the last answer: which, exit code, what it said
        self.execution: Callable[[list[str]], None] | None = None  # whom to tell what a command beside the program says
        self.running = False
        self.status: int | None = None  # the hypervisor's, as wait() gives it
        self.cpu = 0.0  # seconds of the hypervisor
        self.watchdog_cpu = 0.0
        self._handlers: dict[str, Callable[[bytes], None]] = {
            "monitor": self._hear_monitor,
            "console": self._hear_console,
            "ctl": self._hear_agent,
            "out": functools.partial(self._hear_stream, "out"),
            "err": functools.partial(self._hear_stream, "err"),
        }
        loop.read(watchdog.socket, self._hear_watchdog)

    def start(self, machine: Machine, more: Sequence[int] = (), cards: Sequence[int] = ()) -> None:
        """Have the watchdog start the hypervisor; `more` are descriptors that it gets after its lines, `cards` those of
        its network cards."""
        self._sockets, theirs = lines()
        numbers = Descriptors()
        given = dict(enumerate([*(other.fileno() for other in theirs), *more], numbers.monitor))
        given |= dict(enumerate(cards, numbers.cards))
        self._watchdog.spawn(self._hypervisor.command(machine, numbers), given, self._log)
        self.running = True
        for other in theirs:
            other.close()
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        self._console_file = os.open(self._entry / wire.CONSOLE, flags, 0o600)
        for name, ours in self._sockets.items():
            self._loop.read(ours, functools.partial(self._receive, name))
        self._send("monitor", self._monitor.greet())
        self._loop.every(_TICK, self._tick)

    def say(self, line: str) -> None:
        """Say a line to the agent. A guest that does not read loses it; its silence is noticed."""
        self._send("ctl", line.encode() + b"\n")

    def ask(
        self, questions: Sequence[Ask], wait: Callable[[Callable[[], bool], float], bool], limit: float
    ) -> str:  # fmt: skip
        """Ask the hypervisor one thing after another, by `wait` until `limit`; why one was not done, or nothing."""
        monitor = self._monitor
        for question in questions:
            data = monitor.ask(question)
            if question.descriptor is None:
                self._send("monitor", data)
            else:
                socket.send_fds(self._sockets["monitor"], [data], [question.descriptor])
            if not wait(lambda: monitor.answer() is not None, limit):
                return f"{question.command}: no answer in time"
            if refusal := monitor.answer():
                return f"{question.command}: {refusal}"
        return ""

    def run(self, marker: str) -> None:
        """Start the program; its streams go to the entry from now on."""
        self._open(marker, {name: Stream(marker.encode()) for name in _STREAMS})
        self.say(f"RUN {marker}")

    def keep_still(self, still: bool) -> None:
        """From now on nobody expects it to answer, or again somebody does; the time between is no silence."""
        self._tick()
        self._still = still

    @property
    def answered(self) -> bool:
        """Whether no ping is on its way."""
        return self._asked == self._answered

    def drain(self) -> None:
        """Take in all that has come."""
        for name in self._sockets:
            while self._receive(name):
                pass

    def heard(self) -> Heard:
        """What whoever takes it up must know. Its program runs, and the guest stands still."""
        streams = {
            name: HeardStream(stream.length, stream.held.hex(), stream.ended)
            for name, (stream, _) in self._streams.items()
        }
        return Heard(self._marker, streams, self._lines.begun.hex(), self._asked, self.free, self.asks)

    def recall(self, heard: Heard) -> None:
        """It is to be taken up where its program runs; the entry has what was printed so far.

        Raises:
            ValueError: what was heard makes no sense.
        """
        streams = {
            name: Stream(
                heard.marker.encode(), bytes.fromhex(heard.streams[name].held),
                ended=heard.streams[name].ended, length=heard.streams[name].length,
            )
            for name in _STREAMS
        }  # fmt: skip
        self._lines, self._asked, self._answered = Lines(bytes.fromhex(heard.line)), heard.asked, heard.asked
        self.free, self.asks = heard.free, heard.asks
        self._console_length = os.fstat(self._console_file).st_size
        self.cut |= {_STREAMS[name] for name, stream in streams.items() if stream.length > STREAM_LIMIT}
        self.pristine = self.ready = self.staged = True
        self._open(heard.marker, streams)

    def _open(self, marker: str, streams: dict[str, Stream]) -> None:
        self._marker = marker
        for name, stream in streams.items():
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
            self._streams[name] = (stream, os.open(self._entry / _STREAMS[name], flags, 0o600))

    def let_go(self) -> None:
        """It was saved, and goes on elsewhere: what is heard of it from now on is not kept."""
        for stream, _ in self._streams.values():
            stream.rest()

    def pack(self, patterns: int, what: str = "outputs") -> None:
        """Have outputs packed, by the `patterns` patterns of that function of the job file."""
        self._patterns = patterns
        self.say(f"PACK {what}")

    @property
    def watchdog_lost(self) -> bool:
        """It has taken the hypervisor along, and nobody can start another."""
        return not self.running and self.status is None

    @property
    def runs(self) -> bool:
        """Whether its program has been started."""
        return bool(self._streams)

    @property
    def streams_ended(self) -> bool:
        return all(stream.ended for stream, _ in self._streams.values())

    @property
    def words(self) -> str:
        """What it has said of the program's end so far, for who waits for the rest in vain."""
        ends = ", ".join(f"{name} {'ended' if stream.ended else 'open'}" for name, (stream, _) in self._streams.items())
        return (
            f"{'an exit code' if self.exit else 'no exit code'}; {ends}; its last answer was {self._silence:.0f} s ago"
        )

    def watch_silence(self, limit: float, interval: float) -> None:
        """Ask the agent every `interval` seconds for a word, and call it lost after `limit` seconds without one."""
        self._silent_after = limit
        self._loop.every(interval, self._ping)

    def check(self) -> None:
        """Raises: Ending: the guest is lost, or said that it cannot boot."""
        if self.cannot:
            raise Ending(Reason.BOOT, f"boot the guest: {self.cannot}", "mend the image; its console is in console.log")
        if self._panicked is not None and (not self.running or now() - self._panicked > _AFTER_PANIC):
            raise Ending(
                Reason.GUEST_PANIC,
                f"run the guest: its kernel panicked: {self.console_tail(2)}",
                "see console.log; more memory helps where it ran out, else the image or the program is to blame",
            )
        if not self.running:
            raise self._gone()
        if self._silence > self._silent_after:
            raise Ending(
                Reason.GUEST_SILENT,
                f"run the guest: it has not answered for {self._silence:.0f} s",
                "see console.log; it may hang for want of memory, or the node is overloaded",
            )

    def console_tail(self, lines: int) -> str:
        """The last lines of the console, in one line; of a panic, its first line and what was said before it."""
        last = [line for line in self._console.splitlines() if line.strip()]
        for index, line in enumerate(last):
            if _PANIC in line:
                last = last[max(0, index - lines + 1) : index + 1]
                break
        return b" | ".join(last[-lines:]).decode(errors="replace") or "(it printed nothing)"

    def quit(self) -> None:
        """Ask the hypervisor to end at once; kill one that cannot be asked."""
        if word := self._monitor.quit():
            self._send("monitor", word)
        else:
            self.kill()

    def kill(self) -> None:
        """Have the hypervisor killed."""
        self._watchdog.kill()

    def close(self) -> None:
        """Close the entry's files: nothing more is written to them. The hypervisor has ended."""
        files = [file for _, file in self._streams.values()] + [self._console_file] * (self._console_file >= 0)
        self._streams, self._console_file = {}, -1
        for file in files:
            os.close(file)

    def _gone(self) -> Ending:
        if self.status is not None and os.WIFEXITED(self.status) and os.WEXITSTATUS(self.status) == 0:
            how = "restarted" if "reset" in self._events else "powered off"
            return Ending(
                Reason.GUEST_SILENT,
                f"run the guest: it {how} by itself: {self.console_tail(2)}",
                "the program must not shut the guest down; see console.log",
            )
        said = ""
        with contextlib.suppress(OSError):
            said = self._log.read_text(errors="replace").strip()[-300:]
        if self.status is None:
            how = "is lost: the watchdog was killed"
        elif os.WIFSIGNALED(self.status):
            how = f"was killed by signal {os.WTERMSIG(self.status)}"
        else:
            how = f"ended with status {os.waitstatus_to_exitcode(self.status)}"
        return Ending(
            Reason.HYPERVISOR,
            f"run the guest: the hypervisor {how}",
            f"it said: {said}" if said else "see the batch system's record of the job: was it out of memory?",
        )

    def _receive(self, name: str) -> bool:
        """Take in what one socket has; False when it has nothing or is at its end."""
        source = self._sockets[name]
        try:
            data = source.recv(1 << 18)
        except BlockingIOError:
            return False
        except ConnectionError:
            data = b""
        if not data:
            self._loop.forget(source)
            return False
        if name != "monitor":
            self.taken += len(data)
        self._handlers[name](data)
        return True

    def _send(self, name: str, data: bytes) -> None:
        with contextlib.suppress(OSError):
            self._sockets[name].send(data)

    def _hear_agent(self, data: bytes) -> None:
        for words in self._lines.feed(data):
            match words:
                case ["PRISTINE"]:
                    self.pristine = True
                case ["READY", *_]:
                    self.ready = True
                case ["STAGED"]:
                    self.staged = True
                case ["EXIT", *_]:
                    self.exit = Exit.parse(words) or self.exit
                    if self.exit:
                        self.free = self.exit.free
                case ["NOOUTPUT", word] if (index := number(word)) is not None and index < self._patterns:
                    self.missing.add(index)
                case ["PACKED"]:
                    self.packed = True
                case ["PACKFAIL", *why]:
                    self.packed, self.pack_failure = True, " ".join(why) or "tar failed"
                case ["PONG", word, rest] if (free := number(rest)) is not None:
                    self._answered, self._silence, self.free = number(word), 0.0, free
                case ["FROZEN", word, how] if (count := number(word)) is not None:
                    self.frozen = count, how == "1"
                case ["RENEWED", word]:
                    self.renewed = number(word)
                case ["PROBED", word, code, *said] if None not in (numbers := (number(word), number(code))):
                    self.probed = numbers[0] or 0, numbers[1] or 0, " ".join(said)[:200]
                case ["TOOK" | "PRINTED" | "EXECUTED", _, *_] if self.execution is not None:
                    self.execution(words)
                case ["MOVE", *why]:
                    self.asks = " ".join(why)[:200] or Reason.MOVED
                case ["CANNOT", *why]:
                    self.cannot = " ".join(why)[:500] or "no reason given"
                case _:
                    pass  # root in the guest may write here too

    def _hear_stream(self, name: str, data: bytes) -> None:
        if name not in self._streams:
            return  # before the program nobody has anything to say there
        stream, _ = self._streams[name]
        before = stream.length
        self._keep(name, before, stream.feed(data))

    def _keep(self, name: str, before: int, data: bytes) -> None:
        """Write what follows the first `before` bytes of a stream, as far as streams are kept."""
        keep = data[: max(0, STREAM_LIMIT - before)]
        if len(keep) < len(data):
            self.cut.add(_STREAMS[name])
        self._write(self._streams[name][1], keep)

    def _hear_console(self, data: bytes) -> None:
        if self._monitor.voice == "console":
            self._hear_monitor(data)
        self._console = (self._console + data)[-_TAIL - len(data) :]
        if self._panicked is None and _PANIC in self._console:
            self._panicked = now()
        self._console = self._console[-_TAIL:]
        keep = data[: CONSOLE_LIMIT - self._console_length]
        self._console_length += len(keep)
        self._write(self._console_file, keep)

    def _hear_monitor(self, data: bytes) -> None:
        for event in self._monitor.feed(data):
            self._events.add(event)
            if event == "nospace":
                raise Ending(
                    Reason.NODE_DISK,
                    "run the guest: the node's scratch is full, so the guest's disk cannot grow",
                    "free space on the node's scratch, or configure another scratch for the site",
                )
            if event == "stopped":
                raise Ending(
                    Reason.HYPERVISOR,
                    f"run the guest: its processes were stopped, which {self._hypervisor.kind} does not survive",
                    "retry; where the site suspends jobs, ask for another hypervisor",
                )

    def _hear_watchdog(self) -> None:
        messages = self._watchdog.receive()
        if messages is None:
            self._loop.forget(self._watchdog.socket)
            self._end(None)
            return
        for message in messages:
            if message["op"] == "exited":
                self.cpu, self.watchdog_cpu = message["cpu"], message["own_cpu"]
                self._end(message["status"])

    def _end(self, status: int | None) -> None:
        """The hypervisor has ended: take in what is still on its way, then say so."""
        if not self.running:
            return
        self.status = status
        self.drain()
        for name, (stream, _) in self._streams.items():
            self._keep(name, stream.length, stream.rest())
        self.running = False

    def _write(self, file: int, data: bytes) -> None:
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(file, view) :]
        except OSError as error:
            raise Ending(
                Reason.NODE_DISK,
                f"write what the guest prints into {self._entry}: {error.strerror}",
                "free space or quota where the account's workdir is, or print less",
            ) from error

    def _ping(self) -> None:
        if self.answered and not self._still:
            self._asked += 1
            self.say(f"PING {self._asked}")

    def _tick(self) -> None:
        """Count silence only while this process ran too: a job that was stopped and continued is not silent."""
        moment = now()
        if not self.answered and not self._still:
            self._silence += min(moment - self._last_tick, 2 * _TICK)
        self._last_tick = moment
