"""The jobs that a simulation hands in, and when: of a trace, or drawn at random from a seed. No I/O, no clock.

What a trace says is taken as far as a job can be run by it; what cannot be is left out and counted by reason.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import NamedTuple

from gridhypervisor.model.simulation import GeneratedSpec, WorkloadSpec
from gridhypervisor.model.spec import parse_duration
from gridhypervisor.model.swf import PARTIAL, UNKNOWN, Trace, TraceJob, format_trace

MACHINE = 120
"""Seconds by which a walltime is longer than what the program alone asked for: a guest boots and shuts down in it."""


class Task(NamedTuple):
    """A job to come. Times in seconds."""

    at: float  # after the beginning
    run: float  # of the program
    cpus: int
    walltime: int
    user: str
    project: str = "default"


@dataclass(frozen=True)
class Work:
    tasks: tuple[Task, ...]  # in the order in which they come
    left_out: Mapping[str, int]  # by reason
    words: str  # what this is


def of_trace(path: str, trace: Trace, spec: WorkloadSpec, largest: int) -> Work:
    """The jobs of a trace. `largest`: cores of the largest node.

    A job gets the processors that it asked for, else those that it had, on one node. The time that it asked for is its
    walltime; where it asked for none, or ran longer, it is the time that it ran. The first job comes at 0.
    """
    left_out: Counter[str] = Counter()
    tasks = []
    for job in trace.jobs:
        task = _task(job, spec, largest)
        if isinstance(task, str):
            left_out[task] += 1
        else:
            tasks.append(task)
    tasks.sort(key=lambda task: task.at)
    begin = tasks[0].at if tasks else 0.0
    tasks = [task._replace(at=(task.at - begin) / spec.faster) for task in tasks[: spec.first or None]]
    machine = f" of {trace.header['Computer']}" if trace.header.get("Computer") else ""
    return Work(tuple(tasks), dict(sorted(left_out.items())), f"trace {path}{machine}")


def _task(job: TraceJob, spec: WorkloadSpec, largest: int) -> Task | str:
    """The job to be; or why there is none."""
    if job.status in PARTIAL:
        return "a part of another job"
    if job.submit < 0:
        return "no submission time"
    if job.run < 0:
        return "no run time"
    processors = job.asked_processors if job.asked_processors > 0 else job.processors
    if processors <= 0:
        return "no number of processors"
    cpus = math.ceil(processors)
    if cpus > largest and not spec.cap:
        return "larger than any node"
    return Task(
        job.submit,
        job.run,
        min(cpus, largest),
        math.ceil(max(job.asked_time, job.run)) + MACHINE,
        "unknown" if job.user == UNKNOWN else f"u{job.user:g}",
        "default" if job.group == UNKNOWN else f"g{job.group:g}",
    )


def drawn(spec: GeneratedSpec, seed: int) -> list[TraceJob]:
    """Jobs drawn at random, as a trace would have them. The same seed gives the same jobs."""
    random = Random(f"workload {seed}")
    rate = spec.jobs / parse_duration(spec.over)
    middle, longest = math.log(parse_duration(spec.run)), float(parse_duration(spec.longest))
    activity = [1 / (number + 1) for number in range(spec.users)]
    jobs, at = [], 0.0
    for number in range(1, spec.jobs + 1):
        at += random.expovariate(rate)
        run = round(min(random.lognormvariate(middle, spec.spread), longest), 1)
        cpus = random.choice(spec.cpus)
        [user] = random.choices(range(1, spec.users + 1), activity)
        asked = math.ceil(run * spec.estimate)
        jobs.append(
            TraceJob(number, round(at, 3), run=run, processors=cpus, asked_processors=cpus, asked_time=asked, status=1,
                     user=user)
        )  # fmt: skip
    return jobs


def generated(workload: WorkloadSpec, spec: GeneratedSpec, seed: int, largest: int) -> Work:
    """The same way as those of a trace."""
    work = of_trace("", Trace({}, tuple(drawn(spec, seed))), workload, largest)
    return Work(work.tasks, work.left_out, f"{spec.jobs} jobs drawn over {spec.over}")


def as_trace(spec: GeneratedSpec, seed: int) -> str:
    """Drawn jobs in the Standard Workload Format."""
    header = {"Version": "2.2", "Computer": "none: drawn at random", "Note": f"seed {seed}"}
    return format_trace(header, drawn(spec, seed))


def together(tasks: Sequence[Task]) -> Iterable[tuple[float, list[Task]]]:
    """Tasks that come at the same moment, and when."""
    start = 0
    while start < len(tasks):
        at, end = tasks[start].at, start + 1
        while end < len(tasks) and tasks[end].at == at:
            end += 1
        yield at, list(tasks[start:end])
        start = end
