"""What a user writes to describe a job, and what its words mean. Validation only; reading files is the caller's.

`JobSpec` is the YAML file and the API's request alike; its JSON Schema is published as docs/job.schema.json. Structs
and not dataclasses, as in `views`: every `ghv` makes these classes anew.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Literal

import msgspec

from gridhypervisor.model.wire import HypervisorKind, Layer, Needs

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
Name = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]


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


class ResourcesSpec(msgspec.Struct, frozen=True):
    cpus: Annotated[int, msgspec.Meta(ge=1, le=1024)] = 1
    memory: Size = "512Mi"
    scratch: Size = "2Gi"
    walltime: Duration = "30m"


class RetrySpec(msgspec.Struct, frozen=True):
    """How often a fault of the infrastructure (never of the program) is answered with another attempt."""

    times: Annotated[int, msgspec.Meta(ge=0, le=100)] = 1
    elsewhere: bool = True  # prefer another site


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
    site: str = ""  # only there
    retry: RetrySpec = RetrySpec()
    boot_timeout: Duration = "3m"
    on_silence: Literal["keep", "replace"] = "keep"
    silence: Duration = "5m"  # of `replace`


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
    for i, pattern in enumerate(spec.outputs):
        if unsafe(pattern):
            found.append((f"outputs[{i}]", f"{pattern!r} must be a relative path that stays inside the job's folder"))
    if spec.on_silence == "replace" and parse_duration(spec.silence) < LEAST_SILENCE:
        found.append(("silence", f"{spec.silence} is too short: a guest needs a word every {LEAST_SILENCE} s at least"))
    if refusal := unsuited(spec):
        found.append(("hypervisor", "; ".join(refusal)))
    for key in spec.environment:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", key):
            found.append((f"environment.{key}", "is not a variable's name: letters, digits and _ only"))
    return found


def unsuited(spec: JobSpec, layers: Sequence[Layer] = ()) -> tuple[str, str] | None:
    """Why the hypervisor that a job asks for cannot run an image of these layers, and what to ask for; None: it can."""
    if spec.hypervisor == "auto":
        return None
    needs = Needs(cpus=spec.resources.cpus, network=spec.network).with_image(layers)
    unmet = needs.unmet(HypervisorKind(spec.hypervisor))
    able = [kind for kind in HypervisorKind if not needs.unmet(kind)]
    return (unmet, f"ask for {' or '.join(['auto', *able])}") if unmet else None


def unsafe(path: str) -> bool:
    """Whether a path given by one party could leave the folder that another has set aside for it."""
    return not path or path.startswith("/") or ".." in path.split("/") or "\0" in path
