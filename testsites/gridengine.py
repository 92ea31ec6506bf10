"""A real Grid Engine site: queue master, nodes and an SSH front-end, in one bare root and a network of its own.

`GridEngineSite` starts it in two seconds and offers the faults that tests provoke: any daemon killed, stopped,
continued, started again; a node's cable pulled; every SSH session cut. It decides nothing about jobs.

Every node is a network name space with a host name, on one bridge with the front-end, all of them private to the site.
The one thing outside is the socket on a loopback address that SSH clients connect to.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from testsites import bareroot, sshd
from testsites.spaces import Spaces

USER, UID = "scientist", 20001
SGE_ROOT = "/opt/sge"
CELL = f"{SGE_ROOT}/default"
BINARIES = Path("/usr/lib/gridengine")
PACKAGES = "gridengine-master gridengine-exec gridengine-client openssh-server openssh-client util-linux iproute2"

DAEMONS = ("sge_qmaster", "sge_execd", "sge_shepherd", "sge_coshepherd", "spoolinit", "spooldefaults.bin")
COMMANDS = ("qsub", "qstat", "qdel", "qacct", "qconf", "qhost", "qmod", "qalter", "qhold", "qrls")
PLUGINS = ("libspoolc.so",)
SHELL = ("dash", "cat", "chmod", "env", "id", "ls", "mkdir", "mv", "ps", "rm", "sleep", "true")
"""All that a login or a job finds beside Grid Engine: POSIX's shell and a few of its utilities. A node's daemon looks
with `ps` for the shepherds that a former one left; without it, it gives up jobs that run on."""

BOOTSTRAP = f"""\
admin_user              root
default_domain          none
ignore_fqdn             true
spooling_method         classic
spooling_lib            libspoolc
spooling_params         {CELL}/common;{SGE_ROOT}/spool/qmaster
binary_path             {BINARIES}
qmaster_spool_dir       {SGE_ROOT}/spool/qmaster
security_mode           none
listener_threads        2
worker_threads          2
scheduler_threads       1
"""

CLUSTER = {
    "execd_spool_dir": f"{SGE_ROOT}/spool/execd",
    "mailer": "none",
    "administrator_mail": "none",
    "min_uid": "0",
    "min_gid": "0",
    "load_report_time": "00:00:02",
    "max_unheard": "00:00:10",
    "execd_params": "ENABLE_ADDGRP_KILL=true PTF_MIN_PRIORITY=0",
    "reporting_params": "accounting=true reporting=false flush_time=00:00:01 accounting_flush_time=00:00:00 "
    "joblog=false sharelog=00:00:00",
}
"""What differs from Debian's default configuration: faster clocks, and no user or group beyond root."""

QUEUE = {
    "qname": "batch.q",
    "load_thresholds": "NONE",
    "shell": "/bin/sh",
    "rerun": "TRUE",
    "min_cpu_interval": "00:00:02",
    "pe_list": "smp",
    "h_rt": "24:00:00",
}
SCHEDULER = {
    "schedule_interval": "0:0:1",
    "flush_submit_sec": "1",
    "flush_finish_sec": "1",
    "job_load_adjustments": "NONE",
    "schedd_job_info": "true",
}
PE = """\
pe_name            smp
slots              9999
user_lists         NONE
xuser_lists        NONE
start_proc_args    NONE
stop_proc_args     NONE
allocation_rule    $pe_slots
control_slaves     FALSE
job_is_first_task  TRUE
urgency_slots      min
accounting_summary TRUE
qsort_args         NONE
"""
HOST = """\
hostname              {node}
load_scaling          NONE
complex_values        NONE
user_lists            NONE
xuser_lists           NONE
projects              NONE
xprojects             NONE
usage_scaling         NONE
report_variables      NONE
"""
BASES = ("passwd", "group", "shadow", "hosts", "services")
NETWORK = "10.9.0"
DOORMAN = Path(__file__).with_name("doorman.py")


