"""Ways into an account: keys, agents, certificates, aliases, control sockets, and what takes a person at a terminal."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from gridhypervisor.model.errors import LinkError, LinkLost, LoginNeeded
from gridhypervisor.model.records import Site, SiteKind
from gridhypervisor.sites import Ways, ways
from tests.terminal import at_a_terminal
from testsites import FrontEnd


@pytest.fixture(scope="module")
def front() -> Iterator[FrontEnd]:
    with FrontEnd() as made:
        yield made


@pytest.fixture
def site(front: FrontEnd) -> Site:
    login = front.login
    return Site(front.name, "o", "p", SiteKind.FORK, host=login.host, port=login.port, user=login.user,
                key=str(login.key), known_hosts=str(login.known_hosts))  # fmt: skip


@pytest.fixture
def sockets() -> Iterator[Path]:
    """A folder with a short name, as sockets need it. Nothing may be left in it."""
    with tempfile.TemporaryDirectory(prefix="ghv-") as folder:
        yield Path(folder)
        assert not os.listdir(folder), "a socket was left behind"


@pytest.fixture
def key(front: FrontEnd, tmp_path: Path) -> Path:
    """A copy of the user's key, to do something to."""
    made = tmp_path / "id"
    for suffix in ("", ".pub"):
        Path(f"{made}{suffix}").write_bytes(Path(f"{front.login.key}{suffix}").read_bytes())
    made.chmod(0o600)
    return made


@pytest.fixture
def agent() -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="ghv-") as folder:
        socket = f"{folder}/agent"
        running = subprocess.Popen(["ssh-agent", "-D", "-a", socket], stdout=subprocess.DEVNULL)
        until("the agent", lambda: os.path.exists(socket))
        yield socket
        running.terminate()
        running.wait()


