"""Installations for the end-to-end tests; what is slow to make is made once, by the product itself."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.installation import BUILD, PARTS, REPOSITORY, Installation, wait_for

KEPT = BUILD / "e2e"
IMAGES = REPOSITORY / "examples" / "images"


@pytest.fixture(scope="session")
def node_scratch() -> Iterator[Path]:
    """What stands for the node's local disk; short, for Unix sockets live in it."""
    folder = Path(tempfile.mkdtemp(prefix="ghv-e2e-", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def template(node_scratch: Path) -> Path:
    """A bundle and the image `tiny`, as `ghv` makes them."""
    return _made("tiny", node_scratch)


@pytest.fixture(scope="session")
def science_template(node_scratch: Path) -> Path:
    """A bundle and the image `xmm`."""
    return _made("xmm", node_scratch)


def _made(image: str, scratch: Path) -> Path:
    """A folder with a bundle and an image; those of an earlier session serve while what makes them is the same."""
    kept = KEPT / image
    made_of = kept / "made-of"
    if not made_of.exists() or made_of.read_text() != _makers(image):
        shutil.rmtree(kept, ignore_errors=True)
    with fresh(scratch, kept) as maker:
        if not kept.exists():
            maker.ghv("image", "build", str(IMAGES / image / "image.yaml"), timeout=1200)
        # The local site is up once there is a bundle, of the code as it is now.
        wait_for("the bundle", lambda: maker.ghv("site", "show", "local", "-o", "json").json["health"] == "up", 900)
        maker.stop()
        shutil.rmtree(kept, ignore_errors=True)
        kept.mkdir(parents=True)
        for name in PARTS:
            shutil.copytree(maker.data / name, kept / name)
        made_of.write_text(_makers(image))
    return kept


def _makers(image: str) -> str:
    """A digest of the recipe and of the code that builds images."""
    state = hashlib.sha256()
    for folder in (IMAGES / image, REPOSITORY / "src" / "gridhypervisor" / "images"):
        for path in sorted(folder.rglob("*")):
            if path.is_file() and path.suffix != ".pyc":
                state.update(f"{path.relative_to(REPOSITORY)}\n".encode() + path.read_bytes())
    return state.hexdigest()


@pytest.fixture
def installation(template: Path, node_scratch: Path) -> Iterator[Installation]:
    """A fresh installation whose service starts by itself; stopped at the end."""
    with fresh(node_scratch, template) as made:
        yield made


@pytest.fixture(scope="module")
def lab(template: Path, node_scratch: Path) -> Iterator[Installation]:
    """An installation that the tests of a module share: for faults that stay in their job. Clean at the end."""
    with fresh(node_scratch, template) as made:
        yield made
        made.assert_clean()


@contextlib.contextmanager
def fresh(scratch: Path, template: Path) -> Iterator[Installation]:
    """An installation with what is in the template, for as long as the context lasts."""
    folder = Path(tempfile.mkdtemp(prefix="ghv-", dir="/tmp"))
    made = Installation(folder, scratch, template)
    try:
        yield made
    finally:
        made.close()
        shutil.rmtree(folder, ignore_errors=True)
