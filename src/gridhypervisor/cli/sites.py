"""`ghv site`: where virtual machines run."""

from __future__ import annotations

import os
import time
from typing import Any

import click

from gridhypervisor.cli import complete, exits
from gridhypervisor.cli.operations import finish, show_checks
from gridhypervisor.cli.output import (
    GREEN,
    RED,
    YELLOW,
    ago,
    bold,
    dim,
    echo,
    emit,
    format_option,
    paint,
    pairs,
    plain,
    table,
)
from gridhypervisor.cli.request import PairType
from gridhypervisor.cli.usage import show_usage
from gridhypervisor.client.launcher import connect
from gridhypervisor.model.states import SiteKind
from gridhypervisor.model.views import SiteRequest, SiteView

_one_site = click.argument("name", metavar="SITE", shell_complete=complete.sites)
_HEALTH = {"up": GREEN, "connecting": YELLOW, "unreachable": RED, "refused": RED}


@click.group()
def site() -> None:
    """Add, check and look after sites."""


@site.command()
@click.argument("name", metavar="SITE")
@click.option("--kind", required=True, type=click.Choice([str(k) for k in SiteKind]), help="Its batch system.")
@click.option("--host", default="", help="Its front-end, reached by SSH.  [default: this machine]")
@click.option("--port", default=22, show_default=True, type=click.IntRange(1, 65535))
@click.option("--user", default="", help="Your login there.")
@click.option("--key", default="", metavar="FILE", help="A private key.  [default: your agent's, then your usual ones]")
@click.option("--known-hosts", default="", metavar="FILE", help="Its host key.  [default: ~/.ssh/known_hosts]")
@click.option("--workdir", default="", metavar="DIR", help="Where on the site spool and cache lie.")
@click.option("--scratch", default="", metavar="DIR", help="Node-local scratch.  [default: the job's TMPDIR, or /tmp]")
@click.option("--slots", default=0, type=click.IntRange(0), help="fork: jobs at once.  [default: one per core]")
@click.option("--max-jobs", default=0, type=click.IntRange(0), help="Jobs of ours in its queue at once.")
@click.option(
    "--option",
    "options",
    multiple=True,
    type=PairType(),
    metavar="KEY=VALUE",
    help="For its batch system: partition, queue, account, pe, native, … (docs/sites.md). May be repeated.",
)
@click.option(
    "--env",
    "environment",
    multiple=True,
    type=PairType(),
    metavar="KEY=VALUE",
    help="For its batch system's commands. May be repeated.",
)
@format_option
def add(kind: str, output: str, **given: Any) -> None:
    """Add a SITE: an account of yours at a batch system.

    \b
    ghv site add cluster --kind slurm --host login.example.org --user me --option partition=short
    """
    for pairs_given in ("options", "environment"):
        given[pairs_given] = dict(given[pairs_given])
    for path in ("key", "known_hosts"):
        given[path] = os.path.abspath(os.path.expanduser(given[path])) if given[path] else ""
    added = connect().add_site(SiteRequest(kind=SiteKind(kind), **given))
    if output != "table":
        emit(added, output)
    else:
        echo(f"{added.name}  added; see what it can do: ghv site check {added.name}")


@site.command("list")
@format_option
def list_sites(output: str) -> None:
    """List sites."""
    found = connect().sites()
    if output != "table":
        emit(found, output)
        return
    rows = [
        (
            s.name,
            str(s.kind),
            s.address,
            _health(s),
            str(s.queued),
            str(s.running),
            str(s.max_jobs or "-"),
            plain(s.health_why),
        )
        for s in found
    ]
    table(
        ("SITE", "KIND", "ADDRESS", "HEALTH", "QUEUED", "RUNNING", "MAX", "WHY"), rows, right=(4, 5, 6), one_line=True
    )


def _health(view: SiteView) -> str:
    return paint(view.health, _HEALTH.get(view.health))


@site.command()
@_one_site
@format_option
def show(name: str, output: str) -> None:
    """Show a site."""
    found = connect().site(name)
    if output != "table":
        emit(found, output)
        return
    since = f"  {dim(f'for {ago(time.time() - found.health_since)}')}" if found.health_since else ""
    pairs(
        [
            ("site", bold(found.name)),
            ("kind", str(found.kind)),
            ("address", found.address),
            ("health", _health(found) + since),
            ("why", found.health_why),
            ("batch system", found.batch_system),
            ("workdir", found.workdir),
            ("jobs", f"{found.queued} queued, {found.running} running"),
            ("most at once", str(found.max_jobs or "")),
            ("options", "\n".join(f"{key}={value}" for key, value in found.options.items())),
        ]
    )


@site.command()
@_one_site
@format_option
def check(name: str, output: str) -> int:
    """Ask a site now what it can do; exits with 75 if something does not hold."""
    client = connect()
    return show_checks(finish(client, client.check_site(name)), output, otherwise=exits.Exit.INFRASTRUCTURE)


@site.command()
@_one_site
@click.option(
    "--abandon", is_flag=True, help="It is gone for good: end its jobs without it, and leave there what is there."
)
def remove(name: str, abandon: bool) -> None:
    """Forget a site. Refused while jobs are there."""
    connect().remove_site(name, abandon=abandon)
    echo(f"{name}  removed")


@site.command()
@click.argument("name", metavar="SITE", required=False, shell_complete=complete.sites)
@format_option
def usage(name: str | None, output: str) -> None:
    """Show who uses how much of the account at a SITE (of all, by default), and what its lender allows."""
    client = connect()
    found = [client.site_usage(each) for each in ([name] if name else [s.name for s in client.sites()])]
    if output != "table":
        emit(found[0] if name else found, output)
        return
    for each in found:
        show_usage(each)
