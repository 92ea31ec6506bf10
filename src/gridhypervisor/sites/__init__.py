"""One module per kind of site, and the ways to reach one.

A driver turns requests into command text and printed text into records; it runs nothing. A transport reaches an
account, puts the bundle there with nothing but a POSIX shell, and starts the relay; `relayclient` speaks the wire with
it. Nothing here decides what runs where, or tries anything again: the execution loop does.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import assert_never

from gridhypervisor.model.records import Site, SiteKind
from gridhypervisor.sites.authority import Authority
from gridhypervisor.sites.fork import ForkDriver
from gridhypervisor.sites.gridengine import GridEngineDriver
from gridhypervisor.sites.htcondor import HTCondorDriver
from gridhypervisor.sites.pbs import PbsDriver
from gridhypervisor.sites.slurm import SlurmDriver
from gridhypervisor.sites.ssh import SshTransport
from gridhypervisor.sites.transport import Bundle, LocalTransport
from gridhypervisor.sites.ways import Ways

__all__ = [
    "Authority",
    "Bundle",
    "Driver",
    "ForkDriver",
    "GridEngineDriver",
    "HTCondorDriver",
    "LocalTransport",
    "PbsDriver",
    "SlurmDriver",
    "Ways",
    "driver_for",
    "transport_for",
]

Driver = ForkDriver | GridEngineDriver | HTCondorDriver | PbsDriver | SlurmDriver


def driver_for(site: Site, workdir: str, bundle: str) -> Driver:
    """The driver of the site's batch system. `workdir`: the account's, absolute; `bundle`: the digest of what is there.

    Raises:
        LinkError: the site's configuration makes no sense to its driver; the message says what would.
    """
    match site.kind:
        case SiteKind.FORK:
            return ForkDriver(site, workdir, bundle)
        case SiteKind.SLURM:
            return SlurmDriver(site)
        case SiteKind.GRIDENGINE:
            return GridEngineDriver(site, workdir, bundle)
        case SiteKind.HTCONDOR:
            return HTCondorDriver(site)
        case SiteKind.PBS:
            return PbsDriver(site, workdir, bundle)
        case other:
            assert_never(other)


def transport_for(
    site: Site, bundle: Bundle, *, log: Path, sockets: Path, progress: Callable[[str], None] = lambda words: None
) -> LocalTransport | SshTransport:
    """The way to the site's account: SSH where it has a host, else a child process on this machine.

    `log` receives what the relay prints on its stderr; `sockets` is a folder for SSH's, which nobody else may enter;
    `progress` is told what is being uploaded.
    """
    if not site.host:
        return LocalTransport(site, bundle, log=log)
    return SshTransport(site, bundle, log=log, sockets=sockets, progress=progress)
