"""What a job's inputs stand for: the files, their names, and every way in which they cannot be had."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from gridhypervisor.model.errors import InputError
from gridhypervisor.model.spec import InputSpec
from gridhypervisor.model.wire import Input
from gridhypervisor.staging import Planned, Staged, digest, expand, stage


def write(path: Path, text: str = "x", mode: int = 0o644) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(mode)
    return path


def names(planned: list[Planned]) -> list[str]:
    return [item.name for item in planned]


def test_files_and_urls_are_called_by_their_last_part_or_as_the_user_says(tmp_path: Path) -> None:
    events = write(tmp_path / "obs" / "events.fits")
    elsewhere = write(tmp_path / "other" / "tool", mode=0o755)
    planned = expand(
        [
            "obs/events.fits",
            InputSpec(path=str(elsewhere), name="bin/tool"),
            "https://archive.example.org/ccf/epn%20bad.fits?sig=1",
            InputSpec(url="s3://bucket/deep/key.tar", sha256="a" * 64, name="cal.tar"),
        ],
        tmp_path,
    )
    assert planned == [
        Planned("events.fits", "inputs[0]", local=events),
        Planned("bin/tool", "inputs[1]", local=elsewhere, mode=0o755),
        Planned("epn bad.fits", "inputs[2]", url="https://archive.example.org/ccf/epn%20bad.fits?sig=1"),
        Planned("cal.tar", "inputs[3]", url="s3://bucket/deep/key.tar", sha256="a" * 64),
    ]


def test_a_folder_brings_its_files_in_their_places(tmp_path: Path) -> None:
    for name in ("data/b", "data/a/deep/c", "data/a/x y"):
        write(tmp_path / name)
    (tmp_path / "data/empty").mkdir()
    assert names(expand(["data/"], tmp_path)) == ["data/a/deep/c", "data/a/x y", "data/b"]
    assert names(expand([InputSpec(path="data", name="in/put")], tmp_path))[-1] == "in/put/b"
    assert names(expand(["."], tmp_path / "data"))[-1] == "data/b"


def test_links_within_a_folder_are_followed_and_out_of_it_refused(tmp_path: Path) -> None:
    write(tmp_path / "data/run42/events", "photons")
    (tmp_path / "data/latest").symlink_to("run42")
    (tmp_path / "data/events").symlink_to("run42/events")
    (tmp_path / "link").symlink_to("data")
    planned = expand(["link"], tmp_path)
    assert names(planned) == ["link/events", "link/latest/events", "link/run42/events"]
    assert all(item.local is not None and item.local.read_text() == "photons" for item in planned)

    secret = write(tmp_path / "secret")
    (tmp_path / "data/run42/key").symlink_to(secret)
    with pytest.raises(InputError, match=rf"inputs\[0\]: .*/key is a symbolic link to {secret}, outside of") as refused:
        expand(["data"], tmp_path)
    assert "put a copy in its place" in refused.value.hint


def test_a_folder_that_holds_itself_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "data/a/file")
    (tmp_path / "data/a/up").symlink_to("..")
    with pytest.raises(InputError, match=r"leads back to .*/data, which holds it"):
        expand(["data"], tmp_path)


@pytest.mark.parametrize(
    ("inputs", "why"),
    [
        (["a/x", "b/x"], r"inputs\[1\]: x is also what inputs\[0\] is called"),
        (["a", InputSpec(path="b/x", name="a/x")], r"inputs\[1\]: a/x is also what inputs\[0\] is called"),
        (
            ["a/x", InputSpec(path="b/x", name="x/y")],
            r"inputs\[1\]: x/y needs a folder x, which is the file of inputs\[0",
        ),
        (
            [InputSpec(path="b/x", name="x/y"), "a/x"],
            r"inputs\[0\]: x/y needs a folder x, which is the file of inputs\[1",
        ),
        (["a/x", "https://example.org/x"], r"inputs\[1\]: x is also what inputs\[0\] is called"),
    ],
)
def test_names_that_clash_are_refused(tmp_path: Path, inputs: list[str | InputSpec], why: str) -> None:
    write(tmp_path / "a/x")
    write(tmp_path / "b/x")
    with pytest.raises(InputError, match=why):
        expand(inputs, tmp_path)


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ("nothing", r"inputs\[0\]: cannot read .*/nothing: No such file"),
        ("dangling", r"inputs\[0\]: cannot read .*/dangling: No such file"),
        ("pipe", r"inputs\[0\]: .*/pipe is neither a file nor a folder"),
        ("/", "has no name"),
        (InputSpec(path="file", name="../up"), "has no name"),
        (InputSpec(path="file", name="/etc/passwd"), "has no name"),
        (InputSpec(path="folder", sha256="a" * 64), "is a folder, and a sha256 is that of one file"),
        ("https://example.org/", "has no name"),
        ("https://example.org/..%2f", "has no name"),
        (InputSpec(url="ftp://example.org/x"), "ftp://example.org/x cannot be fetched"),
        (os.fsdecode(b"caf\xe9"), "is not UTF-8"),
    ],
)
def test_what_cannot_be_an_input_is_told_by_field_and_path(tmp_path: Path, given: str | InputSpec, why: str) -> None:
    write(tmp_path / "file")
    write(tmp_path / "folder/file")
    (tmp_path / os.fsdecode(b"caf\xe9")).write_text("")
    (tmp_path / "dangling").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match=why) as refused:
        expand([given], tmp_path)
    assert refused.value.hint


def test_what_the_user_may_not_read_is_told(tmp_path: Path) -> None:
    """As nobody, where the tests run as root: root may read everything."""
    tmp_path.chmod(0o755)
    write(tmp_path / "data/closed", mode=0)
    (tmp_path / "locked").mkdir(mode=0)
    script = """
