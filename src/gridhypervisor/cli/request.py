"""Makes a job's request out of flags and, where one is given, a file; flags override the file."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qsl

import click
import msgspec

from gridhypervisor.cli.errors import not_there, why_not_read
from gridhypervisor.model.spec import GangSpec, InputSpec, JobSpec, SweepSpec, parse_duration, parse_size, problems
from gridhypervisor.model.views import JobRequest, Problem, ServiceError

_URL = re.compile(r"[a-z][a-z0-9+.-]*://")

LOOKED_AT = 10_000
"""Tasks of an array whose inputs are looked for before it is submitted."""


class Flags(msgspec.Struct, frozen=True):
    """What `ghv run` was given; None and () where it was not."""

    file: str | None
    template: str | None
    image: str | None
    command: tuple[str, ...]
    name: str | None
    inputs: tuple[InputSpec, ...]
    outputs: tuple[str, ...]
    environment: tuple[tuple[str, str], ...]
    cpus: int | None
    memory: str | None
    scratch: str | None
    walltime: str | None
    segment: str | None
    site: str | None
    requirements: str | None
    rank: str | None
    priority: int | None
    deadline: str | None
    retry: int | None
    network: Literal["none", "restricted", "outbound"] | None
    hypervisor: Literal["auto", "kvm", "uml", "tcg"] | None
    cpu: str | None
    copy_checkpoints: bool | None
    instant: Literal["auto", "never"] | None
    isolation: Literal["auto", "job"] | None
    on_silence: Literal["keep", "replace"] | None
    silence: str | None
    checkpoint_interval: str | None
    array: str | None
    gang: int | None
    spread: bool
    param: SweepSpec | None
    after: tuple[str, ...]
    destination: str | None  # None: here, or where the template is


def make_request(flags: Flags, warn: Callable[[str], None] = lambda text: None) -> JobRequest:
    """The request. `warn` is told of what does not apply.

    Raises:
        SpecError: the file is wrong.
        click.UsageError: the flags are, or something is missing.
        ServiceError: an input is not there, or cannot be read.
    """
    here = os.getcwd()
    if flags.file and flags.template:
        raise click.UsageError("A job's file and a template are two jobs: give one of them.")
    if flags.template:
        from gridhypervisor.model.nodejob import template_job

        if not flags.image:
            raise click.UsageError("A template does not say which image to boot: give it with --image NAME.")
        path = Path(flags.template).resolve()
        base, warnings = template_job(str(path), path.read_text(errors="replace"), flags.image)
        for warning in warnings:
            warn(str(warning))
        folder = str(path.parent)
    elif flags.file:
        from gridhypervisor.cli.files import folder_of, read_job

        folder = folder_of(flags.file)
        replaced = flags.inputs or flags.array  # what the file itself names need not be there then
        base = read_job(flags.file, None if replaced else lambda spec: missing_inputs(spec, folder))
    else:
        if not flags.image:
            raise click.UsageError("Say which image to boot: --image NAME (ghv image list shows them), or -f FILE.")
        if not flags.command:
            raise click.UsageError("Say what to run: ghv run --image NAME -- COMMAND ARGUMENT…")
        base, folder = JobSpec(flags.image, flags.command), here
    spec = _override(base, flags)
    if wrong := [f"{field}: {problem}" for field, problem in problems(spec)]:
        raise click.UsageError("\n".join(wrong))
    if missing := [path for _, path in _unreadable(spec, folder)]:
        raise not_there(missing, "Paths in flags are read from this folder, a template's from its own.")
    destination = os.path.abspath(flags.destination or (folder if flags.template else "."))
    if spec.outputs:
        _check_destination(destination)
    alone = not spec.array and spec.gang is None
    return JobRequest(spec, folder, destination, substitute=bool(flags.template and alone))


def _as_run(spec: JobSpec) -> Iterator[JobSpec]:
    """The job, or the tasks of the array, as far as is known here; of a long array those at its beginning."""
    if (not spec.array and spec.gang is None) or problems(spec):
        yield spec
        return
    from gridhypervisor.model.arrays import task, task_values, tasks_of

    array = tasks_of(spec)
    inputs = JobSpec(spec.image, spec.command, inputs=spec.inputs)
    if not any("${" in str(item) for item in spec.inputs):
        yield inputs
        return
    for number in islice(array, LOOKED_AT):
        yield task(inputs, task_values(array, number, array_id="${ARRAY_ID}", job_id="${JOB_ID}", sweep=spec.param))


def _override(base: JobSpec, flags: Flags) -> JobSpec:
    if flags.on_silence == "keep":
        base = msgspec.structs.replace(base, silence=None)  # which would mean nothing
    given: dict[str, Any] = {
        "image": flags.image,
        "command": flags.command,
        "name": flags.name,
        "inputs": flags.inputs,
        "outputs": flags.outputs,
        "environment": {**base.environment, **dict(flags.environment)},
        "resources": msgspec.structs.replace(base.resources, **_present({
            "cpus": flags.cpus, "memory": flags.memory, "scratch": flags.scratch, "walltime": flags.walltime,
            "segment": flags.segment,
        })),
        "site": flags.site,
        "requirements": flags.requirements,
        "rank": flags.rank,
        "priority": flags.priority,
        "deadline": flags.deadline,
        "retry": msgspec.structs.replace(base.retry, **_present({"times": flags.retry})),
        "network": flags.network,
        "hypervisor": flags.hypervisor,
        "cpu": flags.cpu,
        "copy_checkpoints": flags.copy_checkpoints,
        "instant": flags.instant,
        "isolation": flags.isolation,
        "on_silence": flags.on_silence,
        "silence": flags.silence,
        "checkpoint_interval": flags.checkpoint_interval,
        "array": flags.array,
        "gang": _gang(base.gang, flags),
        "param": flags.param,
        "after": flags.after,
    }  # fmt: skip
    return msgspec.structs.replace(base, **_present(given))


def _gang(base: GangSpec | None, flags: Flags) -> GangSpec | None:
    if flags.gang is None and base is None:
        if flags.spread:
            raise click.UsageError("--spread is for a gang: say how many members it has, with --gang.")
        return None
    gang = base or GangSpec(2)
    return msgspec.structs.replace(gang, count=flags.gang or gang.count, spread=flags.spread or gang.spread)


def _present(values: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value not in (None, ())}


def missing_inputs(spec: JobSpec, folder: str) -> Iterator[tuple[str, str]]:
    """Which of a job's inputs cannot be read, seen now instead of when it has a site: the field, and why."""
    for field, path in _unreadable(spec, folder):
        yield field, f"{why_not_read(path)}: {path}; paths in it are read from the folder in which it lies"


