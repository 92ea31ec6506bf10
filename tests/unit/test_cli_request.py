"""What `ghv run`'s flags and file mean."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import msgspec
import pytest

from gridhypervisor.cli.request import Flags, InputType, PairType, make_request
from gridhypervisor.cli.run import run
from gridhypervisor.model.spec import GangSpec, InputSpec, JobSpec, ResourcesSpec
from gridhypervisor.model.views import ServiceError
from gridhypervisor.model.yamlspec import SpecError

NOTHING = Flags(
    file=None, template=None,
    image=None, command=(), name=None, inputs=(), outputs=(), environment=(), cpus=None, memory=None,
    scratch=None, walltime=None, site=None, requirements=None, rank=None, priority=None, deadline=None, retry=None,
    network=None, hypervisor=None, cpu=None, copy_checkpoints=None, instant=None, isolation=None, on_silence=None,
    silence=None, array=None, gang=None, segment=None, checkpoint_interval=None, spread=False, param=None, after=(),
    destination=".",
)  # fmt: skip

JOB = """
image: xmm
command: [evproducts, events.fits]
inputs: [events.fits]
outputs: ["products/*"]
environment: {A: "1", B: "2"}
resources: {memory: 1Gi, walltime: 2h}
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "events.fits").touch()
    (tmp_path / "a=b").touch()
    return tmp_path


def flags(**given: object) -> Flags:
    return msgspec.structs.replace(NOTHING, **given)


def test_flags_alone_make_a_job(here: Path) -> None:
    request = make_request(flags(image="xmm", command=("ls", "-l"), memory="1Gi", destination="out"))
    assert request.spec.command == ("ls", "-l")
    assert request.spec.resources == ResourcesSpec(memory="1Gi")
    assert (request.folder, request.destination) == (str(here), str(here / "out"))


def test_a_gang_is_asked_for_by_its_size_and_flags_override_the_file(here: Path) -> None:
    (here / "job.yaml").write_text(JOB + "gang: {count: 4, patience: 30m}\n")
    gang = make_request(flags(image="xmm", command=("ls",), gang=3, spread=True)).spec.gang
    assert gang == GangSpec(3, spread=True)
    assert make_request(flags(file="job.yaml", gang=2)).spec.gang == GangSpec(2, patience="30m")
    with pytest.raises(click.UsageError, match="say how many"):
        make_request(flags(image="xmm", command=("ls",), spread=True))


@pytest.mark.parametrize(("given", "missing"), [({"command": ("ls",)}, "--image"), ({"image": "xmm"}, "what to run")])
def test_what_is_missing_is_said(given: dict[str, object], missing: str) -> None:
    with pytest.raises(click.UsageError, match=missing):
        make_request(flags(**given))


def test_flags_override_the_file_and_nothing_else(here: Path) -> None:
    (here / "jobs").mkdir()
    (here / "jobs" / "job.yaml").write_text(JOB)
    (here / "jobs" / "events.fits").touch()
    request = make_request(flags(file="jobs/job.yaml"))
    assert request.spec.inputs == ("events.fits",)
    assert request.folder == str(here / "jobs")
    assert request.destination == str(here)
    given = flags(file="jobs/job.yaml", walltime="5m", environment=(("B", "3"),), command=("true",), retry=0)
    spec = make_request(given).spec
    assert spec.resources == ResourcesSpec(memory="1Gi", walltime="5m")
    assert spec.environment == {"A": "1", "B": "3"}
    assert (spec.command, spec.image, spec.retry.times) == (("true",), "xmm", 0)


def test_a_wrong_file_names_its_lines(here: Path) -> None:
    (here / "job.yaml").write_text(JOB + "network: all\noutputs2: []\n")
    with pytest.raises(SpecError) as error:
        make_request(flags(file="job.yaml"))
    assert [(p.line, p.field) for p in error.value.problems] == [(8, "network"), (9, "outputs2")]


def test_an_input_that_is_not_there_is_found_at_once(here: Path) -> None:
    with pytest.raises(ServiceError, match="no such file") as error:
        make_request(flags(image="xmm", command=("true",), inputs=(InputSpec(path=str(here / "none")),)))
    assert error.value.problem.title == f"open {here}/none"
    several = tuple(InputSpec(path=str(here / name)) for name in ("none", "events.fits", "nor this"))
    with pytest.raises(ServiceError) as error:
        make_request(flags(image="xmm", command=("true",), inputs=several))
    assert error.value.problem.detail.splitlines() == [
        f"{here}/{name}: there is no such file or folder" for name in ("none", "nor this")
    ]


def test_inputs_that_a_file_names_are_told_with_its_lines_and_all_else_that_is_wrong(here: Path) -> None:
    (here / "job.yaml").write_text(JOB.replace("[events.fits]", "[none, events.fits]") + "rank: Memry\nnetwork: all\n")
    with pytest.raises(SpecError) as error:
        make_request(flags(file="job.yaml"))
    assert [(p.line, p.field) for p in error.value.problems] == [(4, "inputs[0]"), (8, "rank"), (9, "network")]
    assert f"there is no such file or folder: {here}/none" in str(error.value)
    (here / "job.yaml").write_text(JOB.replace("[events.fits]", "[none]"))
    with pytest.raises(SpecError) as error:
        make_request(flags(file="job.yaml"))
    assert error.value.missing
    given = (InputSpec(path=str(here / "events.fits")),)
    assert make_request(flags(file="job.yaml", inputs=given)).spec.inputs == given, "what a flag replaces is not missed"


