"""Frames of private networks from site to site: what one relay has for an entry of another site is passed on to that
site's relay. The tables say who is where, and who may send to whom; frames are not looked at.

What a site does not take in time is dropped, for it alone: guests send again what matters to them.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Mapping
from typing import Any

from gridhypervisor.execution.ports import Link
from gridhypervisor.model.errors import LinkError, LinkLost
from gridhypervisor.model.wire import Op
from gridhypervisor.planning.network import Attached

QUEUE = 512 << 10
"""Bytes of frames that wait for one site."""

WINDOW = 4
"""Requests to one site that are on their way at once."""

PATIENCE = 10.0
"""Seconds for a relay's answer; one that takes longer has other troubles."""


class Crossing:
    """`link` gives the connection to a site's relay; None: there is none at the moment."""

    def __init__(self, link: Callable[[str], Link | None]) -> None:
        self._link = link
        self._members: dict[tuple[int, int], tuple[str, str]] = {}  # by network and number: the site, the entry
        self._queues: dict[str, _Queue] = {}
        self.dropped = 0  # records

    def learn(self, attached: Iterable[Attached]) -> None:
        """From now on everybody is there, as the tables say that go out."""
        self._members = {(each.network, each.member): (each.site, each.entry) for each in attached if each.entry}

    def take(self, site: str, note: Mapping[str, Any], frames: bytes) -> None:
        """A relay's note FRAMES. One that does not fit the tables is dropped: a relay speaks for its own site alone."""
        network, source, destination = (note.get(name) for name in ("network", "source", "destination"))
        if not (isinstance(network, int) and isinstance(source, int) and isinstance(destination, int)):
            self.dropped += 1
            return
        to = self._members.get((network, destination))
        if to is None or self._members.get((network, source)) != (site, note.get("from")):
            self.dropped += 1
            return
        queue = self._queues.setdefault(to[0], _Queue())
        if queue.size and queue.size + len(frames) > QUEUE:
            self.dropped += 1
            return
        request = {"entry": to[1], "network": network, "destination": destination, "source": source}
        queue.put(request, frames)
        if queue.workers < WINDOW:
            queue.workers += 1
            queue.spawn(self._pass_on(to[0], queue))

    def close(self) -> None:
        """Pass on nothing any more."""
        for queue in self._queues.values():
            queue.close()

    async def _pass_on(self, site: str, queue: _Queue) -> None:
        try:
            while queue.waiting:
                request, frames = queue.get()
                link = self._link(site)
                if link is None:
                    self.dropped += 1
                    continue
                try:
                    answer, _ = await link.call(Op.FRAMES, request, frames, timeout=PATIENCE)
                    self.dropped += bool(answer.get("dropped"))
                except (LinkError, LinkLost):
                    self.dropped += 1
        finally:
            queue.workers -= 1


class _Queue:
    """What waits for one site."""

    def __init__(self) -> None:
        self.waiting: deque[tuple[dict[str, Any], bytes]] = deque()
        self.size = self.workers = 0
        self._tasks: set[asyncio.Task[None]] = set()

    def put(self, request: dict[str, Any], frames: bytes) -> None:
        self.waiting.append((request, frames))
        self.size += len(frames)

    def get(self) -> tuple[dict[str, Any], bytes]:
        request, frames = self.waiting.popleft()
        self.size -= len(frames)
        return request, frames

    def close(self) -> None:
        self.waiting.clear()
        for task in self._tasks:
            task.cancel()

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
