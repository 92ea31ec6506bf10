"""What is asked of a probe, what a check makes of its end, and for how long what it found is believed."""

from __future__ import annotations

from dataclasses import replace

from gridhypervisor.model.commit import JobRecords
from gridhypervisor.model.records import Allocation, AllocationState, Job, JobState, PilotJob, Site, SiteKind, Times, Vm
from gridhypervisor.model.spec import parse_duration
from gridhypervisor.model.views import Check, SiteChange
from gridhypervisor.model.wire import (
    ExitRecord,
    HypervisorKind,
    ImageManifest,
    NodeReport,
    Outcome,
    Proven,
    Reason,
    Terms,
    from_plain,
    obstacle,
    to_plain,
)
from gridhypervisor.model.wire.lending import NO_SHARE
from gridhypervisor.planning.placement import share
from gridhypervisor.planning.probes import RUNS, judged, spec, told, unended
from gridhypervisor.planning.sites import changed, still_probed

KVM = Proven(HypervisorKind.KVM, False, "kvm: this node has no /dev/kvm", "qemu 7.2.22")
UML = Proven(HypervisorKind.UML, True, "uml: it starts, behind walls", "linux 6.1.176", "25 s (probe: …)")
TCG = Proven(HypervisorKind.TCG, True, "tcg: emulated", "qemu 7.2.22")
REPORT = NodeReport(
    "n1", "6.1.0", "AMD EPYC", 2, 64, 128 << 30, 100 << 30, "/home/ada/.ghv", "/local", 50 << 30, (KVM, UML, TCG)
)
JOB = Job(
    "j1", "me", "default", "check-cluster", spec("cluster", None), "/", "/", ImageManifest(()), "", 0.0, JobState.DONE
)
ALLOCATION = Allocation(
    "v1.1", "me", "default", "j1", "v1", 1, "inst-j1-1", "cluster", Times(0.0, running=5.0), AllocationState.CLEANED,
    exit=ExitRecord("inst-j1-1", 1, "c", Outcome.COMPLETED, Reason.EXITED, report=REPORT),
)  # fmt: skip
PROBE = JobRecords(
    JOB, Vm("v1", "me", "default", "j1"), (ALLOCATION,), (PilotJob("inst-j1-1", "me", "default", "cluster", "4711"),)
)


def ended(state: JobState, reason: Reason, message: str, hint: str = "", *, ran: bool = False) -> JobRecords:
    """One that made no report."""
    times = Times(0.0, queued=1.0, running=2.0 if ran else None)
    return replace(
        PROBE,
        job=replace(JOB, state=state, reason=reason, message=message, hint=hint),
        allocations=(replace(ALLOCATION, exit=None, times=times, why=reason),),
    )


def row(checks: list[Check], claim: str) -> Check:
    return next(check for check in checks if check.claim == claim)


def test_a_probe_is_a_small_job_that_fits_into_the_sites_limit() -> None:
    assert JOB.probe and share(JOB).vms == share(JOB).cores == 1
    assert parse_duration(spec("cluster", None).resources.walltime) == 300
    assert parse_duration(spec("cluster", 120).resources.walltime) == 120
    assert spec("cluster", None).retry.times == 0, "who checks a site is told at once"
    assert spec("x" * 80, None).name is not None and len(str(spec("x" * 80, None).name)) <= 63


def test_a_lender_of_certain_images_lets_a_probe_in_which_boots_none() -> None:
    terms = Terms("/etc/ghv/lender.toml", images=("a" * 64,), vms=1)
    assert not obstacle(terms, NO_SHARE, share(JOB), JOB.image_digest, 300, None)
    assert "1 VM" in obstacle(terms, share(JOB), share(JOB), JOB.image_digest, 300, None), "but all else holds for it"


