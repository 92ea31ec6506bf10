"""One account at one site: keeps the relay connected, observes through it, and has actions carried out over it.

A session decides nothing about jobs. It holds no truth either: what it knows of the site is only there to save
questions, and is forgotten with the connection. A hung site delays its own session and nothing else: every call has a
deadline.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from math import inf
from typing import Any

from gridhypervisor.execution.connection import CALL, Connection, greet, lending_of
from gridhypervisor.execution.copies import Copies
from gridhypervisor.execution.errands import Errands, purpose
from gridhypervisor.execution.logs import OUTPUT, Logs
from gridhypervisor.execution.meter import Meter
from gridhypervisor.execution.ports import Driver, Inputs, Layers, Link, Listener, Tickets, Transport
from gridhypervisor.execution.prolog import Prolog
from gridhypervisor.execution.surveyor import Surveyor
from gridhypervisor.model.errors import LinkError, LinkLost, LoginNeeded
from gridhypervisor.model.records import Site, SiteHealth
from gridhypervisor.model.replacing import replace
from gridhypervisor.model.views import Check, SiteUsage
from gridhypervisor.model.wire import (
    MAX_PAYLOAD,
    SPOOL,
    EntryView,
    Execute,
    Lending,
    Note,
    Op,
    Terms,
    Use,
    WireError,
    from_plain,
    to_plain,
)
from gridhypervisor.planning.draft import Action
from gridhypervisor.planning.probes import FrontEnd, answering, no_relay, reading, room
from gridhypervisor.planning.sites import MOST, carried, pause
from gridhypervisor.planning.world import Case, Outcome, Result, SiteFacts

SETTLE = 0.5
"""Seconds from the wish for a listing to the listing: it then answers all wishes of a burst of submissions, and does
not compete on the front-end with the very job that it is about."""

RESPITE = 10.0
"""How many times as long as a listing took passes before the next one, up to the site's interval: with very many jobs,
or a batch system that is slow, what is asked for after each submission would else be asked for without a pause."""

LOOK = 2.0
"""Seconds between two looks, on this machine, whether somebody has opened a way in to where it takes a person."""

NO_LACK: frozenset[str] = frozenset()


class Session:
    """`make_driver` is called with the account's workdir and the bundle's digest, at each connection."""

    def __init__(
        self,
        site: Site,
        make_driver: Callable[[str, str], Driver],
        transport: Transport,
        listener: Listener,
        *,
        installation: str,
        layers: Layers,
        inputs: Inputs,
        logs: Logs,
        copies: Copies,
        tickets: Tickets | None = None,
        clock: Callable[[], float],
        jitter: Callable[[], float],
        progress: Callable[[str, str], None] = lambda entry, words: None,
        report: Callable[[Exception], None] = lambda error: None,
    ) -> None:
        self.site, self.transport, self.listener = site, transport, listener
        self.installation, self.layers, self.inputs, self.logs = installation, layers, inputs, logs
        self.copies = copies
        self.tickets = tickets  # None: its relay never listens
        self.clock, self.jitter, self.progress, self.report = clock, jitter, progress, report
        self.health, self.why, self.since = SiteHealth.CONNECTING, "", clock()
        self.batch_system = ""
        self.workdir = ""
        self.relay_cpu = Meter()
        self._make_driver = make_driver
        self._facts = self._told = SiteFacts(site.name, up=False, max_jobs=0)  # until its driver has said more
        self._given: tuple[object, ...] = ()  # what `_told` was made of
        self._watched = clock()
        self._lending: tuple[Lending | None, float] = None, 0.0  # what the relay said last, and when it came
        self._surveyor = Surveyor(site.name, listener, clock, jitter, lambda: any(self._urgent.values()), report)
        self._connection: Connection | None = None
        self._errands: Errands | None = None  # there as long as the connection is
        self._urgent: dict[str, bool] = {}
        self._ask = asyncio.Event()  # somebody wants a listing soon
        self._reconnect = asyncio.Event()
        self._tried = asyncio.Event()  # the newest attempt to connect has come to an end, good or bad
        self._next = asyncio.Event()  # the same of the one after it
        self._tried.set()
        self._watches: dict[str, dict[str, int]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def facts(self) -> SiteFacts:
        lending, at = self._lending
        if lending is not None and lending.open_for is not None:
            lending = replace(lending, open_for=max(0.0, lending.open_for - (self.clock() - at)))
        login = self.health is SiteHealth.AUTH_NEEDED
        up, draining, probed = self._connection is not None, self.site.draining, self.site.probed
        busy = self._errands.submissions.busy if self._errands is not None else ""
        capacity = self._surveyor.capacity
        given = self._facts, up, self.why, login, lending, busy, self.site, capacity
        if given != self._given:  # planners ask much more often than anything changes
            lacks = frozenset(str(each.kind) for each in probed.hypervisors if not each.works) if probed else NO_LACK
            self._given, self._told = given, replace(
                self._facts, up=up, why=self.why, draining=draining, login=login, lending=lending, busy=busy,
                lacks=lacks, watched=self._watched, site=self.site, capacity=capacity,
            )  # fmt: skip
        return self._told

    @property
    def link(self) -> Link | None:
        """The connection to the relay, if there is one now."""
        return self._connection.link if self._connection is not None else None

    @property
    def there(self) -> FrontEnd:
        """Its end, as far as a probe has to do with it."""
        gate = self._connection.gate if self._connection is not None else None
        return FrontEnd(self.site.name, self.workdir, str(gate or ""), carried(self.site))

    @property
    def submitting(self) -> str:
        """How fast jobs go to the batch system, and what holds them up; empty where there is nothing to say."""
        return self._errands.submissions.describe() if self._errands is not None else ""

    # -- life ---------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        wait: float | None = 0.0
        try:
            while True:
                began, came, passing = self.clock(), _never, False
                self._tried, self._next = self._next, asyncio.Event()
                self._reconnect.clear()
                try:
                    await self._connected()
                except LinkLost as error:
                    self._down(SiteHealth.UNREACHABLE, str(error))
                except LoginNeeded as error:
                    self._down(SiteHealth.AUTH_NEEDED, f"{error}; {error.hint}")
                    came, passing = error.came, error.passing
                except LinkError as error:
                    self._down(SiteHealth.REFUSED, f"{error}; {error.hint}" if error.hint else str(error))
                except Exception as error:  # a fault of ours must not take the site away without a word
                    self.report(error)
                    why = f"internal error: {type(error).__name__}: {error}; see service.log"
                    self._down(SiteHealth.UNREACHABLE, why)
                self._tried.set()
                wait = pause(self.health, before=wait or 0.0, lived=self.clock() - began, passing=passing)
                await self._pause(wait, came)
        finally:
            for each in (self._tried, self._next):
                each.set()  # nobody need wait for another
            self._next = asyncio.Event()

    async def _pause(self, seconds: float | None, came: Callable[[], bool]) -> None:
        """Wait for the time, if there is one; less if somebody asks, or has opened a way in."""
        left = seconds * self.jitter() if seconds is not None else inf
        while left > 0 and not self._reconnect.is_set() and not came():
            step = left if came is _never else min(left, LOOK)
            try:
                await asyncio.wait_for(self._reconnect.wait(), step)
            except TimeoutError:
                left -= step

    def reconnect(self) -> None:
        if self._between and self.health is not SiteHealth.AUTH_NEEDED:
            self._reconnect.set()

    async def tried(self) -> None:
        """Connect now, unless it is connected: `health` and `why` are of the present then, whatever they are."""
        if self._between:
            self._reconnect.set()
            await self._next.wait()
        await self._tried.wait()

    @property
    def _between(self) -> bool:
        """Not connected, and no attempt to be so is under way."""
        return self._connection is None and self._tried.is_set()

    def configure(self, site: Site, make_driver: Callable[[str, str], Driver], transport: Transport) -> None:
        """From the next `run` on it is another configuration. To be called while it does not run."""
        self.site, self.transport, self._make_driver = site, transport, make_driver
        self._reconnect.clear()
        self._surveyor.forget()
        self._down(SiteHealth.CONNECTING, "")

    def take(self, site: Site) -> None:
        """What has changed of it asks for no new connection."""
        self.site = site
        self.listener.site_changed(site.name)

    async def _connected(self) -> None:
        """One connection, from its beginning to its end."""
        since, before = self.clock(), self._lending
        async with self.transport.connect(self._note) as link:
            connection = await greet(
                self.site, link, self.transport, self._make_driver, installation=self.installation, since=since,
                tickets=self.tickets,
            )  # fmt: skip
            self.workdir, self.batch_system = connection.workdir, connection.batch_system
            self._facts = connection.facts
            if self._lending is before:  # else the relay has said more since its hello
                self._lending = connection.lending, self.clock()
            self.relay_cpu.restart()
            await connection.scan(self.listener, self.clock())
            self._errands = Errands(
                connection,
                Prolog(connection, self.layers, self.inputs, self.logs, self.copies, self.progress),
                self.logs,
                self.copies,
                self.listener,
                clock=self.clock,
                jitter=self.jitter,
                progress=self.progress,
                ask_listing=self._ask.set,
                used=self._relay_used,
            )
            self._connection = connection
            self.health, self.why, self.since = SiteHealth.UP, "", self.clock()
            self._tried.set()
            self.listener.site_changed(self.site.name)
            for entry, offsets in self._watches.items():
                self._spawn(self._send_watch(entry, offsets))
            surveying = asyncio.create_task(self._surveyor.run(connection))
            try:
                await self._list_until_lost(connection)
            finally:
                surveying.cancel()
                self._errands.submissions.close()
                self._connection = self._errands = None

    def _down(self, health: SiteHealth, why: str) -> None:
        changed = (self.health, self.why) != (health, why)
        self.health, self.why = health, why
        if changed:
            self.since = self.clock()
        self.listener.silent(self.site.name, why)

    async def _list_until_lost(self, connection: Connection) -> None:
        """Ask the batch system for all our jobs: often while one waits, seldom while they run, else never."""
        failures, took, ended = 0, 0.0, self.clock()
        while True:
            if not self._urgent:
                self._ask.clear()
                await self._until(connection, self._ask.wait(), None)
            if self._ask.is_set():
                respite = min(RESPITE * took - (self.clock() - ended), connection.driver.listing_interval)
                await self._until(connection, asyncio.sleep(max(SETTLE, respite)), None)
            as_of = self.clock()
            self._ask.clear()
            listing, problem = await connection.listing(as_of)
            if listing is not None:
                failures, self.why = 0, ""
                self.listener.listed(self.site.name, listing)
            else:
                # The front-end answers, its batch system does not: Unknown, never "no jobs".
                failures += 1
                self.why = f"batch system: {problem}"
                self.listener.silent(self.site.name, self.why)
            ended = self.clock()
            took = ended - as_of
            urgent = any(self._urgent.values())
            interval = connection.driver.listing_interval * (1.0 if urgent else 5.0)
            await self._until(
                connection, self._ask.wait(), min(interval * 2.0 ** min(failures, 8), max(interval, MOST))
            )

    async def _until(self, connection: Connection, wanted: Coroutine[Any, Any, object], seconds: float | None) -> None:
        """Wait for what is wanted, for the time, or for the link's end.

        Raises:
            LinkLost: it ended, or is to end.
        """
        ends = (connection.link.lost(), connection.damaged.wait())
        waiting, lost, damaged = (asyncio.create_task(each) for each in (wanted, *ends))
        try:
            await asyncio.wait({waiting, lost, damaged}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            if lost.done():
                lost.result()
            if damaged.done():
                self._reconnect.set()  # at once
                raise LinkLost("the bundle is placed anew")
        finally:
            for task in (waiting, lost, damaged):
                task.cancel()

    async def sweep(self, entry: str, batch_id: str) -> None:
        connection = self._connection
        if connection is None:
            return
        try:
            if batch_id:
                await connection.batch(connection.driver.cancel([(entry, batch_id)]))
            await connection.ask(Op.REMOVE, {"entry": entry, "discard": True}, timeout=4 * CALL)
        except (LinkLost, LinkError):
            pass  # seen again at the next look

    async def check(self) -> list[Check]:
        """What can be proven of the site now, claim by claim."""
        connection = self._connection
        if connection is None:
            return [no_relay(self.site.name, self.health, self.why)]
        try:
            return await self._prove(connection)
        except (LinkLost, LinkError) as error:
            return [no_relay(self.site.name, SiteHealth.UNREACHABLE, str(error))]

    async def _prove(self, connection: Connection) -> list[Check]:
        hello = await connection.hello()
        usage = await connection.ask(Op.USAGE, {})
        limits = await connection.limits()
        listing, problem = await connection.listing(self.clock())
        if listing is not None and self.why:
            self._ask.set()  # it speaks again: those who wait for its word need not wait for the next regular look
        lending, free = self.facts.lending, int(usage["free_bytes"])
        return [
            Check("a relay answers", True, f"{hello['user']}@{hello['host']}, protocol {hello['protocol']}"),
            Check("the bundle is there", True, f"{self.workdir}/bundle/{connection.bundle}"),
            answering(listing is not None, problem or limits.version or self.batch_system),
            room(
                "the workdir has room", free, self.workdir, "free some space or quota there, or set another `workdir`"
            ),
            reading(limits),
            *([Check("its relay listens", True, str(connection.gate))] if connection.gate is not None else []),
            *([_lent(lending.terms)] if lending is not None else []),
        ]

    async def usage(self) -> SiteUsage:
        connection = self._connection
        if connection is None:
            return SiteUsage(self.site.name, f"{self.health}: {self.why}" if self.why else self.health)
        try:
            reply = await connection.ask(Op.LENT, {})
            terms = from_plain(Terms, reply["lender"]) if reply.get("lender") is not None else None
            uses = tuple(from_plain(Use, use) for use in reply["uses"])
        except (LinkLost, LinkError, WireError) as error:
            return SiteUsage(self.site.name, str(error))
        return SiteUsage(self.site.name, lender=terms, uses=uses)

    # -- what the relay says unasked ----------------------------------------------------------------------------

    def _note(self, note: dict[str, Any], payload: bytes) -> None:
        if note.get("note") == Note.ENTRY:
            view = from_plain(EntryView, note["entry"])
            self.listener.entry_seen(self.site.name, view, self.clock())
        elif note.get("note") == Note.LENDER:
            self._lending = lending_of(note), self.clock()
            self.listener.room_changed(self.site.name)
        elif note.get("note") == Note.OUTPUT:
            entry, stream, offset = str(note["entry"]), str(note["stream"]), int(str(note["offset"]))
            if entry in self._watches and stream in OUTPUT:
                self._watches[entry][stream] = offset + len(payload)
                self.listener.output(self.site.name, entry, stream, offset, payload)
        elif note.get("note") == Note.FRAMES:
            self.listener.frames(self.site.name, note, payload)

    def watch(self, entry: str, offsets: dict[str, int] | None) -> None:
        if (entry in self._watches) == (offsets is not None):
            return
        if offsets is None:
            del self._watches[entry]
        else:
            self._watches[entry] = dict(offsets)
        self._spawn(self._send_watch(entry, offsets))

    async def _send_watch(self, entry: str, offsets: dict[str, int] | None) -> None:
        connection = self._connection
        if connection is None:
            return
        args: dict[str, object] = {"entry": entry, "stdout": None, "stderr": None}
        try:
            await connection.ask(Op.WATCH, args | (offsets or {}))
        except (LinkLost, LinkError):
            pass  # said again at the next connection; an entry that is gone has nothing more to say

    async def execute(self, entry: str, number: int, command: Execute) -> None:
        connection = self._connection
        if connection is None:
            raise LinkLost(f"{self.site.name} does not answer")
        if carried(self.site):
            raise LinkError(f"nodes of {self.site.name} do not see the workdir, and no commands are brought there yet")
        args = {"entry": entry, "what": "exec", "number": number, "execute": to_plain(command)}
        await connection.ask(Op.REQUEST, args)

    async def peek(self, entry: str, name: str, offset: int, limit: int) -> bytes:
        connection = self._connection
        if connection is None:
            return b""
        args = {"path": f"{SPOOL}/{entry}/{name}", "offset": offset, "length": min(limit, MAX_PAYLOAD)}
        try:
            _, data = await connection.link.call(Op.GET, args, timeout=CALL)
        except (LinkLost, LinkError):
            return b""  # not there yet, or not to be had now
        return data

    def attend(self, entry: str, urgent: bool | None) -> None:
        before = self._urgent.get(entry)
        if urgent is None:
            self._urgent.pop(entry, None)
        else:
            self._urgent[entry] = urgent
            if before is None or (urgent and not before):
                self._ask.set()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # -- actions ------------------------------------------------------------------------------------------------

    async def act(self, action: Action, case: Case) -> Outcome:
        if self._errands is None:
            why = f"{purpose(action)}: {self.why or 'not connected'}"
            return Outcome(Result.UNKNOWN, self.clock(), message=why)
        return await self._errands.run(action, case)

    async def grant(self, beats: Mapping[str, int]) -> bool:
        connection = self._connection
        if connection is None:
            return False
        try:
            await connection.ask(Op.GRANT, {"grants": dict(beats)})
        except (LinkLost, LinkError):
            return False  # the next beats are answered
        return True

    def withdraw(self, entry: str) -> None:
        if self._errands is not None:
            self._errands.submissions.withdraw(entry)

    def _relay_used(self, cpu: float) -> None:
        """Share what the relay has used since the last time among the jobs that it was used for."""
        self.relay_cpu.advance(cpu, len(self._urgent))


def _lent(terms: Terms) -> Check:
    """Whether the lender's file can be understood; who may change it."""
    whose = f"{terms.file}, which this account can change" if terms.own else f"{terms.file}, of {terms.holder}"
    hint = f"ask {terms.contact or terms.holder} to mend it: until then nothing starts" if terms.problem else ""
    return Check("the lender's file can be read", not terms.problem, terms.problem or whose, hint)


def _never() -> bool:
    """Nobody opens a way in to a site that does not wait for one."""
    return False
