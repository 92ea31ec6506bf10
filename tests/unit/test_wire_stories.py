"""The wire's stories are found under one name, and a start pays for those alone that it asks for."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from gridhypervisor.agent.main import later
from gridhypervisor.model import wire

STORIES = [path for path in Path(wire.__file__).parent.glob("*.py") if path.name != "__init__.py"]


def defined(path: Path) -> set[str]:
    """The public names that a module makes itself."""
    out: set[str] = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            out.add(node.name)
        elif isinstance(node, ast.Assign):
            out |= {name.id for target in node.targets for name in ast.walk(target) if isinstance(name, ast.Name)}
    return {name for name in out if not name.startswith("_") and name != "T"}


def test_every_name_of_every_story_is_found() -> None:
    assert STORIES
    for path in STORIES:
        for name in defined(path):
            assert getattr(wire, name) is not None
    names = [name for path in STORIES for name in defined(path)]
    assert len(names) == len(set(names)), "each name has one story"


def test_what_is_not_there_is_said() -> None:
    with pytest.raises(AttributeError, match="Nothing"):
        _ = wire.Nothing  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("program", "unwanted"),
    [
        ("import gridhypervisor.cli.run", {"gridhypervisor.model.records", "http.client", "ssl", "asyncio"}),
        (
            "from gridhypervisor.agent import main; main.main(['pilot'])",
            {"hashlib", "asyncio", "argparse", "tempfile", "subprocess", "shutil", "inspect", "ast", "urllib.parse"},
        ),
    ],
)
def test_a_start_waits_for_nothing_that_it_does_not_use(program: str, unwanted: set[str]) -> None:
    code = f"import sys; {program}; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert not unwanted & set(loaded)


def test_what_a_pilot_puts_off_is_there_when_it_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("colorsys", "this_is_no_module"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    with later("colorsys", "this_is_no_module"):
        from colorsys import rgb_to_hls  # (nobody else here imports it)

        assert not hasattr(sys.modules["colorsys"], "__file__")
        assert rgb_to_hls(1.0, 1.0, 1.0) == (0.0, 1.0, 0.0)
        assert hasattr(sys.modules["colorsys"], "__file__"), "it is called, so it is there"
    assert "this_is_no_module" not in sys.modules
