"""GridWay's requirements and rank, translated into ClassAd expressions that give the same answers.

Read off GridWay's own grammar, where it is unlike others:
- `&`, `|` and `!` bind equally, from left to right: `a | b & c` is `(a | b) & c`, and `!a & b` is `(!a) & b`.
- Text is compared as the shell matches names: `* ? [a-z]`, and capital letters count.
- A number that a host does not publish is 0; text that it does not publish is neither equal nor unequal to any.
- A requirement compares a variable with a constant, by `=`, `!=`, `<` or `>`; a rank adds, subtracts, multiplies and
  divides variables and constants.
- Whatever is none of its signs is passed over, `.` among it; here it is an error instead, as nobody means it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

from gridhypervisor.model.expressions.syntax import MOST_NESTED, ExpressionError, quote
from gridhypervisor.model.expressions.vocabulary import ATTRIBUTES, GRIDWAY, GRIDWAY_ONLY, Type, attribute, nearest

_TOKEN = re.compile(
    r"""\s*(?:(?P<word>[A-Za-z]\w*)|(?P<whole>\d+)|(?P<text>"[^"]*")|(?P<sign>!=|[!&|=<>;()*/+-])|(?P<end>\Z))""",
    re.ASCII,
)


class _Token(NamedTuple):
    kind: str
    text: str
    at: int


def requirements_of_gridway(text: str) -> str:
    """A REQUIREMENTS expression of a job template as a ClassAd expression; what is empty is always true.

    Raises:
        ExpressionError: it is none, or reads what nobody publishes.
    """
    return _Translator(text).requirements()


def rank_of_gridway(text: str) -> str:
    """A RANK expression of a job template as a ClassAd expression; what is empty is 0.

    Raises:
        ExpressionError: it is none, or reads what nobody publishes.
    """
    return _Translator(text).rank()


def pattern_of(glob: str) -> str:
    """The regular expression, as the ClassAd library reads it, of all that a shell's pattern matches."""
    out: list[str] = []
    at = 0
    while at < len(glob):
        sign = glob[at]
        at += 1
        if sign == "*":
            out += [".*"] if out[-1:] != [".*"] else []
        elif sign == "?":
            out.append(".")
        elif sign == "\\" and at < len(glob):
            out.append(re.escape(glob[at]))
            at += 1
        elif sign == "[" and (found := re.match(r"([!^]?)(\]?(?:\[:[a-z]+:\]|[^]])*)\]", glob[at:])) and found[2]:
            inside = found[2].replace("\\", "\\\\")
            out.append(f"[{'^' if found[1] else ''}{inside}]")
            at += found.end()
        else:
            out.append(re.escape(sign))
    return f"\\A(?s:{''.join(out)})\\z"


