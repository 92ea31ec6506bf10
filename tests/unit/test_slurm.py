"""Slurm's dialect: what we say to it, and what its answers mean. The answers are 22.05's own."""

from __future__ import annotations

import shlex
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gridhypervisor.model.batch import BatchJob, BatchState, Carried, Submission
from gridhypervisor.model.errors import LinkError
from gridhypervisor.model.records import Site, SiteKind
from gridhypervisor.model.wire import CommandResult
from gridhypervisor.sites.driver import batch_script
from gridhypervisor.sites.slurm import NEVER_STARTS, STATES, SlurmDriver, minutes, seconds

OURS = "a1b2c3d4e"


def site(**options: str) -> Site:
    return Site("slurm-a", "o", "p", SiteKind.SLURM, options=options, environment={"SLURM_CONF": "/etc/s.conf"})


def job(walltime: int = 1800, scratch: str = "", entry: str = "/w/spool/x") -> Submission:
    return Submission(f"{OURS}-j1-1", entry, "/w/bundle/d/start", scratch, 2, 512 << 20, walltime)


def listed(stdout: str, code: int | None = 0, stderr: str = "") -> dict[str, BatchJob] | None:
    listing, problem = SlurmDriver(site()).listing([CommandResult(code, stdout, stderr)], 5.0)
    assert (listing is None) == bool(problem)
    return listing.jobs if listing else None


def row(
    word: str,
    reason: str = "None",
    status: int = 0,
    name: str = f"{OURS}-j1-1",
    restarts: str = "0",
    node: str = "n1",
    task: str = "N/A",
) -> str:
    return f"7|{OURS}|7|{task}|{word}|{reason}|{status}|{restarts}|{node}|{name}|\n"


# What we say


def test_a_submission_carries_the_users_options_verbatim_and_the_sites_environment() -> None:
    driver = SlurmDriver(site(partition="short", account="p7", qos="q", constraint="a&b", native="--x='1 2' -C y"))
    [command] = driver.submit([job()], site())
    assert command.environment == {"SLURM_CONF": "/etc/s.conf"}
    for word in ("--partition=short", "--account=p7", "--qos=q", "--constraint=a&b", "--x=1 2", "-C", "y"):
        assert word in command.argv
    assert f"--job-name={OURS}-j1-1" in command.argv and "--no-requeue" in command.argv
    assert "--mem=896M" in command.argv  # the guest's and what the emulator needs beside it


def test_a_percent_sign_in_the_entry_is_no_pattern_of_sbatch() -> None:
    [command] = SlurmDriver(site()).submit([job(entry="/w/100%u/x")], site())
    assert "--output=/w/100%%u/x/batch.log" in command.argv and "--chdir=/w/100%u/x" in command.argv


def test_jobs_that_are_alike_go_as_one_array_whose_elements_have_names_and_ids_of_their_own() -> None:
    names = [f"{OURS}-j{number}-1" for number in (1700, 1703, 1701)]
    some = [replace(job(entry=f"/w/spool/{name}"), name=name) for name in names]
    driver = SlurmDriver(site())
    [command] = driver.submit(some, site())
    array = f"{OURS}-j1700+-1"
    assert f"--job-name={array}" in command.argv and "--array=0,1,3" in command.argv
    answers = driver.submitted(some, [CommandResult(0, "12\n", "")])
    assert [answers[name].batch_id for name in names] == ["12_0", "12_3", "12_1"]
    jobs = listed(row("RUNNING", name=array, task="3") + row("PENDING", name=array, task="1", node=""))
    assert jobs is not None
    assert {name: (found.id, found.state) for name, found in jobs.items()} == {
        names[1]: ("7_3", BatchState.RUNNING),
        names[2]: ("7_1", BatchState.PENDING),
    }
    [by_name, by_id] = driver.cancel([(names[1], "7_3")])
    assert by_name.argv == ("scancel", f"--name={names[1]}") and by_id.argv[-2:] == ("7_3", array)


def test_what_slurm_keeps_of_an_array_without_its_elements_is_no_job() -> None:
    assert listed(row("CANCELLED", name=f"{OURS}-j1+-1", node="")) == {}


