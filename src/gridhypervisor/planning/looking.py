"""When a job that waits for a site looks at the sites again by itself, for what no event tells: the time, mostly.

Very many may wait for the same. So each looks at a time of its own within the interval, always the same part of it; and
those of one second together, which costs hardly more than one of them.
"""

from __future__ import annotations

import math
import zlib

LOOK = 30.0
"""Seconds after which a job looks again at the latest; at the earliest after half of them."""


def part(job: str) -> float:
    """A part of 1 that is always the same for a job, and evenly spread over jobs."""
    return (zlib.crc32(job.encode()) & 0xFFFF) / 0x10000


def next_look(job: str, now: float) -> float:
    """When it looks again."""
    return math.floor(now + LOOK * (0.5 + 0.5 * part(job)))
