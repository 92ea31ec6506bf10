"""Verbs that start no service: `ghv validate`, `ghv schema`, `ghv completion`."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gridhypervisor.cli.output import GREEN, dim, echo, emit, format_option, paint
from gridhypervisor.cli.request import PairType
from gridhypervisor.model.spec import JobSpec, problems
from gridhypervisor.model.views import ServiceError
from gridhypervisor.model.yamlspec import Check, json_schema, load, parse

if TYPE_CHECKING:
    from gridhypervisor.client.sync import Client
    from gridhypervisor.model.infrastructure import InfrastructureSpec


def read_job(path: str, absent: Check[JobSpec] | None = None) -> JobSpec:
    """The job that a file describes; `-` is stdin. `absent`: which of the things that it names are not there.

    Raises:
        SpecError: it describes none, or names what is not there; names every problem with its line.
        OSError: the file cannot be read.
    """
    name, text = ("stdin", sys.stdin.read()) if path == "-" else (path, Path(path).read_text(errors="replace"))
    return load(name, text, JobSpec, problems, absent)


def folder_of(path: str) -> str:
    """The folder from which a job's file names its inputs."""
    return os.getcwd() if path == "-" else str(Path(path).resolve().parent)


@click.command()
@click.argument("file", default="", metavar="[FILE]")
@click.option("-f", "--file", "path", default="", metavar="FILE", help="The same; - for stdin.")
@click.option(
    "-p", "--param", "parameters", multiple=True, type=PairType(), metavar="NAME=VALUE",
    help="A parameter's value, of an infrastructure. May be repeated.",
)  # fmt: skip
@format_option
def validate(file: str, path: str, parameters: tuple[tuple[str, str], ...], output: str) -> None:
    """Check the file of a job or of a virtual infrastructure without running it: what it says, its inputs, and while
    the service runs images and sites.

    All that is wrong is told at once, with its line.
    """
    from gridhypervisor.client.launcher import answers, connect, find_paths

    if bool(file) == bool(path):
        raise click.UsageError("Say which file, once: ghv validate FILE")
    path = file or path
    there = os.environ.get("GHV_URL") or answers(find_paths())
    client = connect() if there else None  # to look at a file starts no service
    name, text = ("stdin", sys.stdin.read()) if path == "-" else (path, Path(path).read_text(errors="replace"))
    document, folder = parse(name, text), folder_of(path)
    spec: JobSpec | InfrastructureSpec
    if document.kind == "VirtualInfrastructure":
        from gridhypervisor.cli.infrastructures import absent_of
        from gridhypervisor.model import infrafile

        spec = infrafile.read(document, dict(parameters), lambda spec: absent_of(spec, folder, client))
        told = ", ".join(f"{role.wanted} {name}" for name, role in spec.roles.items())
    else:
        if parameters:
            raise click.UsageError("Only the file of a virtual infrastructure has parameters.")
        spec = document.convert(JobSpec, problems, lambda spec: absent(spec, folder, client))
        told = f"{spec.image}: {shlex.join(spec.command)}"
    if output != "table":
        emit(spec, output)
    else:
        echo(f"{paint('ok', GREEN)}  {path}: {told}")
    if client is None:
        echo(dim("The service does not run, so nobody has looked for images and sites."), err=True)


def absent(spec: JobSpec, folder: str, client: Client | None) -> Iterator[tuple[str, str]]:
    """What a job's file names and is not there."""
    from gridhypervisor.cli.request import missing_inputs

    yield from missing_inputs(spec, folder)
    if client is None:
        return
    try:
        client.image(spec.image)
    except ServiceError as error:
        if error.problem.code != "not-found":
            raise
        yield "image", f"{error.problem.detail or error.problem.title}; {error.problem.hint}"
    names = [site.name for site in client.sites()]
    if spec.site not in ("", *names):
        yield "site", f"there is no site {spec.site}; sites: {', '.join(names) or 'none'}"


def job_schema() -> str:
    """The JSON Schema of a job's file, as docs/job.schema.json holds it."""
    return json.dumps(json_schema(JobSpec, title="GridHypervisor job"), indent=2, ensure_ascii=False) + "\n"


def infrastructure_schema() -> str:
    """The JSON Schema of an infrastructure's file, as docs/infrastructure.schema.json holds it."""
    from gridhypervisor.model import infrafile

    return json.dumps(infrafile.schema(), indent=2, ensure_ascii=False) + "\n"


def policy_schema() -> str:
    """The JSON Schema of a policy's file."""
    from gridhypervisor.model.policy import SchedulingPolicy

    return json.dumps(json_schema(SchedulingPolicy, title="GridHypervisor policy"), indent=2, ensure_ascii=False) + "\n"


def simulation_schema() -> str:
    """The JSON Schema of a simulation's file."""
    from gridhypervisor.model.simulation import SimulationSpec

    return (
        json.dumps(json_schema(SimulationSpec, title="GridHypervisor simulation"), indent=2, ensure_ascii=False) + "\n"
    )


SCHEMAS = {
    "job": job_schema,
    "infrastructure": infrastructure_schema,
    "policy": policy_schema,
    "simulation": simulation_schema,
}


@click.command()
@click.argument("what", type=click.Choice(list(SCHEMAS)))
def schema(what: str) -> None:
    """Print the JSON Schema of a job's file, an infrastructure's, a policy's, or a simulation's, for editors."""
    echo(SCHEMAS[what](), newline=False)


@click.command()
@click.argument("shell", metavar="SHELL", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the completion script for a shell.

    \b
    bash:  eval "$(ghv completion bash)"         in ~/.bashrc
    zsh:   eval "$(ghv completion zsh)"          in ~/.zshrc
    fish:  ghv completion fish > ~/.config/fish/completions/ghv.fish
    """
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    assert kind is not None
    echo(kind(ctx.find_root().command, {}, "ghv", "_GHV_COMPLETE").source())
