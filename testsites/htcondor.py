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
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

from testsites import otherdebian, sshd
from testsites.site import SHELL, UID, ClusterSite, free_address
from testsites.spaces import Spaces

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
    *(Path("/usr/bin") / name for name in SHELL),
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


class HTCondorSite(ClusterSite):
    """See `ClusterSite`.

    `vacate`: seconds between TERM and KILL that its nodes give a job; `policy_interval`: seconds between two looks at
    the jobs' own policies.
    """

    kind = "htcondor"
    _logs = ("var/log/**/*",)

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
        keep: bool = False,
        namespaces: bool = False,
    ) -> None:
        parts = (nodes, cpus, memory, vacate, policy_interval)
        super().__init__(name, folder, keep=keep, namespaces=namespaces, parts=parts)
        self.nodes = [f"n{i}" for i in range(1, nodes + 1)]
        self.address = self._known or free_address(PORT)
        with self._making():
            if not self._known:
                shutil.copytree(otherdebian.made(SUITE, PACKAGES, PROGRAMS, PLUGINS), self.root, symlinks=True)
                self._configure(CONFIG.format(name=name, address=self.address, port=PORT, cpus=cpus, memory=memory,
                                              vacate=vacate, policy_interval=policy_interval))  # fmt: skip
                self._make_login()
            self._make_spools()
            self._start()

    # Faults and administration

    def start(self, daemon: str) -> None:
        """Start one of DAEMONS, `sshd` or a node (by its name)."""
        if daemon in self.nodes:
            # Its starters, which have local names of their own, must find their node's procd and no other.
            argv = self._on_node(daemon, "/usr/bin/env", f"_CONDOR_PROCD_ADDRESS=/run/condor/procd.{daemon}",
                                 "/usr/sbin/condor_startd", "-f", "-local-name", daemon)  # fmt: skip
        else:
            port = ["-p", str(PORT)] if daemon == "collector" else []
            argv = sshd.ARGV if daemon == "sshd" else [f"/usr/sbin/condor_{daemon}", "-f", *port]
            argv = ["/usr/sbin/chroot", str(self.root), *argv]
        self._running.start(daemon, argv)

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

    def as_colleague(self, *argv: str, stdin: str = "") -> str:
        """What a command of another user's prints."""
        return self._run(COLLEAGUE, argv, stdin=stdin)

    # How it is made

    def _configure(self, config: str) -> None:
        hosts = "\n".join(f"{self.address} {host}" for host in (self.name, *self.nodes))
        self._make_users(hosts, others=f"colleague:x:{COLLEAGUE}:{COLLEAGUE}:Another one:/:/bin/sh\n")
        etc = self.root / "etc"
        (etc / "condor").mkdir()
        (etc / "condor/condor_config").write_text(config + "".join(NODE.format(node=node) for node in self.nodes))
        (self.root / "bin/sh").symlink_to("dash")

    def _make_spools(self) -> None:
        """Empty folders for what the daemons remember."""
        for folder in ("run/condor", "run/lock", "var/log/condor", "var/spool/condor", "var/lib/condor"):
            shutil.rmtree(self.root / folder, ignore_errors=True)
            (self.root / folder).mkdir(mode=0o755, parents=True)
        for folder in ("execute", *(f"exec-{node}" for node in self.nodes)):
            (self.root / "var/lib/condor" / folder).mkdir(mode=0o755)

    def _start(self) -> None:
        self._spaces = Spaces(self.root, self.name)
        for daemon in ("sshd", *DAEMONS, *self.nodes):
            self.start(daemon)
        self.wait_idle()
        self._until_it_listens()

    def wait_idle(self) -> None:
        """Wait until every node is up and has all of its cores free, and the queue can be asked."""

        def idle() -> object:
            # A lost node's parts, each of which has all that is its own, are remembered for long.
            whole = ("condor_status", "-constraint", 'SlotType =!= "Dynamic"', "-af", "Name", "Cpus", "TotalSlotCpus")
            rows = [line.split() for line in self.admin(*whole, check=False).splitlines()]
            up = {row[0].split("@")[1] for row in rows if row[1] == row[2]}
            return up >= set(self.nodes) and self.admin("condor_status", "-schedd", "-af", "Name", check=False)

        self._until("its nodes and its queue", idle)

    def _own_processes(self) -> Iterator[tuple[int, str]]:
        """This machine's numbers of the site's processes, with their command lines, words parted by spaces."""
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if (process / "root").samefile(self.root):
                    yield int(process.name), (process / "cmdline").read_text().replace("\0", " ").strip()