class GridEngineSite:
    """One running site; a context manager. `folder` is made, and removed at the end; it must not exist yet.

    `notify` is the queue's: seconds between the signal that warns a job and the one that kills it.

    Raises:
        PermissionError: not root.
        FileExistsError: the folder is there.
        RuntimeError: packages are missing, or a daemon did not come up (the message holds its log's end).
    """

    def __init__(
        self, name: str = "sge-a", *, nodes: int = 2, slots: int = 2, notify: int = 60, folder: Path | None = None
    ) -> None:
        if os.geteuid() != 0:
            raise PermissionError("start a Grid Engine test site: it mounts and starts jobs as others; run it as root")
        if folder is not None:
            folder.mkdir(mode=0o755, parents=True)
        self.name = name
        self.folder = folder or Path(tempfile.mkdtemp(prefix=f"ghv-{name}-"))
        self.folder.chmod(0o755)
        self.root = self.folder / "root"
        self.nodes = [f"{name}-n{i + 1}" for i in range(nodes)]
        self.home = self.root / "home" / USER
        """The user's home as this machine sees it; at the site it is /home/USER."""
        self.environment = {"SGE_ROOT": SGE_ROOT}
        """What the site's settings.sh gives to a login, but not to a command over SSH."""
        self._slots, self._notify = slots, notify
        self._spaces: Spaces | None = None
        try:
            listener = _listener()
            with listener:
                address = listener.getsockname()[0]
                self._make_root()
                self._configure()
                self._make_login(address)
                self._spaces = Spaces(self.root, name, network=True, descriptors=[listener.fileno()])
                self._start(listener.fileno())
            self.login = sshd.login(self.folder / "client", address, USER)
        except BaseException:
            self.stop()
            raise

    # Faults and administration

    def start(self, daemon: str) -> None:
        """Start `qmaster` or a node's daemon (by the node's name)."""
        inside = ["/usr/sbin/chroot", str(self.root), "/usr/bin/env", f"SGE_ROOT={SGE_ROOT}", "SGE_ND=1",
                  f"LD_LIBRARY_PATH={BINARIES}"]  # fmt: skip
        if daemon == "qmaster":
            argv = [*inside, f"{BINARIES}/sge_qmaster"]
        else:
            named = f'echo {daemon} >/proc/sys/kernel/hostname && exec "$@"'
            argv = ["/usr/bin/nsenter", f"--net=/run/netns/{daemon}", "/usr/bin/unshare", "--uts",
                    "/bin/sh", "-c", named, "sh", *inside, f"{BINARIES}/sge_execd"]  # fmt: skip
        self._site.start(daemon, argv)

    def signal(self, daemon: str, number: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal to a daemon: KILL it, or STOP it for a while and CONT it."""
        self._site.signal(daemon, number)

    def connect(self, node: str, there: bool) -> None:
        """Pull a node's cable, or put it back: nothing but the network is touched."""
        self._site.run("ip", "link", "set", node, "up" if there else "down")

    def lose_shepherd(self, number: str) -> None:
        """Kill the process that watches over a running job, and nothing else of it."""
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                watches = (folder / "cmdline").read_bytes().split(b"\0")[0] == f"sge_shepherd-{number}".encode()
                if watches and (folder / "root").readlink() == self.root:
                    os.kill(int(folder.name), signal.SIGKILL)
                    return
        raise RuntimeError(f"lose the shepherd of {number} at {self.name}: there is none")

    def cut_ssh(self) -> int:
        """Kill every open SSH session, as a broken network would; how many processes that were."""
        return self._site.cut("doorman")

    def alive(self, daemon: str) -> bool:
        return self._site.alive(daemon)

    def processes(self) -> list[str]:
        """The command names of everything that runs at the site: daemons, logins, jobs."""
        return self._site.processes()

    def admin(self, *argv: str, as_user: bool = False, check: bool = True, stdin: str = "") -> str:
        """What a command prints, run at the front-end as root (or as the ordinary user)."""
        who = [f"--userspec={UID}:{UID}"] if as_user else []
        settings = ("/usr/bin/env", f"SGE_ROOT={SGE_ROOT}", f"HOME=/home/{USER}" if as_user else "HOME=/root")
        result = subprocess.run(
            self._site.enter(*who, str(self.root), *settings, *argv), input=stdin, capture_output=True, text=True,
            check=False, timeout=120,
        )  # fmt: skip
        if check and result.returncode != 0:
            words = result.stderr.strip() or result.stdout.strip() or result.returncode
            raise RuntimeError(f"{' '.join(argv)} at {self.name}: {words}")
        return result.stdout

    def ready_nodes(self) -> list[str]:
        """The nodes of which the queue master hears."""
        lines = self.admin("qstat", "-f", check=False).splitlines()
        rows = [line.split() for line in lines if line.startswith("batch.q@")]
        return [row[0].partition("@")[2] for row in rows if len(row) == 5]  # a sixth word names what is wrong

    def wait_ready(self, timeout: float = 120.0) -> None:
        """Wait until the queue master hears of every node."""
        deadline = time.monotonic() + timeout
        while len(self.ready_nodes()) != len(self.nodes):
            if time.monotonic() > deadline:
                raise RuntimeError(f"start {self.name}: nodes missing after {timeout:.0f} s; {self._log_tails()}")
            time.sleep(0.05)

    def stop(self) -> None:
        """End every process of the site and remove its folder."""
        if self._spaces is not None:
            self._spaces.stop()
            self._spaces = None
        shutil.rmtree(self.folder)

    def describe(self) -> dict[str, Any]:
        """What a client must know, ready for JSON."""
        return {
            "name": self.name, "host": self.login.host, "port": self.login.port, "user": self.login.user,
            "key": str(self.login.key), "known_hosts": str(self.login.known_hosts),
            "workdir": f"/home/{USER}/.ghv", "root": str(self.root), "nodes": self.nodes,
            "environment": self.environment,
        }  # fmt: skip

    def __enter__(self) -> GridEngineSite:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    # How it is made

    @property
    def _site(self) -> Spaces:
        assert self._spaces is not None, f"{self.name} is not running"
        return self._spaces

    def _make_root(self) -> None:
        programs = [*(BINARIES / name for name in (*DAEMONS, *COMMANDS)), *(Path("/usr/bin") / name for name in SHELL),
                    *sshd.PROGRAMS]  # fmt: skip
        missing = [str(path) for path in (*programs, Path("/usr/sbin/ip")) if not path.exists()]
        if missing:
            raise RuntimeError(
                f"start {self.name}: {', '.join(missing)} not found; install them: apt-get install {PACKAGES}"
            )
        plugins = [*(BINARIES / name for name in PLUGINS), Path("/usr/lib/x86_64-linux-gnu/libgcc_s.so.1")]
        bareroot.build(self.root, programs, plugins)
        self.root.chmod(0o755)
        (self.root / "bin/sh").symlink_to("dash")
        for name in COMMANDS:
            (self.root / "usr/bin" / name).symlink_to(BINARIES / name)

    def _configure(self) -> None:
        etc, root = self.root / "etc", self.root / SGE_ROOT.lstrip("/")
        (etc / "passwd").write_text(
            "root:x:0:0:root:/root:/bin/sh\n"
            "sshd:x:100:65534::/run/sshd:/usr/sbin/nologin\n"
            f"{USER}:x:{UID}:{UID}:An ordinary user:/home/{USER}:/bin/sh\n"
        )
        # '*' forbids passwords; an empty or '!' field would be an open or a locked account, which sshd turns away.
        (etc / "shadow").write_text(f"root:*:19000::::::\n{USER}:*:19000::::::\n")
        (etc / "shadow").chmod(0o600)
        (etc / "group").write_text(f"root:x:0:\nnogroup:x:65534:\n{USER}:x:{UID}:\n")
        (etc / "nsswitch.conf").write_text("".join(f"{base}: files\n" for base in BASES))
        (etc / "services").write_text("sge_qmaster 6444/tcp\nsge_execd 6445/tcp\n")
        hosts = [f"127.0.0.1 localhost\n{NETWORK}.1 {self.name}\n"]
        hosts += [f"{NETWORK}.{i + 2} {node}\n" for i, node in enumerate(self.nodes)]
        (etc / "hosts").write_text("".join(hosts))
        for folder in ("default/common", "spool/qmaster/job_scripts", "spool/execd", "bin", "utilbin", "setup"):
            (root / folder).mkdir(mode=0o755, parents=True)
        for folder in ("bin", "utilbin"):
            (root / folder / "lx-amd64").symlink_to(BINARIES)
        common = root / "default/common"
        (common / "bootstrap").write_text(BOOTSTRAP)
        (common / "act_qmaster").write_text(f"{self.name}\n")
        (common / "cluster_name").write_text(f"{self.name}\n")
        share = Path("/usr/share/gridengine")
        (root / "setup/configuration").write_text(_changed((share / "default-configuration").read_text(), CLUSTER))
        (root / "setup/pe").write_text(PE)
        for part in ("centry", "usersets"):
            shutil.copytree(share / "util/resources" / part, root / "setup" / part)
        for node in self.nodes:
            (root / "setup" / node).write_text(HOST.format(node=node))
        # Daemons find the processes of a job by its group in all of /proc, which the nodes have in common here.
        (root / "setup/local").mkdir()
        for i, node in enumerate(self.nodes):
            (root / "setup/local" / node).write_text(f"gid_range {50000 + 100 * i}-{50099 + 100 * i}\n")

    def _make_login(self, address: str) -> None:
        self.home.mkdir(mode=0o700)
        os.chown(self.home, UID, UID)
        client = self.folder / "client"
        client.mkdir(mode=0o700)
        sshd.prepare(self.root, client, address, USER, UID)

    def _start(self, listener: int) -> None:
        # The named name spaces are mounts, which are as private as everything else once /run is.
        wires = ["mount -t tmpfs none /run", "ip link add wires type bridge", f"ip addr add {NETWORK}.1/24 dev wires",
                 "ip link set wires up"]  # fmt: skip
        for i, node in enumerate(self.nodes):
            wires += [f"ip netns add {node}", f"ip link add {node} type veth peer name eth0 netns {node}",
                      f"ip link set {node} master wires up", f"ip -n {node} addr add {NETWORK}.{i + 2}/24 dev eth0",
                      f"ip -n {node} link set eth0 up", f"ip -n {node} link set lo up"]  # fmt: skip
        self._site.run("sh", "-e", "-c", "\n".join(wires))
        self._site.start("doorman", [sys.executable, "-I", str(DOORMAN), str(listener), str(self.root)])
        tool, setup = "LD_LIBRARY_PATH=" + str(BINARIES), f"{SGE_ROOT}/setup"
        spool = f"{CELL}/common;{SGE_ROOT}/spool/qmaster"
        self.admin("env", tool, f"{BINARIES}/spoolinit", "classic", "libspoolc", spool, "init")
        for what, source in (("configuration", "configuration"), ("complexes", "centry"), ("usersets", "usersets")):
            self.admin("env", tool, f"{BINARIES}/spooldefaults.bin", what, f"{setup}/{source}")
        self.admin("env", tool, f"{BINARIES}/spooldefaults.bin", "managers", "root")
        self.start("qmaster")
        deadline = time.monotonic() + 120
        while self.name not in self.admin("qconf", "-sss", check=False):
            if time.monotonic() > deadline:
                raise RuntimeError(f"start {self.name}: its queue master does not answer; {self._log_tails()}")
            time.sleep(0.05)
        self.admin("qconf", "-as", self.name)
        for node in self.nodes:
            self.admin("qconf", "-ah", node)
            self.admin("qconf", "-Ae", f"{setup}/{node}")
            self.admin("qconf", "-Aconf", f"{setup}/local/{node}")
        self.admin("qconf", "-Ap", f"{setup}/pe")
        queue = {"hostlist": " ".join(self.nodes), "slots": str(self._slots), "notify": f"00:00:{self._notify:02}",
                 "processors": "UNDEFINED"}  # fmt: skip
        self._add("-sq", "-Aq", {**QUEUE, **queue})
        self._add("-ssconf", "-Msconf", SCHEDULER)
        for node in self.nodes:
            self.start(node)
        self.wait_ready()

    def _add(self, show: str, add: str, values: dict[str, str]) -> None:
        """Change what the queue master proposes, and hand it back."""
        file = self.root / SGE_ROOT.lstrip("/") / "setup/proposal"
        file.write_text(_changed(self.admin("qconf", show), values))
        self.admin("qconf", add, f"{SGE_ROOT}/setup/proposal")

    def _log_tails(self) -> str:
        logs = [*self.root.glob("var/log/*.log"), *self.root.glob(f"{SGE_ROOT.lstrip('/')}/spool/**/messages"),
                *self.root.glob("tmp/*messages*")]  # fmt: skip
        return "; ".join(f"{log.name}: {log.read_text(errors='replace')[-600:]}" for log in logs)


def _changed(text: str, values: dict[str, str]) -> str:
    """A configuration of Grid Engine with these values instead of its own."""
    rest = dict(values)
    lines = []
    for line in text.splitlines():
        key = line.split(" ", 1)[0].strip()
        lines.append(f"{key} {rest.pop(key)}" if key in rest else line)
    assert not rest, f"Grid Engine knows no {', '.join(rest)}"
    return "\n".join(lines) + "\n"


def _listener() -> socket.socket:
    """A listening socket on an address in 127.0.0.0/8 that is nobody else's."""
    while True:
        address = f"127.{secrets.randbelow(200) + 20}.{secrets.randbelow(256)}.{secrets.randbelow(254) + 1}"
        listener = socket.socket()
        with contextlib.suppress(OSError):
            listener.bind((address, sshd.PORT))
            listener.listen(100)
            return listener
        listener.close()
