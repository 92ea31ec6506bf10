"""Chooses sites for the jobs that want one: which may take each, and who of them goes first, and where.

What a site is to a job is `suiting`'s; in which order jobs are served, and which of the sites suits best, is the
policies'. Here they are brought together, and each job is told what it gets or waits for. The same facts give the same
choices.

A site that has failed a job comes last for it; before that, one whose probed node lacks the hypervisor that it asks for
(its others may differ, so this alone keeps no job away), or where it takes several batch jobs (`segments`). Of sites
that suit equally it is the one with the largest free share of its limit, as far as it is believed (`credit`), then the
first by name.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from gridhypervisor.model.policy import SchedulingPolicy
from gridhypervisor.model.prediction import Expected
from gridhypervisor.model.records import Job
from gridhypervisor.model.replacing import replace
from gridhypervisor.model.spec import ResourcesSpec, parse_duration, parse_size
from gridhypervisor.model.views import Candidate
from gridhypervisor.planning.looking import next_look
from gridhypervisor.planning.packing import Kind, Wanted, pack
from gridhypervisor.planning.policies.cycle import Cycle, Decision, Scores, assign
from gridhypervisor.planning.policies.jobs import Request, prioritise
from gridhypervisor.planning.policies.resources import Candidates
from gridhypervisor.planning.policies.room import NOWHERE
from gridhypervisor.planning.policies.usage import Usage
from gridhypervisor.planning.segments import told
from gridhypervisor.planning.suiting import Expressions, Grid, Group, Key, Seeker, key_of, most_together, outlook
from gridhypervisor.planning.world import SiteFacts

ROUNDS = 8
"""Of a cycle: jobs that a lender has no more room for after those before them look again, as often as this."""

MOST_AMOUNTS = 4096
"""Different requests for resources of which it is remembered what they come to."""

MOST_TOLD = 10
"""Sites of which a job that waits is told what keeps it from each; `weigh` tells it of all."""

AGAIN = 1.0
"""Seconds after which a job looks again that was passed over though there may be room for it."""


@dataclass(frozen=True)
class Choice:
    site: str | None
    summary: str  # why this one; or what the job waits for
    candidates: tuple[Candidate, ...] = ()
    spurned: tuple[str, ...] = ()  # sites with a free place that cannot take this job as they are
    again: float | None = None  # when time alone may have changed that; None: it will not
    warning: str = ""  # what of the job's own was passed over
    looks: bool = False  # it looks at the sites again now and then, whatever happens
    places: Mapping[str, int] = field(default_factory=dict)  # of a gang that was weighed: how many members go where
    expected: Expected | None = None  # of the attempt there


Chooser = Callable[[Job, Collection[str]], Choice]
"""(job, sites whose lender has refused it just now) → its choice."""


def place(job: Job, sites: Mapping[str, SiteFacts], refused: Collection[str] = ()) -> Choice:
    """The choice of one job by itself, with every candidate: of jobs without requirements and rank, where no policy is
    set. `refused`: sites whose lender has refused it just now."""
    return weigh(Seeker(job, frozenset(refused)), Grid(sites))


def weigh(seeker: Seeker, grid: Grid) -> Choice:
    """The choice of one job, with its gang if it has one, as if no other wanted a site; a word on every candidate."""
    job = seeker.job
    others = range(1, job.spec.gang.count if job.spec.gang is not None else 1)
    gang = [seeker, *(seeker._replace(job=replace(job, id=f"{job.id}+{n}")) for n in others)]
    placing = _Placing(gang, grid)
    choices = placing.choices()
    choice = choices[seeker.job.id]
    places = Counter(each.site for each in choices.values() if each.site is not None) if others else {}
    told = placing.candidates(seeker, places or {choice.site: 1})
    return replace(choice, candidates=told, warning=placing.warning(seeker), places=places)


def place_all(seekers: Sequence[Seeker], grid: Grid) -> dict[str, Choice]:
    """The choices of jobs that want sites now, by their ids; without the candidates."""
    return _Placing(seekers, grid).choices() if seekers else {}


def matching_nodes(job: Job, grid: Grid) -> tuple[Candidate, ...]:
    """What each node that is known is to the requirements and rank of a job; `chosen`: it matches."""
    found = Expressions(job, grid)
    nodes = [(row, place) for row, place in enumerate(grid.catalogue) if place.node]
    return tuple(
        Candidate(
            place.site,
            bool(found.matches[row]),
            found.lacks(place) or "matches",
            float(found.ranks[row]) if job.spec.rank else None,
            place.node,
        )
        for row, place in nodes
    )


class _Placing:
    """One cycle over some jobs. `sites` is counted on as they get their places."""

    def __init__(self, seekers: Sequence[Seeker], grid: Grid) -> None:
        self.grid, self.sites, self.names = grid, dict(grid.sites), sorted(grid.sites)
        numbers: dict[Key, int] = {}
        self.groups: list[Group] = []
        self.seekers: dict[str, Seeker] = {}
        self.kept: dict[str, str] = {}  # site → for whom, in words
        self.group_of: dict[str, int] = {}
        self._outlooks: dict[tuple[int, str, str, str], Expected] = {}  # what is predicted of jobs that are alike
        for seeker in seekers:
            number = numbers.setdefault(key_of(seeker), len(self.groups))
            if number == len(self.groups):
                self.groups.append(Group(seeker, grid, self.names))
            self.seekers[seeker.job.id], self.group_of[seeker.job.id] = seeker, number
        self._requests = {s.job.id: request(s.job, self.group_of[s.job.id]) for s in seekers if not s.job.probe}

    def choices(self) -> dict[str, Choice]:
        found = {seeker.job.id: self.probes(seeker.job) for seeker in self.seekers.values() if seeker.job.probe}
        gangs: dict[str, list[Job]] = {}
        for seeker in self.seekers.values():
            if seeker.job.spec.gang is not None:
                gangs.setdefault(seeker.job.group, []).append(seeker.job)
        alone = [request for job, request in self._requests.items() if self.seekers[job].job.spec.gang is None]
        if not gangs:
            return self.serve(alone, found)
        # Who comes before the first gang is served before it; then all gangs together; then the others, with the rest.
        leaders = {members[0].id: members for members in gangs.values()}
        asking = [*alone, *(self._requests[leader] for leader in leaders)]
        rows = prioritise(asking, self.grid.policy, self.grid.usage, self.grid.now).order.tolist()
        order = {asking[row].id: number for number, row in enumerate(rows)}
        first = min(order[leader] for leader in leaders)
        found = self.serve([request for request in alone if order[request.id] < first], found)
        found = self.gather([leaders[leader] for leader in sorted(leaders, key=order.__getitem__)], found)
        return self.serve([request for request in alone if order[request.id] > first], found)

    def gather(self, gangs: Sequence[Sequence[Job]], found: dict[str, Choice]) -> dict[str, Choice]:
        """The choices that were `found` before, and those of the members of gangs: first to last, each whole or not."""
        requests = [self._requests[members[0].id] for members in gangs]
        usage, limits = self._usage(_given(found)), self.grid.policy.limits
        scores = Scores(self._table(requests), self.grid.policy, usage, self.grid.now)
        room = {
            name: int(max(0, min(most_together(f) - f.alive, limits.of_site(name) - usage.running_sites.get(name, 0))))
            for name, f in self.sites.items()
        }
        for request in requests:  # how many a lender has room for, of those that come first
            group = self.groups[request.group]
            lent = [
                name for name in self.names if self.sites[name].lending is not None and group.takes(self.sites[name])
            ]
            room |= {name: group.lent(self.sites[name], room[name]) for name in lent}
        wanted = []
        for request, members in zip(requests, gangs, strict=True):
            gang, total = members[0].spec.gang, scores.total(scores.kind(request), request)
            if gang is not None and gang.count == len(members):
                likes = tuple((name, float(s)) for name, s in zip(self.names, total, strict=True) if s > -np.inf)
                wanted.append(Wanted(members[0].id, Kind(gang.count, gang.spread, likes)))
        placed = pack(wanted, room)
        for members in gangs:
            found |= self._gets_all(members, placed.get(members[0].id, {}), found)
        return found

    def _gets_all(
        self, members: Sequence[Job], places: Mapping[str, int], found: dict[str, Choice]
    ) -> dict[str, Choice]:
        """The choices of a gang's members: at these places, or (none, or no longer any) what all of them wait for."""
        lead, before = members[0], dict(self.sites)
        group = self.groups[self.group_of[lead.id]]
        why = over(lead, len(members), self.grid.policy, self._usage(_given(found))) if places else ""
        choices: dict[str, Choice] = {}
        sites = [name for name, count in places.items() for _ in range(count)] if not why else []
        for job, name in zip(members, sites, strict=False):
            # A lender counts what is asked for, which the packing does not; of a gang at one site, all of it at once.
            if (group.together == 1 or job is lead) and group.crowded(self.sites[name]):
                break
            choices[job.id] = self.gets(job, name)
        if len(choices) == len(members):
            return choices
        self.sites = before
        if lead.spec.gang is not None and len(members) != lead.spec.gang.count:
            waits = Choice(None, "the others of its gang are not ready for another place yet")
        elif why:
            waits = Choice(None, why)
        else:
            lacks = Decision(lead.id, NOWHERE, self._too_few(group, len(members)), limited=True)
            waits = self.looking(self.waits(lead, lacks), lead)
            if not self.kept:
                self._keep(lead, group)
        return dict.fromkeys((job.id for job in members), replace(waits, spurned=()))

    def _too_few(self, group: Group, count: int) -> str:
        free = sum(max(0, most_together(facts) - facts.alive) for facts in self.sites.values() if group.takes(facts))
        return f"its gang needs room for {count} at once; there is room for {free} where it may go"

    def _keep(self, lead: Job, group: Group) -> None:
        """Give nobody else, who comes later, places where a gang only lacks room: else it might wait for ever."""
        gang, limits = lead.spec.gang, self.grid.policy.limits
        most = {
            name: min(most_together(facts), limits.of_site(name))
            for name, facts in self.sites.items()
            if not group.never(facts) and not self._ruled_out(lead, name) and facts.lending is None
        }
        may = [name for name in self.names if most.get(name, 0) >= group.together]
        if may and gang is not None and sum(most[name] for name in may) >= gang.count:  # else it is in vain
            best = max(may, key=lambda name: most[name] - self.sites[name].alive)
            self.kept[best] = f"kept for {lead.group}, a gang that came first"

    def serve(self, requests: Sequence[Request], found: dict[str, Choice]) -> dict[str, Choice]:
        """The choices that were `found` before, and those of these, one by one."""
        if not requests:
            return found
        waiting: dict[tuple[int, str, str], Choice] = {}  # of a group, an owner with bans, and what else keeps it
        cycle = self.cycle(requests, _given(found))
        for _ in range(ROUNDS):
            late = []
            for decision in cycle.decisions:
                if decision.row == NOWHERE:
                    continue
                name = self.names[decision.row]
                group, facts = self.groups[self.group_of[decision.job]], self.sites[name]
                if group.crowded(facts):  # a lender counts what is asked for, which the cycle does not
                    late.append(decision.job)
                    continue
                found[decision.job] = self.gets(self.seekers[decision.job].job, name)
            if not late:
                break
            again = self.cycle([self._requests[job] for job in late], _given(found))
            cycle = replace(again, decisions=[*again.decisions, *(d for d in cycle.decisions if d.row == NOWHERE)])
        for decision in cycle.decisions:
            if decision.job in found:
                continue
            job = self.seekers[decision.job].job
            banned = job.owner if job.owner in self.grid.usage.bans else ""  # all else is the same to every owner
            alike = self.group_of[job.id], banned, decision.why
            if alike not in waiting:
                waiting[alike] = self.waits(job, decision)
            found[job.id] = self.looking(waiting[alike], job)
        return found

    def gets(self, job: Job, name: str) -> Choice:
        group, facts = self.groups[self.group_of[job.id]], self.sites[name]
        self.sites[name] = replace(facts, alive=facts.alive + 1, own=facts.own + group.share(facts))
        alike = self.group_of[job.id], name, job.spec.network, job.spec.instant
        if (expected := self._outlooks.get(alike)) is None:
            expected = self._outlooks[alike] = outlook(job, facts, self.grid)
        return Choice(name, self.merits(job, facts, group), expected=expected)

    def probes(self, job: Job) -> Choice:
        """A probe asks what a site can do, so it goes there whatever the policy thinks of the site."""
        group = self.groups[self.group_of[job.id]]
        facts = self.sites.get(job.spec.site)
        if facts is not None and not group.obstacle(facts):
            return self.gets(job, facts.name)
        return self.looking(self.waits(job, Decision(job.id, NOWHERE)), job)

    def cycle(self, requests: Sequence[Request], placed: Sequence[str] = ()) -> Cycle:
        """`placed`: jobs that have been given a site already."""
        return assign(requests, self._table(requests), self.grid.policy, self._usage(placed), self.grid.now)

    def _table(self, requests: Sequence[Request]) -> Candidates:
        """What the sites are to those who ask, as they are now."""
        sites = [self.sites[name] for name in self.names]
        plenty = np.full(len(sites), np.inf)
        shape = (len(self.groups), len(sites))
        eligible, ranks, last = np.zeros(shape, np.bool_), np.zeros(shape), np.zeros(shape, np.bool_)
        for number in {request.group for request in requests}:
            group = self.groups[number]
            eligible[number] = [group.takes(facts) and facts.name not in self.kept for facts in sites]
            ranks[number], last[number] = group.rank, group.lacks
        return Candidates(
            names=self.names,
            sites=self.names,
            free_cores=plenty,  # which of its nodes has room, a site finds out
            total_cores=plenty,
            free_memory=plenty,
            total_memory=plenty,
            free_places={facts.name: facts.max_jobs - facts.alive for facts in sites},
            total_places={facts.name: facts.max_jobs for facts in sites},
            eligible=eligible,
            rank=ranks,
            last=last,
            credit={facts.name: facts.credit for facts in sites if facts.credit < 1},
        )

    def _usage(self, placed: Sequence[str]) -> Usage:
        usage = self.grid.usage
        if not placed:
            return usage
        users, projects = Counter(usage.running_users), Counter(usage.running_projects)
        for name in placed:
            users[self.seekers[name].job.owner] += 1
            projects[self.seekers[name].job.project] += 1
        sites = Counter(usage.running_sites)
        for name in self.names:
            sites[name] += self.sites[name].alive - self.grid.sites[name].alive
        return replace(usage, running_users=users, running_projects=projects, running_sites=sites, given=len(placed))

    def merits(self, job: Job, facts: SiteFacts, group: Group) -> str:
        """Why a site that can take the job is good, or not so good, for it."""
        words = f"room for {facts.max_jobs - facts.alive} more (max jobs: {facts.max_jobs})"
        if facts.credit < 1:
            words += f", which counts {facts.credit:.0%}: jobs waited there though it said that cores were free"
        if job.spec.rank:
            words += f"; rank {group.rank[self.names.index(facts.name)]:g}"
        if facts.name in job.excluded:
            words += "; an earlier attempt failed here"
        if several := told(job.spec, facts):
            words += f"; {several}"
        if job.spec.hypervisor in facts.lacks:
            words += f"; {job.spec.hypervisor} did not work on the node that was probed"
        return words

    def waits(self, job: Job, decision: Decision) -> Choice:
        """The choice of a job that gets none of the sites, as they are after the cycle."""
        group = self.groups[self.group_of[job.id]]
        takes = {name: group.takes(self.sites[name]) for name in self.names}
        ruled = {name: "" if job.probe else self._ruled_out(job, name) for name in self.names}
        free = (name for name in self.names if self.sites[name].open and not self._full(name))
        spurned = tuple(n for n in free if self.sites[n].alive < self.sites[n].max_jobs and n not in self.kept)
        again = [until for name in self.names if takes[name] and (until := self._banned(job, name))]
        open_ = [name for name in self.names if takes[name] and not ruled[name]]
        if open_:  # so it is a limit that keeps it; else the room was promised to others, who then did not take it
            if decision.limited:
                return Choice(None, decision.why)
            words = decision.why or "others came first; it looks again at once"
            return Choice(None, words, (), spurned, self.grid.now + AGAIN)
        if not self.names:
            summary = "there is no site yet: add one with `ghv site add`"
        elif job.spec.site and job.spec.site not in self.sites:
            known = ", ".join(self.names)
            summary = (
                f"it asks for site {job.spec.site}, which is not there: add it, or cancel the job (sites: {known})"
            )
        else:
            asked = [name for name in self.names if job.spec.site in ("", name)]
            why = {name: group.obstacle(self.sites[name], brief=True) or ruled[name] for name in asked[:MOST_TOLD]}
            told = [f"{name}: {words}" for name, words in why.items()]
            told += [f"and {len(asked) - MOST_TOLD} more"] if len(asked) > MOST_TOLD else []
            summary = "no site can take it now: " + "; ".join(told)
        looks = bool(job.spec.requirements or self.kept)
        return Choice(None, summary, (), spurned, min(again, default=None), looks=looks)

    def looking(self, choice: Choice, job: Job) -> Choice:
        """The same with when this job looks again, which it shares with few."""
        if not choice.looks:
            return choice
        look = next_look(job.id, self.grid.now)
        return replace(choice, again=min(look, choice.again) if choice.again is not None else look)

    def _ruled_out(self, job: Job, name: str) -> str:
        """Why the policy does not give the job to a site that could take it."""
        policy = self.grid.policy
        if name in self.kept:
            return self.kept[name]
        if policy.resources.fixed.of(name, name) == 0:
            return "the policy gives it priority 0: it is not to be used"
        if until := self._banned(job, name):
            return f"banned for {job.owner} after failures, for another {until - self.grid.now:.0f} s"
        if self._full(name):
            return f"it has {policy.limits.of_site(name):.0f} jobs, as many as the policy allows it"
        return ""

    def _full(self, name: str) -> bool:
        """Whether the site has as many jobs as the policy allows it."""
        placed = self.sites[name].alive - self.grid.sites[name].alive
        running = self.grid.usage.running_sites.get(name, 0)
        return running + placed >= self.grid.policy.limits.of_site(name)

    def _banned(self, job: Job, name: str) -> float:
        """Until when, in seconds since the epoch; 0: it is not."""
        ban = self.grid.usage.bans.get(job.owner, {}).get(name)
        return ban.until if ban is not None and ban.until > self.grid.now else 0.0

    def warning(self, seeker: Seeker) -> str:
        group = self.groups[self.group_of[seeker.job.id]]
        return group.expressions.warning if group.expressions is not None else ""

    def candidates(self, seeker: Seeker, chosen: Collection[str | None]) -> tuple[Candidate, ...]:
        """A word on every site, as it was before this job got its own."""
        job, group = seeker.job, self.groups[self.group_of[seeker.job.id]]
        self.sites = dict(self.grid.sites)
        wanted = request(job)
        scores = Scores(self.cycle([wanted]).candidates, self.grid.policy, self.grid.usage, self.grid.now)
        score, usable = scores.total(scores.kind(wanted), wanted), scores.usable(wanted)
        suited = scores.suited(wanted, usable)
        differ = len(set(suited.total[usable].tolist())) > 1
        weights = self.grid.policy.resources
        parts = [
            (what, setting.weight, part)
            for what, setting, part in (
                ("fixed", weights.fixed, suited.fixed),
                ("rank", weights.rank, suited.rank),
                ("usage", weights.usage, suited.usage),
                ("failure", weights.failure, suited.failure),
            )
            if setting.weight
        ]
        found = []
        for row, name in enumerate(self.names):
            facts = self.grid.sites[name]
            verdict = group.obstacle(facts) or self._ruled_out(job, name)
            if verdict:
                found.append(Candidate(name, False, verdict))
                continue
            free = facts.credit * (facts.max_jobs - facts.alive) / facts.max_jobs
            words = self.merits(job, facts, group)
            if differ:
                figures = " + ".join(f"{weight:g}·{what} {part[row]:.2f}" for what, weight, part in parts)
                words += f"; by the policy {suited.total[row]:.2f} = {figures}"
            ready = outlook(job, facts, self.grid).ready
            found.append(Candidate(name, name in chosen, words, float(score[row]) + free, ready=ready))
        return tuple(found)


