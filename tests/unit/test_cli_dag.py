"""How `ghv run --dag` reads a workflow, and what it shows of it as it runs."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from gridhypervisor.cli.dag import Drawing, Flags, read
from gridhypervisor.model.dagman import parse
from gridhypervisor.model.workflow import NodeRun, NodeState, Progress
from gridhypervisor.model.yamlspec import SpecError
from tests.terminal import at_a_terminal

TEXT = "JOB A a.yaml\nJOB B b.yaml\nPARENT A CHILD B\n"

DRAW = """
from gridhypervisor.cli.dag import Drawing
from tests.unit.test_cli_dag import progress
drawing = Drawing(quiet=False)
drawing.show("w1", progress("job", "waiting"))
drawing.show("w1", progress("done", "job"))
"""


def progress(first: str, second: str) -> Progress:
    runs = {"A": NodeRun(NodeState(first)), "B": NodeRun(NodeState(second), code=4 if second == "failed" else None)}
    return Progress(parse("flow.dag", TEXT).workflow, runs)


def test_where_nothing_can_be_drawn_over_each_step_of_a_node_is_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    drawing = Drawing(quiet=False)
    for states in (("job", "waiting"), ("job", "waiting"), ("done", "job"), ("done", "failed")):
        drawing.show("w1", progress(*states))
    told = ["w1 A runs", "w1 A done", "w1 B runs", "w1 B failed with 4"]
    assert capsys.readouterr().err.splitlines() == [f"ghv: {line}" for line in told]


def test_on_a_terminal_the_workflow_is_drawn_over_itself() -> None:
    code, shown = at_a_terminal([sys.executable, "-c", DRAW])
    assert code == 0
    first, again, second = shown.partition("\x1b[3A\x1b[J")
    assert again and "1 running, 1 waiting" in first and "A" in first
    assert "1 of 2 done, 1 running" in second


def test_a_workflow_goes_on_from_its_newest_rescue_file_unless_it_is_to_begin_anew(tmp_path: Path) -> None:
    (tmp_path / "flow.dag").write_text(TEXT + "CONFIG x\n")
    (tmp_path / "flow.dag.rescue002").write_text("# of the second run\nDONE A\n")
    (tmp_path / "flow.dag.rescue001").write_text("DONE B\n")
    file = str(tmp_path / "flow.dag")
    assert [node.done for node in read(Flags(file, None, False)).workflow.nodes] == [True, False]
    assert [node.done for node in read(Flags(file, None, True)).workflow.nodes] == [False, False]
    (tmp_path / "flow.dag.rescue003").write_text("DONE C\n")
    with pytest.raises(SpecError, match=r"rescue003:1: DONE: flow\.dag has no node C"):
        read(Flags(file, None, False))


def test_what_a_workflow_includes_is_read_from_its_folder(tmp_path: Path) -> None:
    (tmp_path / "whole.dag").write_text("INCLUDE part.dag\nJOB C c.yaml\nPARENT B CHILD C\n")
    (tmp_path / "part.dag").write_text(TEXT)
    made = read(Flags(str(tmp_path / "whole.dag"), "xmm", False))
    assert [node.name for node in made.workflow.nodes] == ["A", "B", "C"]
    assert (made.file, made.image) == (str(tmp_path / "whole.dag"), "xmm")
