"""From the spec's inputs to named files: which there are, what they are called in the job's folder, what is in them.

A name comes from the input's `name`, or else from the last part of its path or URL; the files of a folder keep their
places below it. Folders that hold no file leave no trace. Symbolic links are followed, but not out of the folder that
the user named: a job gets what lies there, and nothing else.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from gridhypervisor.model.errors import InputError
from gridhypervisor.model.spec import InputSpec, unsafe
from gridhypervisor.model.wire import Input
from gridhypervisor.staging.fetch import SCHEMES, fetch, shown

Progress = Callable[[str, int, int | None], None]
"""Told of an input's name, the bytes that are here, and how many there are (None: not known)."""


@dataclass(frozen=True)
class Planned:
    """One file that the job will find under `name`. Exactly one of `local` and `url` is set."""

    name: str  # relative to the job's folder
    field: str  # where in the spec it comes from, e.g. "inputs[2]"
    local: Path | None = None
    url: str = ""
    sha256: str = ""  # what the user expects; empty: anything
    mode: int = 0o644


@dataclass(frozen=True)
class Staged:
    """An input as a file on this machine, and as the pilot will be told of it."""

    local: Path
    described: Input


def expand(specs: Sequence[str | InputSpec], folder: Path) -> list[Planned]:
    """Every file that the inputs stand for, in their order; paths are read from the absolute `folder`.

    Nothing is fetched or read, but each local file is opened once: so it is a check for when a job is accepted, too.

    Raises:
        InputError: an input is missing, unreadable, of a kind that cannot be staged, leaves its folder, or has the name
            of another.
    """
    planned: list[Planned] = []
    for i, spec in enumerate(specs):
        field = f"inputs[{i}]"
        if isinstance(spec, str):
            spec = InputSpec(url=spec) if spec.startswith(SCHEMES) else InputSpec(path=spec)
        planned += [_remote(spec, field)] if spec.url else _local(spec, field, folder)
    _refuse_clashes(planned)
    return planned


def stage(
    specs: Sequence[str | InputSpec], folder: Path, cache: Path, progress: Progress = lambda name, done, total: None
) -> list[Staged]:
    """Every input as a file on this machine, with its digest; URLs are fetched into `cache`.

    Raises:
        InputError: see `expand` and `fetch`; or a local file is not the one whose checksum is given.
        OSError: the cache cannot be written.
    """
    return [_staged(item, cache, progress) for item in expand(specs, folder)]


