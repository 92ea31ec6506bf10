"""Draws what `ghv ledger` tells: a bar for each attempt of a job, by site, its phases in colour on one time axis.

Needs matplotlib, which the product does not need otherwise (`gridhypervisor[plots]`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gridhypervisor.cli.ledger import Stay
from gridhypervisor.model.views import Problem, ServiceError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS = (".png", ".svg", ".pdf")

COLOURS = {
    "wait": "#c9ced6", "prolog": "#8fb8de", "queue": "#dfe3e8", "prepare": "#f0c987", "boot": "#e8a33d",
    "stage_in": "#9fd0c7", "gather": "#d5d0dc", "execute": "#2f7d4f", "stage_out": "#74b3a7", "shut_down": "#c07f2c",
    "epilog": "#5b8db8", "middleware": "#b5483a", "suspended": "#eeeeee",
}  # fmt: skip
"""Phases in the order in which they come: grey waits, blue moves data, orange is the machine, green the program."""


def draw(found: Sequence[Stay], file: Path) -> None:
    """Write the picture, in the format that the file's name ends with.

    Raises:
        ServiceError: there is no matplotlib, or it has no such format.
        OSError: the file cannot be written.
    """
    if file.suffix.lower() not in FORMATS:
        raise _problem(file, "invalid", f"a picture's name ends with {', '.join(FORMATS)}", "Give it such a name.")
    figure_type = needed(file)
    longest = max((stay.end for stay in found), default=0.0) or 1.0
    figure = figure_type(figsize=(10, 1.6 + 0.62 * len(found)), layout="constrained")
    axes = figure.subplots()
    for row, stay in enumerate(found):
        at = stay.start
        for span in stay.spans:
            axes.barh(row, span.seconds, left=at, height=0.62, color=COLOURS[span.phase])
            if span.seconds > longest / 22:
                colour = "white" if span.phase in ("execute", "middleware", "epilog", "shut_down") else "black"
                axes.text(at + span.seconds / 2, row, f"{span.seconds:.1f}", ha="center", va="center", fontsize=8,
                          color=colour)  # fmt: skip
            at += span.seconds
        axes.text(at + longest / 100, row, _beside(stay), va="center", fontsize=8, color="#444444")
    axes.set_yticks(range(len(found)), [_label(stay) for stay in found], fontsize=8)
    axes.set(xlabel="seconds since the job was submitted", xlim=(0, longest * 1.16), ylim=(len(found) - 0.5, -0.5))
    axes.set_title("What ran where, under which hypervisor, and where the time went", fontsize=11, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x", alpha=0.3, linewidth=0.5)
    axes.set_axisbelow(True)
    seen = {span.phase for stay in found for span in stay.spans}
    for phase, colour in COLOURS.items():
        if phase in seen:
            axes.barh(0, 0, color=colour, label=phase.replace("_", " "))
    if seen:
        figure.legend(ncols=len(seen), fontsize=8, loc="outside lower center", frameon=False, handlelength=1,
                      columnspacing=1.2)  # fmt: skip
    figure.savefig(file, dpi=120, metadata={"Date": None} if file.suffix.lower() == ".svg" else None)


def needed(file: Path) -> type[Figure]:
    """Matplotlib's figures, which the product can do without.

    Raises:
        ServiceError: it is not installed, so that the file cannot be drawn.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        hint = "Install it beside ghv: pip install matplotlib"
        raise _problem(file, "unavailable", f"drawing needs matplotlib, which is not here ({error})", hint) from error
    return Figure


def _label(stay: Stay) -> str:
    place = ", ".join(filter(None, (stay.batch_system, stay.node)))
    attempt = f", attempt {stay.attempt}" if stay.attempt > 1 else ""
    return "\n".join(filter(None, (f"{stay.site or 'no site'} · {stay.job}{attempt}", place, stay.hypervisor)))


def _beside(stay: Stay) -> str:
    if not stay.spans:
        return stay.state
    cpu = f"\nCPU {sum(stay.cpu.values()):.1f} s" if stay.cpu else ""
    return f"{stay.state}, {stay.end - stay.start:.1f} s{cpu}"


def _problem(file: Path, code: str, detail: str, hint: str) -> ServiceError:
    return ServiceError(Problem(f"draw {file}", 422 if code == "invalid" else 503, code, detail, hint))
