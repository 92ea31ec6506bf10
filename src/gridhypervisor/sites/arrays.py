"""Several submissions as one array job, and its elements' names again.

Entries are named `INSTALLATION-jNUMBER-EPOCH`. An array carries the name of all its elements in its own: that of the
entry which has, or would have, index 0, with a `+` behind the number, `INSTALLATION-jNUMBER+-EPOCH`; an element's index
is the difference of the numbers. So the name and the index that a listing shows say which entry it is, and nobody keeps
a table. Where a batch system counts from 1, the name is that of the number before the first.
"""

from __future__ import annotations

import itertools
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import replace

from gridhypervisor.model.batch import Submission
from gridhypervisor.model.wire import BATCH_LOG
from gridhypervisor.sites.driver import become_pilot

_ENTRY = re.compile(r"(?P<head>.+-j)(?P<number>\d+)(?P<tail>-\d+)")
_ARRAY = re.compile(r"(?P<head>.+-j)(?P<number>\d+)\+(?P<tail>-\d+)")


def grouped(jobs: Sequence[Submission], span: int) -> Iterator[tuple[Submission, ...]]:
    """The submissions, each in one group; those of a group can be one array, with indices from 0 to below `span`.

    They differ in their number alone: of one size, for one start script, of the same epoch. In the order of numbers.
    """

    numbers = {job.name: found for job in jobs if (found := _ENTRY.fullmatch(job.name))}

    def number(job: Submission) -> int:
        return int(numbers[job.name]["number"]) if job.name in numbers else 0

    def shape(job: Submission) -> str:
        found = numbers.get(job.name)
        ours = found is not None and job.entry.endswith(f"/{job.name}")
        if job.carried is not None:
            return job.name  # its script is its own
        return repr((found["head"], found["tail"], replace(job, name="", entry="")) if found and ours else job.name)

    for _, alike in itertools.groupby(sorted(jobs, key=lambda job: (shape(job), number(job))), key=shape):
        group: list[Submission] = []
        for job in alike:
            if group and number(job) - number(group[0]) >= span:
                yield tuple(group)
                group = []
            group.append(job)
        yield tuple(group)


def in_steps(jobs: Sequence[Submission]) -> Iterator[tuple[Submission, ...]]:
    """The submissions of a group, parted where the distance of their numbers changes: for batch systems that take no
    list of indices, but `first-last:step`."""
    part: list[Submission] = []
    for job in jobs:
        if len(part) > 1 and _number(job) - _number(part[-1]) != step(part):
            yield tuple(part)
            part = []
        part.append(job)
    if part:
        yield tuple(part)


def step(group: Sequence[Submission]) -> int:
    """The distance of the first two numbers of a group of at least two."""
    return _number(group[1]) - _number(group[0])


def array_of(name: str, at: int) -> str:
    """The name of the array in which an entry has this index."""
    found = _ENTRY.fullmatch(name)
    return f"{found['head']}{int(found['number']) - at}+{found['tail']}" if found else name


def array_name(group: Sequence[Submission], first: int = 0) -> str:
    """What a group is called as an array whose indices begin at `first`; empty if it is one job, which needs none."""
    return array_of(group[0].name, first) if len(group) > 1 else ""


def is_array(name: str) -> bool:
    return _ARRAY.fullmatch(name) is not None


def index(array: str, name: str) -> int:
    """An entry's index in the array of this name, which is of its group."""
    return _parts(_ENTRY, name)[1] - _parts(_ARRAY, array)[1]


def element(array: str, at: int) -> str:
    """The entry of the element at an index of an array; the array's own name if it is none of ours."""
    if not is_array(array):
        return array
    head, number, tail = _parts(_ARRAY, array)
    return f"{head}{number + at}{tail}"


def array_script(array: str, group: Sequence[Submission], variable: str) -> str:
    """The batch script of an array; as `driver.batch_script`, the entry found by the index in an environment variable.

    The script's own words go to the entry's log by its own doing: batch systems know patterns for the index alone.
    """
    head, number, tail = _parts(_ARRAY, array)
    before = shlex.quote(group[0].entry.removesuffix(group[0].name) + head)
    lines = [
        "#!/bin/sh",
        f"entry={before}$(({number} + ${{{variable}:?}})){tail}",
        f'exec >>"$entry/{BATCH_LOG}" 2>&1',
        *become_pilot(group[0], '"$entry"'),
    ]
    return "\n".join(lines) + "\n"


def _number(job: Submission) -> int:
    return _parts(_ENTRY, job.name)[1]


def _parts(pattern: re.Pattern[str], name: str) -> tuple[str, int, str]:
    found = pattern.fullmatch(name)
    assert found is not None, name
    return found["head"], int(found["number"]), found["tail"]
