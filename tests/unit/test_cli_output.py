"""How answers look, and which exit code an ending gets."""

from __future__ import annotations

import re
import sys
from io import TextIOWrapper
from pathlib import Path

import pytest

from gridhypervisor.cli import groups, output
from gridhypervisor.cli.exits import Exit, of_job, of_problem
from gridhypervisor.cli.files import job_schema
from gridhypervisor.model.records import JobState, Wish
from gridhypervisor.model.views import Explanation, JobView, MemberView, Problem
from gridhypervisor.model.wire import RETRYABLE, Reason

ROOT = Path(__file__).parents[2]


def job(state: JobState, reason: Reason | None = None, code: int | None = None) -> JobView:
    return JobView("j1", "n", "me", "p", state, Wish.RUN, 0.0, "i", "d", ("true",), "/", reason=reason, exit_code=code)


def test_a_gang_is_told_in_few_lines(capsys: pytest.CaptureFixture[str]) -> None:
    states = [JobState.RUNNING] * 100 + [JobState.QUEUED] * 2
    members = tuple(MemberView(str(n), f"j{n}", state, "ab"[n % 50 == 7]) for n, state in enumerate(states))
    groups.tell_gang(Explanation("j0", JobState.RUNNING, "", group="g4", members=members, places={"a": 2, "b": 1}))
    told = capsys.readouterr().out
    assert "g4, 102 members" in told and "would go to a ×2, b ×1" in told
    assert [" ".join(line.split()) for line in told.splitlines() if "running" in line or "queued" in line] == [
        "a running 0-6, 8-56, 58-99", "b running 7, 57", "a queued 100-101"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (59.9, "59s"), (60, "1m"), (200, "3m20s"), (7500, "2h5m"), (273600, "3d4h"), (-1, "0s")],
)
def test_lengths_of_time(seconds: float, text: str) -> None:
    assert output.age(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (512 << 20, "512 MiB"), (3 << 40, "3.0 TiB")]
)
def test_sizes(count: int, text: str) -> None:
    assert output.size(count) == text


def test_a_table_aligns_what_is_wide_or_coloured(capsys: pytest.CaptureFixture[str]) -> None:
    output.table(("A", "N", "C"), [(output.paint("x", "red"), "1", "c"), ("漢字", "10", "c")], right=(1,))
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["A      N  C", "x      1  c", "漢字  10  c"]


def test_a_long_last_column_is_cut_on_a_terminal_alone(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    row = ("j1", output.paint("a site that does not answer", "red"))
    output.table(("ID", "WHY"), [row], one_line=True)
    assert capsys.readouterr().out == "ID  WHY\nj1  a site that does not answer\n"
    monkeypatch.setattr(output, "terminal_width", lambda stream: 25)
    output.table(("ID", "WHY"), [row], one_line=True)
    assert capsys.readouterr().out == "ID  WHY\nj1  a site that does not…\n"


def test_text_is_cut_by_its_width_on_the_screen() -> None:
    assert output.fit("abc", 3) == "abc"
    assert output.fit("abcd", 3) == "ab…"
    assert output.fit("漢字漢", 6) == "漢字漢"
    assert output.fit("漢字漢", 5) == "漢字…"
    assert output.fit(output.paint("abcd", "red"), 4) == output.paint("abcd", "red")


def test_others_words_cannot_steer_the_terminal() -> None:
    assert output.plain("a\x1b[2J\nb\tc\x07é") == "a?[2J b c?é"


def test_a_bar_grows_with_its_share(monkeypatch: pytest.MonkeyPatch) -> None:
    with open("/dev/null", "wb") as null:
        for encoding, full in (("utf-8", "█"), ("ascii", "#")):
            stdout = TextIOWrapper(null, encoding=encoding)
            monkeypatch.setattr(sys, "stdout", stdout)
            assert output.bar(1.0, 8) == full * 8
            assert output.bar(0.0, 8) == ""
            lengths = [len(output.bar(n / 64, 8)) for n in range(65)]
            assert lengths == sorted(lengths)
            stdout.detach()


@pytest.mark.parametrize("code", [0, 1, 64, 75, 124, 255])
def test_a_program_that_ended_gives_its_own_code(code: int) -> None:
    assert of_job(job(JobState.DONE, Reason.EXITED, code)) == code


@pytest.mark.parametrize("reason", [r for r in Reason if r is not Reason.EXITED])
def test_every_other_ending_has_a_code_of_ours(reason: Reason) -> None:
    code = of_job(job(JobState.FAILED, reason))
    assert code in set(Exit) - {Exit.OK}
    if code == Exit.INFRASTRUCTURE and reason is not Reason.NOT_OWNER:
        assert reason in RETRYABLE


def test_endings_that_have_names_of_their_own() -> None:
    assert of_job(job(JobState.CANCELLED, Reason.CANCELLED)) == 130
    assert of_job(job(JobState.FAILED, Reason.WALLTIME, 143)) == 124
    assert of_problem(Problem("x", 404, "not-found")) == 66
    assert of_problem(Problem("x", 418, "teapot")) == 70


def test_the_published_table_has_every_code() -> None:
    rows = re.findall(r"^\| (\d+) \| `(\w+)` \|", (ROOT / "docs" / "cli.md").read_text(), re.MULTILINE)
    assert [(int(code), name) for code, name in rows] == [(int(e), e.name) for e in Exit if e is not Exit.OK]


def test_the_published_schema_is_the_one_in_force() -> None:
    assert (ROOT / "docs" / "job.schema.json").read_text() == job_schema(), "ghv schema job > docs/job.schema.json"
