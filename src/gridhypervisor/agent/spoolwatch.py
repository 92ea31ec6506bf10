"""What a relay knows of its installation's entries, and how it comes to know that something changed.

Looks at a spool cheaply: a part whose file is the same (inode, time, size) is not read again, and an entry that has
ended is not looked at again. On this machine inotify says where to look; writers elsewhere are seen by polling, often
while entries live, seldom while none does. One look proves presence, never absence: see `docs/never-two-guests.md`.
"""

from __future__ import annotations

import dataclasses
import os
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from gridhypervisor.agent import inotify, spool
from gridhypervisor.agent.inotify import Inotify
from gridhypervisor.model import wire
from gridhypervisor.model.wire import EntryView, ExitRecord, OwnerRecord, Status, WireError

PARTS: dict[str, tuple[str, type[Any]]] = {
    wire.OWNER: ("owner", OwnerRecord),
    wire.STATUS: ("status", Status),
    wire.EXIT: ("exit", ExitRecord),
}
FAST, SLOW, IDLE = 0.5, 3.0, 30.0
"""Seconds between looks: just after an entry was taken or ended, when little happens, and when nothing lives (or
inotify will tell)."""
EACH = 0.03
"""Seconds that each living entry adds where these come to more than SLOW: a look opens four files of each."""

PAGE = wire.MAX_LINE // 2
"""Bytes of the entries in one reply to SCAN."""

_CHANGES = inotify.CREATE | inotify.MOVED_TO
_Signature = tuple[int, int, int]


@dataclasses.dataclass
class _Known:
    """The last look at one entry, and by which files it came about."""

    view: EntryView
    signatures: dict[str, _Signature] = dataclasses.field(default_factory=dict)


