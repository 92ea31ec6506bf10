"""Takes a workflow one step further: what ended, who may start, what of that is a job or a script to begin. Pure.

`planning.workflow` has DAGMan's rules for one event; here they are applied to all that is known at a moment, so that
one commit holds it. Time grows with what changed, not with the workflow.
"""

from __future__ import annotations

from collections import ChainMap, Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import msgspec

from gridhypervisor.model.arrays import Values, task
from gridhypervisor.model.commit import Birth
from gridhypervisor.model.records import Event, Group, Job, JobState, Vm, Wish
from gridhypervisor.model.spec import JobSpec
from gridhypervisor.model.wire import ImageManifest
from gridhypervisor.model.workflow import Dag, NodeRun, NodeState
from gridhypervisor.planning.workflow import (
    NO_CODE,
    REMOVED,
    Changes,
    Verdict,
    abandon,
    ended,
    start,
    startable,
    verdict,
)

AT_ONCE = 64
"""Nodes that begin in one step: each may have a file to be read, and others wait for the step to end."""


@dataclass(frozen=True)
class Step:
    """What to commit, then what to begin."""

    runs: Mapping[str, NodeRun]  # the nodes that changed, as they are now
    ready: frozenset[str]  # those that could start, but for a limit or for being too many at once
    jobs: tuple[str, ...]  # nodes whose job begins
    scripts: tuple[str, ...]  # nodes of which a script begins
    again: Mapping[str, int]  # scripts that asked to be run once more: node -> after so many seconds
    aborted: int | None  # the workflow ends with this exit code, as a node asked


def step(
    dag: Dag,
    runs: dict[str, NodeRun],
    ready: Collection[str],
    active: Iterable[str],
    ends: Iterable[tuple[str, int]],
    *,
    aborted: int | None,
    cancelled: bool,
) -> Step:
    """`ready` and `active`: nodes that are so in `runs`. `ends`: active ones of which a part ended, and how."""
    changed: dict[str, NodeRun] = {}
    view = ChainMap(changed, runs)
    waiting, running, again = set(ready), set(active), dict[str, int]()

    def take(changes: Changes) -> None:
        changed.update(changes.runs)
        waiting.update(changes.ready)
        for name, run in changes.runs.items():
            (running.add if run.state.active else running.discard)(name)

    for name, code in ends:
        changes = ended(dag, view, name, code, aborting=cancelled or aborted is not None)
        if changes.again_after is not None:
            again[name] = changes.again_after
            continue
        take(changes)
        if changes.abort is not None and aborted is None:
            aborted = changes.abort
    if cancelled or aborted is not None:
        take(abandon(dag, view))
        waiting &= {dag.last}
        if cancelled and dag.last is not None and view[dag.last].state is NodeState.READY:
            changed[dag.last] = msgspec.structs.replace(view[dag.last], state=NodeState.FUTILE)
    room = AT_ONCE
    while room > 0 and (chosen := _startable(dag, view, waiting, running)[:room]):
        room -= len(chosen)
        for name in chosen:
            waiting.discard(name)
            take(start(dag, view, name))
    begun = [name for name, run in changed.items() if run.state.active and _part(run) != _part(runs[name])]
    return Step(
        changed,
        frozenset(name for name in waiting if view[name].state is NodeState.READY),
        tuple(name for name in begun if changed[name].state is NodeState.JOB),
        tuple(name for name in begun if changed[name].state is not NodeState.JOB),
        again,
        aborted,
    )


def _startable(dag: Dag, runs: Mapping[str, NodeRun], waiting: Collection[str], running: Iterable[str]) -> list[str]:
    counts = Counter(dag.nodes[name].category for name in running) if dag.limits else Counter[str]()
    return startable(dag, [name for name in waiting if runs[name].state is NodeState.READY], counts)


def _part(run: NodeRun) -> tuple[NodeState, int]:
    return run.state, run.attempt


def code_of(job: Job | None) -> int | None:
    """The exit code of a node's job, as DAGMan counts; None while it has not ended. `job`: None if there is none."""
    if job is None:
        return NO_CODE
    if not job.state.final:
        return None
    if job.state is JobState.DONE and job.exit_code is not None:
        return job.exit_code
    return REMOVED if job.state is JobState.CANCELLED else NO_CODE


def conclusion(dag: Dag, runs: Mapping[str, NodeRun], aborted: int | None, wish: Wish) -> tuple[JobState, int] | None:
    """How the workflow ended, and its exit code; None while it has not. Looks at every node.

    The exit code is the one that a node ended it with, unless a last node (FINAL) had the last word.
    """
    how = verdict(dag, runs, aborted)
    if how is Verdict.RUNNING:
        return None
    if wish is not Wish.RUN:
        return JobState.CANCELLED, 1
    state = JobState.DONE if how is Verdict.DONE else JobState.FAILED
    if aborted is not None and dag.last is None:
        return state, aborted
    return state, int(state is not JobState.DONE)


def member(name: str, run: NodeRun) -> str:
    """What the job of a node's attempt is called in its workflow. Node names hold no dot."""
    return f"{name}.{run.attempt + 1}" if run.attempt else name


class Described(NamedTuple):
    """The job of a node, as its file says."""

    spec: JobSpec
    folder: str  # for its inputs and its results, so that those of one node are there for the next
    digest: str
    image: ImageManifest


def birth(group: Group, name: str, run: NodeRun, what: Described, number: int, now: float) -> Birth:
    """The job of a node's attempt, with this number."""
    job, called = f"j{number}", member(name, run)
    spec = task(what.spec, Values(job, arch=what.image.arch))
    made = Job(
        id=job,
        owner=group.owner,
        project=group.project,
        name=f"{group.name}[{called}]"[:200],
        spec=spec,
        destination=what.folder,
        folder=what.folder,
        image=what.image,
        image_digest=what.digest,
        created=now,
        group=group.id,
        member=called,
        version=1,
    )
    vm = Vm(f"v{number}", group.owner, group.project, job, version=1)
    return Birth(
        made, vm, Event(now, group.owner, group.project, job, "job", job, "", JobState.PENDING, message=group.id)
    )
