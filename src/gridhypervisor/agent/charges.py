"""The time that VMs have taken of an account: a journal that is only appended to, and outlives their entries.

Each relay appends to a file of its own, so none waits for another or can damage what it wrote, on any file system. A
line that was cut short is passed over: an entry is removed only when its charge is on the disk, so that entry is still
there and is charged again. Charged twice is charged once: an entry's name is never used again.
"""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path

from gridhypervisor.agent import spool
from gridhypervisor.model import wire
from gridhypervisor.model.wire import Charge

KEPT = 63 * 86400
"""Seconds that charges are kept: two of the longest periods."""


class Charges:
    """In one folder. Blocking, and not for several threads at once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._mine = folder / f"{os.uname().nodename}-{os.getpid()}-{os.urandom(4).hex()}"
        self._read: dict[Path, tuple[tuple[int, int], dict[str, Charge]]] = {}  # by time and size

    def read(self) -> dict[str, Charge]:
        """All charges, by entry. Raises OSError: nobody knows."""
        try:
            paths = sorted(path for path in self._folder.iterdir() if not path.name.startswith("."))
        except FileNotFoundError:
            return {}
        charges: dict[str, Charge] = {}
        for path in paths:
            try:
                with path.open("rb") as file:
                    status = os.fstat(file.fileno())
                    signature = status.st_mtime_ns, status.st_size
                    known = self._read.get(path)
                    if known is None or known[0] != signature:
                        known = self._read[path] = signature, _parse(file.read())
            except FileNotFoundError:
                continue
            charges |= known[1]
        return charges

    def add(self, charge: Charge) -> None:
        """Write one down, durably. Raises OSError: it may not be there."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        new = not self._mine.exists()
        with open(os.open(self._mine, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600), "wb") as file:
            # The newline before it ends what an earlier write may have left unfinished.
            file.write(b"\n" + wire.canonical(charge) + b"\n")
            file.flush()
            os.fsync(file.fileno())
        if new:
            spool.sync_folder(self._folder)

    def forget_old(self, now: float) -> None:
        """Drop files of which all charges are of periods long over. `now`: seconds since 1970."""
        with contextlib.suppress(FileNotFoundError):
            for path in self._folder.iterdir():
                with contextlib.suppress(OSError):
                    if now - path.stat().st_mtime > KEPT:
                        path.unlink()


def _parse(data: bytes) -> dict[str, Charge]:
    charges: dict[str, Charge] = {}
    for line in data.splitlines():
        try:
            charge = wire.from_plain(Charge, json.loads(line)) if line else None
        except ValueError:  # WireError is one too
            continue
        if charge is not None:
            charges[charge.entry] = charge
    return charges
