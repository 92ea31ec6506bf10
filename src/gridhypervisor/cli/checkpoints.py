"""The verbs about guests that stand still or are saved: suspend, resume, pause, unpause, checkpoint."""

from __future__ import annotations

import time

import click

from gridhypervisor.cli import complete, groups
from gridhypervisor.cli.output import age as length
from gridhypervisor.cli.output import ago, dim, doing, echo, emit, format_option, plain, size, table
from gridhypervisor.client.launcher import connect
from gridhypervisor.model.states import CopyState
from gridhypervisor.model.views import JobView

_jobs = click.argument("jobs", nargs=-1, required=True, metavar="JOB...", shell_complete=complete.jobs)
_one = click.argument("checkpoint", metavar="CHECKPOINT", shell_complete=complete.checkpoints)


class WithDefault(click.Group):
    """A group whose first word may be a job instead of a command: then a checkpoint of it is made."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in self.commands and groups.is_job(args[0]):
            return "make", make, args
        return super().resolve_command(ctx, args)


@click.command()
@_jobs
@format_option
def suspend(jobs: tuple[str, ...], output: str) -> None:
    """Have jobs stand still. A guest that runs is saved first, and its place at the site is given free.

    `ghv resume` has them go on from there. What has not begun yet just waits.
    """
    client = connect()
    _say([client.suspend(groups.job_of(client, job)) for job in jobs], output)


@click.command()
@_jobs
@click.option(
    "--to", default="", metavar="SITE", shell_complete=complete.sites, help="There, and nowhere else from now on."
)
@format_option
def resume(jobs: tuple[str, ...], to: str, output: str) -> None:
    """Have suspended jobs go on where they stood.

    With --to the saved guest is brought to another site first, by way of the service's machine.
    """
    client = connect()
    _say([client.resume(groups.job_of(client, job), to) for job in jobs], output)


@click.command()
@_jobs
@format_option
def pause(jobs: tuple[str, ...], output: str) -> None:
    """Have the guests of running jobs stand still in their places, which they keep, and pay for, meanwhile.

    `ghv unpause` has them go on. To give the place free: `ghv suspend`.
    """
    client = connect()
    _say([client.pause(groups.job_of(client, job)) for job in jobs], output, noted=True)


@click.command()
@_jobs
@format_option
def unpause(jobs: tuple[str, ...], output: str) -> None:
    """Have guests that were paused go on, with the time of now."""
    client = connect()
    _say([client.pause(groups.job_of(client, job), undo=True) for job in jobs], output, noted=True)


@click.group(cls=WithDefault, subcommand_metavar="JOB | COMMAND [ARGS]...")
def checkpoint() -> None:
    """Save the guest of a running job, which goes on meanwhile; and look after what was saved.

    \b
    ghv checkpoint JOB...       saves the guests of these jobs
    """


@click.command(hidden=True)
@_jobs
@format_option
def make(jobs: tuple[str, ...], output: str) -> None:
    """Save the guests of running jobs, which go on then."""
    client = connect()
    asked = [client.checkpoint(groups.job_of(client, job)) for job in jobs]
    if output != "table":
        emit(asked, output)
        return
    for job in asked:
        echo(f"{job.id}  its guest is being saved; `ghv checkpoint list {job.id}` shows when that is done")


@checkpoint.command(name="list")
@click.argument("job", default="", metavar="[JOB]", shell_complete=complete.jobs)
@format_option
def list_checkpoints(job: str, output: str) -> None:
    """Show the checkpoints that are kept, newest first."""
    client = connect()
    found = client.checkpoints(groups.job_of(client, job) if job else "")
    if output != "table":
        emit(found, output)
        return
    if not found:
        echo(dim("no checkpoints"))
        return
    now = time.time()
    rows = [
        (
            *(c.id, c.job, c.site, ago(now - c.made), length(c.executed), size(c.bytes)),
            *(str(c.state), "" if c.copy is CopyState.NONE else str(c.copy), plain(c.note)),
        )
        for c in found
    ]
    table(("ID", "JOB", "SITE", "MADE", "RAN", "SIZE", "STATE", "COPY", "NOTE"), rows, right=(5,))


@checkpoint.command(name="delete")
@_one
def delete_checkpoint(checkpoint: str) -> None:
    """Remove a checkpoint, and its copy. Its job goes on from an older one then, or begins anew."""
    connect().delete_checkpoint(checkpoint)
    echo(f"{checkpoint}  deleted")


@checkpoint.command(name="copy")
@_one
@format_option
def copy_checkpoint(checkpoint: str, output: str) -> None:
    """Bring a copy of a checkpoint to the service's machine, so that its job may go on at any site.

    It is sealed before it leaves its site: without its key, which stays with the service, nobody can read it.
    """
    found = connect().copy_checkpoint(checkpoint)
    if output != "table":
        emit(found, output)
        return
    coming = f"is being copied; `ghv checkpoint list {found.job}` shows when that is done"
    echo(f"{checkpoint}  {'a copy is here' if found.copy is CopyState.KEPT else coming}")


@checkpoint.command(name="restore")
@_one
@format_option
def restore(checkpoint: str, output: str) -> None:
    """Have a job go on from this checkpoint. What its program did since then is done again."""
    _say([connect().restore(checkpoint)], output)


def _say(jobs: list[JobView], output: str, *, noted: bool = False) -> None:
    """`noted`: with what the service says of each."""
    if output != "table":
        emit(jobs, output)
        return
    for job in jobs:
        echo(f"{job.id}  {doing(job)}" + (f": {plain(job.note)}" if noted and job.note else ""))
