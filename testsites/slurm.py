"""A real Slurm site: munge, controller, nodes and an SSH front-end, all in one bare root and one set of name spaces.

`SlurmSite` starts it in about two seconds and offers the faults that tests provoke: any daemon killed, stopped,
continued, started again; every SSH session cut. It decides nothing about jobs.

Each site has an address of its own in 127.0.0.0/8, so all of its ports are free and nothing listens beyond loopback.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
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
from collections.abc import Iterator
from pathlib import Path, PurePath
from types import TracebackType
from typing import Any, Self

from testsites import bareroot, sshd

USER, UID = "scientist", 20001
CONTROLLER_PORT = 6817
MADE = "made"
"""In a kept site's folder: what it was made of, and its address."""
LIBRARIES = Path("/usr/lib/x86_64-linux-gnu/slurm-wlm")
BOUND = 120.0
"""Seconds that whatever takes a moment may take: on a machine that has much else to do, or stands still for a while."""
PACKAGES = "slurm-wlm slurm-client slurm-wlm-basic-plugins munge openssh-server openssh-client util-linux"

DAEMONS = ("slurmctld", "slurmd", "slurmstepd", "munged")
COMMANDS = ("sbatch", "squeue", "scancel", "scontrol", "sinfo", "sacct")
SHELL = ("dash", "cat", "chmod", "mkdir", "mv", "rm", "ls", "env", "id", "setsid", "sleep", "true")
"""All that a login or a job finds beside Slurm: POSIX's shell and a few of its utilities."""

CONFIG = """\
ClusterName={name}
SlurmctldHost={name}({address})
SlurmctldPort={port}
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
SlurmUser=root
AuthType=auth/munge
CredType=cred/munge
SlurmctldPidFile=/run/slurmctld.pid
SlurmdPidFile=/run/%n.pid
SlurmdSpoolDir=/var/spool/%n
StateSaveLocation=/var/spool/slurmctld
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
JobAcctGatherType=jobacct_gather/none
JobCompType=jobcomp/none
AccountingStorageType=accounting_storage/none
SwitchType=switch/none
MpiDefault=none
MailProg=/bin/true
ReturnToService=2
SlurmdParameters=config_overrides
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=0,bf_interval=2
KillWait={kill_wait}
SlurmdTimeout=10
SlurmctldTimeout=10
MessageTimeout=6
MinJobAge={keeps_ended}
JobRequeue=1
DefMemPerCPU=64
"""


