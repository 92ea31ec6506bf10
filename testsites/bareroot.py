"""A root file system that holds exactly the programs asked for, with the libraries that they name, and nothing else.

An allow-list: what is not named is not there, so "works without Python" is a fact about the folder. It copies from
this machine's own files, or from another Debian's tree, and starts nothing.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path


def build(
    root: Path,
    programs: Iterable[Path],
    plugins: Iterable[Path] = (),
    modules: Iterable[Path] = (),
    source: Path = Path("/"),
) -> None:
    """Fill `root` with `programs`, `plugins` (shared objects opened at run time) and `modules` (files and folders that
    a program reads) at the paths they have in `source`.

    Raises:
        FileNotFoundError: one of them is not installed there.
    """
    for name in ("bin", "sbin", "lib", "lib64"):
        (root / "usr" / name).mkdir(parents=True, exist_ok=True)
        (root / name).symlink_to(f"usr/{name}")
    for name in ("proc", "sys", "dev", "etc", "run", "home", "root", "var/log", "tmp"):
        (root / name).mkdir(parents=True, exist_ok=True)
    (root / "root").chmod(0o700)
    (root / "tmp").chmod(0o1777)
    wanted = [*programs, *plugins]
    for path in (*wanted, *_libraries(wanted, source), *modules):
        there, target = source / str(path).lstrip("/"), root / str(path).lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        if there.is_dir():
            shutil.copytree(there, target)
        else:
            shutil.copy(there, target)


def _libraries(binaries: Iterable[Path], source: Path) -> set[Path]:
    """Everything that the loader would load for these, the loader included."""
    argv = ["ldd", *map(str, binaries)]
    if source != Path("/"):
        argv = ["chroot", str(source), *argv]
    listing = subprocess.run(argv, capture_output=True, text=True, check=False).stdout
    words = (word for line in listing.splitlines() if line.startswith("\t") for word in line.split())
    return {Path(word) for word in words if word.startswith("/")}
