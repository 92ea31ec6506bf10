"""What holds for every test: how thoroughly Hypothesis searches, and that pure tests stay off the network.

Fixtures live beside the tests that use them; none are here.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import hypothesis
import pytest

# No deadline, and none for making examples: on two shared cores their time says nothing. In CI the same examples every
# time, so that a failure is the change's own; by hand new ones, so that the search goes on.
UNTIMED = hypothesis.settings(deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.register_profile("here", UNTIMED)
hypothesis.settings.register_profile("ci", UNTIMED, derandomize=True, print_blob=True)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "here")

HERE = Path(__file__).parent
OFFLINE = (HERE / "unit", HERE / "properties", HERE / "simulation")

_offline_test: str | None = None


def _refuse_network(event: str, arguments: tuple[Any, ...]) -> None:
    """Audit hook: a test outside contract/ and e2e/ that connects or binds an internet address fails there and then."""
    if _offline_test and event in ("socket.connect", "socket.bind") and isinstance(arguments[1], tuple):
        raise AssertionError(
            f"{_offline_test} opens a connection ({arguments[1]}): such tests belong in contract/ or e2e/"
        )


sys.addaudithook(_refuse_network)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Any:
    """Say to the audit hook which test is running, if it is one that stays offline."""
    global _offline_test
    _offline_test = item.nodeid if any(item.path.is_relative_to(folder) for folder in OFFLINE) else None
    try:
        return (yield)
    finally:
        _offline_test = None


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Name a failure at once, with its last line: the whole story comes at the end, which is long to wait for."""
    if report.failed and "PYTEST_XDIST_WORKER" not in os.environ:
        last = report.longreprtext.rstrip().rpartition("\n")[2]
        print(
            f"\nfailed: {report.nodeid} ({report.when}, {report.duration:.0f} s) {last}",
            file=sys.__stderr__,
            flush=True,
        )
