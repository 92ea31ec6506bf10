"""What can be asked of the service, once, for both clients: the requests as values, and how to read the answers.

No I/O. A `Call` is one request and answer; a `Feed` is a stream of lines that knows how to go on after a break.
"""

from __future__ import annotations

import abc
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar
from urllib.parse import quote, urlencode

import msgspec

from gridhypervisor.model.spec import JobSpec
from gridhypervisor.model.views import (
    PATIENCE,
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

if TYPE_CHECKING:
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

LAST = {"Connection": "close"}
"""Each request has a connection of its own: one that was kept may be of a service that has since restarted."""

START = "Start it with: ghv service start"


class Call(msgspec.Struct, Generic[T], frozen=True):
    """One request. `repeatable`: sent twice, has the effect of once, so a lost answer is asked for again."""

    method: str
    path: str
    result: type[T]
    body: bytes = b""
    headers: tuple[tuple[str, str], ...] = ()
    repeatable: bool = True

    @property
    def all_headers(self) -> dict[str, str]:
        return ({"Content-Type": "application/json"} if self.body else {}) | dict(self.headers)

    def read(self, status: int, body: bytes) -> T:
        """The answer as a record.

        Raises:
            ServiceError: the service said no, or something that this client cannot read.
        """
        if status >= 400:
            raise refusal(f"{self.method} {self.path}", status, body)
        if self.result is bytes:
            return body  # type: ignore[return-value]
        try:
            return msgspec.json.decode(body or b"null", type=self.result)
        except msgspec.MsgspecError as error:
            raise unreadable(f"{self.method} {self.path}", error) from error


def refusal(title: str, status: int, body: bytes) -> ServiceError:
    """The error that an answer with a status of 400 or more stands for."""
    try:
        return ServiceError(msgspec.json.decode(body, type=Problem))
    except msgspec.MsgspecError:
        detail = f"the service answered {status}: {body[:200].decode(errors='replace')}"
        return ServiceError(Problem(title, status, "internal", detail))


def unreadable(title: str, error: Exception) -> ServiceError:
    hint = "The service may be of another version than this client: ghv service stop, then try again."
    return ServiceError(Problem(title, 502, "internal", f"the service's answer cannot be read: {error}", hint))


def gone(address: object, why: str, hint: str) -> ServiceError:
    """The service does not answer at its socket, or its URL."""
    return ServiceError(Problem(f"reach the service at {address}", 503, "unavailable", why, hint))


def absent(address: object, error: Exception) -> ServiceError:
    """Nobody is there, or nobody whom we believe."""
    if isinstance(address, str):
        return gone(address, str(error), START)
    if "certificate" in str(error).lower():
        return gone(address, str(error), "Let GHV_CA name a file with its certificate, or its authority's.")
    return gone(address, str(error), "See that GHV_URL is right, and ask whoever runs the service.")


def lost(address: object, patience: float, error: Exception) -> ServiceError:
    """The service went away and stayed away."""
    why = f"it did not come back within {patience:.0f} s ({error})"
    next_step = START if isinstance(address, str) else "Ask whoever runs it."
    return gone(address, why, f"Jobs go on at their sites without it. {next_step}")


def path_of(*parts: str, **query: Any) -> str:
    path = "/v1/" + "/".join(quote(part, safe="") for part in parts)
    given = {key: value for key, value in query.items() if value not in ("", None, ())}
    return f"{path}?{urlencode(given, doseq=True)}" if given else path


def once(key: str = "") -> tuple[tuple[str, str], ...]:
    """What makes a request safe to repeat: the service answers a key that it has seen as it did the first time."""
    return (("Idempotency-Key", key or os.urandom(16).hex()),)


def submit(request: JobRequest, key: str = "") -> Call[JobView]:
    """`key`: the idempotency key; a second request with it returns the first one's job. Default: a new one."""
    return Call("POST", path_of("jobs"), JobView, msgspec.json.encode(request), once(key))


def jobs(states: Sequence[str], before: str, group: str | None, limit: int) -> Call[tuple[JobView, ...]]:
    path = path_of("jobs", state=tuple(states), before=before, limit=limit)
    return Call("GET", path if group is None else f"{path}&group={quote(group)}", tuple[JobView, ...])


def submit_group(request: JobRequest, key: str = "") -> Call[GroupView]:
    return Call("POST", path_of("groups"), GroupView, msgspec.json.encode(request), once(key))


def submit_workflow(request: Request, key: str = "") -> Call[GroupView]:
    return Call("POST", path_of("workflows"), GroupView, msgspec.json.encode(request), once(key))


def workflow(group: str) -> Call[Progress]:
    from gridhypervisor.model.workflow import Progress  # here: few calls need it, and every `ghv` would wait for it

    return Call("GET", path_of("groups", group, "nodes"), Progress)


def groups(before: str, limit: int) -> Call[tuple[GroupView, ...]]:
    return Call("GET", path_of("groups", before=before, limit=limit), tuple[GroupView, ...])


def group(group: str) -> Call[GroupView]:
    return Call("GET", path_of("groups", group), GroupView)


def member(group: str, name: str) -> Call[JobView]:
    return Call("GET", path_of("groups", group, "members", name), JobView)


def cancel_group(group: str) -> Call[GroupView]:
    return Call("POST", path_of("groups", group, "cancel"), GroupView)


def recover_group(group: str) -> Call[GroupView]:
    return Call("POST", path_of("groups", group, "recover"), GroupView)


def delete_group(group: str) -> Call[None]:
    return Call("DELETE", path_of("groups", group), type(None))


def job(job: str) -> Call[JobDetail]:
    return Call("GET", path_of("jobs", job), JobDetail)


def cancel(job: str) -> Call[JobView]:
    return Call("POST", path_of("jobs", job, "cancel"), JobView)


def recover(job: str) -> Call[JobView]:
    return Call("POST", path_of("jobs", job, "recover"), JobView)


def move(job: str, to: str) -> Call[JobView]:
    return Call("POST", path_of("jobs", job, "move", to=to), JobView, headers=once())


def suspend(job: str) -> Call[JobView]:
    return Call("POST", path_of("jobs", job, "suspend"), JobView)


def resume(job: str, to: str) -> Call[JobView]:
    return Call("POST", path_of("jobs", job, "resume", to=to), JobView)


def pause(job: str, *, undo: bool) -> Call[JobView]:
    return Call("POST", path_of("jobs", job, "pause", undo="true" if undo else ""), JobView)


def save(job: str) -> Call[JobView]:
    return Call("POST", path_of("jobs", job, "checkpoint"), JobView, headers=once())


def checkpoints(job: str) -> Call[list[CheckpointView]]:
    return Call("GET", path_of("checkpoints", job=job), list[CheckpointView])


def delete_checkpoint(checkpoint: str) -> Call[None]:
    return Call("DELETE", path_of("checkpoints", checkpoint), type(None))


def copy_checkpoint(checkpoint: str) -> Call[CheckpointView]:
    return Call("POST", path_of("checkpoints", checkpoint, "copy"), CheckpointView)


def restore(checkpoint: str) -> Call[JobView]:
    return Call("POST", path_of("checkpoints", checkpoint, "restore"), JobView)


def delete(job: str) -> Call[None]:
    return Call("DELETE", path_of("jobs", job), type(None))


def explain(job: str) -> Call[Explanation]:
    return Call("GET", path_of("jobs", job, "explain"), Explanation)


def replay(job: str) -> Call[ReplayView]:
    return Call("GET", path_of("jobs", job, "replay"), ReplayView)


def history(job: str) -> Call[History]:
    from gridhypervisor.model.accounts import History  # here, as below: every `ghv` imports this module

    return Call("GET", path_of("jobs", job, "history"), History)


def accounting(by: Sequence[By], since: float, until: float | None) -> Call[Accounts]:
    from gridhypervisor.model.accounts import Accounts

    return Call("GET", path_of("accounting", by=tuple(by), since=since, until=until), Accounts)


def log(job: str, stream: str, offset: int, limit: int) -> Call[bytes]:
    return Call("GET", path_of("jobs", job, "logs", stream=stream, offset=offset, limit=limit), bytes)


def events(after: int, job: str, limit: int) -> Call[tuple[EventView, ...]]:
    return Call("GET", path_of("events", after=after, job=job, limit=limit), tuple[EventView, ...])


def images() -> Call[tuple[ImageView, ...]]:
    return Call("GET", path_of("images"), tuple[ImageView, ...])


def image(reference: str) -> Call[ImageView]:
    return Call("GET", path_of("images", reference), ImageView)


def build_image(request: ImageBuildRequest) -> Call[Operation]:
    return Call("POST", path_of("images", "build"), Operation, msgspec.json.encode(request), once())


def import_image(request: ImageImportRequest) -> Call[Operation]:
    return Call("POST", path_of("images", "import"), Operation, msgspec.json.encode(request), once())


def verify_image(reference: str) -> Call[Operation]:
    return Call("POST", path_of("images", reference, "verify"), Operation, headers=once())


def warm_image(request: WarmRequest) -> Call[Operation]:
    return Call("POST", path_of("images", "warm"), Operation, msgspec.json.encode(request), repeatable=False)


def delete_image(reference: str) -> Call[None]:
    return Call("DELETE", path_of("images", reference), type(None))


def sites() -> Call[tuple[SiteView, ...]]:
    return Call("GET", path_of("sites"), tuple[SiteView, ...])


def site(name: str) -> Call[SiteView]:
    return Call("GET", path_of("sites", name), SiteView)


def add_site(request: SiteRequest) -> Call[SiteView]:
    return Call("POST", path_of("sites"), SiteView, msgspec.json.encode(request), once())


def edit_site(name: str, change: SiteChange, version: int | None = None) -> Call[SiteView]:
    body = msgspec.json.encode(change)
    return Call("PATCH", path_of("sites", name), SiteView, body, _if_match(version), repeatable=False)


def _if_match(version: int | None) -> tuple[tuple[str, str], ...]:
    return () if version is None else (("If-Match", f'"{version}"'),)


def drain_site(name: str, *, undo: bool = False) -> Call[SiteView]:
    return Call("POST", path_of("sites", name, "drain", undo="true" if undo else ""), SiteView)


def login_site(name: str) -> Call[SiteLogin]:
    return Call("POST", path_of("sites", name, "login"), SiteLogin)


def remove_site(name: str, *, abandon: bool = False) -> Call[SiteRemoval]:
    return Call("DELETE", path_of("sites", name, abandon="true" if abandon else ""), SiteRemoval)


def check_site(name: str, patience: int = PATIENCE) -> Call[Operation]:
    return Call("POST", path_of("sites", name, "check", patience=patience), Operation, headers=once())


def site_usage(name: str) -> Call[SiteUsage]:
    return Call("GET", path_of("sites", name, "usage"), SiteUsage)


def match(spec: JobSpec) -> Call[MatchView]:
    return Call("POST", path_of("match"), MatchView, msgspec.json.encode(spec))


def nodes(site: str) -> Call[tuple[NodeView, ...]]:
    return Call("GET", path_of("nodes", site=site), tuple[NodeView, ...])


def plan(limit: int) -> Call[tuple[PlannedView, ...]]:
    return Call("GET", path_of("plan", limit=limit), tuple[PlannedView, ...])


def policy() -> Call[PolicyView]:
    from gridhypervisor.model.policy import PolicyView  # few ask for it, and every `ghv` imports this module

    return Call("GET", path_of("policy"), PolicyView)


def set_policy(policy: SchedulingPolicy, version: int | None = None) -> Call[PolicyView]:
    from gridhypervisor.model.policy import PolicyView

    body = msgspec.json.encode(policy)
    return Call("PUT", path_of("policy"), PolicyView, body, _if_match(version), repeatable=False)


def stop_operation(operation: Operation) -> Call[None]:
    return Call("DELETE", path_of("operations", operation.id), type(None))


def operations() -> Call[tuple[Operation, ...]]:
    return Call("GET", path_of("operations"), tuple[Operation, ...])


def status() -> Call[ServiceView]:
    return Call("GET", path_of("service"), ServiceView)


def stop() -> Call[None]:
    return Call("POST", path_of("service", "stop"), type(None), repeatable=False)


def _apply(name: str, request: InfrastructureRequest, result: type[T], key: str) -> Call[T]:
    headers = (("Idempotency-Key", key),) if key else ()
    return Call(
        "POST", path_of("infrastructures", *([name] if name else [])), result, msgspec.json.encode(request), headers
    )


def apply(request: InfrastructureRequest, key: str = "") -> Call[InfrastructureView]:
    from gridhypervisor.model.infraviews import InfrastructureView  # here, as all of these: few commands need them

    return _apply("", request, InfrastructureView, key or os.urandom(16).hex())


def plan_infrastructure(request: InfrastructureRequest) -> Call[InfrastructurePlan]:
    from gridhypervisor.model.infraviews import InfrastructurePlan

    return _apply("plan", request, InfrastructurePlan, "")


def infrastructures(before: str, limit: int) -> Call[tuple[InfrastructureView, ...]]:
    from gridhypervisor.model.infraviews import InfrastructureView

    return Call("GET", path_of("infrastructures", before=before, limit=limit), tuple[InfrastructureView, ...])


def infrastructure(name: str) -> Call[InfrastructureView]:
    from gridhypervisor.model.infraviews import InfrastructureView

    return Call("GET", path_of("infrastructures", name), InfrastructureView)


def scale(name: str, counts: Mapping[str, int]) -> Call[InfrastructureView]:
    from gridhypervisor.model.infraviews import InfrastructureView, ScaleRequest

    body = msgspec.json.encode(ScaleRequest(dict(counts)))
    return Call("POST", path_of("infrastructures", name, "scale"), InfrastructureView, body)


def cancel_infrastructure(name: str) -> Call[InfrastructureView]:
    from gridhypervisor.model.infraviews import InfrastructureView

    return Call("POST", path_of("infrastructures", name, "cancel"), InfrastructureView)


def delete_infrastructure(name: str) -> Call[None]:
    return Call("DELETE", path_of("infrastructures", name), type(None))


def execute(job: str, request: ExecRequest) -> Call[ExecView]:
    from gridhypervisor.model.infraviews import ExecView

    return Call("POST", path_of("jobs", job, "exec"), ExecView, msgspec.json.encode(request), repeatable=False)


class Feed(abc.ABC, Generic[T]):
    """A stream of lines. `path` says where to go on; `take` reads a line; `ended` when there is no more to come.

    A feed that is not `resumable` cannot be asked for again where it broke off.
    """

    resumable = True

    def __init__(self, kind: type[T]) -> None:
        self._decoder = msgspec.json.Decoder(kind)
        self.ended = False

    @property
    @abc.abstractmethod
    def path(self) -> str:
        """What to ask for next."""

    def take(self, line: bytes) -> T | None:
        """What a line says; None: nothing new.

        Raises:
            ServiceError: the line is the service's last word about a fault.
        """
        try:
            item = self._decoder.decode(line)
        except msgspec.MsgspecError as error:
            try:
                problem = msgspec.json.decode(line, type=Fault).problem
            except msgspec.MsgspecError:
                raise unreadable(f"GET {self.path}", error) from error
            raise ServiceError(problem) from None
        return self._accept(item)

    def _accept(self, item: T) -> T | None:
        return item


class Fault(msgspec.Struct, frozen=True):
    """The last line of a stream that the service had to break off."""

    problem: Problem


class JobFeed(Feed[FollowItem]):
    """A job's changes and output. Keeps the offsets, so that across breaks no byte is lost and none comes twice."""

    def __init__(self, job: str, output: bool, stdout: int = 0, stderr: int = 0) -> None:
        super().__init__(FollowItem)
        self._job, self._output = job, output
        self.offsets = {"stdout": stdout, "stderr": stderr}

    @property
    def path(self) -> str:
        offsets = self.offsets if self._output else {}
        return path_of("jobs", self._job, "follow", output=str(self._output).lower(), **offsets)

    def _accept(self, item: FollowItem) -> FollowItem | None:
        self.ended = item.kind is FollowKind.END
        if item.kind is not FollowKind.OUTPUT:
            return item
        have = self.offsets[item.stream]
        if item.offset > have:
            detail = f"{item.stream} jumps from byte {have} to byte {item.offset}"
            hint = f"The whole stream can be read with: ghv logs {self._job}"
            raise ServiceError(Problem(f"follow job {self._job}", 502, "internal", detail, hint))
        fresh = item.data[have - item.offset :]
        self.offsets[item.stream] = have + len(fresh)
        return msgspec.structs.replace(item, offset=have, data=fresh) if fresh else None


class GroupFeed(Feed[GroupView]):
    """A group as it changes. After a break its present view comes, perhaps once more."""

    def __init__(self, group: str) -> None:
        super().__init__(GroupView)
        self._group = group

    @property
    def path(self) -> str:
        return path_of("groups", self._group, "follow")

    def _accept(self, item: GroupView) -> GroupView:
        self.ended = item.state.final
        return item


class InfrastructureFeed(Feed["InfrastructureView"]):
    """An infrastructure as it changes. After a break its present view comes, perhaps once more."""

    def __init__(self, name: str) -> None:
        from gridhypervisor.model.infraviews import InfrastructureView

        super().__init__(InfrastructureView)
        self._name = name

    @property
    def path(self) -> str:
        return path_of("infrastructures", self._name, "follow")

    def _accept(self, item: InfrastructureView) -> InfrastructureView:
        self.ended = item.state.final
        return item


class EventFeed(Feed[EventView]):
    """Events as they happen, each once, in the order of their sequence."""

    def __init__(self, after: int, job: str) -> None:
        super().__init__(EventView)
        self._after, self._job = after, job

    @property
    def path(self) -> str:
        return path_of("events", watch="true", after=self._after, job=self._job)

    def _accept(self, item: EventView) -> EventView | None:
        if item.sequence <= self._after:
            return None
        self._after = item.sequence
        return item


class OperationFeed(Feed[OperationItem]):
    """An operation's progress and end. It lives in the service's memory: when that restarts, the operation is over."""

    resumable = False

    def __init__(self, operation: Operation) -> None:
        super().__init__(OperationItem)
        self._operation = operation

    @property
    def path(self) -> str:
        return path_of("operations", self._operation.id)

    def _accept(self, item: OperationItem) -> OperationItem:
        if item.kind == "error" and item.problem is not None:
            raise ServiceError(item.problem)
        self.ended = item.kind == "done"
        return item
