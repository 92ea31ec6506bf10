"""How a program goes on beyond its batch job's walltime: what the pilot must know to save its guest in time.

The controller uses the same figures to refuse beforehand what cannot be saved in time.
"""

from __future__ import annotations

from dataclasses import dataclass

SETTLE = 5.0
"""Seconds that any save takes: the program stands still, the disks are flushed, the record is written."""

LEAST_RATE = float(32 << 20)
"""Bytes a second at which a guest is saved, where nobody knows better: a busy node, a slow file server."""


@dataclass(frozen=True)
class HandOver:
    """Before this batch job's time is over, the guest is to be saved, to go on in another one."""

    walltime: float  # seconds that the program may run, in all its batch jobs
    rate: float = LEAST_RATE  # bytes a second at which guests are saved at this site, at the slowest


def save_seconds(guest: int, rate: float) -> float:
    """Seconds in which a guest of so many bytes (memory, and what was written on its disks) is surely saved:
    SETTLE + guest / rate. With the slowest rate of the last hundred saves it is their 99th percentile, or above."""
    return SETTLE + guest / rate
