"""Ways into an account behind SSH: finds a control master that is there, or starts one that needs no person.

In this order: the master that `ghv site login` left, the one that the user keeps, one of our own. Where none can be had
without a person, it says so; when to try again, others decide. The first lives on when the service ends, and ends with
the network or by `hang_up`; ours ends with its use.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import signal
import stat
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

from gridhypervisor.model.errors import LinkError, LinkLost, LoginNeeded
from gridhypervisor.model.records import Site
from gridhypervisor.sites import openssh
from gridhypervisor.sites.transport import FAREWELL, end_child

LOGIN = 90.0
"""Seconds from the start of a master to its login: name look-ups, jump hosts, keys, a slow directory at the site."""
LOCAL = 10.0
"""Seconds that a master on this machine may take to answer a question about itself."""
SILENT = -1
"""Instead of an exit code: it has not ended within that time."""
AGAIN = 0.1
"""Seconds between two requests to a master to end."""
KEPT = 64 << 10
"""Bytes of what a master prints that are kept."""
LONGEST_SOCKET = 107 - len(".0123456789abcdef")
"""Bytes of a socket's path: the kernel's limit, less what ssh appends while it makes one."""


@dataclass(frozen=True)
class Way:
    """A master that is in. `session` with a remote command added opens a session; `words` is what ssh said so far."""

    session: tuple[str, ...]
    words: Callable[[], str] = lambda: ""


class Ways:
    """`folder`: this installation's sockets, and no other's, lie there. It is made, and nobody else may enter it."""

    def __init__(self, site: Site, folder: Path) -> None:
        self._site = site
        # Another account is another socket: what was opened for one must never serve the other.
        account = (site.name, site.host, str(site.port), site.user, site.ssh_config)
        name = hashlib.sha256("\0".join(account).encode()).hexdigest()[:8]
        self._folder = folder
        self._login, self._own = folder / f"{name}l", folder / f"{name}o"
        self._alone = False  # whether a master of our own ever got in

    async def login(self) -> tuple[str, ...]:
        """The command line that lets a person in, from a terminal; empty: somebody is in already.

        Raises:
            LinkError: the sockets' folder has too long a name.
            LinkLost: the one who is in does not answer.
        """
        self._prepare()
        if await self._answers(self._login):
            return ()
        return openssh.login(self._site, str(self._login))

    async def hang_up(self) -> None:
        """End the masters that are ours to end, whoever logged in."""
        for socket in (self._login, self._own):
            if socket.exists():
                await _says("exit", str(socket))
                socket.unlink(missing_ok=True)

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator[Way]:
        """A way in, for as long as the context lasts.

        Raises:
            LoginNeeded: it takes a person.
            LinkError: the host's key is not known, or the configuration cannot be used.
            LinkLost: the host cannot be reached.
        """
        self._prepare()
        # Each is looked at before it is asked: what comes after that is news.
        seen = {self._login: _identity(self._login)}
        if await self._answers(self._login):
            yield Way(openssh.session(str(self._login)))
            return
        _, resolved, _ = await _run(openssh.resolve(self._site))
        if theirs := openssh.control_path(resolved):
            seen[Path(theirs)] = _identity(Path(theirs))
            if seen[Path(theirs)] and await _says("check", theirs):
                yield Way(openssh.session(theirs))
                return
        async with self._master(lambda: any(_identity(path) not in (None, was) for path, was in seen.items())) as way:
            yield way

    def _prepare(self) -> None:
        if len(os.fsencode(self._login)) > LONGEST_SOCKET:
            why = f"{self._login} is longer than the {LONGEST_SOCKET} bytes that ssh can use"
            raise LinkError(f"connect to {self._site.name}: {why}", "socket", "set GHV_RUNTIME to a shorter path")
        self._folder.mkdir(mode=0o700, exist_ok=True)

    async def _answers(self, socket: Path) -> bool:
        """Whether a master of ours is there. The socket of a dead one is removed: it would be in the next one's way."""
        if not socket.exists():
            return False
        code, _, _ = await _run(openssh.ask("check", str(socket)))
        if code == SILENT:
            raise LinkLost(f"connect to {self._site.name}: the login at {socket} does not answer")
        if code != 0:
            socket.unlink(missing_ok=True)
        return code == 0

    @contextlib.asynccontextmanager
    async def _master(self, came: Callable[[], bool]) -> AsyncIterator[Way]:
        if self._own.exists():  # of a service that was killed
            await _says("exit", str(self._own))
            self._own.unlink(missing_ok=True)
        child = await _start(openssh.master(self._site, str(self._own)), stdin=asyncio.subprocess.DEVNULL)
        assert child.stdout and child.stderr
        said = bytearray()
        listening = asyncio.create_task(_listen(child.stderr, said))
        try:
            try:
                async with asyncio.timeout(LOGIN):
                    told = await _heard(child.stdout)
            except TimeoutError:
                told = False
                said += f"\nno login within {LOGIN:.0f} s\n".encode()
            if not told:
                await _stop(child)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(asyncio.shield(listening), LOCAL)
                raise self._refusal(said.decode(errors="replace"), came)
            self._alone = True
            yield Way(openssh.session(str(self._own)), lambda: openssh.last_words(said.decode(errors="replace")))
        finally:
            listening.cancel()
            await _stop(child)
            self._own.unlink(missing_ok=True)

    def _refusal(self, said: str, came: Callable[[], bool]) -> Exception:
        verdict = openssh.judge(self._site, said)
        if isinstance(verdict, openssh.Denied):
            hint = openssh.advice(self._site, verdict.methods)
            return LoginNeeded(verdict.message, hint, came=came, passing=self._alone)
        return verdict


