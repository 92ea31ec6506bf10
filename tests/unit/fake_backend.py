"""A `Backend` that behaves: jobs that live, print and end, in memory, without sites, images or virtual machines.

A job does what its command says, one word after another: `print TEXT`, `warn TEXT` (to stderr), `hold` (until
`release` or a cancel), `exit CODE`, `fail REASON`. Words are carried out as the event loop gets to them.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import msgspec

from gridhypervisor.model.access import Answer, Caller, Result, TokenRequest, TokenView, Upload
from gridhypervisor.model.accounts import Account, Accounts, AttemptHistory, By, History, Stage
from gridhypervisor.model.arrays import parse_array, task, task_values
from gridhypervisor.model.infraviews import (
    ExecRequest,
    ExecView,
    InfrastructurePlan,
    InfrastructureRequest,
    InfrastructureView,
    PlannedVm,
    RolePlan,
    RoleView,
    VmView,
)
from gridhypervisor.model.measures import BOUNDS, Measures, SiteMeasures, Times
from gridhypervisor.model.policy import PolicyView, SchedulingPolicy
from gridhypervisor.model.records import (
    AllocationState,
    CheckpointState,
    CopyState,
    InfrastructureState,
    JobState,
    Ledger,
    LedgerRow,
    SiteHealth,
    SiteKind,
    Wish,
)
from gridhypervisor.model.spec import JobSpec
from gridhypervisor.model.views import (
    AttemptView,
    Candidate,
    Check,
    CheckpointView,
    EventView,
    Explanation,
    FollowItem,
    FollowKind,
    GroupView,
    ImageBuildRequest,
    ImageImportRequest,
    ImageView,
    JobDetail,
    JobRequest,
    JobView,
    LayerView,
    MatchView,
    NodeView,
    Operation,
    OperationItem,
    PlannedView,
    Problem,
    ReplayView,
    ServiceError,
    ServiceView,
    SiteChange,
    SiteLogin,
    SiteRemoval,
    SiteRequest,
    SiteUsage,
    SiteView,
    WarmRequest,
)
from gridhypervisor.model.wire import Phase, Reason, Share, Terms, Use
from gridhypervisor.model.workflow import Progress, Request

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
        self._checkpoints: dict[str, CheckpointView] = {}
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
        self._groups: dict[str, JobRequest] = {}
        self._infrastructures: dict[str, InfrastructureView] = {}  # by name
        self._files: dict[str, bytes] = {}  # in its guests
        self._policy = PolicyView(SchedulingPolicy())
        self._callers: dict[str, Caller] = {}
        self._tokens: dict[str, TokenView] = {}
        self._answers: dict[tuple[str, str, str], Answer] = {}
        self._uploads: dict[tuple[str, str], bytes] = {}
        self.myself = Caller("me", "default", local=True)
        self.submissions = 0
        self.followers = 0

    # Users

    def caller(self, token: str) -> Caller | None:
        return self._callers.get(token)

    async def owner_of(self, name: str) -> str | None:
        name = name.split("-")[1] if "-" in name else name
        if name in self._groups:
            return self._group(name).owner
        return self._jobs[name].view.owner if name in self._jobs else None

    async def answer(self, caller: Caller, key: str) -> Answer | None:
        return self._answers.get((caller.owner, caller.project, key))

    async def keep_answer(self, answer: Answer) -> None:
        self._answers[answer.owner, answer.project, answer.key] = answer

    async def tokens(self) -> list[TokenView]:
        return list(self._tokens.values())

    async def create_token(self, request: TokenRequest, caller: Caller) -> TokenView:
        name = f"{len(self._tokens) + 1:012x}"
        owner, project = request.owner or caller.owner, request.project or caller.project
        made = TokenView(name, owner, project, request.name, request.scope, time.time(), time.time() + 3600)
        self._tokens[name] = made
        secret = f"ghv_{name}_{os.urandom(32).hex()}"
        self._callers[secret] = Caller(owner, project, request.scope, token=name, expires=made.expires)
        return msgspec.structs.replace(made, secret=secret)

    async def revoke_token(self, token: str) -> TokenView:
        if token not in self._tokens:
            raise ServiceError(Problem(f"revoke token {token}", 404, "not-found", "there is none", "ghv token list"))
        self._tokens[token] = msgspec.structs.replace(self._tokens[token], revoked=time.time())
        self._callers = {secret: each for secret, each in self._callers.items() if each.token != token}
        return self._tokens[token]

    async def upload(self, owner: str, sha256: str) -> Upload:
        data = self._uploads.get((owner, sha256), b"")
        return Upload(sha256, len(data), hashlib.sha256(data).hexdigest() == sha256)

    async def add_upload(self, owner: str, sha256: str, offset: int, size: int, data: bytes) -> Upload:
        self._uploads[owner, sha256] = self._uploads.get((owner, sha256), b"")[:offset] + data
        return await self.upload(owner, sha256)

    async def results(self, job: str) -> list[Result]:
        found = self._find(job)
        kept = found.view.state.final and not found.view.destination
        return [Result("products/spectrum.fits", 5)] if kept else []

    async def result(self, job: str, path: str, offset: int, limit: int) -> bytes:
        if path not in [each.path for each in await self.results(job)]:
            raise ServiceError(Problem(f"read a result of job {job}", 404, "not-found", "there is none", "ghv show"))
        return b"FITS\n"[offset : offset + limit]

    # Jobs

    async def submit(self, request: JobRequest, idempotency_key: str, caller: Caller) -> JobView:
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
            caller.owner,
            caller.project,
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
        return msgspec.structs.replace(view, warning=_warning(request.spec))

    async def jobs(
        self, *, states: Sequence[str], before: str, group: str | None, owner: str, limit: int
    ) -> list[JobView]:
        below = int(before[1:]) if before else len(self._jobs) + 1
        newest = [j.view for j in reversed(self._jobs.values()) if int(j.view.id[1:]) < below]
        newest = [view for view in newest if group in (None, view.group) and owner in ("", view.owner)]
        return [v for v in newest if not states or v.state in states][:limit]

    # Arrays: all of their tasks are made at once, and none is held back

    async def submit_group(self, request: JobRequest, idempotency_key: str, caller: Caller) -> GroupView:
        if known := self._keys.get(idempotency_key):
            return self._group(known)
        name = f"a{1000 + len(self._groups)}"
        self._groups[name] = request
        if idempotency_key:
            self._keys[idempotency_key] = name
        array = parse_array(request.spec.array)
        for number in array:
            values = task_values(array, number, array_id=name, job_id="")
            each = msgspec.structs.replace(request, spec=task(request.spec, values))
            made = self._find((await self.submit(each, "", caller)).id)
            made.view = msgspec.structs.replace(
                made.view, name=f"{made.view.name}[{number}]", group=name, member=str(number)
            )
        return self._group(name)

    async def groups(self, *, before: str, owner: str, limit: int) -> list[GroupView]:
        below = int(before[1:]) if before else 1 << 30
        found = [self._group(name) for name in reversed(self._groups) if int(name[1:]) < below]
        return [group for group in found if owner in ("", group.owner)][:limit]

    async def group(self, group: str) -> GroupView:
        return self._group(group)

    async def member(self, group: str, name: str) -> JobView:
        self._group(group)
        for job in self._jobs.values():
            if (job.view.group, job.view.member) == (group, name):
                return job.view
        raise ServiceError(Problem(f"find task {name} of {group}", 404, "not-found", "there is no such task"))

    async def submit_workflow(self, request: Request, idempotency_key: str) -> GroupView:
        raise ServiceError(Problem("submit workflow", 503, "unavailable", "only arrays are run here"))

    async def workflow(self, group: str) -> Progress:
        self._group(group)
        raise ServiceError(Problem(f"show the nodes of {group}", 422, "invalid", "it is no workflow"))

    async def cancel_group(self, group: str) -> GroupView:
        self._group(group)
        for job in self._members(group):
            await self.cancel(job.view.id)
        return self._group(group)

    async def recover_group(self, group: str) -> GroupView:
        return self._group(group)

    async def delete_group(self, group: str) -> None:
        self._group(group)
        for job in self._members(group):
            await self.delete(job.view.id)
        del self._groups[group]

    async def follow_group(self, group: str) -> AsyncIterator[GroupView]:
        while True:
            happened = self._happened  # before the look: what comes after it is not missed
            yield (view := self._group(group))
            if view.state.final:
                return
            await happened.wait()

    def _members(self, group: str) -> list[_Running]:
        return [job for job in self._jobs.values() if job.view.group == group]

    def _group(self, name: str) -> GroupView:
        if name not in self._groups:
            raise ServiceError(Problem(f"find {name}", 404, "not-found", "there is no such array", "ghv list"))
        request, views = self._groups[name], [job.view for job in self._members(name)]
        over = all(view.state.final for view in views)
        bad = [view for view in views if view.state.final and (view.state is not JobState.DONE or view.exit_code)]
        worst = JobState.FAILED if any(view.state is not JobState.DONE for view in bad) else JobState.DONE
        return GroupView(
            name,
            request.spec.name or name,
            views[0].owner,
            views[0].project,
            worst if over else JobState.RUNNING,
            Wish.RUN,
            views[0].created,
            request.spec.image,
            request.spec.command,
            request.destination,
            total=len(views),
            made=len(views),
            counts=dict(Counter(str(view.state) for view in views)),
            well=sum(view.state is JobState.DONE and not view.exit_code for view in views),
            array=request.spec.array,
            first_bad=bad[0] if bad else None,
            ended=max(view.ended or 0.0 for view in views) if over else None,
        )

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
        if found.view.state.final and found.view.state is not JobState.DONE:
            raise ServiceError(Problem(f"recover job {job}", 409, "conflict", "it has ended", "Submit it again."))
        return found.view

    async def move(self, job: str, to: str) -> JobView:
        found = self._find(job)
        if found.view.state.final:
            raise ServiceError(Problem(f"move job {job}", 409, "conflict", "it has ended", "Submit it again."))
        return msgspec.structs.replace(found.view, site=to or found.view.site)

    async def suspend(self, job: str) -> JobView:
        found = self._find(job)
        if found.view.state.final:
            raise ServiceError(Problem(f"suspend job {job}", 409, "conflict", "it has ended", "Submit it again."))
        found.view = msgspec.structs.replace(found.view, state=JobState.SUSPENDED, wish=Wish.SUSPEND)
        self._checkpoints[f"g1-{job}-1-1"] = CheckpointView(
            f"g1-{job}-1-1",
            job,
            "here",
            self._started,
            1 << 20,
            12.0,
            CheckpointState.KEPT,
            HYPERVISOR,
            "to suspend it",
        )
        return found.view

    async def pause(self, job: str, *, undo: bool) -> JobView:
        found = self._find(job)
        if found.view.state.final:
            raise ServiceError(Problem(f"pause job {job}", 409, "conflict", "it has ended", "Submit it again."))
        found.view = msgspec.structs.replace(found.view, note="" if undo else "paused: its guest stands still")
        return found.view

    async def resume(self, job: str, to: str = "") -> JobView:
        found = self._find(job)
        found.view = msgspec.structs.replace(
            found.view, state=JobState.RUNNING, wish=Wish.RUN, site=to or found.view.site
        )
        return found.view

    async def save(self, job: str) -> JobView:
        return self._find(job).view

    async def checkpoints(self, job: str) -> list[CheckpointView]:
        return [each for each in self._checkpoints.values() if job in ("", each.job)]

    async def delete_checkpoint(self, checkpoint: str) -> None:
        self._checkpoints.pop(checkpoint, None)

    async def copy_checkpoint(self, checkpoint: str) -> CheckpointView:
        copied = msgspec.structs.replace(self._checkpoints[checkpoint], copy=CopyState.KEPT)
        self._checkpoints[checkpoint] = copied
        return copied

    async def restore(self, checkpoint: str) -> JobView:
        if checkpoint not in self._checkpoints:
            raise ServiceError(
                Problem(
                    f"restore checkpoint {checkpoint}", 404, "not-found", "there is no such checkpoint", "List them."
                )
            )
        return await self.resume(self._checkpoints[checkpoint].job)

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

    async def events(self, *, after: int, job: str, owner: str, limit: int) -> list[EventView]:
        found = (e for e in self._events if e.sequence > after and job in ("", e.job) and owner in ("", e.owner))
        return list(found)[:limit]

    def watch_events(self, *, after: int, job: str, owner: str) -> AsyncIterator[EventView]:
        return self._watch(after, job, owner)

    async def _watch(self, after: int, job: str, owner: str) -> AsyncIterator[EventView]:
        while True:
            happened = self._happened
            for event in await self.events(after=after, job=job, owner=owner, limit=1000):
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

    async def warm_image(self, request: WarmRequest, owner: str) -> Operation:
        await self.image(request.like.image)
        for site in request.sites:
            await self.site(site)
        what = f"guests of {request.like.image} with {request.like.resources.memory} of memory start from a snapshot"
        there = request.like.hypervisor != "auto"
        checks = [Check(f"{what} at {site}", there, request.like.hypervisor) for site in request.sites or self._sites]
        return self._operate("j7 at here: boot", result=checks)

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

    async def edit_site(self, name: str, change: SiteChange, version: int | None) -> SiteView:
        view = await self.site(name)
        if version not in (None, view.version):
            raise ServiceError(Problem(f"edit site {name}", 412, "conflict", "it was changed meanwhile", "Look first."))
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
        self._sites[name] = msgspec.structs.replace(view, settings=settings, version=view.version + 1)
        return self._sites[name]

    async def drain_site(self, name: str, *, undo: bool) -> SiteView:
        self._sites[name] = msgspec.structs.replace(await self.site(name), draining=not undo)
        return self._sites[name]

    async def login_site(self, name: str) -> SiteLogin:
        await self.site(name)
        return SiteLogin(("sh", "-c", f"echo code for {name}: >&2; read code; test $code = 123"))

    async def remove_site(self, name: str, *, abandon: bool) -> SiteRemoval:
        await self.site(name)
        del self._sites[name]
        asking = (job for job in self._jobs.values() if not job.view.state.final and job.request.spec.site == name)
        return SiteRemoval(name, tuple(job.view.id for job in asking), tuple(self._sites))

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

    async def replay(self, job: str) -> ReplayView:
        self._find(job)
        if job == "j1":
            return ReplayView(job, time.time() - 60, 2, 3, "here", "here")
        return ReplayView(job, time.time(), 0, 1, "here", "", (f"{job} was given here, and is given none",))

    async def history(self, job: str) -> History:
        view = self._find(job).view
        stages = Stage("wait", view.created, 1.0), Stage("execute", view.created + 1.0, 2.5)
        under = HYPERVISOR.partition(":")[0]
        lost = AttemptHistory(f"v{job[1:]}.1", 1, "there", "n7", "17", under, AllocationState.CLEANED, stages, None,
                              Reason.LOST, "its node is gone")  # fmt: skip
        again = AttemptHistory(f"v{job[1:]}.2", 2, "here", "", "", "", AllocationState.RUNNING, stages[:1], Phase.BOOT)
        return History(job, view.name, view.created, view.ended, (lost, again))

    async def accounting(self, by: Sequence[By], *, since: float, until: float | None, owner: str) -> Accounts:
        """Two attempts of "me" that ended at 1000 s and 2000 s."""
        times = [at for at in (1000.0, 2000.0) if since < at <= (until or time.time()) and owner in ("", "me")]
        each = Account({}, len(times), len(times), len(times), 90.0 * len(times), 0.5 * len(times), 1.0 * len(times))
        mine = msgspec.structs.replace(each, of=dict.fromkeys(by, "me"))
        return Accounts(tuple(by), since, until or time.time(), (mine,) if times else (), each)

    async def match(self, spec: JobSpec, caller: Caller) -> MatchView:
        here = Candidate("here", True, "room for 2 more (max jobs: 2)", 2.0)
        there = Candidate("there", False, f"{spec.requirements or 'Up'} does not hold: Memory is 512 MiB")
        nodes = (Candidate("here", True, "matches", 3.0, "n1"),)
        warning = f"rank {spec.rank} is no number at there and counts as 0 there" if "/ 0" in spec.rank else ""
        return MatchView("room for 2 more (max jobs: 2)", (here, there), nodes, warning)

    async def nodes(self, site: str) -> list[NodeView]:
        await self.site(site or "here")
        whole = {"Site": "here", "FreePlaces": 2, "MaxJobs": 2, "QueueWait": 12.4, "Nodes": 3, "FreeNodes": 1,
                 "SiteCpus": 12, "SiteFreeCpus": 5, "QueueLength": 7, "MaintenanceIn": 7200}  # fmt: skip
        node = {
            "Site": "here",
            "Node": "n1",
            "NodeState": "mixed",
            "Cpus": 4,
            "FreeCpus": 1,
            "Memory": 2048,
            "Hypervisors": ("uml", "tcg"),
            "CpuModel": "Z80",
        }
        return [NodeView("here", "", whole), NodeView("here", "n1", node)]

    async def plan_ahead(self, limit: int) -> list[PlannedView]:
        soon = PlannedView(
            "j7", "first", "me", "here", time.time() - 1, time.time() + 3600, "as soon as it is given away"
        )
        never = PlannedView("j8", "never", "me", why="here: it asks for 9 CPUs; the largest node has 4")
        places = {"here": 3, "there": 1}
        gang = PlannedView("j9", "pair", "me", "here", time.time() + 600, None, "when there is room", "g4", places)
        return [soon, never, gang][:limit]

    async def policy(self) -> PolicyView:
        return self._policy

    async def set_policy(self, policy: SchedulingPolicy, version: int | None, caller: Caller) -> PolicyView:
        if version not in (None, self._policy.version):
            raise ServiceError(Problem("set the policy", 412, "conflict", "somebody else has set it", "Look first."))
        self._policy = PolicyView(policy, self._policy.version + 1, time.time(), caller.owner)
        return self._policy

    async def all_operations(self) -> list[Operation]:
        return [Operation(name, "done") for name in self._operations]

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

    # Virtual infrastructures: each is ready at once, and its VMs' guests say what they are told

    async def apply(self, request: InfrastructureRequest, idempotency_key: str) -> InfrastructureView:
        spec = request.spec
        for name, role in spec.roles.items():
            if role.image == "none":
                raise ServiceError(Problem(f"apply {spec.name}", 404, "not-found", f"roles.{name}: no image none"))
        standing = self._infrastructures.get(spec.name)
        number = standing.id if standing is not None else f"i{100 + len(self._infrastructures)}"
        state = InfrastructureState.FAILED if "never" in spec.roles else InfrastructureState.READY
        vms = tuple(
            VmView(f"{name}-{n}", name, f"j{200 + n}", JobState.RUNNING, Wish.RUN, True, "here", "n1")
            for name, role in spec.roles.items()
            for n in range(role.wanted)
        )
        roles = tuple(
            RoleView(name, role.wanted, role.wanted, role.bounds.min, role.bounds.max)
            for name, role in spec.roles.items()
        )
        now = time.time()
        why = "never-0 (j200) was not ready 1m after its start" if state is InfrastructureState.FAILED else ""
        view = InfrastructureView(
            number, spec.name, "me", "default", state, Wish.RUN, now, now, now + 3600, roles, vms, spec, why
        )
        self._infrastructures[spec.name] = view
        return view

    async def scale(self, name: str, counts: dict[str, int]) -> InfrastructureView:
        view = await self.infrastructure(name)
        roles = dict(view.spec.roles)
        for role, count in counts.items():
            if role not in roles:
                why = f"there is no role {role}"
                raise ServiceError(Problem(f"scale {name}", 422, "invalid", why, f"roles are {', '.join(roles)}"))
            roles[role] = roles[role].scaled(count)
        return await self.apply(InfrastructureRequest(msgspec.structs.replace(view.spec, roles=roles), "/"), "")

    async def plan_infrastructure(self, request: InfrastructureRequest) -> InfrastructurePlan:
        spec = request.spec
        standing = self._infrastructures.get(spec.name)
        planned = tuple(
            PlannedVm(f"{name}-{n}", "here", "room for it")
            for name, role in spec.roles.items()
            for n in range(role.wanted)
        )
        chosen = (Candidate("here", True, "room for it"), Candidate("slurm-a", False, "does not answer"))
        roles = tuple(RolePlan(name, chosen) for name in spec.roles)
        if standing is None:
            return InfrastructurePlan(spec.name, vms=planned, roles=roles)
        images = [
            f"roles.{name}.image"
            for name, role in spec.roles.items()
            if name in standing.spec.roles and standing.spec.roles[name].image != role.image
        ]
        return InfrastructurePlan(spec.name, standing.id, ("worker: 1 → 2 VMs",), tuple(images))

    async def infrastructures(self, *, before: str, limit: int) -> list[InfrastructureView]:
        return list(self._infrastructures.values())[:limit]

    async def infrastructure(self, name: str) -> InfrastructureView:
        for view in self._infrastructures.values():
            if name in (view.id, view.name):
                return view
        hint = "ghv list shows what there is."
        raise ServiceError(Problem(f"find {name}", 404, "not-found", "there is no such infrastructure", hint))

    def follow_infrastructure(self, name: str) -> AsyncIterator[InfrastructureView]:
        return self._follow_infrastructure(name)

    async def _follow_infrastructure(self, name: str) -> AsyncIterator[InfrastructureView]:
        yield await self.infrastructure(name)

    async def cancel_infrastructure(self, name: str) -> InfrastructureView:
        view = await self.infrastructure(name)
        ended = msgspec.structs.replace(view, state=InfrastructureState.CANCELLED, wish=Wish.CANCEL)
        self._infrastructures[view.name] = ended
        return ended

    async def delete_infrastructure(self, name: str) -> None:
        del self._infrastructures[(await self.infrastructure(name)).name]

    async def execute(self, job: str, request: ExecRequest) -> ExecView:
        """Its guest knows two commands: `echo WORDS`, to stdout and to stderr, and `exit CODE`."""
        if not any(vm.job == job for view in self._infrastructures.values() for vm in view.vms):
            raise ServiceError(Problem(f"run a command in {job}", 409, "conflict", "it is no VM", "ghv list"))
        match request.command:
            case ("echo", *words):
                return ExecView(0, f"{' '.join(words)}\n".encode(), f"limit {request.limit}\n".encode())
            case ("exit", code):
                return ExecView(int(code))
            case ("/run/ghv/busybox", "sh", "-c", _, "sh", place, _, _):  # as `ghv cp` puts a file
                self._files[place] = request.stdin
                return ExecView(0)
            case ("/run/ghv/busybox", "sh", "-c", _, "sh", place):  # and gets one
                if place not in self._files:
                    return ExecView(1, b"", f"stat: can't stat '{place}': No such file or directory\n".encode())
                size = len(self._files[place])
                return ExecView(0, self._files[place], f"{size} 644 regular file\n".encode())
            case _:
                return ExecView(127, b"", b"no such program\n")

    async def status(self) -> ServiceView:
        return ServiceView("0.1", self._pid, "g1234abcd", self._started, "/data", len(self._jobs), 1.5, 50 << 20)

    async def stop(self) -> None:
        self._stop()

    async def measures(self) -> Measures:
        none = Times((0,) * (len(BOUNDS) + 1), 0.0)
        states = Counter(str(job.view.state) for job in self._jobs.values())
        here = SiteMeasures("here", SiteHealth.UP, 1, 0, 2, False, 7)
        submits = {("submit", "ok"): 3}
        return Measures(states, 0, 1, submits, {"commit": 4}, none, none, none, (here,), self._started, 1.5, 50 << 20)

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
                len(self._events) + 1,
                time.time(),
                job.view.owner,
                job.view.project,
                job.view.id,
                "job",
                job.view.id,
                before,
                after,
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


def _warning(spec: JobSpec) -> str:
    cpus = spec.resources.cpus
    return f"no site can take it as it is: here: it asks for {cpus} CPUs; the largest node has 4" if cpus > 4 else ""
