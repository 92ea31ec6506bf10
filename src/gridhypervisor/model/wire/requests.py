"""What a relay is asked for, what it says unasked, and the commands that it runs."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field


class Op(enum.StrEnum):
    """Requests that a relay answers. Each is idempotent: sent twice, it has the effect of once.

    Paths are relative to the workdir and stay in it. Error kinds: `request` (not understood), `protocol`, `path` (leads
    out), `missing`, `offset` (a piece leaves a hole: ask HAVE), `digest`, `conflict` (another manifest), `busy` (a
    pilot has it), `gone` (the entry was removed, its name is buried), `unseen` (it has a sentinel that nobody has
    collected), `lender` (the site's lender does not allow it, or not now: a note `lender` came before), `space`,
    `permission`, `io`, `internal`, `address` (nobody can listen there).
    """

    # `lender`: None where nobody limits the account
    HELLO = "hello"  # {installation, protocol} -> {protocol, host, user, uid, workdir, boot_id, pid, lender: Lending}
    EXEC = "exec"  # {commands: [Command]} -> {results: [CommandResult]}; one reply when all have ended
    HAVE = "have"  # {paths: [relative]} -> {sizes: {path: size or null, for path and for path + '.part'}}
    PUT = "put"  # {path, offset, last, size, sha256?|chunks?, mode?} + payload -> {size}; `chunks`: the list's path
    LINK_IN = "link_in"  # {source: absolute path on this machine, path, sha256?|chunks?, mode?} -> {size}
    GET = "get"  # {path, offset, length} -> {size, eof} + payload
    # Files of an entry, whole, in one answer: these, then (`outputs`) those that its sentinel lists, as many as come to
    # `most` bytes. None: it is not there. One that `sizes` leaves out has to be asked for with GET.
    FETCH = "fetch"  # {entry, names, outputs, most} -> {sizes: {name: size or null}} + payload: one after another
    # Refused, with nothing written: lender.
    PREPARE = "prepare"  # {entry, manifest} -> {}; makes the entry's folder and writes its manifest durably
    # Its batch job is about to be submitted, and all that it needs is there: any pilot of the pool may serve it now.
    # Nothing happens where somebody has it already.
    OFFER = "offer"  # {entry, pool} -> {}
    REVOKE = "revoke"  # {entry, epoch, by?, why?} -> {owner: OwnerRecord as it now stands}; makes the entry if need be
    # Leaves a word in control/, the first one of its kind; `members`: of 'begin', the lines. Of 'save' there is one of
    # each number, from 1 on.
    # {entry, what: 'cancel', why} or {entry, what: 'begin', members}
    # or {entry, what: 'save', number, then: 'end'|'go-on', why}
    # or {entry, what: 'exec', number, execute: Execute}
    # or {entry, what: 'network', table: NetworkTable}, of which the latest version holds -> {}
    REQUEST = "request"
    # For each entry the number of a beat of its pilot's: answered, so its guest may run on. Entries that are gone are
    # passed over.
    GRANT = "grant"  # {grants: {entry: beat}} -> {}
    # Every entry of this installation (named 'INSTALLATION-...'), sorted by name, in pages; a page behind `after` is of
    # the look that the first one took.
    SCAN = "scan"  # {after?: entry} -> {entries: [EntryView], more}
    WATCH = "watch"  # {entry, stdout, stderr: offsets, or null to end} -> {}; notes 'output' follow
    LIST_OUT = "list_out"  # {entry, after?: path} -> {files: [{path, size, mode, sha256?}], more}; sorted, in pages
    # Takes the entry first where nobody has it; buries its name. Refused: busy, a pilot has it and has left no sentinel
    # (unless force: the batch system's record says that it is gone); unseen, it has a sentinel of another claim than
    # `known`, whose results nobody has collected (unless discard).
    REMOVE = "remove"  # {entry, known?: claim, force?, discard?} -> {}
    # One frame of a part of a checkpoint, sealed with the key (hex), which is kept nowhere; `size`: of the part.
    SEAL = "seal"  # {checkpoint, part, frame, key} -> {size} + payload
    EVICT = "evict"  # {paths: [relative, below cache/, bundle/ or checkpoints/]} -> {freed}
    USAGE = "usage"  # {} -> {cpu_seconds, max_rss_bytes, free_bytes}
    # From now on until the relay ends, couriers of nodes that do not see the workdir are heard. The certificates are
    # PEM texts; `authority` is whose certificates the relay believes. Refused: lender, address.
    LISTEN = "listen"  # {host, first, last: ports, certificate, key, authority} -> {port}
    # What another site's note FRAMES said, for an entry of this one.
    FRAMES = "frames"  # {entry, network, destination, source} + payload -> {dropped}
    LENT = "lent"  # {} -> {lender: Terms or null, uses: [Use]}; of all installations of the account


class Note(enum.StrEnum):
    """What a relay says unasked."""

    ENTRY = "entry"  # {entry: EntryView}: an entry's owner, status or sentinel changed
    OUTPUT = "output"  # {entry, stream: 'stdout'|'stderr', offset, eof?} + payload; `eof`: ended, and this is the rest
    # {entry, from: entries, network, destination, source: numbers of members} + payload: what is for an entry that is
    # not at this site, or not there at the moment
    FRAMES = "frames"
    LENDER = "lender"  # {lender: Lending or null}: the terms changed, or what is in use


@dataclass(frozen=True)
class Command:
    argv: tuple[str, ...]
    stdin: str = ""
    timeout: float = 30.0  # seconds
    environment: dict[str, str] = field(default_factory=dict)  # added to the relay's own
    # Words of `argv` that start a server, which the relay keeps and hands the rest of the words; 0: there is none. It
    # is a matter of cost alone: the whole of `argv` as a process does the same.
    server: int = 0


@dataclass(frozen=True)
class CommandResult:
    code: int | None  # None: it was killed at its timeout
    stdout: str = ""
    stderr: str = ""
