"""`ghv policy`: who goes first, and where work goes."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import click

from gridhypervisor.cli.output import ago, dim, echo, emit, format_option
from gridhypervisor.client.launcher import connect
from gridhypervisor.model.policy import load_policy, show_policy


@click.group()
def policy() -> None:
    """See and set the scheduling policy: who goes first, and where."""


@policy.command()
@format_option
def show(output: str) -> None:
    """Show the policy that holds, with every setting; `ghv policy set` reads what this prints."""
    found = connect().policy()
    if output != "table":
        emit(found, output)
        return
    since = f"version {found.version}, set {ago(time.time() - found.at)} ago by {found.by}" if found.version else ""
    echo(dim(f"# {since or 'the defaults: nobody has set one'}"))
    echo(show_policy(found.policy), newline=False)


@policy.command("set")
@click.argument("file", metavar="FILE")
@format_option
def set_policy(file: str, output: str) -> None:
    """Set the policy that FILE (YAML; - for stdin) describes. It holds at once, for all jobs that wait.

    What the file does not name has its default. A mistake in it changes nothing.
    """
    name, text = ("stdin", sys.stdin.read()) if file == "-" else (file, Path(file).read_text(errors="replace"))
    view = connect().set_policy(load_policy(name, text))
    if output != "table":
        emit(view, output)
    else:
        echo(f"policy version {view.version} holds")
