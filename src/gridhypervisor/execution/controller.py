"""The loop: observe → plan → commit → act.

It keeps the cases of the jobs that are alive, marks dirty what an observation touched, plans what is dirty, commits all
plans of a pass in one transaction, and only then acts. Wake-ups coalesce while a commit is under way, so the commits
group themselves under load. It decides nothing: `planning.reconcile` does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import ParamSpec, TypeVar

from gridhypervisor.execution.agenda import Timers, Waiting
from gridhypervisor.execution.logs import Logs
from gridhypervisor.execution.meter import Meter
from gridhypervisor.execution.ports import Session, Steps, Store
from gridhypervisor.model.batch import BatchState, Listing
from gridhypervisor.model.commit import Birth, Commit, JobRecords, StoreError
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
from gridhypervisor.model.wire import EntryView
from gridhypervisor.planning.draft import HOLDS_PLACE, TRANSITIONS, Action, JobPlan
from gridhypervisor.planning.reconcile import plan
from gridhypervisor.planning.world import Absent, Case, Observed, Outcome, Policy, Result, Seen, SiteFacts, Unknown

P = ParamSpec("P")
T = TypeVar("T")

UNBORN = "none"
"""The state that an allocation has before it is planned."""

_CHANGES = ((UNBORN, AllocationState.PLANNED), *TRANSITIONS)

STEPS: tuple[str, ...] = tuple(
    sorted(
        [f"{when}-commit:{before}-{after}" for when in ("before", "after") for before, after in _CHANGES]
        + [f"{when}:{kind}" for when in ("before", "after") for kind in ActionKind]
    )
)
"""Every step at which the controller could die: before and after each commit of a transition and each action."""


STORE_PAUSE = 2.0
"""Seconds before what the store failed to take (a full disk, mostly) is tried again."""

TAKERS = ("pilot", "controller")
"""Who can have taken an entry's `owner`. Of whom else it speaks, it could not be read."""

PARKED = 30.0
"""Seconds before a job is planned again that could not be, by a fault of our own."""

SPARE = 64
"""Waiting jobs that are offered a site's free places beyond their number, in case some cannot use them."""

WRITING = 64
"""Pieces of output, of up to 256 KiB, that may wait for the disk; what comes beyond comes when the run has ended."""


def no_steps(step: str) -> None:
    """Nobody wants to know."""


