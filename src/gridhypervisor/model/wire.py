"""What crosses between the controller, the relay, the pilot and the guest's owner file: names, records, framing.

This is the one module that both sides import, so it uses the standard library alone (it travels in the bundle) and
does no I/O. It says what the bytes mean; who sends them when is decided in `planning` and carried out in `agent`.

Framing. One message is one line of JSON (UTF-8, no newline inside). A message whose `payload` field is N > 0 is
followed by exactly N raw bytes. Requests carry `id` and `op`; the reply repeats `id` and holds either `ok` (an object)
or `error` (`kind`, `message`, `hint`). Messages without `id` are notes from the relay.

Spool. One PilotJob has one folder, its *entry*, `WORKDIR/spool/NAME/`, mode 0700:

    manifest.json   written by the relay before the submission, never changed after
    in/             inputs, as the job names them
    owner           taken once, by link(2): whoever took it may act for the VM (pilot) or has ended it (controller)
    status.json     the pilot's last word, replaced whole at each phase and each beat
    stdout stderr   what the program printed, appended as it comes
    console.log     the guest's serial console
    pilot.log       the pilot's own log
    batch.log       what the batch script printed, e.g. why the bundle could not start
    control/        the controller's wishes, one file each: `cancel`
    out/            the outputs, complete before `exit.json` appears
    exit.json       the exit sentinel: written once, durably, last
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import json
import math
import re
import types
import typing
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, TypeVar

PROTOCOL = 1
"""Version of everything in this module. A relay or pilot of another version is refused, never guessed at."""

MAX_LINE = 8 << 20
"""Longest accepted message line, in bytes: a peer that sends more is broken or hostile."""

MAX_PAYLOAD = 16 << 20
"""Longest accepted payload, in bytes."""

# The names inside an entry.
MANIFEST, OWNER, STATUS, EXIT = "manifest.json", "owner", "status.json", "exit.json"
STDOUT, STDERR, CONSOLE, PILOT_LOG, BATCH_LOG = "stdout", "stderr", "console.log", "pilot.log", "batch.log"
INPUTS, OUTPUTS, CONTROL, CANCEL = "in", "out", "control", "cancel"

BURIED = ".buried"
"""Below the spool: the names of removed entries, so that nothing late can bring one back to life."""

# The folders of an account's workdir.
SPOOL, CACHE, BUNDLES = "spool", "cache", "bundle"


class WireError(ValueError):
    """A message that does not mean what this version of the protocol can say."""


class Op(enum.StrEnum):
    """Requests that a relay answers. Each is idempotent: sent twice, it has the effect of once.

    Paths are relative to the workdir and stay in it. Error kinds: `request` (not understood), `protocol`, `path` (leads
    out), `missing`, `offset` (a piece leaves a hole: ask HAVE), `digest`, `conflict` (another manifest), `busy` (a
    pilot has it), `gone` (the entry was removed, its name is buried), `unseen` (it has a sentinel that nobody has
    collected), `space`, `permission`, `io`, `internal`.
    """

    HELLO = "hello"  # {installation, protocol} -> {protocol, host, user, uid, workdir, boot_id, pid}
    EXEC = "exec"  # {commands: [Command]} -> {results: [CommandResult]}; one reply when all have ended
    HAVE = "have"  # {paths: [relative]} -> {sizes: {path: size or null, for path and for path + '.part'}}
    PUT = "put"  # {path, offset, last, size, sha256?|chunks?, mode?} + payload -> {size}; `chunks`: the list's path
    LINK_IN = "link_in"  # {source: absolute path on this machine, path, sha256?|chunks?, mode?} -> {size}
    GET = "get"  # {path, offset, length} -> {size, eof} + payload
    PREPARE = "prepare"  # {entry, manifest} -> {}; makes the entry's folder and writes its manifest durably
    REVOKE = "revoke"  # {entry, epoch, by?, why?} -> {owner: OwnerRecord as it now stands}; makes the entry if need be
    REQUEST = "request"  # {entry, what: 'cancel', why} -> {}; leaves a wish in control/
    # Every entry of this installation (named 'INSTALLATION-...'), sorted by name, in pages; a page behind `after` is of
    # the look that the first one took.
    SCAN = "scan"  # {after?: entry} -> {entries: [EntryView], more}
    WATCH = "watch"  # {entry, stdout, stderr: offsets, or null to end} -> {}; notes 'output' follow
    LIST_OUT = "list_out"  # {entry, after?: path} -> {files: [{path, size, mode, sha256?}], more}; sorted, in pages
    # Takes the entry first where nobody has it; buries its name. Refused: busy, a pilot has it and has left no sentinel
    # (unless force: the batch system's record says that it is gone); unseen, it has a sentinel of another claim than
    # `known`, whose results nobody has collected (unless discard).
    REMOVE = "remove"  # {entry, known?: claim, force?, discard?} -> {}
    EVICT = "evict"  # {paths: [relative, below cache/ or bundle/]} -> {freed}
    USAGE = "usage"  # {} -> {cpu_seconds, max_rss_bytes, free_bytes}


class Note(enum.StrEnum):
    """What a relay says unasked."""

    ENTRY = "entry"  # {entry: EntryView}: an entry's owner, status or sentinel changed
    OUTPUT = "output"  # {entry, stream: 'stdout'|'stderr', offset, eof?} + payload; `eof`: ended, and this is the rest


class Phase(enum.StrEnum):
    """GridWay's phases, in the order in which a job lives through them; the middle ones are the pilot's to time.

    `WAIT` is the controller's own queue, `QUEUE` the site's. `PREPARE` is what the pilot does on the node before the
    guest exists (unpack the bundle, verify and copy the image); with BOOT to SHUT_DOWN it makes up the *wrapper*.
    """

    WAIT = "wait"
    PROLOG = "prolog"
    QUEUE = "queue"
    PREPARE = "prepare"
    BOOT = "boot"
    STAGE_IN = "stage_in"
    EXECUTE = "execute"
    STAGE_OUT = "stage_out"
    SHUT_DOWN = "shut_down"
    EPILOG = "epilog"


WRAPPER = (Phase.PREPARE, Phase.BOOT, Phase.STAGE_IN, Phase.EXECUTE, Phase.STAGE_OUT, Phase.SHUT_DOWN)
"""The phases that the pilot times itself, on its own clock."""


class Outcome(enum.StrEnum):
    """How an allocation's pilot ended."""

    COMPLETED = "completed"  # the program ran to an end of its own; see exit_code
    STOPPED = "stopped"  # ended from outside: walltime, cancelled; outputs so far are in out/
    FAILED = "failed"  # the VM, the node or the site failed it; see reason
    YIELDED = "yielded"  # somebody else owns the allocation; nothing was run


