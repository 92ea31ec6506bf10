"""What a user writes to describe a job, and what its words mean. Validation only; reading files is the caller's.

`JobSpec` is the YAML file and the API's request alike; its JSON Schema is published as docs/job.schema.json. Structs
and not dataclasses, as in `views`: every `ghv` makes these classes anew.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Literal

import msgspec

from gridhypervisor.model.wire import BASELINES, COMMON, UNKNOWN, HypervisorKind, Layer, Needs

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(B|[KMGT]i?B?)?", re.IGNORECASE)
_DURATION = re.compile(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?")
_UNITS = {"": 1, "B": 1} | {
    u + suffix: 1 << (10 * (i + 1)) for i, u in enumerate("KMGT") for suffix in ("", "I", "IB", "B")
}

Size = Annotated[str, msgspec.Meta(pattern=r"^\d+(\.\d+)?\s*([kKmMgGtT]i?)?[bB]?$", description="a size: 512Mi, 2Gi")]
Duration = Annotated[
    str, msgspec.Meta(pattern=r"^(\d+d)?(\d+h)?(\d+m)?(\d+s)?$", min_length=2, description="a duration: 90s, 2h30m")
]
Sha256 = Annotated[str, msgspec.Meta(pattern="^([0-9a-f]{64})?$")]
JobId = Annotated[
    str,
    msgspec.Meta(
        pattern=r"^[jagw]\d{1,17}$", description="the id of a job, an array, a gang or a workflow: j12, a3, g4, w5"
    ),
]
Tasks = Annotated[str, msgspec.Meta(description="the tasks of an array: 1-100, 1-100%10")]
Name = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]
Cpu = Annotated[
    str,
    msgspec.Meta(
        pattern=r"^([A-Za-z0-9][A-Za-z0-9._-]*)?$",
        description="a baseline (x86-64-v1 to x86-64-v4), common, host, or a processor's model as QEMU calls it",
    ),
]


SILENCE = "5m"
"""Of a job that is to be replaced, and does not say after how long."""

LEAST_SILENCE = 30
"""Seconds: the way of a beat and of its answer over a network file system takes a good part of that."""


def parse_size(text: str) -> int:
    """Bytes of a size such as 512M, 512Mi, 2GiB or 1048576. K, M, G and T are binary, with or without the i.

    Raises:
        ValueError: it is none; the message says what is.
    """
    match = _SIZE.fullmatch(text.strip())
    if not match:
        raise ValueError(f"{text!r} is not a size; write for instance 512Mi or 2Gi")
    return int(float(match[1]) * _UNITS[(match[2] or "").upper()])


def parse_duration(text: str) -> int:
    """Seconds of a duration such as 90s, 30m or 1h30m.

    Raises:
        ValueError: it is none; the message says what is.
    """
    match = _DURATION.fullmatch(text.strip())
    if not match or not match[0]:
        raise ValueError(f"{text!r} is not a duration; write for instance 90s, 30m or 1h30m")
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


class InputSpec(msgspec.Struct, frozen=True):
    """One input: a file or folder of the user's, or a URL (http, https, s3). Exactly one of `path` and `url`."""

    path: str = ""
    url: str = ""
    sha256: Sha256 = ""
    name: str = ""  # what it is called in the job's folder; default: the last part of path or url
    executable: bool = False  # it may be run; a local file also where its own permissions say so


class ResourcesSpec(msgspec.Struct, frozen=True):
    cpus: Annotated[int, msgspec.Meta(ge=1, le=1024)] = 1
    memory: Size = "512Mi"
    scratch: Size = "2Gi"
    walltime: Duration = "30m"
    segment: Duration | None = None  # of one batch job at most: a longer walltime goes on through several


class RetrySpec(msgspec.Struct, frozen=True):
    """How often a fault of the infrastructure (never of the program) is answered with another attempt."""

    times: Annotated[int, msgspec.Meta(ge=0, le=100)] = 1
    elsewhere: bool = True  # prefer another site


class MovesSpec(msgspec.Struct, frozen=True):
    """When the job, though it has a place, is given another. What is left out is as the policy has it; 0: never."""

    wait: Duration | None = None  # in a site's queue, before it is sent elsewhere
    rate: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None  # of the predicted speed, below which it is too slow
    observe: Duration | None = None  # before its speed is judged
    look: Duration | None = None  # how often it looks for a better place while it runs,
    settled: Duration | None = None  # until it has run so long


