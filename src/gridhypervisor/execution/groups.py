"""Keeps what was submitted as one: makes the tasks of arrays and the jobs of workflows as their time comes, and ends
what has no more to do.

Everything about a group is committed before it counts: that it is wanted, which tasks of it have been made (together
with their jobs), what the user wishes of it. So whoever comes after a crash goes on where the last commit was. What is
to be made and how it ended, `planning.arrays` decides, and of workflows `workflows`; the members are jobs like all
others.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import assert_never

from gridhypervisor.execution.cases import Cases
from gridhypervisor.execution.followers import Followers
from gridhypervisor.execution.infrastructures import Infrastructures
from gridhypervisor.execution.ports import Steps, Store
from gridhypervisor.execution.steps import Still
from gridhypervisor.execution.storing import StoreThread
from gridhypervisor.execution.workflows import Workflows
from gridhypervisor.model.arrays import TaskArray, tasks_of
from gridhypervisor.model.commit import Birth, JobRecords, StoreError
from gridhypervisor.model.records import Event, Group, JobState, Wish
from gridhypervisor.model.replacing import replace
from gridhypervisor.planning.arrays import births, to_make, verdict
from gridhypervisor.planning.gangs import decide, standing
from gridhypervisor.planning.infrastructures import births as infrastructure_births
from gridhypervisor.planning.packing import prepare
from gridhypervisor.planning.world import Case, Gang

PAUSE = 2.0
"""Seconds before what could not be done (the store's disk is full, mostly) is tried again."""

PAGE = 200
"""Tasks that are deleted at a time."""


class Groups:
    """`adopt` takes up new jobs; `wish` has one job cancelled or deleted; `plan` has one planned; `ended` hears of
    groups that have ended."""

    def __init__(
        self,
        store: Store,
        in_store: StoreThread,
        cases: Cases,
        adopt: Callable[[JobRecords], None],
        wish: Callable[[str, Wish], Awaitable[None]],
        plan: Callable[[str], None],
        followers: Followers,
        clock: Callable[[], float],
        steps: Steps,
        ended: Callable[[str], None],
    ) -> None:
        self._store, self._in_store, self._cases, self._adopt, self._wish = store, in_store, cases, adopt, wish
        self._plan = plan
        self._followers, self._clock, self._steps, self._ended = followers, clock, steps, ended
        self._alive: dict[str, Group] = {}
        self._arrays: dict[str, TaskArray] = {}
        self._dirty: dict[str, None] = {}
        self._prepared = False  # for the packing of gangs
        self._told: dict[str, Gang] = {}  # what the members of a gang were planned by
        self._reminders: dict[str, asyncio.TimerHandle] = {}  # of gangs that wait for their members
        self._wake = asyncio.Event()
        self.trouble: dict[str, str] = {}  # group -> what keeps it, in words for the user
        self.workflows = Workflows(store, in_store, cases, clock, self.touch)
        self.infrastructures = Infrastructures(store, in_store, cases, clock)

    async def load(self) -> None:
        """Take up what the store knows; after the jobs."""
        for group in await self._in_store(self._store.groups, alive=True, limit=1 << 30):
            self._take(group)

    async def run(self) -> None:
        """Until cancelled."""
        try:
            await self._run()
        finally:
            for reminder in self._reminders.values():
                reminder.cancel()
            await self.workflows.close()

    async def _run(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            dirty, self._dirty = self._dirty, {}
            for group in dirty:
                try:
                    await self._advance(group)
                    self.trouble.pop(group, None)
                except Exception as error:  # a fault of ours must cost this group alone
                    ours = "" if isinstance(error, StoreError) else f"{type(error).__name__}: "
                    self.trouble[group] = f"{ours}{error}"
                    asyncio.get_running_loop().call_later(PAUSE, self.touch, group)

    def touch(self, group: str) -> None:
        """Something about it, or about one of its jobs, changed."""
        if group in self._alive:
            self._dirty[group] = None
            self._wake.set()
        self._followers.announce(group)

    async def create(
        self, group: Group, event: Event, key: str, nodes: Mapping[str, str] = MappingProxyType({})
    ) -> Group:
        """Write it down, and take it up. Its jobs come later."""
        self._steps(f"before-commit:{Still.GROUP}")
        made = await self._in_store(self._store.create_group, group, event, key, nodes)
        self._steps(f"after-commit:{Still.GROUP}")
        self._take(made)
        return made

    async def find(self, group: str) -> Group | None:
        if group in self._alive:
            return self._alive[group]
        found = await self._in_store(self._store.groups, ids=[group])
        return found[0] if found else None

    async def wish(self, group: str, wish: Wish) -> None:
        """The user wants all of it cancelled or deleted. A wish only grows. Returns once it is committed."""
        order = list(Wish)
        while (before := await self.find(group)) is not None:
            if order.index(before.wish) >= order.index(wish) or (before.state.final and wish is Wish.CANCEL):
                return
            message = f"the user asked to {wish} it"
            if await self._put(before, replace(before, wish=wish), message=message):
                return

    def alive(self) -> list[Group]:
        """Those that have not ended, or are to be deleted."""
        return list(self._alive.values())

    def gang(self, group: str) -> Gang:
        """How a gang is, for its members."""
        found = self._alive.get(group)
        return standing(found, self._cases.gang(group)) if found is not None else Gang()

    def members(self, group: str) -> list[str]:
        """Its jobs that are alive."""
        return self._cases.members(group)

    def _take(self, group: Group) -> None:
        """It is so now, unless something newer is known of it."""
        standing = self._alive.get(group.id)
        if standing is None or standing.version < group.version:
            if group.state.final and group.wish is not Wish.DELETE:
                self._forget(group.id)
                return
            self._alive[group.id] = group
        if group.spec is not None and group.spec.gang is not None and not self._prepared:
            self._prepared = True
            asyncio.get_running_loop().run_in_executor(None, prepare)
        self.touch(group.id)

    async def _put(
        self,
        before: Group,
        after: Group,
        new: Sequence[Birth] = (),
        message: str = "",
        nodes: Mapping[str, str] = MappingProxyType({}),
        step: Still = Still.GROUP,
    ) -> bool:
        after = replace(after, version=before.version + 1)
        events = [_event(after, self._clock(), _state(before), _state(after), message)] if message else []
        self._steps(f"before-commit:{step}")
        if not await self._in_store(self._store.put_group, after, new, events, nodes):
            standing = await self._in_store(self._store.groups, ids=[before.id])
            for group in standing:
                self._take(group)
            return False
        self._steps(f"after-commit:{step}")
        for birth in new:
            self._adopt(JobRecords(birth.job, birth.vm))
        self._take(after)
        self._followers.announce_events()
        return True

    async def _advance(self, name: str) -> None:
        group = self._alive.get(name)
        if group is None:
            return
        if group.wish is Wish.DELETE:
            self.workflows.drop(name)
            await self._delete(group)
            return
        if group.wish is Wish.CANCEL:
            await self._cancel(self._cases.members(name))
        if group.blueprint is not None:
            await self._advance_infrastructure(group)
        elif group.workflow:
            await self._advance_workflow(group)
        elif not await self._advance_gang(group):
            await self._advance_array(group)

    async def _cancel(self, jobs: Iterable[str]) -> None:
        for job in jobs:
            if job in self._cases and not self._cases[job].job.state.final:
                await self._wish(job, Wish.CANCEL)

    async def _advance_workflow(self, group: Group) -> None:
        await self._cancel(self.workflows.to_cancel(group))
        what = await self.workflows.next(group)
        if what is not None and await self._put(group, what.group, [*what.births.values()], what.message, what.nodes):
            self.workflows.committed(what)

    async def _advance_infrastructure(self, group: Group) -> None:
        what = await self.infrastructures.next(group)
        self._remind(group.id, what.wake_at)
        new: Sequence[Birth] = ()
        if what.births:
            number = await self._in_store(self._store.reserve, len(what.births))
            new = infrastructure_births(group, what.births, number, self._clock())
        if new or what.standing is not None:
            after = replace(group, standing=what.standing or group.standing, made=group.made + len(new))
            if what.over is not None:
                after = replace(after, state=what.over, ended=self._clock(), message=what.message)
            if not await self._put(group, after, new, what.message):
                return
        for job, wish in what.ends:
            await self._wish(job, wish)

    async def change(self, group: str, change: Callable[[Group], Group], message: str) -> Group | None:
        """Commit what `change` makes of it as it stands then; what that raises, is raised, with nothing done. None:
        there is no such group (any more)."""
        while (before := await self.find(group)) is not None:
            after = change(before)
            if after == before or await self._put(before, after, message=message):
                return after
        return None

    def _remind(self, group: str, at: float | None) -> None:
        """Look at it again then at the latest."""
        if (earlier := self._reminders.pop(group, None)) is not None:
            earlier.cancel()
        if at is not None:
            later = asyncio.get_running_loop().call_later
            self._reminders[group] = later(max(0.0, at - self._clock()), self.touch, group)

    async def _advance_gang(self, group: Group) -> bool:
        """Whether something was committed: that the programs may begin, or that a round is given up."""
        if group.spec is None or group.spec.gang is None or group.wish is not Wish.RUN or not group.made:
            return False
        cases = self._cases.gang(group.id)
        if any(case.job.wish is not Wish.RUN for case in cases) or await self._lacks_members(group, cases):
            await self.wish(group.id, Wish.CANCEL)  # without one of them it is no gang
            return True
        now = self._clock()
        decision = decide(group, cases, now)
        self._remind(group.id, decision.wake_at)
        if decision.rounds is None:
            told = standing(group, cases)
            if self._told.get(group.id) != told:
                self._told[group.id] = told
                for case in cases:
                    self._plan(case.job.id)
            return False
        step = Still.BEGIN if decision.rounds.begun > group.rounds.begun else Still.RELEASE
        await self._put(group, replace(group, rounds=decision.rounds), message=decision.message, step=step)
        return True

    async def _lacks_members(self, group: Group, cases: Sequence[Case]) -> bool:
        """Whether one has ended badly before the gang did, and is known to the store alone."""
        if len(cases) == group.made or group.rounds.over or all(case.job.state.final for case in cases):
            return False
        states = (await self._in_store(self._store.tally, group.id)).states
        known = sum(case.job.state in (JobState.FAILED, JobState.CANCELLED) for case in cases)
        return states.get(JobState.FAILED, 0) + states.get(JobState.CANCELLED, 0) > known

    async def _advance_array(self, group: Group) -> None:
        name, standing = group.id, self._cases.standing(group.id)
        assert group.spec is not None
        match group.wish:
            case Wish.RUN | Wish.SUSPEND:  # only single jobs are suspended
                array = self._arrays.get(name)
                if array is None:
                    array = self._arrays[name] = tasks_of(group.spec)
                count = to_make(array, group.made, standing)
                if count:
                    number = await self._in_store(self._store.reserve, count)
                    new = births(group, array, count, number, self._clock())
                    await self._put(group, replace(group, made=group.made + len(new)), new)
                    return
                over = group.made == len(array) and not standing.total()
            case Wish.CANCEL | Wish.DELETE:
                over = not standing.total()
            case _:
                assert_never(group.wish)
        if over and not group.state.final:
            tally = await self._in_store(self._store.tally, name)
            ended = replace(group, state=verdict(tally, group.wish), ended=self._clock())
            await self._put(group, ended, message=f"{tally.well} of {group.made} ended well")

    async def _delete(self, group: Group) -> None:
        """Have a page of its jobs deleted; each that is gone wakes us for the next. The last thing is the group."""
        page = await self._in_store(self._store.jobs, group=group.id, limit=PAGE)
        for records in page:
            await self._wish(records.job.id, Wish.DELETE)
        if not page:
            event = _event(group, self._clock(), _state(group), "deleted", "none of its jobs is left")
            self._steps(f"before-commit:{Still.GROUP}")
            await self._in_store(self._store.delete_group, group.id, event)
            self._steps(f"after-commit:{Still.GROUP}")
            self._forget(group.id)
            self._followers.announce_events()

    def _forget(self, group: str) -> None:
        """It needs nothing more; the store has it for who asks."""
        self._alive.pop(group, None)
        self._arrays.pop(group, None)
        self._told.pop(group, None)
        self._remind(group, None)
        self.workflows.drop(group)
        self.infrastructures.drop(group)
        self.trouble.pop(group, None)
        self._ended(group)
        self._followers.announce(group)


def _state(group: Group) -> str:
    """How it is, in the words that its user sees."""
    return str(group.standing.state if group.blueprint is not None else group.state)


def _event(group: Group, at: float, before: str, after: str, message: str) -> Event:
    return Event(at, group.owner, group.project, group.id, "group", group.id, before, after, message=message)
