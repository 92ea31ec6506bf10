"""The store against a dictionary, over any order of creating, committing, deleting and opening again."""

from __future__ import annotations

import dataclasses
import functools
import tempfile
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    MultipleResults,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
)

from gridhypervisor.model.commit import Commit, JobRecords
from gridhypervisor.model.records import (
    Allocation,
    AllocationState,
    CheckpointRecord,
    CheckpointState,
    Job,
    JobState,
    PilotJob,
    Vm,
)
from gridhypervisor.store import SqliteStore, open_store
from tests.unit.store_records import kept, moved, new_job, planned, said, saved


class StoreAgainstDictionary(RuleBasedStateMachine):
    """`seen` are jobs as somebody once read them: so most commits come late, as in life."""

    seen: Bundle[JobRecords] = Bundle("seen")

    @initialize()
    def open(self) -> None:
        # In memory: what survives a crash has its own test, and hundreds of synced commits would only cost time here.
        self.folder = tempfile.TemporaryDirectory(prefix="ghv-store-", dir="/dev/shm")
        self.path = Path(self.folder.name) / "store.db"
        self.path.write_bytes(_empty_store())
        self.store: SqliteStore = open_store(self.path)
        self.model: dict[str, JobRecords] = {}
        self.made = 0
        self.stories: list[tuple[str, str, str]] = []

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.store.close()
            self.folder.cleanup()

    @rule(target=seen)
    def create(self) -> JobRecords:
        records = new_job(self.store)
        self.made += 1
        assert records.job.id == f"j{self.made}", "an id is never given twice"
        self.model[records.job.id] = records
        self.stories.append((records.job.id, "", "pending"))
        return records

    @rule(
        target=seen,
        wanted=st.lists(st.tuples(seen, st.sampled_from(JobState), st.booleans()), min_size=1, max_size=5),
    )
    def commit(self, wanted: list[tuple[JobRecords, JobState, bool]]) -> MultipleResults[JobRecords]:
        commits = []
        for records, state, attempt in wanted:
            move = moved(records.job, state)
            plan = planned(records) if attempt else Commit(())
            commits.append(Commit(move.records + plan.records, move.events + plan.events))
        answers = self.store.commit(commits)
        for commit, (records, _, _), answer in zip(commits, wanted, answers, strict=True):
            standing = self.model.get(records.job.id)
            assert answer == (standing is not None and self._fits(commit, standing))
            if answer:
                assert standing is not None
                self.model[records.job.id] = _after(standing, commit)
                self.stories += [(e.job, e.before, e.after) for e in commit.events]
        return multiple(*[self.model[r.job.id] for r, _, _ in wanted if r.job.id in self.model])

    @staticmethod
    def _fits(commit: Commit, standing: JobRecords) -> bool:
        for record in commit.records:
            match record:
                case Job():
                    current = standing.job.version
                case Vm():
                    current = standing.vm.version
                case Allocation():
                    current = max((a.version for a in standing.allocations if a.id == record.id), default=0)
                case PilotJob():
                    current = max((p.version for p in standing.pilot_jobs if p.name == record.name), default=0)
                case CheckpointRecord():
                    current = max((c.version for c in standing.checkpoints if c.id == record.id), default=0)
            if record.version != current + 1:
                return False
        return True

    @rule(target=seen, records=seen, state=st.sampled_from(AllocationState))
    def end(self, records: JobRecords, state: AllocationState) -> MultipleResults[JobRecords]:
        """One allocation moves, as its watcher saw it last."""
        if not records.allocations:
            return multiple()
        allocation = records.allocations[-1]
        commit = Commit((dataclasses.replace(allocation, state=state, version=allocation.version + 1),))
        [answer] = self.store.commit([commit])
        standing = self.model.get(records.job.id)
        current = {a.id: a.version for a in standing.allocations} if standing else {}
        assert answer == (current.get(allocation.id) == allocation.version)
        if not answer or standing is None:
            return multiple()
        self.model[records.job.id] = _after(standing, commit)
        return multiple(self.model[records.job.id])

    @rule(target=seen, records=seen, state=st.sampled_from(CheckpointState), anew=st.booleans())
    def keep(self, records: JobRecords, state: CheckpointState, anew: bool) -> MultipleResults[JobRecords]:
        """Its guest is saved, or something becomes of the newest checkpoint, as its watcher saw it last."""
        commit = saved(records, state) if anew or not records.checkpoints else kept(records.checkpoints[-1], state)
        [answer] = self.store.commit([commit])
        standing = self.model.get(records.job.id)
        assert answer == (standing is not None and self._fits(commit, standing))
        if not answer or standing is None:
            return multiple()
        self.model[records.job.id] = _after(standing, commit)
        return multiple(self.model[records.job.id])

    @rule(records=consumes(seen))
    def delete(self, records: JobRecords) -> None:
        self.store.delete_job(records.job.id, said(records.job, after="deleted"))
        if self.model.pop(records.job.id, None):
            self.stories.append((records.job.id, records.job.state, "deleted"))

    @precondition(lambda self: self.made)
    @rule()
    def open_again(self) -> None:
        before = self.store.installation
        self.store.close()
        self.store = open_store(self.path, create=False)
        assert self.store.installation == before

    @invariant()
    def holds_what_was_committed_and_nothing_else(self) -> None:
        if not hasattr(self, "store"):
            return
        assert {r.job.id: r for r in self.store.jobs(limit=1000)} == self.model
        alive = {
            job
            for job, r in self.model.items()
            if not r.job.state.final
            or any(a.state is not AllocationState.CLEANED for a in r.allocations)
            or any(c.state is not CheckpointState.GONE for c in r.checkpoints)
        }
        assert {r.job.id for r in self.store.alive()} == alive

    @invariant()
    def tells_the_whole_story_once(self) -> None:
        if not hasattr(self, "store"):
            return
        events = self.store.events(limit=10_000)
        assert [(e.job, e.before, e.after) for e in events] == self.stories
        assert [e.sequence for e in events] == list(range(1, len(events) + 1))


@functools.cache
def _empty_store() -> bytes:
    """The file of a new store: making its tables is tested elsewhere, and takes a tenth of a second."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        path = Path(folder) / "store.db"
        open_store(path).close()
        return path.read_bytes()


def _after(standing: JobRecords, commit: Commit) -> JobRecords:
    job, vm = standing.job, standing.vm
    allocations = {a.id: a for a in standing.allocations}
    pilots = {p.name: p for p in standing.pilot_jobs}
    checkpoints = {c.id: c for c in standing.checkpoints}
    for record in commit.records:
        if isinstance(record, Job):
            job = record
        elif isinstance(record, Vm):
            vm = record
        elif isinstance(record, Allocation):
            allocations[record.id] = record
        elif isinstance(record, PilotJob):
            pilots[record.name] = record
        else:
            checkpoints[record.id] = record
    return JobRecords(job, vm, tuple(allocations.values()), tuple(pilots.values()), tuple(checkpoints.values()))


TestStore = StoreAgainstDictionary.TestCase
TestStore.settings = settings(max_examples=20, stateful_step_count=15, deadline=None)
