"""The verbs about jobs that exist: list, show, logs, events, wait, cancel, delete, explain, recover, move."""

from __future__ import annotations

import os
import shlex
import sys
import time
from collections.abc import Sequence

import click

from gridhypervisor.cli import complete, exits, groups
from gridhypervisor.cli.output import (
    FORETOLD,
    GREEN,
    ago,
    bar,
    bold,
    dim,
    doing,
    echo,
    emit,
    emit_item,
    fit,
    foretold,
    format_option,
    paint,
    pairs,
    plain,
    state,
    table,
)
from gridhypervisor.cli.output import age as length
from gridhypervisor.cli.progress import Progress
from gridhypervisor.client.launcher import connect
from gridhypervisor.client.sync import Client
from gridhypervisor.model.ledger import Ledger
from gridhypervisor.model.states import InfrastructureState, JobState
from gridhypervisor.model.views import (
    CheckpointView,
    EventView,
    FollowKind,
    GroupView,
    HandOverView,
    JobDetail,
    JobView,
)

_PARTS = {"w": "node", "g": "member", "a": "task", "i": "VM"}
"""What a job is called in its group, by the first letter of the group's id."""

_one_job = click.argument("job", shell_complete=complete.jobs)
WHY = 128
"""Columns for a line of why the hypervisor was chosen; `ghv explain` shows all of it."""

_some_jobs = click.argument("jobs", nargs=-1, required=True, shell_complete=complete.jobs)


@click.command("list")
@click.argument("group", default="", metavar="[GROUP]")
@click.option(
    "--state",
    "states",
    multiple=True,
    type=click.Choice([str(s) for s in JobState]),
    help="Only jobs in this state. May be repeated.",
)
@click.option("--site", default="", metavar="SITE", shell_complete=complete.sites, help="Only jobs at this site.")
@click.option("--before", default="", metavar="JOB", help="Only jobs older than this one.")
@click.option("--limit", default=50, show_default=True, type=click.IntRange(1, 1000), metavar="N")
@format_option
def list_jobs(group: str, states: tuple[str, ...], site: str, before: str, limit: int, output: str) -> None:
    """List jobs, newest first; those of an array, gang or workflow in one line, unless GROUP or a filter asks for them.

    Also: ghv ls.
    """
    client = connect()
    if group and not groups.is_job(group):
        group = groups.known(client, group)
    if group and not groups.is_group(group):
        raise click.UsageError(
            f"{group} is no array, like a12, no gang, like g12, no workflow, like w12, and no infrastructure. "
            f"Of a job: ghv show {group}"
        )
    if group:
        client.group(group)  # raises that there is none
    found: list[JobView | GroupView] = []
    whole = not (group or states or site)
    of = "" if whole else group or None
    at = before
    while len(found) < limit and (page := client.jobs(states=states, before=at, group=of, limit=limit)):
        found += [job for job in page if site in ("", job.site)][: limit - len(found)]
        at = page[-1].id
        if len(page) < limit:
            break
    if whole:
        found += client.groups(before=before, limit=limit)
        found = sorted(found, key=lambda each: -int(each.id[1:]))[:limit]
    if output != "table":
        emit(found, output)
        return
    if not found:
        filtered = not whole or before
        echo("No such jobs." if filtered else "No jobs. Start one with: ghv run --image NAME -- COMMAND", err=True)
        return
    now = time.time()
    table(
        ("ID", "NAME", "STATE", "SITE", "AGE", "WHAT"),
        [
            (each.id, each.name, state(each), each.site or "-", ago(now - each.created), _what(each))
            if isinstance(each, JobView)
            else (each.id, each.name, groups.state(each), "-", ago(now - each.created), groups.counted(each))
            for each in found
        ],
        one_line=True,
    )
    if len(found) == limit:
        echo(dim(f"Older ones: ghv list {f'{group} ' if group else ''}--before {found[-1].id}"), err=True)


def _what(job: JobView) -> str:
    """One line: what a job is doing, or how it ended."""
    if job.state is JobState.FAILED:
        return f"{job.reason}: {plain(job.message)}" if job.message else str(job.reason)
    if job.state.final:
        took = f"took {length(job.ended - job.created)}" if job.ended is not None else ""
        message = plain(job.message)
        return f"{message} ({took})" if message and took else message or took
    return f"{doing(job)}: {plain(job.note)}" if job.note else doing(job)


