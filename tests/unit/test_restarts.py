"""Which files the next attempt of a job begins with: the newest whole set that one before it has left."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

from gridhypervisor.agent.channel import job_file
from gridhypervisor.execution.logs import Logs
from gridhypervisor.execution.restarts import PART, SET, forget, newest
from gridhypervisor.model.records import Allocation, Job, Times
from gridhypervisor.model.spec import GangSpec, JobSpec, problems
from gridhypervisor.model.wire import ImageManifest, Program

ATTEMPT = Allocation("v1.3", "me", "default", "j1", "v1", 3, "g-j1-3", "a", Times(0.0))


def left(logs: Logs, epoch: int, folder: str = SET, **files: bytes) -> None:
    for name, data in files.items():
        path = logs.folder("j1", epoch) / folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        path.chmod(0o640)


def test_the_newest_whole_set_is_taken_and_forgotten_with_the_job(tmp_path: Path) -> None:
    logs = Logs(tmp_path)
    assert newest(logs, ATTEMPT) == []
    left(logs, 1, state=b"one", other=b"x")
    left(logs, 2, PART, state=b"tw")
    left(logs, 3, state=b"its own")
    one, two = newest(logs, ATTEMPT)
    assert [i.described.path for i in (one, two)] == ["other", "state"]
    assert (two.local.read_bytes(), two.described.size, two.described.mode) == (b"one", 3, 0o640)
    assert two.described.sha256 == hashlib.sha256(b"one").hexdigest()
    left(logs, 2, state=b"two")
    assert [i.local.read_bytes() for i in newest(logs, ATTEMPT)] == [b"two"]
    assert newest(logs, replace(ATTEMPT, epoch=1)) == []
    left(logs, 2, "late", kept=b"")
    spec = JobSpec("x", ("true",), restart_files=("state",))
    forget(logs, Job("j1", "me", "default", "n", spec, "/", "/", ImageManifest(()), "", 0.0))
    assert newest(logs, ATTEMPT) == [] and (tmp_path / "j1/2/late/kept").exists()


def test_the_guest_is_told_what_to_pack_for_what() -> None:
    program = Program(("true",), outputs=("made", "both"), restart=("both", "state it"))
    text = job_file(program, user="root", path="")
    for function, patterns in (
        ("outputs", "'made' 'both'"),
        ("restart", "'both' 'state it'"),
        ("both", "'made' 'both' 'state it'"),
    ):
        assert f"{function}() {{\npack {patterns}\n}}\n" in text


def test_what_cannot_be_kept_is_said() -> None:
    def wrong(spec: JobSpec) -> list[str]:
        return [f"{field}: {why}" for field, why in problems(spec)]

    assert wrong(JobSpec("x", ("true",), restart_files=("state", "chk/*"))) == []
    [outside] = wrong(JobSpec("x", ("true",), restart_files=("state", "../x")))
    assert outside.startswith("restart_files[1]: '../x' must be a relative path")
    [gang] = wrong(JobSpec("x", ("true",), restart_files=("state",), gang=GangSpec(2)))
    assert gang.startswith("restart_files: cannot be of a gang")
