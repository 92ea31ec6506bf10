"""What the contract tests share: the real bundle, made once, and real Slurms."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from gridhypervisor.sites import Bundle
from tests.making import make_bundle
from testsites import GridEngineSite, HTCondorSite, SlurmSite


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return Bundle(make_bundle(tmp_path_factory.mktemp("bundles")).path)


@pytest.fixture(scope="session")
def slurm_site() -> Iterator[SlurmSite]:
    with SlurmSite("slurm-a", nodes=2, cpus=2, kill_wait=5) as site:
        yield site


@pytest.fixture(scope="session")
def late_slurm_site() -> Iterator[SlurmSite]:
    with SlurmSite("slurm-late", nodes=2, cpus=2, kill_wait=5, spool_delay=2.0) as site:
        yield site


@pytest.fixture(scope="session")
def gridengine_site() -> Iterator[GridEngineSite]:
    with GridEngineSite("sge-a", nodes=2, slots=2, notify=2) as site:
        yield site


@pytest.fixture(scope="session")
def htcondor_site() -> Iterator[HTCondorSite]:
    with HTCondorSite("htcondor-a", nodes=2, cpus=2, vacate=3) as site:
        yield site
