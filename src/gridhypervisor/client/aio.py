"""The asynchronous client, on httpx: the same calls as the synchronous one, for programs with an event loop."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from socket import IPPROTO_TCP, SOL_SOCKET
from types import TracebackType
from typing import TYPE_CHECKING, Self, TypeVar

import httpx

from gridhypervisor.client import calls, usercalls
from gridhypervisor.client.calls import Call, Feed
from gridhypervisor.client.remote import KEEPALIVE, PROBES, Remote
from gridhypervisor.client.sync import PAUSE
from gridhypervisor.model.spec import JobSpec
from gridhypervisor.model.views import (
    PATIENCE,
    CheckpointView,
    EventView,
    Explanation,
    FollowItem,
    GroupView,
    ImageBuildRequest,
    ImageImportRequest,
    ImageView,
    JobDetail,
    JobRequest,
    JobView,
    MatchView,
    NodeView,
    Operation,
    OperationItem,
    PlannedView,
    ReplayView,
    ServiceView,
    SiteChange,
    SiteLogin,
    SiteRemoval,
    SiteRequest,
    SiteUsage,
    SiteView,
    WarmRequest,
)

if TYPE_CHECKING:
    from gridhypervisor.model.access import Caller, Result, TokenRequest, TokenView, Upload
    from gridhypervisor.model.accounts import Accounts, By, History
    from gridhypervisor.model.infraviews import (
        ExecRequest,
        ExecView,
        InfrastructurePlan,
        InfrastructureRequest,
        InfrastructureView,
    )
    from gridhypervisor.model.policy import PolicyView, SchedulingPolicy
    from gridhypervisor.model.workflow import Progress, Request

T = TypeVar("T")


class AsyncClient:
    """As `Client`, with coroutines and asynchronous iterators. To be closed, or used in `async with`."""

    def __init__(
        self, address: str | Remote, *, revive: Callable[[], Awaitable[None]] | None = None, patience: float = 60.0
    ) -> None:
        self._address, self._revive, self._patience = address, revive, patience
        self._met = False
        if isinstance(address, str):
            transport, url, headers = httpx.AsyncHTTPTransport(uds=address), "http://localhost", calls.LAST
        else:
            alive = [(SOL_SOCKET, *option) for option in KEEPALIVE] + [(IPPROTO_TCP, *option) for option in PROBES]
            transport = httpx.AsyncHTTPTransport(verify=address.tls() or True, socket_options=alive)
            url, headers = address.url, calls.LAST | {"Authorization": f"Bearer {address.token}"}
        self._http = httpx.AsyncClient(transport=transport, base_url=url, headers=headers, timeout=None)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        await self._http.aclose()

    async def submit(self, request: JobRequest, key: str = "") -> JobView:
        return await self._ask(calls.submit(request, key))

    async def jobs(
        self, *, states: Sequence[str] = (), before: str = "", group: str | None = None, limit: int = 100
    ) -> tuple[JobView, ...]:
        """Newest first, below the id `before`; of this group, or ("") of none."""
        return await self._ask(calls.jobs(states, before, group, limit))

    async def submit_group(self, request: JobRequest, key: str = "") -> GroupView:
        """Submit an array."""
        return await self._ask(calls.submit_group(request, key))

    async def submit_workflow(self, request: Request, key: str = "") -> GroupView:
        return await self._ask(calls.submit_workflow(request, key))

    async def workflow(self, group: str) -> Progress:
        """A workflow, and where its nodes are."""
        return await self._ask(calls.workflow(group))

    async def groups(self, *, before: str = "", limit: int = 100) -> tuple[GroupView, ...]:
        return await self._ask(calls.groups(before, limit))

    async def group(self, group: str) -> GroupView:
        return await self._ask(calls.group(group))

    async def member(self, group: str, name: str) -> JobView:
        """A task of an array, by its number."""
        return await self._ask(calls.member(group, name))

    async def cancel_group(self, group: str) -> GroupView:
        return await self._ask(calls.cancel_group(group))

    async def recover_group(self, group: str) -> GroupView:
        return await self._ask(calls.recover_group(group))

    async def delete_group(self, group: str) -> None:
        await self._ask(calls.delete_group(group))

    def follow_group(self, group: str) -> AsyncIterator[GroupView]:
        """The group as it changes; the last item is of its end."""
        return self._stream(calls.GroupFeed(group))

    async def apply(self, request: InfrastructureRequest, key: str = "") -> InfrastructureView:
        """Have an infrastructure that is so: a new one, or the one of this name is changed."""
        return await self._ask(calls.apply(request, key))

    async def plan_infrastructure(self, request: InfrastructureRequest) -> InfrastructurePlan:
        """What applying it would do now."""
        return await self._ask(calls.plan_infrastructure(request))

    async def infrastructures(self, *, before: str = "", limit: int = 100) -> tuple[InfrastructureView, ...]:
        """Newest first, below the id `before`."""
        return await self._ask(calls.infrastructures(before, limit))

    async def infrastructure(self, name: str) -> InfrastructureView:
        """By its id, or its name: then the newest of that name."""
        return await self._ask(calls.infrastructure(name))

    def follow_infrastructure(self, name: str) -> AsyncIterator[InfrastructureView]:
        """The infrastructure as it changes; the last item is of its end."""
        return self._stream(calls.InfrastructureFeed(name))

    async def scale(self, name: str, counts: Mapping[str, int]) -> InfrastructureView:
        """Have so many VMs of each of these roles."""
        return await self._ask(calls.scale(name, counts))

    async def cancel_infrastructure(self, name: str) -> InfrastructureView:
        return await self._ask(calls.cancel_infrastructure(name))

    async def delete_infrastructure(self, name: str) -> None:
        """It is gone when the sites have confirmed that nothing of it is left."""
        await self._ask(calls.delete_infrastructure(name))

    async def execute(self, job: str, request: ExecRequest) -> ExecView:
        """Run a command in a VM beside its program, and wait for its end."""
        return await self._ask(calls.execute(job, request))

    async def job(self, job: str) -> JobDetail:
        return await self._ask(calls.job(job))

    async def cancel(self, job: str) -> JobView:
        return await self._ask(calls.cancel(job))

    async def recover(self, job: str) -> JobView:
        return await self._ask(calls.recover(job))

    async def move(self, job: str, to: str = "") -> JobView:
        """Have it leave its site for another: for `to`, if that is given, and from now on only there."""
        return await self._ask(calls.move(job, to))

    async def suspend(self, job: str) -> JobView:
        """Save its guest and give its place free; what has not begun stands still as it is."""
        return await self._ask(calls.suspend(job))

    async def resume(self, job: str, to: str = "") -> JobView:
        """Have it go on; at the site `to`, if that is given, and from now on only there."""
        return await self._ask(calls.resume(job, to))

    async def pause(self, job: str, *, undo: bool = False) -> JobView:
        """Have its guest stand still in its place; `undo`: have it go on."""
        return await self._ask(calls.pause(job, undo=undo))

    async def checkpoint(self, job: str) -> JobView:
        """Have its guest saved, which goes on then; `checkpoints` tells when it is done."""
        return await self._ask(calls.save(job))

    async def checkpoints(self, job: str = "") -> list[CheckpointView]:
        """Those that are kept of a job, or of all; newest first."""
        return await self._ask(calls.checkpoints(job))

    async def delete_checkpoint(self, checkpoint: str) -> None:
        await self._ask(calls.delete_checkpoint(checkpoint))

    async def copy_checkpoint(self, checkpoint: str) -> CheckpointView:
        """Have it copied to the service's machine; `checkpoints` tells when that is done."""
        return await self._ask(calls.copy_checkpoint(checkpoint))

    async def restore(self, checkpoint: str) -> JobView:
        """Have its job go on from there, and not from a newer one."""
        return await self._ask(calls.restore(checkpoint))

    async def delete(self, job: str) -> None:
        await self._ask(calls.delete(job))

    async def explain(self, job: str) -> Explanation:
        return await self._ask(calls.explain(job))

    def follow(self, job: str, *, output: bool = True, stdout: int = 0, stderr: int = 0) -> AsyncIterator[FollowItem]:
        """The job's changes, and what it prints from those offsets on; ends with the item of kind END."""
        return self._stream(calls.JobFeed(job, output, stdout, stderr))

    async def log(self, job: str, stream: str, *, offset: int = 0, limit: int = 1 << 20) -> bytes:
        """Bytes of stdout, stderr, console or pilot; empty at the present end."""
        return await self._ask(calls.log(job, stream, offset, limit))

    async def events(self, *, after: int = 0, job: str = "", limit: int = 1000) -> tuple[EventView, ...]:
        return await self._ask(calls.events(after, job, limit))

    def watch_events(self, *, after: int = 0, job: str = "") -> AsyncIterator[EventView]:
        """Events with a sequence above `after`, past and coming; has no end."""
        return self._stream(calls.EventFeed(after, job))

    async def images(self) -> tuple[ImageView, ...]:
        return await self._ask(calls.images())

    async def image(self, reference: str) -> ImageView:
        return await self._ask(calls.image(reference))

    async def build_image(self, request: ImageBuildRequest) -> Operation:
        return await self._ask(calls.build_image(request))

    async def import_image(self, request: ImageImportRequest) -> Operation:
        return await self._ask(calls.import_image(request))

    async def verify_image(self, reference: str) -> Operation:
        return await self._ask(calls.verify_image(reference))

    async def warm_image(self, request: WarmRequest) -> Operation:
        return await self._ask(calls.warm_image(request))

    async def delete_image(self, reference: str) -> None:
        await self._ask(calls.delete_image(reference))

    async def sites(self) -> tuple[SiteView, ...]:
        return await self._ask(calls.sites())

    async def site(self, name: str) -> SiteView:
        return await self._ask(calls.site(name))

    async def add_site(self, request: SiteRequest) -> SiteView:
        return await self._ask(calls.add_site(request))

    async def edit_site(self, name: str, change: SiteChange, *, version: int | None = None) -> SiteView:
        """`version`: only if it has this one."""
        return await self._ask(calls.edit_site(name, change, version))

    async def drain_site(self, name: str, *, undo: bool = False) -> SiteView:
        """Give the site no new work; `undo`: give it work again."""
        return await self._ask(calls.drain_site(name, undo=undo))

    async def login_site(self, name: str) -> SiteLogin:
        """The command that a person runs in a terminal to let the service in."""
        return await self._ask(calls.login_site(name))

    async def remove_site(self, name: str, *, abandon: bool = False) -> SiteRemoval:
        """Forget a site; `abandon`: also though something of jobs is there, which end without it."""
        return await self._ask(calls.remove_site(name, abandon=abandon))

    async def check_site(self, name: str, *, patience: int = PATIENCE) -> Operation:
        """Ask it, and prove what its nodes can do by a small job, which has `patience` seconds; 0: no job."""
        return await self._ask(calls.check_site(name, patience))

    async def site_usage(self, name: str) -> SiteUsage:
        return await self._ask(calls.site_usage(name))

    async def history(self, job: str) -> History:
        return await self._ask(calls.history(job))

    async def accounting(
        self, by: Sequence[By] = ("user",), *, since: float = 0.0, until: float | None = None
    ) -> Accounts:
        """What attempts that ended in that time have used, in seconds since the epoch; until now, if none is named."""
        return await self._ask(calls.accounting(by, since, until))

    async def replay(self, job: str) -> ReplayView:
        """The choice of its site, made again from the record."""
        return await self._ask(calls.replay(job))

    async def match(self, spec: JobSpec) -> MatchView:
        """Where such a job could go now; no job is made."""
        return await self._ask(calls.match(spec))

    async def nodes(self, site: str = "") -> tuple[NodeView, ...]:
        """What sites and their nodes publish; of all sites, where none is named."""
        return await self._ask(calls.nodes(site))

    async def plan(self, limit: int = 1000) -> tuple[PlannedView, ...]:
        """Where jobs that wait for a site would go, and when."""
        return await self._ask(calls.plan(limit))

    async def policy(self) -> PolicyView:
        return await self._ask(calls.policy())

    async def set_policy(self, policy: SchedulingPolicy, *, version: int | None = None) -> PolicyView:
        """`version`: only if the one before has it."""
        return await self._ask(calls.set_policy(policy, version))

    def follow_operation(self, operation: Operation) -> AsyncIterator[OperationItem]:
        """Its progress; ends with the item of kind `done`, or raises the operation's error."""
        return self._stream(calls.OperationFeed(operation))

    async def stop_operation(self, operation: Operation) -> None:
        """End it before its time: what it has begun at a site is withdrawn."""
        await self._ask(calls.stop_operation(operation))

    async def operations(self) -> tuple[Operation, ...]:
        """Those under way, and the last that have ended."""
        return await self._ask(calls.operations())

    async def caller(self) -> Caller:
        """As whom the service takes this client, and what it may."""
        return await self._ask(usercalls.caller())

    async def tokens(self) -> tuple[TokenView, ...]:
        return await self._ask(usercalls.tokens())

    async def create_token(self, request: TokenRequest) -> TokenView:
        """The answer has the secret; it is told nowhere else."""
        return await self._ask(usercalls.create_token(request))

    async def revoke_token(self, token: str) -> TokenView:
        return await self._ask(usercalls.revoke_token(token))

    async def upload(self, sha256: str) -> Upload:
        """How much of a file has come."""
        return await self._ask(usercalls.upload(sha256))

    async def add_upload(self, sha256: str, offset: int, size: int, data: bytes) -> Upload:
        """Send a piece, at most 8 MiB, of a file of `size` bytes; `client.files` sends whole ones."""
        return await self._ask(usercalls.add_upload(sha256, offset, size, data))

    async def results(self, job: str) -> tuple[Result, ...]:
        """What the service keeps of a job that has no destination."""
        return await self._ask(usercalls.results(job))

    async def result(self, job: str, path: str, *, offset: int = 0, limit: int = 8 << 20) -> bytes:
        """Bytes of one of them; empty: there are no more."""
        return await self._ask(usercalls.result(job, path, offset, limit))

    async def status(self) -> ServiceView:
        return await self._ask(calls.status())

    async def stop(self) -> None:
        """Ask the service to stop. It has stopped when its process has ended."""
        await self._ask(calls.stop())

    async def _ask(self, call: Call[T]) -> T:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._patience
        while True:
            try:
                response = await self._http.request(
                    call.method, call.path, content=call.body or None, headers=call.all_headers
                )
                self._met = True
                return call.read(response.status_code, response.content)
            except httpx.TransportError as error:
                if not call.repeatable and not isinstance(error, httpx.ConnectError):
                    hint = "It may have been carried out or not: look before asking again."
                    raise calls.gone(self._address, f"it went away before it answered ({error})", hint) from error
                await self._await_service(error, deadline)

    async def _stream(self, feed: Feed[T]) -> AsyncIterator[T]:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._patience
        while True:
            broken: Exception = ConnectionError("the stream ended early")
            try:
                async with self._http.stream("GET", feed.path) as response:
                    self._met = True
                    if response.status_code >= 400:
                        raise calls.refusal(f"GET {feed.path}", response.status_code, await response.aread())
                    async for line in _lines(response):
                        item = feed.take(line)
                        deadline = loop.time() + self._patience
                        if item is not None:
                            yield item
                        if feed.ended:
                            return
            except httpx.TransportError as error:
                broken = error
            if not feed.resumable and not isinstance(broken, httpx.ConnectError):
                hint = "Start the operation again."
                raise calls.gone(self._address, "it went away in the middle of the operation", hint) from broken
            await self._await_service(broken, deadline)

    async def _await_service(self, error: Exception, deadline: float) -> None:
        """Return when it is worth trying again; see `Client`."""
        absent = isinstance(error, httpx.ConnectError)
        if absent and not self._met and not self._revive:
            raise calls.absent(self._address, error) from error
        if asyncio.get_running_loop().time() > deadline:
            raise calls.lost(self._address, self._patience, error) from error
        if absent and self._revive and (not self._met or os.path.exists(str(self._address))):
            await self._revive()
        else:
            await asyncio.sleep(PAUSE)


async def _lines(response: httpx.Response) -> AsyncIterator[bytes]:
    """Whole lines; httpx's own iterator would also cut at the line separators of Unicode, which JSON may hold."""
    rest = b""
    async for chunk in response.aiter_raw():
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            yield line