def test_a_job_whose_node_does_not_see_the_workdir_goes_alone_with_its_ticket_in_its_script() -> None:
    alike = [replace(job(), name=f"{OURS}-j{n}-1", carried=Carried("login:1-2", "d" * 64, f"T{n}")) for n in (1, 2)]
    commands = SlurmDriver(site(control="tcp")).submit(alike, site(control="tcp"))
    assert [command.stdin.count("T1") + 2 * command.stdin.count("T2") for command in commands] == [1, 2]
    for command in commands:
        assert "--chdir=/" in command.argv and "--output=/dev/null" in command.argv
        assert not any("/w/" in word or word in ("T1", "T2") for word in command.argv)
        assert subprocess.run(["sh", "-n"], input=command.stdin, text=True, check=False).returncode == 0
    assert "T1" not in repr(alike)
    with pytest.raises(LinkError, match=r"options.control: 'ssh' is not one of spool, tcp"):
        SlurmDriver(site(control="ssh"))


@pytest.mark.parametrize(("walltime", "warned"), [(60, False), (299, False), (300, True), (7200, True)])
def test_a_short_job_is_not_warned_a_minute_early(walltime: int, warned: bool) -> None:
    [command] = SlurmDriver(site()).submit([job(walltime)], site())
    assert any(word.startswith("--signal=B:USR1@") for word in command.argv) == warned


@given(st.integers(1, 10**7))
def test_whole_minutes_hold_the_walltime_and_no_minute_more(walltime: int) -> None:
    assert walltime <= 60 * minutes(walltime) < walltime + 60


@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1))
def test_the_script_hands_over_any_folder_name_unchanged(name: str) -> None:
    words = shlex.split(batch_script(job(scratch=f"/{name}", entry=f"/w/{name}")).partition("exec ")[2])
    assert words[-3:] == [f"/{name}", "--entry", f"/w/{name}"]


def test_without_a_scratch_the_nodes_own_tmpdir_is_used_and_one_that_is_not_there_is_not(tmp_path: Path) -> None:
    start = tmp_path / "start"
    start.write_text('echo "$@"\n')
    script = batch_script(Submission("n", "/e", str(start), "", 1, 1, 60))
    for tmpdir, expected in ((str(tmp_path), str(tmp_path)), ("/only/on/the/front-end", "/tmp")):
        done = subprocess.run(["sh"], input=script, env={"TMPDIR": tmpdir}, capture_output=True, text=True, check=True)
        assert done.stdout == f"pilot --scratch {expected} --entry /e\n"


def test_options_that_would_be_ignored_are_refused_with_those_that_exist() -> None:
    with pytest.raises(LinkError, match=r"options\.partitoin") as refusal:
        SlurmDriver(site(partitoin="x"))
    assert "partition" in refusal.value.hint
    with pytest.raises(LinkError, match="native"):
        SlurmDriver(site(native="'open"))
    with pytest.raises(LinkError, match="spool_lag"):
        SlurmDriver(site(spool_lag="soon"))


# What its answers mean


@pytest.mark.parametrize(
    ("code", "stdout", "stderr", "accepted"),
    [
        (0, "17\n", "", True),
        (0, "17;cluster\n", "", True),
        (0, "sbatch: a site's greeting\n17\n", "", True),
        (0, "", "", None),
        (None, "", "sbatch: no end within 30 s, killed", None),
        (-9, "", "", None),
        (1, "", "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation\n", None),
        (1, "", "sbatch: error: Batch job submission failed: Unable to contact slurm controller\n", None),
        (1, "", "sbatch: error: Batch job submission failed: Protocol authentication error\n", None),
        (1, "", "sbatch: error: Batch job submission failed: Zero Bytes were transmitted or received\n", None),
        (1, "", "sbatch: error: Batch job submission failed: Invalid partition name specified\n", False),
        (1, "", "sbatch: error: Batch job submission failed: Requested node configuration is not available\n", False),
        (1, "", "sbatch: error: Batch job submission failed: Invalid feature specification\n", False),
        (255, "", "sbatch: unrecognized option '--bogus=64'\n", False),
        (127, "", "start sbatch: No such file or directory", False),
    ],
)  # fmt: skip
def test_an_answer_is_yes_no_or_unclear(code: int | None, stdout: str, stderr: str, accepted: bool | None) -> None:
    [answer] = SlurmDriver(site()).submitted([job()], [CommandResult(code, stdout, stderr)]).values()
    assert answer.accepted is accepted
    assert answer.batch_id == ("17" if accepted else "")
    assert accepted or "sbatch" in answer.message


