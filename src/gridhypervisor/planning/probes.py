"""Decisions about probes, the small batch jobs by which `ghv site check` proves what a site's nodes can do.

What is asked for, and what its end says of the site.

A probe is a job like any other but that it boots nothing. So the rules that hold for jobs hold for it, the lender's and
those of never-two-guests too, and nothing else knows how to run it.
"""

from __future__ import annotations

from dataclasses import dataclass

from gridhypervisor.model.batch import Limits
from gridhypervisor.model.commit import JobRecords
from gridhypervisor.model.records import Job, JobState, SiteHealth
from gridhypervisor.model.spec import JobSpec, ResourcesSpec, RetrySpec
from gridhypervisor.model.views import Check
from gridhypervisor.model.wire import HypervisorKind, NodeReport, Reason

WALLTIME = 300
"""Seconds of a probe's batch job at most. It takes some; a slow node unpacks the bundle before."""

PATIENCE = 20
"""Seconds after which a probe gives up that does not reach the relay: the batch system then tells that it did, where
nothing else can. A job waits for longer, as the relay may be away; that of a check is not."""

ROOM = 1 << 30
"""Bytes that a workdir and a scratch should have free: an image, and what a guest writes."""

RUNS, REACH = "a batch job runs on a node", "nodes reach the relay"


@dataclass(frozen=True)
class FrontEnd:
    """The end of the account at which a check is made, beside which a node's report is laid."""

    site: str
    workdir: str
    gate: str = ""  # where its relay listens: HOST:FIRST-LAST; empty: nowhere
    carried: bool = False  # nodes have no other way to it than the gate


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


def judged(probe: JobRecords, there: FrontEnd, last_words: str) -> list[Check]:
    """What a probe that has ended says of its site. `last_words`: of its batch script."""
    job, last = probe.job, probe.allocations[-1] if probe.allocations else None
    report = last.exit.report if last is not None and last.exit is not None else None
    if report is not None:
        number = next((each.batch_id for each in probe.pilot_jobs if each.batch_id), "")
        return [Check(RUNS, True, f"{report.node}{f', batch job {number}' if number else ''}"), *told(report, there)]
    if job.state is JobState.CANCELLED:
        return [Check(RUNS, None, "the probe was cancelled", f"ghv site check {there.site}")]
    why = job.message or str(job.reason or job.state)
    if last_words:
        why += f"; its last words: {last_words}"
    if job.reason is Reason.RELAY:
        return [Check(REACH, False, f"not at {there.gate}, in {PATIENCE} s: {why}", _open(there))]
    if there.carried and job.reason is Reason.LOST and last is not None and last.times.running is None:
        return [Check(REACH, None, f"nobody came to {there.gate}: {why}", _open(there))]
    return [Check(RUNS, False, why, job.hint or _mend(probe, there, last_words))]


def _mend(probe: JobRecords, there: FrontEnd, last_words: str) -> str:
    """What may help where a batch job ended before its pilot began."""
    job, last = probe.job, probe.allocations[-1] if probe.allocations else None
    again = f"`ghv site check {job.spec.site}` asks again; if it stays so, ask the site about its nodes"
    if last is None or last.times.running is not None:
        return again
    if job.reason in (Reason.NODE_DISK, Reason.BUNDLE):
        return f"name a folder of the nodes' own disks that may run programs: ghv site edit {last.site} --scratch DIR"
    if job.reason is Reason.LOST and not last_words:
        # A script that does not find the bundle cannot say so: its log would be where the bundle is.
        return f"see that the nodes have {there.workdir}: `workdir` must be a folder that they share with the front-end"
    return again


def _open(there: FrontEnd) -> str:
    """What may help where nodes do not come to the relay."""
    address = "an address of the front-end that nodes connect to, and have the site open its ports to them"
    return f"set `listen` to {address}: ghv site edit {there.site} --option listen=HOST[:PORT[-PORT]]"


def no_relay(site: str, health: SiteHealth, why: str) -> Check:
    """There is no connection, for a reason that may say itself what to do."""
    hint = f"`ghv site show {site}` says how it is reached: mend that, or what it says with `ghv site edit {site}`"
    if health is SiteHealth.AUTH_NEEDED:
        hint = f"ghv site login {site}"
    return Check("a relay answers", False, f"{health}: {why}" if why else str(health), hint)


def answering(answers: bool, evidence: str) -> Check:
    hint = "" if answers else "its jobs go on meanwhile, and are asked for again; if it lasts, ask the site"
    return Check("the batch system answers", answers, evidence, hint)


def reading(limits: Limits) -> Check:
    hint = "see that its commands run on the front-end; `ghv site edit` sets a PATH for them" if limits.problem else ""
    return Check("its limits are read", not limits.problem, limits.problem or "; ".join(bounds(limits)), hint)


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


def reaching(report: NodeReport, there: FrontEnd) -> Check:
    """Whether the node reaches the relay, if it has to."""
    found = report.relay
    if found is None and there.gate:
        return Check(
            REACH, None, f"{report.node} did not look: the relay did not listen yet", f"ghv site check {there.site}"
        )
    if found is None:
        return Check(REACH, True, f"not needed: orders and report go through {report.workdir}")
    if found.why:
        return Check(REACH, False, f"{report.node} does not: {found.why}", _open(there))
    return Check(REACH, True, f"{report.node} at {found}")


def told(report: NodeReport, there: FrontEnd) -> list[Check]:
    """What a report proves."""
    able = [each for each in report.hypervisors if each.works]
    slow = {each.kind for each in able} == {HypervisorKind.TCG}
    cores = f"{report.cores} cores" if report.cores > 1 else "1 core"
    shared = Check("nodes share the workdir", True, f"{report.node} found its orders in {report.workdir}")
    return [
        *([shared] if report.workdir == there.workdir else []),
        reaching(report, there),
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
