"""Workflows: jobs that wait for other jobs. What a node is, what states it goes through, and which graphs are sound.

A workflow comes from a DAGMan file (`model.dagman`). What happens as it runs is decided in `planning.workflow`;
`model.dagpicture` draws it.

    NodeState   may become             when
    WAITING     READY                  its parents are done
                FUTILE                 an ancestor failed, or the workflow was aborted
    READY       PRE JOB POST DONE      it starts, with the first part that it has; with nothing to run it is done
                FUTILE                 the workflow was aborted
    PRE         JOB POST DONE          its script ended well, or said that there is nothing to do
                READY FAILED           its script failed: tried again, or not
    JOB         POST DONE              its job ended: well, or its POST script has the last word
                READY FAILED           its job failed
    POST        DONE READY FAILED      as the script says
"""

from __future__ import annotations

import difflib
import enum
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import msgspec


class NodeState(enum.StrEnum):
    WAITING = "waiting"  # for its parents
    READY = "ready"  # may start; a limit may hold it back
    PRE = "pre"  # its PRE script runs
    JOB = "job"  # its job is in the hands of the planner: queued, running, …
    POST = "post"  # its POST script runs
    DONE = "done"
    FAILED = "failed"
    FUTILE = "futile"  # it can never run: an ancestor failed, or the workflow was aborted

    @property
    def final(self) -> bool:
        return self in (NodeState.DONE, NodeState.FAILED, NodeState.FUTILE)

    @property
    def active(self) -> bool:
        return self in (NodeState.PRE, NodeState.JOB, NodeState.POST)


_ENDS = (NodeState.DONE, NodeState.READY, NodeState.FAILED)
MOVES: Mapping[NodeState, frozenset[NodeState]] = {
    NodeState.WAITING: frozenset((NodeState.READY, NodeState.FUTILE)),
    NodeState.READY: frozenset((NodeState.PRE, NodeState.JOB, NodeState.POST, NodeState.DONE, NodeState.FUTILE)),
    NodeState.PRE: frozenset((NodeState.JOB, NodeState.POST, *_ENDS)),
    NodeState.JOB: frozenset((NodeState.POST, *_ENDS)),
    NodeState.POST: frozenset(_ENDS),
    NodeState.DONE: frozenset(),
    NodeState.FAILED: frozenset(),
    NodeState.FUTILE: frozenset(),
}
"""What a node may become; the table above is the same for people."""


class Script(msgspec.Struct, frozen=True):
    """A program that runs on the user's side, before or after a node's job. `$JOB` and its like are still in it."""

    command: tuple[str, ...]
    defer_code: int | None = None  # if it ends with this, it is run again …
    defer_seconds: int = 0  # … after so long, and nothing has failed
    log: str = ""  # file for its output
    log_streams: str = ""  # STDOUT, STDERR or ALL


class Abort(msgspec.Struct, frozen=True):
    """A node whose last part ends with `code` ends the workflow, with `result` as the workflow's exit code."""

    code: int
    result: int


class Node(msgspec.Struct, frozen=True):
    name: str
    job: str  # the file that describes its job
    folder: str = ""  # in which that and the scripts are read and run; empty: that of the workflow's file
    parents: tuple[str, ...] = ()
    noop: bool = False  # its job counts as done without being run; its scripts run
    done: bool = False  # it was done before the workflow began
    last: bool = False  # DAGMan's FINAL: runs when all the others have ended, however
    pre: Script | None = None
    post: Script | None = None
    pre_skip: int | None = None  # a PRE script that ends with this makes the node done, without its job
    retries: int = 0
    unless_exit: int | None = None  # a node that ends with this is not tried again
    abort: Abort | None = None
    variables: dict[str, str] = msgspec.field(default_factory=dict)  # for `$(name)` in its job file
    category: str = ""
    priority: int = 0  # the larger, the sooner, among those that are ready


class Workflow(msgspec.Struct, frozen=True):
    """As it is written down and stored; `Dag` is the same, ready for decisions."""

    name: str
    nodes: tuple[Node, ...]
    limits: dict[str, int] = msgspec.field(default_factory=dict)  # category → nodes of it that may be active at once


class Request(msgspec.Struct, frozen=True):
    """A workflow to run. Paths are absolute, on this machine."""

    workflow: Workflow
    file: str  # that it was read from: a rescue file is written beside it
    image: str = ""  # for templates, which do not say which to boot


class NodeRun(msgspec.Struct, frozen=True):
    """Where one node is."""

    state: NodeState
    unmet: int = 0  # parents that are not done; of the last node: all nodes that have not ended
    attempt: int = 0  # how often it has been tried again
    pre_code: int | None = None  # how its PRE script ended
    job_code: int | None = None  # how its job ended
    code: int | None = None  # how its last part ended; the node's exit code