def digest(path: Path) -> tuple[str, int]:
    """(SHA-256 in hex, size in bytes) of a file's content.

    Raises:
        InputError: somebody wrote to it meanwhile.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        before = os.fstat(file.fileno())
        found = hashlib.file_digest(file, "sha256").hexdigest()
        after = os.fstat(file.fileno())
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise InputError(f"{path} changed while it was read", "wait until it is complete, then run the job again")
    return found, after.st_size


def _staged(item: Planned, cache: Path, progress: Progress) -> Staged:
    if item.local is None:
        try:
            got = fetch(item.url, item.sha256, cache, lambda done, total: progress(item.name, done, total))
        except InputError as error:
            raise InputError(f"{item.field}: {error}", error.hint) from error
        return Staged(got.path, Input(item.name, got.size, got.sha256, item.mode))
    return local_file(item, progress)


def local_file(item: Planned, progress: Progress) -> Staged:
    """A planned local file, read through.

    Raises:
        InputError: it cannot be read, changes meanwhile, or is not the one whose checksum is given.
    """
    assert item.local is not None
    try:
        found, size = digest(item.local)
    except InputError as error:
        raise InputError(f"{item.field}: {error}", error.hint) from error
    except OSError as error:
        raise _unreadable(item.field, item.local, error) from error
    if item.sha256 and found != item.sha256:
        raise InputError(
            f"{item.field}: {item.local} has the SHA-256 {found}, but {item.sha256} was asked for",
            "correct the sha256 in the job, or get the right file",
        )
    progress(item.name, size, size)
    return Staged(item.local, Input(item.name, size, found, item.mode))


def _remote(spec: InputSpec, field: str) -> Planned:
    if not spec.url.startswith(SCHEMES):
        raise InputError(
            f"{field}: {shown(spec.url)} cannot be fetched", f"write a URL that begins with {', '.join(SCHEMES)}"
        )
    if spec.url.startswith("s3://"):
        last = spec.url.rpartition("/")[2]
    else:
        last = unquote(urlsplit(spec.url).path.rpartition("/")[2])
    name = _name(spec.name or last, field, shown(spec.url))
    return Planned(name, field, url=spec.url, sha256=spec.sha256, mode=0o755 if spec.executable else 0o644)


def _local(spec: InputSpec, field: str, folder: Path) -> list[Planned]:
    path = Path(os.path.normpath(folder / spec.path))
    name = _name(spec.name or path.name, field, str(path))
    try:
        found = path.stat()
    except OSError as error:
        raise _unreadable(field, path, error) from error
    if not stat.S_ISDIR(found.st_mode):
        item = _file(path, found, name, field, spec.sha256)
        return [dataclasses.replace(item, mode=item.mode | 0o111) if spec.executable else item]
    if spec.sha256:
        raise InputError(
            f"{field}: {path} is a folder, and a sha256 is that of one file", "name the files one by one, or drop it"
        )
    return list(_walk(path, name, field, path.resolve(), ()))


def _walk(folder: Path, name: str, field: str, root: Path, above: tuple[Path, ...]) -> Iterator[Planned]:
    """The files below a folder, by name; `above` are the folders that lead to it, as they really are."""
    real = folder.resolve()
    if real in above:
        raise InputError(f"{field}: {folder} leads back to {real}, which holds it", "remove the symbolic link")
    try:
        items = sorted(os.scandir(folder), key=lambda item: item.name)
    except OSError as error:
        raise _unreadable(field, folder, error) from error
    for item in items:
        path = Path(item.path)
        if item.is_symlink() and not path.resolve().is_relative_to(root):
            raise InputError(
                f"{field}: {path} is a symbolic link to {path.resolve()}, outside of {root}",
                "put a copy in its place, or name what it leads to as an input of its own",
            )
        try:
            found = path.stat()
        except OSError as error:
            raise _unreadable(field, path, error) from error
        below = _name(f"{name}/{item.name}", field, str(path))
        if stat.S_ISDIR(found.st_mode):
            yield from _walk(path, below, field, root, (*above, real))
        else:
            yield _file(path, found, below, field, "")


def _file(path: Path, found: os.stat_result, name: str, field: str, sha256: str) -> Planned:
    if not stat.S_ISREG(found.st_mode):
        raise InputError(f"{field}: {path} is neither a file nor a folder", "a job can only be given files and folders")
    try:
        path.open("rb").close()
    except OSError as error:
        raise _unreadable(field, path, error) from error
    return Planned(name, field, local=path, sha256=sha256, mode=stat.S_IMODE(found.st_mode) & 0o777)


def _name(name: str, field: str, source: str) -> str:
    """The name in its usual form.

    Raises:
        InputError: it is none, could leave the job's folder, or is not UTF-8.
    """
    usual = str(PurePosixPath(name)) if name else "."
    try:
        usual.encode()
    except UnicodeEncodeError:
        shown_name = usual.encode(errors="surrogateescape")
        raise InputError(f"{field}: the name {shown_name!r} is not UTF-8", f"rename {source!r}") from None
    if usual == "." or unsafe(usual):
        raise InputError(f"{field}: {source} has no name that it could have in the job's folder", "give it a `name`")
    return usual


def _refuse_clashes(planned: Sequence[Planned]) -> None:
    """No two files of one name, and no file where another's folder must be."""
    taken = {item.name: item for item in reversed(planned)}
    for item in planned:
        names = [item.name, *map(str, PurePosixPath(item.name).parents)]
        for name in names:
            other = taken.get(name, item)
            if other is not item:
                raise InputError(
                    f"{item.field}: {item.name} is also what {other.field} is called in the job's folder"
                    if name == item.name
                    else f"{item.field}: {item.name} needs a folder {name}, which is the file of {other.field}",
                    "give one of them another `name`",
                )


def _unreadable(field: str, path: Path, error: OSError) -> InputError:
    if isinstance(error, FileNotFoundError):
        hint = "see that the path is right: relative ones are read from the folder where the job was given"
    else:
        hint = "see that you may read it"
    return InputError(f"{field}: cannot read {path}: {error.strerror or error}", hint)
