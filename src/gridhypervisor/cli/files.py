"""Verbs that need no service: `ghv validate`, `ghv schema`, `ghv completion`."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path

import click

from gridhypervisor.cli.output import GREEN, echo, emit, format_option, paint
from gridhypervisor.model.spec import JobSpec, problems
from gridhypervisor.model.yamlspec import json_schema, load


def read_job(path: str) -> JobSpec:
    """The job that a file describes; `-` is stdin.

    Raises:
        SpecError: it describes none; names every problem with its line.
        OSError: the file cannot be read.
    """
    name, text = ("stdin", sys.stdin.read()) if path == "-" else (path, Path(path).read_text(errors="replace"))
    return load(name, text, JobSpec, problems)


@click.command()
@click.option("-f", "--file", "path", required=True, metavar="FILE", help="The job's YAML file; - for stdin.")
@format_option
def validate(path: str, output: str) -> None:
    """Check a job's file without running it."""
    spec = read_job(path)
    if output != "table":
        emit(spec, output)
    else:
        echo(f"{paint('ok', GREEN)}  {path}: {spec.image}: {shlex.join(spec.command)}")


def job_schema() -> str:
    """The JSON Schema of a job's file, as docs/job.schema.json holds it."""
    return json.dumps(json_schema(JobSpec, title="GridHypervisor job"), indent=2, ensure_ascii=False) + "\n"


@click.command()
@click.argument("what", type=click.Choice(["job"]))
def schema(what: str) -> None:
    """Print the JSON Schema of a job's file, for editors and checks."""
    echo(job_schema(), newline=False)


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
