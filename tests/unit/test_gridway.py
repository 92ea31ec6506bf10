"""GridWay's job templates, as its users have them, become jobs that do in a guest what they did on GridWay's hosts."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gridhypervisor.model.arrays import Values, parse_array, task, task_values
from gridhypervisor.model.gridway import KEYWORDS, parse
from gridhypervisor.model.gridwayjob import Converted, Extras, to_job
from gridhypervisor.model.spec import InputSpec, JobSpec, ResourcesSpec, RetrySpec, problems
from gridhypervisor.model.yamlspec import Problem, SpecError

WHOLE = """\
# every keyword that GridWay knows
NAME = sweep
EXECUTABLE = bin.${ARCH}          # staged from the template's folder
ARGUMENTS = "${TASK_ID} ${TOTAL_TASKS} fast"
ENVIRONMENT = MODE=quick, TITLE = "two words, and a comma" ,N=3
TYPE = mpi
NP = 4
INPUT_FILES = param.${TASK_ID} param, \\
    file:///data/common%20file.dat common, https://archive.example.org/cal.tar
OUTPUT_FILES = result result.${TASK_ID}, log, table file:///home/u/table
RESTART_FILES = state, state.2
STDIN_FILE = In/in.${JOB_ID}
STDOUT_FILE = Out/out.${JOB_ID}
STDERR_FILE = /tmp/err.${JOB_ID}
CHECKPOINT_INTERVAL = 300
CHECKPOINT_URL = https://keep.example.org/here
REQUIREMENTS = ARCH = "x86_64" & HOSTNAME = "*.es";   # only there
RANK = (CPU_MHZ * 2) + FREE_MEM_MB;
RESCHEDULING_INTERVAL = 600
RESCHEDULING_THRESHOLD = 120
SUSPENSION_TIMEOUT = 900
CPULOAD_THRESHOLD = 50
MONITOR = watch.sh
RESCHEDULE_ON_FAILURE = Yes
NUMBER_OF_RETRIES = 5
WRAPPER =
PRE_WRAPPER = prepare.sh
PRE_WRAPPER_ARGUMENTS = --all
DEADLINE = 1:2:30
JOB_DEPENDENCIES = 12 13
"""


def convert(text: str, file: str = "pi.jt") -> Converted:
    return to_job(parse(file, text), "tiny")


def wrong(text: str) -> list[str]:
    with pytest.raises(SpecError) as caught:
        convert(text)
    return list(map(str, caught.value.problems))


def test_a_substitution_may_have_its_older_name_or_be_the_templates_own() -> None:
    text = (
        "EXECUTABLE = /bin/true\nINPUT_FILES = in.${GW_TASK_ID} ${KIND}.${TASK_ID}, ${OTHER}\nENVIRONMENT = KIND=fit\n"
    )
    assert convert(text).spec.inputs == (
        InputSpec("in.${TASK_ID}", name="fit.${TASK_ID}"),
        InputSpec("${OTHER}", name="${OTHER}"),
    )


def test_every_keyword_acts() -> None:
    assert all(f"\n{keyword} =" in WHOLE for keyword in KEYWORDS)
    made = convert(WHOLE)
    assert problems(made.spec) == []
    assert made.spec.name == "sweep"
    assert set(made.spec.inputs) == {
        InputSpec("param.${TASK_ID}", name="param"),
        InputSpec("/data/common file.dat", name="common"),
        InputSpec(url="https://archive.example.org/cal.tar", name="cal.tar"),
        InputSpec("bin.${ARCH}", name="bin.${ARCH}"),
        InputSpec("In/in.${JOB_ID}", name="stdin.execution"),
        InputSpec("prepare.sh", name="prepare.sh"),
        InputSpec("watch.sh", name="watch.sh"),
    }
    assert made.spec.outputs == ("result", "log", "table")
    assert made.spec.retry == RetrySpec(5, True)
    assert made.spec.environment["TITLE"] == "two words, and a comma"
    assert made.spec.environment["GW_TASK_ID"] == "${TASK_ID}"
    assert made.spec.environment["GW_CPULOAD_THRESHOLD"] == "50"
    assert made.extras == Extras(
        requirements='ARCH = "x86_64" & HOSTNAME = "*.es"',
        rank="(CPU_MHZ * 2) + FREE_MEM_MB",
        after=("j12", "j13"),
        deadline=(24 + 2) * 3600 + 30 * 60,
        gang=4,
        mpi=True,
        rescheduling_interval=600,
        rescheduling_threshold=120,
        suspension_timeout=900,
        cpuload_threshold=50,
        restart_files=("state", "state.2"),
        checkpoint_interval=300,
        checkpoint_url="https://keep.example.org/here",
        stdout="Out/out.${JOB_ID}",
        stderr="/tmp/err.${JOB_ID}",
        destinations=(("result", "result.${TASK_ID}"), ("table", "/home/u/table")),
    )


def test_a_small_template_is_a_plain_command_of_the_guest() -> None:
    made = convert("EXECUTABLE = /bin/echo\nARGUMENTS = task ${TASK_ID} of ${TOTAL_TASKS}\n")
    assert made.warnings == ()
    assert made.spec.command == ("/bin/echo", "task", "${TASK_ID}", "of", "${TOTAL_TASKS}")
    assert made.spec.name == "pi" and made.spec.inputs == () and made.spec.retry == RetrySpec()
    assert made.extras == Extras()
    values = task_values(parse_array("0-99"), 7, array_id="j1", job_id="j9", arch="x86_64")
    first = task(made.spec, values)
    assert first.command[1:] == ("task", "7", "of", "100")
    assert first.environment["GW_JOB_ID"] == "j9" and first.environment["GW_PARAM"] == "7"


@pytest.mark.parametrize(
    ("kind", "cpus", "gang", "mpi"), [("single", 4, 1, False), ("multiple", 1, 4, False), ("mpi", 1, 4, True)]
)
def test_processors_are_one_machines_or_a_gangs(kind: str, cpus: int, gang: int, mpi: bool) -> None:
    made = convert(f'EXECUTABLE = /bin/true\nTYPE = "{kind}"\nNP = 4\n')
    assert (made.spec.resources.cpus, made.extras.gang, made.extras.mpi) == (cpus, gang, mpi)


def test_what_templates_cannot_say_is_given_beside_them() -> None:
    resources = ResourcesSpec(memory="4Gi", walltime="2h")
    made = to_job(parse("x.jt", "EXECUTABLE=/bin/true\nNP=2"), "xmm:2", resources)
    assert made.spec.image == "xmm:2"
    assert made.spec.resources == ResourcesSpec(cpus=2, memory="4Gi", walltime="2h")


@pytest.mark.parametrize(
    ("value", "seconds"), [("0", None), ("45", 2700), ("12:00", 43200), ("2:0:0", 172800), ('"1:30"', 5400)]
)
def test_deadlines_are_days_hours_and_minutes(value: str, seconds: int | None) -> None:
    assert convert(f"EXECUTABLE=/bin/true\nDEADLINE = {value}\n").extras.deadline == seconds


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("EXECUTABEL = x", "EXECUTABEL: there is no such keyword; did you mean EXECUTABLE?"),
        ("Rank = 1", "keywords are in capitals: RANK"),
        ("just words", "just words is not a setting; write KEYWORD = value"),
        ("NP = many", "NP: many is not a whole number; write for instance 300"),
        ("NP = 0", "0 processors cannot be had; write a number from 1 to 1024"),
        ("TYPE = parallel", "parallel is no type of job; write single, multiple or mpi"),
        ("RESCHEDULE_ON_FAILURE = perhaps", "write yes or no"),
        ("DEADLINE = soon", "soon is not a time; write [[days:]hours:]minutes"),
        ("DEADLINE = 1:2:3:4", "is not a time"),
        ("INPUT_FILES = a b c", "a b c is more than two names"),
        ("RESTART_FILES = a b", "a has a destination"),
        ("ENVIRONMENT = SCRATCH /tmp", "SCRATCH /tmp is not understood; write NAME=value"),
        ("JOB_DEPENDENCIES = first", "first is not the id of a job"),
        ('ARGUMENTS = "one', "a quote is not closed"),
        ("INPUT_FILES = gsiftp://h/x", "gsiftp://h/x cannot be had: gsiftp is not spoken here; put a copy"),
        ("INPUT_FILES = a x, b x", "two files would be called x there"),
        ("INPUT_FILES = a ../x", "../x cannot be a file's name there"),
        ("OUTPUT_FILES = /etc/passwd", "/etc/passwd is not in the job's folder"),
        ("NUMBER_OF_RETRIES = 101", "101 is too often"),
    ],
)
def test_what_is_wrong_is_said_with_its_line_and_what_is_right(line: str, said: str) -> None:
    found = wrong(f"# a template\nEXECUTABLE = /bin/true\n{line}\n")
    assert len(found) == 1 and found[0].startswith("pi.jt:3: ") and said in found[0]


def test_all_that_is_wrong_is_said_at_once() -> None:
    assert len(wrong("NP = x\nEXECUTABLE = /bin/true\nDEADLINE = y\n")) == 2
    assert wrong("NP = 1\n") == ["pi.jt: EXECUTABLE: is missing; name the program to run"]
    assert wrong("EXECUTABLE = run me\n")[0].startswith("pi.jt:1: EXECUTABLE: run me is not one file")


def test_what_cannot_apply_is_named_in_a_warning() -> None:
    made = convert(
        "EXECUTABLE = /bin/true\nRANK = 1\nRANK = 2\nINPUT_FILES = /etc/hosts names\n"
        "OUTPUT_FILES = out gsiftp://h/out\nCHECKPOINT_URL = gsiftp://h/keep\nRESTART_FILES = gsiftp://h/a, b\n"
        "STDOUT_FILE = gsiftp://h/o\nNAME = a b\nMONITOR = /bin/mon\nPRE_WRAPPER_ARGUMENTS = x\n"
    )
    said = [str(warning).removeprefix("pi.jt:").partition("; ")[0] for warning in made.warnings]
    assert sorted(said, key=lambda words: int(words.split(":")[0])) == [
        "3: RANK: replaces what line 2 says",
        "4: INPUT_FILES: /etc/hosts is the guest's own file",
        "5: OUTPUT_FILES: gsiftp://h/out cannot be written to",
        "7: RESTART_FILES: gsiftp://h/a is not kept",
        "8: STDOUT_FILE: gsiftp://h/o cannot be written to",
        "9: NAME: a b cannot be a job's name",
        "10: MONITOR: runs in the guest, beside the program",
        "11: PRE_WRAPPER_ARGUMENTS: there is no PRE_WRAPPER",
    ]
    assert made.spec.name == "a-b" and made.extras.rank == "2" and made.extras.restart_files == ("b",)
    assert made.extras.checkpoint_url == "gsiftp://h/keep"
    assert made.spec.outputs == ("out",) and made.extras.destinations == () and made.extras.stdout == ""


def run(text: str, here: Path, **files: str) -> str:
    """What the template's job prints: its inputs copied to a folder of its own, as a guest has them, and run there."""
    source, there = here / "template", here / "guest"
    source.mkdir()
    there.mkdir()
    for name, content in files.items():
        (source / name.replace("_", ".")).write_text(content)
    spec: JobSpec = task(convert(text).spec, Values("j9", task_id=4, total_tasks=8, arch="x86_64"))
    for item in spec.inputs:
        assert isinstance(item, InputSpec)
        shutil.copyfile(source / item.path, there / item.name)
    environment = {"PATH": os.environ["PATH"], "HOME": "/home/guest", **spec.environment}
    ended = subprocess.run(spec.command, cwd=there, env=environment, capture_output=True, text=True, timeout=300)
    return f"{ended.stdout.strip()}|{ended.returncode}"


