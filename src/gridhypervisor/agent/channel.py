"""Talking with the guest's agent, without I/O: the job file that it reads, its lines, and the ends of the streams.

The agent is `guest/agent.sh`, whose head lists the lines. Sockets and time are the pilot's.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from gridhypervisor.agent.ending import Ending
from gridhypervisor.model.wire import Nic, Program, ReadyProbe, Reason

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
FOLDER = "/scratch/job"
"""The job's folder in the guest."""

_MAX_LINE = 4096  # bytes; the agent's lines are far shorter, so a longer one is not the agent's
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
_HOST = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]{0,62}\Z")
_DOMAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]{0,199}\Z")
_USER = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*\Z")


def quote(word: str) -> str:
    """One word for a POSIX shell, whatever is in it."""
    return "'" + word.replace("'", "'\\''") + "'"


def job_file(
    program: Program, *, user: str, path: str, hostname: str = "guest", nics: Sequence[Nic] = (),
    ready: ReadyProbe | None = None,
) -> str:  # fmt: skip
    """The shell text that says what the program is; see `guest/agent.sh`. `ready`: how it is found out that it serves.

    Raises:
        Ending: a word cannot be said in a shell or must not be asked of one.
    """
    if not program.command:
        raise _refuse("the command is empty", "give the program after `--`")
    asked = ready.command if ready is not None else ()
    for word in (*program.command, *program.environment.values(), *program.outputs, *program.restart, *asked, path):
        if "\0" in word:
            raise _refuse(f"{word[:40]!r} holds a NUL character", "no program can be given one; take it out")
    if not _HOST.match(hostname):
        raise _refuse(f"{hostname!r} is no name of a host", "use letters, digits and hyphens")
    if not _USER.match(user):
        raise _refuse(f"the image's user {user!r} is no user name", "mend the image's recipe and build it again")
    for name in program.environment:
        if not _NAME.match(name):
            raise _refuse(f"{name!r} is no name of a variable", "use letters, digits and underscores")
    for pattern in (*program.outputs, *program.restart):
        if pattern.startswith("/") or ".." in pattern.split("/") or "\n" in pattern or not pattern:
            raise _refuse(
                f"the output {pattern!r} is not a pattern below the job's folder",
                "give it relative to the folder where the program starts, without `..`",
            )
    cards = [f"nic {number} {_card(nic)}" for number, nic in enumerate(nics)]
    words = [f"export {name}={quote(value)}" for name, value in program.environment.items()]
    words.append(starting(program.command))
    packs = {"outputs": program.outputs, "restart": program.restart, "both": both(program)}
    return (
        f"user={quote(user)}\nfolder={quote(FOLDER)}\nhost={quote(hostname)}\n"
        f"path={quote(f'{path}:{DEFAULT_PATH}' if path else DEFAULT_PATH)}\n"
        f"resolvers={quote(' '.join(nic.resolver for nic in nics))}\n"
        f"domains={quote(' '.join(nic.domain for nic in nics))}\n"
        "nics() {\n:\n" + "".join(f"{card}\n" for card in cards) + "}\n"
        "surroundings() {\n" + "\n".join([":", *words[:-1]]) + "\n}\n"
        f"program() {{\nsurroundings\n{words[-1]}\n}}\n"
        f"ready() {{\n{_probing(ready)}\n}}\n"
        + "".join(f"{name}() {{\npack {' '.join(map(quote, known))}\n}}\n" for name, known in packs.items())
    )  # fmt: skip


def _card(nic: Nic) -> str:
    """The agent's words for a card: hardware address, address, mask, MTU. Refused as Ending."""
    from gridhypervisor.agent.network.frames import ANYBODY, address_bytes, address_text, mac_bytes, mask_of

    try:
        mac, address, resolver = mac_bytes(nic.mac), address_bytes(nic.address), address_bytes(nic.resolver)
        mask = mask_of(nic.prefix)
    except (ValueError, OverflowError) as error:
        raise _refuse(f"the card in network {nic.network}: {error}", "report this as a bug") from error
    if not _DOMAIN.match(nic.domain) or ANYBODY in (address, resolver):
        raise _refuse(f"{nic.domain!r} is no domain for network {nic.network}", "use letters, digits, hyphens and dots")
    return f"{mac.hex(':')} {address_text(address)} {address_text(mask)} {nic.mtu}"


