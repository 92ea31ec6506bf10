"""Talking with the guest's agent, without I/O: the job file that it reads, its lines, and the ends of the streams.

The agent is `guest/agent.sh`, whose head lists the lines. Sockets and time are the pilot's.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from gridhypervisor.agent.ending import Ending
from gridhypervisor.model.wire import Program, Reason

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
FOLDER = "/scratch/job"
"""The job's folder in the guest."""

_MAX_LINE = 4096  # bytes; the agent's lines are far shorter, so a longer one is not the agent's
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
_USER = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*\Z")


def quote(word: str) -> str:
    """One word for a POSIX shell, whatever is in it."""
    return "'" + word.replace("'", "'\\''") + "'"


def job_file(program: Program, *, user: str, path: str) -> str:
    """The shell text that says what the program is; see `guest/agent.sh`.

    Raises:
        Ending: a word cannot be said in a shell or must not be asked of one.
    """
    if not program.command:
        raise _refuse("the command is empty", "give the program after `--`")
    for word in (*program.command, *program.environment.values(), *program.outputs, path):
        if "\0" in word:
            raise _refuse(f"{word[:40]!r} holds a NUL character", "no program can be given one; take it out")
    if not _USER.match(user):
        raise _refuse(f"the image's user {user!r} is no user name", "mend the image's recipe and build it again")
    for name in program.environment:
        if not _NAME.match(name):
            raise _refuse(f"{name!r} is no name of a variable", "use letters, digits and underscores")
    for pattern in program.outputs:
        if pattern.startswith("/") or ".." in pattern.split("/") or "\n" in pattern or not pattern:
            raise _refuse(
                f"the output {pattern!r} is not a pattern below the job's folder",
                "give it relative to the folder where the program starts, without `..`",
            )
    words = [f"export {name}={quote(value)}" for name, value in program.environment.items()]
    words.append("start " + " ".join(map(quote, program.command)))
    patterns = " ".join(map(quote, program.outputs))
    return (
        f"user={quote(user)}\nfolder={quote(FOLDER)}\n"
        f"path={quote(f'{path}:{DEFAULT_PATH}' if path else DEFAULT_PATH)}\n"
        "program() {\n" + "\n".join(words) + f"\n}}\noutputs() {{\npack {patterns}\n}}\n"
    )


def _refuse(why: str, hint: str) -> Ending:
    return Ending(Reason.MANIFEST, f"read the job: {why}", hint)


class Lines:
    """The agent's lines: bytes in, words out. Root in the guest may write anything here, so nothing is believed to be
    short or clean."""

    def __init__(self) -> None:
        self._buffer = b""

    def feed(self, data: bytes) -> list[list[str]]:
        """The lines that these bytes complete, each split at spaces; empty lines are left out."""
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        self._buffer = self._buffer[-_MAX_LINE:]
        split = (line[:_MAX_LINE].decode(errors="replace").split() for line in lines)
        return [words for words in split if words]


class Stream:
    """One of the program's streams: what comes, byte for byte, but for the marker that the agent sends at its end.

    Bytes behind the marker are the program's too: not to have to trust that a guest's shell waits for its children.

    >>> s = Stream(b"MARK"); s.feed(b"abM"), s.ended, s.feed(b"x MA"), s.feed(b"RK"), s.ended
    (b'ab', False, b'Mx ', b'', True)
    """

    def __init__(self, marker: bytes) -> None:
        self._marker = marker
        self._held = b""
        self.ended = False
        self.length = 0  # bytes given out

    def feed(self, data: bytes) -> bytes:
        """What can be written out; only bytes that may begin the marker are held back."""
        data = self._held + data
        if not self.ended and self._marker in data:
            self.ended = True
            data = data.replace(self._marker, b"", 1)
        if self.ended:
            out, self._held = data, b""
        else:
            keep = min(len(data), len(self._marker) - 1)
            while keep and not data.endswith(self._marker[:keep]):
                keep -= 1
            out, self._held = data[: len(data) - keep], data[len(data) - keep :]
        self.length += len(out)
        return out

    def rest(self) -> bytes:
        """What was held back, once nothing more can come."""
        out, self._held = self._held, b""
        return out


@dataclass(frozen=True)
class Exit:
    """How the program ended, as the agent said it."""

    code: int  # 128 + signal where a signal ended it
    cpu: float  # seconds
    out_of_memory: int  # how often the kernel had to kill something of it
    free: int  # bytes left on the scratch disk

    @classmethod
    def parse(cls, words: list[str]) -> Exit | None:
        """From `EXIT CODE CPU_USEC OOM_KILLS FREE_BYTES`; None where it is not that, or nothing that can be so."""
        numbers = [number(word) for word in words[1:5]]
        if len(words) != 5 or None in numbers:
            return None
        code, cpu, out_of_memory, free = (value or 0 for value in numbers)
        return cls(code, cpu / 1e6, out_of_memory, free) if code <= 255 else None


def number(word: str) -> int | None:
    """A count as the agent says one, below 2^63; None for all else: root in the guest may say what no record holds."""
    if not (word.isascii() and word.isdecimal() and len(word) <= 19):
        return None
    return value if (value := int(word)) < 1 << 63 else None
