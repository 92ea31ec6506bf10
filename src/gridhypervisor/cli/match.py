"""`ghv match`, `plan`, `replay` and `node`: where work would go, why it went there, and what sites publish."""

from __future__ import annotations

import time
from typing import Any

import click
import msgspec

from gridhypervisor.cli import complete, exits
from gridhypervisor.cli.output import (
    GREEN,
    YELLOW,
    age,
    ago,
    bold,
    dim,
    echo,
    emit,
    format_option,
    paint,
    places,
    plain,
    size,
    table,
)
from gridhypervisor.cli.request import PairType
from gridhypervisor.client.launcher import connect
from gridhypervisor.model.spec import JobSpec, problems
from gridhypervisor.model.views import Candidate, MatchView, NodeView


@click.command()
@click.option("-f", "--file", metavar="FILE", help="The job's YAML file; - for stdin. Flags override it.")
@click.option("--requirements", metavar="EXPR", help="A ClassAd expression: only sites of which it is true.")
@click.option("--rank", metavar="EXPR", help="Another: the sites where it is higher first.")
@format_option
def match(file: str | None, requirements: str | None, rank: str | None, output: str) -> None:
    """Show which sites a job could go to now, best first, and why not to the others. No job is made.

    \b
    ghv match -f job.yaml
    ghv match --requirements 'Memory >= 2048 && BatchSystem == "slurm"' --rank '-QueueWait'
    """
    spec = JobSpec("", ("true",))
    if file:
        from gridhypervisor.cli.files import read_job

        spec = read_job(file)
    given = {name: text for name, text in (("requirements", requirements), ("rank", rank)) if text is not None}
    spec = msgspec.structs.replace(spec, **given)
    for field, problem in problems(spec):
        raise click.UsageError(f"{field}: {problem}")
    found = connect().match(spec)
    if output != "table":
        emit(found, output)
    else:
        _show(found, ranked=bool(spec.rank))


def _show(found: MatchView, *, ranked: bool) -> None:
    chosen = next((each.site for each in found.sites if each.chosen), "")
    echo(f"would go to {bold(chosen)}: {plain(found.summary)}" if chosen else f"would wait: {plain(found.summary)}")
    if found.sites:
        echo(f"\n{dim('sites:')}")
        sites = [(c.site, _mark(c.rank is not None), _ready(c), plain(c.verdict)) for c in found.sites]
        table(("SITE", "MATCHES", "READY", "WHY"), sites, right=(2,), indent="  ")
    if found.nodes:
        echo(f"\n{dim('nodes of them that are known:')}")
        rows = [(c.site, plain(c.node), _mark(c.chosen), _rank(c) if ranked else "-", plain(c.verdict))
                for c in found.nodes]  # fmt: skip
        table(("SITE", "NODE", "MATCHES", "RANK", "WHY"), rows, right=(3,), indent="  ")
    if found.warning:
        echo(f"\n{paint('warning:', YELLOW)} {plain(found.warning)}")


def _mark(matches: bool) -> str:
    return paint("yes", GREEN) if matches else dim("no")


def _ready(candidate: Candidate) -> str:
    return "-" if candidate.ready is None else f"{candidate.ready:.1f} s"


def _rank(candidate: Candidate) -> str:
    return "-" if candidate.rank is None else f"{candidate.rank:g}"


@click.command()
@click.option("--limit", type=click.IntRange(1, 1000), default=50, show_default=True, help="At most so many jobs.")
@click.option("-f", "--file", "path", metavar="FILE", help="Of this virtual infrastructure, where its VMs would go.")
@click.option("-p", "--param", "parameters", multiple=True, type=PairType(), metavar="NAME=VALUE",
              help="A parameter's value in FILE. May be repeated.")  # fmt: skip
@format_option
def plan(limit: int, path: str | None, parameters: tuple[tuple[str, str], ...], output: str) -> int:
    """Show where jobs that wait for a site would go, and when; or what applying an infrastructure's FILE would do.

    In the order in which they are served, as if what ran took its whole walltime; READY is when the guest is predicted
    to be. A gang is one line, with the places that all of it gets at once. Of an infrastructure: where each VM would go
    now, how each site was weighed, and, of one that is there, what would change. Nothing is promised.
    """
    if path:
        from gridhypervisor.cli import infrastructures

        return infrastructures.plan(path, parameters, output)
    if parameters:
        raise click.UsageError("Parameters are of an infrastructure's file: give it with -f FILE.")
    found = connect().plan(limit)
    if output != "table":
        emit(found, output)
    elif not found:
        echo("No job waits for a site.", err=True)
    else:
        now = time.time()
        rows = []
        for p in found:
            where = places(p.places) or p.site or "-"
            rows.append(
                (
                    p.group or p.job,
                    plain(p.name),
                    p.owner,
                    where,
                    *(_in(at, now) for at in (p.at, p.starts, p.ready)),
                    plain(p.why),
                )
            )
        table(("JOB", "NAME", "OWNER", "SITE", "GIVEN", "RUNS", "READY", "WHY"), rows, one_line=True)
    return exits.Exit.OK


