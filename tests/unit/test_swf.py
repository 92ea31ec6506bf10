"""Traces in the Standard Workload Format: what is read of them, what is refused and where, and what becomes of it."""

from __future__ import annotations

import pytest

from gridhypervisor.model.simulation import GeneratedSpec, WorkloadSpec
from gridhypervisor.model.swf import Trace, TraceJob, parse_trace
from gridhypervisor.model.yamlspec import SpecError
from gridhypervisor.simulation.workload import MACHINE, Task, as_trace, drawn, generated, of_trace, together

TRACE = """\
; Version: 2.2
; Computer: a machine
;  MaxProcs: 128
; Note: with: colons

  1    10 5  100  4 -1 -1  4  600 -1 1  7  3 1 1 -1 -1 -1
  2    10 5   50 -1 -1 -1  2   -1 -1 0 -1 -1 1 1 -1 -1 -1
; a comment between jobs: no header
  3    40 0    0  8 -1 -1 -1   30 -1 5  7 -1 1 1 -1 -1 -1
  4    41 0 7.25  1 -1 -1  1    5 -1 1  8 -1 1 1 -1 -1 -1
  5    50 9   -1 -1 -1 -1  1  600 -1 5  7  3 1 1 -1 -1 -1
  6    51 9  100 -1 -1 -1 -1  600 -1 1  7  3 1 1 -1 -1 -1
  7    52 9  100  1 -1 -1  1  600 -1 2  7  3 1 1 -1 -1 -1
  8    53 9  100 64 -1 -1 64  600 -1 1  7  3 1 1 -1 -1 -1
  9    -1 9  100  1 -1 -1  1  600 -1 1  7  3 1 1 -1 -1 -1
"""


def test_header_and_fields_are_read_as_they_stand() -> None:
    trace = parse_trace("t.swf", TRACE)
    assert trace.header == {"Version": "2.2", "Computer": "a machine", "MaxProcs": "128", "Note": "with: colons"}
    assert len(trace.jobs) == 9
    assert trace.jobs[0] == TraceJob(1, 10, 5, 100, 4, -1, -1, 4, 600, -1, 1, 7, 3, 1, 1, -1, -1, -1)
    assert trace.jobs[3].run == 7.25


def test_jobs_are_taken_as_far_as_they_are_known_and_the_rest_is_counted() -> None:
    work = of_trace("t.swf", parse_trace("t.swf", TRACE), WorkloadSpec(trace="t.swf"), largest=16)
    assert work.tasks == (
        Task(0, 100, 4, 600 + MACHINE, "u7", "g3"),
        Task(0, 50, 2, 50 + MACHINE, "unknown", "default"),  # no time was asked for: as long as it ran
        Task(30, 0, 8, 30 + MACHINE, "u7", "default"),  # nothing was asked for: what it got
        Task(31, 7.25, 1, 8 + MACHINE, "u8", "default"),  # it ran longer than it had asked for
    )
    assert work.left_out == {
        "a part of another job": 1,
        "larger than any node": 1,
        "no number of processors": 1,
        "no run time": 1,
        "no submission time": 1,
    }
    assert work.words == "trace t.swf of a machine"
    assert [(at, len(tasks)) for at, tasks in together(work.tasks)] == [(0, 2), (30, 1), (31, 1)]


def test_what_the_user_asked_of_the_trace_is_done() -> None:
    spec = WorkloadSpec(trace="t.swf", first=3, faster=2.0, cap=True)
    capped = of_trace("t.swf", parse_trace("t.swf", TRACE), spec, largest=3)
    assert [(task.at, task.cpus) for task in capped.tasks] == [(0, 3), (0, 2), (15, 3)]


@pytest.mark.parametrize(
    ("text", "line", "field", "words"),
    [
        ("1 0 0 5 1 -1 -1 1 5 -1 1 1 1 1 1 -1 -1\n", 1, "", "17 fields; a job's line has 18"),
        ("; A: b\n1 0 0 x 1 -1 -1 1 5 -1 1 1 1 1 1 -1 -1 -1\n", 2, "run", "'x' is no number; write -1"),
        ("1 0 0 nan 1 -1 -1 1 5 -1 1 1 1 1 1 -1 -1 -1\n", 1, "run", "'nan' is no number"),
        ("; A: b\n", 0, "", "holds no job"),
    ],
)
def test_what_is_no_trace_is_refused_with_line_and_field(text: str, line: int, field: str, words: str) -> None:
    with pytest.raises(SpecError) as refused:
        parse_trace("t.swf", text)
    [problem] = refused.value.problems
    assert (problem.file, problem.line, problem.field) == ("t.swf", line, field) and words in problem.problem


def test_a_file_of_another_kind_is_not_told_line_by_line() -> None:
    with pytest.raises(SpecError) as refused:
        parse_trace("t.swf", "hello\n" * 1000)
    assert len(refused.value.problems) == 10


def test_drawn_jobs_are_those_of_their_seed_and_as_they_were_asked_for() -> None:
    spec = GeneratedSpec(jobs=2000, over="10d", run="10m", spread=1.0, longest="6h", cpus=(1, 2, 2, 2), users=4)
    jobs = drawn(spec, 1)
    assert jobs == drawn(spec, 1) != drawn(spec, 2)
    assert parse_trace("t.swf", as_trace(spec, 1)).jobs == tuple(jobs)
    runs = sorted(job.run for job in jobs)
    assert 500 < runs[1000] < 700 and runs[-1] <= 6 * 3600
    assert 9 * 86_400 < jobs[-1].submit < 11 * 86_400
    assert 0.70 < sum(job.processors == 2 for job in jobs) / 2000 < 0.80
    of_users = [sum(job.user == user for job in jobs) for user in (1, 2, 3, 4)]
    assert of_users == sorted(of_users, reverse=True) and 0.44 < of_users[0] / 2000 < 0.52  # 1 of 1 + 1/2 + 1/3 + 1/4
    work = generated(WorkloadSpec(generate=spec), spec, 1, largest=1)
    assert work.left_out["larger than any node"] == 2000 - len(work.tasks)


def test_no_job_is_no_work() -> None:
    assert of_trace("t.swf", Trace({}, ()), WorkloadSpec(trace="t.swf"), 1).tasks == ()
