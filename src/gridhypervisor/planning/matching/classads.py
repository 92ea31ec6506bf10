"""The ClassAd library: what HTCondor itself reads expressions with. The one module that imports it.

It is asked what NumPy cannot say: about text, about lists, and by its functions; once for each set of arguments, as
there are far fewer different values than places. It is imported when it is first asked, since that takes 0.1 s.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from gridhypervisor.model.expressions.vocabulary import Nothing, Scalar


class Question:
    """An expression over arguments that it names `a0`, `a1`, …"""

    def __init__(self, text: str) -> None:
        self.text = text
        self._tree: Any = None

    def ask(self, cases: Iterable[Sequence[Scalar]]) -> list[Scalar]:
        """The answer to each case, a value for each argument."""
        answers: dict[tuple[object, ...], Scalar] = {}
        found: list[Scalar] = []
        for case in cases:
            # 1, 1.0 and True are one key to a dictionary, and three values to the library.
            key = (*case, *map(type, case))
            if (answer := answers.get(key)) is None:
                answer = answers[key] = self._evaluate({f"a{i}": value for i, value in enumerate(case)})
            found.append(answer)
        return found

    def _evaluate(self, values: Mapping[str, Scalar]) -> Scalar:
        import classad2  # type: ignore[import-untyped]

        if self._tree is None:
            self._tree = classad2.ExprTree(self.text)
        return _ours(self._tree.eval(classad_of(values)))


def classad_of(values: Mapping[str, Scalar]) -> Any:
    """A `classad2.ClassAd` of these values; what is undefined is left out."""
    import classad2

    ad = classad2.ClassAd()
    for name, value in values.items():
        match value:
            case Nothing.UNDEFINED:
                pass
            case Nothing.ERROR:
                ad[name] = classad2.Value.Error
            case tuple():
                ad[name] = list(value)
            case _:
                ad[name] = value
    return ad


def _ours(value: object) -> Scalar:
    import classad2

    if isinstance(value, classad2.Value):  # an int, and true: so it is looked for first
        return Nothing.UNDEFINED if value == classad2.Value.Undefined else Nothing.ERROR
    if isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return tuple(value)
    return Nothing.ERROR
