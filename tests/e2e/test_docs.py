"""What the documents tell people to type works: every `ghv` and `make` line of their fenced blocks is run.

A document's lines are run in its order, in one fresh installation, in a folder with the files that the documents speak
of. A command that cannot be run here does not belong into the documents. `make` targets are only looked up.
"""

from __future__ import annotations

import shlex
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import MAKING, fresh
from tests.e2e.installation import REPOSITORY, Installation
from tests.unit.test_images_evproducts import event_list

pytestmark = pytest.mark.timeout(MAKING)

DOCUMENTS = [REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]

# The reader's own site: here a port of this machine at which nobody answers, which check and login must find out, and
# to which nothing can be moved.
PLACEHOLDERS = {"login.cluster.example.org": "localhost"}
SITE_FAILS: dict[tuple[str, ...], int] = {("site", "check"): 75, ("site", "login"): 77, ("move", "j4"): 78}

ENDLESS = ("ghv events -w",)

JOB = """\
kind: Job
image: xmm
command: [evproducts, events.fits]
inputs: [events.fits]
outputs: ["products/*"]
"""


def lines(document: Path, program: str) -> Iterator[str]:
    """The lines in fenced blocks that call this program, without the prompt that some have."""
    inside = False
    for line in document.read_text().splitlines():
        if line.strip().startswith("```"):
            inside = not inside
        elif inside and line.removeprefix("$ ").startswith(f"{program} "):
            yield line.removeprefix("$ ")


def with_lines(program: str) -> pytest.MarkDecorator:
    found = [document for document in DOCUMENTS if any(lines(document, program))]
    return pytest.mark.parametrize("document", found, ids=lambda path: path.name)


@pytest.fixture
def reader(science_template: Path, node_scratch: Path) -> Iterator[Installation]:
    """Somebody with the image of the science case, in a folder with what the documents name."""
    with fresh(node_scratch, science_template) as made:
        event_list(made.work / "events.fits")
        (made.work / "build/data").mkdir(parents=True)
        shutil.copy(made.work / "events.fits", made.work / "build/data/xmm_test.fits")
        (made.work / "job.yaml").write_text(JOB)
        (made.work / "policy.yaml").write_text("kind: Policy\nlimits: {user: 200}\n")
        shutil.copytree(REPOSITORY / "examples", made.work / "examples")
        disk = ["qemu-img", "create", "-q", "-f", "qcow2", str(made.work / "disk.qcow2"), "64M"]
        subprocess.run(disk, check=True)
        yield made


@with_lines("ghv")
def test_every_ghv_command_works(document: Path, reader: Installation) -> None:
    if "make demo" in [line.partition("#")[0].strip() for line in lines(document, "make")]:
        reader.ghv("run", "-f", "examples/xmm/job.yaml", "--to", "build/demo")  # so those after it have its numbers
    for line in lines(document, "ghv"):
        words = [PLACEHOLDERS.get(word, word) for word in shlex.split(line, comments=True)][1:]
        if line.startswith(ENDLESS):
            look_and_leave(reader, words)
            continue
        if words[0] == "serve":
            serve_and_leave(reader, words)
            continue
        done = reader.ghv(*words, check=False)
        assert done.code == SITE_FAILS.get(tuple(words[:2]), 0), f"{document.name}: {line}\n{done!r}"
        assert done.out or done.err, f"{document.name}: {line}: said nothing"


def serve_and_leave(reader: Installation, words: list[str]) -> None:
    """It says where it serves, and ends as it is told to."""
    serving = reader.start(*words)
    assert serving.stderr is not None and any(b"serving at http" in line for line in serving.stderr)
    serving.terminate()
    _, err = serving.communicate(timeout=120)
    assert serving.returncode == 0, err


def look_and_leave(reader: Installation, words: list[str]) -> None:
    """What shows things as they happen begins with what there is, and ends by Ctrl-C."""
    watching = reader.start(*words)
    assert watching.stdout is not None and watching.stdout.readline()
    watching.send_signal(signal.SIGINT)
    _, err = watching.communicate(timeout=120)
    assert watching.returncode == 130, err


@with_lines("make")
def test_every_make_target_exists(document: Path) -> None:
    for line in lines(document, "make"):
        targets = shlex.split(line, comments=True)[1:]
        found = subprocess.run(["make", "--dry-run", *targets], cwd=REPOSITORY, capture_output=True, text=True)
        assert found.returncode == 0, f"{document.name}: {line}\n{found.stderr}"