class Reason(enum.StrEnum):
    """Why. Closed and total: every ending has exactly one."""

    EXITED = "exited"  # the program ended, with any exit code
    WALLTIME = "walltime"
    CANCELLED = "cancelled"
    EVICTED = "evicted"  # the site ended the job by a signal, though nobody had asked and time was left
    NOT_OWNER = "not-owner"  # the allocation was revoked, or another run of this pilot has it
    MANIFEST = "manifest"  # the manifest cannot be read or is of another protocol version
    BUNDLE = "bundle"  # what travels is damaged, or cannot run on this node
    IMAGE = "image"  # the image's bytes are not those of its digest, or are absent
    BOOT = "boot"  # the guest did not report ready in time, or said that it cannot boot
    GUEST_PANIC = "guest-panic"
    GUEST_SILENT = "guest-silent"  # the guest stopped answering
    HYPERVISOR = "hypervisor"  # the hypervisor could not start, or died
    PILOT = "pilot"  # the pilot died or was stopped; said by the watchdog
    INPUT = "input"  # an input is missing or damaged at the site
    OUTPUT = "output"  # a declared output was not made, or could not be packed
    SCRATCH_FULL = "scratch-full"  # the guest's scratch disk is full: ask for more
    NODE_DISK = "node-disk"  # the node's scratch is full
    LOST = "lost"  # the batch system says it ended and no sentinel came; said by the controller
    SUBMIT = "submit"  # the batch system refused the job; said by the controller
    STAGING = "staging"  # inputs or results could not be moved; said by the controller


RETRYABLE = frozenset(
    {
        Reason.EVICTED,
        Reason.BUNDLE,
        Reason.IMAGE,
        Reason.GUEST_SILENT,
        Reason.HYPERVISOR,
        Reason.PILOT,
        Reason.NODE_DISK,
        Reason.LOST,
        Reason.SUBMIT,
    }
)
"""Reasons that another node or another try may mend. What the program did, or the user asked, is never among them."""