class Progress(msgspec.Struct, frozen=True):
    """A workflow, and where each of its nodes is."""

    workflow: Workflow
    runs: dict[str, NodeRun]


@dataclass(frozen=True)
class Dag:
    """A sound workflow: names are unique, parents exist, nothing waits for itself. Made by `dag`."""

    name: str
    nodes: Mapping[str, Node]  # in the order of the file
    children: Mapping[str, tuple[str, ...]]
    order: Mapping[str, int]  # place in the file, which decides between equals
    limits: Mapping[str, int]
    last: str | None = None


def dag(workflow: Workflow) -> Dag:
    """The workflow, checked and indexed.

    Raises:
        ValueError: it is not sound; readers that know files and lines complain before with `defects`.
    """
    for _, why in defects(workflow.nodes):
        raise ValueError(f"workflow {workflow.name}: {why}")
    return Dag(
        workflow.name,
        {node.name: node for node in workflow.nodes},
        children_of(workflow.nodes),
        {node.name: place for place, node in enumerate(workflow.nodes)},
        workflow.limits,
        next((node.name for node in workflow.nodes if node.last), None),
    )


def defects(nodes: Sequence[Node]) -> list[tuple[str, str]]:
    """Why these nodes make no workflow: (name of the node, problem and what is allowed) for each fault."""
    names: set[str] = set()
    found: list[tuple[str, str]] = []
    for node in nodes:
        if node.name in names:
            found.append((node.name, f"there are two nodes named {node.name}; rename one"))
        names.add(node.name)
    for node in nodes:
        found += [
            (node.name, f"{node.name} waits for itself; remove that dependency")
            if parent == node.name
            else (node.name, f"{node.name} waits for {parent}, which does not exist; {nearest(parent, names)}")
            for parent in node.parents
            if parent not in names or parent == node.name
        ]
    if not found and (cycle := find_cycle(nodes)):
        found.append((cycle[0], f"{circle(cycle)}; remove one of these dependencies"))
    return found


def children_of(nodes: Iterable[Node]) -> dict[str, tuple[str, ...]]:
    """Node name → those that wait for it, in the order of the file."""
    children: dict[str, list[str]] = {}
    for node in nodes:
        children.setdefault(node.name, [])
        for parent in dict.fromkeys(node.parents):
            children.setdefault(parent, []).append(node.name)
    return {name: tuple(below) for name, below in children.items()}


def layers(nodes: Sequence[Node], children: Mapping[str, tuple[str, ...]]) -> list[list[str]]:
    """Node names by the length of the longest way to them; those on a circle, or after one, are in none."""
    unmet = {node.name: len(set(node.parents)) for node in nodes}
    layer = [node.name for node in nodes if not node.parents]
    found: list[list[str]] = []
    while layer:
        found.append(layer)
        below: list[str] = []
        for name in layer:
            for child in children[name]:
                unmet[child] -= 1
                if not unmet[child]:
                    below.append(child)
        layer = below
    return found


def find_cycle(nodes: Sequence[Node]) -> tuple[str, ...]:
    """Nodes of which each waits for the one before, and the first for the last; empty: there is none."""
    sound = {name for layer in layers(nodes, children_of(nodes)) for name in layer}
    if len(sound) == len(nodes):
        return ()
    stuck = {node.name: node for node in nodes if node.name not in sound}
    # Every stuck node has a stuck parent, so going from parent to parent comes round at last.
    seen: dict[str, int] = {}
    way: list[str] = []
    at = next(iter(stuck))
    while at not in seen:
        seen[at] = len(way)
        way.append(at)
        at = next(parent for parent in stuck[at].parents if parent in stuck)
    return tuple(reversed(way[seen[at] :]))


def circle(cycle: Sequence[str]) -> str:
    """What is wrong, in words; of a long circle only its beginning and its end."""
    names = [*cycle, cycle[0]]
    shown = names if len(names) <= 9 else [*names[:4], "…", *names[-4:]]
    return f"nodes wait for each other in a circle: {' → '.join(shown)}"


def with_variables(text: str, variables: Mapping[str, str]) -> str:
    """The text with each `$(name)` replaced that is one of the variables; a shell's own `$(…)` stays."""
    if "$(" not in text:
        return text
    first, *rest = text.split("$(")
    out = [first]
    for part in rest:
        name, closed, after = part.partition(")")
        out.append(variables[name] + after if closed and name in variables else "$(" + part)
    return "".join(out)


def nearest(name: str, known: Collection[str]) -> str:
    """Words for what may have been meant."""
    if near := difflib.get_close_matches(name, known, 1):
        return f"did you mean {near[0]}?"
    some = sorted(known)[:8]
    more = f" and {len(known) - len(some)} more" if len(known) > len(some) else ""
    return f"known are {', '.join(some)}{more}" if some else "there are none yet"
