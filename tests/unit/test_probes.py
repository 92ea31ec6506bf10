"""What is asked of a probe, what a check makes of its end, and for how long what it found is believed."""

from __future__ import annotations

from dataclasses import replace

from gridhypervisor.model.batch import Limits
from gridhypervisor.model.commit import JobRecords
from gridhypervisor.model.records import Allocation, AllocationState, Job, JobState, PilotJob, Site, SiteKind, Times, Vm
from gridhypervisor.model.spec import parse_duration
from gridhypervisor.model.states import SiteHealth
from gridhypervisor.model.views import Check, SiteChange
from gridhypervisor.model.wire import (
    ExitRecord,
    HypervisorKind,
    ImageManifest,
    NodeReport,
    Outcome,
    Proven,
    Reached,
    Reason,
    Terms,
    from_plain,
    obstacle,
    to_plain,
)
from gridhypervisor.model.wire.lending import NO_SHARE
from gridhypervisor.planning.probes import (
    REACH,
    RUNS,
    FrontEnd,
    answering,
    judged,
    no_relay,
    reaching,
    reading,
    spec,
    told,
    unended,
)
from gridhypervisor.planning.sites import changed, still_probed
from gridhypervisor.planning.suiting import share

KVM = Proven(HypervisorKind.KVM, False, "kvm: this node has no /dev/kvm", "qemu 7.2.22")
UML = Proven(HypervisorKind.UML, True, "uml: a guest runs, behind walls", "linux 6.1.176", "25 s (probe: …)")
TCG = Proven(HypervisorKind.TCG, True, "tcg: emulated", "qemu 7.2.22")
REPORT = NodeReport(
    "n1", "6.1.0", "AMD EPYC", 2, 64, 128 << 30, 100 << 30, "/home/ada/.ghv", "/local", 50 << 30, (KVM, UML, TCG)
)
THERE = FrontEnd("cluster", "/home/ada/.ghv")
GATED = replace(THERE, gate="login1:7750-7765")
ELSEWHERE = replace(REPORT, workdir="/local/ghv-1000/carried")
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
    checks = judged(PROBE, THERE, "")
    assert all(check.holds for check in checks)
    assert row(checks, RUNS).evidence == "n1, batch job 4711"
    assert "AMD EPYC, 64 cores, 2 for a job of one" in row(checks, "the processor is known").evidence
    guests = row(checks, "a hypervisor runs guests")
    assert guests.evidence == "uml, linux 6.1.176, 25 s (probe: …); tcg, qemu 7.2.22; no kvm: this node has no /dev/kvm"
    assert not guests.hint


def test_what_a_node_lacks_is_a_row_with_what_to_do() -> None:
    lacking = told(replace(REPORT, scratch_free=5 << 20, hypervisors=(KVM,)), THERE)
    assert [check.claim for check in lacking if check.holds is False] == [
        "the scratch has room",
        "a hypervisor runs guests",
    ]
    assert all(check.hint for check in lacking if check.holds is False)
    slow = row(told(replace(REPORT, hypervisors=(KVM, TCG)), THERE), "a hypervisor runs guests")
    assert slow.holds and "/dev/kvm or user namespaces" in slow.hint


def test_orders_that_were_found_elsewhere_prove_no_shared_workdir() -> None:
    claims = [check.claim for check in told(REPORT, THERE)]
    assert "nodes share the workdir" in claims
    assert "nodes share the workdir" not in [check.claim for check in told(ELSEWHERE, THERE)]


def test_whether_a_node_reaches_the_relay_is_a_row_that_says_how_soon_or_why_not() -> None:
    soon = Reached(GATED.gate, "login1 port 7751", 0.84)
    for report in (REPORT, ELSEWHERE):
        check = reaching(replace(report, relay=soon), GATED)
        assert (check.claim, check.holds) == (REACH, True)
        assert check.evidence == "n1 at login1 port 7751, 0.8 ms there and back"
    refused = reaching(replace(REPORT, relay=Reached(GATED.gate, why="login1 port 7750: Connection refused")), GATED)
    assert refused.holds is False and refused.evidence == "n1 does not: login1 port 7750: Connection refused"
    assert "ghv site edit cluster --option listen=HOST" in refused.hint
    without = reaching(REPORT, THERE)
    assert without.holds and "not needed" in without.evidence and "/home/ada/.ghv" in without.evidence
    assert reaching(REPORT, GATED).holds is None, "it listens since the probe was sent"


