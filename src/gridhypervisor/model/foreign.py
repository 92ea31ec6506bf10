"""What a job may ask for that has no place of its own on the service's machine, as those that come over the network.

Such a job reads no file, key or private network of the service's user, and writes none: its inputs are uploads, named
by their SHA-256, or on the public internet; its results stay with it until they are fetched.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from gridhypervisor.model.spec import JobSpec, unsafe

PUBLIC = ("http://", "https://")

_URL = re.compile(r"[a-z][a-z0-9+.-]*://")
_DIGEST = re.compile("[0-9a-f]{64}")


def is_upload(path: str) -> bool:
    """Whether a path names an upload: by the SHA-256 of what is in it."""
    return _DIGEST.fullmatch(path) is not None


def uploads(spec: JobSpec) -> Iterator[tuple[str, str]]:
    """Of the inputs that are paths: the field, and the path."""
    for i, item in enumerate(spec.inputs):
        path = item if isinstance(item, str) else item.path
        if path and not _URL.match(path):
            yield f"inputs[{i}]", path


def foreign_inputs(spec: JobSpec) -> Iterator[tuple[str, str]]:
    """Without a folder: (field, problem) of each input that only the service's user could name."""
    for field, path in uploads(spec):
        if not is_upload(path):
            yield field, f"{path!r} is no upload; send the file (PUT /v1/uploads/SHA256), and name it by its SHA-256"
    for i, item in enumerate(spec.inputs):
        url = item if isinstance(item, str) else item.url
        if _URL.match(url) and not url.startswith(PUBLIC):
            yield f"inputs[{i}]", f"only {' and '.join(PUBLIC)} can be fetched for it"


def foreign_results(spec: JobSpec) -> Iterator[tuple[str, str]]:
    """Without a destination: (field, problem) of each place for results that is not among them."""
    places = {"stdout": spec.stdout, "stderr": spec.stderr}
    places |= {f"destinations.{name}": place for name, place in spec.destinations.items()}
    for field, place in places.items():
        if place and unsafe(place):
            yield field, f"{place!r} must be a relative path that stays inside the job's results"
