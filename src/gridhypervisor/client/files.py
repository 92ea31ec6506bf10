"""Files between this machine and a service elsewhere: inputs go there, results come back; both go on after a break."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from gridhypervisor.client.sync import Client
from gridhypervisor.model.access import Result
from gridhypervisor.model.spec import InputSpec, unsafe
from gridhypervisor.model.views import Problem, ServiceError

PIECE = 8 << 20
"""Bytes in one request."""

Tell = Callable[[str, int, int], None]
"""Told of a file, how many bytes of it are there, and how many it has."""


def send(client: Client, path: Path, tell: Tell = lambda name, done, size: None) -> str:
    """Send a file, unless the service has it. Its SHA-256, by which a job may name it.

    Raises:
        ServiceError: the service does not take it, or it changed meanwhile. OSError: it cannot be read.
    """
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        size = os.fstat(file.fileno()).st_size
        there = client.upload(sha256)
        while not there.complete:
            file.seek(there.size)
            data = file.read(PIECE)
            if not data and there.size < size:
                why = f"{path} changed while it was read"
                raise ServiceError(Problem(f"send {path}", 409, "conflict", why, "wait until it is complete"))
            there = client.add_upload(sha256, there.size, size, data)
            tell(path.name, there.size, size)
    return sha256


def send_input(client: Client, item: InputSpec, folder: Path, tell: Tell = lambda *_: None) -> Iterator[InputSpec]:
    """The input, or those that a folder's files are, as a service elsewhere finds them. Raises as `send`."""
    path = Path(os.path.normpath(folder / Path(item.path).expanduser()))
    if not path.is_dir():
        yield _sent(client, path, item.name or path.name, item, tell)
        return
    root = path.resolve()
    for where, folders, names in os.walk(path, followlinks=True):
        for each in [*folders, *names]:
            found = Path(where, each)
            if found.is_symlink() and (not found.resolve().is_relative_to(root) or found.is_dir()):
                why = f"{found} is a symbolic link to {found.resolve()}, a folder or outside of {root}"
                hint = "put a copy in its place, or name what it leads to as an input of its own"
                raise ServiceError(Problem(f"send {path}", 422, "invalid", why, hint))
        folders.sort()
        for each in sorted(names):
            found = Path(where, each)
            name = f"{item.name or path.name}/{found.relative_to(path)}"
            yield _sent(client, found, name, item, tell)


def _sent(client: Client, path: Path, name: str, item: InputSpec, tell: Tell) -> InputSpec:
    sha256 = send(client, path, tell)
    if item.sha256 and item.sha256 != sha256:
        why = f"{path} has the SHA-256 {sha256}, but {item.sha256} was asked for"
        raise ServiceError(Problem(f"send {path}", 422, "invalid", why, "correct the sha256, or get the right file"))
    return InputSpec(path=sha256, sha256=sha256, name=name, executable=item.executable or os.access(path, os.X_OK))


def fetch(client: Client, job: str, folder: Path, tell: Tell = lambda name, done, size: None) -> list[Path]:
    """Bring the results that the service keeps of a job into a folder; files of their names are replaced.

    Raises:
        ServiceError: one cannot be had, or not whole. OSError: it cannot be written.
    """
    found = client.results(job)
    for each in found:
        if unsafe(each.path):
            raise _damaged(job, each, "its path would leave the folder")
        place = folder / each.path
        place.parent.mkdir(parents=True, exist_ok=True)
        if not place.parent.resolve().is_relative_to(folder.resolve()):
            raise _damaged(job, each, f"a symbolic link is in the way: {place.parent}")
        if each.link:
            _link(job, each, place)
        else:
            _fetch(client, job, each, place, tell)
    return [folder / each.path for each in found]


def _fetch(client: Client, job: str, result: Result, place: Path, tell: Tell) -> None:
    part = place.with_name(f".ghv-{hashlib.sha256(place.name.encode()).hexdigest()[:16]}.part")
    with open(os.open(part, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600), "r+b") as file:
        done = min(file.seek(0, os.SEEK_END), result.size)
        while done < result.size:
            data = client.result(job, result.path, offset=done, limit=PIECE)
            if not data:
                raise _damaged(job, result, f"it ends after {done} of {result.size} bytes")
            file.seek(done)
            file.write(data)
            done += len(data)
            tell(result.path, done, result.size)
        file.truncate(result.size)
        file.seek(0)
        if result.sha256 and hashlib.file_digest(file, "sha256").hexdigest() != result.sha256:
            part.unlink()
            raise _damaged(job, result, "what came is not what the job made")
        os.fchmod(file.fileno(), result.mode & 0o777)
    part.replace(place)


def _link(job: str, result: Result, place: Path) -> None:
    if unsafe(os.path.normpath(os.path.join(os.path.dirname(result.path), result.link))) or result.link[:1] == "/":
        raise _damaged(job, result, f"it is a link to {result.link}, outside the results")
    place.unlink(missing_ok=True)
    place.symlink_to(result.link)


def _damaged(job: str, result: Result, why: str) -> ServiceError:
    return ServiceError(Problem(f"fetch {result.path} of job {job}", 502, "internal", why, "try again"))
