"""`ghv site`: where virtual machines run."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable
from typing import Any, TypeVar

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
    say_warning,
    size,
    table,
)
from gridhypervisor.cli.request import DURATION, PairType
from gridhypervisor.cli.usage import show_usage
from gridhypervisor.client.launcher import connect
from gridhypervisor.model.spec import parse_duration
from gridhypervisor.model.states import SiteHealth, SiteKind
from gridhypervisor.model.views import PATIENCE, Problem, ServiceError, SiteChange, SiteRequest, SiteView

F = TypeVar("F", bound=Callable[..., Any])

_one_site = click.argument("name", metavar="SITE", shell_complete=complete.sites)
_HEALTH = {
    SiteHealth.UP: GREEN,
    SiteHealth.CONNECTING: YELLOW,
    SiteHealth.AUTH_NEEDED: YELLOW,
    SiteHealth.UNREACHABLE: RED,
    SiteHealth.REFUSED: RED,
}
_PATHS = ("key", "agent", "ssh_config", "known_hosts")
_PAIRS = {"option": "options", "env": "environment"}
_SETTINGS = (
    click.option("--host", help="Its front-end, as ssh knows it.  [default: this machine]"),
    click.option("--port", type=click.IntRange(1, 65535), help="[default: as ssh_config says, or 22]"),
    click.option("--user", help="Your login there."),
    click.option("--key", metavar="FILE", help="A private key.  [default: your agent's, then your usual ones]"),
    click.option("--agent", metavar="SOCKET", help="An agent.  [default: SSH_AUTH_SOCK when the service started]"),
    click.option("--ssh-config", metavar="FILE", help="[default: ~/.ssh/config]"),
    click.option("--known-hosts", metavar="FILE", help="Its host key.  [default: ~/.ssh/known_hosts]"),
    click.option("--workdir", metavar="DIR", help="Where on the site spool and cache lie.  [default: ~/.ghv]"),
    click.option("--scratch", metavar="DIR", help="Node-local scratch.  [default: the job's TMPDIR, or /tmp]"),
    click.option("--slots", type=click.IntRange(1), help="fork: jobs at once.  [default: one per core]"),
    click.option("--max-jobs", type=click.IntRange(1), help="The most jobs of ours there at once, queued or running."),
    click.option(
        "--option",
        "options",
        multiple=True,
        type=PairType(),
        metavar="KEY=VALUE",
        help="For its batch system: partition, queue, account, pe, native, … (docs/sites.md). May be repeated.",
    ),
    click.option(
        "--env",
        "environment",
        multiple=True,
        type=PairType(),
        metavar="KEY=VALUE",
        help="For its batch system's commands. May be repeated.",
    ),
)
_SUBMITS = {
    SiteKind.SLURM: "sbatch",
    SiteKind.GRIDENGINE: "qsub",
    SiteKind.HTCONDOR: "condor_submit",
    SiteKind.PBS: "qsub",
}
_FIXED = ("kind", *_PAIRS.values())
_RESTORABLE = [name.replace("_", "-") for name in SiteChange.__struct_fields__ if name not in _FIXED]
_KIND = click.Choice([str(kind) for kind in SiteKind])


def _settings(command: F) -> F:
    """Adds the flags that `add` and `edit` share."""
    for option in reversed(_SETTINGS):
        command = option(command)
    return command


def _given(flags: dict[str, Any]) -> dict[str, Any]:
    """What was given, as a request has it."""
    given = {name: value for name, value in flags.items() if value not in (None, "", ())}
    for name in _PATHS:
        if name in given:
            given[name] = os.path.abspath(os.path.expanduser(given[name]))
    for name in _PAIRS.values():
        if name in given:
            given[name] = dict(given[name])
    if "kind" in given:
        given["kind"] = SiteKind(given["kind"])
    return given


@click.group()
def site() -> None:
    """Add, check and look after sites."""


@site.command()
@click.argument("name", metavar="SITE")
@click.option("--kind", required=True, type=_KIND, help="Its batch system.")
@_settings
@format_option
def add(name: str, output: str, **flags: Any) -> None:
    """Add a SITE: an account of yours at a batch system.

    \b
    ghv site add cluster --kind slurm --host login.example.org --user me --option partition=short
    """
    added = connect().add_site(SiteRequest(name, **_given(flags)))
    if not flags["host"] and added.kind in _SUBMITS:
        say_warning(f"without --host its jobs are submitted on this machine, by its own {_SUBMITS[added.kind]}")
    _tell(added, output, f"added; see what it can do: ghv site check {added.name}")


@site.command()
@_one_site
@click.option("--kind", type=_KIND, help="Its batch system.")
@_settings
@click.option(
    "--unset",
    multiple=True,
    metavar="SETTING",
    help="Restore a setting's default: its flag's name, option:KEY or env:KEY. May be repeated.",
)
@format_option
def edit(name: str, output: str, unset: tuple[str, ...], **flags: Any) -> None:
    """Change settings of a SITE.

    They hold from the next connection, which is made at once, and the next job on. Jobs that are there go on; while
    there are any, kind, host, port, user and workdir stay as they are.

    \b
    ghv site edit cluster --max-jobs 20 --option qos=long --unset option:account
    """
    change = _given(flags)
    for word in unset:
        name_of, _, key = word.partition(":")
        if key and name_of in _PAIRS:
            change.setdefault(_PAIRS[name_of], {})[key] = None
        elif word in _RESTORABLE:
            change[word.replace("-", "_")] = None
        else:
            raise click.UsageError(f"--unset {word}: give {', '.join(_RESTORABLE)}, option:KEY or env:KEY")
    if not change:
        raise click.UsageError("Say what to change: ghv site edit --help shows the settings.")
    edited = connect().edit_site(name, SiteChange(**change))
    _tell(edited, output, f"changed; see what it can do now: ghv site check {name}")


def _tell(view: SiteView, output: str, words: str) -> None:
    if output != "table":
        emit(view, output)
    else:
        echo(f"{view.name}  {words}")


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
    heads = ("SITE", "KIND", "ADDRESS", "HEALTH", "QUEUED", "RUNNING", "MAX JOBS", "WHY")
    table(heads, rows, right=(4, 5, 6), one_line=True)


def _health(view: SiteView) -> str:
    health = paint(view.health, _HEALTH[view.health])
    return f"{health}, {paint('draining', YELLOW)}" if view.draining else health


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
            ("draining", f"takes no new work until: ghv site drain {name} --undo" if found.draining else ""),
            ("batch system", found.batch_system),
            ("workdir", found.workdir or (found.settings.workdir if found.settings else "")),
            ("jobs", f"{found.queued} queued, {found.running} running"),
            ("max jobs", str(found.max_jobs or "")),
            ("submissions", found.submissions),
            *_probed(found),
            ("guests' speed", ", ".join(f"{kind} {rate:.0%} of the node's" for kind, rate in found.rates.items())),
            *_set(found.settings),
        ]
    )


def _probed(view: SiteView) -> list[tuple[str, str]]:
    """What the newest probe found."""
    report = view.probed
    if report is None:
        return [("nodes", f"not probed yet: ghv site check {view.name}")]
    return [
        ("a node", f"{plain(report.node)}  {dim(f'as probed {ago(time.time() - view.probed_at)} ago')}"),
        ("processor", plain(f"{report.processor}, {report.cores} cores")),
        ("memory", f"{size(report.memory)}, {size(report.memory_free)} free"),
        ("scratch there", plain(f"{report.scratch}, {size(report.scratch_free)} free")),
        ("hypervisors", "\n".join(plain(str(each)) for each in report.hypervisors)),
        *([("relay from there", plain(str(report.relay)))] if report.relay is not None else []),
    ]


def _set(settings: SiteRequest | None) -> list[tuple[str, str]]:
    """What the user set and no other line shows."""
    if settings is None:
        return []
    lines = [(name.replace("_", " "), str(getattr(settings, name) or "")) for name in (*_PATHS, "scratch", "slots")]
    for name in _PAIRS.values():
        lines.append((name, "\n".join(f"{key}={value}" for key, value in getattr(settings, name).items())))
    return lines


@site.command()
@_one_site
@click.option("--no-probe", is_flag=True, help="Ask its front-end alone: no job.")
@click.option(
    "--timeout", type=DURATION, default=f"{PATIENCE // 60}m", show_default=True, help="For the job, its wait included."
)
@format_option
def check(name: str, no_probe: bool, timeout: str, output: str) -> int:
    """Prove now what a site can do; exits with 75 if something does not hold, with 69 if nobody can tell yet.

    A small batch job, a probe, reports what a guest would find on one of its nodes. It waits in the site's queue like
    any other; what is not known in time is unknown, not wrong. Ctrl-C withdraws it.
    """
    return _check(name, output, patience=0 if no_probe else parse_duration(timeout))


def _check(name: str, output: str, *, patience: int) -> int:
    client = connect()
    operation = client.check_site(name, patience=patience)
    try:
        found = finish(client, operation)
    except KeyboardInterrupt:
        client.stop_operation(operation)
        raise
    return show_checks(found, output, otherwise=exits.Exit.INFRASTRUCTURE)


@site.command()
@_one_site
@click.option("--undo", is_flag=True, help="Give it work again.")
@format_option
def drain(name: str, undo: bool, output: str) -> None:
    """Give a SITE no new work; what it has been given goes on."""
    view = connect().drain_site(name, undo=undo)
    left = f"; it still has {view.queued} queued, {view.running} running" if view.queued + view.running else ""
    _tell(view, output, "takes work again" if undo else f"draining: takes no new work{left}")


@site.command()
@_one_site
@format_option
def login(name: str, output: str) -> int:
    """Log in to a SITE that wants a password or a code from you.

    ssh asks for it here, in your terminal; nothing is kept of it. The connection stays, in the background, and the
    service works through it until it ends.
    """
    client = connect()
    command = client.login_site(name).command
    if not command:
        echo(f"{name}  somebody is logged in already", err=True)
    elif subprocess.call(command) != 0:
        hint = "ssh says above why; `ghv site show` and `ghv site edit` are for what it was told"
        raise ServiceError(Problem(f"log in to site {name}", 403, "refused", "ssh did not get in", hint))
    return _check(name, output, patience=0)


@site.command()
@_one_site
@click.option(
    "--abandon", is_flag=True, help="It is gone for good: end its jobs without it, and leave there what is there."
)
@format_option
def remove(name: str, abandon: bool, output: str) -> None:
    """Forget a SITE. Refused while jobs are there; what waits for it, and for no other, goes on waiting."""
    removed = connect().remove_site(name, abandon=abandon)
    if output != "table":
        emit(removed, output)
    else:
        echo(f"{name}  removed")
    if waiting := removed.waiting:
        some = ", ".join(waiting[:5]) + (", …" if len(waiting) > 5 else "")
        jobs = "1 job waits" if len(waiting) == 1 else f"{len(waiting)} jobs wait"
        say_warning(f"{jobs} for {name} and no other site: {some}; add {name} again, or cancel them")
    if not removed.sites:
        say_warning("no site is left, so no job can run; for this machine: ghv site add local --kind fork")


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