import os, sys
from pathlib import Path
from gridhypervisor.model.errors import InputError
from gridhypervisor.staging import expand
folder = os.open(sys.argv[1], os.O_RDONLY)
os.fchdir(folder)
if os.geteuid() == 0:
    os.setgid(65534)
    os.setuid(65534)
for given in ("data", "locked"):
    try:
        expand([given], Path("."))
    except InputError as error:
        print(error)
"""
    run = [sys.executable, "-c", script, str(tmp_path)]
    done = subprocess.run(run, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True)
    assert done.stdout == (
        "inputs[0]: cannot read data/closed: Permission denied\ninputs[0]: cannot read locked: Permission denied\n"
    )


def test_staged_files_have_their_digest_size_and_mode(tmp_path: Path) -> None:
    script = write(tmp_path / "run.sh", "#!/bin/sh\n", mode=0o750)
    told: list[tuple[str, int, int | None]] = []
    staged = stage(["run.sh"], tmp_path, tmp_path / "cache", lambda *news: told.append(news))
    sha256 = hashlib.sha256(b"#!/bin/sh\n").hexdigest()
    assert staged == [Staged(script, Input("run.sh", 10, sha256, 0o750))]
    assert told == [("run.sh", 10, 10)]
    assert digest(script) == (sha256, 10)
    assert not (tmp_path / "cache").exists()


def test_a_local_file_is_held_to_its_checksum(tmp_path: Path) -> None:
    write(tmp_path / "events", "photons")
    good = hashlib.sha256(b"photons").hexdigest()
    assert stage([InputSpec(path="events", sha256=good)], tmp_path, tmp_path)[0].described.sha256 == good
    with pytest.raises(
        InputError, match=rf"inputs\[0\]: .*/events has the SHA-256 {good}, but {'0' * 64} was asked for"
    ):
        stage([InputSpec(path="events", sha256="0" * 64)], tmp_path, tmp_path)


def test_an_input_may_be_made_executable_wherever_it_comes_from(tmp_path: Path) -> None:
    write(tmp_path / "tool", mode=0o640)
    given = [InputSpec(path="tool", executable=True), InputSpec(url="https://example.org/run", executable=True)]
    assert [item.mode for item in expand(given, tmp_path)] == [0o751, 0o755]
