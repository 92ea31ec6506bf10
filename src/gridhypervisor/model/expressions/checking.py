"""Finds what can never be meant in an expression: names that nobody publishes, types that do not fit together.

Types are known beforehand since each attribute has one: so text compared with a number is a mistake that is reported
when it is made, and not a job that waits for ever.
"""

from __future__ import annotations

from collections.abc import Callable

from gridhypervisor.model.expressions.functions import (
    BARRED,
    FUNCTIONS,
    INSTEAD,
    MOST_PATTERNS,
    PATTERNS,
    costly,
    wrong_type,
)
from gridhypervisor.model.expressions.syntax import (
    Call,
    Choice,
    Default,
    ExpressionError,
    Items,
    Literal,
    Node,
    Operation,
    Reference,
    Sign,
)
from gridhypervisor.model.expressions.vocabulary import ATTRIBUTES, Nothing, Scalar, Type, attribute, nearest


def check(tree: Node, text: str, wanted: Callable[[Type], bool]) -> dict[int, Type]:
    """The type of each part of a tree, by the part's `id`. `wanted`: whether a result of that type is of use.

    Raises:
        ExpressionError: it reads what nobody publishes, or its types do not fit together; or its result is of no use.
    """
    checker = _Checker(text)
    found = checker.check(tree)
    if not wanted(found):
        needed = "a number" if wanted(Type.INT) else "true or false"
        raise ExpressionError(text, tree.start, f"the expression comes to {found.value}", f"it has to come to {needed}")
    return checker.types


def is_truth(kind: Type) -> bool:
    """What requirements have to come to."""
    return kind is Type.BOOL


def is_number(kind: Type) -> bool:
    """What a rank has to come to."""
    return kind.numeric


