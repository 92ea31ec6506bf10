"""`ghv run --dag`: reads a DAGMan file, submits the workflow, and draws it as it runs."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import NamedTuple

from gridhypervisor.cli import output
from gridhypervisor.cli.output import RED, age, dim, echo, paint, plain, say_warning
from gridhypervisor.client.sync import Client
from gridhypervisor.model.dagman import parse
from gridhypervisor.model.dagpicture import dot, picture
from gridhypervisor.model.rescue import apply_rescue, newest_rescue
from gridhypervisor.model.states import JobState
from gridhypervisor.model.views import GroupView
from gridhypervisor.model.workflow import NodeState, Progress, Request, Workflow, dag

_TELL = {NodeState.JOB: "runs", NodeState.DONE: "done", NodeState.FAILED: "failed", NodeState.FUTILE: "futile"}


class Flags(NamedTuple):
    """What `ghv run --dag` was given."""

    file: str
    image: str | None
    from_start: bool


def read(flags: Flags) -> Request:
    """The workflow of a file, less what its newest rescue file says is done.

    Raises:
        SpecError: the file, or its rescue file, is none; names every problem with its line.
        OSError: it cannot be read.
    """
    path = Path(flags.file).resolve()
    parsed = parse(flags.file, path.read_text(errors="replace"), lambda name: _included(path.parent, name))
    for warning in parsed.warnings:
        say_warning(str(warning))
    workflow = parsed.workflow
    rescue = None if flags.from_start else newest_rescue(path.name, os.listdir(path.parent))
    if rescue is not None:
        echo(f"{dim('ghv:')} goes on where {rescue} says; --from-start runs all of it", err=True)
        workflow = apply_rescue(rescue, (path.parent / rescue).read_text(errors="replace"), workflow)
    return Request(workflow, str(path), flags.image or "")


def _included(folder: Path, name: str) -> str:
    return (folder / name).read_text(errors="replace")


def draw_dot(workflow: Workflow) -> None:
    """On stdout, in Graphviz's language."""
    echo(dot(dag(workflow)), newline=False)


def show_dot(progress: Progress) -> None:
    echo(dot(dag(progress.workflow), progress.runs), newline=False)


def drawn(progress: Progress, stream: object = sys.stdout) -> str:
    width = output.terminal_width(stream) or 80
    return picture(dag(progress.workflow), progress.runs, width=width, plain=not output.unicode(stream))


class Drawing:
    """A workflow on stderr as it runs: drawn anew on a terminal; elsewhere a line for each node that gets on."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self._live = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
        self._lines = 0
        self._states: dict[str, NodeState] = {}

    def show(self, group: str, progress: Progress) -> None:
        if self._quiet:
            return
        if self._live:
            lines = drawn(progress, sys.stderr).splitlines()
            rows = os.get_terminal_size(sys.stderr.fileno()).lines
            if 2 < rows <= len(lines):  # what has scrolled out of sight cannot be drawn over
                lines = [*lines[: rows - 2], f"({len(lines) - rows + 2} more lines: ghv show {group})"]
            over = f"\x1b[{self._lines}A\x1b[J" if self._lines else ""
            sys.stderr.write("".join([over, *(f"{line}\n" for line in lines)]))
            sys.stderr.flush()
            self._lines = len(lines)
            return
        for name, run in progress.runs.items():
            if self._states.get(name) is not run.state and (told := _TELL.get(run.state)):
                code = f" with {run.code}" if run.state is NodeState.FAILED and run.code is not None else ""
                echo(f"{dim('ghv:')} {group} {name} {told}{code}", err=True)
            self._states[name] = run.state


def follow(client: Client, group: str, *, quiet: bool) -> GroupView:
    """Draw it until it has ended; how it did."""
    drawing = Drawing(quiet=quiet)
    for view in client.follow_group(group):
        drawing.show(group, client.workflow(group))
        if view.state.final:
            return view
    raise AssertionError("a follow stream ends with the group's end")


def tell_end(group: GroupView, *, quiet: bool) -> None:
    """The last word about a workflow, on stderr."""
    if group.state is JobState.DONE and quiet:
        return
    took = f" after {age(group.ended - group.created)}" if group.ended is not None else ""
    word = str(group.state) if group.state is JobState.DONE else paint(str(group.state), RED)
    echo(f"{dim('ghv:')} {group.id} {word}{took}: {counted(group)}", err=True)
    if group.note:
        echo(f"  {plain(group.note)}", err=True)
    if group.rescue:
        echo(f"  {dim('next:')} what was done is in {group.rescue}: the same command goes on from there", err=True)


def counted(group: GroupView) -> str:
    """How many nodes are how: `2 of 4 done, 1 failed, 1 futile`."""
    rest = [f"{count} {_WORDS.get(state, state)}" for state, count in group.nodes.items() if state != NodeState.DONE]
    return ", ".join([f"{group.nodes.get(NodeState.DONE, 0)} of {group.total} done", *rest])


_WORDS = {str(NodeState.JOB): "running", str(NodeState.PRE): "in PRE", str(NodeState.POST): "in POST"}
