"""What a workflow does next, by DAGMan's rules, and how it looks while it does."""

from __future__ import annotations

import re
import time

import pytest

from gridhypervisor.model import workflow
from gridhypervisor.model.dagman import parse
from gridhypervisor.model.dagpicture import dot, picture, summary
from gridhypervisor.model.workflow import MOVES, Dag, Node, NodeRun, NodeState, Workflow, dag, with_variables
from gridhypervisor.planning.workflow import (
    NO_CODE,
    Changes,
    Standing,
    Verdict,
    abandon,
    begin,
    ended,
    job_variables,
    ready,
    script_command,
    start,
    startable,
    verdict,
)

DIAMOND = "JOB A a\nJOB B b\nJOB C c\nJOB D d\nPARENT A CHILD B C\nPARENT B C CHILD D\n"


class Run:
    """A workflow under way: keeps what the pure functions say has changed."""

    def __init__(self, text: str) -> None:
        self.dag: Dag = dag(parse("w.dag", text).workflow)
        self.runs: dict[str, NodeRun] = begin(self.dag)
        self.aborted: int | None = None

    def start(self, name: str) -> Changes:
        return self.take(start(self.dag, self.runs, name))

    def ended(self, name: str, code: int) -> Changes:
        return self.take(ended(self.dag, self.runs, name, code, aborting=self.aborted is not None))

    def whole(self, name: str, *codes: int) -> Changes:
        changes = self.start(name)
        for code in codes:
            changes = self.ended(name, code)
        return changes

    def abandon(self) -> Changes:
        return self.take(abandon(self.dag, self.runs))

    def take(self, changes: Changes) -> Changes:
        self.runs |= changes.runs
        self.aborted = changes.abort if self.aborted is None else self.aborted
        return changes

    def states(self) -> str:
        return " ".join(run.state for run in self.runs.values())

    def verdict(self) -> Verdict:
        return verdict(self.dag, self.runs, self.aborted)


def test_a_diamond_runs_from_its_top_to_its_bottom() -> None:
    run = Run(DIAMOND)
    assert ready(run.runs) == ["A"]
    assert run.whole("A", 0).ready == ("B", "C")
    assert run.whole("C", 0).ready == ()
    assert run.whole("B", 0).ready == ("D",)
    assert run.verdict() is Verdict.RUNNING
    run.whole("D", 0)
    assert run.verdict() is Verdict.DONE


def test_what_depends_on_a_failure_is_futile_and_the_rest_goes_on() -> None:
    run = Run(DIAMOND + "JOB E e\nPARENT C CHILD E\nJOB G g\nPARENT D CHILD G\n")
    run.whole("A", 0)
    run.whole("B", 7)
    assert run.states() == "done failed ready futile waiting futile"
    assert run.whole("C", 0).ready == ("E",)
    run.whole("E", 0)
    assert run.verdict() is Verdict.FAILED and run.runs["B"].code == 7


@pytest.mark.parametrize(
    ("scripts", "codes", "state"),
    [
        ("POST", (1, 0), "done"),  # the POST script's word counts
        ("POST", (0, 1), "failed"),
        ("POST", (0, 0), "done"),
        ("PRE", (0, 0), "done"),
        ("PRE", (0, 3), "failed"),
        ("PRE", (3,), "failed"),  # the job does not run
        ("PRE POST", (3,), "failed"),  # nor does the POST script
        ("PRE POST", (0, 1, 0), "done"),
        ("PRE POST", (0, NO_CODE, 1), "failed"),
    ],
)
def test_whichever_part_ran_last_decides_for_the_node(scripts: str, codes: tuple[int, ...], state: str) -> None:
    run = Run("JOB A a\n" + "".join(f"SCRIPT {kind} A x.sh\n" for kind in scripts.split()))
    run.whole("A", *codes)
    assert run.states() == state


def test_a_failed_node_is_tried_again_whole() -> None:
    run = Run("JOB A a\nSCRIPT PRE A x\nRETRY A 2 UNLESS-EXIT 9\n")
    assert run.whole("A", 0, 1).ready == ("A",)
    assert run.runs["A"] == NodeRun(NodeState.READY, attempt=1, code=1)
    assert run.whole("A", 5).ready == ("A",), "the PRE script's failure is the node's"
    assert run.whole("A", 0, 1).ready == ()
    assert run.states() == "failed"
    run = Run("JOB A a\nRETRY A 2 UNLESS-EXIT 9\n")
    run.whole("A", 9)
    assert run.states() == "failed"


