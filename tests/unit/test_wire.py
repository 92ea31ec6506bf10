"""What crosses to a site and back: what a record may hold, and what the job's patterns declare."""

from __future__ import annotations

import json
import subprocess
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gridhypervisor.model import wire
from gridhypervisor.model.wire import CpuUsage, ExitRecord, Outcome, Reason, WireError

PLAIN = {"entry": "e", "epoch": 1, "claim": "c", "outcome": "completed", "reason": "exited"}


@pytest.mark.parametrize(
    "more",
    [
        '{"exit_code": 100000000000000000000}', '{"epoch": -9223372036854775809}', '{"epoch": true}',
        '{"elapsed": 1e999}', '{"elapsed": NaN}', '{"elapsed": 1' + 400 * "0" + "}", '{"node": "\\udcff"}',
        '{"streams": {"stdout": 9223372036854775808}}', '{"streams": {"\\udcff": 1}}',
    ],
)  # fmt: skip
def test_what_no_column_could_hold_is_no_record(more: str) -> None:
    with pytest.raises(WireError):
        wire.from_plain(ExitRecord, PLAIN | json.loads(more))


def test_the_largest_that_a_record_can_hold_comes_back() -> None:
    record = ExitRecord(
        "e", (1 << 63) - 1, "ü", Outcome.COMPLETED, Reason.EXITED, exit_code=-(1 << 63), usage=CpuUsage(1e300),
        streams={wire.STDOUT: 5}, by="watchdog",
    )  # fmt: skip
    assert wire.from_plain(ExitRecord, json.loads(wire.canonical(record))) == record


def test_nesting_without_end_is_no_message() -> None:
    with pytest.raises(WireError):
        wire.Decoder().feed(b'{"id":' + b"[" * 200_000 + b"\n")


names = st.text("abc.[]-!*?\\é", min_size=1, max_size=6).filter(lambda name: name not in (".", ".."))
globs = st.text("abc.[]-!*?\\é", min_size=1, max_size=6).filter(lambda glob: glob not in (".", ".."))


@given(st.lists(names, min_size=1, max_size=4, unique=True), globs)
def test_what_the_guests_shell_finds_is_declared(found: list[str], glob: str) -> None:
    script = "IFS=''; for name in $1; do [ -e \"$name\" ] && printf '%s\\0' \"$name\"; done"
    with tempfile.TemporaryDirectory() as folder:
        for name in found:
            Path(folder, name).touch()
        said = subprocess.run(["busybox", "sh", "-c", script, "sh", glob], cwd=folder, env={}, capture_output=True)
    for name in set(said.stdout.decode().split("\0")[:-1]) - {".", ".."}:  # never taken as outputs
        assert wire.declared(name, [glob]), (name, glob)


@pytest.mark.parametrize(
    ("path", "pattern", "declared"),
    [
        ("products/a", "products/*", True), ("products/a/.b/c", "products/*", True), ("a/.b", "a/*", False),
        ("products", "products/*", False), (".bashrc", "*", False), (".bashrc", ".b*", True), (".bashrc", ".", True),
        ("a/b/c", "./a//b/", True), ("ab", "a", False), ("a/x", "*/x", True), ("a/b/x", "*/x", False),
        ("a1", "a[0-9]", True), ("ax", "a[0-9]", False), ("ax", "a[!0-9]", True), ("5", "[[:digit:]]", True),
        ("a[b", "a[b", True), ("q", "[z-a]", False), ("é", "??", True), (".ssh/id", "products/*", False),
    ],
)  # fmt: skip
def test_patterns_mean_what_they_mean_to_a_shell(path: str, pattern: str, declared: bool) -> None:
    assert wire.declared(path, ["other", pattern]) is declared


def test_a_pattern_declares_nothing_outside(tmp_path: Path) -> None:
    assert not wire.declared("../x", ["*"])
    assert not wire.declared(str(tmp_path), ["*"])
