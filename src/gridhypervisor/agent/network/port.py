"""The guest's card: a socket, each message a frame, as QEMU's `dgram` and User-Mode Linux' `fd` have it."""

from __future__ import annotations

import contextlib
import socket
from collections import Counter, deque
from collections.abc import Callable

from gridhypervisor.agent.loop import Loop
from gridhypervisor.agent.network.records import LENGTH, MOST, Record, record
from gridhypervisor.agent.network.switch import Count, Switch
from gridhypervisor.agent.network.table import Station

QUEUE = 1 << 20
"""Bytes that wait for the guest to take them."""

_AT_ONCE = 64
"""Frames taken from the guest before others have their turn."""

Send = Callable[[Station, bytes], None]


class Port:
    """One card, its switch, and what waits for the guest. `send` takes records for a station."""

    def __init__(
        self, loop: Loop, card: socket.socket, switch: Switch, counts: Counter[str], clock: Callable[[], float],
        send: Send,
    ) -> None:  # fmt: skip
        card.setblocking(False)
        self.switch = switch
        self._loop, self._card, self._counts, self._clock, self._send = loop, card, counts, clock, send
        self._waiting: deque[bytes] = deque()
        self._size = 0  # bytes of these
        self._view = memoryview(bytearray(MOST))
        loop.read(card, self.read)

    def read(self) -> None:
        """Take what the guest sends. Frames that follow one another to one station go as one record."""
        switch, view, now, longest = self.switch, self._view, self._clock(), self.switch.longest
        begin = end = 0
        run: Station | None = None
        for _ in range(_AT_ONCE):
            if end + 4 + longest + 1 > MOST:
                break
            try:
                # One byte more than a frame may have: what is longer is seen to be.
                size = self._card.recv_into(view[end + 4 : end + 4 + longest + 1])
            except BlockingIOError:
                break
            except OSError:  # the hypervisor is gone; its end is the pilot's matter
                self._loop.forget(self._card)
                break
            if not size:
                continue
            goes = switch.outgoing(view[end + 4 : end + 4 + size], now)
            if isinstance(goes, bytes):
                self._give(goes)
            elif goes is not None:
                if goes is not run:
                    if run is not None:
                        self._pass_on(run, view[begin:end])
                        # What is left moves to the front only in thought: the record took a copy.
                    begin, run = end, goes
                LENGTH.pack_into(view, end, size)
                end += 4 + size
                self._counts[Count.SENT] += 1
                self._counts[Count.SENT_BYTES] += size
        if run is not None:
            self._pass_on(run, view[begin:end])

    def take(self, source: Station, came: Record) -> None:
        """Frames that another pilot sent. Raises WireError: they are no frames."""
        for frame in came.split():
            if self.switch.incoming(source, frame):
                self._give(frame)

    def _pass_on(self, station: Station, frames: memoryview) -> None:
        self._send(station, record(self.switch.nic.network, station.number, self.switch.own.number, frames))

    def _give(self, frame: bytes | memoryview) -> None:
        """To the guest: now, or when it has taken what came before."""
        if not self._waiting:
            try:
                self._card.send(frame)
                self._counts[Count.RECEIVED] += 1
                self._counts[Count.RECEIVED_BYTES] += len(frame)
                return
            except BlockingIOError:
                self._loop.write(self._card, self._drain)
            except OSError:  # nobody is there (any more)
                self._counts[Count.FULL] += 1
                return
        if self._size + len(frame) > QUEUE:
            self._counts[Count.FULL] += 1
            return
        self._waiting.append(bytes(frame))
        self._size += len(frame)

    def _drain(self) -> None:
        while self._waiting:
            frame = self._waiting[0]
            try:
                self._card.send(frame)
            except BlockingIOError:
                return
            except OSError:
                self._counts[Count.FULL] += len(self._waiting)
                self._waiting.clear()
                self._size = 0
                break
            self._waiting.popleft()
            self._size -= len(frame)
            self._counts[Count.RECEIVED] += 1
            self._counts[Count.RECEIVED_BYTES] += len(frame)
        self._loop.write(self._card, None)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._loop.forget(self._card)
            self._card.close()
