"""What attempts are charged with, how it is added up, and a job's history."""

from __future__ import annotations

import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import create_engine

from gridhypervisor import store as store_package
from gridhypervisor.execution.ports import Store
from gridhypervisor.model.accounts import Account, By, Charge, Stage
from gridhypervisor.model.commit import Birth, Commit, JobRecords
from gridhypervisor.model.records import Allocation, AllocationState, Event, Job, JobState, PilotJob, Times, Vm
from gridhypervisor.model.spec import JobSpec, ResourcesSpec
from gridhypervisor.model.wire import (
    EntryView,
    ExitRecord,
    ImageManifest,
    Outcome,
    Phase,
    PhaseTime,
    Reason,
    Status,
)
from gridhypervisor.planning.accounts import charge, history
from gridhypervisor.planning.world import Case, Observed
from gridhypervisor.store import open_store
from gridhypervisor.store.memory import MemoryStore

SPEC = JobSpec("image", ("true",), resources=ResourcesSpec(cpus=4))
JOB = Job("j1", "ada", "astro", "test", SPEC, "/home", "/home", ImageManifest(()), "0" * 64, created=100.0)
DONE = ExitRecord("e1", 1, "c", Outcome.COMPLETED, Reason.EXITED, exit_code=3, elapsed=60.0, node="n1",
                  phases=(PhaseTime(Phase.BOOT, 0.0, 10.0), PhaseTime(Phase.EXECUTE, 10.0, 55.0)))  # fmt: skip


def attempt(times: Times, state: AllocationState, epoch: int = 1, *, site: str = "uni", job: str = "j1",
            exit: ExitRecord | None = None, why: Reason | None = None) -> Allocation:  # fmt: skip
    number = job[1:]
    return Allocation(f"v{number}.{epoch}", "ada", "astro", job, f"v{number}", epoch, f"g-{job}-{epoch}", site, times,
                      state, why=why, exit=exit, version=1)  # fmt: skip


RAN = attempt(Times(101.0, submitting=110.0, queued=111.0, running=140.0, ended=200.0, collected=201.0, since=201.0),
              AllocationState.COLLECTED, exit=DONE)  # fmt: skip
NEVER_RAN = attempt(Times(101.0, submitting=110.0, since=170.0), AllocationState.REVOKED, why=Reason.CANCELLED)


def test_an_attempt_is_charged_for_its_cores_as_long_as_it_ran() -> None:
    assert charge(JOB, RAN) == Charge("v1.1", "j1", "ada", "astro", "uni", "single", "exited", True, 200.0, 30.0, 60.0,
                                      240.0)  # fmt: skip
    lost = replace(RAN, exit=None, why=Reason.LOST, state=AllocationState.FENCED)
    assert (charge(JOB, lost).reason, charge(JOB, lost).completed) == ("lost", False)
    assert charge(JOB, lost).core_seconds == 240.0, "what a site gave counts, whatever came of it"


def test_an_attempt_that_never_ran_only_waited() -> None:
    found = charge(JOB, NEVER_RAN)
    assert (found.waited, found.ran, found.core_seconds, found.reason) == (60.0, 0.0, 0.0, "cancelled")
    at_once = replace(NEVER_RAN, times=Times(101.0, since=102.0))
    assert charge(JOB, at_once).waited == 0.0


def test_the_profile_is_what_the_job_was_handed_in_as() -> None:
    def profile(job: Job) -> str:
        return charge(job, RAN).profile

    assert profile(replace(JOB, group="a3")) == "array"
    assert profile(replace(JOB, group="w3")) == "workflow"
    assert profile(replace(JOB, spec=JobSpec("", ("true",)))) == "probe"


# -- added up ----------------------------------------------------------------------------------------------------------


def handed_in(store: Store, owner: str, group: str = "") -> JobRecords:
    job = replace(JOB, id="", owner=owner, group=group, member="1" if group else "")
    event = Event(1.0, owner, "astro", "", "job", "", "", "pending")
    return store.create_jobs([Birth(job, Vm("", owner, "astro", ""), event)])[0]


