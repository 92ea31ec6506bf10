"""The loop: observe → plan → commit → act.

A pass plans the jobs that something happened to, commits all their plans in one transaction, takes in what is
committed, and only then has it acted on. Wake-ups coalesce while a commit is under way, so the commits group themselves
under load. What users wish of a job is committed beside the passes. It decides nothing: `planning.reconcile` does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable, Mapping

import msgspec

from gridhypervisor.execution import restarts
from gridhypervisor.execution.actions import Actions
from gridhypervisor.execution.after import After
from gridhypervisor.execution.agenda import Agenda
from gridhypervisor.execution.bill import Bill
from gridhypervisor.execution.births import Births
from gridhypervisor.execution.cases import Cases
from gridhypervisor.execution.choosing import choose
from gridhypervisor.execution.copies import Copies
from gridhypervisor.execution.counts import Counts
from gridhypervisor.execution.decisions import Decisions
from gridhypervisor.execution.denials import Denials
from gridhypervisor.execution.followers import Followers
from gridhypervisor.execution.gangs import Gangs
from gridhypervisor.execution.grants import Grants
from gridhypervisor.execution.groups import Groups
from gridhypervisor.execution.logs import Logs
from gridhypervisor.execution.moves import Moves
from gridhypervisor.execution.networks import Networks
from gridhypervisor.execution.observer import Observer
from gridhypervisor.execution.output import Output
from gridhypervisor.execution.places import Places
from gridhypervisor.execution.policies import Policies
from gridhypervisor.execution.ports import Session, Steps, Store
from gridhypervisor.execution.scheduling import Scheduling
from gridhypervisor.execution.sitefacts import KnownSites
from gridhypervisor.execution.steps import Still, commits, no_steps
from gridhypervisor.execution.storing import StoreThread
from gridhypervisor.execution.strays import Strays
from gridhypervisor.model.accounts import Charge
from gridhypervisor.model.commit import Birth, Commit, JobRecords, Record, StoreError
from gridhypervisor.model.records import (
    ActionKind,
    Allocation,
    AllocationState,
    CheckpointRecord,
    CheckpointState,
    CopyState,
    Event,
    Job,
    JobState,
    PilotJob,
    Vm,
    Wish,
)
from gridhypervisor.model.replacing import replace
from gridhypervisor.model.wire import Reason
from gridhypervisor.planning.checkpoints import at_home
from gridhypervisor.planning.draft import JobPlan
from gridhypervisor.planning.fate import refusals
from gridhypervisor.planning.gangs import leads, together, torn
from gridhypervisor.planning.moves import given_away, movable
from gridhypervisor.planning.past import SETTLING
from gridhypervisor.planning.placement import Choice
from gridhypervisor.planning.reconcile import plan, seeker
from gridhypervisor.planning.replay import as_it_is
from gridhypervisor.planning.world import Case, Policy, Result, SiteFacts

STORE_PAUSE = 2.0
"""Seconds before what the store failed to take (a full disk, mostly) is tried again."""

PARKED = 30.0
"""Seconds before a job is planned again that could not be, by a fault of our own."""

WISHES = {
    Wish.RUN: Still.WISH_RUN,
    Wish.SUSPEND: Still.WISH_SUSPEND,
    Wish.CANCEL: Still.WISH_CANCEL,
    Wish.DELETE: Still.WISH_DELETE,
}
WORDS = {Wish.RUN: "resume"}
ENDINGS = list(Wish)


class Controller:
    """`cpu`: CPU seconds of this process so far. `steps` is told of every step of `execution.steps`. `decisions`: where
    choices of sites are recorded; None: nowhere."""

    def __init__(
        self,
        store: Store,
        sessions: Mapping[str, Session],
        logs: Logs,
        copies: Copies,
        *,
        policy: Policy | None = None,
        clock: Callable[[], float],
        cpu: Callable[[], float],
        steps: Steps = no_steps,
        decisions: Decisions | None = None,
    ) -> None:
        self.decisions = decisions
        self.store, self.logs, self.policy, self.clock, self.steps = store, logs, policy or Policy(), clock, steps
        self.sessions = dict(sessions)
        self.waiting: dict[str, str] = {}  # job -> what it waits for, in words for the user
        self.counts = Counts()
        self.in_store = StoreThread(self.counts)
        self.cases = Cases(self.sessions)
        self.followers = Followers()
        self.output = Output(self.sessions, self.cases, logs, self._output_came)
        self._agenda = Agenda(clock)
        self.scheduling = Scheduling(self.cases)
        self._moves = Moves(self.scheduling)
        self._places = Places(self.sessions, self.cases, self.scheduling, self.touch, clock)
        self.policies = Policies(
            store, self.in_store, self.scheduling, self._policy_changed, self.followers.announce_events, clock
        )
        self._strays = Strays(store, self.in_store, self.sessions, self.cases)
        self._actions = Actions(self.sessions, self.cases, copies, self.touch, clock, steps, self.counts.actions)
        self._births = Births(store, self.in_store, self._welcome, steps)
        self.groups = Groups(
            store, self.in_store, self.cases, self._adopt, self.wish, self.touch, self.followers, clock, steps,
            lambda group: self.after.ended(group),
        )  # fmt: skip
        self._gangs = Gangs(self.cases, self.groups.gang)
        self.after = After(store, self.in_store, self.cases, self.groups.find, self.touch)
        self.facts = KnownSites(self.sessions, self.cases, self.scheduling, clock)
        self._denials = Denials(store, self.in_store, self.scheduling, clock)
        self._bill = Bill(cpu, self.sessions)
        self._grants = Grants(store, self.in_store, self.sessions, self.cases, clock)
        self.networks = Networks(self.sessions)
        self.observer = Observer(
            self.cases, self._denials, self._places, self._strays, self.output, self.touch,
            self.followers.announce, self._beat, self.networks, clock,
        )  # fmt: skip

    # -- life ------------------------------------------------------------------------------------------------------

    async def load(self) -> None:
        """Take up what the store knows. Call once, before any session is added: what nobody knows is a stray."""
        for records in await self.in_store(self.store.alive):
            self._adopt(records)
        await self.groups.load()
        await self._denials.load(await self.policies.load())

    async def run(self) -> None:
        """Until cancelled. A pass costs nothing while nothing is due."""
        beside = [asyncio.create_task(each.run()) for each in (self.groups, self.after)]
        try:
            while True:
                due = await self._agenda.due()
                begun = asyncio.get_running_loop().time()
                await self._pass(due)
                self.counts.passes.add(asyncio.get_running_loop().time() - begun)
        finally:
            for task in beside:
                task.cancel()
            await asyncio.gather(*beside, return_exceptions=True)

    async def close(self) -> None:
        await self.networks.close()
        await self._actions.close()
        await self._strays.close()
        await self._grants.close()
        await self._denials.close()
        self.output.close()
        self._places.close()
        self.in_store.close()

    def add_session(self, site: str, session: Session) -> None:
        self.sessions[site] = session
        self.cases.introduce(site)
        self.observer.site_changed(site)
        self.reword(site)

    def remove_session(self, site: str) -> None:
        """It is not ours any more, whatever it holds."""
        del self.sessions[site]
        self.scheduling.forget(site)
        self.observer.site_changed(site)
        self.reword(site)

    def reword(self, site: str) -> None:
        """The site has come, gone, or is drained: who could go there is told anew what it waits for."""
        for job in self.seeking:
            if self.cases[job].job.spec.site in ("", site):
                self.touch(job)

    def asking(self, site: str) -> list[str]:
        """The jobs that wait for this site and no other."""
        return [job for job in self.seeking if self.cases[job].job.spec.site == site]

    # -- jobs in, and what users wish of them ----------------------------------------------------------------------

    async def create(self, birth: Birth) -> JobRecords:
        """Make a job and take it up."""
        return await self._births.add(birth)

    async def wish(self, job: str, wish: Wish) -> None:
        """The user wants this of it. What is to end is not called back. Returns once it is committed."""
        while True:
            before = await self._present(job)
            if before is None or (before.wish.ends and ENDINGS.index(before.wish) >= ENDINGS.index(wish)):
                return
            if before.wish is wish or (before.state.final and not wish.ends):
                return
            changed = replace(before, wish=wish, version=before.version + 1)
            if await self._change(WISHES[wish], before, changed, f"the user asked to {WORDS.get(wish, wish)} it"):
                return

    async def move(self, job: str, why: str, to: str = "") -> None:
        """The user wants it to leave its site, where it has one; `to`: from now on it asks for this one. Returns once
        that is committed."""
        while (case := self.cases.get(job)) is not None and not case.job.state.final:
            changed = replace(case.job, version=case.job.version + 1)
            if to:
                changed = replace(changed, spec=msgspec.structs.replace(changed.spec, site=to))
            records: list[Record] = [changed]
            a = movable(case)
            if a is not None:
                records.append(replace(a, why=Reason.MOVED, note=why, version=a.version + 1))
            event = _event(changed, self.clock(), str(changed.state), str(changed.state), why)
            self.steps(f"before-commit:{Still.DEPARTURE}")
            [accepted] = await self.in_store(self.store.commit, [Commit(tuple(records), (event,))])
            if accepted:
                self.steps(f"after-commit:{Still.DEPARTURE}")
            self._places.leave(job)  # it may wait for another site now
            await self._reload(job)
            self.followers.announce_events()
            if accepted:
                return

    async def amend(self, job: str, step: Still, change: Callable[[Case], tuple[Record, ...]], message: str) -> None:
        """Commit what `change` makes of the job as it stands then; nothing where that is nothing. What it raises, is
        raised, with nothing done."""
        while (case := self.cases.get(job)) is not None and (records := change(case)):
            event = _event(case.job, self.clock(), str(case.job.state), str(case.job.state), message)
            self.steps(f"before-commit:{step}")
            [accepted] = await self.in_store(self.store.commit, [Commit(records, (event,))])
            if accepted:
                self.steps(f"after-commit:{step}")
                for record in records:
                    if isinstance(record, CheckpointRecord):
                        self._follow(job, record)
            await self._reload(job)
            self.followers.announce_events()
            if accepted:
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
        if (case := self.cases.get(job)) is not None:
            self._agenda.add(job)
            if case.job.spec.gang is not None or case.job.service is not None:
                self.groups.touch(case.job.group)
        self.followers.announce(job)

    def _policy_changed(self) -> None:
        self._places.all_changed()
        if self._moves.changed():
            for job in self.cases:  # each may have to leave its site at another time, or had none to
                self._agenda.add(job)

    def _beat(self, site: str, job: str, entry: str, number: int) -> None:
        self.counts.beats[site] += 1
        self._grants.heard(site, job, entry, number)

    def _output_came(self, job: str, trouble: str) -> None:
        if trouble and job in self.cases:
            self.waiting[job] = trouble
        self.followers.announce(job)

    # -- plan, commit, act -----------------------------------------------------------------------------------------

    @property
    def seeking(self) -> list[str]:
        """The jobs that wait for a site."""
        return self._places.waiting

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
        """Each job's next step; those that want a site are served together."""
        sites = self.facts()
        self._bill.share(len(self.cases))
        plans: dict[str, JobPlan] = {}
        now = self.clock()
        cases = self._gangs.served_with(due)
        choices = self._choices(cases.values(), sites, now)

        def chosen(job: Job, refused: Collection[str]) -> Choice:
            # Who only now has come to want a site is among the next to be served.
            return choices.get(job.id) or Choice(None, "its turn comes at once", again=now)

        cases = self._moves.consider(cases.values(), given_away(sites, choices), now)
        for job, case in cases.items():
            if case.job.state is JobState.EPILOG:
                case = replace(case, cpu=self._bill.of(case))
            try:
                plans[job] = plan(case, sites, self.policy, now, self.store.installation, chosen)
            except Exception as error:  # a fault of ours must cost this job alone
                self._park(job, f"plan {job}: {type(error).__name__}: {error}; report this as a bug", PARKED)
        for job in torn(plans, cases):
            plans[job] = JobPlan(waiting="its gang could not be placed whole", wake_at=now + PARKED)
        return plans

    def _choices(self, cases: Iterable[Case], sites: Mapping[str, SiteFacts], now: float) -> dict[str, Choice]:
        seekers = [
            seeking for c in cases if (seeking := seeker(c, sites, now, refusals(c, self.policy, now))) is not None
        ]
        if not seekers:
            return {}
        try:
            grid = self.scheduling.grid(sites, (seeker.job for seeker in seekers), now)
            choices = choose(seekers, grid)
        except Exception as error:  # a fault of ours must not cost those who want no site their step
            return {
                seeker.job.id: Choice(None, f"choose a site: {_words(error)}", again=now + PARKED) for seeker in seekers
            }
        if self.decisions is not None and any(choice.site is not None for choice in choices.values()):
            published = self.scheduling.published
            self.decisions.add(as_it_is(seekers, grid, self.scheduling.record.version, choices, published), published)
        if self.scheduling.limited and any(choice.site is None for choice in choices.values()):
            self._places.offer_later()  # whom a limit kept from a place that is free left it to those behind
        return choices

    async def _commit(self, writing: Mapping[str, JobPlan]) -> dict[str, bool | None]:
        """By job: whether its versions fitted; None where it could not be written.

        Of what was not written nothing is done; it comes up again when its job is planned again.
        """
        names = {job: commits(self.cases[job], step.records) for job, step in writing.items()}
        for name in (name for job in writing for name in names[job]):
            self.steps(f"before-commit:{name}")
        bundles = together(writing, self.cases)
        changes = [commit_of([writing[job] for job in jobs]) for jobs in bundles]
        answers = await self.in_store.together(self.store.commit, changes)
        results = {job: answer for jobs, answer in zip(bundles, answers, strict=True) for job in jobs}
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
                if isinstance(record, CheckpointRecord):
                    self._follow(job, record)
                if isinstance(record, Allocation) and record.state is not AllocationState.PLANNED:
                    self._actions.stop(record.pilot_job, ActionKind.PROLOG)
                    if record.state is AllocationState.RUNNING and (session := self.sessions.get(record.site)):
                        session.withdraw(record.pilot_job)  # a pilot has it that came with another batch job
                    if record.state in SETTLING:
                        if self.scheduling.settled(case.job, record):
                            self._places.changed(record.site)
                        self._places.published(record.site)
            self.output.job_changed(job)
            self.touch(job)
        if case.job.wish is not Wish.RUN:
            self._withdraw(case)
        self.waiting[job] = step.waiting
        waits = case.job.state is JobState.PENDING and not step.records and not case.held
        self._gangs.waits(case, waits)
        if waits and leads(case):
            self._places.wait(job, at_home(case, self.sessions).spec.site, step.spurned)
        else:
            self._places.leave(job)
        self._agenda.remind(job, step.wake_at)
        over = case.job.state.final and all(a.state is AllocationState.CLEANED for a in case.allocations)
        over = over and all(c.over for c in case.checkpoints)
        if over and case.job.wish is not Wish.DELETE:
            restarts.forget(self.logs, case.job)
            self._drop(job)

    def _follow(self, job: str, checkpoint: CheckpointRecord) -> None:
        """What became of a checkpoint stands: nobody copies what is to go, and what came of earlier copying counts no
        more."""
        if checkpoint.state in (CheckpointState.DOOMED, CheckpointState.GONE):
            self._actions.stop(checkpoint.entry, ActionKind.COPY)
        if checkpoint.copy is not CopyState.WANTED:
            self._actions.forget(job, checkpoint.entry, (ActionKind.COPY, ActionKind.ERASE))

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
        after = records.job.spec.after if not records.allocations else ()
        held = f"it is to run after {', '.join(after)}" if after else ""
        self._put(Case(records.job, records.vm, records.allocations, pilot_jobs, observed, held,
                       checkpoints=records.checkpoints))  # fmt: skip
        if held:
            self.after.hold(job)
        self.touch(job)

    def _put(self, case: Case) -> None:
        for site in self.cases.put(case):
            self._places.freed(site)
        if case.job.group:
            self.groups.touch(case.job.group)
        if case.job.state.final:
            self.after.ended(case.job.id)

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
        case = self.cases.get(job)
        if case is not None:
            self._gangs.waits(case, False)
        freed = self.cases.drop(job)
        self._places.leave(job)
        self._agenda.drop(job)
        self._bill.close(job)
        self._moves.drop(job)
        self.waiting.pop(job, None)
        for site in freed:
            self._places.freed(site)
        if case is not None and case.job.group:
            self.groups.touch(case.job.group)
        self.after.ended(job)
        self.followers.announce(job)


