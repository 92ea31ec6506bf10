"""`ghv simulate`, whole: the same story from the same seed, faults that are survived, words for what is wrong."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from gridhypervisor.model.simulation import SimulationReport

SPEC = """\
kind: Simulation
seed: 7
workload:
  generate: {jobs: 60, over: 6h, run: 10m, longest: 2h, cpus: [1, 1, 2, 4], users: 3}
sites:
  small:
    nodes: 2
    cores: 4
    faults: {nodes: {every: 1d, lasts: 1h}, lost: 0.05, mute: 0.05, refused: 0.05}
  large:
    nodes: 4
    cores: 8
    wait: 1m
    others: {share: 0.5, run: 30m, cpus: 2}
    faults: {outages: {every: 6h, lasts: 10m}}
"""

TRACE = """\
; Computer: none
1 0 -1 600 1 -1 -1 1 900 -1 1 1 -1 -1 -1 -1 -1 -1
2 0 -1 600 1 -1 -1 1 900 -1 1 1 -1 -1 -1 -1 -1 -1
3 0 -1 600 1 -1 -1 1 900 -1 1 2 -1 -1 -1 -1 -1 -1
4 5 -1  -1 1 -1 -1 1 900 -1 1 2 -1 -1 -1 -1 -1 -1
"""


def ghv(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """The command line, in an installation that is not there and must not come to be."""
    command = [sys.executable, "-m", "gridhypervisor.cli", "simulate", *words]
    environment = os.environ | {"GHV_DATA": str(folder / "data"), "GHV_RUNTIME": str(folder / "runtime")}
    environment.pop("PYTHONHASHSEED", None)
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
    assert not (folder / "data").exists() and not (folder / "runtime").exists()
    return done


def simulated(folder: Path, *words: str) -> SimulationReport:
    done = ghv(folder, *words, "-o", "json")
    assert done.returncode == 0, done.stderr
    return msgspec.json.decode(done.stdout, type=SimulationReport)


def test_the_same_seed_tells_the_same_story_and_another_another(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(SPEC)
    first = simulated(tmp_path, "s.yaml")
    assert simulated(tmp_path, "s.yaml") == first
    other = simulated(tmp_path, "s.yaml", "--seed", "8")
    assert (other.seconds, other.waits) != (first.seconds, first.waits)
    # Through all that befalls it every job comes to its end.
    assert first.jobs == 60 == sum(first.states.values())
    assert set(first.states) <= {"done", "failed"} and first.states["done"] >= 55
    assert first.attempts > 60 and sum(site.failed for site in first.sites) > 0
    small, large = first.sites
    assert 0.3 < large.others < 0.7 and small.others == 0
    for site in first.sites:
        assert max(map(sum, zip(site.usage, site.others_usage, strict=True))) <= site.cores
        assert sum(site.usage) * first.step / 3600 == pytest.approx(site.core_hours, abs=0.01)
    assert math.fsum(user.core_hours for user in first.users) == pytest.approx(first.core_hours, abs=0.01)
    assert 1 / 3 <= first.fairness <= 1 and first.slowdowns.curve[0] >= 1


def test_a_trace_is_run_as_it_says(tmp_path: Path) -> None:
    """Three jobs of ten minutes on a node with two cores: two at once, the third after them."""
    (tmp_path / "t.swf").write_text(TRACE)
    (tmp_path / "p.yaml").write_text("kind: Policy\nlimits: {user: 5}\n")
    (tmp_path / "s.yaml").write_text(
        "workload: {trace: t.swf}\nsites:\n  one: {nodes: 1, cores: 2, max_jobs: 9}\npolicy: p.yaml\n"
    )
    report = simulated(tmp_path, "s.yaml")
    assert report.states == {"done": 3} and report.left_out == {"no run time": 1}
    assert report.attempts == 3 and report.sites[0].failed == 0
    machine = report.waits.curve[0]  # what a job costs that waits for nothing: booting, mostly
    assert 10 < machine < 30
    assert report.waits.median < machine + 5 and 600 < report.waits.most < 600 + 3 * machine
    assert report.slowdowns.most == pytest.approx((report.waits.most + 600) / 600, abs=0.001)
    assert 1200 < report.seconds < 1300
    assert report.utilisation == pytest.approx(report.core_hours * 3600 / (2 * report.seconds), abs=0.001)
    shown = ghv(tmp_path, "s.yaml", "--plots", "pictures")
    assert shown.returncode == 0, shown.stderr
    assert "3 jobs: 3 done" in shown.stdout and "left out: 1 no run time" in shown.stdout
    names = ("slowdowns", "users", "utilisation", "waits")
    pictures = [tmp_path / "pictures" / f"{name}.png" for name in names]
    assert [p.read_bytes()[:8] for p in pictures] == [b"\x89PNG\r\n\x1a\n"] * 4


def test_what_is_wrong_is_named_with_its_place(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text("workload: {trace: t.swf}\nsites:\n  one: {}\npolicy: p.yaml\n")
    missing = ghv(tmp_path, "s.yaml")
    assert missing.returncode == 66 and "t.swf" in missing.stderr
    (tmp_path / "t.swf").write_text("1 2 3\n")
    bad = ghv(tmp_path, "s.yaml")
    assert bad.returncode == 65 and "t.swf:1: 3 fields; a job's line has 18" in bad.stderr
    (tmp_path / "t.swf").write_text(TRACE)
    (tmp_path / "p.yaml").write_text("kind: Policy\nlimits: {usr: 5}\n")
    policy = ghv(tmp_path, "s.yaml")
    assert policy.returncode == 65 and "p.yaml:2: limits.usr: unknown field" in policy.stderr
    schema = subprocess.run(
        [sys.executable, "-m", "gridhypervisor.cli", "schema", "simulation"], capture_output=True, check=True
    )
    assert "workload" in json.loads(schema.stdout)["$defs"]["SimulationSpec"]["properties"]
