"""What a user writes to describe a virtual infrastructure, and what its words mean. Validation only.

`InfrastructureSpec` is the YAML file, its parameters filled in (`infrafile`), and the API's request alike; its JSON
Schema is published as docs/infrastructure.schema.json. Every field that is accepted acts. Those that are to come are
named in `NOT_YET`, and refused with these words.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from typing import Annotated, Literal

import msgspec

from gridhypervisor.model.spec import (
    Duration,
    InputSpec,
    JobSpec,
    MovesSpec,
    ResourcesSpec,
    RetrySpec,
    Size,
    parse_duration,
)
from gridhypervisor.model.spec import problems as job_problems

MOST_VMS = 256
"""Of one infrastructure."""

LABEL = re.compile(r"[a-z]([a-z0-9-]{0,30}[a-z0-9])?")
"""What infrastructures and roles are called: with a VM's number behind it, a role's name is a host's."""

_ID = re.compile(r"[a-z]\d+")

Port = Annotated[int, msgspec.Meta(ge=1, le=65535)]
Count = Annotated[int, msgspec.Meta(ge=0, le=MOST_VMS)]
Label = Annotated[str, msgspec.Meta(pattern=rf"^{LABEL.pattern}$", description="a name: slurm-lab, worker")]

SERVE = ("/run/ghv/busybox", "sleep", "1000000000")
"""The command of a VM that has none of its own. What it calls comes with the guest's agent, so every image has it."""

FOREVER = 100
"""Retries of a VM that is to be replaced whenever its infrastructure fails it."""


class ParameterSpec(msgspec.Struct, frozen=True):
    """What `${name}` stands for. With `min` or `max`, or a number for its default, it is a whole number; else text."""

    default: int | str | None = None  # None: it has to be given
    min: int | None = None
    max: int | None = None
    description: str = ""

    @property
    def number(self) -> bool:
        return isinstance(self.default, int) or self.min is not None or self.max is not None


class CountSpec(msgspec.Struct, frozen=True):
    """How many VMs a role has at first, and between which bounds it may be scaled."""

    initial: Count = 1
    min: Count = 0
    max: Count = MOST_VMS


class HttpSpec(msgspec.Struct, frozen=True):
    port: Port
    path: str = "/"


class ProbeSpec(msgspec.Struct, frozen=True):
    """How the guest is asked whether it serves, by itself from inside. Exactly one of `tcp`, `http` and `exec`."""

    tcp: Port | None = None  # something accepts a connection to this port
    http: HttpSpec | None = None  # it answers this with success
    exec: tuple[str, ...] = ()  # this command ends with 0
    interval: Duration = "2s"  # between two tries
    limit: Duration = "10s"  # of one try
    timeout: Duration = "10m"  # from the start of its command until it must have passed


class RoleResources(msgspec.Struct, frozen=True):
    """Of each VM. How long it may run, the lease says."""

    cpus: Annotated[int, msgspec.Meta(ge=1, le=1024)] = 1
    memory: Size = "512Mi"
    scratch: Size = "2Gi"


class PlacementSpec(msgspec.Struct, frozen=True):
    site: str = ""  # only there
    requirements: str = ""  # a ClassAd expression over what sites publish: only where it is true
    rank: str = ""  # another: where it is higher, rather


class RoleSpec(msgspec.Struct, frozen=True):
    """Some VMs that are alike."""

    image: Annotated[str, msgspec.Meta(min_length=1)]  # name, name:tag or name@digest
    count: Count | CountSpec = 1
    command: tuple[str, ...] = ()  # what it serves with: the VM ends when this does; none: it stays until it is ended
    inputs: tuple[str | InputSpec, ...] = ()  # files for the folder in which the command starts
    environment: dict[str, str] = msgspec.field(default_factory=dict)
    resources: RoleResources = RoleResources()
    hypervisor: Literal["auto", "kvm", "uml", "tcg"] = "auto"
    boot_timeout: Duration = "3m"
    after: tuple[str, ...] = ()  # roles of which all VMs must be ready before one of this is made
    ready: ProbeSpec | None = None  # None: it is ready when its command has started
    repair: Literal["none", "replace"] = "none"  # of a VM that is lost or ends: leave it so, or have another
    placement: PlacementSpec = PlacementSpec()

    @property
    def bounds(self) -> CountSpec:
        return self.count if isinstance(self.count, CountSpec) else CountSpec(self.count)

    @property
    def wanted(self) -> int:
        """How many VMs it is to have."""
        return self.bounds.initial

    def scaled(self, count: int) -> RoleSpec:
        """The same with so many VMs."""
        new = msgspec.structs.replace(self.count, initial=count) if isinstance(self.count, CountSpec) else count
        return msgspec.structs.replace(self, count=new)