ECHO = '#!/bin/sh\nfor word; do printf "<%s>" "$word"; done\nexit 3\n'


@pytest.mark.parametrize(
    ("arguments", "printed"),
    [
        ("${TASK_ID} of   ${TOTAL_TASKS}", "<4><of><8>"),
        ('"one two"', "<one><two>"),
        ("$HOME/${X}", "</home/guest/value>"),
        ("`echo a b` x", "<a><b><x>"),
        ('"`echo a`" + "`echo b`"', "<a><+><b>"),  # one of GridWay's own examples has such
        ("it's >file; & | (all) words", "<it's><>file;><&><|><(all)><words>"),
        ("run.s?", "<run.sh>"),
        ("", ""),
    ],
)
def test_arguments_are_divided_and_expanded_as_gridways_wrapper_does(
    arguments: str, printed: str, tmp_path: Path
) -> None:
    template = f"EXECUTABLE = run.sh\nARGUMENTS = {arguments}\nENVIRONMENT = X=value\n"
    assert run(template, tmp_path, run_sh=ECHO) == f"{printed}|3"


def test_the_shell_of_the_guest_works_out_the_environment(tmp_path: Path) -> None:
    template = 'EXECUTABLE = run.sh\nENVIRONMENT = NEXT = "`expr ${TASK_ID} + 1`", PLAIN="a b"\n'
    script = "#!/bin/sh\necho $NEXT $PLAIN $GW_JOB_ID $GW_ARCH $GW_EXECUTABLE"
    assert run(template, tmp_path, run_sh=script) == "5 a b j9 x86_64 ./run.sh|0"


