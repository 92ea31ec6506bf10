"""`ghv ledger`: what ran where, under which hypervisor, and where the time of several jobs went, side by side.

`stays` makes of what the service knows the rows of all three ways of showing it: the table, JSON or YAML, and the
picture (`ghv ledger --plot`, drawn by `cli/plot.py`). Jobs are compared from the moment in which each was submitted.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path

import click
import msgspec

from gridhypervisor.cli import complete, groups
from gridhypervisor.cli.output import (
    BLUE,
    GREEN,
    YELLOW,
    bold,
    dim,
    echo,
    emit,
    format_option,
    paint,
    plain,
    table,
    unicode,
)
from gridhypervisor.client.launcher import connect
from gridhypervisor.model.states import JobState
from gridhypervisor.model.views import JobDetail

NEWEST = 20
"""So many jobs are shown where none is named."""

WIDTH = 32
"""Columns of the time axis in the table."""


class Span(msgspec.Struct, frozen=True):
    """A phase of an attempt, or "middleware": what nobody claims."""

    phase: str
    seconds: float


class Stay(msgspec.Struct, frozen=True):
    """One attempt of a job at a site; a job that never came to one has one stay without a site."""

    job: str
    name: str
    attempt: int
    site: str
    batch_system: str  # with its version; empty where the site is not there any more, or was never reached
    batch_id: str
    node: str
    hypervisor: str  # e.g. "qemu 7.2.22, tcg"
    state: str  # the job's if this is its last attempt, else why this one ended
    created: float  # when the job was submitted, in seconds since 1970
    start: float  # seconds after that
    spans: tuple[Span, ...]  # one after another from `start`; empty until the job has ended
    cpu: dict[str, float]  # CPU seconds of the whole job by who used them, at its last attempt

    @property
    def end(self) -> float:
        return self.start + sum(span.seconds for span in self.spans)


def stays(jobs: Iterable[JobDetail], batch_systems: Mapping[str, str]) -> list[Stay]:
    """By site, and there in the order in which the jobs were submitted. `batch_systems`: by the site's name."""
    found = [stay for detail in jobs for stay in _stays(detail, batch_systems)]
    return sorted(found, key=lambda stay: (stay.site, stay.created, stay.attempt))


def _stays(detail: JobDetail, batch_systems: Mapping[str, str]) -> Iterator[Stay]:
    job, rows = detail.job, detail.ledger.rows if detail.ledger is not None else ()
    attempts = {a.epoch: a for a in detail.attempts}
    numbers = sorted(attempts) or [0]
    start = 0.0
    for number in numbers:
        attempt, last = attempts.get(number), number == numbers[-1]
        # What a job waited for before it came to a site belongs to its first attempt.
        spans = tuple(Span(row.phase, row.seconds) for row in rows if max(row.attempt, numbers[0]) == number)
        yield Stay(
            job=job.id,
            name=job.name,
            attempt=number,
            site=attempt.site if attempt is not None else "",
            batch_system=batch_systems.get(attempt.site, "") if attempt is not None else "",
            batch_id=attempt.batch_id if attempt is not None else "",
            node=attempt.node if attempt is not None else "",
            hypervisor=attempt.hypervisor.partition(":")[0] if attempt is not None else "",
            state=_ending(detail) if last or attempt is None else str(attempt.reason or attempt.state),
            created=job.created,
            start=start,
            spans=spans,
            cpu=dict(detail.ledger.cpu) if last and detail.ledger is not None else {},
        )
        start += sum(span.seconds for span in spans)


def _ending(detail: JobDetail) -> str:
    job = detail.job
    return f"{job.state} ({job.exit_code})" if job.state is JobState.DONE and job.exit_code else str(job.state)


class Kind(msgspec.Struct, frozen=True):
    """What phases have in common that a table shows as one."""

    title: str
    phases: frozenset[str]
    mark: str
    plain_mark: str  # where the terminal shows ASCII alone
    colour: str | None


KINDS = (
    Kind("WAITING", frozenset({"wait", "queue", "gather", "middleware"}), "·", ".", None),
    Kind("MOVING DATA", frozenset({"prolog", "stage_in", "stage_out", "epilog"}), "░", "-", BLUE),
    Kind("MACHINE", frozenset({"prepare", "boot", "shut_down"}), "▒", "+", YELLOW),
    Kind("PROGRAM", frozenset({"execute"}), "█", "#", GREEN),
)


