"""The loop: observe → plan → commit → act.

A pass plans the jobs that something happened to, commits all their plans in one transaction, takes in what is
committed, and only then has it acted on. Wake-ups coalesce while a commit is under way, so the commits group themselves
under load. What users wish of a job is committed beside the passes. It decides nothing: `planning.reconcile` does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from gridhypervisor.execution.actions import Actions
from gridhypervisor.execution.agenda import Agenda
from gridhypervisor.execution.bill import Bill
from gridhypervisor.execution.births import Births
from gridhypervisor.execution.cases import Cases
from gridhypervisor.execution.followers import Followers
from gridhypervisor.execution.grants import Grants
from gridhypervisor.execution.logs import Logs
from gridhypervisor.execution.observer import Observer
from gridhypervisor.execution.output import Output
from gridhypervisor.execution.places import Places
from gridhypervisor.execution.ports import Session, Steps, Store
from gridhypervisor.execution.steps import Still, commits, no_steps
from gridhypervisor.execution.storing import StoreThread
from gridhypervisor.execution.strays import Strays
from gridhypervisor.model.commit import Birth, Commit, JobRecords, Record, StoreError
from gridhypervisor.model.records import (
    ActionKind,
    Allocation,
    AllocationState,
    Event,
    Job,
    JobState,
    PilotJob,
    Vm,
    Wish,
)
from gridhypervisor.planning.draft import JobPlan
from gridhypervisor.planning.placement import share
from gridhypervisor.planning.reconcile import plan
from gridhypervisor.planning.world import Case, Policy, Result, SiteFacts

STORE_PAUSE = 2.0
"""Seconds before what the store failed to take (a full disk, mostly) is tried again."""

PARKED = 30.0
"""Seconds before a job is planned again that could not be, by a fault of our own."""

WISHES = {Wish.CANCEL: Still.WISH_CANCEL, Wish.DELETE: Still.WISH_DELETE}


class Controller:
    """`cpu`: CPU seconds of this process so far. `steps` is told of every step of `execution.steps`."""

    def __init__(
        self,
        store: Store,
        sessions: Mapping[str, Session],
        logs: Logs,
        *,
        policy: Policy | None = None,
        clock: Callable[[], float],
        cpu: Callable[[], float],
        steps: Steps = no_steps,
    ) -> None:
        self.store, self.logs, self.policy, self.clock, self.steps = store, logs, policy or Policy(), clock, steps
        self.sessions = dict(sessions)
        self.waiting: dict[str, str] = {}  # job -> what it waits for, in words for the user
        self.in_store = StoreThread()
        self.cases = Cases(self.sessions)
        self.followers = Followers()
        self.output = Output(self.sessions, self.cases, logs, self._output_came)
        self._agenda = Agenda(clock)
        self._places = Places(self.sessions, self.cases, self.touch)
        self._strays = Strays(store, self.in_store, self.sessions, self.cases)
        self._actions = Actions(self.sessions, self.cases, self.touch, clock, steps)
        self._births = Births(store, self.in_store, self._welcome, steps)
        self._bill = Bill(cpu, self.sessions)
        self._grants = Grants(store, self.in_store, self.sessions, self.cases, clock)
        self.observer = Observer(
            self.cases, self._places, self._strays, self.output, self.touch, self.followers.announce,
            self._grants.heard, clock,
        )  # fmt: skip

    # -- life ------------------------------------------------------------------------------------------------------

    async def load(self) -> None:
        """Take up what the store knows. Call once, before any session is added: what nobody knows is a stray."""
        for records in await self.in_store(self.store.alive):
            self._adopt(records)

    async def run(self) -> None:
        """Until cancelled. A pass costs nothing while nothing is due."""
        while True:
            await self._pass(await self._agenda.due())

    async def close(self) -> None:
        await self._actions.close()
        await self._strays.close()
        await self._grants.close()
        self.output.close()
        self.in_store.close()

    def add_session(self, site: str, session: Session) -> None:
        self.sessions[site] = session
        self.cases.introduce(site)
        self.observer.site_changed(site)

    def remove_session(self, site: str) -> None:
        """It is not ours any more, whatever it holds."""
        del self.sessions[site]
        self.observer.site_changed(site)

    # -- jobs in, and what users wish of them ----------------------------------------------------------------------

    async def create(self, birth: Birth) -> JobRecords:
        """Make a job and take it up."""
        return await self._births.add(birth)

    async def wish(self, job: str, wish: Wish) -> None:
        """The user wants it cancelled or deleted. A wish only grows. Returns once it is committed."""
        order = list(Wish)
        while True:
            before = await self._present(job)
            if before is None or order.index(before.wish) >= order.index(wish):
                return
            changed = replace(before, wish=wish, version=before.version + 1)
            if await self._change(WISHES[wish], before, changed, f"the user asked to {wish} it"):
                return

    async def recover(self, job: str) -> None:
        """The user mended something: forget how often its actions failed, and try them and silent sites at once."""
        case = self.cases.get(job)
        if case is None:
            return
        for session in self.sessions.values():
            session.reconnect()
        changed = replace(case.job, recover=case.job.recover + 1, version=case.job.version + 1)
        await self._change(Still.RECOVER, case.job, changed, "the user asked to recover it")
        case = self.cases.get(job)
        for entry, seen in case.observed.items() if case is not None else ():
            done = {kind: outcome for kind, outcome in seen.outcomes.items() if outcome.result is Result.OK}
            self.cases.observe(job, entry, replace(seen, outcomes=done))
        self.touch(job)

    async def _change(self, step: Still, before: Job, after: Job, message: str) -> bool:
        event = _event(after, self.clock(), str(before.state), str(after.state), message)
        self.steps(f"before-commit:{step}")
        [accepted] = await self.in_store(self.store.commit, [Commit((after,), (event,))])
        if accepted:
            self.steps(f"after-commit:{step}")
        case = self.cases.get(after.id)
        if accepted and case is not None and case.job == before:
            self.cases.put(replace(case, job=after))
        else:
            await self._reload(after.id)
        self.followers.announce_events()
        self.touch(after.id)
        return accepted

    async def _present(self, job: str) -> Job | None:
        """The job as it is now, wherever it is known."""
        case = self.cases.get(job)
        if case is not None:
            return case.job
        records = await self.in_store(self.store.job, job)
        return records.job if records is not None else None

    def touch(self, job: str) -> None:
        """Something about it changed: plan it, and tell who follows it."""
        if job in self.cases:
            self._agenda.add(job)
        self.followers.announce(job)

    def _output_came(self, job: str, trouble: str) -> None:
        if trouble and job in self.cases:
            self.waiting[job] = trouble
        self.followers.announce(job)

    # -- plan, commit, act -----------------------------------------------------------------------------------------

    def facts(self) -> dict[str, SiteFacts]:
        return {
            name: replace(s.facts, alive=self.cases.places(name), own=self.cases.share(name))
            for name, s in self.sessions.items()
        }

    async def _pass(self, due: Iterable[str]) -> None:
        plans = self._plan(due)
        writing = {job: step for job, step in plans.items() if step.records}
        accepted = await self._commit(writing) if writing else {}
        # What is committed is taken in, all of it, before anything else is asked of the store.
        for job, step in plans.items():
            if accepted.get(job, True):
                self._apply(job, step)
                for action in step.actions:
                    self._actions.start(job, action)
        for job, step in plans.items():
            try:
                if accepted.get(job, True) is False:
                    await self._reload(job)
                elif step.delete:
                    await self._delete(job)
            except (StoreError, OSError) as error:
                self._park(job, str(error), STORE_PAUSE)
        self._places.offer_the_rest()

    def _plan(self, due: Iterable[str]) -> dict[str, JobPlan]:
        """Each job's next step; a place that one takes, the next does not see."""
        sites = self.facts()
        self._bill.share(len(self.cases))
        plans: dict[str, JobPlan] = {}
        now = self.clock()
        for job in due:
            case = self.cases.get(job)
            if case is None:
                continue
            if case.job.state is JobState.EPILOG:
                case = replace(case, cpu=self._bill.of(case))
            try:
                plans[job] = step = plan(case, sites, self.policy, now, self.store.installation)
            except Exception as error:  # a fault of ours must cost this job alone
                self._park(job, f"plan {job}: {type(error).__name__}: {error}; report this as a bug", PARKED)
                continue
            for record in step.records:
                if isinstance(record, Allocation) and record.version == 1:
                    facts = sites[record.site]
                    sites[record.site] = replace(facts, alive=facts.alive + 1, own=facts.own + share(case.job))
        return plans

    async def _commit(self, writing: Mapping[str, JobPlan]) -> dict[str, bool | None]:
        """By job: whether its versions fitted; None where it could not be written.

        Of what was not written nothing is done; it comes up again when its job is planned again.
        """
        names = {job: commits(self.cases[job], step.records) for job, step in writing.items()}
        for name in (name for job in writing for name in names[job]):
            self.steps(f"before-commit:{name}")
        changes = [Commit(step.records, step.events, step.ledger) for step in writing.values()]
        results = dict(zip(writing, await self.in_store.together(self.store.commit, changes), strict=True))
        for job, result in results.items():
            if isinstance(result, Exception):
                self._park(job, _words(result), STORE_PAUSE)
        accepted = {job: result if isinstance(result, bool) else None for job, result in results.items()}
        for name in (name for job in writing if accepted[job] for name in names[job]):
            self.steps(f"after-commit:{name}")
        self.followers.announce_events()
        return accepted

    def _park(self, job: str, why: str, seconds: float) -> None:
        """Leave a job alone for a while, and say why to who asks."""
        self.waiting[job] = why
        self._agenda.remind(job, self.clock() + seconds)
        self.followers.announce(job)

    def _apply(self, job: str, step: JobPlan) -> None:
        """The commit stands: take its records into the case."""
        case = self.cases[job]
        if step.records:
            case = _changed(case, step.records)
            self._put(case)
            for record in step.records:
                if isinstance(record, Allocation) and record.state is not AllocationState.PLANNED:
                    self._actions.stop(record.pilot_job, ActionKind.PROLOG)
            self.output.job_changed(job)
            self.touch(job)
        if case.job.wish is not Wish.RUN:
            self._withdraw(case)
        self.waiting[job] = step.waiting
        if case.job.state is JobState.PENDING and not step.records:
            self._places.wait(job, case.job.spec.site, step.spurned)
        else:
            self._places.leave(job)
        self._agenda.remind(job, step.wake_at)
        over = case.job.state.final and all(a.state is AllocationState.CLEANED for a in case.allocations)
        if over and case.job.wish is not Wish.DELETE:
            self._drop(job)

    def _withdraw(self, case: Case) -> None:
        """Nothing of it that has not been submitted needs to be."""
        for a in case.allocations:
            session = self.sessions.get(a.site)
            if a.state is AllocationState.SUBMITTING and session is not None:
                session.withdraw(a.pilot_job)

    # -- cases come and go -----------------------------------------------------------------------------------------

    def _welcome(self, records: JobRecords) -> None:
        """A job was asked for: it is new, or of an earlier request that was repeated."""
        if records.job.id not in self.cases and not records.job.state.final:
            self._adopt(records)

    def _adopt(self, records: JobRecords) -> None:
        """Know a job from now on (again): after its creation, at start, or after a commit of it was refused."""
        job = records.job.id
        old = self.cases.get(job)
        if old is None:
            self._bill.share(len(self.cases))
            self._bill.open(job)
        pilot_jobs = {p.name: p for p in records.pilot_jobs}
        observed = old.observed if old is not None else {}
        self._put(Case(records.job, records.vm, records.allocations, pilot_jobs, observed))
        self.touch(job)

    def _put(self, case: Case) -> None:
        for site in self.cases.put(case):
            self._places.freed(site)

    async def _reload(self, job: str) -> None:
        records = await self.in_store(self.store.job, job)
        if records is not None:
            self._adopt(records)
        else:
            self._drop(job)

    async def _delete(self, job: str) -> None:
        the_job = self.cases[job].job
        event = _event(the_job, self.clock(), str(the_job.state), "deleted", "nothing of it is left at any site")
        self.logs.remove(job)  # first: once its records are gone, nobody knows of them any more
        self.steps(f"before-commit:{Still.REMOVAL}")
        await self.in_store(self.store.delete_job, job, event)
        self.steps(f"after-commit:{Still.REMOVAL}")
        self._drop(job)
        self.followers.announce_events()

    def _drop(self, job: str) -> None:
        """It needs no more planning; the store has it for who asks."""
        freed = self.cases.drop(job)
        self._places.leave(job)
        self._agenda.drop(job)
        self._bill.close(job)
        self.waiting.pop(job, None)
        for site in freed:
            self._places.freed(site)
        self.followers.announce(job)


def _changed(case: Case, records: Iterable[Record]) -> Case:
    """The case with these records in the place of older ones."""
    job, vm = case.job, case.vm
    allocations, pilot_jobs = {a.id: a for a in case.allocations}, dict(case.pilot_jobs)
    for record in records:
        match record:
            case Job():
                job = record
            case Vm():
                vm = record
            case PilotJob():
                pilot_jobs[record.name] = record
            case Allocation():
                allocations[record.id] = record
    in_order = tuple(sorted(allocations.values(), key=lambda a: a.epoch))
    return replace(case, job=job, vm=vm, allocations=in_order, pilot_jobs=pilot_jobs)


def _event(job: Job, at: float, before: str, after: str, message: str) -> Event:
    return Event(at, job.owner, job.project, job.id, "job", job.id, before, after, message=message)


def _words(error: Exception) -> str:
    return str(error) if isinstance(error, StoreError) else f"{type(error).__name__}: {error}; report this as a bug"
