"""Has the sessions carry out what plans ask for: each action in a task of its own, its outcome made an observation.

There is at most one task of a kind for each entry. What an outcome means, the planner decides.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Container, Mapping

from gridhypervisor.execution.cases import Cases
from gridhypervisor.execution.copies import Copies
from gridhypervisor.execution.ports import Session, Steps
from gridhypervisor.model.records import ActionKind
from gridhypervisor.model.replacing import replace
from gridhypervisor.planning.draft import HERE, Action
from gridhypervisor.planning.world import Outcome, Result


class Actions:
    """`touch` is called with each job of which an action has ended; `count` of each kind and result how many have."""

    def __init__(
        self,
        sessions: Mapping[str, Session],
        cases: Cases,
        copies: Copies,
        touch: Callable[[str], None],
        clock: Callable[[], float],
        steps: Steps,
        count: Counter[tuple[str, str]],
    ) -> None:
        self._sessions, self._cases, self._touch, self._clock, self._steps = sessions, cases, touch, clock, steps
        self._copies, self._count = copies, count
        self._tasks: dict[tuple[str, ActionKind], asyncio.Task[None]] = {}

    def start(self, job: str, action: Action) -> None:
        key = entry, kind = action.allocation.pilot_job, action.kind
        if key in self._tasks:
            return
        before = self._cases.observed(job, entry)
        self._cases.observe(job, entry, replace(before, busy=before.busy | {kind}))
        self._tasks[key] = asyncio.create_task(self._act(job, action), name=f"{kind} {entry}")

    def stop(self, entry: str, kind: ActionKind) -> None:
        """Its purpose is gone."""
        task = self._tasks.get((entry, kind))
        if task is not None:
            task.cancel()

    async def close(self) -> None:
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _act(self, job: str, action: Action) -> None:
        entry, kind = action.allocation.pilot_job, action.kind
        outcome: Outcome | None = None
        try:
            self._steps(f"before:{kind}")
            session, case = self._sessions.get(action.allocation.site), self._cases.get(job)
            if case is None:
                return  # it was deleted meanwhile
            if kind in HERE:
                outcome = await self._erase(action)
            elif session is None:
                message = f"{kind} {entry}: site {action.allocation.site} was removed"
                outcome = Outcome(Result.UNKNOWN, self._clock(), message=message, hint="add it again")
            else:
                outcome = await session.act(action, case)
            self._steps(f"after:{kind}")
        except Exception as error:  # a fault of ours, or a peer that talks nonsense, costs this one try
            words = f"{kind} {entry}: {type(error).__name__}: {error}"
            outcome = Outcome(Result.UNKNOWN, self._clock(), message=words, hint="report this as a bug")
        finally:
            del self._tasks[entry, kind]
            self._count[str(kind), str(outcome.result) if outcome is not None else "stopped"] += 1
            if job in self._cases:
                self._ended(job, entry, kind, outcome)

    async def _erase(self, action: Action) -> Outcome:
        """Remove the copy of a checkpoint from this machine."""
        [name] = action.checkpoints
        try:
            await asyncio.to_thread(self._copies.erase, name)
        except OSError as error:
            words = f"erase the copy of checkpoint {name}: {error.filename}: {error.strerror or error}"
            return Outcome(Result.UNKNOWN, self._clock(), message=words, copied=name)
        return Outcome(Result.OK, self._clock(), copied=name)

    def forget(self, job: str, entry: str, kinds: Container[ActionKind]) -> None:
        """What came of these is written down: asked for again, they are done again."""
        now = self._cases.observed(job, entry)
        self._cases.observe(
            job, entry, replace(now, outcomes={k: o for k, o in now.outcomes.items() if k not in kinds})
        )

    def _ended(self, job: str, entry: str, kind: ActionKind, outcome: Outcome | None) -> None:
        """`outcome`: None where it was stopped."""
        now = self._cases.observed(job, entry)
        outcomes = dict(now.outcomes)
        if outcome is not None:
            tries = outcomes[kind].tries + 1 if kind in outcomes else 1
            outcomes[kind] = replace(outcome, tries=tries)
        self._cases.observe(job, entry, replace(now, busy=now.busy - {kind}, outcomes=outcomes))
        self._touch(job)
