"""Decisions about a site itself: what a change makes of its configuration, when one that is away is tried again, and
where its relay is to listen, if it is."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import msgspec

from gridhypervisor.model.records import Site
from gridhypervisor.model.replacing import replace
from gridhypervisor.model.states import SiteHealth
from gridhypervisor.model.views import SiteChange
from gridhypervisor.model.wire import GATE_PORTS

ROOTED = ("kind", "host", "port", "user", "workdir")
"""What says which account, and which folder of it, a site is. Jobs that are there would be looked for elsewhere, not be
found, and be given to somebody else while they still run: so it stays as it is until there are none."""

PROBED = (*ROOTED, "scratch", "options", "environment")
"""What says on which nodes a job runs, and on what: a report of a node holds as long as these stay."""

FIRST, MOST = 1.0, 60.0
"""Seconds before a connection is tried again: at first, at most."""

MOST_PORTS = 64
"""At which couriers look for their relay."""

PASSING = 1800.0
"""Seconds before a login is tried again that was refused, and had worked before. Sites lock accounts out for a handful
of refusals in ten minutes or so."""


@dataclass(frozen=True)
class Gate:
    """Where a site's relay listens: for nodes that do not see its workdir, or to find out whether they could come."""

    host: str
    first: int  # port
    last: int

    def __str__(self) -> str:
        return f"{self.host}:{self.first}-{self.last}"


def gate_of(site: Site, front_end: str) -> Gate | None:
    """The site's options `control` and `listen`, `HOST[:PORT[-PORT]]`; by default the host is the front-end, by the
    name that it has for itself. None: its nodes see the workdir, and nobody asked for more.

    Raises:
        ValueError: the options make no sense; the message says what would.
    """
    control, listen = site.options.get("control", "spool"), site.options.get("listen", "")
    if control not in ("spool", "tcp"):
        raise ValueError(f"options.control: {control!r} is not one of spool, tcp")
    if not carried(site) and not listen:
        return None
    found = re.fullmatch(r"([A-Za-z0-9._-]+)?(?::(\d+)(?:-(\d+))?)?", listen)
    if found is None:
        raise ValueError(f"options.listen: {listen!r} is not HOST[:PORT[-PORT]], e.g. login1:{GATE_PORTS[0]}")
    first, last = GATE_PORTS if found[2] is None else (int(found[2]), int(found[3] or found[2]))
    if not 1024 <= first <= last < 1 << 16 or last - first >= MOST_PORTS:
        raise ValueError(f"options.listen: {listen!r}: ports are from 1024 to 65535, and {MOST_PORTS} at most")
    return Gate(found[1] or front_end, first, last)


def carried(site: Site) -> bool:
    """Whether its nodes do not see the workdir, so that all comes and goes through the gate."""
    return site.options.get("control") == "tcp"


def changed(site: Site, change: SiteChange) -> Site:
    """The site with the change made: a JSON merge patch (RFC 7396), in which null restores a field's default.

    Raises:
        ValueError: an option or a variable is to go that is not there.
    """
    fields: dict[str, Any] = {}
    defaults = Site("", "", "", site.kind)
    for name in change.__struct_fields__:
        given = getattr(change, name)
        if given is msgspec.UNSET:
            continue
        if given is None:
            fields[name] = getattr(defaults, name)
        elif isinstance(given, dict):
            fields[name] = _merged(name, getattr(site, name), given)
        else:
            fields[name] = given
    return replace(site, **fields)


def _merged(name: str, before: dict[str, str], given: dict[str, str | None]) -> dict[str, str]:
    if unknown := [key for key, value in given.items() if value is None and key not in before]:
        there = f"there are {', '.join(sorted(before))}" if before else "there is none"
        raise ValueError(f"{name}: there is no {', '.join(unknown)} to remove; {there}")
    return {key: value for key, value in {**before, **given}.items() if value is not None}


def uprooted(before: Site, after: Site) -> list[str]:
    """Fields that differ, and may not while jobs are there."""
    return [name for name in ROOTED if getattr(before, name) != getattr(after, name)]


def still_probed(before: Site, after: Site) -> bool:
    """Whether what a probe found before a change holds after it."""
    return all(getattr(before, name) == getattr(after, name) for name in PROBED)


def pause(health: SiteHealth, *, before: float, lived: float, passing: bool) -> float | None:
    """Seconds until a connection is tried again, before jitter; None: not until somebody has opened a way, or asks.

    `before`: the pause before, 0 at first; `lived`: how long the connection and the attempt at it took; `passing`: a
    login that was denied had worked before without a person.
    """
    if health is SiteHealth.AUTH_NEEDED:
        return PASSING if passing else None
    if before == 0.0 or before > MOST or lived > 2 * MOST:
        return FIRST
    return min(2 * before, MOST)