class Acceleration(enum.StrEnum):
    KVM = "kvm"
    TCG = "tcg"


@dataclass(frozen=True)
class Layer:
    """One content-addressed part of an image.

    `digest` is the SHA-256 (hex) of the chunk list: the concatenation, in order, of the raw 32-byte SHA-256 digests
    of each `chunk_size`-byte piece of the data (the last may be shorter). So any part can be verified alone and many
    in parallel. The data lie in `cache/DIGEST`, the chunk list in `cache/DIGEST.chunks`.
    """

    digest: str
    size: int  # bytes
    role: str  # kernel | initrd | base | app | disk
    format: str  # raw | squashfs | erofs | qcow2
    mount: str = ""  # where an app layer appears in the guest, e.g. /opt
    chunk_size: int = 1 << 20


@dataclass(frozen=True)
class ImageManifest:
    """An image: what to boot and what to mount. Its digest is the SHA-256 of its canonical JSON (`canonical`)."""

    layers: tuple[Layer, ...]
    arch: str = "x86_64"
    cmdline: str = ""  # appended to the kernel's command line
    user: str = "root"  # whom the program runs as, in the guest
    path: str = ""  # prepended to PATH for the program, colon-separated
    description: str = ""


@dataclass(frozen=True)
class Input:
    path: str  # relative to the job's folder in the guest, and below in/ in the entry
    size: int
    sha256: str = ""
    mode: int = 0o644


@dataclass(frozen=True)
class Program:
    """What runs in the guest."""

    command: tuple[str, ...]
    environment: dict[str, str] = field(default_factory=dict)
    inputs: tuple[Input, ...] = ()
    outputs: tuple[str, ...] = ()  # glob patterns relative to the job's folder


@dataclass(frozen=True)
class Resources:
    cpus: int = 1
    memory: int = 512 << 20  # bytes, of the guest
    scratch: int = 2 << 30  # bytes, of the guest's scratch disk
    walltime: int = 1800  # seconds, of the batch job


@dataclass(frozen=True)
class Manifest:
    """All that a pilot must know. Written before the submission; the pilot trusts nothing else."""

    protocol: int
    installation: str
    entry: str  # the PilotJob's name: the spool folder, the batch job's name
    vm: str
    epoch: int
    allocation: str
    job: str
    image: ImageManifest
    image_digest: str
    program: Program
    resources: Resources
    network: str = "none"  # none | restricted | outbound
    boot_timeout: int = 180  # seconds until the guest must have reported ready
    stop_grace: int = 20  # seconds that the program has between TERM and KILL, and the guest to power off
    beat: int = 10  # seconds between heartbeats
    on_silence: str = "keep"
    acceleration: str = "auto"  # auto | kvm | tcg
    debug: dict[str, str] = field(default_factory=dict)  # faults to provoke, in tests only


@dataclass(frozen=True)
class OwnerRecord:
    """The content of `owner`: who took the allocation, forever."""

    by: str  # "pilot" or "controller"
    claim: str  # unique to the taker: a pilot's run, or a controller's revocation
    epoch: int
    node: str = ""
    why: str = ""


@dataclass(frozen=True)
class PhaseTime:
    """A phase that has begun, in seconds on the pilot's CLOCK_BOOTTIME since the pilot started."""

    phase: Phase
    start: float
    end: float | None = None


@dataclass(frozen=True)
class HypervisorUsed:
    name: str  # qemu
    version: str
    acceleration: Acceleration
    why: str  # e.g. "kvm: the micro-guest printed nothing in 5 s"


@dataclass(frozen=True)
class Status:
    """`status.json`: the pilot's last word. `sequence` only grows; an older one seen later is a stale look."""

    entry: str
    epoch: int
    claim: str
    sequence: int
    phase: Phase
    phases: tuple[PhaseTime, ...]
    elapsed: float  # seconds since the pilot started, its own CLOCK_BOOTTIME, when this was written
    node: str = ""
    pid: int = 0
    hypervisor: HypervisorUsed | None = None
    note: str = ""  # one line for the user, e.g. "waiting for the guest's word, 12 s of 180 s"
    ready_at: float | None = None  # CLOCK_REALTIME of guest-ready; for benchmarks on one machine only


