"""Finds this user's service, and starts it where none answers.

Each data folder has one service, and each service one socket, named after the data folder, in a runtime folder that is
the user's alone. The service outlives the terminal that started it: it gets a session of its own, and its words go to
`service.log` in the data folder. Two callers at once start one service: the lock is held from looking to readiness.

The command that is started gets `--data DIR --socket PATH --ready-fd N`: it writes `ready` and a newline to N once it
serves, and closes it. If N is closed without that, the service has failed.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import select
import socket
import stat
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import msgspec

from gridhypervisor.client.sync import Client
from gridhypervisor.model.views import Problem, ServiceError

COMMAND = (sys.executable, "-m", "gridhypervisor.app", "serve")

START_TIMEOUT = 60.0
"""Seconds that a service has from its start until it must be ready."""

LONGEST_SOCKET = 107
"""Bytes that the kernel takes for the path of a Unix socket."""


class Paths(msgspec.Struct, frozen=True):
    """Where the service of one data folder is found."""

    data: Path
    socket: Path

    @property
    def log(self) -> Path:
        return self.data / "service.log"

    @property
    def lock(self) -> Path:
        return self.socket.with_suffix(".lock")


def find_paths(environ: Mapping[str, str] = os.environ) -> Paths:
    """The data folder and the socket that belong to it, by `GHV_DATA`, `GHV_RUNTIME` and XDG's variables.

    Raises:
        ServiceError: the socket's path would be too long.
    """
    home = Path(environ.get("HOME") or Path.home())
    data_home = environ.get("XDG_DATA_HOME") or home / ".local" / "share"
    data = Path(environ.get("GHV_DATA") or Path(data_home) / "gridhypervisor").absolute()
    if explicit := environ.get("GHV_RUNTIME"):
        runtime = Path(explicit).absolute()
    elif (session := environ.get("XDG_RUNTIME_DIR")) and _is_ours(session):
        runtime = Path(session) / "gridhypervisor"
    else:
        runtime = Path(f"/tmp/ghv-{os.getuid()}")
    path = runtime / f"{hashlib.sha256(os.fsencode(data)).hexdigest()[:12]}.sock"
    if len(os.fsencode(path)) > LONGEST_SOCKET:
        why = f"{path} is longer than the {LONGEST_SOCKET} bytes that the system allows"
        raise _refused(f"choose the service's socket in {runtime}", why, "Set GHV_RUNTIME to a shorter path.")
    return Paths(data, path)


def _is_ours(folder: str) -> bool:
    """Whether it is there and this user's: under sudo, the variable may still name the other user's."""
    try:
        return os.stat(folder).st_uid == os.getuid()
    except OSError:
        return False


def connect(paths: Paths | None = None, *, patience: float = 60.0) -> Client:
    """A client of the service that `GHV_URL` names; or else of this user's own, which is started when it is needed."""
    if paths is None and os.environ.get("GHV_URL"):
        from gridhypervisor.client.remote import find_remote  # which few need

        return Client(find_remote() or "", patience=patience)
    where = paths or find_paths()

    def revive() -> None:
        ensure_service(where)

    return Client(str(where.socket), revive=revive, patience=patience)


def ensure_service(paths: Paths, command: Sequence[str] = COMMAND) -> bool:
    """Start the service unless it answers. Return whether it was started.

    Raises:
        ServiceError: it could not be started; says why, in the words of its log.
    """
    if answers(paths):
        return False
    own_folder(paths.socket.parent)
    own_folder(paths.data)
    with open(os.open(paths.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600), "rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if answers(paths):
            return False
        _start(paths, command)
        return True


def answers(paths: Paths) -> bool:
    """Whether somebody listens at the socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        try:
            sock.connect(str(paths.socket))
        except OSError:
            return False
        return True


def own_folder(folder: Path) -> None:
    """Make a folder that nobody else can enter, or see that it is one.

    Raises:
        ServiceError: it is somebody else's, or open to others: what lies in it could be theirs.
    """
    title = f"use the folder {folder}"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.lstat()
    except OSError as error:
        raise _refused(title, error.strerror or str(error), "Set GHV_DATA and GHV_RUNTIME to other folders.") from error
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise _refused(title, "it is not a folder of this user", "Set GHV_RUNTIME to a folder of your own.")
    if found.st_mode & 0o077:
        why = f"others may enter it (mode {stat.S_IMODE(found.st_mode):04o})"
        raise _refused(title, why, f"If it is yours: chmod 700 {folder}")


def _start(paths: Paths, command: Sequence[str]) -> None:
    import subprocess

    ready, told = os.pipe()
    log = os.open(paths.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    before = os.fstat(log).st_size
    arguments = ["--data", str(paths.data), "--socket", str(paths.socket), "--ready-fd", str(told)]
    with open(ready, "rb", buffering=0) as pipe:
        try:
            process = subprocess.Popen(
                [*command, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                pass_fds=[told],
                start_new_session=True,
            )
        finally:
            os.close(told)
            os.close(log)
        said = pipe.read(64) if select.select([pipe], [], [], START_TIMEOUT)[0] else None
    if said == b"ready\n":
        process.returncode = 0  # it goes on without us: nobody is to wait for it, or to warn that nobody did
        return
    if said is None:
        process.terminate()
        why = f"it was not ready after {START_TIMEOUT:.0f} s"
    else:
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=5)
        why = f"it ended with code {process.returncode}"
    with open(paths.log, "rb") as text:
        text.seek(before)
        tail = text.read().decode(errors="replace").strip().splitlines()[-8:]
    detail = "\n".join([f"{why}; its last words:", *tail]) if tail else f"{why} and said nothing"
    raise ServiceError(Problem("start the service", 503, "unavailable", detail, f"All it said is in {paths.log}"))


def _refused(title: str, why: str, hint: str) -> ServiceError:
    return ServiceError(Problem(title, 403, "refused", why, hint))
