"""What is slow to make for tests is kept in the checkout's `build` folder, and made by one test process at a time."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from gridhypervisor.agent import bundle, debworld
from gridhypervisor.agent.bundle import BundleInfo
from gridhypervisor.agent.world import SYSTEM, SYSTEM_XSTATE

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


def system_world() -> dict[str, str]:
    """The environment of a role that is to use this machine's own programs. Its User-Mode Linux runs on processors with
    AMX only where there is a tcc."""
    environment = {**os.environ, "GHV_WORLD": SYSTEM}
    if compiler := shutil.which("tcc"):
        made = BUILD / f"xstate-{hashlib.sha256(debworld.XSTATE.read_bytes()).hexdigest()[:16]}.so"
        if not made.exists():
            BUILD.mkdir(exist_ok=True)
            new = made.with_suffix(f".{os.getpid()}")
            debworld.compile_xstate([compiler], new)
            new.rename(made)
        environment[SYSTEM_XSTATE] = str(made)
    return environment
