"""The clock of the times in the store: it goes on evenly, though the machine's own is set forward or back.

Fences are measured on it: a walltime that seems to have passed because somebody set the clock right would end a guest
that has time left, or give a job a second one. So the time of day is taken once, and seconds since the machine's start
are counted from there; a service that takes over while jobs are alive counts from where the one before did. Only a
restart of the machine leaves nothing but the time of day. It decides nothing about jobs.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def since_boot() -> float:
    """Seconds since this machine started, those in which it slept included."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def open_clock(
    path: Path, *, alive: bool, wall: Callable[[], float] = time.time, steady: Callable[[], float] = since_boot
) -> Callable[[], float]:
    """The clock that `path` keeps, in seconds since 1970. `alive`: there are jobs whose times are measured on it; with
    none it is set by the time of day. `steady` counts the seconds of this start of the machine.
    """
    boot = BOOT_ID.read_text().strip()
    offset = wall() - steady()
    if alive:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            kept = json.loads(path.read_bytes())
            if kept["boot"] == boot:
                offset = float(kept["offset"])
    new = path.with_name(f"{path.name}.new")
    with contextlib.suppress(OSError):  # a full disk must not keep the service from starting
        with new.open("w") as file:
            json.dump({"boot": boot, "offset": offset}, file)
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
    return lambda: offset + steady()
