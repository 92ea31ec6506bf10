"""Which processor a job's guest is shown: as its file asks, made out for each attempt that begins at the beginning.

One that goes on from a checkpoint is shown what it has seen before.
"""

from __future__ import annotations

from collections.abc import Iterable

from gridhypervisor.model.records import Job
from gridhypervisor.model.wire import COMMON, EMULATED, UNKNOWN, HypervisorKind, common
from gridhypervisor.planning.suiting import beyond
from gridhypervisor.planning.world import SiteFacts


def shown(job: Job, sites: Iterable[SiteFacts]) -> str:
    """What its file says; or (`common`) the highest baseline that every site has that can ever take such a job, so that
    it may travel to any of them."""
    if job.spec.cpu != COMMON:
        return job.spec.cpu
    return common([baseline(facts) for facts in sites if not beyond(job.spec, facts)])


def baseline(facts: SiteFacts) -> str:
    """The highest that guests can be shown at a site: the probed node's where KVM runs them, else the emulator's."""
    probed = facts.site.probed if facts.site is not None else None
    if probed is None or not probed.baseline:
        return UNKNOWN
    kvm = any(each.kind is HypervisorKind.KVM and each.works for each in probed.hypervisors)
    return probed.baseline if kvm else EMULATED
