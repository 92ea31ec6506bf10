"""What a user can ask of sites: the part of the API's backend that is about accounts and their sessions.

What is asked for is committed first and done then. One change of a site after another: each stands on the one before.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Sequence
from dataclasses import fields
from functools import partial
from typing import Protocol

from gridhypervisor.execution.controller import Controller
from gridhypervisor.execution.operations import Operations, Progress
from gridhypervisor.execution.ports import Driver, Transport
from gridhypervisor.execution.probing import Probes
from gridhypervisor.execution.session import Session
from gridhypervisor.model.errors import LinkError, LinkLost
from gridhypervisor.model.records import AllocationState, Event, Site, SiteHealth
from gridhypervisor.model.replacing import replace
from gridhypervisor.model.views import (
    Check,
    Operation,
    Problem,
    ServiceError,
    SiteChange,
    SiteLogin,
    SiteRemoval,
    SiteRequest,
    SiteUsage,
    SiteView,
)
from gridhypervisor.model.wire import NodeReport
from gridhypervisor.planning.probes import untried
from gridhypervisor.planning.published import best_rates
from gridhypervisor.planning.sites import changed, still_probed, uprooted

GLANCE = 0.1
"""Seconds between two looks at what a connection is doing, while somebody waits for it."""


class Door(Protocol):
    """How a person lets the service into an account, where it takes one."""

    async def login(self) -> tuple[str, ...]:
        """The command to run in a terminal; empty: somebody is in already. Raises LinkError, LinkLost."""

    async def hang_up(self) -> None:
        """Let nobody in any more who was let in so far."""


class Way(Transport, Protocol):
    @property
    def doing(self) -> str:
        """What keeps the connection waiting, in one line."""


class Outside(Protocol):
    """What takes the outer packages."""

    def driver(self, site: Site, workdir: str, bundle: str) -> Driver:
        """Raises LinkError: its configuration makes no sense."""

    def way(self, site: Site) -> Way: ...
    def door(self, site: Site) -> Door: ...
    def session(self, site: Site, way: Way) -> Session: ...


class Sites:
    def __init__(
        self, controller: Controller, operations: Operations, outside: Outside, *, owner: str, project: str
    ) -> None:
        self._controller, self._operations, self._outside = controller, operations, outside
        self._owner, self._project = owner, project
        self._probes = Probes(controller, owner=owner, project=project)
        self._ways: dict[str, Way] = {}
        self._runs: dict[str, asyncio.Task[None]] = {}
        self._changing = asyncio.Lock()

    # -- life ---------------------------------------------------------------------------------------------------

    async def load(self, local: Site) -> None:
        """Open all sites that the store knows; `local` is the one with which an installation begins."""
        sites = await self._controller.in_store(self._controller.store.sites)
        if not sites:
            await self._controller.in_store(self._controller.store.put_site, local)
            sites = [local]
        for site in sites:
            self._open(site)
        await self._probes.sweep()

    async def close(self) -> list[BaseException | None]:
        """End all sessions; what runs at the sites runs on."""
        for task in self._runs.values():
            task.cancel()
        return list(await asyncio.gather(*self._runs.values(), return_exceptions=True))

    def _open(self, site: Site) -> None:
        way = self._ways[site.name] = self._outside.way(site)
        session = self._outside.session(site, way)
        self._controller.add_session(site.name, session)
        self._run(session)

    def _run(self, session: Session) -> None:
        name = session.site.name
        self._runs[name] = asyncio.create_task(session.run(), name=f"session {name}")

    async def _rest(self, name: str) -> None:
        """End the site's connection."""
        task = self._runs.pop(name)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    # -- looking ------------------------------------------------------------------------------------------------

    async def list(self) -> list[SiteView]:
        return [self._view(self._session(name)) for name in sorted(self._controller.sessions)]

    async def show(self, name: str) -> SiteView:
        return self._view(self._session(name))

    def _session(self, name: str) -> Session:
        session = self._controller.sessions.get(name)
        if not isinstance(session, Session):
            known = ", ".join(sorted(self._controller.sessions)) or "none"
            raise _problem(f"find site {name}", 404, "not-found", "there is no such site", f"sites: {known}")
        return session

    def _view(self, session: Session) -> SiteView:
        site, facts = session.site, session.facts
        running = sum(
            a.site == site.name and a.state is AllocationState.RUNNING
            for case in self._controller.cases.values()
            for a in case.allocations
        )
        connecting = session.health is SiteHealth.CONNECTING
        settings = {name: getattr(site, name) for name in SiteRequest.__struct_fields__}
        return SiteView(
            name=site.name,
            kind=site.kind,
            address=_address(site),
            health=session.health,
            health_why=session.why or (self._ways[site.name].doing if connecting else ""),
            health_since=session.since,
            queued=self._controller.cases.places(site.name) - running,
            running=running,
            max_jobs=facts.max_jobs or site.max_jobs,
            workdir=session.workdir,
            batch_system=session.batch_system,
            draining=site.draining,
            submissions=session.submitting,
            probed=site.probed,
            probed_at=site.probed_at,
            rates=best_rates(site.probed, self._controller.scheduling.past_of(site.name)),
            settings=SiteRequest(**settings),
            version=site.version,
        )

    async def usage(self, name: str) -> SiteUsage:
        return await self._session(name).usage()

    async def check(self, name: str, patience: int) -> Operation:
        """Prove what it can do; `patience`: seconds for a probe job on one of its nodes, 0: none."""
        session = self._session(name)

        async def work(progress: Progress) -> Sequence[Check]:
            # It ends: connecting has a deadline of its own, and the session may end meanwhile.
            trying, told = asyncio.create_task(session.tried()), ""
            try:
                while not trying.done() and name in self._ways:
                    if (doing := self._ways[name].doing or "connecting") != told:
                        progress(f"{name}: {doing}")
                        told = doing
                    await asyncio.wait({trying}, timeout=GLANCE)
            finally:
                trying.cancel()
            progress(f"asking {name}")
            checks = await session.check()
            return [*checks, *await self._probe(session, checks, patience, progress)] if patience else checks

        return self._operations.start(work)

    async def _probe(
        self, session: Session, so_far: Sequence[Check], patience: int, progress: Progress
    ) -> Sequence[Check]:
        """What a probe job proves; of what it reports, the newest is kept with the site."""
        site = session.site
        if site.draining:
            return [untried("the site takes no new work", f"ghv site drain {site.name} --undo")]
        if any(check.holds is False for check in so_far):
            return [untried("something else does not hold", "mend that first")]
        checks, report = await self._probes.run(session.there, patience, progress)
        if report is not None:
            await asyncio.shield(self._keep(site, report))  # all of it, though nobody may wait for it any more
        return checks

    async def _keep(self, site: Site, report: NodeReport) -> None:
        """Unless it is not the site any more that was probed."""
        async with self._changing:
            session = self._controller.sessions.get(site.name)
            if isinstance(session, Session) and still_probed(site, session.site):
                at, version = self._controller.clock(), session.site.version + 1
                probed = replace(session.site, probed=report, probed_at=at, version=version)
                await self._write(probed, "", "probed", f"on {report.node}")
                session.take(probed)

    # -- changing -----------------------------------------------------------------------------------------------

    async def add(self, request: SiteRequest) -> SiteView:
        title = f"add site {request.name}"
        given = {name: getattr(request, name) for name in request.__struct_fields__}
        site = Site(owner=self._owner, project=self._project, version=1, **given)
        self._judge(site, title)
        async with self._changing:
            if request.name in self._controller.sessions:
                hint = f"choose another name, or change that one: `ghv site edit {request.name}`"
                raise _problem(title, 409, "conflict", "there is one of this name already", hint)
            await self._write(site, "", "added")
            self._open(site)
        return await self.show(site.name)

    async def edit(self, name: str, change: SiteChange, version: int | None = None) -> SiteView:
        """`version`: that it must have; None: any."""
        title = f"edit site {name}"
        async with self._changing:
            session = self._session(name)
            if version not in (None, session.site.version):
                why = f"it has version {session.site.version}, not {version}: it was changed meanwhile"
                raise _problem(title, 412, "conflict", why, f"look at it (`ghv site show {name}`), and change it again")
            try:
                after = changed(session.site, change)
            except ValueError as error:
                hint = f"`ghv site show {name}` says what there is"
                raise _problem(title, 422, "invalid", str(error), hint) from error
            if after == session.site:
                return self._view(session)
            self._judge(after, title)
            self._uproot(session.site, after, title)
            async with self._resting(session):
                # Now nothing new can be given to it: what came on the way here is there to be seen.
                self._uproot(session.site, after, title)
                before, after = session.site, replace(after, version=session.site.version + 1)
                if not still_probed(before, after):
                    after = replace(after, probed=None, probed_at=0.0)
                await self._write(after, "", "edited", _differences(before, after))
                if uprooted(before, after) or before.ssh_config != after.ssh_config:
                    await self._outside.door(before).hang_up()
                way = self._ways[name] = self._outside.way(after)
                session.configure(after, partial(self._outside.driver, after), way)
        return await self.show(name)

    async def drain(self, name: str, *, undo: bool) -> SiteView:
        async with self._changing:
            session = self._session(name)
            if session.site.draining is undo:
                site = replace(session.site, draining=not undo, version=session.site.version + 1)
                words = "takes work again" if undo else "takes no new work; what it has goes on"
                await self._write(site, "draining" if undo else "", "undrained" if undo else "draining", words)
                session.take(site)
                self._controller.reword(name)
            return self._view(session)

    async def login(self, name: str) -> SiteLogin:
        session, title = self._session(name), f"log in to site {name}"
        if not session.site.host:
            raise _problem(title, 409, "conflict", "it is this machine", f"`ghv site check {name}` asks what it can do")
        try:
            return SiteLogin(await self._outside.door(session.site).login())
        except LinkError as error:
            raise _problem(title, 409, "conflict", str(error), error.hint) from error
        except LinkLost as error:
            raise _problem(title, 503, "unavailable", str(error), "try again, or end that process") from error

    async def remove(self, name: str, *, abandon: bool) -> SiteRemoval:
        async with self._changing:
            session = self._session(name)
            held = self._controller.cases.held(name)
            if held and not abandon:
                hint = (
                    "wait for them, or cancel or delete them; `ghv show JOB` says what each waits for. If the site is "
                    f"gone for good: `ghv site remove {name} --abandon` ends them without it"
                )
                why = f"it still holds something of {_some(held)}"
                raise _problem(f"remove site {name}", 409, "conflict", why, hint)
            await self._rest(name)
            await self._controller.in_store(self._controller.store.remove_site, name)
            self._controller.remove_session(name)
            del self._ways[name]
            await self._event(session.site, "added", "removed")
            await self._outside.door(session.site).hang_up()
            return SiteRemoval(name, tuple(self._controller.asking(name)), tuple(sorted(self._controller.sessions)))

    @contextlib.asynccontextmanager
    async def _resting(self, session: Session) -> AsyncIterator[None]:
        """Without a connection meanwhile, and with one after, whatever comes of it."""
        await self._rest(session.site.name)
        try:
            yield
        finally:
            self._run(session)

    def _judge(self, site: Site, title: str) -> None:
        """Refuse what could not be used."""
        refuse = partial(_problem, title, 422, "invalid")
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", site.name):
            hint = "use letters, digits, '.', '_' and '-', at most 63, beginning with a letter or digit"
            raise refuse("a site cannot have this name", hint)
        for field, value in (("host", site.host), ("user", site.user)):
            if not re.fullmatch(r"([A-Za-z0-9_:\[][^\s'\"`$\\;&<>|(){}]*)?", value):
                raise refuse(f"{field}: {value!r} cannot be one", "give it as you would give it to ssh")
        if not 0 <= site.port <= 65535:
            raise refuse(f"port: {site.port} is none", "give one from 1 to 65535, or 0 for that of your ssh_config")
        if not site.host and (said := [name for name in ("port", "user", *_SSH) if getattr(site, name)]):
            raise refuse(f"{', '.join(said)}: this site is reached without ssh", "give its front-end with `host`")
        if relative := [name for name in _SSH if (path := getattr(site, name)) and not path.startswith("/")]:
            raise refuse(f"{', '.join(relative)}: not an absolute path", "begin it with /")
        if site.workdir and not site.workdir.startswith(("/", "~/")):
            raise refuse(f"workdir: {site.workdir!r} is relative, to nobody knows what", "begin it with / or ~/")
        if site.scratch and not site.scratch.startswith("/"):
            raise refuse(f"scratch: {site.scratch!r} is not an absolute path", "begin it with /")
        try:
            self._outside.driver(site, "", "")  # reads the options
        except LinkError as error:
            raise refuse(str(error), error.hint) from error

    def _uproot(self, before: Site, after: Site, title: str) -> None:
        """Refuse a change of what says where its jobs are, while there are any."""
        moved, held = uprooted(before, after), self._controller.cases.held(before.name)
        if moved and held:
            why = f"{', '.join(moved)} cannot change while it holds something of {_some(held)}: they would be lost"
            hint = f"`ghv site drain {before.name}`, and try again when they have ended; or add a site of another name"
            raise _problem(title, 409, "conflict", why, hint)

    async def _write(self, site: Site, before: str, after: str, message: str = "") -> None:
        if not await self._controller.in_store(self._controller.store.put_site, site):
            why = "somebody else has changed it meanwhile"
            raise _problem(f"write site {site.name}", 409, "conflict", why, "look at it and try again")
        await self._event(site, before, after, message)

    async def _event(self, site: Site, before: str, after: str, message: str = "") -> None:
        at = self._controller.clock()
        event = Event(at, site.owner, site.project, "", "site", site.name, before, after, message=message)
        await self._controller.in_store(self._controller.store.add_event, event)
        self._controller.followers.announce_events()


_SSH = ("key", "agent", "ssh_config", "known_hosts")
"""Settings of a login that are paths on this machine."""


def _problem(title: str, status: int, code: str, why: str, hint: str) -> ServiceError:
    return ServiceError(Problem(title, status, code, why, hint))


def _address(site: Site) -> str:
    user, port = f"{site.user}@" if site.user else "", f":{site.port}" if site.port else ""
    return f"{user}{site.host}{port}" if site.host else "this machine"


def _some(jobs: list[str]) -> str:
    return f"{len(jobs)} job{'s' if len(jobs) > 1 else ''}: {', '.join(jobs[:5])}{', …' if len(jobs) > 5 else ''}"


def _differences(before: Site, after: Site) -> str:
    """What changed, for the event; not to what, for an environment may hold what is nobody's business."""
    names = (f.name for f in fields(Site) if f.name not in ("version", "probed", "probed_at"))
    return ", ".join(name for name in names if getattr(before, name) != getattr(after, name))
