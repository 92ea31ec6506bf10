"""What `ghv image warm` asks of a site, and what it says came of it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gridhypervisor.model.commit import JobRecords
from gridhypervisor.model.records import Allocation, AllocationState, Job, JobState, Times, Vm
from gridhypervisor.model.spec import InputSpec, JobSpec, ResourcesSpec, problems
from gridhypervisor.model.views import Check
from gridhypervisor.model.wire import ExitRecord, HypervisorKind, HypervisorUsed, ImageManifest, Layer, Outcome, Reason
from gridhypervisor.planning.warming import impossible, judged, spec, unended, untried
from gridhypervisor.planning.world import SiteFacts

LIKE = JobSpec("xmm:2", ("evproducts",), inputs=(InputSpec("a"),), resources=ResourcesSpec(2, "1Gi", "4Gi", "9h"),
               network="restricted", hypervisor="tcg", requirements="Cpus > 1", array="1-100")  # fmt: skip
KEY = "0123456789ab" + "c" * 52


def ended(boot: str = "", *, snapshot: str = "", state: JobState = JobState.DONE, message: str = "",
          kind: HypervisorKind = HypervisorKind.TCG) -> Check:  # fmt: skip
    asked = spec(LIKE, "a", None)
    job = Job("j1", "me", "default", "w", asked, "/", "/", ImageManifest(()), "0" * 64, 0.0, state,
              reason=Reason.BOOT if message else None, message=message)  # fmt: skip
    used = HypervisorUsed(kind, "qemu 7.2.22", "", boot, snapshot=snapshot) if boot else None
    exit = ExitRecord("e", 1, "c", Outcome.COMPLETED, Reason.EXITED, hypervisor=used)
    a = Allocation("v1.1", "me", "default", "j1", "v1", 1, "e", "a", Times(0.0), AllocationState.CLEANED, exit=exit)
    return judged(LIKE, JobRecords(job, Vm("v1", "me", "default", "j1", 1), (a,), ()))


def test_a_job_is_asked_for_that_is_like_those_to_come_in_all_that_a_snapshot_depends_on() -> None:
    found = spec(LIKE, "a", 300)
    assert problems(found) == []
    assert (found.image, found.network, found.hypervisor, found.site) == ("xmm:2", "restricted", "tcg", "a")
    assert found.resources == ResourcesSpec(2, "1Gi", "4Gi", "300s")
    assert (found.inputs, found.array, found.requirements, found.command) == ((), "", "", ("true",))
    assert spec(LIKE, "a", None).resources.walltime == "600s"


def test_it_holds_where_a_snapshot_is_there_now() -> None:
    made = ended("cold: no snapshot of this machine is here yet; this guest is saved for the next", snapshot=KEY)
    assert made.holds and made.claim == "guests of xmm:2 with 1Gi of memory start from a snapshot at a"
    assert made.evidence == "made just now: 0123456789ab, under qemu 7.2.22, tcg"
    there = ended("restored from snapshot 0123456789ab", snapshot=KEY)
    assert there.holds and there.evidence.startswith("it was there: 0123456789ab")


@pytest.mark.parametrize(
    ("found", "words", "hint"),
    [
        (ended("cold: uml cannot take up a saved guest", kind=HypervisorKind.UML), "cannot", "--hypervisor tcg"),
        (ended("cold: no snapshot, but it is not kept: it has 200 MiB"), "it has 200 MiB", "ghv site check"),
        (ended(state=JobState.FAILED, message="boot the guest: not ready"), "not ready", "ghv site check a"),
    ],
)  # fmt: skip
def test_where_there_is_none_it_says_why_and_what_to_do(found: Check, words: str, hint: str) -> None:
    assert found.holds is False and words in found.evidence and hint in found.hint


def test_what_could_not_be_found_out_is_unknown() -> None:
    assert ended(state=JobState.CANCELLED).holds is None
    job = Job("j1", "me", "default", "w", spec(LIKE, "a", None), "/", "/", ImageManifest(()), "0" * 64, 0.0)
    waits = unended(LIKE, job, 30.0, "queued: (Priority)")
    assert waits.holds is None and "still waits after 30 s: queued: (Priority)" in waits.evidence
    facts = SiteFacts("a", up=True)
    assert untried(LIKE, facts) is None
    for silent in (replace(facts, up=False, why="no route"), replace(facts, draining=True)):
        check = untried(LIKE, silent)
        assert check is not None and check.holds is None and "ghv site" in check.hint


def test_what_can_never_start_from_a_snapshot_is_refused_before_anything_runs() -> None:
    base, disk = Layer("0" * 64, 1, "base", "squashfs"), Layer("1" * 64, 1, "disk", "qcow2")
    assert impossible(LIKE, [base]) is None
    whole, uml, never = (
        impossible(LIKE, [disk]),
        impossible(JobSpec("x", ("true",), hypervisor="uml"), [base]),
        impossible(JobSpec("x", ("true",), instant="never"), [base]),
    )
    assert whole is not None and "whole disk" in whole[0]
    assert uml is not None and "--hypervisor tcg" in uml[1]
    assert never is not None and "instant" in never[0]
