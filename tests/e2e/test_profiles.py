"""More than one program in one guest, on the local site, as their user goes with them: arrays, templates, workflows."""

from __future__ import annotations

import os
import signal

from tests.e2e.installation import Installation, wait_for

TINY = ("--image", "tiny", "--memory", "128M", "--scratch", "48M")


def test_an_array_from_its_inputs_to_its_removal(lab: Installation) -> None:
    for number in (1, 2, 3):
        (lab.work / f"in.{number}").write_text(f"input {number}\n")
    program = "cat in.${TASK_ID}; echo ${TASK_ID} of ${TOTAL_TASKS}, ${PARAM} > out; test ${TASK_ID} != 2 || exit 5"
    ran = lab.ghv(
        "run", *TINY, "--array", "1-3%2", "--param", "10:5", "--name", "sweep", "--in", "in.${TASK_ID}",
        "--out", "out", "--to", "results", "--", "sh", "-c", program, check=False,
    )  # fmt: skip
    assert ran.code == 5 and "2 of 3 well, 1 not" in ran.err, ran
    found = {path.parent.name: path.read_text() for path in (lab.work / "results").glob("*/out")}
    assert found == {"1": "1 of 3, 10\n", "2": "2 of 3, 15\n", "3": "3 of 3, 20\n"}

    [group] = [row for row in lab.ghv("list", "-o", "json").json if row["id"].startswith("a")]
    name = group["id"]
    assert (group["state"], group["total"], group["well"], group["first_bad"]["member"]) == ("done", 3, 2, "2")
    told = lab.ghv("list").out.decode()
    assert "sweep" in told and "sweep[2]" not in told
    tasks = lab.ghv("list", name, "-o", "json").json
    assert [row["name"] for row in tasks] == ["sweep[3]", "sweep[2]", "sweep[1]"]
    assert "2 of 3 well" in lab.ghv("show", name).out.decode()
    assert lab.ghv("show", f"{name}.2", "-o", "json").json["job"]["exit_code"] == 5
    assert lab.ghv("logs", f"{name}[3]").out == b"input 3\n"
    assert lab.ghv("wait", name, f"{name}.1", check=False).code == 5
    assert lab.ghv("show", f"{name}.4", check=False).code == 66

    lab.ghv("delete", name)
    wait_for("the removal", lambda: lab.ghv("show", name, check=False).code == 66)
    assert lab.ghv("list", "-o", "json").json == []
    assert (lab.work / "results/2/out").exists()


def test_an_array_in_a_file_is_cancelled_as_one(lab: Installation) -> None:
    (lab.work / "array.yaml").write_text(
        "kind: Job\nimage: tiny\ncommand: [sleep, '1000']\narray: 1-1000%2\n"
        "resources: {memory: 128M, scratch: 48M, walltime: 30m}\n"
    )
    name = lab.detach("-f", "array.yaml")
    wait_for("two tasks", lambda: len(lab.ghv("list", name, "-o", "json").json) == 2)
    lab.ghv("cancel", name)
    assert lab.ghv("wait", name, check=False).code == 130
    group = lab.ghv("show", name, "-o", "json").json
    assert (group["state"], group["made"], group["counts"]) == ("cancelled", 2, {"cancelled": 2})


TEMPLATE = """\
# As GridWay's users wrote it
NAME           = fit
EXECUTABLE     = fit.sh
ARGUMENTS      = "one two"
ENVIRONMENT    = SCALE=3, WHERE="a place"
INPUT_FILES    = data.txt data
STDIN_FILE     = asked
OUTPUT_FILES   = out fits/out.${JOB_ID}, kept
STDOUT_FILE    = printed.${JOB_ID}
STDERR_FILE    = errors.${JOB_ID}
NUMBER_OF_RETRIES = 1
SUSPENSION_TIMEOUT = 600
"""


def test_a_template_of_gridways_runs_as_it_is_after_another_job(lab: Installation) -> None:
    folder = lab.work / "gridway"
    folder.mkdir()
    (folder / "fit.jt").write_text(TEMPLATE)
    (folder / "fit.sh").write_text(
        "#!/bin/sh\nread asked\necho $asked: $* $SCALE $WHERE $GW_TASK_ID; cat data > out; touch kept; echo bad >&2\n"
    )
    (folder / "data.txt").write_text("data\n")
    (folder / "asked").write_text("answer\n")
    first = lab.detach(*TINY, "--", "sleep", "2")
    second = lab.detach("--template", "gridway/fit.jt", *TINY, "--after", first)
    third = lab.ghv("run", *TINY, "--after", second, "--", "sh", "-c", "exit 3", check=False)
    never = lab.ghv("run", *TINY, "--after", third_job(lab), "--", "true", check=False)
    assert third.code == 3
    assert never.code == 78 and "ended with exit code 3" in never.err, never
    assert (folder / f"printed.{second}").read_text() == "answer: one two 3 a place -1\n"
    assert (folder / f"errors.{second}").read_text() == "bad\n"
    assert (folder / f"fits/out.{second}").read_text() == "data\n"
    found = lab.job(second)
    assert sorted(found["outputs"]) == [str(folder / f"fits/out.{second}"), str(folder / "kept")]
    began = {e["job"]: e["at"] for e in lab.events() if e["after"] == "planned"}
    ended = {e["job"]: e["at"] for e in lab.events() if e["kind"] == "job" and e["after"] == "done"}
    assert ended[first] <= began[second]

    refused = lab.ghv("run", *TINY, "--after", "j999", "--", "true", check=False)
    assert refused.code == 66 and "there is no j999" in refused.err, refused


