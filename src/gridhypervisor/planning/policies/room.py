"""What is left to give away in a cycle: cores, memory, places, and what the limits allow.

Room only shrinks within a cycle: a candidate that has none for a job has none for the next one like it.
"""

from __future__ import annotations

import math

import numpy as np

from gridhypervisor.model.policy import SchedulingPolicy
from gridhypervisor.planning.policies.jobs import Floats, Indices, Request
from gridhypervisor.planning.policies.resources import Bools, Candidates
from gridhypervisor.planning.policies.usage import Usage

NOWHERE = -1
"""In place of a candidate's row."""


class Room:
    """What is left to give away. Changes as jobs are placed: `take` and `hold`."""

    def __init__(self, candidates: Candidates, policy: SchedulingPolicy, usage: Usage) -> None:
        c, limits = candidates, policy.limits
        self._candidates, self._limits = candidates, limits
        self.cores, self.memory = c.free_cores.copy(), c.free_memory.copy()
        self.held = np.zeros(len(c.names), dtype=np.bool_)
        self.sites = list(dict.fromkeys(c.sites))
        numbers = {site: i for i, site in enumerate(self.sites)}
        self.site_of: Indices = np.array([numbers[site] for site in c.sites], dtype=np.intp)
        self.places = np.array([float(c.free_places.get(s, 0)) for s in self.sites])
        self.allowed = np.array([limits.of_site(s) - usage.running_sites.get(s, 0) for s in self.sites])
        self._total_places = np.array([float(c.total_places.get(s, 0)) for s in self.sites])
        self.open: Bools = (np.minimum(self.places, self.allowed) >= 1)[self.site_of]
        # What part is free, 0 to 1: of its cores where they are known, else of its site's places; as far as the site
        # is believed.
        self._counted: Bools = np.isfinite(c.total_cores) & (c.total_cores > 0)
        self.free: Floats = (self.places / np.maximum(self._total_places, 1.0))[self.site_of]
        np.divide(self.cores, c.total_cores, out=self.free, where=self._counted)
        self._credit: Floats = np.array([c.credit.get(s, 1.0) for s in c.sites])
        self.free *= self._credit
        self._users, self._projects = dict(usage.running_users), dict(usage.running_projects)
        self._cycle = limits.cycle - usage.given if limits.cycle else math.inf

    def over(self, job: Request) -> str:
        """Which limit keeps the job from being placed anywhere; empty: none."""
        if self._cycle < 1:
            return f"the policy gives away {self._limits.cycle} jobs at a time, and others came first"
        if self._users.get(job.user, 0) >= (limit := self._limits.of_user(job.user)):
            return f"{job.user} has {limit:.0f} jobs queued and running at sites, all that the policy allows a user"
        if self._projects.get(job.project, 0) >= (limit := self._limits.of_project(job.project)):
            return f"project {job.project} has {limit:.0f} jobs queued and running at sites, all that the policy allows"
        return ""

    def fits(self, job: Request) -> Bools:
        fits: Bools = self.cores >= job.cores
        fits &= self.memory >= job.memory
        fits &= self.open
        return fits

    def would_fit(self, job: Request) -> Bools:
        """Where the job would fit if nothing else were there, and nothing is held yet."""
        c = self._candidates
        roomy: Bools = (
            (c.total_cores >= job.cores) & (c.total_memory >= job.memory) & (self._total_places >= 1)[self.site_of]
        )
        roomy &= ~self.held
        return roomy

    def has(self, row: int, job: Request) -> bool:
        """`fits`, of one candidate."""
        return bool(self.open[row] and self.cores[row] >= job.cores and self.memory[row] >= job.memory)

    def best(self, score: Floats, where: Bools) -> tuple[int, bool]:
        """The candidate of the highest score, of equals the one with most free, or NOWHERE; and if it has no equal."""
        among = np.where(where, score, -np.inf)
        row = int(among.argmax()) if among.size else NOWHERE
        if row == NOWHERE or among[row] == -np.inf:
            return NOWHERE, False
        equals = np.flatnonzero(among == among[row])
        return (row, True) if len(equals) == 1 else (int(equals[self.free[equals].argmax()]), False)

    def take(self, row: int, job: Request) -> None:
        self.cores[row] -= job.cores
        self.memory[row] -= job.memory
        site = self.site_of[row]
        self.places[site] -= 1
        self.allowed[site] -= 1
        if self._counted[row]:
            self.free[row] = self.cores[row] / self._candidates.total_cores[row] * self._credit[row]
        else:
            part = self.places[site] / max(self._total_places[site], 1.0)
            self.free[(self.site_of == site) & ~self._counted] = part * self._credit[row]
        if self.places[site] < 1 or self.allowed[site] < 1:
            self.open[self.site_of == site] = False
        self._count(job)

    def hold(self, row: int, job: Request) -> None:
        """Keep a candidate free of others. It counts for all limits, so that holding has an end."""
        self.held[row] = True
        self.open[row] = False
        self._count(job)

    def _count(self, job: Request) -> None:
        self._users[job.user] = self._users.get(job.user, 0) + 1
        self._projects[job.project] = self._projects.get(job.project, 0) + 1
        self._cycle -= 1
