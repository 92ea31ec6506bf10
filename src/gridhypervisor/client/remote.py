"""A service on another machine: where it is, the token that it takes, and the certificate that it must show.

`GHV_URL` names it, `GHV_TOKEN_FILE` the file with the token, `GHV_CA` a file with the only certificates that are
believed; without it, the system's are.
"""

from __future__ import annotations

import os
import re
import socket
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gridhypervisor.model.views import Problem, ServiceError

if TYPE_CHECKING:
    import ssl

_URL = re.compile(
    r"(?P<scheme>https?)://(?:\[(?P<v6>[0-9A-Fa-f:.]+)\]|(?P<host>[^\s:/?#@\[\]]+))(?::(?P<port>\d{1,5}))?/?"
)

CONNECTING = 20.0
"""Seconds for a connection to come about."""

KEEPALIVE = ((socket.SO_KEEPALIVE, 1),)
PROBES = ((socket.TCP_KEEPIDLE, 30), (socket.TCP_KEEPINTVL, 10), (socket.TCP_KEEPCNT, 3))
"""A peer that is gone without a word is noticed within a minute, however long an answer may take."""


@dataclass(frozen=True)
class Remote:
    """A service's address. `ca`: path of the certificates that are believed; empty: the system's."""

    url: str
    token: str
    ca: str = ""

    def __str__(self) -> str:
        return self.url

    def __repr__(self) -> str:
        return f"Remote({self.url!r})"  # the token is nobody's business

    @property
    def place(self) -> tuple[str, int]:
        match = _URL.fullmatch(self.url)
        assert match is not None
        return match["v6"] or match["host"], int(match["port"] or (443 if match["scheme"] == "https" else 80))

    @property
    def netloc(self) -> str:
        """For the header Host."""
        return self.url.partition("://")[2].rstrip("/")

    def tls(self) -> ssl.SSLContext | None:
        """How to see that it is the right service; None: by plain HTTP."""
        if not self.url.startswith("https:"):
            return None
        import ssl  # costs what most `ghv` need not pay

        try:
            return ssl.create_default_context(cafile=self.ca or None)
        except (OSError, ssl.SSLError) as error:
            why = f"the certificates in {self.ca} cannot be read: {error}"
            raise _wrong(self.url, why, "let GHV_CA name a PEM file") from error

    def connect(self) -> socket.socket:
        """Raises OSError."""
        plain = socket.create_connection(self.place, timeout=CONNECTING)
        try:
            for option, value in KEEPALIVE:
                plain.setsockopt(socket.SOL_SOCKET, option, value)
            for option, value in PROBES:
                plain.setsockopt(socket.IPPROTO_TCP, option, value)
            context = self.tls()
            sock = plain if context is None else context.wrap_socket(plain, server_hostname=self.place[0])
            sock.settimeout(None)
            return sock
        except BaseException:
            plain.close()
            raise


def find_remote(environ: Mapping[str, str] = os.environ) -> Remote | None:
    """The service that `GHV_URL` names; None: it names none, this user's own is meant.

    Raises:
        ServiceError: the address or the token's file cannot be used; says why.
    """
    url = environ.get("GHV_URL", "")
    if not url:
        return None
    match = _URL.fullmatch(url)
    if match is None:
        raise _wrong(url, "that is no address of a service", "write https://HOST:PORT")
    if match["scheme"] == "http" and not _loopback(match["v6"] or match["host"]):
        hint = "use its https address, or an SSH tunnel: ssh -L 8080:127.0.0.1:8080 HOST"
        raise _wrong(url, "the token would go there for everybody on the way to read", hint)
    home = Path(environ.get("HOME") or Path.home())
    settings = Path(environ.get("XDG_CONFIG_HOME") or home / ".config") / "gridhypervisor"
    return Remote(
        url, _token(Path(environ.get("GHV_TOKEN_FILE") or settings / "token"), url), environ.get("GHV_CA", "")
    )


def _loopback(host: str) -> bool:
    return host in ("localhost", "::1") or re.fullmatch(r"127(\.\d{1,3}){3}", host) is not None


def _token(path: Path, url: str) -> str:
    try:
        with path.open() as file:
            found = os.fstat(file.fileno())
            if found.st_uid != os.getuid() or found.st_mode & 0o077:
                why = f"others may use {path} (mode {stat.S_IMODE(found.st_mode):04o})"
                raise _wrong(url, why, f"chmod 600 {path}; if others may have read it, have the token revoked")
            token = file.read(1000).strip()
    except FileNotFoundError as error:
        hint = "have a token made (ghv token create, at the service), and put it there; or name a file: GHV_TOKEN_FILE"
        raise _wrong(url, f"there is no token in {path}", hint) from error
    except (OSError, UnicodeDecodeError) as error:
        raise _wrong(url, f"the token in {path} cannot be read: {error}", "see that it is a file of yours") from error
    if not re.fullmatch(r"[!-~]+", token):
        raise _wrong(url, f"what is in {path} is no token", "put the token there, alone")
    return token


def _wrong(url: str, why: str, hint: str) -> ServiceError:
    return ServiceError(Problem(f"use the service at {url}", 403, "refused", why, hint))