class _Checker:
    def __init__(self, text: str) -> None:
        self._text, self._patterns = text, 0
        self.types: dict[int, Type] = {}

    def check(self, node: Node) -> Type:
        kind = self.types[id(node)] = self._check(node)
        return kind

    def _check(self, node: Node) -> Type:
        match node:
            case Literal():
                return _literal(node.value)
            case Reference():
                known = attribute(node.name)
                if known is None:
                    raise self._error(node, f"no site publishes {node.name}", nearest(node.name, ATTRIBUTES))
                return known.type
            case Sign():
                return self._sign(node)
            case Operation():
                return self._operation(node)
            case Choice():
                self._truth(node.condition)
                return self._one_of(node.chosen, node.other)
            case Default():
                return self._one_of(node.value, node.other)
            case Call():
                return self._call(node)
            case Items():
                self._items(node)
                return Type.LIST

    def _error(self, node: Node, problem: str, allowed: str = "") -> ExpressionError:
        at = node.at if isinstance(node, Operation) else node.start
        return ExpressionError(self._text, at, problem, allowed)

    def _says(self, node: Node, kind: Type) -> str:
        words = " ".join(self._text[node.start : node.end].split())
        return f"{words if len(words) <= 60 else words[:59] + '…'} is {kind.value}"

    def _truth(self, node: Node) -> None:
        kind = self.check(node)
        if not kind.numeric and kind is not Type.NOTHING:
            raise self._error(node, self._says(node, kind), "true or false is wanted here")

    def _sign(self, node: Sign) -> Type:
        if node.sign == "!":
            self._truth(node.operand)
            return Type.BOOL
        kind = self.check(node.operand)
        if kind is Type.BOOL or not (kind.numeric or kind is Type.NOTHING):
            raise self._error(node, self._says(node.operand, kind), f"a number is wanted after {node.sign}")
        return kind

    def _operation(self, node: Operation) -> Type:
        if node.operator in ("&&", "||"):
            self._truth(node.left)
            self._truth(node.right)
            return Type.BOOL
        left, right = self.check(node.left), self.check(node.right)
        both = f"{self._says(node.left, left)} and {self._says(node.right, right)}"
        compares = node.operator in ("==", "!=", "<", "<=", ">", ">=")
        if node.operator in ("=?=", "=!="):
            if left is right is Type.LIST:
                raise self._error(node, f"{both}: lists are not compared", 'write e.g. member("kvm", Hypervisors)')
            return Type.BOOL
        for part, kind in ((node.left, left), (node.right, right)):
            if kind is Type.LIST:
                advice = 'write e.g. member("kvm", Hypervisors)'
                raise self._error(node, f"{self._says(part, kind)}: it stands for several values", advice)
            if kind is Type.STRING and not compares:
                raise self._error(node, f"{self._says(part, kind)}: {node.operator} is for numbers")
        if Type.NOTHING not in (left, right) and (left is Type.STRING) != (right is Type.STRING):
            advice = "write numbers without quotes, text with double quotes"
            raise self._error(node, f"{both}: they cannot be compared", advice)
        if compares:
            return Type.BOOL
        if node.operator == "%" and Type.REAL in (left, right):
            raise self._error(node, f"{both}: % is for whole numbers", "write int(…) around the other")
        return reckoned(left, right)

    def _one_of(self, first: Node, second: Node) -> Type:
        a, b = self.check(first), self.check(second)
        if a is b or Type.NOTHING in (a, b):
            return b if a is Type.NOTHING else a
        if a.numeric and b.numeric:
            return Type.NUMBER
        raise self._error(second, f"{self._says(first, a)} and {self._says(second, b)}", "both have to be of one kind")

    def _pattern(self, node: Node) -> None:
        self._patterns += 1
        if self._patterns > MOST_PATTERNS:
            raise self._error(node, f"the expression has more than {MOST_PATTERNS} patterns")
        if not isinstance(node, Literal) or not isinstance(node.value, str):
            raise self._error(node, "the pattern is not written out", 'write e.g. regexp("^n[0-9]", Node)')
        if why := costly(node.value):
            raise self._error(node, why, 'write several, e.g. regexp("^a", Node) || regexp("^b", Node)')

    def _items(self, node: Items) -> Type:
        """What its items are; NOTHING of an empty list."""
        kinds = {self.check(item) for item in node.items} - {Type.NOTHING}
        if Type.LIST in kinds or (Type.STRING in kinds and len(kinds) > 1):
            raise self._error(node, "the items of this list are of several kinds", "write all text or all numbers")
        if not kinds:
            return Type.NOTHING
        return kinds.pop() if len(kinds) == 1 else Type.NUMBER

    def _call(self, node: Call) -> Type:
        function = FUNCTIONS.get(node.function.lower())
        if function is None:
            if why := BARRED.get(node.function.lower()):
                raise self._error(node, f"{node.function}() cannot be called here: {why}")
            names = [known.name for known in FUNCTIONS.values()]
            advice = INSTEAD.get(node.function.lower()) or nearest(node.function, names)
            raise self._error(node, f"there is no function {node.function}", advice)
        most, least = len(function.takes), len(function.takes) - function.optional
        if not least <= len(node.arguments) <= most:
            takes = ", ".join(function.takes[:least] + tuple(f"[{word}]" for word in function.takes[least:]))
            raise self._error(node, f"{function.name} is given {len(node.arguments)} values", f"it takes {takes}")
        if function.name == "ifThenElse":
            self._truth(node.arguments[0])
            return self._one_of(*node.arguments[1:])
        kinds = []
        for part, wanted in zip(node.arguments, function.takes, strict=False):
            kind = self.check(part)
            if wrong_type(wanted, kind):
                raise self._error(part, self._says(part, kind), f"{function.name} takes {wanted} here")
            kinds.append(self._items(part) if isinstance(part, Items) else kind)
        if function.name.lower() in PATTERNS:
            self._pattern(node.arguments[0])
        if function.name in ("min", "max", "sum") and kinds[0] in (Type.STRING, Type.LIST):
            raise self._error(node, f"{function.name} is of numbers", f"write e.g. {function.name}({{Cpus, 4}})")
        return function.result(kinds)


def _literal(value: Scalar) -> Type:
    match value:
        case bool():
            return Type.BOOL
        case int():
            return Type.INT
        case float():
            return Type.REAL
        case str():
            return Type.STRING
        case tuple():
            return Type.LIST
        case Nothing():
            return Type.NOTHING


def reckoned(left: Type, right: Type) -> Type:
    """The type of what is added, subtracted, multiplied or divided."""
    kinds = {left, right} - {Type.NOTHING}
    if Type.NUMBER in kinds:
        return Type.NUMBER
    return Type.REAL if Type.REAL in kinds else Type.INT
