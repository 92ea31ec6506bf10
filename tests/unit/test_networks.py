"""Pilots are told who is in their networks: all of it, once, and again where a site did not have it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, cast

import pytest

from gridhypervisor.execution import networks as telling
from gridhypervisor.execution.networks import Networks
from gridhypervisor.execution.ports import Session
from gridhypervisor.model.errors import LinkError
from gridhypervisor.model.wire import NetworkTable, Op, from_plain
from gridhypervisor.planning.network import Attached, Network

LAN = Network(7, "10.42.0.0/24", "lab.internal")
BOTH = (Attached(7, 1, "head", "e1", site="a"), Attached(7, 2, "worker", "e2", site="b"))


class Relay:
    """What it was told, by entry."""

    def __init__(self, missing: set[str]) -> None:
        self.tables: dict[str, list[NetworkTable]] = {}
        self._missing = missing

    async def call(self, op: Op, args: Mapping[str, Any], payload: bytes = b"", *, timeout: float) -> tuple[Any, bytes]:
        assert (op, args["what"]) == (Op.REQUEST, "network")
        await asyncio.sleep(0)
        if args["entry"] in self._missing:
            raise LinkError(f"no entry {args['entry']}", "missing", "")
        self.tables.setdefault(args["entry"], []).append(from_plain(NetworkTable, args["table"]))
        return {}, b""


class Site:
    def __init__(self) -> None:
        self.missing: set[str] = set()
        self.link: Relay | None = Relay(self.missing)

    @property
    def versions(self) -> dict[str, list[int]]:
        assert self.link is not None
        return {entry: [table.version for table in told] for entry, told in self.link.tables.items()}


def over(act: Callable[[Networks, Site, Site], Awaitable[None]]) -> None:
    async def run() -> None:
        a, b = Site(), Site()
        made = Networks(cast(Mapping[str, Session], {"a": a, "b": b}))
        await act(made, a, b)
        await made.close()

    asyncio.run(run())


async def settled(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.001)


def test_each_pilot_is_told_at_its_site_once_and_again_when_something_has_changed() -> None:
    async def act(made: Networks, a: Site, b: Site) -> None:
        made.become([LAN], BOTH, 1)
        await settled(lambda: (a.versions, b.versions) == ({"e1": [1]}, {"e2": [1]}))
        made.become([LAN], BOTH, 2)
        moved = (BOTH[0], Attached(7, 2, "worker", "e3", site="b"))
        made.become([LAN], moved, 3)
        await settled(lambda: (a.versions, b.versions) == ({"e1": [1, 3]}, {"e2": [1], "e3": [3]}))

    over(act)


def test_a_site_that_is_away_holds_up_nobody_and_is_told_when_it_is_there_again() -> None:
    async def act(made: Networks, a: Site, b: Site) -> None:
        b.link = None
        made.become([LAN], BOTH, 1)
        await settled(lambda: a.versions == {"e1": [1]})
        b.link = Relay(b.missing)
        made.tell("b")
        await settled(lambda: b.versions == {"e2": [1]})
        a.link = Relay(a.missing)  # another relay knows nothing of it
        made.tell("a")
        await settled(lambda: a.versions == {"e1": [1]})

    over(act)


def test_an_entry_that_is_not_there_yet_is_told_when_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(telling, "AGAIN", 0.01)

    async def act(made: Networks, a: Site, b: Site) -> None:
        a.missing.add("e1")
        made.become([LAN], BOTH, 1)
        await settled(lambda: b.versions == {"e2": [1]})
        assert a.versions == {}
        a.missing.clear()
        await settled(lambda: a.versions == {"e1": [1]})

    over(act)
