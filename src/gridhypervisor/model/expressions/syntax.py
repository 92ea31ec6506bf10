"""Reads a ClassAd expression: text in, a tree that knows where each part was written out.

The library's own parser says only that a text is wrong, and its trees cannot be walked. This one reads the part of the
language that can be asked of places: no nested ads, no subscripts, no bit operations. What it accepts it reads as the
library does (`?:` binds most tightly, then signs, then as in C); a property test holds the two to the same answers.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

from gridhypervisor.model.expressions.vocabulary import Nothing

MOST_TEXT = 10_000  # characters of one expression
MOST_STRING = 128  # characters of a text in it
MOST_NESTED = 30  # parentheses, signs and choices in one another
MOST_DEEP = 150  # of a tree: a + b + c is three deep


class ExpressionError(ValueError):
    """An expression that means nothing: what is wrong, where (`at`: characters before it), what to write instead."""

    def __init__(self, text: str, at: int, problem: str, allowed: str = "") -> None:
        self.text, self.at, self.problem, self.allowed = text, at, problem, allowed
        super().__init__(f"at character {at + 1} of {_cut(text)}: " + "; ".join(filter(None, (problem, allowed))))


def _cut(text: str) -> str:
    return f"`{text}`" if len(text) <= 200 else f"`{text[:199]}…`"


@dataclass(frozen=True)
class Literal:
    value: bool | int | float | str | Nothing
    start: int
    end: int


@dataclass(frozen=True)
class Reference:
    name: str
    start: int
    end: int


@dataclass(frozen=True)
class Sign:
    """`!`, `-` or `+` before something."""

    sign: str
    operand: Node
    start: int
    end: int


@dataclass(frozen=True)
class Operation:
    operator: str
    left: Node
    right: Node
    start: int
    end: int
    at: int  # of the operator


@dataclass(frozen=True)
class Choice:
    """`condition ? chosen : other`."""

    condition: Node
    chosen: Node
    other: Node
    start: int
    end: int


@dataclass(frozen=True)
class Default:
    """`value ?: other`: the other where the value is undefined."""

    value: Node
    other: Node
    start: int
    end: int


@dataclass(frozen=True)
class Call:
    function: str
    arguments: tuple[Node, ...]
    start: int
    end: int


@dataclass(frozen=True)
class Items:
    items: tuple[Node, ...]
    start: int
    end: int


Node = Literal | Reference | Sign | Operation | Choice | Default | Call | Items

_TOKEN = re.compile(
    r"""\s*(?:
      (?P<real>(?:\d+\.\d+|\.\d+)(?:[eE][-+]?\d+)?(?![\w.])|\d+[eE][-+]?\d+(?![\w.]))
    | (?P<whole>\d+(?![\w.]))
    | (?P<text>"(?:[^"\\]|\\.)*")
    | (?P<word>(?:(?:TARGET|MY)\s*\.\s*)?[A-Za-z_]\w*)
    | (?P<sign>=\?=|=!=|\?:|&&|\|\||==|!=|<=|>=|[-+*/%<>!?:(){},])
    | (?P<end>\Z)
    )""",
    re.VERBOSE | re.ASCII | re.IGNORECASE | re.DOTALL,
)
_LEVELS = (("||",), ("&&",), ("==", "!=", "=?=", "=!="), ("<", "<=", ">", ">="), ("+", "-"), ("*", "/", "%"))
_WORDS: dict[str, bool | Nothing] = {
    "true": True,
    "false": False,
    "undefined": Nothing.UNDEFINED,
    "error": Nothing.ERROR,
}
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r"}
_MISTAKES = {
    "=": "write == for “is equal to”",
    "&": "write && for “and”",
    "|": "write || for “or”",
    "'": 'write text in double quotes: "slurm"',
    "[": "nested ads and subscripts cannot be asked of a place",
    ".": "write a fraction with a digit on either side of the point",
}


@dataclass(frozen=True)
class _Token:
    kind: str
    text: str
    start: int
    end: int


def parse(text: str) -> Node:
    """The tree of an expression.

    Raises:
        ExpressionError: the text is none.
    """
    if len(text) > MOST_TEXT:
        raise ExpressionError(text, MOST_TEXT, f"the expression is longer than {MOST_TEXT} characters")
    return _Parser(text).whole()


def conjuncts(node: Node) -> Iterator[Node]:
    """The parts that must all hold: what is joined by `&&` outermost."""
    if isinstance(node, Operation) and node.operator == "&&":
        yield from conjuncts(node.left)
        yield from conjuncts(node.right)
    else:
        yield node


def parts_of(node: Node) -> tuple[Node, ...]:
    """What it is made of, from left to right."""
    match node:
        case Literal() | Reference():
            return ()
        case Sign():
            return (node.operand,)
        case Operation():
            return (node.left, node.right)
        case Choice():
            return (node.condition, node.chosen, node.other)
        case Default():
            return (node.value, node.other)
        case Call(arguments=parts) | Items(items=parts):
            return parts


def references(node: Node) -> Iterator[Reference]:
    """Every attribute that it reads, as often as it does."""
    if isinstance(node, Reference):
        yield node
    for part in parts_of(node):
        yield from references(part)


def quote(text: str) -> str:
    """Text as it is written in an expression."""
    for plain, written in (("\\", "\\\\"), ('"', '\\"'), ("\n", "\\n"), ("\t", "\\t"), ("\r", "\\r")):
        text = text.replace(plain, written)
    return f'"{text}"'


class _Parser:
    def __init__(self, text: str) -> None:
        self._text, self._depth = text, 0
        self._tokens = list(self._read())
        self._next = 0

    def whole(self) -> Node:
        if self._peek.kind == "end":
            raise ExpressionError(self._text, 0, "the expression is empty")
        node = self._choice()
        if self._peek.kind != "end":
            raise self._unexpected("an operator or the end")
        level, depth = parts_of(node), 1
        while level:
            level, depth = tuple(part for above in level for part in parts_of(above)), depth + 1
            if depth > MOST_DEEP:
                advice = "write e.g. member(Site, {…}) for many names"
                raise ExpressionError(self._text, 0, f"more than {MOST_DEEP} parts are joined in a row", advice)
        return node

    def _read(self) -> Iterator[_Token]:
        at = 0
        while True:
            match = _TOKEN.match(self._text, at)
            if match is None or match.lastgroup is None:
                raise self._strange(at + len(self._text[at:]) - len(self._text[at:].lstrip()))
            kind = match.lastgroup
            yield _Token(kind, match[kind], match.start(kind), match.end(kind))
            if kind == "end":
                return
            at = match.end()

    def _strange(self, at: int) -> ExpressionError:
        sign = self._text[at]
        if sign == '"':
            return ExpressionError(self._text, at, "the text that begins here has no closing quote")
        if number := re.match(r"[\d.]\w*", self._text[at:]):
            advice = "write it out in digits: sizes are in MiB, times in seconds"
            return ExpressionError(self._text, at, f"{number[0]!r} is not a number", advice)
        return ExpressionError(self._text, at, f"{sign!r} is not expected here", _MISTAKES.get(sign, ""))

    @property
    def _peek(self) -> _Token:
        return self._tokens[self._next]

    def _take(self, *signs: str) -> _Token | None:
        """The next token, if it is one of these signs or words."""
        token = self._peek
        if token.kind in ("sign", "word") and token.text.lower() in signs:
            self._next += 1
            return token
        return None

    def _expect(self, sign: str, opened: _Token | None = None) -> _Token:
        if (token := self._take(sign)) is None:
            since = f", for the {opened.text!r} at character {opened.start + 1}" if opened else ""
            raise self._unexpected(repr(sign) + since)
        return token

    def _unexpected(self, wanted: str) -> ExpressionError:
        token = self._peek
        found = "the expression ends" if token.kind == "end" else f"{token.text!r} is not expected"
        return ExpressionError(self._text, token.start, f"{found} here", f"{wanted} is wanted")

    def _deeper(self) -> None:
        self._depth += 1
        if self._depth > MOST_NESTED:
            raise ExpressionError(self._text, self._peek.start, f"nested more than {MOST_NESTED} deep")

    def _choice(self) -> Node:
        self._deeper()
        node = self._operation(0)
        if self._take("?"):
            chosen = self._choice()
            self._expect(":")
            other = self._choice()
            node = Choice(node, chosen, other, node.start, other.end)
        self._depth -= 1
        return node

    def _operation(self, level: int) -> Node:
        if level == len(_LEVELS):
            return self._sign()
        node = self._operation(level + 1)
        signs = _LEVELS[level] + (("is", "isnt") if "=?=" in _LEVELS[level] else ())
        while (token := self._take(*signs)) is not None:
            right = self._operation(level + 1)
            operator = {"is": "=?=", "isnt": "=!="}.get(token.text.lower(), token.text)
            node = Operation(operator, node, right, node.start, right.end, token.start)
        return node

    def _sign(self) -> Node:
        if (token := self._take("!", "-", "+")) is None:
            return self._default()
        self._deeper()
        operand = self._sign()
        self._depth -= 1
        return Sign(token.text, operand, token.start, operand.end)

    def _default(self) -> Node:
        node = self._primary()
        while self._take("?:"):
            other = self._sign() if self._peek.text in ("-", "+") else self._primary()
            node = Default(node, other, node.start, other.end)
        return node

    def _primary(self) -> Node:
        token = self._peek
        self._next += 1
        match token.kind:
            case "whole":
                if int(token.text) > 2**63 - 1:
                    raise ExpressionError(self._text, token.start, "the number is too large")
                return Literal(int(token.text), token.start, token.end)
            case "real":
                return Literal(float(token.text), token.start, token.end)
            case "text":
                if len(value := self._unescape(token)) > MOST_STRING:
                    raise ExpressionError(self._text, token.start, f"the text is longer than {MOST_STRING} characters")
                return Literal(value, token.start, token.end)
            case "word":
                return self._word(token)
            case _:
                return self._enclosed(token)

    def _enclosed(self, token: _Token) -> Node:
        if token.text == "(":
            node = self._choice()
            return replace(node, start=token.start, end=self._expect(")", token).end)
        if token.text == "{":
            items, end = self._list("}", token)
            return Items(items, token.start, end)
        self._next -= 1
        raise self._unexpected("a value, an attribute or a parenthesis")

    def _word(self, token: _Token) -> Node:
        scope, _, name = token.text.rpartition(".")
        name = name.strip()
        if scope.strip().lower() == "my":
            advice = f"write {name} for the place's"
            raise ExpressionError(self._text, token.start, "MY. would be the job's own attributes", advice)
        if (opened := self._take("(")) is not None:
            arguments, end = self._list(")", opened)
            return Call(name, arguments, token.start, end)
        if not scope and name.lower() in _WORDS:
            return Literal(_WORDS[name.lower()], token.start, token.end)
        return Reference(name, token.start, token.end)

    def _list(self, closing: str, opened: _Token) -> tuple[tuple[Node, ...], int]:
        items: list[Node] = []
        if (token := self._take(closing)) is not None:
            return (), token.end
        while True:
            items.append(self._choice())
            if not self._take(","):
                return tuple(items), self._expect(closing, opened).end

    def _unescape(self, token: _Token) -> str:
        for odd in re.finditer(r"\\.|\0", token.text, re.DOTALL):
            if odd[0] == "\0" or odd[0][1] in "0123456789abfv":
                at = token.start + odd.start()
                raise ExpressionError(self._text, at, "that character cannot be written so", "write it as itself")
        return re.sub(r"\\(.)", lambda m: _ESCAPES.get(m[1], m[1]), token.text[1:-1], flags=re.DOTALL)
