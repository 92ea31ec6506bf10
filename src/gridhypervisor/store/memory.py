"""A store that forgets everything with its process: for simulations, of which nobody wants the records, and soon.

It keeps the promises of `execution.ports.Store` but for what outlives the process: ids, versions, changes that stand
or fall whole. To be called from one thread.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType

from gridhypervisor.model.access import Answer
from gridhypervisor.model.accounts import Account, Accounts, By, Charge
from gridhypervisor.model.commit import Birth, Commit, JobRecords, Record, StoreError, Tally
from gridhypervisor.model.policy import PolicyRecord, SchedulingPolicy
from gridhypervisor.model.records import (
    Allocation,
    AllocationState,
    CheckpointRecord,
    Denial,
    Event,
    Group,
    Job,
    JobState,
    Ledger,
    PilotJob,
    Site,
    Vm,
    Wish,
)
from gridhypervisor.model.token import Token
from gridhypervisor.store.groups import letter
from gridhypervisor.store.rows import BY_KIND, number_of
from gridhypervisor.store.statements import Ident, fitting


class MemoryStore:
    def __init__(self, installation: str = "g00000000") -> None:
        self.installation = installation
        self._numbers = 0
        self._versions: dict[Ident, int] = {}
        self._jobs: dict[str, Job] = {}  # in the order of their numbers, but for those of groups
        self._vms: dict[str, Vm] = {}  # by job
        self._allocations: dict[str, dict[str, Allocation]] = defaultdict(dict)  # by job and id
        self._states: dict[str, AllocationState] = {}
        self._checkpoints: dict[str, dict[str, CheckpointRecord]] = defaultdict(dict)  # by job and id
        self._pilot_jobs: dict[str, PilotJob] = {}
        self._keys: dict[tuple[str, str, str], str] = {}  # by owner, project and idempotency key
        self._ledgers: dict[str, Ledger] = {}
        self._groups: dict[str, Group] = {}
        self._nodes: dict[str, dict[str, str]] = {}
        self._charges: list[Charge] = []
        self._events: list[Event] = []
        self._policies: list[PolicyRecord] = []
        self._sites: dict[str, Site] = {}
        self._denials: list[Denial] = []
        self._tokens: dict[str, Token] = {}
        self._answers: dict[tuple[str, str, str], Answer] = {}

    # -- jobs ------------------------------------------------------------------------------------------------------

    def create_jobs(self, births: Sequence[Birth]) -> list[JobRecords]:
        """Write new jobs, giving each the next id; a key seen before returns the job of then."""
        return [self._create(birth) for birth in births]

    def _create(self, birth: Birth) -> JobRecords:
        key = birth.job.owner, birth.job.project, birth.idempotency_key
        if birth.idempotency_key and (known := self.job(self._keys.get(key, ""))) is not None:
            return known
        number = number_of(birth.job.id) if birth.job.id else self.reserve(1)
        job = dataclasses.replace(birth.job, id=f"j{number}", version=1)
        vm = dataclasses.replace(birth.vm, id=f"v{number}", job=job.id, version=1)
        if birth.idempotency_key:
            self._keys[key] = job.id
        self._put((job, vm))
        self._tell([dataclasses.replace(birth.event, job=job.id, subject=job.id)])
        return JobRecords(job, vm)

    def commit(self, commits: Sequence[Commit]) -> list[bool]:
        """False for each commit of which a version no longer fits: nothing of that one is written."""
        answers = []
        for commit in commits:
            for record in commit.records:
                if isinstance(record, Job) and record.version == 1:
                    why = f"job {record.id} of version 1 in a commit: only create_job makes jobs"
                    raise StoreError("commit changes", "memory", why, "report this as a bug")
            answers.append(fits := fitting(commit, self._versions) is not None)
            if fits:
                self._put(commit.records)
                self._tell(commit.events)
                self._charges += commit.charges
                if commit.ledger is not None:
                    self._ledgers[commit.ledger.job] = commit.ledger
        return answers

    def _put(self, records: Iterable[Record]) -> None:
        for record in records:
            self._versions[type(record), BY_KIND[type(record)].key_of(record)] = record.version
            match record:
                case Job():
                    self._jobs[record.id] = record
                case Vm():
                    self._vms[record.job] = record
                case PilotJob():
                    self._pilot_jobs[record.name] = record
                case Allocation():
                    self._allocations[record.job][record.id] = record
                    self._states[record.id] = record.state
                case CheckpointRecord():
                    self._checkpoints[record.job][record.id] = record

    def _records(self, job: Job) -> JobRecords:
        allocations = tuple(sorted(self._allocations.get(job.id, {}).values(), key=lambda a: a.epoch))
        names = dict.fromkeys(a.pilot_job for a in allocations)
        pilot_jobs = tuple(self._pilot_jobs[name] for name in names)
        checkpoints = tuple(self._checkpoints.get(job.id, {}).values())
        return JobRecords(job, self._vms[job.id], allocations, pilot_jobs, checkpoints)

    def alive(self) -> list[JobRecords]:
        """Jobs that are not final, are to be deleted, or of which a site may still hold something; oldest first."""
        found = [job for job in self._newest_first() if _alive(job) or self._left(job)]
        return [self._records(job) for job in reversed(found)]

    def _left(self, job: Job) -> bool:
        kept = self._checkpoints.get(job.id, {}).values()
        return any(a.state is not AllocationState.CLEANED for a in self._allocations.get(job.id, {}).values()) or any(
            not checkpoint.over for checkpoint in kept
        )

    def job(self, job: str) -> JobRecords | None:
        """All of one job; None if there is none of that id."""
        found = self._jobs.get(job)
        return self._records(found) if found is not None else None

    def jobs(
        self,
        *,
        states: Sequence[str] = (),
        before: str = "",
        group: str | None = None,
        owner: str = "",
        limit: int = 100,
    ) -> list[JobRecords]:
        """Newest first, below the id `before`; of this group, or ("") of none; of this owner, or ("") of all. Raises
        ValueError: `before` is no id."""
        end = number_of(before) if before else None
        found = [
            job
            for job in self._newest_first()
            if (not states or str(job.state) in states)
            and (end is None or number_of(job.id) < end)
            and (group is None or job.group == group)
            and owner in ("", job.owner)
        ]
        return [self._records(job) for job in found[:limit]]

    def job_versions(
        self,
        *,
        states: Sequence[str] = (),
        before: str = "",
        group: str | None = None,
        owner: str = "",
        limit: int = 100,
    ) -> list[tuple[str, int]]:
        """The ids and versions of those that `jobs` gives."""
        found = self.jobs(states=states, before=before, group=group, owner=owner, limit=limit)
        return [(records.job.id, records.job.version) for records in found]

    def these_jobs(self, ids: Sequence[str]) -> list[JobRecords]:
        """Those of these jobs that there are."""
        return [self._records(self._jobs[job]) for job in ids if job in self._jobs]

    def _newest_first(self) -> list[Job]:
        return sorted(self._jobs.values(), key=lambda job: -number_of(job.id))

    def states(self, allocations: Sequence[str]) -> dict[str, AllocationState]:
        """How these allocations stand at this moment; one that is not known is left out."""
        return {a: self._states[a] for a in allocations if a in self._states}

    def ledger(self, job: str) -> Ledger | None:
        """Where a job's time went; None while that is not known."""
        return self._ledgers.get(job)

    def ended(self, *, since: float, limit: int) -> list[JobRecords]:
        """Jobs that ended after that time; the newest of them, if there are more than the limit."""
        ends = sorted(((job.ended, job.id) for job in self._jobs.values() if (job.ended or 0.0) > since), reverse=True)
        chosen = sorted((job for _, job in ends[:limit]), key=number_of)
        return [self._records(self._jobs[job]) for job in chosen]

    def accounts(self, by: Sequence[By], *, since: float, until: float, owner: str = "", limit: int) -> Accounts:
        """What the attempts that ended in that time have used, of this owner or ("") of all; those of jobs that were
        deleted since included."""
        within = [c for c in self._charges if since < c.ended <= until and owner in ("", c.owner)]
        sorted_in: dict[tuple[str, ...], list[Charge]] = defaultdict(list)
        for charge in within:
            sorted_in[tuple(charge.owner if name == "user" else getattr(charge, name) for name in by)].append(charge)
        found = [_account(dict(zip(by, key, strict=True)), those) for key, those in sorted_in.items()] if by else []
        found.sort(key=lambda account: (-account.core_hours, *account.of.values()))
        return Accounts(tuple(by), since, until, tuple(found[:limit]), _account({}, within))

    def delete_job(self, job: str, event: Event) -> None:
        """Remove its records; its events stay, with this one after them. Nothing happens if it was removed before."""
        if self._jobs.pop(job, None) is None:
            return
        gone: list[Ident] = [(Job, job), (Vm, self._vms.pop(job).id)]
        for a in self._allocations.pop(job, {}).values():
            self._pilot_jobs.pop(a.pilot_job, None)
            del self._states[a.id]
            gone += [(Allocation, a.id), (PilotJob, a.pilot_job)]
        gone += [(CheckpointRecord, checkpoint) for checkpoint in self._checkpoints.pop(job, {})]
        for ident in gone:
            self._versions.pop(ident, None)
        self._ledgers.pop(job, None)
        self._tell([event])

    def was_deleted(self, job: str) -> bool:
        """Whether there was a job of this id of which everything was removed, sites included."""
        return any(event.job == job and event.after == "deleted" for event in self._events)

    # -- events ----------------------------------------------------------------------------------------------------

    def _tell(self, events: Iterable[Event]) -> None:
        for event in events:
            self._events.append(dataclasses.replace(event, sequence=len(self._events) + 1))

    def events(self, *, after: int = 0, job: str = "", owner: str = "", limit: int = 1000) -> list[Event]:
        """Oldest first, of sequence numbers above `after`; of this owner, or ("") of all."""
        found = (event for event in self._events[after:] if job in ("", event.job) and owner in ("", event.owner))
        return list(itertools.islice(found, limit))

    def add_event(self, event: Event) -> None:
        """Append an event that belongs to no commit; its sequence number is the store's to give."""
        self._tell([event])

    # -- groups ----------------------------------------------------------------------------------------------------

    def reserve(self, count: int) -> int:
        """The first of so many numbers in a row for jobs that are yet to be made."""
        self._numbers += count
        return self._numbers - count + 1

    def create_group(
        self, group: Group, event: Event, idempotency_key: str = "", nodes: Mapping[str, str] = MappingProxyType({})
    ) -> Group:
        """Write a new group, giving it the next id; a key seen before returns the group of then."""
        key = f"group {group.owner}", group.project, idempotency_key
        if idempotency_key and (known := self._groups.get(self._keys.get(key, ""))) is not None:
            return known
        group = dataclasses.replace(group, id=f"{letter(group)}{self.reserve(1)}", version=1)
        self._groups[group.id], self._nodes[group.id] = group, dict(nodes)
        if idempotency_key:
            self._keys[key] = group.id
        self._tell([dataclasses.replace(event, job=group.id, subject=group.id)])
        return group

    def put_group(
        self,
        group: Group,
        births: Sequence[Birth] = (),
        events: Sequence[Event] = (),
        nodes: Mapping[str, str] = MappingProxyType({}),
    ) -> bool:
        """Change a group and these nodes, and make these members, all or nothing. False: its version no longer fits."""
        standing = self._groups.get(group.id)
        if standing is None or standing.version != group.version - 1:
            return False
        self._groups[group.id] = group
        self._nodes[group.id] |= nodes
        for birth in births:
            self._put((birth.job, birth.vm))
        self._tell([*events, *(birth.event for birth in births)])
        return True

    def groups(
        self, *, ids: Sequence[str] = (), alive: bool = False, before: str = "", owner: str = "", limit: int = 100
    ) -> list[Group]:
        """Newest first, below the id `before`; of this owner, or ("") of all. Raises ValueError: `before` is no id."""
        end = number_of(before) if before else None
        found = [
            group
            for group in sorted(self._groups.values(), key=lambda group: -number_of(group.id))
            if (not ids or group.id in ids)
            and (not alive or _alive(group))
            and (end is None or number_of(group.id) < end)
            and owner in ("", group.owner)
        ]
        return found[:limit]

    def _members(self, group: str) -> list[Job]:
        return sorted((job for job in self._jobs.values() if job.group == group), key=lambda job: number_of(job.id))

    def tally(self, group: str) -> Tally:
        """How the members of a group are."""
        members = self._members(group)
        well = [job for job in members if job.state is JobState.DONE and job.exit_code == 0]
        bad = [job.id for job in members if job.state.final and job not in well]
        return Tally(Counter(job.state for job in members), len(well), bad[0] if bad else "")

    def member(self, group: str, name: str) -> JobRecords | None:
        """The member of this name; None: it has not been made yet, or was deleted, or never will be."""
        return next((self._records(job) for job in self._members(group) if job.member == name), None)

    def nodes(self, group: str) -> dict[str, str]:
        """Where each node of a workflow is, by name, as JSON."""
        return dict(self._nodes.get(group, {}))

    def delete_group(self, group: str, event: Event) -> None:
        """Forget a group that has no members any more. Nothing happens if it was removed before."""
        self._nodes.pop(group, None)
        if self._groups.pop(group, None) is not None:
            self._tell([event])

    # -- policies and sites ----------------------------------------------------------------------------------------

    def policy(self, version: int | None = None) -> PolicyRecord:
        """The one that was set last, or this version; the defaults, where none was set, or for version 0."""
        wanted = len(self._policies) if version is None else version
        return self._policies[wanted - 1] if 0 < wanted <= len(self._policies) else PolicyRecord(SchedulingPolicy())

    def put_policy(self, record: PolicyRecord, event: Event) -> bool:
        """False: its version no longer fits (that of the first is 1)."""
        if record.version != len(self._policies) + 1:
            return False
        self._policies.append(record)
        self._tell([event])
        return True

    def sites(self) -> list[Site]:
        """By name."""
        return [self._sites[name] for name in sorted(self._sites)]

    def put_site(self, site: Site) -> bool:
        """False: its version no longer fits (that of a new site is 1)."""
        standing = self._sites.get(site.name)
        if (standing.version if standing is not None else 0) != site.version - 1:
            return False
        self._sites[site.name] = site
        return True

    def remove_site(self, name: str) -> None:
        """Forget a site. Nothing happens if it is not known."""
        self._sites.pop(name, None)
        self._denials = [each for each in self._denials if each.site != name]

    def denials(self, *, since: float) -> list[Denial]:
        """Times when sites did not have what they said, after that time; oldest first."""
        return sorted((each for each in self._denials if each.at > since), key=lambda each: each.at)

    def put_denial(self, denial: Denial, *, forget: float) -> None:
        """Keep one; those of that site from before the time `forget` are not needed any more."""
        kept = (d for d in self._denials if d.site != denial.site or (d.at > forget and d.at != denial.at))
        self._denials = [*kept, denial]

    # -- who asks ---------------------------------------------------------------------------------------------------

    def tokens(self) -> list[Token]:
        """Oldest first."""
        return sorted(self._tokens.values(), key=lambda token: (token.created, token.id))

    def put_token(self, token: Token) -> bool:
        """False: its version no longer fits (that of a new one is 1)."""
        standing = self._tokens.get(token.id)
        if (standing.version if standing is not None else 0) != token.version - 1:
            return False
        self._tokens[token.id] = token
        return True

    def answer(self, owner: str, project: str, key: str) -> Answer | None:
        """What a request of this Idempotency-Key was answered."""
        return self._answers.get((owner, project, key))

    def put_answers(self, answers: Sequence[Answer], *, forget: float) -> None:
        """Keep these; those from before the time `forget` are not needed any more."""
        self._answers = {ident: each for ident, each in self._answers.items() if each.at >= forget}
        self._answers |= {(each.owner, each.project, each.key): each for each in answers}

    def close(self) -> None:
        """Nothing is left behind."""


def _alive(thing: Job | Group) -> bool:
    return not thing.state.final or thing.wish is Wish.DELETE


def _account(of: dict[By, str], charges: Sequence[Charge]) -> Account:
    return Account(
        of,
        len({charge.job for charge in charges}),
        len(charges),
        sum(charge.completed for charge in charges),
        sum(charge.waited for charge in charges),
        sum(charge.ran for charge in charges) / 3600,
        sum(charge.core_seconds for charge in charges) / 3600,
        sum(charge.double for charge in charges) / 3600,
    )
