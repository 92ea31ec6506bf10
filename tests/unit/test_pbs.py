"""Torque's dialect of PBS: what we say to it, and what its answers mean.

The answers are in the form that Torque 4 to 6 give them, attributes that mean nothing to us included; those of Slurm's
wrappers are their own. The script that picks our jobs out runs here, with a qstat that says what the test wants.
"""

from __future__ import annotations

import getpass
import os
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gridhypervisor.model.batch import BatchJob, BatchState, Submission
from gridhypervisor.model.errors import LinkError
from gridhypervisor.model.records import Site, SiteKind
from gridhypervisor.model.wire import Command, CommandResult
from gridhypervisor.sites.pbs import GIVEN_UP, STATES, PbsDriver

OURS = "a1b2c3d4e"
NAME = f"{OURS}-j1-1"
S = BatchState

COMPLETED = """\
<Job><Job_Id>4564045.pbsserver</Job_Id><Job_Name>{name}</Job_Name><Job_Owner>{owner}@login.example.org</Job_Owner>\
<resources_used><cput>00:00:00</cput><mem>6064kb</mem><vmem>454232kb</vmem><walltime>00:00:06</walltime>\
</resources_used><job_state>C</job_state><queue>batch</queue><server>pbsserver</server><Checkpoint>u</Checkpoint>\
<ctime>1522939158</ctime><Error_Path>login.example.org:/home/ada/x.e4564045</Error_Path>\
<exec_host>node7/0+node7/1</exec_host><exec_port>15003+15003</exec_port><Hold_Types>n</Hold_Types>\
<Join_Path>oe</Join_Path><Keep_Files>n</Keep_Files><Mail_Points>n</Mail_Points><mtime>1522939194</mtime>\
<Output_Path>login.example.org:/dev/null</Output_Path><Priority>0</Priority><qtime>1522939158</qtime>\
<Rerunable>False</Rerunable><Resource_List><mem>896mb</mem><nodect>1</nodect><nodes>1:ppn=2</nodes>\
<walltime>00:30:00</walltime></Resource_List><session_id>14506</session_id>\
<Variable_List>PBS_O_QUEUE=batch,PBS_O_HOME=/home/ada,PBS_O_HOST=login.example.org</Variable_List>\
<etime>1522939182</etime><exit_status>{status}</exit_status><start_time>1522939183</start_time>\
<start_count>{starts}</start_count><fault_tolerant>False</fault_tolerant><comp_time>1522939194</comp_time>\
<total_runtime>10.431524</total_runtime><submit_host>login.example.org</submit_host></Job>"""

QUEUES = """\

server: pbsserver

Queue            Memory CPU Time Walltime Node  Run   Que   Lm  State
---------------- ------ -------- -------- ----  ----  ----  --  -----
batch              --      --    24:00:00   --    12     3 --   E R
long               --   168:00:0 120:00:0   --     0     0 10   E S
verylongqueuenam   --      --       --      --     0     0 --   E R
closed             --      --       --      --     0     0 --   D R
                                               ----  ----
                                                 12     3
"""

WRAPPERS_QUEUES = """\
Queue            Memory CPU Time Walltime Node  Run Que Lm State
---------------- ------ -------- -------- ----  --- --- -- -----
batch              --      --    24:00:00  --    0   0 --  E R 
short              --      --    00:05:00  --    0   0 --  E R 
                                               ----- -----
                                                   0     0
"""  # noqa: W291

NODES = """\
node7
     state = free
     power_state = Running
     np = 4
     properties = fast
     ntype = cluster
     status = rectime=1405958542,varattr=,jobs=,state=free,netload=2610510775,gres=,loadave=0.04,ncpus=4,\
physmem=6122160kb,availmem=15972972kb,totmem=16122160kb,idletime=205107266,nusers=0,nsessions=0,opsys=linux
     mom_service_port = 15002
     mom_manager_port = 15003

node8
     state = down
     np = 16
     ntype = cluster
     mom_service_port = 15002
     mom_manager_port = 15003

"""

WRAPPERS_NODES = """\
pbs-x-n1
    state = free
    np = 2
    ntype = cluster
    status = rectime=1795371785,state=free,slurmstate=idle,size=0kb:0kb,ncpus=2,availmem=4000mb,arch=x86_64

"""

