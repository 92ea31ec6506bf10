"""The transport to an account behind SSH. The other side needs a POSIX shell, cat, mkdir and chmod, and nothing else.

It checks the host's key, uploads what is missing of the bundle (its busybox first: the rest is looked at with that),
verifies it there, starts the relay and ends it by closing its input. Connecting again is the caller's business, and so
is everything that the user's own SSH configuration says: aliases, jump hosts, agents.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import asyncssh

from gridhypervisor.model.errors import LinkError, LinkLost
from gridhypervisor.model.records import Site
from gridhypervisor.model.wire import BUNDLES
from gridhypervisor.sites.relayclient import RelayLink
from gridhypervisor.sites.transport import DEFAULT_WORKDIR, FAREWELL, Bundle, Part, open_log

CONNECT = 30.0
"""Seconds for TCP, host key and login."""
KEEP_ALIVE = (15.0, 3)
"""Seconds between signs of life, and how many may be missed before the connection counts as lost."""
STEP = 120.0
"""Seconds for one step of the bootstrap that moves no data."""
BLOCK = 256 << 10
STALLED = 60.0
"""Seconds that the upload may stand still."""
MARK = "::ghv::"
"""Begins every line that is meant for us: logins print greetings, and shells complain."""
CIPHERS = ("aes128-gcm@openssh.com", "aes256-gcm@openssh.com", "chacha20-poly1305@openssh.com", "aes256-ctr")


class SshTransport:
    """See `execution.ports.Transport`. The relay's stderr is appended to the file `log`.

    Raises:
        LinkError: the configured workdir is neither absolute nor below the home.
    """

    def __init__(
        self, site: Site, bundle: Bundle, *, log: Path, progress: Callable[[str], None] = lambda words: None
    ) -> None:
        self._site, self._bundle, self._log, self._progress = site, bundle, log, progress
        self._where = f"{site.user + '@' if site.user else ''}{site.host}:{site.port}"
        workdir = site.workdir or DEFAULT_WORKDIR
        if workdir.startswith("~/"):
            self._workdir = f'"$HOME"/{shlex.quote(workdir[2:])}'
        elif workdir.startswith("/"):
            self._workdir = shlex.quote(workdir)
        else:
            raise LinkError(f"configure site {site.name}: workdir {workdir!r}", hint="begin it with / or ~/")

    @property
    def bundle(self) -> str:
        return self._bundle.digest

    @contextlib.asynccontextmanager
    async def connect(self, on_note: Callable[[dict[str, Any], bytes], None]) -> AsyncIterator[RelayLink]:
        """A link to a new relay over a new SSH connection.

        Raises:
            LinkError: the host key or the login is refused, or the account cannot take the bundle.
            LinkLost: the host cannot be reached, or the connection broke on the way.
        """
        parts = await asyncio.to_thread(self._bundle.parts)
        connection = await self._login()
        try:
            async with self._bootstrap(connection, parts) as process:
                epitaph, log = open_log(self._log)
                with log:
                    await process.redirect(stderr=log)
                    link = RelayLink(self._site.name, process.stdout, process.stdin, on_note, epitaph=epitaph)
                    try:
                        yield link
                    finally:
                        await link.close()
        finally:
            connection.close()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(connection.wait_closed(), FAREWELL)

    # --- login ----------------------------------------------------------------------------------------------------

    async def _login(self) -> asyncssh.SSHClientConnection:
        what, offered = f"connect to {self._site.name} ({self._where})", _HostKey()
        options: dict[str, Any] = {"port": self._site.port}
        if self._site.user:
            options["username"] = self._site.user
        if self._site.key:
            options["client_keys"] = [os.path.expanduser(self._site.key)]
        if self._site.known_hosts:
            options["known_hosts"] = os.path.expanduser(self._site.known_hosts)
        try:
            return await asyncssh.connect(
                self._site.host, client_factory=lambda: offered, encryption_algs=CIPHERS, compression_algs=None,
                connect_timeout=CONNECT, login_timeout=CONNECT, keepalive_interval=KEEP_ALIVE[0],
                keepalive_count_max=KEEP_ALIVE[1], **options,
            )  # fmt: skip
        except asyncssh.HostKeyNotVerifiable as error:
            raise LinkError(f"{what}: {offered.words()}", "host-key", self._how_to_trust()) from error
        except asyncssh.PermissionDenied as error:
            key = self._site.key or "the agent's keys and the default ones"
            raise LinkError(
                f"{what}: the host refused the login with {key}: {error.reason}", "login",
                "try `ssh` with the same user and key; a key with a passphrase must be in the agent (ssh-add)",
            ) from error  # fmt: skip
        except (asyncssh.KeyImportError, asyncssh.KeyEncryptionError) as error:
            raise LinkError(
                f"{what}: key {self._site.key} cannot be read: {error}", "login", "add it to the agent (ssh-add)"
            ) from error
        except (asyncssh.Error, OSError) as error:  # TimeoutError is one of the latter
            raise LinkLost(f"{what}: {str(error) or 'no answer in time'}") from error

    def _how_to_trust(self) -> str:
        file = self._site.known_hosts or "~/.ssh/known_hosts"
        host = self._site.host if self._site.port == 22 else f"[{self._site.host}]:{self._site.port}"
        return (
            f"ask the site for its key's fingerprint; if it is this one: ssh-keygen -R '{host}' -f {file}; "
            f"ssh-keyscan -p {self._site.port} {self._site.host} >> {file}"
        )

    # --- bootstrap ------------------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def _bootstrap(
        self, connection: asyncssh.SSHClientConnection, parts: tuple[Part, ...]
    ) -> AsyncIterator[asyncssh.SSHClientProcess[bytes]]:
        """Put the bundle there and start its relay; on leaving, close the relay's input and wait for its end."""
        try:
            workdir = await self._place(connection, parts)
            # The front-end may lack the nodes' scratch.
            scratch = shlex.quote(self._site.scratch)
            script = (
                f's={scratch}; [ -d "$s" ] || s=${{TMPDIR:-/tmp}}; [ -d "$s" ] || s=/tmp; echo {MARK}; '
                f'exec /bin/sh {shlex.quote(f"{workdir}/{BUNDLES}/{self.bundle}/start")} relay --scratch "$s" '
                f"--workdir {shlex.quote(workdir)}"
            )
            process = await connection.create_process(_shell(script), encoding=None)
            async with asyncio.timeout(STEP):
                await process.stdout.readuntil(f"{MARK}\n".encode())
        except asyncio.IncompleteReadError as error:
            raise LinkLost(f"start the relay at {self._site.name}: its shell ended at once") from error
        except (asyncssh.Error, OSError) as error:
            raise LinkLost(f"start the relay at {self._site.name}: {str(error) or 'no answer in time'}") from error
        try:
            yield process
        finally:
            with contextlib.suppress(OSError, asyncssh.Error):
                process.stdin.write_eof()
                await asyncio.wait_for(process.wait_closed(), FAREWELL)

    async def _place(self, connection: asyncssh.SSHClientConnection, parts: tuple[Part, ...]) -> str:
        """Have the bundle in the account's workdir, verified; give the workdir's absolute path."""
        look = (
            f"umask 077; mkdir -p {self._workdir} && chmod 700 {self._workdir} && cd {self._workdir} && "
            f"mkdir -p {BUNDLES} && echo {MARK} workdir $(pwd -P) && cd {BUNDLES} || exit 1; "
            f"{_verify(self.bundle, self.bundle)} && echo {MARK} whole"
        )
        said = await self._run(connection, look, f"make {self._site.workdir or DEFAULT_WORKDIR}", may_fail=True)
        workdir = next((line.removeprefix("workdir ") for line in said if line.startswith("workdir ")), "")
        if not workdir:
            raise LinkError(
                f"use {self._site.name}: its workdir {self._site.workdir or DEFAULT_WORKDIR} cannot be made or entered",
                "io", "set the site's `workdir` to a folder of this account that front-end and nodes share",
            )  # fmt: skip
        if "whole" not in said:
            await self._upload(connection, f"{workdir}/{BUNDLES}", parts)
        return workdir

    async def _upload(self, connection: asyncssh.SSHClientConnection, folder: str, parts: tuple[Part, ...]) -> None:
        """Upload what is missing into `DIGEST.part`, verify it there, give it its name."""
        new = f"{folder}/{self.bundle}.part"
        sizes = {part.name: (self._bundle.path / part.name).stat().st_size for part in parts}
        folders = sorted({str(Path(part.name).parent) for part in parts} - {"."})
        enter = f"umask 077; cd {shlex.quote(new)}"
        make = f"umask 077; mkdir -p {shlex.quote(new)} && cd {shlex.quote(new)} && mkdir -p {_words('.', *folders)}"
        await self._run(connection, make, f"make {new}")
        busybox = next(part for part in parts if part.name == "busybox")
        check = f'{enter}; set -- $(./busybox sha256sum busybox) && [ "$1" = {busybox.sha256} ] && echo {MARK} whole'
        if "whole" not in await self._run(connection, check, f"look at {new}", may_fail=True):
            await self._send(connection, new, busybox, 0, sizes)
        sent = 0
        for _ in range(2):  # what proves damaged is sent once more, whole
            for part, have in (await self._sizes(connection, new, parts)).items():
                if have != sizes[part.name]:
                    await self._send(connection, new, part, have if have < sizes[part.name] else 0, sizes, sent)
                sent += sizes[part.name]
            sent = 0
            verify = (
                f"{enter}; ./busybox sha256sum -c SUMS 2>/dev/null | while IFS= read -r line; do case $line in "
                f"*': OK') ;; *) echo {MARK} bad ${{line%: *}}; ./busybox rm -f -- \"${{line%: *}}\" ;; esac; done; "
                f"{_verify('.', self.bundle)} && cd .. && {{ {self._rename()}; }} && echo {MARK} whole"
            )
            said = await self._run(connection, verify, f"verify {new}", may_fail=True)
            if "whole" in said:
                return
        raise LinkError(
            f"upload the bundle to {self._site.name}: {', '.join(said) or 'it'} cannot be verified in {new}", "io",
            "is the account's quota used up? Else remove that folder",
        )  # fmt: skip

    def _rename(self) -> str:
        # A damaged one goes first: nobody can start from it. Where another controller was faster, its is as good.
        name = self.bundle
        return (
            f"./{name}.part/busybox rm -rf ./{name}; ./{name}.part/busybox mv -T ./{name}.part ./{name} "
            f"|| {_verify(name, name)}"
        )

    async def _sizes(
        self, connection: asyncssh.SSHClientConnection, folder: str, parts: tuple[Part, ...]
    ) -> dict[Part, int]:
        """How many bytes of each part are there."""
        names = _words(*(part.name for part in parts))
        script = f"cd {shlex.quote(folder)} && ./busybox stat -c '{MARK} %s %n' {names} 2>/dev/null"
        said = await self._run(connection, script, f"look at {folder}", may_fail=True)
        sizes = {name: int(size) for size, _, name in (line.partition(" ") for line in said)}
        return {part: sizes.get(part.name, 0) for part in parts}

    async def _send(
        self,
        connection: asyncssh.SSHClientConnection,
        folder: str,
        part: Part,
        offset: int,
        sizes: dict[str, int],
        before: int = 0,
    ) -> None:
        """Append a part's bytes from `offset` to what is there; `before`: bytes of the bundle that came before it."""
        name, local = shlex.quote(part.name), self._bundle.path / part.name
        mode = "700" if local.stat().st_mode & 0o100 else "600"
        write = f"cat >>{name}" if offset else f": >{name} && chmod {mode} {name} && cat >>{name}"
        script = f"umask 077; cd {shlex.quote(folder)} && {write} && echo {MARK} written"
        total = sum(sizes.values()) / 1e6
        process = await connection.create_process(_shell(script), encoding=None)
        try:
            with local.open("rb") as file:
                file.seek(offset)
                while data := await asyncio.to_thread(file.read, BLOCK):
                    process.stdin.write(data)
                    async with asyncio.timeout(STALLED):
                        await process.stdin.drain()
                    words = f"{(before + file.tell()) / 1e6:.0f} of {total:.0f} MB"
                    self._progress(f"bundle to {self._site.name}: {words}")
            process.stdin.write_eof()
            async with asyncio.timeout(STALLED):
                result = await process.wait()
        except BrokenPipeError:
            result = await process.wait()
        finally:
            process.close()
        if MARK.encode() not in (result.stdout or b""):
            raise LinkError(
                f"upload {part.name} of the bundle to {self._site.name}: {_tail(result.stderr)}", "io",
                f"is there space, and quota, for {total:.0f} MB in {folder}?",
            )  # fmt: skip

    async def _run(
        self, connection: asyncssh.SSHClientConnection, script: str, what: str, *, may_fail: bool = False
    ) -> list[str]:
        """Run a script of POSIX shell; the lines that it marked as meant for us, without the mark."""
        async with asyncio.timeout(STEP):
            result = await connection.run(_shell(script), encoding=None, stdin=asyncssh.DEVNULL)
        if result.exit_status != 0 and not may_fail:
            raise LinkError(f"{what} at {self._site.name}: {_tail(result.stderr)}", "io", "look at the workdir")
        stdout = result.stdout if isinstance(result.stdout, bytes) else b""
        lines = stdout.decode(errors="replace").splitlines()
        return [line.removeprefix(MARK).strip() for line in lines if line.startswith(MARK)]


