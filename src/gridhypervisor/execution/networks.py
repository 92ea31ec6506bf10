"""Tells pilots who is in their VMs' private networks, and where: each its table, through its site's relay.

Whoever knows the virtual infrastructures says how all should be (`become`). What differs from what a pilot was told
goes out, and again until its site has it: a table that comes twice or late changes nothing, for its version says which
holds. What a relay was told is forgotten with its connection, since a new one must know it too.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping

from gridhypervisor.execution.crossing import Crossing
from gridhypervisor.execution.ports import Link, Session
from gridhypervisor.model.errors import LinkError, LinkLost
from gridhypervisor.model.wire import NetworkTable, Op, to_plain
from gridhypervisor.planning.network import Attached, Network, news, tables

AGAIN = 5.0
"""Seconds until what a site did not take is sent again; an entry may not be there yet."""

PATIENCE = 30.0
"""Seconds for a relay's answer."""


class Networks:
    def __init__(self, sessions: Mapping[str, Session]) -> None:
        self._sessions = sessions
        self.crossing = Crossing(self._link)
        self._wanted: dict[str, dict[str, NetworkTable]] = {}  # by site and entry
        self._told: dict[str, tuple[Link, dict[str, NetworkTable]]] = {}  # by site: over which connection, to whom what
        self._telling: dict[str, asyncio.Task[None]] = {}  # by site

    def become(self, networks: Collection[Network], attached: Collection[Attached], version: int) -> None:
        """From now on all VMs with private networks are these, and their pilots there. `version` only grows, over
        restarts of the service too."""
        self.crossing.learn(attached)
        site_of = {each.entry: each.site for each in attached}
        self._wanted = {}
        for entry, table in tables(networks, attached, version).items():
            self._wanted.setdefault(site_of[entry], {})[entry] = table
        for site in self._wanted:
            self.tell(site)

    def tell(self, site: str) -> None:
        """Something has changed, or the site is there again."""
        if site not in self._telling and self._untold(site):
            task = self._telling[site] = asyncio.create_task(self._tell(site))
            task.add_done_callback(lambda _: self._telling.pop(site, None))

    async def close(self) -> None:
        self.crossing.close()
        tasks = list(self._telling.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _tell(self, site: str) -> None:
        while untold := self._untold(site):
            for entry, table in untold.items():
                if (link := self._link(site)) is None:
                    return  # told when it is there again
                request = {"entry": entry, "what": "network", "table": to_plain(table)}
                try:
                    await link.call(Op.REQUEST, request, timeout=PATIENCE)
                except (LinkError, LinkLost):
                    continue
                before, told = self._told.get(site, (None, {}))
                self._told[site] = link, {**(told if before is link else {}), entry: table}
            if self._untold(site):
                await asyncio.sleep(AGAIN)

    def _untold(self, site: str) -> dict[str, NetworkTable]:
        """Nothing, where nobody is there to be told."""
        link = self._link(site)
        before, told = self._told.get(site, (None, {}))
        return news(told if before is link else {}, self._wanted.get(site, {})) if link is not None else {}

    def _link(self, site: str) -> Link | None:
        session = self._sessions.get(site)
        return session.link if session is not None else None