def test_a_refusal_says_what_to_change() -> None:
    words = "sbatch: error: Batch job submission failed: Invalid partition name specified\n"
    [answer] = SlurmDriver(site()).submitted([job()], [CommandResult(1, "", words)]).values()
    assert "Invalid partition name" in answer.message and "option `partition`" in answer.message


@given(st.text(st.characters(categories=["Lu"]), min_size=1).filter(lambda word: word not in STATES))
def test_a_state_that_nobody_told_us_of_is_unknown_and_never_an_end(word: str) -> None:
    jobs = listed(row(word))
    assert jobs is not None
    job = jobs[f"{OURS}-j1-1"]
    assert job.state is BatchState.UNKNOWN and word in job.reason


@pytest.mark.parametrize(
    ("line", "state", "reason", "code"),
    [
        (row("PENDING", "Resources"), BatchState.PENDING, "Resources", None),
        (row("COMPLETED"), BatchState.ENDED, "COMPLETED", 0),
        (row("FAILED", "NonZeroExitCode", 78 << 8), BatchState.ENDED, "NonZeroExitCode", 78),
        (row("FAILED", "JobLaunchFailure", 9), BatchState.ENDED, "JobLaunchFailure", 137),
        (row("CANCELLED by 20001", status=15), BatchState.ENDED, "CANCELLED by 20001", 143),
        (row("TIMEOUT", "TimeLimit", 1 << 8), BatchState.ENDED, "TIMEOUT", 1),
        (row("CANCELLED", "Resources", node=""), BatchState.ENDED, "CANCELLED", 0),
        (row("COMPLETING"), BatchState.ENDING, "", None),
        (row("SUSPENDED"), BatchState.RUNNING, "", None),
        (row("NODE_FAIL", "None"), BatchState.NODE_LOST, "NODE_FAIL", None),
    ],
)
def test_what_the_words_for_a_job_mean(line: str, state: BatchState, reason: str, code: int | None) -> None:
    jobs = listed(line)
    assert jobs is not None
    found = jobs[f"{OURS}-j1-1"]
    assert found == BatchJob("7", f"{OURS}-j1-1", state, reason, found.node, code)


@pytest.mark.parametrize("word", ["CANCELLED", "CANCELLED by 0", "PREEMPTED", "TIMEOUT", "DEADLINE"])
def test_an_end_that_the_node_has_not_confirmed_is_a_node_lost(word: str) -> None:
    for status, node, state in ((0, "n1", "node-lost"), (9, "n1", "ended"), (0, "", "ended")):
        jobs = listed(row(word, status=status, node=node))
        assert jobs is not None
        assert jobs[f"{OURS}-j1-1"].state == state


@pytest.mark.parametrize("reason", sorted(NEVER_STARTS))
def test_a_job_that_time_alone_will_not_start_is_held_and_says_what_to_change(reason: str) -> None:
    jobs = listed(row("PENDING", reason))
    assert jobs is not None
    assert jobs[f"{OURS}-j1-1"].state is BatchState.HELD
    assert jobs[f"{OURS}-j1-1"].reason == f"{reason}: {NEVER_STARTS[reason]}"


def test_a_listing_holds_ours_alone_whatever_others_call_their_jobs() -> None:
    text = row("RUNNING", name="the user's own") + row("RUNNING", name="b\nc|d|e|f|g|h|i\n||||||||") + row("RUNNING")
    jobs = listed(text + row("PENDING", name="f0000000-j1-1"))
    assert jobs is not None
    assert set(jobs) == {f"{OURS}-j1-1"}


def test_a_job_that_the_site_ran_again_says_how_often() -> None:
    jobs = listed(row("RUNNING", restarts="2"))
    assert jobs is not None
    assert jobs[f"{OURS}-j1-1"].restarts == 2


def test_of_a_doubled_submission_the_one_that_lives_counts() -> None:
    over = row("CANCELLED", status=15)
    for text in (over + row("RUNNING"), row("RUNNING") + over):
        jobs = listed(text)
        assert jobs is not None
        assert jobs[f"{OURS}-j1-1"].state is BatchState.RUNNING


