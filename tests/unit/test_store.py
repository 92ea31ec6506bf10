"""What the loop and the service rely on: nothing is half written, nothing is forgotten, nothing finished is scanned."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from sqlalchemy import Connection, event

from gridhypervisor.execution.ports import Store
from gridhypervisor.model.commit import Birth, Commit, StoreError
from gridhypervisor.model.policy import Limits, PolicyRecord, SchedulingPolicy
from gridhypervisor.model.records import (
    AllocationState,
    Denial,
    Event,
    JobState,
    Ledger,
    LedgerRow,
    OperationRow,
    Site,
    SiteKind,
    Wish,
)
from gridhypervisor.model.wire import (
    CpuUsage,
    ExitRecord,
    Outcome,
    OutputFile,
    Phase,
    PhaseTime,
    Reason,
)
from gridhypervisor.store import MemoryStore, SqliteStore, open_store
from tests.unit.store_records import SPEC, allocation_moved, moved, new_job, planned, said


@pytest.fixture
def sqlite(tmp_path: Path) -> Iterator[SqliteStore]:
    opened = open_store(tmp_path / "store.db")
    yield opened
    opened.close()


@pytest.fixture(params=["sqlite", "memory"])
def store(request: pytest.FixtureRequest) -> Store:
    """What both promise."""
    if request.param == "memory":
        return MemoryStore()
    opened: Store = request.getfixturevalue("sqlite")
    return opened


def test_a_new_one_is_empty(store: Store) -> None:
    assert store.alive() == []


def test_jobs_are_numbered_and_found_again_as_they_were(store: Store) -> None:
    first, second = new_job(store), new_job(store)
    assert (first.job.id, first.vm.id, first.vm.job) == ("j1", "v1", "j1")
    assert (second.job.id, second.job.version, second.vm.version) == ("j2", 1, 1)
    assert store.job("j1") == first
    assert store.job("j3") is None


def test_how_allocations_stand_is_read_as_it_is_committed(store: Store) -> None:
    assert store.states(["v1.1"]) == {}
    store.commit([planned(new_job(store)), planned(new_job(store))])
    assert store.states(["v1.1", "v2.1", "v3.1"]) == dict.fromkeys(("v1.1", "v2.1"), AllocationState.PLANNED)
    [first, _] = store.alive()
    moved_on = dataclasses.replace(first.allocations[0], version=2, state=AllocationState.FENCING)
    assert store.commit([Commit((moved_on,))]) == [True]
    assert store.states(["v1.1"]) == {"v1.1": AllocationState.FENCING}


def test_a_finished_attempt_is_found_again_in_every_part(store: Store) -> None:
    new = new_job(store)
    commit = planned(new)
    assert store.commit([commit]) == [True]
    [records] = store.alive()
    [pilot], [allocation] = records.pilot_jobs, records.allocations
    ended = dataclasses.replace(
        allocation,
        version=2,
        state=AllocationState.ENDED,
        times=dataclasses.replace(allocation.times, ended=9.0, since=9.0),
        exit=ExitRecord(
            entry=pilot.name,
            epoch=1,
            claim="c",
            outcome=Outcome.COMPLETED,
            reason=Reason.EXITED,
            exit_code=3,
            phases=(PhaseTime(Phase.BOOT, 0.5, 2.0), PhaseTime(Phase.EXECUTE, 2.0)),
            usage=CpuUsage(pilot=0.25, program=7.0),
            outputs=(OutputFile("products/spectrum é.txt", 10, 0o644, "c" * 64),),
        ),
    )
    known = dataclasses.replace(pilot, version=2, batch_id="4711")
    done = dataclasses.replace(
        new.job, version=2, state=JobState.DONE, exit_code=3, reason=Reason.EXITED, ended=9.5, excluded=("there",)
    )
    rows = LedgerRow(1, "boot", 1.5), LedgerRow(1, "middleware", 6.5)
    done_so = OperationRow(1, "boot", 1 << 29, 1.5, 2.5), OperationRow(1, "save", 1 << 27, 0.5)
    ledger = Ledger("j1", 8.0, rows, {"pilot": 0.25}, "qemu", operations=done_so)
    assert store.commit([Commit((done, ended, known), (said(done),), ledger)]) == [True]

    found = store.job("j1")
    assert found is not None
    assert (found.job, found.vm, found.allocations, found.pilot_jobs) == (done, records.vm, (ended,), (known,))
    assert store.ledger("j1") == ledger


def test_a_ledger_is_replaced(store: Store) -> None:
    new = new_job(store)
    assert store.ledger("j1") is None
    done = moved(new.job, JobState.DONE)
    store.commit([dataclasses.replace(done, ledger=Ledger("j1", 1.0))])
    store.commit([Commit((), (), Ledger("j1", 2.0)), Commit((), (), Ledger("j1", 3.0))])
    assert store.ledger("j1") == Ledger("j1", 3.0)


def test_a_commit_that_comes_too_late_leaves_no_trace(store: Store) -> None:
    new = new_job(store)
    assert store.commit([moved(new.job, JobState.PROLOG)]) == [True]
    before = store.job("j1"), store.events()
    late = Commit((*planned(new).records, *moved(new.job, JobState.FAILED).records), (said(new.job),))
    assert store.commit([late]) == [False]
    assert (store.job("j1"), store.events()) == before


def test_of_one_transaction_each_commit_stands_or_falls_alone(store: Store) -> None:
    a, b = new_job(store), new_job(store)
    twice = [moved(a.job, JobState.PROLOG), moved(a.job, JobState.FAILED), planned(b)]
    assert store.commit(twice) == [True, False, True]
    assert [r.job.state for r in store.alive()] == [JobState.PROLOG, JobState.PENDING]
    assert [len(r.allocations) for r in store.alive()] == [0, 1]


def test_commits_that_follow_one_another_fit_into_one_transaction(store: Store) -> None:
    new = new_job(store)
    prolog = moved(new.job, JobState.PROLOG)
    queued = moved(dataclasses.replace(new.job, version=2), JobState.QUEUED)
    first = planned(new)
    [_, _, allocation] = first.records
    assert store.commit([prolog, first, queued, Commit((dataclasses.replace(allocation, version=2),))]) == [True] * 4
    [found] = store.alive()
    assert (found.job.version, found.job.state, found.allocations[0].version) == (3, JobState.QUEUED, 2)


def test_a_plan_for_a_job_that_was_deleted_does_not_fit(store: Store) -> None:
    new = new_job(store)
    plan = planned(new)
    [_, pilot, allocation] = plan.records
    store.delete_job("j1", said(new.job, after="deleted"))
    assert store.was_deleted("j1") and not store.was_deleted("j2")
    late = [plan, Commit((pilot, allocation)), Commit((), (said(new.job),), Ledger("j1", 1.0))]
    assert store.commit(late) == [False, False, False]
    assert store.alive() == []


def test_only_the_store_counts_jobs(store: Store) -> None:
    new = new_job(store)
    with pytest.raises(StoreError, match="only create_job makes jobs"):
        store.commit([Commit((dataclasses.replace(new.job, id="j7"),))])


def test_text_that_no_database_holds_is_refused_by_name(sqlite: SqliteStore) -> None:
    new = new_job(sqlite)
    bad = dataclasses.replace(new.job, message="\udcff", version=2)
    with pytest.raises(StoreError, match="message of j1 is not valid text"):
        sqlite.commit([Commit((bad,))])
    assert sqlite.commit([moved(new.job, JobState.PROLOG)]) == [True]


def test_what_could_not_be_read_again_is_not_accepted(sqlite: SqliteStore) -> None:
    new = new_job(sqlite)
    resources = msgspec.structs.replace(new.job.spec.resources, memory="much")
    spec = msgspec.structs.replace(new.job.spec, resources=resources)
    with pytest.raises(StoreError, match="cannot read"):
        sqlite.create_job(dataclasses.replace(new.job, spec=spec), new.vm, said(new.job))
    assert new_job(sqlite).job.id == "j2"


def test_a_job_is_alive_until_nothing_is_left_to_do(store: Store) -> None:
    new = new_job(store)
    store.commit([planned(new)])
    [found] = store.alive()
    [allocation] = found.allocations
    store.commit([moved(new.job, JobState.DONE)])
    assert [r.job.id for r in store.alive()] == ["j1"], "the site still holds its entry"
    store.commit([allocation_moved(allocation, AllocationState.CLEANED)])
    assert store.alive() == []
    [listed] = store.jobs()
    store.commit([Commit((dataclasses.replace(listed.job, wish=Wish.DELETE, version=listed.job.version + 1),))])
    assert [r.job.id for r in store.alive()] == ["j1"], "its deletion was asked for"


def test_looking_for_what_is_alive_reads_no_finished_job(sqlite: SqliteStore) -> None:
    plans: list[str] = []

    @event.listens_for(sqlite._reader, "before_cursor_execute")
    def explain(connection: Connection, cursor: object, text: str, values: tuple[object, ...], *_: object) -> None:
        if text.startswith("SELECT"):
            beside = connection.connection.cursor()
            beside.execute(f"EXPLAIN QUERY PLAN {text}", values)
            plans.extend(row[3] for row in beside.fetchall())

    sqlite.alive()
    touched = [plan for plan in plans if plan.startswith(("SCAN", "SEARCH"))]
    assert any("ix_job_alive" in plan for plan in touched)
    assert any("ix_allocation_alive" in plan for plan in touched)
    full = [plan for plan in touched if plan.startswith("SCAN") and "_alive" not in plan]
    assert all(plan.split()[1] not in ("job", "vm", "allocation", "pilot_job") for plan in full), full


def test_what_is_committed_is_on_the_disk(sqlite: SqliteStore) -> None:
    with sqlite._writer.connect() as connection:
        pragmas = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in ("synchronous", "journal_mode")
        }
    assert pragmas == {"synchronous": 2, "journal_mode": "wal"}, "FULL: an intent outlives a power cut"


def test_lists_newest_first_in_pages(store: Store) -> None:
    records = [new_job(store) for _ in range(12)]
    store.commit([moved(records[10].job, JobState.DONE), moved(records[1].job, JobState.DONE)])
    assert [r.job.id for r in store.jobs(limit=3)] == ["j12", "j11", "j10"]
    assert [r.job.id for r in store.jobs(before="j10", limit=2)] == ["j9", "j8"]
    assert [r.job.id for r in store.jobs(states=["done"])] == ["j11", "j2"]
    store.delete_job("j9", said(records[8].job))
    assert [r.job.id for r in store.jobs(before="j9", limit=1)] == ["j8"], "a page may start below a deleted job"
    with pytest.raises(ValueError, match="'12' is not a job's id"):
        store.jobs(before="12")


def test_an_idempotency_key_returns_the_job_of_then_to_its_owner_alone(store: Store) -> None:
    first = new_job(store, key="k")
    store.commit([moved(first.job, JobState.PROLOG)])
    again = new_job(store, key="k", name="other")
    assert (again.job.id, again.job.state, again.job.name) == ("j1", JobState.PROLOG, "evproducts")
    assert new_job(store, key="k", owner="bob").job.id == "j2"
    assert [new_job(store).job.id, new_job(store).job.id] == ["j3", "j4"]
    assert len(store.events()) == 5


def test_jobs_that_are_made_together_are_numbered_in_their_order_and_a_key_is_one_job(store: Store) -> None:
    old = new_job(store, key="old")

    def birth(name: str, key: str = "", job: str = "") -> Birth:
        made = dataclasses.replace(old.job, id=job, name=name)
        return Birth(made, dataclasses.replace(old.vm, id=""), said(old.job), key)

    first = store.reserve(1)
    asked = [birth("a"), birth("b", "k"), birth("c", job=f"j{first}"), birth("d", "k"), birth("e", "old"), birth("f")]
    made = store.create_jobs(asked)
    assert [(each.job.id, each.job.name) for each in made] == [
        ("j3", "a"), ("j4", "b"), ("j2", "c"), ("j4", "b"), ("j1", "evproducts"), ("j5", "f"),
    ]  # fmt: skip
    assert {each.vm.job for each in made} == {each.job.id for each in made}
    assert sorted(event.job for event in store.events(after=1)) == ["j2", "j3", "j4", "j5"]
    assert new_job(store).job.id == "j6", "a key that was known takes no number"


def test_a_change_keeps_what_a_job_was_born_with(store: Store) -> None:
    records = new_job(store)
    store.commit([planned(records)])
    job = dataclasses.replace(
        records.job, state=JobState.FAILED, message="why", hint="what to do", ended=7.5, exit_code=3, attempts=2,
        excluded=("here",), recover=1, spec=msgspec.structs.replace(SPEC, site="there"), version=2,
    )  # fmt: skip
    assert store.commit([Commit((job,))]) == [True]
    [found] = store.jobs()
    assert found.job == job
    ended = dataclasses.replace(found.allocations[0], state=AllocationState.CLEANED, note="over", version=2)
    batch = dataclasses.replace(found.pilot_jobs[0], batch_id="17", version=2)
    assert store.commit([Commit((ended, batch))]) == [True]
    [found] = store.jobs()
    assert (found.allocations, found.pilot_jobs) == ((ended,), (batch,))


def test_deleting_removes_all_but_the_story(store: Store) -> None:
    a, b = new_job(store), new_job(store)
    store.commit([planned(a), planned(b), Commit((), (), Ledger("j1", 1.0))])
    farewell = said(a.job, after="deleted")
    store.delete_job("j1", farewell)
    store.delete_job("j1", farewell)
    assert store.job("j1") is None
    assert store.ledger("j1") is None
    assert [e.after for e in store.events(job="j1")] == ["pending", "planned", "deleted"]
    assert len(store.jobs()[0].pilot_jobs) == 1
    assert new_job(store).job.id == "j3"


def test_events_are_read_in_order_from_where_one_stopped(store: Store) -> None:
    new_job(store)
    new_job(store)
    store.add_event(Event(3.0, "ann", "xmm", "", "service", "", "", "started"))
    everything = store.events()
    assert [e.sequence for e in everything] == [1, 2, 3]
    assert store.events(after=1, limit=1) == everything[1:2]
    assert store.events(job="j2") == everything[1:2]


def test_sites_are_kept_by_version(store: Store) -> None:
    site = Site("hpc", "ann", "xmm", SiteKind.SLURM, host="hpc.example.org", options={"partition": "long"}, version=1)
    assert not store.put_site(dataclasses.replace(site, version=2))
    assert store.put_site(site)
    assert not store.put_site(site)
    assert store.put_site(dataclasses.replace(site, port=2222, version=2))
    assert store.sites() == [dataclasses.replace(site, port=2222, version=2)]
    store.remove_site("hpc")
    store.remove_site("hpc")
    assert store.sites() == []


def test_what_sites_did_not_have_is_kept_for_as_long_as_it_counts(store: Store) -> None:
    first, again, other = Denial("a", 5.0, 2), Denial("a", 9.0, 1), Denial("b", 7.0, 4)
    for denial in (first, other, again):
        store.put_denial(denial, forget=0.0)
    assert store.denials(since=0.0) == [first, other, again] and store.denials(since=5.0) == [other, again]
    store.put_denial(dataclasses.replace(again, jobs=3), forget=5.0)
    assert store.denials(since=0.0) == [other, dataclasses.replace(again, jobs=3)], "the first is not needed any more"
    store.remove_site("b")
    assert [denial.site for denial in store.denials(since=0.0)] == ["a"], "another of that name is another site"


def test_each_version_of_the_policy_is_kept(store: Store) -> None:
    assert store.policy() == store.policy(0) == PolicyRecord(SchedulingPolicy())
    said_so = Event(5.0, "ann", "xmm", "", "policy", "1", "", "set")
    first = PolicyRecord(SchedulingPolicy(limits=Limits(user=3)), 1, 5.0, "ann")
    second = PolicyRecord(SchedulingPolicy(), 2, 6.0, "bob")
    assert not store.put_policy(second, said_so)
    assert store.put_policy(first, said_so)
    assert not store.put_policy(dataclasses.replace(first, by="eve"), said_so), "somebody else was faster"
    assert store.put_policy(second, said_so)
    assert (store.policy(), store.policy(1), store.policy(2)) == (second, first, second)
    assert [event.kind for event in store.events()] == ["policy", "policy"], "what was not written is no event"


def test_jobs_that_ended_are_found_by_when(store: Store) -> None:
    def ended(at: float) -> str:
        job = new_job(store).job
        store.commit([Commit((dataclasses.replace(job, state=JobState.DONE, ended=at, version=2),))])
        return job.id

    late, early, middle = ended(30.0), ended(10.0), ended(20.0)
    new_job(store)
    assert {each.job.id for each in store.ended(since=0.0, limit=9)} == {early, middle, late}
    assert {each.job.id for each in store.ended(since=10.0, limit=9)} == {middle, late}
    assert [each.job.id for each in store.ended(since=0.0, limit=1)] == [late]


def test_everything_is_there_after_opening_again(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "store.db"
    with_jobs = open_store(path)
    new = new_job(with_jobs)
    with_jobs.commit([planned(new)])
    before = with_jobs.installation, with_jobs.alive(), with_jobs.events()
    with_jobs.close()
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700

    again = open_store(path, create=False)
    assert (again.installation, again.alive(), again.events()) == before
    assert len(again.installation) == 9 and again.installation[0].isalpha()
    assert new_job(again).job.id == "j2"
    again.close()
    with pytest.raises(StoreError, match="the store is closed"):
        again.alive()


def test_readers_see_one_moment_while_others_write(sqlite: SqliteStore) -> None:
    for _ in range(4):
        new_job(sqlite)
    stop = threading.Event()
    torn: list[object] = []

    def read() -> None:
        while not stop.is_set():
            versions = {(r.job.version, r.vm.version) for r in sqlite.alive()}
            if len(versions) != 1:
                torn.append(versions)

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    records = sqlite.alive()
    for version in range(2, 60):
        records = [
            dataclasses.replace(
                r, job=dataclasses.replace(r.job, version=version), vm=dataclasses.replace(r.vm, version=version)
            )
            for r in records
        ]
        assert all(sqlite.commit([Commit((r.job, r.vm)) for r in records]))
    stop.set()
    for reader in readers:
        reader.join()
    assert torn == []


def test_jobs_made_by_many_threads_get_an_id_each(sqlite: SqliteStore) -> None:
    ids: list[str] = []
    threads = [threading.Thread(target=lambda: ids.extend(new_job(sqlite).job.id for _ in range(10))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(ids, key=lambda job: int(job[1:])) == [f"j{n}" for n in range(1, 41)]
