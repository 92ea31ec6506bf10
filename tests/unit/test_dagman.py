"""DAGMan files and rescue files as their users write and find them, and what is said of those that mean nothing."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path

import pytest

from gridhypervisor.model.dagman import PASSED_OVER, REFUSED, UNDERSTOOD, Parsed, parse
from gridhypervisor.model.rescue import apply_rescue, newest_rescue, next_rescue, write_rescue
from gridhypervisor.model.workflow import (
    Abort,
    Node,
    NodeRun,
    NodeState,
    Script,
    Workflow,
    dag,
)
from gridhypervisor.model.yamlspec import SpecError

DIAMOND = """\
# prepare, two halves, and their sum
JOB A prepare.yaml
job B half.yaml DIR left
JOB C half.yaml NOOP
JOB D sum.yaml
PARENT A CHILD B C
parent B C child D
"""


def read(text: str, **files: str) -> Parsed:
    def included(name: str) -> str:
        if name not in files:
            raise FileNotFoundError(2, "No such file or directory")
        return files[name]

    return parse("diamond.dag", text, included)


def node(text: str, name: str) -> Node:
    return next(node for node in read(text).workflow.nodes if node.name == name)


def problems(text: str, **files: str) -> list[str]:
    with pytest.raises(SpecError) as caught:
        read(text, **files)
    return [str(problem) for problem in caught.value.problems]


def test_a_diamond_is_read() -> None:
    parsed = read(DIAMOND)
    assert parsed.warnings == ()
    assert parsed.workflow.name == "diamond.dag"
    assert parsed.workflow.nodes == (
        Node("A", "prepare.yaml"),
        Node("B", "half.yaml", "left", ("A",)),
        Node("C", "half.yaml", parents=("A",), noop=True),
        Node("D", "sum.yaml", parents=("B", "C")),
    )
    assert dag(parsed.workflow).children["A"] == ("B", "C")


def test_every_command_about_a_node_is_read() -> None:
    text = (
        DIAMOND
        + """
SCRIPT PRE B fetch.sh $JOB .gz
SCRIPT DEFER 75 60 DEBUG post.log ALL POST B check.sh $RETURN
RETRY B 3 UNLESS-EXIT 2
PRE_SKIP B 9
ABORT-DAG-ON B 10 RETURN 1
CATEGORY B big
MAXJOBS big 2
PRIORITY B -5
DONE A
VARS B state="Wisconsin" said="\\"so\\\\" \\
  more="a b"