def test_a_pre_script_may_skip_its_node_and_a_script_may_ask_for_time() -> None:
    run = Run(DIAMOND + "SCRIPT DEFER 75 60 PRE A x\nPRE_SKIP A 4\n")
    run.start("A")
    assert run.ended("A", 75) == Changes(again_after=60)
    assert run.ended("A", 4).ready == ("B", "C")
    assert run.runs["A"].state is NodeState.DONE


def test_a_node_without_a_job_to_run_still_runs_its_scripts() -> None:
    run = Run("JOB A a NOOP\nJOB B b NOOP\nSCRIPT POST B x\nPARENT A CHILD B\n")
    assert run.start("A").ready == ("B",)
    run.start("B")
    assert run.runs["B"].state is NodeState.POST
    run.ended("B", 1)
    assert run.states() == "done failed"


def test_an_abort_ends_the_workflow_whatever_retries_are_left() -> None:
    run = Run(DIAMOND + "RETRY B 5\nABORT-DAG-ON B 3 RETURN 1\nSCRIPT POST C x\n")
    run.whole("A", 0)
    run.start("C")
    run.start("B")
    assert run.ended("B", 2).abort is None
    run.start("B")
    assert run.ended("B", 3).abort == 1
    run.abandon()
    run.ended("C", 0)
    assert run.states() == "done failed failed futile", "C was cut short: its POST script did not run"
    assert run.verdict() is Verdict.FAILED
    good = Run("JOB A a\nJOB B b\nABORT-DAG-ON A 3 RETURN 0\n")
    good.whole("A", 3)
    good.abandon()
    assert good.verdict() is Verdict.DONE, "an abort that returns 0 is a good end"


def test_with_a_post_script_its_code_aborts_and_not_the_jobs() -> None:
    run = Run("JOB A a\nSCRIPT POST A x\nABORT-DAG-ON A 3\n")
    run.start("A")
    assert run.ended("A", 3).abort is None
    assert run.ended("A", 3).abort == 3


def test_the_last_node_runs_after_all_the_others_and_its_word_is_the_workflows() -> None:
    run = Run(DIAMOND + "FINAL F f\nSCRIPT POST F x\n")
    assert ready(run.runs) == ["A"]
    assert run.whole("A", 1).ready == ("F",), "all the others are futile"
    run.whole("F", 1, 0)
    assert run.verdict() is Verdict.DONE
    cancelled = Run(DIAMOND + "FINAL F f\n")
    cancelled.start("A")
    cancelled.aborted = 1
    assert cancelled.abandon().ready == ()
    assert cancelled.ended("A", 143).ready == ("F",)
    cancelled.whole("F", 2)
    assert cancelled.states() == "failed futile futile futile failed"


def test_what_was_done_before_is_not_run_again() -> None:
    run = Run(DIAMOND + "DONE A\nDONE B\nFINAL F f\n")
    assert run.states() == "done done ready waiting waiting"
    assert run.whole("C", 0).ready == ("D",)
    assert run.whole("D", 0).ready == ("F",)


def test_limits_of_categories_hold_back_and_priorities_order() -> None:
    text = "".join(f"JOB {name} x\n" for name in "ABCDE")
    run = Run(text + "CATEGORY A big\nCATEGORY B big\nCATEGORY C big\nMAXJOBS big 2\nPRIORITY C 5\nPRIORITY E 1\n")
    names = ready(run.runs)
    assert startable(run.dag, names, {}) == ["C", "E", "A", "D"]
    assert startable(run.dag, names, {"big": 2}) == ["E", "D"]


def test_macros_are_whole_arguments_of_scripts_and_stand_anywhere_in_a_job() -> None:
    run = Run("JOB A a\nSCRIPT PRE A p $JOB\nSCRIPT POST A x $JOB $RETRY/$JOB $MAX_RETRIES $RETURN $JOBID\nRETRY A 2\n")
    node = run.dag.nodes["A"]
    run.whole("A", 0, 6)
    assert node.post is not None and node.pre is not None
    words = script_command(node, run.runs["A"], node.post, Standing(), "j4")
    assert words == ("x", "A", "$RETRY/$JOB", "2", "6", "j4")
    assert script_command(node, run.runs["A"], node.pre, Standing()) == ("p", "A")
    named = Node("A", "a", variables={"out": "$(JOB)-$(RETRY)", "x": "1"})
    variables = job_variables(named, NodeRun(NodeState.JOB, attempt=2), Standing(failed=3))
    text = "$(out) $(x)$(x) $(date) ${HOME} $(FAILED_COUNT) $(DAG_STATUS) $(open"
    assert with_variables(text, variables) == "A-2 11 $(date) ${HOME} 3 2 $(open"


