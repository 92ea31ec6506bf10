"""OpenSSH's command lines, and what its words mean: words that a real ssh 9.2 printed."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gridhypervisor.model.errors import LinkError, LinkLost
from gridhypervisor.model.records import Site, SiteKind
from gridhypervisor.sites import openssh
from gridhypervisor.sites.openssh import Denied, judge

SITE = Site("cluster", "o", "p", SiteKind.SLURM, host="login.example.org", user="ada")

HELLO = """\
OpenSSH_9.2p1 Debian-2+deb12u10, OpenSSL 3.0.19 27 Jan 2026
debug1: Reading configuration data /etc/ssh/ssh_config
debug1: Server host key: ssh-ed25519 SHA256:EQK6iNUCuGBjzzIKOe3adm42Cb+sBi+/FmW0uwxXfRs
"""
UNKNOWN_KEY = (
    HELLO
    + """\
No ED25519 host key is known for [login.example.org]:2299 and you have requested strict checking.
Host key verification failed.
"""
)
SECOND_FACTOR = (
    HELLO
    + """\
Welcome to Cluster. Maintenance on Tuesday.
Authenticated using "publickey" with partial success.
debug1: Authentications that can continue: keyboard-interactive
debug1: No more authentication methods to try.
ada@login.example.org: Permission denied (keyboard-interactive).
"""
)
JUMP_DENIED = (
    HELLO
    + """\
ada@gate: Permission denied (publickey,password).
kex_exchange_identification: Connection closed by remote host
Connection closed by UNKNOWN port 65535
"""
)
NO_FILE = "Can't open user config file /home/ada/none: No such file or directory\n"
BAD_OPTION = "/c: line 1: Bad configuration option: bogus\n/c: terminating, 1 bad configuration options\n"
NO_ROUTE = HELLO + "ssh: connect to host login.example.org port 22: No route to host\n"
NO_NAME = "ssh: Could not resolve hostname login.example.org: Name or service not known\n"
CLOSED = HELLO + "Connection closed by 192.0.2.1 port 22\n"
TOO_MANY = HELLO + "Received disconnect from 192.0.2.1 port 22:2: Too many authentication failures\n"


@pytest.mark.parametrize(
    ("said", "methods"),
    [
        (SECOND_FACTOR, ("keyboard-interactive",)),
        (JUMP_DENIED, ("publickey", "password")),
        (TOO_MANY, ("publickey",)),
    ],
    ids=["second factor", "jump host", "too many keys"],
)
def test_a_host_that_wants_more_takes_a_person(said: str, methods: tuple[str, ...]) -> None:
    verdict = judge(SITE, said)
    assert isinstance(verdict, Denied) and verdict.methods == methods
    assert (
        verdict.message.startswith("connect to cluster (ada@login.example.org): ") and "debug1" not in verdict.message
    )
    assert "ghv site login cluster" in openssh.advice(SITE, verdict.methods)


@pytest.mark.parametrize("said", [NO_ROUTE, NO_NAME, CLOSED, ""], ids=["no route", "no name", "closed", "nothing"])
def test_a_host_that_cannot_be_reached_may_be_later(said: str) -> None:
    verdict = judge(SITE, said)
    assert isinstance(verdict, LinkLost) and "connect to cluster" in str(verdict)


@pytest.mark.parametrize("said", [NO_FILE, BAD_OPTION])
def test_a_configuration_that_ssh_cannot_read_is_named(said: str) -> None:
    verdict = judge(SITE, said)
    assert isinstance(verdict, LinkError) and verdict.kind == "configuration" and said.split(":")[0] in str(verdict)


def test_a_host_key_is_shown_with_its_fingerprint() -> None:
    verdict = judge(replace(SITE, port=2299), UNKNOWN_KEY)
    assert isinstance(verdict, LinkError) and verdict.kind == "host-key"
    assert "SHA256:EQK6iNUCuGBjzzIKOe3adm42Cb+sBi+/FmW0uwxXfRs" in str(verdict)
    assert "'[login.example.org]:2299'" in verdict.hint


@pytest.mark.parametrize(
    ("resolved", "path"),
    [
        ("controlmaster auto\ncontrolpath /run/user/1/cm-0a1b\ncontrolpersist no\n", "/run/user/1/cm-0a1b"),
        ("controlpath none\n", ""),
        ("hostname x\n", ""),
    ],
)
def test_where_the_users_own_master_would_be(resolved: str, path: str) -> None:
    assert openssh.control_path(resolved) == path


def test_what_the_user_did_not_set_is_left_to_the_configuration() -> None:
    assert openssh.settings(SITE) == ["-l", "ada"]
    assert openssh.settings(Site("a", "o", "p", SiteKind.SLURM, host="alias")) == []


def test_paths_are_taken_as_they_are() -> None:
    words = openssh.settings(replace(SITE, key="/k %h", agent='/a "x"', known_hosts="/my hosts"))
    assert "/k %%h" in words and 'IdentityAgent="/a \\"x\\""' in words and 'UserKnownHostsFile="/my hosts"' in words


def test_a_login_asks_and_what_the_service_does_never_does() -> None:
    person, alone = openssh.login(SITE, "/s"), openssh.master(SITE, "/s")
    assert {"BatchMode=no", "StrictHostKeyChecking=ask", "ClearAllForwardings=yes"} <= set(person)
    assert {"BatchMode=yes", "StrictHostKeyChecking=yes", "ClearAllForwardings=yes"} <= set(alone)
    assert "ProxyCommand=false" in openssh.session("/s")  # without its master it gets nowhere
    for command in (person, alone):
        assert command[-2:] == ("--", SITE.host)  # whatever it is called, it is no option
