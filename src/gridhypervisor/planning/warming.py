"""Decisions about snapshots that are made ahead of use, by `ghv image warm`: what is asked for, and what came of it.

The first guest of its kind at a site leaves a snapshot by itself (docs/decisions/instant.md). So what is asked for is
such a guest, whose program ends at once: it is like the jobs that are to come in all that a snapshot depends on.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from gridhypervisor.model.commit import JobRecords
from gridhypervisor.model.records import Job, JobState
from gridhypervisor.model.spec import JobSpec, RetrySpec, parse_duration
from gridhypervisor.model.views import Check
from gridhypervisor.model.wire import HypervisorKind, Layer
from gridhypervisor.planning.world import SiteFacts

WALLTIME = 600
"""Seconds of its batch job at most: a node unpacks the bundle, and a guest boots."""


def impossible(spec: JobSpec, layers: Iterable[Layer]) -> tuple[str, str] | None:
    """Why no snapshot can be of any use to such jobs, wherever, and what to do; None: one can."""
    if any(layer.role == "disk" for layer in layers):
        return (
            "the image is one whole disk, which its guest writes while it boots",
            "build it by `ghv image build` from packages; then its guests start from snapshots",
        )
    if spec.hypervisor == "uml":
        return "User-Mode Linux cannot take up a saved guest", "ask for --hypervisor tcg, or kvm where there is KVM"
    if spec.instant == "never":
        return "the job's file says `instant: never`", "leave that out"
    return None


def spec(like: JobSpec, site: str, max_walltime: int | None) -> JobSpec:
    """What is asked for at a site, for jobs that are `like` this one. `max_walltime`: the site's limit in seconds."""
    walltime = WALLTIME if max_walltime is None else min(WALLTIME, max_walltime)
    return JobSpec(
        like.image,
        ("true",),
        name=f"warm-{like.image.partition('@')[0].replace(':', '-')}"[:63],
        resources=msgspec.structs.replace(like.resources, walltime=f"{walltime}s"),
        network=like.network,
        hypervisor=like.hypervisor,
        cpu=like.cpu,
        boot_timeout=f"{min(parse_duration(like.boot_timeout), walltime)}s",
        site=site,
        retry=RetrySpec(0),
    )


def claim(like: JobSpec, site: str) -> str:
    return f"guests of {like.image} with {like.resources.memory} of memory start from a snapshot at {site}"


def untried(like: JobSpec, facts: SiteFacts) -> Check | None:
    """What to say of a site that cannot be asked now; None: it can, or may be any moment."""
    if facts.draining:
        return Check(claim(like, facts.name), None, "it takes no new work", f"ghv site drain {facts.name} --undo")
    if not facts.up and (facts.why or facts.login):
        return Check(claim(like, facts.name), None, f"it {facts.silence}", f"ghv site check {facts.name}")
    return None


def unended(like: JobSpec, job: Job, patience: float, doing: str) -> Check:
    """The time was over first. `doing`: what was last told of it."""
    waits = "has not ended" if job.state in (JobState.RUNNING, JobState.EPILOG) else "still waits"
    why = f"its job {waits} after {patience:.0f} s" + (f": {doing}" if doing else "")
    return Check(claim(like, job.spec.site), None, why, "it was withdrawn; to wait for longer: --timeout 2h")


def deleted(like: JobSpec, site: str) -> Check:
    return Check(claim(like, site), None, "somebody deleted its job", f"ghv image warm {like.image} --site {site}")


def judged(like: JobSpec, found: JobRecords) -> Check:
    """What a job that has ended says of its site."""
    job, last = found.job, found.allocations[-1] if found.allocations else None
    what, used = (
        claim(like, job.spec.site),
        last.exit.hypervisor if last is not None and last.exit is not None else None,
    )
    if job.state is JobState.CANCELLED:
        return Check(what, None, "its job was cancelled", f"ghv image warm {like.image} --site {job.spec.site}")
    if job.state is not JobState.DONE or used is None:
        hint = job.hint or f"ghv site check {job.spec.site}"
        return Check(what, False, f"its job failed: {job.message or job.reason or job.state}", hint)
    if used.snapshot:
        there = "it was there" if used.boot.startswith("restored") else "made just now"
        return Check(what, True, f"{there}: {used.snapshot[:12]}, under {used}")
    hint = f"ghv show JOB says of each job there how its guest began; ghv site check {job.spec.site}"
    if used.kind is HypervisorKind.UML:
        hint = f"it boots soon so; for jobs that ask for QEMU: ghv image warm {like.image} --hypervisor tcg"
    return Check(what, False, f"under {used}: {used.boot or 'its pilot did not say why'}", hint)
