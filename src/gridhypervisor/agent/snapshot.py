"""What a snapshot is, which one a guest may start from, and which are dropped: pure decisions.

A snapshot is a guest that has booted and has seen nothing but its image's bytes. It serves whoever would have come to
the very same state by booting: all that this state depends on is in the `Recipe`, whose digest is the snapshot's key.
So there is nothing to compare and nothing to invalidate: what differs has another key, and what nobody asks for any
more grows old. Files are `snapshots.py`'s, and what happens in which order is `instant.py`'s.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from gridhypervisor.model.wire import canonical

LIMIT = 4 << 30
"""Bytes that an account's snapshots may take together at a site."""

LARGEST = 192 << 20
"""Bytes of a snapshot that is kept: a guest has it beside what it writes itself, and must not outgrow for it what was
asked of the batch system."""

AGE = 14 * 86400.0
"""Seconds after which a snapshot that nobody started from is dropped."""


@dataclass(frozen=True)
class Recipe:
    """What decides what is in the memory of a guest that has booted, and whether a hypervisor can take it up."""

    owner: str  # no user's guest begins with what another's job left in a kernel
    layers: tuple[str, ...]  # digests of the image's parts, its kernel and initrd among them, in order
    bundle: str  # whose hypervisor, firmware and guest agent they are
    program: str  # the hypervisor with its version: the form of what it saves is its own
    agent: str  # digest of the guest's archive: init, agent and renewal
    words: tuple[str, ...]  # of the command line: machine, CPU model, memory, kernel's words, devices; no paths
    disks: tuple[int, ...]  # bytes of the VM's own disks, which its kernel has seen
    processor: str = ""  # of the node, where guests run on it; emulated ones are alike everywhere

    @property
    def key(self) -> str:
        import hashlib

        return hashlib.sha256(canonical(self)).hexdigest()


@dataclass(frozen=True)
class Piece:
    """A stretch of the guest's memory. The stretches lie one after another in the file; all between them is zero."""

    offset: int
    length: int
    sha256: str


@dataclass(frozen=True)
class Snapshot:
    """`snapshot.json`, what is beside it and what it must be."""

    key: str
    size: int  # bytes of the guest's memory
    pieces: tuple[Piece, ...]  # of the file `memory`
    state: Piece  # the file `state`: the devices, as the hypervisor saved them

    @property
    def bytes(self) -> int:
        return sum(piece.length for piece in self.pieces) + self.state.length


@dataclass(frozen=True)
class Kept:
    """A snapshot in the account's folder, as far as dropping it goes."""

    key: str
    size: int  # bytes on the disk
    used: float  # seconds since 1970


def superfluous(kept: Iterable[Kept], now: float, *, limit: int = LIMIT, age: float = AGE) -> list[str]:
    """The keys of those to drop: the old, then those used longest ago until the rest is within `limit` bytes."""
    drop, total = [], 0
    for each in sorted(kept, key=lambda each: (-each.used, each.key)):
        total += each.size
        if now - each.used > age or total > limit:
            drop.append(each.key)
            total -= each.size
    return drop