async def run(argv: tuple[str, ...], *, seconds: float) -> tuple[int, bytes, bytes]:
    """Run ssh to its end, without a terminal; its exit code and all that it printed.

    Raises:
        TimeoutError: it took longer, and was ended.
        LinkError: there is no ssh.
    """
    child = await _start(argv, stdin=asyncio.subprocess.DEVNULL)
    try:
        async with asyncio.timeout(seconds):
            out, err = await child.communicate()
    finally:
        await end_child(child)
    return child.returncode or 0, out, err


async def start(argv: tuple[str, ...], *, stderr: int) -> asyncio.subprocess.Process:
    """Start ssh without a terminal, with pipes for what goes in and out.

    Raises:
        LinkError: there is no ssh.
    """
    return await _start(argv, stdin=asyncio.subprocess.PIPE, stderr=stderr)


async def _start(
    argv: tuple[str, ...], *, stdin: int, stderr: int = asyncio.subprocess.PIPE
) -> asyncio.subprocess.Process:
    # Nobody sits at the service: nothing may ask, be it on a terminal (a new session has none) or in a window.
    environment = {key: value for key, value in os.environ.items() if key not in ("DISPLAY", "SSH_ASKPASS")}
    environment |= {"SSH_ASKPASS_REQUIRE": "never", "SHELL": "/bin/sh"}  # the latter runs what it runs here
    try:
        return await asyncio.create_subprocess_exec(
            *argv, stdin=stdin, stdout=asyncio.subprocess.PIPE, stderr=stderr, env=environment, start_new_session=True
        )
    except OSError as error:
        raise LinkError(f"start {argv[0]}: {error.strerror}", "program", "install OpenSSH's client") from error


async def _run(argv: tuple[str, ...]) -> tuple[int, str, str]:
    """Run what concerns this machine alone."""
    try:
        code, out, err = await run(argv, seconds=LOCAL)
    except TimeoutError:
        return SILENT, "", ""
    return code, out.decode(errors="replace"), err.decode(errors="replace")


async def _says(word: str, socket: str) -> bool:
    """Whether a master at this socket heard the word."""
    code, _, _ = await _run(openssh.ask(word, socket))
    return code == 0


async def _heard(stream: asyncio.StreamReader) -> bool:
    """Whether the mark comes before the end."""
    while line := await stream.readline():
        if openssh.MARK.encode() in line:
            return True
    return False


async def _listen(stream: asyncio.StreamReader, said: bytearray) -> None:
    """Take in what a master prints, for ever; of a long story the end."""
    while data := await stream.read(KEPT):
        said += data
        del said[:-KEPT]


async def _stop(child: asyncio.subprocess.Process) -> None:
    """End a master, with what it started to get there."""
    for _ in range(int(FAREWELL / AGAIN)):
        if child.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGTERM)
        # One that was just about to sleep has missed it (OpenSSH 9.2), and hears the next.
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(child.wait(), AGAIN)
    await end_child(child)


def _identity(path: Path) -> tuple[int, int] | None:
    """Which socket lies there; None: none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return (found.st_ino, found.st_ctime_ns) if stat.S_ISSOCK(found.st_mode) else None
