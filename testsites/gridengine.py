"""A real Grid Engine site: queue master, nodes and an SSH front-end, in one bare root and a network of its own.

`GridEngineSite` starts it in two seconds and offers the faults that tests provoke: any daemon killed, stopped,
continued, started again; a node's cable pulled; every SSH session cut. It decides nothing about jobs.

Every node has a host name, and a network of its own: see `testsites.wires`.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
from pathlib import Path
from types import MappingProxyType

from testsites import bareroot, sshd, wires
from testsites.site import SHELL, ClusterSite, need
from testsites.spaces import Spaces

SGE_ROOT = "/opt/sge"
CELL = f"{SGE_ROOT}/default"
BINARIES = Path("/usr/lib/gridengine")
PACKAGES = "gridengine-master gridengine-exec gridengine-client openssh-server openssh-client util-linux iproute2"

DAEMONS = ("sge_qmaster", "sge_execd", "sge_shepherd", "sge_coshepherd", "spoolinit", "spooldefaults.bin")
COMMANDS = ("qsub", "qstat", "qdel", "qacct", "qconf", "qhost", "qmod", "qalter", "qhold", "qrls")
PLUGINS = ("libspoolc.so",)
LOOK = Path("/usr/bin/ps")
"""A node's daemon looks with it for the shepherds that a former one left; without it, it gives up jobs that run on."""

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


