"""A `Backend` that behaves: jobs that live, print and end, in memory, without sites, images or virtual machines.

A job does what its command says, one word after another: `print TEXT`, `warn TEXT` (to stderr), `hold` (until
`release` or a cancel), `exit CODE`, `fail REASON`. Words are carried out as the event loop gets to them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import msgspec

from gridhypervisor.model.records import AllocationState, JobState, Ledger, LedgerRow, SiteHealth, SiteKind, Wish
from gridhypervisor.model.views import (
    AttemptView,
    Candidate,
    Check,
    EventView,
    Explanation,
    FollowItem,
    FollowKind,
    ImageBuildRequest,
    ImageImportRequest,
    ImageView,
    JobDetail,
    JobRequest,
    JobView,
    LayerView,
    Operation,
    OperationItem,
    Problem,
    ServiceError,
    ServiceView,
    SiteChange,
    SiteLogin,
    SiteRequest,
    SiteUsage,
    SiteView,
)
from gridhypervisor.model.wire import Phase, Reason, Share, Terms, Use

DIGEST = "ab" * 32
HYPERVISOR = "qemu 7.2.22, tcg: /dev/kvm is not there"


@dataclass
class _Running:
    view: JobView
    request: JobRequest
    logs: dict[str, bytes] = field(default_factory=lambda: {"stdout": b"", "stderr": b"", "console": b"Linux\n"})
    released: asyncio.Event = field(default_factory=asyncio.Event)
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None


class FakeBackend:
    """Survives a restart of the server that serves it, as the real one does through its store."""

    def __init__(self, *, stop: Callable[[], None] = lambda: None, pid: int = 0) -> None:
        self._stop, self._pid = stop, pid
        self._started = time.time()
        self._jobs: dict[str, _Running] = {}
        self._keys: dict[str, str] = {}
        self._events: list[EventView] = []
        self._happened = asyncio.Event()
        self._operations: dict[str, list[OperationItem]] = {}
        self._images = {
            "xmm:latest": ImageView(
                DIGEST,
                ("xmm:latest",),
                123 << 20,
                "XMM's tools",
                layers=(
                    LayerView("base", DIGEST, 100 << 20, "squashfs"),
                    LayerView("app", DIGEST, 23 << 20, "squashfs", "/opt"),
                ),
            )
        }
        self._sites = {
            "here": SiteView(
                "here",
                SiteKind.FORK,
                "this machine",
                SiteHealth.UP,
                max_jobs=2,
                workdir="/var/tmp/ghv",
                settings=SiteRequest("here", SiteKind.FORK),
            ),
        }
        self.submissions = 0
        self.followers = 0

    # Jobs

    async def submit(self, request: JobRequest, idempotency_key: str) -> JobView:
        self.submissions += 1
        if known := self._keys.get(idempotency_key):
            return self._jobs[known].view
        if request.spec.image not in ("xmm", "xmm:latest"):
            raise ServiceError(
                Problem(
                    f"submit a job with image {request.spec.image}",
                    404,
                    "not-found",
                    "there is no such image",
                    "ghv image list shows which there are.",
                )
            )
        name = f"j{len(self._jobs) + 1}"
        view = JobView(
            name,
            request.spec.name or name,
            "me",
            "default",
            JobState.PENDING,
            Wish.RUN,
            time.time(),
            request.spec.image,
            DIGEST,
            request.spec.command,
            request.destination,
        )
        job = self._jobs[name] = _Running(view, request)
        if idempotency_key:
            self._keys[idempotency_key] = name
        self._event(job, "", "pending")
        job.task = asyncio.create_task(self._live(job))
        return view

    async def jobs(self, *, states: Sequence[str], before: str, limit: int) -> list[JobView]:
        below = int(before[1:]) if before else len(self._jobs) + 1
        newest = [j.view for j in reversed(self._jobs.values()) if int(j.view.id[1:]) < below]
        return [v for v in newest if not states or v.state in states][:limit]

    async def job(self, job: str) -> JobDetail:
        found = self._find(job)
        view = found.view
        attempt = AttemptView(
            f"v{job[1:]}.1",
            1,
            "here",
            f"g-{job}-1",
            "4711",
            AllocationState.RUNNING,
            view.phase,
            view.note,
            3.0,
            "node1",
            HYPERVISOR if view.phase or view.state.final else "",
            view.reason,
            view.message,
        )
        ledger: Ledger | None = None
        outputs: tuple[str, ...] = ()
        if view.state.final:
            ledger = Ledger(
                job,
                10.0,
                (
                    LedgerRow(1, "boot", 4.0),
                    LedgerRow(1, "execute", 5.0),
                    LedgerRow(1, "middleware", 1.0),
                ),
                {"pilot": 0.2, "hypervisor": 8.0},
                HYPERVISOR,
            )
            outputs = (f"{view.destination}/products/spectrum.fits",)
        attempts = () if view.state is JobState.PENDING else (attempt,)
        return JobDetail(view, found.request.spec, attempts, outputs, ledger)

    async def cancel(self, job: str) -> JobView:
        found = self._find(job)
        if not found.view.state.final:
            found.view = msgspec.structs.replace(found.view, wish=Wish.CANCEL)
            assert found.task is not None
            found.task.cancel()
            with suppress(asyncio.CancelledError):
                await found.task
            self._change(found, state=JobState.CANCELLED, reason=Reason.CANCELLED, message="cancelled by its owner")
        return found.view

    async def delete(self, job: str) -> None:
        await self.cancel(job)
        del self._jobs[job]

    async def recover(self, job: str) -> JobView:
        found = self._find(job)
        if found.view.state.final:
            raise ServiceError(Problem(f"recover job {job}", 409, "conflict", "it has ended", "Submit it again."))
        return found.view

    async def explain(self, job: str) -> Explanation:
        view = self._find(job).view
        return Explanation(
            job,
            view.state,
            f"job {job} is {view.state}",
            "Be patient.",
            (
                Candidate("here", True, "the only one with a free slot", 1.0),
                Candidate("slurm-a", False, "no answer for 40 s: its state is unknown"),
            ),
        )

    def follow(self, job: str, *, output: bool) -> AsyncIterator[FollowItem]:
        return self._follow(job, output)

    async def _follow(self, name: str, output: bool) -> AsyncIterator[FollowItem]:
        job = self._find(name)
        self.followers += 1
        try:
            async for item in self._follow_found(job, output):
                yield item
        finally:
            self.followers -= 1

    async def _follow_found(self, job: _Running, output: bool) -> AsyncIterator[FollowItem]:
        sent = {"stdout": 0, "stderr": 0}
        seen: JobView | None = None
        while True:
            changed = job.changed
            if job.view != seen:
                seen = job.view
                yield FollowItem(FollowKind.JOB, seen)
            for stream, offset in sent.items() if output else ():
                if data := job.logs[stream][offset : offset + 1000]:
                    sent[stream] = offset + len(data)
                    yield FollowItem(FollowKind.OUTPUT, None, stream, offset, data)
            if output and any(len(job.logs[stream]) > offset for stream, offset in sent.items()):
                continue
            if job.view.state.final and job.view == seen:
                yield FollowItem(FollowKind.END, job.view)
                return
            await changed.wait()

    async def log(self, job: str, stream: str, offset: int, limit: int) -> bytes:
        return self._find(job).logs.get(stream, b"")[offset : offset + limit]

    async def events(self, *, after: int, job: str, limit: int) -> list[EventView]:
        return [e for e in self._events if e.sequence > after and job in ("", e.job)][:limit]

    def watch_events(self, *, after: int, job: str) -> AsyncIterator[EventView]:
        return self._watch(after, job)

    async def _watch(self, after: int, job: str) -> AsyncIterator[EventView]:
        while True:
            happened = self._happened
            for event in await self.events(after=after, job=job, limit=1000):
                after = event.sequence
                yield event
            await happened.wait()

    # Images and sites

    async def images(self) -> list[ImageView]:
        return list(self._images.values())

    async def image(self, reference: str) -> ImageView:
        found = self._images.get(reference) or self._images.get(f"{reference}:latest")
        if found is None:
            hint = "ghv image list shows which there are."
            raise ServiceError(Problem(f"show image {reference}", 404, "not-found", "there is no such image", hint))
        return found

    async def build_image(self, request: ImageBuildRequest) -> Operation:
        if request.tag.startswith("broken"):
            self._images[request.tag] = ImageView(DIGEST, (request.tag,), 1 << 20)
        image = ImageView(DIGEST, (request.tag or "built:latest",), 1 << 20)
        return self._operate("base: 1 of 2", "app: 2 of 2", result=image)

    async def import_image(self, request: ImageImportRequest) -> Operation:
        return self._operate("reading", result=ImageView(DIGEST, (request.tag,), 1 << 20))

    async def verify_image(self, reference: str) -> Operation:
        await self.image(reference)
        whole = not reference.startswith("broken")
        return self._operate("reading", result=[Check("the bytes are those of the digest", whole, "chunk 3 of base")])

    async def delete_image(self, reference: str) -> None:
        await self.image(reference)
        self._images.pop(reference, None)

    async def sites(self) -> list[SiteView]:
        return list(self._sites.values())

    async def site(self, name: str) -> SiteView:
        if name not in self._sites:
            raise ServiceError(Problem(f"show site {name}", 404, "not-found", "there is no such site", "ghv site list"))
        return self._sites[name]

    async def add_site(self, request: SiteRequest) -> SiteView:
        view = SiteView(
            request.name,
            request.kind,
            f"{request.user}@{request.host}:{request.port}",
            SiteHealth.CONNECTING,
            settings=request,
        )
        self._sites[request.name] = view
        return view

    async def edit_site(self, name: str, change: SiteChange) -> SiteView:
        view = await self.site(name)
        assert view.settings is not None
        given = {field: getattr(change, field) for field in change.__struct_fields__}
        defaults = msgspec.to_builtins(SiteRequest("", SiteKind.FORK))
        new: dict[str, Any] = {}
        for setting, value in given.items():
            if isinstance(value, dict):
                merged = {**getattr(view.settings, setting), **value}
                new[setting] = {key: word for key, word in merged.items() if word is not None}
            elif value is not msgspec.UNSET:
                new[setting] = defaults[setting] if value is None else value
        settings = msgspec.structs.replace(view.settings, **new)
        self._sites[name] = msgspec.structs.replace(view, settings=settings)
        return self._sites[name]

    async def drain_site(self, name: str, *, undo: bool) -> SiteView:
        self._sites[name] = msgspec.structs.replace(await self.site(name), draining=not undo)
        return self._sites[name]

    async def login_site(self, name: str) -> SiteLogin:
        await self.site(name)
        return SiteLogin(("sh", "-c", f"echo code for {name}: >&2; read code; test $code = 123"))

    async def remove_site(self, name: str, *, abandon: bool) -> None:
        await self.site(name)
        del self._sites[name]

    async def check_site(self, name: str, *, patience: int) -> Operation:
        await self.site(name)
        checks = [Check("the workdir can be written", True, "/var/tmp/ghv"), Check("KVM", True, "the micro-guest ran")]
        if name != "here":
            checks.append(Check("the batch system answers", False, "squeue: not found", "give the service a PATH"))
        elif patience == 1:
            checks.append(Check("a batch job runs on a node", None, "the probe still waits"))
        return self._operate("probing", result=checks if patience else checks[:1])

    async def site_usage(self, name: str) -> SiteUsage:
        site = await self.site(name)
        if site.health != "up":
            return SiteUsage(name, site.health)
        uses = (Use("a1b2c3d4e", "ada", Share(1, 2, 512 << 20, 1800, 3600), Share(1, 1, 512 << 20, 3600, 5400)),)
        terms = Terms("/etc/ghv/lender.toml", "root", contact="hpc@example.org", cores=4, core_seconds=36000)
        return SiteUsage(name, "", terms, uses)

    def follow_operation(self, operation: str) -> AsyncIterator[OperationItem]:
        return self._follow_operation(operation)

    async def stop_operation(self, operation: str) -> None:
        if operation not in self._operations:
            raise ServiceError(Problem(f"stop operation {operation}", 404, "not-found", "there is none"))

    async def _follow_operation(self, operation: str) -> AsyncIterator[OperationItem]:
        if operation not in self._operations:
            raise ServiceError(Problem(f"follow operation {operation}", 404, "not-found", "there is none"))
        for item in self._operations[operation]:
            yield item

    async def status(self) -> ServiceView:
        return ServiceView("0.1", self._pid, "g1234abcd", self._started, "/data", len(self._jobs), 1.5, 50 << 20)

    async def stop(self) -> None:
        self._stop()

    # How the fake lives

    def release(self, job: str) -> None:
        """Let a job that holds go on."""
        self._jobs[job].released.set()

    def say(self, job: str, stream: str, data: bytes) -> None:
        """Let a job print."""
        self._jobs[job].logs[stream] += data
        self._wake(self._jobs[job])

    async def _live(self, job: _Running) -> None:
        for state in (JobState.PROLOG, JobState.QUEUED):
            self._change(job, state=state, site="here")
            await asyncio.sleep(0)
        for phase in (Phase.BOOT, Phase.EXECUTE):
            self._change(job, state=JobState.RUNNING, phase=phase)
            await asyncio.sleep(0)
        words = iter(job.request.spec.command)
        code = 0
        for word in words:
            match word:
                case "print" | "warn":
                    stream = "stdout" if word == "print" else "stderr"
                    job.logs[stream] += next(words).encode("utf-8", "surrogateescape")
                    self._wake(job)
                case "hold":
                    await job.released.wait()
                case "exit":
                    code = int(next(words))
                case "fail":
                    reason = Reason(next(words))
                    self._change(
                        job,
                        state=JobState.FAILED,
                        reason=reason,
                        phase=None,
                        message=f"run {job.view.id}: {reason}",
                        hint="Look at the console.",
                    )
                    return
                case _:
                    raise ValueError(f"the fake does not know {word}")
            await asyncio.sleep(0)
        self._change(job, state=JobState.DONE, phase=None, exit_code=code, reason=Reason.EXITED)

    def _find(self, job: str) -> _Running:
        if job not in self._jobs:
            hint = "ghv list shows your jobs."
            raise ServiceError(Problem(f"find job {job}", 404, "not-found", "there is no such job", hint))
        return self._jobs[job]

    def _change(self, job: _Running, **changes: Any) -> None:
        before = job.view.state
        job.view = msgspec.structs.replace(job.view, **changes)
        if job.view.state.final:
            job.view = msgspec.structs.replace(job.view, ended=time.time())
        if job.view.state is not before:
            self._event(job, before, job.view.state)
        self._wake(job)

    def _event(self, job: _Running, before: str, after: str) -> None:
        self._events.append(
            EventView(
                len(self._events) + 1, time.time(), "me", "default", job.view.id, "job", job.view.id, before, after
            )
        )
        happened, self._happened = self._happened, asyncio.Event()
        happened.set()

    @staticmethod
    def _wake(job: _Running) -> None:
        changed, job.changed = job.changed, asyncio.Event()
        changed.set()

    def _operate(self, *progress: str, result: Any = None) -> Operation:
        name = f"o{len(self._operations) + 1}"
        last = OperationItem("done", result=result)
        self._operations[name] = [*(OperationItem("progress", text) for text in progress), last]
        return Operation(name)
