"""What is slow to make for tests is kept in the checkout's `build` folder, and made by one test process at a time."""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path

from gridhypervisor.agent import bundle
from gridhypervisor.agent.bundle import BundleInfo

BUILD = Path(__file__).parents[1] / "build"
BUNDLE_CACHE = BUILD / "bundle"
"""Packages and programs of the bundle, as in the cache of a data folder."""


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """While this lasts no other test process makes anything."""
    BUILD.mkdir(exist_ok=True)
    with (BUILD / "making.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def make_bundle(folder: Path) -> BundleInfo:
    """The bundle of the code as it is now."""
    with alone():
        return bundle.build(folder, cache=BUNDLE_CACHE)
