"""Decides what a workflow does next: which nodes may start, and what follows from how one of their parts ended.

Pure and incremental: each function returns only the nodes that changed, in time that grows with the edges out of them,
never with the workflow. The caller keeps the rest: `runs |= changes.runs`. The rules are DAGMan's:
- A node is its PRE script, its job and its POST script; the exit code of whichever ran last is the node's. So a POST
  script's word counts, not the job's; after a PRE script that fails neither of the others runs.
- A node that fails is tried again, whole, `retries` times, unless it ended with `unless_exit`. One that ends with its
  `abort` code, a PRE script's included, ends the workflow, whatever retries are left.
- What depends on a failed node is futile; everything else goes on as far as it can.
- The last node (FINAL) runs when all the others have ended, however; then its success or failure is the workflow's.

A job that ended without an exit code of its program's ended with `NO_CODE`.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import msgspec

from gridhypervisor.model.workflow import Dag, Node, NodeRun, NodeState, Script, with_variables

NO_CODE = -1001
"""DAGMan's for a job that could not be submitted: for whatever is not the program's own verdict."""
REMOVED = -1002
"""DAGMan's for a job that somebody has cancelled."""
SKIPPED = -1004
"""DAGMan's for a job that was not run, since the PRE script failed."""


@dataclass(frozen=True)
class Changes:
    """What follows from one event."""

    runs: dict[str, NodeRun] = field(default_factory=dict)  # the nodes that changed, as they are now
    ready: tuple[str, ...] = ()  # those that have become ready
    abort: int | None = None  # the workflow is to end with this exit code: cancel what is active, then call `abandon`
    again_after: int | None = None  # seconds; the script that ended is to be run once more


class Verdict(enum.StrEnum):
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"


def begin(dag: Dag) -> dict[str, NodeRun]:
    """Every node as it is when the workflow starts; in time that grows with the workflow, once."""
    done = {name for name, node in dag.nodes.items() if node.done}
    runs = {}
    for name, node in dag.nodes.items():
        unmet = sum(parent not in done for parent in set(node.parents))
        if node.last:
            unmet = len(dag.nodes) - 1 - len(done)
        state = NodeState.DONE if name in done else NodeState.WAITING if unmet else NodeState.READY
        runs[name] = NodeRun(state, unmet)
    return runs


def ready(runs: Mapping[str, NodeRun]) -> list[str]:
    """All nodes that may start; for a controller that has just started. After that `Changes.ready` tells which come."""
    return [name for name, run in runs.items() if run.state is NodeState.READY]


def startable(dag: Dag, candidates: Iterable[str], active: Mapping[str, int]) -> list[str]:
    """Those of the ready nodes that their category's limit lets start, in the order in which to start them.

    `active`: nodes of each category that are in PRE, JOB or POST now. The larger priority first, then the file's order.
    """
    left = {category: most - active.get(category, 0) for category, most in dag.limits.items()}
    chosen = []
    for name in sorted(candidates, key=lambda name: (-dag.nodes[name].priority, dag.order[name])):
        category = dag.nodes[name].category
        if category in left:
            if left[category] <= 0:
                continue
            left[category] -= 1
        chosen.append(name)
    return chosen


def start(dag: Dag, runs: Mapping[str, NodeRun], name: str) -> Changes:
    """A ready node begins: with its PRE script, or its job. A node without a job to run may be done at once."""
    node, run = dag.nodes[name], runs[name]
    assert run.state is NodeState.READY, f"{name} is {run.state}, and cannot start"
    if node.pre is not None:
        return Changes({name: msgspec.structs.replace(run, state=NodeState.PRE)})
    return _to_job(dag, runs, node, run)


def ended(dag: Dag, runs: Mapping[str, NodeRun], name: str, code: int, *, aborting: bool = False) -> Changes:
    """The part of a node that was active ended with this exit code.

    `aborting`: the workflow is being ended: nothing is tried again, no further part begins, but of the last node.
    """
    node, run = dag.nodes[name], runs[name]
    assert run.state.active, f"{name} is {run.state}: no part of it can end"
    aborting = aborting and not node.last
    script = {NodeState.PRE: node.pre, NodeState.POST: node.post}.get(run.state)
    if script is not None and code == script.defer_code and not aborting:
        return Changes(again_after=script.defer_seconds)
    if run.state is NodeState.PRE:
        run = msgspec.structs.replace(run, pre_code=code)
        if code == 0 and not aborting:
            return _to_job(dag, runs, node, run)
        if code != 0 and code == node.pre_skip:
            return _over(dag, runs, node, msgspec.structs.replace(run, state=NodeState.DONE, code=code))
    elif run.state is NodeState.JOB:
        run = msgspec.structs.replace(run, job_code=code)
        if node.post is not None and not aborting:
            return Changes({name: msgspec.structs.replace(run, state=NodeState.POST)})
    return _verdict(dag, runs, node, run, code, aborting)


def abandon(dag: Dag, runs: Mapping[str, NodeRun]) -> Changes:
    """The workflow was aborted or cancelled: what has not begun never will. What is active ends by `ended`."""
    changed: dict[str, NodeRun] = {}
    gone = 0
    for name, run in runs.items():
        if run.state in (NodeState.WAITING, NodeState.READY) and name != dag.last:
            changed[name] = msgspec.structs.replace(run, state=NodeState.FUTILE)
            gone += 1
    return _count_down(dag, runs, changed, gone, [])


