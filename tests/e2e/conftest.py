"""Installations for the end-to-end tests; what is slow to make is made once, by the product itself."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from tests import making
from tests.e2e.installation import REPOSITORY, Installation, wait_for
from tests.making import BUILD

KEPT = BUILD / "e2e"
IMAGES = REPOSITORY / "examples" / "images"


MAKING = 1800
"""Seconds that a test may take which makes an image or the bundle, or waits for the one that does."""


@pytest.hookimpl(trylast=True)  # of the tests that were chosen
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give that time to the first test of each file that needs them: whichever comes first makes them, for all, and
    whoever wants another (`site`: the small image of `guestkit`) waits for it."""
    for made in ("template", "science_template", "site"):
        firsts = {each.path: each for each in reversed(items) if made in getattr(each, "fixturenames", ())}
        for item in firsts.values():
            item.add_marker(pytest.mark.timeout(MAKING))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A test that failed tells what became of its newest jobs, for it may not fail so again."""
    report = yield
    if report.failed:
        given = getattr(item, "funcargs", {}).values()
        for lab in {id(each): each for each in given if isinstance(each, Installation)}.values():
            with contextlib.suppress(Exception):  # the failure itself is what matters
                report.sections.append((f"jobs of {lab.folder}", lab.newest_jobs()))
    return report


@pytest.fixture(scope="session")
def node_scratch() -> Iterator[Path]:
    """What stands for the node's local disk; short, for Unix sockets live in it."""
    folder = Path(tempfile.mkdtemp(prefix="ghv-e2e-", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def template(node_scratch: Path) -> Path:
    """The image `tiny`, as `ghv` makes it."""
    return _made("tiny", node_scratch)


@pytest.fixture(scope="session")
def science_template(node_scratch: Path) -> Path:
    """The image `xmm`."""
    return _made("xmm", node_scratch)


def _made(image: str, scratch: Path) -> Path:
    """A folder with an image, kept while what makes it is the same; and a cache that can make the bundle in no time."""
    KEPT.mkdir(parents=True, exist_ok=True)
    kept = KEPT / f"{image}-{_makers(image)[:16]}"
    with making.alone(), fresh(scratch, kept) as maker:
        if not kept.exists():
            maker.ghv("image", "build", str(IMAGES / image / "image.yaml"), timeout=1200)
            shutil.rmtree(new := KEPT / f".{image}", ignore_errors=True)
            shutil.copytree(maker.data / "images", new / "images")
            new.rename(kept)
        # The local site is up once there is a bundle of the code as it is now.
        wait_for("the bundle", lambda: maker.ghv("site", "show", "local", "-o", "json").json["health"] == "up", 900)
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
def hypervisor() -> str:
    """What jobs of `lab` ask for that do not say. A module whose tests look into a guest overrides it."""
    return "auto"


@pytest.fixture(scope="module")
def lab(template: Path, node_scratch: Path, hypervisor: str) -> Iterator[Installation]:
    """An installation that the tests of a module share: for faults that stay in their job. Clean at the end."""
    with fresh(node_scratch, template) as made:
        made.hypervisor_asked = hypervisor
        yield made
        made.assert_clean()


@contextlib.contextmanager
def fresh(scratch: Path, template: Path, kind: type[Installation] = Installation) -> Iterator[Installation]:
    """An installation with what is in the template, for as long as the context lasts."""
    folder = Path(tempfile.mkdtemp(prefix="ghv-", dir="/tmp"))
    made = kind(folder, scratch, template)
    try:
        yield made
    finally:
        made.close()
        shutil.rmtree(folder, ignore_errors=True)