@click.command()
@_one_job
@click.option("--dot", is_flag=True, help="Draw a workflow as it is now, for Graphviz.")
@format_option
def show(job: str, dot: bool, output: str) -> None:
    """Show a job, an array, a gang, a workflow or an infrastructure: state, attempts, and where the time went."""
    client = connect()
    job = groups.known(client, job)
    if groups.is_infrastructure(job):
        from gridhypervisor.cli import infrastructures  # what few need

        view = client.infrastructure(job)
        infrastructures.show(view) if output == "table" else emit(view, output)
        return
    if groups.is_group(job):
        _show_group(client, job, dot, output)
        return
    if dot:
        raise click.UsageError("Only a workflow can be drawn; they are named w12.")
    detail = client.job(groups.job_of(client, job))
    if output != "table":
        emit(detail, output)
        return
    _show_job(detail)
    if detail.attempts:
        _show_attempts(detail)
    if detail.checkpoints:
        _show_checkpoints(detail.checkpoints)
    if detail.ledger is not None:
        _show_ledger(detail.ledger)
    if detail.outputs:
        folder = detail.job.destination
        echo(f"\n{bold('Results')} in {folder}" if folder else f"\n{bold('Results')}, kept: ghv fetch {detail.job.id}")
        for path in detail.outputs:
            echo(f"  {os.path.relpath(path, folder) if folder else path}")
    if detail.job.hint:
        echo(f"\n{dim('next:')} {detail.job.hint}")


def _show_group(client: Client, name: str, dot: bool, output: str) -> None:
    group = client.group(name)
    if output != "table" and not dot:
        emit(group, output)
        return
    if not group.nodes:
        groups.show(group)
        return
    from gridhypervisor.cli import dag  # what draws takes its time to import

    progress = client.workflow(name)
    if dot:
        dag.show_dot(progress)
        return
    groups.show(group)
    echo()
    echo(dag.drawn(progress), newline=False)


def _show_job(detail: JobDetail) -> None:
    job, now = detail.job, time.time()
    wants = detail.spec.resources
    ended = f", ended {ago(now - job.ended)} ago, took {length(job.ended - job.created)}" if job.ended else ""
    code = f", exit code {job.exit_code}" if job.exit_code is not None and not job.state.final else ""
    pairs(
        [
            ("job", f"{bold(job.id)}  {job.name}" if job.name != job.id else bold(job.id)),
            ("state", state(job) + code + (f"  {dim(doing(job))}" if doing(job) != job.state else "")),
            ("waiting for" if job.state in (JobState.PENDING, JobState.QUEUED) else "note", plain(job.note)),
            ("reason", f"{job.reason}" if job.reason and job.reason != "exited" else ""),
            ("why", "\n".join(map(plain, job.message.splitlines()))),
            ("image", f"{job.image}  {dim(job.image_digest[:12])}"),
            ("command", shlex.join(job.command)),
            ("wants", f"{wants.cpus} cpu, {wants.memory} memory, {wants.scratch} scratch, {wants.walltime} walltime"),
            ("site", job.site),
            (_PARTS.get(job.group[:1], ""), f"{job.member} of {job.group}" if job.group else ""),
            ("submitted", f"{ago(now - job.created)} ago{ended}"),
            ("handed over", _handed_over(detail.handovers)),
            ("results to", "" if detail.outputs else job.destination),
        ]
    )


def _handed_over(cost: HandOverView | None) -> str:
    """From batch job to batch job."""
    if cost is None:
        return ""
    still = f"its guest stood still for {cost.stood:.1f} s in all"
    twice = f"; {cost.double:.0f} core-seconds were billed twice" if cost.double >= 0.5 else ""
    return f"{cost.times} time{'s' * (cost.times != 1)}; {still}{twice}"


def _show_attempts(detail: JobDetail) -> None:
    echo(f"\n{bold('Attempts')}")
    rows = []
    whys = []
    for a in detail.attempts:
        note = plain(a.message) or (f"{plain(a.note)} ({ago(a.note_age)} ago)" if a.note else "")
        doing_now = f"{a.state}: {a.phase}" if a.phase else str(a.state)
        hypervisor, _, why = a.hypervisor.partition(":")
        if a.restored:
            note = f"from {a.restored}" + (f"; {note}" if note else "")
        rows.append((a.id, a.site, a.batch_id or "-", a.node or "-", doing_now, hypervisor or "-", note))
        if why.strip() and a.hypervisor not in whys:
            whys.append(a.hypervisor)
    table(("ID", "SITE", "BATCH JOB", "NODE", "STATE", "HYPERVISOR", "NOTE"), rows, indent="  ")
    for why in whys:
        for part in plain(why).split("; "):
            echo(f"  {dim(fit(part, WHY))}")


def _show_checkpoints(checkpoints: Sequence[CheckpointView]) -> None:
    echo(f"\n{bold('Checkpoints')}")
    now = time.time()
    rows = [
        (c.id, c.site, ago(now - c.made), length(c.executed), str(c.state), "" if c.copy == "none" else str(c.copy))
        for c in checkpoints
    ]
    table(("ID", "SITE", "MADE", "RAN", "STATE", "COPY"), rows, indent="  ")


