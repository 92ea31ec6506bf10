"""Grid Engine's dialect: what we say to it, and what its answers mean. The answers in `gridengine/` are 8.1.9's own.

In them a job exited with 78 (j1), was cancelled (j2), or cancelled though deaf (j3), was over its h_rt (j4), is run
again and again because it exits with 99 (j5, j13), is in error (j6), had its shepherd killed (j7), was deleted by force
(j8) or only deleted (j9) while its node was silent, runs (j10), waits (j11), is held (j12).
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gridhypervisor.model.batch import BatchJob, BatchState, Listing, Submission
from gridhypervisor.model.errors import LinkError
from gridhypervisor.model.records import Site, SiteKind
from gridhypervisor.model.wire import Command, CommandResult
from gridhypervisor.sites.gridengine import LETTERS, SEEK, SEEK_OLD, USAGE, GridEngineDriver, seconds, state_of

OURS = "a1b2c3d4e"
S = BatchState


def captured(name: str) -> CommandResult:
    return CommandResult(0, (Path(__file__).parent / "gridengine" / name).read_text(), "")


QSTAT, LOST, ERRORS, QACCT = (captured(name) for name in ("qstat.xml", "qstat-lost.xml", "qstat-j.txt", "qacct.txt"))
ARRAY, ARRAY_ERRORS, ARRAY_ENDS = (captured(f"array-{name}") for name in ("qstat.xml", "qstat-j.txt", "qacct.txt"))
"""Of 13 tasks the first exited with 78, the 2nd is in error, the 3rd was deleted while it ran, the 4th and 5th run, the
6th is held, the 7th was deleted while it waited, the others wait."""
EMPTY = CommandResult(0, re.sub(r"<job_list.*</job_list>", "", QSTAT.stdout, flags=re.DOTALL), "")


def site(**options: str) -> Site:
    return Site("sge-a", "o", "p", SiteKind.GRIDENGINE, options=options, environment={"SGE_ROOT": "/opt/sge"})


def job(number: int = 1, cpus: int = 1, walltime: int = 1800, entry: str = "/w/spool/x") -> Submission:
    return Submission(f"{OURS}-j{number}-1", entry, "/w/bundle/d/start", "", cpus, 512 << 20, walltime)


def driver(**options: str) -> GridEngineDriver:
    """One that has looked for what ended before its time."""
    made = GridEngineDriver(site(**options), "/w", "d")
    for _ in range(SEEK_OLD + 1):
        made.query(OURS)
        made.listing([EMPTY], 0.0)
    return made


def words(command: Command) -> str:
    return " ".join(command.argv)


def kinds(commands: list[Command]) -> list[str]:
    """What the commands of a query ask for."""
    marks = {"qacct": "ended", "-qs u": "lost", "qstat -j": "errors", "qstat -xml": "alive"}
    return [next(kind for mark, kind in marks.items() if mark in words(command)) for command in commands]


def listed(made: GridEngineDriver, *results: CommandResult) -> dict[str, BatchJob]:
    listing, problem = made.listing(results, 5.0)
    assert listing is not None, problem
    return {name.removeprefix(f"{OURS}-").removesuffix("-1"): job for name, job in listing.jobs.items()}


# What we say


def test_a_submission_is_warned_before_it_is_killed_never_run_again_and_verified_at_once() -> None:
    [command] = driver().submit([job()], site())
    assert command.argv[:3] == ("qsub", "-N", f"{OURS}-j1-1") and command.environment == {"SGE_ROOT": "/opt/sge"}
    for option in ("-notify", "-r n", "-w e", "-S /bin/sh", "-l h_rt=1800"):
        assert f" {option} " in words(command) + " "
    assert "-pe" not in command.argv and "h_vmem" not in words(command)
    assert command.stdin.startswith("#!/bin/sh\nexec >>/w/spool/x/batch.log 2>&1\n")


def test_a_submission_carries_the_users_options_verbatim() -> None:
    made = driver(queue="long.q@@fast", project="p7", pe="smp", memory="mem_free", native="-l 'x=1 2' -js 5")
    [command] = made.submit([job(cpus=4)], site())
    assert command.argv[-4:] == ("-l", "x=1 2", "-js", "5")
    for option in ("-q long.q@@fast", "-P p7", "-pe smp 4", "-l mem_free=224M", "-w n"):  # a quarter a slot
        assert f" {option} " in words(command)


@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1))
def test_whatever_the_entry_is_called_it_stands_in_the_script_alone(name: str) -> None:
    [command] = driver().submit([job(entry=f"/{name}!")], site())
    assert not any(f"/{name}!" in word for word in command.argv)


def test_jobs_that_are_alike_go_as_arrays_whose_names_and_indices_say_which_each_is() -> None:
    made = driver()
    jobs = [replace(job(number), entry=f"/w/spool/{job(number).name}") for number in (1, 2, 3, 7, 9, 20)]
    jobs.append(replace(job(4, cpus=2), entry="/w/spool/x"))
    commands = made.submit(jobs, site())
    spoken = {command.argv[2]: words(command).partition(" -t ")[2] for command in commands}
    assert spoken == {
        f"{OURS}-j0+-1": "1-3:1",
        f"{OURS}-j6+-1": "1-3:2",
        f"{OURS}-j20-1": "",
        f"{OURS}-j4-1": "",
    }
    told = [f'Your job-array {at}.1-3:1 ("{OURS}-j0+-1") has been submitted\n' for at in range(17, 21)]
    answers = made.submitted(jobs, [CommandResult(0, words, "") for words in told])
    at = {command.argv[2]: str(number) for number, command in zip(range(17, 21), commands, strict=True)}
    assert {name.split("-")[1]: answer.batch_id for name, answer in answers.items()} == {
        **{f"j{number}": f"{at[f'{OURS}-j0+-1']}.{number}" for number in (1, 2, 3)},
        **{f"j{number}": f"{at[f'{OURS}-j6+-1']}.{number - 6}" for number in (7, 9)},
        "j20": at[f"{OURS}-j20-1"],
        "j4": at[f"{OURS}-j4-1"],
    }
    assert len(driver(arrays="no").submit(jobs, site())) == len(jobs)


def test_of_an_array_that_task_alone_is_cancelled_which_is_meant_by_the_arrays_name() -> None:
    made = driver()
    listed(made, ARRAY)
    plain, tasks = made.cancel([(f"{OURS}-j25-1", ""), (f"{OURS}-j28-1", "1.8"), (f"{OURS}-j90-1", "7")])
    assert plain.argv == ("qdel", f"{OURS}-j25-1", f"{OURS}-j28-1", f"{OURS}-j90-1")
    assert tasks.argv == ("qdel", f"{OURS}-j20+-1", "-t", "5,8")  # the first was found in the listing


def test_options_that_would_be_ignored_are_refused_with_those_that_exist() -> None:
    with pytest.raises(LinkError, match=r"options\.partition") as refusal:
        driver(partition="x")
    assert "queue" in refusal.value.hint
    with pytest.raises(LinkError, match="native"):
        driver(native="'open")


def test_jobs_are_cancelled_by_name_in_one_command() -> None:
    [command] = driver().cancel([("n1", "7"), ("n2", "")])
    assert command.argv == ("qdel", "n1", "n2")
    assert driver().cancel([]) == []


def test_the_accounts_are_read_only_when_a_job_is_gone_and_nobody_has_said_how_it_ended() -> None:
    fresh = GridEngineDriver(site(), "/w", "d")
    assert kinds(fresh.query(OURS)) == ["alive", "ended"]  # of what ended before our time
    made = driver()
    assert kinds(made.query(OURS)) == ["alive"]
    listed(made, QSTAT)
    assert kinds(made.query(OURS)) == ["alive", "lost", "errors"]
    listed(made, QSTAT, LOST, ERRORS)
    assert kinds(made.query(OURS)) == ["alive", "lost"]
    listed(made, EMPTY)
    assert kinds(made.query(OURS)) == ["alive", "ended"]


def test_what_is_submitted_and_gone_before_the_first_look_is_looked_for_too() -> None:
    made = driver()
    listed(made, EMPTY)
    assert kinds(made.query(OURS)) == ["alive"]
    made.submit([job(1)], site())
    assert kinds(made.query(OURS)) == ["alive", "ended"]
    assert listed(made, EMPTY, QACCT)["j1"].code == 78
    assert kinds(made.query(OURS)) == ["alive"]


def test_an_end_that_nobody_tells_is_looked_for_ever_more_seldom_and_not_for_ever() -> None:
    made = driver()
    made.submit([job(77)], site())
    asked = []
    for _ in range(SEEK + 50):
        asked.append("ended" in kinds(made.query(OURS)))
        listed(made, EMPTY, CommandResult(1, "", "error: job name a1b2c3d4e-* not found\n"))
    assert asked[:2] == [True, True] and 5 < sum(asked) < 12 and not any(asked[SEEK:])


# What its answers mean


@pytest.mark.parametrize(
    ("code", "stdout", "stderr", "accepted"),
    [
        (0, 'Your job 17 ("a1b2c3d4e-j1-1") has been submitted\n', "", True),
        (0, "17\n", "", True),  # the site's defaults say -terse
        (0, 'a site\'s greeting 5\nYour job 17 ("x") has been submitted\n', "", True),
        (0, "", "", None),
        (None, "", "", None),
        (-9, "", "", None),
        (1, "", "error: commlib error: got select error (Connection refused)\nUnable to run job: unable to send "
                'message to qmaster using port 6444 on host "sge-a": got send error\nExiting.\n', None),
        (1, "", "Unable to run job: Error reading answer list from qmaster\nExiting.\n", None),
        (1, "", 'Unable to run job: Job was rejected because job requests unknown queue "x"\nExiting.\n', False),
        (1, "", "Unable to run job: error: no suitable queues\nExiting.\n", False),
        (1, "", 'Unable to run job: job rejected: the requested project "x" does not exist\nExiting.\n', False),
        (1, "", "Unable to run job: job rejected: you tried to submit a job with more than 4 tasks\nExiting.\n", False),
        (1, "", 'qsub: invalid option argument "-bogus"\n', False),
        (1, "", '\nUnable to initialize environment because of error: SGE_ROOT directory "/x" doesn\'t exist\n', False),
        (127, "", "start qsub: No such file or directory", False),
    ],
)  # fmt: skip
def test_an_answer_is_yes_no_or_unclear(code: int | None, stdout: str, stderr: str, accepted: bool | None) -> None:
    [answer] = driver().submitted([job()], [CommandResult(code, stdout, stderr)]).values()
    assert answer.accepted is accepted
    assert answer.batch_id == ("17" if accepted else "")
    assert accepted or "qsub" in answer.message


@pytest.mark.parametrize(
    ("words", "mend"),
    [
        ('Job was rejected because job requests unknown queue "x"', "option `queue`"),
        ('job rejected: the requested parallel environment "x" does not exist', "option `pe`"),
        ('job rejected: the requested project "x" does not exist', "option `project`"),
        ("error: no suitable queues", "less walltime"),
        ('unknown resource "x"', "option"),
        ('SGE_ROOT directory "" doesn\'t exist', "SGE_ROOT"),
        ("job rejected: only 2 jobs are allowed per user (current job count: 2)", "`max-jobs`"),
        ("something new", "administrators"),
    ],
)
def test_a_refusal_says_what_to_change(words: str, mend: str) -> None:
    [answer] = driver().submitted([job()], [CommandResult(1, "", f"Unable to run job: {words}\nExiting.\n")]).values()
    assert words in answer.message and mend in answer.message


def test_a_listing_holds_ours_alone_whatever_others_call_their_jobs() -> None:
    """Among them `a&b<c`, of which 8.1.9 makes `a&amp;b%lt;c`; other versions make bad XML of such names."""
    assert set(listed(driver(), QSTAT)) == {"j6", "j9", "j10", "j11", "j12", "j13"}
    bad = QSTAT.stdout.replace("a&amp;b%lt;c", "a&b<c>]]></JB_name><!--")
    assert set(listed(driver(), CommandResult(0, bad, ""))) == {"j6", "j9", "j10", "j11", "j12", "j13"}


def test_what_the_words_for_a_job_mean() -> None:
    jobs = listed(driver(), QSTAT)
    states = {name: (job.state, job.node, job.restarts) for name, job in jobs.items()}
    assert states == {
        "j6": (S.HELD, "", 0),
        "j9": (S.ENDING, "sge-a-n2", 0),
        "j10": (S.RUNNING, "sge-a-n1", 0),
        "j11": (S.PENDING, "", 0),
        "j12": (S.HELD, "", 0),
        "j13": (S.PENDING, "", 1),
    }
    assert f"qrls {jobs['j12'].id}" in jobs["j12"].reason


def test_the_tasks_of_an_array_are_jobs_of_their_own() -> None:
    made = driver()
    listed(made, ARRAY, EMPTY, ARRAY_ERRORS)
    jobs = listed(made, ARRAY, EMPTY, ARRAY_ENDS)
    assert {name: (job.id, job.state) for name, job in jobs.items()} == {
        "j21": ("1.1", S.ENDED),
        "j22": ("1.2", S.HELD),
        "j23": ("1.3", S.ENDED),
        "j24": ("1.4", S.RUNNING),
        "j25": ("1.5", S.RUNNING),
        "j26": ("1.6", S.HELD),
        **{f"j{20 + at}": (f"1.{at}", S.PENDING) for at in range(8, 14)},
    }
    assert "qmod -cj 1.2" in jobs["j22"].reason and "exit_status of job start = 100" in jobs["j22"].reason
    assert "qrls 1.6" in jobs["j26"].reason
    assert (jobs["j21"].code, jobs["j23"].code) == (78, 140)


def test_an_array_with_no_word_of_the_task_is_nobodys_job() -> None:
    assert listed(driver(), CommandResult(0, re.sub("<tasks>.*</tasks>", "", ARRAY.stdout), "")) == {}


@given(st.text())
def test_a_state_that_nobody_told_us_of_is_unknown(letters: str) -> None:
    assert LETTERS.issuperset(letters) or state_of(letters) is S.UNKNOWN


@pytest.mark.parametrize(
    ("letters", "state"),
    [
        *((letters, S.PENDING) for letters in ("qw", "Rq", "w")),
        *((letters, S.HELD) for letters in ("hqw", "hRwq", "Eqw", "Ehqw", "EhRqw")),
        *((letters, S.RUNNING) for letters in ("r", "hr", "t", "Rr", "Rt", "s", "ts", "S", "tS", "T", "RS", "RtT")),
        *((letters, S.ENDING) for letters in ("dr", "dt", "dRr", "ds", "dT", "dRS")),
        ("z", S.UNKNOWN),  # a zombie: ended, or deleted by force
        ("", S.UNKNOWN),
    ],
)
def test_every_combination_that_the_manual_lists_has_a_meaning(letters: str, state: BatchState) -> None:
    assert state_of(letters) is state


def test_a_job_whose_node_is_silent_is_lost_though_it_is_being_deleted() -> None:
    lost = listed(driver(), QSTAT, LOST)["j9"]
    assert (lost.state, lost.node) == (S.NODE_LOST, "sge-a-n2") and "sge-a-n2 does not answer" in lost.reason


def test_a_job_in_error_says_why_and_what_to_do() -> None:
    made = driver()
    first = listed(made, QSTAT)["j6"]
    assert f"qmod -cj {first.id}" in first.reason
    listed(made, QSTAT, ERRORS)
    assert "can't chdir to /nonexistent" in listed(made, QSTAT)["j6"].reason


def test_the_accounts_say_how_a_run_ended_if_the_node_said_so() -> None:
    ends = {name: (job.state, job.code) for name, job in listed(driver(), EMPTY, QACCT).items()}
    assert ends == {
        "j1": (S.ENDED, 78),
        "j2": (S.ENDED, 5),
        "j3": (S.ENDED, 137),
        "j4": (S.ENDED, 137),
        "j7": (S.NODE_LOST, None),  # it ran on
        "j8": (S.NODE_LOST, None),  # recorded as a success, and ran on
    }


def test_an_end_says_why_where_grid_engine_does() -> None:
    jobs = listed(driver(), EMPTY, QACCT)
    assert "h_rt" in jobs["j4"].reason and jobs["j4"].node.startswith("sge-a-n") and not jobs["j1"].reason
    assert "sge-a-n2 has not confirmed" in jobs["j8"].reason


def test_runs_before_the_last_are_counted() -> None:
    text = QACCT.stdout + QACCT.stdout.split("=\nqname")[1].join(["=\nqname", ""])
    over = text.replace("j1-1", "j5-1").replace("jobnumber    1 ", "jobnumber    5 ")
    again = listed(driver(), EMPTY, CommandResult(0, over, ""))["j5"]
    assert (again.state, again.code, again.restarts) == (S.ENDED, 78, 3)


def test_of_a_doubled_submission_the_one_that_nobody_saw_end_counts() -> None:
    for doubled in ("j1-1", "j8-1"):  # one ended, the other is lost: whichever comes last
        text = QACCT.stdout.replace("j1-1", "jX-1").replace("j8-1", "jX-1")
        blocks = text.split("=" * 62 + "\n")
        order = blocks if doubled == "j8-1" else [blocks[0], *reversed(blocks[1:])]
        jobs = listed(driver(), EMPTY, CommandResult(0, ("=" * 62 + "\n").join(order), ""))
        assert jobs["jX"].state is S.NODE_LOST


def test_what_is_listed_lives_whatever_the_accounts_say_of_earlier_runs() -> None:
    made = driver()
    for _ in range(2):
        jobs = listed(made, QSTAT, LOST, QACCT)
        assert jobs["j6"].state is S.HELD and jobs["j13"].state is S.PENDING


def test_ends_are_told_again_as_long_as_we_live() -> None:
    made = driver()
    assert listed(made, EMPTY, QACCT) == listed(made, EMPTY)


def test_accounts_that_were_cut_off_anywhere_tell_nothing_wrong() -> None:
    whole = listed(driver(), EMPTY, QACCT)
    for cut in range(0, len(QACCT.stdout), 97):
        for piece in (QACCT.stdout[cut:], QACCT.stdout[:cut]):
            jobs = listed(driver(), EMPTY, CommandResult(0, piece, ""))
            assert all(job.state is whole[name].state and job.code == whole[name].code for name, job in jobs.items())


@given(st.text())
def test_garbage_is_no_listing_and_no_end(text: str) -> None:
    assert driver().listing([CommandResult(0, text, "")], 5.0)[0] is None
    assert listed(driver(), EMPTY, CommandResult(0, text, "")) == {}


@pytest.mark.parametrize("cut", range(0, len(QSTAT.stdout.rstrip()), 311))
def test_a_listing_that_was_cut_off_is_none(cut: int) -> None:
    assert driver().listing([CommandResult(0, QSTAT.stdout[:cut], "")], 5.0)[0] is None


@pytest.mark.parametrize(
    ("code", "stdout", "stderr"),
    [
        (1, "", "error: commlib error: got select error (Connection refused)\nerror: unable to send message to q"),
        (None, QSTAT.stdout, ""),  # killed
        (1, QSTAT.stdout, ""),
        (127, "", "sh: 1: exec: qstat: not found\n"),
    ],
)  # fmt: skip
def test_a_listing_that_failed_is_no_listing_not_an_empty_one(code: int | None, stdout: str, stderr: str) -> None:
    listing, problem = driver().listing([CommandResult(code, stdout, stderr)], 5.0)
    assert listing is None and problem.startswith("qstat")


def test_an_empty_listing_is_one() -> None:
    assert driver().listing([EMPTY], 5.0)[0] == Listing(5.0, {})


def test_answers_beside_the_listing_may_fail() -> None:
    """Where accounts cannot be read or an old version lacks an option, what is gone is absent, and that is all."""
    fails = CommandResult(1, "", "error: no such file or directory\n")
    assert listed(driver(), QSTAT, fails, fails, fails).keys() == listed(driver(), QSTAT).keys()


@pytest.mark.parametrize("key", USAGE)
def test_any_usage_at_all_confirms_an_end(key: str) -> None:
    forced = re.sub(rf"^({key} +)\S+", r"\g<1>3", QACCT.stdout, flags=re.MULTILINE)
    assert listed(driver(), EMPTY, CommandResult(0, forced, ""))["j8"].state is S.ENDED


QHOST, QUEUES, VERSION = (
    captured("qhost.txt"),
    captured("qconf-sq.txt"),
    CommandResult(0, "SGE 8.1.9\nusage: qstat\n", ""),
)


@pytest.mark.parametrize(
    ("options", "h_rt", "walltime", "cpus"),
    [
        ({}, "24:00:00", 86400, 1),  # more than one CPU needs a parallel environment
        ({"pe": "smp"}, "24:00:00", 86400, 2),
        ({"pe": "smp"}, "INFINITY", None, 2),
        ({"pe": "smp"}, "01:00:00,[n1=02:00:00],[@big=00:30:00]", 7200, 2),
        ({"pe": "smp"}, "01:00:00,[@big=INFINITY]", None, 2),
        ({"pe": "smp"}, "01:00:00,[n1=02:00:00], \\\n                      [@big=03:00:00]", 10800, 2),
    ],
)  # fmt: skip
def test_the_limits_are_those_of_hosts_and_queues(
    options: dict[str, str], h_rt: str, walltime: int | None, cpus: int
) -> None:
    queues = CommandResult(0, QUEUES.stdout.replace("24:00:00", h_rt), "")
    limits = driver(**options).limits([VERSION, QHOST, queues])
    assert (limits.version, limits.max_walltime, limits.max_cpus) == ("SGE 8.1.9", walltime, cpus)
    assert limits.max_memory is not None and 22 << 30 < limits.max_memory < 24 << 30
    assert not limits.problem


def test_limits_that_a_site_does_not_show_are_not_known_and_that_is_no_problem() -> None:
    limits = driver().limits([VERSION, CommandResult(0, "what?\n", ""), CommandResult(1, "", "denied\n")])
    assert (limits.max_walltime, limits.max_memory, limits.problem) == (None, None, "")


def test_a_queue_that_does_not_exist_is_a_problem_with_its_mend() -> None:
    words = 'No cluster queue or queue instance matches the phrase "nonesuch"\n'
    for result in (CommandResult(1, "", words), CommandResult(1, words, "")):
        assert "option `queue`" in driver(queue="nonesuch").limits([VERSION, QHOST, result]).problem


def test_no_grid_engine_at_the_site_is_a_problem_with_its_mend() -> None:
    missing = CommandResult(127, "", "start qstat: No such file or directory")
    assert "PATH" in driver().limits([missing, missing, missing]).problem
    unset = CommandResult(1, "", 'error: SGE_ROOT directory "" doesn\'t exist\n')
    assert "settings.sh" in driver().limits([VERSION, unset, unset]).problem


@given(st.integers(0, 999), st.integers(0, 59), st.integers(0, 59))
def test_grid_engines_times_are_read(hours: int, mins: int, secs: int) -> None:
    total = (hours * 60 + mins) * 60 + secs
    assert seconds(f"{hours:02}:{mins:02}:{secs:02}") == seconds(str(total)) == total