VERSION = CommandResult(0, "", "Version: 6.1.3\nCommit: d50fec2\n")


def site(**options: str) -> Site:
    return Site("pbs", "o", "p", SiteKind.PBS, options=options, environment={"PBS_DEFAULT": "pbsserver"})


def driver(**options: str) -> PbsDriver:
    return PbsDriver(site(**options), "/w", "d")


def job(cpus: int = 1, entry: str = "/w/spool/x") -> Submission:
    return Submission(NAME, entry, "/w/bundle/d/start", "", cpus, 512 << 20, 1800)


def words(command: Command) -> str:
    return " ".join(command.argv)


def record(**values: str) -> str:
    """A short record of a job of ours, with these elements in the order given."""
    found = {"Job_Id": "17.pbsserver", "Job_Name": NAME, "Job_Owner": "ada@login", **values}
    return "<Job>" + "".join(f"<{key}>{value}</{key}>" for key, value in found.items()) + "</Job>"


def told(*records: str) -> CommandResult:
    return CommandResult(0, "\n".join(records) + f"\n{len(records)} jobs </Data>\nqstat: 0\n", "")


def listed(made: PbsDriver, result: CommandResult) -> dict[str, BatchJob]:
    listing, problem = made.listing([result], 5.0)
    assert listing is not None, problem
    return listing.jobs


def one(text: str) -> BatchJob:
    [found] = listed(driver(), told(text)).values()
    return found


# What we say


def test_a_submission_asks_for_one_nodes_processors_its_walltime_and_memory_and_runs_once_only() -> None:
    [command] = driver().submit([job(cpus=4)], site())
    assert command.argv[:3] == ("qsub", "-N", NAME) and command.environment == {"PBS_DEFAULT": "pbsserver"}
    for option in ("-l nodes=1:ppn=4,walltime=1800,mem=896mb", "-r n", "-S /bin/sh", "-j oe", "-o /dev/null"):
        assert f" {option} " in words(command) + " "
    assert command.stdin.startswith("#!/bin/sh\nexec >>/w/spool/x/batch.log 2>&1\n")


def test_a_submission_carries_the_users_options_verbatim() -> None:
    made = driver(queue="long@pbs2", account="p7", constraint="fast:ib", native="-W 'group_list=x y' -p 5")
    [command] = made.submit([job()], site())
    assert command.argv[-4:] == ("-W", "group_list=x y", "-p", "5")
    for option in ("-q long@pbs2", "-A p7", "-l nodes=1:ppn=1:fast:ib,walltime=1800,mem=896mb"):
        assert f" {option} " in words(command)


@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1))
def test_whatever_the_entry_is_called_it_stands_in_the_script_alone(name: str) -> None:
    [command] = driver().submit([job(entry=f"/{name}!")], site())
    assert not any(f"/{name}!" in word for word in command.argv)


def test_options_that_would_be_ignored_are_refused_with_those_that_exist() -> None:
    with pytest.raises(LinkError, match=r"options\.partition") as refusal:
        driver(partition="x")
    assert "queue" in refusal.value.hint
    with pytest.raises(LinkError, match="native"):
        driver(native="'open")


def test_a_cancellation_reaches_what_lives_under_the_name_a_doubled_submission_too() -> None:
    made = driver()
    assert made.cancel([]) == made.cancel([(NAME, "")]) == []
    assert [words(command) for command in made.cancel([(NAME, "9.pbs"), ("other", "")])] == ["qdel 9.pbs"]
    over = record(Job_Id="8.pbs", job_state="C", exit_status="0")
    listed(made, told(over, *(record(Job_Id=number, job_state="Q") for number in ("12.pbs", "9.pbs"))))
    assert [words(command) for command in made.cancel([(NAME, "9.pbs")])] == ["qdel 12.pbs 9.pbs"]


# How our jobs are picked out, at the site


