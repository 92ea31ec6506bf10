"""Has sites chosen for the jobs that want one, so that a fault of ours in it costs the job alone that brings it out."""

from __future__ import annotations

from collections.abc import Sequence

from gridhypervisor.model.replacing import replace
from gridhypervisor.planning.placement import Choice, place_all
from gridhypervisor.planning.segments import lasts
from gridhypervisor.planning.suiting import Grid, Seeker, share

PARKED = 30.0
"""Seconds before such a job is looked at again."""


def choose(seekers: Sequence[Seeker], grid: Grid) -> dict[str, Choice]:
    """All together, as it should be; where that fails one by one, in the order in which they are given."""
    try:
        return place_all(seekers, grid)
    except Exception:
        return _one_by_one(seekers, grid)


def _one_by_one(seekers: Sequence[Seeker], grid: Grid) -> dict[str, Choice]:
    choices, sites = dict[str, Choice](), dict(grid.sites)
    for seeker in seekers:
        job = seeker.job
        try:
            choice = choices[job.id] = place_all([seeker], replace(grid, sites=sites))[job.id]
        except Exception as error:
            words = f"choose a site for {job.id}: {type(error).__name__}: {error}; report this as a bug"
            choices[job.id] = Choice(None, words, again=grid.now + PARKED)
            continue
        if choice.site is not None:
            facts = sites[choice.site]
            sites[choice.site] = replace(
                facts, alive=facts.alive + 1, own=facts.own + share(job, lasts(job.spec, facts))
            )
    return choices