class SweepSpec(msgspec.Struct, frozen=True):
    """What ${PARAM} is in the tasks of an array: start, start + step, … (GridWay's `gwsubmit -s START -i STEP`)"""

    start: int = 0
    step: int = 1


class GangSpec(msgspec.Struct, frozen=True):
    """So many VMs that start together or not at all. Each runs the command, and is told who all of them are."""

    count: Annotated[int, msgspec.Meta(ge=2, le=256)]
    spread: bool = False  # over several sites, where no single one has room for all
    patience: Duration = "10m"  # from the start of the first until all are ready; else all are released


class JobSpec(msgspec.Struct, frozen=True):
    image: str  # name, name:tag or name@digest
    command: Annotated[tuple[str, ...], msgspec.Meta(min_length=1)]
    kind: Literal["Job"] = "Job"
    name: Name | None = None
    inputs: tuple[str | InputSpec, ...] = ()
    outputs: tuple[str, ...] = ()
    environment: dict[str, str] = msgspec.field(default_factory=dict)
    resources: ResourcesSpec = ResourcesSpec()
    network: Literal["none", "restricted", "outbound"] = "none"
    hypervisor: Literal["auto", "kvm", "uml", "tcg"] = "auto"
    cpu: Cpu = ""  # the processor that the guest sees; empty: the node's own, or all that is emulated
    instant: Literal["auto", "never"] = "auto"  # start from a snapshot where there is one
    isolation: Literal["auto", "job"] = "auto"  # job: a batch job of its own, which serves no other
    site: str = ""  # only there
    requirements: str = ""  # a ClassAd expression over what sites publish: only where it is true
    rank: str = ""  # another: where it is higher, rather
    priority: Annotated[int, msgspec.Meta(ge=0, le=20)] | None = None  # 20: urgent; None: as the policy has it
    deadline: Duration | None = None  # from its submission on: by then it should have begun
    retry: RetrySpec = RetrySpec()
    moves: MovesSpec = MovesSpec()
    boot_timeout: Duration = "3m"
    on_silence: Literal["keep", "replace"] = "keep"
    silence: Duration | None = None  # of `replace`; SILENCE where none is given
    after: tuple[JobId, ...] = ()  # begin only when these have ended well
    checkpoint_interval: Duration | None = None  # its guest is saved so often while its program runs
    restart_files: tuple[str, ...] = ()  # taken along to the next attempt by a job that is moved or evicted
    copy_checkpoints: bool = False  # each, to the service's machine, so that the job may go on at another site
    stdout: str = ""  # a file for what the program prints, besides its logs: in the results' folder, or absolute
    stderr: str = ""
    destinations: dict[str, str] = msgspec.field(default_factory=dict)  # results that go elsewhere: name -> file
    array: Tasks = ""  # a job for each of these tasks
    gang: GangSpec | None = None  # a job for each of so many VMs that start together
    param: SweepSpec | None = None  # of an array; without it ${PARAM} is the task's number


LEAST_SEGMENT = 20
"""Seconds of the shortest batch job that anything goes on through."""

LEAST_INTERVAL = 10
"""Seconds between two checkpoints of a program that goes on."""

LEAST = 1 << 20
"""Bytes of memory, and of scratch, below which a size is a slip of the pen: a unit left out, mostly."""


