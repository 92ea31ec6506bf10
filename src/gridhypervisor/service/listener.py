"""Where the network is served: an address, and the certificate that proves the service. Refuses what would not be safe.

Without TLS, tokens and data would go over the network for everybody to read. So plain HTTP is for this machine's own
loopback, where a reverse proxy or an SSH tunnel may wait, and for nothing else.
"""

from __future__ import annotations

import ipaddress
import re
import socket
import ssl
import stat
from dataclasses import dataclass
from pathlib import Path

from gridhypervisor.model.views import Problem, ServiceError

_ADDRESS = re.compile(r"(?:\[(?P<v6>[0-9A-Fa-f:.%]+)\]|(?P<host>[^\s:\[\]/]+)):(?P<port>\d{1,5})")


@dataclass(frozen=True)
class Listener:
    """A socket that listens. `cert`, `key`: paths, PEM; empty: plain HTTP on loopback."""

    socket: socket.socket
    url: str
    cert: str = ""
    key: str = ""


def listen(address: str, cert: str = "", key: str = "") -> Listener:
    """Listen at HOST:PORT; port 0: any that is free.

    Raises:
        ServiceError: it is not safe there, or it cannot be done.
    """
    title = f"listen at {address}"
    match = _ADDRESS.fullmatch(address)
    if match is None or int(match["port"]) > 65535:
        raise _refused(title, "that is no address", "write HOST:PORT, for instance 127.0.0.1:8443 or [::1]:8443", 422)
    if bool(cert) != bool(key):
        raise _refused(title, "a certificate and its key belong together", "give both --cert and --key", 422)
    host = match["v6"] or match["host"]
    try:
        found = socket.getaddrinfo(host, int(match["port"]), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise _refused(title, f"{host}: {error.strerror or error}", "give an address of this machine") from error
    if not cert and not all(ipaddress.ip_address(str(item[4][0]).partition("%")[0]).is_loopback for item in found):
        why = f"{host} is not loopback, and without TLS everybody on the way could read tokens and data"
        hint = (
            "give a certificate with --cert and --key, or listen at 127.0.0.1 and go there through SSH or a TLS proxy"
        )
        raise _refused(title, why, hint, 403)
    if cert:
        _try_certificate(title, cert, key)
    family, kind, protocol, _, place = found[0]
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(place)
        sock.listen(1024)
    except OSError as error:
        sock.close()
        raise _refused(
            title, error.strerror or str(error), "see what else listens there, or give another port"
        ) from error
    shown = f"[{host}]" if match["v6"] else host
    return Listener(sock, f"{'https' if cert else 'http'}://{shown}:{sock.getsockname()[1]}", cert, key)


def _try_certificate(title: str, cert: str, key: str) -> None:
    try:
        if stat.S_IMODE(Path(key).stat().st_mode) & 0o007:
            raise _refused(
                title, f"everybody may read the key {key}", f"chmod 600 {key}, and get a new certificate", 403
            )
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(cert, key)
    except (OSError, ssl.SSLError) as error:
        why = f"{cert} and {key} cannot be used: {error.strerror or error}"
        raise _refused(
            title, why, "give PEM files: the certificate with those that lead to its authority, the key"
        ) from error


def _refused(title: str, why: str, hint: str, status: int = 500) -> ServiceError:
    code = {422: "invalid", 403: "refused"}.get(status, "unavailable")
    return ServiceError(Problem(title, status, code, why, hint))
