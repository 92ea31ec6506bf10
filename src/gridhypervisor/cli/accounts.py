"""`ghv accounting` and `ghv history`: who used how much, and what became of each attempt of a job."""

from __future__ import annotations

import time
from datetime import datetime
from typing import get_args

import click

from gridhypervisor.cli import complete, groups
from gridhypervisor.cli.output import FORETOLD, age, bold, dim, echo, emit, foretold, format_option, plain, table
from gridhypervisor.client.launcher import connect
from gridhypervisor.model.accounts import Account, AttemptHistory, By
from gridhypervisor.model.spec import parse_duration


class MomentType(click.ParamType[float]):
    """A time, in seconds since the epoch: a duration before now, or a date with or without a time of day here."""

    name = "when"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        text = str(value)
        try:
            return max(0.0, time.time() - parse_duration(text))
        except ValueError:
            pass
        try:
            return max(0.0, datetime.fromisoformat(text).timestamp())
        except (ValueError, OverflowError, OSError):
            self.fail(f"{text!r} is neither a time before now, like 7d or 12h, nor a date, like 2026-11-01", param, ctx)


MOMENT = MomentType()


@click.command()
@click.option(
    "--by",
    "names",
    multiple=True,
    type=click.Choice(get_args(By)),
    help="What to keep apart. May be repeated.  [default: user]",
)
@click.option("--since", type=MOMENT, metavar="WHEN", help="Attempts that ended after: 7d ago, or a date, 2026-11-01.")
@click.option("--until", type=MOMENT, metavar="WHEN", help="Attempts that ended before.  [default: now]")
@format_option
def accounting(names: tuple[By, ...], since: float | None, until: float | None, output: str) -> None:
    """Add up what attempts have used: by user, project, site, profile (single, array, gang, workflow) or reason.

    \b
    ghv accounting --by user --by site --since 30d

    Each attempt that is over counts, whole, when it ended, whatever became of its job; also of jobs that were deleted.
    Core-hours are the cores that it asked for, as long as it ran; TWICE are those of them that a job's next batch job
    took while the one before it still ran.
    """
    found = connect().accounting(names or ("user",), since=since or 0.0, until=until)
    if output != "table":
        emit(found, output)
        return
    if not found.total.attempts:
        echo("No attempt has ended" + (" in that time." if since or until else " yet."), err=True)
        return
    heads = [*(name.upper() for name in found.by), "JOBS", "ATTEMPTS", "COMPLETED", "WAITED", "HOURS", "CORE-HOURS"]
    heads += ["TWICE"] * (found.total.double_hours > 0)
    rows = [_account([account.of[name] or "-" for name in found.by], account) for account in found.accounts]
    if len(found.accounts) > 1:
        total = ["all", *[""] * (len(found.by) - 1)]
        rows.append(tuple(bold(word) if word else "" for word in _account(total, found.total)))
    rows = [row[: len(heads)] for row in rows]
    table(heads, rows, right=tuple(range(len(found.by), len(heads))))
    if sum(account.attempts for account in found.accounts) < found.total.attempts:
        echo(
            dim(f"Only the {len(found.accounts)} with the most core-hours; --since and --until show others."), err=True
        )


def _account(names: list[str], account: Account) -> tuple[str, ...]:
    mean = account.waited / account.attempts if account.attempts else 0.0
    counts = (str(count) for count in (account.jobs, account.attempts, account.completed))
    hours = (f"{each:.2f}" for each in (account.hours, account.core_hours, account.double_hours))
    return (*map(plain, names), *counts, age(mean), *hours)


@click.command()
@click.argument("job", shell_complete=complete.jobs)
@format_option
def history(job: str, output: str) -> None:
    """Show what became of each attempt of a JOB: its phases at each site, when each began, and why it ended."""
    client = connect()
    found = client.history(groups.job_of(client, job))
    if output != "table":
        emit(found, output)
        return
    echo(f"{bold(found.job)}  {plain(found.name)}, handed in {_at(found.created)}")
    for attempt in found.attempts:
        echo(f"\n{bold(f'attempt {attempt.attempt}')} at {attempt.site}{_where(attempt)}: {_how(attempt)}")
        rows = [(_at(stage.at), stage.phase, f"{stage.seconds:.2f}") for stage in attempt.stages]
        table(("BEGAN", "PHASE", "SECONDS"), rows, right=(2,), indent="  ")
        if attempt.operations:
            table(FORETOLD, map(foretold, attempt.operations), right=(1, 2, 3, 4, 5), indent="  ")
    if not found.attempts:
        echo("no site has been given it yet; why: " + bold(f"ghv explain {found.job}"))


def _where(attempt: AttemptHistory) -> str:
    """Node, batch job and hypervisor, as far as they are known."""
    parts = (
        ("node", attempt.node),
        ("batch job", attempt.batch_id),
        ("under", attempt.hypervisor),
    )
    return "".join(f", {what} {plain(word)}" for what, word in parts if word)


def _how(attempt: AttemptHistory) -> str:
    words = str(attempt.reason or attempt.phase or attempt.state)
    return f"{words}: {plain(attempt.message)}" if attempt.message else words


def _at(moment: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(moment))
