"""The ClassAd functions that may be asked of places, and what they make of what.

Left out are those whose answer would not be the same twice, or that look beyond the expression (`time`, `random`,
`eval`, `userHome`), since a decision is to come out the same when it is replayed; and those that make long text of
short. A pattern is written out, and simple: one job's must not hold up the plan for all others. All but three functions
are answered by the library.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from gridhypervisor.model.expressions.vocabulary import Type

TEXT, NUMBER, LIST, ANY = "text", "a number", "a list", "anything"


@dataclass(frozen=True)
class Function:
    name: str
    takes: tuple[str, ...]  # of each argument: one of the words above
    gives: Type
    optional: int = 0  # how many of the last arguments may be left out

    def result(self, arguments: Sequence[Type]) -> Type:
        """The type of its result; NUMBER where that is known only from the values."""
        if self.gives is not Type.NUMBER:
            return self.gives
        kinds = {kind for kind in arguments if kind is not Type.NOTHING}
        return kinds.pop() if kinds in ({Type.INT}, {Type.REAL}) else Type.NUMBER


FUNCTIONS: dict[str, Function] = {
    function.name.lower(): function
    for function in (
        Function("isUndefined", (ANY,), Type.BOOL),
        Function("isError", (ANY,), Type.BOOL),
        Function("ifThenElse", (ANY, ANY, ANY), Type.NUMBER),
        Function("member", (ANY, LIST), Type.BOOL),
        Function("identicalMember", (ANY, LIST), Type.BOOL),
        Function("anyCompare", (TEXT, LIST, ANY), Type.BOOL),
        Function("allCompare", (TEXT, LIST, ANY), Type.BOOL),
        Function("regexp", (TEXT, TEXT, TEXT), Type.BOOL, 1),
        Function("regexpMember", (TEXT, LIST, TEXT), Type.BOOL, 1),
        Function("strcmp", (TEXT, TEXT), Type.INT),
        Function("stricmp", (TEXT, TEXT), Type.INT),
        Function("substr", (TEXT, NUMBER, NUMBER), Type.STRING, 1),
        Function("toLower", (TEXT,), Type.STRING),
        Function("toUpper", (TEXT,), Type.STRING),
        Function("versionCmp", (TEXT, TEXT), Type.INT),
        Function("versionGT", (TEXT, TEXT), Type.BOOL),
        Function("versionGE", (TEXT, TEXT), Type.BOOL),
        Function("versionLT", (TEXT, TEXT), Type.BOOL),
        Function("versionLE", (TEXT, TEXT), Type.BOOL),
        Function("versionEQ", (TEXT, TEXT), Type.BOOL),
        Function("version_in_range", (TEXT, TEXT, TEXT), Type.BOOL),
        Function("size", (ANY,), Type.INT),
        Function("int", (ANY,), Type.INT),
        Function("real", (ANY,), Type.REAL),
        Function("floor", (NUMBER,), Type.INT),
        Function("ceiling", (NUMBER,), Type.INT),
        Function("round", (NUMBER,), Type.INT),
        Function("quantize", (NUMBER, NUMBER), Type.NUMBER),
        Function("min", (LIST,), Type.NUMBER),
        Function("max", (LIST,), Type.NUMBER),
        Function("sum", (LIST,), Type.NUMBER),
    )
}

BARRED = {
    **dict.fromkeys(("time", "currenttime", "random", "formattime", "interval"), "its answer changes from day to day"),
    **dict.fromkeys(("eval", "unparse", "userhome", "usermap", "debug"), "it looks beyond the expression"),
}
"""Functions of the library that no expression here may call, and why."""

INSTEAD = {
    "stringlistmember": 'write e.g. member("kvm", Hypervisors)',
    "stringlistimember": 'write e.g. member("kvm", Hypervisors)',
}


def wrong_type(wanted: str, kind: Type) -> bool:
    """Whether an argument of that type can never be what the function takes."""
    if kind is Type.NOTHING or wanted == ANY:
        return False
    return not {TEXT: kind is Type.STRING, NUMBER: kind.numeric, LIST: kind is Type.LIST}[wanted]


MOST_PATTERNS = 16  # in one expression
MOST_BRANCHES = (12, 6, 1, 0)
"""Of `|` and `?`, each of which may double the time, by how many `*`, `+` and `{…}` there are besides: each of these
multiplies it by the length of the text. So a pattern takes a tenth of a second at the worst."""

PATTERNS = ("regexp", "regexpmember")
"""Functions whose first argument is a regular expression."""


def costly(pattern: str) -> str:
    """Why a regular expression might take for ever on text of `MOST_STRING` characters; empty if it cannot."""
    if re.search(r"\\[1-9gk]|\(\?[^a-z:]|\(\*", pattern):
        return "the pattern looks back or ahead"
    if re.search(r"\\[QE]|#", pattern):  # what follows may mean something else than it seems to
        return "the pattern quotes or comments"
    bare = re.sub(r"\\.|\[\^?\]?(?:\[:\w+:\]|[^]])*\]", "x", pattern, flags=re.DOTALL)
    bare = re.sub(r"\(\?[a-z]*:?", "(", bare)
    if re.search(r"\)[*+{]", bare):
        return "the pattern repeats a group"
    repeats, branches = len(re.findall(r"[*+{]", bare)), len(re.findall(r"[|?]", bare))
    if repeats >= len(MOST_BRANCHES):
        return f"the pattern repeats more than {len(MOST_BRANCHES) - 1} times"
    if branches > MOST_BRANCHES[repeats]:
        return f"the pattern has more than {MOST_BRANCHES[repeats]} branches"
    return ""
