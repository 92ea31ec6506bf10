"""What a user can ask of a job's guest: to be saved, to stand still, to go on, and from which checkpoint.

What is asked for is committed here, and done by the loop.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import msgspec

from gridhypervisor.execution.jobs import Jobs, job_of
from gridhypervisor.execution.present import checkpoint_view
from gridhypervisor.execution.steps import Still
from gridhypervisor.model.commit import Record
from gridhypervisor.model.records import (
    Allocation,
    AllocationState,
    CheckpointRecord,
    CheckpointState,
    CopyState,
    Saving,
    Wish,
)
from gridhypervisor.model.views import CheckpointView, JobView, Problem, ServiceError
from gridhypervisor.model.wire import SAVE_END, SAVE_GO_ON, SAVE_PAUSE, SAVE_UNPAUSE
from gridhypervisor.planning.checkpoints import THERE, newest_first, onward, uncheckpointable, unsuspendable
from gridhypervisor.planning.draft import OVER
from gridhypervisor.planning.pausing import paused, unpausable
from gridhypervisor.planning.travel import lost, misfit, saves, unwelcome
from gridhypervisor.planning.world import Case, SiteFacts

Change = Callable[[Case], tuple[Record, ...]]


class SuspendableJobs(Jobs):
    """The part of the API's backend that is about jobs that stand still, and checkpoints."""

    async def suspend(self, job: str) -> JobView:
        """Asked for again while it is suspended, or about to be, it changes nothing."""
        case = await self._case(job)
        if case.job.wish is not Wish.SUSPEND:
            if (refusal := unsuspendable(case, self._facts(case))) is not None:
                raise ServiceError(Problem(f"suspend job {job}", 409, "conflict", *refusal))
            await self.controller.wish(job, Wish.SUSPEND)
        return await self._view(job)

    async def resume(self, job: str, to: str = "") -> JobView:
        """One that is not suspended, nor about to be, goes on as it does. `to`: at this site, from now on."""
        case = await self._case(job)
        title = f"resume job {job}" + (f" at {to}" if to else "")
        if case.job.state.final or case.job.wish.ends:
            why = f"it {'has ended' if case.job.state.final else 'is being cancelled'}: {case.job.state}"
            raise ServiceError(Problem(title, 409, "conflict", why, "submit it again"))
        if not to:
            if case.job.wish is Wish.SUSPEND and (why := lost(case, self.controller.facts())):
                hint = f"`ghv checkpoint list {job}`; when they are deleted, this has it begin anew"
                raise ServiceError(Problem(title, 409, "conflict", why, hint))
            await self.controller.wish(job, Wish.RUN)
            return await self._view(job)
        self._known_site(title, to)

        def change(case: Case) -> tuple[Record, ...]:
            if any(a.state not in OVER for a in case.allocations):
                hint = f"`ghv move {job} --to {to}`, or this again when it is suspended"
                raise ServiceError(Problem(title, 409, "conflict", "it has an attempt under way", hint))
            spec = msgspec.structs.replace(case.job.spec, site=to)
            asked = replace(case.job, spec=spec, wish=Wish.RUN, version=case.job.version + 1)
            facts = self.controller.facts()
            found = onward(asked, case.allocations, case.checkpoints, facts)
            if found is not None and (why := misfit(found, facts[to])):
                hint = f"`ghv resume {job}` has it go on elsewhere; without its checkpoints it would begin anew"
                raise ServiceError(Problem(title, 409, "conflict", why, hint))
            return (asked,)

        await self._amend(title, job, Still.WISH_RUN, change, f"the user asked to resume it at {to}")
        return await self._view(job)

    async def _leave(self, case: Case, to: str, why: str) -> None:
        """A guest that runs, and can be saved, is sent there as it is."""
        facts, a = self._facts(case), case.current
        title, job = f"move job {case.job.id} to {to}", case.job.id
        if to and a is not None and a.state is AllocationState.RUNNING and a.saving and not a.saving.answered:
            if a.saving.to == to:
                return  # it leaves already
            raise ServiceError(Problem(title, 409, "conflict", "its guest is being saved", "this again when it is"))
        if not to or not saves(case, facts):
            return await super()._leave(case, to, why)
        if words := unwelcome(case, facts, self.controller.facts()[to]):
            hint = f"to have it begin anew there: suspend it, delete its checkpoints, and `ghv resume {job} --to {to}`"
            raise ServiceError(Problem(title, 409, "conflict", words, hint))

        def change(case: Case) -> tuple[Record, ...]:
            if (refusal := uncheckpointable(case, self._facts(case))) is not None:
                raise ServiceError(Problem(title, 409, "conflict", *refusal))
            return (self._to_be_saved(case, SAVE_END, why, to),)

        await self._amend(title, job, Still.SAVING, change, why)

    def _to_be_saved(self, case: Case, then: str, why: str, to: str = "") -> Allocation:
        a = case.newest
        number = a.saving.number + 1 if a.saving is not None else 1
        return replace(a, saving=Saving(number, then, self.controller.clock(), why, to=to), version=a.version + 1)

    async def save(self, job: str) -> JobView:
        """Have a checkpoint made of a job whose program goes on meanwhile, but for the moment of the saving."""
        title = f"make a checkpoint of job {job}"

        def change(case: Case) -> tuple[Record, ...]:
            if (refusal := uncheckpointable(case, self._facts(case))) is not None:
                raise ServiceError(Problem(title, 409, "conflict", *refusal))
            return (self._to_be_saved(case, SAVE_GO_ON, "the user asked for a checkpoint"),)

        await self._amend(title, job, Still.SAVING, change, "the user asked for a checkpoint")
        return await self._view(job)

    async def pause(self, job: str, *, undo: bool) -> JobView:
        """Have its guest stand still in its place, or (`undo`) go on. What it does already it goes on doing."""
        title, then = f"{'unpause' if undo else 'pause'} job {job}", SAVE_UNPAUSE if undo else SAVE_PAUSE

        def change(case: Case) -> tuple[Record, ...]:
            a = case.allocations[-1] if case.allocations else None
            if a is not None and a.saving is not None and not a.saving.answered and a.saving.then == then:
                return ()  # a client repeats what it got no answer to
            if (refusal := unpausable(case, then)) is not None:
                raise ServiceError(Problem(title, 409, "conflict", *refusal))
            a = case.allocations[-1]
            if paused(case.sight(a)) is not undo:
                return ()
            number = a.saving.number + 1 if a.saving is not None else 1
            why = f"the user {'unpauses' if undo else 'pauses'} it"
            return (replace(a, saving=Saving(number, then, self.controller.clock(), why), version=a.version + 1),)

        await self._amend(title, job, Still.SAVING, change, f"the user {'unpaused' if undo else 'paused'} it")
        return await self._view(job)

    async def checkpoints(self, job: str) -> list[CheckpointView]:
        """Those that are kept of a job, or ("") of all; newest first."""
        cases = [await self._case(job)] if job else list(self.controller.cases.values())
        return [
            checkpoint_view(c) for c in newest_first(c for case in cases for c in case.checkpoints if c.state in THERE)
        ]

    async def delete_checkpoint(self, checkpoint: str) -> None:
        """One that is gone may be deleted again: a client repeats what it got no answer to."""
        title = f"delete checkpoint {checkpoint}"

        def change(case: Case) -> tuple[Record, ...]:
            record = _named(case, checkpoint, title)
            if record.state not in THERE:
                return ()
            if any(a.restore == checkpoint and a.state not in OVER for a in case.allocations):
                hint = f"`ghv suspend {case.job.id}` or cancel it first"
                raise ServiceError(Problem(title, 409, "conflict", f"job {case.job.id} goes on from it just now", hint))
            return (replace(record, state=CheckpointState.DOOMED, version=record.version + 1),)

        await self._amend(title, _job_of(checkpoint, title), Still.CHECKPOINT, change, f"the user deleted {checkpoint}")

    async def copy_checkpoint(self, checkpoint: str) -> CheckpointView:
        """Have a copy of it made on the service's machine; asked for again, it is made once."""
        title = f"copy checkpoint {checkpoint}"
        job = _job_of(checkpoint, title)

        def change(case: Case) -> tuple[Record, ...]:
            record = _named(case, checkpoint, title)
            if record.copy in (CopyState.WANTED, CopyState.KEPT) and record.state in THERE:
                return ()
            if case.job.state.final or record.state is not CheckpointState.KEPT:
                ended = f"job {job} has ended, and its checkpoints go"
                refused = f"it could not be gone on from: {record.note}"
                why = ended if case.job.state.final else refused if record.state in THERE else "it has been deleted"
                hint = f"`ghv checkpoint list {job}` shows those that are left"
                raise ServiceError(Problem(title, 409, "conflict", why, hint))
            return (replace(record, copy=CopyState.WANTED, version=record.version + 1),)

        await self._amend(title, job, Still.CHECKPOINT, change, f"the user asked for a copy of {checkpoint}")
        return checkpoint_view(_named(await self._case(job), checkpoint, title))

    async def restore(self, checkpoint: str) -> JobView:
        """Have its job go on from this one, and not from a newer one; a job that is suspended is resumed by it."""
        title = f"restore checkpoint {checkpoint}"
        job = _job_of(checkpoint, title)

        def change(case: Case) -> tuple[Record, ...]:
            record = _named(case, checkpoint, title)
            if case.job.state.final or case.job.wish.ends:
                why = f"job {job} has ended, or is about to: {case.job.state}"
                raise ServiceError(Problem(title, 409, "conflict", why, "submit it again"))
            if record.state not in THERE:
                hint = f"`ghv checkpoint list {job}` shows those that are left"
                raise ServiceError(Problem(title, 409, "conflict", "it has been deleted", hint))
            if any(a.state not in OVER for a in case.allocations):
                hint = f"`ghv suspend {job}`, and when that is done, this again"
                raise ServiceError(Problem(title, 409, "conflict", f"job {job} has an attempt under way", hint))
            facts = self.controller.facts().get(case.job.spec.site)
            if facts is not None and (why := misfit(record, facts)):
                hint = f"`ghv resume {job} --to {record.site}` has it go on where the checkpoint is"
                raise ServiceError(Problem(title, 409, "conflict", why, hint))
            chosen = replace(
                record, since=self.controller.clock(), state=CheckpointState.KEPT, version=record.version + 1
            )
            return chosen, replace(case.job, wish=Wish.RUN, version=case.job.version + 1)

        await self._amend(title, job, Still.CHECKPOINT, change, f"the user has it go on from {checkpoint}")
        return await self._view(job)

    def _facts(self, case: Case) -> SiteFacts | None:
        session = self.controller.sessions.get(a.site) if (a := case.current) is not None else None
        return session.facts if session is not None else None

    async def _amend(self, title: str, job: str, step: Still, change: Change, message: str) -> None:
        if job not in self.controller.cases:
            await self._case(job)  # which says so, where there is no such job
            raise ServiceError(Problem(title, 409, "conflict", f"job {job} has ended", "`ghv checkpoint list`"))
        await self.controller.amend(job, step, change, message)


def _job_of(checkpoint: str, title: str) -> str:
    """The job whose checkpoint has this id."""
    job = job_of(checkpoint)
    if not job:
        hint = "`ghv checkpoint list` shows those there are"
        raise ServiceError(Problem(title, 404, "not-found", f"{checkpoint!r} is no checkpoint's id", hint))
    return job


def _named(case: Case, checkpoint: str, title: str) -> CheckpointRecord:
    for each in case.checkpoints:
        if each.id == checkpoint:
            return each
    raise ServiceError(
        Problem(title, 404, "not-found", "there is no such checkpoint", "`ghv checkpoint list` shows those there are")
    )
