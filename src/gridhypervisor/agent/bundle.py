"""The bundle: everything that a site does not have, in a folder named by what is in it. Made on the user's machine.

The slow part, the world of programs, is `debworld`'s and is made once. Here our own code and the guest's archive are
put beside it, and the digest is taken; that takes milliseconds when nothing has changed, so a service may ask at each
start. The same inputs give the same digest.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from gridhypervisor.agent import cpio
from gridhypervisor.agent.debworld import BuiltWorld, BundleError, build_world, compile_bytecode, last_change, tar_of

__all__ = ["BundleError", "BundleInfo", "build"]

SUMS = "SUMS"
STAYS_AT_HOME = frozenset({"bundle.py", "debworld.py"})


@dataclass(frozen=True)
class BundleInfo:
    digest: str  # SHA-256 (hex) of the folder's SUMS
    path: Path
    size: int  # bytes of all its files


def build(
    destination: Path, *, cache: Path, progress: Callable[[str], None] = lambda _: None, refresh: bool = False
) -> BundleInfo:
    """Make the bundle of this code as `destination/DIGEST`, unless it is there.

    `cache` holds what is slow to make (packages, the world); `refresh` asks apt whether the packages have moved on.
    `progress` is told each step of more than a moment.

    Raises:
        BundleError: a tool or a package is missing, or a step failed; the message says which and what to do.
        OSError: a folder cannot be written.
    """
    world = build_world(cache, progress, refresh=refresh)
    source = Path(__file__).parent
    parts = {
        "start": (source / "start.sh").read_bytes(),
        "agent.tar": _agent(source, world).read_bytes(),
        "guest.cpio": cpio.guest_archive(source / "guest"),
    }
    sums = {name: hashlib.sha256(data).hexdigest() for name, data in parts.items()}
    heavy = ["busybox", "world.tar.zst", *(f"zstd/{path.name}" for path in (world.folder / "zstd").iterdir())]
    sums |= _sums_of_heavy(world, heavy)
    listing = "".join(f"{sums[name]}  {name}\n" for name in sorted(sums)).encode()
    digest = hashlib.sha256(listing).hexdigest()
    target = destination / digest
    if not (target / SUMS).exists():
        _assemble(target, world, heavy, parts, listing)
    size = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
    return BundleInfo(digest, target, size)


def _assemble(target: Path, world: BuiltWorld, heavy: list[str], parts: dict[str, bytes], listing: bytes) -> None:
    """Fill a folder beside `target` and rename it there: a bundle is whole or absent. Two builders may race."""
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    new = target.with_name(f".{target.name[:16]}.{secrets.token_hex(4)}")
    try:
        (new / "zstd").mkdir(mode=0o700, parents=True)
        for name in heavy:
            try:
                os.link(world.folder / name, new / name)
            except OSError:  # another file system
                shutil.copy2(world.folder / name, new / name)
        for name, data in parts.items():
            (new / name).write_bytes(data)
        (new / SUMS).write_bytes(listing)
        try:
            new.rename(target)
        except OSError:
            if not (target / SUMS).exists():
                raise
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _sums_of_heavy(world: BuiltWorld, names: list[str]) -> dict[str, str]:
    """Digests of the world's files, taken once: hashing 20 MB at each start would be most of the time."""
    taken = world.folder / "sums"
    if not taken.exists():
        lines = [f"{hashlib.sha256((world.folder / name).read_bytes()).hexdigest()}  {name}\n" for name in names]
        temporary = taken.with_name(f"sums.{secrets.token_hex(4)}")
        temporary.write_text("".join(lines))
        temporary.rename(taken)
    pairs = (line.split("  ", 1) for line in taken.read_text().splitlines())
    return {name: digest for digest, name in pairs}


def _agent(source: Path, world: BuiltWorld) -> Path:
    """The archive of our own code, laid over the world's standard library: bytecode alone, like that.

    With a source beside it, Python looks for bytecode elsewhere, and compiles the source anew at each start.
    """
    modules = {
        "gridhypervisor/__init__.py": b"",
        "gridhypervisor/model/__init__.py": b"",
    }
    for path in sorted((source.parent / "model/wire").glob("*.py")):
        modules[f"gridhypervisor/model/wire/{path.name}"] = path.read_bytes()
    for path in sorted(source.rglob("*.py")):
        if path.name not in STAYS_AT_HOME:
            modules[f"gridhypervisor/agent/{path.relative_to(source)}"] = path.read_bytes()
    state = hashlib.sha256(f"bytecode {world.folder.name}".encode())
    for name, data in sorted(modules.items()):
        state.update(f"{name} {len(data)}\n".encode() + data)
    made = world.folder / f"agent-{state.hexdigest()[:32]}.tar"
    if made.exists():
        return made
    work = world.folder / f"agent.{secrets.token_hex(4)}"
    try:
        for name, data in modules.items():
            (work / name).parent.mkdir(parents=True, exist_ok=True)
            (work / name).write_bytes(data)
        compile_bytecode(world, work)
        for source in work.rglob("*.py"):
            source.unlink()
        (work / "archive").write_bytes(tar_of(work))
        (work / "archive").rename(made)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    for old in sorted(world.folder.glob("agent-*.tar"), key=last_change)[:-4]:
        old.unlink(missing_ok=True)
    return made
