"""What the verbs show and do of arrays, which are named a12, gangs, g12, workflows, w12, infrastructures, i12 or as
their users call them, and of their jobs: a12[7] or a12.7, g12.0, w12.B, i12.worker-0 or slurm-lab.worker-0."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator

import click

from gridhypervisor.cli import exits
from gridhypervisor.cli.output import (
    GREEN,
    RED,
    YELLOW,
    age,
    ago,
    bold,
    dim,
    echo,
    emit,
    paint,
    pairs,
    places,
    plain,
    table,
)
from gridhypervisor.cli.progress import Line, Progress
from gridhypervisor.client.sync import Client
from gridhypervisor.model.states import InfrastructureState, JobState
from gridhypervisor.model.views import Explanation, GroupView, JobView

_GROUP = re.compile(r"[agwi]\d+")
_MEMBER = re.compile(r"([agwi]\d+)(?:\[(.+)\]|\.(.+))")
_NAMED = re.compile(r"([a-z][a-z0-9-]*)(?:\.([a-z0-9-]+))?")

_ORDER = (
    *(JobState.RUNNING, JobState.EPILOG, JobState.QUEUED, JobState.PROLOG, JobState.SUSPENDED),
    JobState.PENDING,
)


PAGE = 1000
"""Jobs that are asked for at once."""

MOST_TOLD = 20
"""Different things that the jobs of a group do or wait for, of which each has a line."""


def is_group(name: str) -> bool:
    return _GROUP.fullmatch(name) is not None


def is_gang(name: str) -> bool:
    return is_group(name) and name.startswith("g")


def is_infrastructure(name: str) -> bool:
    return is_group(name) and name.startswith("i")


def known(client: Client, name: str) -> str:
    """An infrastructure, or a VM of one, that is named as its user calls it, by id; everything else as it is."""
    match = None if is_job(name) else _NAMED.fullmatch(name)
    if match is None:
        return name
    found = client.infrastructure(match[1]).id
    return f"{found}.{match[2]}" if match[2] else found


def is_job(name: str) -> bool:
    return re.fullmatch(r"j\d+", name) is not None or is_group(name) or _MEMBER.fullmatch(name) is not None


def job_of(client: Client, name: str) -> str:
    """The id of a job that is named by its id, or as one of a group's."""
    name = known(client, name)
    if is_group(name):
        raise click.UsageError(f"{name} is many jobs: name one of them, as {name}.7; ghv list {name} shows them.")
    match = _MEMBER.fullmatch(name)
    return client.member(match[1], match[2] or match[3]).id if match else name


def jobs_of(client: Client, names: tuple[str, ...]) -> Iterator[str]:
    return (name if is_group(name) else job_of(client, name) for name in (known(client, name) for name in names))


def counted(group: GroupView) -> str:
    """How many of its tasks are how: `3 of 100 well, 1 not, 10 running, 86 to come`. Of a workflow: of its nodes."""
    if group.nodes:
        from gridhypervisor.cli import dag

        return dag.counted(group)
    if group.infrastructure is not None:
        return f"{group.well} of {group.total} VMs ready"
    counts = {JobState(state): count for state, count in group.counts.items()}
    bad = sum(count for state, count in counts.items() if state.final) - group.well
    words = [f"{group.well} of {group.total} well"]
    words += [f"{bad} not"] if bad else []
    words += [f"{counts[state]} {state}" for state in _ORDER if counts.get(state)]
    left = group.total - group.made
    words += [f"{left} to come" if group.wish == "run" else f"{left} never begun"] if left else []
    return ", ".join(words)


def state(group: GroupView) -> str:
    """A group's state in its colour; done, with a task that did not end well, is not green."""
    if group.infrastructure is not None:
        colours = {InfrastructureState.READY: GREEN, InfrastructureState.FAILED: RED}
        return paint(
            str(group.infrastructure), colours.get(group.infrastructure, None if group.state.final else YELLOW)
        )
    if group.state is JobState.DONE and group.first_bad is not None:
        return paint("done", YELLOW)
    colour = {JobState.DONE: GREEN, JobState.FAILED: RED, JobState.CANCELLED: None}.get(group.state, YELLOW)
    return paint(str(group.state), colour)


def line(group: GroupView) -> Line:
    cancelled = "being cancelled: " if group.wish != "run" else ""
    return Line(group.id, cancelled + counted(group), plain(group.note), over=group.state.final)


def exit_code(group: GroupView) -> int:
    """A workflow's own; an array's is that of the first task that did not end well."""
    if group.state is JobState.CANCELLED:
        return exits.Exit.CANCELLED
    if group.exit_code is not None:
        return group.exit_code
    if group.infrastructure is not None and group.state is JobState.FAILED:
        return exits.Exit.INFRASTRUCTURE
    return exits.of_job(group.first_bad) if group.first_bad is not None else exits.Exit.OK


