"""Several submissions as one array: which can be one, and whose an element is."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gridhypervisor.model.batch import Submission
from gridhypervisor.sites.arrays import (
    array_name,
    array_of,
    array_script,
    element,
    grouped,
    in_steps,
    index,
    is_array,
    step,
)

ALIKE = Submission("a1b-j7-1", "/w/spool/a1b-j7-1", "/w/bundle/d/start", "/scratch/it's", 1, 512 << 20, 600)


def job(number: int, epoch: int = 1, cpus: int = 1) -> Submission:
    name = f"a1b-j{number}-{epoch}"
    return replace(ALIKE, name=name, entry=f"/w/spool/{name}", cpus=cpus)


jobs = st.lists(
    st.builds(job, st.integers(1, 3000), st.integers(1, 2), cpus=st.integers(1, 2)),
    max_size=30,
    unique_by=lambda job: job.name,
)


@given(jobs, st.integers(1, 1000))
def test_each_job_is_in_one_group_of_its_like_and_found_again_by_name_and_index(
    given_jobs: list[Submission], span: int
) -> None:
    groups = list(grouped(given_jobs, span))
    assert sorted(job.name for group in groups for job in group) == sorted(job.name for job in given_jobs)
    for group in groups:
        assert len({(job.name.rpartition("-")[2], job.cpus) for job in group}) == 1
        array = array_name(group)
        assert bool(array) == (len(group) > 1)
        for job in group if array else ():
            at = index(array, job.name)
            assert 0 <= at < span
            assert is_array(array) and element(array, at) == job.name and array_of(job.name, at) == array


def test_the_order_in_which_they_come_changes_nothing() -> None:
    some = [job(3), job(1), job(2, cpus=2), job(2)]
    assert list(grouped(some, 9)) == list(grouped(some[::-1], 9))
    assert set(grouped(some, 9)) == {(job(1), job(2), job(3)), (job(2, cpus=2),)}


@pytest.mark.parametrize("name", ["a1b-j7", "other", "j7-1"])
def test_a_name_of_another_make_is_a_group_of_its_own_and_no_array(name: str) -> None:
    strange = replace(ALIKE, name=name, entry=f"/w/spool/{name}")
    assert (strange,) in list(grouped([job(1), job(2), strange], 100))
    assert element(name, 3) == name


@given(jobs)
def test_the_parts_of_a_group_are_indices_in_even_steps_from_1_on(given_jobs: list[Submission]) -> None:
    for group in grouped(given_jobs, 1000):
        parts = list(in_steps(group))
        assert [job for part in parts for job in part] == list(group)
        for part in parts:
            if array := array_name(part, 1):
                last = index(array, part[-1].name)
                assert [index(array, job.name) for job in part] == list(range(1, last + 1, step(part)))
                assert all(element(array, index(array, job.name)) == job.name for job in part)


def test_neighbours_stay_together() -> None:
    group = [job(number) for number in (3, 4, 5, 6, 8, 10, 11)]
    assert [[job.name for job in part] for part in in_steps(group)] == [
        [job(number).name for number in part] for part in ((3, 4, 5, 6), (8, 10), (11,))
    ]


@pytest.mark.parametrize(("number", "first"), [(1, 0), (1, 1), (9, 0), (1700, 1)])
def test_the_script_becomes_the_pilot_of_the_elements_entry(tmp_path: Path, number: int, first: int) -> None:
    spool = tmp_path / "it's a spool"
    start = tmp_path / "start"
    start.write_text('echo "$@"\n')
    group = [
        replace(job(at), entry=f"{spool}/{job(at).name}", start=str(start), scratch="/s t")
        for at in (number, number + 4)
    ]
    script = array_script(array_name(group, first), group, "TASK")
    for each in group:
        Path(each.entry).mkdir(parents=True)
        subprocess.run(
            ["sh"], input=script, text=True, check=True, env={"TASK": str(index(array_name(group, first), each.name))}
        )
        assert (Path(each.entry) / "batch.log").read_text() == f"pilot --scratch /s t --entry {each.entry}\n"
    assert subprocess.run(["sh"], input=script, text=True, check=False, env={}, capture_output=True).returncode != 0