class _HostKey(asyncssh.SSHClient):
    """Remembers the key that a host offered; trusts none beyond the known ones."""

    def __init__(self) -> None:
        self._fingerprint = ""

    def validate_host_public_key(self, host: str, addr: str, port: int, key: asyncssh.SSHKey) -> bool:
        self._fingerprint = f"{key.get_algorithm()} {key.get_fingerprint()}"
        return False

    def words(self) -> str:
        offered = f" ({self._fingerprint})" if self._fingerprint else ""
        return f"the host's key{offered} is not the one that is known for it, or none is known"


def _shell(script: str) -> str:
    """One command for whatever login shell the account has (csh, too, lets single quotes alone)."""
    return f"exec /bin/sh -c {shlex.quote(script)}"


def _verify(folder: str, digest: str) -> str:
    """Shell that succeeds, in a sub-shell, if `folder` holds exactly the bundle of that digest."""
    return (
        f"( cd {shlex.quote(folder)} 2>/dev/null && set -- $(./busybox sha256sum SUMS 2>/dev/null) && "
        f'[ "${{1-}}" = {digest} ] && ./busybox sha256sum -c SUMS >/dev/null 2>&1 )'
    )


def _words(*names: str) -> str:
    return " ".join(shlex.quote(name) for name in names)


def _tail(stderr: bytes | str | None) -> str:
    text = stderr.decode(errors="replace") if isinstance(stderr, bytes) else stderr or ""
    return " · ".join(text.strip().splitlines()[-2:]) or "no message"
