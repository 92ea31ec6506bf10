"""A spool as its relay sees it: what a node writes is true at once and seen later, in any order.

Ownership alone is never stale: `link(2)` asks the file server itself.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field

from gridhypervisor.model.replacing import replace
from gridhypervisor.model.wire import (
    EXIT,
    STDOUT,
    Checkpoint,
    EntryView,
    ExitRecord,
    Manifest,
    NetworkTable,
    OwnerRecord,
    Status,
    canonical,
)


@dataclass
class File:
    data: bytes
    visible: float  # the loop's time from which the relay sees it
    fetched: bool = False  # read to its end through the relay


@dataclass
class Entry:
    """One folder of the spool."""

    name: str
    manifest: Manifest | None = None
    owner: OwnerRecord | None = None
    exit: ExitRecord | None = None
    cancel: bool = False
    why: str = ""  # of the cancel
    saves: dict[int, str] = field(default_factory=dict)  # what is to follow the saving of its guest, by number
    table: NetworkTable | None = None  # of its VM's private networks
    begin: str | None = None  # the members of its gang, once all are ready
    guest: bool = False  # one runs for it
    files: dict[str, File] = field(default_factory=dict)
    on_cancel: Callable[[], None] | None = None  # the pilot that watches control/
    on_grant: Callable[[int], None] | None = None  # the same
    on_save: Callable[[], None] | None = None  # the same

    def __post_init__(self) -> None:
        self.seen = EntryView(self.name)  # by the relay

    @property
    def uncollected(self) -> list[str]:
        """Results that exist nowhere else."""
        return [path for path, file in self.files.items() if path.startswith("out/") and not file.fetched]


@dataclass
class Kept:
    """A checkpoint, as it lies beside the spool."""

    checkpoint: Checkpoint
    printed: bytes  # so far
    damaged: bool = False

    def part(self, name: str) -> bytes | None:
        """The bytes of one of its parts, as they lie there."""
        data = self.printed if name == STDOUT else contents(self.checkpoint.id) if name == MEMORY else None
        return data[:-1] + bytes([data[-1] ^ 1]) if data and self.damaged and name == MEMORY else data


MEMORY = "memory.zst"


def contents(checkpoint: str) -> bytes:
    """What stands for the memory of a guest that was saved."""
    return hashlib.sha256(checkpoint.encode()).digest() * 32


class Spool:
    """The entries of one account, and the checkpoints of their guests. `lag` gives, for each write, the seconds until
    the relay sees it."""

    def __init__(self, loop: asyncio.AbstractEventLoop, lag: Callable[[], float]) -> None:
        self._loop, self._lag = loop, lag
        self.entries: dict[str, Entry] = {}
        self.buried: set[str] = set()  # names of entries that were removed: never used again
        self.kept: dict[str, Kept] = {}  # checkpoints, by their ids
        self.harm: list[str] = []  # what must never have happened
        self.watchers: list[Callable[[EntryView], None]] = []
        self.open: dict[str, dict[str, None]] = {}  # by pool: entries that any of its pilots may serve

    def make(self, name: str) -> Entry:
        entry = self.entries.get(name)
        if entry is None:
            entry = self.entries[name] = Entry(name)
        return entry

    def take_owner(self, entry: Entry, record: OwnerRecord) -> OwnerRecord:
        """Take the ownership, unless somebody has it; the record that stands."""
        self._withhold(entry.name)
        if entry.owner is None:
            entry.owner = record
            if record.by == "controller":
                self._reveal(entry, owner=record)
            else:
                self._later(lambda: self._reveal(entry, owner=record))
        return entry.owner

    def offer(self, entry: Entry, pool: str) -> None:
        if entry.manifest is not None and entry.owner is None:
            self.open.setdefault(pool, {})[entry.name] = None

    def _withhold(self, name: str) -> None:
        for names in self.open.values():
            names.pop(name, None)

    def say(self, entry: Entry, status: Status) -> None:
        def reveal() -> None:
            known = entry.seen.status
            if known is None or known.sequence < status.sequence:
                self._reveal(entry, status=status)

        self._later(reveal)

    def leave(self, entry: Entry, exit: ExitRecord) -> None:
        """The sentinel: written once, last."""
        assert entry.exit is None, f"{entry.name} got a second sentinel"
        entry.exit = exit
        lag = self._lag()
        entry.files[EXIT] = File(canonical(exit), self._loop.time() + lag)
        # The relay leaves the outputs out of its views: the file and LIST_OUT have them.
        self._later(lambda: self._reveal(entry, exit=replace(exit, outputs=())), lag)

    def write(self, entry: Entry, path: str, data: bytes) -> None:
        entry.files[path] = File(data, self._loop.time() + self._lag())

    def wish(self, entry: Entry, why: str) -> None:
        """`control/cancel`: the pilot sees it after the lag."""
        if not entry.cancel:
            entry.cancel, entry.why = True, why
            self._later(lambda: entry.on_cancel() if entry.on_cancel is not None else None)

    def save(self, entry: Entry, number: int, then: str) -> None:
        """`control/save-N`: the pilot sees it after the lag."""

        def reveal() -> None:
            entry.saves.setdefault(number, then)
            if entry.on_save is not None:
                entry.on_save()

        self._later(reveal)

    def begin(self, entry: Entry, members: str) -> None:
        """`control/begin`: the pilot sees it after the lag, and the first one only."""

        def reveal() -> None:
            entry.begin = members if entry.begin is None else entry.begin

        self._later(reveal)

    def grant(self, entry: Entry, beat: int) -> None:
        """`control/grant-N`: the pilot sees it after the lag."""
        self._later(lambda: entry.on_grant(beat) if entry.on_grant is not None else None)

    def remove(self, entry: Entry) -> None:
        if entry.guest:
            self.harm.append(f"{entry.name} was removed under its guest")
        self._withhold(entry.name)
        del self.entries[entry.name]

    def _later(self, reveal: Callable[[], None], lag: float | None = None) -> None:
        lag = self._lag() if lag is None else lag
        if lag > 0:
            self._loop.call_later(lag, reveal)
        else:
            reveal()

    def _reveal(
        self,
        entry: Entry,
        *,
        owner: OwnerRecord | None = None,
        status: Status | None = None,
        exit: ExitRecord | None = None,
    ) -> None:
        seen = entry.seen
        entry.seen = EntryView(entry.name, owner or seen.owner, status or seen.status, exit or seen.exit)
        if self.entries.get(entry.name) is entry:
            for watcher in list(self.watchers):
                watcher(entry.seen)
