"""Installations for the end-to-end tests; what is slow to make is made once, by the product itself."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.installation import REPOSITORY, TEMPLATE, Installation, wait_for

RECIPES = sorted((REPOSITORY / "examples" / "images").glob("*/image.yaml"))


@pytest.fixture(scope="session")
def node_scratch() -> Iterator[Path]:
    """What stands for the node's local disk; short, for Unix sockets live in it."""
    folder = Path(tempfile.mkdtemp(prefix="ghv-e2e-", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def template(node_scratch: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bundle and images, as `ghv` makes them; those of an earlier session are kept while what makes them is the same."""
    made_of = TEMPLATE / "made-of"
    if not made_of.exists() or made_of.read_text() != _makers():
        shutil.rmtree(TEMPLATE, ignore_errors=True)
    maker = Installation(tmp_path_factory.mktemp("template"), node_scratch)
    try:
        if not made_of.exists():
            for recipe in RECIPES:
                maker.ghv("image", "build", str(recipe), timeout=1200)
        # The local site is up once there is a bundle, of the code as it is now.
        wait_for("the bundle", lambda: maker.ghv("site", "show", "local", "-o", "json").json["health"] == "up", 900)
    finally:
        maker.stop()
    shutil.rmtree(TEMPLATE, ignore_errors=True)
    TEMPLATE.mkdir(parents=True)
    for name in ("images", "cache", "bundle"):
        shutil.move(maker.data / name, TEMPLATE / name)
    made_of.write_text(_makers())
    return TEMPLATE


def _makers() -> str:
    """A digest of the recipes and of the code that builds images."""
    state = hashlib.sha256()
    for folder in (REPOSITORY / "examples" / "images", REPOSITORY / "src" / "gridhypervisor" / "images"):
        for path in sorted(folder.rglob("*")):
            if path.is_file() and path.suffix != ".pyc":
                state.update(f"{path.relative_to(REPOSITORY)}\n".encode() + path.read_bytes())
    return state.hexdigest()


@pytest.fixture
def installation(template: Path, node_scratch: Path) -> Iterator[Installation]:
    """A fresh installation whose service starts by itself; stopped at the end."""
    folder = Path(tempfile.mkdtemp(prefix="ghv-", dir="/tmp"))
    made = Installation(folder, node_scratch)
    yield made
    made.close()
    shutil.rmtree(folder, ignore_errors=True)