def _given(found: Mapping[str, Choice]) -> list[str]:
    """The jobs that have been given a site."""
    return [job for job, choice in found.items() if choice.site is not None]


def over(job: Job, count: int, policy: SchedulingPolicy, usage: Usage) -> str:
    """Which limit keeps so many jobs like this one from being given places at once; empty: none."""
    limits = policy.limits
    for what, name, limit, has in (
        ("user", job.owner, limits.of_user(job.owner), usage.running_users.get(job.owner, 0)),
        ("project", job.project, limits.of_project(job.project), usage.running_projects.get(job.project, 0)),
    ):
        if has + count > limit:
            return f"the policy allows {what} {name} {limit:.0f} jobs at sites; {has} are there, its gang needs {count}"
    if limits.cycle and usage.given and usage.given + count > limits.cycle:  # one beyond the limit goes by itself
        return f"the policy gives away {limits.cycle} jobs at a time, others came first, and its gang needs {count}"
    return ""


def in_order(jobs: Sequence[Job], policy: SchedulingPolicy, usage: Usage, now: float) -> list[str]:
    """The ids of jobs that wait, first to last, as the policy has them."""
    if not jobs:
        return []
    order = prioritise([request(job) for job in jobs], policy, usage, now).order
    return [jobs[row].id for row in order.tolist()]


def request(job: Job, group: int = 0) -> Request:
    """A job as the policies see it."""
    spec = job.spec
    cpus, memory, walltime = amounts(spec.resources)
    return Request(
        id=job.id,
        user=job.owner,
        project=job.project,
        submitted=job.created,
        cores=cpus,
        memory=memory,
        seconds=walltime,
        group=group,
        fixed=spec.priority,
        deadline=job.created + parse_duration(spec.deadline) if spec.deadline is not None else None,
        tried=frozenset(job.excluded),
    )


@lru_cache(MOST_AMOUNTS)
def amounts(resources: ResourcesSpec) -> tuple[float, float, float]:
    """CPUs, bytes of memory, and seconds of walltime that a job asks for."""
    return float(resources.cpus), float(parse_size(resources.memory)), float(parse_duration(resources.walltime))
