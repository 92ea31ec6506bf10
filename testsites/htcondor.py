"""A real HTCondor site: one pool of a few nodes and an SSH front-end, in one bare root and one set of name spaces.

`HTCondorSite` starts it in about four seconds and offers the faults that tests provoke: any daemon killed, stopped,
continued, started again; a node that dies under its job; every SSH session cut. It decides nothing about jobs.

HTCondor is another Debian release's (see `testsites.otherdebian`). Its daemons are started one by one, without
condor_master: tests kill and restart them, and nobody else should. Each site has an address of its own in 127.0.0.0/8,
so all of its ports are free and nothing listens beyond loopback.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType

from testsites import otherdebian, sshd
from testsites.spaces import Spaces

USER, UID = "scientist", 20001
COLLEAGUE = UID + 1
PORT = 9618
SUITE = "trixie"

PACKAGES = ("condor", "dash", "coreutils", "openssh-server", "openssl-provider-legacy")
DAEMONS = ("collector", "negotiator", "schedd")
PROGRAMS = (
    *(Path("/usr/sbin") / f"condor_{name}"
      for name in ("collector", "negotiator", "schedd", "shadow", "startd", "starter", "procd")),
    Path("/usr/libexec/condor/condor_gpu_discovery"),  # without it a node does not even start
    *(Path("/usr/bin") / f"condor_{name}"
      for name in ("submit", "q", "rm", "hold", "release", "history", "status", "qedit", "vacate_job", "version")),
    *(Path("/usr/bin") / name
      for name in ("dash", "cat", "chmod", "mkdir", "mv", "rm", "ls", "env", "id", "sleep", "true")),
    Path("/usr/sbin/sshd"), *(Path("/usr/lib/openssh") / name for name in ("sshd-session", "sshd-auth")),
)  # fmt: skip
"""All that a login or a job finds: HTCondor, POSIX's shell and a few of its utilities."""

PLUGINS = (Path("/usr/lib/x86_64-linux-gnu/ossl-modules/legacy.so"),)
"""Without this cipher condor_submit dies of a bad pointer once the job is in the queue."""

# Queue and negotiator that call one another before they know each other wait for one another, for 20 s: hence no
# RESCHEDULE. Nothing here needs one.
CONFIG = """\
LOCAL_DIR = /var
RELEASE_DIR = /usr
RUN = /run/condor
LOG = /var/log/condor
LOCK = /run/condor
SPOOL = /var/spool/condor
EXECUTE = /var/lib/condor/execute
BIN = /usr/bin
SBIN = /usr/sbin
LIB = /usr/lib/condor
LIBEXEC = /usr/libexec/condor
CONDOR_IDS = 0.0
CONDOR_ADMIN = root@{name}
CONDOR_HOST = {address}
COLLECTOR_HOST = {address}:{port}
NETWORK_INTERFACE = {address}
BIND_ALL_INTERFACES = False
ENABLE_IPV6 = False
NO_DNS = False
USE_SHARED_PORT = False
COLLECTOR_PORT = {port}
UID_DOMAIN = {name}
FILESYSTEM_DOMAIN = {name}
TRUST_UID_DOMAIN = True
SEC_USE_FAMILY_SESSION = False
SEC_DEFAULT_AUTHENTICATION = REQUIRED
SEC_DEFAULT_AUTHENTICATION_METHODS = FS
SEC_DEFAULT_AUTHENTICATION_TIMEOUT = 5
RECONNECT_BACKOFF_CEILING = 2
ALLOW_ADMINISTRATOR = root@{name}, condor@{name}
ALLOW_READ = *
ALLOW_WRITE = *
ALLOW_DAEMON = root@{name}, condor@{name}
ALLOW_NEGOTIATOR = root@{name}, condor@{name}
ALLOW_ADVERTISE_STARTD = root@{name}, condor@{name}
ALLOW_ADVERTISE_SCHEDD = root@{name}, condor@{name}
ALLOW_ADVERTISE_MASTER = root@{name}, condor@{name}
NUM_CPUS = {cpus}
MEMORY = {memory}
NUM_SLOTS = 1
NUM_SLOTS_TYPE_1 = 1
SLOT_TYPE_1 = 100%
SLOT_TYPE_1_PARTITIONABLE = True
START = True
SUSPEND = False
PREEMPT = False
KILL = False
NEGOTIATOR_INTERVAL = 1
NEGOTIATOR_CYCLE_DELAY = 1
NEGOTIATOR_MIN_INTERVAL = 1
SCHEDD_INTERVAL = 1
SCHEDD_MIN_INTERVAL = 1
SCHEDD_SEND_RESCHEDULE = False
UPDATE_INTERVAL = 5
PERIODIC_EXPR_INTERVAL = {policy_interval}
JOB_START_COUNT = 50
JOB_START_DELAY = 0
MachineMaxVacateTime = {vacate}
KILLING_TIMEOUT = {vacate}
MAX_HISTORY_LOG = 20000000
BASE_CGROUP =
DISCARD_SESSION_KEYRING_ON_STARTUP = False
CREATE_LOCKS_ON_LOCAL_DISK = True
ENABLE_KERNEL_TUNING = False
MOUNT_UNDER_SCRATCH =
RunBenchmarks = False
BENCHMARKS_JOBLIST =
MAIL = /bin/true
STARTER_ALLOW_RUNAS_OWNER = True
"""

