"""Says in words what a job waits for, or how it ended and why."""

from __future__ import annotations

from collections.abc import Mapping

from gridhypervisor.model.records import JobState
from gridhypervisor.model.views import Candidate, Explanation
from gridhypervisor.planning.moves import left
from gridhypervisor.planning.placement import weigh
from gridhypervisor.planning.suiting import Grid, Seeker
from gridhypervisor.planning.travel import awaited, wanting
from gridhypervisor.planning.world import Case


def explain(case: Case, grid: Grid, waiting: str, turn: str = "") -> Explanation:
    """`waiting`: what the loop says that it waits for; `turn`: who else waits for a site."""
    job, warning = case.job, ""
    candidates: tuple[Candidate, ...] = ()
    places: Mapping[str, int] = {}
    hint = job.hint
    if job.state is JobState.PENDING and case.held:
        summary = f"held: {case.held}"
    elif job.state is JobState.PENDING and awaited(job, case.allocations, case.checkpoints, grid.sites) is not None:
        summary = waiting or "a copy of its checkpoint has to come first"
        hint = hint or f"`ghv checkpoint list {job.id}`; without checkpoints it would begin anew"
    elif job.state is JobState.PENDING:
        seeks = wanting(case, grid.sites, grid.now)
        choice = weigh(seeks, grid)
        # What keeps it may be that others are served first, which only the loop knows.
        summary = choice.summary if choice.site is None else waiting or choice.summary
        summary, candidates, warning = f"waiting for a site: {summary}", choice.candidates, choice.warning
        places = choice.places
        if seeks.job is not job:
            summary += f"; it goes on where its checkpoint is, at {seeks.job.spec.site}"
            hint = hint or f"`ghv checkpoint list {job.id}`; without checkpoints it would begin anew, anywhere"
    elif job.state is JobState.SUSPENDED:
        summary = waiting or "suspended"
    elif job.state.final:
        code = f" with exit code {job.exit_code}" if job.exit_code is not None else ""
        reason = f" ({job.reason})" if job.reason is not None else ""
        summary = f"{job.state}{code}{reason}" + (f": {job.message}" if job.message else "")
    else:
        current = case.newest
        summary = f"{job.state} at {current.site}" + (f": {waiting}" if waiting else "")
        choice = weigh(Seeker(job, left=left(case, grid.now)[0]), grid)
        candidates, warning = tuple(c for c in choice.candidates if c.site != current.site), choice.warning
        candidates = (Candidate(current.site, True, f"attempt {current.epoch} is there: {current.state}"), *candidates)
    last = case.current
    hypervisor, boot = (case.hypervisor(last), case.boot(last)) if last is not None else ("", "")
    group = job.group if job.spec.gang is not None else ""
    return Explanation(
        job.id, job.state, summary, hint, candidates, hypervisor, turn, warning, boot, group, dict(places)
    )