class LeaseSpec(msgspec.Struct, frozen=True):
    """For how long the infrastructure is there, from its creation on. Then its VMs are ended."""

    duration: Duration = "8h"


class InfrastructureSpec(msgspec.Struct, frozen=True):
    name: Label
    roles: dict[str, RoleSpec]
    kind: Literal["VirtualInfrastructure"] = "VirtualInfrastructure"
    parameters: dict[str, ParameterSpec] = msgspec.field(default_factory=dict)
    lease: LeaseSpec = LeaseSpec()
    patience: Duration = "30m"  # from its creation, or a change, until all VMs are ready
    on_failure: Literal["keep", "rollback", "retry"] = "rollback"  # of the creation


NOT_YET: Mapping[str, str] = {
    "networks": "there is no private network yet",
    "roles.*.networks": "there is no private network yet",
    "roles.*.provides": "roles cannot tell each other anything yet",
    "roles.*.requires": "roles cannot tell each other anything yet",
    "roles.*.user_data": "cloud-init is not fed yet; give a command, and inputs",
    "roles.*.files": "files are not put elsewhere than into the command's folder yet; name them in inputs",
    "roles.*.disks": "a VM has its image and its scratch disk, and no others yet",
    "roles.*.health": "nothing looks after a VM's health yet, once it is ready",
    "roles.*.placement.spread": "VMs are not kept apart yet; name a site, or say requirements",
    "roles.*.placement.pack": "VMs are not kept together yet; name a site, or say requirements",
    "roles.*.placement.affinity": "VMs are not placed by one another yet; name a site, or say requirements",
    "roles.*.resources.walltime": "lease.duration says how long VMs run",
    "lease.on_expiry": "VMs are ended when the lease is over, and nothing else is done with them yet",
    "lease.warn": "nobody is warned of the end of a lease yet",
}
"""Fields that a user may expect, with what is so instead."""


def vm_job(role: RoleSpec, name: str, walltime: int) -> JobSpec:
    """What a VM of this role asks of a site: as a job does that runs until it is stopped. `walltime` in seconds."""
    resources = ResourcesSpec(role.resources.cpus, role.resources.memory, role.resources.scratch, f"{walltime}s")
    return JobSpec(
        image=role.image,
        command=role.command or SERVE,
        name=name,
        inputs=role.inputs,
        environment=role.environment,
        resources=resources,
        hypervisor=role.hypervisor,
        moves=MovesSpec(rate=0, look="0s"),  # it would begin anew elsewhere: only from a site's queue it may be moved
        instant="never",  # a snapshot saves seconds of a life of hours, and costs the first of its kind some
        isolation="job",
        site=role.placement.site,
        requirements=role.placement.requirements,
        rank=role.placement.rank,
        retry=RetrySpec(FOREVER if role.repair == "replace" else 0),
        boot_timeout=role.boot_timeout,
    )


_FIELDS = {"requirements": "placement.requirements", "rank": "placement.rank", "site": "placement.site"}
"""Fields of a job that are a role's under another name."""


