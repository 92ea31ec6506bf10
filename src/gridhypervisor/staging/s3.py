"""Objects of S3 and of what speaks like it. Credentials come from where the user's other tools find them, only.

The environment goes first (AWS_ACCESS_KEY_ID and its kin, AWS_REGION, AWS_ENDPOINT_URL), then the profile AWS_PROFILE
of ~/.aws/credentials and ~/.aws/config. With neither, objects are asked for without a signature, as public ones may be.
"""

from __future__ import annotations

import configparser
import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import obstore
from obstore import exceptions
from obstore.store import S3Store

from gridhypervisor.model.errors import InputError
from gridhypervisor.staging.source import CHUNK, Answer, Interrupted, Unchanged

if TYPE_CHECKING:
    from obstore import ObjectMeta
    from obstore.store import ClientConfig, S3Config

_CLIENT: ClientConfig = {"connect_timeout": "20s", "read_timeout": "60s", "timeout": "24h"}

_SIGNED_ELSEWHERE = (
    "AWS_ACCESS_KEY_ID",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
)
"""Variables by which the library finds credentials itself."""


class S3Source:
    """See `source.Source`. A version is an ETag."""

    def __init__(self, url: str, environ: Mapping[str, str] = os.environ) -> None:
        """For an address s3://BUCKET/KEY, in which the key stands as it is, without escapes."""
        bucket, _, self._key = url.removeprefix("s3://").partition("/")
        if not bucket or not self._key:
            raise InputError(f"fetch {url}: it names no object", "write s3://BUCKET/KEY")
        config = settings(environ)
        plain = config.get("endpoint", "").startswith("http://")
        self._store = S3Store(
            bucket,
            config=config,
            client_options={**_CLIENT, "allow_http": plain},
            retry_config={"max_retries": 0},  # `fetch` tries again, and says so
        )

    @contextlib.contextmanager
    def get(self, start: int, version: str, unless: str) -> Iterator[Answer]:
        meta = self._head()
        size, now = meta["size"], meta["e_tag"] or ""
        if unless and now == unless:
            raise Unchanged
        if version and now != version or start > size:
            start = 0
        if start == size:
            yield Answer(start, size, now, iter(()))
            return
        try:
            result = obstore.get(self._store, self._key, options={"if_match": now or None, "range": {"offset": start}})
            yield Answer(start, size, now, (bytes(chunk) for chunk in result.stream(min_chunk_size=CHUNK)))
        except exceptions.BaseError as error:
            raise Interrupted(_first_line(error)) from error

    def _head(self) -> ObjectMeta:
        try:
            return obstore.head(self._store, self._key)
        except FileNotFoundError as error:
            raise InputError("there is no such object", "correct the URL in the job") from error
        except (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError) as error:
            raise InputError(
                "the store refuses it",
                "see that the service's environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, or AWS_PROFILE) or "
                "~/.aws/credentials holds a key that may read it",
            ) from error
        except exceptions.BaseError as error:
            raise Interrupted(_first_line(error)) from error


def settings(environ: Mapping[str, str]) -> S3Config:
    """What the library does not find in the environment by itself, from the user's files."""
    home = Path(environ.get("HOME", "/"))
    profile = environ.get("AWS_PROFILE", "default")
    config = _section(environ.get("AWS_CONFIG_FILE") or home / ".aws/config", profile, f"profile {profile}")
    keys = _section(environ.get("AWS_SHARED_CREDENTIALS_FILE") or home / ".aws/credentials", profile)
    found: S3Config = {}
    region = environ.get("AWS_REGION") or environ.get("AWS_DEFAULT_REGION") or config.get("region")
    if region:
        found["region"] = region
    endpoint = environ.get("AWS_ENDPOINT_URL_S3") or environ.get("AWS_ENDPOINT_URL") or config.get("endpoint_url")
    if endpoint:
        found["endpoint"] = endpoint
    if any(environ.get(name) for name in _SIGNED_ELSEWHERE):
        return found
    if "aws_access_key_id" in keys and "aws_secret_access_key" in keys:
        found["access_key_id"] = keys["aws_access_key_id"]
        found["secret_access_key"] = keys["aws_secret_access_key"]
        if "aws_session_token" in keys:
            found["session_token"] = keys["aws_session_token"]
    else:
        found["skip_signature"] = True
    return found


def _section(path: Path | str, *names: str) -> Mapping[str, str]:
    """The first of these sections that a file has; nothing where there is neither."""
    parser = configparser.RawConfigParser()
    try:
        parser.read(path)
    except configparser.Error as error:
        raise InputError(f"{path} cannot be read: {error.message}", "mend the file") from error
    return next((parser[name] for name in names if parser.has_section(name)), {})


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
