"""What the contract tests share: the real bundle, made once, and real sites."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from gridhypervisor.sites import Bundle
from tests.making import make_bundle
from testsites import GridEngineSite, HTCondorSite, PbsSite, SlurmSite

WARNING = 8
"""Seconds between a site's signals that ask a job to end and that kill it. In that time, on a machine that may be busy,
the jobs of these tests say that they were asked, and end; only those that heed nothing take all of it."""


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return Bundle(make_bundle(tmp_path_factory.mktemp("bundles")).path)


@pytest.fixture(scope="session")
def slurm_site() -> Iterator[SlurmSite]:
    with SlurmSite("slurm-a", nodes=2, cpus=2, kill_wait=WARNING) as site:
        yield site


@pytest.fixture(scope="session")
def other_slurm_site() -> Iterator[SlurmSite]:
    """Whole nodes to each job, no arrays, nothing requeued, and jobs that are told apart by their process groups."""
    settings = {"SelectType": "select/linear", "SelectTypeParameters": "CR_Memory", "MaxArraySize": "0",
                "JobRequeue": "0", "ProctrackType": "proctrack/pgid"}  # fmt: skip
    with SlurmSite("slurm-b", nodes=2, cpus=2, kill_wait=WARNING, settings=settings) as site:
        yield site


@pytest.fixture(scope="session")
def late_slurm_site() -> Iterator[SlurmSite]:
    with SlurmSite("slurm-late", nodes=2, cpus=2, kill_wait=WARNING, spool_delay=2.0) as site:
        yield site


@pytest.fixture(scope="session")
def tcp_slurm_site() -> Iterator[SlurmSite]:
    with SlurmSite("slurm-tcp", nodes=2, cpus=2, kill_wait=WARNING, private=True) as site:
        yield site


@pytest.fixture(scope="session")
def gridengine_site() -> Iterator[GridEngineSite]:
    with GridEngineSite("sge-a", nodes=2, slots=2, notify=WARNING) as site:
        yield site


@pytest.fixture(scope="session")
def htcondor_site() -> Iterator[HTCondorSite]:
    with HTCondorSite("htcondor-a", nodes=2, cpus=2, vacate=WARNING) as site:
        yield site


@pytest.fixture(scope="session")
def pbs_site() -> Iterator[PbsSite]:
    with PbsSite("pbs-a", nodes=2, cpus=2, kill_wait=2) as site:
        yield site