def picked(folder: Path, output: str, code: int = 0) -> CommandResult:
    """What the query tells of a site whose qstat prints this."""
    (folder / "answer").write_text(output)
    (folder / "qstat").write_text(f'#!/bin/sh\n[ "$*" = "-f -x" ] && cat {folder}/answer\nexit {code}\n')
    (folder / "qstat").chmod(0o755)
    [command] = driver().query(OURS)
    argv = ["busybox" if word == "/w/bundle/d/busybox" else word for word in command.argv]
    environment = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"}
    done = subprocess.run(argv, capture_output=True, text=True, check=False, env=environment)
    return CommandResult(done.returncode, done.stdout, done.stderr)


def document(*records: str) -> str:
    return '<?xml version="1.0"?>\n<Data>' + "".join(records) + "</Data>\n"


def full(name: str = NAME, owner: str = "", status: str = "0") -> str:
    return COMPLETED.format(name=name, owner=owner or getpass.getuser(), status=status, starts=1)


def test_of_all_jobs_of_a_site_ours_alone_come_home(tmp_path: Path) -> None:
    others = full("their&lt;job&gt;"), full(owner="bob"), full(f"x{NAME}"), full(f"{OURS}x-j1-1")
    result = picked(tmp_path, document(others[0], full(status="78"), *others[1:]))
    assert result.stdout.count("<Job>") == 1
    [found] = listed(driver(), result).values()
    assert found == BatchJob("4564045.pbsserver", NAME, S.ENDED, "", "node7", 78)


@pytest.mark.parametrize("empty", ["", "<Data></Data>\n", document()])
def test_a_site_without_jobs_is_no_failure_in_any_version(tmp_path: Path, empty: str) -> None:
    assert listed(driver(), picked(tmp_path, empty)) == {}


def test_a_site_where_others_alone_have_jobs_has_none_of_ours(tmp_path: Path) -> None:
    assert listed(driver(), picked(tmp_path, document(full(owner="bob"), full(owner="bob")))) == {}


def test_a_server_that_does_not_answer_is_no_empty_listing(tmp_path: Path) -> None:
    listing, problem = driver().listing([picked(tmp_path, "", 171)], 5.0)
    assert listing is None and "exit code 171" in problem
    listing, problem = driver().listing([CommandResult(None, "0 jobs ", "")], 5.0)
    assert listing is None and "no answer in time" in problem


@pytest.mark.parametrize("cut", ["<Data>", "<Data><Job><Job_Id>1", "</Job>", "</Job><Job>", "</Data"])
def test_an_answer_that_qstat_broke_off_is_no_listing(tmp_path: Path, cut: str) -> None:
    whole = document(full(), full(owner="bob")).replace("<Data><Job><Job_Id>4", "<Data><Job><Job_Id>1", 1)
    listing, problem = driver().listing([picked(tmp_path, whole[: whole.rindex(cut) + len(cut)])], 5.0)
    assert listing is None and problem


def test_an_answer_cut_off_on_its_way_is_no_listing_wherever_it_was_cut(tmp_path: Path) -> None:
    whole = picked(tmp_path, document(full(), full(owner="bob"), full())).stdout.rstrip("\n")
    for end in range(len(whole)):
        listing, problem = driver().listing([CommandResult(0, whole[:end], "")], 5.0)
        assert listing is None and problem, whole[:end]


# What its answers mean


@pytest.mark.parametrize(
    ("letter", "state"),
    [("Q", S.PENDING), ("W", S.PENDING), ("T", S.PENDING), ("H", S.HELD), ("R", S.RUNNING), ("S", S.RUNNING),
     ("E", S.ENDING), ("C", S.ENDED)],
)  # fmt: skip
def test_every_state_of_torque_has_a_meaning(letter: str, state: BatchState) -> None:
    assert one(record(job_state=letter)).state is state


@given(st.text(st.characters(exclude_characters="<&\r", exclude_categories=["Cs", "Cc"])))
def test_a_state_that_nobody_told_us_of_is_unknown(letter: str) -> None:
    assert letter in STATES or one(record(job_state=letter)).state is S.UNKNOWN


