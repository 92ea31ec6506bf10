"""Set-up: what it says where it may not install, and that the locks hold what the project asks for."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LOCKS = ["requirements.txt", "requirements-dev.txt", "requirements-data.txt"]


@pytest.fixture
def bare_machine(tmp_path: Path) -> Path:
    """Commands that make set-up believe in an ordinary user's machine with one of its packages installed."""
    for name, body in {
        "dpkg-query": "echo installed python3-venv; exit 1",
        "id": "echo 1000",
        "sudo": "exit 1",
        "apt-get": "echo apt-get ran; exit 1",
    }.items():
        command = tmp_path / name
        command.write_text(f"#!/bin/sh\n{body}\n")
        command.chmod(0o755)
    return tmp_path


@pytest.mark.parametrize(
    ("group", "asked", "not_asked"),
    [
        ("demo", {"mmdebstrap", "squashfs-tools"}, {"python3-venv", "slurm-wlm", "qemu-system-x86"}),
        ("demo-slurm", {"mmdebstrap", "slurm-wlm"}, {"python3-venv", "qemu-system-x86"}),
        ("demo-sites", {"slurm-wlm", "gridengine-exec", "iproute2"}, {"python3-venv", "qemu-system-x86"}),
        ("test", {"mmdebstrap", "slurm-wlm", "gridengine-exec"}, {"python3-venv"}),
    ],
)
def test_without_root_it_says_which_packages_to_ask_for(
    bare_machine: Path, group: str, asked: set[str], not_asked: set[str]
) -> None:
    result = subprocess.run(
        [ROOT / "scripts" / "setup.sh", group],
        env={"PATH": f"{bare_machine}:/usr/bin:/bin"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 1
    assert result.stdout == ""
    (said,) = re.findall(r"apt-get install --no-install-recommends (.*)", result.stderr)
    assert set(said.split()) >= asked
    assert not set(said.split()) & not_asked


def test_an_unknown_group_is_a_usage_error() -> None:
    result = subprocess.run([ROOT / "scripts" / "setup.sh", "everything"], capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (64, "")
    assert "demo-slurm" in result.stderr


def locked(name: str) -> dict[str, str]:
    """The versions that a lock pins, by normalised project name."""
    return dict(re.findall(r"^([a-z0-9-]+)==(\S+)", (ROOT / name).read_text(), flags=re.MULTILINE))


def named(requirements: list[str]) -> set[str]:
    return {re.split(r"[\[<>=!~ ;]", requirement)[0].lower() for requirement in requirements}


def test_locks_hold_what_the_project_asks_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    plain = named([*project["project"]["dependencies"], *project["project"]["optional-dependencies"]["plots"]])
    groups = project["dependency-groups"]
    assert locked("requirements.txt").keys() >= plain | named(groups["build"])
    assert locked("requirements-dev.txt").keys() >= named([one for one in groups["dev"] if isinstance(one, str)])


def test_the_development_lock_contains_the_other_one() -> None:
    # Set-up relies on it: where the development lock is installed, the other one is not installed again.
    assert locked("requirements-dev.txt").items() >= locked("requirements.txt").items()


@pytest.mark.parametrize("name", LOCKS)
def test_every_locked_version_has_its_hashes(name: str) -> None:
    entries = re.split(r"\n(?=\S)", re.sub(r"^#.*\n", "", (ROOT / name).read_text(), flags=re.MULTILINE).strip())
    assert entries
    assert [entry for entry in entries if not re.match(r"\S+==\S+ \\\n +--hash=sha256:[0-9a-f]{64}", entry)] == []
