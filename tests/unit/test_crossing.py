"""Frames from site to site: to whom the tables say, from whom they say, and never more than a site takes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, cast

from gridhypervisor.execution.crossing import QUEUE, WINDOW, Crossing
from gridhypervisor.execution.ports import Link
from gridhypervisor.model.errors import LinkLost
from gridhypervisor.model.wire import Op
from gridhypervisor.planning.network import Attached

MEMBERS = (
    Attached(7, 1, "head", "e1", site="a"),
    Attached(7, 2, "worker", "e2", site="b"),
    Attached(7, 3, "away"),
    Attached(8, 1, "other", "e3", site="b"),
)


class Site:
    """A relay that takes frames, when it is let."""

    def __init__(self) -> None:
        self.taken: list[tuple[dict[str, Any], bytes]] = []
        self.answers, self.open = asyncio.Event(), True
        self.answers.set()
        self.at_once = 0

    async def call(
        self, op: Op, args: Mapping[str, object], payload: bytes = b"", *, timeout: float
    ) -> tuple[dict[str, Any], bytes]:
        assert op is Op.FRAMES
        self.at_once += 1
        try:
            await self.answers.wait()
        finally:
            self.at_once -= 1
        if not self.open:
            raise LinkLost("it is gone")
        self.taken.append((dict(args), payload))
        return {"dropped": False}, b""


def note(source: int = 1, destination: int = 2, network: int = 7, sent_by: str = "e1") -> dict[str, Any]:
    return {"note": "frames", "from": sent_by, "network": network, "source": source, "destination": destination}


def over(act: Callable[[Crossing, Site], Awaitable[None]]) -> None:
    async def run() -> None:
        site = Site()
        crossing = Crossing(lambda name: cast(Link, site) if name == "b" else None)
        crossing.learn(MEMBERS)
        await act(crossing, site)

    asyncio.run(run())


async def settled(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0)


def test_frames_go_to_the_site_of_their_member_in_order() -> None:
    async def act(crossing: Crossing, site: Site) -> None:
        for number in range(20):
            crossing.take("a", note(), bytes([number]))
        await settled(lambda: len(site.taken) == 20)
        assert [payload for _, payload in site.taken] == [bytes([number]) for number in range(20)]
        assert site.taken[0][0] == {"entry": "e2", "network": 7, "destination": 2, "source": 1}
        assert crossing.dropped == 0

    over(act)


def test_what_does_not_fit_the_tables_goes_nowhere() -> None:
    async def act(crossing: Crossing, site: Site) -> None:
        for wrong in (
            ("b", note()), ("a", note(sent_by="e9")), ("a", note(source=2)), ("a", note(destination=3)),
            ("a", note(destination=9)), ("a", note(network=8, destination=1)), ("a", {}),
        ):  # fmt: skip
            crossing.take(wrong[0], wrong[1], b"x")
        crossing.take("b", note(2, 1, sent_by="e2"), b"x")  # to a site that is not connected
        crossing.take("a", note() | {"network": []}, b"of no network: a site may say anything")
        crossing.take("a", note() | {"source": {}}, b"of nobody")
        await settled(lambda: crossing.dropped == 10)
        assert site.taken == []

    over(act)


def test_a_site_that_does_not_take_frames_has_a_bounded_queue_and_gets_the_later_ones() -> None:
    async def act(crossing: Crossing, site: Site) -> None:
        site.answers.clear()
        for _ in range(100):
            crossing.take("a", note(), bytes(QUEUE // 8))
        await settled(lambda: site.at_once == WINDOW)
        assert crossing.dropped >= 100 - 8 - WINDOW
        dropped = crossing.dropped
        site.open = False
        site.answers.set()
        await settled(lambda: crossing.dropped == 100 and not site.at_once)
        assert dropped < 100
        site.open = True
        crossing.take("a", note(), b"later")
        await settled(lambda: len(site.taken) == 1)

    over(act)