def verdict(dag: Dag, runs: Mapping[str, NodeRun], aborted: int | None = None) -> Verdict:
    """How the workflow stands. `aborted`: the `Changes.abort` that ended it. Looks at every node."""
    if not all(run.state.final for run in runs.values()):
        return Verdict.RUNNING
    if dag.last is not None:
        good = runs[dag.last].state is NodeState.DONE
    elif aborted is not None:
        good = aborted == 0
    else:
        good = all(run.state is NodeState.DONE for run in runs.values())
    return Verdict.DONE if good else Verdict.FAILED


@dataclass(frozen=True)
class Standing:
    """What DAGMan's macros tell a script or a job of the whole workflow."""

    failed: int = 0  # nodes that have failed
    aborted: bool = False
    removed: bool = False  # the user has cancelled it

    @property
    def status(self) -> int:
        """DAG_STATUS: 0 well so far, 2 nodes have failed, 3 aborted, 4 removed."""
        return 4 if self.removed else 3 if self.aborted else 2 if self.failed else 0


def script_command(node: Node, run: NodeRun, script: Script, standing: Standing, job_id: str = "") -> tuple[str, ...]:
    """The script's command with DAGMan's macros in their places: only an argument that is a macro whole is one."""
    values = {
        "$JOB": node.name,
        "$RETRY": str(run.attempt),
        "$MAX_RETRIES": str(node.retries),
        "$FAILED_COUNT": str(standing.failed),
        "$DAG_STATUS": str(standing.status),
    }
    if script is node.post:
        returned = SKIPPED if run.job_code is None and run.pre_code else run.job_code or 0
        values |= {
            "$JOBID": job_id,
            "$RETURN": str(returned),
            "$PRE_SCRIPT_RETURN": str(-1 if run.pre_code is None else run.pre_code),
        }
    program, *arguments = script.command
    return (program, *(values.get(argument, argument) for argument in arguments))


def job_variables(node: Node, run: NodeRun, standing: Standing) -> dict[str, str]:
    """What `$(name)` stands for in the node's job: its VARS, in which `$(JOB)` and `$(RETRY)` may stand themselves."""
    own = {"JOB": node.name, "RETRY": str(run.attempt)}
    whole = {"DAG_STATUS": str(standing.status), "FAILED_COUNT": str(standing.failed)}
    named = {name: with_variables(text, own) for name, text in node.variables.items()}
    return own | whole | named


def _to_job(dag: Dag, runs: Mapping[str, NodeRun], node: Node, run: NodeRun) -> Changes:
    run = msgspec.structs.replace(run, state=NodeState.JOB)
    if not node.noop:
        return Changes({node.name: run})
    run = msgspec.structs.replace(run, job_code=0)
    if node.post is not None:
        return Changes({node.name: msgspec.structs.replace(run, state=NodeState.POST)})
    return _verdict(dag, runs, node, run, 0, False)


def _verdict(dag: Dag, runs: Mapping[str, NodeRun], node: Node, run: NodeRun, code: int, aborting: bool) -> Changes:
    """No further part of the node is to run: it is done, to be tried again, or failed."""
    whole = run.state is NodeState.POST or (run.state is NodeState.JOB and node.post is None)
    state = NodeState.DONE if code == 0 and whole else NodeState.FAILED
    abort = node.abort.result if node.abort is not None and node.abort.code == code and not aborting else None
    again = run.attempt < node.retries and code != node.unless_exit
    if state is NodeState.FAILED and again and abort is None and not aborting:
        return Changes({node.name: NodeRun(NodeState.READY, 0, run.attempt + 1, code=code)}, ready=(node.name,))
    changes = _over(dag, runs, node, msgspec.structs.replace(run, state=state, code=code))
    return Changes(changes.runs, changes.ready, abort)


def _over(dag: Dag, runs: Mapping[str, NodeRun], node: Node, run: NodeRun) -> Changes:
    """The node came to its end: its children have one parent less to wait for, or nothing to wait for any more."""
    changed = {node.name: run}
    woken: list[str] = []
    gone = 1
    if run.state is NodeState.DONE:
        for child in dag.children[node.name]:
            before = runs[child]
            if before.state is not NodeState.WAITING:
                continue
            after = NodeState.READY if before.unmet == 1 else NodeState.WAITING
            changed[child] = msgspec.structs.replace(before, state=after, unmet=before.unmet - 1)
            if after is NodeState.READY:
                woken.append(child)
    else:
        below = list(dag.children[node.name])
        while below:
            name = below.pop()
            if name in changed or runs[name].state is not NodeState.WAITING:
                continue
            changed[name] = msgspec.structs.replace(runs[name], state=NodeState.FUTILE)
            gone += 1
            below += dag.children[name]
    return _count_down(dag, runs, changed, gone if node.name != dag.last else 0, woken)


def _count_down(
    dag: Dag, runs: Mapping[str, NodeRun], changed: dict[str, NodeRun], gone: int, woken: list[str]
) -> Changes:
    """The last node waits for fewer: so many nodes have come to their ends."""
    if dag.last is not None and gone:
        before = runs[dag.last]
        left = before.unmet - gone
        changed[dag.last] = msgspec.structs.replace(
            before, unmet=left, state=NodeState.WAITING if left else NodeState.READY
        )
        if not left:
            woken.append(dag.last)
    return Changes(changed, tuple(woken))
