"""Requirements and rank over what sites publish: what a user writes, what comes of it, and what is said of mistakes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from gridhypervisor.model.expressions import rank_of_gridway, requirements_of_gridway
from gridhypervisor.model.expressions.gridway import pattern_of
from gridhypervisor.planning.matching import (
    ATTRIBUTES,
    GRIDWAY,
    Catalogue,
    ExpressionError,
    Nothing,
    Place,
    compile_rank,
    compile_requirements,
    match,
    rank,
    why_not,
)

PAGE = Path(__file__).parents[2] / "docs" / "requirements.md"


@pytest.fixture
def grid() -> Catalogue:
    """Two sites, of which one has two nodes."""
    catalogue = Catalogue()
    catalogue.set(Place("uni"), {"BatchSystem": "slurm", "Host": "hpc1.uni.example", "Cpus": 16, "QueueWait": 60.0})
    catalogue.set(
        Place("uni", "n1"),
        {"BatchSystem": "slurm", "Memory": 4096, "Cpus": 16, "FreeCpus": 0, "Hypervisors": ("kvm", "uml")},
    )
    catalogue.set(
        Place("uni", "n2"),
        {"BatchSystem": "slurm", "Memory": 1024, "Cpus": 8, "FreeCpus": 8, "Hypervisors": ("tcg",), "Arch": "aarch64"},
    )
    catalogue.set(Place("desk"), {"BatchSystem": "fork", "Cpus": 2, "MaxWalltime": 7200, "Up": True})
    return catalogue


def matching(text: str, catalogue: Catalogue) -> list[str]:
    rows = match(compile_requirements(text), catalogue)
    return ["/".join(filter(None, place)) for place, fits in zip(catalogue, rows, strict=True) if fits]


def complaint(text: str) -> str:
    with pytest.raises(ExpressionError) as caught:
        compile_requirements(text)
    return str(caught.value)


# --- What matches. ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "places"),
    [
        ("true", ["desk", "uni", "uni/n1", "uni/n2"]),
        ("Memory >= 2048", ["uni/n1"]),
        ("!(Memory >= 2048)", ["uni/n2"]),  # where it is not known, it is not known
        ("Memory =?= undefined", ["desk", "uni"]),
        ('BatchSystem == "SLURM" && Cpus > 8', ["uni", "uni/n1"]),
        ('BatchSystem =?= "SLURM"', []),
        ('member("KVM", Hypervisors) || Up', ["desk", "uni/n1"]),
        ('regexp("^hpc[0-9]", target.HOST)', ["uni"]),
        ("(FreeCpus ?: Cpus) >= 8", ["uni", "uni/n2"]),
        ("Memory / FreeCpus > 1", ["uni/n2"]),
        ("(Cpus > 8 ? 1 : 0.5) == 0.5", ["desk", "uni/n2"]),
        ('member(Site, {"desk", "lab"})', ["desk"]),
    ],
)
def test_a_requirement_says_which_places_match(grid: Catalogue, text: str, places: list[str]) -> None:
    assert matching(text, grid) == places


def test_a_job_brings_its_own_attributes(grid: Catalogue) -> None:
    expression = compile_requirements("ImageCached || Cpus > 8")
    assert match(expression, grid).tolist() == [False, True, True, False]
    assert match(expression, grid, {"ImageCached": True}).tolist() == [True] * 4
    assert match(expression, grid).tolist() == [False, True, True, False]


def test_a_change_is_seen_at_once(grid: Catalogue) -> None:
    text = "QueueWait < 100 && QueueLength > 3"
    assert matching(text, grid) == []
    grid.patch("uni", {"QueueWait": 5.0, "QueueLength": 4})
    assert matching(text, grid) == ["uni", "uni/n1", "uni/n2"]
    grid.set(Place("uni"), {})
    assert matching(text, grid) == ["uni/n1", "uni/n2"]
    grid.remove(Place("uni", "n1"))
    assert matching(text, grid) == ["uni/n2"]
    grid.remove_site("uni")
    assert list(grid) == [Place("desk")] and matching("true", grid) == ["desk"]


def test_a_place_can_be_had_as_a_classad(grid: Catalogue) -> None:
    ad = grid.ad(Place("uni", "n1"))
    assert ad["Memory"] == 4096 and ad["Hypervisors"] == ["kvm", "uml"] and ad["Node"] == "n1" and "Arch" not in ad
    with pytest.raises(KeyError, match="uni/n9 is not in the catalogue"):
        grid.ad(Place("uni", "n9"))


def test_what_is_not_in_the_vocabulary_is_not_published(grid: Catalogue) -> None:
    with pytest.raises(ValueError, match="did you mean Memory"):
        grid.set(Place("lab"), {"Memry": 1})
    with pytest.raises(ValueError, match="Cpus is a node's"):
        grid.patch("uni", {"Cpus": 1})
    assert Place("lab") not in grid


# --- Rank. ------------------------------------------------------------------------------------------------------------


def test_a_rank_is_a_number_everywhere(grid: Catalogue) -> None:
    found = rank(compile_rank('(BatchSystem == "slurm") * 100 - QueueWait'), grid)
    assert found.values.tolist() == [0, 40, 0, 0] and not found.spoilt.any()
    assert rank(compile_rank("Up"), grid).values.tolist() == [1, 0, 0, 0]
    assert rank(compile_rank("Cpus > 8 ? Cpus : 0.5"), grid).values.tolist() == [0.5, 16, 16, 0.5]


def test_a_rank_that_divides_by_zero_or_overflows_counts_as_nothing_and_is_told(grid: Catalogue) -> None:
    expression = compile_rank("Memory / FreeCpus")
    found = rank(expression, grid)
    assert found.values.tolist() == [0, 0, 0, 128] and found.spoilt.tolist() == [False, False, True, False]
    warning = found.warning(expression, grid)
    assert "Memory / FreeCpus is no number at uni/n1" in warning and "FreeCpus is 0" in warning
    assert rank(compile_rank("1e308 * Cpus"), grid).spoilt.all()
    assert rank(compile_rank("-1e308 * Cpus"), grid).values.tolist() == [0] * 4


# --- Why not. ---------------------------------------------------------------------------------------------------------


def test_a_place_that_does_not_match_says_which_parts_failed_and_what_they_saw(grid: Catalogue) -> None:
    expression = compile_requirements('Memory >= 2048 && (Cpus > 4 && member("kvm", Hypervisors)) && 8 / FreeCpus > 0')
    assert [str(failed) for failed in why_not(expression, grid, Place("uni", "n2"))] == [
        "Memory >= 2048 does not hold: Memory is 1024 MiB",
        'member("kvm", Hypervisors) does not hold: Hypervisors is tcg',
    ]
    [failed] = why_not(expression, grid, Place("uni", "n1"))
    assert failed.verdict == "error" and failed.saw == {"FreeCpus": 0}
    assert [failed.verdict for failed in why_not(expression, grid, Place("desk"))] == [
        *("unknown", "false", "unknown", "unknown"),
    ]
    assert why_not(compile_requirements("Cpus && Up"), grid, Place("desk")) == ()
    [failed] = why_not(compile_requirements("Cpus && Up"), grid, Place("uni"))
    assert str(failed) == "Up does not hold: Up is not known" and failed.saw == {"Up": Nothing.UNDEFINED}


# --- What is wrong with an expression. --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "Cpus > 1 && Memry > 2",
            "at character 13 of `Cpus > 1 && Memry > 2`: no site publishes Memry; did you mean Memory?",
        ),
        ('Memory >= "2048"', "character 8 of"),
        ('Memory >= "2048"', 'Memory is a whole number and "2048" is text: they cannot be compared'),
        ("Cpus", "it comes to a whole number; it has to come to true or false"),
        ('"yes"', "it has to come to true or false"),
        ("Memory > 2Gi", "'2Gi' is not a number; write it out in digits: sizes are in MiB, times in seconds"),
        ("Cpus = 2", "write == for"),
        ("Up & Draining", "write && for"),
        ("Site == 'desk'", "write text in double quotes"),
        ('Site == "desk', "has no closing quote"),
        ("(Cpus > 1", "')', for the '(' at character 1 is wanted"),
        ("Cpus > 1)", "an operator or the end is wanted"),
        ("", "the expression is empty"),
        ("MY.Cpus > 1", "write Cpus for the place's"),
        ('Hypervisors == "kvm"', 'write e.g. member("kvm", Hypervisors)'),
        ('stringListMember("kvm", "kvm,uml")', 'write e.g. member("kvm", Hypervisors)'),
        ('regex("n", Node)', "did you mean regexp?"),
        ('regexp("n")', "regexp is given 1 values; it takes text, text, [text]"),
        ("member(Site, Cpus)", "member takes a list here"),
        ("time() > 0", "its answer changes from day to day"),
        ('regexp("(a+)+$", Node)', "the pattern repeats a group"),
        ('regexp("a*b*c*d*e*", Node)', "the pattern repeats more than 3 times"),
        ('regexp("(a|a)(a|a)a*b*", Node)', "the pattern has more than 1 branches"),
        (r'regexp("\\Q[\\E(a+)+$|[x]", Node)', "the pattern quotes or comments"),
        ('regexp("#[\\n(a+)+$#]", Node, "x")', "the pattern quotes or comments"),
        ('Node == "' + "a" * 129 + '"', "the text is longer than 128 characters"),
        (" || ".join(['regexp("a", Node)'] * 17), "more than 16 patterns"),
        ('regexp("a?a?a?a?a?a?a?a?a?a?a?a?a?", Node)', "the pattern has more than 12 branches"),
        (r'regexp("(a)\\1", Node)', "the pattern looks back or ahead"),
        ("regexp(Node, Site)", "the pattern is not written out"),
        ('eval("Up")', "it looks beyond the expression"),
        ("Up ? Site : 1", "both have to be of one kind"),
        ("-Up == 1", "a number is wanted after -"),
        ("QueueWait % 2 == 0", "% is for whole numbers"),
        ("Cpus > 99999999999999999999", "the number is too large"),
        ("(" * 60 + "Up" + ")" * 60, "nested more than 30 deep"),
        ("||".join(["Up"] * 200), "member(Site, {…})"),
        ("Up" + " " * 20_000, "longer than 10000 characters"),
    ],
)
def test_a_mistake_is_told_with_its_place_and_what_to_write(text: str, words: str) -> None:
    assert words.replace("it comes to", "comes to") in complaint(text + ("" if not text.endswith(" ") else "&& Up"))


def test_the_largest_expressions_are_answered(grid: Catalogue) -> None:
    inner = "Up" + "||Up" * 74
    for text in ("(" * 29 + inner + ")" * 29 + "||Up" * 40, "!" * 28 + f"({inner})", "Up ?: " * 140 + "false"):
        assert matching(text, grid) == ["desk"]
        why_not(compile_requirements(text), grid, Place("uni"))


def test_a_rank_is_of_numbers() -> None:
    with pytest.raises(ExpressionError, match="it has to come to a number"):
        compile_rank("Site")


# --- GridWay's own language. ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "places"),
    [
        ("", ["desk", "uni", "uni/n1", "uni/n2"]),
        ('LRMS_TYPE = "slurm" & CPU_SMP > 8', ["uni", "uni/n1"]),
        ('LRMS_TYPE = "SLURM"', []),  # capitals count, as they do for the shell
        ('HOSTNAME = "*.uni.example"', ["uni"]),
        ('HOSTNAME != "*.uni.example";', ["desk", "uni/n1", "uni/n2"]),
        ('HOSTNAME = "hpc[0-9].uni.?xample"', ["uni"]),
        ("CPU_SMP = 2 | CPU_SMP = 16 & SIZE_MEM_MB = 4096", ["uni/n1"]),  # from left to right
        ("CPU_SMP = 2 | (CPU_SMP = 16 & SIZE_MEM_MB = 4096)", ["desk", "uni/n1"]),
        ('!LRMS_TYPE = "fork" & CPU_SMP < 16', ["uni/n2"]),
        ("QUEUE_MAXTIME = 0 | QUEUE_MAXTIME > 100", ["desk", "uni", "uni/n1", "uni/n2"]),  # what is not known is 0
        ("QUEUE_MAXTIME = 120", ["desk"]),  # minutes
        ('ARCH != "x86_64"', ["uni/n2"]),  # text that is not known is neither
        ('ARCH = "x86_64" | ARCH != "x86_64"', ["uni/n2"]),
        ('!(ARCH = "aarch64")', ["desk", "uni", "uni/n1"]),
        (" | ".join(f"CPU_SMP = {n}" for n in range(99, 2, -1)), ["uni", "uni/n1", "uni/n2"]),
        ("FreeCpus > 4", ["uni/n2"]),  # any variable that a place publishes
    ],
)
def test_requirements_of_gridway_mean_what_they_mean_to_gridway(grid: Catalogue, text: str, places: list[str]) -> None:
    assert matching(requirements_of_gridway(text), grid) == places


def test_a_rank_of_gridway_is_reckoned_in_whole_numbers(grid: Catalogue) -> None:
    def ranked(text: str) -> list[float]:
        return [*map(float, rank(compile_rank(rank_of_gridway(text)), grid).values)]

    assert ranked("CPU_SMP * 10 - SIZE_MEM_MB / 1000") == [20, 160, 156, 79]
    assert ranked("-CPU_SMP-1") == [-3, -17, -17, -9]
    assert ranked("(CPU_SMP + 3) * 2;") == [10, 38, 38, 22]
    assert ranked("100 / 3 * CPU_SMP - 10 / 4 * 2 + 1") == [63, 525, 525, 261]
    assert ranked("") == [0, 0, 0, 0]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('FORK_NAME = "x"', "FORK_NAME of GridWay has no equivalent here"),
        ("CPU_MZ > 3", "no site publishes CPU_MZ; did you mean CPU_MHZ?"),
        ("CPU_SMP >= 3", "at character 10 of `CPU_SMP >= 3`"),
        ("CPU_SMP >= 3", "write !(CPU_SMP < …) for “at least”"),
        ('ARCH == "x86_64"', "a single ="),
        ("CPU_SMP > 1 && CPU_MHZ > 1", "GridWay's and is a single &"),
        ("ARCH = 3", "write what it is to be in quotes"),
        ('CPU_SMP = "3"', "write a whole number"),
        ('ARCH < "x"', "compare it by = or !="),
        ("(CPU_SMP > 1", "')' is wanted"),
        ('ARCH = "x', "no closing quote"),
        ("CPU_SMP > 1 . CPU_MHZ > 1", "'.' is no sign of GridWay's"),
        ("!" * 60 + "CPU_SMP > 1", "nested more than 30 deep"),
    ],
)
def test_a_mistake_in_gridways_language_is_told_too(text: str, words: str) -> None:
    with pytest.raises(ExpressionError) as caught:
        requirements_of_gridway(text)
    assert words in str(caught.value)


def test_every_variable_of_gridway_means_something_here(grid: Catalogue) -> None:
    for variable, meant in GRIDWAY.items():
        compile_requirements(f"isUndefined({meant})")
        constant = '"x"' if ATTRIBUTES[meant.split()[0]].type.coded else "1"
        compile_requirements(requirements_of_gridway(f"{variable} = {constant}"))


@pytest.mark.parametrize(
    ("glob", "yes", "no"),
    [
        ("n*", ["n", "n1", "n.x"], ["an"]),
        ("n?", ["n1"], ["n", "n12"]),
        ("n[1-3]", ["n2"], ["n4", "n[1-3]"]),
        ("n[!1-3]", ["n4"], ["n2"]),
        ("n[12", ["n[12"], ["n1"]),
        (r"n\*", ["n*"], ["n1"]),
        ("a.b+c", ["a.b+c"], ["aXb+c"]),
        ("[]x]", ["]", "x"], ["[]x]"]),
    ],
)
def test_a_shell_pattern_matches_as_the_shell_does(glob: str, yes: list[str], no: list[str], grid: Catalogue) -> None:
    for name in yes + no:
        grid.set(Place("uni"), {"Queue": name})
        found = matching(requirements_of_gridway(f'QUEUE_NAME = "{glob}"'), grid)
        assert found == (["uni"] if name in yes else []), (pattern_of(glob), name)


# --- The page, and the cost. ------------------------------------------------------------------------------------------


def test_the_page_lists_the_vocabulary() -> None:
    page = PAGE.read_text()
    for each in ATTRIBUTES.values():
        row = f"| `{each.name}` | {each.type.value} | {each.unit} | {each.of.value} | {each.meaning} | {each.source} |"
        assert row in page
    for variable, meant in GRIDWAY.items():
        assert f"| `{variable}` | `{meant}` |" in page


def test_the_library_is_loaded_only_when_it_is_asked() -> None:
    program = (
        "import sys; from gridhypervisor.planning.matching import *; c = Catalogue(); c.set(Place('a'), {'Cpus': 2});"
        "assert match(compile_requirements('Cpus > 1 && !Draining || Cpus == 2'), c).all();"
        "assert 'classad2' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=300)


def test_operators_are_answered_in_columns_and_only_mixed_numbers_are_not() -> None:
    for text in ("Memory >= 2048 && (Up ? Cpus : FreeCpus) > 2", 'regexp("^n", Node) || Arch == "x86_64"'):
        assert compile_requirements(text).columnar
    assert compile_rank("Up ? 10 : Cpus ?: 0.5").columnar
    assert not compile_requirements("(Up ? 1 : 0.5) > 0.7").columnar