def _changed(case: Case, records: Iterable[Record]) -> Case:
    """The case with these records in the place of older ones."""
    job, vm = case.job, case.vm
    allocations, pilot_jobs = {a.id: a for a in case.allocations}, dict(case.pilot_jobs)
    checkpoints = {c.id: c for c in case.checkpoints}
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
            case CheckpointRecord():
                checkpoints[record.id] = record
    in_order = tuple(sorted(allocations.values(), key=lambda a: a.epoch))
    kept = tuple(checkpoints.values())
    return replace(case, job=job, vm=vm, allocations=in_order, pilot_jobs=pilot_jobs, checkpoints=kept)


def commit_of(steps: Iterable[JobPlan]) -> Commit:
    """Plans that stand or fall together, as one change."""
    records, events, charges, ledger = list[Record](), list[Event](), list[Charge](), None
    for step in steps:
        records += step.records
        events += step.events
        charges += step.charges
        ledger = ledger or step.ledger  # who is given a place, as are those that go together, has none yet
    return Commit(tuple(records), tuple(events), ledger, tuple(charges))


def _event(job: Job, at: float, before: str, after: str, message: str) -> Event:
    return Event(at, job.owner, job.project, job.id, "job", job.id, before, after, message=message)


def _words(error: Exception) -> str:
    return str(error) if isinstance(error, StoreError) else f"{type(error).__name__}: {error}; report this as a bug"