def test_a_node_that_had_no_other_way_to_the_relay_leaves_a_row_by_its_exit_code_alone() -> None:
    only = replace(GATED, carried=True)
    gave_up = ended(JobState.FAILED, Reason.RELAY, "cluster ended batch job 7 before the pilot began: (exit code 69)")
    [check] = judged(gave_up, only, "")
    assert (check.claim, check.holds) == (REACH, False)
    assert "login1:7750-7765" in check.evidence and "batch job 7" in check.evidence and "listen=HOST" in check.hint
    lost = ended(JobState.FAILED, Reason.LOST, "cluster ended batch job 7 before the pilot began: TimeLimit")
    [check] = judged(lost, only, "")
    assert (check.claim, check.holds) == (REACH, None), "it may have been deleted"
    assert "TimeLimit" in check.evidence and "listen=HOST" in check.hint
    [check] = judged(
        replace(lost, allocations=(replace(lost.allocations[0], times=Times(0.0, running=5.0)),)), only, ""
    )
    assert check.claim == RUNS, "it had come to the relay"


def test_a_probe_that_did_not_start_says_why_in_the_scripts_own_words() -> None:
    message = "cluster ended batch job 7 before the pilot began: the node's scratch forbids running programs"
    noexec = ended(JobState.FAILED, Reason.BUNDLE, message)
    [check] = judged(noexec, THERE, "start: programs may not be started in /local/ghv-1000 (mounted noexec?)")
    assert check.holds is False
    assert "forbids running programs" in check.evidence and "/local/ghv-1000 (mounted noexec?)" in check.evidence
    assert "ghv site edit cluster --scratch" in check.hint


def test_a_probe_without_a_word_hints_at_a_workdir_that_is_not_shared() -> None:
    lost = ended(JobState.FAILED, Reason.LOST, "cluster ended batch job 7 before the pilot began: NonZeroExitCode")
    [check] = judged(lost, THERE, "")
    assert check.holds is False and "/home/ada/.ghv" in check.hint and "share" in check.hint
    [died] = judged(ended(JobState.FAILED, Reason.LOST, "it left no record", "see the node", ran=True), THERE, "")
    assert died.hint == "see the node", "it was seen there, so the workdir is"


def test_what_is_not_known_is_unknown_and_not_failed() -> None:
    waits = unended(replace(JOB, state=JobState.QUEUED), 600, "pending at cluster: Priority")
    assert waits.holds is None
    assert waits.evidence == "the probe still waits after 600 s: pending at cluster: Priority"
    assert "ghv site check cluster --timeout" in waits.hint
    slow = unended(replace(JOB, state=JobState.RUNNING), 600, "")
    assert (slow.holds, slow.evidence) == (None, "the probe has not ended after 600 s")
    [cancelled] = judged(ended(JobState.CANCELLED, Reason.CANCELLED, "cancelled by the user"), THERE, "")
    assert cancelled.holds is None


def test_a_report_crosses_the_wire_as_it_is() -> None:
    for report in (REPORT, replace(REPORT, relay=Reached("login1:7750-7765", "login1 port 7751", 0.84))):
        assert from_plain(NodeReport, to_plain(report)) == report


def test_a_report_holds_until_the_site_is_another_or_its_jobs_come_to_other_nodes() -> None:
    site = Site("cluster", "me", "default", SiteKind.SLURM, host="h", options={"partition": "a"}, probed=REPORT)
    for change in (SiteChange(max_jobs=5), SiteChange(key="/k")):
        assert still_probed(site, changed(site, change))
    for change in (SiteChange(options={"partition": "b"}), SiteChange(scratch="/s"), SiteChange(host="i")):
        assert not still_probed(site, changed(site, change))


def test_each_row_that_does_not_hold_says_what_to_do() -> None:
    rows = [
        no_relay("cluster", SiteHealth.UNREACHABLE, "no route"),
        no_relay("cluster", SiteHealth.CONNECTING, ""),
        answering(False, "slurmctld does not answer"),
        reading(Limits(problem="sinfo: not found")),
        *(judged(ended(JobState.FAILED, reason, "it died", ran=ran), THERE, words)[0]
          for reason in Reason for ran in (True, False) for words in ("", "killed")),
        judged(ended(JobState.CANCELLED, Reason.CANCELLED, ""), THERE, "")[0],
    ]  # fmt: skip
    assert not [check for check in rows if check.holds or not check.hint]
    assert no_relay("cluster", SiteHealth.AUTH_NEEDED, "wants a code").hint == "ghv site login cluster"
    assert not any(check.hint for check in (answering(True, "slurm 22.05"), reading(Limits())))
