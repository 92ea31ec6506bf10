"""Keeps the cache of fetched inputs within bounds: what was not used for longest goes first.

What was used a short while ago stays, whatever the bounds: a job may be taking it to its site.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path

LIMIT = 20 << 30
"""Bytes that the cache may hold."""

FORGOTTEN = 30 * 86400.0
"""Seconds without use after which content goes, room or not."""

IN_USE = 6 * 3600.0
"""Seconds after its last use during which content stays."""

_KINDS = ("", ".about", ".part", ".of", ".wrong")


def prune(cache: Path, now: float, *, limit: int = LIMIT) -> int:
    """Remove what is too old or too much; the bytes that this freed. `now`: seconds since the epoch."""
    sizes: dict[str, int] = {}
    used: dict[str, float] = {}
    with os.scandir(cache) as items:
        for item in items:
            with contextlib.suppress(FileNotFoundError):
                key, found = item.name.partition(".")[0], item.stat(follow_symlinks=False)
                sizes[key] = sizes.get(key, 0) + found.st_size
                used[key] = max(used.get(key, 0.0), found.st_mtime)
    total, freed = sum(sizes.values()), 0
    for key in sorted(used, key=used.__getitem__):
        idle = now - used[key]
        if idle < IN_USE or (idle < FORGOTTEN and total - freed <= limit):
            break  # and so are all that follow
        if _remove(cache / key):
            freed += sizes[key]
    return freed


def _remove(place: Path) -> bool:
    """Remove one content, unless somebody works on it: whoever does holds the lock of its part."""
    with open(os.open(place.with_suffix(".part"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600), "r+b") as part:
        try:
            fcntl.flock(part, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        for kind in _KINDS:
            place.with_suffix(kind).unlink(missing_ok=True)
        return True
