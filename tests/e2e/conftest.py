"""Installations for the end-to-end tests; what is slow to make is made once, by the product itself."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.installation import REPOSITORY, TEMPLATE, Installation


@pytest.fixture(scope="session")
def node_scratch() -> Iterator[Path]:
    """What stands for the node's local disk; short, for Unix sockets live in it."""
    folder = Path(tempfile.mkdtemp(prefix="ghv-e2e-", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def template(node_scratch: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bundle and images, as `ghv` makes them."""
    maker = Installation(tmp_path_factory.mktemp("template"), node_scratch)
    try:
        for recipe in sorted((REPOSITORY / "examples" / "images").glob("*/image.yaml")):
            maker.ghv("image", "build", str(recipe), timeout=1200)
        maker.ghv("site", "check", "local", timeout=1200)
    finally:
        maker.stop()
    shutil.rmtree(TEMPLATE, ignore_errors=True)
    TEMPLATE.mkdir(parents=True)
    for name in ("images", "cache", "bundle"):
        shutil.move(maker.data / name, TEMPLATE / name)
    return TEMPLATE


@pytest.fixture
def installation(template: Path, node_scratch: Path) -> Iterator[Installation]:
    """A fresh installation whose service starts by itself; stopped at the end."""
    folder = Path(tempfile.mkdtemp(prefix="ghv-", dir="/tmp"))
    made = Installation(folder, node_scratch)
    yield made
    made.stop()
    shutil.rmtree(folder, ignore_errors=True)
