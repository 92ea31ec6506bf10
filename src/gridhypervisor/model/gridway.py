"""Reads GridWay's job templates (`.jt`): which settings there are, and what each says. `model.gridwayjob` makes jobs.

    KEYWORD = value            # a comment after a space, or in a line of its own
    ARGUMENTS = "in quotes"    # quotes around the whole value are not part of it, and such a value may go on over lines
    INPUT_FILES = local.${TASK_ID} name-there, \\
        second                 # a backslash at the end of a line continues it

Pure. What is wrong is told at once, each with file and line. Where GridWay's documentation and its parser differ the
documentation is followed, since users wrote their templates by it: a comment may stand after a value.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from gridhypervisor.model.workflow import nearest
from gridhypervisor.model.yamlspec import Problem, SpecError

Pair = tuple[str, str]
"""Source and destination of a file; the destination is empty where the template names none."""


@dataclass(frozen=True)
class Template:
    """What a template says; None or empty: nothing. Field names are its keywords in lower case."""

    file: str
    name: str = ""
    executable: str = ""
    arguments: str = ""
    environment: dict[str, str] = field(default_factory=dict)
    type: str = "single"  # or multiple, or mpi
    np: int = 1
    input_files: tuple[Pair, ...] = ()
    output_files: tuple[Pair, ...] = ()
    restart_files: tuple[Pair, ...] = ()
    stdin_file: str = ""
    stdout_file: str = ""
    stderr_file: str = ""
    checkpoint_interval: int | None = None  # seconds
    checkpoint_url: str = ""
    requirements: str = ""
    rank: str = ""
    rescheduling_interval: int | None = None  # seconds; 0: never
    rescheduling_threshold: int | None = None  # seconds
    suspension_timeout: int | None = None  # seconds; 0: never
    cpuload_threshold: int | None = None  # percent
    monitor: str = ""
    reschedule_on_failure: bool | None = None
    number_of_retries: int | None = None
    wrapper: str = ""
    pre_wrapper: str = ""
    pre_wrapper_arguments: str = ""
    deadline: int | None = None  # seconds from submission within which to start; 0: none
    job_dependencies: tuple[str, ...] = ()  # job ids
    lines: dict[str, int] = field(default_factory=dict)  # keyword in lower case → where it stands
    warnings: tuple[Problem, ...] = ()

    def problem(self, keyword: str, problem: str, allowed: str = "") -> Problem:
        """Something about a keyword, with its place."""
        return Problem(self.file, self.lines.get(keyword, 0), 0, keyword.upper(), problem, allowed)


class _Wrong(Exception):
    """A value that means nothing: what is wrong, and what is right."""

    def __init__(self, problem: str, allowed: str) -> None:
        self.problem, self.allowed = problem, allowed


def _text(value: str) -> str:
    return value[1:-1] if re.fullmatch(r'"[^"]*"', value) else value


def _number(value: str) -> int:
    if not re.fullmatch(r"\d{1,9}", _text(value)):
        raise _Wrong(f"{value} is not a whole number", "write for instance 300")
    return int(_text(value))


def _yes(value: str) -> bool:
    match _text(value).lower():
        case "yes":
            return True
        case "no":
            return False
        case _:
            raise _Wrong(f"{value} is not understood", "write yes or no")


def _type(value: str) -> str:
    kind = _text(value).lower()
    if kind not in ("single", "multiple", "mpi"):
        raise _Wrong(f"{value} is no type of job", "write single, multiple or mpi")
    return kind


def _np(value: str) -> int:
    if not 1 <= (number := _number(value)) <= 1024:
        raise _Wrong(f"{value} processors cannot be had", "write a number from 1 to 1024")
    return number


def _expression(value: str) -> str:
    """A requirement or a rank; quotes are part of it, unless they are around the whole."""
    return _text(value).rstrip().removesuffix(";").rstrip()


def _deadline(value: str) -> int:
    """Seconds of [[days:]hours:]minutes."""
    parts = _text(value).split(":")
    if len(parts) > 3 or not all(re.fullmatch(r"\d{1,6}", part) for part in parts):
        raise _Wrong(f"{value} is not a time", "write [[days:]hours:]minutes, for instance 90, 12:00 or 2:0:0")
    minutes = 0
    for part, unit in zip(reversed(parts), (1, 60, 24 * 60), strict=False):
        minutes += int(part) * unit
    return minutes * 60


def _files(value: str) -> tuple[Pair, ...]:
    pairs = []
    for item in _text(value).split(","):
        match item.split():
            case []:
                continue
            case [source]:
                pairs.append((_text(source), ""))
            case [source, destination]:
                pairs.append((_text(source), _text(destination)))
            case words:
                raise _Wrong(
                    f"{' '.join(words)} is more than two names", "write source destination, source destination"
                )
    return tuple(pairs)


def _names(value: str) -> tuple[Pair, ...]:
    pairs = _files(value)
    if double := next((source for source, destination in pairs if destination), ""):
        raise _Wrong(f"{double} has a destination, which restart files have not", "separate their names by commas")
    return pairs


_VARIABLE = re.compile(r'\s*([A-Za-z_][A-Za-z0-9_]*)\s*=\s*("[^"]*"|[^,"\s]*)\s*(?:,|$)')


def _environment(value: str) -> dict[str, str]:
    found: dict[str, str] = {}
    at = 0
    while at < len(value):
        if not (match := _VARIABLE.match(value, at)):
            raise _Wrong(f"{value[at:].strip()} is not understood", 'write NAME=value, NAME="a value", …')
        found[match[1]] = _text(match[2])
        at = match.end()
    return found


def _jobs(value: str) -> tuple[str, ...]:
    words = _text(value).replace(",", " ").split()
    for word in words:
        if not re.fullmatch(r"j?\d+", word):
            raise _Wrong(f"{word} is not the id of a job", "write the ids with spaces between them, for instance 12 13")
    return tuple(f"j{word.removeprefix('j')}" for word in words)


_READ = {
    "NAME": _text,
    "EXECUTABLE": _text,
    "ARGUMENTS": _text,
    "ENVIRONMENT": _environment,
    "TYPE": _type,
    "NP": _np,
    "INPUT_FILES": _files,
    "OUTPUT_FILES": _files,
    "RESTART_FILES": _names,
    "STDIN_FILE": _text,
    "STDOUT_FILE": _text,
    "STDERR_FILE": _text,
    "CHECKPOINT_INTERVAL": _number,
    "CHECKPOINT_URL": _text,
    "REQUIREMENTS": _expression,
    "RANK": _expression,
    "RESCHEDULING_INTERVAL": _number,
    "RESCHEDULING_THRESHOLD": _number,
    "SUSPENSION_TIMEOUT": _number,
    "CPULOAD_THRESHOLD": _number,
    "MONITOR": _text,
    "RESCHEDULE_ON_FAILURE": _yes,
    "NUMBER_OF_RETRIES": _number,
    "WRAPPER": _text,
    "PRE_WRAPPER": _text,
    "PRE_WRAPPER_ARGUMENTS": _text,
    "DEADLINE": _deadline,
    "JOB_DEPENDENCIES": _jobs,
}
KEYWORDS = tuple(_READ)


def parse(path: str, text: str) -> Template:
    """Read a template; `path` is for messages, and gives the job its name where the template gives none.

    Raises:
        SpecError: it is no template; names every problem found.
    """
    values: dict[str, Any] = {}
    lines: dict[str, int] = {}
    problems: list[Problem] = []
    warnings: list[Problem] = []
    for line, keyword, value in _settings(path, text, problems):
        if keyword not in _READ:
            right = nearest(keyword.upper(), KEYWORDS)
            if keyword.upper() in _READ:
                right = f"keywords are in capitals: {keyword.upper()}"
            problems.append(Problem(path, line, 0, keyword, "there is no such keyword", right))
            continue
        if (before := lines.get(keyword.lower())) is not None:
            why = f"replaces what line {before} says"
            warnings.append(Problem(path, line, 0, keyword, why, "remove one of the two"))
        lines[keyword.lower()] = line
        values.pop(keyword.lower(), None)
        if not value:
            continue
        try:
            values[keyword.lower()] = _READ[keyword](value)
        except _Wrong as wrong:
            problems.append(Problem(path, line, 0, keyword, wrong.problem, wrong.allowed))
    if "executable" not in values and not problems:
        place = lines.get("executable", 0)
        problems.append(Problem(path, place, 0, "EXECUTABLE", "is missing", "name the program to run"))
    if problems:
        raise SpecError(problems)
    return Template(path, **values, lines=lines, warnings=tuple(warnings))


def _settings(path: str, text: str, problems: list[Problem]) -> Iterator[tuple[int, str, str]]:
    """(line, keyword, value as it is written) of each setting."""
    lines = text.splitlines()
    at = 0
    while at < len(lines):
        first = at + 1
        line = lines[at].strip()
        at += 1
        if not line or line.startswith("#"):
            continue
        keyword, equals, value = line.partition("=")
        keyword, value = keyword.strip(), value.strip()
        if not equals or not re.fullmatch(r"[A-Za-z_]+", keyword):
            problems.append(Problem(path, first, 0, "", f"{line} is not a setting", "write KEYWORD = value"))
            continue
        value = _uncommented(value)
        while value.endswith("\\") and at < len(lines):
            value = _uncommented(f"{value[:-1].rstrip()} {lines[at].strip()}")
            at += 1
        while value.startswith('"') and value.count('"') == 1 and at < len(lines):
            value += "\n" + lines[at]
            at += 1
            if value.count('"') > 1:
                value = _uncommented(value.rstrip())
        if value.startswith('"') and value.count('"') == 1:
            problems.append(Problem(path, first, 0, keyword, "a quote is not closed", 'end the value with a "'))
            return
        yield first, keyword, value


def _uncommented(value: str) -> str:
    """The value without a comment after it: a # at its beginning or after a space, and not in quotes."""
    quoted = False
    for place, letter in enumerate(value):
        if letter == '"':
            quoted = not quoted
        elif letter == "#" and not quoted and (place == 0 or value[place - 1].isspace()):
            return value[:place].rstrip()
    return value