def test_standard_input_pre_wrapper_and_monitor_run_with_the_program(tmp_path: Path) -> None:
    template = (
        "EXECUTABLE = run.sh\nSTDIN_FILE = words.txt\nPRE_WRAPPER = pre.sh\nPRE_WRAPPER_ARGUMENTS = now\n"
        "MONITOR = mon.sh\n"
    )
    program = "#!/bin/sh\ncat made\ncat\nwhile [ ! -e seen ]; do :; done\nexit 5\n"
    monitor = "#!/bin/sh\nkill -0 $1 && : > seen\necho looking\nexec sleep 600\n"
    printed = run(
        template,
        tmp_path,
        run_sh=program,
        words_txt="from stdin\n",
        pre_sh="#!/bin/sh\necho $1 > made\n",
        mon_sh=monitor,
    )
    assert printed == "now\nfrom stdin|5"


def test_a_pre_wrapper_that_fails_ends_the_job(tmp_path: Path) -> None:
    template = "EXECUTABLE = run.sh\nPRE_WRAPPER = pre.sh\n"
    assert run(template, tmp_path, run_sh=ECHO, pre_sh="#!/bin/sh\nexit 9\n") == "|9"


def test_a_wrapper_runs_in_place_of_the_program_and_is_told_of_it(tmp_path: Path) -> None:
    template = "EXECUTABLE = run.sh\nARGUMENTS = a b\nWRAPPER = wrap.sh\nINPUT_FILES = data.txt d\n"
    wrapper = "#!/bin/sh\necho $GW_INPUT_FILES\n$GW_EXECUTABLE $GW_ARGUMENTS\n"
    assert run(template, tmp_path, run_sh=ECHO, wrap_sh=wrapper, data_txt="") == "data.txt d\n<a><b>|3"


