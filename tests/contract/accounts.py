"""Accounts at sites for the contract tests: on this machine, and at clusters behind SSH in a bare root.

See `simulated` for one that takes no time.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from gridhypervisor.execution.submissions import Submissions
from gridhypervisor.model.batch import BatchJob, BatchState, Carried, Listing, Submission, Submitted
from gridhypervisor.model.capacity import Capacity
from gridhypervisor.model.records import Site, SiteKind
from gridhypervisor.model.wire import PROTOCOL, Command, CommandResult, Op
from gridhypervisor.planning.sites import Gate, gate_of
from gridhypervisor.sites import Authority, Bundle, Driver, driver_for, transport_for
from gridhypervisor.sites.relayclient import RelayLink
from testsites.site import ClusterSite

OURS = "a1b2c3d4e"
CAPACITY = 2
"""Jobs of two CPUs that each site of the suite can run at once."""

WAITS = (
    'for s in TERM USR2; do trap "echo $s >>$5/seen; exit 5" $s; done; '
    "echo $$ >$5/began; while :; do echo . >>$5/alive; sleep 0.1; done"
)
"""A pilot that tells when it began, that it lives and which signal ended it. Arguments: pilot --scratch S --entry E."""

DEAF = "trap '' TERM USR2; echo $$ >$5/began; while :; do sleep 0.1; done"
"""A pilot that nothing but KILL ends."""

ELSEWHERE = "/tmp/entries"
"""Where jobs write that do not see the workdir, in a folder by the entry's name."""

CARRIED = f"""name=${{7#spool/}}
set -- pilot --scratch "$3" --entry "{ELSEWHERE}/$name"
mkdir -p "$5"
exec >>"$5/batch.log" 2>&1
"""
"""Begins a pilot where a courier is started: what it is called with is as elsewhere, but for the entry's place."""

Story = Callable[["Connected"], Coroutine[Any, Any, None]]

_numbers = itertools.count(1)


def account_at(cluster: ClusterSite, bundle: Bundle, log: Path, **options: str) -> Account:
    """The ordinary user's account at a test site."""
    login = cluster.login
    site = Site(cluster.name, "o", "p", SiteKind(cluster.kind), host=login.host, port=login.port, user=login.user,
                key=str(login.key), known_hosts=str(login.known_hosts), options={**cluster.options, **options},
                environment=dict(cluster.environment))  # fmt: skip
    carried = site.options.get("control") == "tcp"
    return Account(site, bundle, cluster.home / ".ghv", log, cluster.root / ELSEWHERE[1:] if carried else None)


@dataclass
class Account:
    """How to get to one, and how this machine sees its workdir."""

    site: Site
    bundle: Bundle
    folder: Path
    log: Path
    elsewhere: Path | None = None  # how this machine sees where its jobs write, where that is not the workdir

    def tell(self, *stories: Story) -> None:
        """Tell a story over a connection, the next over another one."""

        async def told() -> None:
            for story in stories:
                async with self.connect() as at:
                    await story(at)

        self.run(told())

    def run(self, told: Coroutine[Any, Any, None]) -> None:
        asyncio.run(told)

    @asynccontextmanager
    async def connect(self, progress: Callable[[str], None] = lambda words: None) -> AsyncIterator[Connected]:
        notes: list[tuple[dict[str, Any], bytes]] = []
        with tempfile.TemporaryDirectory(prefix="ghv-") as sockets:  # pytest's own folders have too long names
            transport = transport_for(self.site, self.bundle, log=self.log, sockets=Path(sockets), progress=progress)
            async with transport.connect(lambda note, payload: notes.append((note, payload))) as link:
                # The first relay on a node unpacks the bundle.
                hello, _ = await link.call(Op.HELLO, {"installation": OURS, "protocol": PROTOCOL}, timeout=240)
                driver = driver_for(self.site, hello["workdir"], self.bundle.digest)
                at = Connected(self, link, driver, hello["workdir"], hello, notes)
                if self.elsewhere is not None:
                    await at.listen()
                yield at


