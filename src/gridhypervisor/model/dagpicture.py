"""Draws workflows: as text for Graphviz, and as a picture of layers for the terminal, with the state of every node.

Pure functions to text. A layer holds the nodes whose longest way from the start is equally long, so every line of the
terminal's picture waits for lines above it alone. A layer that is too wide for the terminal is counted, not listed, but
for what needs eyes: what failed first, then what runs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from gridhypervisor.model.workflow import Dag, NodeRun, NodeState, layers

_COLOURS = {
    NodeState.WAITING: "white",
    NodeState.READY: "lightyellow",
    NodeState.PRE: "lightskyblue",
    NodeState.JOB: "deepskyblue",
    NodeState.POST: "lightskyblue",
    NodeState.DONE: "palegreen",
    NodeState.FAILED: "salmon",
    NodeState.FUTILE: "lightgrey",
}
_MARKS = {
    NodeState.FAILED: ("✗", "x"),
    NodeState.PRE: ("▷", ">"),
    NodeState.JOB: ("▶", ">"),
    NodeState.POST: ("▷", ">"),
    NodeState.READY: ("○", "o"),
    NodeState.WAITING: ("·", "."),
    NodeState.FUTILE: ("–", "-"),
    NodeState.DONE: ("✓", "+"),
}
_WORDS = {NodeState.PRE: "in PRE", NodeState.JOB: "running", NodeState.POST: "in POST"}


def dot(dag: Dag, runs: Mapping[str, NodeRun] | None = None) -> str:
    """The workflow in Graphviz's language; coloured by state where `runs` is given."""
    lines = [f"digraph {_quoted(dag.name)} {{", "  node [shape=box, style=filled, fillcolor=white];"]
    for name, node in dag.nodes.items():
        label, extra = name, ""
        if runs is not None:
            run = runs[name]
            label += f"\n{_word(run.state)}" + _remarks(run)
            extra = f", fillcolor={_COLOURS[run.state]}"
        if node.last:
            extra += ", peripheries=2"
        lines.append(f"  {_quoted(name)} [label={_quoted(label)}{extra}];")
    lines += [f"  {_quoted(name)} -> {_quoted(child)};" for name, below in dag.children.items() for child in below]
    return "\n".join([*lines, "}"]) + "\n"


def picture(dag: Dag, runs: Mapping[str, NodeRun], *, width: int = 80, plain: bool = False) -> str:
    """The workflow in lines of at most `width` columns. `plain`: in ASCII alone."""
    found = layers([node for node in dag.nodes.values() if not node.last], dag.children)
    if dag.last is not None:
        found.append([dag.last])
    digits = len(str(len(found)))
    lines = [_cut(f"{dag.name}: {summary(runs)}", width, plain)]
    for number, layer in enumerate(found, 1):
        lines.append(_cut(f"{number:>{digits}}  {_layer(layer, runs, width - digits - 2, plain)}", width, plain))
    return "\n".join(lines) + "\n"


def summary(runs: Mapping[str, NodeRun]) -> str:
    """How many nodes are how, in words: `2 of 4 done, 1 running, 1 waiting`."""
    counts = _counts(runs.values())
    done = counts.pop(NodeState.DONE, 0)
    return ", ".join([f"{done} of {len(runs)} done", *(f"{count} {_word(state)}" for state, count in counts.items())])


def _layer(names: Sequence[str], runs: Mapping[str, NodeRun], width: int, plain: bool) -> str:
    listed = [_mark(runs[name].state, plain) + f" {name}{_remarks(runs[name])}" for name in names]
    if sum(map(len, listed)) + 3 * (len(listed) - 1) <= width:
        return "   ".join(listed)
    counts = _counts(runs[name] for name in names)
    counted = "   ".join(f"{_mark(state, plain)} {count} {_word(state)}" for state, count in counts.items())
    urgent = (NodeState.FAILED, NodeState.PRE, NodeState.JOB, NodeState.POST)
    shown = sorted((n for n in names if runs[n].state in urgent), key=lambda n: urgent.index(runs[n].state))
    room = width - len(counted) - 3
    picked: list[str] = []
    for name in shown:
        room -= len(name) + 2
        if room < 1:
            break
        picked.append(name)
    more = ("..." if plain else "…") if len(picked) < len(shown) else ""
    return counted + (f"  ({', '.join(picked)}{more})" if picked else "")


def _counts(runs: Iterable[NodeRun]) -> dict[NodeState, int]:
    """How many of each state, what needs eyes first, and none that is missing."""
    counts = dict.fromkeys(_MARKS, 0)
    for run in runs:
        counts[run.state] += 1
    return {state: count for state, count in counts.items() if count}


def _remarks(run: NodeRun) -> str:
    words = []
    if run.attempt:
        words.append(f"try {run.attempt + 1}")
    if run.state is NodeState.FAILED and run.code is not None:
        words.append(f"exit {run.code}")
    return f" ({', '.join(words)})" if words else ""


def _word(state: NodeState) -> str:
    return _WORDS.get(state, state.value)


def _mark(state: NodeState, plain: bool) -> str:
    return _MARKS[state][plain]


def _cut(line: str, width: int, plain: bool) -> str:
    end = "..." if plain else "…"
    return line if len(line) <= width else line[: max(width - len(end), 0)] + end


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'
