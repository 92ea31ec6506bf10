"""Arrays as users write them, and what `${TASK_ID}` and its like become in each task."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gridhypervisor.model.arrays import Values, parse_array, substitute, task, task_values, unknown
from gridhypervisor.model.spec import InputSpec, JobSpec, SweepSpec

RANGES = st.lists(
    st.tuples(st.integers(0, 500), st.integers(0, 60), st.integers(1, 9)).map(lambda r: (r[0], r[0] + r[1], r[2])),
    min_size=1,
    max_size=5,
)


@pytest.mark.parametrize(
    ("text", "tasks", "at_once"),
    [
        ("1-4", [1, 2, 3, 4], None),
        ("1-4%2", [1, 2, 3, 4], 2),
        ("1-9:2", [1, 3, 5, 7, 9], None),
        ("1-10:4", [1, 5, 9], None),
        ("0", [0], None),
        ("8-10, 1, 5", [1, 5, 8, 9, 10], None),
        ("1-5:2,2-4:2%1", [1, 3, 5, 2, 4], 1),
    ],
)
def test_an_array_has_the_tasks_that_are_written(text: str, tasks: list[int], at_once: int | None) -> None:
    array = parse_array(text)
    assert list(array) == tasks and len(array) == len(tasks)
    assert [array[i] for i in range(len(array))] == tasks
    assert array.at_once == at_once
    assert tasks[0] in array and 777 not in array
    with pytest.raises(IndexError):
        array[len(tasks)]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "is not a range"),
        ("a-b", "is not a range"),
        ("1-", "is not a range"),
        ("-3", "is not a range"),
        ("5-1", "write 1-5"),
        ("1-9:0", "step of 0"),
        ("1-9%0", "after the %"),
        ("1-9%", "after the %"),
        ("1-5,3", "task 3 twice"),
        ("1-9:2,3-9:3", "task 3 twice"),
        ("1-2000000", "make several arrays"),
    ],
)
def test_what_is_no_array_says_why(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        parse_array(text)


@given(RANGES, st.none() | st.integers(1, 50))
def test_an_array_is_what_its_ranges_say_and_reads_back(spans: list[tuple[int, int, int]], limit: int | None) -> None:
    text = ",".join(f"{a}-{b}:{s}" for a, b, s in spans) + (f"%{limit}" if limit else "")
    naive = [n for a, b, s in sorted(spans) for n in range(a, b + 1, s)]
    if len(set(naive)) < len(naive):
        with pytest.raises(ValueError, match="twice"):
            parse_array(text)
        return
    array = parse_array(text)
    assert sorted(array) == sorted(naive) and array.at_once == limit
    assert parse_array(str(array)) == array
    assert [array.position(n) for n in array] == list(range(len(array)))
    assert all((n in array) == (n in naive) for n in range(570))


def test_a_large_array_costs_nothing_until_its_tasks_are_made() -> None:
    array = parse_array("0-999998:2,1-99:2")
    assert len(parse_array("1-1000000")) == 1_000_000
    assert array[-1 % len(array)] == 99 and len(array.spans) == 2 and len(array) == 500_050


def test_every_part_of_a_task_that_may_name_its_number_does() -> None:
    spec = JobSpec(
        "xmm",
        ("sh", "-c", "run ${TASK_ID} of ${TOTAL_TASKS} in ${HOME}, my $${TASK_ID}, ${ARRAY_ID} ${JOB_ID}"),
        inputs=("in.${TASK_ID}", InputSpec(url="https://h/${PARAM}", name="x.${PARAM}")),
        outputs=("out.${TASK_ID}/*",),
        environment={"LAST": "${MAX_PARAM}", "TASK": "${TASK_ID}"},
    )
    values = task_values(parse_array("1-9:2"), 3, array_id="j7", job_id="j9", arch="x86_64")
    made = task(spec, values)
    assert made.command[2] == "run 3 of 5 in ${HOME}, my ${TASK_ID}, j7 j9"
    assert made.inputs == ("in.3", InputSpec(url="https://h/3", name="x.3"))
    assert made.outputs == ("out.3/*",)
    assert made.environment == {"LAST": "9", "TASK": "3"}
    assert msgspec.structs.replace(made, command=spec.command) != spec, "the spec of the array itself is unchanged"


def test_gridways_parameter_runs_from_a_start_by_a_step() -> None:
    array = parse_array("0-4")  # gwsubmit -n 5 -s 100 -i 10
    values = [task_values(array, n, array_id="j1", job_id=f"j{n}", sweep=SweepSpec(100, 10)) for n in array]
    assert [v.param for v in values] == [100, 110, 120, 130, 140]
    assert {v.max_param for v in values} == {140}
    alone = Values("j1")
    assert substitute("${TASK_ID} ${ARRAY_ID} ${TOTAL_TASKS} ${PARAM}", alone) == "-1 -1 -1 0"


def test_the_architecture_waits_for_the_site_and_what_is_escaped_with_it() -> None:
    early = substitute("bin.${ARCH} ${JOB_ID} $${ARCH}", Values("j1"))
    assert early == "bin.${ARCH} j1 $${ARCH}"
    assert substitute(early, Values("j1", arch="aarch64")) == "bin.aarch64 j1 ${ARCH}"


def test_a_task_that_the_array_lacks_is_an_error() -> None:
    with pytest.raises(ValueError, match="no task 2"):
        task_values(parse_array("1-9:2"), 2, array_id="j1", job_id="j2")


def test_a_file_name_that_holds_an_unknown_substitution_is_an_error_that_names_the_nearest() -> None:
    spec = JobSpec(
        "xmm",
        ("echo", "${HOME}", "${TASKID}"),
        inputs=("in.${TASKID}", InputSpec(path="${X}")),
        outputs=("${task_id}",),
    )
    found = dict(unknown(spec))
    assert list(found) == ["inputs[0]", "inputs[1].path", "outputs[0]"], "a command may use the shell's own"
    assert "did you mean ${TASK_ID}?" in found["inputs[0]"]
    assert "known are TASK_ID, ARRAY_ID" in found["inputs[1].path"]


@given(st.text(alphabet="${}TASK_IDx ", max_size=30))
def test_text_without_our_names_is_never_changed(text: str) -> None:
    if not any(f"${{{name}}}" in text for name in ("TASK_ID",)):
        assert substitute(text, Values("j1", task_id=5, arch="x")) == text
