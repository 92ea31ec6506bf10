"""Array jobs: which tasks an array has, and what `${TASK_ID}` and its like mean in each. Text in, values out.

An array is one record however many tasks it has: `TaskArray` keeps ranges, and `task` makes the spec of one task when
that task is to be made. Making all of them, or keeping them, is the caller's.

**Substitutions** are GridWay's: `${TASK_ID} ${ARRAY_ID} ${TOTAL_TASKS} ${JOB_ID} ${PARAM} ${MAX_PARAM} ${ARCH}`. They
are replaced in the command, in the names of inputs and outputs, and in the values of environment variables.
- Names of files are ours to read: another `${name}` there is an error (`unknown`).
- The command and the environment belong to a shell in the guest as much: there another `${name}` stays as it is, and
  the shell's own `${TASK_ID}` is written `$${TASK_ID}`. So is, in file names too, a `${TASK_ID}` that is meant as it is
  written.

`${ARCH}` is known once a site has been chosen: where `Values.arch` is None it is left for later.
"""

from __future__ import annotations

import bisect
import difflib
import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import msgspec

from gridhypervisor.model.spec import InputSpec, JobSpec, SweepSpec

MOST_TASKS = 1_000_000
"""Of one array. What is more than that is a slip of the pen."""

NAMES = ("TASK_ID", "ARRAY_ID", "TOTAL_TASKS", "JOB_ID", "PARAM", "MAX_PARAM", "ARCH")

_WRITTEN = re.compile(r"(\d{1,18})(?:-(\d{1,18})(?::(\d{1,18}))?)?")
_NAME = re.compile(r"\$?\$\{([A-Za-z_][A-Za-z0-9_]*)\}")


TELLING = ("TASK_ID", "PARAM", "JOB_ID")
"""Substitutions that are another in each task."""


class Span(NamedTuple):
    """Task numbers `first`, `first + step`, … up to and including `last`."""

    first: int
    last: int
    step: int

    def __str__(self) -> str:
        if self.first == self.last:
            return str(self.first)
        return f"{self.first}-{self.last}" + (f":{self.step}" if self.step != 1 else "")


@dataclass(frozen=True)
class TaskArray:
    """The tasks of an array, none of them twice. Made by `parse_array`. A position counts from 0, along the spans."""

    spans: tuple[Span, ...]
    at_once: int | None = None  # how many tasks may be alive at a time; None: as many as there is room for

    @cached_property
    def _before(self) -> list[int]:
        """How many tasks stand before each span; at the end, how many there are."""
        return [0, *itertools.accumulate(len(_range(span)) for span in self.spans)]

    @cached_property
    def _firsts(self) -> list[int] | None:
        """The first task of each span; None where spans overlap, and so do not tell where a task is."""
        return None if _overlap(self.spans) else [span.first for span in self.spans]

    @cached_property
    def largest(self) -> int:
        return max(span.last for span in self.spans)

    def __len__(self) -> int:
        return self._before[-1]

    def __iter__(self) -> Iterator[int]:
        for span in self.spans:
            yield from _range(span)

    def __contains__(self, task: object) -> bool:
        return isinstance(task, int) and self.position(task) is not None

    def __getitem__(self, position: int) -> int:
        """The number of the task at a position. Raises IndexError."""
        if not 0 <= position < len(self):
            raise IndexError("no such task")
        span = bisect.bisect_right(self._before, position) - 1
        return _range(self.spans[span])[position - self._before[span]]

    def position(self, task: int) -> int | None:
        """Where the task stands; None: there is none of that number."""
        likely: Iterable[int] = range(len(self.spans))
        if self._firsts is not None:
            likely = [max(bisect.bisect_right(self._firsts, task) - 1, 0)]
        for span in likely:
            numbers = _range(self.spans[span])
            if task in numbers:
                return self._before[span] + numbers.index(task)
        return None

    def __str__(self) -> str:
        """As it is written; `parse_array` reads it back."""
        return ",".join(map(str, self.spans)) + (f"%{self.at_once}" if self.at_once is not None else "")


def parse_array(text: str) -> TaskArray:
    """Read `1-100`, `1-100%10` (at most ten at once), `1-9:2`, `1,5,8-10`; task numbers begin at 0 or above.

    Raises:
        ValueError: it is none; the message says what is wrong and what is right.
    """
    listed, percent, limit = text.replace(" ", "").partition("%")
    if percent and not (re.fullmatch(r"\d{1,9}", limit) and int(limit)):
        raise ValueError(f"{limit!r} after the % is not how many tasks may run at once; write for instance 1-100%10")
    spans = []
    for part in listed.split(","):
        match = _WRITTEN.fullmatch(part)
        if not match:
            raise ValueError(f"{part!r} is not a range of tasks; write for instance 1-100, 1-100%10, 1-9:2 or 1,5,8-10")
        first, last, step = int(match[1]), int(match[2] or match[1]), int(match[3] or 1)
        if last < first:
            raise ValueError(f"{part} ends before it begins; write {last}-{first}")
        if step == 0:
            raise ValueError(f"{part} has a step of 0; write for instance {first}-{last}:2")
        last = first + (last - first) // step * step
        spans.append(Span(first, last, step if last > first else 1))
    spans.sort()
    array = TaskArray(tuple(spans), int(limit) if percent else None)
    if len(array) > MOST_TASKS:
        raise ValueError(f"{text} has {len(array)} tasks; the most is {MOST_TASKS}: make several arrays of it")
    if (twice := _twice(spans)) is not None:
        raise ValueError(f"{text} names task {twice} twice")
    return array


