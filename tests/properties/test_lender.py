"""Never above the lender's limits, in whatever order the VMs of two installations come, run, end and go.

Real spools and journals; two relays, of which either may die at any moment, also in the middle of a line.
"""

from __future__ import annotations

import math
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gridhypervisor.agent import spool
from gridhypervisor.agent.lender import Lender, Unlent
from gridhypervisor.model import wire
from gridhypervisor.model.wire import (
    NO_SHARE,
    PROTOCOL,
    ExitRecord,
    ImageManifest,
    Manifest,
    Outcome,
    OwnerRecord,
    Program,
    Reason,
    Resources,
    Share,
)

CORES, VMS, VM_SECONDS, CORE_SECONDS = 4, 3, 1000, 1800
FILE = f"cores = {CORES}\nvms = {VMS}\nvm_hours = {VM_SECONDS / 3600}\ncore_hours = {CORE_SECONDS / 3600}\n"


@dataclass
class Vm:
    entry: Path
    want: Share
    state: str = "waiting"  # running, over
    ran: int = 0  # seconds


@dataclass
class Site:
    """The account, and what is really so."""

    workdir: Path
    relays: list[Lender] = field(default_factory=list)
    vms: list[Vm] = field(default_factory=list)  # whose entries are there
    gone: list[Vm] = field(default_factory=list)
    refused: int = 0

    def revive(self, number: int) -> None:
        self.relays[number] = Lender(self.workdir, etc=self.workdir / "no-etc")

    def pick(self, number: int, *states: str) -> Vm | None:
        fit = [vm for vm in self.vms if vm.state in states]
        return fit[number % len(fit)] if fit else None

    def submit(self, relay: int, cores: int, walltime: int) -> None:
        name = f"inst{relay}-j{len(self.vms) + len(self.gone) + self.refused}-1"
        manifest = Manifest(PROTOCOL, f"inst{relay}", name, "v", 1, "v.1", "j", ImageManifest(()), "0" * 64,
                            Program(("true",)), Resources(cores, 64 << 20, 0, walltime))  # fmt: skip
        entry, want = self.workdir / wire.SPOOL / name, Share.of(cores, 64 << 20, walltime)

        def write() -> None:
            entry.mkdir()
            spool.write_replace(entry / wire.MANIFEST, wire.canonical(manifest))

        fits = within(self.taken() + want)
        try:
            self.relays[relay].admit(entry, manifest, write)
        except Unlent:
            assert not fits, f"{name} was refused though it fits"
            self.refused += 1
        else:
            assert fits, f"{name} was let in though it does not fit"
            self.vms.append(Vm(entry, want))

    def claim(self, vm: Vm, by: str) -> None:
        record = OwnerRecord(by, vm.entry.name, 1)
        spool.write_replace(vm.entry / wire.OWNER, wire.canonical(record))
        vm.state = "running" if by == "pilot" else "over"

    def end(self, vm: Vm, seconds: float) -> None:
        record = ExitRecord(vm.entry.name, 1, vm.entry.name, Outcome.COMPLETED, Reason.EXITED, elapsed=seconds)
        spool.write_replace(vm.entry / wire.EXIT, wire.canonical(record))
        vm.state, vm.ran = "over", min(math.ceil(seconds), vm.want.vm_seconds)

    def remove(self, relay: int, vm: Vm, *, dies: int) -> None:
        """`dies`: 1, before the entry is removed; 2, in the middle of the charge's line."""
        journals = self.workdir / wire.CHARGES
        before = {path: path.stat().st_size for path in journals.glob("[!.]*")}
        self.relays[relay].settle(vm.entry)
        if dies == 2:
            for path in journals.glob("[!.]*"):
                whole = path.stat().st_size
                with path.open("ab") as file:
                    file.truncate((before.get(path, 0) + whole + 1) // 2)
        if dies:
            self.revive(relay)
            return
        shutil.rmtree(vm.entry)
        self.vms.remove(vm)
        self.gone.append(vm)
        vm.state = "over"

    def taken(self) -> Share:
        """By what is really so: what runs or waits, as long as it may, and what has run, as long as it did."""
        live = sum((vm.want for vm in self.vms if vm.state != "over"), NO_SHARE)
        ran = [vm for vm in (*self.vms, *self.gone) if vm.state == "over"]
        return live + sum((Share(0, 0, 0, vm.ran, vm.ran * vm.want.cores) for vm in ran), NO_SHARE)


def within(share: Share) -> bool:
    return (share.cores <= CORES and share.vms <= VMS and share.vm_seconds <= VM_SECONDS
            and share.core_seconds <= CORE_SECONDS)  # fmt: skip


@contextmanager
def account() -> Iterator[Site]:
    memory = Path("/dev/shm")  # what an fsync is worth is tested elsewhere
    folder = Path(tempfile.mkdtemp(prefix="ghv-lender-", dir=memory if memory.is_dir() else None))
    try:
        workdir = folder / "work"
        (workdir / wire.SPOOL).mkdir(parents=True)
        (folder / "work.lender.toml").write_text(FILE)
        site = Site(workdir)
        site.relays = [Lender(workdir, etc=workdir / "no-etc") for _ in range(2)]
        yield site
    finally:
        shutil.rmtree(folder)


BEFORE = {"claim": ["waiting"], "revoke": ["waiting"], "end": ["running"], "remove": ["over"]}
"""In which states a VM can be that this befalls."""

steps = st.lists(
    st.tuples(
        st.sampled_from(("submit", "submit", "claim", "revoke", "end", "end", "remove", "remove", "die")),
        st.integers(0, 1),  # which relay
        st.integers(0, 9),  # which VM
        st.integers(1, 3),  # cores
        st.integers(1, 500),  # seconds
        st.integers(0, 2),  # at what it dies
    ),
    max_size=40,
)


@settings(max_examples=150, deadline=None)
@given(steps)
def test_the_limits_hold_in_every_order(story: list[tuple[str, int, int, int, int, int]]) -> None:
    with account() as site:
        for what, relay, number, cores, seconds, dies in story:
            if what == "submit":
                site.submit(relay, cores, seconds)
            elif what == "die":
                site.revive(relay)
            elif vm := site.pick(number, *BEFORE[what]):
                if what == "end":
                    site.end(vm, seconds * 1.1)  # a batch system may let it go on for a moment
                elif what == "remove":
                    site.remove(relay, vm, dies=dies)
                else:
                    site.claim(vm, "pilot" if what == "claim" else "controller")
            assert within(site.taken())
        counted = sum((use.used + use.reserved for use in site.relays[0].uses(site.relays[0].terms())), NO_SHARE)
        assert counted == site.taken(), "both relays and the truth agree, whatever was lost on the way"


def test_a_vm_that_left_no_sentinel_is_charged_for_as_long_as_it_can_have_run() -> None:
    with account() as site:
        site.submit(0, 1, 500)
        [vm] = site.vms
        site.claim(vm, "pilot")
        manifest = vm.entry / wire.MANIFEST
        os.utime(manifest, (manifest.stat().st_mtime - 100,) * 2)
        site.remove(0, vm, dies=0)
        [use] = site.relays[1].uses(site.relays[1].terms())
        assert 100 <= use.used.vm_seconds <= 500 and use.reserved == NO_SHARE


def test_a_charge_that_cannot_be_written_keeps_its_entry() -> None:
    with account() as site:
        site.submit(0, 1, 500)
        [vm] = site.vms
        site.claim(vm, "pilot")
        site.end(vm, 60)
        shutil.rmtree(site.workdir / wire.CHARGES)
        (site.workdir / wire.CHARGES).touch()
        with pytest.raises(OSError, match=wire.CHARGES):
            site.relays[0].settle(vm.entry)
