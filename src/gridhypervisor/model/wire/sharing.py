"""Which entry a pilot may serve that came with another's batch job."""

from __future__ import annotations

from gridhypervisor.model.wire.manifest import Manifest


def suits(own: Manifest, kind: str, other: Manifest, left: float) -> bool:
    """Whether a pilot may serve another entry. `kind`: what runs its own guest; `left`: seconds of its time.

    The other needs as many processors, so that none lies idle that is paid for, and no more of anything else than its
    own job was given.
    """
    has, needs = own.resources, other.resources
    return (
        (other.protocol, other.installation, other.owner) == (own.protocol, own.installation, own.owner)
        and not (other.probe or other.hold or other.grant)
        and other.hypervisor in ("auto", kind)
        and needs.cpus == has.cpus
        and needs.memory <= has.memory
        and needs.scratch <= has.scratch
        and needs.walltime <= left
    )
