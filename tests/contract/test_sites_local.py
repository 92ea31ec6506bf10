"""The way to this machine's own account: the bundle in the workdir, and a relay that is a child process."""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from gridhypervisor.model.errors import LinkError, LinkLost
from gridhypervisor.model.records import Site, SiteKind
from gridhypervisor.model.wire import Op
from gridhypervisor.sites import Bundle
from tests.contract.accounts import Account, until


@pytest.fixture
def account(bundle: Bundle, tmp_path: Path) -> Account:
    site = Site("local", "o", "p", SiteKind.FORK, workdir=str(tmp_path / "work"), scratch="/tmp", slots=1)
    return Account(site, bundle, tmp_path / "work", tmp_path / "log" / "relay")


def connects(account: Account) -> int:
    """Connect and say hello; the relay's pid."""

    async def scenario() -> int:
        async with account.connect() as at:
            return int(at.hello["pid"])

    return asyncio.run(scenario())


def test_the_relay_ends_with_its_connection(account: Account) -> None:
    pid = connects(account)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_bundle_that_was_damaged_in_the_workdir_is_replaced_and_ours_is_untouched(account: Account) -> None:
    connects(account)
    victim = account.folder / "bundle" / account.bundle.digest / "agent.tar"
    whole = victim.read_bytes()
    victim.write_bytes(b"\xff" + whole[1:])
    connects(account)
    assert victim.read_bytes() == whole
    assert os.listdir(account.folder / "bundle") == [account.bundle.digest]


def test_a_bundle_of_ours_that_is_damaged_never_leaves(account: Account, tmp_path: Path) -> None:
    copy = tmp_path / "ours" / account.bundle.digest
    shutil.copytree(account.bundle.path, copy)
    (copy / "start").write_text("exit 0\n")
    with pytest.raises(LinkError, match=str(copy)) as refusal:
        connects(replace(account, bundle=Bundle(copy)))
    assert "made anew" in refusal.value.hint
    assert os.listdir(account.folder / "bundle") == []


def test_a_workdir_that_cannot_be_made_names_itself(account: Account, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LinkError, match=r"file/work") as refusal:
        connects(replace(account, site=replace(account.site, workdir=str(tmp_path / "file" / "work"))))
    assert "workdir" in refusal.value.hint


def test_when_the_relay_is_killed_what_was_under_way_is_unknown(account: Account) -> None:
    async def scenario() -> None:
        async with account.connect() as at:
            call = asyncio.create_task(
                at.link.call(Op.EXEC, {"commands": [{"argv": ["sleep", "600"], "timeout": 600.0}]}, timeout=60)
            )
            await asyncio.sleep(0)
            os.kill(at.hello["pid"], signal.SIGKILL)
            with pytest.raises(LinkLost):
                await call

    asyncio.run(scenario())


def test_a_relay_that_cannot_start_says_why(account: Account) -> None:
    with pytest.raises(LinkLost, match="/nowhere is not a folder"):
        connects(replace(account, site=replace(account.site, scratch="/nowhere")))


def test_a_local_file_is_taken_over_and_verified(account: Account, tmp_path: Path) -> None:
    async def scenario() -> None:
        (tmp_path / "file").write_bytes(b"data")
        async with account.connect() as at:
            digest = hashlib.sha256(b"data").hexdigest()
            await at.link.upload(tmp_path / "file", "cache/x", {"sha256": digest}, timeout=60)
            assert (account.folder / "cache" / "x").read_bytes() == b"data"
            with pytest.raises(LinkError) as wrong:
                await at.link.upload(tmp_path / "file", "cache/y", {"sha256": "0" * 64}, timeout=60)
            assert wrong.value.kind == "digest"
            await until("the refused file to be gone", lambda: not (account.folder / "cache" / "y").exists())

    asyncio.run(scenario())
