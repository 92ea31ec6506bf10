"""A whole installation of GridHypervisor for a test: data folder, service, command line, and what it must leave clean.

What is slow to make is made once: images are given to each installation by hard links, and the caches of packages and
of the bundle's programs are shared. So is the scratch of the node, as on a real one.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from gridhypervisor.model import wire
from tests.making import BUILD

REPOSITORY = Path(__file__).parents[2]
CACHES = ("images", "bundle")  # of a data folder: packages and programs that never change, shared by all
FINAL = ("done", "failed", "cancelled")
T = TypeVar("T")


def wait_for(what: str, look: Callable[[], T | None], seconds: float = 120.0) -> T:
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
    def __init__(self, folder: Path, scratch: Path, template: Path | None = None) -> None:
        self.folder, self.data, self.work, self.scratch = folder, folder / "data", folder / "work", scratch
        self.hypervisor_asked = "auto"  # of jobs that do not say
        self.steps = folder / "die-at"
        self.steps.touch()
        for path in (self.data, self.work):
            path.mkdir(parents=True, mode=0o700)
        if template is not None and template.exists():
            shutil.copytree(template / "images", self.data / "images", copy_function=_link)
        (self.data / "cache").mkdir(mode=0o700)
        for name in CACHES:
            (BUILD / name).mkdir(mode=0o700, parents=True, exist_ok=True)
            (self.data / "cache" / name).symlink_to(BUILD / name)
        self.environment = {
            **os.environ,
            "HOME": str(folder),
            "GHV_DATA": str(self.data),
            "GHV_RUNTIME": str(folder / "run"),
            "GHV_TEST_DIE_AT": str(self.steps),
            "TMPDIR": str(scratch),
            "GHV_IDLE": "0",  # tests tell batch jobs apart: pilots serve others only where a test asks for it
        }

    def ghv(self, *words: str, check: bool = True, timeout: float = 240, stdin: bytes = b"") -> Ghv:
        """Run the command line in the work folder; `check`: it must end with 0."""
        done = subprocess.run(
            [sys.executable, "-m", "gridhypervisor.cli", *self._words(words)],
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
        """Begin a command line and go on; the caller waits for it. Ctrl-C reaches it even where it does not reach the
        tests, which a shell may have started in the background."""
        return subprocess.Popen(
            ["env", "--default-signal=INT", sys.executable, "-m", "gridhypervisor.cli", *self._words(words)],
            cwd=self.work,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def _words(self, words: tuple[str, ...]) -> tuple[str, ...]:
        return ("run", "--hypervisor", self.hypervisor_asked, *words[1:]) if words[:1] == ("run",) else words

    def detach(self, *words: str) -> str:
        """Submit a job and give its id."""
        return self.ghv("run", "--detach", *words).out.decode().strip()

    def job(self, job: str) -> dict[str, Any]:
        """What `ghv show` knows of it."""
        found: dict[str, Any] = self.ghv("show", job, "-o", "json").json
        return found

    def wait(self, job: str, seconds: float = 240) -> dict[str, Any]:
        """The job's record once it has ended, however it ended; and it must have ended once."""
        waited = self.ghv("wait", job, check=False, timeout=seconds)
        found = self.job(job)
        assert found["job"]["state"] in FINAL, (waited, found)
        ends = [e for e in self.events(job) if e["kind"] == "job" and e["before"] != e["after"] in FINAL]
        assert len(ends) == 1, ends
        return found

    def wait_state(self, job: str, state: str, seconds: float = 120) -> dict[str, Any]:
        def look() -> dict[str, Any] | None:
            found = self.job(job)
            assert found["job"]["state"] == state or found["job"]["state"] not in FINAL, found
            return found if found["job"]["state"] == state else None

        return wait_for(f"{job} to be {state}", look, seconds)

    def wait_phase(self, job: str, phase: str, seconds: float = 120) -> None:
        """Until the pilot of the job's newest attempt says that it is in this phase. A short one may be missed."""
        wait_for(f"{job} in phase {phase}", lambda: (self.status(job) or {}).get("phase") == phase, seconds)

    def wait_word(self, job: str, seconds: float = 120) -> None:
        """Until the program of the job's newest attempt has printed something. Seen at the site, which need not answer:
        this starts no service and disturbs none."""

        def look() -> bool:
            entry = self.entry(job)
            with contextlib.suppress(FileNotFoundError):
                return entry is not None and (entry / wire.STDOUT).stat().st_size > 0
            return False

        wait_for(f"the first word of {job}", look, seconds)

    def newest_jobs(self, count: int = 3) -> str:
        """What became of them, in words, with the pilots' logs."""
        found = [job["id"] for job in self.ghv("list", "-o", "json", timeout=60).json]
        newest = sorted(found, key=lambda job: int(job[1:]))[-count:]
        asked = [
            words for job in newest for words in (("show", job), ("events", job), ("logs", "--stream", "pilot", job))
        ]
        told = [(words, self.ghv(*words, check=False, timeout=60)) for words in asked]
        return "\n".join(f"$ ghv {' '.join(words)}\n{ghv.out.decode(errors='replace')}{ghv.err}" for words, ghv in told)

    def events(self, job: str = "") -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.ghv("events", *([job] if job else []), "-o", "json").json
        return found

    def story(self, job: str) -> list[str]:
        """The transitions of the job and its attempts in short: "pending", "planned", "planned>submitting", …"""
        return [f"{e['before']}>{e['after']}".lstrip(">") for e in self.events(job)]

    # -- the site and the node, seen from below -------------------------------------------------------------------

    @property
    def workdir(self) -> Path:
        """The account's folder at the local site."""
        return self.folder / ".ghv"

    @property
    def spool(self) -> Path:
        return self.workdir / wire.SPOOL

    def entry(self, job: str) -> Path | None:
        """The spool folder of the job's newest attempt, if there is one."""
        found = sorted(self.spool.glob(f"*-{job}-*"), key=lambda path: int(path.name.rpartition("-")[2]))
        return found[-1] if found else None

    def status(self, job: str) -> dict[str, Any] | None:
        """The pilot's last word."""
        entry = self.entry(job)
        try:
            found: dict[str, Any] | None = json.loads((entry / wire.STATUS).read_bytes()) if entry else None
        except FileNotFoundError:
            return None
        return found

    def pilot(self, job: str) -> int:
        return int(wait_for(f"the pilot of {job}", lambda: self.status(job))["pid"])

    def watchdog(self, job: str) -> int:
        """The process between pilot and hypervisor."""
        number, pilot = self.hypervisor(job), self.pilot(job)
        while (above := _parent(number)) != pilot:  # User-Mode Linux has a process before its first
            number = above
        return number

    def hypervisor(self, job: str) -> int:
        def look() -> list[int]:
            entry = self.entry(job)
            return guests(f"{entry.name} ") if entry else []

        return wait_for(f"the hypervisor of {job}", look)[0]

    @contextlib.contextmanager
    def counting(self, job: str) -> Iterator[list[int]]:
        """Count the guests of all attempts of a job that are not stopped, again and again while this lasts. Each has a
        session: of a family that is ending several may be the first."""
        counts, over = [0], threading.Event()

        def count() -> None:
            while not over.wait(0.2):
                found = guests(f"{self.id}-{job}-")
                counts.append(len({_session(pid) for pid in found if _state(pid) not in "TZX"} - {0}))

        watcher = threading.Thread(target=count)
        watcher.start()
        try:
            yield counts
        finally:
            over.set()
            watcher.join()

    def relay(self) -> int:
        """The relay of the local site."""
        words = f" relay --workdir {self.workdir} "
        return wait_for("a relay", lambda: [pid for pid, line in _processes() if words in line])[0]

    @contextlib.contextmanager
    def silent_site(self) -> Iterator[None]:
        """While this lasts the local site's relay is stopped: nothing is learned from the site or done there. Keep it
        short: after 45 s without an answer the service has another relay."""
        relay = self.relay()
        os.kill(relay, signal.SIGSTOP)
        try:
            yield
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(relay, signal.SIGCONT)

    @contextlib.contextmanager
    def busy_site(self) -> Iterator[None]:
        """While this lasts all slots of the fork queue are taken, and what is submitted waits."""
        with self.taken_slots(os.cpu_count() or 1):
            yield

    @contextlib.contextmanager
    def taken_slots(self, count: int) -> Iterator[None]:
        """While this lasts so many slots of the fork queue, which has one for each processor, are taken."""
        slots = self.workdir / "forkq" / "slots"
        slots.mkdir(mode=0o700, parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack:
            for number in range(count):
                file = stack.enter_context((slots / str(number)).open("ab"))
                fcntl.flock(file, fcntl.LOCK_EX)
            yield

    # -- the service ----------------------------------------------------------------------------------------------

    def die_at(self, *steps: str) -> None:
        """From now on the service dies by SIGKILL at each of these steps, once, and at no other."""
        self.steps.write_text("".join(f"{step}\n" for step in steps))

    def deaths_to_come(self) -> list[str]:
        return self.steps.read_text().splitlines()

    @functools.cached_property
    def id(self) -> str:
        """What the names of all that is ours at a site begin with."""
        return str(self.ghv("service", "status", "-o", "json").json["installation"])

    def service_pid(self) -> int:
        return int(self.ghv("service", "status", "-o", "json").json["pid"])

    def kill_service(self) -> None:
        pid = self.service_pid()
        os.kill(pid, signal.SIGKILL)
        _await_end(pid)

    def die_until(self, step: str, seconds: float = 300) -> None:
        """Let the service die its deaths, each within so many seconds, and start it after each, until it has died at
        this step. Then it stays dead until somebody calls `ghv`, as nobody else may meanwhile."""
        while (pid := self._service()) or step in self.deaths_to_come():
            if pid:
                _await_end(pid, seconds)
            else:
                self.ghv("service", "start", check=False)  # it may die of it

    def _service(self) -> int:
        """Its process, without asking it; 0: there is none."""
        words = f"gridhypervisor.app serve --data {self.data} "
        return next((pid for pid, line in _processes() if words in line), 0)

    def stop(self) -> None:
        self.ghv("service", "stop", check=False)

    def close(self) -> None:
        """Leave nothing behind, whatever the test came to: end the service, and what is left of its jobs."""
        self.die_at()
        self.stop()
        for pid, words in _processes():
            if f"{self.folder}/" in words:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    # -- what must hold afterwards --------------------------------------------------------------------------------

    def processes(self) -> dict[int, str]:
        """Processes of this installation's jobs, by their command lines: all but the service, its relay, and the fork
        queue that the relay keeps. (What that forks for a job has the same command line, and another parent.)"""
        marks = (f"{self.folder}/", f" -name {self.id}-", f" umid={self.id}-")
        ours = {
            pid: words
            for pid, words in _processes()
            if any(mark in words for mark in marks) and "gridhypervisor.app serve" not in words
        }
        relays = {pid for pid, words in ours.items() if " relay --workdir " in words}

        def kept(pid: int, words: str) -> bool:
            with contextlib.suppress(OSError):
                return words.endswith(" serve ") and _parent(pid) in relays
            return False

        return {pid: words for pid, words in ours.items() if pid not in relays and not kept(pid, words)}

    def assert_clean(self, seconds: float = 120) -> None:
        """No stray process, no entry in the spool, nothing of a run on the node; every job ended exactly once."""
        self.ghv("service", "start")  # it is the service that cleans, and it may have died since it was last asked
        wait_for("an empty spool", lambda: not [p for p in self.spool.glob("*") if p.name != wire.BURIED], seconds)
        wait_for("the end of all processes", lambda: not self.processes(), seconds)
        runs = self.scratch / f"ghv-{os.getuid()}" / "run"
        wait_for("no run folder", lambda: not list(runs.glob(f"{self.id}-*")), seconds)
        ends: dict[str, int] = {}
        for event in self.events():
            if event["kind"] == "job" and event["before"] != event["after"]:
                ends[event["job"]] = ends.get(event["job"], 0) + (event["after"] in FINAL)
        assert set(ends.values()) <= {1}, ends


def guests(name: str) -> list[int]:
    """The hypervisors of the guests whose names begin so: of User-Mode Linux' family the first."""
    found = {pid for pid, words in _processes() if f" -name {name}" in words or f" umid={name}" in words}
    first = []
    for pid in found:
        with contextlib.suppress(OSError):
            first += [pid] * (_parent(pid) not in found)
    return first


def _link(source: str, target: str) -> None:
    """A hard link, or a copy where the two are on different file systems."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _processes() -> Iterator[tuple[int, str]]:
    """Every process with its command line, words parted by spaces."""
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):
                words = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                if words and _alive(int(folder.name)):
                    yield int(folder.name), words


def _await_end(pid: int, seconds: float = 120) -> None:
    wait_for(f"the end of process {pid}", lambda: not _alive(pid), seconds)


def _parent(pid: int) -> int:
    return int(_stat(pid)[1])


def _session(pid: int) -> int:
    """0: it is gone."""
    with contextlib.suppress(OSError):
        return int(_stat(pid)[3])
    return 0


def _alive(pid: int) -> bool:
    return _state(pid) not in "ZX"


def _state(pid: int) -> str:
    """The kernel's letter for it, X where it is gone: T is stopped, Z not yet waited for."""
    try:
        return _stat(pid)[0]
    except OSError:
        return "X"


def _stat(pid: int) -> list[str]:
    """`pid (comm) state ppid …` from the state on: comm may hold anything."""
    return (Path("/proc") / str(pid) / "stat").read_text(errors="replace").rpartition(")")[2].split()
