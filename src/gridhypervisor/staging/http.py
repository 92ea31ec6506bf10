"""Objects of web servers. Proxies and certificates are those of the user's environment."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

import httpx

from gridhypervisor import __version__
from gridhypervisor.model.errors import InputError
from gridhypervisor.staging.source import Answer, Interrupted, Unchanged

_TIMEOUT = httpx.Timeout(60.0, connect=20.0)
"""Seconds of silence that are borne, and seconds for a connection to come about."""

_PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})
"""Answers after which the same request may be given another."""


class HttpSource:
    """See `source.Source`. A version is an ETag or, where there is none, a Last-Modified date."""

    def __init__(self, url: str) -> None:
        self._url = url

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
                httpx.Client(follow_redirects=True, timeout=_TIMEOUT) as client,
                client.stream("GET", self._url, headers=headers) as response,
            ):
                yield _answer(response, start)
        except (httpx.UnsupportedProtocol, httpx.InvalidURL, httpx.TooManyRedirects) as error:
            raise InputError(f"{error}", "correct the URL in the job") from error
        except httpx.TransportError as error:
            raise Interrupted(f"{error}" or type(error).__name__) from error


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
