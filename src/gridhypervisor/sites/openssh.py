"""OpenSSH's client as this project calls it: its command lines out, and what its words mean. Pure.

It is the user's own `ssh`, with the user's own configuration: aliases, jump hosts, agents, certificates, Kerberos and
control sockets work as in a terminal. What a configuration may ask for beyond a login (forwardings, commands of its
own) is switched off.

A connection is a *control master*: one process that has logged in and listens at a socket, through which any number of
sessions are opened without another login. There are three kinds: the user's own, where the configuration names a
`ControlPath`; one that `ghv site login` left behind; and one that the service starts itself, which no person can help.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from gridhypervisor.model.errors import LinkError, LinkLost
from gridhypervisor.model.records import Site

PROGRAM = "ssh"
CONNECT = 30
"""Seconds for TCP and the host's key."""
KEEP_ALIVE = (15, 3)
"""Seconds between signs of life, and how many may be missed before the connection counts as lost."""
MARK = "::ghv::"
"""Begins every line that is meant for us: logins print greetings, and shells complain."""

PLAIN = {
    "ClearAllForwardings": "yes",
    "ControlPersist": "no",
    "ForwardAgent": "no",
    "ForwardX11": "no",
    "PermitLocalCommand": "no",
    "RemoteCommand": "none",
    "RequestTTY": "no",
    "ServerAliveCountMax": str(KEEP_ALIVE[1]),
    "ServerAliveInterval": str(KEEP_ALIVE[0]),
    "Tunnel": "no",
}
"""Said on the command line, where it comes before anything that a configuration says."""

THROUGH = {"ControlMaster": "no", "ProxyCommand": "false"}
"""For a session. One whose master has just ended would log in by itself, past all that is decided here: it must not."""


def settings(site: Site) -> list[str]:
    """The words for what the site's configuration says of its login."""
    words: list[str] = []
    if site.ssh_config:
        words += ["-F", site.ssh_config]
    if site.port:
        words += ["-p", str(site.port)]
    if site.user:
        words += ["-l", site.user]
    if site.key:
        words += ["-i", _literal(site.key), "-o", "IdentitiesOnly=yes"]
    if site.agent:
        words += ["-o", f"IdentityAgent={_quoted(site.agent)}"]
    if site.known_hosts:
        words += ["-o", f"UserKnownHostsFile={_quoted(site.known_hosts)}"]
    return words


def master(site: Site, socket: str) -> tuple[str, ...]:
    """A master that asks nobody. It says MARK on its stdout once it is in, and what it does on its stderr."""
    alone = {
        "BatchMode": "yes",
        "ConnectTimeout": str(CONNECT),
        "StrictHostKeyChecking": "yes",
        **PLAIN,
        "PermitLocalCommand": "yes",
        "LocalCommand": f"echo {MARK}",
    }
    return (PROGRAM, "-v", "-N", "-M", "-S", _literal(socket), *_options(alone), *settings(site), "--", site.host)


def login(site: Site, socket: str) -> tuple[str, ...]:
    """A master for a person's terminal: it asks there for what the host wants, then goes on in the background."""
    asking = {"BatchMode": "no", "StrictHostKeyChecking": "ask", **PLAIN}
    return (PROGRAM, "-f", "-N", "-M", "-S", _literal(socket), *_options(asking), *settings(site), "--", site.host)


def session(socket: str) -> tuple[str, ...]:
    """A session through the master at this socket; the remote command is the last word to add."""
    return (PROGRAM, "-F", "none", "-S", _literal(socket), *_options(THROUGH), "-T", "--", "master")


def ask(word: str, socket: str) -> tuple[str, ...]:
    """Ask the master at this socket: `check` whether it is there, or `exit`."""
    return (PROGRAM, "-F", "none", "-O", word, "-S", _literal(socket), "--", "master")


def resolve(site: Site) -> tuple[str, ...]:
    """Have ssh say what its configuration comes to for this host; see `control_path`."""
    return (PROGRAM, "-G", *settings(site), "--", site.host)


def control_path(resolved: str) -> str:
    """Where the user keeps a master for this host, if there is one; empty: the configuration names no place."""
    found = re.search(r"^controlpath (/.+)$", resolved, re.MULTILINE)
    return found[1] if found else ""


# --- what it says ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Denied:
    """The host wants more than was offered."""

    message: str
    methods: tuple[str, ...]  # that would be left to try, as the host names them


_OFFERED = re.compile(r"^debug1: Server host key: (\S+ \S+)", re.MULTILINE)
_DENIED = re.compile(r"^.*Permission denied \(([^)]*)\)", re.MULTILINE)
_CHATTER = ("debug", "OpenSSH_", "Authenticated to ", "Transferred: ", "Bytes per second: ")
_CONFIGURATION = (
    "Bad configuration option",
    "bad configuration options",
    "Can't open user config file",
    "Bad owner or",
)


def judge(site: Site, said: str) -> LinkLost | LinkError | Denied:
    """Why a master that asks nobody did not come in, from what it printed on its stderr with `-v`."""
    what = f"connect to {site.name} ({address(site)})"
    words = last_words(said) or "no word from ssh"
    if denied := _DENIED.search(said):
        return Denied(f"{what}: {words}", tuple(denied[1].split(",")))
    if "Too many authentication failures" in said:
        return Denied(f"{what}: {words}", ("publickey",))
    if "Host key verification failed" in said:
        offered = _OFFERED.findall(said)
        key = f" ({offered[-1]})" if offered else ""
        message = f"{what}: the host's key{key} is not the one that is known for it, or none is known"
        return LinkError(message, "host-key", _how_to_trust(site))
    if any(word in said for word in _CONFIGURATION):
        return LinkError(f"{what}: {words}", "configuration", "mend that file")
    return LinkLost(f"{what}: {words}")


def last_words(said: str) -> str:
    """What it printed at last, in one line, without what is for those who mend ssh itself."""
    lines = [line.strip() for line in said.splitlines() if line and not line.startswith(_CHATTER)]
    return " · ".join(lines[-3:])


def advice(site: Site, methods: Sequence[str]) -> str:
    """What a person can do about a login that was denied."""
    by_hand = {"password", "keyboard-interactive"} & set(methods)
    key = f"the key {site.key}" if site.key else "your key"
    mend = f"see that {key} is one that the host accepts, and in your agent if it has a passphrase (ssh-add)"
    enter = f"`ghv site login {site.name}` logs in from your terminal"
    return f"{enter}; or {mend}, then `ghv site check {site.name}`" if by_hand else f"{mend}; or {enter}"


def address(site: Site) -> str:
    """The account, for people."""
    return f"{site.user + '@' if site.user else ''}{site.host}{f':{site.port}' if site.port else ''}"


def _how_to_trust(site: Site) -> str:
    file = site.known_hosts or "~/.ssh/known_hosts"
    host = f"[{site.host}]:{site.port}" if site.port not in (0, 22) else site.host
    return (
        f"ask the site for its key's fingerprint; if it is this one, forget the old one (ssh-keygen -R '{host}' -f "
        f"{file}) and say yes to the new one in `ghv site login {site.name}`"
    )


def _options(options: dict[str, str]) -> list[str]:
    return [word for key, value in options.items() for word in ("-o", f"{key}={value}")]


def _literal(path: str) -> str:
    """A path in which ssh is to find no tokens (%h, %r, …)."""
    return path.replace("%", "%%")


def _quoted(path: str) -> str:
    """The same as one word of an option's value."""
    return '"' + _literal(path).replace("\\", "\\\\").replace('"', '\\"') + '"'
