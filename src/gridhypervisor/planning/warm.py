"""Which jobs may share a batch job, one after another, and how long such a batch job lasts: pure.

Who serves whom the pilots settle among themselves (`agent/warm.py`); the controller says who may: it names a pool for
each, has the relay announce the entry in it when its own batch job is submitted, and tells that batch job's pilot.
"""

from __future__ import annotations

import hashlib

from gridhypervisor.model.batch import Warm
from gridhypervisor.model.records import Job, Site
from gridhypervisor.planning.grants import grant_of
from gridhypervisor.planning.sites import carried

EXTRA = 600
"""Seconds at most by which a batch job lasts longer than its own job, so that jobs of the same walltime fit into it. It
is never more than twice as long: a batch system that fills gaps goes by what it is asked for."""

SHORT = 3600
"""Seconds of the longest walltime to which anything is added: beyond, there is little to gain, and a limit may be near
that no probe of the site shows."""


def warmth(job: Job, site: Site, installation: str, bundle: str, idle: float) -> Warm | None:
    """How a job's batch job is shared; None: it is not, and nobody else's pilot serves the job.

    A gang's members begin together, and a guest that needs grants ends without them: each of these has a batch job of
    its own, as has what a courier carries, whose entry is on its node alone. `idle`: the site's, in seconds; 0: never.
    """
    alone = job.spec.isolation == "job" or job.spec.gang is not None or job.probe or bool(grant_of(job))
    if alone or idle <= 0 or carried(site):
        return None
    whose = "\0".join((installation, job.owner, site.name, bundle))
    return Warm(hashlib.sha256(whose.encode()).hexdigest()[:24], idle)


def lasting(walltime: int, most: int | None) -> int:
    """Seconds for which the batch job of a job of this walltime is asked for; `most`: what the site allows."""
    wanted = walltime + (min(walltime, EXTRA) if walltime <= SHORT else 0)
    return wanted if most is None else max(walltime, min(wanted, most))
