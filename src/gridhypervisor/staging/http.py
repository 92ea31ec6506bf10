"""Objects of web servers. Proxies and certificates are those of the user's environment."""

from __future__ import annotations

import contextlib
import ipaddress
import re
import socket
from collections.abc import Callable, Iterator
from typing import Any
from urllib.request import getproxies, proxy_bypass

import httpx

from gridhypervisor import __version__
from gridhypervisor.model.errors import InputError
from gridhypervisor.staging.source import Answer, Interrupted, Unchanged

_TIMEOUT = httpx.Timeout(60.0, connect=20.0)
"""Seconds of silence that are borne, and seconds for a connection to come about."""

_PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})
"""Answers after which the same request may be given another."""


class HttpSource:
    """See `source.Source`. A version is an ETag or, where there is none, a Last-Modified date.

    `public`: only from servers on the public internet, for users who are not to reach what this machine can reach.
    """

    def __init__(self, url: str, *, public: bool = False) -> None:
        self._url, self._public = url, public

    @contextlib.contextmanager
    def get(self, start: int, version: str, unless: str) -> Iterator[Answer]:
        if version.startswith("W/"):
            start = 0  # a weak ETag vouches for the meaning, not for the bytes
        # Compression on the way would make offsets mean nothing.
        headers = {"Accept-Encoding": "identity", "User-Agent": f"gridhypervisor/{__version__}"}
        if start:
            headers["Range"] = f"bytes={start}-"
            if version:
                headers["If-Range"] = version
        if unless:
            headers["If-None-Match" if '"' in unless else "If-Modified-Since"] = unless
        try:
            with (
                httpx.Client(follow_redirects=True, timeout=_TIMEOUT, event_hooks=self._hooks) as client,
                client.stream("GET", self._url, headers=headers) as response,
            ):
                yield _answer(response, start)
        except (httpx.UnsupportedProtocol, httpx.InvalidURL, httpx.TooManyRedirects) as error:
            raise InputError(f"{error}", "correct the URL in the job") from error
        except httpx.TransportError as error:
            raise Interrupted(f"{error}" or type(error).__name__) from error

    @property
    def _hooks(self) -> dict[str, list[Callable[..., Any]]]:
        """Told of each request and answer, redirected ones too."""
        return {"request": [_require_public], "response": [_require_public_peer]} if self._public else {}


def _require_public(request: httpx.Request) -> None:
    """Raises InputError: the server may not be asked."""
    try:
        found = socket.getaddrinfo(request.url.host, request.url.port or request.url.scheme, type=socket.SOCK_STREAM)
    except OSError as error:
        raise Interrupted(f"{request.url.host}: {error.strerror or error}") from error
    for *_, address in found:
        _judge(str(address[0]))


def _require_public_peer(response: httpx.Response) -> None:
    """A name may mean another address when it is looked up again. Not so where a proxy goes between."""
    url, proxies = response.request.url, getproxies()
    if (url.scheme in proxies or "all" in proxies) and not proxy_bypass(url.host):
        return
    _judge(str(response.extensions["network_stream"].get_extra_info("server_addr")[0]))


def _judge(address: str) -> None:
    plain = ipaddress.ip_address(address.partition("%")[0])
    mapped = plain.ipv4_mapped if isinstance(plain, ipaddress.IPv6Address) else None
    if not (mapped or plain).is_global:
        why = f"{address} is not on the public internet"
        raise InputError(why, "send the file to the service as an upload, and name that")


def _answer(response: httpx.Response, asked: int) -> Answer:
    """What a response means to somebody who asked for the bytes from `asked` on."""
    headers = response.headers
    version = headers.get("ETag") or headers.get("Last-Modified") or ""
    match response.status_code:
        case 200:
            length = headers.get("Content-Length", "")
            return Answer(0, int(length) if length.isdecimal() else None, version, response.iter_raw())
        case 206:
            said = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", headers.get("Content-Range", ""))
            if not said or int(said[1]) != asked:
                raise InputError(
                    f"the server answered with other bytes than asked for ({headers.get('Content-Range')!r})",
                    "fetch the file by other means and name it by its path",
                )
            return Answer(asked, None if said[2] == "*" else int(said[2]), version, response.iter_raw())
        case 304:
            raise Unchanged
        case 416 if headers.get("Content-Range") == f"bytes */{asked}":
            return Answer(asked, asked, version, iter(()))  # there is no more: all of it came before
        case 404 | 410:
            raise InputError("there is no such file", "correct the URL in the job")
        case 401 | 403 | 407:
            raise InputError(f"the server refuses it ({response.status_code})", "see that you may read it from here")
        case code if code in _PASSING:
            after = headers.get("Retry-After", "")
            why = f"the server answered {code} {response.reason_phrase}"
            raise Interrupted(why, float(after) if after.isdecimal() else 0.0)
        case code:
            raise InputError(f"the server answered {code} {response.reason_phrase}", "correct the URL in the job")
