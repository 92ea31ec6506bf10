"""What is submitted as one: what of it is made when, as what, how it is kept, and how it ends. Without any site."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import Connection, event

from gridhypervisor.model.arrays import parse_array
from gridhypervisor.model.commit import Birth, Tally
from gridhypervisor.model.nodejob import node_job, template_job
from gridhypervisor.model.records import Event, Group, Job, JobState, Wish
from gridhypervisor.model.spec import GangSpec, JobSpec, MovesSpec, SweepSpec, problems
from gridhypervisor.model.wire import ImageManifest
from gridhypervisor.model.yamlspec import SpecError
from gridhypervisor.planning.after import Found, what_of
from gridhypervisor.planning.arrays import AHEAD, births, to_make, verdict
from gridhypervisor.store import SqliteStore, open_store

SPEC = JobSpec(
    "xmm", ("sh", "-c", "run ${TASK_ID} of ${TOTAL_TASKS}"), inputs=("in.${PARAM}",), outputs=("out",), array="2-6:2%2",
    param=SweepSpec(10, 5),
)  # fmt: skip
GROUP = Group(
    "a7", "ann", "xmm", "many", "/home/ann/results", "/home/ann", 1.5, SPEC, ImageManifest(()), "b" * 64, version=1
)
BORN = Event(1.5, "ann", "xmm", "", "group", "", "", "pending")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqliteStore]:
    opened = open_store(tmp_path / "store.db")
    yield opened
    opened.close()


def made(group: Group, number: int, count: int = 1) -> list[Birth]:
    assert group.spec is not None
    return births(group, parse_array(group.spec.array), count, number, 2.5)


# -- arrays ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("array", "done", "standing", "now"),
    [
        ("1-10", 0, {}, 10),
        ("1-10%3", 0, {}, 3),
        ("1-10%3", 3, {"running": 2}, 1),
        ("1-10%3", 5, {"running": 2, "epilog": 1}, 0),
        ("1-10%3", 9, {}, 1),
        ("1-5000", 0, {}, AHEAD),
        ("1-5000", 600, {"pending": AHEAD - 7, "running": 500}, 7),
        ("1-10", 10, {}, 0),
    ],
)
def test_so_many_tasks_are_made_now(array: str, done: int, standing: dict[str, int], now: int) -> None:
    counts = Counter({JobState(state): count for state, count in standing.items()})
    assert to_make(parse_array(array), done, counts) == now


def test_each_task_is_a_job_of_its_own() -> None:
    tasks = [birth.job for birth in made(replace(GROUP, made=1), 30, 9)]
    assert [(job.id, job.name, job.member, job.group) for job in tasks] == [
        ("j30", "many[4]", "4", "a7"), ("j31", "many[6]", "6", "a7"),
    ]  # fmt: skip
    assert tasks[0].spec.command[2] == "run 4 of 3"
    assert tasks[0].spec.inputs == ("in.15",)
    assert [job.destination for job in tasks] == ["/home/ann/results/4", "/home/ann/results/6"]


def test_results_that_are_told_apart_by_name_share_a_folder() -> None:
    named = replace(GROUP, spec=JobSpec("xmm", ("true",), outputs=("a.${TASK_ID}", "b.${PARAM}"), array="1-2"))
    assert {birth.job.destination for birth in made(named, 1, 2)} == {"/home/ann/results"}
    placed = replace(GROUP, destination="/home/ann/${ARRAY_ID}/run-${TASK_ID}")
    assert made(placed, 1)[0].job.destination == "/home/ann/a7/run-2"


@pytest.mark.parametrize(
    ("states", "wish", "how"),
    [
        ({"done": 3}, Wish.RUN, JobState.DONE),
        ({"done": 2, "failed": 1}, Wish.RUN, JobState.FAILED),
        ({"done": 2, "cancelled": 1}, Wish.RUN, JobState.FAILED),
        ({"done": 2, "cancelled": 1}, Wish.CANCEL, JobState.CANCELLED),
    ],
)
def test_an_array_ends_as_its_tasks_did(states: dict[str, int], wish: Wish, how: JobState) -> None:
    assert verdict(Tally({JobState(state): count for state, count in states.items()}, 0, ""), wish) is how


@pytest.mark.parametrize(
    ("fields", "field", "words"),
    [
        ({"array": "5-1"}, "array", "write 1-5"),
        ({"array": "1-3", "outputs": ("o.${TASK}",)}, "outputs[0]", "did you mean ${TASK_ID}?"),
        ({"param": SweepSpec()}, "param", "say which with `array`"),
        ({"destinations": {"x": "y"}}, "destinations.x", "is none of the outputs"),
    ],
)
def test_what_is_wrong_is_said_by_field(fields: dict[str, object], field: str, words: str) -> None:
    [(where, what)] = problems(JobSpec("xmm", ("true",), **fields))  # type: ignore[arg-type]
    assert where == field and words in what


# -- in the store ------------------------------------------------------------------------------------------------------


def test_a_group_and_its_members_are_written_together_or_not_at_all(store: SqliteStore) -> None:
    group = store.create_group(GROUP, BORN, "key")
    assert group.id == "a1" and store.create_group(GROUP, BORN, "key") == group
    assert store.reserve(2) == 2 and store.reserve(1) == 4
    grown = replace(group, made=2, version=2)
    assert store.put_group(grown, made(group, 2, 2))
    assert not store.put_group(replace(grown, made=3), made(grown, 4)), "of a version that is over"
    assert store.groups(ids=["a1"]) == [grown] == store.groups(alive=True)
    assert [records.job.id for records in store.jobs(group="a1")] == ["j3", "j2"]
    assert store.jobs(group="") == []
    four = store.member("a1", "4")
    assert four is not None and (four.job.id, four.vm.id) == ("j3", "v3")
    assert store.member("a1", "6") is None
    assert store.tally("a1") == Tally({JobState.PENDING: 2}, 0, "")
    told = [(event.kind, event.job, event.after) for event in store.events()]
    assert told == [("group", "a1", "pending"), ("job", "j2", "pending"), ("job", "j3", "pending")]


def test_what_a_group_is_asked_for_is_found_without_a_look_at_all_jobs(store: SqliteStore) -> None:
    plans: list[str] = []

    @event.listens_for(store._reader, "before_cursor_execute")
    def explain(connection: Connection, cursor: object, text: str, values: tuple[object, ...], *_: object) -> None:
        beside = connection.connection.cursor()
        beside.execute(f"EXPLAIN QUERY PLAN {text}", values)
        plans.extend(row[3] for row in beside.fetchall())

    store.tally("a1")
    store.member("a1", "2")
    store.jobs(group="a1")
    store.jobs(group="")
    for index in ("ix_job_group", "ix_job_member", "ix_job_alone"):
        assert any(index in plan for plan in plans), (index, plans)
    assert not [plan for plan in plans if plan.startswith("SCAN job") and "ix_job_alone" not in plan], plans


def test_nodes_are_kept_with_their_workflow(store: SqliteStore) -> None:
    flow = replace(GROUP, spec=None, image=None, workflow="{}")
    group = store.create_group(flow, BORN, nodes={"A": "1", "B": "2"})
    assert group.id == "w1"
    assert store.put_group(replace(group, version=2), nodes={"B": "3"})
    assert store.nodes("w1") == {"A": "1", "B": "3"}
    ended = replace(group, state=JobState.DONE, version=3)
    assert store.put_group(ended) and store.groups(alive=True) == []
    store.delete_group("w1", BORN)
    assert store.groups() == [] and store.nodes("w1") == {}


# -- jobs after others -------------------------------------------------------------------------------------------------


def job(state: JobState, code: int | None = None) -> Job:
    return Job("j1", "ann", "xmm", "x", SPEC, "/r", "/r", ImageManifest(()), "b" * 64, 1.0, state=state, exit_code=code)


def flow(state: JobState) -> Group:
    return replace(GROUP, id="w2", workflow="{}", state=state)


ARRAY = replace(GROUP, state=JobState.DONE, made=3)


@pytest.mark.parametrize(
    ("found", "held", "futile"),
    [
        (job(JobState.DONE, 0), "", ""),
        (job(JobState.DONE, 4), "", "x, which ended with exit code 4"),
        (job(JobState.CANCELLED), "", "x, which is cancelled"),
        (job(JobState.RUNNING), "x, which has not ended", ""),
        (GROUP, "x, which has not ended", ""),
        ((ARRAY, Tally({}, 3, "")), "", ""),
        ((ARRAY, Tally({}, 2, "j5")), "", "2 of 3 tasks ended well"),
        ((flow(JobState.DONE), Tally({}, 1, "j5")), "", ""),
        ((flow(JobState.FAILED), Tally({}, 3, "")), "", "x, which is failed"),
        (None, "", "x, which is there no more"),
    ],
)
def test_a_job_begins_after_others_that_ended_well(found: Found, held: str, futile: str) -> None:
    told = what_of([("j0", job(JobState.DONE, 0)), ("x", found)])
    assert all(part in words for part, words in zip((held, futile), told, strict=True)), told
    assert [bool(words) for words in told] == [bool(held), bool(futile)]


# -- files -------------------------------------------------------------------------------------------------------------


def test_what_a_template_cannot_have_is_named_with_its_line() -> None:
    text = "EXECUTABLE = /bin/true\nRESTART_FILES = state\nJOB_DEPENDENCIES = 3 4\nOUTPUT_FILES = a b, c\n"
    text += "STDOUT_FILE = out\n"
    spec, warnings = template_job("/t/job.jt", text, "xmm")
    assert not warnings and spec.restart_files == ("state",) and spec.environment["GW_RESTARTED"] == "0"
    [warning] = map(str, template_job("/t/job.jt", f"{text}CHECKPOINT_URL = https://a.example.org/x\n", "xmm")[1])
    assert warning.startswith("/t/job.jt:6: CHECKPOINT_URL: is passed over; restart files, and checkpoints of")
    assert spec.checkpoint_interval is None
    often, warnings = template_job("/t/job.jt", f"{text}CHECKPOINT_INTERVAL = 3\n", "xmm")
    assert (often.checkpoint_interval, warnings) == ("10s", [])
    assert (spec.after, spec.outputs) == (("j3", "j4"), ("a", "c"))
    assert (spec.stdout, spec.destinations) == ("/t/out", {"a": "/t/b"})
    gang, _ = template_job("/t/job.jt", "TYPE = multiple\nNP = 2\nEXECUTABLE = /bin/true\n", "xmm")
    assert gang.gang == GangSpec(2)
    both = "TYPE = multiple\nNP = 2\nEXECUTABLE = /bin/true\nRESTART_FILES = state\nCHECKPOINT_INTERVAL = 60\n"
    gang, warnings = template_job("/t/job.jt", both, "xmm")
    assert gang.restart_files == () and gang.checkpoint_interval is None
    assert "are not saved" in str(warnings[0]) and "begin anew together" in str(warnings[1])


def test_where_a_template_keeps_checkpoints_they_are_copied() -> None:
    text = "EXECUTABLE = /bin/true\nCHECKPOINT_URL = gsiftp://h/keep\n"
    copied, [warning] = template_job("/t/job.jt", text, "xmm")
    assert copied.copy_checkpoints and "go to the service's own machine" in str(warning)


def test_gridways_words_on_moving_act() -> None:
    text = "EXECUTABLE = /bin/true\nSUSPENSION_TIMEOUT = 90\nCPULOAD_THRESHOLD = 40\nRESCHEDULING_INTERVAL = 0\n"
    spec, warnings = template_job("/t/job.jt", text + "RESCHEDULING_THRESHOLD = 600\n", "xmm")
    assert warnings == [] and problems(spec) == []
    assert spec.moves == MovesSpec(wait="90s", rate=0.4, look="0s", settled="600s")
    assert template_job("/t/job.jt", "EXECUTABLE = /bin/true\n", "xmm")[0].moves == MovesSpec()


def test_gridways_expressions_and_deadlines_act() -> None:
    text = "EXECUTABLE = /bin/true\nREQUIREMENTS = FREE_MEM_MB > 1024\nRANK = CPU_MHZ\nDEADLINE = 1:30\n"
    spec, warnings = template_job("/t/job.jt", text, "xmm")
    assert warnings == [] and problems(spec) == []
    assert spec.requirements and spec.rank and spec.deadline == "5400s"
    with pytest.raises(SpecError, match=r"job\.jt:2: REQUIREMENTS: "):
        template_job("/t/job.jt", "EXECUTABLE = /bin/true\nREQUIREMENTS = NOSUCHTHING > 1\n", "xmm")


def test_a_node_is_one_job_of_a_file_or_a_template() -> None:
    assert node_job("/t/a.jt", "EXECUTABLE = /bin/true\n", "xmm").image == "xmm"
    assert node_job("/t/a.yaml", "image: xmm\ncommand: [true]\n", "").command == ("true",)
    with pytest.raises(SpecError, match="does not say which image"):
        node_job("/t/a.jt", "EXECUTABLE = /bin/true\n", "")
    with pytest.raises(SpecError, match="a node is one job"):
        node_job("/t/a.yaml", "image: xmm\ncommand: [true]\narray: 1-3\n", "")
    with pytest.raises(SpecError, match="gang: a node is one job"):
        node_job("/t/a.jt", "TYPE = mpi\nNP = 2\nEXECUTABLE = /bin/true\n", "xmm")
