"""The bundle as a transport sees it, and the transport to this machine's own account: a child process.

Places the bundle into the account's workdir, verified, starts the relay from it, and ends the relay by closing its
input. Connecting again is the caller's business.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import secrets
import shutil
import signal
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gridhypervisor.model.errors import LinkError, LinkLost
from gridhypervisor.model.records import Site
from gridhypervisor.model.wire import BUNDLES
from gridhypervisor.sites.relayclient import RelayLink

SUMS = "SUMS"

DEFAULT_WORKDIR = "~/.ghv"

PASSED_ON = ("HOME", "PATH", "USER", "LOGNAME", "SHELL", "LANG", "TMPDIR", "GHV_NO_INOTIFY")
"""The environment that a local relay, and so a batch job, gets of ours: anything else might be a secret."""

FAREWELL = 5.0
"""Seconds that a relay has to end after its input was closed."""

MAX_LOG = 1 << 20
"""Bytes of the relay's log that are kept when a new relay starts."""


MEND = "remove that folder and start the service again: it is made anew"


@dataclass(frozen=True)
class Part:
    name: str  # relative to the bundle's folder
    sha256: str


@dataclass(frozen=True)
class Bundle:
    """What travels: a folder on this machine, named by the digest of its SUMS."""

    path: Path

    @property
    def digest(self) -> str:
        return self.path.name

    def parts(self) -> tuple[Part, ...]:
        """Everything that SUMS lists, and SUMS itself, last.

        Raises:
            LinkError: the folder is not the bundle that its name says.
        """
        try:
            text = (self.path / SUMS).read_bytes()
        except OSError as error:
            raise LinkError(f"read bundle {self.path}: {error}", "bundle", MEND) from error
        if hashlib.sha256(text).hexdigest() != self.digest:
            raise LinkError(f"read bundle {self.path}: {SUMS} is damaged", "bundle", MEND)
        lines = (line.split("  ", 1) for line in text.decode().splitlines())
        return (*(Part(name, digest) for digest, name in lines), Part(SUMS, self.digest))


class LocalTransport:
    """See `execution.ports.Transport`. The relay's stderr is appended to the file `log`."""

    def __init__(self, site: Site, bundle: Bundle, *, log: Path) -> None:
        self._site, self._bundle, self._log = site, bundle, log

    @staticmethod
    def workdir_of(site: Site) -> str:
        """The account's workdir on this machine, absolute."""
        return os.path.abspath(os.path.expanduser(site.workdir or DEFAULT_WORKDIR))

    @property
    def bundle(self) -> str:
        return self._bundle.digest

    @contextlib.asynccontextmanager
    async def connect(self, on_note: Callable[[dict[str, Any], bytes], None]) -> AsyncIterator[RelayLink]:
        """A link to a new relay of this site.

        Raises:
            LinkError: the workdir cannot be used, or our own bundle is damaged.
            LinkLost: the relay could not be started.
        """
        workdir = Path(self.workdir_of(self._site))
        try:
            await asyncio.to_thread(place, self._bundle, workdir)
            epitaph, log = open_log(self._log)
        except OSError as error:
            raise LinkError(
                f"use {self._site.name}: workdir {workdir}: {error}", "io", "set `workdir` to a folder of yours"
            ) from error
        argv = ["/bin/sh", str(workdir / BUNDLES / self.bundle / "start"), "relay", "--workdir", str(workdir)]
        if self._site.scratch:
            argv += ["--scratch", self._site.scratch]
        environment = {key: os.environ[key] for key in PASSED_ON if key in os.environ}
        try:
            with log:
                child = await asyncio.create_subprocess_exec(
                    *argv, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=log, env=environment,
                    start_new_session=True,
                )  # fmt: skip
        except OSError as error:
            raise LinkLost(f"start the relay of {self._site.name}: {error}") from error
        assert child.stdin and child.stdout
        link = RelayLink(self._site.name, child.stdout, child.stdin, on_note, local=True, epitaph=epitaph)
        try:
            yield link
        finally:
            await link.close()
            await end_child(child)


async def end_child(child: asyncio.subprocess.Process) -> None:
    """Close its input, and wait for its end: not for ever."""
    if child.stdin:
        child.stdin.close()
    try:
        await asyncio.wait_for(child.wait(), FAREWELL)
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        await child.wait()
    if child.stdin:
        with contextlib.suppress(OSError):  # what could not be written any more was told where it was sent
            await child.stdin.wait_closed()


def open_log(path: Path) -> tuple[Callable[[], str], Any]:
    """Open a relay's log for appending; also a function that gives the last words written since."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if path.exists() and path.stat().st_size > MAX_LOG:
        path.replace(path.with_name(f"{path.name}.1"))
    log = os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600), "ab", 0)
    began = os.fstat(log.fileno()).st_size

    def epitaph() -> str:
        with contextlib.suppress(OSError), path.open("rb") as file:
            file.seek(max(began, os.fstat(file.fileno()).st_size - 600))
            return " · ".join(file.read().decode(errors="replace").split("\n")[-3:]).strip(" ·")
        return ""

    return epitaph, log


def place(bundle: Bundle, workdir: Path) -> None:
    """Have the bundle in `workdir`, every byte verified; what is there already and right stays.

    Raises:
        LinkError: our own copy is damaged. OSError: the workdir cannot be written.
    """
    parts = bundle.parts()
    workdir.mkdir(mode=0o700, parents=True, exist_ok=True)
    workdir.chmod(0o700)
    target = workdir / BUNDLES / bundle.digest
    if _whole(target, parts):
        return
    new, old = (target.with_name(f".{target.name}.{secrets.token_hex(4)}") for _ in range(2))
    try:
        for part in parts:
            (new / part.name).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            # A copy, not a link: what happens to it at the site must not happen to ours.
            shutil.copy2(bundle.path / part.name, new / part.name)
        if not _whole(new, parts):
            raise LinkError(f"place bundle {bundle.path}: it is damaged", "bundle", MEND)
        with contextlib.suppress(FileNotFoundError):
            target.rename(old)
        with contextlib.suppress(OSError):  # somebody else was faster: theirs is as good
            new.rename(target)
    finally:
        for leftover in (new, old):
            shutil.rmtree(leftover, ignore_errors=True)


def _whole(folder: Path, parts: tuple[Part, ...]) -> bool:
    try:
        for part in parts:
            with (folder / part.name).open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != part.sha256:
                    return False
    except OSError:
        return False
    return True