def starting(command: tuple[str, ...]) -> str:
    """The agent's words that run a command as the program is run."""
    return "start " + " ".join(map(quote, command))


def _probing(probe: ReadyProbe | None) -> str:
    """The agent's words that find out whether the program serves."""
    if probe is None:
        return ":"
    if probe.tcp:
        return f"knock {probe.limit} {probe.tcp}"
    if probe.http:
        return f"fetch {probe.limit} {quote(f'http://127.0.0.1:{probe.http}{probe.path}')}"
    return f"surroundings\nbefore='/run/ghv/busybox timeout {probe.limit}'\n{starting(probe.command)}"


def both(program: Program) -> tuple[str, ...]:
    """The patterns of all that a program may leave."""
    return (*program.outputs, *(pattern for pattern in program.restart if pattern not in program.outputs))


def _refuse(why: str, hint: str) -> Ending:
    return Ending(Reason.MANIFEST, f"read the job: {why}", hint)


class Lines:
    """The agent's lines: bytes in, words out. Root in the guest may write anything here, so nothing is believed to be
    short or clean."""

    def __init__(self, begun: bytes = b"") -> None:
        """`begun`: what came of the next line so far."""
        self.begun = begun

    def feed(self, data: bytes) -> list[list[str]]:
        """The lines that these bytes complete, each split at spaces; empty lines are left out."""
        *lines, self.begun = (self.begun + data).split(b"\n")
        self.begun = self.begun[-_MAX_LINE:]
        split = (line[:_MAX_LINE].decode(errors="replace").split() for line in lines)
        return [words for words in split if words]


class Stream:
    """One of the program's streams: what comes, byte for byte, but for the marker that the agent sends at its end.

    Bytes behind the marker are the program's too: not to have to trust that a guest's shell waits for its children.

    >>> s = Stream(b"MARK"); s.feed(b"abM"), s.ended, s.feed(b"x MA"), s.feed(b"RK"), s.ended
    (b'ab', False, b'Mx ', b'', True)
    """

    def __init__(self, marker: bytes, held: bytes = b"", *, ended: bool = False, length: int = 0) -> None:
        self._marker = marker
        self.held = held  # what may be the marker's begin
        self.ended = ended
        self.length = length  # bytes given out

    def feed(self, data: bytes) -> bytes:
        """What can be written out; only bytes that may begin the marker are held back."""
        data = self.held + data
        if not self.ended and self._marker in data:
            self.ended = True
            data = data.replace(self._marker, b"", 1)
        if self.ended:
            out, self.held = data, b""
        else:
            keep = min(len(data), len(self._marker) - 1)
            while keep and not data.endswith(self._marker[:keep]):
                keep -= 1
            out, self.held = data[: len(data) - keep], data[len(data) - keep :]
        self.length += len(out)
        return out

    def rest(self) -> bytes:
        """What was held back, once nothing more can come."""
        out, self.held = self.held, b""
        return out


@dataclass(frozen=True)
class HeardStream:
    """A stream of the program's that is to go on elsewhere."""

    length: int
    held: str = ""  # hexadecimal
    ended: bool = False


@dataclass(frozen=True)
class Heard:
    """What was heard of a guest whose program runs, for whoever takes it up."""

    marker: str
    streams: dict[str, HeardStream]
    line: str = ""  # of the agent's next line, hexadecimal
    asked: int = 0  # pings, all answered
    free: int | None = None  # bytes left on the scratch disk
    asks: str = ""  # why the program wants to be moved


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
