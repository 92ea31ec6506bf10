"""Reads and writes the Standard Workload Format, in which traces of parallel machines are archived.

Version 2.2, as D. G. Feitelson's Parallel Workloads Archive documents it: a line for each job with 18 numbers, -1 where
a trace does not know; lines that begin with `;` are comments, those before the first job `; Name: value` of the trace
as a whole. Pure text: whoever calls reads the file. What of a trace can be used, `simulation.workload` decides.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from gridhypervisor.model.yamlspec import Problem, SpecError

UNKNOWN = -1
"""What stands in a field that the trace does not know."""

PARTIAL = (2, 3, 4)
"""Values of `status` of lines that tell a part of a job which another line tells as a whole."""

MOST_PROBLEMS = 10
"""Lines that are wrong of which a reader is told: a file of another kind has nothing but such."""


class TraceJob(NamedTuple):
    """One line; the fields in their order. Times in seconds, memory in KiB a processor."""

    number: float
    submit: float  # since the trace began
    wait: float = UNKNOWN
    run: float = UNKNOWN
    processors: float = UNKNOWN  # that it got
    cpu: float = UNKNOWN  # on the mean of its processors
    memory: float = UNKNOWN
    asked_processors: float = UNKNOWN
    asked_time: float = UNKNOWN
    asked_memory: float = UNKNOWN
    status: float = UNKNOWN  # 1 completed, 0 failed, 5 cancelled; 2, 3, 4: see PARTIAL
    user: float = UNKNOWN
    group: float = UNKNOWN
    program: float = UNKNOWN
    queue: float = UNKNOWN
    partition: float = UNKNOWN
    after: float = UNKNOWN  # number of the job that it waited for
    think: float = UNKNOWN  # time from the end of that to its submission


FIELDS = TraceJob._fields


@dataclass(frozen=True)
class Trace:
    header: dict[str, str]  # what the comments before the first job say, e.g. MaxProcs, Computer
    jobs: tuple[TraceJob, ...]


def parse_trace(path: str, text: str) -> Trace:
    """Read a trace; `path` is for messages. Fractions are taken wherever a number is: some traces have them.

    Raises:
        SpecError: lines that are none of a trace; names them, and what in them is wrong.
    """
    header: dict[str, str] = {}
    jobs: list[TraceJob] = []
    problems: list[Problem] = []
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.split()
        if not words:
            continue
        if words[0].startswith(";"):
            name, colon, value = line.lstrip("; \t").partition(":")
            if colon and not jobs:
                header.setdefault(name.strip(), value.strip())
            continue
        try:
            jobs.append(_job(words))
        except ValueError as error:
            field, _, problem = str(error).partition(": ")
            problems.append(Problem(path, number, 0, field, problem))
            if len(problems) >= MOST_PROBLEMS:
                break
    if not problems and not jobs:
        problems.append(Problem(path, 0, 0, "", "holds no job", "a line of 18 numbers for each"))
    if problems:
        raise SpecError(problems)
    return Trace(header, tuple(jobs))


def _job(words: list[str]) -> TraceJob:
    if len(words) != len(FIELDS):
        raise ValueError(f": {len(words)} fields; a job's line has {len(FIELDS)}")
    values = []
    for name, word in zip(FIELDS, words, strict=True):
        try:
            value = float(word)
        except ValueError:
            value = float("nan")
        if not abs(value) < float("inf"):
            raise ValueError(f"{name}: {word[:40]!r} is no number; write {UNKNOWN} for what is not known")
        values.append(value)
    return TraceJob(*values)


def format_trace(header: dict[str, str], jobs: Iterable[TraceJob]) -> str:
    """A trace as text, as `parse_trace` reads it."""
    lines = [f"; {name}: {value}" for name, value in header.items()]
    lines += [" ".join(f"{value:.15g}" for value in job) for job in jobs]
    return "\n".join(lines) + "\n"
