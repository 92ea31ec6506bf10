"""The synchronous client."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar

from gridhypervisor.client import calls, usercalls
from gridhypervisor.client.calls import Call, Feed
from gridhypervisor.client.http import Absent, Exchange
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

if TYPE_CHECKING:
    from gridhypervisor.client.remote import Remote
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

PAUSE = 0.1
"""Seconds between two looks for a service that is away."""


class Client:
    """Speaks to the service behind a Unix socket, or to a `Remote`. Every method raises ServiceError. May be used from
    several threads.

    When the service cannot be reached, `revive` (if given) is called to start it: at the first call, and later when it
    has crashed, which it has where its socket lies there and nobody listens. A service that was stopped on purpose
    took its socket away: then the client waits, up to `patience` seconds, for whoever stopped it to start it again.
    """

    def __init__(
        self, address: str | Remote, *, revive: Callable[[], None] | None = None, patience: float = 60.0
    ) -> None:
        self._address, self._revive, self._patience = address, revive, patience
        self._met = False

    @property
    def remote(self) -> bool:
        """Whether the service is elsewhere: it has other files than this machine."""
        return not isinstance(self._address, str)

    def submit(self, request: JobRequest, key: str = "") -> JobView:
        return self._ask(calls.submit(request, key))

    def jobs(
        self, *, states: Sequence[str] = (), before: str = "", group: str | None = None, limit: int = 100
    ) -> tuple[JobView, ...]:
        """Newest first, below the id `before`; of this group, or ("") of none."""
        return self._ask(calls.jobs(states, before, group, limit))

    def submit_group(self, request: JobRequest, key: str = "") -> GroupView:
        """Submit an array."""
        return self._ask(calls.submit_group(request, key))

    def submit_workflow(self, request: Request, key: str = "") -> GroupView:
        return self._ask(calls.submit_workflow(request, key))

    def workflow(self, group: str) -> Progress:
        """A workflow, and where its nodes are."""
        return self._ask(calls.workflow(group))

    def groups(self, *, before: str = "", limit: int = 100) -> tuple[GroupView, ...]:
        return self._ask(calls.groups(before, limit))

    def group(self, group: str) -> GroupView:
        return self._ask(calls.group(group))

    def member(self, group: str, name: str) -> JobView:
        """A task of an array, by its number."""
        return self._ask(calls.member(group, name))

    def cancel_group(self, group: str) -> GroupView:
        return self._ask(calls.cancel_group(group))

    def recover_group(self, group: str) -> GroupView:
        return self._ask(calls.recover_group(group))

    def delete_group(self, group: str) -> None:
        self._ask(calls.delete_group(group))

    def follow_group(self, group: str) -> Iterator[GroupView]:
        """The group as it changes; the last item is of its end."""
        return self._stream(calls.GroupFeed(group))

    def apply(self, request: InfrastructureRequest, key: str = "") -> InfrastructureView:
        """Have an infrastructure that is so: a new one, or the one of this name is changed."""
        return self._ask(calls.apply(request, key))

    def plan_infrastructure(self, request: InfrastructureRequest) -> InfrastructurePlan:
        """What applying it would do now."""
        return self._ask(calls.plan_infrastructure(request))

    def infrastructures(self, *, before: str = "", limit: int = 100) -> tuple[InfrastructureView, ...]:
        """Newest first, below the id `before`."""
        return self._ask(calls.infrastructures(before, limit))

    def infrastructure(self, name: str) -> InfrastructureView:
        """By its id, or its name: then the newest of that name."""
        return self._ask(calls.infrastructure(name))

    def follow_infrastructure(self, name: str) -> Iterator[InfrastructureView]:
        """The infrastructure as it changes; the last item is of its end."""
        return self._stream(calls.InfrastructureFeed(name))

    def scale(self, name: str, counts: Mapping[str, int]) -> InfrastructureView:
        """Have so many VMs of each of these roles."""
        return self._ask(calls.scale(name, counts))

    def cancel_infrastructure(self, name: str) -> InfrastructureView:
        return self._ask(calls.cancel_infrastructure(name))

    def delete_infrastructure(self, name: str) -> None:
        """It is gone when the sites have confirmed that nothing of it is left."""
        self._ask(calls.delete_infrastructure(name))

    def execute(self, job: str, request: ExecRequest) -> ExecView:
        """Run a command in a VM beside its program, and wait for its end."""
        return self._ask(calls.execute(job, request))

    def job(self, job: str) -> JobDetail:
        return self._ask(calls.job(job))

    def cancel(self, job: str) -> JobView:
        return self._ask(calls.cancel(job))

    def recover(self, job: str) -> JobView:
        return self._ask(calls.recover(job))

    def move(self, job: str, to: str = "") -> JobView:
        """Have it leave its site for another: for `to`, if that is given, and from now on only there."""
        return self._ask(calls.move(job, to))

    def suspend(self, job: str) -> JobView:
        """Save its guest and give its place free; what has not begun stands still as it is."""
        return self._ask(calls.suspend(job))

    def resume(self, job: str, to: str = "") -> JobView:
        """Have it go on; at the site `to`, if that is given, and from now on only there."""
        return self._ask(calls.resume(job, to))

    def pause(self, job: str, *, undo: bool = False) -> JobView:
        """Have its guest stand still in its place; `undo`: have it go on."""
        return self._ask(calls.pause(job, undo=undo))

    def checkpoint(self, job: str) -> JobView:
        """Have its guest saved, which goes on then; `checkpoints` tells when it is done."""
        return self._ask(calls.save(job))

    def checkpoints(self, job: str = "") -> list[CheckpointView]:
        """Those that are kept of a job, or of all; newest first."""
        return self._ask(calls.checkpoints(job))

    def delete_checkpoint(self, checkpoint: str) -> None:
        self._ask(calls.delete_checkpoint(checkpoint))

    def copy_checkpoint(self, checkpoint: str) -> CheckpointView:
        """Have it copied to the service's machine; `checkpoints` tells when that is done."""
        return self._ask(calls.copy_checkpoint(checkpoint))

    def restore(self, checkpoint: str) -> JobView:
        """Have its job go on from there, and not from a newer one."""
        return self._ask(calls.restore(checkpoint))

    def delete(self, job: str) -> None:
        self._ask(calls.delete(job))

    def explain(self, job: str) -> Explanation:
        return self._ask(calls.explain(job))

    def follow(self, job: str, *, output: bool = True, stdout: int = 0, stderr: int = 0) -> Iterator[FollowItem]:
        """The job's changes, and what it prints from those offsets on; ends with the item of kind END."""
        return self._stream(calls.JobFeed(job, output, stdout, stderr))

    def log(self, job: str, stream: str, *, offset: int = 0, limit: int = 1 << 20) -> bytes:
        """Bytes of stdout, stderr, console or pilot; empty at the present end."""
        return self._ask(calls.log(job, stream, offset, limit))

    def events(self, *, after: int = 0, job: str = "", limit: int = 1000) -> tuple[EventView, ...]:
        return self._ask(calls.events(after, job, limit))

    def watch_events(self, *, after: int = 0, job: str = "") -> Iterator[EventView]:
        """Events with a sequence above `after`, past and coming; has no end."""
        return self._stream(calls.EventFeed(after, job))

    def images(self) -> tuple[ImageView, ...]:
        return self._ask(calls.images())

    def image(self, reference: str) -> ImageView:
        return self._ask(calls.image(reference))

    def build_image(self, request: ImageBuildRequest) -> Operation:
        return self._ask(calls.build_image(request))

    def import_image(self, request: ImageImportRequest) -> Operation:
        return self._ask(calls.import_image(request))

    def verify_image(self, reference: str) -> Operation:
        return self._ask(calls.verify_image(reference))

    def warm_image(self, request: WarmRequest) -> Operation:
        return self._ask(calls.warm_image(request))

    def delete_image(self, reference: str) -> None:
        self._ask(calls.delete_image(reference))

    def sites(self) -> tuple[SiteView, ...]:
        return self._ask(calls.sites())

    def site(self, name: str) -> SiteView:
        return self._ask(calls.site(name))

    def add_site(self, request: SiteRequest) -> SiteView:
        return self._ask(calls.add_site(request))

    def edit_site(self, name: str, change: SiteChange, *, version: int | None = None) -> SiteView:
        """`version`: only if it has this one."""
        return self._ask(calls.edit_site(name, change, version))

    def drain_site(self, name: str, *, undo: bool = False) -> SiteView:
        """Give the site no new work; `undo`: give it work again."""
        return self._ask(calls.drain_site(name, undo=undo))

    def login_site(self, name: str) -> SiteLogin:
        """The command that a person runs in a terminal to let the service in."""
        return self._ask(calls.login_site(name))

    def remove_site(self, name: str, *, abandon: bool = False) -> SiteRemoval:
        """Forget a site; `abandon`: also though something of jobs is there, which end without it."""
        return self._ask(calls.remove_site(name, abandon=abandon))

    def check_site(self, name: str, *, patience: int = PATIENCE) -> Operation:
        """Ask it, and prove what its nodes can do by a small job, which has `patience` seconds; 0: no job."""
        return self._ask(calls.check_site(name, patience))

    def site_usage(self, name: str) -> SiteUsage:
        return self._ask(calls.site_usage(name))

    def history(self, job: str) -> History:
        return self._ask(calls.history(job))

    def accounting(self, by: Sequence[By] = ("user",), *, since: float = 0.0, until: float | None = None) -> Accounts:
        """What attempts that ended in that time have used, in seconds since the epoch; until now, if none is named."""
        return self._ask(calls.accounting(by, since, until))

    def replay(self, job: str) -> ReplayView:
        """The choice of its site, made again from the record."""
        return self._ask(calls.replay(job))

    def match(self, spec: JobSpec) -> MatchView:
        """Where such a job could go now; no job is made."""
        return self._ask(calls.match(spec))

    def nodes(self, site: str = "") -> tuple[NodeView, ...]:
        """What sites and their nodes publish; of all sites, where none is named."""
        return self._ask(calls.nodes(site))

    def plan(self, limit: int = 1000) -> tuple[PlannedView, ...]:
        """Where jobs that wait for a site would go, and when."""
        return self._ask(calls.plan(limit))

    def policy(self) -> PolicyView:
        return self._ask(calls.policy())

    def set_policy(self, policy: SchedulingPolicy, *, version: int | None = None) -> PolicyView:
        """`version`: only if the one before has it."""
        return self._ask(calls.set_policy(policy, version))

    def follow_operation(self, operation: Operation) -> Iterator[OperationItem]:
        """Its progress; ends with the item of kind `done`, or raises the operation's error."""
        return self._stream(calls.OperationFeed(operation))

    def stop_operation(self, operation: Operation) -> None:
        """End it before its time: what it has begun at a site is withdrawn."""
        self._ask(calls.stop_operation(operation))

    def operations(self) -> tuple[Operation, ...]:
        """Those under way, and the last that have ended."""
        return self._ask(calls.operations())

    def caller(self) -> Caller:
        """As whom the service takes this client, and what it may."""
        return self._ask(usercalls.caller())

    def tokens(self) -> tuple[TokenView, ...]:
        return self._ask(usercalls.tokens())

    def create_token(self, request: TokenRequest) -> TokenView:
        """The answer has the secret; it is told nowhere else."""
        return self._ask(usercalls.create_token(request))

    def revoke_token(self, token: str) -> TokenView:
        return self._ask(usercalls.revoke_token(token))

    def upload(self, sha256: str) -> Upload:
        """How much of a file has come."""
        return self._ask(usercalls.upload(sha256))

    def add_upload(self, sha256: str, offset: int, size: int, data: bytes) -> Upload:
        """Send a piece, at most 8 MiB, of a file of `size` bytes; `client.files` sends whole ones."""
        return self._ask(usercalls.add_upload(sha256, offset, size, data))

    def results(self, job: str) -> tuple[Result, ...]:
        """What the service keeps of a job that has no destination."""
        return self._ask(usercalls.results(job))

    def result(self, job: str, path: str, *, offset: int = 0, limit: int = 8 << 20) -> bytes:
        """Bytes of one of them; empty: there are no more."""
        return self._ask(usercalls.result(job, path, offset, limit))

    def status(self) -> ServiceView:
        return self._ask(calls.status())

    def stop(self) -> None:
        """Ask the service to stop. It has stopped when its process has ended."""
        self._ask(calls.stop())

    def _ask(self, call: Call[T]) -> T:
        deadline = time.monotonic() + self._patience
        while True:
            try:
                with Exchange(self._address, call.method, call.path, call.all_headers, call.body) as answer:
                    self._met = True
                    return call.read(answer.status, answer.read())
            except OSError as error:
                self._met |= not isinstance(error, Absent)
                if not call.repeatable and not isinstance(error, Absent):
                    hint = "It may have been carried out or not: look before asking again."
                    raise calls.gone(self._address, f"it went away before it answered ({error})", hint) from error
                self._await_service(error, deadline)

    def _stream(self, feed: Feed[T]) -> Iterator[T]:
        deadline = time.monotonic() + self._patience
        while True:
            broken: Exception = ConnectionError("the stream ended early")
            try:
                with Exchange(self._address, "GET", feed.path, {}) as answer:
                    self._met = True
                    if answer.status >= 400:
                        raise calls.refusal(f"GET {feed.path}", answer.status, answer.read())
                    for line in answer.lines():
                        item = feed.take(line)
                        deadline = time.monotonic() + self._patience
                        if item is not None:
                            yield item
                        if feed.ended:
                            return
            except OSError as error:
                self._met |= not isinstance(error, Absent)
                broken = error
            if not feed.resumable and not isinstance(broken, Absent):
                hint = "Start the operation again."
                raise calls.gone(self._address, "it went away in the middle of the operation", hint) from broken
            self._await_service(broken, deadline)

    def _await_service(self, error: Exception, deadline: float) -> None:
        """Return when it is worth trying again."""
        absent = isinstance(error, Absent)
        if absent and not self._met and not self._revive:
            raise calls.absent(self._address, error) from error
        if time.monotonic() > deadline:
            raise calls.lost(self._address, self._patience, error) from error
        if absent and self._revive and (not self._met or os.path.exists(str(self._address))):
            self._revive()
        else:
            time.sleep(PAUSE)


__all__ = ["Client", "ServiceError"]