def test_a_gang_starts_together_or_not_at_all(lab: Installation) -> None:
    """There is room for one of the two at first, and that one is lost: so neither begins before there are both."""
    folder = lab.work / "gang"
    folder.mkdir()
    (folder / "gang.yaml").write_text(
        "image: tiny\ncommand: [sh, pair.sh]\ninputs: [pair.sh]\noutputs: [members]\n"
        "resources: {memory: 128M, scratch: 48M}\ngang: {count: 2, patience: 1h}\n"
    )
    (folder / "pair.sh").write_text(
        "echo $GHV_GANG_INDEX of $GHV_GANG_SIZE in $GHV_GANG on $(hostname)\ncp $GHV_GANG_MEMBERS members\n"
    )
    with lab.taken_slots((os.cpu_count() or 1) - 1):
        name = lab.detach("-f", "gang/gang.yaml", "--to", "gang/results")
        jobs = wait_for("its members", lambda: [row["id"] for row in lab.ghv("list", name, "-o", "json").json])

        def ready() -> list[str]:
            return [job for job in jobs if (lab.status(job) or {}).get("phase") == "gather"]

        [first] = wait_for("one that is ready", ready)
        os.kill(lab.pilot(first), signal.SIGKILL)
        wait_for("the release of both", lambda: any("round 1 is released" in e["message"] for e in lab.events(name)))
    assert lab.ghv("wait", name).code == 0
    members = "".join(f"{number} {name}-{number} local {os.uname().nodename}\n" for number in (0, 1))
    for number in (0, 1):
        assert (folder / f"results/{number}/members").read_text() == members
        told = lab.ghv("logs", f"{name}.{number}").out.decode()
        assert told == f"{number} of 2 in {name} on {name}-{number}\n", "once: no program began in the first round"
    attempts = {job: [each["reason"] for each in lab.job(job)["attempts"]] for job in jobs}
    assert attempts.pop(first) == ["pilot", "exited"], attempts
    # The other one's batch job may have begun in the moment between.
    assert [*attempts.values()] in ([["gang", "exited"]], [["cancelled", "exited"]]), attempts
    shown = lab.ghv("show", name, "-o", "json").json
    assert (shown["state"], shown["total"], shown["well"], shown["gang"]["count"]) == ("done", 2, 2, 2)
    assert "2 together, at one site" in lab.ghv("show", name).out.decode()
    told = lab.ghv("explain", name, "-o", "json").json
    assert [(m["member"], m["job"], m["state"]) for m in told["members"]] == [
        (str(n), job, "done") for n, job in enumerate(sorted(jobs, key=lambda job: int(job[1:])))
    ]
    lab.ghv("delete", name)
    wait_for("the removal", lambda: lab.ghv("show", name, check=False).code == 66)


def third_job(lab: Installation) -> str:
    return str(lab.ghv("list", "-o", "json").json[0]["id"])


DIAMOND = """\
JOB A prepare.yaml
JOB B half.yaml
JOB C half.yaml
JOB D join.yaml
PARENT A CHILD B C
PARENT B C CHILD D
VARS B half="1"
VARS C half="2"
SCRIPT PRE A ./before.sh $JOB
SCRIPT POST D ./after.sh $RETURN
RETRY C 1
"""
NODE = """\
image: tiny
command: [sh, -c, '{program}']
inputs: {inputs}
outputs: {outputs}
resources: {{memory: 128M, scratch: 48M}}
"""