def _show_ledger(ledger: Ledger) -> None:
    echo(f"\n{bold('Where the time went')}")
    several = len({row.attempt for row in ledger.rows}) > 1
    rows = []
    for row in ledger.rows:
        share = row.seconds / ledger.wall if ledger.wall else 0.0
        name = f"{row.attempt}  {row.phase}" if several else row.phase
        blocks = dim(bar(share)) if row.phase == "middleware" else paint(bar(share), GREEN)
        rows.append((name, f"{row.seconds:.2f}", f"{share:.1%}", blocks))
    rows.append((bold("wall"), bold(f"{ledger.wall:.2f}"), "", ""))
    table(("PHASE", "SECONDS", "SHARE", ""), rows, right=(1, 2), indent="  ")
    if ledger.boot:
        echo(f"  {dim('boot:')} {plain(ledger.boot)}")
    if ledger.cpu:
        echo(f"  {dim('CPU seconds:')} " + ", ".join(f"{name} {seconds:.2f}" for name, seconds in ledger.cpu.items()))
    if ledger.operations:
        echo(f"\n{bold('Predicted, and real')}")
        done = [foretold(row) for row in ledger.operations]
        if several:
            done = [
                (f"{row.attempt}  {name}", *rest) for row, (name, *rest) in zip(ledger.operations, done, strict=True)
            ]
        table(FORETOLD, done, right=(1, 2, 3, 4, 5), indent="  ")


@click.command()
@_one_job
@click.option("-f", "--follow", "following", is_flag=True, help="Go on until the job has ended.")
@click.option(
    "--stream",
    type=click.Choice(["stdout", "stderr", "console", "pilot", "batch"]),
    help="One log alone; console is the guest's, pilot and batch the node's.  [default: stdout and stderr]",
)
def logs(job: str, following: bool, stream: str | None) -> None:
    """Print what a job's program printed."""
    client = connect()
    job = groups.job_of(client, job)
    if following and stream not in (None, "stdout", "stderr"):
        raise click.UsageError("Only stdout and stderr can be followed.")
    if not following:
        for name in (stream,) if stream else ("stdout", "stderr"):
            _copy_log(client, job, name)
        return
    for item in client.follow(job):
        if item.kind is FollowKind.OUTPUT and stream in (None, item.stream):
            _write(item.stream, item.data)


def _copy_log(client: Client, job: str, name: str) -> None:
    offset = 0
    while data := client.log(job, name, offset=offset):
        _write(name, data)
        offset += len(data)


def _write(stream: str, data: bytes) -> None:
    out = (sys.stderr if stream == "stderr" else sys.stdout).buffer
    out.write(data)
    out.flush()


@click.command()
@click.argument("job", default="", shell_complete=complete.jobs)
@click.option("-w", "--watch", is_flag=True, help="Go on as they happen, until the JOB has ended.")
@click.option("--after", default=0, type=click.IntRange(0), metavar="N", help="Only events above this sequence number.")
@format_option
def events(job: str, watch: bool, after: int, output: str) -> None:
    """Print each change of a job, or of all jobs: when, and why."""
    client = connect()
    job = groups.known(client, job) if job else job
    if job and not groups.is_group(job):
        job = groups.job_of(client, job)
    if job and not client.events(after=0, job=job):
        client.group(job) if groups.is_group(job) else client.job(job)  # raises that there is none
    if watch:
        for event in client.watch_events(after=after, job=job):
            echo(_event_line(event)) if output == "table" else emit_item(event, output)
            sys.stdout.flush()
            if job and event.kind in ("job", "group") and event.after in _ENDINGS:
                return
        return
    found: list[EventView] = []
    while page := client.events(after=found[-1].sequence if found else after, job=job):
        found += page
    if output != "table":
        emit(found, output)
        return
    for event in found:
        echo(_event_line(event))


_ENDINGS = {str(state) for states in (JobState, InfrastructureState) for state in states if state.final}


def _event_line(event: EventView) -> str:
    at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(event.at))
    change = f"{event.before} → {event.after}" if event.before else event.after
    why = ": ".join(filter(None, (event.reason, plain(event.message))))
    subject = event.subject if event.subject == event.job or not event.job else f"{event.job} {event.subject}"
    line = f"{dim(at)}  {dim(str(event.sequence).rjust(5))}  {event.kind} {subject}  {change}"
    return f"{line}  {dim(why)}" if why else line


