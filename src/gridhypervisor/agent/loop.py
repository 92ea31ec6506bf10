"""The pilot's event loop: descriptors, timers, signals, on the pilot's clock. It decides nothing.

Not asyncio: the pilot does one thing after another and only has to listen meanwhile, and importing asyncio costs as
long as all of the pilot's own work before the guest starts.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
from collections.abc import Callable
from typing import Protocol, TypeVar

from gridhypervisor.agent.ending import now

T = TypeVar("T")

_TROUBLE = select.POLLERR | select.POLLHUP | select.POLLNVAL
_READABLE, _WRITABLE = select.POLLIN | _TROUBLE, select.POLLOUT | _TROUBLE


class HasDescriptor(Protocol):
    def fileno(self) -> int: ...


class Loop:
    """Everything that may happen while the pilot waits for one thing."""

    def __init__(self) -> None:
        self._poll = select.poll()
        self._readers: dict[int, Callable[[], object]] = {}
        self._writers: dict[int, Callable[[], object]] = {}
        self._timers: list[tuple[float, float, Callable[[], None]]] = []  # next, interval, what
        wake, self._waker = os.pipe()
        os.set_blocking(wake, False)
        os.set_blocking(self._waker, False)
        self.read(wake, lambda: _drain(wake))

    def signals(self, handlers: dict[signal.Signals, Callable[[], None]]) -> None:
        """Run these when the signals come; each must be short."""
        for number, handler in handlers.items():
            signal.signal(number, lambda *_, handler=handler: handler())
        signal.set_wakeup_fd(self._waker, warn_on_full_buffer=False)

    def read(self, source: HasDescriptor | int, callback: Callable[[], object]) -> None:
        """Run `callback` whenever there is something to read, the end of the stream included."""
        descriptor = source if isinstance(source, int) else source.fileno()
        self._readers[descriptor] = callback
        self._register(descriptor)

    def write(self, source: HasDescriptor, callback: Callable[[], object] | None) -> None:
        """Run `callback` whenever something may be written, an error included; None: no longer."""
        if callback is not None:
            self._writers[source.fileno()] = callback
        else:
            self._writers.pop(source.fileno(), None)
        self._register(source.fileno())

    def forget(self, source: HasDescriptor) -> None:
        """No longer listen to it; must come before it is closed."""
        self._readers.pop(source.fileno(), None)
        self._writers.pop(source.fileno(), None)
        self._register(source.fileno())

    def _register(self, descriptor: int) -> None:
        wanted = select.POLLIN * (descriptor in self._readers) | select.POLLOUT * (descriptor in self._writers)
        if wanted:
            self._poll.register(descriptor, wanted)
        else:
            with contextlib.suppress(KeyError):
                self._poll.unregister(descriptor)

    def every(self, interval: float, callback: Callable[[], None]) -> None:
        """Run `callback` every `interval` seconds while something is waited for."""
        self._timers.append((now() + interval, interval, callback))

    def wait(self, done: Callable[[], bool], limit: float | None = None) -> bool:
        """Handle what happens until `done()`; False when that is not so at `limit` (CLOCK_BOOTTIME).

        Raises: whatever a callback or `done` raises.
        """
        while not done():
            moment = now()
            if limit is not None and moment >= limit:
                return False
            moments = [next_ for next_, _, _ in self._timers] + ([limit] if limit is not None else [])
            soonest = min(moments, default=None)
            timeout = None if soonest is None else max(0, int((soonest - moment) * 1000) + 1)
            for descriptor, happened in self._poll.poll(timeout):
                writer = self._writers.get(descriptor) if happened & _WRITABLE else None
                if writer:
                    writer()
                reader = self._readers.get(descriptor) if happened & _READABLE else None
                if reader:
                    reader()
            moment = now()
            for index, (next_, interval, callback) in enumerate(self._timers):
                if moment >= next_:
                    self._timers[index] = (moment + interval, interval, callback)
                    callback()
        return True

    def apart(self, work: Callable[[], T], check: Callable[[], None]) -> T:
        """Run `work` in a thread and handle what happens meanwhile; its result, or what it raises. `check` is asked
        after each event and may raise; `work` must then end soon, which is waited for."""
        result: list[T] = []
        failure: list[BaseException] = []

        def run() -> None:
            try:
                result.append(work())
            except BaseException as error:
                failure.append(error)
            with contextlib.suppress(BlockingIOError):
                os.write(self._waker, b"\0")

        def done() -> bool:
            check()
            return bool(result or failure)

        import threading  # only here: a pilot that has nothing to bring has no threads

        thread = threading.Thread(target=run)
        thread.start()
        try:
            self.wait(done)
        finally:
            thread.join()
        if failure:
            raise failure[0]
        return result[0]


def _drain(descriptor: int) -> None:
    with contextlib.suppress(BlockingIOError):
        while os.read(descriptor, 4096):
            pass
