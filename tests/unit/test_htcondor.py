"""HTCondor's dialect: what we say to it, and what its answers mean. The answers are 23.9's own."""

from __future__ import annotations

import json
import re
import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gridhypervisor.model.batch import BatchJob, BatchState, Submission
from gridhypervisor.model.errors import LinkError
from gridhypervisor.model.records import Site, SiteKind
from gridhypervisor.model.wire import CommandResult
from gridhypervisor.sites.driver import batch_script
from gridhypervisor.sites.htcondor import HOLDS, STATES, HTCondorDriver, quoted

OURS = "a1b2c3d4e"
NAME = f"{OURS}-j1-1"
POLICY = (
    "The job attribute PeriodicRemove expression '(JobStatus == 1 || JobStatus == 5) && RemoteHost =?= undefined && "
    " !(NumShadowStarts =?= undefined)' evaluated to TRUE"
)


def site(**options: str) -> Site:
    return Site("pool", "o", "p", SiteKind.HTCONDOR, options=options, environment={"CONDOR_CONFIG": "/c"})


def job(walltime: int = 1800, scratch: str = "", entry: str = "/w/spool/x") -> Submission:
    return Submission(NAME, entry, "/w/bundle/d/start", scratch, 2, 512 << 20, walltime)


def described(driver: HTCondorDriver, what: Submission) -> list[str]:
    [command] = driver.submit([what], site())
    return command.stdin.removesuffix("\n").split("\n")


def listed(stdout: str, code: int | None = 0, stderr: str = "") -> dict[str, BatchJob] | None:
    listing, problem = HTCondorDriver(site()).listing([CommandResult(code, stdout, stderr)], 5.0)
    assert (listing is None) == bool(problem)
    return listing.jobs if listing else None


def one(**row: object) -> BatchJob:
    jobs = listed(json.dumps([{"ClusterId": 7, "ProcId": 0, "GhvName": NAME, **row}]))
    assert jobs is not None
    return jobs[NAME]


# What we say


def test_a_submission_carries_name_size_walltime_and_the_users_options() -> None:
    driver = HTCondorDriver(
        site(account="group.astro", constraint="HasGlass", native='request_disk = 4G; +Project="x"')
    )
    lines = described(driver, job())
    for line in (f'+GhvName = "{NAME}"', f"batch_name = {NAME}", "request_cpus = 2", "request_memory = 896",
                 "allowed_job_duration = 1800", "accounting_group = group.astro", "request_disk = 4G", '+Project="x"',
                 "requirements = (HasGlass) && (NumShadowStarts =?= undefined)"):  # fmt: skip
        assert line in lines
    assert lines[-1] == "queue" and sum(line.startswith("queue") for line in lines) == 1


def test_the_commands_see_the_sites_environment_and_only_the_users_own_jobs() -> None:
    [command] = HTCondorDriver(site()).query(OURS)
    assert command.environment == {"CONDOR_CONFIG": "/c", "_CONDOR_CONDOR_Q_ONLY_MY_JOBS": "true"}


def arguments(line: str) -> list[str]:
    """What HTCondor makes of a line of arguments in its newer syntax; macros are to be none."""
    text = line.removeprefix("arguments = ")
    assert not re.search(r"\$\w*\(|\$\$", text)
    assert text[0] == text[-1] == '"'
    words = re.findall(r"'((?:[^']|'')*)'", text[1:-1].replace('""', '"'))
    return [word.replace("''", "'") for word in words]


@given(
    st.text(
        st.characters(exclude_characters="\0\n\r", exclude_categories=["Cs"]),
        min_size=1,
    )
)
def test_the_script_hands_over_any_folder_name_unchanged(name: str) -> None:
    lines = described(HTCondorDriver(site()), job(scratch=f"/{name}", entry=f"/w/{name}"))
    [line] = [line for line in lines if line.startswith("arguments")]
    dash, script = arguments(line)
    assert dash == "-c" and shlex.split(script)[-3:] == [f"/{name}", "--entry", f"/w/{name}"]


def test_a_path_with_a_line_break_is_refused() -> None:
    with pytest.raises(LinkError, match="line break"):
        HTCondorDriver(site()).submit([job(entry="/w/a\nqueue 5")], site())


def test_the_script_is_the_batch_script_in_one_line() -> None:
    [line] = [line for line in described(HTCondorDriver(site()), job()) if line.startswith("arguments")]
    assert arguments(line)[1].split("; ") == batch_script(job(), log="/w/spool/x/batch.log").splitlines()[1:]
    assert quoted("a b", 'c"d') == "\"'a b' 'c\"\"d'\""


def test_options_that_would_be_ignored_or_do_harm_are_refused() -> None:
    with pytest.raises(LinkError, match=r"options\.partition") as refusal:
        HTCondorDriver(site(partition="x"))
    assert "constraint" in refusal.value.hint
    with pytest.raises(LinkError, match="queue"):
        HTCondorDriver(site(native="rank = Mips; Queue 5"))
    with pytest.raises(LinkError, match="spool_lag"):
        HTCondorDriver(site(spool_lag="soon"))


