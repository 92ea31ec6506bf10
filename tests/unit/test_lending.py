"""What a lender's file can say, how its faults are told, and what its limits mean for one more VM."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gridhypervisor.agent.pace import BURST, Pace
from gridhypervisor.agent.terms import TermsError, open_for, parse, period_start
from gridhypervisor.model import wire
from gridhypervisor.model.wire import Lending, Period, Share, Terms, obstacle

FILE = """\
# What ada may use of this cluster.
contact = "hpc@example.org"
vms = 4
cores = 8
memory = "16 GiB"
vm_hours = 100
core_hours = 12.5
period = "week"
images = [
    "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
]
hours = ["Mon-Fri 18:00-08:00", "Sat-Sun 00:00-24:00"]
bandwidth = "10 MiB/s"
listen = false
"""


def test_a_file_says_what_is_allowed() -> None:
    terms = parse(FILE, "/etc/ghv/lender.toml", "root")
    assert terms == Terms(
        "/etc/ghv/lender.toml", "root", False, "hpc@example.org", 4, 8, 16 << 30, 360_000, 45_000, Period.WEEK,
        ("0123456789abcdef" * 4,), ("Mon-Fri 18:00-08:00", "Sat-Sun 00:00-24:00"), 10 << 20, False,
    )  # fmt: skip
    assert wire.from_plain(Terms, wire.to_plain(terms)) == terms
    assert parse("# nothing is limited\n", "f") == Terms("f")


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("cores = 2\ncores = 3\n", 2, "not TOML"),
        ("cores = \n", 1, "not TOML"),
        ("vms = 1\n\ncpus = 4\n", 3, "cpus: there is no such field; there are contact, vms, cores"),
        ('vms = 1\nsigners = ["hpc"]\n', 2, "signers: there is no such field"),
        ("vms = 1\n[cores]\nada = 4\n", 2, "cores: {'ada': 4} is not allowed; give a whole number"),
        ("cores = -1\n", 1, "cores: -1 is not allowed"),
        ("cores = 1.5\n", 1, "cores: 1.5 is not allowed"),
        ("cores = true\n", 1, "cores: True is not allowed"),
        ('memory = "16"\n', 1, "memory: '16' is not allowed; give a size such as"),
        ('"memory" = 16\n', 1, "memory: 16 is not allowed"),
        ("core_hours = nan\n", 1, "core_hours: nan is not allowed"),
        ('# period = "day"\nperiod = "year"\n', 2, "period: 'year' is not allowed; give \"day\""),
        ('images = [\n  "abc",\n]\n', 2, "images: abc is not allowed; give a list of digests"),
        ('hours = [\n  "Mon 08:00-18:00",\n  "Tuesday 08:00-18:00",\n]\n', 3, "hours: Tuesday 08:00-18:00 is not"),
        ('hours = ["25:00-26:00"]\n', 1, "hours: 25:00-26:00 is not allowed"),
        ('hours = "Mon 08:00-18:00"\n', 1, "hours: 'Mon 08:00-18:00' is not allowed; give a list"),
        ('bandwidth = "100 KiB/s"\n', 1, "at least 1 MiB"),
        ('listen = "no"\n', 1, "listen: 'no' is not allowed; give true or false"),
        ('contact = "a\\u001b[31m"\n', 1, "contact: "),
    ],
)
def test_a_fault_is_told_with_file_line_field_and_what_is_allowed(text: str, line: int, words: str) -> None:
    with pytest.raises(TermsError) as caught:
        parse(text, "/etc/ghv/lender.toml")
    assert str(caught.value).startswith(f"/etc/ghv/lender.toml, line {line}: ")
    assert words in str(caught.value)


def test_all_faults_are_told_at_once() -> None:
    with pytest.raises(TermsError) as caught:
        parse('cpus = 4\nvms = 1\nmemory = "16"\n', "f")
    assert str(caught.value).startswith("f, line 1: cpus: there is no such field")
    assert "; line 3: memory: '16' is not allowed" in str(caught.value)


@pytest.mark.parametrize(
    ("hours", "moment", "left"),
    [
        ([], "Mon 12:00", None),
        (["Mon-Fri 18:00-08:00"], "Mon 12:00", 0.0),
        (["Mon-Fri 18:00-08:00"], "Mon 18:00", 14.0),
        (["Mon-Fri 18:00-08:00"], "Tue 07:30", 0.5),
        (["Mon-Fri 18:00-08:00"], "Tue 08:00", 0.0),
        (["Mon-Fri 18:00-08:00"], "Mon 07:00", 0.0),  # it began on no Sunday
        (["Sun 18:00-08:00"], "Mon 07:00", 1.0),
        (["Mon-Fri 18:00-08:00", "Sat-Sun 00:00-24:00"], "Fri 20:00", 52.0),
        (["08:00-12:00", "12:00-13:00"], "Wed 11:00", 2.0),
        (["Fri-Mon 10:00-11:00"], "Mon 10:30", 0.5),
        (["fri-mon 10:00-11:00"], "Tue 10:30", 0.0),
        (["00:00-24:00"], "Wed 11:00", None),
    ],
)
def test_hours_of_the_week(hours: list[str], moment: str, left: float | None) -> None:
    days = {"Mon": 16, "Tue": 17, "Wed": 18, "Fri": 20}
    day, clock = moment.split()
    at = time.strptime(f"2026-11-{days[day]} {clock}", "%Y-%m-%d %H:%M")
    assert open_for(hours, at) == (None if left is None else left * 3600)


def test_periods_begin_at_midnight() -> None:
    thursday = time.strptime("2026-01-01 15:30", "%Y-%m-%d %H:%M")
    begins = {period: time.strftime("%Y-%m-%d %H:%M", time.localtime(time.mktime(period_start(period, thursday))))
              for period in Period}  # fmt: skip
    assert begins == {Period.DAY: "2026-01-01 00:00", Period.WEEK: "2025-12-29 00:00", Period.MONTH: "2026-01-01 00:00"}


HOUR = Share.of(2, 1 << 30, 3600)


@pytest.mark.parametrize(
    ("terms", "open_for", "words"),
    [
        (Terms("f"), None, ""),
        (Terms("f", vms=2, cores=4, memory=2 << 30, vm_seconds=7200, core_seconds=14400), 3600.0, ""),
        (Terms("f", vms=1), None, "the lender allows 1 VM; 1 is in use"),
        (Terms("f", cores=3), None, "the lender allows 3 cores; 2 are in use, and it needs 2"),
        (Terms("f", memory=1 << 30), None, "allows 1024 MiB of memory; 1024 are in use, and it needs 1024"),
        (Terms("f", vm_seconds=5400), None, "allows 1.5 VM-hours a month; 1 is in use, and it needs 1"),
        (Terms("f", core_seconds=3600, period=Period.DAY), None, "allows 1 core-hour a day; 2 are in use"),
        (Terms("f", hours=("Sat 00:00-24:00",)), 0.0, "VMs run Sat 00:00-24:00; it is not that time now"),
        (Terms("f", hours=("Sat 00:00-24:00",)), 1800.0, "they end in 30 min, and its walltime is 1 h 0 min"),
        (Terms("f", images=()), None, "the lender allows 0 images, and aaaaaaaaaaaa is not among"),
        (Terms("f", images=("b" * 64,)), None, "allows 1 image, and aaaaaaaaaaaa is not among"),
        (Terms("f", images=("b" * 64, "a" * 64)), None, ""),
        (Terms("f", problem="f, line 1: no"), None, "lets nothing start until the file is mended: f, line 1: no"),
    ],
)
def test_why_one_more_does_not_fit(terms: Terms, open_for: float | None, words: str) -> None:
    said = obstacle(terms, HOUR, HOUR, "a" * 64, 3600, open_for)
    assert words in said and bool(said) is bool(words)


def test_what_the_planner_knows_of_its_own_counts_beside_what_the_relay_says() -> None:
    lending = Lending(Terms("f"), mine=Share(vms=1, cores=4), rest=Share(vms=2, cores=2, vm_seconds=9))
    assert lending.taken() == Share(vms=3, cores=6, vm_seconds=9)
    assert lending.taken(Share(vms=2, cores=2, vm_seconds=1)) == Share(vms=4, cores=6, vm_seconds=10)


def test_whom_to_ask_is_said() -> None:
    terms = Terms("/etc/ghv/lender.toml", "root")
    assert "ask root" in terms.hint and "ask hpc@x" in replace(terms, contact="hpc@x").hint
    assert "set the limit itself" in replace(terms, own=True).hint


@given(st.lists(st.tuples(st.integers(0, 4 << 20), st.floats(0, 3)), min_size=1, max_size=40))
def test_bytes_never_go_faster_than_the_lender_allows(pieces: list[tuple[int, float]]) -> None:
    """Whatever the pauses: from the first moment on, at most a burst more than the rate gives."""
    rate, pace, now, gone = 1 << 20, Pace(), 1000.0, 0
    for size, pause in pieces:
        gone += size
        now += pause + pace.delay(size, rate, now + pause)  # one after another, as they are let go
        assert gone <= (now - 1000.0 + BURST) * rate + 1e-3


def test_a_burst_goes_at_once_and_the_rest_at_the_rate() -> None:
    pace = Pace()
    assert pace.delay(1 << 20, 1 << 20, 50.0) == 0.0
    assert pace.delay(3 << 20, 1 << 20, 50.0) == pytest.approx(3.0)
    assert pace.delay(1 << 20, 1 << 20, 60.0) == 0.0


def test_the_file_in_the_documentation_is_one() -> None:
    text = (Path(__file__).parents[2] / "docs" / "lender.md").read_text()
    terms = parse(text.split("```toml\n")[1].split("```")[0], "lender.md")
    fields = ("vms", "cores", "memory", "vm_seconds", "core_seconds", "images", "bandwidth", "listen")
    assert None not in [getattr(terms, field) for field in fields] and terms.hours and terms.contact
