"""A workflow's next step: what of all that is known at a moment goes into one commit."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from gridhypervisor.model.dagman import parse
from gridhypervisor.model.records import Job, JobState, Wish
from gridhypervisor.model.spec import JobSpec
from gridhypervisor.model.wire import ImageManifest
from gridhypervisor.model.workflow import NodeRun, NodeState, dag
from gridhypervisor.planning.dagsteps import AT_ONCE, Step, code_of, conclusion, member, step
from gridhypervisor.planning.workflow import NO_CODE, REMOVED, begin


class Flow:
    """A workflow under way, as the loop keeps it."""

    def __init__(self, text: str) -> None:
        self.dag = dag(parse("flow.dag", text).workflow)
        self.runs = begin(self.dag)
        self.ready = frozenset(name for name, run in self.runs.items() if run.state is NodeState.READY)
        self.aborted: int | None = None

    def step(self, *ends: tuple[str, int], cancelled: bool = False) -> Step:
        active = [name for name, run in self.runs.items() if run.state.active]
        done = step(self.dag, self.runs, self.ready, active, ends, aborted=self.aborted, cancelled=cancelled)
        self.runs |= done.runs
        self.ready, self.aborted = done.ready, done.aborted
        return done

    def states(self) -> dict[str, str]:
        return {name: str(run.state) for name, run in self.runs.items()}


def test_what_ended_at_one_moment_is_one_step() -> None:
    flow = Flow("JOB A a\nJOB B b\nJOB C c\nJOB D d NOOP\nPARENT A B CHILD C\nPARENT B CHILD D\nSCRIPT PRE B x\n")
    first = flow.step()
    assert (first.jobs, first.scripts) == (("A",), ("B",))
    assert flow.step().runs == {}, "nothing happened"
    assert flow.step(("B", 0)).jobs == ("B",)
    last = flow.step(("A", 0), ("B", 0))
    assert (last.jobs, last.scripts) == (("C",), ())
    assert flow.states() == {"A": "done", "B": "done", "C": "job", "D": "done"}
    assert conclusion(flow.dag, flow.runs, None, Wish.RUN) is None


def test_a_failed_node_begins_again_in_the_step_that_sees_it_fail() -> None:
    flow = Flow("JOB A a\nRETRY A 1\n")
    flow.step()
    assert member("A", flow.runs["A"]) == "A"
    assert flow.step(("A", 3)).jobs == ("A",)
    assert member("A", flow.runs["A"]) == "A.2"
    flow.step(("A", 3))
    assert conclusion(flow.dag, flow.runs, None, Wish.RUN) == (JobState.FAILED, 1)


def test_so_many_nodes_begin_in_one_step_and_the_rest_in_the_next() -> None:
    flow = Flow("".join(f"JOB N{n} x\n" for n in range(AT_ONCE + 10)))
    assert len(flow.step().jobs) == AT_ONCE and len(flow.ready) == 10
    assert len(flow.step().jobs) == 10 and not flow.ready


def test_a_script_that_asks_for_time_is_run_again_and_nothing_else_changes() -> None:
    flow = Flow("JOB A a\nSCRIPT DEFER 7 30 PRE A x\n")
    flow.step()
    asked = flow.step(("A", 7))
    assert (asked.again, asked.runs, flow.states()) == ({"A": 30}, {}, {"A": "pre"})


def test_a_cancel_begins_nothing_more_not_even_the_last_node() -> None:
    flow = Flow("JOB A a\nJOB B b\nPARENT A CHILD B\nFINAL Z z\nRETRY A 3\n")
    flow.step()
    flow.step(cancelled=True)
    assert flow.states() == {"A": "job", "B": "futile", "Z": "waiting"}
    over = flow.step(("A", REMOVED), cancelled=True)
    assert (over.jobs, flow.states()) == ((), {"A": "failed", "B": "futile", "Z": "futile"})
    assert conclusion(flow.dag, flow.runs, None, Wish.CANCEL) == (JobState.CANCELLED, 1)


def test_a_node_that_ends_the_workflow_says_its_exit_code_unless_a_last_node_does() -> None:
    for text, how in (("", (JobState.FAILED, 9)), ("FINAL Z z\n", (JobState.DONE, 0))):
        flow = Flow(f"JOB A a\nJOB B b\nABORT-DAG-ON A 3 RETURN 9\n{text}")
        flow.step()
        assert flow.step(("A", 3)).aborted == 9
        last = flow.step(("B", REMOVED))
        assert last.jobs == (("Z",) if text else ())
        if text:
            flow.step(("Z", 0))
        assert conclusion(flow.dag, flow.runs, flow.aborted, Wish.RUN) == how


def jobs() -> Iterable[tuple[Job | None, int | None]]:
    def job(state: JobState, code: int | None = None) -> Job:
        return Job("j1", "me", "x", "x", JobSpec("xmm", ("true",)), "/r", "/r", ImageManifest(()), "0" * 64, 1.0,
                   state=state, exit_code=code)  # fmt: skip

    yield None, NO_CODE
    yield job(JobState.RUNNING), None
    yield job(JobState.DONE, 4), 4
    yield job(JobState.CANCELLED, 0), REMOVED
    yield job(JobState.FAILED), NO_CODE


@pytest.mark.parametrize(("job", "code"), list(jobs()))
def test_how_a_nodes_job_ended_as_dagman_counts(job: Job | None, code: int | None) -> None:
    assert code_of(job) == code


def test_runs_of_a_node_are_told_apart_by_their_number() -> None:
    assert [member("A", NodeRun(NodeState.JOB, attempt=n)) for n in range(3)] == ["A", "A.2", "A.3"]
