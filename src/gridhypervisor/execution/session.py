"""One account at one site: keeps the relay connected, observes, and carries out the actions that a plan asks for.

A session decides nothing about jobs. It holds no truth either: what it knows of the site (which layers are there, which
entries exist) is only there to save questions, and is forgotten with the connection. A hung site delays its own session
and nothing else: every call has a deadline.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from gridhypervisor.execution.collect import BULK, Collector
from gridhypervisor.execution.logs import Logs
from gridhypervisor.execution.meter import Meter
from gridhypervisor.execution.ports import (
    Driver,
    Inputs,
    Layers,
    Link,
    Listener,
    Transport,
)
from gridhypervisor.execution.results import Unfit
from gridhypervisor.model.batch import Submission
from gridhypervisor.model.errors import InputError, LinkError, LinkLost
from gridhypervisor.model.records import ActionKind, Allocation, Job, Site
from gridhypervisor.model.spec import parse_duration, parse_size
from gridhypervisor.model.views import Check
from gridhypervisor.model.wire import (
    CACHE,
    INPUTS,
    MAX_PAYLOAD,
    PROTOCOL,
    SPOOL,
    Command,
    CommandResult,
    EntryView,
    Input,
    Manifest,
    Note,
    Op,
    OwnerRecord,
    Program,
    Reason,
    Resources,
    from_plain,
    to_plain,
)
from gridhypervisor.planning.draft import Action
from gridhypervisor.planning.world import Case, Outcome, Result, SiteFacts

CALL = 30.0
"""Seconds that a short request may take."""

START = 600.0
"""Seconds that a relay may take to answer at first: a slow front-end unpacks the bundle before."""

BUNDLE_DAMAGED = 78
"""With this exit code the bundle's `start` says that it is not whole."""

SETTLE = 0.5
"""Seconds from the wish for a listing to the listing: it then answers all wishes of a burst of submissions, and does
not compete on the front-end with the very job that it is about."""

BACK_OFF = (1.0, 60.0)
"""Seconds before a connection is tried again: at first, at most. The latter holds for a batch system's silence, too."""