def test_all_jobs_are_cancelled_in_one_command_by_their_names() -> None:
    [command] = HTCondorDriver(site()).cancel([("n1", ""), ("n2", "7.0")])
    assert command.argv[:2] == ("condor_rm", "-constraint")
    assert 'GhvName == "n1" || GhvName == "n2"' in command.argv[2]


# What its answers mean

NO_QUEUE = "\nERROR: Failed to connect to local queue manager\nCEDAR:6001:Failed to connect to <127.0.0.1:36757>\n"
NO_KEY = (
    "\nERROR: Failed to connect to local queue manager\nAUTHENTICATE:1005:Failed to securely exchange session key\n"
)
UNUSED = "\nWARNING: the line 'allowed_job_duration = 60' was unused by condor_submit. Is it a typo?\n"


@pytest.mark.parametrize(
    ("code", "stdout", "stderr", "accepted"),
    [
        (0, "17.0 - 17.0\n", "", True),
        (0, "17.0 - 17.0\n", UNUSED, True),
        (-11, "17.0 - 17.0\n", "", True),  # died of a missing cipher afterwards
        (0, "", "", None),
        (None, "", "condor_submit: no end within 30 s, killed", None),
        (-9, "", "", None),
        (1, "", NO_QUEUE, None),
        (1, "", NO_KEY, None),
        (1, "", "\nERROR: Can't find address of local schedd\n", None),
        (1, "", "ERROR: Parse error in expression: \n\tRequirements = ((bad syntax)\n", False),
        (1, "", "ERROR: Invalid accounting_group: x y\n", False),
        (1, "", "\nERROR: Failed to commit job submission into the queue.\nERROR: not permitted\n", False),
        (127, "", "start condor_submit: No such file or directory", False),
    ],
)
def test_an_answer_is_yes_no_or_unclear(code: int | None, stdout: str, stderr: str, accepted: bool | None) -> None:
    [answer] = HTCondorDriver(site()).submitted([job()], [CommandResult(code, stdout, stderr)]).values()
    assert answer.accepted is accepted
    assert answer.batch_id == ("17.0" if accepted else "")
    assert accepted or "condor_submit" in answer.message


def test_a_refusal_says_what_to_change() -> None:
    words = "ERROR: Invalid accounting_group: x y\n"
    [answer] = HTCondorDriver(site()).submitted([job()], [CommandResult(1, "", words)]).values()
    assert "Invalid accounting_group" in answer.message and "option `account`" in answer.message


RUNS = {"NumJobMatches": 1, "NumShadowStarts": 1, "JobCurrentReconnectAttempt": None}
THERE = {**RUNS, "RemoteHost": "slot1_2@n1@pool"}
LEFT = {**RUNS, "LastRemoteHost": "slot1_2@n1@pool", "VacateReason": ""}
LATE = {"HoldReason": "The job exceeded allowed job duration of 00:05", "HoldReasonCode": 46}
TOO_LONG = "Job disconnected too long: JobLeaseDuration (20 seconds) expired"


@pytest.mark.parametrize(
    ("row", "state", "reason", "code"),
    [
        ({"JobStatus": 1}, "pending", "", None),
        ({"JobStatus": 1, "LastRejMatchReason": "no match found "}, "pending", "no match found", None),
        ({"JobStatus": 2, **THERE}, "running", "", None),
        ({"JobStatus": 2, **THERE, "JobCurrentReconnectAttempt": 2}, "running", "does not answer", None),
        ({"JobStatus": 7, **THERE}, "running", "", None),
        ({"JobStatus": 4, **LEFT, "ExitCode": 78}, "ended", "", 78),
        ({"JobStatus": 4, **LEFT, "ExitSignal": 9}, "ended", "", 137),
        ({"JobStatus": 5, "HoldReason": "via condor_hold (by user root)", "HoldReasonCode": 1}, "held",
         "condor_release", None),
        ({"JobStatus": 3, "RemoveReason": "via condor_rm (by user ada)"}, "ended", "via condor_rm", None),
        # The node still has it.
        ({"JobStatus": 5, **THERE, **LATE}, "ending", "duration", None),
        ({"JobStatus": 3, **THERE, "RemoveReason": "via condor_rm (by user ada)"}, "ending", "condor_rm", None),
        # The node has let it go, and told how it ended.
        ({"JobStatus": 5, **LEFT, **LATE, "ExitCode": 5}, "ended", "walltime", 5),
        ({"JobStatus": 3, **LEFT, "ExitCode": 5, "LastHoldReason": LATE["HoldReason"],
          "LastHoldReasonCode": LATE["HoldReasonCode"], "RemoveReason": POLICY}, "ended", "walltime", 5),
        ({"JobStatus": 3, **LEFT, "ExitSignal": 9, "RemoveReason": "via condor_rm (by user ada)"}, "ended",
         "condor_rm", 137),
        ({"JobStatus": 1, **LEFT, "ExitCode": 5}, "ended", "not to begin again", 5),
        ({"JobStatus": 3, **LEFT, "ExitCode": 5, "RemoveReason": POLICY}, "ended", "not to begin again", 5),
        # The node was given up: nobody knows.
        ({"JobStatus": 1, **LEFT, "VacateReason": TOO_LONG}, "node-lost", "disconnected too long", None),
        ({"JobStatus": 3, **LEFT, "VacateReason": TOO_LONG, "RemoveReason": POLICY}, "node-lost",
         "disconnected too long", None),
        ({"JobStatus": 5, **LEFT, **LATE}, "node-lost", "duration", None),
    ],
)  # fmt: skip
def test_what_the_words_for_a_job_mean(row: dict[str, object], state: str, reason: str, code: int | None) -> None:
    found = one(**row)
    assert (found.state, found.code, found.restarts, found.id) == (state, code, 0, "7.0")
    assert reason in found.reason and bool(reason) == bool(found.reason)
    assert found.node == ("n1@pool" if "NumShadowStarts" in row else "")