def problems(spec: JobSpec) -> list[tuple[str, str]]:
    """What types alone cannot say: (path of the field, what is wrong and what is allowed) for each fault."""
    found: list[tuple[str, str]] = []
    for i, item in enumerate(spec.inputs):
        where = f"inputs[{i}]"
        if isinstance(item, str):
            if not item:
                found.append((where, "is empty; name a file, a folder or a URL"))
            continue
        if bool(item.path) == bool(item.url):
            found.append((where, "needs exactly one of path and url"))
        if item.name and unsafe(item.name):
            found.append((f"{where}.name", f"{item.name!r} must be a relative path that stays inside the job's folder"))
    for field, patterns in (("outputs", spec.outputs), ("restart_files", spec.restart_files)):
        for i, pattern in enumerate(patterns):
            if unsafe(pattern):
                why = f"{pattern!r} must be a relative path that stays inside the job's folder"
                found.append((f"{field}[{i}]", why))
    if spec.restart_files and spec.gang is not None:
        found.append(("restart_files", "cannot be of a gang, which begins anew as a whole: leave one of the two out"))
    if spec.copy_checkpoints and (spec.gang is not None or spec.hypervisor == "uml"):
        what = "of a gang, whose members" if spec.gang is not None else "under uml, whose guests"
        found.append(("copy_checkpoints", f"has no effect {what} cannot be saved: leave it out"))
    if spec.cpu.startswith("x86-64-") and spec.cpu not in BASELINES:
        found.append(("cpu", f"{spec.cpu} is no baseline: there are {', '.join(BASELINES)}"))
    for name in spec.destinations:
        if name not in spec.outputs:
            found.append((f"destinations.{name}", "is none of the outputs; name it there too, as it is here"))
    if spec.silence is not None and spec.on_silence != "replace":
        found.append(("silence", "has no effect unless on_silence is replace; ask for that too, or leave it out"))
    elif spec.silence is not None and parse_duration(spec.silence) < LEAST_SILENCE:
        found.append(("silence", f"{spec.silence} is too short: a guest needs a word every {LEAST_SILENCE} s at least"))
    found += _saving_problems(spec)
    for what in ("memory", "scratch"):
        if parse_size(size := getattr(spec.resources, what)) < LEAST:
            meant = f"{size.strip()}M" if size.strip().isdigit() else f"{LEAST >> 20}M or more"
            found.append((f"resources.{what}", f"{size} is too little for any guest; did you mean {meant}?"))
    found += _expressions(spec)
    if refusal := unsuited(spec):
        found.append(("hypervisor", "; ".join(refusal)))
    found += _array_problems(spec)
    for key in spec.environment:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", key):
            found.append((f"environment.{key}", "is not a variable's name: letters, digits and _ only"))
    return found


def _saving_problems(spec: JobSpec) -> list[tuple[str, str]]:
    found = []
    for field, given, least in (
        ("resources.segment", spec.resources.segment, LEAST_SEGMENT),
        ("checkpoint_interval", spec.checkpoint_interval, LEAST_INTERVAL),
    ):
        if given is None:
            continue
        if parse_duration(given) < least:
            found.append((field, f"{given} is too short to save a guest in: ask for {least}s or more"))
        elif spec.gang is not None:
            found.append((field, "cannot be of a gang, whose members cannot all be saved at one moment"))
        elif spec.hypervisor == "uml":
            found.append((field, "cannot be under uml, which cannot save a guest; ask for auto, kvm or tcg"))
    return found


def _array_problems(spec: JobSpec) -> list[tuple[str, str]]:
    if spec.gang is not None and spec.array:
        return [("gang", "cannot be of an array: submit several gangs, or leave one of the two out")]
    if not spec.array and (spec.gang is None or spec.param is not None):
        return [("param", "is for the tasks of an array; say which with `array`")] if spec.param is not None else []
    from gridhypervisor.model.arrays import parse_array, unknown  # which builds upon this module

    if spec.array:
        try:
            parse_array(spec.array)
        except ValueError as error:
            return [("array", str(error))]
    return unknown(spec)


def _expressions(spec: JobSpec) -> list[tuple[str, str]]:
    if not spec.requirements and not spec.rank:
        return []
    from gridhypervisor.model.expressions import fault  # most jobs have none, and every `ghv` imports this module

    given = (("requirements", spec.requirements, False), ("rank", spec.rank, True))
    return [(field, why) for field, text, rank in given if text and (why := fault(text, rank=rank))]


def unsuited(spec: JobSpec, layers: Sequence[Layer] = ()) -> tuple[str, str] | None:
    """Why the hypervisor that a job asks for cannot run an image of these layers, and what to ask for; None: it can."""
    if spec.hypervisor == "auto":
        return None
    cpu = spec.cpu if spec.cpu != COMMON else UNKNOWN
    needs = Needs(cpus=spec.resources.cpus, network=spec.network, cpu=cpu).with_image(layers)
    unmet = needs.unmet(HypervisorKind(spec.hypervisor))
    able = [kind for kind in HypervisorKind if not needs.unmet(kind)]
    return (unmet, f"ask for {' or '.join(['auto', *able])}") if unmet else None


def unsafe(path: str) -> bool:
    """Whether a path given by one party could leave the folder that another has set aside for it."""
    return not path or path.startswith("/") or ".." in path.split("/") or "\0" in path
