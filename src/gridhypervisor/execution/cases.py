"""The cases of the jobs that are alive, and what is counted over all of them.

It says which job an entry belongs to and which site may speak for it, who holds a place where, and of which entries the
batch system's word matters: this it tells the sessions, whatever changes. It decides nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Set

from gridhypervisor.execution.ports import Session
from gridhypervisor.model.records import Allocation, AllocationState, CheckpointState, JobState
from gridhypervisor.model.replacing import replace
from gridhypervisor.model.wire import NO_SHARE, Share
from gridhypervisor.planning.draft import HOLDS_PLACE
from gridhypervisor.planning.forecast import Held
from gridhypervisor.planning.segments import walltime_of
from gridhypervisor.planning.suiting import share
from gridhypervisor.planning.world import UNSEEN, Case, Observed, Seen


class Cases(Mapping[str, Case]):
    """By job."""

    def __init__(self, sessions: Mapping[str, Session]) -> None:
        self._sessions = sessions
        self._cases: dict[str, Case] = {}
        self._homes: dict[str, tuple[str, str]] = {}  # entry -> its job, and the only site that may speak for it
        self._attended: dict[str, dict[str, bool]] = {}  # site -> entries that matter in its listings -> how urgently
        self._places: Counter[str] = Counter()  # site -> allocations that hold a place
        self._shares: dict[str, Share] = {}  # site -> what these take of the account
        self._members: dict[str, dict[str, None]] = {}  # group -> its jobs
        self._standing: dict[str, Counter[JobState]] = {}  # group -> those of its jobs that have not ended, by state
        self._users: Counter[str] = Counter()  # owner -> allocations that hold a place anywhere
        self._projects: Counter[str] = Counter()

    def __getitem__(self, job: str) -> Case:
        return self._cases[job]

    def __iter__(self) -> Iterator[str]:
        return iter(self._cases)

    def __len__(self) -> int:
        return len(self._cases)

    def put(self, case: Case) -> set[str]:
        """Know this of the job from now on. The sites where it has given a place free."""
        old = self._cases.get(case.job.id)
        self._cases[case.job.id] = case
        if case.job.group:
            self._gather(old, case)
        for a in case.allocations:
            self._homes[a.pilot_job] = case.job.id, a.site
            self._attend(a, _urgency(a))
        return self._count(old, case)

    def drop(self, job: str) -> set[str]:
        """Know nothing of it any more. The sites where it has given a place free."""
        old = self._cases.pop(job, None)
        if old is not None and old.job.group:
            self._gather(old, None)
        for a in old.allocations if old is not None else ():
            del self._homes[a.pilot_job]
            self._attend(a, None)
        return self._count(old, None)

    def observed(self, job: str, entry: str) -> Observed:
        case = self._cases.get(job)
        return case.observed.get(entry, UNSEEN) if case is not None else UNSEEN

    def observe(self, job: str, entry: str, observed: Observed) -> None:
        """Take in what is known of an entry now. Nothing happens where the job is not known any more."""
        case = self._cases.get(job)
        if case is not None:
            self._cases[job] = replace(case, observed={**case.observed, entry: observed})

    def home(self, entry: str) -> tuple[str, str]:
        """An entry's job, and the only site that may speak for it; empty, where nobody knows it."""
        return self._homes.get(entry, ("", ""))

    def unknown(self, entries: Set[str]) -> Set[str]:
        """Those that nobody knows."""
        return entries - self._homes.keys()

    def allocation(self, entry: str) -> str:
        """The id of an entry's allocation; empty, where nobody knows it."""
        case = self._cases.get(self.home(entry)[0])
        return next((a.id for a in case.allocations if a.pilot_job == entry), "") if case is not None else ""

    def attended(self, site: str) -> list[tuple[str, str, Observed]]:
        """Entries of which the site's batch system should say something, with their jobs and what is known of them."""
        cases, homes = self._cases, self._homes
        jobs = ((entry, homes[entry][0]) for entry in self._attended.get(site, ()))
        return [(entry, job, cases[job].observed.get(entry, UNSEEN)) for entry, job in jobs]

    def introduce(self, site: str) -> None:
        """Tell a session that is new what matters of its site."""
        for entry, urgent in self._attended.get(site, {}).items():
            self._sessions[site].attend(entry, urgent)

    def places(self, site: str) -> int:
        """How many allocations hold a place there."""
        return self._places[site]

    def share(self, site: str) -> Share:
        """What these allocations take of the account."""
        return self._shares.get(site, NO_SHARE)

    def members(self, group: str) -> list[str]:
        """The jobs of a group."""
        return list(self._members.get(group, ()))

    def gang(self, group: str) -> list[Case]:
        """The members of a gang that are not over and done with, in their order."""
        return sorted((self._cases[job] for job in self.members(group)), key=lambda case: int(case.job.member))

    def standing(self, group: str) -> Counter[JobState]:
        """How many jobs of a group have not ended, by state."""
        return self._standing.get(group, Counter())

    def counts(self) -> tuple[Mapping[str, int], Mapping[str, int], Mapping[str, int]]:
        """How many allocations hold a place: by owner, by project, by site."""
        return self._users, self._projects, self._places

    def held_places(self, now: float) -> list[Held]:
        """Every place that is held, and until when: for a walltime since it ran, or from now on."""
        return [
            Held(
                case.job.owner,
                case.job.project,
                a.site,
                (a.times.running or now) + walltime_of(case.job.spec, a),
            )
            for case in self._cases.values()
            for a in case.allocations
            if a.state in HOLDS_PLACE
        ]

    def nodes(self) -> set[tuple[str, str]]:
        """Sites, and nodes of theirs, where something of ours is now: as their listings and our pilots say."""
        found = set()
        for case in self._cases.values():
            for a in case.allocations:
                if a.state is AllocationState.RUNNING:
                    sight = case.sight(a)
                    if sight.view is not None and sight.view.owner is not None and sight.view.owner.node:
                        found.add((a.site, sight.view.owner.node))
                    elif isinstance(sight.batch, Seen) and sight.batch.job.node:
                        found.add((a.site, sight.batch.job.node))
        return found

    def held(self, site: str) -> list[str]:
        """Jobs of which the site runs or holds something: results or checkpoints, even after the end."""
        return [
            job
            for job, case in self._cases.items()
            if any(a.site == site and a.state is not AllocationState.CLEANED for a in case.allocations)
            or any(c.site == site and c.state is not CheckpointState.GONE for c in case.checkpoints)
        ]

    def _gather(self, old: Case | None, new: Case | None) -> None:
        """Count a job of a group, which was so and is so now."""
        for case, sign in ((old, -1), (new, 1)):
            if case is not None and not case.job.state.final:
                counts = self._standing.setdefault(case.job.group, Counter())
                counts[case.job.state] += sign
        if new is not None:
            self._members.setdefault(new.job.group, {})[new.job.id] = None
        elif old is not None:
            left = self._members[old.job.group]
            del left[old.job.id]
            if not left:
                del self._members[old.job.group]
                self._standing.pop(old.job.group, None)

    def _attend(self, a: Allocation, urgent: bool | None) -> None:
        attended = self._attended.setdefault(a.site, {})
        if urgent is not None:
            attended[a.pilot_job] = urgent
        elif attended.pop(a.pilot_job, None) is None:
            return
        session = self._sessions.get(a.site)
        if session is not None:
            session.attend(a.pilot_job, urgent)

    def _count(self, old: Case | None, new: Case | None) -> set[str]:
        before, after = _holders(old), _holders(new)
        if before == after:
            return set()
        for case, sites, sign in ((old, before, -1), (new, after, 1)):
            for site, walltime in sites:
                assert case is not None
                self._places[site] += sign
                self._shares[site] = self.share(site) + share(case.job, walltime).times(sign)
                self._users[case.job.owner] += sign
                self._projects[case.job.project] += sign
        return {site for site, _ in before}.difference(site for site, _ in after)


def _holders(case: Case | None) -> list[tuple[str, int]]:
    """The sites where it holds a place, each as often as it does, and for how many seconds at most."""
    if case is None:
        return []
    return [(a.site, walltime_of(case.job.spec, a)) for a in case.allocations if a.state in HOLDS_PLACE]


def _urgency(a: Allocation) -> bool | None:
    """How much the batch system's word on it matters: it waits, it runs, or (None) not at all."""
    if a.state in (AllocationState.PLANNED, AllocationState.CLEANED):
        return None
    return a.state in (AllocationState.SUBMITTING, AllocationState.QUEUED)