def test_a_workflow_fails_in_the_middle_is_mended_and_goes_on_from_its_rescue_file(lab: Installation) -> None:
    folder = lab.work / "flow"
    folder.mkdir()
    (folder / "diamond.dag").write_text(DIAMOND)
    for name, program, inputs, outputs in (
        ("prepare", "echo start > start; cat made >> start", "[made]", "[start]"),
        ("half", "cat start; test $(half) = 1 || test -e mended || exit 4; echo $(half) > part$(half)",
         "[start, flag]", "['part$(half)']"),
        ("join", "cat part1 part2 > whole", "[part1, part2]", "[whole]"),
    ):  # fmt: skip
        (folder / f"{name}.yaml").write_text(NODE.format(program=program, inputs=inputs, outputs=outputs))
    (folder / "flag").write_text("")
    for name, text in (("before.sh", "echo made by $1 > made"), ("after.sh", "echo ended with $1 > over")):
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)

    drawn = lab.ghv("run", "--dag", "flow/diamond.dag", "--dot").out.decode()
    assert '"B" -> "D"' in drawn
    failed = lab.ghv("run", "--dag", "flow/diamond.dag", check=False)
    assert failed.code == 1 and "2 of 4 done, 1 failed, 1 futile" in failed.err, failed
    assert "C failed with 4" in failed.err
    assert (folder / "start").read_text() == "start\nmade by A\n"
    rescue = (folder / "diamond.dag.rescue001").read_text()
    assert "DONE A\n" in rescue and "DONE B\n" in rescue and "DONE C" not in rescue
    [name] = [row["id"] for row in lab.ghv("list", "-o", "json").json if row["id"].startswith("w")]
    assert "\u2717 C (try 2, exit 4)" in lab.ghv("show", name).out.decode()
    assert "salmon" in lab.ghv("show", name, "--dot").out.decode()
    assert [row["member"] for row in lab.ghv("list", name, "-o", "json").json][:1] == ["C.2"]
    assert lab.ghv("show", f"{name}.C.2", "-o", "json").json["job"]["exit_code"] == 4

    half = folder / "half.yaml"
    half.write_text(half.read_text().replace("test -e mended", "true"))
    mended = lab.ghv("run", "--dag", "flow/diamond.dag")
    assert "goes on where diamond.dag.rescue001 says" in mended.err and "4 of 4 done" in mended.err
    assert "A runs" not in mended.err and "B runs" not in mended.err
    assert (folder / "whole").read_text() == "1\n2\n"
    assert (folder / "over").read_text() == "ended with 0\n"
    assert not (folder / "diamond.dag.rescue002").exists()


def test_a_workflow_goes_on_where_it_was_when_the_service_is_killed(lab: Installation) -> None:
    """First while a script of it runs, which is run again; then while it has a job, which is not."""
    folder = lab.work / "killed"
    folder.mkdir()
    (folder / "two.dag").write_text("JOB A a.yaml\nJOB B b.yaml\nPARENT A CHILD B\nSCRIPT PRE A ./before.sh\n")
    for name, program in (("a", "echo a"), ("b", "echo b")):
        (folder / f"{name}.yaml").write_text(NODE.format(program=program, inputs="[]", outputs="[]"))
    (folder / "before.sh").write_text("#!/bin/sh\necho begun >> begun\nwhile ! test -e go; do sleep 0.1; done\n")
    (folder / "before.sh").chmod(0o755)
    name = lab.detach("--dag", "killed/two.dag")

    def begun() -> int:
        return (folder / "begun").read_text().count("\n") if (folder / "begun").exists() else 0

    wait_for("the script", begun)
    lab.kill_service()
    lab.ghv("show", name)
    wait_for("the script again", lambda: begun() == 2)
    (folder / "go").touch()
    wait_for("the job of A", lambda: lab.ghv("list", name, "-o", "json").json)
    lab.kill_service()
    assert lab.ghv("wait", name).code == 0
    tasks = lab.ghv("list", name, "-o", "json").json
    assert [(row["member"], row["state"]) for row in tasks] == [("B", "done"), ("A", "done")]
    assert (lab.ghv("logs", f"{name}.A").out, lab.ghv("logs", f"{name}.B").out) == (b"a\n", b"b\n")


def test_what_is_wrong_with_a_workflow_is_said_before_anything_runs(lab: Installation) -> None:
    folder = lab.work / "wrong"
    folder.mkdir()
    (folder / "circle.dag").write_text("JOB A a.yaml\nJOB B b.yaml\nPARENT A CHILD B\nPARENT B CHILD A\n")
    (folder / "missing.dag").write_text("JOB A a.yaml\nJOB B nowhere.yaml\n")
    (folder / "a.yaml").write_text("image: tiny\ncommand: [true]\ninputs: 4\n")
    circle = lab.ghv("run", "--dag", "wrong/circle.dag", check=False)
    assert circle.code == 65 and "circle.dag:3: PARENT: nodes wait for each other in a circle" in circle.err, circle
    missing = lab.ghv("run", "--dag", "wrong/missing.dag", check=False)
    assert missing.code == 65 and "nowhere.yaml: No such file" in missing.err and "a.yaml:3" in missing.err, missing


def test_what_is_wrong_with_an_array_is_said_before_it_is_handed_in(lab: Installation) -> None:
    for words, told in (
        (("--array", "9-1", "--", "true"), "write 1-9"),
        (("--array", "1-3", "--out", "o.${TASKID}", "--", "true"), "did you mean ${TASK_ID}?"),
        (("--param", "1:2", "--", "true"), "say which with `array`"),
        (("--gang", "2", "--array", "1-2", "--", "true"), "submit several gangs"),
        (("--spread", "--", "true"), "--spread is for a gang"),
    ):
        refused = lab.ghv("run", *TINY, *words, check=False)
        assert refused.code == 64 and told in refused.err, refused
    (lab.work / "n.1").touch()
    missing = lab.ghv("run", *TINY, "--array", "1-2", "--in", "n.${TASK_ID}", "--", "true", check=False)
    assert missing.code == 66 and "n.2" in missing.err, missing
