"""Carries out, over one connection, the actions that plans ask for, and says of each how it went.

Every failure becomes an outcome: refused, where trying again is in vain as things are, or else unknown. What follows
from it, the planner decides.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from gridhypervisor.execution import restarts
from gridhypervisor.execution.cancellations import Cancellations
from gridhypervisor.execution.collect import Collector
from gridhypervisor.execution.connection import CALL, Connection
from gridhypervisor.execution.copies import Copies, Unsound
from gridhypervisor.execution.logs import OUTPUT, Logs
from gridhypervisor.execution.ports import Listener
from gridhypervisor.execution.prolog import Damaged, Prolog
from gridhypervisor.execution.results import Unfit
from gridhypervisor.execution.submissions import Submissions
from gridhypervisor.model.batch import Carried, Submission
from gridhypervisor.model.errors import InputError, LinkError, LinkLost
from gridhypervisor.model.records import ActionKind, Allocation, Job
from gridhypervisor.model.replacing import replace
from gridhypervisor.model.spec import parse_size
from gridhypervisor.model.wire import BEGIN, CANCEL, CHECKPOINTS, SPOOL, Op, OwnerRecord, Reason, from_plain
from gridhypervisor.planning.draft import Action
from gridhypervisor.planning.probes import PATIENCE
from gridhypervisor.planning.segments import walltime_of
from gridhypervisor.planning.sites import carried
from gridhypervisor.planning.warm import lasting, warmth
from gridhypervisor.planning.world import Case, Outcome, Result

_PURPOSES = {
    ActionKind.PROLOG: "send image and inputs to",
    ActionKind.SUBMIT: "submit it to",
    ActionKind.REVOKE: "withdraw it from",
    ActionKind.REQUEST_CANCEL: "ask it to stop at",
    ActionKind.BATCH_CANCEL: "end its batch job at",
    ActionKind.BEGIN: "have it begin at",
    ActionKind.SAVE: "have its guest saved at",
    ActionKind.COPY: "copy its checkpoint from",
    ActionKind.ERASE: "erase the copy of its checkpoint from",
    ActionKind.LOOK: "look after it at",
    ActionKind.COLLECT: "bring the results from",
    ActionKind.CLEAN: "clean up after it at",
    ActionKind.DISCARD: "remove its checkpoints from",
}


def purpose(action: Action) -> str:
    """What an action does to a job, in words for its outcome."""
    return f"{_PURPOSES[action.kind]} {action.allocation.site}"


class Errands:
    """`ask_listing` has the batch system asked soon; `used` is told the relay's CPU seconds so far; `jitter` gives a
    factor, around 1."""

    def __init__(
        self,
        connection: Connection,
        prolog: Prolog,
        logs: Logs,
        copies: Copies,
        listener: Listener,
        *,
        clock: Callable[[], float],
        jitter: Callable[[], float],
        progress: Callable[[str, str], None],
        ask_listing: Callable[[], None],
        used: Callable[[float], None],
    ) -> None:
        room = partial(listener.room_changed, connection.site.name)
        self.submissions = Submissions(connection, jitter=jitter, room=room, tell=progress)
        self._cancellations = Cancellations(connection)
        self._connection, self._prolog, self._logs, self._copies = connection, prolog, logs, copies
        self._listener = listener
        self._clock, self._progress, self._ask_listing, self._used = clock, progress, ask_listing, used
        self._measuring: asyncio.Task[None] | None = None

    async def run(self, action: Action, case: Case) -> Outcome:
        what = purpose(action)
        try:
            return await self._carry_out(action, case)
        except Damaged as error:
            return self._outcome(Result.REFUSED, f"{what}: {error}", error.hint, error.reason)
        except (InputError, Unfit) as error:
            return self._outcome(Result.REFUSED, f"{what}: {error}", error.hint, Reason.STAGING)
        except LinkLost as error:
            return self._outcome(Result.UNKNOWN, f"{what}: {error}")
        except LinkError as error:
            if error.kind == "lender":
                return self._outcome(Result.REFUSED, f"{what}: {error}", error.hint, Reason.LENDER)
            return self._outcome(Result.UNKNOWN, f"{what}: {error}", error.hint)
        except OSError as error:
            hint = "free some space or mend the folder; it is tried again by itself, or at once with `ghv recover`"
            return self._outcome(Result.UNKNOWN, f"{what}: {error.filename}: {error.strerror or error}", hint)
        finally:
            self._progress(action.allocation.pilot_job, "")

    def _outcome(self, result: Result, message: str = "", hint: str = "", reason: Reason | None = None) -> Outcome:
        return Outcome(result, self._clock(), reason=reason, message=message, hint=hint)

    async def _carry_out(self, action: Action, case: Case) -> Outcome:
        a = action.allocation
        match action.kind:
            case ActionKind.PROLOG:
                await self._measure()
                await self._note_beginning(a, case)
                await self._prolog.prepare(a, case)
            case ActionKind.SUBMIT:
                return await self._submit(a, case.job)
            case ActionKind.REVOKE:
                args = {"entry": a.pilot_job, "epoch": a.epoch, "by": "controller", "why": action.why}
                reply = await self._connection.ask(Op.REVOKE, args)
                return replace(self._outcome(Result.OK), owner=from_plain(OwnerRecord, reply["owner"]))
            case ActionKind.REQUEST_CANCEL:
                await self._connection.ask(Op.REQUEST, {"entry": a.pilot_job, "what": CANCEL, "why": action.why})
            case ActionKind.BEGIN:
                await self._note_beginning(a, case)
                await self._connection.ask(Op.REQUEST, {"entry": a.pilot_job, "what": BEGIN, "members": action.members})
            case ActionKind.SAVE if a.saving is not None:
                asked = {"number": a.saving.number, "then": a.saving.then, "why": a.saving.why}
                await self._connection.ask(Op.REQUEST, {"entry": a.pilot_job, "what": "save", **asked})
            case ActionKind.SAVE:
                raise AssertionError(f"{a.id}: nothing says how it is to be saved")
            case ActionKind.DISCARD:
                await self._discard(action.checkpoints)
                return replace(self._outcome(Result.OK), discarded=action.checkpoints)
            case ActionKind.COPY:
                return await self._copy(action, case)
            case ActionKind.ERASE:
                raise AssertionError("what is on this machine is no site's to erase")
            case ActionKind.BATCH_CANCEL:
                batch_id = case.pilot_jobs[a.pilot_job].batch_id
                await self._cancellations.cancel(a.pilot_job, batch_id)
                self._ask_listing()
                # Whether it is gone, the next listing says; until then it may be asked for again.
                return self._outcome(Result.UNKNOWN, f"{purpose(action)}: waiting for the site to end it")
            case ActionKind.LOOK:
                since = self._clock()
                await self._connection.scan(self._listener, since)
                return Outcome(Result.OK, since)
            case ActionKind.COLLECT:
                await self._collect(action, case.job)
                await self._measure()
            case ActionKind.CLEAN:
                return await self._clean(action, case.job)
        return self._outcome(Result.OK)

    async def _note_beginning(self, a: Allocation, case: Case) -> None:
        """What its streams begin with, where it goes on from a checkpoint, before any of it comes."""
        begun = next((c.checkpoint.streams for c in case.checkpoints if c.id == a.restore), None)
        if begun is not None:
            await asyncio.to_thread(self._logs.begin, a.job, a.epoch, begun)

    async def _submit(self, a: Allocation, job: Job) -> Outcome:
        connection, resources = self._connection, job.spec.resources
        way = None
        if connection.tickets is not None and carried(connection.site):
            patience = PATIENCE if job.probe else None
            way = Carried(str(connection.gate), connection.bundle, connection.tickets.entry(a.pilot_job), patience)
        facts, walltime = connection.facts, walltime_of(job.spec, a)
        idle = connection.driver.idle if not a.ahead else 0.0  # it waits for its word, and serves nobody meanwhile
        warm = warmth(job, connection.site, connection.installation, connection.bundle, idle)
        if warm is not None:
            with contextlib.suppress(LinkError):  # its own batch job serves it all the same
                await connection.ask(Op.OFFER, {"entry": a.pilot_job, "pool": warm.pool})
        submission = Submission(
            name=a.pilot_job,
            entry=f"{connection.workdir}/{SPOOL}/{a.pilot_job}",
            start=f"{connection.workdir}/bundle/{connection.bundle}/start",
            scratch=connection.site.scratch,
            cpus=resources.cpus,
            memory=parse_size(resources.memory),
            walltime=lasting(walltime, facts.max_walltime) if warm is not None else walltime,
            carried=way,
            warm=warm,
        )
        answer = await self.submissions.submit(submission)
        self._ask_listing()
        result = {True: Result.OK, False: Result.REFUSED, None: Result.UNKNOWN}[answer.accepted]
        reason = (Reason.BUSY if answer.busy else Reason.SUBMIT) if result is Result.REFUSED else None
        message = f"submit {a.pilot_job} to {connection.site.name}: {answer.message}" if answer.message else ""
        return replace(self._outcome(result, message, reason=reason), batch_id=answer.batch_id)

    def _collector(self, a: Allocation) -> Collector:
        tell = partial(self._progress, a.pilot_job)
        lag = self._connection.facts.spool_lag
        return Collector(self._connection.link, a, self._logs, clock=self._clock, spool_lag=lag, progress=tell)

    async def _collect(self, action: Action, job: Job) -> None:
        collector = self._collector(action.allocation)
        await collector.logs()
        printed = {name: place for name in OUTPUT if (place := getattr(job.spec, name))}
        home = Path(job.destination) if job.destination else self._logs.home(job.id)
        try:
            await collector.streams(home, printed)
        finally:  # what keeps these from the user keeps nothing else
            if action.results:
                spec = job.spec
                await collector.results(home, spec.outputs, spec.destinations, others=spec.restart_files)
            else:
                await restarts.keep(collector, self._logs, action.allocation, job)

    async def _clean(self, action: Action, job: Job) -> Outcome:
        """Remove the entry. Results of a run that was thought lost, and came after all, are kept beside its logs."""
        a = action.allocation
        lost = a.exit is None or a.exit.reason is Reason.LOST
        known = "" if lost or a.exit is None else a.exit.claim
        await self._discard(action.checkpoints)
        args: dict[str, object] = {"entry": a.pilot_job, "force": True, "known": known}
        message = ""
        if a.exit is None and a.times.submitting is not None:
            with contextlib.suppress(LinkError):
                await self._collector(a).logs()  # the batch script's own words say why it did not start
        try:
            await self._connection.ask(Op.REMOVE, args, timeout=4 * CALL)
        except LinkError as error:
            if error.kind != "unseen":
                raise
            late = self._logs.folder(a.job, a.epoch) / "late"
            late.mkdir(mode=0o700, exist_ok=True)
            message = f"its results came late: they are in {late}"
            try:
                await self._collect(replace(action, results=True), replace(job, destination=str(late)))
            except Unfit as unfit:
                message += f", but for one that cannot be brought: {unfit}"
            await self._connection.ask(Op.REMOVE, args | {"discard": True}, timeout=4 * CALL)
        return self._outcome(Result.OK, message)

    async def _discard(self, checkpoints: Sequence[str]) -> None:
        if checkpoints:
            paths = [f"{CHECKPOINTS}/{checkpoint}" for checkpoint in checkpoints]
            await self._connection.ask(Op.EVICT, {"paths": paths}, timeout=4 * CALL)

    async def _copy(self, action: Action, case: Case) -> Outcome:
        """Bring a copy of one checkpoint here. What is in its way here is told apart from what a site may mend."""
        [name], what = action.checkpoints, purpose(action)
        record = next(c for c in case.checkpoints if c.id == name)
        tell = partial(self._progress, action.allocation.pilot_job)
        try:
            await self._copies.bring(self._connection.link, record.checkpoint, tell)
            outcome = self._outcome(Result.OK)
        except Unsound as error:
            outcome = self._outcome(Result.REFUSED, f"{what}: {error}", reason=Reason.CHECKPOINT)
        except OSError as error:
            hint = "free some space; it is tried again by itself"
            words = f"{what}: keep it in {error.filename}: {error.strerror or error}"
            outcome = self._outcome(Result.UNKNOWN, words, hint, Reason.STAGING)
        return replace(outcome, copied=name)

    async def _measure(self) -> None:
        """Learn what the relay has used so far; where many ask at a time, one asks for all."""
        if self._measuring is None or self._measuring.done():
            self._measuring = asyncio.create_task(self._ask_usage())
        await asyncio.shield(self._measuring)

    async def _ask_usage(self) -> None:
        with contextlib.suppress(LinkLost, LinkError):  # the next time will do; nothing fails for want of a figure
            usage = await self._connection.ask(Op.USAGE, {})
            self._used(float(usage["cpu_seconds"]))