@dataclass(frozen=True)
class OutputFile:
    path: str
    size: int
    mode: int
    sha256: str
    link: str = ""  # of a symbolic link: its target, relative to the link's folder and inside the outputs


@dataclass(frozen=True)
class CpuUsage:
    """CPU seconds (user + system)."""

    pilot: float = 0.0  # pilot, watchdog and their helpers
    hypervisor: float = 0.0
    program: float | None = None  # inside the guest, where the guest said it


@dataclass(frozen=True)
class ExitRecord:
    """`exit.json`: how it ended. Written once; after it the pilot does nothing more for this VM."""

    entry: str
    epoch: int
    claim: str
    outcome: Outcome
    reason: Reason
    message: str = ""  # which operation on which object failed, and why
    hint: str = ""  # what to do next
    exit_code: int | None = None  # the program's; 128 + signal where a signal ended it
    phases: tuple[PhaseTime, ...] = ()
    elapsed: float = 0.0
    usage: CpuUsage = CpuUsage()
    hypervisor: HypervisorUsed | None = None
    outputs: tuple[OutputFile, ...] = ()
    node: str = ""
    # Sizes in bytes of stdout, stderr and console.log, as the node saw them last: a file that is shorter is not yet
    # all visible. One that was never made is left out.
    streams: dict[str, int] = field(default_factory=dict)
    by: str = "pilot"  # or "watchdog", for a pilot that could not: then `outputs` is empty whatever out/ holds


@dataclass(frozen=True)
class EntryView:
    """What a relay sees of one entry in one look. An absent part is None: not yet visible, or not there.

    `exit.outputs` is always empty here (there may be very many): LIST_OUT gives them.
    """

    entry: str
    owner: OwnerRecord | None = None
    status: Status | None = None
    exit: ExitRecord | None = None


@dataclass(frozen=True)
class Command:
    argv: tuple[str, ...]
    stdin: str = ""
    timeout: float = 30.0  # seconds
    environment: dict[str, str] = field(default_factory=dict)  # added to the relay's own


@dataclass(frozen=True)
class CommandResult:
    code: int | None  # None: it was killed at its timeout
    stdout: str = ""
    stderr: str = ""


T = TypeVar("T")


_ATOMS = frozenset({str, int, float, bool, type(None)})

_MISSING: Any = object()


def to_plain(value: Any) -> Any:
    """Turn records into JSON's own types, leaving out fields that hold their default."""
    kind = type(value)
    if kind in _ATOMS:
        return value
    if kind is dict:
        return {str(key): to_plain(item) for key, item in value.items()}
    if kind is list or kind is tuple:
        return [to_plain(item) for item in value]
    if isinstance(value, enum.Enum):
        return value.value
    if not dataclasses.is_dataclass(kind):
        return value
    out: dict[str, Any] = {}
    for name, default in _defaults(kind):
        item = getattr(value, name)
        if item is not default and item != default:
            out[name] = to_plain(item)
    return out


@functools.cache
def _defaults(kind: type) -> tuple[tuple[str, Any], ...]:
    """A record's fields with their defaults, which nothing equals where there is none."""
    return tuple(
        (f.name, f.default_factory() if f.default_factory is not dataclasses.MISSING
         else _MISSING if f.default is dataclasses.MISSING else f.default)
        for f in dataclasses.fields(kind)
    )  # fmt: skip


def from_plain(kind: type[T], value: Any) -> T:
    """Build a record of type `kind` from JSON's types. Unknown fields are ignored (a newer peer may say more).

    Raises:
        WireError: a field is missing, has another type, or holds what no column or file could: a whole number of more
            than 64 bits, a number that is none, text that is not Unicode. The message holds the path to it.
    """
    try:
        return typing.cast(T, _reader(typing.cast(Any, kind))(value))
    except _MisfitError as error:
        raise WireError(f"{kind.__name__}{error.path}: {error.what}") from None


class _MisfitError(Exception):
    """A value of another kind than expected. Its path is put together while the readers return."""

    def __init__(self, what: str, path: str = "") -> None:
        super().__init__(what)
        self.what, self.path = what, path


