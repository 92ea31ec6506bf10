"""What `ghv ledger` makes of jobs: one row for each attempt, by site, whose times add up and draw to scale."""

from __future__ import annotations

from pathlib import Path

import pytest

from gridhypervisor.cli.ledger import KINDS, Span, Stay, columns, seconds, stays
from gridhypervisor.cli.plot import COLOURS, draw
from gridhypervisor.model.ledger import Ledger, LedgerRow
from gridhypervisor.model.spec import JobSpec
from gridhypervisor.model.states import AllocationState, JobState, Wish
from gridhypervisor.model.views import AttemptView, JobDetail, JobView, ServiceError
from gridhypervisor.model.wire import Phase, Reason
from gridhypervisor.planning.ledger import MIDDLEWARE

WAITING, DATA, MACHINE, PROGRAM = KINDS
PHASES = {*map(str, Phase), MIDDLEWARE}


def job(
    name: str,
    created: float,
    *rows: tuple[int, str, float],
    sites: tuple[str, ...] = (),
    state: JobState = JobState.DONE,
    code: int | None = 0,
) -> JobDetail:
    """A job that was at these sites, one after another, and all but the last of them lost it."""
    attempts = [
        AttemptView(f"v.{n}", n, site, f"e-{n}", str(40 + n), AllocationState.CLEANED, node=f"{site}-n1",
                    hypervisor="User-Mode Linux 6.1.55, uml: predicted to be fastest",
                    reason=Reason.LOST if n < len(sites) else Reason.EXITED)
        for n, site in enumerate(sites, 1)
    ]  # fmt: skip
    view = JobView(name, name, "me", "default", state, Wish.RUN, created, "xmm", "0" * 64, ("true",), "/home",
                   exit_code=code)  # fmt: skip
    lengths = tuple(LedgerRow(*row) for row in rows)
    wall = sum(row.seconds for row in lengths)
    ledger = Ledger(name, wall, lengths, {"hypervisor": 3.0, "program": 2.0}) if state.final else None
    return JobDetail(view, JobSpec("xmm", ("true",)), tuple(attempts), (), ledger)


def test_a_job_that_was_lost_at_one_site_and_ran_at_another_has_a_row_at_each() -> None:
    rows = (1, "wait", 1.0), (1, "queue", 4.0), (2, "wait", 0.5), (2, "boot", 2.0), (2, "execute", 2.5)
    lost, ran = stays([job("j7", 100.0, *rows, sites=("b", "c"))], {"b": "slurm 22.05.8"})
    assert (lost.site, lost.batch_system, lost.node, lost.state, lost.cpu) == ("b", "slurm 22.05.8", "b-n1", "lost", {})
    assert (ran.site, ran.batch_system, ran.state, ran.hypervisor) == ("c", "", "done", "User-Mode Linux 6.1.55, uml")
    assert (lost.start, lost.end, ran.start, ran.end) == (0.0, 5.0, 5.0, 10.0)
    assert [seconds(ran, kind) for kind in KINDS] == [0.5, 0.0, 2.0, 2.5]
    assert ran.cpu == {"hypervisor": 3.0, "program": 2.0}, "of the whole job, told once"


def test_jobs_come_by_site_and_there_as_they_were_handed_in() -> None:
    found = stays([job("j3", 30.0, sites=("a",)), job("j2", 20.0, sites=("b",)), job("j1", 10.0, sites=("a",))], {})
    assert [(stay.site, stay.job) for stay in found] == [("a", "j1"), ("a", "j3"), ("b", "j2")]


def test_a_job_that_never_came_to_a_site_and_one_that_still_runs_have_rows_too() -> None:
    refused = job("j1", 10.0, (0, "wait", 60.0), state=JobState.CANCELLED, code=None)
    running = job("j2", 20.0, sites=("a",), state=JobState.RUNNING, code=None)
    nowhere, there = stays([refused, running], {})
    assert (nowhere.site, nowhere.state, nowhere.end) == ("", "cancelled", 60.0)
    assert (there.site, there.state, there.spans) == ("a", "running", ())


def test_a_program_that_failed_is_told_with_its_code() -> None:
    [stay] = stays([job("j1", 0.0, (1, "execute", 1.0), sites=("a",), code=7)], {})
    assert stay.state == "done (7)"


@pytest.mark.parametrize("phase", sorted(PHASES))
def test_every_phase_has_its_kind_and_its_colour(phase: str) -> None:
    assert [kind for kind in KINDS if phase in kind.phases] and COLOURS[phase]


def stay(start: float, *spans: tuple[str, float]) -> Stay:
    return Stay("j1", "j1", 1, "a", "slurm", "1", "n1", "uml", "done", 0.0, start, tuple(Span(*s) for s in spans), {})


def test_a_bar_is_to_scale_and_begins_where_the_attempt_did() -> None:
    drawn = columns(stay(2.0, ("queue", 2.0), ("boot", 1.0), ("execute", 3.0)), longest=10.0, width=10)
    assert drawn == [None, None, WAITING, WAITING, MACHINE, PROGRAM, PROGRAM, PROGRAM, None, None]


def test_phases_too_short_for_a_column_share_it_by_what_there_is_most_of() -> None:
    drawn = columns(stay(0.0, ("wait", 0.1), ("prolog", 0.6), ("queue", 0.3), ("execute", 1.0)), longest=2.0, width=2)
    assert drawn == [DATA, PROGRAM]


@pytest.mark.parametrize(("ending", "begins"), [(".png", b"\x89PNG"), (".svg", b"<?xml"), (".pdf", b"%PDF")])
def test_it_is_drawn_in_the_format_that_the_name_says(tmp_path: Path, ending: str, begins: bytes) -> None:
    drawn = tmp_path / f"map{ending}"
    draw([stay(0.0, *((phase, 1.0) for phase in sorted(PHASES))), stay(3.0)], drawn)
    assert drawn.read_bytes().startswith(begins)


def test_a_picture_of_no_known_kind_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ServiceError, match=r"map\.doc.*\.png"):
        draw([stay(0.0, ("execute", 1.0))], tmp_path / "map.doc")
    assert not list(tmp_path.iterdir())
