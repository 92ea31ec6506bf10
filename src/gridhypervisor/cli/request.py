"""Makes a job's request out of flags and, where one is given, a file; flags override the file."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qsl

import click
import msgspec

from gridhypervisor.model.spec import InputSpec, JobSpec, parse_duration, parse_size, problems
from gridhypervisor.model.views import JobRequest, Problem, ServiceError

_URL = re.compile(r"[a-z][a-z0-9+.-]*://")


class Flags(msgspec.Struct, frozen=True):
    """What `ghv run` was given; None and () where it was not."""

    file: str | None
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
    site: str | None
    retry: int | None
    network: Literal["none", "restricted", "outbound"] | None
    hypervisor: Literal["auto", "kvm", "uml", "tcg"] | None
    on_silence: Literal["keep", "replace"] | None
    silence: str | None
    destination: str


def make_request(flags: Flags) -> JobRequest:
    """The request.

    Raises:
        SpecError: the file is wrong.
        click.UsageError: the flags are, or something is missing.
        ServiceError: an input is not there, or cannot be read.
    """
    here = os.getcwd()
    if flags.file:
        from gridhypervisor.cli.files import read_job

        base = read_job(flags.file)
        folder = here if flags.file == "-" else str(Path(flags.file).resolve().parent)
    else:
        if not flags.image:
            raise click.UsageError("Say which image to boot: --image NAME (ghv image list shows them), or -f FILE.")
        if not flags.command:
            raise click.UsageError("Say what to run: ghv run --image NAME -- COMMAND ARGUMENT…")
        base, folder = JobSpec(flags.image, flags.command), here
    spec = _override(base, flags)
    for field, problem in problems(spec):
        raise click.UsageError(f"{field}: {problem}")
    for item in spec.inputs:
        _check_input(item, folder)
    destination = os.path.abspath(flags.destination)
    if spec.outputs:
        _check_destination(destination)
    return JobRequest(spec, folder, destination)


def _override(base: JobSpec, flags: Flags) -> JobSpec:
    given: dict[str, Any] = {
        "image": flags.image,
        "command": flags.command,
        "name": flags.name,
        "inputs": flags.inputs,
        "outputs": flags.outputs,
        "environment": {**base.environment, **dict(flags.environment)},
        "resources": msgspec.structs.replace(base.resources, **_present({
            "cpus": flags.cpus, "memory": flags.memory, "scratch": flags.scratch, "walltime": flags.walltime,
        })),
        "site": flags.site,
        "retry": msgspec.structs.replace(base.retry, **_present({"times": flags.retry})),
        "network": flags.network,
        "hypervisor": flags.hypervisor,
        "on_silence": flags.on_silence,
        "silence": flags.silence,
    }  # fmt: skip
    return msgspec.structs.replace(base, **_present(given))


def _present(values: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value not in (None, ())}


def _check_input(item: str | InputSpec, folder: str) -> None:
    """See now that a file is there, instead of when the job has a site."""
    path = item if isinstance(item, str) else item.path
    if not path or _URL.match(path):
        return
    full = os.path.join(folder, os.path.expanduser(path))
    if not os.access(full, os.R_OK):
        why = "it cannot be read" if os.path.lexists(full) else "there is no such file or folder"
        hint = "Paths in a job's file are read from the file's folder, those in flags from the present one."
        raise ServiceError(Problem(f"read the input {full}", 404, "not-found", why, hint))


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


SIZE = QuantityType("size", parse_size)
DURATION = QuantityType("duration", parse_duration)