def tried(store: Store, records: JobRecords, like: Allocation, epoch: int = 1, site: str = "uni") -> None:
    """An attempt comes and is over, as the loop commits it."""
    job = records.job
    a = attempt(like.times, like.state, epoch, site=site, job=job.id, exit=like.exit, why=like.why)
    a = replace(a, owner=job.owner)
    pilot = PilotJob(a.pilot_job, job.owner, job.project, site, version=1)
    [fits] = store.commit([Commit((pilot, a), charges=(charge(job, a),))])
    assert fits


def use(store: Store) -> None:
    """ada's job had two attempts, her array's task one; bob's was cancelled before it ran."""
    first, task, bobs = handed_in(store, "ada"), handed_in(store, "ada", "a9"), handed_in(store, "bob")
    lost = replace(RAN, exit=None, why=Reason.LOST)
    tried(store, first, lost)
    tried(store, first, replace(RAN, times=replace(RAN.times, ended=4000.0)), 2, "hpc")
    tried(store, task, RAN)
    tried(store, bobs, NEVER_RAN)


@pytest.fixture
def used(tmp_path: Path) -> Path:
    """ada's job had two attempts, her array's task one; bob's was cancelled before it ran."""
    store = open_store(tmp_path / "store.db")
    use(store)
    store.close()
    return tmp_path / "store.db"


def sums(store: Store, *by: By, since: float = 0.0, until: float = 1e9) -> list[tuple[object, ...]]:
    found = store.accounts(by, since=since, until=until, limit=1000).accounts
    return [(*a.of.values(), a.jobs, a.attempts, a.completed, a.waited, round(a.core_hours * 3600, 3)) for a in found]


def test_accounts_add_up_and_the_greatest_come_first(used: Path) -> None:
    store = open_store(used)
    assert sums(store, "user") == [("ada", 2, 3, 2, 90.0, 15440.0 + 240.0 + 240.0), ("bob", 1, 1, 0, 60.0, 0.0)]
    assert sums(store, "site", "reason") == [
        ("hpc", "exited", 1, 1, 1, 30.0, 15440.0), ("uni", "exited", 1, 1, 1, 30.0, 240.0),
        ("uni", "lost", 1, 1, 0, 30.0, 240.0), ("uni", "cancelled", 1, 1, 0, 60.0, 0.0),
    ]  # fmt: skip
    assert [row[0] for row in sums(store, "profile")] == ["single", "array"]
    assert [row[0] for row in sums(store, "project")] == ["astro"]
    few = store.accounts(("user",), since=0.0, until=1e9, limit=1)
    assert [a.of["user"] for a in few.accounts] == ["ada"] and few.total.attempts == 4, "the total is of all"
    store.close()


def test_a_store_in_memory_adds_up_alike(used: Path) -> None:
    memory, disk = MemoryStore(), open_store(used)
    use(memory)
    wants: tuple[tuple[By, ...], ...] = (("user",), ("site", "reason"), ("profile", "project"))
    for by in wants:
        assert sums(memory, *by) == sums(disk, *by)
        assert sums(memory, *by, since=200.0) == sums(disk, *by, since=200.0)
    assert memory.accounts((), since=0.0, until=1e9, limit=1) == disk.accounts((), since=0.0, until=1e9, limit=1)
    disk.close()


def test_an_attempt_counts_when_it_ended(used: Path) -> None:
    store = open_store(used)
    assert sums(store, "site", since=200.0) == [("hpc", 1, 1, 1, 30.0, 15440.0)]
    assert sums(store, "user", until=170.0) == [("bob", 1, 1, 0, 60.0, 0.0)]
    nothing = store.accounts(("user",), since=5000.0, until=6000.0, limit=10)
    assert (nothing.accounts, nothing.total) == ((), Account({}, 0, 0, 0, 0.0, 0.0, 0.0))
    store.close()


def test_what_was_used_stays_used_when_the_job_is_deleted(used: Path) -> None:
    store = open_store(used)
    before = sums(store, "user", "profile")
    store.delete_job("j1", Event(9.0, "ada", "astro", "j1", "job", "j1", "done", "deleted"))
    assert store.job("j1") is None and sums(store, "user", "profile") == before
    store.close()


