"""Expressions over a catalogue: in columns they come to what the ClassAd library says, place by place.

Expressions are made at random, well typed and not, with what is undefined and what is an error in all their parts; the
library reads their text as it was written. So what this holds equal is the reading, the columns and the library.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from fnmatch import fnmatchcase
from operator import eq, gt, lt, ne

import classad2  # type: ignore[import-untyped]
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from gridhypervisor.model.expressions import requirements_of_gridway
from gridhypervisor.model.expressions.functions import FUNCTIONS, Function
from gridhypervisor.planning.matching import (
    Catalogue,
    Nothing,
    Place,
    Scalar,
    compile_rank,
    compile_requirements,
    match,
    rank,
    why_not,
)
from gridhypervisor.planning.matching.classads import classad_of

WHOLE = st.one_of(st.integers(-5, 5), st.sampled_from([2**31, 2**53 + 1, -(2**62), 2**63 - 1, -(2**63)]))
FRACTION = st.one_of(st.sampled_from([0.0, 0.5, -1.5, 2.0, 1e308, -1e308, 1e-300]), st.floats(-10, 10, width=32))
WORD = st.sampled_from(["slurm", "Slurm", "SLURM-2", "pbs", "", 'a"b\\c', "n10"])
HYPERVISORS = st.sets(st.sampled_from(["kvm", "KVM", "uml", "tcg"])).map(lambda names: tuple(sorted(names)))
ERROR = st.just(Nothing.ERROR)

ROW = st.fixed_dictionaries(
    {},
    optional={
        **{name: st.one_of(WHOLE, ERROR) for name in ("Cpus", "Memory", "FreeCpus")},
        **{name: st.one_of(FRACTION, ERROR) for name in ("QueueWait", "KvmRate")},
        **{name: st.one_of(st.booleans(), ERROR) for name in ("Up", "Draining")},
        **{name: st.one_of(WORD, ERROR) for name in ("BatchSystem", "Arch")},
        "Hypervisors": st.one_of(HYPERVISORS, ERROR),
    },
)


def written(value: Scalar) -> str:
    if isinstance(value, Nothing):
        return value.value
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return f"({value!r})" if isinstance(value, float) else str(value)


NONE = st.sampled_from(["undefined", "error"])
POSITIVE = st.one_of(st.integers(0, 7), st.sampled_from([2**31, 2**62]))


def operation(parts: st.SearchStrategy[str], *signs: str) -> st.SearchStrategy[str]:
    """Some with parentheses and some without, so that precedence is tried too."""
    forms = st.sampled_from(["{} {} {}", "({} {} {})", "({}) {} ({})"])
    return st.builds(lambda form, a, sign, b: form.format(a, sign, b), forms, parts, st.sampled_from(signs), parts)


def wholes(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.one_of(
        operation(inner, "+", "-", "*", "/", "%"),
        st.builds("-({})".format, inner),
        st.builds("({} ?: ({}))".format, inner, inner),
        st.builds("max({{{}, {}}})".format, inner, inner),
        st.builds("sum({{{}, {}}})".format, inner, inner),
    )


def fractions(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.one_of(
        operation(inner, "+", "-", "*", "/"),
        st.builds("real({})".format, WHOLES),
        operation(st.one_of(inner, WHOLES), "*", "+"),
        st.builds("min({{{}, {}}})".format, inner, inner),
    )


def words(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.one_of(
        st.builds("toUpper({})".format, inner),
        st.builds("substr({}, {})".format, inner, WHOLES),
        st.builds("({} ?: {})".format, inner, inner),
        st.builds("(Up ? {} : {})".format, inner, inner),
    )


WHOLES = st.recursive(
    st.one_of(st.sampled_from(["Cpus", "memory", "TARGET.FreeCpus"]), POSITIVE.map(str), NONE), wholes, max_leaves=6
)
FRACTIONS = st.recursive(
    st.one_of(st.sampled_from(["QueueWait", "KVMRate"]), FRACTION.map(abs).map(written), NONE), fractions, max_leaves=6
)
WORDS = st.recursive(st.one_of(st.sampled_from(["BatchSystem", "Arch"]), WORD.map(written), NONE), words, max_leaves=4)
NUMBERS = st.one_of(WHOLES, FRACTIONS)


def truths(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    mixed = st.builds("({} ? {} : {})".format, inner, WHOLES, FRACTIONS)
    compared = ("<", "<=", ">", ">=", "==", "!=", "=?=", "=!=", "is", "isnt")
    return st.one_of(
        operation(inner, "&&", "||"),
        operation(inner, "&&", "||", "==", "=?="),
        st.builds("!({})".format, inner),
        st.builds("({} ? {} : {})".format, inner, inner, inner),
        operation(NUMBERS, *compared),
        operation(st.one_of(NUMBERS, mixed), *compared),
        operation(WORDS, *compared),
        st.builds("isUndefined({})".format, st.one_of(inner, NUMBERS, WORDS)),
        st.builds("isError({})".format, st.one_of(inner, NUMBERS, WORDS)),
        st.builds("member({}, Hypervisors)".format, WORDS),
        st.builds("member({}, {{{}, {}}})".format, WORDS, WORDS, WORDS),
        st.builds("regexp({}, {})".format, st.sampled_from(['"^s"', '"m-?"', '"("']), WORDS),
        st.just("Hypervisors =?= undefined"),
    )


TRUTHS = st.recursive(
    st.one_of(st.sampled_from(["Up", "draining", "true", "false"]), NONE), truths, max_leaves=12
).filter(lambda text: len(text) < 1000)

NAN = -123.25  # stands for what is not a number, which is unequal to itself


def comparable(value: object) -> object:
    if isinstance(value, classad2.Value):
        return Nothing.UNDEFINED if value == classad2.Value.Undefined else Nothing.ERROR
    if isinstance(value, float) and math.isnan(value):
        return NAN
    return value


def said(text: str, row: dict[str, Scalar]) -> object:
    """What the library says of the text, as it was written, at one place."""
    return comparable(classad2.ExprTree(text.replace("TARGET.", "")).eval(classad_of(row)))


def catalogue_of(rows: list[dict[str, Scalar]]) -> Catalogue:
    catalogue = Catalogue()
    for i, row in enumerate(rows):
        catalogue.set(Place("s", f"n{i:02d}"), row)
    return catalogue


common = settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))


@common
@given(TRUTHS, st.lists(ROW, min_size=1, max_size=6))
@example("(true ? 1 : 2.5) =?= 1", [{}, {}])
@example("Cpus / -1 < 0", [{"Cpus": -(2**63)}, {"Cpus": 4}])
@example("QueueWait / 0 > 1 || isError(-QueueWait / 0)", [{"QueueWait": 1.5}, {"QueueWait": -1.5}, {"QueueWait": 0.0}])
@example("Up ?: Draining =?= Up", [{"Up": True}, {"Draining": False}])
def test_a_requirement_comes_to_what_the_library_says(text: str, rows: list[dict[str, Scalar]]) -> None:
    text = f"({text}) && true" if text in ("undefined", "error") else text
    try:
        expression = compile_requirements(text)
    except ValueError:
        # What is refused beforehand can be true nowhere, or comes to another type in some places.
        return
    catalogue = catalogue_of(rows)
    truth = [said(text, row) for row in rows]
    assert match(expression, catalogue).tolist() == [value is True for value in truth]
    for place, value in zip(catalogue, truth, strict=True):
        assert (why_not(expression, catalogue, place) == ()) == (value is True)


@common
@given(
    st.one_of(NUMBERS, TRUTHS, st.builds("({} ? {} : {})".format, TRUTHS, WHOLES, FRACTIONS)), st.lists(ROW, min_size=1)
)
@example(
    "Up ? Cpus ?: 0.5 : Draining ? 2 : QueueWait", [{"Up": True}, {"Draining": True}, {"Up": False, "Cpus": 2**62}]
)
@example("Cpus % FreeCpus", [{"Cpus": -(2**63), "FreeCpus": -1}, {"Cpus": -7, "FreeCpus": 3}, {"Cpus": 7}])
@example("Cpus * Memory", [{"Cpus": 2**62, "Memory": 3}, {"Cpus": 2, "Memory": 3}])
@example("QueueWait * 10", [{"QueueWait": 1e308}, {"QueueWait": -1e308}])
def test_a_rank_comes_to_what_the_library_says(text: str, rows: list[dict[str, Scalar]]) -> None:
    text = f"({text}) + 1" if text in ("undefined", "error") else text
    try:
        expression = compile_rank(text)
    except ValueError:
        return
    catalogue = catalogue_of(rows)
    found = rank(expression, catalogue)
    for row, value, spoilt in zip(rows, found.values.tolist(), found.spoilt.tolist(), strict=True):
        truth = said(text, row)
        if truth is Nothing.UNDEFINED:
            assert (value, spoilt) == (0.0, False)
        elif (
            truth is Nothing.ERROR
            or truth == NAN
            or not math.isfinite(float(str(truth)) if not isinstance(truth, bool) else truth)
        ):
            assert (value, spoilt) == (0.0, True)
        else:
            assert isinstance(truth, (bool, int, float))
            assert (value, spoilt) == (float(truth), False)


@common
@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["", "n1", "n2", "n10"]), st.one_of(st.none(), ROW))))
def test_a_catalogue_does_not_remember_how_it_came_to_be(
    changes: list[tuple[str, str, dict[str, Scalar] | None]],
) -> None:
    grown, expected = Catalogue(), dict[Place, dict[str, Scalar]]()
    for site, node, row in changes:
        if row is None:
            grown.remove(Place(site, node))
            expected.pop(Place(site, node), None)
        else:
            grown.set(Place(site, node), row)
            expected[Place(site, node)] = row
    fresh = Catalogue()
    for place in sorted(expected, reverse=True):
        fresh.set(place, expected[place])
    assert list(grown) == list(fresh) == sorted(expected)
    for place, row in expected.items():
        own = {"Site": place.site} | ({"Node": place.node} if place.node else {})
        assert grown.values(place) == fresh.values(place) == row | own
    for text in ('Cpus > 1 || member("kvm", Hypervisors)', 'Node == "n2"', "Arch =?= undefined"):
        expression = compile_requirements(text)
        assert match(expression, grown).tolist() == match(expression, fresh).tolist()


@pytest.mark.parametrize("text", ["Up && Up", "Cpus > 1"])
def test_there_may_be_no_places(text: str) -> None:
    assert match(compile_requirements(text), Catalogue()).tolist() == []


# --- GridWay's language: what is made of it holds where GridWay's own rules say so. -----------------------------------

Truth = Callable[[dict[str, Scalar]], bool]
"""GridWay's verdict on a host."""
SIGNS: dict[str, Callable[[int, int], bool]] = {"=": eq, "!=": ne, "<": lt, ">": gt}
GLOB = st.sampled_from(["slurm", "S*", "*-?", "[!s]*", "p[a-c]s", "", "n10", "SLURM-2", "?bs"])