class Controller:
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
        self.cases: dict[str, Case] = {}
        self.waiting: dict[str, str] = {}
        self._cpu, self._meter = cpu, Meter()  # this process's CPU seconds, and how they are shared
        self._began: dict[str, tuple[float, dict[str, float]]] = {}  # job -> the meters' values when it was taken up
        self.last_event = 0
        self._entries: dict[str, tuple[str, str]] = {}  # entry -> its job, and the only site that may speak for it
        self._attended: dict[str, dict[str, None]] = {}  # site -> entries of which the batch system's word matters
        self._dirty: dict[str, None] = {}
        self._pending = Waiting()
        self._in_vain: list[str] = []  # jobs that looked for a place in this pass, and found none
        self._places: dict[str, int] = {}  # site -> allocations that hold a place
        self._timers = Timers()
        self._wake = asyncio.Event()
        self._tasks: dict[tuple[str, ActionKind], asyncio.Task[None]] = {}
        self._followers: dict[str, set[asyncio.Event]] = {}
        self._event_watchers: set[asyncio.Event] = set()
        self._watched: dict[str, int] = {}  # job -> followers of its output
        self._births: list[tuple[Birth, asyncio.Future[JobRecords]]] = []  # jobs that are to be written next
        self._midwife: asyncio.Task[None] | None = None
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="store")
        self._scribe = ThreadPoolExecutor(1, thread_name_prefix="output")
        self._pieces = 0  # of output, on their way to the disk

    # -- life ------------------------------------------------------------------------------------------------------

    async def load(self) -> None:
        """Take up what the store knows. Call once, before any session is added: what nobody knows is a stray."""
        for records in await self.in_store(self.store.alive):
            self.adopt(records)

    async def run(self) -> None:
        """Until cancelled. A pass costs nothing while nothing is dirty."""
        loop = asyncio.get_running_loop()
        while True:
            if not self._dirty:
                timer: asyncio.TimerHandle | None = None
                due = self._timers.next
                if due is not None:
                    timer = loop.call_later(max(0.0, due - self.clock()), self._wake.set)
                await self._wake.wait()
                if timer is not None:
                    timer.cancel()
            self._wake.clear()
            self._dirty |= dict.fromkeys(job for job in self._timers.expired(self.clock()) if job in self.cases)
            dirty, self._dirty = self._dirty, {}
            await self._pass(dirty)

    async def close(self) -> None:
        for task in list(self._tasks.values()):
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        self._scribe.shutdown()
        self._writer.shutdown()

    async def in_store(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a store call on its one thread."""
        return await asyncio.get_running_loop().run_in_executor(self._writer, partial(function, *args, **kwargs))

    def add_session(self, site: str, session: Session) -> None:
        self.sessions[site] = session
        for case in self.cases.values():
            for a in case.allocations:
                if a.site == site and a.pilot_job in self._attended.get(site, ()):
                    session.attend(a.pilot_job, a.state in (AllocationState.SUBMITTING, AllocationState.QUEUED))
        self.site_changed(site)

    def remove_session(self, site: str) -> None:
        del self.sessions[site]

    # -- jobs in ---------------------------------------------------------------------------------------------------

    async def create(self, birth: Birth) -> JobRecords:
        """Make a job and take it up. Jobs that are asked for while others are being written are written together."""
        future: asyncio.Future[JobRecords] = asyncio.get_running_loop().create_future()
        self._births.append((birth, future))
        if self._midwife is None or self._midwife.done():
            self._midwife = asyncio.create_task(self._bear())
        return await future

    async def _bear(self) -> None:
        while self._births:
            births, self._births = self._births, []
            if not await self._born(births) and len(births) > 1:
                for birth in births:  # one of them may have been at fault for all
                    await self._born([birth])

    async def _born(self, births: list[tuple[Birth, asyncio.Future[JobRecords]]]) -> bool:
        """Whether the store took them; a single one is told why not."""
        try:
            found = await self.in_store(self.store.create_jobs, [birth for birth, _ in births])
        except Exception as error:
            if len(births) == 1 and not births[0][1].done():
                births[0][1].set_exception(error)
            return False
        for records, (_, future) in zip(found, births, strict=True):
            if records.job.id not in self.cases and not records.job.state.final:
                self.adopt(records)
            if not future.done():  # whoever asked may have gone; the job is there all the same
                future.set_result(records)
        return True

    def adopt(self, records: JobRecords) -> None:
        """Know a job from now on (again): after its creation, at start, or after a commit of it was refused."""
        job = records.job.id
        old = self.cases.get(job)
        case = Case(
            records.job,
            records.vm,
            records.allocations,
            {p.name: p for p in records.pilot_jobs},
            old.observed if old is not None else {},
        )
        if old is None:
            self._meter.advance(self._cpu(), len(self.cases))
        self.cases[job] = case
        if old is None:
            meters = {name: session.relay_cpu.value for name, session in self.sessions.items()}
            self._began[job] = (self._meter.value, meters)
        self._index(old, case)
        self.touch(job)

    async def wish(self, job: str, wish: Wish) -> None:
        """The user wants it cancelled or deleted. A wish only grows. Returns once it is committed."""
        order = list(Wish)
        while True:
            before = await self._present(job)
            if before is None or order.index(before.wish) >= order.index(wish):
                return
            changed = replace(before, wish=wish, version=before.version + 1)
            if await self._change(before, changed, f"the user asked to {wish} it"):
                return

    async def recover(self, job: str) -> None:
        """The user mended something: forget how often its actions failed, and try them and silent sites at once."""
        case = self.cases.get(job)
        if case is None:
            return
        for session in self.sessions.values():
            session.reconnect()
        await self._change(
            case.job,
            replace(case.job, recover=case.job.recover + 1, version=case.job.version + 1),
            "the user asked to recover it",
        )
        case = self.cases.get(job)
        if case is None:
            return  # it ended meanwhile
        self.cases[job] = replace(
            case,
            observed={
                entry: replace(o, outcomes={k: v for k, v in o.outcomes.items() if v.result is Result.OK})
                for entry, o in case.observed.items()
            },
        )
        self.touch(job)

    async def _change(self, before: Job, after: Job, message: str) -> bool:
        event = Event(
            self.clock(),
            after.owner,
            after.project,
            after.id,
            "job",
            after.id,
            before.state,
            after.state,
            message=message,
        )
        [accepted] = await self.in_store(self.store.commit, [Commit((after,), (event,))])
        case = self.cases.get(after.id)
        if accepted and case is not None and case.job == before:
            self.cases[after.id] = replace(case, job=after)
        else:
            await self._reload(after.id)
        self._announce_events()
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
            self._dirty[job] = None
            self._wake.set()
        self.announce(job)

    # -- observations (the sessions' Listener) ---------------------------------------------------------------------

    def site_changed(self, site: str) -> None:
        for job, case in list(self.cases.items()):
            if any(a.site == site and a.state is not AllocationState.CLEANED for a in case.allocations):
                self.touch(job)
        self._pending.changed(site)
        self._offer_places(site)

    def entry_seen(self, site: str, view: EntryView, at: float) -> None:
        job, home = self._entries.get(view.entry, ("", ""))
        if not job:
            self._suspect(site, view.entry)
            return
        if home != site:
            return  # whatever a site says of an entry that was given to another proves nothing
        before = self._observed(job, view.entry)
        old = before.view
        known = old.status.sequence if old is not None and old.status is not None else -1
        news = view.status is not None and view.status.sequence > known
        if old is not None:
            # Looks through a network file system may be stale: what was once seen stays seen.
            status = view.status
            if old.status is not None and (status is None or status.sequence < old.status.sequence):
                status = old.status
            owner = view.owner if view.owner is not None and view.owner.by in TAKERS else old.owner or view.owner
            view = EntryView(view.entry, owner, status, view.exit or old.exit)
        unreadable = view.owner is not None and view.owner.by not in TAKERS
        before = replace(
            before,
            view=view,
            view_at=at,
            news_at=at if news else before.news_at,
            unreadable_at=(before.unreadable_at or at) if unreadable else None,
        )
        self._observe(job, view.entry, before)
        # A beat alone decides nothing; it is shown to who follows, and matters to a pending verdict on silence.
        if old is None or view.owner != old.owner or view.exit != old.exit or isinstance(before.batch, Absent):
            self.touch(job)
        else:
            self.announce(job)

    def listed(self, site: str, listing: Listing) -> None:
        for entry in list(self._attended.get(site, ())):
            job = self._entries[entry][0]
            before = self._observed(job, entry)
            found = listing.jobs.get(entry)
            now: Seen | Absent
            if found is not None:
                known = before.batch if isinstance(before.batch, Seen) else None
                if known is not None and known.job == found:
                    continue  # nearly all of a long listing says what the one before said
                same_state = known is not None and known.job.state is found.state
                now = Seen(found, known.since if known is not None and same_state else listing.as_of)
            elif isinstance(before.batch, Absent):
                now = Absent(before.batch.first, listing.as_of, before.batch.times + 1)
            else:
                now = Absent(listing.as_of, listing.as_of, 1)
            self._observe(job, entry, replace(before, batch=now))
            self.touch(job)
        for name, found in listing.jobs.items():
            if name not in self._entries and found.state in (BatchState.PENDING, BatchState.HELD, BatchState.RUNNING):
                self._suspect(site, name, found.id)

    def silent(self, site: str, why: str) -> None:
        for entry in list(self._attended.get(site, ())):
            job = self._entries[entry][0]
            self._observe(job, entry, replace(self._observed(job, entry), batch=Unknown(why)))
        self.site_changed(site)

    def _suspect(self, site: str, entry: str, batch_id: str = "") -> None:
        """Something of this installation that no live job knows: a stray, if the store says that it was done with."""
        key = (entry, ActionKind.CLEAN)
        if key not in self._tasks and entry.startswith(f"{self.store.installation}-"):
            self._tasks[key] = asyncio.create_task(self._sweep(site, entry, batch_id))

    async def _sweep(self, site: str, entry: str, batch_id: str) -> None:
        try:
            job = entry.split("-")[1]
            records = await self.in_store(self.store.job, job)
            if records is not None:
                done = any(a.pilot_job == entry and a.state is AllocationState.CLEANED for a in records.allocations)
            else:
                done = any(e.after == "deleted" for e in await self.in_store(self.store.events, job=job))
            session = self.sessions.get(site)
            if done and session is not None and entry not in self._entries:
                await session.sweep(entry, batch_id)
        finally:
            del self._tasks[entry, ActionKind.CLEAN]

    def output(self, site: str, entry: str, stream: str, offset: int, data: bytes) -> None:
        job, home = self._entries.get(entry, ("", ""))
        if home != site or self._pieces >= WRITING:
            return
        epoch = next(a.epoch for a in self.cases[job].allocations if a.pilot_job == entry)
        self._pieces += 1
        write = partial(self.logs.write, job, epoch, stream, offset, data)
        written = asyncio.get_running_loop().run_in_executor(self._scribe, write)
        written.add_done_callback(partial(self._written, job))

    def _written(self, job: str, written: asyncio.Future[None]) -> None:
        self._pieces -= 1
        error = None if written.cancelled() else written.exception()
        if error is not None and job in self.cases:
            why = (error.strerror if isinstance(error, OSError) else None) or error
            self.waiting[job] = f"write its output to {self.logs.root}: {why}; all comes at its end"
        self.announce(job)

    # -- followers -------------------------------------------------------------------------------------------------

    def announce(self, job: str) -> None:
        for event in self._followers.get(job, ()):
            event.set()

    def follow(self, job: str, event: asyncio.Event, *, output: bool) -> None:
        self._followers.setdefault(job, set()).add(event)
        if output:
            self._watched[job] = self._watched.get(job, 0) + 1
            self._watch_output(job)

    def unfollow(self, job: str, event: asyncio.Event, *, output: bool) -> None:
        self._followers.get(job, set()).discard(event)
        if not self._followers.get(job):
            self._followers.pop(job, None)
        if output:
            self._watched[job] -= 1
            if not self._watched[job]:
                del self._watched[job]
                self._watch_output(job)

    def watch_events(self, event: asyncio.Event) -> None:
        self._event_watchers.add(event)

    def unwatch_events(self, event: asyncio.Event) -> None:
        self._event_watchers.discard(event)

    def _announce_events(self) -> None:
        for event in self._event_watchers:
            event.set()

    def _watch_output(self, job: str) -> None:
        case = self.cases.get(job)
        if case is None:
            return
        for a in case.allocations:
            session = self.sessions.get(a.site)
            if session is None:
                continue
            if a.state is AllocationState.RUNNING and job in self._watched:
                session.watch(a.pilot_job, {s: self.logs.size(job, a.epoch, s) for s in ("stdout", "stderr")})
            else:
                session.watch(a.pilot_job, None)

    # -- plan, commit, act -----------------------------------------------------------------------------------------

    def facts(self) -> dict[str, SiteFacts]:
        return {
            name: replace(session.facts, alive=self._places.get(name, 0)) for name, session in self.sessions.items()
        }

    def held(self, site: str) -> list[str]:
        """Jobs of which the site runs or holds something: results, even after the end."""
        return [
            job
            for job, case in self.cases.items()
            if any(a.site == site and a.state is not AllocationState.CLEANED for a in case.allocations)
        ]

    async def _pass(self, dirty: Iterable[str]) -> None:
        sites = self.facts()
        self._meter.advance(self._cpu(), len(self.cases))
        plans: list[tuple[str, JobPlan]] = []
        now = self.clock()
        for job in dirty:
            case = self.cases.get(job)
            if case is None:
                continue
            if case.job.state is JobState.EPILOG:
                case = replace(case, cpu=self._spent(case))
            try:
                step = plan(case, sites, self.policy, now, self.store.installation)
            except Exception as error:  # a fault of ours must cost this job alone
                self._park(job, f"plan {job}: {type(error).__name__}: {error}; report this as a bug", PARKED)
                continue
            for record in step.records:
                if isinstance(record, Allocation) and record.version == 1:
                    facts = sites[record.site]
                    sites[record.site] = replace(facts, alive=facts.alive + 1)
            plans.append((job, step))
        writing = [(job, step) for job, step in plans if step.records]
        verdicts: dict[str, bool | None] = {}
        if writing:
            self._steps("before-commit", writing)
            verdicts = await self._commit(writing)
            self._steps("after-commit", [(job, step) for job, step in writing if verdicts[job]])
            self._announce_events()
        # What is committed is taken in, all of it, before anything else is asked of the store.
        for job, step in plans:
            if verdicts.get(job, True):
                self._apply(job, step)
                for action in step.actions:
                    self._start(job, action)
        for job, step in plans:
            try:
                if verdicts.get(job, True) is False:
                    await self._reload(job)
                elif step.delete:
                    await self._delete(job)
            except (StoreError, OSError) as error:
                self._park(job, str(error), STORE_PAUSE)
        self._offer_the_rest()

    async def _commit(self, writing: list[tuple[str, JobPlan]]) -> dict[str, bool | None]:
        """Write all plans in one transaction. By job: whether its versions fitted; None where it could not be written.

        Where the transaction fails, each plan gets one of its own: one that cannot be written must not keep the others
        from it. Of what was not written nothing is done; it comes up again when its job is planned again.
        """
        commits = {job: Commit(step.records, step.events, step.ledger) for job, step in writing}
        try:
            return dict(zip(commits, await self.in_store(self.store.commit, list(commits.values())), strict=True))
        except Exception as error:
            if len(commits) == 1:
                self._park(writing[0][0], _words(error), STORE_PAUSE)
                return dict.fromkeys(commits)
        verdicts: dict[str, bool | None] = dict.fromkeys(commits)
        for job, commit in commits.items():
            try:
                [verdicts[job]] = await self.in_store(self.store.commit, [commit])
            except Exception as error:
                self._park(job, _words(error), STORE_PAUSE)
        return verdicts

    def _park(self, job: str, why: str, seconds: float) -> None:
        """Leave a job alone for a while, and say why to who asks."""
        self.waiting[job] = why
        self._timers.set(job, self.clock() + seconds)
        self.announce(job)

    def _steps(self, when: str, plans: Iterable[tuple[str, JobPlan]]) -> None:
        for job, step in plans:
            before = {a.id: a.state for a in self.cases[job].allocations}
            for record in step.records:
                if isinstance(record, Allocation):
                    self.steps(f"{when}:{before.get(record.id, UNBORN)}-{record.state}")

    def _apply(self, job: str, step: JobPlan) -> None:
        """The commit stands: take its records into the case."""
        case = self.cases[job]
        if step.records:
            allocations = {a.id: a for a in case.allocations}
            pilot_jobs = dict(case.pilot_jobs)
            the_job, vm = case.job, case.vm
            for record in step.records:
                match record:
                    case Job():
                        the_job = record
                    case Vm():
                        vm = record
                    case PilotJob():
                        pilot_jobs[record.name] = record
                    case Allocation():
                        allocations[record.id] = record
                        if record.state is not AllocationState.PLANNED:
                            self._stop(record.pilot_job, ActionKind.PROLOG)
            old, case = (
                case,
                replace(
                    case,
                    job=the_job,
                    vm=vm,
                    allocations=tuple(sorted(allocations.values(), key=lambda a: a.epoch)),
                    pilot_jobs=pilot_jobs,
                ),
            )
            self.cases[job] = case
            self._index(old, case)
            if job in self._watched:
                self._watch_output(job)
            self.touch(job)
        self.waiting[job] = step.waiting
        if case.job.state is JobState.PENDING and not step.records:
            self._pending.add(job, case.job.spec.site)
            if step.unplaced:
                self._in_vain.append(job)
        else:
            self._pending.remove(job)
        if step.wake_at is not None:
            self._timers.set(job, step.wake_at)
        else:
            self._timers.drop(job)
        over = case.job.state.final and all(a.state is AllocationState.CLEANED for a in case.allocations)
        if over and case.job.wish is not Wish.DELETE:
            self._drop(job)

    def _start(self, job: str, action: Action) -> None:
        key = (action.allocation.pilot_job, action.kind)
        if key in self._tasks:
            return
        before = self._observed(job, key[0])
        self._observe(job, key[0], replace(before, busy=before.busy | {action.kind}))
        self._tasks[key] = asyncio.create_task(self._act(job, action), name=f"{action.kind} {key[0]}")

    async def _act(self, job: str, action: Action) -> None:
        entry, kind = action.allocation.pilot_job, action.kind
        outcome: Outcome | None = None
        try:
            self.steps(f"before:{kind}")
            session = self.sessions.get(action.allocation.site)
            if session is None:
                message = f"{kind} {entry}: site {action.allocation.site} was removed"
                outcome = Outcome(Result.UNKNOWN, self.clock(), message=message, hint="add it again")
            else:
                case = self.cases.get(job)
                if case is None:
                    return  # it was deleted meanwhile
                outcome = await session.act(action, case)
            self.steps(f"after:{kind}")
        except Exception as error:  # a fault of ours, or a peer that talks nonsense, costs this one try
            words = f"{kind} {entry}: {type(error).__name__}: {error}"
            outcome = Outcome(Result.UNKNOWN, self.clock(), message=words, hint="report this as a bug")
        finally:
            del self._tasks[entry, kind]
            if job in self.cases:
                now = self._observed(job, entry)
                outcomes = dict(now.outcomes)
                if outcome is not None:
                    tries = outcomes[kind].tries + 1 if kind in outcomes else 1
                    outcomes[kind] = replace(outcome, tries=tries)
                self._observe(job, entry, replace(now, busy=now.busy - {kind}, outcomes=outcomes))
                self.touch(job)

    def _stop(self, entry: str, kind: ActionKind) -> None:
        task = self._tasks.get((entry, kind))
        if task is not None:
            task.cancel()

    async def _delete(self, job: str) -> None:
        case = self.cases[job]
        event = Event(
            self.clock(),
            case.job.owner,
            case.job.project,
            job,
            "job",
            job,
            case.job.state,
            "deleted",
            message="nothing of it is left at any site",
        )
        await self.in_store(self.store.delete_job, job, event)
        self.logs.remove(job)
        self._drop(job)
        self._announce_events()

    # -- book-keeping ---------------------------------------------------------------------------------------------

    async def _reload(self, job: str) -> None:
        records = await self.in_store(self.store.job, job)
        if records is not None:
            self.adopt(records)
        else:
            self._drop(job)

    def _drop(self, job: str) -> None:
        """It needs no more planning; the store has it for who asks."""
        self._index(self.cases.pop(job, None), None)
        self._pending.remove(job)
        self._timers.drop(job)
        for table in (self._dirty, self.waiting, self._began):
            table.pop(job, None)
        self.announce(job)

    def _spent(self, case: Case) -> dict[str, float]:
        """CPU seconds of controller and relays that fall to a job, since it was taken up by this controller."""
        own, relays = self._began[case.job.id]
        relay = 0.0
        for site in {a.site for a in case.allocations}:
            session = self.sessions.get(site)
            if session is not None:
                relay += session.relay_cpu.value - relays.get(site, 0.0)
        return {"controller": self._meter.value - own, "relay": relay}

    def _observed(self, job: str, entry: str) -> Observed:
        case = self.cases.get(job)
        return case.observed.get(entry, Observed()) if case is not None else Observed()

    def _observe(self, job: str, entry: str, observed: Observed) -> None:
        case = self.cases.get(job)
        if case is not None:
            self.cases[job] = replace(case, observed={**case.observed, entry: observed})

    def _index(self, old: Case | None, new: Case | None) -> None:
        """Keep what is counted over all cases: who holds a place, of whom the batch system's word matters."""
        freed: set[str] = set()
        for a in old.allocations if old is not None else ():
            if a.state in HOLDS_PLACE:
                self._places[a.site] -= 1
                freed.add(a.site)
        kept: set[str] = set()
        for a in new.allocations if new is not None else ():
            if a.state in HOLDS_PLACE:
                self._places[a.site] = self._places.get(a.site, 0) + 1
                freed.discard(a.site)
            session = self.sessions.get(a.site)
            if a.state not in (AllocationState.PLANNED, AllocationState.CLEANED):
                kept.add(a.pilot_job)
                self._attended.setdefault(a.site, {})[a.pilot_job] = None
                if session is not None:
                    session.attend(a.pilot_job, a.state in (AllocationState.SUBMITTING, AllocationState.QUEUED))
            if new is not None:
                self._entries[a.pilot_job] = (new.job.id, a.site)
        for a in (new or old).allocations if (new or old) is not None else ():  # type: ignore[union-attr]
            if a.pilot_job not in kept and self._attended.get(a.site, {}).pop(a.pilot_job, 0) is None:
                session = self.sessions.get(a.site)
                if session is not None:
                    session.attend(a.pilot_job, None)
            if new is None:
                self._entries.pop(a.pilot_job, None)
        for site in freed:
            self._offer_places(site)

    def _offer_places(self, site: str) -> None:
        """Wake as many waiting jobs as the site has places, and a few more in case some cannot use it."""
        offers = self._free_places(site)
        if offers <= 0:
            return
        for job in self._pending.candidates(site, offers + SPARE):
            self.touch(job)

    def _offer_the_rest(self) -> None:
        """Where jobs found no place and a site has some left, they cannot use it: others get their turn."""
        looked, self._in_vain = self._in_vain, []
        for site in self.sessions if looked else ():
            if self._free_places(site) > 0 and self._pending.unfit(site, looked):
                self._offer_places(site)

    def _free_places(self, site: str) -> int:
        session = self.sessions.get(site)
        if session is None or not session.facts.up:
            return 0
        return session.facts.max_jobs - self._places.get(site, 0)


def _words(error: Exception) -> str:
    return str(error) if isinstance(error, StoreError) else f"{type(error).__name__}: {error}; report this as a bug"
