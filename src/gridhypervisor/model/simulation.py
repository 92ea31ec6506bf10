"""What a user writes to have a grid simulated, and what comes of it. Validation only; `simulation.run` does it.

The file is one struct, as with `JobSpec`; `ghv schema simulation` prints its JSON Schema. Every length of time is
virtual. The report is what `ghv simulate -o json` prints, and the messages are what the process that simulates says.
"""

from __future__ import annotations

import math
import re
from typing import Annotated, Literal

import msgspec

from gridhypervisor.model.spec import Duration, parse_duration
from gridhypervisor.model.yamlspec import Problem

Fraction = Annotated[float, msgspec.Meta(ge=0, le=1)]
Count = Annotated[int, msgspec.Meta(ge=1, le=1_000_000)]
Factor = Annotated[float, msgspec.Meta(gt=0, le=1000)]
Sigma = Annotated[float, msgspec.Meta(ge=0, le=5)]


class GeneratedSpec(msgspec.Struct, frozen=True):
    """Jobs that are drawn: they come at random times, as many in each hour on the mean (a Poisson process)."""

    jobs: Count
    over: Duration = "1d"  # from the first to about the last
    run: Duration = "10m"  # the median of how long programs run,
    spread: Sigma = 1.0  # and the standard deviation of its logarithm (a log-normal distribution)
    longest: Duration = "1d"  # no program runs longer
    estimate: Annotated[float, msgspec.Meta(ge=1, le=1000)] = 2.0  # the walltime asked for, over how long it runs
    cpus: Annotated[tuple[Count, ...], msgspec.Meta(min_length=1)] = (1,)  # each as likely as the others
    users: Annotated[int, msgspec.Meta(ge=1, le=10_000)] = 8  # the n-th has 1/n as many jobs as the first


class WorkloadSpec(msgspec.Struct, frozen=True):
    """Where the jobs come from: exactly one of `trace` and `generate`."""

    trace: str = ""  # a file in the Standard Workload Format, perhaps .gz; relative to this file's folder
    generate: GeneratedSpec | None = None
    first: Annotated[int, msgspec.Meta(ge=0)] = 0  # only so many jobs; 0: all
    faster: Factor = 1.0  # jobs come so many times as fast
    cap: bool = False  # a job larger than any node takes a whole one, instead of being left out


class OthersSpec(msgspec.Struct, frozen=True):
    """Other people's jobs in the site's queue. They come at random, and run for as long as chance has it."""

    share: Annotated[float, msgspec.Meta(ge=0, lt=1)]  # of the site's cores, on the mean
    run: Duration = "1h"  # on the mean (an exponential distribution)
    cpus: Count = 1  # of each


class RecurringSpec(msgspec.Struct, frozen=True):
    """What happens at random times (a Poisson process)."""

    every: Duration  # on the mean
    lasts: Duration


class FaultsSpec(msgspec.Struct, frozen=True):
    nodes: RecurringSpec | None = None  # of each node: it dies, with all that runs there, and comes back
    outages: RecurringSpec | None = None  # nobody reaches the site; what it has goes on
    lost: Fraction = 0.0  # of submissions: not taken, and no answer
    mute: Fraction = 0.0  # taken, and no answer
    refused: Fraction = 0.0


class SimulatedSiteSpec(msgspec.Struct, frozen=True):
    nodes: Annotated[int, msgspec.Meta(ge=1, le=10_000)] = 4
    cores: Annotated[int, msgspec.Meta(ge=1, le=1024)] = 16  # of each node
    max_jobs: Annotated[int, msgspec.Meta(ge=0)] = 0  # of ours at once, queued and running; 0: as many as all its cores
    wait: Duration = "0s"  # from the submission until the batch system considers a job: the median,
    spread: Sigma = 0.5  # and the standard deviation of its logarithm
    backfill: bool = True  # small jobs may go before the first that waits, where that does not delay it
    others: OthersSpec | None = None
    boot: Duration = "8s"  # of a guest
    listing: Duration = "5m"  # how often the batch system is asked for all jobs while some wait; else a fifth as often
    faults: FaultsSpec = FaultsSpec()


class SimulationSpec(msgspec.Struct, frozen=True):
    workload: WorkloadSpec
    sites: dict[str, SimulatedSiteSpec]  # by name
    kind: Literal["Simulation"] = "Simulation"
    policy: str = ""  # a policy's file, relative to this file's folder; empty: the defaults
    seed: int = 1
    retries: Annotated[int, msgspec.Meta(ge=0, le=100)] = 2  # of each job, when a site fails it
    grace: Duration = "30d"  # after the last submission; what has not ended by then is counted as it stands


NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


def problems(spec: SimulationSpec) -> list[tuple[str, str]]:
    """What types alone cannot say: (path of the field, what is wrong and what is allowed) for each fault."""
    found: list[tuple[str, str]] = []
    work, drawn = spec.workload, spec.workload.generate
    if bool(work.trace) == (drawn is not None):
        found.append(("workload", "needs exactly one of trace and generate"))
    if not spec.sites:
        found.append(("sites", "names no site; write for each its name and, below it, nodes and cores"))
    lengths = {"grace": spec.grace}
    if drawn is not None:
        lengths |= {f"workload.generate.{name}": getattr(drawn, name) for name in ("over", "run", "longest")}
    for name, site in spec.sites.items():
        where = f"sites.{name}"
        if not NAME.fullmatch(name):
            found.append((where, f'"{name}" is no name for a site; write letters, digits, . _ and - only'))
        lengths[f"{where}.listing"] = site.listing
        if site.others is not None:
            lengths[f"{where}.others.run"] = site.others.run
            if site.others.cpus > site.cores:
                found.append((f"{where}.others.cpus", f"{site.others.cpus} are more than the {site.cores} of a node"))
        faults = site.faults
        for kind, each in (("nodes", faults.nodes), ("outages", faults.outages)):
            if each is not None:
                lengths |= {f"{where}.faults.{kind}.every": each.every, f"{where}.faults.{kind}.lasts": each.lasts}
        if math.fsum((faults.lost, faults.mute, faults.refused)) > 1:
            found.append((f"{where}.faults", "lost, mute and refused are more than all submissions; they add up to 1"))
    found += [
        (field, f'"{text}" is no time at all; write a duration above 0, e.g. 1d or 90s')
        for field, text in lengths.items()
        if parse_duration(text) == 0
    ]
    return found


class Spread(msgspec.Struct, frozen=True):
    """How a quantity is distributed over jobs."""

    mean: float = 0.0
    median: float = 0.0
    p90: float = 0.0
    most: float = 0.0
    curve: tuple[float, ...] = ()  # the percentiles from 0 to 100; empty: there was no job


class SiteFigures(msgspec.Struct, frozen=True):
    site: str
    cores: int
    done: int  # jobs whose last attempt was here, and that are done
    attempts: int  # jobs that were given to it, each as often as it was
    failed: int  # attempts that ended by a fault of the site
    core_hours: float  # of ours: what the batch system gave, the lost included
    used: float  # by ours, of its cores over the whole time
    others: float  # by others, the same
    waits: Spread  # seconds; of the jobs done here
    usage: tuple[float, ...]  # cores of ours, on the mean of each step
    others_usage: tuple[float, ...]


class UserFigures(msgspec.Struct, frozen=True):
    user: str
    jobs: int
    done: int
    core_hours: float
    wait: float  # seconds; the mean of the jobs done
    slowdown: float  # the same


class SimulationReport(msgspec.Struct, frozen=True):
    """What came of it. The same file and seed give the same report, to the last digit."""

    seed: int
    workload: str  # in words
    policy: str  # its file; empty: the defaults
    jobs: int  # that were handed in
    left_out: dict[str, int]  # that were not, by reason
    states: dict[str, int]  # how many of the jobs are how
    reasons: dict[str, int]  # of those that are neither done nor alive: why
    seconds: float  # of virtual time, from the first submission to the last end
    attempts: int
    core_hours: float
    utilisation: float  # ours, of all cores over that time
    waits: Spread  # seconds; of jobs done, from the submission to the end, without the time that the program ran
    slowdowns: Spread  # bounded slowdowns of jobs done
    fairness: float  # Jain's index over the users' mean bounded slowdowns
    step: float  # seconds of each step of `usage`
    sites: tuple[SiteFigures, ...]
    users: tuple[UserFigures, ...]


class Progress(msgspec.Struct, frozen=True, tag="progress", tag_field="said"):
    day: float  # of virtual time
    ended: int
    jobs: int


class Finished(msgspec.Struct, frozen=True, tag="finished", tag_field="said"):
    report: SimulationReport


class Refused(msgspec.Struct, frozen=True, tag="refused", tag_field="said"):
    """A file that the simulation needs does not mean anything."""

    problems: tuple[Problem, ...]


class Missing(msgspec.Struct, frozen=True, tag="missing", tag_field="said"):
    """A file that the simulation needs cannot be read."""

    path: str
    why: str


Message = Progress | Finished | Refused | Missing
"""A line of what the process that simulates says: progress, and last one of the others."""
