"""Jobs of a service on another machine: their inputs go there first, and their results are fetched from it."""

from __future__ import annotations

import os
import re
from pathlib import Path

import click
import msgspec

from gridhypervisor.cli import complete, exits, groups
from gridhypervisor.cli.output import dim, echo, emit, format_option
from gridhypervisor.client import files
from gridhypervisor.client.launcher import connect
from gridhypervisor.client.sync import Client
from gridhypervisor.model.arrays import home_of, task_values, tasks_of
from gridhypervisor.model.spec import InputSpec, JobSpec
from gridhypervisor.model.views import JobDetail, JobRequest, JobView

_URL = re.compile(r"[a-z][a-z0-9+.-]*://")


def send_inputs(client: Client, request: JobRequest, *, quiet: bool) -> JobRequest:
    """The request as it can be made elsewhere: its files are sent, and named by what is in them.

    Raises:
        click.UsageError: which files are meant is not known here.
    """
    inputs: list[str | InputSpec] = []
    for item in request.spec.inputs:
        each = InputSpec(path=item) if isinstance(item, str) and not _URL.match(item) else item
        if isinstance(each, str) or not each.path:
            inputs.append(each)
            continue
        if "${" in each.path:
            why = "name its files one by one, or the folder that holds them"
            raise click.UsageError(
                f"{each.path} stands for another file in each task, and the service is elsewhere: {why}."
            )
        inputs += files.send_input(client, each, Path(request.folder), _tell(quiet, "sending"))
    spec = msgspec.structs.replace(request.spec, inputs=tuple(inputs))
    return msgspec.structs.replace(request, spec=spec, folder="", destination="")


def fetch_results(client: Client, detail: JobDetail, folder: str, *, quiet: bool) -> JobDetail:
    """The job with its results here."""
    found = files.fetch(client, detail.job.id, Path(folder), _tell(quiet, "fetching"))
    job = msgspec.structs.replace(detail.job, destination=folder)
    return msgspec.structs.replace(detail, job=job, outputs=tuple(map(str, found)))


def home_of_task(spec: JobSpec, home: str, group: str, job: JobView) -> str:
    """Where the results of a task of an array go, by the rule that holds at the service too."""
    values = task_values(tasks_of(spec), int(job.member), array_id=group, job_id=job.id, sweep=spec.param)
    return home_of(spec, home, values)


def _tell(quiet: bool, doing: str) -> files.Tell:
    def tell(name: str, done: int, size: int) -> None:
        if not quiet and size > files.PIECE:
            echo(f"{dim('ghv:')} {doing} {name}: {done >> 20} of {size >> 20} MiB", err=True)

    return tell


@click.command()
@click.argument("jobs", metavar="JOB…", nargs=-1, required=True, shell_complete=complete.jobs)
@click.option("--to", "destination", metavar="DIR", default=".", help="Where the results go.  [default: here]")
@click.option("-q", "--quiet", is_flag=True, help="No progress.")
@format_option
def fetch(jobs: tuple[str, ...], destination: str, quiet: bool, output: str) -> int:
    """Bring results here that the service keeps: those of jobs that were submitted from another machine.

    Those of an array's tasks go to folders of their numbers, of a gang's members to folders of theirs.
    They stay with the job until it is deleted: to fetch them again does no harm.
    """
    client, folder = connect(), os.path.abspath(destination)
    found: dict[str, list[str]] = {}
    for name in jobs:
        for job in members(client, name) if groups.is_group(name) else [groups.job_of(client, name)]:
            place = Path(folder, client.job(job).job.member) if groups.is_group(name) else Path(folder)
            brought = files.fetch(client, job, place, _tell(quiet, "fetching"))
            found[job] = [str(path) for path in brought]
    if output != "table":
        emit(found, output)
        return exits.Exit.OK
    for job, paths in found.items():
        echo(
            f"{job}  {len(paths)} result{'' if len(paths) == 1 else 's'} in {folder}"
            if paths
            else f"{job}  nothing is kept"
        )
    return exits.Exit.OK


def members(client: Client, group: str) -> list[str]:
    """The jobs of an array, a gang or a workflow, first to last."""
    found: list[str] = []
    before = ""
    while page := client.jobs(group=group, before=before, limit=1000):
        found += [job.id for job in page]
        before = page[-1].id
    return found[::-1]
