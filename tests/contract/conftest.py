"""What the contract tests share: the real bundle, made once, and one real Slurm."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from gridhypervisor.agent.bundle import build
from gridhypervisor.sites import Bundle
from testsites import SlurmSite

KEPT = Path(__file__).parents[2] / "build" / "contract"


@pytest.fixture(scope="session")
def bundle() -> Bundle:
    return Bundle(build(KEPT / "bundle", cache=KEPT / "cache").path)


@pytest.fixture(scope="session")
def slurm_site() -> Iterator[SlurmSite]:
    with SlurmSite("slurm-a", nodes=2, cpus=2) as site:
        yield site
