"""Decisions about probes, the small batch jobs by which `ghv site check` proves what a site's nodes can do.

What is asked for, and what its end says of the site.

A probe is a job like any other but that it boots nothing. So the rules that hold for jobs hold for it, the lender's and
those of never-two-guests too, and nothing else knows how to run it.
"""

from __future__ import annotations

from gridhypervisor.model.batch import Limits
from gridhypervisor.model.commit import JobRecords
from gridhypervisor.model.records import Job, JobState
from gridhypervisor.model.spec import JobSpec, ResourcesSpec, RetrySpec
from gridhypervisor.model.views import Check
from gridhypervisor.model.wire import HypervisorKind, NodeReport, Reason

WALLTIME = 300
"""Seconds of a probe's batch job at most. It takes some; a slow node unpacks the bundle before."""

ROOM = 1 << 30
"""Bytes that a workdir and a scratch should have free: an image, and what a guest writes."""

RUNS = "a batch job runs on a node"


def spec(site: str, max_walltime: int | None) -> JobSpec:
    """A probe's request. `max_walltime`: the site's limit in seconds, where there is one."""
    walltime = WALLTIME if max_walltime is None else min(WALLTIME, max_walltime)
    resources = ResourcesSpec(cpus=1, memory="128Mi", scratch="16Mi", walltime=f"{walltime}s")
    command = ("ghv", "site", "check", site)  # what it is for, where jobs are listed
    return JobSpec("", command, name=f"check-{site}"[:63], resources=resources, site=site, retry=RetrySpec(0))


def untried(why: str, hint: str) -> Check:
    return Check(RUNS, None, f"not tried: {why}", hint)


def unended(job: Job, patience: float, doing: str) -> Check:
    """The time was over first, so nobody knows. `doing`: what was last told of it."""
    waits = "has not ended" if job.state in (JobState.RUNNING, JobState.EPILOG) else "still waits"
    why = f"the probe {waits} after {patience:.0f} s" + (f": {doing}" if doing else "")
    return Check(RUNS, None, why, f"it was withdrawn; to wait for longer: ghv site check {job.spec.site} --timeout 2h")


def judged(probe: JobRecords, workdir: str, last_words: str) -> list[Check]:
    """What a probe that has ended says of its site. `last_words`: of its batch script."""
    job, last = probe.job, probe.allocations[-1] if probe.allocations else None
    report = last.exit.report if last is not None and last.exit is not None else None
    if report is not None:
        number = next((each.batch_id for each in probe.pilot_jobs if each.batch_id), "")
        return [Check(RUNS, True, f"{report.node}{f', batch job {number}' if number else ''}"), *told(report, workdir)]
    if job.state is JobState.CANCELLED:
        return [Check(RUNS, None, "the probe was cancelled", "")]
    why = job.message or str(job.reason or job.state)
    if last_words:
        why += f"; its last words: {last_words}"
    return [Check(RUNS, False, why, job.hint or _mend(probe, workdir, last_words))]


def _mend(probe: JobRecords, workdir: str, last_words: str) -> str:
    """What may help where a batch job ended before its pilot began."""
    job, last = probe.job, probe.allocations[-1] if probe.allocations else None
    if last is None or last.times.running is not None:
        return ""
    if job.reason in (Reason.NODE_DISK, Reason.BUNDLE):
        return f"name a folder of the nodes' own disks that may run programs: ghv site edit {last.site} --scratch DIR"
    if job.reason is Reason.LOST and not last_words:
        # A script that does not find the bundle cannot say so: its log would be where the bundle is.
        return f"see that the nodes have {workdir}: `workdir` must be a folder that they share with the front-end"
    return ""


def bounds(limits: Limits) -> list[str]:
    """A batch system's limits, in words."""
    walltime = f"{limits.max_walltime} s" if limits.max_walltime is not None else "no limit known"
    words = [f"walltime: {walltime}"]
    if limits.max_cpus is not None:
        words.append(f"{limits.max_cpus} CPUs a node")
    if limits.max_memory is not None:
        words.append(f"{limits.max_memory >> 20} MiB for a guest")
    return [*words, *limits.notes]


def room(claim: str, free: int, where: str, hint: str) -> Check:
    """Whether `free` bytes are enough."""
    enough = free >= ROOM
    return Check(claim, enough, f"{free >> 20} MiB free in {where}", "" if enough else hint)


def told(report: NodeReport, workdir: str) -> list[Check]:
    """What a report proves. `workdir`: the account's, on the front-end."""
    able = [each for each in report.hypervisors if each.works]
    slow = {each.kind for each in able} == {HypervisorKind.TCG}
    cores = f"{report.cores} cores" if report.cores > 1 else "1 core"
    return [
        Check("nodes share the workdir", True, f"{report.node} found its orders in {report.workdir}")
        if report.workdir == workdir
        else Check("nodes reach the relay", True, f"{report.node} was brought its orders to {report.workdir}"),
        Check("nodes run programs in their scratch", True, report.scratch),
        room(
            "the scratch has room",
            report.scratch_free,
            f"{report.scratch} of {report.node}",
            "free some space there, or set another `scratch`",
        ),
        Check("the processor is known", True, f"{report.processor}, {cores}, {report.cpus} for a job of one"),
        Check("the memory is known", True, f"{report.memory >> 20} MiB, {report.memory_free >> 20} of it free"),
        Check(
            "a hypervisor runs guests",
            bool(able),
            "; ".join(map(str, sorted(report.hypervisors, key=lambda each: not each.works))),
            "" if able and not slow else "guests run fast where /dev/kvm or user namespaces are allowed: ask the site",
        ),
    ]
