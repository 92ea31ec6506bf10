"""Where the service of a data folder is looked for, and which folders are refused."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from gridhypervisor.client.launcher import find_paths, own_folder
from gridhypervisor.model.views import ServiceError


def test_the_default_is_xdg_and_every_data_folder_has_its_own_socket(tmp_path: Path) -> None:
    base = {"HOME": "/home/ann", "XDG_RUNTIME_DIR": str(tmp_path)}
    default = find_paths(base)
    assert default.data == Path("/home/ann/.local/share/gridhypervisor")
    assert default.socket.parent == tmp_path / "gridhypervisor"
    other = find_paths(base | {"GHV_DATA": "/data/other"})
    assert other.socket.parent == default.socket.parent
    assert other.socket != default.socket
    assert find_paths(base | {"XDG_DATA_HOME": "/x"}).data == Path("/x/gridhypervisor")


def test_without_a_session_the_runtime_folder_is_the_users_in_tmp() -> None:
    for gone in ({}, {"XDG_RUNTIME_DIR": "/run/user/no-such"}):
        assert find_paths({"HOME": "/h", **gone}).socket.parent == Path(f"/tmp/ghv-{os.getuid()}")
    assert find_paths({"HOME": "/h", "GHV_RUNTIME": "/run/mine"}).socket.parent == Path("/run/mine")


def test_a_path_too_long_for_the_kernel_says_so() -> None:
    with pytest.raises(ServiceError, match="longer than the 107 bytes") as error:
        find_paths({"HOME": "/h", "GHV_RUNTIME": "/" + "x" * 100})
    assert "GHV_RUNTIME" in error.value.problem.hint


def test_folders_are_made_private_and_open_ones_refused(tmp_path: Path) -> None:
    own_folder(tmp_path / "a" / "b")
    assert stat.S_IMODE((tmp_path / "a" / "b").stat().st_mode) == 0o700
    (tmp_path / "open").mkdir(mode=0o755)
    with pytest.raises(ServiceError, match="others may enter it"):
        own_folder(tmp_path / "open")
    (tmp_path / "link").symlink_to(tmp_path / "a" / "b")
    with pytest.raises(ServiceError, match="not a folder of this user"):
        own_folder(tmp_path / "link")
    (tmp_path / "file").touch()
    with pytest.raises(ServiceError):
        own_folder(tmp_path / "file")
