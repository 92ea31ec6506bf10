"""`ghv simulate`: what a workload would meet at some sites under a policy, in virtual time."""

from __future__ import annotations

from pathlib import Path

import click
import msgspec

from gridhypervisor.cli.output import age, bar, bold, dim, echo, emit, format_option, paint, plain, table
from gridhypervisor.cli.progress import Line
from gridhypervisor.cli.progress import Progress as Screen
from gridhypervisor.model.simulation import Progress, SimulationReport, Spread

MOST_USERS = 20
"""Lines of users in the table; `-o json` has all."""


@click.command()
@click.argument("spec", metavar="SPEC")
@click.option("--policy", metavar="FILE", help="Another policy than SPEC names.")
@click.option("--present-policy", is_flag=True, help="The policy that the service has now, see `ghv policy show`.")
@click.option("--seed", type=int, help="Other random numbers than SPEC's.")
@click.option(
    "--plots",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Draw waits, slowdowns, utilisation and users there, as PNG files.",
)
@format_option
def simulate(
    spec: str, policy: str | None, present_policy: bool, seed: int | None, plots: Path | None, output: str
) -> None:
    """Simulate the grid that SPEC (YAML) describes: a workload, sites with their queues and faults, a policy.

    The whole controller runs, planner, loop and wire, over sites in virtual time; your installation is not
    touched. The same SPEC and seed give the same report.

    \b
    ghv simulate examples/simulate/campus.yaml
    ghv simulate month.yaml --policy other.yaml --plots pictures
    ghv schema simulation        what SPEC may hold
    """
    if policy is not None and present_policy:
        raise click.UsageError("--policy and --present-policy: choose one of them")
    if plots is not None:
        from gridhypervisor.cli.plot import needed

        needed(plots)  # before minutes are spent on figures that could not be drawn
    text = ""
    if present_policy:
        from gridhypervisor.client.launcher import connect
        from gridhypervisor.model.policy import show_policy

        policy, text = "-", show_policy(connect().policy().policy)
    from gridhypervisor.client.simulator import simulate as have_simulated  # which starts a process

    with Screen() as screen:

        def show(far: Progress) -> None:
            words = f"day {far.day:.1f}: {far.ended} of {far.jobs} jobs have ended"
            screen.show_line(Line("simulating", words))

        report = have_simulated(spec, show, policy=policy, policy_text=text, seed=seed)
    if present_policy:
        report = msgspec.structs.replace(report, policy="of the service")
    if output != "table":
        emit(report, output)
    else:
        show_report(report)
    if plots is not None:
        from gridhypervisor.cli.simulationplots import draw  # which needs what few commands need

        for file in draw(report, plots):
            echo(f"{dim('ghv:')} drawn: {file}", err=True)


def show_report(report: SimulationReport) -> None:
    """The figures, for people."""
    policy = f", policy {report.policy}" if report.policy else ""
    echo(bold(f"{age(report.seconds)} of {plain(report.workload)}{plain(policy)}, seed {report.seed}"))
    states = ", ".join(f"{count} {state}" for state, count in report.states.items())
    echo(f"  {report.jobs} jobs: {states}; {report.attempts} attempts")
    for words, counted in (("not done", report.reasons), ("left out", report.left_out)):
        if counted:
            echo(f"  {words}: {', '.join(f'{count} {plain(why)}' for why, count in counted.items())}")
    cores = sum(site.cores for site in report.sites)
    echo(f"  utilisation {report.utilisation:.1%} of {cores} cores  {paint(bar(report.utilisation), 'green')}")
    users = sum(1 for user in report.users if user.done)
    echo(f"  fairness {report.fairness:.3f} (Jain's index over the mean slowdowns of {users} users; 1 is equal)\n")
    rows = [
        ("wait", *(age(value) for value in _points(report.waits))),
        ("bounded slowdown", *(f"{value:.2f}" for value in _points(report.slowdowns))),
    ]
    table(("", "MEAN", "MEDIAN", "90 %", "MOST"), rows, right=(1, 2, 3, 4), indent="  ")
    echo()
    table(
        ("SITE", "CORES", "DONE", "ATTEMPTS", "FAILED", "CORE-HOURS", "OURS", "OTHERS", "WAIT", "90 %"),
        [
            (
                site.site,
                *(str(count) for count in (site.cores, site.done, site.attempts, site.failed)),
                f"{site.core_hours:.1f}",
                f"{site.used:.1%}",
                f"{site.others:.1%}",
                age(site.waits.median),
                age(site.waits.p90),
            )
            for site in report.sites
        ],
        right=tuple(range(1, 10)),
        indent="  ",
    )
    echo()
    table(
        ("USER", "JOBS", "DONE", "CORE-HOURS", "WAIT", "SLOWDOWN"),
        [
            (plain(u.user), str(u.jobs), str(u.done), f"{u.core_hours:.1f}", age(u.wait), f"{u.slowdown:.2f}")
            for u in report.users[:MOST_USERS]
        ],
        right=(1, 2, 3, 4, 5),
        indent="  ",
    )
    if len(report.users) > MOST_USERS:
        echo(dim(f"  and {len(report.users) - MOST_USERS} more users: -o json"))


def _points(spread: Spread) -> tuple[float, float, float, float]:
    return spread.mean, spread.median, spread.p90, spread.most