def seconds(stay: Stay, kind: Kind) -> float:
    return sum(span.seconds for span in stay.spans if span.phase in kind.phases)


def columns(stay: Stay, longest: float, width: int = WIDTH) -> list[Kind | None]:
    """The stay on a time axis of `longest` seconds in so many columns: each shows the kind of phase that most of it is;
    None where the stay is less than half of the column."""
    step = longest / width
    taken: list[dict[Kind | None, float]] = [{None: step} for _ in range(width)]
    at = stay.start
    for span in stay.spans:
        kind = next((kind for kind in KINDS if span.phase in kind.phases), None)
        if kind is None:  # it was suspended: nothing happened
            at += span.seconds
            continue
        for number in range(max(0, int(at / step)), min(width, int((at + span.seconds) / step) + 1)):
            part = max(0.0, min(at + span.seconds, (number + 1) * step) - max(at, number * step))
            shares = taken[number]
            shares[kind] = shares.get(kind, 0.0) + part
            shares[None] -= part
        at += span.seconds
    return [max(shares, key=lambda kind: shares[kind]) for shares in taken]


@click.command()
@click.argument("jobs", nargs=-1, shell_complete=complete.jobs)
@click.option(
    "--plot",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Draw it too: a .png, .svg or .pdf.",
)
@format_option
def ledger(jobs: tuple[str, ...], plot: Path | None, output: str) -> None:
    """Compare jobs: what ran where, and where the time went.

    By site: batch system, node and hypervisor of each job, and its time from the moment in which it
    was submitted. Without JOBS: the newest that have ended.
    """
    client = connect()
    if not jobs:
        ended = [state for state in JobState if state.final]
        jobs = tuple(job.id for job in client.jobs(states=ended, limit=NEWEST))
    systems = {site.name: site.batch_system for site in client.sites()}
    found = stays([client.job(groups.job_of(client, job)) for job in dict.fromkeys(jobs)], systems)
    if output != "table":
        emit(found, output)
    elif found:
        _show(found)
    else:
        echo("No job has ended yet. Start one with: ghv run --image NAME -- COMMAND", err=True)
    if plot is not None and found:
        from gridhypervisor.cli.plot import draw  # which needs what few commands need

        draw(found, plot)
        echo(f"{dim('ghv:')} drawn: {plot}", err=True)


def _show(found: Sequence[Stay]) -> None:
    several = {stay.job for stay in found if stay.attempt > 1}
    names = [f"{stay.job} attempt {stay.attempt}" if stay.job in several else stay.job for stay in found]
    echo(bold("What ran where"))
    table(
        ("SITE", "BATCH SYSTEM", "JOB", "NODE", "HYPERVISOR", "STATE"),
        [
            (
                stay.site or "-",
                *(plain(word) or "-" for word in (stay.batch_system, name, stay.node, stay.hypervisor)),
                stay.state,
            )
            for stay, name in zip(found, names, strict=True)
        ],
        indent="  ",
    )
    timed = [(stay, name) for stay, name in zip(found, names, strict=True) if stay.spans]
    if not timed:
        return
    longest = max(stay.end for stay, _ in timed)
    marks = {kind: kind.mark if unicode(sys.stdout) else kind.plain_mark for kind in KINDS}
    heads = [f"{paint(marks[kind], kind.colour)} {dim(kind.title)}" for kind in KINDS]
    rows = []
    for stay, name in timed:
        amounts = [f"{seconds(stay, kind):.1f}" for kind in KINDS]
        runs = ((kind, len(list(run))) for kind, run in groupby(columns(stay, longest)))
        bar = "".join(paint(marks[kind] * length, kind.colour) if kind else " " * length for kind, length in runs)
        cpu = f"{sum(stay.cpu.values()):.1f}" if stay.cpu else "-"
        rows.append((stay.site or "-", name, *amounts, f"{stay.end - stay.start:.1f}", cpu, bar))
    echo(f"\n{bold('Where the time went')}, in seconds")
    axis = "0" + f"{longest:.0f} s".rjust(WIDTH - 1)
    table(("SITE", "JOB", *heads, "WALL", "CPU", axis), rows, right=(2, 3, 4, 5, 6, 7), indent="  ")