def numeric(variable: str, attribute: str, factor: int, sign: str, value: int) -> tuple[str, Truth]:
    def holds(host: dict[str, Scalar]) -> bool:
        known = host.get(attribute, 0)
        assert isinstance(known, int)
        return SIGNS[sign](known * factor, value)

    return f"{variable} {sign} {value}", holds


def textual(variable: str, attribute: str, sign: str, glob: str) -> tuple[str, Truth]:
    def holds(host: dict[str, Scalar]) -> bool:
        known = host.get(attribute)
        return known is not None and fnmatchcase(str(known), glob) == (sign == "=")

    return f'{variable}{sign}"{glob}"', holds


def joined(first: tuple[str, Truth], rest: list[tuple[str, tuple[str, Truth]]]) -> tuple[str, Truth]:
    """From left to right, whatever the signs; each part may be negated or in parentheses by itself."""
    text, holds = first
    for sign, (next_text, next_holds) in rest:
        text, holds = f"{text} {sign} {next_text}", _both_or_either(sign, holds, next_holds)
    return f"({text})", holds


def _both_or_either(sign: str, left: Truth, right: Truth) -> Truth:
    return lambda host: (left(host) and right(host)) if sign == "&" else (left(host) or right(host))


def negated(part: tuple[str, Truth]) -> tuple[str, Truth]:
    return f"!{part[0]}", lambda host: not part[1](host)


