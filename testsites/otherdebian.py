"""A bare root made of programs of another Debian release, for what this machine's own does not have.

Made once and kept in the checkout's `build` folder, found again by a digest of what it was to hold. Packages come
from the mirror that this machine's own apt uses, checked by the keys it has; they are unpacked, never configured, so
nothing of them starts, and only the programs asked for stay.
"""

from __future__ import annotations

import fcntl
import hashlib
import shutil
import subprocess
import tempfile
from collections.abc import Iterable
from pathlib import Path

from testsites import bareroot

BUILD = Path(__file__).parents[1] / "build"
HOOKS = Path("/usr/share/mmdebstrap/hooks/merged-usr")


def made(
    suite: str,
    packages: Iterable[str],
    programs: Iterable[Path],
    plugins: Iterable[Path] = (),
    modules: Iterable[Path] = (),
) -> Path:
    """The root with these programs, plugins and modules (see `bareroot`) of the packages: some 15 s at first.

    Raises:
        RuntimeError: mmdebstrap is missing or failed, or apt knows no mirror; says what to do.
    """
    packages, programs, plugins, modules = sorted(packages), sorted(programs), sorted(plugins), sorted(modules)
    state = hashlib.sha256(repr((suite, packages, programs, plugins, modules)).encode())
    for module in (Path(__file__), Path(bareroot.__file__)):
        state.update(module.read_bytes())
    kept = BUILD / f"{suite}-{state.hexdigest()[:16]}"
    BUILD.mkdir(exist_ok=True)
    with (BUILD / f"{suite}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another test process may be making it
        if not kept.exists():
            with tempfile.TemporaryDirectory(prefix=f"{suite}.", dir=BUILD) as work:
                tree, root = Path(work) / "tree", Path(work) / "root"
                _unpack(suite, packages, tree)
                root.mkdir(mode=0o755)
                bareroot.build(root, programs, plugins, modules, source=tree)
                root.rename(kept)
    return kept


def _unpack(suite: str, packages: Iterable[str], tree: Path) -> None:
    if shutil.which("mmdebstrap") is None:
        raise RuntimeError("make a root of another Debian: no mmdebstrap; install it: apt-get install mmdebstrap")
    # bash and libc-bin: for ldd, which says what the programs need.
    include = ",".join((*packages, "base-files", "bash", "libc-bin"))
    argv = ["mmdebstrap", "--mode=root", "--variant=extract", f"--hook-dir={HOOKS}", "--quiet", f"--include={include}",
            '--aptopt=APT::Install-Recommends "false"', suite, str(tree), _mirror()]  # fmt: skip
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"unpack {suite}'s {include}: {done.stderr.strip()[-600:]}")


def _mirror() -> str:
    """Where this machine gets its own release from: whoever mirrors that has the next one too."""
    codename = _codename()
    said = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(CODENAME) $(COMPONENT) $(REPO_URI)", "Created-By: Packages"],
        capture_output=True, text=True, check=False,
    ).stdout  # fmt: skip
    for name, component, uri in (line.split() for line in said.splitlines() if line.count(" ") == 2):
        if (name, component) == (codename, "main"):
            return uri
    raise RuntimeError(f"make a root of another Debian: apt here has no lists of {codename}; run apt-get update")


def _codename() -> str:
    lines = Path("/etc/os-release").read_text().splitlines()
    return next((line.partition("=")[2].strip('"') for line in lines if line.startswith("VERSION_CODENAME=")), "")
