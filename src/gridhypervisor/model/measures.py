"""What is measured of a running service: counts and durations, of all users together; labels name nobody."""

from __future__ import annotations

import msgspec

from gridhypervisor.model.states import SiteHealth

BOUNDS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 30.0)
"""Seconds: upper bounds of the classes into which durations are sorted."""


class Times(msgspec.Struct, frozen=True):
    """How many durations there were up to each of BOUNDS, above the one before; last, above all. And their sum."""

    counts: tuple[int, ...]
    sum: float


class SiteMeasures(msgspec.Struct, frozen=True):
    name: str
    health: SiteHealth
    queued: int
    running: int
    max_jobs: int
    draining: bool
    beats: int


class Measures(msgspec.Struct, frozen=True):
    jobs: dict[str, int]  # that are alive, by state
    groups: int  # that are alive
    seeking: int  # jobs that wait for a site
    actions: dict[tuple[str, str], int]  # that have ended, by kind and result
    calls: dict[str, int]  # of the store, by what was called
    store: Times
    passes: Times
    lag: Times
    sites: tuple[SiteMeasures, ...]
    started: float  # in seconds since the epoch
    cpu_seconds: float
    resident: int  # bytes, at most so far