SIMPLE = st.one_of(
    st.builds(numeric, st.just("CPU_SMP"), st.just("Cpus"), st.just(1), st.sampled_from([*SIGNS]), st.integers(-3, 9)),
    st.builds(
        numeric, st.just("CPU_FREE"), st.just("FreeCpus"), st.just(100), st.sampled_from([*SIGNS]), st.integers(0, 300)
    ),
    st.builds(textual, st.just("LRMS_TYPE"), st.just("BatchSystem"), st.sampled_from(["=", "!="]), GLOB),
)
GRIDWAYS = st.recursive(
    SIMPLE,
    lambda inner: st.one_of(
        inner.map(negated), st.builds(joined, inner, st.lists(st.tuples(st.sampled_from("&|"), inner), max_size=3))
    ),
    max_leaves=8,
)
HOST = st.fixed_dictionaries(
    {}, optional={"Cpus": st.integers(0, 8), "FreeCpus": st.integers(0, 3), "BatchSystem": WORD}
)


@common
@given(GRIDWAYS, st.lists(HOST, min_size=1, max_size=6))
def test_requirements_of_gridway_come_to_what_gridway_says(
    made: tuple[str, Truth], hosts: list[dict[str, Scalar]]
) -> None:
    text, holds = made
    found = match(
        compile_requirements(requirements_of_gridway(text[1:-1] if text[0] == "(" else text)), catalogue_of(hosts)
    )
    assert found.tolist() == [holds(host) for host in hosts]


