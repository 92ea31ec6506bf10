"""An installation of its own for the figures that run guests: this machine as the one site, a service that stays up.

What is slow to make (images, the bundle) is kept in `build/bench/lab` for the next time; the store and the site's
workdir are new each time. Everything here goes the way a user's own `ghv` goes; nothing is measured here.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from benchmarks.report import BUILD
from gridhypervisor.model import wire

IMAGES = Path("examples/images")
LONGEST = 1800.0
"""Seconds that any one `ghv` may take here; a job's own walltime is as long."""
READY = 180.0
"""Seconds within which a guest must be ready."""
T = TypeVar("T")


class Lab:
    def __init__(self, folder: Path, runtime: Path) -> None:
        self.folder = folder.absolute()
        self.home, self.data, self.scratch = (self.folder / name for name in ("home", "data", "scratch"))
        for old in (self.home, self.data / "jobs", *self.data.glob("store.*")):
            shutil.rmtree(old) if old.is_dir() else old.unlink(missing_ok=True)
        for path in (self.home, self.data, self.scratch):
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
        # What of this machine's settings could change the figures, or the user's own service, is left out.
        self.environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.home),
            "GHV_DATA": str(self.data),
            "GHV_RUNTIME": str(runtime),
            "TMPDIR": str(self.scratch),
            "GHV_IDLE": "0",  # each job pays its whole start, but where a figure says otherwise
        }

    @property
    def workdir(self) -> Path:
        """The account's folder at the site."""
        return self.home / ".ghv"

    @property
    def world(self) -> Path:
        """The bundle as it lies unpacked on the node; there once a job has run."""
        return self.scratch / f"ghv-{os.getuid()}" / f"world-{self.bundle.name}"

    @property
    def bundle(self) -> Path:
        """The bundle at the site that is used now."""
        return max((self.workdir / "bundle").glob("*/SUMS"), key=lambda path: path.stat().st_mtime).parent

    def start(self, *words: str) -> subprocess.Popen[bytes]:
        """Begin a `ghv` in a folder of its own and go on; the caller waits for it."""
        return subprocess.Popen(
            [str(Path(sys.executable).with_name("ghv")), *words],
            cwd=self.home,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def ghv(self, *words: str) -> bytes:
        """What `ghv` printed; it must succeed."""
        ghv = self.start(*words)
        out, err = ghv.communicate(timeout=LONGEST)
        if ghv.returncode != 0:
            raise RuntimeError(f"ghv {' '.join(words)} ended with {ghv.returncode}: {err.decode()}")
        return out

    def json(self, *words: str) -> Any:
        return json.loads(self.ghv(*words))

    def warm_up(self, image: str, hypervisor: str = "auto", site: str = "local") -> dict[str, Any]:
        """Have service, bundle and image in place, at the site and on the node; the record of the job that did it."""
        tags = [tag for found in self.json("image", "list", "-o", "json") for tag in found["tags"]]
        if not any(tag.partition(":")[0] == image for tag in tags):
            self.ghv("image", "build", str((IMAGES / image / "image.yaml").absolute()))
        words = ("run", "-q", "-o", "json", "--site", site, "--image", image, "--hypervisor", hypervisor, "--", "true")
        found: dict[str, Any] = self.json(*words)
        return found

    def until_ready(self, workdir: Path, *words: str) -> tuple[float, wire.Status]:
        """When a `ghv run` with these words began, and what its pilot says of its guest, which became ready. `workdir`:
        the account's at the site, as this machine sees it. Returns when the `ghv` has ended."""
        began = time.time()
        ghv = self.start("run", "-q", *words)

        def look() -> wire.Status | None:
            for path in (workdir / wire.SPOOL).glob(f"*/{wire.STATUS}"):
                with contextlib.suppress(OSError):
                    status = wire.from_plain(wire.Status, json.loads(path.read_bytes()))
                    if status.ready_at is not None and status.ready_at > began:
                        return status
            return None

        status = wait_for(f"the guest of `ghv run {' '.join(words)}`", look, READY)
        _, err = ghv.communicate()
        if ghv.returncode != 0:
            raise RuntimeError(f"ghv run {' '.join(words)} ended with {ghv.returncode}: {err.decode()}")
        return began, status

    def hypervisors(self, image: str) -> list[str]:
        """What runs guests on this machine: KVM where it is proven, and what needs no proof of the processor."""
        best = self.warm_up(image)["ledger"]["hypervisor"].rpartition(" ")[2]
        return ["kvm", "uml", "tcg"] if best == "kvm" else ["uml", "tcg"]

    def qemu(self, image: str) -> wire.HypervisorKind:
        """The faster way in which QEMU runs guests on this machine."""
        return wire.HypervisorKind.KVM if "kvm" in self.hypervisors(image) else wire.HypervisorKind.TCG


def wait_for(what: str, look: Callable[[], T | None], seconds: float = 120.0) -> T:
    """What `look` gives once it gives something; looked for every 10 ms, which costs the machine next to nothing."""
    deadline = time.monotonic() + seconds
    while not (found := look()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {seconds:.0f} s for {what}")
        time.sleep(0.01)
    return found


@contextlib.contextmanager
def open_lab() -> Iterator[Lab]:
    """The installation, with its service stopped at the end."""
    runtime = Path(tempfile.mkdtemp(prefix="ghv-bench-"))  # short: a socket lives in it
    lab = Lab(BUILD / "lab", runtime)
    try:
        yield lab
    finally:
        with contextlib.suppress(RuntimeError):
            lab.ghv("service", "stop")
        shutil.rmtree(runtime, ignore_errors=True)