def test_the_terminal_shows_layers_with_the_state_of_every_node() -> None:
    run = Run(DIAMOND + "RETRY C 1\nFINAL F f\n")
    run.whole("A", 0)
    run.whole("C", 1)
    run.start("C")
    run.whole("B", 4)
    assert picture(run.dag, run.runs) == (
        "w.dag: 1 of 5 done, 1 failed, 1 running, 1 waiting, 1 futile\n"
        "1  ✓ A\n"
        "2  ✗ B (exit 4)   ▶ C (try 2)\n"
        "3  – D\n"
        "4  · F\n"
    )
    assert picture(run.dag, run.runs, plain=True).isascii()


def test_a_layer_that_is_too_wide_is_counted_and_shows_what_needs_eyes() -> None:
    run = Run("".join(f"JOB node{i} x\n" for i in range(200)))
    run.start("node7")
    run.whole("node3", 2)
    run.whole("node0", 0)
    text = picture(run.dag, run.runs, width=70)
    assert text.splitlines()[1] == "1  ✗ 1 failed   ▶ 1 running   ○ 197 ready   ✓ 1 done  (node3, node7)"
    narrow = picture(run.dag, run.runs, width=20).splitlines()
    assert all(len(line) <= 20 for line in narrow) and narrow[1].endswith("…")


def test_graphviz_gets_every_node_and_edge_in_quotes() -> None:
    run = Run('JOB a"b x\nJOB c\\d y\nPARENT a"b CHILD c\\d\nFINAL F f\n')
    text = dot(run.dag, run.runs)
    assert text.startswith('digraph "w.dag" {\n') and text.endswith("}\n")
    assert r'  "a\"b" [label="a\"b\nready", fillcolor=lightyellow];' in text
    assert r'  "a\"b" -> "c\\d";' in text
    assert '"F" [label="F\\nwaiting", fillcolor=white, peripheries=2];' in text
    assert len(re.findall("->", dot(run.dag))) == 1 and "ready" not in dot(run.dag)
    assert summary(run.runs) == "0 of 3 done, 1 ready, 2 waiting"


def test_the_table_of_states_is_the_one_that_holds() -> None:
    table = (workflow.__doc__ or "").partition("when\n")[2]
    told: dict[str, set[str]] = {state.name: set() for state in NodeState}
    was = ""
    for line in table.splitlines():
        was = line[:16].strip() or was
        told[was] |= set(line[16:39].split())
    assert told == {state.name: {after.name for after in moves} for state, moves in MOVES.items()}


def test_ten_thousand_nodes_are_quick() -> None:
    """Layers of 100 nodes, each of which waits for 10 of the layer above: 10,000 nodes, 99,000 edges."""
    size, wide = 10_000, 100
    lines = [f"JOB n{i} x" for i in range(size)]
    for i in range(wide, size):
        first = i // wide * wide - wide
        lines.append("PARENT " + " ".join(f"n{first + (i + k) % wide}" for k in range(10)) + f" CHILD n{i}")
    began = time.process_time()
    run = Run("\n".join(lines))
    read_in = time.process_time() - began
    waiting, most = list(ready(run.runs)), 0
    began = time.process_time()
    while waiting:
        name = waiting.pop()
        changes = run.whole(name, 0)
        most = max(most, len(changes.runs))
        waiting += changes.ready
    ran_in = time.process_time() - began
    assert run.verdict() is Verdict.DONE
    assert most <= 12, "what changes is a node and those that wait for it"
    began = time.process_time()
    assert picture(run.dag, run.runs).count("\n") == 101
    assert dot(run.dag, run.runs).count("->") == 99_000
    drawn_in = time.process_time() - began
    assert read_in < 20 and ran_in < 20 and drawn_in < 20, (read_in, ran_in, drawn_in)


def test_a_failure_at_the_top_of_a_long_chain_is_told_to_all_without_recursion() -> None:
    nodes = [Node(f"n{i}", "x", parents=(f"n{i - 1}",) if i else ()) for i in range(20_000)]
    chain = dag(Workflow("chain", tuple(nodes)))
    runs = begin(chain)
    runs |= start(chain, runs, "n0").runs
    runs |= ended(chain, runs, "n0", 1).runs
    assert {run.state for name, run in runs.items() if name != "n0"} == {NodeState.FUTILE}
    with pytest.raises(ValueError, match=r"circle: (n\d+ → ){4}….{1,60}; remove one"):
        dag(Workflow("ring", (*nodes[1:], Node("n0", "x", parents=("n19999",)))))
