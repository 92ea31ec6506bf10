"""How answers look: tables, JSON and YAML, ages and sizes, colours on terminals, errors. No requests."""

from __future__ import annotations

import os
import re
import sys
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any, TypeVar

import click
import msgspec

from gridhypervisor.model.ledger import OperationRow
from gridhypervisor.model.states import JobState, Wish
from gridhypervisor.model.views import JobView, Problem
from gridhypervisor.model.wire import Phase

F = TypeVar("F", bound=Callable[..., Any])

GREEN, RED, YELLOW, BLUE = "green", "red", "yellow", "blue"

_STATE_COLOURS = {
    JobState.PENDING: YELLOW,
    JobState.PROLOG: BLUE,
    JobState.QUEUED: YELLOW,
    JobState.RUNNING: BLUE,
    JobState.EPILOG: BLUE,
    JobState.SUSPENDED: YELLOW,
    JobState.DONE: GREEN,
    JobState.FAILED: RED,
    JobState.CANCELLED: None,
}

_PHASE_WORDS = {
    Phase.PREPARE: "preparing the node",
    Phase.BOOT: "booting",
    Phase.STAGE_IN: "taking in the inputs",
    Phase.GATHER: "waiting for its gang",
    Phase.EXECUTE: "running",
    Phase.STAGE_OUT: "taking out the results",
    Phase.SHUT_DOWN: "shutting down",
}

_STATE_WORDS = {
    JobState.PENDING: "waiting for a site",
    JobState.PROLOG: "sending image and inputs",
    JobState.QUEUED: "queued",
    JobState.RUNNING: "starting",
    JobState.EPILOG: "bringing the results home",
    JobState.SUSPENDED: "suspended",
}


def format_option(command: F) -> F:
    """Adds `-o table|json|yaml`, given to the command as `output`."""
    return click.option(
        "-o",
        "--output",
        type=click.Choice(["table", "json", "yaml"]),
        default="table",
        envvar="GHV_OUTPUT",
        show_default=True,
        help="How to print the answer.",
    )(command)


def echo(text: str = "", *, err: bool = False, newline: bool = True) -> None:
    """Print; colours survive on a terminal only, and not where NO_COLOR is set."""
    click.echo(text, err=err, nl=newline, color=False if os.environ.get("NO_COLOR") else None)


def emit(value: Any, output: str) -> None:
    """Print a record or a list of them as JSON or YAML, with all of its fields."""
    if output == "json":
        echo(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())
    else:
        echo(msgspec.yaml.encode(msgspec.to_builtins(value)).decode(), newline=False)


def emit_item(value: Any, output: str) -> None:
    """Print one record of a stream: a line of JSON, or a YAML document."""
    if output == "json":
        echo(msgspec.json.encode(value).decode())
    else:
        echo("---\n" + msgspec.yaml.encode(msgspec.to_builtins(value)).decode(), newline=False)


def dim(text: str) -> str:
    return click.style(text, dim=True)


def bold(text: str) -> str:
    return click.style(text, bold=True)


def paint(text: str, colour: str | None) -> str:
    return click.style(text, fg=colour) if colour else dim(text)


def table(
    head: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    right: Sequence[int] = (),
    indent: str = "",
    one_line: bool = False,
) -> None:
    """Columns under dim heads, two spaces apart. `right`: the columns that are aligned to the right.

    `one_line`: on a terminal the last column is cut where the line would wrap; for words that another verb shows whole.
    """
    lines = [[dim(cell) for cell in head], *rows]
    widths = [max(_width(line[i]) for line in lines) for i in range(len(head))]
    if one_line and (columns := terminal_width(sys.stdout)):
        room = max(20, columns - len(indent) - sum(widths[:-1]) - 2 * len(widths[:-1]))
        lines = [[*cells, fit(last, room)] for *cells, last in lines]
    for line in lines:
        cells = []
        for i, cell in enumerate(line):
            pad = " " * (widths[i] - _width(cell))
            cells.append(pad + cell if i in right else cell + pad)
        echo(indent + "  ".join(cells).rstrip())


def pairs(rows: Iterable[tuple[str, str]]) -> None:
    """Names and values, one a line; what is empty is left out."""
    shown = [(name, value) for name, value in rows if value]
    width = max((len(name) for name, _ in shown), default=0)
    for name, value in shown:
        first, *more = value.split("\n")
        echo(f"{dim(name.ljust(width))}  {first}")
        for line in more:
            echo(" " * (width + 2) + line)


def places(known: Mapping[str, int]) -> str:
    """Where the members of a gang go: `a ×2, b ×1`."""
    return ", ".join(f"{site} ×{count}" for site, count in known.items())


