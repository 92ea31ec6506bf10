"""Says in words what a job waits for, or how it ended and why."""

from __future__ import annotations

from collections.abc import Mapping

from gridhypervisor.model.records import JobState
from gridhypervisor.model.views import Candidate, Explanation
from gridhypervisor.planning.placement import place
from gridhypervisor.planning.world import Case, SiteFacts


def explain(case: Case, sites: Mapping[str, SiteFacts], waiting: str) -> Explanation:
    job = case.job
    candidates: tuple[Candidate, ...] = ()
    hint = job.hint
    if job.state is JobState.PENDING:
        choice = place(job, sites)
        summary, candidates = f"waiting for a site: {choice.summary}", choice.candidates
    elif job.state.final:
        code = f" with exit code {job.exit_code}" if job.exit_code is not None else ""
        reason = f" ({job.reason})" if job.reason is not None else ""
        summary = f"{job.state}{code}{reason}" + (f": {job.message}" if job.message else "")
    else:
        current = case.allocations[-1]
        summary = f"{job.state} at {current.site}" + (f": {waiting}" if waiting else "")
        candidates = tuple(c for c in place(job, sites).candidates if c.site != current.site)
        candidates = (Candidate(current.site, True, f"attempt {current.epoch} is there: {current.state}"), *candidates)
    hypervisor = case.hypervisor(case.allocations[-1]) if case.allocations else ""
    return Explanation(job.id, job.state, summary, hint, candidates, hypervisor)
