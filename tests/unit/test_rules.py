"""The rules of docs/architecture.md and CONTRIBUTING.md that neither ruff, mypy nor import-linter can hold.

Each rule is a function from source text to complaints, tried on a text that breaks it before it is believed about ours.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "gridhypervisor"

Rule = Callable[[str], list[str]]


# --- What travels to a site runs on the bundle's CPython, where there is nothing but the standard library. ------------

TRAVELS = [*PACKAGE.glob("agent/**/*.py"), *PACKAGE.glob("__init__.py"), *PACKAGE.glob("model/__init__.py")]
TRAVELS += PACKAGE.glob("model/wire/*.py")


def beyond_the_standard_library(source: str) -> list[str]:
    """Complaints about imports beyond the standard library and our own package, of which import-linter has the rest."""
    allowed = {*sys.stdlib_module_names, "gridhypervisor"}
    return [f"imports {name}" for name in imports(source) if name.split(".")[0] not in allowed]


# --- Decisions are pure: the same arguments, the same answer. ---------------------------------------------------------

PURE = [*PACKAGE.glob("model/**/*.py"), *PACKAGE.glob("planning/**/*.py")]
CLOCKLESS = [*PURE, *PACKAGE.glob("execution/**/*.py")]

OUTSIDE = {"time", "random", "secrets"}
"""The clock and chance: in the loop they come in through ports."""

EFFECTS = {
    *("asyncio", "concurrent", "ctypes", "fcntl", "http", "multiprocessing", "select", "selectors", "shutil", "signal"),
    *("socket", "sqlite3", "ssl", "subprocess", "tempfile", "threading", "urllib.request"),
}
READS = {
    *("datetime.now", "datetime.utcnow", "datetime.today", "date.today", "uuid.uuid1", "uuid.uuid4"),
    *(
        "os.environ",
        "os.getenv",
        "os.environb",
        "os.urandom",
        "os.getpid",
        "os.getuid",
        "os.getcwd",
        "Path.home",
        "Path.cwd",
    ),
}


def reads_the_outside(source: str) -> list[str]:
    """Complaints about reading the clock, the environment or a random source."""
    complaints = [f"imports {name}" for name in imports(source) if within(name, OUTSIDE)]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and (name := ".".join(ast.unparse(node).split(".")[-2:])) in READS:
            complaints.append(f"line {node.lineno}: reads {name}")
    return complaints + [f"imports {name}" for name in imports(source) if name in READS]


def has_effects(source: str) -> list[str]:
    """Complaints about what can act on the world or wait for it."""
    complaints = [f"imports {name}" for name in imports(source) if within(name, EFFECTS)]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("open", "print", "input", "exec", "eval"):
            complaints.append(f"line {node.lineno}: calls {ast.unparse(node.func)}()")
    return complaints


# --- Nothing is left for later. ---------------------------------------------------------------------------------------

PROGRAM = [*PACKAGE.rglob("*.py"), *ROOT.glob("testsites/**/*.py"), *ROOT.glob("benchmarks/**/*.py")]


def unfinished(source: str) -> list[str]:
    """Complaints about what stands in for code: an optional feature is a declared capability instead."""
    return [
        f"line {node.lineno}: {node.id}"
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Name) and node.id == "NotImplementedError"
    ]


# --- What is committed works on anybody's machine. --------------------------------------------------------------------

# Written in pieces, so that this file does not break its own rule.
NOT_HERE = [
    *("pypi" + ".org", "python" + "hosted", "registry" + ".npmjs", "deb" + ".debian.org", "security" + ".debian.org"),
    *("--index" + "-url", "--extra-index" + "-url", "--find" + "-links"),
    *("/" + "work/", ".." + "/shared", "." + "library"),
]


def tied_to_a_machine(text: str) -> list[str]:
    """Complaints about package indexes (pip and apt have their own settings) and folders of one machine."""
    return [f"names {word}" for word in NOT_HERE if re.search(re.escape(word) + r"\b" * word[-1].isalnum(), text)]


@cache
def committed_text() -> dict[Path, str]:
    """Every text file that is or would be committed."""
    listing = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    names = subprocess.run(listing, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\0")
    texts = {}
    for path in (ROOT / name for name in names if name):
        if path.is_file():
            data = path.read_bytes()
            if b"\0" not in data:
                texts[path] = data.decode(errors="replace")
    return texts


# --- Reading source ---------------------------------------------------------------------------------------------------


def imports(source: str) -> Iterator[str]:
    """The dotted names that a module imports anywhere, `from a import b` as `a.b`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def within(name: str, modules: set[str]) -> bool:
    """Whether a dotted name is one of the modules or lies in one."""
    return any(name == module or name.startswith(module + ".") for module in modules)


@pytest.mark.parametrize(
    ("rule", "paths"),
    [
        (beyond_the_standard_library, TRAVELS),
        (reads_the_outside, CLOCKLESS),
        (has_effects, PURE),
        (unfinished, PROGRAM),
    ],
)
def test_source_keeps_the_rule(rule: Rule, paths: list[Path]) -> None:
    assert paths, "the rule is about files that are no longer where it looks"
    complaints = [f"{path.relative_to(ROOT)}: {said}" for path in paths for said in rule(path.read_text())]
    assert complaints == []


def test_committed_text_is_not_tied_to_a_machine() -> None:
    texts = committed_text()
    assert ROOT / "pyproject.toml" in texts
    complaints = [
        f"{path.relative_to(ROOT)}: {said}" for path, text in texts.items() for said in tied_to_a_machine(text)
    ]
    assert complaints == []


@pytest.mark.parametrize(
    ("rule", "breaking"),
    [
        (beyond_the_standard_library, "import json, numpy"),
        (beyond_the_standard_library, "def f():\n    from msgspec.json import decode"),
        (reads_the_outside, "import time"),
        (reads_the_outside, "from secrets import token_hex"),
        (reads_the_outside, "import datetime\nnow = datetime.datetime.now(datetime.UTC)"),
        (reads_the_outside, "import os\nhome = os.environ['HOME']"),
        (reads_the_outside, "from os import environ"),
        (reads_the_outside, "from uuid import uuid4"),
        (has_effects, "import asyncio"),
        (has_effects, "from urllib.request import urlopen"),
        (has_effects, "text = open('f').read()"),
        (unfinished, "def f():\n    raise NotImplementedError('later')"),
        (tied_to_a_machine, "pip install " + "--index" + "-url x"),
        (tied_to_a_machine, "see ." + "library for more"),
    ],
)
def test_rule_sees_what_breaks_it(rule: Rule, breaking: str) -> None:
    assert rule(breaking)


@pytest.mark.parametrize(
    ("rule", "keeping"),
    [
        (beyond_the_standard_library, "import os\nfrom gridhypervisor.model.wire import Op"),
        (reads_the_outside, "from datetime import UTC, datetime\nt = datetime.fromtimestamp(0, UTC)"),
        (has_effects, "from urllib.parse import urlsplit"),
        (tied_to_a_machine, "the framework/ folder, a.libraryName"),
    ],
)
def test_rule_leaves_the_rest_alone(rule: Rule, keeping: str) -> None:
    assert rule(keeping) == []
