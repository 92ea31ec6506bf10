"""What all test sites have in common: a folder, a root with an ordinary user in it, name spaces, an SSH front-end.

A kind of site says what its root holds, how it is configured, which daemons it starts and when it is up. Nothing here
knows a batch system.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from types import TracebackType
from typing import Any, Self

from testsites import sshd
from testsites.spaces import Spaces

USER, UID = "scientist", 20001
BOUND = 120.0
"""Seconds that whatever takes a moment may take: on a machine that has much else to do, or stands still for a while."""

SHELL = ("dash", "cat", "chmod", "mkdir", "mv", "rm", "ls", "env", "id", "sleep", "true")
"""All that a login or a job finds beside the batch system: POSIX's shell and a few of its utilities."""

MADE = "made"
"""In a kept site's folder: what it was made of, and its address."""

OWN_ROOT = """\
echo "$1" >/proc/sys/kernel/hostname
root=$2
shift 2
mount --rbind "$root" "$root"
cd "$root"
mount --move . /
exec /usr/sbin/chroot . "$@"
"""
"""Gives a node its name, and a folder as the root of its mount name space: in a `chroot` nobody but root may make name
spaces."""

BASES = ("passwd", "group", "shadow", "hosts", "services")


class ClusterSite(ABC):
    """One running site; a context manager. `folder` is made, and removed at the end; it must not exist yet.

    With `keep` it stays, and a later site made of the same `parts` goes on with what it holds: address, keys, and the
    user's home. The batch system itself starts afresh, as after a reinstallation.

    With `namespaces` users of the nodes may make name spaces, as on most, and User-Mode Linux runs there. Without, the
    kernel does not let them: what runs in a mere `chroot` may not.

    Kinds that take a `spool_delay` let the front-end, and it alone, see the user's `~/.ghv` as through a network file
    system: what the nodes write there shows up to so many seconds late, and out of order (see `testsites.latespool`).

    Raises:
        PermissionError: not root.
        FileExistsError: the folder is there, and is not one to go on with.
        RuntimeError: something that a site of the kind needs cannot be had, the kept site is running already, or a
            daemon did not come up (the message holds its log's end).
    """

    kind = ""
    """What `ghv site add` calls it."""
    options: Mapping[str, str] = {}
    """Options of `ghv site add` without which jobs would not do here what they do at every other site."""
    environment: Mapping[str, str] = {}
    """What a login gets from the site's settings, but a command over SSH does not."""

    _door = "sshd"  # the daemon whose children are the open sessions
    _logs: Sequence[str] = ("var/log/*.log",)
    _program = Path("/")  # of this machine's: a site that was made with another one is made anew

    def __init__(
        self,
        name: str,
        folder: Path | None = None,
        *,
        keep: bool = False,
        namespaces: bool = False,
        parts: Sequence[object] = (),
    ) -> None:
        if os.geteuid() != 0:
            raise PermissionError(f"start {name}: a test site mounts and starts jobs as other users; run it as root")
        if folder is not None:
            folder.mkdir(mode=0o755, parents=True, exist_ok=keep)
        self.name, self.keep = name, keep
        self.folder = folder or Path(tempfile.mkdtemp(prefix=f"ghv-{name}-"))
        self.root = self.folder / "root"
        self.home = self.root / "home" / USER
        """The user's home as this machine sees it; at the site it is /home/USER."""
        self.nodes: list[str] = []
        self._namespaces = namespaces
        self._spaces: Spaces | None = None
        self._spool = 0  # the process that shows the front-end its workdir late
        self._hold = self.root / "var/hold"  # while it is there, that process shows nothing new
        self._lock = -1
        self._made_of = self._digest(parts)
        self._known = self._take_up() if keep else ""  # address of the site that is in the folder already
        self.address = self._known

    # Faults and administration

    def signal(self, daemon: str, number: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal to a daemon: KILL it, or STOP it for a while and CONT it."""
        self._running.signal(daemon, number)

    @abstractmethod
    def start(self, daemon: str) -> None:
        """Start a daemon that ended, or a node by its name."""

    def cut_ssh(self) -> int:
        """Kill every open SSH session, as a broken network would; how many processes that were."""
        return self._running.cut(self._door)

    def alive(self, daemon: str) -> bool:
        return self._running.alive(daemon)

    def processes(self) -> list[str]:
        """The command names of everything that runs at the site: daemons, logins, jobs."""
        return self._running.processes()

    def admin(self, *argv: str, as_user: bool = False, check: bool = True, stdin: str = "") -> str:
        """What a command prints, run inside the site as root (or as its ordinary user)."""
        return self._run(UID if as_user else 0, argv, check, stdin)

    @contextlib.contextmanager
    def mounted(self, folder: str, options: str) -> Iterator[None]:
        """While this lasts the site has a file system of memory at this absolute folder, with these mount options."""
        place = self.root / folder.lstrip("/")
        place.mkdir(parents=True)
        self._running.run("mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place))
        try:
            yield
        finally:
            self._running.run("umount", "--lazy", str(place))
            place.rmdir()

    def late(self, pattern: str) -> list[float]:
        """Of every file that the front-end saw late so far, where the end of its path matches the pattern: how many
        seconds after its last change."""
        rows = (line.partition(" ") for line in (self.root / "var/log/latespool.log").read_text().splitlines())
        return [float(seconds) for seconds, _, path in rows if PurePath(path).match(pattern)]

    @contextlib.contextmanager
    def unseen(self, *parts: str) -> Iterator[None]:
        """While this lasts the front-end sees nothing new of what the nodes write, however long it is there: nothing
        at all, or nothing below paths with one of these texts."""
        new = self._hold.with_name(f"{self._hold.name}.new")
        new.write_text("\n".join(parts))
        new.rename(self._hold)
        try:
            yield
        finally:
            self._hold.unlink()

    def stop(self) -> None:
        """End every process of the site and remove its folder, unless it is kept."""
        if self._spaces is not None:
            self._spaces.stop()
            self._spaces = None
        if not self.keep:
            shutil.rmtree(self.folder)
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    @property
    def login(self) -> sshd.Login:
        """How the ordinary user gets in."""
        return sshd.login(self.folder / "client", self.address, USER)

    def words(self, **options: str) -> list[str]:
        """What `ghv site add NAME` is told about the site, with further options for its batch system."""
        login, options = self.login, {**self.options, **options}
        return [
            "--kind", self.kind, "--host", login.host, "--port", str(login.port), "--user", login.user,
            "--key", str(login.key), "--known-hosts", str(login.known_hosts),
            *(word for key, value in options.items() for word in ("--option", f"{key}={value}")),
            *(word for key, value in self.environment.items() for word in ("--env", f"{key}={value}")),
        ]  # fmt: skip

    def describe(self) -> dict[str, Any]:
        """What a client must know, ready for JSON. `ssh`: the command that logs the user in; `words`: see there."""
        login = self.login
        ssh = ["ssh", "-F", "none", "-i", str(login.key), "-o", f"UserKnownHostsFile={login.known_hosts}"]
        return {
            "name": self.name, "address": f"{login.user}@{login.host}:{login.port}", "nodes": self.nodes,
            "root": str(self.root), "workdir": f"/home/{USER}/.ghv",
            "ssh": [*ssh, "-p", str(login.port), f"{login.user}@{login.host}"], "words": self.words(),
        }  # fmt: skip

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    # How it is made

    @property
    def _running(self) -> Spaces:
        assert self._spaces is not None, f"{self.name} is not running"
        return self._spaces

    def _digest(self, parts: Sequence[object]) -> str:
        """What a kept site is made of: these parts, the code here, and this machine's batch system."""
        changed = self._program.stat().st_mtime_ns if self._program.is_file() else None
        state = hashlib.sha256(repr((type(self).__name__, self.name, self._namespaces, *parts, changed)).encode())
        for path in sorted(Path(__file__).parent.glob("*.py")):
            state.update(path.read_bytes())
        return state.hexdigest()

    def _take_up(self) -> str:
        """Lock a kept folder and give the address of the site in it; empty it if it was made of other parts."""
        lock = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            raise RuntimeError(f"start {self.name}: it runs already, in {self.folder}") from None
        self._lock = lock
        with contextlib.suppress(FileNotFoundError, ValueError):
            digest, address = (self.folder / MADE).read_text().split()
            if digest == self._made_of:
                return address
        if {path.name for path in self.folder.iterdir()} - {"lock", "root", "client", MADE}:
            os.close(lock)
            raise FileExistsError(errno.EEXIST, "not a test site's folder", str(self.folder))
        for part in (self.root, self.folder / "client"):
            shutil.rmtree(part, ignore_errors=True)
        return ""

    @contextlib.contextmanager
    def _making(self) -> Iterator[None]:
        """What fails in here leaves nothing behind, and of a kept site nothing to go on with."""
        try:
            self.folder.chmod(0o755)  # whatever the umask
            (self.folder / MADE).unlink(missing_ok=True)
            yield
            if self.keep:
                (self.folder / MADE).write_text(f"{self._made_of} {self.address}\n")
        except BaseException:
            self.stop()
            raise

    def _make_users(self, hosts: str = "", others: str = "") -> None:
        """The ordinary user, and what tells names: `hosts` and `others` are lines for etc/hosts and etc/passwd."""
        etc = self.root / "etc"
        (etc / "passwd").write_text(
            "root:x:0:0:root:/root:/bin/sh\n"
            "sshd:x:100:65534::/run/sshd:/usr/sbin/nologin\n"
            f"{USER}:x:{UID}:{UID}:An ordinary user:/home/{USER}:/bin/sh\n{others}"
        )
        # '*' forbids passwords; an empty or '!' field would be an open or a locked account, which sshd turns away.
        (etc / "shadow").write_text(f"root:*:19000::::::\n{USER}:*:19000::::::\n")
        (etc / "shadow").chmod(0o600)
        (etc / "group").write_text(f"root:x:0:\nnogroup:x:65534:\n{USER}:x:{UID}:\n")
        (etc / "hosts").write_text(f"127.0.0.1 localhost\n{hosts or f'{self.address} {self.name}'}\n")
        (etc / "nsswitch.conf").write_text("".join(f"{base}: files\n" for base in BASES))

    def _make_login(self) -> None:
        self.home.mkdir(mode=0o700)
        os.chown(self.home, UID, UID)
        client = self.folder / "client"
        client.mkdir(mode=0o700)
        sshd.prepare(self.root, client, self.address, USER, UID)
        if invoker := os.environ.get("SUDO_UID"):  # the key is for whoever asked, not for root
            for path in (client, *client.iterdir()):
                os.chown(path, int(invoker), pwd.getpwuid(int(invoker)).pw_gid)

    def _on_node(self, node: str, *argv: str) -> list[str]:
        """The command line that runs a node's daemon in the root."""
        if not self._namespaces:
            return ["/usr/sbin/chroot", str(self.root), *argv]
        return ["/usr/bin/unshare", "--uts", "--mount", "--propagation=private", "/bin/sh", "-ec", OWN_ROOT, "sh", node,
                str(self.root), *argv]  # fmt: skip

    def _start_spool(self, delay: float) -> None:
        """Mount the late view of the user's workdir, in a mount name space of its own."""
        workdir, log = self.home / ".ghv", self.root / "var/log/latespool.log"
        workdir.mkdir(mode=0o700, exist_ok=True)
        os.chown(workdir, UID, UID)
        log.unlink(missing_ok=True)
        argv = ["/usr/bin/unshare", "--mount", "--propagation", "private",
                "/usr/bin/env", f"PYTHONPATH={Path(__file__).parents[1]}",
                sys.executable, "-m", "testsites.latespool", str(workdir), str(delay), str(self._hold)]  # fmt: skip
        self._spool = self._running.start("latespool", argv)
        self._until(f"a late view of {workdir}", lambda: "mounted" in log.read_text())

    def _late_view(self, argv: list[str]) -> list[str]:
        """The command line that has what the front-end has of the late view, if there is one."""
        if not self._spool:
            return argv
        return ["/usr/bin/nsenter", f"--mount={self.root}/proc/{self._spool}/ns/mnt", *argv]

    def _inside(self, *chroot: str) -> list[str]:
        """The command line that runs `chroot` with these arguments at the site's front-end."""
        return ["/usr/sbin/chroot", *chroot]

    def _run(self, uid: int, argv: Sequence[str], check: bool = True, stdin: str = "") -> str:
        who = [f"--userspec={uid}:{uid}"] if uid else []
        home = {0: "/root", UID: f"/home/{USER}"}.get(uid, "/")
        settings = [f"{key}={value}" for key, value in {"HOME": home, **self.environment}.items()]
        result = subprocess.run(
            self._inside(*who, str(self.root), "/usr/bin/env", *settings, *argv), input=stdin, capture_output=True,
            text=True, check=False, timeout=BOUND,
        )  # fmt: skip
        if check and result.returncode != 0:
            words = result.stderr.strip() or result.stdout.strip() or result.returncode
            raise RuntimeError(f"{' '.join(argv)} at {self.name}: {words}")
        return result.stdout

    def _until(self, what: str, holds: Callable[[], object], timeout: float = BOUND) -> None:
        """Wait for a condition; raises RuntimeError, with the ends of all logs, when it does not come true."""
        deadline = time.monotonic() + timeout
        while not holds():
            if time.monotonic() > deadline:
                logs = (log for pattern in self._logs for log in sorted(self.root.glob(pattern)) if log.is_file())
                tails = "; ".join(f"{log.name}: {log.read_text(errors='replace')[-600:]}" for log in logs)
                raise RuntimeError(f"start {self.name}: {what} did not come up in {timeout:.0f} s; {tails}")
            time.sleep(0.05)

    def _until_it_listens(self) -> None:
        self._until("its sshd", lambda: listens(self.address, sshd.PORT))


def need(name: str, programs: Sequence[Path], packages: str) -> None:
    """Raises RuntimeError if this machine lacks a program that a site is made of; the message says what to install."""
    if missing := [str(path) for path in programs if not path.exists()]:
        raise RuntimeError(f"start {name}: {', '.join(missing)} not found; install them: apt-get install {packages}")


def random_address() -> str:
    return f"127.{secrets.randbelow(200) + 20}.{secrets.randbelow(256)}.{secrets.randbelow(254) + 1}"


def free_address(port: int) -> str:
    """An address in 127.0.0.0/8 on whose port nobody listens."""
    while True:
        address = random_address()
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind((address, port))
            return address


def listens(host: str, port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex((host, port)) == 0