class _Translator:
    def __init__(self, text: str) -> None:
        self._text, self._depth, self._next = text, 0, 0
        self._tokens = list(self._read())

    def requirements(self) -> str:
        return self._whole(self._joined, "true")

    def rank(self) -> str:
        return self._whole(lambda: self._sums(0), "0")

    def _whole(self, read: Callable[[], str], empty: str) -> str:
        translated = empty if self._peek.text in (";", "") else read()
        self._take(";")
        if self._peek.kind != "end":
            raise self._unexpected("an operator or the end")
        return translated

    def _read(self) -> Iterator[_Token]:
        at = 0
        while True:
            found = _TOKEN.match(self._text, at)
            if found is None or found.lastgroup is None:
                at += len(self._text[at:]) - len(self._text[at:].lstrip())
                what = "the text that begins here has no closing quote" if self._text[at] == '"' else ""
                raise ExpressionError(self._text, at, what or f"{self._text[at]!r} is no sign of GridWay's")
            yield _Token(found.lastgroup, found[found.lastgroup], found.start(found.lastgroup))
            if found.lastgroup == "end":
                return
            at = found.end()

    @property
    def _peek(self) -> _Token:
        return self._tokens[self._next]

    def _take(self, *signs: str) -> _Token | None:
        token = self._peek
        if token.kind == "sign" and token.text in signs:
            self._next += 1
            return token
        return None

    def _unexpected(self, wanted: str) -> ExpressionError:
        token = self._peek
        found = "the expression ends" if token.kind == "end" else f"{token.text!r} is not expected"
        return ExpressionError(self._text, token.at, f"{found} here", f"{wanted} is wanted")

    def _deeper(self, read: Callable[[], str]) -> str:
        self._depth += 1
        if self._depth > MOST_NESTED:
            raise ExpressionError(self._text, self._peek.at, f"nested more than {MOST_NESTED} deep")
        translated = read()
        self._depth -= 1
        return translated

    # --- Requirements.

    def _joined(self) -> str:
        parts, joint = [self._single()], ""
        while (token := self._take("&", "|")) is not None:
            if (twice := self._peek).text == token.text:
                advice = f"GridWay's {'and' if token.text == '&' else 'or'} is a single {token.text}"
                raise ExpressionError(self._text, twice.at, f"{twice.text!r} is not expected here", advice)
            if joint and token.text != joint:
                parts = [_enclosed(joint * 2, parts)]
            joint = token.text
            parts.append(self._single())
        return _enclosed(joint * 2, parts)

    def _single(self) -> str:
        if self._take("!"):
            return f"!{self._deeper(self._single)}"
        if self._take("("):
            inside = self._deeper(self._joined)
            if not self._take(")"):
                raise self._unexpected("')'")
            return inside if inside.startswith("(") else f"({inside})"
        return self._comparison()

    def _comparison(self) -> str:
        word = self._peek
        if word.kind != "word":
            raise self._unexpected('a variable, as in ARCH = "x86_64",')
        self._next += 1
        sign = self._take("=", "!=", "<", ">")
        if sign is None:
            raise self._unexpected("=, !=, < or >")
        if (odd := self._peek).text == "=":
            advice = {
                "=": "GridWay's sign for “is equal to” is a single =",
                "<": f"write !({word.text} > …) for “at most”",
                ">": f"write !({word.text} < …) for “at least”",
            }.get(sign.text, "")
            raise ExpressionError(self._text, odd.at, "'=' is not expected here", advice)
        meant, kind = self._variable(word)
        minus = "-" if self._take("-") else ""
        value = self._peek
        if value.kind == "whole":
            self._next += 1
            if kind is Type.STRING:
                raise ExpressionError(self._text, value.at, f"{word.text} is text", "write what it is to be in quotes")
            return f"({_known(meant)} {'==' if sign.text == '=' else sign.text} {minus}{int(value.text)})"
        if value.kind != "text" or minus:
            raise self._unexpected("a whole number, or text in quotes,")
        if kind is not Type.STRING:
            raise ExpressionError(self._text, value.at, f"{word.text} is {kind.value}", "write a whole number")
        if sign.text in "<>":
            raise ExpressionError(self._text, sign.at, f"{word.text} is text", "compare it by = or !=")
        self._next += 1
        return _alike(meant, value.text[1:-1], sign.text == "=")

    # --- Rank.

    def _sums(self, level: int) -> str:
        if level == 2:
            return self._factor()
        text, alone = self._sums(level + 1), True
        while (token := self._take(*("+-", "*/")[level])) is not None:
            text, alone = f"{text} {token.text} {self._sums(level + 1)}", False
        return text if alone else f"({text})"

    def _factor(self) -> str:
        if self._take("-"):
            return f"(-{self._deeper(self._factor)})"
        if self._take("("):
            inside = self._deeper(lambda: self._sums(0))
            if not self._take(")"):
                raise self._unexpected("')'")
            return inside
        token = self._peek
        if token.kind == "whole":
            self._next += 1
            return str(int(token.text))
        if token.kind != "word":
            raise self._unexpected("a variable or a whole number")
        self._next += 1
        meant, kind = self._variable(token)
        if kind is Type.STRING:
            raise ExpressionError(self._text, token.at, f"{token.text} is text", "a rank is of numbers")
        return _known(meant)

    # --- Both.

    def _variable(self, token: _Token) -> tuple[str, Type]:
        """The ClassAd expression that says the same, and its type."""
        if token.text in GRIDWAY_ONLY:
            raise ExpressionError(self._text, token.at, f"{token.text} of GridWay has no equivalent here")
        if (meant := GRIDWAY.get(token.text)) is not None:
            first = attribute(meant.split()[0])
            assert first is not None
            return meant, first.type
        known = attribute(token.text)
        if known is None or known.type is Type.LIST:
            guess = nearest(token.text, [*GRIDWAY, *ATTRIBUTES])
            raise ExpressionError(self._text, token.at, f"no site publishes {token.text}", guess)
        return known.name, known.type


def _enclosed(joint: str, parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else f"({f' {joint} '.join(parts)})"


def _known(meant: str) -> str:
    return f"(({meant}) ?: 0)" if " " in meant else f"({meant} ?: 0)"


def _alike(meant: str, glob: str, wanted: bool) -> str:
    meant = f"({meant})" if " " in meant else meant
    if not re.search(r"[*?\[\\]", glob):
        if wanted:
            return f"({meant} =?= {quote(glob)})"
        return f"({meant} =!= {quote(glob)} && {meant} =!= undefined)"
    return f"(regexp({quote(pattern_of(glob))}, {meant}) =?= {'true' if wanted else 'false'})"