def plain(text: str) -> str:
    """Words of others (a site's, a guest's) on one line, without what could steer a terminal."""
    return "".join(c if c.isprintable() else "?" for c in re.sub(r"[^\S ]+", " ", text).strip())


def terminal_width(stream: Any) -> int | None:
    """The columns of the terminal that a stream goes to; None where it goes elsewhere."""
    try:
        return os.get_terminal_size(stream.fileno()).columns or 80
    except (OSError, ValueError):
        return None


def fit(text: str, width: int) -> str:
    """The text, cut to so many columns with … at its end; what is cut loses its colours."""
    if _width(text) <= width:
        return text
    kept, used = "", 1
    for character in click.unstyle(text):
        used += _width(character)
        if used > width:
            break
        kept += character
    return f"{kept}…"


def _width(text: str) -> int:
    plain = click.unstyle(text)
    return (
        len(plain)
        if plain.isascii()
        else sum(2 if unicodedata.east_asian_width(c) in "WF" else not unicodedata.combining(c) for c in plain)
    )


def state(job: JobView) -> str:
    """A job's state in its colour; done with a code other than 0 is not green."""
    if job.state is JobState.DONE and job.exit_code:
        return paint(f"done ({job.exit_code})", YELLOW)
    return paint(str(job.state), _STATE_COLOURS[job.state])


def doing(job: JobView) -> str:
    """What a job is doing, in words."""
    if job.state.final:
        return str(job.state)
    if job.wish.ends:
        return "being cancelled"
    if job.wish is Wish.SUSPEND and job.state is not JobState.SUSPENDED:
        return "being suspended"
    words = _PHASE_WORDS.get(job.phase) if job.state is JobState.RUNNING and job.phase else None
    words = words or _STATE_WORDS[job.state]
    preposition = {JobState.PROLOG: "to", JobState.QUEUED: "at"}.get(job.state)
    return f"{words} {preposition} {job.site}" if preposition and job.site else words


def age(seconds: float) -> str:
    """A length of time in its two largest units at most: 7s, 3m20s, 2h5m, 3d4h."""
    left = max(0, int(seconds))
    for (unit, size), (small, part) in pairwise(_UNITS):
        if left >= size:
            rest = left % size // part
            return f"{left // size}{unit}" + (f"{rest}{small}" if rest else "")
    return f"{left}s"


_UNITS = (("d", 86400), ("h", 3600), ("m", 60), ("s", 1))


def ago(seconds: float) -> str:
    """How long ago, in one unit: 7s, 3m, 2h, 3d."""
    left = max(0, int(seconds))
    unit, size = next(((unit, size) for unit, size in _UNITS if left >= size), ("s", 1))
    return f"{left // size}{unit}"


def size(count: int) -> str:
    """Bytes, in binary units: 512 MiB."""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" or value >= 10 else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


FORETOLD = "OPERATION", "SIZE", "LOAD", "PREDICTED", "SECONDS", "ERROR"


def foretold(row: OperationRow) -> tuple[str, ...]:
    """What was done: its size, how busy the node was, how long was predicted, how long it took, and the error."""
    first = row.operation, size(row.bytes), f"{row.load:.1f}"
    if row.predicted is None:
        return *first, "-", f"{row.seconds:.2f}", "-"
    error = f"{row.predicted / row.seconds - 1:+.0%}" if row.seconds > 0 else "-"
    return *first, f"{row.predicted:.2f}", f"{row.seconds:.2f}", error


def bar(share: float, width: int = 24) -> str:
    """A share of 1 as a bar, to an eighth of a character where the terminal can show it."""
    share = min(max(share, 0.0), 1.0)
    if not unicode(sys.stdout):
        return "#" * round(share * width)
    eighths = round(share * width * 8)
    return "█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8].strip()


def unicode(stream: Any) -> bool:
    """Whether a stream can show more than ASCII."""
    return "utf" in (getattr(stream, "encoding", None) or "").lower()


def say_warning(text: str) -> None:
    """What a user should know, though it goes on; on stderr."""
    echo(f"{paint('warning:', YELLOW)} {plain(text)}", err=True)


def say_problem(problem: Problem) -> None:
    """An error, for people, on stderr: what failed, why, what to do next."""
    echo(f"{paint('error:', RED)} {bold(problem.title)}", err=True)
    for line in problem.detail.splitlines():
        echo(f"  {plain(line)}", err=True)
    for item in problem.errors:
        if item.get("allowed"):
            echo(f"  {item.get('field', '')}: {item['allowed']}", err=True)
    if problem.hint:
        echo(f"  {dim('next:')} {problem.hint}", err=True)