def test_a_place_that_cannot_take_results_is_found_at_once(here: Path) -> None:
    for destination in ("events.fits", "events.fits/below"):
        with pytest.raises(ServiceError, match=f"{here}/events.fits is no folder"):
            make_request(flags(image="xmm", command=("true",), outputs=("*",), destination=destination))
    make_request(flags(image="xmm", command=("true",), outputs=("*",), destination="not/yet"))


@pytest.mark.parametrize(("more", "why"), [({"cpus": 2}, "1 CPU"), ({"network": "outbound"}, "no network")])
def test_what_a_hypervisor_cannot_give_is_refused_at_once(here: Path, more: dict[str, Any], why: str) -> None:
    asked = {"image": "xmm", "command": ("true",), **more}
    with pytest.raises(click.UsageError, match=f"uml gives a guest {why}"):
        make_request(flags(hypervisor="uml", **asked))
    assert make_request(flags(hypervisor="tcg", **asked)).spec.hypervisor == "tcg"
    assert make_request(flags(**asked)).spec.hypervisor == "auto"


def test_what_leaves_the_jobs_folder_is_refused(here: Path) -> None:
    with pytest.raises(click.UsageError, match="stays inside the job's folder"):
        make_request(flags(image="xmm", command=("true",), outputs=("../*",)))


@pytest.mark.parametrize(("text", "read"), [
    ("events.fits", InputSpec(path="HERE/events.fits")),
    ("events.fits=in/e.fits", InputSpec(path="HERE/events.fits", name="in/e.fits")),
    ("a=b", InputSpec(path="HERE/a=b")),
    ("https://x.org/d?a=b", InputSpec(url="https://x.org/d?a=b")),
    (f"s3://b/k#sha256={'0f' * 32}&name=k2", InputSpec(url="s3://b/k", sha256="0f" * 32, name="k2")),
])  # fmt: skip
def test_inputs(here: Path, text: str, read: InputSpec) -> None:
    found = InputType().convert(text, None, None)
    assert found == msgspec.structs.replace(read, path=read.path.replace("HERE", str(here)))


@pytest.mark.parametrize("text", ["http://x/y#sha256=12", "http://x/y#md5=ab", "http://x/y#part"])
def test_inputs_that_mean_nothing(text: str) -> None:
    with pytest.raises(click.BadParameter):
        InputType().convert(text, None, None)


def test_the_help_names_the_defaults_in_force() -> None:
    shown = " ".join(run.get_help(click.Context(run)).partition("Options:")[2].split())
    spec = JobSpec("x", ("y",))
    for flag, default in [
        ("--cpus", spec.resources.cpus), ("--memory", spec.resources.memory), ("--scratch", spec.resources.scratch),
        ("--walltime", spec.resources.walltime), ("--retry", spec.retry.times), ("--network", spec.network),
        ("--hypervisor", spec.hypervisor),
    ]:  # fmt: skip
        assert f"[default: {default}]" in shown.partition(flag)[2].partition(" --")[0], flag


def test_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GHV_TEST_HERE", "yes")
    assert PairType(inherit=True).convert("GHV_TEST_HERE", None, None) == ("GHV_TEST_HERE", "yes")
    assert PairType().convert("A=b=c", None, None) == ("A", "b=c")
    for wrong in ("A", "=b"):
        with pytest.raises(click.BadParameter):
            PairType().convert(wrong, None, None)


def test_a_silence_that_no_beat_could_break_is_refused(here: Path) -> None:
    asked = {"image": "xmm", "command": ("true",), "on_silence": "replace"}
    assert make_request(flags(**asked)).spec.silence is None  # five minutes
    assert make_request(flags(**asked, silence="30s")).spec.on_silence == "replace"
    with pytest.raises(click.UsageError, match="silence: 29s is too short"):
        make_request(flags(**asked, silence="29s"))
    keeps = {"image": "xmm", "command": ("true",)}
    with pytest.raises(click.UsageError, match="silence: has no effect unless on_silence is replace"):
        make_request(flags(**keeps, silence="1m"))
    (here / "job.yaml").write_text(JOB + "on_silence: replace\nsilence: 1m\n")
    assert make_request(flags(file="job.yaml")).spec.silence == "1m"
    assert make_request(flags(file="job.yaml", on_silence="keep")).spec.silence is None


def test_all_that_is_wrong_with_flags_is_told_at_once(here: Path) -> None:
    with pytest.raises(click.UsageError) as error:
        make_request(flags(image="xmm", command=("true",), memory="512", rank="Memry", outputs=("../*",)))
    assert [line.partition(":")[0] for line in error.value.message.splitlines()] == [
        "outputs[0]", "resources.memory", "rank",
    ]  # fmt: skip


@pytest.mark.parametrize(("given", "meant"), [("512", "512M"), ("512 ", "512M"), ("512K", "1M or more")])
@pytest.mark.parametrize("what", ["memory", "scratch"])
def test_a_size_whose_unit_was_left_out_is_refused(here: Path, what: str, given: str, meant: str) -> None:
    with pytest.raises(click.UsageError, match=f"resources.{what}: .* did you mean {meant}"):
        make_request(flags(image="xmm", command=("true",), **{what: given}))