@click.command()
@_some_jobs
@format_option
def wait(jobs: tuple[str, ...], output: str) -> int:
    """Wait until jobs, arrays, gangs, workflows and infrastructures have ended, and exit as they did.

    The exit code is that of the first of them that did not end well.
    """
    client = connect()
    code = 0
    ended: list[JobView | GroupView] = []
    with Progress(drawn_alone=True) as progress:
        for job in groups.jobs_of(client, jobs):
            if groups.is_group(job):
                answer = progress.print if output == "table" else (lambda line: None)
                ended.append(end := groups.wait(client, job, progress, answer))
                code = code or groups.exit_code(end)
                continue
            for item in client.follow(job, output=False):
                if item.job is not None:
                    progress.show(item.job)
                if item.kind is FollowKind.END and item.job is not None:
                    ended.append(item.job)
                    code = code or exits.of_job(item.job)
                    if output == "table":
                        progress.print(f"{item.job.id}  {state(item.job)}  {_what(item.job)}".rstrip())
    if output != "table":
        emit(ended, output)
    return code


@click.command()
@_some_jobs
@format_option
def cancel(jobs: tuple[str, ...], output: str) -> None:
    """End jobs, arrays, gangs, workflows or infrastructures. Results so far come home; the records stay."""
    client = connect()
    named = groups.jobs_of(client, jobs)
    _say_each([client.cancel_group(job) if groups.is_group(job) else client.cancel(job) for job in named], output)


@click.command()
@_some_jobs
@format_option
def recover(jobs: tuple[str, ...], output: str) -> None:
    """Try again now what is stuck."""
    client = connect()
    named = groups.jobs_of(client, jobs)
    asked = [client.recover_group(job) if groups.is_group(job) else client.recover(job) for job in named]
    _say_each(asked, output, recovered=True)


@click.command()
@_some_jobs
@click.option(
    "--to", default="", metavar="SITE", shell_complete=complete.sites, help="There, and nowhere else from now on."
)
@format_option
def move(jobs: tuple[str, ...], to: str, output: str) -> None:
    """Have jobs leave their sites for others. A program that runs is ended, and begins anew there.

    Its inputs go there again, and its `restart_files` as they are then. Of results nothing comes home yet.
    With --to a guest that can be saved is not ended: it goes on there where it stood.
    """
    client = connect()
    _say_each([client.move(groups.job_of(client, job), to) for job in jobs], output)


def _say_each(jobs: list[JobView | GroupView], output: str, *, recovered: bool = False) -> None:
    """`recovered`: what was stuck is tried again. Of a job that has ended that can be the way of its results home."""
    if output != "table":
        emit(jobs, output)
        return
    for job in jobs:
        if isinstance(job, GroupView):
            echo(f"{job.id}  {groups.line(job).words if not job.state.final else job.state}")
            continue
        words = doing(job)
        if recovered and job.state.final:
            words += "; trying again to bring the results home" if job.note else "; nothing of it is stuck"
        echo(f"{job.id}  {words}")


@click.command()
@_some_jobs
def delete(jobs: tuple[str, ...]) -> None:
    """End jobs, arrays, gangs, workflows or infrastructures and forget them; results stay. Also: ghv rm."""
    client = connect()
    for job in groups.jobs_of(client, jobs):
        client.delete_group(job) if groups.is_group(job) else client.delete(job)
        echo(f"{job}  deleted")


@click.command()
@_one_job
@format_option
def explain(job: str, output: str) -> None:
    """Say why a job is where it is, site by site; of a gang, where its members are or would go.

    Of an array or a workflow: what its jobs wait for, those that wait for the same in one line.
    """
    client = connect()
    job = groups.known(client, job)
    if groups.is_group(job) and not groups.is_gang(job):
        groups.explain(client, job, output)
        return
    explanation = client.explain(groups.job_of(client, f"{job}.0" if groups.is_gang(job) else job))
    if output != "table":
        emit(explanation, output)
        return
    echo(f"{bold(explanation.job)}  {plain(explanation.summary)}")
    if explanation.candidates:
        echo()
        rows = []
        for candidate in explanation.candidates:
            mark = paint("chosen", GREEN) if candidate.chosen else dim("no")
            rank = "-" if candidate.rank is None else f"{candidate.rank:g}"
            ready = "-" if candidate.ready is None else f"{candidate.ready:.1f} s"
            rows.append((candidate.site, mark, rank, ready, plain(candidate.verdict)))
        table(("SITE", "CHOSEN", "RANK", "READY", "WHY"), rows, right=(3,), indent="  ")
    if explanation.members:
        groups.tell_gang(explanation)
    if explanation.turn:
        echo(f"\n{dim('its turn:')} {explanation.turn}")
    if explanation.warning:
        echo(f"\n{dim('warning:')} {plain(explanation.warning)}")
    if explanation.hypervisor:
        echo(f"\n{dim('hypervisor:')} {plain(explanation.hypervisor)}")
    if explanation.boot:
        echo(f"{dim('boot:')} {plain(explanation.boot)}")
    if explanation.hint:
        echo(f"\n{dim('next:')} {explanation.hint}")
