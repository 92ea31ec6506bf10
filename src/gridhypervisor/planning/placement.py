"""Chooses a site for a job: filter, then rank; every candidate keeps the reason why it won or lost.

Rank: a site that has not failed the job before, then one whose probed node has the hypervisor that it asks for (its
others may differ, so this alone keeps no job away), then the one with the largest free share of its limit. Ties go to
the name, so that the same facts always give the same choice.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from gridhypervisor.model.records import Job
from gridhypervisor.model.spec import parse_duration, parse_size
from gridhypervisor.model.views import Candidate
from gridhypervisor.model.wire import Share, obstacle
from gridhypervisor.planning.world import SiteFacts


@dataclass(frozen=True)
class Choice:
    site: str | None
    summary: str  # why this one; or what the job waits for
    candidates: tuple[Candidate, ...]
    spurned: tuple[str, ...] = ()  # sites with a free place that cannot take this job as they are


def share(job: Job) -> Share:
    """What its VM takes of an account."""
    resources = job.spec.resources
    return Share.of(resources.cpus, parse_size(resources.memory), parse_duration(resources.walltime))


def place(job: Job, sites: Mapping[str, SiteFacts], refused: Collection[str] = ()) -> Choice:
    """`refused`: sites whose lender has refused it just now."""
    candidates: list[Candidate] = []
    spurned: list[str] = []
    best: tuple[tuple[float, str], Candidate] | None = None
    for name in sorted(sites):
        facts = sites[name]
        verdict = _obstacle(job, facts)
        if not verdict and name in refused:
            verdict = f"the lender of {name} has just refused it"
        if verdict:
            candidates.append(Candidate(name, False, verdict))
            if facts.open and facts.alive < facts.max_jobs:
                spurned.append(name)
            continue
        free = (facts.max_jobs - facts.alive) / facts.max_jobs
        lacks = job.spec.hypervisor in facts.lacks
        rank = free - (10.0 if name in job.excluded else 0.0) - (5.0 if lacks else 0.0)
        words = f"{facts.max_jobs - facts.alive} of {facts.max_jobs} places free"
        if name in job.excluded:
            words += "; an earlier attempt failed here"
        if lacks:
            words += f"; {job.spec.hypervisor} did not work on the node that was probed"
        candidate = Candidate(name, False, words, rank)
        candidates.append(candidate)
        if best is None or (-rank, name) < best[0]:
            best = ((-rank, name), candidate)
    if best is None:
        if not candidates:
            summary = "there is no site yet: add one with `ghv site add`"
        elif job.spec.site and job.spec.site not in sites:
            summary = f"it asks for site {job.spec.site}, which does not exist (sites: {', '.join(sorted(sites))})"
        else:
            asked = [c for c in candidates if job.spec.site in ("", c.site)]
            summary = "no site can take it now: " + "; ".join(f"{c.site}: {c.verdict}" for c in asked)
        return Choice(None, summary, tuple(candidates), tuple(spurned))
    chosen = best[1]
    return Choice(
        chosen.site,
        chosen.verdict,
        tuple(Candidate(c.site, c.site == chosen.site, c.verdict, c.rank) for c in candidates),
    )


def _obstacle(job: Job, facts: SiteFacts) -> str:
    """Why the site cannot take the job now; empty if it can."""
    resources = job.spec.resources
    walltime = parse_duration(resources.walltime)
    if job.spec.site and job.spec.site != facts.name:
        return f"the job asks for {job.spec.site}"
    if facts.max_walltime is not None and walltime > facts.max_walltime:
        return f"walltime {walltime} s exceeds the site's limit of {facts.max_walltime} s"
    if facts.max_cpus is not None and resources.cpus > facts.max_cpus:
        return f"{resources.cpus} CPUs exceed the site's {facts.max_cpus} a node"
    if facts.max_memory is not None and parse_size(resources.memory) > facts.max_memory:
        return f"memory {resources.memory} exceeds the site's {facts.max_memory >> 20} MiB a node"
    if facts.draining:
        return f"draining: takes no new work until `ghv site drain {facts.name} --undo`"
    if not facts.up:
        return facts.silence
    if facts.busy:
        return f"takes no more jobs for now: {facts.busy}"
    if facts.alive >= facts.max_jobs:
        return f"all {facts.max_jobs} places are taken"
    return _unlent(job, facts) if facts.lending is not None else ""


def _unlent(job: Job, facts: SiteFacts) -> str:
    lending, want = facts.lending, share(job)
    assert lending is not None
    who = f"your own cap on {facts.name}" if lending.terms.own else f"the lender of {facts.name}"
    taken = lending.taken(facts.own)
    return obstacle(lending.terms, taken, want, job.image_digest, want.vm_seconds, lending.open_for, who)