def tasks_of(spec: JobSpec) -> TaskArray:
    """The tasks of an array; of a gang, a task for each member, counted from 0.

    Raises:
        ValueError: it is an array, and does not say rightly of which tasks.
    """
    return TaskArray((Span(0, spec.gang.count - 1, 1),)) if spec.gang is not None else parse_array(spec.array)


@dataclass(frozen=True)
class Values:
    """What the substitutions stand for in one job. Those of a job of no array are GridWay's: -1, and 0 for PARAM."""

    job_id: str
    array_id: str = "-1"
    task_id: int = -1
    total_tasks: int = -1
    param: int = 0
    max_param: int = 0
    arch: str | None = None

    def get(self, name: str) -> str | None:
        """The value of a name; None: it is not known (yet)."""
        return self.arch if name == "ARCH" else str(getattr(self, name.lower()))


def task_values(
    array: TaskArray, task: int, *, array_id: str, job_id: str, sweep: SweepSpec | None = None, arch: str | None = None
) -> Values:
    """What the substitutions stand for in one task. Without a `sweep` PARAM is TASK_ID, and MAX_PARAM the last one.

    Raises:
        ValueError: the array has no such task.
    """
    total, position = len(array), array.position(task)
    if position is None:
        raise ValueError(f"the array {array} has no task {task}")
    param, most = task, array.largest
    if sweep is not None:
        param = sweep.start + sweep.step * position
        most = sweep.start + sweep.step * (total - 1)
    return Values(job_id, array_id, task, total, param, most, arch)


def substitute(text: str, values: Values) -> str:
    """The text with every substitution that is known made; whatever else stays as it is."""

    def one(match: re.Match[str]) -> str:
        if match[1] not in NAMES:
            return match[0]
        if match[0].startswith("$$"):
            return match[0] if values.arch is None else match[0][1:]  # read once more when the site is known
        value = values.get(match[1])
        return match[0] if value is None else value

    return _NAME.sub(one, text) if "${" in text else text


def task(spec: JobSpec, values: Values) -> JobSpec:
    """The spec of one job or task: its substitutions made."""
    return rewrite(spec, lambda text: substitute(text, values))


def home_of(spec: JobSpec, home: str, values: Values) -> str:
    """Where a task's results go: a folder of its own below `home`, unless its names already keep it apart from the
    others. Without a home: nowhere, they stay with the job."""
    place = substitute(home, values)
    apart = place != home or (spec.outputs and all(map(_tells, spec.outputs)))
    return place if apart or not home else f"{place}/{values.task_id}"


def _tells(name: str) -> bool:
    return any(f"${{{word}}}" in name.replace("$$", "") for word in TELLING)


def rewrite(spec: JobSpec, change: Callable[[str], str]) -> JobSpec:
    """The spec with every text changed in which a substitution may stand."""

    def item(given: str | InputSpec) -> str | InputSpec:
        if isinstance(given, str):
            return change(given)
        return InputSpec(change(given.path), change(given.url), given.sha256, change(given.name))

    return msgspec.structs.replace(
        spec,
        command=tuple(map(change, spec.command)),
        inputs=tuple(map(item, spec.inputs)),
        outputs=tuple(map(change, spec.outputs)),
        restart_files=tuple(map(change, spec.restart_files)),
        environment={name: change(value) for name, value in spec.environment.items()},
        stdout=change(spec.stdout),
        stderr=change(spec.stderr),
        destinations={change(name): change(place) for name, place in spec.destinations.items()},
    )


def unknown(spec: JobSpec) -> list[tuple[str, str]]:
    """What is wrong with an array's substitutions: (field, problem and what is allowed) for each."""
    found: list[tuple[str, str]] = []
    fields: list[tuple[str, str]] = []
    for i, given in enumerate(spec.inputs):
        if isinstance(given, str):
            fields.append((f"inputs[{i}]", given))
        else:
            fields += [(f"inputs[{i}].{part}", getattr(given, part)) for part in ("path", "url", "name")]
    fields += [(f"outputs[{i}]", pattern) for i, pattern in enumerate(spec.outputs)]
    fields += [(f"restart_files[{i}]", pattern) for i, pattern in enumerate(spec.restart_files)]
    fields += [(name, getattr(spec, name)) for name in ("stdout", "stderr")]
    fields += [(f"destinations.{name}", place) for name, place in spec.destinations.items()]
    for field, text in fields:
        for match in _NAME.finditer(text):
            if match[1] not in NAMES:
                near = difflib.get_close_matches(match[1].upper(), NAMES, 1)
                right = f"did you mean ${{{near[0]}}}?" if near else f"known are {', '.join(NAMES)}"
                found.append((field, f"${{{match[1]}}} stands for nothing; {right}"))
    return found


def _range(span: Span) -> range:
    return range(span.first, span.last + 1, span.step)


def _overlap(spans: Sequence[Span]) -> bool:
    return any(before.last >= after.first for before, after in itertools.pairwise(spans))


def _twice(spans: list[Span]) -> int | None:
    """A task that two of the spans hold. Spans with steps may overlap and share nothing: only such are looked into."""
    if not _overlap(spans):
        return None
    seen: set[int] = set()
    for span in spans:
        if both := seen.intersection(_range(span)):
            return min(both)
        seen.update(_range(span))
    return None