@dataclass
class Connected:
    account: Account
    link: RelayLink
    driver: Driver
    workdir: str
    hello: dict[str, Any]
    notes: list[tuple[dict[str, Any], bytes]] = field(default_factory=list)
    gate: Gate | None = None
    authority: Authority | None = None

    async def listen(self) -> None:
        """Have the relay listen, as a controller does."""
        self.gate = gate_of(self.account.site, str(self.hello["host"]))
        self.authority = Authority(self.account.log.with_name("authority.pem"))
        assert self.gate is not None
        certificate, key = self.authority.relay()
        args = {"host": self.gate.host, "first": self.gate.first, "last": self.gate.last}
        pair = {"certificate": certificate, "key": key, "authority": self.authority.certificate}
        await self.link.call(Op.LISTEN, {**args, **pair}, timeout=60)

    def new_name(self) -> str:
        return f"{OURS}-j{next(_numbers)}-1"

    def entry(self, name: str) -> Path:
        """The entry as this machine sees it, where the job writes."""
        return (self.account.elsewhere or self.account.folder / "spool") / name

    def entry_there(self, name: str) -> str:
        """What the job is told that its entry is."""
        return f"{ELSEWHERE if self.account.elsewhere else f'{self.workdir}/spool'}/{name}"

    async def submit(
        self, script: str, *, name: str = "", cpus: int = 2, walltime: int = 600, memory: int = 64 << 20
    ) -> tuple[str, Submitted]:
        """Submit a batch job whose pilot is a script of ours; its name and the site's answer."""
        name = name or self.new_name()
        job = await self.prepared(script, name=name, cpus=cpus, walltime=walltime, memory=memory)
        return name, (await self.submitted(job))[name]

    async def submitted(self, *jobs: Submission) -> dict[str, Submitted]:
        """The site's answers to all of them, submitted together as the controller does it."""
        submissions = Submissions(cast(Any, self))
        try:
            answers = await asyncio.gather(*(submissions.submit(job) for job in jobs))
        finally:
            submissions.close()
        return {job.name: answer for job, answer in zip(jobs, answers, strict=True)}

    @property
    def site(self) -> Site:
        return self.account.site

    async def batch(self, commands: Sequence[Command]) -> list[CommandResult]:
        return await self.link.commands(commands)

    async def prepared(
        self, script: str, *, name: str = "", cpus: int = 2, walltime: int = 600, memory: int = 64 << 20
    ) -> Submission:
        """What is to be submitted; its entry at the site holds the script."""
        name = name or self.new_name()
        await self._upload(f"spool/{name}/start", script.encode())
        entry = f"{self.workdir}/spool/{name}"
        job = Submission(name, entry, f"{entry}/start", self.account.site.scratch, cpus, memory, walltime)
        if self.gate is None or self.authority is None:
            return job
        # What a node fetches is a bundle of which the start script is all.
        parts = {"start": (CARRIED + script).encode(), "busybox": b"", "zstd/zstd": b""}
        sums = "".join(f"{hashlib.sha256(data).hexdigest()}  {part}\n" for part, data in parts.items()).encode()
        digest = hashlib.sha256(sums).hexdigest()
        for part, data in {**parts, "SUMS": sums}.items():
            await self._upload(f"bundle/{digest}/{part}", data)
        return replace(job, carried=Carried(str(self.gate), digest, self.authority.entry(name)))

    async def _upload(self, path: str, data: bytes) -> None:
        self.account.log.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=self.account.log.parent) as local:  # several may bring one bundle at once
            local.write(data)
            local.flush()
            await self.link.upload(Path(local.name), path, {}, timeout=120)

    async def accepted(self, script: str, *, cpus: int = 2, walltime: int = 600) -> str:
        name, answer = await self.submit(script, cpus=cpus, walltime=walltime)
        assert answer.accepted, answer.message
        return name

    async def listing(self) -> tuple[Listing | None, str]:
        return self.driver.listing(await self.link.commands(self.driver.query(OURS)), time.monotonic())

    async def lists(self, seconds: float = 90) -> Listing:
        """The next listing that the site gives: one that fails is asked for again."""
        deadline = time.monotonic() + seconds
        while True:
            listing, problem = await self.listing()
            if listing is not None:
                return listing
            assert time.monotonic() < deadline, f"no listing after {seconds} s: {problem}"
            await asyncio.sleep(0.1)

    async def surveyed(self, holds: Callable[[Capacity], bool], seconds: float = 90) -> Capacity:
        """What the site says that it has, once that is so."""
        deadline = time.monotonic() + seconds
        while True:
            found = self.driver.capacity(await self.link.commands(self.driver.survey()))
            if found is not None and holds(found):
                return found
            assert time.monotonic() < deadline, f"not after {seconds} s; at last it said: {found}"
            await asyncio.sleep(0.5)

    async def cancel(self, *names: str) -> None:
        listing = await self.lists()
        ids = [(name, listing.jobs[name].id if name in listing.jobs else "") for name in names]
        for result in await self.link.commands(self.driver.cancel(ids)):
            gone = "does not exist" in result.stdout or "Couldn't find" in result.stderr  # has just ended, for one
            assert result.code == 0 or gone, result

    def has_begun(self, name: str) -> bool:
        return (self.entry(name) / "began").exists()

    def signals(self, name: str) -> set[str]:
        """Those that a pilot was sent and heeds: to a job's group and to each process, one may come twice."""
        return set((self.entry(name) / "seen").read_text().split())

    async def begun(self, name: str) -> None:
        await until(f"{name} to begin", lambda: self.has_begun(name))

    async def lives_on(self, name: str) -> None:
        """Until the next sign of life of a pilot that waits."""
        alive = self.entry(name) / "alive"
        before = alive.stat().st_size
        await until(f"the next sign of life of {name}", lambda: alive.stat().st_size > before)

    async def said(self, name: str, words: str, seconds: float = 60) -> None:
        """Until the job's batch log, as the relay sees it, holds these words: what a node wrote may show late."""
        local, found = self.account.log.parent / f"{name}.log", ""
        deadline = time.monotonic() + seconds
        while found != words:
            assert time.monotonic() < deadline, f"the log of {name} after {seconds} s: {found!r}"
            if self.account.elsewhere is not None:
                local = self.entry(name) / "batch.log"
            else:
                await self.link.download(f"spool/{name}/batch.log", local, timeout=60, optional=True)
            found = local.read_text() if local.exists() else ""
            await asyncio.sleep(0.05)

    async def until(self, name: str, *states: BatchState, reason: str = "", seconds: float = 90) -> BatchJob:
        """The job once it is in one of these states, for a reason with these words in it."""
        deadline = time.monotonic() + seconds
        while True:
            job = (await self.lists()).jobs.get(name)
            if job is not None and job.state in states and reason in job.reason:
                return job
            assert time.monotonic() < deadline, f"{name}: {job or 'not listed'} after {seconds} s"
            await asyncio.sleep(0.1)

    async def over(self, name: str, seconds: float = 90) -> None:
        """Until a job that never began has ended, or is listed no more: not every site keeps a record of such a one."""
        deadline = time.monotonic() + seconds
        while True:
            job = (await self.lists()).jobs.get(name)
            if job is None or job.state is BatchState.ENDED:
                return
            assert time.monotonic() < deadline, f"{name}: {job} after {seconds} s"
            await asyncio.sleep(0.1)


async def until(what: str, holds: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        await asyncio.sleep(0.02)
