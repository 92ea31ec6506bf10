"""Draws what `ghv simulate` tells: waits and slowdowns of the jobs, the use of the sites over time, and the users.

Needs matplotlib, which the product does not need otherwise (`gridhypervisor[plots]`).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from gridhypervisor.cli.plot import needed
from gridhypervisor.model.simulation import SimulationReport, Spread

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_USERS = 40

OURS, OTHERS = "#2f7d4f", "#c9ced6"


def draw(report: SimulationReport, folder: Path) -> list[Path]:
    """Write the pictures; their files.

    Raises:
        ServiceError: there is no matplotlib.
        OSError: a file cannot be written.
    """
    figure_type = needed(folder)
    folder.mkdir(parents=True, exist_ok=True)
    pictures: dict[str, tuple[tuple[float, float], list[Callable[[Axes], None]]]] = {
        "waits": ((8, 4.5), [lambda axes: _curve(axes, report.waits, "seconds waited, or spent on the machine", 1.0)]),
        "slowdowns": ((8, 4.5), [lambda axes: _curve(axes, report.slowdowns, "bounded slowdown", 1.0)]),
        "utilisation": (
            (10, 0.8 + 2.2 * len(report.sites)),
            [lambda axes, number=number: _use(axes, report, number) for number in range(len(report.sites))],  # type: ignore[misc]
        ),
        "users": ((8, 1.6 + 0.3 * min(len(report.users), MOST_USERS)), [lambda axes: _users(axes, report)]),
    }
    files = []
    for name, (size, drawings) in pictures.items():
        figure = figure_type(figsize=size, layout="constrained")
        grid = figure.subplots(len(drawings), squeeze=False)
        for axes, drawing in zip(grid[:, 0], drawings, strict=True):
            drawing(axes)
            axes.spines[["top", "right"]].set_visible(False)
            axes.grid(alpha=0.3, linewidth=0.5)
            axes.set_axisbelow(True)
        file = folder / f"{name}.png"
        figure.savefig(file, dpi=120)
        files.append(file)
    return files


def _curve(axes: Axes, spread: Spread, what: str, least: float) -> None:
    """The share of jobs at or below a value."""
    axes.plot([max(least, value) for value in spread.curve], range(len(spread.curve)), color=OURS)
    axes.set_xscale("log")
    axes.set(xlabel=what, ylabel="% of the jobs done", ylim=(0, 101))
    axes.set_title(f"Mean {spread.mean:.4g}, median {spread.median:.4g}, 90 % within {spread.p90:.4g}", fontsize=11,
                   loc="left")  # fmt: skip


def _use(axes: Axes, report: SimulationReport, number: int) -> None:
    """Cores in use at one site over time, others' above ours."""
    site = report.sites[number]
    edges = [step * report.step / 86_400 for step in range(len(site.usage) + 1)]
    above = [ours + others for ours, others in zip(site.usage, site.others_usage, strict=True)]
    axes.stairs(above, edges, fill=True, color=OTHERS, label="others")
    axes.stairs(site.usage, edges, fill=True, color=OURS, label="ours")
    axes.axhline(site.cores, color="black", linewidth=0.8, linestyle=":")
    axes.set(ylabel="cores", xlim=(0, edges[-1]), ylim=(0, site.cores * 1.05))
    axes.set_title(f"{site.site}: ours {site.used:.1%}, others {site.others:.1%}", fontsize=11, loc="left")
    if number == len(report.sites) - 1:
        axes.set_xlabel("days")
        axes.legend(fontsize=8, frameon=False, loc="lower right", bbox_to_anchor=(1, 1), borderpad=0, ncols=2)


def _users(axes: Axes, report: SimulationReport) -> None:
    shown = [user for user in report.users if user.done][:MOST_USERS]
    axes.barh(range(len(shown)), [user.slowdown for user in shown], color=OURS)
    axes.set_yticks(range(len(shown)), [f"{user.user} ({user.done})" for user in shown], fontsize=8)
    axes.invert_yaxis()
    axes.set(xlabel="mean bounded slowdown of a user (and the number of jobs)")
    axes.set_title(f"Jain's fairness index {report.fairness:.3f}", fontsize=11, loc="left")