def follow(client: Client, group: str, progress: Progress) -> GroupView:
    """Show how a group gets on until it has ended; returns how it did."""
    told = ""
    for view in client.follow_group(group):
        progress.show_line(line(view))
        bad = view.first_bad
        if bad is not None and bad.id != told:
            told = bad.id
            progress.say(f"{bad.id} {bad.name} {_ending(bad)}")
        if view.state.final:
            return view
    raise AssertionError("a follow stream ends with the group's end")


def tell_end(group: GroupView, *, quiet: bool) -> None:
    """The last word about a group, on stderr."""
    if group.state is JobState.DONE and group.first_bad is None and quiet:
        return
    took = f" after {age(group.ended - group.created)}" if group.ended is not None else ""
    echo(f"{dim('ghv:')} {group.id} {state(group)}{took}: {counted(group)}", err=True)
    if group.first_bad is not None:
        bad = group.first_bad
        echo(f"  the first that did not: {bad.id} {bad.name} {_ending(bad)}", err=True)
        echo(f"  {dim('next:')} {bad.hint or f'ghv show {bad.id}, ghv list {group.id}'}", err=True)


def show(group: GroupView) -> None:
    now = time.time()
    ended = f", ended {ago(now - group.ended)} ago, took {age(group.ended - group.created)}" if group.ended else ""
    bad = group.first_bad
    pairs(
        [
            (_kind(group), f"{bold(group.id)}  {group.name}"),
            ("state", state(group)),
            ("tasks", group.array),
            ("members", _members(group)),
            ("so far", counted(group)),
            ("not well", f"{bad.id} {bad.name} {_ending(bad)}" if bad is not None else ""),
            ("note", plain(group.note)),
            ("image", group.image),
            ("command", " ".join(group.command)),
            ("submitted", f"{ago(now - group.created)} ago{ended}"),
            ("results to", group.destination),
            ("rescue", group.rescue),
        ]
    )
    if group.nodes:
        return
    what, one = ("members", 0) if group.gang is not None else ("tasks", 7)
    echo(dim(f"\nIts {what}: ghv list {group.id}; one of them: ghv show {group.id}.{one}"), err=True)


def explain(client: Client, name: str, output: str) -> None:
    """What the jobs of a group that have not ended do or wait for, those that are alike counted."""
    group, alike = client.group(name), dict[tuple[str, str, str], list[JobView]]()
    before = ""
    while page := client.jobs(states=tuple(map(str, _ORDER)), before=before, group=name, limit=PAGE):
        before = page[-1].id
        for job in page:
            note = "" if job.state is JobState.RUNNING else plain(job.note)  # how far each is, differs
            alike.setdefault((str(job.state), job.site, note), []).append(job)
    found = sorted(alike.items(), key=lambda each: (_ORDER.index(JobState(each[0][0])), -len(each[1])))
    if output != "table":
        counts = [{"state": s, "site": where, "why": why, "jobs": [job.id for job in jobs]}
                  for (s, where, why), jobs in found]  # fmt: skip
        emit({"group": name, "state": group.state, "alike": counts}, output)
        return
    echo(f"{bold(name)}  {state(group)}: {counted(group)}" + (f": {plain(group.note)}" if group.note else ""))
    if found:
        echo()
        rows = [(str(len(jobs)), s, where or "-", jobs[-1].id, why) for (s, where, why), jobs in found[:MOST_TOLD]]
        table(("JOBS", "STATE", "SITE", "FIRST", "WHY"), rows, right=(0,), indent="  ")
        if len(found) > MOST_TOLD:
            echo(dim(f"  and {len(found) - MOST_TOLD} other reasons: ghv explain {name} -o json"))
        echo(f"\n{dim('next:')} ghv explain {found[0][1][-1].id}")


def tell_gang(told: Explanation) -> None:
    """Where the members of a gang are, those that are alike in one line."""
    alike: dict[tuple[str, JobState], list[int]] = {}
    for each in told.members:
        alike.setdefault((each.site, each.state), []).append(int(each.member))
    echo(f"\n{dim('gang:')} {bold(told.group)}, {len(told.members)} members")
    rows = [(site or "-", str(state), numbers(found)) for (site, state), found in alike.items()]
    table(("SITE", "STATE", "MEMBERS"), rows, indent="  ")
    if told.places:
        echo(f"  {dim('would go to')} {places(told.places)}")


def numbers(found: Iterable[int]) -> str:
    """Numbers in order, those that follow one another as one: `0-3, 7`."""
    runs: list[list[int]] = []
    for number in sorted(found):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


def _kind(group: GroupView) -> str:
    return "workflow" if group.nodes else "gang" if group.gang is not None else "array"


def _members(group: GroupView) -> str:
    if group.gang is None:
        return ""
    return f"{group.gang.count} together, {'over several sites' if group.gang.spread else 'at one site'}"


def wait(client: Client, group: str, progress: Progress, answer: Callable[[str], None]) -> GroupView:
    """Until it has ended; `answer` is given the line that says how."""
    end = follow(client, group, progress)
    answer(f"{end.id}  {state(end)}  {counted(end)}")
    return end


def _ending(job: JobView) -> str:
    if job.state is JobState.DONE:
        return f"ended with code {job.exit_code}"
    return f"{job.state}: {plain(job.message) or job.reason}"