@given(st.integers().filter(lambda status: status not in STATES))
def test_a_state_that_nobody_told_us_of_is_unknown_and_never_an_end(status: int) -> None:
    found = one(JobStatus=status, **LEFT, ExitCode=0)
    assert found.state is BatchState.UNKNOWN and str(status) in found.reason


@pytest.mark.parametrize("code", sorted(HOLDS))
def test_a_hold_says_what_to_change(code: int) -> None:
    found = one(JobStatus=5, HoldReason="why", HoldReasonCode=code)
    assert (found.state, found.reason) == (BatchState.HELD, f"why: {HOLDS[code]}")


def test_a_job_that_was_matched_twice_was_run_again() -> None:
    assert one(JobStatus=2, **{**THERE, "NumJobMatches": 3, "NumShadowStarts": 4}).restarts == 2
    # A queue that was away takes a running job up again with another shadow, which is no other run.
    assert one(JobStatus=2, **{**THERE, "NumShadowStarts": 2}).restarts == 0


def test_of_a_doubled_submission_the_one_that_lives_counts() -> None:
    over = {"ClusterId": 7, "ProcId": 0, "GhvName": NAME, "JobStatus": 4, **LEFT, "ExitCode": 0}
    alive = {"ClusterId": 8, "ProcId": 0, "GhvName": NAME, "JobStatus": 2, **THERE}
    for rows in ([over, alive], [alive, over]):
        jobs = listed(json.dumps(rows))
        assert jobs is not None
        assert jobs[NAME].state is BatchState.RUNNING


RUNNING = json.dumps([{"ClusterId": 7, "ProcId": 0, "GhvName": NAME, "JobStatus": 2, **THERE}])
AWAY = "\n-- Failed to fetch ads from: <127.0.0.1:36757> : pool\nCEDAR:6001:Failed to connect to <127.0.0.1:36757>\n"


@pytest.mark.parametrize(
    ("code", "stdout", "stderr"),
    [
        (1, "", AWAY),
        (0, "", AWAY),
        (None, RUNNING, ""),  # killed in the middle
        (1, RUNNING, ""),
        (0, RUNNING[: len(RUNNING) // 2], ""),
        (0, "Welcome to the pool!\n" + RUNNING, ""),
        (0, '{"ClusterId": 7}', ""),
        (0, "[1, 2]", ""),
        (0, '[{"ClusterId": 7}]', ""),
        (0, "null", ""),
    ],
)
def test_a_listing_that_failed_or_was_cut_is_no_listing_not_an_empty_one(
    code: int | None, stdout: str, stderr: str
) -> None:
    assert listed(stdout, code, stderr) is None


def test_an_empty_listing_is_one_and_says_nothing_at_all() -> None:
    assert listed("") == {} and listed("[\n]\n") == {}


VERSION = "$CondorVersion: 23.9.6 2026-07-12 PackageID: 23.9.6+dfsg-2.1+b10 $\n$CondorPlatform: X86_64-Debian_13 $\n"


def test_the_limits_are_those_of_the_largest_machine() -> None:
    rows = CommandResult(0, "2 4000\n64 256000\nundefined undefined\n")
    limits = HTCondorDriver(site()).limits([CommandResult(0, VERSION), rows])
    assert (limits.version, limits.max_walltime, limits.max_cpus) == ("htcondor 23.9.6", None, 64)
    assert limits.max_memory == (256000 - 384) << 20
    assert not limits.problem


def test_a_pool_that_shows_its_machines_to_nobody_can_be_used_all_the_same() -> None:
    hidden = CommandResult(1, "", "Error: communication error\n")
    limits = HTCondorDriver(site()).limits([CommandResult(0, VERSION), hidden])
    assert (limits.problem, limits.max_cpus, limits.max_memory) == ("", None, None)


def test_no_htcondor_at_the_site_is_a_problem_with_its_mend() -> None:
    missing = CommandResult(127, "", "start condor_version: No such file or directory")
    assert "PATH" in HTCondorDriver(site()).limits([missing, missing]).problem