def test_a_store_from_before_is_charged_with_what_it_remembers(used: Path) -> None:
    store = open_store(used)
    before = sums(store, "user", "project", "site", "profile", "reason")
    store.close()
    old = of_revision("0006", used)
    store = open_store(old)
    assert sums(store, "user", "project", "site", "profile", "reason") == before
    store.close()


def of_revision(revision: str, store: Path) -> Path:
    """A store as a version from before would have left it, with all of this one's rows that it knew."""
    config, old = Config(), store.with_name("old.db")
    config.set_main_option("script_location", str(Path(str(store_package.__file__)).parent / "migrations"))
    engine = create_engine(f"sqlite:///{old}")
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, revision)
    engine.dispose()
    with sqlite3.connect(old) as rows:
        rows.execute("ATTACH ? AS new", [str(store)])
        for (table,) in rows.execute("SELECT name FROM main.sqlite_master WHERE type = 'table'").fetchall():
            if table != "alembic_version":
                known = ", ".join(f'"{row[1]}"' for row in rows.execute(f"PRAGMA main.table_info({table})"))
                rows.execute(f"DELETE FROM main.{table}")
                rows.execute(f"INSERT INTO main.{table} ({known}) SELECT {known} FROM new.{table}")
    rows.close()
    return old


# -- history -----------------------------------------------------------------------------------------------------------


def stages(found: tuple[Stage, ...]) -> list[tuple[str, float, float]]:
    return [(stage.phase, stage.at, stage.seconds) for stage in found]


def test_a_history_tells_each_attempt_phase_by_phase() -> None:
    pilots = {f"g-j1-{n}": PilotJob(f"g-j1-{n}", "ada", "astro", "uni", batch_id=f"{n}7") for n in (1, 2)}
    again = attempt(Times(175.0, submitting=180.0, running=190.0, ended=260.0, since=260.0), AllocationState.CLEANED, 2,
                    site="hpc", exit=DONE)  # fmt: skip
    job = replace(JOB, state=JobState.DONE, ended=262.0, attempts=2)
    first, second = history(Case(job, Vm("v1", "ada", "astro", "j1"), (NEVER_RAN, again), pilots), 999.0).attempts
    assert (first.site, first.batch_id, first.reason, first.node) == ("uni", "17", Reason.CANCELLED, "")
    assert stages(first.stages)[:3] == [("wait", 100.0, 1.0), ("prolog", 101.0, 9.0), ("queue", 110.0, 60.0)]
    assert (second.site, second.node, second.reason) == ("hpc", "n1", Reason.EXITED)
    assert ("execute", 200.0, 45.0) in stages(second.stages)
    assert second.stages[-1].at + second.stages[-1].seconds == pytest.approx(262.0), "it ends when the job does"


def test_the_history_of_a_job_that_runs_goes_as_far_as_its_pilot_has_told() -> None:
    times = Times(101.0, submitting=110.0, running=140.0, since=140.0)
    running = attempt(times, AllocationState.RUNNING)
    status = Status(running.pilot_job, 1, "c", 7, Phase.EXECUTE,
                    (PhaseTime(Phase.BOOT, 0.0, 10.0), PhaseTime(Phase.EXECUTE, 10.0)), 15.0, "n1")  # fmt: skip
    seen = {running.pilot_job: Observed(view=EntryView(running.pilot_job, None, status, None))}
    job = replace(JOB, state=JobState.RUNNING, attempts=1)
    [found] = history(Case(job, Vm("v1", "ada", "astro", "j1"), (running,), {}, seen), 170.0).attempts
    assert (found.phase, found.node, found.reason) == (Phase.EXECUTE, "n1", None)
    assert stages(found.stages)[-3:-1] == [("boot", 140.0, 10.0), ("execute", 150.0, 20.0)]


def test_a_job_that_waits_for_a_site_has_no_attempts() -> None:
    assert history(Case(JOB, Vm("v1", "ada", "astro", "j1")), 170.0).attempts == ()
