"""Bringing outputs home: what a guest's root may offer, and where it must not get."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gridhypervisor.execution.results import Unfit, admit, keep, make_link, place_of
from gridhypervisor.model.wire import OutputFile, leads_inside


def offer(patterns: list[str], path: str) -> None:
    admit(OutputFile(path, 1, 0o644, ""), patterns)


@pytest.mark.parametrize(
    ("pattern", "path"),
    [
        ("products/*", "products/a"), ("products/*", "products/a/.deep/er"), ("products", "products/.x"),
        ("./products/", "products/x"), ("*.fits", "a.fits"), ("[a-c]?", "b1"), ("[!a]*", "b"), (".*", ".x"),
        ("[[:digit:]]", "7"), (r"a\*", "a*"), ("a[b", "a[b"), ("a[1]", "a[1]"), ("[]x]", "]"), ("[z-a]", "[z-a]"),
        ("é*", "é1"), (".", "anything"), ("*\n*", "a\nb"),
    ],
)  # fmt: skip
def test_what_a_pattern_means_to_a_shell_comes_home(pattern: str, path: str) -> None:
    offer([pattern], path)


@pytest.mark.parametrize(
    ("pattern", "path"),
    [
        ("products/*", ".bashrc"), ("*", ".ssh/authorized_keys"), ("?bashrc", ".bashrc"), ("[.]bashrc", ".bashrc"),
        ("products/*", "products"), ("products/*", "products/.hidden"), ("products/*", "productsx/a"),
        ("a*", "b"), ("*", "../x"), ("*", "/etc/passwd"), ("products/*", "products/./../../x"), ("*", "a//b"),
        ("[!a]*", ".x"), (r"\*", "x"),
    ],
)  # fmt: skip
def test_what_no_pattern_means_does_not(pattern: str, path: str) -> None:
    with pytest.raises(Unfit, match=r"^output ") as error:
        offer([pattern], path)
    assert error.value.hint


def test_without_patterns_nothing_comes() -> None:
    with pytest.raises(Unfit):
        offer([], "products/a")


@pytest.mark.parametrize(
    ("path", "target", "inside"),
    [
        ("p/x", "y", True), ("p/x", "../q/y", True), ("x", "../y", False), ("p/x", "../../y", False),
        ("p/x", "/etc", False), ("p/x", "a/../../../.ssh", False), ("p/x", "a/../b", False), ("p/a/x", "./../b", True),
        ("p/x", "..", True), ("x", "..", False),
    ],
)  # fmt: skip
def test_a_link_leads_into_the_outputs_whatever_its_parts_are(path: str, target: str, inside: bool) -> None:
    assert leads_inside(path, target) is inside


def test_nothing_is_written_through_a_link_that_lies_there(tmp_path: Path) -> None:
    home, results = tmp_path / "home", tmp_path / "results"
    home.mkdir()
    results.mkdir()
    (results / "x").symlink_to(home)
    with pytest.raises(Unfit, match=r"symbolic link|directory") as error, place_of(results, "x/.bashrc") as place:
        place.write_text("owned")
    assert str(results / "x") in str(error.value) and error.value.hint
    assert list(home.iterdir()) == []


def test_a_link_is_replaced_and_not_followed(tmp_path: Path) -> None:
    (tmp_path / "target").write_text("mine")
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "x").symlink_to("../target")
    with place_of(tmp_path, "p/x") as place:
        make_link(place, "y")
    assert os.readlink(tmp_path / "p" / "x") == "y" and (tmp_path / "target").read_text() == "mine"
    assert sorted(path.name for path in (tmp_path / "p").iterdir()) == ["x"]


@pytest.mark.parametrize("path", ["file/x", "a/" + "n" * 256, "folder"])
def test_what_time_does_not_mend_is_told_apart(path: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    with pytest.raises(Unfit) as error, place_of(tmp_path, path) as place:
        make_link(place, "y")
    assert str(tmp_path / path) in str(error.value) and error.value.hint
    assert not list(tmp_path.rglob(".ghv*"))


def test_files_are_kept_whole_in_the_place_of_what_is_there(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_bytes(b"mine")
    link, plain = tmp_path / "link", tmp_path / "plain"
    link.symlink_to(precious)
    plain.write_bytes(b"longer than what comes")
    keep({link: b"new", plain: b""}, 0o640)
    assert (link.read_bytes(), plain.read_bytes(), precious.read_bytes()) == (b"new", b"", b"mine")
    assert not link.is_symlink() and plain.stat().st_mode & 0o777 == 0o640
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError, match=f"{tmp_path}/folder"):
        keep({tmp_path / "folder": b"new"})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "link", "plain", "precious"]