def _unreadable(spec: JobSpec, folder: str) -> Iterator[tuple[str, str]]:
    """Fields, and the paths in them that cannot be read; each once."""
    told = set()
    for each in _as_run(spec):
        for i, item in enumerate(each.inputs):
            path = item if isinstance(item, str) else item.path
            if not path or _URL.match(path):
                continue
            full = os.path.join(folder, os.path.expanduser(path))
            if "${" not in full and full not in told and not os.access(full, os.R_OK):
                told.add(full)
                yield f"inputs[{i}]", full


def _check_destination(folder: str) -> None:
    """See now that results can go there, instead of when the job has run."""
    there = folder
    while not os.path.lexists(there):
        there = os.path.dirname(there)
    if not os.path.isdir(there):
        why = f"{there} is no folder"
    elif not os.access(there, os.W_OK | os.X_OK):
        why = f"{there} cannot be written to"
    else:
        return
    raise ServiceError(Problem(f"bring results to {folder}", 422, "invalid", why, "Choose another folder with --to."))


class InputType(click.ParamType[InputSpec]):
    """`PATH`, `PATH=NAME`, or `URL#sha256=HEX&name=NAME`, where the fragment and each part of it may be left out."""

    name = "input"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> InputSpec:
        if isinstance(value, InputSpec):
            return value
        if _URL.match(value):
            return self._url(value, param, ctx)
        path, name = value, ""
        if "=" in value and not os.path.lexists(value):
            path, _, name = value.rpartition("=")
        return InputSpec(path=os.path.abspath(path), name=name)

    def _url(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> InputSpec:
        url, _, fragment = value.partition("#")
        words = dict(parse_qsl(fragment, keep_blank_values=True))
        if unknown := set(words) - {"sha256", "name"} or (fragment and not words):
            self.fail(f"{value}: after # only sha256=HEX and name=NAME are known, not {unknown}", param, ctx)
        if not re.fullmatch("([0-9a-f]{64})?", words.get("sha256", "")):
            self.fail(f"{value}: a SHA-256 has 64 hexadecimal digits", param, ctx)
        return InputSpec(url=url, sha256=words.get("sha256", ""), name=words.get("name", ""))


class QuantityType(click.ParamType[str]):
    """A size or a duration, kept as it was written."""

    def __init__(self, name: str, parse: Callable[[str], int]) -> None:
        self.name, self._parse = name, parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            self._parse(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)
        return str(value)


class PairType(click.ParamType[tuple[str, str]]):
    """`KEY=VALUE`; with `inherit`, `KEY` alone takes the value from this environment."""

    name = "key=value"

    def __init__(self, *, inherit: bool = False) -> None:
        self._inherit = inherit

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        if isinstance(value, tuple):
            return value[0], value[1]
        key, equals, text = value.partition("=")
        if not equals and self._inherit and key in os.environ:
            return key, os.environ[key]
        if not key or not equals:
            self.fail(f"{value!r} is not KEY=VALUE", param, ctx)
        return key, text


class JobIdType(click.ParamType[str]):
    """The id of a job, an array, a gang or a workflow."""

    name = "job"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if not re.fullmatch(r"[jagw]\d{1,17}", value):
            self.fail(
                f"{value!r} is no id; a job's are like j12, an array's like a3, a gang's like g4, a workflow's like w5",
                param,
                ctx,
            )
        return str(value)


class SweepType(click.ParamType[SweepSpec]):
    """`START` or `START:STEP`, whole numbers."""

    name = "start:step"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> SweepSpec:
        if isinstance(value, SweepSpec):
            return value
        match = re.fullmatch(r"(-?\d{1,15})(?::(-?\d{1,15}))?", value)
        if match is None:
            self.fail(f"{value!r} is not START or START:STEP; write for instance 0:5", param, ctx)
        return SweepSpec(int(match[1]), int(match[2] or 1))


SIZE = QuantityType("size", parse_size)
DURATION = QuantityType("duration", parse_duration)
