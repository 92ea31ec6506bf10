"""The Slurm site of a test session and the installation that uses it; a plugin, so that its test modules share both."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.cluster import joined
from tests.e2e.slurmsite import SlurmLab
from testsites import SlurmSite


@pytest.fixture(scope="session")
def slurm_site() -> Iterator[SlurmSite]:
    with SlurmSite("slurm-a", nodes=2, cpus=2) as site:
        yield site


@pytest.fixture(scope="session")
def shared_slurm(template: Path, node_scratch: Path, slurm_site: SlurmSite) -> Iterator[SlurmLab]:
    with joined(SlurmLab, slurm_site, node_scratch, template) as made:
        yield made


@pytest.fixture
def slurm(shared_slurm: SlurmLab) -> Iterator[SlurmLab]:
    """The installation that all Slurm tests share; clean after each of them."""
    yield shared_slurm
    shared_slurm.clear_commands()
    shared_slurm.assert_clean()
