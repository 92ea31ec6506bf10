"""What each site is to jobs that ask for the same: whether it can take them, why not, and how they rank it.

Jobs that ask for the same are one group: what holds for the group is worked out once, whatever their number. In words
for the user; who of them goes first, and where, is `placement`'s.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from gridhypervisor.model.expressions.vocabulary import ATTRIBUTES, Nothing, Of
from gridhypervisor.model.policy import SchedulingPolicy
from gridhypervisor.model.prediction import Expected
from gridhypervisor.model.records import Job
from gridhypervisor.model.spec import JobSpec, ResourcesSpec, parse_duration, parse_size
from gridhypervisor.model.wire import Share, obstacle
from gridhypervisor.planning.matching import Catalogue, Place, compile_rank, compile_requirements, match, rank, why_not
from gridhypervisor.planning.matching.expression import Booleans, Reals
from gridhypervisor.planning.past import SitePast
from gridhypervisor.planning.policies.usage import Usage
from gridhypervisor.planning.predictions import Predictions, expected
from gridhypervisor.planning.published import NOTHING, kinds, own_values
from gridhypervisor.planning.segments import lasts, outlives, unsegmented
from gridhypervisor.planning.world import SiteFacts

READY = "readytime"
"""An attribute that only those pay for who read it, in whatever case they write it."""


@dataclass(frozen=True)
class Grid:
    """What choices rest on besides the jobs."""

    sites: Mapping[str, SiteFacts]
    policy: SchedulingPolicy = field(default_factory=SchedulingPolicy)
    usage: Usage = field(default_factory=Usage)
    now: float = 0.0  # seconds since the epoch
    catalogue: Catalogue = field(default_factory=Catalogue)  # what the sites publish; needed for who asks for it
    past: Mapping[str, SitePast] = field(default_factory=dict)  # by site
    predictions: Predictions = field(default_factory=Predictions)
    ready: Mapping[str, Mapping[str, float]] = field(
        default_factory=dict
    )  # by job and site, of a cycle gone through again


def outlook(job: Job, facts: SiteFacts, grid: Grid) -> Expected:
    """What is predicted of an attempt of the job at that site."""
    past = grid.past.get(facts.name, NOTHING)
    return expected(job, facts.name, past.layers, kinds(facts, past), grid.predictions)


def ready(job: Job, grid: Grid) -> Mapping[str, float]:
    """By site, seconds until a guest of the job is predicted to be ready there, but for the queue; nothing for a job
    that does not ask for it."""
    if READY not in (job.spec.requirements + job.spec.rank).lower():
        return {}
    if (told := grid.ready.get(job.id)) is not None:
        return told
    return {name: outlook(job, facts, grid).ready for name, facts in grid.sites.items()}


class Seeker(NamedTuple):
    """A job that wants a site."""

    job: Job
    refused: frozenset[str] = frozenset()  # sites whose lender has refused it just now
    left: frozenset[str] = frozenset()  # sites where it does not go again while another will do
    unfit: frozenset[tuple[str, str]] = frozenset()  # sites that cannot take up its guest, and why


def share(job: Job, walltime: int | None = None) -> Share:
    """What its VM takes of an account in a batch job that lasts so long (seconds; None: as long as the job)."""
    resources = job.spec.resources
    seconds = parse_duration(resources.walltime) if walltime is None else walltime
    return Share.of(resources.cpus, parse_size(resources.memory), seconds)


def beyond(spec: JobSpec, facts: SiteFacts) -> str:
    """What of a request is more than the site ever has for one job; empty: nothing, for all that is known."""
    resources = spec.resources
    if words := unsegmented(spec, facts):
        return words
    if facts.max_cpus is not None and resources.cpus > facts.max_cpus:
        return f"it asks for {resources.cpus} CPUs; the largest node has {facts.max_cpus}"
    if facts.max_memory is not None and parse_size(resources.memory) > facts.max_memory:
        return f"it asks for {resources.memory} of memory; the site has {facts.max_memory >> 20} MiB for one job"
    return ""


def hopeless(spec: JobSpec, sites: Iterable[SiteFacts]) -> str:
    """What keeps such a job from each site that it may go to, however long it waits; empty: from one nothing does.

    A site of which nothing is known yet keeps nobody away.
    """
    why = []
    for facts in sites:
        if spec.site in ("", facts.name):
            if not (words := beyond(spec, facts) or (too_many(together(spec), facts) if facts.up else "")):
                return ""
            why.append(f"{facts.name}: {words}")
    return "; ".join(why) or "there is no site"


class Key(NamedTuple):
    """What a group of jobs has in common: all that decides which sites may take them."""

    site: str
    resources: ResourcesSpec
    hypervisor: str
    requirements: str
    rank: str
    image: str  # its digest
    ganged: bool
    together: int  # places that are wanted at one site at once
    refused: frozenset[str]
    left: frozenset[str]
    unfit: frozenset[tuple[str, str]]


def key_of(seeker: Seeker) -> Key:
    job, spec = seeker.job, seeker.job.spec
    return Key(
        spec.site,
        spec.resources,
        spec.hypervisor,
        spec.requirements,
        spec.rank,
        job.image_digest,
        spec.gang is not None,
        together(job.spec),
        seeker.refused,
        seeker.left,
        seeker.unfit,
    )


def together(spec: JobSpec) -> int:
    """How many jobs must fit at one site at once: its whole gang, unless that may spread."""
    return 1 if spec.gang is None or spec.gang.spread else spec.gang.count


def too_many(count: int, facts: SiteFacts) -> str:
    """Why so many jobs can never be at a site at once; empty: they can."""
    if count > 1 and count > (most := most_together(facts)):
        return f"its gang of {count} exceeds the {most} jobs that can be there at once"
    return ""


def most_together(facts: SiteFacts) -> int:
    """How many jobs of ours may be at a site so that they can run at the same time, as far as that is known."""
    return min(facts.max_jobs, facts.slots or facts.max_jobs)


class Expressions:
    """What a job's requirements and rank say of the catalogue's rows."""

    def __init__(self, job: Job, grid: Grid) -> None:
        spec, catalogue = job.spec, grid.catalogue
        self._catalogue, self._sites = catalogue, grid.sites
        self._requirements = compile_requirements(spec.requirements) if spec.requirements else None
        ranked = compile_rank(spec.rank) if spec.rank else None
        own = any(each is not None and each.own for each in (self._requirements, ranked))
        self._given = given = own_values(job, catalogue, grid.past, ready(job, grid)) if own else {}
        self.matches: Booleans = np.ones(len(catalogue), np.bool_)
        if self._requirements is not None:
            self.matches = match(self._requirements, catalogue, given)
        self.ranks: Reals = np.zeros(len(catalogue))
        self.warning = ""
        if ranked is not None:
            ranking = rank(ranked, catalogue, given)
            self.ranks, self.warning = ranking.values, ranking.warning(ranked, catalogue)

    def site(self, name: str) -> tuple[bool, float]:
        """Whether the site, or one of its nodes that are known, matches; and the rank of the best that does."""
        rows = self._catalogue.rows_of(name)
        matching = self.matches[rows]
        if not matching.any():
            return False, 0.0
        return True, float(self.ranks[rows][matching].max())

    def lacks(self, place: Place) -> str:
        """What a place lacks of the requirements; empty: nothing."""
        if self._requirements is None:
            return ""
        if place not in self._catalogue:
            return f"nothing is known of it yet, and the job requires {self._requirements.text}"
        # The job's own values are columns over all rows, of which `why_not` sees one.
        row = self._catalogue.row(place)
        given = {name: column.values(len(self._catalogue))[row] for name, column in self._given.items()}
        failed = why_not(self._requirements, self._catalogue, place, given)
        words = "; ".join(map(str, failed))
        unknown = {name for each in failed for name, value in each.saw.items() if value is Nothing.UNDEFINED}
        if self._unprobed(place.site) and any(ATTRIBUTES[name].of is Of.NODE for name in unknown):
            words += f" (next: ghv site check {place.site})"
        return words

    def _unprobed(self, name: str) -> bool:
        """Whether nobody has looked at a node of the site yet."""
        facts = self._sites.get(name)
        return facts is not None and facts.site is not None and facts.site.probed is None


class Group:
    """Jobs that ask for the same: what the sites are to them."""

    def __init__(self, seeker: Seeker, grid: Grid, names: Sequence[str]) -> None:
        self.job, self.refused, self.unfit = seeker.job, seeker.refused, dict(seeker.unfit)
        self.together = together(self.job.spec)
        asks = bool(self.job.spec.requirements or self.job.spec.rank)
        self.expressions = Expressions(self.job, grid) if asks else None
        said = {name: self.expressions.site(name) for name in names} if self.expressions is not None else {}
        self.matches = {name: matches for name, (matches, _) in said.items()}
        self.rank = np.array([said[name][1] if said else 0.0 for name in names])
        wanted = self.job.spec.hypervisor
        sites = [grid.sites[name] for name in names]
        # Where one batch job is enough comes before where it takes several.
        self.lacks = np.array([wanted in each.lacks or outlives(self.job.spec, each) for each in sites], np.bool_)
        fixed = grid.policy.resources.fixed
        others = (name for name in names if name not in seeker.left and fixed.of(name, name) and seeker.left)
        # One that does not answer just now (the service has only begun, mostly) may do so in a moment.
        will_do = any(not self._unable(grid.sites[name], soon=True) for name in others)
        self.left = seeker.left if will_do else frozenset()

    def never(self, facts: SiteFacts, *, brief: bool = False) -> str:
        """Why the site cannot take the job now, whatever room it has; empty if it can. `brief`: of a silent site not
        what the connection died of."""
        unable = self._unable(facts, brief=brief)
        return unable or ("the job has left it for another" if facts.name in self.left else "")

    def _unable(self, facts: SiteFacts, *, brief: bool = False, soon: bool = False) -> str:
        """`soon`: leaving out what may be over in a moment."""
        job = self.job
        if job.spec.site and job.spec.site != facts.name:
            return f"the job asks for {job.spec.site}"
        if words := beyond(job.spec, facts) or self.unfit.get(facts.name, ""):
            return words
        if facts.draining:
            return f"draining: takes no new work until `ghv site drain {facts.name} --undo`"
        if not facts.up and not soon:
            return facts.silence_in_short if brief else facts.silence
        if words := too_many(self.together, facts):
            return words
        if self.expressions is not None and not self.matches[facts.name]:
            return self.expressions.lacks(Place(facts.name))
        if facts.busy and not soon:
            return f"takes no more jobs for now: {facts.busy}"
        return ""

    def crowded(self, facts: SiteFacts) -> str:
        """Why there is no room for the job now."""
        if facts.alive >= facts.max_jobs:
            return f"no room for more (max jobs: {facts.max_jobs})"
        if self.together > 1 and facts.alive + self.together > (most := most_together(facts)):
            room = max(0, most - facts.alive)
            return f"room for {room} more (max jobs: {most}), and its gang needs it for {self.together} at once"
        return self._unlent(facts, self.together)

    def share(self, facts: SiteFacts) -> Share:
        """What one of them takes of an account there."""
        return share(self.job, lasts(self.job.spec, facts))

    def lent(self, facts: SiteFacts, most: int) -> int:
        """How many such jobs the lender has room for, up to `most`."""
        return next((count for count in range(most) if self._unlent(facts, count + 1)), most)

    def _unlent(self, facts: SiteFacts, count: int) -> str:
        lending = facts.lending
        if lending is None:
            return f"the lender of {facts.name} has just refused it" if facts.name in self.refused else ""
        who = f"your own cap on {facts.name}" if lending.terms.own else f"the lender of {facts.name}"
        walltime = lasts(self.job.spec, facts)
        taken, want = lending.taken(facts.own), self.share(facts).times(count)
        words = obstacle(lending.terms, taken, want, self.job.image_digest, walltime, lending.open_for, who)
        return words or (f"the lender of {facts.name} has just refused it" if facts.name in self.refused else "")

    def obstacle(self, facts: SiteFacts, *, brief: bool = False) -> str:
        return self.never(facts, brief=brief) or self.crowded(facts)

    def takes(self, facts: SiteFacts) -> bool:
        """Whether there is no obstacle. Of requirements that are not met it does not ask which: that takes longer."""
        return self.matches.get(facts.name, True) and not self.obstacle(facts)
