"""Workflows against an oracle that works everything out anew after every event."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from gridhypervisor.model.dagman import PASSED_OVER, REFUSED, UNDERSTOOD, parse
from gridhypervisor.model.rescue import apply_rescue, write_rescue
from gridhypervisor.model.workflow import (
    MOVES,
    Dag,
    Node,
    NodeRun,
    NodeState,
    Script,
    Workflow,
    dag,
    defects,
    find_cycle,
    layers,
)
from gridhypervisor.model.yamlspec import SpecError
from gridhypervisor.planning.workflow import Verdict, abandon, begin, ended, ready, start, verdict

X = Script(("x",))


@st.composite
def workflows(draw: st.DrawFn) -> Workflow:
    size = draw(st.integers(1, 9))
    nodes = []
    for i in range(size):
        parents = draw(st.sets(st.integers(0, i - 1), max_size=4)) if i else set()
        nodes.append(
            Node(
                f"n{i}",
                "job.yaml",
                parents=tuple(f"n{p}" for p in sorted(parents)),
                pre=draw(st.sampled_from((None, X))),
                post=draw(st.sampled_from((None, X))),
                retries=draw(st.integers(0, 2)),
                noop=draw(st.booleans()),
            )
        )
    if draw(st.booleans()):
        nodes.append(Node("last", "job.yaml", last=True))
    return Workflow("w", tuple(draw(st.permutations(nodes))))


def expected(dag: Dag, runs: Mapping[str, NodeRun], name: str) -> NodeState:
    """What a node that has not begun must be, from the states of all the others alone."""
    states = {other: run.state for other, run in runs.items()}
    if name == dag.last:
        return NodeState.READY if all(s.final for n, s in states.items() if n != name) else NodeState.WAITING
    above, seen = list(dag.nodes[name].parents), set()
    while above:
        parent = above.pop()
        seen.add(parent)
        above += [p for p in dag.nodes[parent].parents if p not in seen]
    if any(states[parent] is NodeState.FAILED for parent in seen):
        return NodeState.FUTILE
    done = all(states[parent] is NodeState.DONE for parent in dag.nodes[name].parents)
    return NodeState.READY if done else NodeState.WAITING


def took_only_moves(before: Mapping[str, NodeRun], changed: Mapping[str, NodeRun]) -> None:
    for name, run in changed.items():
        was = before[name].state
        assert run.state is was or run.state in MOVES[was], f"{name}: {was} became {run.state}"


def agrees(dag: Dag, runs: Mapping[str, NodeRun]) -> None:
    for name, run in runs.items():
        if not run.state.active and run.state not in (NodeState.DONE, NodeState.FAILED):
            assert run.state is expected(dag, runs, name), name


@settings(max_examples=200)
@given(workflows(), st.data())
def test_after_every_event_each_node_is_where_the_oracle_has_it(workflow: Workflow, data: st.DataObject) -> None:
    graph = dag(workflow)
    runs = begin(graph)
    agrees(graph, runs)
    announced = set(ready(runs))
    while True:
        assert announced == set(ready(runs)), "who is told what becomes ready knows all that is"
        moves = sorted(announced | {name for name, run in runs.items() if run.state.active})
        if not moves:
            break
        name = data.draw(st.sampled_from(moves))
        if name in announced:
            announced.remove(name)
            changes = start(graph, runs, name)
        else:
            changes = ended(graph, runs, name, data.draw(st.sampled_from((0, 0, 1))))
        took_only_moves(runs, changes.runs)
        runs |= changes.runs
        announced |= set(changes.ready)
        agrees(graph, runs)
    assert all(run.state.final for run in runs.values()), "every run comes to an end"
    if graph.last is None:
        every = all(run.state is NodeState.DONE for run in runs.values())
        assert verdict(graph, runs) is (Verdict.DONE if every else Verdict.FAILED)
    assert all(run.attempt <= graph.nodes[name].retries for name, run in runs.items())
    rescued = apply_rescue("w.rescue001", write_rescue(graph, runs, "w", datetime(2026, 1, 1, tzinfo=UTC)), workflow)
    again = begin(dag(rescued))
    for name, run in again.items():
        assert (run.state is NodeState.DONE) == (runs[name].state is NodeState.DONE and name != graph.last)


@settings(max_examples=100)
@given(workflows(), st.data())
def test_a_cancelled_workflow_comes_to_its_end(workflow: Workflow, data: st.DataObject) -> None:
    graph = dag(workflow)
    runs = begin(graph)
    for _ in range(data.draw(st.integers(0, 12))):
        moves = [name for name, run in runs.items() if run.state.active or run.state is NodeState.READY]
        if not moves:
            break
        name = data.draw(st.sampled_from(moves))
        busy = runs[name].state.active
        runs |= (ended(graph, runs, name, data.draw(st.integers(0, 1))) if busy else start(graph, runs, name)).runs
    gone = abandon(graph, runs).runs
    took_only_moves(runs, gone)
    runs |= gone
    while active := [name for name, run in runs.items() if run.state.active]:
        changed = ended(graph, runs, active[0], data.draw(st.integers(0, 1)), aborting=True).runs
        took_only_moves(runs, changed)
        runs |= changed
    left = {name: run.state for name, run in runs.items() if not run.state.final}
    assert left in ({}, {graph.last: NodeState.READY})


@given(st.lists(st.tuples(st.integers(0, 7), st.integers(0, 7)), max_size=20))
def test_a_circle_is_found_if_and_only_if_there_is_one(edges: list[tuple[int, int]]) -> None:
    nodes = [Node(f"n{i}", "x", parents=tuple({f"n{a}" for a, b in edges if b == i})) for i in range(8)]
    reach = {(a, b) for a, b in edges}
    for k in range(8):
        reach |= {(a, b) for a in range(8) for b in range(8) if (a, k) in reach and (k, b) in reach}
    circle = find_cycle(nodes)
    assert bool(circle) == any((a, a) in reach for a in range(8))
    assert bool(defects(nodes)) == bool(circle)
    by_name = {node.name: node for node in nodes}
    for before, after in zip(circle, [*circle[1:], *circle[:1]], strict=True):
        assert before in by_name[after].parents


@given(workflows())
def test_a_workflow_written_as_a_dagman_file_reads_back(workflow: Workflow) -> None:
    lines = []
    for node in workflow.nodes:
        lines.append(f"{'FINAL' if node.last else 'JOB'} {node.name} {node.job}" + " NOOP" * node.noop)
        lines += [f"SCRIPT {kind} {node.name} x" for kind, has in (("PRE", node.pre), ("POST", node.post)) if has]
        lines += [f"RETRY {node.name} {node.retries}"] if node.retries else []
        lines += [f"PARENT {' '.join(node.parents)} CHILD {node.name}"] if node.parents else []
    assert parse("w", "\n".join(reversed(lines))).workflow.nodes[::-1] == workflow.nodes
    stored = msgspec.json.decode(msgspec.json.encode(workflow), type=Workflow)
    assert stored == workflow
    below = layers(workflow.nodes, dag(workflow).children)
    place = {name: number for number, layer in enumerate(below) for name in layer}
    assert len(place) == len(workflow.nodes)
    assert all(place[node.name] == max((place[p] + 1 for p in node.parents), default=0) for node in workflow.nodes)


KEYWORDS = st.sampled_from((*UNDERSTOOD, *REFUSED, *PASSED_OVER, "X", "}"))
OPTIONS = (
    *("CHILD", "PRE", "POST", "HOLD", "DEFER", "DEBUG", "ALL", "DIR", "DONE", "NOOP", "RETURN", "UNLESS-EXIT"),
    *("ALL_NODES", "APPEND", "-1", "0", "300", "w", "A", "A", "B", "B", 'k="v"', '"', "{", "}", "\\", "#"),
)
WORDS = st.lists(st.sampled_from(OPTIONS), max_size=6).map(" ".join)


@settings(max_examples=300)
@given(st.lists(st.tuples(KEYWORDS, WORDS), max_size=6))
def test_whatever_a_dagman_file_holds_it_is_a_workflow_or_an_error_with_words(lines: list[tuple[str, str]]) -> None:
    text = "JOB A a\nJOB B b\n" + "\n".join(f"{keyword} {words}" for keyword, words in lines)
    try:
        parsed = parse("w", text, lambda name: text)
    except SpecError as error:
        found = error.problems
    else:
        found = parsed.warnings
        dag(parsed.workflow)
    assert all(problem.problem and problem.allowed and problem.line for problem in found), found
