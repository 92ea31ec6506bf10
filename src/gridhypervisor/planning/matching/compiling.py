"""Makes of a tree what answers for all places at once.

Operators become NumPy's; what is asked of text, of lists and by functions goes to the library, once for each different
set of arguments. Where the type of a part is known only from its values (a choice between a whole number and a
fraction), the whole expression goes to the library, once for each different set of what it reads.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from gridhypervisor.model.expressions.checking import reckoned
from gridhypervisor.model.expressions.syntax import (
    Call,
    Choice,
    Default,
    Items,
    Literal,
    Node,
    Operation,
    Reference,
    Sign,
    quote,
    references,
)
from gridhypervisor.model.expressions.vocabulary import Nothing, Type, attribute
from gridhypervisor.planning.matching import columns
from gridhypervisor.planning.matching.classads import Question
from gridhypervisor.planning.matching.columns import Answers, Column, column_of


class Source(Protocol):
    """Where the values of attributes come from."""

    def column(self, name: str) -> Column: ...


Run = Callable[[Source], Column]


class Uncertain(Exception):
    """The type of a part depends on its values."""


def compile_tree(tree: Node, types: dict[int, Type]) -> tuple[Run, bool]:
    """What answers, and whether in columns. `types`: of each part, as `check` found them."""
    builder = _Builder(types)
    try:
        return builder.real(tree) if types[id(tree)] is Type.NUMBER else builder.build(tree), True
    except Uncertain:
        return _by_library(tree, Type.BOOL if types[id(tree)] is Type.BOOL else Type.REAL), False


def unparse(node: Node, leaf: Callable[[Node], str | None] = lambda node: None) -> str:
    """The expression as the library reads it, operations in parentheses; `leaf` may put its own text for a part."""
    if (given := leaf(node)) is not None:
        return given
    match node:
        case Literal(value=Nothing() as value):
            return value.value
        case Literal(value=bool() as value):
            return "true" if value else "false"
        case Literal(value=str() as value):
            return quote(value)
        case Literal(value=float() as value):
            return "1e400" if value == float("inf") else f"{value:.17e}"
        case Literal(value=value):
            return str(value)
        case Reference():
            return node.name
        case Sign():
            return f"({node.sign}{unparse(node.operand, leaf)})"
        case Operation():
            return f"({unparse(node.left, leaf)} {node.operator} {unparse(node.right, leaf)})"
        case Choice():
            parts = [unparse(part, leaf) for part in (node.condition, node.chosen, node.other)]
            return "({} ? {} : {})".format(*parts)
        case Default():
            return f"({unparse(node.value, leaf)} ?: ({unparse(node.other, leaf)}))"
        case Call():
            return f"{node.function}({', '.join(unparse(part, leaf) for part in node.arguments)})"
        case Items():
            return f"{{{', '.join(unparse(item, leaf) for item in node.items)}}}"


class _Builder:
    def __init__(self, types: dict[int, Type]) -> None:
        self._types = types

    def build(self, node: Node) -> Run:
        kind = self._types[id(node)]
        if kind is Type.NUMBER:
            raise Uncertain
        match node:
            case Literal(value=value):
                made = column_of(Type.INT if kind is Type.NOTHING else kind, [value])
                return _always(Column(kind, made.data, made.state, made.table))
            case Reference():
                name = _name(node)
                return lambda source: source.column(name)
            case Sign():
                return self._sign(node)
            case Operation():
                return self._operation(node)
            case Choice():
                return self._choice(node.condition, node.chosen, node.other)
            case Default():
                first, other = self.build(node.value), self.build(node.other)
                return lambda source: columns.default(first(source), other(source))
            case Call():
                return self._call(node, kind)
            case Items():
                return self._ask(node, kind)

    def real(self, node: Node) -> Run:
        """Numbers of which nobody asks any more whether they are whole."""
        match node:
            case Choice():
                which, a, b = self.build(node.condition), self.real(node.chosen), self.real(node.other)
                return lambda source: columns.choose(which(source), a(source), b(source))
            case Default():
                first, other = self.real(node.value), self.real(node.other)
                return lambda source: columns.default(first(source), other(source))
            case _:
                run = self.build(node)
                return lambda source: columns.real(run(source))

    def _sign(self, node: Sign) -> Run:
        operand = self.build(node.operand)
        match node.sign:
            case "!":
                return lambda source: columns.negate(operand(source))
            case "-":
                return lambda source: columns.minus(operand(source))
            case _:
                return operand

    def _operation(self, node: Operation) -> Run:
        a, b, operator = self.build(node.left), self.build(node.right), node.operator
        left, right = self._types[id(node.left)], self._types[id(node.right)]
        match operator:
            case "&&":
                return lambda source: columns.both(a(source), b(source))
            case "||":
                return lambda source: columns.either(a(source), b(source))
            case "=?=" | "=!=":
                if left is right and left.coded:
                    return self._ask(node, Type.BOOL)
                if operator == "=?=":
                    return lambda source: columns.identical(a(source), b(source))
                return lambda source: columns.negate(columns.identical(a(source), b(source)))
            case "+" | "-" | "*" | "/" | "%":
                kind = reckoned(left, right)
                return lambda source: columns.reckon(operator, kind, a(source), b(source))
            case _:
                if left.coded or right.coded:
                    return self._ask(node, Type.BOOL)
                return lambda source: columns.compare(operator, a(source), b(source))

    def _choice(self, condition: Node, chosen: Node, other: Node) -> Run:
        which, a, b = self.build(condition), self.build(chosen), self.build(other)
        return lambda source: columns.choose(which(source), a(source), b(source))

    def _call(self, node: Call, kind: Type) -> Run:
        match node.function.lower():
            case "ifthenelse":
                return self._choice(*node.arguments)
            case "isundefined":
                part = self.build(node.arguments[0])
                return lambda source: columns.is_undefined(part(source))
            case "iserror":
                part = self.build(node.arguments[0])
                return lambda source: columns.is_error(part(source))
            case _:
                return self._ask(node, kind)

    def _ask(self, node: Node, kind: Type) -> Run:
        """The library's answer about a node whose parts are columns; constants are written into the question."""
        parts: list[Run] = []

        def leaf(part: Node) -> str | None:
            if part is node or isinstance(part, (Literal, Items)):
                return None
            parts.append(self.build(part))
            return f"a{len(parts) - 1}"

        question = Question(unparse(node, leaf))
        if not parts:
            return _always(column_of(kind, question.ask([()])))
        answers = Answers(kind, question.ask)
        return lambda source: answers.of([run(source) for run in parts])


def _always(column: Column) -> Run:
    return lambda source: column


def _by_library(tree: Node, kind: Type) -> Run:
    names: dict[str, str] = {}
    for each in references(tree):
        names.setdefault(_name(each), f"a{len(names)}")
    question = Question(unparse(tree, lambda part: names[_name(part)] if isinstance(part, Reference) else None))
    answers = Answers(kind, question.ask)
    return lambda source: answers.of([source.column(name) for name in names])


def _name(node: Reference) -> str:
    """The attribute as the vocabulary writes it."""
    known = attribute(node.name)
    return known.name if known is not None else node.name