@pytest.mark.parametrize(
    ("code", "stdout", "stderr"),
    [
        (1, "", "slurm_load_jobs error: Unable to contact slurm controller (connect failure)\n"),
        (None, row("RUNNING"), ""),  # killed in the middle
        (1, row("RUNNING"), ""),
        (0, "", "squeue: error: Invalid user: scientist\n\n"),  # 22.05 exits with 0 all the same
    ],
)
def test_a_listing_that_failed_is_no_listing_not_an_empty_one(code: int | None, stdout: str, stderr: str) -> None:
    assert listed(stdout, code, stderr) is None


def test_an_empty_listing_is_one() -> None:
    assert listed("") == {}


PARTITIONS = (
    "batch*|up|1-00:00:00|2|4000|10:00\nbatch*|up|1-00:00:00|64+|8000|10:00\nshort|up|5:00|2|4000|n/a\n"
    "open|up|infinite|2|4000|n/a\n"
)


ANSWERS = [
    CommandResult(0, "slurm-wlm 22.05.8\n"),
    CommandResult(0, PARTITIONS),
    CommandResult(0, "No reservations in the system\n"),
]


@pytest.mark.parametrize(
    ("options", "walltime", "cpus"),
    [({}, 86400, 64), ({"partition": "short"}, 300, 2), ({"partition": "open"}, None, 2),
     ({"partition": "short,batch"}, 86400, 64)],
)  # fmt: skip
def test_the_limits_are_those_of_the_partition_that_is_used(
    options: dict[str, str], walltime: int | None, cpus: int
) -> None:
    limits = SlurmDriver(site(**options)).limits(ANSWERS)
    assert (limits.version, limits.max_walltime, limits.max_cpus) == ("slurm-wlm 22.05.8", walltime, cpus)
    assert not limits.problem


def test_the_default_walltime_and_reservations_are_told() -> None:
    """As 22.05 words them; what cannot be told takes nothing away from the rest."""
    text = (
        "ReservationName=maint StartTime=2026-11-23T00:12:50 EndTime=2026-11-23T01:12:50 Duration=01:00:00 "
        "Nodes=n[1-2] NodeCnt=2 CoreCnt=4 Features=(null) PartitionName=(null) Flags=MAINT,SPEC_NODES,ALL_NODES "
        "TRES=cpu=4 Users=root Groups=(null) Accounts=(null) Licenses=(null) State=INACTIVE BurstBuffer=(null)\n"
    )
    told = ("default walltime: 600 s", "reservation maint: n[1-2] from 2026-11-23T00:12:50 to 2026-11-23T01:12:50")
    for answer, notes in (
        (CommandResult(0, text), told),
        (CommandResult(0, "No reservations in the system\n"), told[:1]),
        (CommandResult(127, "", "scontrol: not found"), told[:1]),
    ):
        limits = SlurmDriver(site()).limits([*ANSWERS[:2], answer])
        assert (limits.notes, limits.problem, limits.max_walltime) == (notes, "", 86400)


def test_a_partition_that_does_not_exist_is_a_problem_that_names_those_that_do() -> None:
    assert "batch, open, short" in SlurmDriver(site(partition="fast")).limits(ANSWERS).problem


def test_no_slurm_at_the_site_is_a_problem_with_its_mend() -> None:
    missing = CommandResult(127, "", "start sbatch: No such file or directory")
    assert "PATH" in SlurmDriver(site()).limits([missing, missing, missing]).problem


@given(st.integers(0, 30), st.integers(0, 23), st.integers(0, 59), st.integers(0, 59))
def test_slurms_times_are_read(days: int, hours: int, mins: int, secs: int) -> None:
    total = ((days * 24 + hours) * 60 + mins) * 60 + secs
    assert seconds(f"{days}-{hours:02}:{mins:02}:{secs:02}") == total
    assert seconds(f"{hours:02}:{mins:02}:{secs:02}") == total - days * 86400
    assert seconds(f"{mins}:{secs:02}") == mins * 60 + secs
    assert seconds(str(mins)) == mins * 60


@pytest.mark.parametrize("text", ["infinite", "UNLIMITED", "n/a", "", "-1", "1-"])
def test_what_is_no_time_is_no_limit(text: str) -> None:
    assert seconds(text) is None
