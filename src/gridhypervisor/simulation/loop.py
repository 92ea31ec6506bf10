"""An event loop in virtual time: when nothing is ready, the clock jumps to the next timer instead of waiting for it.

Work in threads (the store's) is real: while some is under way the clock stands still.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any, TypeVarTuple, Unpack

Ts = TypeVarTuple("Ts")

TURN = 1e-7
"""Seconds that a turn of a `SteadyLoop` takes: time goes on a little, as it does anywhere, so that nothing waits for a
moment that rounding keeps just ahead of it."""


class Stuck(Exception):
    """Nothing is ready, no timer is set, no thread works: nothing can ever happen again."""


class VirtualLoop(asyncio.SelectorEventLoop):
    """`time()` starts at 0 and counts virtual seconds. Run it by `asyncio.Runner(loop_factory=VirtualLoop)`."""

    def __init__(self) -> None:
        self._now = 0.0
        self._working = 0
        super().__init__(self._selector_of())

    def _selector_of(self) -> selectors.BaseSelector:
        return _Jumping(self)

    def time(self) -> float:
        return self._now

    def run_in_executor(
        self, executor: Executor | None, func: Callable[[Unpack[Ts]], Any], *args: *Ts
    ) -> asyncio.Future[Any]:
        future = super().run_in_executor(executor, func, *args)
        self._working += 1
        future.add_done_callback(self._worked)
        return future

    async def shutdown_default_executor(self) -> None:
        self._working += 1  # a thread that is none of an executor's waits for them
        try:
            await super().shutdown_default_executor()
        finally:
            self._working -= 1

    def _worked(self, _: asyncio.Future[Any]) -> None:
        self._working -= 1

    @property
    def working(self) -> bool:
        """Whether threads have work of this loop's."""
        return self._working > 0

    def jump(self, seconds: float) -> None:
        self._now += seconds


class _Jumping(selectors.SelectSelector):
    """Asked to wait, it moves the clock."""

    def __init__(self, loop: VirtualLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if ready or (timeout is not None and timeout <= 0):
            return ready
        if self._loop.working:
            return super().select(None)
        if timeout is None:
            raise Stuck("the simulation waits for something that will never happen")
        self._loop.jump(timeout)
        return ready


class SteadyLoop(VirtualLoop):
    """What threads would do it does itself, at once: so the same story is the same always, however fast the machine is.

    It watches no file and no socket.
    """

    def _selector_of(self) -> selectors.BaseSelector:
        return _Turning(self)

    def run_in_executor(
        self, executor: Executor | None, func: Callable[[Unpack[Ts]], Any], *args: *Ts
    ) -> asyncio.Future[Any]:
        future = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:
            future.set_exception(error)
        return future


class _Turning(_Jumping):
    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None and not self._loop.working:
            raise Stuck("the simulation waits for something that will never happen")
        if self._loop.working:  # the end of the default executor's threads, of which there are none
            return super().select(timeout)
        self._loop.jump(max(timeout or 0.0, TURN))
        return []
