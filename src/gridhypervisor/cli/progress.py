"""Shows on stderr what a job is doing, without disturbing what its program prints.

On a terminal one line lives below the program's output and is redrawn twice a second; it hides while the program's own
last line is unfinished. Elsewhere what lasts is a line of its own, and that the program runs. Quiet shows nothing but
warnings.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from types import TracebackType
from typing import BinaryIO, NamedTuple, Self

from gridhypervisor.cli import output
from gridhypervisor.model.views import JobView
from gridhypervisor.model.wire import Phase

LASTING = 3.0
"""Seconds after which a log, where nothing can be drawn over, is told what a job is doing. Most of a short job's steps
are over by then."""

_SPINNER = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
_TICK = 0.5
_CLEAR = "\r\x1b[2K"


class Line(NamedTuple):
    """What is shown of a job, or of what was submitted as one."""

    id: str
    words: str  # what it is doing
    note: str = ""
    urgent: bool = False  # to be told at once where nothing can be drawn over
    over: bool = False


class Progress:
    """The job's line, and the way for its output. Used in `with`; may be used from several threads.

    `drawn_alone`: quiet where nothing can be drawn over.
    """

    def __init__(self, *, quiet: bool = False, drawn_alone: bool = False, stdout_is_stderr: bool = False) -> None:
        self._live = not quiet and sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
        self._quiet = quiet or (drawn_alone and not self._live)
        self._lock = threading.RLock()  # a signal's handler may speak while the main thread does
        self._drawn = False
        self._unfinished = {"stdout": False, "stderr": False}
        self._streams = {
            "stdout": sys.stderr.buffer if stdout_is_stderr else sys.stdout.buffer,
            "stderr": sys.stderr.buffer,
        }
        self._shares_screen = {"stdout": stdout_is_stderr or sys.stdout.isatty(), "stderr": True}
        self._line: Line | None = None
        self._words, self._since, self._told = "", time.monotonic(), True
        self._turn = 0
        self._ended = threading.Event()
        self._ticker = threading.Thread(target=self._tick, daemon=True)

    def __enter__(self) -> Self:
        if not self._quiet:
            self._ticker.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        if not self._quiet:
            self._ticker.join()
        with self._lock:
            self._hide()

    def show(self, job: JobView) -> None:
        """The job changed."""
        urgent = job.phase is Phase.EXECUTE
        self.show_line(Line(job.id, output.doing(job), output.plain(job.note), urgent=urgent, over=job.state.final))

    def show_line(self, line: Line) -> None:
        with self._lock:
            self._line = line
            if line.words != self._words:
                self._words, self._since, self._told = line.words, time.monotonic(), line.over
            self._tell()
            self._draw()

    def write(self, stream: str, data: bytes) -> None:
        """Pass on what the program printed, byte for byte.

        Raises:
            BrokenPipeError: nobody reads it any more.
        """
        with self._lock:
            self._hide()
            out: BinaryIO = self._streams[stream]
            out.write(data)
            out.flush()
            self._unfinished[stream] = self._shares_screen[stream] and not data.endswith(b"\n")
            self._draw()

    def say(self, text: str) -> None:
        """A line of our own, above the live one; never in the middle of one of the program's."""
        with self._lock:
            self._hide()
            start = "\n" if any(self._unfinished.values()) else ""
            self._unfinished = dict.fromkeys(self._unfinished, False)
            output.echo(f"{start}{output.dim('ghv:')} {text}", err=True)
            self._draw()

    def print(self, text: str) -> None:
        """A line of an answer, on stdout."""
        with self._lock:
            self._hide()
            output.echo(text)
            self._draw()

    def _tick(self) -> None:
        while not self._ended.wait(_TICK):
            with self._lock:
                self._turn += 1
                self._tell()
                self._draw()

    def _tell(self) -> None:
        """Where nothing can be drawn over: say it once it has lasted, and at once when the program begins."""
        line = self._line
        if self._quiet or self._live or line is None or self._told:
            return
        if line.urgent or time.monotonic() - self._since >= LASTING:
            self._told = True
            self.say(f"{line.id} {line.words}: {line.note}" if line.note else f"{line.id} {line.words}")

    def _draw(self) -> None:
        job = self._line
        if not self._live or job is None or job.over or self._ended.is_set() or any(self._unfinished.values()):
            return
        mark = _SPINNER[self._turn % len(_SPINNER)] if output.unicode(sys.stderr) else "-\\|/"[self._turn % 4]
        width = (output.terminal_width(sys.stderr) or 80) - 1
        age = f"  {output.age(time.monotonic() - self._since)}"
        line = output.fit(f"{mark} {job.id}  {job.words}", width - len(age)) + age
        room = width - len(line) - 2
        if job.note and room > 8:  # less than that says nothing
            line = f"{line}  {output.fit(job.note, room)}"
        sys.stderr.write(f"{_CLEAR}{line}")
        sys.stderr.flush()
        self._drawn = True

    def _hide(self) -> None:
        if self._drawn:
            sys.stderr.write(_CLEAR)
            sys.stderr.flush()
            self._drawn = False
