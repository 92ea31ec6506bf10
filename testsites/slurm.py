"""A real Slurm site: munge, controller, nodes and an SSH front-end, all in one bare root and one set of name spaces.

`SlurmSite` starts it in about two seconds and offers the faults that tests provoke: any daemon killed, stopped,
continued, started again; every SSH session cut. It decides nothing about jobs.

Each site has an address of its own in 127.0.0.0/8, so all of its ports are free and nothing listens beyond loopback; or
a network of its own, for nodes that can be cut off.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import socket
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from testsites import bareroot, sshd, wires
from testsites.site import SHELL, UID, ClusterSite, free_address, need
from testsites.spaces import Spaces

CONTROLLER_PORT = 6817
LIBRARIES = Path("/usr/lib/x86_64-linux-gnu/slurm-wlm")
PACKAGES = "slurm-wlm slurm-client slurm-wlm-basic-plugins munge openssh-server openssh-client util-linux iproute2"

DAEMONS = ("slurmctld", "slurmd", "slurmstepd", "munged")
COMMANDS = ("sbatch", "squeue", "scancel", "scontrol", "sinfo", "sacct")

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


class SlurmSite(ClusterSite):
    """See `ClusterSite`.

    `keeps_ended` and `kill_wait` are Slurm's MinJobAge and KillWait, in seconds; `settings` are more of its slurm.conf.

    `spool_delay`: see `ClusterSite`.

    With `private` each node has a home of its own, empty: nothing of the user's workdir is seen there. Beside the shell
    such a node has bash, which speaks TCP, and sha256sum.

    With `wired` each node has a network of its own (see `testsites.wires`); then there is no `sshd` to be started.
    """

    kind = "slurm"
    _program = Path("/usr/sbin/slurmctld")

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
        settings: Mapping[str, str] = MappingProxyType({}),
        private: bool = False,
        wired: bool = False,
        folder: Path | None = None,
        keep: bool = False,
        namespaces: bool = False,
    ) -> None:
        parts = (nodes, cpus, memory, keeps_ended, kill_wait, spool_delay, dict(settings), private, wired)
        super().__init__(name, folder, keep=keep, namespaces=namespaces, parts=parts)
        self._private = private
        if private:
            self.options = {"control": "tcp"}
        self._spool_delay = spool_delay
        self.nodes = [f"{name}-n{i + 1}" for i in range(nodes)]
        self._wires = wires.Wires(name, self.nodes) if wired else None
        with self._making(), contextlib.ExitStack() as stack:
            listener: socket.socket | None = None
            if wired:
                listener = stack.enter_context(wires.listener(self._known))
                self.address, self._door = listener.getsockname()[0], "doorman"
            else:
                self.address = self._known or free_address(CONTROLLER_PORT)
            if not self._known:
                self._make_root()
                self._configure(cpus, memory, {"keeps_ended": keeps_ended, "kill_wait": kill_wait}, settings)
                self._make_login()
            self._make_spools()
            self._start(listener.fileno() if listener is not None else -1)

    # Faults and administration

    def start(self, daemon: str) -> None:
        """Start `munged`, `slurmctld`, `sshd` or a node (by its name)."""
        if daemon in self.nodes:
            argv = self._on_node(daemon, "/usr/sbin/slurmd", "-D", "-N", daemon)
            if self._private:
                over = 'mount --bind "$1" "$2" && shift 2 && exec "$@"'
                argv = ["/usr/bin/unshare", "--mount", "--propagation", "private",
                        "/bin/sh", "-c", over, "sh", str(self._home_of(daemon)), str(self.home), *argv]  # fmt: skip
            if self._wires is not None:
                argv = self._wires.on_node(daemon, argv)
            self._running.start(daemon, argv)
            return
        argv = {
            "munged": ["/usr/sbin/munged", "--foreground", "--force"],
            "slurmctld": ["/usr/sbin/slurmctld", "-D"],
            "sshd": sshd.ARGV,
        }[daemon]
        argv = ["/usr/sbin/chroot", str(self.root), *argv]
        self._running.start(daemon, self._late_view(argv) if daemon == "sshd" else argv)

    def connect(self, node: str, there: bool) -> None:
        """Pull a wired node's cable, or put it back: nothing but the network is touched."""
        assert self._wires is not None, f"{self.name} has no cables"
        self._wires.connect(self._running, node, there)

    def wait_idle(self) -> None:
        """Wait until every node is idle: up, and no job on it."""
        idle = ("sinfo", "-h", "-t", "idle", "-o", "%D")
        self._until("its nodes", lambda: self.admin(*idle, check=False).strip() == str(len(self.nodes)))

    # How it is made

    def _inside(self, *chroot: str) -> list[str]:
        return self._running.enter(*chroot) if self._wires is not None else super()._inside(*chroot)

    def _host(self, name: str) -> str:
        """The address that a daemon has, for the others."""
        return self._wires.address(name) if self._wires is not None else self.address

    def _home_of(self, node: str) -> Path:
        """What a private node has for the user's home."""
        home = self.root / "var/homes" / node
        if not home.exists():
            home.mkdir(mode=0o700, parents=True)
            os.chown(home, UID, UID)
        return home

    def _make_root(self) -> None:
        programs = [*(Path("/usr/sbin") / name for name in DAEMONS),
                    *(Path("/usr/bin") / name for name in (*COMMANDS, *SHELL, "setsid")), *sshd.PROGRAMS]  # fmt: skip
        if self._private:
            programs += [Path("/bin/bash"), Path("/usr/bin/sha256sum")]
        need(self.name, [*programs, LIBRARIES, *([wires.PROGRAM] if self._wires is not None else [])], PACKAGES)
        # slurmd opens every MPI plugin that it finds, and these need libraries that no package of ours brings.
        plugins = [path for path in LIBRARIES.glob("*.so") if not path.name.startswith("mpi_pmix")]
        # The C library opens this one when a thread ends; without it slurmctld dies before it saved its state.
        plugins.append(Path("/usr/lib/x86_64-linux-gnu/libgcc_s.so.1"))
        bareroot.build(self.root, programs, plugins)
        self.root.chmod(0o755)
        (self.root / "bin/sh").symlink_to("dash")

    def _configure(self, cpus: int, memory: int, times: dict[str, int], settings: Mapping[str, str]) -> None:
        self._make_users("\n".join(f"{self._host(name)} {name}" for name in (self.name, *self.nodes)))
        etc = self.root / "etc"
        (etc / "munge").mkdir(mode=0o700)
        (etc / "munge/munge.key").write_bytes(secrets.token_bytes(128))
        (etc / "munge/munge.key").chmod(0o400)
        for folder in ("run/munge", "var/log/munge", "var/lib/munge", "etc/slurm"):
            (self.root / folder).mkdir(mode=0o755, parents=True)
        usual = CONFIG.format(name=self.name, address=self._host(self.name), port=CONTROLLER_PORT, **times)
        if self._wires is not None:  # slurmd would bind the address of its host's name, which is the front-end's
            settings = {"CommunicationParameters": "NoCtldInAddrAny", **settings}
        lines = [line for line in usual.splitlines(keepends=True) if line.partition("=")[0] not in settings]
        lines += [f"{key}={value}\n" for key, value in settings.items()]
        for i, node in enumerate(self.nodes):
            lines.append(
                f"NodeName={node} NodeHostname={self.name} NodeAddr={self._host(node)} Port={CONTROLLER_PORT + 1 + i} "
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

    def _start(self, listener: int) -> None:
        """`listener`: the descriptor at which a wired site hears SSH."""
        wired = self._wires is not None
        self._spaces = Spaces(self.root, self.name, network=wired, descriptors=[listener] if wired else [])
        if self._wires is not None:
            self._wires.lay(self._running)
        if self._spool_delay:
            self._start_spool(self._spool_delay)
        if self._wires is not None:
            self._running.start("doorman", self._late_view(wires.door(listener, self.root)))
        for daemon in ("munged", "slurmctld", *([] if wired else ["sshd"]), *self.nodes):
            self.start(daemon)
        self.wait_idle()
        self._until_it_listens()
