"""One life of a relay at one account: what it said at its start, and the requests that more than one asker makes of it.

It ends with its link, and all that was known through it ends with it. It knows of entries and batch jobs, and nothing
of what they are for.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from gridhypervisor.execution.ports import Driver, Link, Listener, Tickets, Transport
from gridhypervisor.model.batch import Limits, Listing
from gridhypervisor.model.capacity import Capacity
from gridhypervisor.model.errors import LinkError
from gridhypervisor.model.records import Site
from gridhypervisor.model.wire import PROTOCOL, Command, CommandResult, EntryView, Lending, Op, from_plain
from gridhypervisor.planning.pacing import Throttle
from gridhypervisor.planning.sites import Gate, carried, gate_of
from gridhypervisor.planning.world import SiteFacts

CALL = 30.0
"""Seconds that a short request may take."""

START = 600.0
"""Seconds that a relay may take to answer at first: a slow front-end unpacks the bundle before."""

BUNDLE_DAMAGED = 78
"""With this exit code the bundle's `start` says that it is not whole."""


@dataclass(frozen=True)
class Connection:
    site: Site
    installation: str
    link: Link
    driver: Driver
    since: float  # when it was begun; the bundle at the site was whole then
    bundle: str  # digest
    workdir: str
    batch_system: str  # its version
    facts: SiteFacts
    lending: Lending | None  # at the beginning
    throttle: Throttle  # of the batch system's commands
    gate: Gate | None = None  # where the relay listens
    tickets: Tickets | None = None  # for who comes there; None: nobody does
    damaged: asyncio.Event = field(default_factory=asyncio.Event)  # the bundle is not whole any more

    async def batch(self, commands: list[Command]) -> list[CommandResult]:
        """Run batch system commands, when the rate allows it."""
        if not commands:
            return []
        now = asyncio.get_running_loop().time
        while delay := self.throttle.delay(now()):
            await asyncio.sleep(delay)
        self.throttle.take(len(commands), now())
        results = await self.link.commands(commands)
        if any(result.code == BUNDLE_DAMAGED for result in results):
            self.damaged.set()
        return results

    async def limits(self) -> Limits:
        """What the batch system says of itself, now."""
        probe = self.driver.probe()
        return self.driver.limits(await self.link.commands(probe) if probe else [])

    async def listing(self, as_of: float) -> tuple[Listing | None, str]:
        """All our jobs as the batch system has them; or None, and why it does not say."""
        return self.driver.listing(await self.batch(self.driver.query(self.installation)), as_of)

    async def capacity(self) -> Capacity | None:
        """What the site has and has free, as its batch system tells now; None: it does not."""
        survey = self.driver.survey()
        return self.driver.capacity(await self.batch(survey)) if survey else None

    async def scan(self, listener: Listener, at: float) -> None:
        """Look at all entries of the spool. `at`: when, on the listener's clock."""
        after, more = "", True
        while more:
            reply = await self.ask(Op.SCAN, {"after": after} if after else {}, timeout=4 * CALL)
            for plain in reply["entries"]:
                view = from_plain(EntryView, plain)
                listener.entry_seen(self.site.name, view, at)
                after = view.entry
            more = bool(reply.get("more") and reply["entries"])

    async def ask(self, op: Op, args: dict[str, object], *, timeout: float = CALL) -> dict[str, Any]:
        """One request of which the reply has no payload."""
        reply, _ = await self.link.call(op, args, timeout=timeout)
        return reply

    async def hello(self) -> dict[str, Any]:
        return await self.ask(Op.HELLO, {"installation": self.installation, "protocol": PROTOCOL})


async def greet(
    site: Site,
    link: Link,
    transport: Transport,
    make_driver: Callable[[str, str], Driver],
    *,
    installation: str,
    since: float,
    tickets: Tickets | None = None,
) -> Connection:
    """Make the acquaintance of a relay that was started just now, and of the batch system behind it.

    Raises:
        LinkLost: it ended.
        LinkError: it cannot be used as it is.
    """
    hello, _ = await link.call(Op.HELLO, {"installation": installation, "protocol": PROTOCOL}, timeout=START)
    if hello.get("protocol") != PROTOCOL:
        spoken = f"its relay speaks protocol {hello.get('protocol')}, this controller {PROTOCOL}"
        raise LinkError(f"connect to {site.name}: {spoken}")
    gate = await _open_gate(site, link, tickets, str(hello.get("host", "")))
    workdir = str(hello["workdir"])
    driver = make_driver(workdir, transport.bundle)
    probe = driver.probe()
    limits = driver.limits(await link.commands(probe) if probe else [])
    if limits.problem:
        raise LinkError(f"use {site.name}: {limits.problem}")
    facts = SiteFacts(
        name=site.name,
        up=True,
        max_jobs=driver.max_jobs(site),
        max_walltime=limits.max_walltime,
        max_cpus=limits.max_cpus,
        max_memory=limits.max_memory,
        slots=limits.slots,
        listing_lag=driver.listing_lag,
        spool_lag=driver.spool_lag,
        bundle=transport.bundle,
    )
    version, lending = limits.version, lending_of(hello)
    throttle = Throttle(driver.rates.commands)
    return Connection(
        site, installation, link, driver, since, transport.bundle, workdir, version, facts, lending, throttle, gate,
        tickets if gate is not None else None,
    )  # fmt: skip


async def _open_gate(site: Site, link: Link, tickets: Tickets | None, front_end: str) -> Gate | None:
    """Have the relay listen, where the site's configuration asks for it. A lender who forbids it is obeyed: then the
    site can be used if its nodes see the workdir."""
    try:
        gate = gate_of(site, front_end)
        if gate is None or tickets is None:
            return None
        certificate, key = tickets.relay()
        authority = tickets.certificate
    except (OSError, ValueError) as error:
        raise LinkError(f"configure site {site.name}: {error}") from error
    args: dict[str, object] = {"host": gate.host, "first": gate.first, "last": gate.last}
    args |= {"certificate": certificate, "key": key, "authority": authority}
    try:
        await link.call(Op.LISTEN, args, timeout=CALL)
    except LinkError as error:
        if error.kind != "lender" or carried(site):
            raise
        return None
    return gate


def lending_of(message: Mapping[str, Any]) -> Lending | None:
    """What the relay says of the account's lender, in `hello` and in its notes."""
    said = message.get("lender")
    return from_plain(Lending, said) if said is not None else None
