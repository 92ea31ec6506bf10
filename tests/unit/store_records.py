"""Jobs, allocations and events to keep in a store, as the loop would write them."""

from __future__ import annotations

import dataclasses

from gridhypervisor.execution.ports import Store
from gridhypervisor.model.commit import Birth, Commit, JobRecords
from gridhypervisor.model.records import (
    Allocation,
    AllocationState,
    CheckpointRecord,
    CheckpointState,
    Event,
    Expected,
    Job,
    JobState,
    PilotJob,
    Times,
    Vm,
)
from gridhypervisor.model.spec import InputSpec, JobSpec
from gridhypervisor.model.wire import Checkpoint, ImageManifest, Layer, Part

SPEC = JobSpec(
    image="xmm",
    command=("evproducts", "events.fits"),
    inputs=("events.fits", InputSpec(url="https://archive.example.org/cal.tar", sha256="0" * 64)),
    outputs=("products/*",),
    environment={"LANG": "C"},
)
IMAGE = ImageManifest(layers=(Layer("a" * 64, 1 << 30, "base", "squashfs"),))


def new_job(store: Store, *, owner: str = "ann", key: str = "", name: str = "evproducts") -> JobRecords:
    job = Job("", owner, "xmm", name, SPEC, "/home/ann/results", "/home/ann", IMAGE, "b" * 64, created=1.5)
    vm = Vm("", owner, "xmm", "")
    return store.create_jobs([Birth(job, vm, Event(1.5, owner, "xmm", "", "job", "", "", "pending"), key)])[0]


def said(job: Job, kind: str = "job", after: str = "") -> Event:
    return Event(2.5, job.owner, job.project, job.id, kind, job.id, job.state, after)


def planned(records: JobRecords, site: str = "here") -> Commit:
    """The next attempt: one more allocation, in a pilot job of its own."""
    job, vm = records.job, records.vm
    epoch = vm.epoch + 1
    pilot = PilotJob(f"g1-{job.id}-{epoch}", job.owner, job.project, site, version=1)
    allocation = Allocation(
        f"{vm.id}.{epoch}", job.owner, job.project, job.id, vm.id, epoch, pilot.name, site, Times(2.0),
        expected=Expected(1 << 20, 3.5, {"boot tcg": (2.5, 1e-9)}), version=1,
    )  # fmt: skip
    grown = dataclasses.replace(vm, epoch=epoch, version=vm.version + 1)
    return Commit((grown, pilot, allocation), (said(job, "allocation", "planned"),))


def moved(job: Job, state: JobState) -> Commit:
    return Commit((dataclasses.replace(job, state=state, version=job.version + 1),), (said(job, after=state),))


def saved(records: JobRecords, state: CheckpointState = CheckpointState.KEPT) -> Commit:
    """One more checkpoint."""
    job, number = records.job, len(records.checkpoints) + 1
    name, at = f"g1-{job.id}-1-{number}", float(number)
    described = Checkpoint(
        name, f"g1-{job.id}-1", 1, "b" * 64, "tcg", "qemu 7.2.22", "c" * 64, ("-m", "512"), "", 1 << 29,
        {"scratch": 1 << 30}, (Part("memory.zst", 1 << 20, "d" * 64, 1 << 29),), {"stdout": 7}, 12.5,
    )  # fmt: skip
    record = CheckpointRecord(
        name,
        job.owner,
        job.project,
        job.id,
        f"g1-{job.id}-1",
        "here",
        1 << 20,
        12.5,
        at,
        at,
        described,
        state,
        version=1,
    )
    return Commit((record,))


def kept(checkpoint: CheckpointRecord, state: CheckpointState) -> Commit:
    return Commit((dataclasses.replace(checkpoint, state=state, version=checkpoint.version + 1),))


def allocation_moved(allocation: Allocation, state: AllocationState) -> Commit:
    return Commit((dataclasses.replace(allocation, state=state, version=allocation.version + 1),))