# --- Functions. -------------------------------------------------------------------------------------------------------

SAMPLES = {
    "text": ['"Slurm-22.05"', '"1.10"', '"<"', "undefined"],
    "a number": ["7", "-2", "2.5", "0", "undefined"],
    "a list": ['{"slurm-22.05", "kvm"}', "{1, 2}", "{2.5, 1.5}", "{undefined, 2.5}", "{}", "undefined"],
    "anything": ['"Slurm-22.05"', "1", "2.5", "true", "undefined", "error"],
}


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=lambda function: function.name)
def test_a_function_gives_what_it_is_declared_to_give(function: Function) -> None:
    """And of the type that is declared: `=?=` tells 2 from 2.0."""
    catalogue = catalogue_of([{}])
    asked = 0
    for count in range(len(function.takes) - function.optional, len(function.takes) + 1):
        for arguments in itertools.product(*(SAMPLES[word] for word in function.takes[:count])):
            call = f"{function.name}({', '.join(arguments)})"
            truth = said(call, {})
            assert isinstance(truth, (bool, int, float, str, Nothing))
            test = f"{call} =?= {written(truth)}"
            if isinstance(truth, Nothing):
                test = f"isUndefined({call})" if truth is Nothing.UNDEFINED else f"isError({call})"
            try:
                expression = compile_requirements(test)
            except ValueError as error:
                why = str(error)  # only what is always an error is refused, with two exceptions
                assert truth is Nothing.ERROR or "pattern is not written out" in why or "of one kind" in why, call
                continue
            asked += 1
            assert match(expression, catalogue).all(), (call, truth)
    assert asked