class Damaged(Exception):
    """What was to be placed at the site is not what it should be."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.hint = "see `ghv image verify`; if it is damaged, build or import the image again"


class Session:
    def __init__(
        self,
        site: Site,
        make_driver: Callable[[str, str], Driver],
        transport: Transport,
        listener: Listener,
        *,
        installation: str,
        layers: Layers,
        inputs: Inputs,
        logs: Logs,
        clock: Callable[[], float],
        jitter: Callable[[], float],
        progress: Callable[[str, str], None] = lambda entry, words: None,
        report: Callable[[Exception], None] = lambda error: None,
    ) -> None:
        self.site, self.transport, self.listener = site, transport, listener
        self._make_driver = make_driver  # of the account's workdir and the bundle's digest
        self.installation, self.layers, self.inputs, self.logs = installation, layers, inputs, logs
        self.clock, self.jitter, self.progress, self.report = clock, jitter, progress, report
        self.health, self.why, self.since = "connecting", "", clock()
        self.batch_system = ""
        self.workdir = ""
        self.relay_cpu = Meter()
        self.pid = 0  # of the relay, where it says so
        self._facts = SiteFacts(site.name, up=False)
        self._link: Link | None = None
        self._driver: Driver | None = None  # there as long as the link is
        self._urgent: dict[str, bool] = {}
        self._ask = asyncio.Event()  # somebody wants a listing soon
        self._reconnect = asyncio.Event()
        self._renew = asyncio.Event()  # the bundle at the site is damaged: connect again, which places it anew
        self._placed_at = 0.0  # when the bundle was last known to be whole there
        self._mended: set[str] = set()  # entries for whose sake layers were placed anew on this connection
        self._present: set[str] = set()  # paths in the account's cache that were seen there on this connection
        self._placing: dict[str, asyncio.Future[None]] = {}  # what is on its way to the cache
        self._watches: dict[str, dict[str, int]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def facts(self) -> SiteFacts:
        return replace(self._facts, up=self._link is not None, why=self.why)

    # -- life ---------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        wait = BACK_OFF[0]
        while True:
            began = self.clock()
            try:
                await self._connected()
            except LinkLost as error:
                self._down("unreachable", str(error))
            except LinkError as error:
                self._down("refused", str(error))
            except Exception as error:  # a fault of ours must not take the site away without a word
                self.report(error)
                self._down("unreachable", f"internal error: {type(error).__name__}: {error}; see service.log")
            if self.clock() - began > 2 * BACK_OFF[1]:
                wait = BACK_OFF[0]
            try:
                await asyncio.wait_for(self._reconnect.wait(), wait * self.jitter())
            except TimeoutError:
                pass
            self._reconnect.clear()
            wait = min(2 * wait, BACK_OFF[1])

    def reconnect(self) -> None:
        """Try again now, not at the end of the back-off."""
        self._reconnect.set()

    async def _connected(self) -> None:
        self._renew.clear()
        self._placed_at = self.clock()
        async with self.transport.connect(self._note) as link:
            hello, _ = await link.call(
                Op.HELLO, {"installation": self.installation, "protocol": PROTOCOL}, timeout=START
            )
            if hello.get("protocol") != PROTOCOL:
                raise LinkError(
                    f"connect to {self.site.name}: its relay speaks protocol {hello.get('protocol')}, this controller "
                    f"{PROTOCOL}"
                )
            self.workdir, self.pid = str(hello["workdir"]), int(hello.get("pid", 0))
            driver = self._make_driver(self.workdir, self.transport.bundle)
            limits = driver.limits(await self._batch(link, driver.probe()))
            if limits.problem:
                raise LinkError(f"use {self.site.name}: {limits.problem}")
            self.batch_system = limits.version
            self._facts = SiteFacts(
                name=self.site.name,
                up=True,
                max_jobs=driver.max_jobs(self.site),
                max_walltime=limits.max_walltime,
                max_cpus=limits.max_cpus,
                max_memory=limits.max_memory,
                listing_lag=driver.listing_lag,
                spool_lag=driver.spool_lag,
            )
            self.relay_cpu.restart()
            await self._scan(link)
            self._link, self._driver = link, driver
            self._present.clear()
            self._mended.clear()
            self.health, self.why, self.since = "up", "", self.clock()
            self.listener.site_changed(self.site.name)
            for entry, offsets in self._watches.items():
                self._spawn(self._send_watch(entry, offsets))
            try:
                await self._list_until_lost(link, driver)
            finally:
                self._link = None

    def _down(self, health: str, why: str) -> None:
        changed = (self.health, self.why) != (health, why)
        self.health, self.why = health, why
        if changed:
            self.since = self.clock()
        self.listener.silent(self.site.name, why)

    async def _list_until_lost(self, link: Link, driver: Driver) -> None:
        """Ask the batch system for all our jobs: often while one waits, seldom while they run, else never."""
        failures = 0
        while True:
            if not self._urgent:
                self._ask.clear()
                await self._until(link, self._ask.wait(), None)
            if self._ask.is_set():
                await self._until(link, asyncio.sleep(SETTLE), None)
            as_of = self.clock()
            self._ask.clear()
            results = await self._batch(link, driver.query(self.installation))
            listing, problem = driver.listing(results, as_of)
            if listing is not None:
                failures, self.why = 0, ""
                self.listener.listed(self.site.name, listing)
            else:
                # The front-end answers, its batch system does not: Unknown, never "no jobs".
                failures += 1
                self.why = f"batch system: {problem}"
                self.listener.silent(self.site.name, self.why)
            urgent = any(self._urgent.values())
            pause = driver.listing_interval * (1.0 if urgent else 5.0)
            await self._until(link, self._ask.wait(), min(pause * 2.0 ** min(failures, 8), max(pause, BACK_OFF[1])))

    async def _until(self, link: Link, wanted: Coroutine[Any, Any, object], seconds: float | None) -> None:
        """Wait for what is wanted, for the time, or for the link's end.

        Raises:
            LinkLost: it ended, or is to end.
        """
        waiting, lost, renew = (asyncio.create_task(each) for each in (wanted, link.lost(), self._renew.wait()))
        try:
            await asyncio.wait({waiting, lost, renew}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            if lost.done():
                lost.result()
            if renew.done():
                self.reconnect()  # at once
                raise LinkLost("the bundle is placed anew")
        finally:
            for task in (waiting, lost, renew):
                task.cancel()

    async def _scan(self, link: Link) -> None:
        at, after, more = self.clock(), "", True
        while more:
            reply, _ = await link.call(Op.SCAN, {"after": after} if after else {}, timeout=4 * CALL)
            for plain in reply["entries"]:
                view = from_plain(EntryView, plain)
                self.listener.entry_seen(self.site.name, view, at)
                after = view.entry
            more = bool(reply.get("more") and reply["entries"])

    async def sweep(self, entry: str, batch_id: str) -> None:
        link, driver = self._link, self._driver
        if link is None or driver is None:
            return
        try:
            if batch_id:
                await self._batch(link, driver.cancel([(entry, batch_id)]))
            await link.call(Op.REMOVE, {"entry": entry, "discard": True}, timeout=4 * CALL)
        except (LinkLost, LinkError):
            pass  # seen again at the next look

    async def check(self) -> list[Check]:
        """What can be proven of the site now, claim by claim."""
        link, driver = self._link, self._driver
        if link is None or driver is None:
            return [Check("a relay answers", False, f"{self.health}: {self.why}" if self.why else self.health)]
        hello, _ = await link.call(Op.HELLO, {"installation": self.installation, "protocol": PROTOCOL}, timeout=CALL)
        usage, _ = await link.call(Op.USAGE, {}, timeout=CALL)
        listing, problem = driver.listing(await self._batch(link, driver.query(self.installation)), self.clock())
        facts, free = self._facts, int(usage["free_bytes"]) >> 20
        walltime = f"{facts.max_walltime} s" if facts.max_walltime is not None else "none known"
        return [
            Check("a relay answers", True, f"{hello['user']}@{hello['host']}, protocol {hello['protocol']}"),
            Check("the bundle is there", True, f"{self.workdir}/bundle/{self.transport.bundle}"),
            Check("the batch system answers", listing is not None, problem or self.batch_system),
            Check("the workdir has room", free > 1024, f"{free} MiB free in {self.workdir}"),
            Check("its walltime limit is known", facts.max_walltime is not None or None, walltime),
        ]

    # -- what the relay says unasked ----------------------------------------------------------------------------

    def _note(self, note: dict[str, Any], payload: bytes) -> None:
        if note.get("note") == Note.ENTRY:
            view = from_plain(EntryView, note["entry"])
            self.listener.entry_seen(self.site.name, view, self.clock())
        elif note.get("note") == Note.OUTPUT:
            entry, stream, offset = str(note["entry"]), str(note["stream"]), int(str(note["offset"]))
            if entry in self._watches and stream in ("stdout", "stderr"):
                self._watches[entry][stream] = offset + len(payload)
                self.listener.output(self.site.name, entry, stream, offset, payload)

    def watch(self, entry: str, offsets: dict[str, int] | None) -> None:
        if (entry in self._watches) == (offsets is not None):
            return
        if offsets is None:
            del self._watches[entry]
        else:
            self._watches[entry] = dict(offsets)
        self._spawn(self._send_watch(entry, offsets))

    async def _send_watch(self, entry: str, offsets: dict[str, int] | None) -> None:
        link = self._link
        if link is None:
            return
        args: dict[str, object] = {"entry": entry, "stdout": None, "stderr": None}
        try:
            await link.call(Op.WATCH, args | (offsets or {}), timeout=CALL)
        except (LinkLost, LinkError):
            pass  # said again at the next connection; an entry that is gone has nothing more to say

    async def peek(self, entry: str, name: str, offset: int, limit: int) -> bytes:
        link = self._link
        if link is None:
            return b""
        args = {"path": f"{SPOOL}/{entry}/{name}", "offset": offset, "length": min(limit, MAX_PAYLOAD)}
        try:
            _, data = await link.call(Op.GET, args, timeout=CALL)
        except (LinkLost, LinkError):
            return b""  # not there yet, or not to be had now
        return data

    def attend(self, entry: str, urgent: bool | None) -> None:
        before = self._urgent.get(entry)
        if urgent is None:
            self._urgent.pop(entry, None)
        else:
            self._urgent[entry] = urgent
            if before is None or (urgent and not before):
                self._ask.set()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # -- actions ------------------------------------------------------------------------------------------------

    async def act(self, action: Action, case: Case) -> Outcome:
        what = f"{action.kind} {action.allocation.pilot_job} at {self.site.name}"
        link, driver = self._link, self._driver
        if link is None or driver is None:
            return self._outcome(Result.UNKNOWN, f"{what}: {self.why or 'not connected'}")
        try:
            return await self._carry_out(link, driver, action, case, what)
        except Damaged as error:
            return Outcome(
                Result.REFUSED, self.clock(), reason=error.reason, message=f"{what}: {error}", hint=error.hint
            )
        except (InputError, Unfit) as error:
            return Outcome(
                Result.REFUSED, self.clock(), reason=Reason.STAGING, message=f"{what}: {error}", hint=error.hint
            )
        except LinkLost as error:
            return self._outcome(Result.UNKNOWN, f"{what}: {error}")
        except LinkError as error:
            return self._outcome(Result.UNKNOWN, f"{what}: {error}", error.hint)
        except OSError as error:
            hint = "free some space or mend the folder; it is tried again by itself, or at once with `ghv recover`"
            return self._outcome(Result.UNKNOWN, f"{what}: {error.filename}: {error.strerror or error}", hint)
        finally:
            self.progress(action.allocation.pilot_job, "")

    async def _carry_out(self, link: Link, driver: Driver, action: Action, case: Case, what: str) -> Outcome:
        match action.kind:
            case ActionKind.PROLOG:
                await self._meter(link)
                await self._mend(link, action.allocation, case)
                await self._prolog(link, action.allocation, case.job)
            case ActionKind.SUBMIT:
                return await self._submit(link, driver, action.allocation, case.job)
            case ActionKind.REVOKE:
                args = {
                    "entry": action.allocation.pilot_job,
                    "epoch": action.allocation.epoch,
                    "by": "controller",
                    "why": action.why,
                }
                reply, _ = await link.call(Op.REVOKE, args, timeout=CALL)
                return Outcome(Result.OK, self.clock(), owner=from_plain(OwnerRecord, reply["owner"]))
            case ActionKind.REQUEST_CANCEL:
                args = {"entry": action.allocation.pilot_job, "what": "cancel", "why": action.why}
                await link.call(Op.REQUEST, args, timeout=CALL)
            case ActionKind.BATCH_CANCEL:
                batch_id = case.pilot_jobs[action.allocation.pilot_job].batch_id
                await self._batch(link, driver.cancel([(action.allocation.pilot_job, batch_id)]))
                self._ask.set()
                # Whether it is gone, the next listing says; until then it may be asked for again.
                return self._outcome(Result.UNKNOWN, f"{what}: waiting for the site to end it")
            case ActionKind.LOOK:
                asked = self.clock()
                await self._scan(link)
                return Outcome(Result.OK, asked)
            case ActionKind.COLLECT:
                await self._collect(link, action, case.job)
                await self._meter(link)
            case ActionKind.CLEAN:
                return await self._clean(link, action, case.job)
        return Outcome(Result.OK, self.clock())

    def _outcome(self, result: Result, message: str, hint: str = "") -> Outcome:
        return Outcome(result, self.clock(), message=message, hint=hint)

    async def _mend(self, link: Link, a: Allocation, case: Case) -> None:
        """Put anew what earlier attempts found damaged at this site.

        Raises:
            LinkLost: the bundle was; it is placed when the relay is started again, and then this is tried again.
        """
        for earlier in case.allocations:
            reason = earlier.exit.reason if earlier.exit is not None else earlier.why
            if earlier.site != a.site or earlier.epoch >= a.epoch:
                continue
            if reason is Reason.BUNDLE and (earlier.times.submitting or 0.0) > self._placed_at:
                self._renew.set()
                raise LinkLost("the bundle is placed anew")
            if reason is Reason.IMAGE and earlier.epoch == a.epoch - 1 and a.pilot_job not in self._mended:
                paths = [f"{CACHE}/{layer.digest}{end}" for layer in case.job.image.layers for end in ("", ".chunks")]
                await link.call(Op.EVICT, {"paths": paths}, timeout=4 * CALL)
                self._present.difference_update(paths)
                self._mended.add(a.pilot_job)

    async def _prolog(self, link: Link, a: Allocation, job: Job) -> None:
        for layer in job.image.layers:
            data, chunks = self.layers.paths(layer)
            await self._place(link, chunks, f"{CACHE}/{layer.digest}.chunks", {"sha256": layer.digest}, a.pilot_job)
            known = {"chunks": f"{CACHE}/{layer.digest}.chunks", "chunk_size": layer.chunk_size}
            await self._place(link, data, f"{CACHE}/{layer.digest}", known, a.pilot_job)
        self.progress(a.pilot_job, "reading the inputs")
        inputs = await self.inputs.plan(job, lambda words: self.progress(a.pilot_job, words))
        manifest = self._manifest(a, job, tuple(i.described for i in inputs))
        await link.call(Op.PREPARE, {"entry": a.pilot_job, "manifest": to_plain(manifest)}, timeout=CALL)
        for i in inputs:
            path = f"{SPOOL}/{a.pilot_job}/{INPUTS}/{i.described.path}"
            self.progress(a.pilot_job, f"input {i.described.path}")
            try:
                await link.upload(i.local, path, {"sha256": i.described.sha256}, mode=i.described.mode, timeout=BULK)
            except LinkError as error:
                if error.kind in ("digest", "missing"):
                    raise InputError(f"{error}", "leave inputs alone until the job has taken them") from error
                raise
        self.progress(a.pilot_job, "")

    async def _place(self, link: Link, local: Path, path: str, proof: Mapping[str, object], entry: str) -> None:
        """Put a content-addressed file into the account's cache, once, however many jobs ask for it."""
        while (under_way := self._placing.get(path)) is not None:
            await asyncio.wait({under_way})
        if path in self._present:
            return
        self._placing[path] = asyncio.get_running_loop().create_future()
        try:
            reply, _ = await link.call(Op.HAVE, {"paths": [path]}, timeout=CALL)
            if reply["sizes"].get(path) is None:
                self.progress(entry, f"image layer {path.rpartition('/')[2][:12]} to {self.site.name}")
                try:
                    await link.upload(local, path, proof, mode=0o600, timeout=BULK)
                except LinkError as error:
                    if error.kind == "digest":
                        raise Damaged(Reason.IMAGE, f"{error}; the copy here is {local}") from error
                    raise
            self._present.add(path)
        finally:
            self._placing.pop(path).set_result(None)

    def _manifest(self, a: Allocation, job: Job, inputs: tuple[Input, ...]) -> Manifest:
        spec, resources = job.spec, job.spec.resources
        return Manifest(
            protocol=PROTOCOL,
            installation=self.installation,
            entry=a.pilot_job,
            vm=a.vm,
            epoch=a.epoch,
            allocation=a.id,
            job=a.job,
            image=job.image,
            image_digest=job.image_digest,
            program=Program(spec.command, spec.environment, inputs, spec.outputs),
            resources=Resources(
                resources.cpus,
                parse_size(resources.memory),
                parse_size(resources.scratch),
                parse_duration(resources.walltime),
            ),
            network=spec.network,
            boot_timeout=parse_duration(spec.boot_timeout),
            on_silence=spec.on_silence,
            acceleration=spec.acceleration,
        )

    async def _submit(self, link: Link, driver: Driver, a: Allocation, job: Job) -> Outcome:
        resources = job.spec.resources
        submission = Submission(
            name=a.pilot_job,
            entry=f"{self.workdir}/{SPOOL}/{a.pilot_job}",
            start=f"{self.workdir}/bundle/{self.transport.bundle}/start",
            scratch=self.site.scratch,
            cpus=resources.cpus,
            memory=parse_size(resources.memory),
            walltime=parse_duration(resources.walltime),
        )
        results = await self._batch(link, driver.submit([submission], self.site))
        [answer] = driver.submitted(results)
        self._ask.set()
        result = {True: Result.OK, False: Result.REFUSED, None: Result.UNKNOWN}[answer.accepted]
        reason = Reason.SUBMIT if result is Result.REFUSED else None
        message = f"submit {a.pilot_job} to {self.site.name}: {answer.message}" if answer.message else ""
        return Outcome(result, self.clock(), batch_id=answer.batch_id, reason=reason, message=message)

    async def _batch(self, link: Link, commands: list[Command]) -> list[CommandResult]:
        """Run batch system commands."""
        if not commands:
            return []
        results = await link.commands(commands)
        if any(result.code == BUNDLE_DAMAGED for result in results):
            self._renew.set()
        return results

    def _collector(self, link: Link, a: Allocation) -> Collector:
        tell = partial(self.progress, a.pilot_job)
        return Collector(link, a, self.logs, clock=self.clock, spool_lag=self._facts.spool_lag, progress=tell)

    async def _collect(self, link: Link, action: Action, job: Job) -> None:
        collector = self._collector(link, action.allocation)
        await collector.logs()
        if action.results:
            await collector.results(Path(job.destination), job.spec.outputs)

    async def _meter(self, link: Link) -> None:
        """Share what the relay has used since the last time among the jobs that it was used for."""
        usage, _ = await link.call(Op.USAGE, {}, timeout=CALL)
        self.relay_cpu.advance(float(usage["cpu_seconds"]), len(self._urgent))

    async def _clean(self, link: Link, action: Action, job: Job) -> Outcome:
        """Remove the entry. Results of a run that was thought lost, and came after all, are kept beside its logs."""
        a = action.allocation
        lost = a.exit is None or a.exit.reason is Reason.LOST
        known = "" if lost or a.exit is None else a.exit.claim
        args: dict[str, object] = {"entry": a.pilot_job, "force": True, "known": known}
        message = ""
        if a.exit is None and a.times.submitting is not None:
            with contextlib.suppress(LinkError):
                await self._collector(link, a).logs()  # the batch script's own words say why it did not start
        try:
            await link.call(Op.REMOVE, args, timeout=4 * CALL)
        except LinkError as error:
            if error.kind != "unseen":
                raise
            late = self.logs.folder(a.job, a.epoch) / "late"
            late.mkdir(mode=0o700, exist_ok=True)
            message = f"its results came late: they are in {late}"
            try:
                await self._collect(link, replace(action, results=True), replace(job, destination=str(late)))
            except Unfit as unfit:
                message += f", but for one that cannot be brought: {unfit}"
            await link.call(Op.REMOVE, args | {"discard": True}, timeout=4 * CALL)
        return Outcome(Result.OK, self.clock(), message=message)
