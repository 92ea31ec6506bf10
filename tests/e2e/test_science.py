"""The science case: a real XMM-Newton event list, in a guest and on the host, gives the same bytes."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import fresh
from tests.e2e.installation import REPOSITORY, Installation
from tests.making import BUILD

pytestmark = pytest.mark.timeout(1200)

EVENTS = BUILD / "data" / "xmm_test.fits"
COUNT = 1_708_244
"""Events in the list."""


@pytest.fixture(scope="module")
def observatory(science_template: Path, node_scratch: Path) -> Iterator[Installation]:
    with fresh(node_scratch, science_template) as made:
        yield made
        made.assert_clean()


def test_the_products_are_those_that_the_host_makes(observatory: Installation, tmp_path: Path) -> None:
    shutil.copy(EVENTS, tmp_path / "events.fits")
    tool = REPOSITORY / "examples" / "images" / "xmm" / "evproducts"
    subprocess.run([tool, "events.fits"], cwd=tmp_path, check=True, capture_output=True)

    ran = observatory.ghv("run", "-f", str(REPOSITORY / "examples/xmm/job.yaml"), "--to", "results", timeout=900)
    products = observatory.work / "results" / "products"
    native = tmp_path / "products"
    names = sorted(path.name for path in native.iterdir())
    assert names == sorted(path.name for path in products.iterdir())
    assert {"spectrum.csv", "lightcurve.csv"} <= set(names)
    for name in names:
        assert (products / name).read_bytes() == (native / name).read_bytes(), name
    rows = (products / "spectrum.csv").read_text().splitlines()[1:]
    assert 0 < sum(int(row.split(",")[2]) for row in rows) <= COUNT
    assert ran.code == 0


def test_the_guest_is_hardened(observatory: Installation) -> None:
    """Nobody has a password, nothing listens, there is no network, the program is no root and changes no layer."""
    look = (
        "id -un; ls /sys/class/net; cat /proc/net/tcp /proc/net/udp | grep -c ' 0[A7] ';"
        " touch /opt/xmm/mark 2>/dev/null || echo read-only"
    )
    ran = observatory.ghv("run", "--image", "xmm", "--memory", "256M", "--scratch", "64M", "--", "sh", "-c", look)
    assert ran.out.decode().split() == ["job", "lo", "0", "read-only"]
    layers = observatory.ghv("image", "show", "xmm", "-o", "json").json["layers"]
    [base] = [layer for layer in layers if layer["role"] == "base"]
    path = next(p for p in (observatory.data / "images").rglob(base["digest"]) if p.stat().st_size == base["size"])
    shadow = subprocess.run(
        ["unsquashfs", "-cat", path, "etc/shadow"], capture_output=True, text=True, check=True
    ).stdout
    assert shadow
    assert all(line.split(":")[1] in ("*", "!", "!*", "!!") for line in shadow.splitlines()), shadow