WORD = st.text(alphabet="abcXYZ019._-/${}", min_size=1, max_size=12).filter(lambda word: not word.startswith("#"))


@given(
    st.lists(st.tuples(WORD, WORD | st.just("")), max_size=4).map(tuple),
    st.dictionaries(st.from_regex(r"[A-Z_][A-Z0-9_]{0,5}", fullmatch=True), st.text("ab ,=#'", max_size=8), max_size=3),
    st.text("ab #='$`\\*", max_size=20).map(str.strip),
    st.booleans(),
)
def test_a_template_reads_back_as_it_was_written(
    files: tuple[tuple[str, str], ...], environment: dict[str, str], arguments: str, many_lines: bool
) -> None:
    joint = ", \\\n  " if many_lines else ","
    lines = [
        "EXECUTABLE=/bin/true # so",
        "INPUT_FILES = " + joint.join(f"{a} {b}" for a, b in files),
        "ENVIRONMENT = " + ", ".join(f'{name} = "{value}"' for name, value in environment.items()),
        f'ARGUMENTS = "{arguments}"  # and so on',
    ]
    read = parse("t.jt", "\n".join(lines))
    assert (read.input_files, read.environment, read.arguments) == (files, environment, arguments)
    assert read.warnings == ()


def test_the_page_on_profiles_tells_of_every_keyword() -> None:
    page = (Path(__file__).parents[2] / "docs" / "profiles.md").read_text()
    assert set(KEYWORDS) <= set(page.partition("## GridWay")[2].replace("`", " ").replace(",", " ").split())


SCRAPS = (
    " ",
    "\n",
    "\\\n",
    '"',
    "#",
    ",",
    ":",
    "/",
    "=",
    "gsiftp:/",
    "file:/",
    "..",
    "a",
    "9",
    "yes",
    "j1",
    "${",
    "}",
    "$",
)
SCRAP = st.lists(st.sampled_from(SCRAPS), max_size=8).map("".join)


@settings(max_examples=300)
@given(st.lists(st.tuples(st.sampled_from((*KEYWORDS, "", "X")), SCRAP), max_size=5))
def test_whatever_a_file_holds_it_is_a_job_or_an_error_with_words(lines: list[tuple[str, str]]) -> None:
    text = "EXECUTABLE = a\n" + "\n".join(f"{keyword} = {scrap}" for keyword, scrap in lines)
    try:
        made = to_job(parse("t.jt", text), "tiny")
    except SpecError as error:
        assert_words(error.problems)
    else:
        assert problems(made.spec) == []
        assert_words(made.warnings)


def assert_words(found: Sequence[Problem]) -> None:
    assert all(problem.problem and problem.allowed and problem.line for problem in found), found
