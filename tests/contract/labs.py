"""What every kind of cluster has, in each kind's own words: its site, its server, what its administrators do.

A kind of cluster joins the suites of `test_sites.py` and `test_clusters.py` with a `Lab` here and a site in
`conftest.py`. A system that this machine lacks fails when its site is to be started.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from testsites.site import ClusterSite

Foreign = Callable[[Any, str, bool], str]
"""Submits a job of this name on hold, as the account's own user or as another, and gives its number."""


@dataclass(frozen=True)
class Lab:
    fixture: str
    """The site's, in `conftest.py`."""
    server: str
    """The daemon that answers the batch system's commands."""
    silence: str
    """In what a listing says while that is dead."""
    submits: str
    """The command that waits for it while a job is submitted."""
    refused: Mapping[str, str]
    """Options of a site that it refuses a job for; the mend names them."""
    hold: Sequence[str]
    release: Sequence[str]
    held: str
    """In the reason of a job that its user holds: what releases it."""
    foreign: Foreign
    kill: Callable[[Any], None]
    """Ends the server, as far as that is possible without having it forget what it was told a moment ago."""
    books: bool = False
    """Whether the nodes keep for it what ended while it was dead."""
    found_again: Callable[[Any, str], bool] = lambda site, number: True
    """Whether a server that has begun anew minds the running job of this number again."""


def _ended(server: str, number: signal.Signals) -> Callable[[ClusterSite], None]:
    return lambda site: site.signal(server, number)


def _sbatch(site: ClusterSite, name: str, own: bool) -> str:
    words = ("sbatch", "--parsable", "--hold", "--chdir=/tmp", f"--job-name={name}", "--wrap=true")
    return site.admin(*words, as_user=own).strip()


def _qsub(site: ClusterSite, name: str, own: bool) -> str:
    return site.admin("qsub", "-terse", "-h", "-N", name, "-b", "y", "true", as_user=own).strip()


def _condor_submit(site: Any, name: str, own: bool) -> str:
    words = f'executable = /bin/true\ninitialdir = /tmp\nhold = true\n+GhvName = "{name}"\nqueue\n'
    submit = ("condor_submit", "-terse", "-")
    told = site.admin(*submit, as_user=True, stdin=words) if own else site.as_colleague(*submit, stdin=words)
    return str(told.split()[0])


SLURM = Lab(
    "slurm_site", "slurmctld", "Unable to contact", "sbatch", {"partition": "nonesuch"},
    ("scontrol", "hold"), ("scontrol", "release"), "scontrol release", _sbatch,
    _ended("slurmctld", signal.SIGTERM),  # it saves its state; a crash may forget the last seconds
)  # fmt: skip
GRIDENGINE = Lab(
    "gridengine_site", "qmaster", "unable to send message to qmaster", "qsub", {"queue": "nonesuch.q"},
    ("qhold",), ("qrls",), "qrls", _qsub, _ended("qmaster", signal.SIGKILL), books=True,
)  # fmt: skip
HTCONDOR = Lab(
    "htcondor_site", "schedd", "", "condor_submit", {"constraint": "HasGlass =="},
    ("condor_hold",), ("condor_release",), "condor_release", _condor_submit, lambda site: site.cut_queue(),
    found_again=lambda site, number: "2" in site.admin("condor_q", "-allusers", number, "-af", "NumShadowStarts"),
)  # fmt: skip
PBS = Lab(
    "pbs_site", "slurmctld", "cannot connect", "sbatch", {"queue": "nonesuch"},
    ("qhold", "-h", "u"), ("qrls",), "qrls", _sbatch, _ended("slurmctld", signal.SIGTERM),
)  # fmt: skip
LABS = (SLURM, GRIDENGINE, HTCONDOR, PBS)