NODE = """\
{node}.STARTD_NAME = {node}
{node}.STARTD_LOG = $(LOG)/StartLog.{node}
{node}.STARTER_LOG = $(LOG)/StarterLog.{node}
{node}.STARTD_ADDRESS_FILE = $(LOG)/.startd_address.{node}
{node}.EXECUTE = /var/lib/condor/exec-{node}
"""


class HTCondorSite:
    """One running site; a context manager. `folder` is made, and removed at the end; it must not exist yet.

    `vacate`: seconds between TERM and KILL that its nodes give a job; `policy_interval`: seconds between two looks at
    the jobs' own policies.

    Raises:
        PermissionError: not root.
        FileExistsError: the folder is there.
        RuntimeError: HTCondor cannot be had, or a daemon did not come up (the message holds its log's end).
    """

    def __init__(
        self,
        name: str = "htcondor-a",
        *,
        nodes: int = 2,
        cpus: int = 2,
        memory: int = 4000,
        vacate: int = 30,
        policy_interval: int = 2,
        folder: Path | None = None,
    ) -> None:
        if os.geteuid() != 0:
            raise PermissionError("start an HTCondor test site: it mounts and starts jobs as other users; be root")
        self.name = name
        kept = otherdebian.made(SUITE, PACKAGES, PROGRAMS, PLUGINS)
        if folder is None:
            self.folder = Path(tempfile.mkdtemp(prefix=f"ghv-{name}-"))
        else:
            folder.mkdir()
            self.folder = folder
        self.folder.chmod(0o755)
        self.root = self.folder / "root"
        self.home = self.root / "home" / USER
        """The user's home as this machine sees it; at the site it is /home/USER."""
        self.nodes = [f"n{i}" for i in range(1, nodes + 1)]
        self.address = _free_address()
        self._spaces: Spaces | None = None
        try:
            shutil.copytree(kept, self.root, symlinks=True)
            self._configure(CONFIG.format(name=name, address=self.address, port=PORT, cpus=cpus, memory=memory,
                                          vacate=vacate, policy_interval=policy_interval))  # fmt: skip
            self._make_login()
            self._start()
        except BaseException:
            self.stop()
            raise

    # Faults and administration

    def start(self, daemon: str) -> None:
        """Start one of DAEMONS, `sshd` or a node (by its name)."""
        if daemon == "sshd":
            argv = sshd.ARGV
        elif daemon in self.nodes:
            # Its starters, which have local names of their own, must find their node's procd and no other.
            argv = ["/usr/bin/env", f"_CONDOR_PROCD_ADDRESS=/run/condor/procd.{daemon}",
                    "/usr/sbin/condor_startd", "-f", "-local-name", daemon]  # fmt: skip
        else:
            argv = [f"/usr/sbin/condor_{daemon}", "-f", *(["-p", str(PORT)] if daemon == "collector" else [])]
        self._running.start(daemon, ["/usr/sbin/chroot", str(self.root), *argv])

    def signal(self, daemon: str, number: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal to a daemon: KILL it, or STOP it for a while and CONT it."""
        self._running.signal(daemon, number)

    def lose(self, node: str) -> None:
        """End a node's daemons and leave its jobs alone: what the rest of the pool sees of a broken network."""
        [startd] = [pid for pid, words in self._own_processes() if words.endswith(f" -local-name {node}")]
        os.kill(startd, signal.SIGSTOP)  # it is not to see the others go
        family = Path(f"/proc/{startd}/task/{startd}/children").read_text().split()
        for pid in (*map(int, family), startd):
            os.kill(pid, signal.SIGKILL)

    def end_strays(self, words: str) -> None:
        """Kill what a lost node left running: the processes whose command lines hold these words."""
        for pid, line in self._own_processes():
            if words in line and "condor_" not in line:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def cut_queue(self) -> None:
        """End the queue's daemon and all who watch over its running jobs, as a crash of its machine would."""
        self._running.signal("schedd", signal.SIGSTOP)
        self._running.cut("schedd")
        self._running.signal("schedd", signal.SIGKILL)

    def cut_ssh(self) -> int:
        """Kill every open SSH session, as a broken network would; how many processes that were."""
        return self._running.cut("sshd")

    def alive(self, daemon: str) -> bool:
        return self._running.alive(daemon)

    def processes(self) -> list[str]:
        """The command names of everything that runs at the site: daemons, logins, jobs."""
        return self._running.processes()

    def admin(self, *argv: str, uid: int = 0, check: bool = True, stdin: str = "") -> str:
        """What a command prints, run inside the site as root (or as its ordinary user, or their colleague)."""
        who = ["--userspec", f"{uid}:{uid}"] if uid else []
        words = ["/usr/sbin/chroot", *who, str(self.root), *argv]
        result = subprocess.run(words, input=stdin, capture_output=True, text=True, check=False, timeout=120)
        if check and result.returncode != 0:
            raise RuntimeError(f"{' '.join(argv)} at {self.name}: {result.stderr.strip() or result.returncode}")
        return result.stdout

    def stop(self) -> None:
        """End every process of the site and remove its folder."""
        if self._spaces is not None:
            self._spaces.stop()
            self._spaces = None
        shutil.rmtree(self.folder)

    def __enter__(self) -> HTCondorSite:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    # How it is made

    @property
    def _running(self) -> Spaces:
        assert self._spaces is not None, "the site has been stopped"
        return self._spaces

    def _configure(self, config: str) -> None:
        etc = self.root / "etc"
        (etc / "passwd").write_text(
            "root:x:0:0:root:/root:/bin/sh\n"
            "sshd:x:100:65534::/run/sshd:/usr/sbin/nologin\n"
            f"{USER}:x:{UID}:{UID}:An ordinary user:/home/{USER}:/bin/sh\n"
            f"colleague:x:{COLLEAGUE}:{COLLEAGUE}:Another one:/:/bin/sh\n"
        )
        # '*' forbids passwords; an empty or '!' field would be an open or a locked account, which sshd turns away.
        (etc / "shadow").write_text(f"root:*:19000::::::\n{USER}:*:19000::::::\n")
        (etc / "shadow").chmod(0o600)
        (etc / "group").write_text(f"root:x:0:\nnogroup:x:65534:\n{USER}:x:{UID}:\n")
        (etc / "hosts").write_text(f"127.0.0.1 localhost\n{self.address} {self.name}\n")
        (etc / "nsswitch.conf").write_text("passwd: files\ngroup: files\nshadow: files\nhosts: files\n")
        (etc / "condor").mkdir()
        (etc / "condor/condor_config").write_text(config + "".join(NODE.format(node=node) for node in self.nodes))
        folders = ["run/condor", "run/lock", "var/log/condor", "var/spool/condor", "var/lib/condor/execute"]
        folders += [f"var/lib/condor/exec-{node}" for node in self.nodes]
        for folder in folders:
            (self.root / folder).mkdir(mode=0o755, parents=True)
        (self.root / "bin/sh").symlink_to("dash")

    def _make_login(self) -> None:
        self.home.mkdir(mode=0o700)
        os.chown(self.home, UID, UID)
        client = self.folder / "client"
        client.mkdir(mode=0o700)
        sshd.prepare(self.root, client, self.address, USER, UID)
        self.login = sshd.login(client, self.address, USER)

    def _start(self) -> None:
        self._spaces = Spaces(self.root, self.name)
        for daemon in ("sshd", *DAEMONS, *self.nodes):
            self.start(daemon)
        self.wait_idle()
        self._until("its sshd", lambda: _listens(self.login.host, self.login.port))

    def wait_idle(self) -> None:
        """Wait until every node is up and has all of its cores free, and the queue can be asked."""

        def idle() -> object:
            # A lost node's parts, each of which has all that is its own, are remembered for long.
            whole = ("condor_status", "-constraint", 'SlotType =!= "Dynamic"', "-af", "Name", "Cpus", "TotalSlotCpus")
            rows = [line.split() for line in self.admin(*whole, check=False).splitlines()]
            up = {row[0].split("@")[1] for row in rows if row[1] == row[2]}
            return up >= set(self.nodes) and self.admin("condor_status", "-schedd", "-af", "Name", check=False)

        self._until("its nodes and its queue", idle)

    def _until(self, what: str, holds: Callable[[], object], timeout: float = 120.0) -> None:
        deadline = time.monotonic() + timeout
        while not holds():
            if time.monotonic() > deadline:
                raise RuntimeError(f"start {self.name}: {what} did not come up in {timeout:.0f} s; {self._log_tails()}")
            time.sleep(0.1)

    def _own_processes(self) -> Iterator[tuple[int, str]]:
        """This machine's numbers of the site's processes, with their command lines, words parted by spaces."""
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if (process / "root").readlink() == self.root:
                    yield int(process.name), (process / "cmdline").read_text().replace("\0", " ").strip()

    def _log_tails(self) -> str:
        logs = (log for log in sorted(self.root.glob("var/log/**/*")) if log.is_file())
        return "; ".join(f"{log.name}: {log.read_text(errors='replace')[-600:]}" for log in logs)


def _free_address() -> str:
    """An address in 127.0.0.0/8 that nobody listens on."""
    while True:
        address = f"127.{secrets.randbelow(200) + 20}.{secrets.randbelow(256)}.{secrets.randbelow(254) + 1}"
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind((address, PORT))
            return address


def _listens(host: str, port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex((host, port)) == 0