class GridEngineSite(ClusterSite):
    """See `ClusterSite`. `notify` is the queue's: seconds between the signal that warns a job and the end of it."""

    kind = "gridengine"
    _program = BINARIES / "sge_qmaster"
    options = MappingProxyType({"pe": "smp"})
    environment = MappingProxyType({"SGE_ROOT": SGE_ROOT})
    _door = "doorman"
    _logs = ("var/log/*.log", f"{SGE_ROOT.lstrip('/')}/spool/**/messages", "tmp/*messages*")

    def __init__(
        self,
        name: str = "sge-a",
        *,
        nodes: int = 2,
        slots: int = 2,
        notify: int = 60,
        spool_delay: float = 0.0,
        folder: Path | None = None,
        keep: bool = False,
        namespaces: bool = False,
    ) -> None:
        super().__init__(name, folder, keep=keep, namespaces=namespaces, parts=(nodes, slots, notify, spool_delay))
        self._spool_delay = spool_delay
        self.nodes = [f"{name}-n{i + 1}" for i in range(nodes)]
        self._slots, self._notify = slots, notify
        self._wires = wires.Wires(name, self.nodes)
        with self._making(), wires.listener(self._known) as listener:
            self.address = listener.getsockname()[0]
            if not self._known:
                self._make_root()
            self._configure()
            if not self._known:
                self._make_login()
            self._spaces = Spaces(self.root, name, network=True, descriptors=[listener.fileno()])
            self._start(listener.fileno())

    # Faults and administration

    def start(self, daemon: str) -> None:
        """Start `qmaster` or a node's daemon (by the node's name)."""
        settings = ["/usr/bin/env", f"SGE_ROOT={SGE_ROOT}", "SGE_ND=1", f"LD_LIBRARY_PATH={BINARIES}"]
        if daemon == "qmaster":
            argv = ["/usr/sbin/chroot", str(self.root), *settings, f"{BINARIES}/sge_qmaster"]
        else:
            inside = self._on_node(daemon, *settings, f"{BINARIES}/sge_execd")
            named = f'echo {daemon} >/proc/sys/kernel/hostname && exec "$@"'
            argv = self._wires.on_node(daemon, ["/usr/bin/unshare", "--uts", "/bin/sh", "-c", named, "sh", *inside])
        self._running.start(daemon, argv)

    def limit(self, key: str, number: int) -> None:
        """Set a number in the cluster's configuration: max_u_jobs, say, of which 0 is no limit."""
        folder = self.root / SGE_ROOT.lstrip("/") / "setup/limit"
        folder.mkdir(exist_ok=True)
        (folder / "global").write_text(_changed(self.admin("qconf", "-sconf", "global"), {key: str(number)}))
        self.admin("qconf", "-Mconf", f"{SGE_ROOT}/setup/limit/global")

    def connect(self, node: str, there: bool) -> None:
        """Pull a node's cable, or put it back: nothing but the network is touched."""
        self._wires.connect(self._running, node, there)

    def lose_shepherd(self, number: str) -> None:
        """Kill the process that watches over a running job, and nothing else of it."""
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                watches = (folder / "cmdline").read_bytes().split(b"\0")[0] == f"sge_shepherd-{number}".encode()
                if watches and (folder / "root").samefile(self.root):
                    os.kill(int(folder.name), signal.SIGKILL)
                    return
        raise RuntimeError(f"lose the shepherd of {number} at {self.name}: there is none")

    def ready_nodes(self) -> list[str]:
        """The nodes of which the queue master hears."""
        lines = self.admin("qstat", "-f", check=False).splitlines()
        rows = [line.split() for line in lines if line.startswith("batch.q@")]
        return [row[0].partition("@")[2] for row in rows if len(row) == 5]  # a sixth word names what is wrong

    def wait_ready(self) -> None:
        """Wait until the queue master hears of every node."""
        self._until("its nodes", lambda: len(self.ready_nodes()) == len(self.nodes))

    # How it is made

    def _inside(self, *chroot: str) -> list[str]:
        return self._running.enter(*chroot)  # the front-end is a host of a network of its own

    def _make_root(self) -> None:
        programs = [*(BINARIES / name for name in (*DAEMONS, *COMMANDS)), *(Path("/usr/bin") / name for name in SHELL),
                    *sshd.PROGRAMS, LOOK]  # fmt: skip
        need(self.name, [*programs, wires.PROGRAM], PACKAGES)
        plugins = [*(BINARIES / name for name in PLUGINS), Path("/usr/lib/x86_64-linux-gnu/libgcc_s.so.1")]
        bareroot.build(self.root, programs, plugins)
        self.root.chmod(0o755)
        (self.root / "bin/sh").symlink_to("dash")
        for name in COMMANDS:
            (self.root / "usr/bin" / name).symlink_to(BINARIES / name)

    def _configure(self) -> None:
        self._make_users(self._wires.hosts)
        (self.root / "etc/services").write_text("sge_qmaster 6444/tcp\nsge_execd 6445/tcp\n")
        root = self.root / SGE_ROOT.lstrip("/")
        shutil.rmtree(root, ignore_errors=True)  # what the daemons of a kept site remember
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

    def _start(self, listener: int) -> None:
        self._wires.lay(self._running)
        if self._spool_delay:
            self._start_spool(self._spool_delay)
        self._running.start("doorman", self._late_view(wires.door(listener, self.root)))
        tool, setup = "LD_LIBRARY_PATH=" + str(BINARIES), f"{SGE_ROOT}/setup"
        spool = f"{CELL}/common;{SGE_ROOT}/spool/qmaster"
        self.admin("env", tool, f"{BINARIES}/spoolinit", "classic", "libspoolc", spool, "init")
        for what, source in (("configuration", "configuration"), ("complexes", "centry"), ("usersets", "usersets")):
            self.admin("env", tool, f"{BINARIES}/spooldefaults.bin", what, f"{setup}/{source}")
        self.admin("env", tool, f"{BINARIES}/spooldefaults.bin", "managers", "root")
        self.start("qmaster")
        self._until("its queue master", lambda: self.name in self.admin("qconf", "-sss", check=False))
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


def _changed(text: str, values: dict[str, str]) -> str:
    """A configuration of Grid Engine with these values instead of its own."""
    rest = dict(values)
    lines = []
    for line in text.splitlines():
        key = line.split(" ", 1)[0].strip()
        lines.append(f"{key} {rest.pop(key)}" if key in rest else line)
    assert not rest, f"Grid Engine knows no {', '.join(rest)}"
    return "\n".join(lines) + "\n"
