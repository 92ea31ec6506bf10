"""DAGMan's rescue files: what was done when a workflow failed, so that a second run begins where the first one ended.

A rescue file is partial, as DAGMan writes it today: it marks nodes DONE and is read together with the workflow's file,
which may have been mended since. It stands beside that file as FILE.rescue001, rescue002, …; the highest number counts.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from datetime import datetime

import msgspec

from gridhypervisor.model.workflow import Dag, NodeRun, NodeState, Workflow, nearest
from gridhypervisor.model.yamlspec import Problem, SpecError

MOST = 999
"""The last number that DAGMan's names have room for; after it the last file is written anew."""


def next_rescue(dag_file: str, names: Iterable[str]) -> str:
    """The name of the rescue file to write. `names`: those of the files beside the workflow's file `dag_file`."""
    return f"{dag_file}.rescue{min(max(_numbers(dag_file, names), default=0) + 1, MOST):03}"


def newest_rescue(dag_file: str, names: Iterable[str]) -> str | None:
    """The name of the rescue file that counts, if there is one."""
    numbers = _numbers(dag_file, names)
    return f"{dag_file}.rescue{max(numbers):03}" if numbers else None


def write_rescue(
    dag: Dag, runs: Mapping[str, NodeRun], dag_file: str, created: datetime, *, reset_retries: bool = True
) -> str:
    """The rescue file's text. `created` in UTC. Without `reset_retries` a node has the retries that are left."""
    done = [name for name, run in runs.items() if run.state is NodeState.DONE and name != dag.last]
    failed = [name for name, run in runs.items() if run.state is NodeState.FAILED]
    lines = [
        "# Rescue DAG file, created after running",
        f"#   the {dag_file} DAG file",
        f"# Created {created.month}/{created.day}/{created.year} {created:%H:%M:%S} UTC",
        "# Rescue DAG version: 2.0.1 (partial)",
        "#",
        f"# Total number of Nodes: {len(dag.nodes)}",
        f"# Nodes premarked DONE: {len(done)}",
        f"# Nodes that failed: {len(failed)}",
        "#   " + "".join(f"{name}," for name in failed) + "<ENDLIST>",
        "",
        *(f"DONE {name}" for name in done),
    ]
    if not reset_retries:
        for name, node in dag.nodes.items():
            run = runs[name]
            if run.attempt and run.state is not NodeState.DONE:
                unless = "" if node.unless_exit is None else f" UNLESS-EXIT {node.unless_exit}"
                lines.append(f"RETRY {name} {node.retries - run.attempt}{unless}")
    return "\n".join(lines) + "\n"


def apply_rescue(path: str, text: str, workflow: Workflow) -> Workflow:
    """The workflow with what the rescue file says is done. `path` is for messages.

    Raises:
        SpecError: it is no rescue file, or of another workflow; names every problem found.
    """
    names = {node.name for node in workflow.nodes}
    changes: dict[str, dict[str, object]] = {}
    problems: list[Problem] = []
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        match (words[0].upper(), *words[1:]):
            case ("DONE", name):
                change: dict[str, object] = {"done": True}
            case ("RETRY", name, times) if times.isdecimal():
                change = {"retries": int(times)}
            case ("RETRY", name, times, word, code) if (
                times.isdecimal() and word.upper() == "UNLESS-EXIT" and re.fullmatch(r"-?\d+", code)
            ):
                change = {"retries": int(times), "unless_exit": int(code)}
            case _:
                why = f"{words[0]} is not what a rescue file holds"
                right = "only DONE and RETRY; run a whole workflow by its own file"
                problems.append(Problem(path, number, 0, "", why, right))
                continue
        if name not in names:
            right = f"{nearest(name, names)} If you removed it, remove this line as well"
            problems.append(Problem(path, number, 0, words[0], f"{workflow.name} has no node {name}", right))
        changes.setdefault(name, {}).update(change)
    if problems:
        raise SpecError(problems)
    nodes = tuple(
        msgspec.structs.replace(node, **changes[node.name]) if node.name in changes else node for node in workflow.nodes
    )
    return msgspec.structs.replace(workflow, nodes=nodes)


def _numbers(dag_file: str, names: Iterable[str]) -> list[int]:
    pattern = re.compile(re.escape(dag_file) + r"\.rescue(\d{3})")
    return [int(match[1]) for name in names if (match := pattern.fullmatch(name))]
