"""The transport to an account behind SSH. The other side needs a POSIX shell, cat, mkdir and chmod, and nothing else.

It takes the way in that `sites.ways` opens, uploads what is missing of the bundle (its busybox first: the rest is
looked at with that), verifies it there, starts the relay and ends it by closing its input. Connecting again is the
caller's business.
"""

from __future__ import annotations

import asyncio
import contextlib
import shlex
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from gridhypervisor.model.errors import LinkError, LinkLost
from gridhypervisor.model.records import Site
from gridhypervisor.model.wire import BUNDLES
from gridhypervisor.sites import ways
from gridhypervisor.sites.openssh import MARK
from gridhypervisor.sites.relayclient import RelayLink
from gridhypervisor.sites.transport import DEFAULT_WORKDIR, Bundle, Part, end_child, open_log
from gridhypervisor.sites.ways import Way, Ways

STEP = 120.0
"""Seconds for one step of the bootstrap that moves no data."""
BLOCK = 256 << 10
LOST = 255
"""With this exit code ssh says that it could not open a session, or lost it. No script of ours ends with it."""
STALLED = 60.0
"""Seconds that the upload may stand still."""


class SshTransport:
    """See `execution.ports.Transport`. The relay's stderr is appended to the file `log`.

    Raises:
        LinkError: the configured workdir is neither absolute nor below the home.
    """

    def __init__(
        self, site: Site, bundle: Bundle, *, log: Path, sockets: Path,
        progress: Callable[[str], None] = lambda words: None,
    ) -> None:  # fmt: skip
        self._site, self._bundle, self._log, self._progress = site, bundle, log, progress
        self._ways = Ways(site, sockets)
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
        """A link to a new relay.

        Raises:
            LoginNeeded: it takes a person to log in.
            LinkError: the host's key is refused, or the account cannot take the bundle.
            LinkLost: the host cannot be reached, or the connection broke on the way.
        """
        parts = await asyncio.to_thread(self._bundle.parts)
        async with self._ways.open() as way:
            try:
                workdir = await self._place(way, parts)
            except TimeoutError as error:
                raise LinkLost(f"place the bundle at {self._site.name}: no answer in time") from error
            epitaph, log = open_log(self._log)
            with log:
                relay = await self._start(way, workdir, log.fileno())
            assert relay.stdin and relay.stdout
            try:
                await self._began(relay.stdout, way)

                def last_words() -> str:
                    return " · ".join(filter(None, (epitaph(), way.words())))

                link = RelayLink(self._site.name, relay.stdout, relay.stdin, on_note, epitaph=last_words)
                try:
                    yield link
                finally:
                    await link.close()
            finally:
                await end_child(relay)

    # --- bootstrap ------------------------------------------------------------------------------------------------

    async def _start(self, way: Way, workdir: str, log: int) -> asyncio.subprocess.Process:
        """Start the relay, whose stderr goes to the file `log`."""
        # The front-end may lack the nodes' scratch.
        scratch = shlex.quote(self._site.scratch)
        script = (
            f's={scratch}; [ -d "$s" ] || s=${{TMPDIR:-/tmp}}; [ -d "$s" ] || s=/tmp; echo {MARK}; '
            f'exec /bin/sh {shlex.quote(f"{workdir}/{BUNDLES}/{self.bundle}/start")} relay --scratch "$s" '
            f"--workdir {shlex.quote(workdir)}"
        )
        return await ways.start((*way.session, _shell(script)), stderr=log)

    async def _began(self, stdout: asyncio.StreamReader, way: Way) -> None:
        """Read past the account's greetings, to where the relay's own words begin."""
        what = f"start the relay at {self._site.name}"
        try:
            async with asyncio.timeout(STEP):
                await stdout.readuntil(f"{MARK}\n".encode())
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
            raise LinkLost(f"{what}: {way.words() or 'its shell ended at once'}") from error
        except TimeoutError as error:
            raise LinkLost(f"{what}: no answer within {STEP:.0f} s") from error

    async def _place(self, way: Way, parts: tuple[Part, ...]) -> str:
        """Have the bundle in the account's workdir, verified; give the workdir's absolute path."""
        look = (
            f"umask 077; mkdir -p {self._workdir} && chmod 700 {self._workdir} && cd {self._workdir} && "
            f"mkdir -p {BUNDLES} && echo {MARK} workdir $(pwd -P) && cd {BUNDLES} || exit 1; "
            f"if {_verify(self.bundle, self.bundle)}; then echo {MARK} whole; fi"
        )
        hint = "set the site's `workdir` to a folder of this account that front-end and nodes share"
        what = f"make the workdir {self._site.workdir or DEFAULT_WORKDIR}"
        said = await self._run(way, look, what, hint=hint)
        workdir = next((line.removeprefix("workdir ") for line in said if line.startswith("workdir ")), "")
        if not workdir:
            raise LinkError(f"{what} at {self._site.name}: the account's shell does not say that it did", "io", hint)
        if "whole" not in said:
            await self._upload(way, f"{workdir}/{BUNDLES}", parts)
        return workdir

    async def _upload(self, way: Way, folder: str, parts: tuple[Part, ...]) -> None:
        """Upload what is missing into `DIGEST.part`, verify it there, give it its name."""
        new = f"{folder}/{self.bundle}.part"
        sizes = {part.name: (self._bundle.path / part.name).stat().st_size for part in parts}
        folders = sorted({str(Path(part.name).parent) for part in parts} - {"."})
        enter = f"umask 077; cd {shlex.quote(new)}"
        make = f"umask 077; mkdir -p {shlex.quote(new)} && cd {shlex.quote(new)} && mkdir -p {_words('.', *folders)}"
        await self._run(way, make, f"make {new}")
        busybox = next(part for part in parts if part.name == "busybox")
        check = f'{enter}; set -- $(./busybox sha256sum busybox) && [ "$1" = {busybox.sha256} ] && echo {MARK} whole'
        if "whole" not in await self._run(way, check, f"look at {new}", may_fail=True):
            await self._send(way, new, busybox, 0, sizes)
        sent = 0
        for _ in range(2):  # what proves damaged is sent once more, whole
            for part, have in (await self._sizes(way, new, parts)).items():
                if have != sizes[part.name]:
                    await self._send(way, new, part, have if have < sizes[part.name] else 0, sizes, sent)
                sent += sizes[part.name]
            sent = 0
            verify = (
                f"{enter}; ./busybox sha256sum -c SUMS 2>/dev/null | while IFS= read -r line; do case $line in "
                f"*': OK') ;; *) echo {MARK} bad ${{line%: *}}; ./busybox rm -f -- \"${{line%: *}}\" ;; esac; done; "
                f"{_verify('.', self.bundle)} && cd .. && {{ {self._rename()}; }} && echo {MARK} whole"
            )
            said = await self._run(way, verify, f"verify {new}", may_fail=True)
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

    async def _sizes(self, way: Way, folder: str, parts: tuple[Part, ...]) -> dict[Part, int]:
        """How many bytes of each part are there."""
        names = _words(*(part.name for part in parts))
        script = f"cd {shlex.quote(folder)} && ./busybox stat -c '{MARK} %s %n' {names} 2>/dev/null"
        said = await self._run(way, script, f"look at {folder}", may_fail=True)
        sizes = {name: int(size) for size, _, name in (line.partition(" ") for line in said)}
        return {part: sizes.get(part.name, 0) for part in parts}

    async def _send(
        self,
        way: Way,
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
        process = await ways.start((*way.session, _shell(script)), stderr=asyncio.subprocess.PIPE)
        assert process.stdin and process.stdout and process.stderr
        try:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError), local.open("rb") as file:
                file.seek(offset)
                while data := await asyncio.to_thread(file.read, BLOCK):
                    process.stdin.write(data)
                    async with asyncio.timeout(STALLED):
                        await process.stdin.drain()
                    words = f"{(before + file.tell()) / 1e6:.0f} of {total:.0f} MB"
                    self._progress(f"bundle to {self._site.name}: {words}")
                process.stdin.write_eof()
            async with asyncio.timeout(STALLED):
                said, complaints = await process.stdout.read(), await process.stderr.read()
        finally:
            await end_child(process)
        if process.returncode == LOST:
            raise LinkLost(f"upload {part.name} of the bundle to {self._site.name}: {_tail(complaints) or way.words()}")
        if MARK.encode() not in said:
            raise LinkError(
                f"upload {part.name} of the bundle to {self._site.name}: {_tail(complaints)}", "io",
                f"is there space, and quota, for {total:.0f} MB in {folder}?",
            )  # fmt: skip

    async def _run(
        self, way: Way, script: str, what: str, *, may_fail: bool = False, hint: str = "look at the workdir"
    ) -> list[str]:
        """Run a script of POSIX shell; the lines that it marked as meant for us, without the mark."""
        code, out, err = await ways.run((*way.session, _shell(script)), seconds=STEP)
        if code == LOST:
            raise LinkLost(f"{what} at {self._site.name}: {_tail(err) or way.words()}")
        if code != 0 and not may_fail:
            raise LinkError(f"{what} at {self._site.name}: {_tail(err)}", "io", hint)
        lines = out.decode(errors="replace").splitlines()
        return [line.removeprefix(MARK).strip() for line in lines if line.startswith(MARK)]


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


def _tail(stderr: bytes) -> str:
    return " · ".join(stderr.decode(errors="replace").strip().splitlines()[-2:]) or "no message"