@functools.cache
def _reader(kind: Any) -> Callable[[Any], Any]:
    """What turns a JSON value into one of `kind`; made once for each kind, for messages are read by the thousand."""
    origin = typing.get_origin(kind)
    if kind is Any:
        return lambda value: value
    if origin in (typing.Union, types.UnionType):
        [inner] = [a for a in typing.get_args(kind) if a is not type(None)]
        read = _reader(inner)
        return lambda value: None if value is None else read(value)
    if origin is tuple:
        return functools.partial(_read_tuple, _reader(typing.get_args(kind)[0]))
    if origin is dict:
        return functools.partial(_read_dict, _reader(typing.get_args(kind)[1]))
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        fields = tuple(
            (f.name, _reader(hints[f.name]), f.default is f.default_factory is dataclasses.MISSING)
            for f in dataclasses.fields(kind)
        )
        return functools.partial(_read_record, kind, fields)
    if issubclass(kind, enum.Enum):
        return functools.partial(_read_enum, kind)
    if kind is float:
        return _read_float
    if kind is int:
        return _read_int
    if kind is str:
        return _read_text
    return functools.partial(_read_atom, kind)


def _read_record(kind: type, fields: tuple[tuple[str, Callable[[Any], Any], bool], ...], value: Any) -> Any:
    _expect(type(value) is dict, "an object", value)
    given = {}
    for name, read, needed in fields:
        if name in value:
            try:
                given[name] = read(value[name])
            except _MisfitError as error:
                raise _MisfitError(error.what, f".{name}{error.path}") from None
        elif needed:
            raise _MisfitError("missing", f".{name}")
    return kind(**given)


def _read_tuple(read: Callable[[Any], Any], value: Any) -> tuple[Any, ...]:
    _expect(type(value) is list, "a list", value)
    items = []
    for i, item in enumerate(value):
        try:
            items.append(read(item))
        except _MisfitError as error:
            raise _MisfitError(error.what, f"[{i}]{error.path}") from None
    return tuple(items)


def _read_dict(read: Callable[[Any], Any], value: Any) -> dict[str, Any]:
    _expect(type(value) is dict, "an object", value)
    items = {}
    for key, item in value.items():
        try:
            items[_read_text(key)] = read(item)
        except _MisfitError as error:
            raise _MisfitError(error.what, f".{key}{error.path}") from None
    return items


def _read_enum(kind: type[enum.Enum], value: Any) -> Any:
    try:
        return kind(value)
    except ValueError:
        raise _MisfitError(f"{value!r} is not one of {', '.join(str(m.value) for m in kind)}") from None


def _read_float(value: Any) -> float:
    _expect(type(value) is float and math.isfinite(value) or _is_int(value), "a number", value)
    return float(value)


def _read_int(value: Any) -> int:
    _expect(_is_int(value), "a whole number of at most 64 bits", value)
    return typing.cast(int, value)


def _is_int(value: Any) -> bool:
    return type(value) is int and -(1 << 63) <= value < 1 << 63


def _read_text(value: Any) -> str:
    _expect(type(value) is str and is_text(value), "text", value)
    return typing.cast(str, value)


def is_text(value: str) -> bool:
    """Whether it can be written down: a file's name that is no UTF-8 cannot, nor what JSON makes of half a pair."""
    if value.isascii():
        return True
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _read_atom(kind: type, value: Any) -> Any:
    _expect(type(value) is kind, kind.__name__, value)
    return value


def _expect(holds: bool, what: str, value: Any) -> None:
    if not holds:
        raise _MisfitError(f"expected {what}, got {value!r:.80}")


def declared(path: str, patterns: Iterable[str]) -> bool:
    """Whether an output's path is what one of the job's patterns can mean, or lies below it.

    As the guest's shell reads patterns: component by component, `*` and `?` and `[…]` match no slash and no leading
    dot, bytes and not characters are counted, and a pattern without a match means itself. Who brings outputs out asks
    this of each: root in the guest may have packed anything.

    >>> [declared(path, ["products/*"]) for path in ("products/a/.b", "products/.a", "products", ".bashrc")]
    [True, False, False, False]
    """
    parts = path.split("/")
    if "" in parts or ".." in parts:
        return False
    return any(_covers(pattern, parts) for pattern in patterns)