VARS B APPEND state="Madrid"
"""
    )
    assert node(text, "B") == Node(
        "B",
        "half.yaml",
        "left",
        ("A",),
        pre=Script(("fetch.sh", "$JOB", ".gz")),
        post=Script(("check.sh", "$RETURN"), 75, 60, "post.log", "ALL"),
        pre_skip=9,
        retries=3,
        unless_exit=2,
        abort=Abort(10, 1),
        variables={"state": "Madrid", "said": '"so\\', "more": "a b"},
        category="big",
        priority=-5,
    )
    assert node(text, "A").done
    assert read(text).workflow.limits == {"big": 2}


def test_commands_may_stand_before_their_nodes_and_be_about_all_of_them() -> None:
    text = "RETRY ALL_NODES 2\nRETRY B 5\nABORT-DAG-ON A 3\n" + DIAMOND + "FINAL F clean.yaml\nSCRIPT PRE F report.sh\n"
    nodes = {node.name: node for node in read(text).workflow.nodes}
    assert {name: node.retries for name, node in nodes.items()} == {"A": 2, "B": 5, "C": 2, "D": 2, "F": 0}
    assert nodes["A"].abort == Abort(3, 3)
    assert nodes["F"].last and nodes["F"].pre == Script(("report.sh",))


def test_included_files_are_part_of_the_file_and_have_lines_of_their_own() -> None:
    parsed = read("JOB A a.yaml\nINCLUDE more.dag\nPARENT A CHILD B\n", **{"more.dag": "JOB B b.yaml\n"})
    assert [node.name for node in parsed.workflow.nodes] == ["A", "B"]
    assert problems("JOB A a.yaml\nINCLUDE more.dag\n", **{"more.dag": "\nJOB A b.yaml\n"}) == [
        "more.dag:2: JOB: there is a node A already, of diamond.dag:1; rename one"
    ]
    assert "more.dag cannot be read: No such file" in problems("JOB A a.yaml\nINCLUDE more.dag\n")[0]
    assert "diamond.dag → again.dag" in problems("INCLUDE again.dag\nJOB A a", **{"again.dag": "INCLUDE again.dag"})[0]


def test_what_is_only_htcondors_is_passed_over_with_a_warning() -> None:
    warnings = [str(warning) for warning in read(DIAMOND + "DOT d.dot UPDATE\nSCRIPT HOLD A mail.sh\n").warnings]
    assert warnings == [
        "diamond.dag:8: DOT: is passed over; the workflow is drawn when you ask, with --dot",
        "diamond.dag:9: SCRIPT: is passed over; jobs are never held",
    ]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("JOBB E e.yaml", "JOBB: there is no such command; did you mean JOB?"),
        ("JOB E", "too few words; write JOB name file"),
        ("JOB E e.yaml FAST", "FAST is not understood"),
        ("JOB A again.yaml", "there is a node A already, of diamond.dag:2"),
        ("JOB child e.yaml", "child cannot be a node's name"),
        ("JOB a+b e.yaml", "a+b cannot be a node's name"),
        ("PARENT A CHILD Dd", "there is no node Dd; did you mean D?"),
        ("PARENT A", "names are missing; write PARENT name… CHILD name…"),
        ("PARENT D CHILD A", "nodes wait for each other in a circle"),
        ("PARENT A CHILD A", "nodes wait for each other in a circle: A → A"),
        ("RETRY A many", "many is not allowed here; write a whole number from 0"),
        ("RETRY A 3 UNLESS 2", "not understood; write RETRY"),
        ("SCRIPT PRE A", "too few words; write SCRIPT"),
        ("SCRIPT DURING A x.sh", "DURING is no kind of script"),
        ("SCRIPT DEBUG x.log BOTH PRE A x.sh", "BOTH is no stream"),
        ("PRE_SKIP A 0", "name a code other than 0"),
        ("ABORT-DAG-ON A 1 RETURN 256", "RETURN takes 0 to 255"),
        ("VARS A x=unquoted", "x=unquoted is not understood; write VARS"),
        ('VARS A queued="1"', "it may not begin with queue"),
        ("DONE ALL_NODES", "then there would be nothing to run"),
        ("SUBDAG EXTERNAL E e.dag", "a workflow inside a node is not run; INCLUDE the file"),
        ("SPLICE E e.dag", "splices are not read"),
        ("REJECT", "it must not be run"),
        ("JOB E {\nexecutable = /bin/true\n}", "HTCondor's submit language is not read"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(line: str, said: str) -> None:
    found = problems(DIAMOND + line + "\n")
    assert len(found) == 1 and said in found[0]
    assert found[0].startswith("diamond.dag:8: ") or "circle" in said


def test_all_that_is_wrong_is_said_at_once_and_a_circle_points_at_one_of_its_lines() -> None:
    assert len(problems("JOB A\nRETRY X 1\nFROB\n")) == 3
    (circle,) = problems(DIAMOND + "PARENT D CHILD A\n")
    assert circle.partition(": ")[0] in ("diamond.dag:6", "diamond.dag:7", "diamond.dag:8")
    assert "→" in circle and "remove one of these dependencies" in circle
    assert "holds no JOB" in problems("# nothing\n")[0]


def test_a_final_node_waits_for_nobody_by_name() -> None:
    final = DIAMOND + "FINAL F clean.yaml\n"
    assert "cannot be a parent or a child" in problems(final + "PARENT A CHILD F\n")[0]
    assert "RETRY means nothing" in problems(final + "RETRY F 1\n")[0]
    assert "a FINAL node already, F" in problems(final + "FINAL G clean.yaml\n")[0]


def test_a_rescue_file_is_as_dagman_writes_it_and_begins_where_the_first_run_ended() -> None:
    workflow = read(DIAMOND + "RETRY C 3 UNLESS-EXIT 2\nFINAL F clean.yaml\n").workflow
    runs = {
        "A": NodeRun(NodeState.DONE),
        "B": NodeRun(NodeState.DONE),
        "C": NodeRun(NodeState.FAILED, attempt=1, code=2),
        "D": NodeRun(NodeState.FUTILE),
        "F": NodeRun(NodeState.DONE),
    }
    at = datetime(2026, 3, 1, 9, 5, 7, tzinfo=UTC)
    text = write_rescue(dag(workflow), runs, "diamond.dag", at)
    assert text == (
        "# Rescue DAG file, created after running\n#   the diamond.dag DAG file\n# Created 3/1/2026 09:05:07 UTC\n"
        "# Rescue DAG version: 2.0.1 (partial)\n#\n# Total number of Nodes: 5\n# Nodes premarked DONE: 2\n"
        "# Nodes that failed: 1\n#   C,<ENDLIST>\n\nDONE A\nDONE B\n"
    )
    again = apply_rescue("diamond.dag.rescue001", text, workflow)
    assert [node.name for node in again.nodes if node.done] == ["A", "B"]
    assert next(node for node in again.nodes if node.name == "C").retries == 3
    kept = write_rescue(dag(workflow), runs, "diamond.dag", at, reset_retries=False)
    assert kept == text + "RETRY C 2 UNLESS-EXIT 2\n"
    assert next(n.retries for n in apply_rescue("r", kept, workflow).nodes if n.name == "C") == 2


def test_the_newest_rescue_file_counts() -> None:
    names = [
        "diamond.dag",
        "diamond.dag.rescue001",
        "diamond.dag.rescue010",
        "other.dag.rescue044",
        "diamond.dag.rescue1",
    ]
    assert newest_rescue("diamond.dag", names) == "diamond.dag.rescue010"
    assert next_rescue("diamond.dag", names) == "diamond.dag.rescue011"
    assert newest_rescue("new.dag", names) is None
    assert next_rescue("new.dag", names) == "new.dag.rescue001"
    assert next_rescue("x", ["x.rescue999"]) == "x.rescue999"


def test_a_rescue_file_of_another_workflow_is_an_error_with_its_line() -> None:
    with pytest.raises(SpecError) as caught:
        apply_rescue("x.rescue001", "# by hand\nDONE Q\nJOB A a.yaml\n", Workflow("x", (Node("A", "a"),)))
    first, second = map(str, caught.value.problems)
    assert first.startswith("x.rescue001:2: DONE: x has no node Q; known are A")
    assert second.startswith("x.rescue001:3: JOB is not what a rescue file holds")


def test_the_page_on_profiles_tells_of_every_command() -> None:
    page = (Path(__file__).parents[2] / "docs" / "profiles.md").read_text().partition("## Workflows")[2]
    assert {*UNDERSTOOD, *REFUSED, *PASSED_OVER} <= set(re.findall(r"[A-Z][A-Z_-]+[A-Z]", page))
