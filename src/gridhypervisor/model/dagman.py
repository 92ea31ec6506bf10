"""Reads workflows from HTCondor's DAGMan files. Pure: what INCLUDE names is read by a function of the caller's.

Understood: JOB, FINAL, PARENT … CHILD, SCRIPT PRE and POST (DEFER, DEBUG), RETRY (UNLESS-EXIT), PRE_SKIP, VARS, DONE,
ABORT-DAG-ON (RETURN), CATEGORY, MAXJOBS, PRIORITY, INCLUDE, ALL_NODES. Keywords are so in any case, names are as they
are written, commands may come in any order, a line goes on after a `\\` at its end, `#` opens a comment line. A JOB's
file is a job file of ours. What concerns only HTCondor's own files and daemons is passed over with a warning; what
would change which jobs run is refused, with what to do instead. All that is wrong is told at once, with file and line.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

from gridhypervisor.model.workflow import Abort, Node, Script, Workflow, circle, find_cycle, nearest
from gridhypervisor.model.yamlspec import Problem, SpecError

Read = Callable[[str], str]
"""The text of a file that INCLUDE names, as it is written there. Raises OSError with a `strerror`."""

DEEPEST = 32
"""Files that may include one another; more is a circle."""

_VARIABLE = re.compile(r'\s*([+A-Za-z_][A-Za-z0-9_.]*)\s*=\s*"((?:[^"\\]|\\.)*)"')
UNDERSTOOD = {
    "JOB": "JOB name file [DIR folder] [NOOP] [DONE]",
    "FINAL": "FINAL name file [DIR folder] [NOOP]",
    "PARENT": "PARENT name… CHILD name…",
    "SCRIPT": "SCRIPT [DEFER code seconds] [DEBUG file STDOUT|STDERR|ALL] PRE|POST name|ALL_NODES program [argument…]",
    "RETRY": "RETRY name|ALL_NODES times [UNLESS-EXIT code]",
    "PRE_SKIP": "PRE_SKIP name|ALL_NODES code",
    "VARS": 'VARS name|ALL_NODES [PREPEND|APPEND] key="value"…',
    "DONE": "DONE name",
    "ABORT-DAG-ON": "ABORT-DAG-ON name|ALL_NODES code [RETURN code]",
    "CATEGORY": "CATEGORY name|ALL_NODES category",
    "MAXJOBS": "MAXJOBS category number",
    "PRIORITY": "PRIORITY name|ALL_NODES number",
    "INCLUDE": "INCLUDE file",
}
PASSED_OVER = {
    "CONFIG": "it configures HTCondor's own daemon",
    "ENV": "it is for HTCondor's own daemon; a job's `environment` sets its variables",
    "SET_JOB_ATTR": "it is for HTCondor's own daemon",
    "DOT": "the workflow is drawn when you ask, with --dot",
    "JOBSTATE_LOG": "events are shown with `ghv events`",
    "NODE_STATUS_FILE": "the state of every node is shown when you ask",
    "SAVE_POINT_FILE": "a rescue file is written when the workflow fails",
}
REFUSED = {
    "SUBDAG": ("a workflow inside a node is not run", "INCLUDE the file, if its node names are its own"),
    "SPLICE": (
        "splices are not read",
        "INCLUDE the file, if its node names are its own, and join it with PARENT … CHILD",
    ),
    "SUBMIT-DESCRIPTION": ("HTCondor's submit language is not read", "write the job into a job file and name that"),
    "PROVISIONER": ("nodes of that kind are not run", "make it a JOB that the others are children of"),
    "SERVICE": ("nodes of that kind are not run", "run it as a job of its own beside the workflow"),
    "REJECT": (
        "the file says itself that it must not be run",
        "mend what its writer could not read, and remove this line",
    ),
}


@dataclass(frozen=True)
class Parsed:
    workflow: Workflow
    warnings: tuple[Problem, ...]  # what was passed over


def parse(path: str, text: str, read: Read | None = None) -> Parsed:
    """Read a DAGMan file. `path` names the workflow and is for messages; without `read` an INCLUDE is refused.

    Raises:
        SpecError: it is no sound workflow; names every problem found.
    """
    reader = _Reader(read)
    reader.file(path, text, ())
    workflow = reader.workflow(PurePath(path).name)
    if reader.problems:
        raise SpecError(reader.problems)
    return Parsed(workflow, tuple(reader.warnings))


@dataclass(frozen=True)
class _Line:
    """A command: its words, and where it stands."""

    file: str
    number: int
    keyword: str
    words: tuple[str, ...]  # after the keyword
    rest: str  # the same, as it is written


@dataclass
class _Draft:
    """A node as far as it has been read."""

    line: _Line
    fields: dict[str, Any] = field(default_factory=dict)
    parents: dict[str, _Line] = field(default_factory=dict)


class _Wrong(Exception):
    """A command that cannot be read: what is wrong, and what is right."""

    def __init__(self, problem: str, allowed: str = "") -> None:
        self.problem, self.allowed = problem, allowed


class _Reader:
    def __init__(self, read: Read | None) -> None:
        self.problems: list[Problem] = []
        self.warnings: list[Problem] = []
        self._read = read
        self._drafts: dict[str, _Draft] = {}
        self._limits: dict[str, int] = {}
        self._later: list[_Line] = []  # commands about nodes, for when all nodes are known

    def file(self, path: str, text: str, above: tuple[str, ...]) -> None:
        """Read one file: nodes at once, what is said about them later, since it may stand before them."""
        lines = _lines(path, text)
        for line in lines:
            with _Telling(self, line):
                match line.keyword:
                    case "JOB" | "FINAL":
                        if line.words[-1:] == ("{",):
                            _skip_block(lines)
                            raise _Wrong(*REFUSED["SUBMIT-DESCRIPTION"])
                        self._node(line)
                    case "INCLUDE":
                        self._include(line, (*above, path))
                    case "SUBMIT-DESCRIPTION" if line.words[-1:] == ("{",):
                        _skip_block(lines)
                        raise _Wrong(*REFUSED[line.keyword])
                    case keyword if keyword in REFUSED:
                        raise _Wrong(*REFUSED[keyword])
                    case keyword if keyword in PASSED_OVER:
                        self._warn(line, PASSED_OVER[keyword])
                    case keyword if keyword in UNDERSTOOD:
                        self._later.append(line)
                    case _:
                        raise _Wrong("there is no such command", nearest(line.keyword, UNDERSTOOD))

    def workflow(self, name: str) -> Workflow:
        for line in self._later:
            with _Telling(self, line):
                self._about(line)
        nodes = tuple(Node(name, parents=tuple(d.parents), **d.fields) for name, d in self._drafts.items())
        if not nodes and not self.problems:
            self.problems.append(Problem("", 0, 0, "", f"{name} holds no JOB", f"write {UNDERSTOOD['JOB']}"))
        if not self.problems and (cycle := find_cycle(nodes)):
            at = self._drafts[cycle[0]].parents[cycle[-1]]
            right = "remove one of these dependencies"
            self.problems.append(Problem(at.file, at.number, 0, "PARENT", circle(cycle), right))
        return Workflow(name, nodes, self._limits)

    def _warn(self, line: _Line, why: str) -> None:
        self.warnings.append(Problem(line.file, line.number, 0, line.keyword, "is passed over", why))

    def _include(self, line: _Line, above: tuple[str, ...]) -> None:
        path = _one(line)
        if path in above or len(above) >= DEEPEST:
            raise _Wrong(f"{path} is being read already: {' → '.join([*above, path])}", "remove one INCLUDE")
        if self._read is None:
            raise _Wrong("other files cannot be read here", "put the text in its place")
        try:
            text = self._read(path)
        except OSError as error:
            raise _Wrong(f"{path} cannot be read: {error.strerror or error}", "check the file's name") from None
        self.file(path, text, above)

    def _node(self, line: _Line) -> None:
        if len(line.words) < 2:
            raise _Wrong("too few words", _usage(line))
        name, job, *options = line.words
        if name.upper() in ("PARENT", "CHILD", "ALL_NODES") or any(letter in name for letter in ".+"):
            raise _Wrong(f"{name} cannot be a node's name", "PARENT, CHILD and ALL_NODES, and . and +, are taken")
        if name in self._drafts:
            before = self._drafts[name].line
            raise _Wrong(f"there is a node {name} already, of {before.file}:{before.number}", "rename one")
        fields: dict[str, Any] = {"job": job}
        if line.keyword == "FINAL":
            for other, draft in self._drafts.items():
                if draft.fields.get("last"):
                    raise _Wrong(f"there is a FINAL node already, {other}", "a workflow has one")
            fields["last"] = True
        while options:
            match options.pop(0).upper():
                case "DIR" if options:
                    fields["folder"] = options.pop(0)
                case "NOOP":
                    fields["noop"] = True
                case "DONE" if line.keyword == "JOB":
                    fields["done"] = True
                case word:
                    raise _Wrong(f"{word} is not understood", _usage(line))
        self._drafts[name] = _Draft(line, fields)

    def _about(self, line: _Line) -> None:
        """A command about nodes that exist by now."""
        match line.keyword:
            case "PARENT":
                self._edges(line)
            case "SCRIPT":
                self._script(line)
            case "VARS":
                self._vars(line)
            case "MAXJOBS":
                category, number = _two(line)
                self._limits[category] = _number(number, 0)
            case "DONE":
                self._set(line, _one(line), done=True)
            case "PRIORITY":
                name, number = _two(line)
                self._set(line, name, priority=_number(number))
            case "CATEGORY":
                name, category = _two(line)
                self._set(line, name, category=category)
            case "PRE_SKIP":
                name, number = _two(line)
                if _number(number) == 0:
                    raise _Wrong("a PRE script that ends with 0 has not failed", "name a code other than 0")
                self._set(line, name, pre_skip=_number(number))
            case "RETRY":
                name, number, value = _with_option(line, "UNLESS-EXIT")
                self._set(line, name, retries=_number(number, 0), unless_exit=value)
            case "ABORT-DAG-ON":
                name, number, value = _with_option(line, "RETURN")
                if value is not None and not 0 <= value <= 255:
                    raise _Wrong(f"{value} is no exit code", "RETURN takes 0 to 255")
                code = _number(number)
                self._set(line, name, abort=Abort(code, code if value is None else value))
            case keyword:
                raise _Wrong(f"{keyword} is no command about nodes")

    def _set(self, line: _Line, name: str, **fields: Any) -> None:
        """ALL_NODES are all but the FINAL one, which may not be named in some commands either."""
        final_too = line.keyword in ("SCRIPT", "VARS", "PRE_SKIP")
        for draft in self._named(name):
            if draft.fields.get("last") and not final_too:
                raise _Wrong(f"{name} is the FINAL node, for which {line.keyword} means nothing", "remove the line")
            if "done" in fields and name.upper() == "ALL_NODES":
                raise _Wrong("then there would be nothing to run", "name one node")
            draft.fields.update(fields)

    def _named(self, name: str) -> Iterator[_Draft]:
        if name.upper() == "ALL_NODES":
            return (draft for draft in self._drafts.values() if not draft.fields.get("last"))
        if name not in self._drafts:
            raise _Wrong(f"there is no node {name}", nearest(name, self._drafts))
        return iter((self._drafts[name],))

    def _edges(self, line: _Line) -> None:
        middle = next((i for i, word in enumerate(line.words) if word.upper() == "CHILD"), 0)
        parents, children = line.words[:middle], line.words[middle + 1 :]
        if not parents or not children:
            raise _Wrong("names are missing", _usage(line))
        for name in (*parents, *children):
            for draft in self._named(name):
                if draft.fields.get("last") or name.upper() == "ALL_NODES":
                    raise _Wrong(f"{name} cannot be a parent or a child", "a FINAL node runs after all the others")
        for child in children:
            draft = self._drafts[child]
            for parent in parents:
                draft.parents.setdefault(parent, line)

    def _script(self, line: _Line) -> None:
        words = list(line.words)
        fields: dict[str, Any] = {}
        try:
            if words[0].upper() == "DEFER":
                fields |= {"defer_code": _number(words[1]), "defer_seconds": _number(words[2], 0)}
                del words[:3]
            if words[0].upper() == "DEBUG":
                fields |= {"log": words[1], "log_streams": words[2].upper()}
                if fields["log_streams"] not in ("STDOUT", "STDERR", "ALL"):
                    raise _Wrong(f"{words[2]} is no stream", "STDOUT, STDERR or ALL")
                del words[:3]
            kind, name, program, *arguments = words
        except (IndexError, ValueError):
            raise _Wrong("too few words", _usage(line)) from None
        if kind.upper() == "HOLD":
            next(self._named(name), None)
            self._warn(line, "jobs are never held")
            return
        if kind.upper() not in ("PRE", "POST"):
            raise _Wrong(f"{kind} is no kind of script", _usage(line))
        self._set(line, name, **{kind.lower(): Script((program, *arguments), **fields)})

    def _vars(self, line: _Line) -> None:
        name, _, rest = line.rest.partition(" ")
        rest = rest.strip()
        if rest.split(" ", 1)[0].upper() in ("PREPEND", "APPEND"):
            rest = rest.split(" ", 1)[1] if " " in rest else ""
        values: dict[str, str] = {}
        at = 0
        while match := _VARIABLE.match(rest, at):
            if match[1].lower().startswith("queue"):
                raise _Wrong(f"{match[1]} cannot be a variable's name", "it may not begin with queue")
            values[match[1]] = re.sub(r'\\([\\"])', r"\1", match[2])
            at = match.end()
        if rest[at:].strip() or not values:
            raise _Wrong(f"{rest[at:].strip() or 'nothing'} is not understood", _usage(line))
        for draft in self._named(name):
            draft.fields["variables"] = draft.fields.get("variables", {}) | values


class _Telling:
    """Puts a place to what went wrong with a line, and goes on with the next."""

    def __init__(self, reader: _Reader, line: _Line) -> None:
        self._reader, self._line = reader, line

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        if not isinstance(error, _Wrong):
            return False
        at = self._line
        self._reader.problems.append(Problem(at.file, at.number, 0, at.keyword, error.problem, error.allowed))
        return True


def _lines(path: str, text: str) -> Iterator[_Line]:
    numbered = iter(enumerate(text.splitlines(), 1))
    for number, line in numbered:
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        while line.endswith("\\"):
            line = line[:-1] + " " + next(numbered, (0, ""))[1].strip()
        if not line.strip():
            continue
        keyword, *rest = line.split(None, 1)
        written = rest[0].strip() if rest else ""
        yield _Line(path, number, keyword.upper(), tuple(written.split()), written)


def _skip_block(lines: Iterator[_Line]) -> None:
    for line in lines:
        if line.keyword.startswith("}"):
            return


def _usage(line: _Line) -> str:
    return f"write {UNDERSTOOD[line.keyword]}"


def _one(line: _Line) -> str:
    if len(line.words) != 1:
        raise _Wrong("one word is expected", _usage(line))
    return line.words[0]


def _two(line: _Line) -> tuple[str, str]:
    if len(line.words) != 2:
        raise _Wrong("two words are expected", _usage(line))
    return line.words[0], line.words[1]


def _with_option(line: _Line, option: str) -> tuple[str, str, int | None]:
    match line.words:
        case (name, number):
            return name, number, None
        case (name, number, word, value) if word.upper() == option:
            return name, number, _number(value)
        case _:
            raise _Wrong("not understood", _usage(line))


def _number(text: str, least: int | None = None) -> int:
    if not re.fullmatch(r"[-+]?\d{1,9}", text) or (least is not None and int(text) < least):
        raise _Wrong(
            f"{text} is not allowed here", "write a whole number" + ("" if least is None else f" from {least}")
        )
    return int(text)