class SpoolWatch:
    """The entries `INSTALLATION-…` of a spool folder. Blocking and not for several threads at once."""

    def __init__(self, folder: Path, installation: str) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder, self.installation = folder, installation
        self._prefix = f"{installation}-"
        self._known: dict[str, _Known] = {}
        self._interval = FAST
        self._watches: dict[int, str] = {}  # inotify's numbers to entries; "" is the spool itself
        self._numbers: dict[str, int] = {}
        self._heeded: set[str] = set()  # entries of which somebody wants the output
        self.inotify: Inotify | None = None
        try:
            self.inotify = Inotify()
            self._watches[self.inotify.add(folder, _CHANGES | inotify.DELETE)] = ""
        except OSError:
            self.close()
        # Whether inotify tells of every change: all writers are on this machine, and every folder is watched.
        self.told = self.inotify is not None and inotify.is_local(folder)

    def close(self) -> None:
        if self.inotify is not None:
            self.inotify.close()
            self.inotify = None

    def scan(self, after: str = "") -> tuple[list[EntryView], bool]:
        """The entries that sort behind `after`, as many as one message holds, and whether there are more. One look at
        every entry, unless it is the look that an earlier page began with."""
        if not after:
            self.look()
        page: list[EntryView] = []
        room = PAGE
        for name, known in sorted(self._known.items()):
            if name <= after:
                continue
            room -= len(wire.canonical(known.view))
            if page and room < 0:
                return page, True
            page.append(known.view)
        return page, False

    def look(self, names: Iterable[str] | None = None) -> list[EntryView]:
        """Look at the named entries (None: at all that there are); give the views that changed."""
        if names is None:
            present = {item.name for item in os.scandir(self._folder) if item.name.startswith(self._prefix)}
            for gone in self._known.keys() - present:
                self._forget(gone)
            names = sorted(present)
        before = {name: known.view for name, known in self._known.items()}
        changed = [view for name in names if (view := self._look_at(name)) is not None]
        live = sum(_may_change(known.view) for known in self._known.values())
        if not live or self.told:
            self._interval = IDLE
        elif any(_has_turned(before.get(view.entry), view) for view in changed):
            self._interval = FAST
        else:  # many pilots' beats, too, must not keep a file server busy
            self._interval = min(IDLE, max(SLOW, live * EACH), max(FAST, self._interval) * 1.5)
        return changed

    def due(self) -> float:
        """Seconds until the next look at all entries; jittered, so that many relays do not beat on one file server."""
        return self._interval * random.uniform(0.75, 1.25)

    def hints(self) -> tuple[set[str], set[str]]:
        """What inotify says happened since the last call: entries to look at, and entries whose output grew."""
        changed: set[str] = set()
        grew: set[str] = set()
        for watch, _, name in self.inotify.read() if self.inotify is not None else ():
            entry = self._watches.get(watch)
            if watch == -1:  # the queue ran over: look everywhere
                return set(self._known), set(self._known)
            if entry == "":
                if name.startswith(self._prefix):
                    changed.add(name)
            elif entry and name in PARTS:
                changed.add(entry)
                grew.add(entry)  # a sentinel ends the output
            elif entry and name in (wire.STDOUT, wire.STDERR):
                grew.add(entry)
        return changed, grew

    def heed_output(self, entry: str, heed: bool) -> None:
        """Let inotify report (or no longer) that the program's output grew."""
        if heed:
            self._heeded.add(entry)
        else:
            self._heeded.discard(entry)
        if heed or entry in self._numbers:
            self._add_watch(entry)

    def _look_at(self, name: str) -> EntryView | None:
        known = self._known.get(name)
        if known is not None and known.view.exit is not None and known.view.owner is not None:
            return None  # both are written once
        entry = self._folder / name
        if known is None:
            # The watch comes before the look: what happens between the two is then seen, not missed.
            self._add_watch(name)
            known = _Known(EntryView(entry=name))
        try:
            # Opening the folder and its files asks the file server; a bare stat may be answered from a cache.
            present = {item.name for item in os.scandir(entry)}
        except (FileNotFoundError, NotADirectoryError):
            self._forget(name)
            return None
        parts = {}
        for file, (part, kind) in PARTS.items():
            if file in present and (found := self._read(entry / file, kind, known)) is not None:
                parts[part] = found
        if not parts and name in self._known:
            return None
        new = name not in self._known
        view = dataclasses.replace(known.view, **parts)
        changed = view != known.view
        known.view = view
        self._known[name] = known
        if view.exit is not None and name in self._numbers:
            self._drop_watch(name)
        return view if changed or new else None

    @staticmethod
    def _read(path: Path, kind: type[Any], known: _Known) -> Any:
        """The record, if the file is another than at the last look and can be understood."""
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                status = os.fstat(descriptor)
            finally:
                os.close(descriptor)
            signature = (status.st_ino, status.st_mtime_ns, status.st_size)
            if known.signatures.get(path.name) == signature:
                return None
            record = spool.read_json(path, kind)
        except WireError as error:
            if kind is OwnerRecord:  # it stands, though we cannot read whose it is
                return OwnerRecord(by="unknown", claim="", epoch=0, why=str(error))
            return None
        except OSError:
            return None
        known.signatures[path.name] = signature
        if isinstance(record, ExitRecord):
            return dataclasses.replace(record, outputs=())  # may be many: LIST_OUT gives them
        if isinstance(record, Status) and known.view.status and _older(record, known.view.status):
            return None
        return record

    def _forget(self, name: str) -> None:
        self._known.pop(name, None)
        self._heeded.discard(name)
        self._drop_watch(name)

    def _add_watch(self, name: str) -> None:
        if self.inotify is not None:
            mask = _CHANGES | (inotify.MODIFY if name in self._heeded else 0)
            try:
                number = self.inotify.add(self._folder / name, mask)
            except (FileNotFoundError, NotADirectoryError):
                return
            except OSError:  # no watch left (fs.inotify.max_user_watches): from now on the poll must see
                self.told = False
                return
            self._watches[number] = name
            self._numbers[name] = number

    def _drop_watch(self, name: str) -> None:
        number = self._numbers.pop(name, None)
        if number is not None and self.inotify is not None:
            self.inotify.remove(number)
            self._watches.pop(number, None)


def _may_change(view: EntryView) -> bool:
    """Whether a pilot may still write here: not after its sentinel, nor where a controller has taken the entry."""
    return view.exit is None and (view.owner is None or view.owner.by == "pilot")


def _has_turned(before: EntryView | None, view: EntryView) -> bool:
    """Whether more than a beat has happened."""
    return before is None or (before.owner, before.exit) != (view.owner, view.exit)


def _older(one: Status, than: Status) -> bool:
    """A stale look: the same claim's word with a smaller number."""
    return one.claim == than.claim and one.sequence < than.sequence
