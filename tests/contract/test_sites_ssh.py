"""The way to an account behind SSH that has nothing but a shell: trust, bootstrap, files, and what cuts do to them."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from gridhypervisor.model.errors import LinkError, LinkLost
from gridhypervisor.model.wire import Op
from gridhypervisor.sites import Bundle
from gridhypervisor.sites.relayclient import RelayLink, part_of
from gridhypervisor.sites.transport import SUMS
from tests.contract.accounts import Account, account_at, until
from testsites import SlurmSite
from testsites.site import UID


@pytest.fixture
def account(slurm_site: SlurmSite, bundle: Bundle, tmp_path: Path) -> Account:
    """An account whose workdir is still empty."""
    account = account_at(slurm_site, bundle, tmp_path / "log" / "relay")
    name = tmp_path.name
    return replace(account, site=replace(account.site, workdir=f"~/{name}"), folder=slurm_site.home / name)


def connects(account: Account) -> list[str]:
    """Connect and say hello; what the progress said."""
    words: list[str] = []

    async def scenario() -> None:
        async with account.connect(words.append) as at:
            assert at.hello["workdir"].endswith(account.folder.name)

    asyncio.run(scenario())
    return words


def refused(account: Account) -> LinkError:
    with pytest.raises(LinkError) as refusal:
        connects(account)
    return refusal.value


def placed(account: Account) -> Path:
    return account.folder / "bundle" / account.bundle.digest


def owned(path: Path) -> None:
    for made in (path, *path.rglob("*")):
        os.chown(made, UID, UID)


# Trust


def test_an_unknown_host_key_is_refused_with_its_fingerprint_and_what_to_do(account: Account, tmp_path: Path) -> None:
    (tmp_path / "known_hosts").write_text("")
    error = refused(replace(account, site=replace(account.site, known_hosts=str(tmp_path / "known_hosts"))))
    assert error.kind == "host-key" and "SHA256:" in str(error) and "ghv site login slurm-a" in error.hint


def test_a_changed_host_key_is_refused(account: Account, tmp_path: Path) -> None:
    known = Path(account.site.known_hosts).read_text().split()
    other = Path(account.site.key).with_suffix(".pub").read_text().split()
    (tmp_path / "known_hosts").write_text(f"{known[0]} {other[0]} {other[1]}\n")
    error = refused(replace(account, site=replace(account.site, known_hosts=str(tmp_path / "known_hosts"))))
    assert error.kind == "host-key" and "ssh-keygen -R" in error.hint


def test_a_key_that_the_site_does_not_know_is_refused(account: Account, slurm_site: SlurmSite) -> None:
    strange = slurm_site.root / "etc/ssh/host_key"  # a private key, though nobody's login
    error = refused(replace(account, site=replace(account.site, key=str(strange))))
    assert error.kind == "login" and "slurm-a" in str(error)


def test_a_host_that_is_not_there_is_unreachable_not_refused(account: Account) -> None:
    with pytest.raises(LinkLost, match="connect to slurm-a"):
        connects(replace(account, site=replace(account.site, port=1)))


def test_a_workdir_that_cannot_be_made_names_itself(account: Account) -> None:
    error = refused(replace(account, site=replace(account.site, workdir="/proc/nowhere")))
    assert "/proc/nowhere" in str(error) and "workdir" in error.hint
    assert "No such file" in str(error), "and the site's own words"


# Bootstrap


def test_the_bundle_is_uploaded_once_and_its_folder_is_the_users_alone(account: Account) -> None:
    assert any("bundle to slurm-a" in word for word in connects(account))
    assert account.folder.stat().st_mode & 0o777 == 0o700
    assert (placed(account) / SUMS).exists()
    assert connects(account) == []


def test_an_interrupted_upload_goes_on_where_it_stopped(account: Account) -> None:
    part = placed(account).with_name(f"{account.bundle.digest}.part")
    part.mkdir(parents=True)
    world = "world.tar.zst"
    (part / world).write_bytes((account.bundle.path / world).read_bytes()[:5_000_000])
    inode = (part / world).stat().st_ino
    owned(account.folder)
    connects(account)
    assert (placed(account) / world).stat().st_ino == inode
    assert not part.exists()


def test_what_an_interrupted_upload_left_damaged_is_sent_again(account: Account) -> None:
    part = placed(account).with_name(f"{account.bundle.digest}.part")
    part.mkdir(parents=True)
    for name in ("busybox", "start", "world.tar.zst"):
        (part / name).write_bytes(b"\0" * 100_000)
    owned(account.folder)
    connects(account)
    assert (placed(account) / SUMS).exists()


@pytest.mark.parametrize("damage", [lambda data: data[:-1], lambda data: data[:1000] + b"\xff" + data[1001:]])
def test_a_bundle_that_was_damaged_at_the_site_is_replaced(account: Account, damage: Callable[[bytes], bytes]) -> None:
    connects(account)
    victim = placed(account) / "agent.tar"
    whole = victim.read_bytes()
    victim.write_bytes(damage(whole))
    connects(account)
    assert victim.read_bytes() == whole


def test_a_login_that_greets_does_not_break_the_wire(account: Account, slurm_site: SlurmSite) -> None:
    greeting = slurm_site.home / ".ssh/rc"
    greeting.write_text('echo "Welcome. {\\"id\\":1}"; echo >&2 maintenance on Tuesday\n')
    try:
        connects(account)
    finally:
        greeting.unlink()


def test_a_relay_that_cannot_start_says_why(account: Account, slurm_site: SlurmSite) -> None:
    lacking = slurm_site.root / "tmp" / f"ghv-{UID}"
    moved = lacking.with_name("moved")
    if lacking.exists():
        lacking.rename(moved)
    lacking.mkdir(mode=0o755)  # root's: as if somebody else had made it first
    try:
        with pytest.raises(LinkLost, match=rf"hello .*/tmp/ghv-{UID} is not a folder of mode 0700"):
            connects(account)
    finally:
        lacking.rmdir()
        if moved.exists():
            moved.rename(lacking)


# Files


def test_files_cross_whole_and_a_wrong_digest_is_refused(account: Account, tmp_path: Path) -> None:
    data = os.urandom(5_000_001)
    (tmp_path / "up").write_bytes(data)
    digest = hashlib.sha256(data).hexdigest()

    async def scenario() -> None:
        async with account.connect() as at:
            for size in (0, 1, len(data)):
                (tmp_path / "some").write_bytes(data[:size])
                some = hashlib.sha256(data[:size]).hexdigest()
                await at.link.upload(tmp_path / "some", "cache/some", {"sha256": some}, timeout=60)
                await at.link.download("cache/some", tmp_path / "down", sha256=some, mode=0o640, timeout=60)
                assert (tmp_path / "down").read_bytes() == data[:size]
                assert (tmp_path / "down").stat().st_mode & 0o777 == 0o640
            with pytest.raises(LinkError) as wrong:
                await at.link.upload(tmp_path / "up", "cache/x", {"sha256": "0" * 64}, timeout=60)
            assert wrong.value.kind == "digest"
            await at.link.upload(tmp_path / "up", "cache/x", {"sha256": digest}, timeout=60)
            with pytest.raises(LinkError) as wrong:
                await at.link.download("cache/x", tmp_path / "y", sha256="0" * 64, timeout=60)
            assert wrong.value.kind == "digest" and not list(tmp_path.glob("y*"))
            with pytest.raises(LinkError) as absent:
                await at.link.download("cache/none", tmp_path / "y", timeout=60)
            assert absent.value.kind == "missing"
            await at.link.download("cache/none", tmp_path / "z", optional=True, timeout=60)
            assert not list(tmp_path.glob("z*"))

    asyncio.run(scenario())


def test_after_a_cut_both_ways_go_on_where_they_stopped(
    account: Account, slurm_site: SlurmSite, tmp_path: Path
) -> None:
    data = os.urandom(1 << 20) * 64  # far more than is under way at any moment: the cut comes before the end
    (tmp_path / "up").write_bytes(data)
    digest = hashlib.sha256(data).hexdigest()
    there = account.folder / "cache" / "big.part"
    here = part_of(tmp_path / "down", "cache/big", digest)

    async def cut(grows: Path) -> int:
        async with account.connect() as at:
            move = asyncio.create_task(transfer(at.link, grows is there))
            await until("some of it to arrive", lambda: grows.exists() and grows.stat().st_size > 4 << 20)
            slurm_site.cut_ssh()
            with pytest.raises(LinkLost):
                await move
        return grows.stat().st_ino

    async def scenario() -> None:
        for grows, whole in ((there, there.with_suffix("")), (here, tmp_path / "down")):
            inode = await cut(grows)
            async with account.connect() as at:
                await transfer(at.link, grows is there)
            assert whole.stat().st_ino == inode
        assert (tmp_path / "down").read_bytes() == data

    async def transfer(link: RelayLink, up: bool) -> None:
        if up:
            await link.upload(tmp_path / "up", "cache/big", {"sha256": digest}, timeout=200)
        else:
            await link.download("cache/big", tmp_path / "down", sha256=digest, timeout=200)

    asyncio.run(scenario())


def test_a_cut_fails_every_request_under_way_and_the_next_connection_works(
    account: Account, slurm_site: SlurmSite
) -> None:
    async def scenario() -> None:
        async with account.connect() as at:
            (account.folder / "lingers").symlink_to("/bin/sleep")  # a name that no job of another test has
            command = {"argv": [f"{at.workdir}/lingers", "600"], "timeout": 600.0}
            calls = [asyncio.create_task(at.link.call(Op.EXEC, {"commands": [command]}, timeout=600)) for _ in range(3)]
            await until("the commands to run", lambda: slurm_site.processes().count("lingers") == 3)
            slurm_site.cut_ssh()
            for call in calls:
                with pytest.raises(LinkLost):
                    await call
            with pytest.raises(LinkLost):
                await at.link.call(Op.SCAN, {}, timeout=60)
        async with account.connect() as at:
            assert at.hello["user"] == "scientist"
        await until("the cut relay's commands to end", lambda: "lingers" not in slurm_site.processes())

    asyncio.run(scenario())