def _in(at: float | None, now: float) -> str:
    if at is None:
        return "-"
    return "now" if at <= now else f"in {age(at - now)}"


@click.command()
@click.argument("job", shell_complete=complete.jobs)
@format_option
def replay(job: str, output: str) -> int:
    """Make the choice of a JOB's site again, from the record of it, with all that were made together with it.

    The same facts give the same choices. Exits with 70 if they do not: that is a fault in GridHypervisor.
    """
    found = connect().replay(job)
    if output != "table":
        emit(found, output)
    else:
        others = f", with {found.jobs - 1} other jobs" if found.jobs > 1 else ""
        when = f"{ago(time.time() - found.at)} ago, by policy version {found.policy}{others}"
        echo(f"{bold(found.job)} was given {found.site} {when}")
        for line in found.differences or ("the replay gives the same plan",):
            echo(f"  {plain(line)}")
    return exits.Exit.INTERNAL if found.differences else exits.Exit.OK


@click.group()
def node() -> None:
    """See what sites and their nodes are and have."""


@node.command("list")
@click.argument("site", metavar="SITE", required=False, shell_complete=complete.sites)
@format_option
def list_nodes(site: str | None, output: str) -> None:
    """List what is known of nodes, by site (of a SITE, or of all).

    Nodes are known from the site's batch system, which is asked every minute or so, from `ghv site check`, and from
    jobs that ran there. The line `whole site` has the cores of all nodes together, where the batch system lists them,
    else those of the best node that one job may get. With -o json or yaml all that each publishes, by the names that
    requirements and rank use.
    """
    found = connect().nodes(site or "")
    if output != "table":
        emit(found, output)
        return
    heads = (
        "SITE",
        "NODE",
        "STATE",
        "CORES",
        "FREE",
        "MEMORY",
        "HYPERVISORS",
        "PROCESSOR",
        "MAX JOBS",
        "QUEUED",
        "WAIT",
    )
    table(heads, [_line(each) for each in found], right=(3, 4, 5, 8, 9, 10), one_line=False)
    seen = {each.site for each in found if each.node}
    if unseen := [each.site for each in found if each.site not in seen]:
        echo(dim(f"No node is known yet of {', '.join(unseen)}. To look at one: ghv site check {unseen[0]}"), err=True)


def _line(view: NodeView) -> tuple[str, ...]:
    known = view.published
    memory = size(known["Memory"] << 20) if "Memory" in known else "-"
    whole = not view.node
    cores, free = ("SiteCpus", "SiteFreeCpus") if whole and "SiteCpus" in known else ("Cpus", "FreeCpus")
    return (
        view.site,
        plain(view.node) or dim("whole site"),
        _site_state(known) if whole else str(known.get("NodeState", "-")),
        str(known.get(cores, "-")),
        str(known.get(free, "-")),
        memory,
        _hypervisors(known) or "-",
        plain(str(known.get("CpuModel", "-"))),
        f"{known['MaxJobs']}, {known['FreePlaces']} free" if whole and "MaxJobs" in known else "",
        str(known.get("QueueLength", "-")) if whole else "",
        f"{known['QueueWait']:.0f} s" if whole and "QueueWait" in known else "",
    )


def _hypervisors(known: dict[str, Any]) -> str:
    """Each that runs guests there, with what they get of the node's speed where that is known."""
    rates = {kind: known.get(f"{kind.capitalize()}Rate") for kind in known.get("Hypervisors", ())}
    return ", ".join(f"{kind} {rate:.0%}" if rate is not None else kind for kind, rate in rates.items())


def _site_state(known: dict[str, Any]) -> str:
    """What there is to say of all nodes of a site together."""
    words = [f"{known['FreeNodes']} of {known['Nodes']} idle"] if known.get("Nodes") else []
    if (begins := known.get("MaintenanceIn")) is not None:
        words.append(f"maintenance in {age(begins)}" if begins > 0 else "maintenance")
    return ", ".join(words) or "-"
