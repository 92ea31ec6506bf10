"""The record of choices: a line of JSON for each cycle that gave somebody a site, the newest of them, for `ghv replay`.

What nodes published changes seldom, and is a line of its own, before the first cycle that rests on it. Of the sites a
cycle tells those that are not as in the one before it, and now and then all. All this is kept for who asks later why;
nothing depends on it, so what cannot be written is left out.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TypeVar

import msgspec

from gridhypervisor.planning.published import Published
from gridhypervisor.planning.replay import Recorded, Snapshot, less, more, snapshot_of

T = TypeVar("T")

MOST = 32 << 20
"""Bytes of a file before another is begun; the one before it is kept."""


WHOLE = 100
"""Cycles after which one tells all sites again: so many lines are read, at most, to know one."""


class Decisions:
    def __init__(self, path: Path) -> None:
        self._path, self._old = path, path.with_suffix(".old")
        self._encoder = msgspec.json.Encoder()
        self._written = -1  # which snapshot is in the file; none yet of this process
        self._before: Recorded | None = None  # the cycle on the file's last line, if that is surely there
        self._since = 0  # cycles since one told all sites

    def add(self, cycle: Recorded, published: Published) -> None:
        """`published`: as the cycle saw it."""
        before, self._before = self._before, None
        with contextlib.suppress(OSError, TypeError, ValueError):
            told = less(cycle, before) if before is not None and self._since < WHOLE else cycle
            lines = [self._encoder.encode(told)]
            if cycle.published and cycle.snapshot != self._written:
                lines.insert(0, self._encoder.encode(snapshot_of(published)))
            fd = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            try:
                data = b"".join(b"\n" + line for line in lines)  # after what is perhaps half a line
                done = os.write(fd, data) == len(data)
                full = os.fstat(fd).st_size > MOST
            finally:
                os.close(fd)
            if full:
                self._path.replace(self._old)
            if cycle.published:
                self._written = -1 if full else cycle.snapshot
            if done and not full:
                self._before, self._since = cycle, self._since + 1 if told.partly else 0

    def last(self, job: str) -> tuple[Recorded, Snapshot] | None:
        """The newest cycle that gave this job a site, if it is still known, and what nodes published then."""
        named = f'"{job}"'.encode()
        for path in (self._path, self._old):
            try:
                lines = path.read_bytes().split(b"\n")
            except FileNotFoundError:
                continue
            for at in range(len(lines) - 1, -1, -1):
                cycle = _read(lines[at], Recorded) if named in lines[at] else None
                if cycle is not None and job in cycle.chosen:
                    return _whole(lines[:at], cycle), _snapshot(lines[:at], cycle)
        return None


def _whole(before: list[bytes], cycle: Recorded) -> Recorded:
    """The cycle with all sites."""
    for line in reversed(before):
        if not cycle.partly:
            break
        if line and not line.startswith(b'{"snapshot"') and (earlier := _read(line, Recorded)) is not None:
            cycle = more(cycle, earlier)
    return cycle


def _snapshot(before: list[bytes], cycle: Recorded) -> Snapshot:
    start = f'{{"snapshot":{cycle.snapshot},'.encode()
    found = next((line for line in reversed(before) if line.startswith(start)), b"") if cycle.published else b""
    return _read(found, Snapshot) or Snapshot(cycle.snapshot, {})


def _read(line: bytes, kind: type[T]) -> T | None:
    try:
        return msgspec.json.decode(line, type=kind)
    except msgspec.MsgspecError:  # half a line, where a disk was full; or of a version before
        return None