def until(what: str, holds: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"waited {seconds:.0f} s for {what}"
        time.sleep(0.02)


def gets_in(site: Site, sockets: Path) -> str:
    """Who the account says one is, through a session of the way in."""

    async def look() -> str:
        async with Ways(site, sockets).open() as way:
            code, out, err = await ways.run((*way.session, "id -un"), seconds=60)
            assert code == 0, err
            return out.decode().strip()

    return asyncio.run(look())


def refused(site: Site, sockets: Path) -> LinkError:
    with pytest.raises(LinkError) as refusal:
        gets_in(site, sockets)
    return refusal.value


def answers(socket: Path) -> bool:
    """Whether a master at this socket does what it is asked to: it has gone to the background then."""
    return subprocess.run(["ssh", "-F", "none", "-O", "check", "-S", socket, "x"], capture_output=True).returncode == 0


def enter(door: Ways, sockets: Path, *words: str) -> tuple[int, str]:
    """Log in at a terminal, as `ghv site login` does."""
    return at_a_terminal(asyncio.run(door.login()), *words, stays=lambda: any(map(answers, sockets.iterdir())))


# Without a person


def test_a_key_is_enough_where_the_host_wants_no_more(site: Site, sockets: Path) -> None:
    assert gets_in(site, sockets) == site.user


def test_an_agents_key(site: Site, sockets: Path, agent: str, key: Path) -> None:
    assert refused(replace(site, key="", agent=agent), sockets).kind == "login"
    subprocess.run(["ssh-add", "-q", key], env={**os.environ, "SSH_AUTH_SOCK": agent}, check=True)
    assert gets_in(replace(site, key="", agent=agent), sockets) == site.user


def test_an_alias_of_the_users_own_configuration_and_its_jump_host(site: Site, sockets: Path, tmp_path: Path) -> None:
    config = tmp_path / "config"
    config.write_text(
        f"Host hpc\n  HostName {site.host}\n  ProxyJump gate\n"
        f"Host gate\n  HostName {site.host}\n"
        f"Host hpc gate\n  Port {site.port}\n  User {site.user}\n  IdentityFile {site.key}\n  IdentitiesOnly yes\n"
        f"  UserKnownHostsFile {site.known_hosts}\n  LocalForward 1 localhost:1\n"
    )
    alias = Site("a", "o", "p", SiteKind.FORK, host="hpc", ssh_config=str(config))
    assert gets_in(alias, sockets) == site.user


def test_an_alias_without_its_file_says_so(site: Site, sockets: Path, tmp_path: Path) -> None:
    error = refused(replace(site, ssh_config=str(tmp_path / "none")), sockets)
    assert error.kind == "configuration" and str(tmp_path / "none") in str(error)


def test_a_host_that_answers_nobody_is_lost_not_refused(site: Site, sockets: Path) -> None:
    with pytest.raises(LinkLost, match=r"connect to front .*refused"):
        gets_in(replace(site, port=1), sockets)


# What takes a person


def test_a_key_that_is_not_known_takes_a_person(site: Site, front: FrontEnd, sockets: Path) -> None:
    error = refused(replace(site, key=str(front.root / "etc/ssh/host_key")), sockets)
    assert isinstance(error, LoginNeeded) and not error.came() and not error.passing
    assert "Permission denied" in str(error) and "ssh-add" in error.hint and "ghv site login front" in error.hint


def test_a_locked_agent_takes_a_person(site: Site, sockets: Path, agent: str, key: Path) -> None:
    environment = {**os.environ, "SSH_AUTH_SOCK": agent}
    subprocess.run(["ssh-add", "-q", key], env=environment, check=True)
    code, shown = at_a_terminal(["env", f"SSH_AUTH_SOCK={agent}", "ssh-add", "-x"], "secret", "secret")
    assert code == 0, shown
    assert isinstance(refused(replace(site, key="", agent=agent), sockets), LoginNeeded)


def test_a_key_with_a_passphrase_takes_a_person(site: Site, sockets: Path, key: Path) -> None:
    subprocess.run(["ssh-keygen", "-q", "-p", "-N", "secret", "-f", key], check=True, stdout=subprocess.DEVNULL)
    assert "passphrase" in refused(replace(site, key=str(key)), sockets).hint


@pytest.mark.parametrize(("validity", "enters"), [("-1d:+1d", True), ("-2d:-1d", False)])
def test_a_certificate_is_good_until_it_expires(
    site: Site, front: FrontEnd, sockets: Path, tmp_path: Path, validity: str, enters: bool
) -> None:
    key = tmp_path / "signed"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", key], check=True)
    front.certificate(key, validity)
    if enters:
        assert gets_in(replace(site, key=str(key)), sockets) == site.user
    else:
        assert isinstance(refused(replace(site, key=str(key)), sockets), LoginNeeded)


@pytest.fixture
def asks(front: FrontEnd) -> Iterator[None]:
    """The host wants a password beside the key, while this lasts."""
    front.require("publickey,password")
    yield
    front.require("publickey")


def test_a_second_factor_is_given_once_and_serves_until_it_is_ended(
    site: Site, front: FrontEnd, sockets: Path, asks: None
) -> None:
    door = Ways(site, sockets)
    error = refused(site, sockets)
    assert isinstance(error, LoginNeeded) and not error.came() and "ghv site login" in error.hint
    code, shown = enter(door, sockets, "wrong", "wrong", "wrong")
    assert code == 255 and "Permission denied" in shown and not error.came()
    code, shown = enter(door, sockets, front.password)
    assert code == 0 and "password" in shown and error.came()
    assert front.password not in shown
    knocked = front.knocks()
    assert gets_in(site, sockets) == gets_in(site, sockets) == site.user
    assert asyncio.run(door.login()) == ()  # nothing to ask for
    assert front.knocks() == knocked  # all through the one login
    assert [path.stat().st_mode & 0o777 for path in sockets.iterdir()] == [0o600]
    other = replace(site, user="nobody-else")
    assert isinstance(refused(other, sockets), LoginNeeded)  # another account never comes in by this one's
    asyncio.run(door.hang_up())
    assert isinstance(refused(site, sockets), LoginNeeded)


def test_a_login_that_has_ended_is_noticed_and_can_be_renewed(
    site: Site, front: FrontEnd, sockets: Path, asks: None
) -> None:
    door = Ways(site, sockets)
    assert enter(door, sockets, front.password)[0] == 0
    front.cut_ssh()
    until("it to notice", lambda: not any(map(answers, sockets.iterdir())))
    assert isinstance(refused(site, sockets), LoginNeeded)
    assert enter(door, sockets, front.password)[0] == 0
    assert gets_in(site, sockets) == site.user
    asyncio.run(door.hang_up())


def test_the_socket_of_a_login_that_was_killed_is_in_nobodys_way(
    site: Site, front: FrontEnd, sockets: Path, asks: None
) -> None:
    door = Ways(site, sockets)
    assert enter(door, sockets, front.password)[0] == 0
    [socket] = sockets.iterdir()
    found = subprocess.run(["ssh", "-O", "check", "-S", socket, "x"], capture_output=True, text=True, check=True)
    os.kill(int(found.stderr.partition("pid=")[2].partition(")")[0]), signal.SIGKILL)
    until("its end", lambda: not answers(socket))
    error = refused(site, sockets)
    assert isinstance(error, LoginNeeded) and not error.came()
    assert enter(door, sockets, front.password)[0] == 0
    assert error.came()
    asyncio.run(door.hang_up())


def test_a_master_that_the_user_keeps_is_used_and_left_alone(
    site: Site, front: FrontEnd, sockets: Path, asks: None, tmp_path: Path
) -> None:
    control = sockets / "own"
    config = tmp_path / "config"
    config.write_text(f"Host {site.host}\n  ControlPath {control}\n")
    mine = replace(site, ssh_config=str(config))
    error = refused(mine, sockets)
    assert isinstance(error, LoginNeeded) and not error.came()
    by_hand = ["ssh", "-F", str(config), "-M", "-f", "-N", "-p", str(site.port), "-l", site.user, "-i", site.key,
               "-o", f"UserKnownHostsFile={site.known_hosts}", site.host]  # fmt: skip
    assert at_a_terminal(by_hand, front.password, stays=lambda: answers(control))[0] == 0
    assert error.came()
    assert gets_in(mine, sockets) == site.user
    asyncio.run(Ways(mine, sockets).hang_up())
    assert gets_in(mine, sockets) == site.user  # it was not ours to end
    subprocess.run(["ssh", "-F", config, "-O", "exit", site.host], check=True, capture_output=True)
    assert isinstance(refused(mine, sockets), LoginNeeded)


def test_a_host_key_is_asked_about_where_a_person_sits(
    site: Site, front: FrontEnd, sockets: Path, tmp_path: Path
) -> None:
    strange = replace(site, known_hosts=str(tmp_path / "known_hosts"))
    error = refused(strange, sockets)
    assert error.kind == "host-key" and "SHA256:" in str(error) and "ghv site login front" in error.hint
    assert not isinstance(error, LoginNeeded)
    code, shown = enter(Ways(strange, sockets), sockets, "yes")
    assert code == 0 and "SHA256:" in shown
    asyncio.run(Ways(strange, sockets).hang_up())
    assert gets_in(strange, sockets) == site.user  # it is known now
