"""The page on faults names tests and stories that there are, and says of a reason only what is one."""

from __future__ import annotations

import re
from pathlib import Path

from gridhypervisor.model.wire import Reason

REPOSITORY = Path(__file__).parents[2]
PAGE = (REPOSITORY / "docs" / "faults.md").read_text()


def test_the_tests_that_the_page_on_faults_names_are_there() -> None:
    named = set(re.findall(r"`((?:test|a|listings)_\w+)`", PAGE.partition("## Which tests hold it")[2]))
    sources = [path.read_text() for path in (REPOSITORY / "tests").rglob("*.py")]
    there = {name for source in sources for name in re.findall(r"^(?:async )?def (\w+)\(", source, re.MULTILINE)}
    assert len(named) > 30 and not named - there, sorted(named - there)


def test_every_mark_of_its_table_is_explained() -> None:
    table, _, notes = PAGE.partition("\n[1] ")
    assert set(re.findall(r"\[(\d)\]", table)) == set(re.findall(r"\[(\d)\] `", f"[1] {notes}"))


def test_the_reasons_that_it_names_are_reasons() -> None:
    for reason in ("lost", "pilot", "walltime", "evicted", "node-disk"):
        assert f"`{reason}`" in PAGE and reason in set(Reason)
