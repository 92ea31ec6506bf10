"""A running guest as files: what a checkpoint is, and all that decides whether a hypervisor can take it up.

    WORKDIR/checkpoints/ENTRY-N/    checkpoint.json · memory.zst · DISK.zst · stdout · stderr · console.log · pilot.json

The folder (0700, its files 0600) appears whole, by rename, and is never changed. It is removed by the controller's word
alone. `memory` is the hypervisor's own stream of the guest's memory and devices; of a disk its file, without its holes;
`pilot.json` what the pilot had heard of the guest. What ends in `.zst` is packed by `zstd`.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Part:
    """One file of a checkpoint."""

    name: str
    size: int  # bytes on the disk
    sha256: str  # of those
    length: int  # bytes when it is unpacked


@dataclass(frozen=True)
class Checkpoint:
    """`checkpoint.json`. A pilot whose manifest has it under `restore` takes this guest up instead of booting."""

    id: str  # ENTRY-N: of the entry that made it, and the number of the wish
    entry: str
    epoch: int
    image: str  # digest
    kind: str  # a HypervisorKind
    program: str  # the hypervisor with its version: the form of what it saves is its own
    bundle: str  # whose hypervisor, firmware and guest agent they are
    layout: tuple[str, ...]  # words of the command line: machine, CPU model, memory, kernel's words, devices; no paths
    processor: str  # of the node, where guests run on it; emulated ones are alike everywhere
    memory: int  # bytes, of the guest
    disks: dict[str, int]  # the VM's own disks: bytes by their serial
    parts: tuple[Part, ...]
    streams: dict[str, int] = field(default_factory=dict)  # bytes so far of stdout, stderr and console.log
    executed: float = 0.0  # seconds that the program had run, in all attempts that led here
    made: float = 0.0  # seconds since 1970, by the node's clock
    stood: float = 0.0  # seconds that the guest stood still, or stands since then
    took: dict[str, float] = field(default_factory=dict)  # seconds, by step: settle, memory, disks, finish
    guest: int = 0  # bytes of its memory, and of what was written on its disks; 0: nobody has said
    held: int = 0  # bytes that there were to be saved, about: in memory what is not zero, and on its own disks
    cpu: str = ""  # the processor that the guest sees, as its manifest said it

    @property
    def size(self) -> int:
        """Bytes that it takes where it is kept."""
        return sum(part.size for part in self.parts)


@dataclass(frozen=True)
class Saved:
    """What became of a wish that the guest be saved, or stand still. Where there is no checkpoint, nothing was given
    up."""

    number: int  # N of the wish
    checkpoint: Checkpoint | None = None
    why: str = ""  # it was not saved, or does not stand still
    paused: bool = False  # it stands still since, until it is told to go on
