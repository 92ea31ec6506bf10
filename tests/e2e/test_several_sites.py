"""Two kinds of site at once, started as `make demo-sites` does: what ran where; and they are kept for next time."""

from __future__ import annotations

import contextlib
import json
import select
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gridhypervisor.cli.exits import Exit
from tests.e2e.conftest import MAKING, fresh
from tests.e2e.installation import REPOSITORY, Installation, wait_for

pytestmark = pytest.mark.timeout(MAKING)

SITES = ("several-a:slurm:2", "several-b:gridengine:1")


@contextlib.contextmanager
def clusters(kept: Path) -> Iterator[list[dict[str, Any]]]:
    """What `testsites up` says of each, for as long as its stdin stays open. It must end by itself when that closes."""
    argv = [sys.executable, "-m", "testsites", "up", "--keep", str(kept), *SITES]
    pipe = subprocess.PIPE
    with subprocess.Popen(argv, cwd=REPOSITORY, stdin=pipe, stdout=pipe, bufsize=0) as starter:
        assert starter.stdin is not None and starter.stdout is not None
        try:
            described = []
            for wanted in SITES:
                assert select.select([starter.stdout], [], [], 600)[0], f"{wanted} did not start"
                described.append(json.loads(starter.stdout.readline()))
            yield described
        finally:
            starter.stdin.close()
            assert starter.wait(300) == 0


def removed(installation: Installation, site: str) -> bool:
    return installation.ghv("site", "remove", site, check=False).code in (0, Exit.MISSING)


def test_one_job_at_two_sites_and_what_ran_where(template: Path, node_scratch: Path, tmp_path: Path) -> None:
    with clusters(tmp_path / "sites") as described, fresh(node_scratch, template) as installation:
        for site in described:
            options = ("--option", "spool_lag=1", "--option", "listing_interval=1")
            installation.ghv("site", "add", site["name"], *site["words"], *options)
        jobs = {}
        for site, hypervisor in zip(described, ("uml", "tcg"), strict=True):
            name = site["name"]
            words = ("--memory", "128M", "--scratch", "48M", "--site", name, "--hypervisor", hypervisor)
            out = ("--out", "made", "--to", name, "--name", name)
            jobs[name] = installation.detach("--image", "tiny", *words, *out, "--", "sh", "-c", "echo same > made")
        for name, job in jobs.items():
            found = installation.wait(job, 600)
            assert (found["job"]["state"], found["job"]["exit_code"]) == ("done", 0), found
            assert (installation.work / name / "made").read_text() == "same\n"

        shown = installation.ghv("ledger", *jobs.values(), "-o", "json", "--plot", "map.png")
        slurm, grid = shown.json
        assert [stay["site"] for stay in (slurm, grid)] == list(jobs) == ["several-a", "several-b"]
        assert [stay["job"] for stay in (slurm, grid)] == list(jobs.values())
        assert [stay["batch_system"].split()[0] for stay in (slurm, grid)] == ["slurm-wlm", "SGE"]
        assert slurm["node"] in described[0]["nodes"] and slurm["hypervisor"].endswith(", uml"), slurm
        assert grid["node"] in described[1]["nodes"] and grid["hypervisor"].endswith(", tcg"), grid
        for stay in (slurm, grid):
            lengths = {span["phase"]: span["seconds"] for span in stay["spans"]}
            assert all(lengths[phase] > 0 for phase in ("prolog", "prepare", "boot", "execute", "epilog")), stay
            assert min(lengths.values()) >= 0 and stay["cpu"]["program"] >= 0
            job = installation.job(stay["job"])["job"]
            total = sum(span["seconds"] for span in stay["spans"])
            assert total == pytest.approx(job["ended"] - job["created"], abs=0.01)
        assert (installation.work / "map.png").read_bytes().startswith(b"\x89PNG")

        # Their entries go after the end of the jobs; until then there is something of them at the sites.
        wait_for("no job at the sites", lambda: all(removed(installation, name) for name in jobs))
    with clusters(tmp_path / "sites") as again:
        assert [site["address"] for site in again] == [site["address"] for site in described]
        assert all((Path(site["root"]) / site["workdir"].lstrip("/") / "bundle").is_dir() for site in again)