def problems(spec: InfrastructureSpec) -> list[tuple[str, str]]:
    """What types alone cannot say: (path of the field, what is wrong and what is allowed) for each fault."""
    found: list[tuple[str, str]] = []
    if not spec.roles:
        found.append(("roles", "there is none; describe at least one"))
    if _ID.fullmatch(spec.name):
        found.append(("name", f"{spec.name} looks like the id of a job or a group; take another name"))
    for name, role in spec.roles.items():
        at = f"roles.{name}"
        if not LABEL.fullmatch(name):
            allowed = "1 to 32 small letters, digits and hyphens, a letter first"
            found.append((at, f"{name!r} is no name of a role; write {allowed}"))
        found += [(f"{at}.{field}", why) for field, why in _role_problems(name, role, spec.roles)]
    if (total := sum(role.wanted for role in spec.roles.values())) > MOST_VMS:
        found.append(("roles", f"come to {total} VMs; one infrastructure has at most {MOST_VMS}"))
    if not any(field.endswith(".after") for field, _ in found) and (circle := _circle(spec.roles)):
        words = " → ".join((*circle, circle[0]))
        found.append((f"roles.{circle[0]}.after", f"roles wait for each other in a circle: {words}; remove one"))
    found += [(f"parameters.{name}", why) for name, given in spec.parameters.items() if (why := faulty(name, given))]
    for field, length in (("lease.duration", spec.lease.duration), ("patience", spec.patience)):
        if parse_duration(length) == 0:
            found.append((field, f"{length} is no time at all; write for instance 30m"))
    return found


def _role_problems(name: str, role: RoleSpec, roles: Mapping[str, RoleSpec]) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    bounds = role.bounds
    if not bounds.min <= bounds.initial <= bounds.max:
        found.append(
            ("count.initial", f"{bounds.initial} is not between min and max; write {bounds.min} to {bounds.max}")
        )
    for i, other in enumerate(role.after):
        if other == name:
            found.append((f"after[{i}]", f"{name} waits for itself; remove it"))
        elif other not in roles:
            near = difflib.get_close_matches(other, roles, 1)
            known = f"did you mean {near[0]}?" if near else f"roles are {', '.join(roles)}"
            found.append((f"after[{i}]", f"there is no role {other}; {known}"))
    if (probe := role.ready) is not None:
        if sum((probe.tcp is not None, probe.http is not None, bool(probe.exec))) != 1:
            found.append(("ready", "asks in no way, or in several; give exactly one of tcp, http and exec"))
        if probe.http is not None and not re.fullmatch(r"/[!-~]*", probe.http.path):
            found.append(("ready.http.path", f"{probe.http.path!r} is no path of a URL; write for instance /health"))
        for field in ("interval", "limit", "timeout"):
            if parse_duration(length := getattr(probe, field)) == 0:
                found.append((f"ready.{field}", f"{length} is no time at all; write for instance 10s"))
    job = vm_job(role, name, 3600)
    return found + [(_FIELDS.get(field, field), why) for field, why in job_problems(job)]


def _circle(roles: Mapping[str, RoleSpec]) -> tuple[str, ...]:
    """Roles each of which waits for the next, and the last for the first; empty: there is none."""
    left = dict(roles)
    while free := [name for name, role in left.items() if not any(other in left for other in role.after)]:
        for name in free:
            del left[name]
    way: list[str] = []
    at = next(iter(left), "")
    while at and at not in way:
        way.append(at)
        at = next(other for other in left[at].after if other in left)
    return tuple(way[way.index(at) :]) if at else ()


def faulty(name: str, given: ParameterSpec) -> str:
    """What is wrong with a parameter's description, and what is allowed; empty: nothing."""
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        return f"{name!r} is no name of a parameter; write small letters, digits and _"
    if given.number and isinstance(given.default, str):
        return f"its default {given.default!r} is text, and it has bounds; write a whole number, or no bounds"
    low, high = given.min, given.max
    if low is not None and high is not None and low > high:
        return f"its min, {low}, is above its max, {high}; exchange them"
    if isinstance(given.default, int) and not (
        (low is None or low <= given.default) and (high is None or given.default <= high)
    ):
        return f"{given.default} is not within its bounds; {within(given)}"
    return ""


def within(given: ParameterSpec) -> str:
    """What a numeric parameter may be, in words."""
    match given.min, given.max:
        case None, None:
            return "write a whole number"
        case low, None:
            return f"write {low} or more"
        case None, high:
            return f"write {high} or less"
        case low, high:
            return f"write {low} to {high}"