def test_a_report_becomes_rows_that_say_where_and_what() -> None:
    checks = judged(PROBE, "/home/ada/.ghv", "")
    assert all(check.holds for check in checks)
    assert row(checks, RUNS).evidence == "n1, batch job 4711"
    assert "AMD EPYC, 64 cores, 2 for a job of one" in row(checks, "the processor is known").evidence
    guests = row(checks, "a hypervisor runs guests")
    assert guests.evidence == "uml, linux 6.1.176, 25 s (probe: …); tcg, qemu 7.2.22; no kvm: this node has no /dev/kvm"
    assert not guests.hint


def test_what_a_node_lacks_is_a_row_with_what_to_do() -> None:
    lacking = told(replace(REPORT, scratch_free=5 << 20, hypervisors=(KVM,)), "/home/ada/.ghv")
    assert [check.claim for check in lacking if check.holds is False] == [
        "the scratch has room",
        "a hypervisor runs guests",
    ]
    assert all(check.hint for check in lacking if check.holds is False)
    slow = row(told(replace(REPORT, hypervisors=(KVM, TCG)), "/home/ada/.ghv"), "a hypervisor runs guests")
    assert slow.holds and "/dev/kvm or user namespaces" in slow.hint


def test_orders_that_were_found_elsewhere_prove_no_shared_workdir() -> None:
    claims = [check.claim for check in told(REPORT, "/home/ada/.ghv")]
    assert "nodes share the workdir" in claims and "nodes reach the relay" not in claims
    brought = [check.claim for check in told(replace(REPORT, workdir="/local/ghv-1000/carried"), "/home/ada/.ghv")]
    assert "nodes share the workdir" not in brought and "nodes reach the relay" in brought


def test_a_probe_that_did_not_start_says_why_in_the_scripts_own_words() -> None:
    message = "cluster ended batch job 7 before the pilot began: the node's scratch forbids running programs"
    noexec = ended(JobState.FAILED, Reason.BUNDLE, message)
    [check] = judged(
        noexec, "/home/ada/.ghv", "start: programs may not be started in /local/ghv-1000 (mounted noexec?)"
    )
    assert check.holds is False
    assert "forbids running programs" in check.evidence and "/local/ghv-1000 (mounted noexec?)" in check.evidence
    assert "ghv site edit cluster --scratch" in check.hint


def test_a_probe_without_a_word_hints_at_a_workdir_that_is_not_shared() -> None:
    lost = ended(JobState.FAILED, Reason.LOST, "cluster ended batch job 7 before the pilot began: NonZeroExitCode")
    [check] = judged(lost, "/home/ada/.ghv", "")
    assert check.holds is False and "/home/ada/.ghv" in check.hint and "share" in check.hint
    [died] = judged(ended(JobState.FAILED, Reason.LOST, "it left no record", "see the node", ran=True), "/w", "")
    assert died.hint == "see the node", "it was seen there, so the workdir is"


def test_what_is_not_known_is_unknown_and_not_failed() -> None:
    waits = unended(replace(JOB, state=JobState.QUEUED), 600, "pending at cluster: Priority")
    assert waits.holds is None
    assert waits.evidence == "the probe still waits after 600 s: pending at cluster: Priority"
    assert "ghv site check cluster --timeout" in waits.hint
    slow = unended(replace(JOB, state=JobState.RUNNING), 600, "")
    assert (slow.holds, slow.evidence) == (None, "the probe has not ended after 600 s")
    [cancelled] = judged(ended(JobState.CANCELLED, Reason.CANCELLED, "cancelled by the user"), "/w", "")
    assert cancelled.holds is None


def test_a_report_crosses_the_wire_as_it_is() -> None:
    assert from_plain(NodeReport, to_plain(REPORT)) == REPORT


def test_a_report_holds_until_the_site_is_another_or_its_jobs_come_to_other_nodes() -> None:
    site = Site("cluster", "me", "default", SiteKind.SLURM, host="h", options={"partition": "a"}, probed=REPORT)
    for change in (SiteChange(max_jobs=5), SiteChange(key="/k")):
        assert still_probed(site, changed(site, change))
    for change in (SiteChange(options={"partition": "b"}), SiteChange(scratch="/s"), SiteChange(host="i")):
        assert not still_probed(site, changed(site, change))