@pytest.mark.parametrize(
    ("status", "state", "code", "reason"),
    [
        ("0", S.ENDED, 0, ""),
        ("78", S.ENDED, 78, ""),
        ("271", S.ENDED, 143, "signal 15"),
        ("265", S.ENDED, 137, "signal 9"),
        ("-11", S.ENDED, None, "walltime"),
        ("-2", S.ENDED, None, "could not be started"),
        ("-99", S.ENDED, None, "exit_status -99"),
        ("-4", S.NODE_LOST, None, "gave it up"),
    ],
)
def test_how_a_job_ended(status: str, state: BatchState, code: int | None, reason: str) -> None:
    found = one(full(status=status))
    assert (found.state, found.code) == (state, code)
    assert reason in found.reason and bool(reason) == bool(found.reason)


def test_an_end_without_the_nodes_word_for_it_is_a_lost_node_unless_nothing_ever_began() -> None:
    began = one(record(job_state="C", exec_host="node7/0-3"))
    assert began.state is S.NODE_LOST and "node7 has not confirmed" in began.reason
    assert one(record(job_state="C", start_count="1")).state is S.NODE_LOST
    assert one(record(job_state="C")) == BatchJob("17.pbsserver", NAME, S.ENDED, "deleted before it began")
    assert all(one(full(status=str(status))).state is S.NODE_LOST for status in GIVEN_UP)


def test_runs_before_the_last_are_counted() -> None:
    assert one(record(job_state="Q", start_count="2")).restarts == 1
    assert one(record(job_state="R", exec_host="n1/0", start_count="1")).restarts == 0


def test_a_job_that_waits_says_why() -> None:
    why = "Not Running: Not enough of the right type of nodes available"
    assert one(record(job_state="Q", comment=why)).reason == why
    held = one(record(job_state="H", Hold_Types="u"))
    assert "qrls 17.pbsserver" in held.reason


def test_what_a_user_wrote_into_a_record_changes_nothing_of_it() -> None:
    forged = "X=&lt;/Variable_List&gt;&lt;job_state&gt;C&lt;/job_state&gt;"
    assert one(record(job_state="R", Variable_List=forged)).state is S.RUNNING
    assert one(record(job_state="R", Variable_List="x") + "").state is S.RUNNING
    assert one(record(job_state="R").replace("</Job>", "<job_state>C</job_state></Job>")).state is S.RUNNING


def test_of_a_doubled_submission_the_one_that_lives_is_listed() -> None:
    both = record(job_state="C", exit_status="0"), record(Job_Id="18.pbsserver", job_state="R", exec_host="n1/0")
    for records in (both, both[::-1]):
        [found] = listed(driver(), told(*records)).values()
        assert found.id == "18.pbsserver"


@pytest.mark.parametrize(
    ("code", "stdout", "stderr", "accepted"),
    [
        (0, "17.pbsserver\n", "", True),
        (0, "Welcome, 5 nodes are down\n17.pbsserver\n", "qsub: a site's filter says hello\n", True),
        (0, "17\n", "option -S is ignored, specify shell via #!<shell> in the job script\n", True),
        (0, "", "", None),
        (None, "", "", None),
        (-9, "", "", None),
        (171, "", "qsub: cannot connect to server pbsserver (errno=15137) could not connect to trqauthd\n", None),
        (190, "", "qsub: submit error (Pbs Server is currently too busy to service this request. Please retry this "
                  "request.)\n", None),
        (182, "", "qsub: End of File\n", None),
        (1, "There was an error running the Slurm sbatch command.\nThe command was:\n'/usr/bin/sbatch -N1 - 2>&1'\n"
            "and the output was:\n'sbatch: error: Batch job submission failed: Socket timed out on send/recv "
            "operation\n'\n", "option -S is ignored\n", None),
        (170, "", "qsub: submit error (Unknown queue MSG=cannot locate queue)\n", False),
        (188, "", "qsub: submit error (Job exceeds queue resource limits MSG=cannot satisfy queue max walltime "
                  "requirement)\n", False),
        (159, "", "qsub: submit error (Unauthorized Request  MSG=group ACL is not satisfied: user ada)\n", False),
        (127, "", "start qsub: No such file or directory", False),
    ],
)  # fmt: skip
def test_an_answer_is_yes_no_or_unclear(code: int | None, stdout: str, stderr: str, accepted: bool | None) -> None:
    [answer] = driver().submitted([job()], [CommandResult(code, stdout, stderr)]).values()
    assert answer.accepted is accepted
    assert answer.batch_id.removesuffix(".pbsserver") == ("17" if accepted else "")
    assert accepted or answer.message.startswith("qsub: ") and "qsub: qsub" not in answer.message


