"""Running the programs that images are made with, and saying what is missing when they cannot run."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

from gridhypervisor.images.errors import ImageError, NotPossibleHere

_PACKAGES = {
    "apt-get": "apt",
    "dpkg-deb": "dpkg",
    "mksquashfs": "squashfs-tools",
    "mmdebstrap": "mmdebstrap",
    "newuidmap": "uidmap",
    "qemu-img": "qemu-utils",
}
_PATH = os.pathsep.join((os.defpath, "/usr/sbin", "/sbin"))  # an ordinary user's PATH leaves out where some tools are


def find(program: str) -> str:
    """The full path of a program.

    Raises:
        ImageError: it is not installed; names the Debian package that holds it.
    """
    path = shutil.which(program) or shutil.which(program, path=_PATH)
    if path is None:
        raise NotPossibleHere(f"{program} is not installed", f"apt-get install {_PACKAGES.get(program, program)}")
    return path


def require(*programs: str) -> None:
    """Check several programs at once, before a long piece of work starts.

    Raises:
        ImageError: some are not installed; names the Debian packages that hold them.
    """
    missing = [program for program in programs if not (shutil.which(program) or shutil.which(program, path=_PATH))]
    if missing:
        packages = " ".join(sorted({_PACKAGES.get(program, program) for program in missing}))
        raise NotPossibleHere(f"not installed: {', '.join(missing)}", f"apt-get install {packages}")


@contextlib.contextmanager
def cache_folder(cache: Path, progress: Callable[[str], None]) -> Iterator[None]:
    """Make the cache if need be, and keep it for one build at a time: apt's own locks are off there."""
    cache.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (cache / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress(f"waiting for another build in {cache}")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def run(
    what: str,
    argv: Sequence[str | Path],
    *,
    cwd: Path | None = None,
    environment: Mapping[str, str] | None = None,
    stdin: IO[bytes] | None = None,
    stdout: IO[bytes] | None = None,
    hint: str = "",
) -> bytes:
    """Run a program to its end; return what it printed, unless `stdout` takes that. `what` is for errors.

    Raises:
        ImageError: it is not installed, or failed; quotes its last words.
    """
    done = subprocess.run(
        [find(str(argv[0])), *argv[1:]],
        cwd=cwd,
        env={**os.environ, "LC_ALL": "C", **(environment or {})},
        stdin=stdin or subprocess.DEVNULL,
        stdout=stdout or subprocess.PIPE,
        stderr=subprocess.PIPE,
        check=False,
    )
    if done.returncode != 0:
        words = done.stderr.decode(errors="replace").strip().splitlines()
        said = [line for line in words if line.startswith("E:")] or words
        reason = " / ".join(said[-4:]) or "no message"
        raise ImageError(f"{what}: {argv[0]} exited with {done.returncode}: {reason}", hint)
    return done.stdout or b""
