"""What the API is asked and answers about virtual infrastructures. Apart from the other views, as few calls need it."""

from __future__ import annotations

from typing import Annotated

import msgspec

from gridhypervisor.model.infrastructure import InfrastructureSpec
from gridhypervisor.model.states import InfrastructureState, JobState, Wish
from gridhypervisor.model.views import Candidate
from gridhypervisor.model.wire import MOST_INPUT


class InfrastructureRequest(msgspec.Struct, frozen=True):
    """`folder` is where input paths are read from; absolute, on this machine."""

    spec: InfrastructureSpec
    folder: str


class VmView(msgspec.Struct, frozen=True):
    """One VM of an infrastructure."""

    name: str  # ROLE-NUMBER, which is also what the guest calls itself
    role: str
    job: str
    state: JobState
    wish: Wish
    ready: bool | None  # None: it runs, and nobody knows
    site: str = ""
    node: str = ""
    hypervisor: str = ""
    note: str = ""  # what it does or waits for, or how it ended


class RoleView(msgspec.Struct, frozen=True):
    name: str
    wanted: int  # VMs
    ready: int
    min: int  # it may be scaled between
    max: int


class InfrastructureView(msgspec.Struct, frozen=True):
    id: str
    name: str
    owner: str
    project: str
    state: InfrastructureState
    wish: Wish
    created: float  # seconds since the epoch, as all times
    since: float  # when its state was entered
    expires: float  # when its lease is over
    roles: tuple[RoleView, ...]
    vms: tuple[VmView, ...]
    spec: InfrastructureSpec
    why: str = ""  # what is wrong, or was
    note: str = ""  # what keeps the service from looking after it
    ended: float | None = None
    version: int = 0  # grows with each change of its own


class PlannedVm(msgspec.Struct, frozen=True):
    """Where a VM would go now."""

    name: str
    site: str  # empty: it would wait
    why: str


class RolePlan(msgspec.Struct, frozen=True):
    """How the sites are weighed for a role's VMs."""

    name: str
    candidates: tuple[Candidate, ...]
    warning: str = ""


class InfrastructurePlan(msgspec.Struct, frozen=True):
    """What applying it would do now. Nothing is promised."""

    name: str
    id: str = ""  # of the infrastructure that would be changed; empty: there would be a new one
    changes: tuple[str, ...] = ()  # in words
    refused: tuple[str, ...] = ()  # fields that cannot be changed while it is there
    vms: tuple[PlannedVm, ...] = ()  # that would be made
    roles: tuple[RolePlan, ...] = ()  # of these


class ScaleRequest(msgspec.Struct, frozen=True):
    """How many VMs each role is to have."""

    counts: Annotated[dict[str, Annotated[int, msgspec.Meta(ge=0)]], msgspec.Meta(min_length=1)]


class ExecRequest(msgspec.Struct, frozen=True):
    """A command to run in a VM beside its program."""

    command: Annotated[tuple[str, ...], msgspec.Meta(min_length=1)]
    limit: Annotated[int, msgspec.Meta(ge=1, le=3600)] = 60  # seconds; then it is ended
    stdin: Annotated[bytes, msgspec.Meta(max_length=MOST_INPUT)] = b""  # base64 in JSON


class ExecView(msgspec.Struct, frozen=True):
    """What came of it."""

    code: int  # 128 + signal where one ended it
    stdout: bytes = b""  # base64 in JSON; of each stream the first MiB
    stderr: bytes = b""
