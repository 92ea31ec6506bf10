"""A root file system that holds exactly the programs asked for, with the libraries that they name, and nothing else.

An allow-list: what is not named is not there, so "works without Python" is a fact about the folder. It copies from
this machine's own files and starts nothing.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path


def build(root: Path, programs: Iterable[Path], plugins: Iterable[Path] = ()) -> None:
    """Fill `root` with `programs` and `plugins` (shared objects opened at run time) at the paths they have here.

    Raises:
        FileNotFoundError: a program or plugin is not installed on this machine.
    """
    for name in ("bin", "sbin", "lib", "lib64"):
        (root / "usr" / name).mkdir(parents=True, exist_ok=True)
        (root / name).symlink_to(f"usr/{name}")
    for name in ("proc", "sys", "dev", "etc", "run", "home", "root", "var/log", "tmp"):
        (root / name).mkdir(parents=True, exist_ok=True)
    (root / "root").chmod(0o700)
    (root / "tmp").chmod(0o1777)
    wanted = [*programs, *plugins]
    for source in (*wanted, *_libraries(path.resolve() for path in wanted)):
        target = root / str(source).lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source.resolve(), target)


def _libraries(binaries: Iterable[Path]) -> set[Path]:
    """Everything that the loader would load for these, the loader included."""
    listing = subprocess.run(["ldd", *map(str, binaries)], capture_output=True, text=True, check=False).stdout
    words = (word for line in listing.splitlines() if line.startswith("\t") for word in line.split())
    return {Path(word) for word in words if word.startswith("/")}