@pytest.mark.parametrize(
    ("said", "mend"),
    [
        ("Unknown queue MSG=cannot locate queue", "option `queue`"),
        ("Job exceeds queue resource limits MSG=cannot satisfy queue max mem requirement", "less walltime"),
        ("Job exceeds queue resource limits MSG=cannot locate feasible nodes", "option `constraint`"),
        ("Invalid Account MSG=invalid account", "option `account`"),
        ("Bad UID for job execution MSG=ruserok failed validating ada/ada from node7", "login hosts"),
        ("Maximum number of jobs already in queue", "max-jobs"),
        ("something new", "administrators"),
    ],
)
def test_a_refusal_says_what_to_change(said: str, mend: str) -> None:
    [answer] = driver().submitted([job()], [CommandResult(190, "", f"qsub: submit error ({said})\n")]).values()
    assert said in answer.message and mend in answer.message


def test_a_wrapper_that_tells_its_command_first_is_quoted_with_what_came_of_it() -> None:
    said = "There was an error running the Slurm sbatch command.\nThe command was:\n'sbatch " + "-x " * 200
    said += "2>&1'\nand the output was:\n'sbatch: error: invalid partition specified: nonesuch\n'\n"
    [answer] = driver().submitted([job()], [CommandResult(1, said, "option -S is ignored\n")]).values()
    assert "partition specified: nonesuch" in answer.message and "option `queue`" in answer.message


def answered(queues: str = QUEUES, nodes: str = NODES) -> list[CommandResult]:
    return [VERSION, CommandResult(0, queues, ""), CommandResult(0, nodes, "")]


def test_the_limits_are_those_of_the_named_queue_or_of_the_most_patient_one_that_takes_jobs() -> None:
    assert driver(queue="batch@pbsserver").limits(answered()).max_walltime == 86400
    assert driver(queue="verylongqueuename").limits(answered()).max_walltime is None
    assert driver().limits(answered()).max_walltime is None
    patient = "\n".join(line for line in QUEUES.splitlines() if "verylong" not in line)
    limits = driver().limits(answered(patient))
    assert (limits.version, limits.max_walltime, limits.max_cpus) == ("torque 6.1.3", 120 * 3600, 16)
    assert limits.max_memory == (6122160 << 10) - (384 << 20) and not limits.problem


def test_the_limits_that_slurms_wrappers_tell() -> None:
    version = CommandResult(2, "", "Unknown option: version\n")
    answers = [version, CommandResult(153, WRAPPERS_QUEUES, ""), CommandResult(0, WRAPPERS_NODES, "")]
    limits = driver(queue="short").limits(answers)
    assert (limits.max_walltime, limits.max_cpus, limits.problem) == (300, 2, "") and limits.version
    assert limits.max_memory == (4000 << 20) - (384 << 20)


def test_a_site_that_keeps_its_nodes_from_users_has_no_known_size() -> None:
    hidden = [*answered()[:2], CommandResult(1, "", "pbsnodes: Unauthorized Request\n")]
    limits = driver().limits(hidden)
    assert (limits.max_cpus, limits.max_memory, limits.problem) == (None, None, "")


def test_a_site_that_cannot_be_used_says_why() -> None:
    assert "batch, closed, long" in driver(queue="nonesuch").limits(answered()).problem
    assert "takes no jobs" in driver(queue="closed").limits(answered()).problem
    openpbs = [CommandResult(0, "pbs_version = 20.0.1\n", ""), *answered()[1:]]
    assert "OpenPBS 20.0.1" in driver().limits(openpbs).problem
    missing = CommandResult(127, "", "start qstat: No such file or directory")
    assert "PATH" in driver().limits([missing] * 3).problem
    away = CommandResult(111, "", "qstat: cannot connect to server pbsserver (errno=111) Connection refused\n")
    assert "cannot connect" in driver().limits([VERSION, away, away]).problem
