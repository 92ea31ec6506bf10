"""A whole installation of GridHypervisor for one test: data folder, service, command line, and what it must leave clean.

What is slow to make (the bundle's world, the images) is made once in `build/e2e` and given to each installation by hard
links. Nodes' scratch is shared by all tests of a run, as it would be on a real node.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

REPOSITORY = Path(__file__).parents[2]
TEMPLATE = REPOSITORY / "build" / "e2e"
T = TypeVar("T")


def wait_for(what: str, look: Callable[[], T | None], seconds: float = 60.0) -> T:
    """What `look` gives once it gives something. Fails with `what` after the bound."""
    deadline = time.monotonic() + seconds
    while True:
        found = look()
        if found:
            return found
        assert time.monotonic() < deadline, f"waited {seconds:.0f} s for {what}"
        time.sleep(0.05)


class Ghv:
    """What one call of `ghv` gave."""

    def __init__(self, done: subprocess.CompletedProcess[bytes]) -> None:
        self.code, self.out, self.err = done.returncode, done.stdout, done.stderr.decode(errors="replace")

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    def __repr__(self) -> str:
        return f"exit {self.code}\nstdout: {self.out!r}\nstderr: {self.err}"


class Installation:
    def __init__(self, folder: Path, scratch: Path) -> None:
        self.folder, self.data, self.work, self.scratch = folder, folder / "data", folder / "work", scratch
        self.steps = folder / "die-at"
        self.steps.touch()
        for path in (self.data, self.work):
            path.mkdir(parents=True, mode=0o700)
        for name in ("images", "cache", "bundle"):
            if (TEMPLATE / name).exists():
                shutil.copytree(TEMPLATE / name, self.data / name, copy_function=os.link)
        self.environment = {
            **os.environ,
            "HOME": str(folder),
            "GHV_DATA": str(self.data),
            "GHV_RUNTIME": str(folder / "run"),
            "GHV_TEST_DIE_AT": str(self.steps),
            "TMPDIR": str(scratch),
        }

    def ghv(self, *words: str, check: bool = True, timeout: float = 240, stdin: bytes = b"") -> Ghv:
        """Run the command line in the work folder; `check`: it must end with 0."""
        done = subprocess.run(
            [sys.executable, "-m", "gridhypervisor.cli", *words],
            cwd=self.work,
            env=self.environment,
            input=stdin,
            capture_output=True,
            timeout=timeout,
            check=False,
        )
        result = Ghv(done)
        assert not check or result.code == 0, f"ghv {' '.join(words)}: {result!r}"
        return result

    def start(self, *words: str) -> subprocess.Popen[bytes]:
        """Begin a command line and go on; the caller waits for it."""
        return subprocess.Popen(
            [sys.executable, "-m", "gridhypervisor.cli", *words],
            cwd=self.work,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def detach(self, *words: str) -> str:
        """Hand in a job and give its id."""
        return self.ghv("run", "--detach", *words).out.decode().strip()

    def job(self, job: str) -> dict[str, Any]:
        found: dict[str, Any] = self.ghv("show", job, "-o", "json").json
        return found

    def state(self, job: str) -> str:
        return str(self.job(job)["job"]["state"])

    def wait(self, job: str, seconds: float = 120) -> dict[str, Any]:
        """The job's record once it has ended, however it ended."""
        self.ghv("wait", job, check=False, timeout=seconds)
        found = self.job(job)
        assert found["job"]["state"] in ("done", "failed", "cancelled"), found
        return found

    def wait_phase(self, job: str, phase: str, seconds: float = 60) -> None:
        wait_for(f"{job} in phase {phase}", lambda: self.job(job)["job"].get("phase") == phase, seconds)

    def events(self, job: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.ghv("events", "--job", job, "-o", "json").out.splitlines()]

    def entry(self, job: str) -> Path:
        """The spool folder of the job's newest attempt at the local site."""
        return self.workdir / "spool" / str(self.job(job)["attempts"][-1]["entry"])

    @property
    def workdir(self) -> Path:
        return self.folder / ".ghv"

    def service_pid(self) -> int:
        return int(self.ghv("service", "status", "-o", "json").json["pid"])

    def kill_service(self) -> None:
        pid = self.service_pid()
        os.kill(pid, signal.SIGKILL)
        wait_for("the service's death", lambda: not _alive(pid))

    def stop(self) -> None:
        self.ghv("service", "stop", check=False)

    # -- what must hold afterwards --------------------------------------------------------------------------------

    def processes(self) -> dict[int, str]:
        """Processes of this installation's jobs: whatever names an entry of its spool on its command line."""
        found = {}
        for folder in Path("/proc").iterdir():
            if folder.name.isdigit():
                try:
                    words = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                except OSError:
                    continue
                if f"{self.workdir}/spool/" in words or (f"{self.scratch}/" in words and self.installation in words):
                    found[int(folder.name)] = words
        return found

    @property
    def installation(self) -> str:
        return str(self.ghv("service", "status", "-o", "json").json["installation"])

    def assert_clean(self, seconds: float = 60) -> None:
        """No stray process, no entry in the spool, nothing of a run on the node."""
        spool = self.workdir / "spool"
        wait_for("an empty spool", lambda: not list(spool.iterdir()), seconds)
        wait_for("the end of all processes", lambda: not self.processes(), seconds)
        runs = self.scratch / f"ghv-{os.getuid()}" / "run"
        mine = self.installation
        wait_for("no run folder", lambda: not runs.exists() or not list(runs.glob(f"{mine}-*")), seconds)


def _alive(pid: int) -> bool:
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except OSError:
        return False
