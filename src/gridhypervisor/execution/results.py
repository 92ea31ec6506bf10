"""Brings a run's outputs home, trusting neither the site nor the guest.

Root in the guest chooses the outputs' names, contents and links. So what is brought is what the job declared, and
nothing else; it is written below the destination, and never through a symbolic link that lies there; and a link is made
only if it can lead nowhere but into the outputs, whatever other links there are. What cannot be brought, now or ever,
does not keep the rest from coming.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from gridhypervisor.model.spec import unsafe
from gridhypervisor.model.wire import OutputFile, declared, leads_inside

DECLARE = "the guest offers what the job did not ask for: see what the program does, or declare it with `outputs`"


class Unfit(Exception):
    """An output cannot be brought to where it belongs, however often it is tried."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.hint = hint


def admit(output: OutputFile, patterns: Sequence[str]) -> None:
    """See that the output is one of those declared, or lies below a folder that is, and leads nowhere else.

    Raises:
        Unfit: it is not.
    """
    if unsafe(output.path) or "." in output.path.split("/"):
        raise Unfit(f"output {output.path!r}: it would leave the folder", DECLARE)
    if not declared(output.path, patterns):
        raise Unfit(f"output {output.path!r}: it matches no declared pattern", DECLARE)
    if output.link and not leads_inside(output.path, output.link):
        raise Unfit(f"output {output.path!r}: a link to {output.link!r}, outside the outputs", DECLARE)


@contextlib.contextmanager
def place_of(destination: Path, path: str) -> Iterator[Path]:
    """Where an output goes: a path of its own to its real folder, which is made. Good as long as the context lasts.

    Raises:
        Unfit: something that is no folder is in the way, or a name is too long.
        OSError: the disk is full, or the destination is gone or may not be written.
    """
    folders, name = path.split("/")[:-1], path.rpartition("/")[2]
    with _telling(destination, path):
        destination.mkdir(parents=True, exist_ok=True)
        here = os.open(destination, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for folder in folders:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(folder, dir_fd=here)
                below = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=here)
                os.close(here)
                here = below
            # By this name the folder is the one that was opened, whatever becomes of its path.
            yield Path(f"/proc/self/fd/{here}") / name
        finally:
            os.close(here)


def keep(files: Mapping[Path, bytes], mode: int = 0o600) -> None:
    """Write files, each whole or not at all and surely on the disk, in the place of files or links that are there.

    Raises:
        OSError: one could not be written; those before it may have been.
    """
    new = {place: place.with_name(f"{_new_name(place)}.part") for place in files}
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    place = Path()
    try:
        with contextlib.ExitStack() as opened:
            parts = []
            for place, data in files.items():
                parts.append(part := os.open(new[place], flags, 0o600))
                opened.callback(os.close, part)
                _write_all(part, data)
                os.fchmod(part, mode)
            for part in parts:  # only now: what the disk does for the first of them, it often does for all
                os.fsync(part)
        for place in files:
            new[place].replace(place)
    except OSError as error:
        for part_of_it in new.values():
            part_of_it.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(place)) from error


def _write_all(descriptor: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def _new_name(place: Path) -> str:
    """Beside a place, a name that no user's file has and every file system takes."""
    return f".ghv-{hashlib.sha256(os.fsencode(place.name)).hexdigest()[:16]}"


def make_link(place: Path, target: str) -> None:
    """Make a symbolic link, in the place of a file or link that is there."""
    new = place.with_name(f"{_new_name(place)}.link")
    new.unlink(missing_ok=True)  # of a try that was cut short
    new.symlink_to(target)
    try:
        new.replace(place)
    except OSError:
        new.unlink()
        raise


@contextlib.contextmanager
def _telling(destination: Path, path: str) -> Iterator[None]:
    """Errors name the place as the user knows it; those that time does not mend are told apart."""
    whole = f"{destination}/{path}"
    try:
        yield
    except OSError as error:
        hint = {
            errno.ELOOP: "a symbolic link is in the way: remove it, or have the results go to another folder",
            errno.ENOTDIR: "a file or a link is where a folder must be: move it away",
            errno.EISDIR: "a folder is where the file must be: move it away",
            errno.EEXIST: "something else has the name: move it away",
            errno.ENAMETOOLONG: "the file system here takes no such name: let the program choose a shorter one",
            errno.EINVAL: "the file system here takes no such name: let the program choose another",
            errno.EACCES: "see that you may write there",
            errno.EPERM: "see that you may write there",
            errno.EROFS: "the file system here cannot be written",
        }.get(error.errno or 0)
        if hint is not None:
            raise Unfit(f"write {whole}: {error.strerror}", hint) from error
        raise OSError(error.errno, error.strerror, whole) from error