class SlurmSite:
    """One running site; a context manager. `folder` is made, and removed at the end; it must not exist yet.

    With `keep` the folder stays, and a later site made of the same parts goes on with what it holds: address, keys, and
    the user's home. Slurm itself starts afresh, as after a reinstallation.

    `keeps_ended` and `kill_wait` are Slurm's MinJobAge and KillWait, in seconds.

    With `spool_delay` the front-end, and it alone, sees the user's `~/.ghv` as through a network file system: what the
    nodes write there shows up to so many seconds late, and out of order (see `testsites.latespool`).

    Raises:
        PermissionError: not root.
        FileExistsError: the folder is there, and is not one to go on with.
        RuntimeError: packages are missing, a daemon did not come up (the message holds its log's end), or the kept site
            is running already.
    """

    def __init__(
        self,
        name: str = "slurm-a",
        *,
        nodes: int = 2,
        cpus: int = 2,
        memory: int = 4000,
        keeps_ended: int = 300,
        kill_wait: int = 30,
        spool_delay: float = 0.0,
        folder: Path | None = None,
        keep: bool = False,
    ) -> None:
        if os.geteuid() != 0:
            raise PermissionError("start a Slurm test site: it mounts and starts jobs as other users; run it as root")
        self.name, self.keep, self._spool_delay = name, keep, spool_delay
        self._lock = -1
        made_of = _digest(name, nodes, cpus, memory, keeps_ended, kill_wait, spool_delay)
        known = ""  # address of the site that is in the folder already
        if folder is not None and keep:
            known = self._take_up(folder, made_of)
        elif folder is not None:
            folder.mkdir(mode=0o755, parents=True)
        self.folder = folder or Path(tempfile.mkdtemp(prefix=f"ghv-{name}-"))
        self.folder.chmod(0o755)
        self.root = self.folder / "root"
        self.address = known or _free_address()
        self.nodes = [f"{name}-n{i + 1}" for i in range(nodes)]
        self.home = self.root / "home" / USER
        """The user's home as this machine sees it; at the site it is /home/USER."""
        self._keeper: subprocess.Popen[str] | None = None
        self._spool = 0  # the process that shows the front-end its workdir late
        self._hold = self.root / "var/hold"  # while it is there, that process shows nothing new
        try:
            if not known:
                self._make_root()
                self._configure(cpus, memory, {"keeps_ended": keeps_ended, "kill_wait": kill_wait})
                self._make_login()
            self._make_spools()
            self.login = sshd.login(self.folder / "client", self.address, USER)
            self._start()
            if keep:
                (self.folder / MADE).write_text(f"{made_of} {self.address}\n")
        except BaseException:
            (self.folder / MADE).unlink(missing_ok=True)  # the next one begins anew
            self.stop()
            raise

    # Faults and administration

    def start(self, daemon: str) -> None:
        """Start `munged`, `slurmctld`, `sshd` or a node (by its name)."""
        argv = {
            "munged": ["/usr/sbin/munged", "--foreground", "--force"],
            "slurmctld": ["/usr/sbin/slurmctld", "-D"],
            "sshd": sshd.ARGV,
        }.get(daemon, ["/usr/sbin/slurmd", "-D", "-N", daemon])
        argv = ["/usr/sbin/chroot", str(self.root), *argv]
        if daemon == "sshd" and self._spool:
            argv = ["/usr/bin/nsenter", f"--mount={self.root}/proc/{self._spool}/ns/mnt", *argv]
        self._ask({"start": daemon, "argv": argv})

    def signal(self, daemon: str, number: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal to a daemon: KILL it, or STOP it for a while and CONT it."""
        self._ask({"signal": daemon, "number": int(number)})

    def cut_ssh(self) -> int:
        """Kill every open SSH session, as a broken network would; how many processes that were."""
        return len(self._ask({"cut": "sshd"})["killed"])

    def alive(self, daemon: str) -> bool:
        return bool(self._ask({"alive": daemon})["alive"])

    def processes(self) -> list[str]:
        """The command names of everything that runs at the site: daemons, logins, jobs."""
        return list(self._ask({"list": True})["commands"])

    def admin(self, *argv: str, as_user: bool = False, check: bool = True) -> str:
        """What a command prints, run inside the site as root (or as its ordinary user)."""
        who = ["--userspec", f"{UID}:{UID}"] if as_user else []
        result = subprocess.run(
            ["/usr/sbin/chroot", *who, self.root, *argv], capture_output=True, text=True, check=False, timeout=BOUND
        )
        if check and result.returncode != 0:
            raise RuntimeError(f"{' '.join(argv)} at {self.name}: {result.stderr.strip() or result.returncode}")
        return result.stdout

    def late(self, pattern: str) -> list[float]:
        """Of every file that the front-end saw late so far, where the end of its path matches the pattern: how many
        seconds after its last change."""
        rows = (line.partition(" ") for line in (self.root / "var/log/latespool.log").read_text().splitlines())
        return [float(seconds) for seconds, _, path in rows if PurePath(path).match(pattern)]

    @contextlib.contextmanager
    def unseen(self) -> Iterator[None]:
        """While this lasts the front-end sees nothing new of what the nodes write, however long it is there."""
        self._hold.touch()
        try:
            yield
        finally:
            self._hold.unlink()

    def wait_idle(self, timeout: float = BOUND) -> None:
        """Wait until every node is idle: up, and no job on it."""
        deadline = time.monotonic() + timeout
        while self.admin("sinfo", "-h", "-t", "idle", "-o", "%D", check=False).strip() != str(len(self.nodes)):
            if time.monotonic() > deadline:
                raise RuntimeError(f"start {self.name}: nodes not idle after {timeout:.0f} s; {self._log_tails()}")
            time.sleep(0.05)

    def stop(self) -> None:
        """End every process of the site and remove its folder, unless it is kept."""
        if self._keeper is not None:
            assert self._keeper.stdin and self._keeper.stdout
            self._keeper.stdin.close()
            self._keeper.stdout.close()
            self._keeper.wait(timeout=BOUND)
            self._keeper = None
        if not self.keep:
            shutil.rmtree(self.folder)
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def describe(self) -> dict[str, Any]:
        """What a client must know, ready for JSON."""
        return {
            "name": self.name, "host": self.login.host, "port": self.login.port, "user": self.login.user,
            "key": str(self.login.key), "known_hosts": str(self.login.known_hosts),
            "workdir": f"/home/{USER}/.ghv", "root": str(self.root), "nodes": self.nodes,
        }  # fmt: skip

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    # How it is made

    def _take_up(self, folder: Path, made_of: str) -> str:
        """Lock a kept folder and give the address of the site in it; empty it if it was made of other parts."""
        folder.mkdir(mode=0o755, parents=True, exist_ok=True)
        self._lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            raise RuntimeError(f"start {self.name}: it runs already, in {folder}") from None
        with contextlib.suppress(FileNotFoundError, ValueError):
            digest, address = (folder / MADE).read_text().split()
            if digest == made_of:
                return address
        if {path.name for path in folder.iterdir()} - {"lock", "root", "client", MADE}:
            raise FileExistsError(errno.EEXIST, "not a test site's folder", str(folder))
        for part in (folder / "root", folder / "client"):
            shutil.rmtree(part, ignore_errors=True)
        return ""

    def _make_root(self) -> None:
        programs = [*(Path("/usr/sbin") / name for name in DAEMONS),
                    *(Path("/usr/bin") / name for name in (*COMMANDS, *SHELL)), *sshd.PROGRAMS]  # fmt: skip
        missing = [str(path) for path in (*programs, LIBRARIES) if not path.exists()]
        if missing:
            raise RuntimeError(
                f"start {self.name}: {', '.join(missing)} not found; install them: apt-get install {PACKAGES}"
            )
        # slurmd opens every MPI plugin that it finds, and these need libraries that no package of ours brings.
        plugins = [path for path in LIBRARIES.glob("*.so") if not path.name.startswith("mpi_pmix")]
        # The C library opens this one when a thread ends; without it slurmctld dies before it saved its state.
        plugins.append(Path("/usr/lib/x86_64-linux-gnu/libgcc_s.so.1"))
        bareroot.build(self.root, programs, plugins)
        self.root.chmod(0o755)
        (self.root / "bin/sh").symlink_to("dash")

    def _configure(self, cpus: int, memory: int, times: dict[str, int]) -> None:
        etc = self.root / "etc"
        (etc / "passwd").write_text(
            "root:x:0:0:root:/root:/bin/sh\n"
            "sshd:x:100:65534::/run/sshd:/usr/sbin/nologin\n"
            f"{USER}:x:{UID}:{UID}:An ordinary user:/home/{USER}:/bin/sh\n"
        )
        # '*' forbids passwords; an empty or '!' field would be an open or a locked account, which sshd turns away.
        (etc / "shadow").write_text(f"root:*:19000::::::\n{USER}:*:19000::::::\n")
        (etc / "shadow").chmod(0o600)
        (etc / "group").write_text(f"root:x:0:\nnogroup:x:65534:\n{USER}:x:{UID}:\n")
        (etc / "hosts").write_text(f"127.0.0.1 localhost\n{self.address} {self.name}\n")
        (etc / "nsswitch.conf").write_text("passwd: files\ngroup: files\nshadow: files\nhosts: files\n")
        (etc / "munge").mkdir(mode=0o700)
        (etc / "munge/munge.key").write_bytes(secrets.token_bytes(128))
        (etc / "munge/munge.key").chmod(0o400)
        for folder in ("run/munge", "var/log/munge", "var/lib/munge", "etc/slurm"):
            (self.root / folder).mkdir(mode=0o755, parents=True)
        lines = [CONFIG.format(name=self.name, address=self.address, port=CONTROLLER_PORT, **times)]
        for i, node in enumerate(self.nodes):
            lines.append(
                f"NodeName={node} NodeHostname={self.name} NodeAddr={self.address} Port={CONTROLLER_PORT + 1 + i} "
                f"CPUs={cpus} RealMemory={memory} State=UNKNOWN\n"
            )
        lines.append("PartitionName=batch Nodes=ALL Default=YES MaxTime=1-0 DefaultTime=10 State=UP\n")
        lines.append("PartitionName=short Nodes=ALL MaxTime=5 State=UP\n")
        (etc / "slurm/slurm.conf").write_text("".join(lines))

    def _make_spools(self) -> None:
        """Empty folders for what the daemons remember."""
        shutil.rmtree(self.root / "var/spool", ignore_errors=True)
        for name in ("slurmctld", *self.nodes):
            (self.root / "var/spool" / name).mkdir(mode=0o755, parents=True)

    def _make_login(self) -> None:
        self.home.mkdir(mode=0o700)
        os.chown(self.home, UID, UID)
        client = self.folder / "client"
        client.mkdir(mode=0o700)
        sshd.prepare(self.root, client, self.address, USER, UID)
        if invoker := os.environ.get("SUDO_UID"):  # the key is for whoever asked, not for root
            for path in (client, *client.iterdir()):
                os.chown(path, int(invoker), pwd.getpwuid(int(invoker)).pw_gid)

    def _start(self) -> None:
        self._keeper = subprocess.Popen(
            ["unshare", "--mount", "--pid", "--uts", "--fork", "--kill-child", "--propagation", "private",
             sys.executable, "-I", Path(__file__).with_name("keeper.py"), self.root, self.name],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip
        self._answer()
        if self._spool_delay:
            self._spool = self._start_spool()
        for daemon in ("munged", "slurmctld", "sshd", *self.nodes):
            self.start(daemon)
        self.wait_idle()
        deadline = time.monotonic() + BOUND
        while not _listens(self.login.host, self.login.port):
            if time.monotonic() > deadline:
                raise RuntimeError(f"start {self.name}: its sshd does not answer; {self._log_tails()}")
            time.sleep(0.02)

    def _start_spool(self) -> int:
        """Mount the late view of the user's workdir; the process in whose mount name space it is."""
        workdir, log = self.home / ".ghv", self.root / "var/log/latespool.log"
        workdir.mkdir(mode=0o700, exist_ok=True)
        os.chown(workdir, UID, UID)
        log.unlink(missing_ok=True)
        argv = ["/usr/bin/unshare", "--mount", "--propagation", "private",
                "/usr/bin/env", f"PYTHONPATH={Path(__file__).parents[1]}",
                sys.executable, "-m", "testsites.latespool", str(workdir), str(self._spool_delay),
                str(self._hold)]  # fmt: skip
        pid = int(self._ask({"start": "latespool", "argv": argv})["pid"])
        deadline = time.monotonic() + BOUND
        while "mounted" not in log.read_text():
            if time.monotonic() > deadline or not self.alive("latespool"):
                raise RuntimeError(f"start {self.name}: no late view of {workdir}; {self._log_tails()}")
            time.sleep(0.02)
        return pid

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self._keeper and self._keeper.stdin
        self._keeper.stdin.write(json.dumps(request) + "\n")
        self._keeper.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._keeper and self._keeper.stdout
        line = self._keeper.stdout.readline()
        if not line:
            raise RuntimeError(f"start {self.name}: unshare failed; is this a container without name spaces?")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise RuntimeError(f"{self.name}: {answer['error']}")
        return answer

    def _log_tails(self) -> str:
        tails = [f"{log.name}: {log.read_text(errors='replace')[-600:]}" for log in self.root.glob("var/log/*.log")]
        return "; ".join(tails)


def _digest(*parameters: object) -> str:
    """What a kept site was made of: these parameters, the code here, and this machine's Slurm."""
    state = hashlib.sha256(repr(parameters).encode())
    for path in sorted(Path(__file__).parent.glob("*.py")):
        state.update(path.read_bytes())
    slurm = Path("/usr/sbin/slurmctld")
    state.update(repr(slurm.stat().st_mtime_ns if slurm.exists() else None).encode())
    return state.hexdigest()


def _free_address() -> str:
    """An address in 127.0.0.0/8 that nobody listens on."""
    while True:
        address = f"127.{secrets.randbelow(200) + 20}.{secrets.randbelow(256)}.{secrets.randbelow(254) + 1}"
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind((address, CONTROLLER_PORT))
            return address


def _listens(host: str, port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex((host, port)) == 0
