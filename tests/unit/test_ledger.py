"""The ledger adds up to the wall time, whatever shape the job's life had, and no row is negative."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gridhypervisor.model.records import (
    Allocation,
    AllocationState,
    Expected,
    Job,
    JobState,
    Ledger,
    OperationRow,
    Times,
)
from gridhypervisor.model.spec import JobSpec
from gridhypervisor.model.wire import (
    WRAPPER,
    CpuUsage,
    ExitRecord,
    HypervisorKind,
    HypervisorUsed,
    ImageManifest,
    OperationKind,
    Outcome,
    Phase,
    PhaseTime,
    Reason,
    Timing,
)
from gridhypervisor.planning.ledger import MIDDLEWARE, ledger

K = OperationKind

JOB = Job("j1", "me", "default", "test", JobSpec("image", ("true",)), "/home", "/home", ImageManifest(()), "0" * 64,
          created=100.0, state=JobState.DONE)  # fmt: skip

USED = HypervisorUsed(HypervisorKind.TCG, "qemu 7.2.22", "", "restored from snapshot 0123456789ab")


def sentinel(lengths: list[float], elapsed: float) -> ExitRecord:
    """Of a pilot whose phases took these seconds, and that lived for `elapsed`."""
    phases, at = [], 0.0
    for phase, length in zip(WRAPPER, lengths, strict=False):
        phases.append(PhaseTime(phase, at, at + length))
        at += length
    return ExitRecord("e", 1, "c", Outcome.COMPLETED, Reason.EXITED, phases=tuple(phases), elapsed=elapsed,
                      usage=CpuUsage(0.5, 4.0, 3.0), hypervisor=USED)  # fmt: skip


def attempt(epoch: int, times: Times, exit: ExitRecord | None = None) -> Allocation:
    return Allocation(f"v1.{epoch}", "me", "default", "j1", "v1", epoch, f"e{epoch}", "site", times,
                      AllocationState.CLEANED, exit=exit)  # fmt: skip


def rows(found: Ledger, attempt: int = 1) -> dict[str, float]:
    return {row.phase: round(row.seconds, 6) for row in found.rows if row.attempt == attempt}


def test_what_was_done_stands_beside_what_was_predicted_of_it() -> None:
    """Of this size, under the hypervisor that it was, at a node as busy as that. Sent: what the site lacked, and the
    inputs."""
    times = Times(101.0, submitting=103.0, queued=103.1, running=110.0, ended=121.0, collected=122.0, since=123.0)
    done = (Timing(K.PREPARE, 1000, 0.5), Timing(K.BOOT, 2000, 3.0, 1.5), Timing(K.SAVE, 500, 1.0))
    rates = {"upload": (1.0, 0.0005), "boot tcg": (2.0, 0.001), "boot uml": (9.0, 0.0), "prepare": (0.25, 0.0)}
    a = attempt(1, times, replace(sentinel([2, 3, 1, 2, 1, 0.5], 10.0), timings=done))
    found = ledger(replace(JOB, ended=123.5, attempts=1), [replace(a, expected=Expected(3000, 7.0, rates))], {})
    assert found.operations == (
        OperationRow(1, "upload", 4000, 2.0, 3.0),
        OperationRow(1, "prepare", 1000, 0.5, 0.25),
        OperationRow(1, "boot", 2000, 3.0, 6.0, 1.5),
        OperationRow(1, "save", 500, 1.0, None),
    )
    assert ledger(replace(JOB, ended=123.5, attempts=1), [a], {}).operations[0] == OperationRow(1, "prepare", 1000, 0.5)


def test_an_ordinary_run() -> None:
    times = Times(101.0, submitting=103.0, queued=103.1, running=110.0, ended=121.0, collected=122.0, since=123.0)
    found = ledger(replace(JOB, ended=123.5, attempts=1), [attempt(1, times, sentinel([2, 3, 1, 2, 1, 0.5], 10.0))],
                   {"controller": 0.01})  # fmt: skip
    assert found.wall == 23.5
    assert rows(found) == {
        Phase.WAIT: 1, Phase.PROLOG: 2, Phase.QUEUE: 7, Phase.PREPARE: 2, Phase.BOOT: 3, Phase.STAGE_IN: 1,
        Phase.EXECUTE: 2, Phase.STAGE_OUT: 1, Phase.SHUT_DOWN: 0.5, MIDDLEWARE: 1.5, Phase.EPILOG: 2.5,
    }  # fmt: skip
    assert found.cpu == {"pilot": 0.5, "hypervisor": 4.0, "program": 3.0, "controller": 0.01}
    assert (found.hypervisor, found.boot) == ("qemu 7.2.22, tcg", "restored from snapshot 0123456789ab")


def test_a_job_that_never_got_a_place_waited_all_the_time() -> None:
    assert rows(ledger(replace(JOB, ended=160.0), [], {}), 0) == {Phase.WAIT: 60}


def test_a_pilot_that_says_it_lived_longer_than_we_saw_is_cut_to_what_we_saw() -> None:
    times = Times(100.0, submitting=100.0, running=101.0, ended=110.0, collected=110.0, since=110.0)
    found = ledger(replace(JOB, ended=110.0, attempts=1), [attempt(1, times, sentinel([500.0], 500.0))], {})
    assert rows(found)[Phase.PREPARE] == 10.0


def test_the_next_attempt_does_not_wait_for_the_cleaning_of_the_last() -> None:
    first = Times(101.0, submitting=102.0, cleaned=130.0, since=130.0)
    second = Times(110.0, submitting=111.0, running=112.0, ended=120.0, collected=121.0, since=121.0)
    attempts = [attempt(1, first), attempt(2, second, sentinel([1], 8.0))]
    found = ledger(replace(JOB, ended=131.0, attempts=2), attempts, {})
    assert rows(found, 1)[Phase.QUEUE] == 8.0
    assert rows(found, 2)[Phase.WAIT] == 0.0


@st.composite
def lives(draw: st.DrawFn) -> tuple[Job, list[Allocation]]:
    """Jobs of up to three attempts, each of which got as far as it got; clocks only go forward."""
    now = 100.0

    def later() -> float:
        nonlocal now
        now += draw(st.floats(0, 1e5))
        return now

    attempts = []
    for epoch in range(1, draw(st.integers(0, 3)) + 1):
        times = Times(planned=later())
        exit = None
        if draw(st.booleans()):
            times = replace(times, submitting=later())
            if draw(st.booleans()):
                times = replace(times, queued=later())
            if draw(st.booleans()):
                times = replace(times, running=later())
                times = replace(times, ended=later())
                exit = sentinel(draw(st.lists(st.floats(0, 1e4), max_size=6)), draw(st.floats(0, 1e5)))
                times = replace(times, collected=later())
        over = later()
        cleaned = over + draw(st.floats(0, 1e5)) if draw(st.booleans()) else None
        attempts.append(attempt(epoch, replace(times, since=cleaned or over, cleaned=cleaned), exit))
    return replace(JOB, ended=later(), attempts=len(attempts)), attempts


@given(lives())
def test_it_adds_up(life: tuple[Job, list[Allocation]]) -> None:
    job, attempts = life
    found = ledger(job, attempts, {})
    assert sum(row.seconds for row in found.rows) == pytest.approx(found.wall, abs=1e-6)
    assert all(row.seconds >= -1e-6 for row in found.rows)