def leads_inside(path: str, target: str) -> bool:
    """Whether a link at `path` to `target` stays below the folder of which both are part, whatever its parts are.

    `..` may only come first, where the folder that it leaves is the link's own: after another name that may be a link,
    nobody knows what it leaves.
    """
    parts = [part for part in target.split("/") if part not in ("", ".")]
    up = next((i for i, part in enumerate(parts) if part != ".."), len(parts))
    return (
        target != ""
        and not target.startswith("/")
        and "\0" not in target
        and ".." not in parts[up:]
        and up <= path.count("/")
    )


def _covers(pattern: str, parts: list[str]) -> bool:
    globs = [glob for glob in pattern.split("/") if glob not in ("", ".")]
    return len(globs) <= len(parts) and all(
        part == glob or _component(glob).fullmatch(_bytewise(part)) is not None
        for glob, part in zip(globs, parts, strict=False)
    )


_TOKEN = r"(?s:\\.|\*|\?|\[[!^]?\]?(?:\[:\w+:\]|[^]])*\]|.)"  # not compiled here: a pilot's start waits for imports


@functools.lru_cache(maxsize=4096)
def _component(glob: str) -> re.Pattern[str]:
    """One component of a shell's pattern as a regular expression over bytes (as Latin-1)."""
    out = "" if glob.startswith((".", "\\.")) else r"(?!\.)"
    for token in re.findall(_TOKEN, _bytewise(glob)):
        if token == "*":
            out += ".*"
        elif token == "?" or (token.startswith("[") and "[:" in token):  # named classes: whichever character it is
            out += "."
        elif token.startswith("[") and len(token) > 2:
            negated = token[1] in "!^"
            body = re.sub(r"[^-0-9A-Za-z]", r"\\\g<0>", token[1 + negated : -1])
            out += f"[{'^' * negated}{body}]"
        else:
            out += re.escape(token[1:] if token.startswith("\\") and len(token) > 1 else token)
    try:
        return re.compile(out, re.DOTALL)
    except re.error:  # [z-a]: it matches nothing but itself
        return re.compile(re.escape(_bytewise(glob)))


def _bytewise(text: str) -> str:
    return text.encode(errors="surrogatepass").decode("latin-1")


def canonical(value: Any) -> bytes:
    """The one JSON text of a record, over which digests are taken: sorted keys, no spaces, UTF-8."""
    return json.dumps(to_plain(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def encode(message: dict[str, Any], payload: bytes | memoryview = b"") -> bytes:
    """One message ready for the pipe."""
    if payload:
        message = {**message, "payload": len(payload)}
    line = json.dumps(to_plain(message), separators=(",", ":"), ensure_ascii=False).encode() + b"\n"
    if len(line) > MAX_LINE:
        raise WireError(f"message of {len(line)} bytes: the limit is {MAX_LINE}")
    return line + bytes(payload) if payload else line


class Decoder:
    """Bytes in, messages out, across any cut of the stream. Sans-I/O.

    >>> d = Decoder(); list(d.feed(b'{"id":1}\\n{"payload":2}\\nhi'))
    [({'id': 1}, b''), ({'payload': 2}, b'hi')]
    """

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._message: dict[str, Any] | None = None
        self._need = 0

    def feed(self, data: bytes) -> list[tuple[dict[str, Any], bytes]]:
        """Take in bytes; return the messages that they complete.

        Raises:
            WireError: a line is no JSON object or too long, or a payload too large.
        """
        self._buffer += data
        out: list[tuple[dict[str, Any], bytes]] = []
        while True:
            if self._message is None:
                end = self._buffer.find(b"\n")
                if end < 0:
                    if len(self._buffer) > MAX_LINE:
                        raise WireError(f"a line of more than {MAX_LINE} bytes")
                    return out
                line = bytes(self._buffer[:end])
                del self._buffer[: end + 1]
                try:
                    message = json.loads(line)
                except (ValueError, RecursionError) as error:
                    raise WireError(f"not JSON: {line[:120]!r}") from error
                if not isinstance(message, dict):
                    raise WireError(f"not an object: {line[:120]!r}")
                need = message.get("payload", 0)
                if not isinstance(need, int) or not 0 <= need <= MAX_PAYLOAD:
                    raise WireError(f"payload of {need!r} bytes: the limit is {MAX_PAYLOAD}")
                self._message, self._need = message, need
            if len(self._buffer) < self._need:
                return out
            payload = bytes(self._buffer[: self._need])
            del self._buffer[: self._need]
            out.append((self._message, payload))
            self._message = None
